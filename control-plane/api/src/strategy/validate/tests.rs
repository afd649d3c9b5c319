//! Tables: an object and the errors it must give, in upstream's words.

use serde_json::{Value, json};

use super::*;
use crate::{resource, strategy::defaults};

fn row(group: &str, kind: &str) -> &'static Resource {
    resource::builtin().by_kind(group, "v1", kind).unwrap()
}

/// A valid pod with `change` merged into its spec.
fn pod(change: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i:1"}]});
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})
}

fn check(group: &str, kind: &str, mut object: Value, expected: &[&str]) {
    defaults(row(group, kind), &mut object);
    let errors: Vec<String> = validate_create(row(group, kind), &object).iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{kind} {object}");
}

fn container(change: Value) -> Value {
    let mut container = json!({"name": "c", "image": "i:1"});
    for (key, value) in change.as_object().unwrap() {
        container[key] = value.clone();
    }
    pod(json!({"containers": [container]}))
}

#[test]
fn pods() {
    let check = |spec: Value, expected: &[&str]| check("", "Pod", pod(spec), expected);
    check(json!({}), &[]);
    check(json!({"containers": []}), &["spec.containers: Required value"]);
    check(
        json!({"restartPolicy": "Sometimes"}),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    check(
        json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
        &["spec.containers[1].name: Duplicate value: \"c\""],
    );
    check(
        json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        json!({"tolerations": [{"value": "x"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    check(
        json!({"tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 1}]}),
        &[
            "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ],
    );
    check(
        json!({"topologySpreadConstraints": [{"topologyKey": "k", "whenUnsatisfiable": "DoNotSchedule"}]}),
        &["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"],
    );
    check(
        json!({"dnsPolicy": "None"}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
}

#[test]
fn sysctls() {
    let check = |spec: Value, expected: &[&str]| check("", "Pod", pod(spec), expected);
    let named = |names: &[&str]| -> Vec<Value> { names.iter().map(|n| json!({"name": n, "value": "1"})).collect() };
    let good = ["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies", "net.ipv4.conf.eth0/1.forwarding"];
    check(json!({"securityContext": {"sysctls": named(&good)}}), &[]);
    let bad = |i: usize, name: &str| {
        format!(
            "spec.securityContext.sysctls[{i}].name: Invalid value: \"{name}\": must have at most 253 characters and \
             match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
        )
    };
    let long = "a".repeat(254);
    let names = ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar..", "42$", &long];
    let expected = [bad(0, "foo-"), bad(3, "bar.."), bad(4, "42$"), bad(5, &long)];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check(json!({"securityContext": {"sysctls": named(&names)}}), &expected);
    check(
        json!({"securityContext": {"sysctls": named(&["", "a.b", "a.b"])}}),
        &[
            "spec.securityContext.sysctls[0].name: Required value",
            "spec.securityContext.sysctls[2].name: Duplicate value: \"a.b\"",
        ],
    );
    check(
        json!({"hostNetwork": true, "hostIPC": true, "securityContext": {"sysctls": named(&["net/core/somaxconn", "kernel.msgmax", "vm.x"])}}),
        &[
            "spec.securityContext.sysctls[0].name: Invalid value: \"net/core/somaxconn\": may not be specified when 'hostNetwork' is true",
            "spec.securityContext.sysctls[1].name: Invalid value: \"kernel.msgmax\": may not be specified when 'hostIPC' is true",
        ],
    );
}

#[test]
fn containers() {
    let check = |change: Value, expected: &[&str]| check("", "Pod", container(change), expected);
    check(json!({"image": ""}), &["spec.containers[0].image: Required value"]);
    check(
        json!({"ports": [{"containerPort": 70000}]}),
        &["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"],
    );
    check(
        json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"x\""],
    );
    check(
        json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
        &["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
    );
    check(
        json!({"livenessProbe": {}}),
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    check(
        json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
        &["spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
    );
}

#[test]
fn metadata() {
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"namespace": "n"}}),
        &["metadata.name: Required value: name or generateName is required"],
    );
    check(
        "",
        "ConfigMap",
        json!({"metadata": {"name": "a", "namespace": "n", "labels": {"a": "b c"}}}),
        &[
            "metadata.labels: Invalid value: \"b c\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ],
    );
    check(
        "",
        "Namespace",
        json!({"metadata": {"name": "a", "namespace": "n"}}),
        &["metadata.namespace: Forbidden: not allowed on this type"],
    );
}

#[test]
fn deployments() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = |selector: Value| json!({"metadata": {"name": "d", "namespace": "n"}, "spec": {"selector": selector, "template": template}});
    check("apps", "Deployment", deployment(json!({"matchLabels": {"a": "b"}})), &[]);
    check(
        "apps",
        "Deployment",
        deployment(json!({"matchLabels": {"a": "c"}})),
        &["spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"],
    );
    let mut bad = deployment(json!({"matchLabels": {"a": "b"}}));
    bad["spec"]["replicas"] = json!(-1);
    bad["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
    check(
        "apps",
        "Deployment",
        bad,
        &[
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ],
    );
}

#[test]
fn services_and_slices() {
    let service = |spec: Value| json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec});
    check("", "Service", service(json!({"ports": [{"port": 80}]})), &[]);
    check("", "Service", service(json!({})), &["spec.ports: Required value"]);
    check("", "Service", service(json!({"clusterIP": "None", "clusterIPs": ["None"]})), &[]);
    check(
        "",
        "Service",
        service(
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIPs": ["None"], "ipFamilyPolicy": "SingleStack"}),
        ),
        &[
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
        ],
    );
    let with = |ip: &str, ips: Value, families: Value| {
        service(json!({"clusterIP": ip, "clusterIPs": ips, "ipFamilies": families, "ports": [{"port": 80}]}))
    };
    for (ip, ips, families, expected) in [
        ("10.0.0.1", json!(["10.0.0.1", "fd00::1"]), json!(["IPv4", "IPv6"]), &[][..]),
        (
            "",
            json!(["10.0.0.1"]),
            json!([]),
            &["spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified"],
        ),
        ("10.0.0.1", json!([]), json!([]), &["spec.clusterIPs: Required value"]),
        (
            "10.0.0.1",
            json!(["10.0.0.2"]),
            json!([]),
            &["spec.clusterIPs: Invalid value: [\"10.0.0.2\"]: first value must match `clusterIP`"],
        ),
        (
            "10.0.0.1",
            json!(["10.0.0.1", "x"]),
            json!([]),
            &[
                "spec.clusterIPs[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        ),
        (
            "None",
            json!(["None", "fd00::1"]),
            json!([]),
            &["spec.clusterIPs: Invalid value: [\"None\",\"fd00::1\"]: 'None' must be the first and only value"],
        ),
        (
            "10.0.0.1",
            json!(["10.0.0.1", "10.0.0.2"]),
            json!([]),
            &[
                "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP family",
            ],
        ),
        (
            "10.0.0.1",
            json!(["10.0.0.1"]),
            json!(["IPv6"]),
            &[
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ],
        ),
        ("", json!([]), json!(["IPv4", "IPv4"]), &["spec.ipFamilies[1]: Duplicate value: \"IPv4\""]),
        (
            "",
            json!([]),
            json!(["IPX"]),
            &["spec.ipFamilies[0]: Unsupported value: \"IPX\": supported values: \"IPv4\", \"IPv6\""],
        ),
    ] {
        check("", "Service", with(ip, ips, families), expected);
    }
    check(
        "",
        "Service",
        service(json!({"ports": [{"port": 80}, {"port": 81}]})),
        &["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
    );
    check(
        "",
        "Service",
        service(json!({"ports": [{"port": 80, "nodePort": 30000}]})),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    let slice = json!({"metadata": {"name": "s", "namespace": "n"}, "addressType": "IPv4", "endpoints": [{"addresses": ["2001:db8::1"]}]});
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        slice,
        &["endpoints[0].addresses[0]: Invalid value: \"2001:db8::1\": must be a valid IPv4 address"],
    );
}

#[test]
fn data_and_roles() {
    let meta = json!({"name": "x", "namespace": "n"});
    check(
        "",
        "Secret",
        json!({"metadata": meta, "type": "kubernetes.io/tls"}),
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
    check(
        "",
        "ConfigMap",
        json!({"metadata": meta, "data": {"a/b": ""}}),
        &[
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    let rules = json!([{"apiGroups": [""], "resources": ["pods"]}]);
    check(
        "rbac.authorization.k8s.io",
        "Role",
        json!({"metadata": meta, "rules": rules}),
        &["rules[0].verbs: Required value: verbs must contain at least one value"],
    );
    let reference = json!({"kind": "Role", "name": "r"});
    check(
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        json!({"metadata": {"name": "x"}, "roleRef": reference}),
        &["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
    );
}

#[test]
fn changes() {
    let check = |group: &str, kind: &str, mut old: Value, mut new: Value, expected: &[&str]| {
        defaults(row(group, kind), &mut old);
        defaults(row(group, kind), &mut new);
        let errors = validate_update(row(group, kind), &old, &new);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, start) in errors.iter().zip(expected) {
            assert!(error.starts_with(start), "{error}");
        }
    };
    check("", "Pod", pod(json!({})), container(json!({"image": "i:2"})), &[]);
    check(
        "",
        "Pod",
        pod(json!({})),
        container(json!({"command": ["x"]})),
        &["spec: Forbidden: pod updates may not change fields other than"],
    );
    check("", "Pod", pod(json!({})), pod(json!({"tolerations": [{"operator": "Exists"}]})), &[]);
    check("", "Pod", pod(json!({})), pod(json!({"activeDeadlineSeconds": 5})), &[]);
    let secret = |kind: &str| json!({"metadata": {"name": "s", "namespace": "n"}, "type": kind});
    check("", "Secret", secret("a"), secret("b"), &["type: Invalid value: \"b\": field is immutable"]);
    let service = |ip: &str| json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 1}]}});
    check(
        "",
        "Service",
        service("10.0.0.1"),
        service("10.0.0.2"),
        &["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"],
    );
    let dual = |policy: &str, ips: &[&str]| {
        let families: Vec<&str> = ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"ipFamilyPolicy": policy, "clusterIP": ips.first(),
            "clusterIPs": ips, "ipFamilies": families, "ports": [{"port": 1}]}})
    };
    let (one, two) = (dual("SingleStack", &["10.0.0.1"]), dual("PreferDualStack", &["10.0.0.1", "fd00::1"]));
    check("", "Service", one.clone(), two.clone(), &[]);
    check("", "Service", two.clone(), one, &[]);
    check(
        "",
        "Service",
        two.clone(),
        dual("PreferDualStack", &["10.0.0.1"]),
        &[
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP",
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary ipFamily",
        ],
    );
    check(
        "",
        "Service",
        two,
        dual("PreferDualStack", &["fd00::1", "10.0.0.1"]),
        &[
            "spec.clusterIPs[0]: Invalid value: [\"fd00::1\",\"10.0.0.1\"]: may not change once set",
            "spec.clusterIPs[1]: Invalid value: [\"fd00::1\",\"10.0.0.1\"]: may not change once set",
            "spec.ipFamilies[0]: Invalid value: [\"IPv6\",\"IPv4\"]: may not change once set",
            "spec.ipFamilies[1]: Invalid value: [\"IPv6\",\"IPv4\"]: may not change once set",
        ],
    );
    // An object that was let in by other rules stays changeable elsewhere.
    let odd = |label: &str| json!({"metadata": {"name": "Odd_Name", "namespace": "n", "labels": {"a": label}}});
    check("", "ConfigMap", odd("x"), odd("y"), &[]);
}

/// For every kind that can be stored: the least object that upstream takes, and one that it refuses
/// with the errors.
#[test]
fn every_kind_takes_its_least_object_and_refuses_a_broken_one() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let once = json!({"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}});
    let selector = json!({"matchLabels": {"a": "b"}});
    let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
    let hook = json!({"name": "a.b.c", "clientConfig": {"url": "https://h/"}, "sideEffects": "None",
        "admissionReviewVersions": ["v1"]});
    let policy = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]});
    let mutation = json!({"matchConstraints": {"resourceRules": [rule]}, "reinvocationPolicy": "Never",
        "failurePolicy": "Fail", "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]});
    let csr = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let crd = json!({"group": "example.com", "scope": "Namespaced", "names": {"plural": "as", "kind": "A"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]});
    #[rustfmt::skip]
    let table: Vec<(&str, Value, Value, &[&str])> = vec![
        ("v1 ConfigMap", json!({}), json!({"data": {"a/b": ""}}), &["data[a/b]"]),
        ("v1 Endpoints", json!({}), json!({"subsets": [{}]}), &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]),
        ("v1 Event", json!({"involvedObject": {"namespace": "n"}}), json!({"involvedObject": {"namespace": "o"}}), &["involvedObject.namespace: Invalid value: \"o\": does not match event.namespace"]),
        ("v1 LimitRange", json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}}),
            json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}, "min": {"cpu": "2"}}]}}),
            &["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]),
        ("v1 Namespace", json!({}), json!({"metadata": {"name": "A"}}), &["metadata.name: Invalid value"]),
        ("v1 Node", json!({}), json!({"spec": {"taints": [{"key": "a"}]}}), &["spec.taints[0].effect: Required value"]),
        ("v1 PersistentVolumeClaim", json!({"spec": claim}), json!({"spec": {}}),
            &["spec.accessModes: Required value: at least 1 access mode is required", "spec.resources[storage]: Required value"]),
        ("v1 PersistentVolume", json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1"}, "hostPath": {"path": "/a"}}}),
            json!({"spec": {"accessModes": ["Some"], "capacity": {"storage": "1"}}}),
            &["spec.accessModes: Unsupported value: \"Some\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
              "spec: Required value: must specify a volume type"]),
        ("v1 Pod", json!({"spec": template["spec"]}), json!({"spec": {}}), &["spec.containers: Required value"]),
        ("v1 PodTemplate", json!({"template": template}), json!({}), &["template.spec.containers: Required value"]),
        ("v1 ReplicationController", json!({"spec": {"template": template}}), json!({"spec": {"selector": {"x": "y"}, "template": template}}),
            &["spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"]),
        ("v1 ResourceQuota", json!({}), json!({"spec": {"hard": {"foo": "1"}}}), &["spec.hard[foo]: Invalid value: \"foo\": must be a standard resource for quota"]),
        ("v1 Secret", json!({}), json!({"type": "kubernetes.io/tls"}), &["data[tls.crt]: Required value", "data[tls.key]: Required value"]),
        ("v1 ServiceAccount", json!({}), json!({"metadata": {"name": "A"}}), &["metadata.name: Invalid value"]),
        ("v1 Service", json!({"spec": {"ports": [{"port": 80}]}}), json!({"spec": {}}), &["spec.ports: Required value"]),
        ("apiregistration.k8s.io/v1 APIService", json!({"metadata": {"name": "v1.g.io"}, "spec": {"group": "g.io", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}}),
            json!({"metadata": {"name": "v1.g.io"}, "spec": {"group": "g.io", "version": "v1", "versionPriority": 1}}),
            &["spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000"]),
        ("apps/v1 ControllerRevision", json!({"data": {}, "revision": 1}), json!({"revision": 1}), &["data: Required value: data is mandatory"]),
        ("apps/v1 DaemonSet", json!({"spec": {"selector": selector, "template": template}}), json!({"spec": {"template": template}}), &["spec.selector: Required value"]),
        ("apps/v1 Deployment", json!({"spec": {"selector": selector, "template": template}}), json!({"spec": {"selector": {}, "template": template}}),
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]),
        ("apps/v1 ReplicaSet", json!({"spec": {"selector": selector, "template": template}}), json!({"spec": {"selector": selector, "template": template, "replicas": -1}}),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]),
        ("apps/v1 StatefulSet", json!({"spec": {"selector": selector, "template": template}}), json!({"spec": {"selector": selector, "template": template, "podManagementPolicy": "x"}}),
            &["spec.podManagementPolicy: Unsupported value: \"x\": supported values: \"OrderedReady\", \"Parallel\""]),
        ("events.k8s.io/v1 Event", json!({"regarding": {"namespace": "n"}, "eventTime": "2024-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "a", "reason": "r", "type": "Normal"}),
            json!({"regarding": {"namespace": "n"}}), &["eventTime: Required value"]),
        ("autoscaling/v2 HorizontalPodAutoscaler", json!({"spec": {"maxReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
            json!({"spec": {"maxReplicas": 0, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment"}}}),
            &["spec.maxReplicas: Invalid value: 0: must be greater than 0", "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
              "spec.scaleTargetRef.name: Required value"]),
        ("batch/v1 CronJob", json!({"spec": {"schedule": "*/5 * * * mon-fri", "jobTemplate": {"spec": {"template": once}}}}),
            json!({"spec": {"schedule": "often", "jobTemplate": {"spec": {"template": once}}}}),
            &["spec.schedule: Invalid value: \"often\": expected exactly 5 fields, found 1: [often]"]),
        ("batch/v1 Job", json!({"spec": {"template": once}}), json!({"spec": {"template": template}}),
            &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]),
        ("certificates.k8s.io/v1 CertificateSigningRequest", json!({"spec": {"request": csr, "signerName": "a.io/b", "usages": ["client auth"]}}),
            json!({"spec": {"request": csr, "usages": ["client auth"]}}), &["spec.signerName: Required value"]),
        ("networking.k8s.io/v1 IngressClass", json!({"spec": {"controller": "a.io/b"}}), json!({"spec": {"controller": "x"}}),
            &["spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"]),
        ("networking.k8s.io/v1 Ingress", json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
            json!({"spec": {"rules": [{"http": {"paths": [{"path": "/", "backend": {"service": {"name": "s", "port": {}}}}]}}]}}),
            &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
              "spec.rules[0].http.paths[0].backend: Required value: port name or number is required"]),
        ("networking.k8s.io/v1 IPAddress", json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "name": "s"}}}),
            json!({"metadata": {"name": "10.0.0.1"}}), &["spec.parentRef: Required value"]),
        ("networking.k8s.io/v1 NetworkPolicy", json!({"spec": {}}), json!({"spec": {"ingress": [{"from": [{}]}]}}), &["spec.ingress[0].from[0]: Required value: must specify a peer"]),
        ("networking.k8s.io/v1 ServiceCIDR", json!({"spec": {"cidrs": ["10.0.0.0/16"]}}), json!({}), &["spec.cidrs: Required value: at least one CIDR required"]),
        ("policy/v1 PodDisruptionBudget", json!({"spec": {"selector": selector}}), json!({"spec": {"minAvailable": "x"}}), &["spec.minAvailable: Invalid value: \"x\": a valid percent string"]),
        ("rbac.authorization.k8s.io/v1 ClusterRoleBinding", json!({"roleRef": {"kind": "ClusterRole", "name": "r"}}), json!({"roleRef": {"kind": "ClusterRole"}}), &["roleRef.name: Required value"]),
        ("rbac.authorization.k8s.io/v1 ClusterRole", json!({}), json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]}), &["rules[0].verbs: Required value"]),
        ("rbac.authorization.k8s.io/v1 RoleBinding", json!({"roleRef": {"kind": "Role", "name": "r"}}), json!({"roleRef": {"kind": "Role"}}), &["roleRef.name: Required value"]),
        ("rbac.authorization.k8s.io/v1 Role", json!({}), json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]}), &["rules[0].verbs: Required value"]),
        ("storage.k8s.io/v1 CSIDriver", json!({"spec": {}}), json!({"spec": {"fsGroupPolicy": "x"}}), &["spec.fsGroupPolicy: Unsupported value: \"x\""]),
        ("storage.k8s.io/v1 CSINode", json!({"spec": {"drivers": []}}), json!({"spec": {"drivers": [{"name": "d"}]}}), &["spec.drivers[0].nodeID: Required value"]),
        ("storage.k8s.io/v1 CSIStorageCapacity", json!({"storageClassName": "c"}), json!({}), &["storageClassName: Required value"]),
        ("storage.k8s.io/v1 StorageClass", json!({"provisioner": "p"}), json!({}), &["provisioner: Required value"]),
        ("storage.k8s.io/v1 VolumeAttachment", json!({"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}}),
            json!({"spec": {"attacher": "a", "nodeName": "n"}}), &["spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"]),
        ("storage.k8s.io/v1 VolumeAttributesClass", json!({"driverName": "d", "parameters": {"a": "b"}}), json!({"parameters": {"a": "b"}}), &["driverName: Required value"]),
        ("admissionregistration.k8s.io/v1 MutatingAdmissionPolicy", json!({"spec": mutation}), json!({"spec": {"matchConstraints": {"resourceRules": [rule]}, "reinvocationPolicy": "Never"}}),
            &["spec.mutations: Required value: mutations must contain at least one item"]),
        ("admissionregistration.k8s.io/v1 MutatingAdmissionPolicyBinding", json!({"spec": {"policyName": "p"}}), json!({"spec": {}}), &["spec.policyName: Required value"]),
        ("admissionregistration.k8s.io/v1 MutatingWebhookConfiguration", json!({"webhooks": [hook]}), json!({"webhooks": [{"name": "x"}]}),
            &["webhooks[0].name: Invalid value: \"x\": should be a domain with at least three segments separated by dots",
              "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun", "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
              "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"]),
        ("admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy", json!({"spec": policy}), json!({"spec": {"validations": [{"expression": "true"}]}}), &["spec.matchConstraints: Required value"]),
        ("admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding", json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}}),
            json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Warn"]}}), &["spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn"]),
        ("admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration", json!({"webhooks": [hook]}), json!({"webhooks": [{"name": "a.b.c", "clientConfig": {"url": "http://h"}, "sideEffects": "None", "admissionReviewVersions": ["v1"]}]}),
            &["webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]"]),
        ("apiextensions.k8s.io/v1 CustomResourceDefinition", json!({"metadata": {"name": "as.example.com"}, "spec": crd}), json!({"spec": {"names": {}}}), &["metadata.name: Invalid value: \"a\": must be spec.names.plural", "spec.group: Required value"]),
        ("scheduling.k8s.io/v1 PriorityClass", json!({"value": 1}), json!({"value": 2_000_000_000}), &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]),
        ("coordination.k8s.io/v1 Lease", json!({}), json!({"spec": {"leaseDurationSeconds": 0}}), &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than zero"]),
        ("node.k8s.io/v1 RuntimeClass", json!({"handler": "h"}), json!({}), &["handler: Invalid value: \"\""]),
        ("discovery.k8s.io/v1 EndpointSlice", json!({"addressType": "IPv4", "endpoints": []}), json!({"endpoints": []}), &["addressType: Required value"]),
        ("flowcontrol.apiserver.k8s.io/v1 FlowSchema", json!({"spec": {"priorityLevelConfiguration": {"name": "p"}}}), json!({"spec": {}}),
            &["spec.priorityLevelConfiguration.name: Required value: must reference a priority level"]),
        ("flowcontrol.apiserver.k8s.io/v1 PriorityLevelConfiguration", json!({"spec": {"type": "Exempt"}}), json!({"spec": {"type": "x"}}),
            &["spec.type: Unsupported value: \"x\": supported values: \"Exempt\", \"Limited\""]),
        ("sluice.dev/v1 LoadBalancerAnnouncement", json!({"spec": {"address": "192.0.2.1", "nodes": [{"name": "n", "addresses": ["10.0.0.1"]}]}}),
            json!({"spec": {"nodes": [{"addresses": ["x"]}]}}), &["spec.address: Required value", "spec.nodes[0].name: Required value", "spec.nodes[0].addresses[0]: Invalid value: \"x\": must be a valid IP address"]),
        ("sluice.dev/v1 LoadBalancerPool", json!({"spec": {"blocks": [{"cidr": "192.0.2.0/24"}]}}), json!({"spec": {"announcement": {"type": "x"}}}),
            &["spec.blocks: Required value: at least one block is needed", "spec.announcement.type: Unsupported value: \"x\": supported values: \"L2\", \"None\""]),
        ("resource.k8s.io/v1 DeviceClass", json!({"spec": {}}), json!({"spec": {"config": [{"opaque": {}}]}}), &["spec.config[0].opaque.driver: Required value"]),
        ("resource.k8s.io/v1 ResourceClaim", json!({"spec": {}}), json!({"spec": {"devices": {"requests": [{}]}}}), &["spec.devices.requests[0].name: Required value"]),
        ("resource.k8s.io/v1 ResourceClaimTemplate", json!({"spec": {"spec": {}}}), json!({"spec": {"spec": {"devices": {"requests": [{}]}}}}), &["spec.spec.devices.requests[0].name: Required value"]),
        ("resource.k8s.io/v1 ResourceSlice", json!({"spec": {"driver": "d", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}}),
            json!({"spec": {"pool": {"name": "p"}}}), &["spec.driver: Required value"]),
    ];
    let mut seen: Vec<String> = Vec::new();
    for (kind, least, broken, expected) in table {
        let (api, name) = kind.split_once(' ').unwrap();
        let row = resource::builtin().by_type(api, name).unwrap();
        seen.push(kind.to_owned());
        let errors = |object: &Value| -> Vec<String> {
            let mut object = object.clone();
            let meta = object.as_object_mut().unwrap().entry("metadata").or_insert(json!({}));
            meta.as_object_mut().unwrap().entry("name").or_insert(json!("a"));
            if row.namespaced {
                meta["namespace"] = json!("n");
            }
            let schema = crate::schema::builtin().get(&row.schema).unwrap();
            let (mut object, unknown) = crate::decode::strict(schema, object).unwrap();
            assert!(unknown.is_empty(), "{kind} {unknown:?}");
            defaults(row, &mut object);
            validate_create(row, &object).iter().map(ToString::to_string).collect()
        };
        assert_eq!(errors(&least), [""; 0], "{kind}");
        let found = errors(&broken);
        let fits = |i: usize| found.get(i).is_some_and(|text| text.starts_with(expected[i]));
        assert!((0..expected.len()).all(fits), "{kind}: {found:#?}");
    }
    for row in resource::builtin().iter().filter(|r| r.verbs == resource::Verbs::All && r.is_storage_version()) {
        let name = format!("{} {}", row.api_version(), row.kind);
        assert!(seen.contains(&name), "{name} is missing here");
    }
}

#[test]
fn traffic_from_outside() {
    let check = |change: Value, expected: &[&str]| {
        let mut spec = json!({"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        json_merge(&mut spec, change);
        check("", "Service", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec}), expected);
    };
    let balanced = |change: Value| {
        let mut spec = json!({"type": "LoadBalancer"});
        json_merge(&mut spec, change);
        spec
    };
    check(balanced(json!({"loadBalancerSourceRanges": [" 198.51.100.0/24", "2001:db8::/32"]})), &[]);
    check(
        balanced(json!({"loadBalancerSourceRanges": ["198.51.100.0", "x/8"]})),
        &[
            "spec.loadBalancerSourceRanges[0]: Invalid value: \"198.51.100.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.loadBalancerSourceRanges[1]: Invalid value: \"x/8\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ],
    );
    check(balanced(json!({"loadBalancerClass": "sluice.dev/l2", "allocateLoadBalancerNodePorts": false})), &[]);
    check(
        json!({"loadBalancerClass": "sluice.dev/l2", "allocateLoadBalancerNodePorts": true, "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
        &[
            "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ],
    );
    check(balanced(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 30000})), &[]);
    let health = "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and \
                  `externalTrafficPolicy` is 'Local'";
    check(balanced(json!({"healthCheckNodePort": 30000})), &[health]);
    check(json!({"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000}), &[health]);
    check(json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"}), &[]);
    check(
        json!({"externalTrafficPolicy": "Local"}),
        &["spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"],
    );
}

#[test]
fn load_balancer_pools() {
    let check = |blocks: Value, expected: &[&str]| {
        let pool = json!({"metadata": {"name": "p"}, "spec": {"blocks": blocks}});
        check("sluice.dev", "LoadBalancerPool", pool, expected);
    };
    check(
        json!([{"cidr": "192.0.2.0/24"}, {"cidr": "2001:db8::/120"}, {"start": "192.0.3.1", "stop": "192.0.3.9"}]),
        &[],
    );
    check(json!([{"start": "192.0.2.1"}]), &[]);
    check(json!([{}]), &["spec.blocks[0]: Required value: must specify `cidr` or `start`"]);
    check(
        json!([{"cidr": "192.0.2.0/24", "start": "192.0.2.1"}]),
        &["spec.blocks[0].start: Forbidden: may not be specified when `cidr` is specified"],
    );
    check(
        json!([{"cidr": "192.0.2.0"}, {"cidr": "192.0.2.0/33"}]),
        &[
            "spec.blocks[0].cidr: Invalid value: \"192.0.2.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.blocks[1].cidr: Invalid value: \"192.0.2.0/33\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ],
    );
    check(
        json!([{"start": "192.0.2.9", "stop": "192.0.2.8"}, {"start": "192.0.2.9", "stop": "2001:db8::1"}]),
        &[
            "spec.blocks[0].stop: Invalid value: \"192.0.2.8\": must be of the same IP family as `start` and not before it",
            "spec.blocks[1].stop: Invalid value: \"2001:db8::1\": must be of the same IP family as `start` and not before it",
        ],
    );
    check(
        json!([{"start": "x"}]),
        &["spec.blocks[0].start: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"],
    );
    check(
        json!([{"cidr": "192.0.2.0/24"}, {"start": "192.0.2.200", "stop": "192.0.3.1"}]),
        &["spec.blocks[1].start: Invalid value: \"192.0.2.200\": must not overlap spec.blocks[0]"],
    );
    check(
        json!([{"cidr": "127.0.0.0/8"}, {"cidr": "fe80::/64"}, {"start": "239.1.1.1"}, {"start": "::"}]),
        &[
            "spec.blocks[0].cidr: Invalid value: \"127.0.0.0/8\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "spec.blocks[1].cidr: Invalid value: \"fe80::/64\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            "spec.blocks[2].start: Invalid value: \"239.1.1.1\": may not be in the multicast or reserved range (224.0.0.0/3, ff00::/8)",
            "spec.blocks[3].start: Invalid value: \"::\": may not be unspecified (0.0.0.0 or ::)",
        ],
    );
    let many: Vec<Value> = (0..65).map(|i| json!({"start": format!("192.0.2.{i}")})).collect();
    check(json!(many), &["spec.blocks: Too many: 65: must have at most 64 items"]);
    let policy = json!({"metadata": {"name": "p"}, "spec": {"blocks": [{"start": "192.0.2.1"}],
        "serviceSelector": {"matchExpressions": [{"key": "a", "operator": "x"}]},
        "announcement": {"interfaces": ["eth0", "a/b", "sixteen-letters-", ""]}}});
    super::tests::check(
        "sluice.dev",
        "LoadBalancerPool",
        policy,
        &[
            "spec.serviceSelector.matchExpressions[0].operator: Invalid value: \"x\": not a valid selector operator",
            "spec.announcement.interfaces[1]: Invalid value: \"a/b\": must be the name of a link: at most 15 characters, no spaces, '/' or ':'",
            "spec.announcement.interfaces[2]: Invalid value: \"sixteen-letters-\": must be the name of a link: at most 15 characters, no spaces, '/' or ':'",
            "spec.announcement.interfaces[3]: Required value",
        ],
    );
}

#[test]
fn what_never_changes() {
    let claim = |change: Value, phase: &str| {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "c", "volumeName": "v",
            "resources": {"requests": {"storage": "2Gi"}}});
        json_merge(&mut spec, change);
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": spec,
            "status": {"phase": phase, "capacity": {"storage": "2Gi"}}})
    };
    const FIXED: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and \
                 volumeAttributesClassName for bound claims";
    let once = json!({"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}});
    let other = json!({"spec": {"containers": [{"name": "c", "image": "j"}], "restartPolicy": "Never"}});
    let job = |template: &Value| json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"template": template}});
    let balanced = |class: &str| {
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}],
            "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "loadBalancerClass": class}})
    };
    let class = |change: Value| {
        let mut class = json!({"metadata": {"name": "a"}, "provisioner": "p"});
        json_merge(&mut class, change);
        class
    };
    #[rustfmt::skip]
    let table: Vec<(&str, &str, Value, Value, &[&str])> = vec![
        ("", "PersistentVolumeClaim", claim(json!({}), "Bound"), claim(json!({"resources": {"requests": {"storage": "3Gi"}}}), "Bound"), &[]),
        ("", "PersistentVolumeClaim", claim(json!({}), "Pending"), claim(json!({"resources": {"requests": {"storage": "3Gi"}}}), "Pending"), &[FIXED]),
        ("", "PersistentVolumeClaim", claim(json!({}), "Bound"), claim(json!({"resources": {"requests": {"storage": "1Gi"}}}), "Bound"),
            &["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]),
        ("", "PersistentVolumeClaim", claim(json!({}), "Bound"), claim(json!({"storageClassName": "d"}), "Bound"), &[FIXED]),
        ("batch", "Job", job(&once), job(&once), &[]),
        ("batch", "Job", job(&once), job(&other), &["spec.template: Invalid value"]),
        ("storage.k8s.io", "StorageClass", class(json!({})), class(json!({"provisioner": "q"})), &["provisioner: Forbidden: updates to provisioner are forbidden."]),
        ("storage.k8s.io", "StorageClass", class(json!({})), class(json!({"volumeBindingMode": "WaitForFirstConsumer"})), &["volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable"]),
        ("scheduling.k8s.io", "PriorityClass", json!({"metadata": {"name": "a"}, "value": 1}), json!({"metadata": {"name": "a"}, "value": 2}), &["value: Forbidden: may not be changed in an update."]),
        ("node.k8s.io", "RuntimeClass", json!({"metadata": {"name": "a"}, "handler": "h"}), json!({"metadata": {"name": "a"}, "handler": "i"}), &["handler: Invalid value: \"i\": field is immutable"]),
        ("", "Service", balanced("a.io/b"), balanced("a.io/b"), &[]),
        ("", "Service", balanced("a.io/b"), balanced("a.io/c"), &["spec.loadBalancerClass: Invalid value: \"a.io/c\": may not change once set"]),
        ("sluice.dev", "LoadBalancerAnnouncement", json!({"metadata": {"name": "a"}, "spec": {"address": "192.0.2.1"}}), json!({"metadata": {"name": "a"}, "spec": {"address": "192.0.2.2"}}), &["spec.address: Invalid value: \"192.0.2.2\": field is immutable"]),
        ("apps", "ControllerRevision", json!({"metadata": {"name": "a", "namespace": "n"}, "data": {"a": 1}}), json!({"metadata": {"name": "a", "namespace": "n"}, "data": {"a": 2}}), &["data: Invalid value: {\"a\":2}: field is immutable"]),
    ];
    for (group, kind, mut old, mut new, expected) in table {
        defaults(row(group, kind), &mut old);
        defaults(row(group, kind), &mut new);
        let found: Vec<String> =
            validate_update(row(group, kind), &old, &new).iter().map(ToString::to_string).collect();
        let same = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.starts_with(e));
        assert!(same, "{kind} {found:#?}");
    }
}

fn json_merge(into: &mut Value, change: Value) {
    for (key, value) in change.as_object().unwrap() {
        into[key] = value.clone();
    }
}
