#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use sluice_api::resource::builtin;

use crate::{
    admission::Admission,
    auth::view::fixed::Fixed,
    authz::Authorizer,
    bootstrap::pki::{Names, Pki, Usage},
    context::{Admit, Attributes, Operation, UserInfo},
    peer,
};

struct Bed {
    view: Arc<Fixed>,
    ca: String,
    port: u16,
}

/// A webhook server whose answer depends on the path.
async fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let names = Names {
        advertise: Vec::new(),
        service: "10.96.0.1".parse().unwrap(),
        cluster_domain: "cluster.local".into(),
        extra: Vec::new(),
    };
    let pki = Pki::open(dir.path(), names).unwrap();
    let sans = ["127.0.0.1".to_owned(), "hook.shop.svc".into()];
    let identity = pki.issue("hook", &[], &sans, Usage::Server, Duration::from_secs(60)).unwrap();
    let (port, _) = peer::serve(&identity.cert_pem, &identity.key_pem, None, answer).await;
    let view = Fixed::new(&[
        ("", "namespaces", json!({"metadata": {"name": "shop", "labels": {"team": "a"}}})),
        ("", "serviceaccounts", json!({"metadata": {"namespace": "shop", "name": "default"}})),
        (
            "",
            "services",
            json!({"metadata": {"namespace": "shop", "name": "hook"}, "spec": {"ports": [{"port": 443}]}}),
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"metadata": {"namespace": "shop", "name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
                "ports": [{"port": port}], "endpoints": [{"addresses": ["127.0.0.1"]}]}),
        ),
    ]);
    Bed { view, ca: BASE64.encode(pki.ca_pem()), port }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let asked: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    let asked = &asked["request"];
    let mut response = json!({"uid": asked["uid"], "allowed": true});
    match path.as_str() {
        "/label" => {
            let seen =
                format!("{} {} {}", asked["operation"], asked["resource"]["resource"], asked["userInfo"]["username"]);
            let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": seen.replace('"', "")}}]);
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(BASE64.encode(patch.to_string()));
            response["warnings"] = json!(["labelled"]);
        }
        "/deny" => {
            response["allowed"] = json!(false);
            response["status"] = json!({"message": "not on Fridays", "code": 403, "reason": "Forbidden"});
        }
        "/silent" => response["allowed"] = json!(false),
        "/wrong-uid" => response["uid"] = json!("x"),
        "/broken" => {
            let mut broken = Response::new(Full::default());
            *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(broken);
        }
        "/hang" => std::future::pending().await,
        _ => {}
    }
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
    Ok(Response::new(Full::from(review.to_string())))
}

impl Bed {
    fn put(&self, plural: &str, path: &str, change: Value) {
        let mut webhook = json!({"name": "w.example.org", "sideEffects": "None", "failurePolicy": "Fail",
            "clientConfig": {"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
        json_patch::merge(&mut webhook, &change);
        let configuration = json!({"metadata": {"name": "c"}, "webhooks": [webhook]});
        self.view.put("admissionregistration.k8s.io", plural, configuration);
    }

    async fn create(&self, dry_run: bool) -> Result<(Value, Vec<String>), String> {
        let user = UserInfo::new("jane", &[]);
        let attributes = Attributes {
            user: &user,
            verb: "create",
            group: "",
            version: "v1",
            resource: "configmaps",
            subresource: "",
            namespace: "shop",
            name: "m",
            path: "",
            is_resource: true,
        };
        let row = builtin().by_path("", "v1", "configmaps").unwrap().clone();
        let frame = Admit { attributes, resource: &row, operation: Operation::Create, old: None, dry_run };
        let admission = Admission::new(self.view.clone(), Arc::new(Authorizer::new(self.view.clone())));
        let mut object = json!({"metadata": {"name": "m", "namespace": "shop", "labels": {"app": "web"}}});
        let text = |status: sluice_api::status::Status| format!("{} {}", status.code, status.message);
        let mut warnings = admission.mutate(&frame, &mut object).await.map_err(text)?;
        warnings.extend(admission.validate(&frame, Some(&object)).await.map_err(text)?);
        Ok((object, warnings))
    }
}

const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

#[tokio::test]
async fn a_mutating_webhook_changes_the_object() {
    let bed = bed().await;
    bed.put(MUTATING, "/label", json!({}));
    let (object, warnings) = bed.create(false).await.unwrap();
    assert_eq!(object["metadata"]["labels"], json!({"seen": "CREATE configmaps jane"}));
    assert_eq!(warnings, ["labelled"]);
    let service =
        json!({"clientConfig": {"url": null, "service": {"namespace": "shop", "name": "hook", "path": "label"}}});
    bed.put(MUTATING, "", service);
    let (object, _) = bed.create(false).await.unwrap();
    assert_eq!(object["metadata"]["labels"], json!({"seen": "CREATE configmaps jane"}));
}

#[tokio::test]
async fn a_validating_webhook_has_its_say() {
    let bed = bed().await;
    let check = async |path: &str, change: Value, expected: Result<(), &str>| {
        bed.put(VALIDATING, path, change.clone());
        let got = bed.create(false).await.map(drop);
        match (&got, expected) {
            (Ok(()), Ok(())) => {}
            (Err(got), Err(words)) => assert!(got.starts_with(words), "{path} {change}: {got}"),
            (got, expected) => panic!("{path} {change}: {got:?} instead of {expected:?}"),
        }
    };
    let none = json!({});
    let failed = "500 Internal error occurred: failed calling webhook \"w.example.org\": failed to call webhook: ";
    let denied = "403 admission webhook \"w.example.org\" denied the request: not on Fridays";
    check("/ok", none.clone(), Ok(())).await;
    check("/deny", none.clone(), Err(denied)).await;
    check(
        "/silent",
        none.clone(),
        Err("400 admission webhook \"w.example.org\" denied the request without explanation"),
    )
    .await;
    check("/broken", none.clone(), Err(&format!("{failed}it answered 500"))).await;
    check("/wrong-uid", none, Err(&format!("{failed}expected response.uid="))).await;
    check("/broken", json!({"failurePolicy": "Ignore"}), Ok(())).await;
    let hung = format!("{failed}Post \"https://127.0.0.1:{}/hang?timeout=1s\": context deadline exceeded", bed.port);
    check("/hang", json!({"timeoutSeconds": 1}), Err(&hung)).await;
    check("/ok", json!({"clientConfig": {"caBundle": ""}}), Err(&format!("{failed}caBundle holds no certificate")))
        .await;
    let elsewhere = json!({"clientConfig": {"url": null, "service": {"namespace": "shop", "name": "gone"}}});
    check("/ok", elsewhere, Err(&format!("{failed}service \"gone\" not found"))).await;
    // What a webhook is not asked about it cannot deny.
    for unasked in [
        json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}),
        json!({"objectSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}),
        json!({"rules": [{"operations": ["UPDATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]}),
        json!({"rules": [{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["*"], "resources": ["*"]}]}),
        json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "scope": "Cluster"}]}),
        json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["configmaps/status"]}]}),
    ] {
        check("/deny", unasked, Ok(())).await;
    }
    let all = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}],
        "namespaceSelector": {"matchLabels": {"team": "a"}}, "objectSelector": {"matchLabels": {"app": "web"}}});
    check("/deny", all, Err(denied)).await;
}

#[tokio::test]
async fn a_dry_run_has_no_side_effects() {
    let bed = bed().await;
    bed.put(VALIDATING, "/ok", json!({}));
    assert!(bed.create(true).await.is_ok());
    bed.put(VALIDATING, "/ok", json!({"sideEffects": "Unknown"}));
    let refused = bed.create(true).await.unwrap_err();
    assert_eq!(refused, "400 admission webhook \"w.example.org\" does not support dry run");
}

#[tokio::test]
async fn match_conditions_decide_who_is_asked() {
    let bed = bed().await;
    let deny = |expression: &str, policy: &str| {
        bed.put(
            "validatingwebhookconfigurations",
            "/deny",
            json!({"failurePolicy": policy, "matchConditions": [{"name": "c", "expression": expression}]}),
        );
    };
    deny("object.metadata.labels.app == 'other'", "Fail");
    assert!(bed.create(false).await.is_ok());
    deny("object.metadata.labels.app == 'web' && request.userInfo.username == 'jane'", "Fail");
    assert!(bed.create(false).await.unwrap_err().contains("not on Fridays"));
    deny("object.nothing == 1", "Ignore");
    assert!(bed.create(false).await.is_ok());
    deny("object.nothing == 1", "Fail");
    assert!(bed.create(false).await.unwrap_err().contains("no such key: nothing"));
}
