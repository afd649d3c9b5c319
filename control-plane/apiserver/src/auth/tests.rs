#![allow(clippy::unwrap_used)]

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::{view::fixed::Fixed, *};
use crate::{authz::Authorizer, bootstrap::pki};

fn open(dir: &tempfile::TempDir) -> Pki {
    let names = pki::Names {
        advertise: Vec::new(),
        service: "10.96.0.1".parse().unwrap(),
        cluster_domain: "cluster.local".into(),
        extra: Vec::new(),
    };
    Pki::open(dir.path(), names).unwrap()
}

fn token_secret(change: &[(&str, Option<&str>)]) -> Value {
    let mut fields = std::collections::BTreeMap::from([
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
        ("expiration", "2100-01-01T00:00:00Z"),
        ("auth-extra-groups", "system:bootstrappers:lab"),
    ]);
    for (key, value) in change {
        match value {
            Some(value) => fields.insert(key, value),
            None => fields.remove(key),
        };
    }
    let data: serde_json::Map<String, Value> =
        fields.into_iter().map(|(k, v)| (k.to_owned(), json!(BASE64.encode(v)))).collect();
    json!({"metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"},
        "type": "bootstrap.kubernetes.io/token", "data": data})
}

#[tokio::test]
async fn who_a_request_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let pki = open(&dir);
    let view = Fixed::new(&[("", "secrets", token_secret(&[]))]);
    let authenticator = Authenticator::new(&pki, view, "cluster.local").unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let identity = pki.issue_client("jane", &["dev", "ops"], hour).unwrap();
    let certificate = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
    let peer = Certified::read(&certificate).unwrap();
    let user = authenticator.authenticate(Some(&peer), &HeaderMap::new()).await.unwrap();
    assert_eq!(user.username, "jane");
    assert_eq!(user.groups, ["dev", "ops", AUTHENTICATED]);

    // The connection has outlived its certificate.
    assert!(!peer.holds(SystemTime::now() + hour * 2));
    let expired = Certified { until: 1, ..peer };
    assert_eq!(authenticator.authenticate(Some(&expired), &HeaderMap::new()).await.unwrap_err().code, 401);

    let with = |value: &str| HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
    let check = async |headers: HeaderMap, expected: Result<(&str, &[&str]), u16>| {
        let got = authenticator.authenticate(None, &headers).await;
        match (got, expected) {
            (Ok(user), Ok((name, groups))) => {
                assert_eq!(user.username, name);
                assert_eq!(user.groups, groups);
            }
            (Err(status), Err(code)) => assert_eq!(status.code, code),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    };
    check(HeaderMap::new(), Ok((ANONYMOUS, &[UNAUTHENTICATED]))).await;
    check(
        with("Bearer abcdef.0123456789abcdef"),
        Ok(("system:bootstrap:abcdef", &["system:bootstrappers", "system:bootstrappers:lab", AUTHENTICATED])),
    )
    .await;
    check(with("Bearer abcdef.0123456789abcdee"), Err(401)).await;
    check(with("Bearer junk"), Err(401)).await;
    check(with("Basic amFuZTpx"), Err(401)).await;
}

#[test]
fn bootstrap_tokens_that_do_not_hold() {
    let check = |change: &[(&str, Option<&str>)], expected: Result<(), &str>| {
        let view = Fixed::new(&[("", "secrets", token_secret(change))]);
        let now = "2026-11-22T00:00:00Z".parse().unwrap();
        let got = bootstrap_token::authenticate(&*view, "abcdef.0123456789abcdef", now);
        match (got, expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    };
    check(&[], Ok(()));
    check(&[("expiration", None)], Ok(()));
    check(&[("expiration", Some("2026-11-21T23:59:59Z"))], Err("has expired"));
    check(&[("expiration", Some("tomorrow"))], Err("has expired"));
    check(&[("token-secret", Some("0123456789abcdee"))], Err("does not match"));
    check(&[("token-secret", None)], Err("does not match"));
    check(&[("token-id", Some("abcdeg"))], Err("does not match"));
    check(&[("usage-bootstrap-authentication", None)], Err("not for authentication"));
    check(&[("auth-extra-groups", Some("system:masters"))], Err("names the group system:masters"));
}

#[test]
fn impersonation_needs_the_right_to_each_part() {
    let role = json!({"metadata": {"name": "acting"}, "rules": [
        {"apiGroups": [""], "resources": ["users", "serviceaccounts"], "verbs": ["impersonate"]},
        {"apiGroups": [""], "resources": ["groups"], "resourceNames": ["dev"], "verbs": ["impersonate"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"]},
    ]});
    let binding = json!({"metadata": {"name": "acting"},
        "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"kind": "ClusterRole", "name": "acting"}});
    let rbac = "rbac.authorization.k8s.io";
    let view = Fixed::new(&[(rbac, "clusterroles", role), (rbac, "clusterrolebindings", binding)]);
    let authorizer = Authorizer::new(view);
    let check = |headers: &[(&'static str, &str)], expected: Result<(&str, &[&str]), u16>| {
        let headers: HeaderMap =
            headers.iter().map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap())).collect();
        let jane = UserInfo::new("jane", &[AUTHENTICATED]);
        match (impersonation::apply(jane, &headers, &authorizer), expected) {
            (Ok(user), Ok((name, groups))) => {
                assert_eq!(user.username, name);
                assert_eq!(user.groups, groups);
            }
            (Err(status), Err(code)) => assert_eq!(status.code, code, "{status:?}"),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    };
    check(&[], Ok(("jane", &[AUTHENTICATED])));
    check(&[("impersonate-user", "joe")], Ok(("joe", &[AUTHENTICATED])));
    check(&[("impersonate-user", "joe"), ("impersonate-group", "dev")], Ok(("joe", &["dev", AUTHENTICATED])));
    check(&[("impersonate-user", "joe"), ("impersonate-group", "system:masters")], Err(403));
    check(
        &[("impersonate-user", "system:serviceaccount:shop:web")],
        Ok((
            "system:serviceaccount:shop:web",
            &["system:serviceaccounts", "system:serviceaccounts:shop", AUTHENTICATED],
        )),
    );
    check(&[("impersonate-user", "joe"), ("impersonate-extra-scopes", "a")], Ok(("joe", &[AUTHENTICATED])));
    check(&[("impersonate-user", "joe"), ("impersonate-extra-other", "a")], Err(403));
    check(&[("impersonate-user", "joe"), ("impersonate-uid", "1")], Err(403));
    check(&[("impersonate-group", "dev")], Err(400));
}
