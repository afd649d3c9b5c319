//! Bodies as Go's encoder writes them, built here field by field.

use super::*;

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
    out
}

/// A field that holds bytes: text, a message.
fn b(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A field that holds a number.
fn n(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value.cast_unsigned())].concat()
}

fn m(fields: &[Vec<u8>]) -> Vec<u8> {
    fields.concat()
}

fn body(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
    let meta = m(&[b(1, api_version.as_bytes()), b(2, kind.as_bytes())]);
    [MAGIC, &b(1, &meta), &b(2, object), &b(3, b""), &b(4, b"")].concat()
}

#[test]
fn a_pod_decodes_as_its_json() {
    let meta = m(&[b(1, b"web"), b(2, b""), b(8, b""), b(11, &m(&[b(1, b"app"), b(2, b"web")]))]);
    let port = m(&[b(1, b"http"), n(2, 0), n(3, 80), b(4, b"TCP")]);
    let resources = b(1, &m(&[b(1, b"cpu"), b(2, &b(1, b"100m"))]));
    let get = m(&[b(1, b"/ready"), b(2, &m(&[n(1, 1), n(2, 0), b(3, b"http")]))]);
    let probe = m(&[b(1, &b(2, &get)), n(2, 0), n(3, 0)]);
    let container = m(&[
        b(1, b"c"),
        b(2, b"i:1"),
        b(6, &port),
        b(8, &resources),
        b(11, &probe),
        n(16, 0),
        b(3, b"run"),
        b(3, b"it"),
    ]);
    let volume = m(&[b(1, b"v"), b(2, &b(6, &b(1, b"secret")))]);
    let spec = m(&[b(1, &volume), b(2, &container), n(4, 0), n(11, 1)]);
    let pod = decode(&body("v1", "Pod", &m(&[b(1, &meta), b(2, &spec), b(3, b"")]))).unwrap();
    assert_eq!(
        pod,
        json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {
                "volumes": [{"name": "v", "secret": {"secretName": "secret"}}],
                "containers": [{
                    "name": "c",
                    "image": "i:1",
                    "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "100m"}},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "initialDelaySeconds": 0},
                    "stdin": false,
                    "command": ["run", "it"],
                }],
                "terminationGracePeriodSeconds": 0,
                "hostNetwork": true,
            },
            "status": {},
        })
    );
}

#[test]
fn options_times_and_zero_pointers_keep_their_meaning() {
    let options = decode(&body("apps/v1", "DeleteOptions", &m(&[n(1, 0), b(4, b"Foreground")]))).unwrap();
    assert_eq!(options["gracePeriodSeconds"], 0);
    assert_eq!(options["propagationPolicy"], "Foreground");
    let deployment = decode(&body("apps/v1", "Deployment", &b(2, &n(1, 0)))).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 0);
    let lease = b(2, &b(4, &m(&[n(1, 1_767_225_600), n(2, 1_500_000)])));
    let lease = decode(&body("coordination.k8s.io/v1", "Lease", &lease)).unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2026-01-01T00:00:00.001500Z");
}

#[test]
fn lists_stand_in_maps() {
    let entry = |key: &[u8], items: &[&[u8]]| {
        b(6, &m(&[b(1, key), b(2, &m(&items.iter().map(|item| b(1, item)).collect::<Vec<_>>()))]))
    };
    let spec = m(&[b(2, b"jane"), entry(b"scopes", &[b"a", b"b"]), entry(b"none", &[]), b(6, &b(1, b"bare"))]);
    let csr = decode(&body("certificates.k8s.io/v1", "CertificateSigningRequest", &b(2, &spec))).unwrap();
    assert_eq!(csr["spec"]["username"], "jane");
    assert_eq!(csr["spec"]["extra"], json!({"scopes": ["a", "b"], "none": [], "bare": []}));
}

#[test]
fn damaged_bodies_are_refused_and_never_panic() {
    let whole = body("v1", "Pod", &b(2, &b(2, &b(1, b"c"))));
    assert!(decode(&whole).is_ok());
    for end in 0..whole.len() - 4 {
        // Cut bodies are errors or shorter objects, never panics.
        let _ = decode(&whole[..end]);
    }
    let check = |body: &[u8], expected: &str| {
        let error = decode(body).unwrap_err();
        assert_eq!(error.code, 400);
        assert!(error.message.contains(expected), "{}", error.message);
    };
    check(b"{}", "does not begin with the prefix");
    check(&body("v1", "Nothing", b""), "no kind \"Nothing\" is registered for version \"v1\"");
    check(&body("v1", "Pod", &[0xff; 12]), "longer than ten bytes");
    check(&body("v1", "Pod", &[2 << 3 | 2, 100]), "ends inside a field");
}

#[test]
fn every_resource_has_field_numbers_down_to_its_leaves() {
    use crate::schema::Shape;
    fn walk(ty: TypeRef<'static>, seen: &mut std::collections::BTreeSet<&'static str>, missing: &mut Vec<String>) {
        if !seen.insert(ty.name()) {
            return;
        }
        let Some(_) = places(ty.name()) else { return missing.push(ty.name().into()) };
        for field in ty.fields() {
            let mut shape = field.shape();
            while let Shape::Array(item) | Shape::Map(item) = shape {
                shape = item.shape();
            }
            if let Shape::Object(inner) = shape {
                walk(inner, seen, missing);
            }
        }
    }
    let (mut seen, mut missing) = (std::collections::BTreeSet::new(), Vec::new());
    // The kinds of our own group are written as JSON alone.
    let apart = ["apiregistration.k8s.io", "sluice.dev"];
    for row in resource::builtin().iter().filter(|row| !apart.contains(&&*row.group)) {
        if let Some(ty) = schema::builtin().get(&row.schema) {
            walk(ty, &mut seen, &mut missing);
        }
    }
    assert_eq!(missing, NEWER, "types without field numbers");
}

/// Types that are newer than the table's source, which has those of 1.35.
const NEWER: &[&str] = &[
    "io.k8s.api.core.v1.PodSchedulingGroup",
    "io.k8s.api.core.v1.VolumeStatus",
    "io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus",
    "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
    "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
    "io.k8s.api.resource.v1.NodeAllocatableResourceMapping",
];
