//! Defaults of pod specs, wherever they stand. Source: upstream's `pkg/apis/core/v1/defaults.go`.

use serde_json::{Map, Value, json};

use super::path::{each, fill, text, within};

/// Constant defaults below a pod spec.
#[rustfmt::skip]
const SPEC: &[(&str, &str, &str)] = &[
    ("", "restartPolicy", r#""Always""#),
    ("", "dnsPolicy", r#""ClusterFirst""#),
    ("", "schedulerName", r#""default-scheduler""#),
    ("", "terminationGracePeriodSeconds", "30"),
    ("", "securityContext", "{}"),
    ("volumes[].secret", "defaultMode", "420"),
    ("volumes[].configMap", "defaultMode", "420"),
    ("volumes[].downwardAPI", "defaultMode", "420"),
    ("volumes[].downwardAPI.items[].fieldRef", "apiVersion", r#""v1""#),
    ("volumes[].projected", "defaultMode", "420"),
    ("volumes[].projected.sources[].serviceAccountToken", "expirationSeconds", "3600"),
    ("volumes[].projected.sources[].downwardAPI.items[].fieldRef", "apiVersion", r#""v1""#),
    ("volumes[].hostPath", "type", r#""""#),
    ("volumes[].iscsi", "iscsiInterface", r#""default""#),
    ("volumes[].ephemeral.volumeClaimTemplate.spec", "volumeMode", r#""Filesystem""#),
];

/// Constant defaults below a container.
#[rustfmt::skip]
const CONTAINER: &[(&str, &str, &str)] = &[
    ("", "terminationMessagePath", r#""/dev/termination-log""#),
    ("", "terminationMessagePolicy", r#""File""#),
    ("", "resources", "{}"),
    ("ports[]", "protocol", r#""TCP""#),
    ("env[].valueFrom.fieldRef", "apiVersion", r#""v1""#),
    ("lifecycle.preStop.httpGet", "path", r#""/""#),
    ("lifecycle.preStop.httpGet", "scheme", r#""HTTP""#),
    ("lifecycle.postStart.httpGet", "path", r#""/""#),
    ("lifecycle.postStart.httpGet", "scheme", r#""HTTP""#),
];

const PROBE: &[(&str, &str, &str)] = &[
    ("", "timeoutSeconds", "1"),
    ("", "periodSeconds", "10"),
    ("", "successThreshold", "1"),
    ("", "failureThreshold", "3"),
    ("httpGet", "path", r#""/""#),
    ("httpGet", "scheme", r#""HTTP""#),
    ("grpc", "service", r#""""#),
];

const CONTAINERS: [&str; 3] = ["containers[]", "initContainers[]", "ephemeralContainers[]"];
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// Fills in the pod spec at `path`.
pub(super) fn apply(object: &mut Value, path: &str) {
    each(object, path, &mut |spec| {
        constants(spec, SPEC);
        for list in CONTAINERS {
            within(spec, list, &mut |container| {
                constants(container, CONTAINER);
                for probe in PROBES {
                    within(container, probe, &mut |probe| constants(probe, PROBE));
                }
                pull_policy(container);
            });
        }
        host_ports(spec);
        service_account(spec);
        within(spec, "volumes[]", &mut |volume| {
            // A volume that names no source is an emptyDir.
            if volume.len() == 1 && volume.contains_key("name") {
                volume.insert("emptyDir".into(), json!({}));
            }
        });
    });
}

/// A container that states limits but no requests asks for its limits (pods only, not templates).
pub(super) fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(Value::Object(resources)) = container.get_mut("resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Value::Object(requests) = requests {
        for (name, quantity) in limits {
            fill(requests, &name, || quantity);
        }
    }
}

fn constants(object: &mut Map<String, Value>, table: &[(&str, &str, &str)]) {
    for (below, key, value) in table {
        within(object, below, &mut |at| {
            fill(at, key, || serde_json::from_str(value).unwrap_or(Value::Null));
        });
    }
}

/// `:latest` or no tag is pulled always, anything else if it is not present.
fn pull_policy(container: &mut Map<String, Value>) {
    let image = text(container, "image");
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let policy = if tag == Some("latest") || (tag.is_none() && digest.is_none()) { "Always" } else { "IfNotPresent" };
    fill(container, "imagePullPolicy", || json!(policy));
}

/// On the host's network a container port is a host port.
fn host_ports(spec: &mut Map<String, Value>) {
    if spec.get("hostNetwork") != Some(&json!(true)) {
        return;
    }
    for list in ["containers", "initContainers"] {
        let Some(containers) = spec.get_mut(list) else { continue };
        for container in containers.as_array_mut().into_iter().flatten() {
            each(container, "ports[]", &mut |port| {
                if let Some(number) = port.get("containerPort").cloned() {
                    fill(port, "hostPort", || number);
                }
            });
        }
    }
}

/// The deprecated `serviceAccount` mirrors `serviceAccountName`.
fn service_account(spec: &mut Map<String, Value>) {
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        let name = text(spec, from).to_owned();
        if !name.is_empty() {
            if to == "serviceAccount" {
                spec.insert(to.into(), json!(name));
            } else {
                fill(spec, to, || json!(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, expected) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("host:5000/a", "Always"),
            ("host:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            let mut pod = json!({"spec": {"containers": [{"image": image}]}});
            apply(&mut pod, "spec");
            assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], expected, "{image}");
        }
    }

    #[test]
    fn a_pod_spec_is_filled_in() {
        let mut pod = json!({"spec": {
            "hostNetwork": true,
            "serviceAccount": "x",
            "containers": [{"image": "a:1", "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "s"}}],
        }});
        apply(&mut pod, "spec");
        let spec = &pod["spec"];
        assert_eq!(spec["containers"][0]["ports"][0], json!({"containerPort": 80, "protocol": "TCP", "hostPort": 80}));
        assert_eq!(spec["containers"][0]["livenessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(spec["containers"][0]["livenessProbe"]["failureThreshold"], 3);
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(spec["serviceAccountName"], "x");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    }
}
