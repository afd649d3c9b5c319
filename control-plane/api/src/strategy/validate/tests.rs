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
            "spec.tolerations[0].operator: Invalid value: null: operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    check(
        json!({"dnsPolicy": "None"}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
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
    check("", "Service", service(json!({"clusterIP": "None"})), &[]);
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
        &["spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": may not change once set"],
    );
    // An object that was let in by other rules stays changeable elsewhere.
    let odd = |label: &str| json!({"metadata": {"name": "Odd_Name", "namespace": "n", "labels": {"a": label}}});
    check("", "ConfigMap", odd("x"), odd("y"), &[]);
}
