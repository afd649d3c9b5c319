//! What a pod may ask about itself: `fieldRef` and `resourceFieldRef` of variables and downward API files. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Container, Pod, ResourceFieldRef};
use crate::quantity;

/// Facts beside the pod's own object.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub host_ips: Vec<IpAddr>,
    pub pod_ips: Vec<IpAddr>,
    /// The node's allocatable amounts, used where a container has no limit of its own.
    pub allocatable: BTreeMap<String, String>,
}

/// The value of a `fieldRef`.
pub fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, String> {
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => lines(&pod.metadata.labels),
        "metadata.annotations" => lines(&pod.metadata.annotations),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => join(&facts.host_ips),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => join(&facts.pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// The value of a `resourceFieldRef` in `container` (upstream: rounded up to the divisor; a missing limit is the
/// node's allocatable amount, a missing request is zero).
pub fn resource(container: &Container, facts: &Facts, r: &ResourceFieldRef) -> Result<String, String> {
    let (kind, name) = r.resource.split_once('.').ok_or_else(|| unsupported(&r.resource))?;
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
        return Err(unsupported(&r.resource));
    }
    let amount = match kind {
        "limits" => container.resources.limits.get(name).or_else(|| facts.allocatable.get(name)),
        "requests" => container.resources.requests.get(name),
        _ => return Err(unsupported(&r.resource)),
    };
    let amount = amount.map_or(Some(0), |q| quantity::milli(q)).ok_or("the amount is not a quantity")?;
    let divisor = match r.divisor.as_deref() {
        None | Some("" | "0") => 1000,
        Some(d) => quantity::milli(d).filter(|d| *d > 0).ok_or_else(|| format!("bad divisor \"{d}\""))?,
    };
    Ok(((amount + divisor - 1) / divisor).to_string())
}

fn unsupported(resource: &str) -> String {
    format!("unsupported container resource: {resource}")
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once("['")?;
    Some((base, rest.strip_suffix("']")?))
}

/// A map as a downward API file shows it: sorted `key="value"` lines.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

/// A string as Go's `%q` prints it.
fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u",
                "labels": {"b": "2", "a": "say \"hi\"\n"}, "annotations": {"k/x": "v"}},
            "spec": {"nodeName": "n", "serviceAccountName": "sa"},
        }))
        .unwrap();
        let facts = Facts {
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            pod_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..Facts::default()
        };
        for (path, expected) in [
            ("metadata.name", Ok("p")),
            ("metadata.labels", Ok("a=\"say \\\"hi\\\"\\n\"\nb=\"2\"")),
            ("metadata.labels['b']", Ok("2")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.annotations['k/x']", Ok("v")),
            ("spec.nodeName", Ok("n")),
            ("spec.serviceAccountName", Ok("sa")),
            ("status.hostIP", Ok("192.0.2.1")),
            ("status.podIPs", Ok("10.0.0.1,fd00::1")),
            ("spec.containers", Err("unsupported fieldPath: spec.containers")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(field(&pod, &facts, path), expected, "{path}");
        }
    }

    #[test]
    fn resources() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}},
        }))
        .unwrap();
        let facts = Facts { allocatable: BTreeMap::from([("memory".into(), "1Gi".into())]), ..Facts::default() };
        for (name, divisor, expected) in [
            ("limits.cpu", None, Ok("2")),
            ("limits.cpu", Some("1m"), Ok("1500")),
            ("requests.cpu", None, Ok("0")),
            ("requests.memory", Some("1Mi"), Ok("64")),
            ("limits.memory", Some("1Mi"), Ok("1024")),
            ("limits.gpu", None, Err("unsupported container resource: limits.gpu")),
        ] {
            let r = ResourceFieldRef {
                resource: name.into(),
                divisor: divisor.map(Into::into),
                ..ResourceFieldRef::default()
            };
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(resource(&container, &facts, &r), expected, "{name} {divisor:?}");
        }
    }
}
