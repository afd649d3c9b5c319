#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::{auth::view::fixed::Fixed, bootstrap::roles};

const RBAC: &str = "rbac.authorization.k8s.io";

/// The default roles, and a few of a shop.
fn store() -> Arc<Fixed> {
    let view = Fixed::new(&[]);
    for default in roles::defaults() {
        view.put(RBAC, default.plural, default.object);
    }
    let put = |plural: &str, object: Value| view.put(RBAC, plural, object);
    let reads = json!([
        {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["menu"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["*/scale"], "verbs": ["update"]},
    ]);
    put("roles", json!({"metadata": {"namespace": "shop", "name": "reads"}, "rules": reads}));
    let bind = |namespace: &str, name: &str, kind: &str, role: &str, subject: Value| {
        json!({"metadata": {"namespace": namespace, "name": name}, "subjects": [subject],
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role}})
    };
    let user = |name: &str| json!({"kind": "User", "name": name});
    put("rolebindings", bind("shop", "jane", "Role", "reads", user("jane")));
    put("rolebindings", bind("shop", "ed", "ClusterRole", "edit", user("ed")));
    put("rolebindings", bind("shop", "vi", "ClusterRole", "view", user("vi")));
    put("rolebindings", bind("shop", "ad", "ClusterRole", "admin", user("ad")));
    put("rolebindings", bind("shop", "lost", "Role", "nothing", user("lost")));
    put("rolebindings", bind("shop", "sa", "Role", "reads", json!({"kind": "ServiceAccount", "name": "web"})));
    view
}

/// `get apps/deployments/scale web @shop` (`core` is the empty group) or `get /healthz`.
fn ask(authorizer: &Authorizer, user: &UserInfo, question: &str) -> Result<(), String> {
    let words: Vec<&str> = question.split(' ').collect();
    let (what, rest) = (words[1], &words[2..]);
    let is_resource = !what.starts_with('/');
    let mut parts = what.split('/');
    let mut next = || if is_resource { parts.next().unwrap_or("") } else { "" };
    let group = next();
    let attributes = Attributes {
        user,
        verb: words[0],
        group: if group == "core" { "" } else { group },
        version: "v1",
        resource: next(),
        subresource: next(),
        namespace: rest.iter().find_map(|w| w.strip_prefix('@')).unwrap_or(""),
        name: rest.iter().find(|w| !w.starts_with('@')).unwrap_or(&""),
        path: what,
        is_resource,
    };
    authorizer.check(&attributes).map_err(|status| status.message)
}

#[test]
fn rbac_and_the_default_roles() {
    let authorizer = Authorizer::new(store());
    let check = |user: &str, groups: &[&str], question: &str, allowed: bool| {
        let user = UserInfo::new(user, groups);
        let got = ask(&authorizer, &user, question);
        assert_eq!(got.is_ok(), allowed, "{} {question}: {got:?}", user.username);
    };
    let everyone: &[&str] = &["system:authenticated"];
    for (user, groups, question, allowed) in [
        ("root", &["system:masters"] as &[&str], "delete core/nodes n1", true),
        ("root", &["system:masters"], "get /anything", true),
        ("jane", everyone, "list core/pods @shop", true),
        ("jane", everyone, "get core/pods/log web-0 @shop", true),
        ("jane", everyone, "get core/pods/exec web-0 @shop", false),
        ("jane", everyone, "list core/pods @other", false),
        ("jane", everyone, "list core/pods", false),
        ("jane", everyone, "delete core/pods web-0 @shop", false),
        ("jane", everyone, "get core/configmaps menu @shop", true),
        ("jane", everyone, "get core/configmaps other @shop", false),
        ("jane", everyone, "list core/configmaps @shop", false),
        ("jane", everyone, "update apps/deployments/scale web @shop", true),
        ("jane", everyone, "update apps/deployments web @shop", false),
        ("jane", everyone, "update core/replicationcontrollers/scale web @shop", false),
        ("jane", everyone, "get /apis/apps/v1", true),
        ("jane", everyone, "get /metrics", false),
        ("jane", everyone, "create authorization.k8s.io/selfsubjectaccessreviews", true),
        ("x", &["system:unauthenticated"], "get /healthz", true),
        ("x", &["system:unauthenticated"], "get /apis", false),
        ("x", &["system:unauthenticated"], "get core/configmaps cluster-info @kube-public", true),
        ("x", &["system:unauthenticated"], "get core/configmaps other @kube-public", false),
        ("system:serviceaccount:shop:web", everyone, "list core/pods @shop", true),
        ("system:serviceaccount:other:web", everyone, "list core/pods @shop", false),
        ("vi", everyone, "list apps/deployments @shop", true),
        ("vi", everyone, "get core/secrets a @shop", false),
        ("ed", everyone, "get core/secrets a @shop", true),
        ("ed", everyone, "list apps/deployments @shop", true),
        ("ed", everyone, "create core/pods/exec web-0 @shop", true),
        ("ed", everyone, "create rbac.authorization.k8s.io/roles @shop", false),
        ("ad", everyone, "create rbac.authorization.k8s.io/roles @shop", true),
        ("ad", everyone, "watch core/pods @shop", true),
        ("ad", everyone, "list core/nodes", false),
        ("system:kube-scheduler", everyone, "create core/pods/binding web-0 @shop", true),
        ("system:kube-scheduler", everyone, "create core/pods @shop", false),
        ("system:kube-controller-manager", everyone, "create core/pods @shop", true),
        ("system:kube-controller-manager", everyone, "update apps/deployments/status d @shop", true),
        ("system:kube-controller-manager", everyone, "create discovery.k8s.io/endpointslices @shop", true),
        (
            "system:bootstrap:abcdef",
            &["system:bootstrappers"],
            "create certificates.k8s.io/certificatesigningrequests",
            true,
        ),
        ("system:bootstrap:abcdef", &["system:bootstrappers"], "list core/secrets", false),
    ] {
        check(user, groups, question, allowed);
    }
}

#[test]
fn refusals_read_as_upstreams() {
    let authorizer = Authorizer::new(store());
    let check = |user: &str, question: &str, expected: &str| {
        let user = UserInfo::new(user, &["system:authenticated"]);
        assert_eq!(ask(&authorizer, &user, question).unwrap_err(), expected);
    };
    check(
        "x",
        "list core/pods @default",
        "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    check(
        "x",
        "delete apps/deployments web @default",
        "deployments.apps \"web\" is forbidden: User \"x\" cannot delete resource \"deployments\" in API group \"apps\" in the namespace \"default\"",
    );
    check("x", "get /metrics", "forbidden: User \"x\" cannot get path \"/metrics\"");
    check(
        "lost",
        "list core/pods @shop",
        "pods is forbidden: User \"lost\" cannot list resource \"pods\" in API group \"\" in the namespace \"shop\": RBAC: role.rbac.authorization.k8s.io \"nothing\" not found",
    );
}

#[test]
fn changes_of_roles_count_at_once() {
    let view = store();
    let authorizer = Authorizer::new(view.clone());
    let jane = UserInfo::new("jane", &[]);
    let can = || ask(&authorizer, &jane, "list core/pods @shop").is_ok();
    assert!(can());
    view.put(RBAC, "roles", json!({"metadata": {"namespace": "shop", "name": "reads"}, "rules": null}));
    assert!(!can());
    view.put(
        RBAC,
        "rolebindings",
        json!({"metadata": {"namespace": "shop", "name": "more"},
        "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"kind": "ClusterRole", "name": "view"}}),
    );
    assert!(can());
    view.remove(RBAC, "rolebindings", "shop", "more");
    assert!(!can());
}

#[test]
fn the_node_authorizer() {
    let view = store();
    let pod = |name: &str, node: &str, spec: Value| {
        let mut spec = spec;
        spec["nodeName"] = json!(node);
        json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})
    };
    view.put("", "pods", pod("web-0", "n1", json!({
        "serviceAccountName": "web",
        "imagePullSecrets": [{"name": "pull"}],
        "volumes": [
            {"name": "a", "secret": {"secretName": "vol"}},
            {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "ca"}}]}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "d", "ephemeral": {}},
            {"name": "e", "configMap": {"name": "conf"}}],
        "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}]}],
        "containers": [{"envFrom": [{"secretRef": {"name": "envfrom"}}, {"configMapRef": {"name": "cmfrom"}}]}],
    })));
    view.put("", "pods", pod("web-1", "n2", json!({"volumes": [{"secret": {"secretName": "theirs"}}]})));
    view.put("", "pods", pod("n1", "n2", json!({"volumes": [{"secret": {"secretName": "n1"}}]})));
    let mut mirror = pod("static", "n1", json!({"volumes": [{"secret": {"secretName": "stolen"}}]}));
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("1");
    view.put("", "pods", mirror);
    view.put(
        "",
        "persistentvolumes",
        json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "shop", "name": "data"}}}),
    );
    view.put("", "persistentvolumes", json!({"metadata": {"name": "free"}, "spec": {}}));
    let authorizer = Authorizer::new(view);
    let node = UserInfo::new("system:node:n1", &["system:nodes", "system:authenticated"]);
    for (question, allowed) in [
        ("get core/secrets vol @shop", true),
        ("get core/secrets proj @shop", true),
        ("get core/secrets pull @shop", true),
        ("get core/secrets env @shop", true),
        ("watch core/secrets envfrom @shop", true),
        ("get core/secrets theirs @shop", false),
        ("get core/secrets n1 @shop", false),
        ("get core/secrets stolen @shop", false),
        ("get core/secrets vol @other", false),
        ("list core/secrets @shop", false),
        ("list core/secrets", false),
        ("delete core/secrets vol @shop", false),
        ("get core/configmaps conf @shop", true),
        ("get core/configmaps ca @shop", true),
        ("get core/configmaps cmfrom @shop", true),
        ("get core/configmaps other @shop", false),
        ("get core/persistentvolumeclaims data @shop", true),
        ("get core/persistentvolumeclaims web-0-d @shop", true),
        ("get core/persistentvolumeclaims web-0-a @shop", false),
        ("update core/persistentvolumeclaims/status data @shop", true),
        ("delete core/persistentvolumeclaims data @shop", false),
        ("get core/persistentvolumes pv", true),
        ("get core/persistentvolumes free", false),
        ("create core/serviceaccounts/token web @shop", true),
        ("create core/serviceaccounts/token other @shop", false),
        ("get core/nodes n1", true),
        ("list core/nodes", true),
        ("create core/nodes", true),
        ("patch core/nodes/status n1", true),
        ("patch core/nodes/status n2", false),
        ("update core/nodes n2", false),
        ("delete core/nodes n1", false),
        ("watch core/pods", true),
        ("get core/pods web-0 @shop", true),
        ("get core/pods web-1 @shop", false),
        ("patch core/pods/status web-0 @shop", true),
        ("create core/pods/eviction web-0 @shop", true),
        ("create core/pods/exec web-0 @shop", false),
        ("update coordination.k8s.io/leases n1 @kube-node-lease", true),
        ("create coordination.k8s.io/leases @kube-node-lease", true),
        ("update coordination.k8s.io/leases n2 @kube-node-lease", false),
        ("update coordination.k8s.io/leases n1 @default", false),
        ("create certificates.k8s.io/certificatesigningrequests", true),
        ("watch discovery.k8s.io/endpointslices", true),
        ("create discovery.k8s.io/endpointslices @kube-system", true),
        ("patch discovery.k8s.io/endpointslices kube-dns-n1 @kube-system", true),
        ("patch discovery.k8s.io/endpointslices kube-dns-n1-v6 @kube-system", true),
        ("patch discovery.k8s.io/endpointslices kube-dns-n2 @kube-system", false),
        ("create discovery.k8s.io/endpointslices @shop", false),
        ("patch discovery.k8s.io/endpointslices web-abcde @kube-system", false),
        ("watch core/services", true),
        ("create core/events @shop", true),
        ("list rbac.authorization.k8s.io/roles", false),
    ] {
        let got = ask(&authorizer, &node, question);
        assert_eq!(got.is_ok(), allowed, "{question}: {got:?}");
    }
    let refused = ask(&authorizer, &node, "get core/secrets theirs @shop").unwrap_err();
    assert!(refused.ends_with("no relationship found between node 'n1' and this object"), "{refused}");
    let impostor = UserInfo::new("system:node:n1", &["system:authenticated"]);
    assert!(ask(&authorizer, &impostor, "get core/secrets vol @shop").is_err());
}

#[test]
fn nobody_grants_what_they_do_not_hold() {
    let authorizer = Authorizer::new(store());
    let ad = UserInfo::new("ad", &[]);
    let check = |user: &UserInfo, resource: &str, old: Option<Value>, new: Value, expected: Option<&str>| {
        let request = Attributes {
            user,
            verb: "create",
            group: RBAC,
            version: "v1",
            resource,
            subresource: "",
            namespace: "shop",
            name: "",
            path: "",
            is_resource: true,
        };
        let got = escalation::check(&authorizer, &request, old.as_ref(), &new);
        match (got, expected) {
            (Ok(()), None) => {}
            (Err(status), Some(words)) => assert!(status.message.contains(words), "{}", status.message),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    };
    let role = |verbs: &[&str], resources: &[&str]| json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}]});
    check(&ad, "roles", None, role(&["get", "list"], &["pods", "secrets"]), None);
    check(
        &ad,
        "roles",
        None,
        role(&["get"], &["pods", "nodes"]),
        Some(
            "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}",
        ),
    );
    check(&ad, "roles", None, role(&["*"], &["pods"]), Some("Verbs:[\"*\"]"));
    check(&ad, "roles", Some(role(&["get"], &["nodes"])), role(&["get"], &["nodes"]), None);
    let binding = |kind: &str, name: &str| json!({"metadata": {"name": "b"}, "roleRef": {"kind": kind, "name": name}, "subjects": [{"kind": "User", "name": "joe"}]});
    check(&ad, "rolebindings", None, binding("ClusterRole", "edit"), None);
    check(&ad, "rolebindings", None, binding("Role", "reads"), Some("Resources:[\"*/scale\"]"));
    check(&ad, "rolebindings", None, binding("ClusterRole", "view"), None);
    check(&ad, "rolebindings", None, binding("ClusterRole", "cluster-admin"), Some("not currently held"));
    check(&ad, "rolebindings", None, binding("Role", "absent"), Some("not found"));
    let root = UserInfo::new("root", &["system:masters"]);
    check(&root, "rolebindings", None, binding("ClusterRole", "cluster-admin"), None);
}

/// Whatever passes the escalation check gives nothing that was not held before.
#[test]
fn granting_never_widens() {
    use rand::{Rng as _, SeedableRng as _};
    const VERBS: [&str; 4] = ["get", "list", "update", "*"];
    const GROUPS: [&str; 3] = ["", "apps", "*"];
    const RESOURCES: [&str; 7] = ["pods", "pods/log", "pods/scale", "nodes", "*/scale", "*/log", "*"];
    const NAMES: [&str; 2] = ["a", "b"];
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let mut some = |from: &[&str], least: usize| -> Vec<String> {
        let count = rng.random_range(least..=2);
        (0..count).map(|_| from[rng.random_range(0..from.len())].to_owned()).collect()
    };
    let mut rule = || Rule {
        verbs: some(&VERBS, 1),
        api_groups: some(&GROUPS, 1),
        resources: some(&RESOURCES, 1),
        resource_names: some(&NAMES, 0),
        ..Rule::default()
    };
    let user = UserInfo::new("x", &[]);
    let mut passed = 0;
    for _ in 0..4000 {
        let held = [rule(), rule(), rule()];
        let wanted = [rule()];
        if !escalation::missing(&held, &wanted).is_empty() {
            continue;
        }
        passed += 1;
        for verb in ["get", "list", "update", "delete"] {
            for group in ["", "apps", "batch"] {
                for (resource, subresource) in
                    [("pods", ""), ("pods", "log"), ("pods", "scale"), ("nodes", ""), ("nodes", "scale")]
                {
                    for name in ["", "a", "b", "c"] {
                        let request = Attributes {
                            user: &user,
                            verb,
                            group,
                            version: "v1",
                            resource,
                            subresource,
                            namespace: "",
                            name,
                            path: "",
                            is_resource: true,
                        };
                        let allows = |rules: &[Rule]| rules.iter().any(|r| r.allows(&request));
                        assert!(!allows(&wanted) || allows(&held), "{request:?}\n{held:?}\n{wanted:?}");
                    }
                }
            }
        }
    }
    assert!(passed > 100, "{passed} grants passed");
}
