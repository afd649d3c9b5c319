#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::{
    auth::view::fixed::Fixed,
    bootstrap::roles,
    context::{Attributes, UserInfo},
};
use sluice_api::resource::builtin;

fn view() -> Arc<Fixed> {
    let namespace = |name: &str| json!({"metadata": {"name": name}, "status": {"phase": "Active"}});
    let view = Fixed::new(&[
        ("", "namespaces", namespace("shop")),
        ("", "serviceaccounts", json!({"metadata": {"namespace": "shop", "name": "default"}})),
        (
            "",
            "serviceaccounts",
            json!({"metadata": {"namespace": "shop", "name": "quiet"}, "automountServiceAccountToken": false,
                "imagePullSecrets": [{"name": "pull"}]}),
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}),
        ),
    ]);
    view.put("", "namespaces", json!({"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}));
    for default in roles::defaults() {
        view.put("rbac.authorization.k8s.io", default.plural, default.object);
    }
    view
}

/// One request: `create core/pods/ shop web-0`, as mutated and judged.
async fn admit(
    view: &Arc<Fixed>,
    user: &UserInfo,
    what: &str,
    old: Option<Value>,
    object: Option<Value>,
) -> Result<Value, String> {
    let words: Vec<&str> = what.split(' ').collect();
    let mut path = words[1].split('/');
    let group = path.next().filter(|g| *g != "core").unwrap_or("");
    let (resource, subresource) = (path.next().unwrap(), path.next().unwrap_or(""));
    let operation = match words[0] {
        "create" => Operation::Create,
        "update" => Operation::Update,
        _ => Operation::Delete,
    };
    let attributes = Attributes {
        user,
        verb: words[0],
        group,
        version: "v1",
        resource,
        subresource,
        namespace: if words[2] == "-" { "" } else { words[2] },
        name: words.get(3).unwrap_or(&""),
        path: "",
        is_resource: true,
    };
    let row = builtin().by_path(group, "v1", resource).unwrap().clone();
    let frame = Admit { attributes, resource: &row, operation, old: old.as_ref(), dry_run: false };
    let admission = Admission::new(view.clone(), Arc::new(Authorizer::new(view.clone())));
    let text = |status: Status| status.message;
    let Some(mut object) = object else {
        admission.validate(&frame, None).await.map_err(text)?;
        return Ok(Value::Null);
    };
    admission.mutate(&frame, &mut object).await.map_err(text)?;
    assert!(!object.to_string().contains("null"), "{object}");
    admission.validate(&frame, Some(&object)).await.map_err(text)?;
    Ok(object)
}

fn admin() -> UserInfo {
    UserInfo::new("root", &["system:masters"])
}

fn pod(spec: Value) -> Option<Value> {
    let mut pod =
        json!({"metadata": {"namespace": "shop", "name": "web-0"}, "spec": {"containers": [{"name": "app"}]}});
    json_patch::merge(&mut pod["spec"], &spec);
    Some(pod)
}

#[tokio::test]
async fn namespaces_hold_and_stay() {
    let view = view();
    let check = async |what: &str, object: Option<Value>, expected: Result<(), &str>| {
        let got = admit(&view, &admin(), what, None, object).await.map(drop);
        assert_eq!(got, expected.map_err(str::to_owned), "{what}");
    };
    let map = || Some(json!({"metadata": {"name": "m"}}));
    check("create core/configmaps shop m", map(), Ok(())).await;
    check("create core/configmaps nowhere m", map(), Err("namespaces \"nowhere\" not found")).await;
    check(
        "create core/configmaps going m",
        map(),
        Err("configmaps \"m\" is forbidden: unable to create new content in namespace going because it is being terminated"),
    )
    .await;
    check("update core/configmaps going m", map(), Ok(())).await;
    check("delete core/configmaps going m", None, Ok(())).await;
    let kept = "is forbidden: this namespace may not be deleted";
    for name in ["default", "kube-system", "kube-public"] {
        let refused = format!("namespaces {name:?} {kept}");
        check(&format!("delete core/namespaces - {name}"), None, Err(&refused)).await;
    }
    check("delete core/namespaces - kube-node-lease", None, Ok(())).await;
}

#[tokio::test]
async fn pools_stay_clear_of_the_clusters_own_ranges() {
    let view = view();
    view.put(
        "networking.k8s.io",
        "servicecidrs",
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd96::/112"]}}),
    );
    view.put("", "nodes", json!({"metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.244.0.0/24"]}}));
    let pool =
        |block: Value| Some(json!({"metadata": {"name": "p"}, "spec": {"blocks": [{"start": "192.0.2.1"}, block]}}));
    let check = async |old: Option<Value>, block: Value, expected: Result<(), &str>| {
        let what = if old.is_some() { "update" } else { "create" };
        let what = format!("{what} sluice.dev/loadbalancerpools - p");
        let got = admit(&view, &admin(), &what, old, pool(block.clone())).await.map(drop);
        assert_eq!(got, expected.map_err(str::to_owned), "{block}");
    };
    check(None, json!({"cidr": "192.0.3.0/24"}), Ok(())).await;
    let service = "LoadBalancerPool.sluice.dev \"p\" is invalid: spec.blocks[1].cidr: Invalid value: \"10.96.7.0/24\": \
                   must not overlap the range of Services 10.96.0.0/16";
    check(None, json!({"cidr": "10.96.7.0/24"}), Err(service)).await;
    let six = "LoadBalancerPool.sluice.dev \"p\" is invalid: spec.blocks[1].start: Invalid value: \"fd96::1\": \
               must not overlap the range of Services fd96::/112";
    check(None, json!({"start": "fd96::1"}), Err(six)).await;
    let pods = "LoadBalancerPool.sluice.dev \"p\" is invalid: spec.blocks[1].start: Invalid value: \"10.243.0.1\": \
                must not overlap the range of node a's pods 10.244.0.0/24";
    check(None, json!({"start": "10.243.0.1", "stop": "10.245.0.1"}), Err(pods)).await;
    // What was let in before the range existed stays changeable in every other respect.
    check(pool(json!({"cidr": "10.96.7.0/24"})), json!({"cidr": "10.96.7.0/24"}), Ok(())).await;
    check(pool(json!({"start": "192.0.3.1"})), json!({"cidr": "10.96.7.0/24"}), Err(service)).await;
}

#[tokio::test]
async fn admission_leaves_no_nulls() {
    let made = admit(&view(), &admin(), "create core/pods shop web-0", None, pod(json!({}))).await.unwrap();
    assert!(!made.to_string().contains("null"), "{made}");
}

#[tokio::test]
async fn a_pod_gets_its_account_and_token() {
    let view = view();
    let made =
        admit(&view, &admin(), "create core/pods shop web-0", None, pod(json!({"initContainers": [{"name": "i"}]})))
            .await
            .unwrap();
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    let volume = &spec["volumes"][0];
    let name = volume["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
    assert_eq!(
        volume["projected"],
        json!({"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]})
    );
    for kind in ["initContainers", "containers"] {
        assert_eq!(
            spec[kind][0]["volumeMounts"],
            json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
        );
    }
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
    let tolerations = json!([
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
    assert_eq!(spec["tolerations"], tolerations);
    // Admitted once more (a copy of a live pod), nothing is added.
    let again = admit(&view, &admin(), "create core/pods shop web-0", None, Some(made.clone())).await.unwrap();
    assert_eq!(again, made);
}

#[tokio::test]
async fn pods_of_other_kinds() {
    let view = view();
    let make = async |spec: Value| admit(&view, &admin(), "create core/pods shop web-0", None, pod(spec)).await;
    let quiet = make(json!({"serviceAccountName": "quiet"})).await.unwrap();
    assert!(quiet["spec"]["volumes"].is_null());
    assert_eq!(quiet["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
    let asked = make(json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true})).await.unwrap();
    assert_eq!(asked["spec"]["volumes"].as_array().unwrap().len(), 1);
    let own = json!([{"name": "app", "volumeMounts": [{"name": "x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}]);
    let mounted = make(json!({"containers": own})).await.unwrap();
    assert!(mounted["spec"]["volumes"].is_null());
    let high = make(json!({"priorityClassName": "high"})).await.unwrap();
    assert_eq!((&high["spec"]["priority"], &high["spec"]["preemptionPolicy"]), (&json!(1000), &json!("Never")));
    let tolerant = make(json!({"tolerations": [{"operator": "Exists"}]})).await.unwrap();
    assert_eq!(tolerant["spec"]["tolerations"], json!([{"operator": "Exists"}]));
    for (spec, expected) in [
        (
            json!({"serviceAccountName": "nobody"}),
            "pods \"web-0\" is forbidden: error looking up service account shop/nobody: serviceaccount \"nobody\" not found",
        ),
        (
            json!({"priorityClassName": "none"}),
            "pods \"web-0\" is forbidden: no PriorityClass with name none was found",
        ),
        (
            json!({"priority": 7}),
            "pods \"web-0\" is forbidden: the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 0 from the given PriorityClass name",
        ),
        (json!({"runtimeClassName": "vm"}), "pods \"web-0\" is forbidden: pod rejected: RuntimeClass \"vm\" not found"),
    ] {
        assert_eq!(make(spec).await.unwrap_err(), expected);
    }
}

#[tokio::test]
async fn limit_ranges_fill_in_and_bound() {
    let view = view();
    view.put(
        "",
        "limitranges",
        json!({"metadata": {"namespace": "shop", "name": "l"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
                "max": {"cpu": "1"}, "min": {"cpu": "50m"}, "maxLimitRequestRatio": {"cpu": "10"}},
            {"type": "Pod", "max": {"cpu": "1500m"}}]}}),
    );
    let make = async |resources: Value| {
        let spec = json!({"containers": [{"name": "app", "resources": resources}, {"name": "side"}]});
        admit(&view, &admin(), "create core/pods shop web-0", None, pod(spec)).await
    };
    let made = make(json!({})).await.unwrap();
    let side = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}});
    assert_eq!(made["spec"]["containers"][1]["resources"], side);
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container app; cpu limit for container app; cpu request for container side; cpu limit for container side"
    );
    let follows = make(json!({"limits": {"cpu": "300m"}})).await.unwrap();
    assert_eq!(follows["spec"]["containers"][0]["resources"]["requests"]["cpu"], "300m");
    for (resources, expected) in [
        (
            json!({"requests": {"cpu": "20m"}, "limits": {"cpu": "100m"}}),
            "minimum cpu usage per Container is 50m, but request is 20m",
        ),
        (
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}),
            "[maximum cpu usage per Container is 1, but limit is 2, maximum cpu usage per Pod is 1500m, but limit is 2500m]",
        ),
        (
            json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "1"}}),
            "cpu max limit to request ratio per Container is 10, but provided ratio is 20.000000",
        ),
    ] {
        assert_eq!(make(resources).await.unwrap_err(), format!("pods \"web-0\" is forbidden: {expected}"));
    }
}

#[tokio::test]
async fn nodes_write_what_is_theirs() {
    let view = view();
    let node = UserInfo::new("system:node:n1", &["system:nodes"]);
    let on = |name: &str| json!({"metadata": {"namespace": "shop", "name": "web-0"}, "spec": {"nodeName": name}});
    view.put("", "pods", on("n2"));
    let this = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}, "spec": {}});
    let check = async |what: &str, old: Option<Value>, new: Option<Value>, expected: Result<(), &str>| {
        let got = admit(&view, &node, what, old, new).await.map(drop);
        match (&got, expected) {
            (Ok(()), Ok(())) => {}
            (Err(got), Err(words)) => assert!(got.contains(words), "{what}: {got}"),
            (got, expected) => panic!("{what}: {got:?} instead of {expected:?}"),
        }
    };
    check(
        "delete core/pods shop web-0",
        None,
        None,
        Err("node \"n1\" can only delete pods with spec.nodeName set to itself"),
    )
    .await;
    view.put("", "pods", on("n1"));
    check("delete core/pods shop web-0", None, None, Ok(())).await;
    check("create core/pods shop web-1", None, pod(json!({})), Err("can only create mirror pods")).await;
    check("update core/pods/status shop web-0", Some(on("n1")), Some(on("n1")), Ok(())).await;
    check("update core/pods/status shop web-0", Some(on("n2")), Some(on("n2")), Err("can only update pod status"))
        .await;
    check(
        "create core/nodes - n1",
        None,
        Some(this(json!({"kubernetes.io/hostname": "n1", "example.org/x": "1"}))),
        Ok(()),
    )
    .await;
    check(
        "create core/nodes - n1",
        None,
        Some(this(json!({"node-restriction.kubernetes.io/x": "1"}))),
        Err("is not allowed to set the following labels: node-restriction.kubernetes.io/x"),
    )
    .await;
    check(
        "update core/nodes/status - n2",
        None,
        Some(json!({"metadata": {"name": "n2"}})),
        Err("is not allowed to modify node \"n2\""),
    )
    .await;
    let slice = |service: &str| Some(json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}}));
    view.put("", "namespaces", json!({"metadata": {"name": "kube-system"}}));
    let dns = "create discovery.k8s.io/endpointslices kube-system";
    check(&format!("{dns} kube-dns-n1"), None, slice("kube-dns"), Ok(())).await;
    check(&format!("{dns} kube-dns-n1"), None, slice("web"), Err("can only publish a backend of the Service kube-dns"))
        .await;
    check(&format!("{dns} kube-dns-n2"), None, slice("kube-dns"), Err("of its own cluster DNS")).await;
    let mut tainted = this(json!({}));
    tainted["spec"]["taints"] = json!([{"key": "a"}]);
    check("update core/nodes - n1", Some(tainted), Some(this(json!({}))), Err("is not allowed to modify taints")).await;
    let made = admit(&view, &node, "create core/nodes - n1", None, Some(this(json!({})))).await.unwrap();
    assert_eq!(made["spec"]["taints"], json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
}

#[tokio::test]
async fn certificate_requests_carry_their_asker() {
    let view = view();
    let csr = |signer: &str| json!({"metadata": {"name": "c"}, "spec": {"signerName": signer, "username": "root", "request": ""}});
    let jane = UserInfo::new("jane", &["dev"]);
    let what = "create certificates.k8s.io/certificatesigningrequests - c";
    let made = admit(&view, &jane, what, None, Some(csr("example.org/x"))).await.unwrap();
    assert_eq!((&made["spec"]["username"], &made["spec"]["groups"]), (&json!("jane"), &json!(["dev"])));
    let approve = "update certificates.k8s.io/certificatesigningrequests/approval - c";
    let refused = admit(&view, &jane, approve, Some(made.clone()), Some(made.clone())).await.unwrap_err();
    assert!(refused.contains("user not permitted to approve requests with signerName \"example.org/x\""), "{refused}");
    let manager = UserInfo::new("system:kube-controller-manager", &[]);
    let mine = csr("kubernetes.io/kube-apiserver-client-kubelet");
    admit(&view, &manager, approve, Some(mine.clone()), Some(mine.clone())).await.unwrap();
    let mut signed = mine.clone();
    signed["status"]["certificate"] = json!("x");
    let status = "update certificates.k8s.io/certificatesigningrequests/status - c";
    admit(&view, &manager, status, Some(mine.clone()), Some(signed.clone())).await.unwrap();
    let refused = admit(&view, &jane, status, Some(mine), Some(signed)).await.unwrap_err();
    assert!(refused.contains("user not permitted to sign"), "{refused}");
}

#[tokio::test]
async fn quotas_are_kept() {
    let view = view();
    view.put(
        "",
        "resourcequotas",
        json!({"metadata": {"namespace": "shop", "name": "q"}, "spec": {"hard": {
            "pods": "3", "requests.cpu": "1", "limits.memory": "1Gi", "configmaps": "1"}}}),
    );
    let made = |name: &str, cpu: &str, memory: &str, phase: &str| {
        json!({"metadata": {"namespace": "shop", "name": name, "uid": name}, "status": {"phase": phase}, "spec": {"containers": [
            {"name": "app", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": memory}}}]}})
    };
    view.put("", "pods", made("old", "400m", "256Mi", "Running"));
    view.put("", "pods", made("done", "900m", "1Gi", "Succeeded"));
    let make = async |pod: Value| admit(&view, &admin(), "create core/pods shop x", None, Some(pod)).await.map(drop);
    assert_eq!(make(made("x", "600m", "768Mi", "")).await, Ok(()));
    assert_eq!(
        make(made("x", "700m", "1Gi", "")).await.unwrap_err(),
        "pods \"x\" is forbidden: exceeded quota: q, requested: limits.memory=1Gi,requests.cpu=700m, used: limits.memory=256Mi,requests.cpu=400m, limited: limits.memory=1Gi,requests.cpu=1"
    );
    assert_eq!(
        make(pod(json!({})).unwrap()).await.unwrap_err(),
        "pods \"x\" is forbidden: failed quota: q: must specify limits.memory for: app; requests.cpu for: app"
    );
    let map = |name: &str| Some(json!({"metadata": {"namespace": "shop", "name": name, "uid": name}}));
    let put = async |name: &str| {
        admit(&view, &admin(), &format!("create core/configmaps shop {name}"), None, map(name)).await
    };
    assert!(put("a").await.is_ok());
    view.put("", "configmaps", map("a").unwrap());
    assert_eq!(
        put("b").await.unwrap_err(),
        "configmaps \"b\" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1"
    );
}

#[tokio::test]
async fn a_quota_counts_what_is_on_its_way() {
    let view = view();
    view.put(
        "",
        "resourcequotas",
        json!({"metadata": {"namespace": "shop", "name": "q"}, "spec": {"hard": {"secrets": "1"}}}),
    );
    let admission = Admission::new(view.clone(), Arc::new(Authorizer::new(view.clone())));
    let (user, row) = (admin(), builtin().by_path("", "v1", "secrets").unwrap().clone());
    let ask = async |name: &str, dry_run: bool| {
        let attributes = Attributes {
            user: &user,
            verb: "create",
            group: "",
            version: "v1",
            resource: "secrets",
            subresource: "",
            namespace: "shop",
            name,
            path: "",
            is_resource: true,
        };
        let frame = Admit { attributes, resource: &row, operation: Operation::Create, old: None, dry_run };
        let object = json!({"metadata": {"namespace": "shop", "name": name, "uid": name}});
        admission.validate(&frame, Some(&object)).await.is_ok()
    };
    assert!(ask("dry", true).await);
    assert!(ask("a", false).await);
    assert!(!ask("b", false).await);
}

#[tokio::test]
async fn pod_security_levels() {
    let view = view();
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    view.put("", "namespaces", json!({"metadata": {"name": "tight", "labels": labels}}));
    let labels =
        json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"});
    view.put("", "namespaces", json!({"metadata": {"name": "base", "labels": labels}}));
    for namespace in ["tight", "base"] {
        view.put("", "serviceaccounts", json!({"metadata": {"namespace": namespace, "name": "default"}}));
    }
    let check = async |namespace: &str, spec: Value, expected: Result<(), &str>| {
        let mut object = pod(spec).unwrap();
        object["metadata"]["namespace"] = json!(namespace);
        let what = format!("create core/pods {namespace} web-0");
        let got = admit(&view, &admin(), &what, None, Some(object)).await.map(drop);
        assert_eq!(got, expected.map_err(|e| format!("pods \"web-0\" is forbidden: violates PodSecurity {e}")));
    };
    let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "app", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    check("tight", good, Ok(())).await;
    check(
        "tight",
        json!({}),
        Err("\"restricted:latest\": allowPrivilegeEscalation != false (container \"app\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"app\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"app\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"app\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"),
    )
    .await;
    check("base", json!({}), Ok(())).await;
    check(
        "base",
        json!({"hostNetwork": true, "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
            "containers": [{"name": "a", "securityContext": {"privileged": true}}, {"name": "b", "ports": [{"hostPort": 80}],
                "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]}),
        Err("\"baseline:latest\": non-default capabilities (container \"b\" must not include \"NET_ADMIN\" in securityContext.capabilities.add), host namespaces (hostNetwork=true), hostPath volumes (volume \"v\"), hostPort (container \"b\" uses hostPort 80), privileged (container \"a\" must not set securityContext.privileged=true)"),
    )
    .await;
}
