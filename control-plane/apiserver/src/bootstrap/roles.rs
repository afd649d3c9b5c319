//! The default roles and bindings: reads the table `roles.txt` into objects.

use serde_json::{Value, json};

use crate::authz::Rule;

const TABLE: &str = include_str!("roles.txt");
const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
const CONTROLLER_MANAGER: &str = "User/system:kube-controller-manager";

/// One default object: the plural of its kind and itself.
pub struct Default {
    pub plural: &'static str,
    pub object: Value,
}

/// Every default role and binding, in the table's order.
pub fn defaults() -> Vec<Default> {
    let mut out: Vec<Default> = Vec::new();
    // A controller's binding follows its role, so rules go to the newest role.
    let mut role = 0;
    for line in TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some(rules) = out[role].object["rules"].as_array_mut() {
                rules.push(json!(rule(&words)));
            }
            continue;
        }
        role = out.len();
        open(&words, &mut out);
    }
    aggregate(&mut out);
    out
}

/// Writes out the rules of aggregated roles, so that they read well from the start.
fn aggregate(all: &mut [Default]) {
    let label_of = |d: &Default| -> Option<String> {
        let selector = &d.object["aggregationRule"]["clusterRoleSelectors"][0]["matchLabels"];
        selector.as_object()?.keys().next().cloned()
    };
    // `admin` takes in `edit`, and that `view`: the narrowest first.
    for name in ["view", "edit", "admin"] {
        let is_it = |d: &Default| d.plural == "clusterroles" && d.object["metadata"]["name"] == name;
        let Some(at) = all.iter().position(is_it) else { continue };
        let Some(label) = label_of(&all[at]) else { continue };
        let selected = all.iter().filter(|d| d.object["metadata"]["labels"][&label] == "true");
        let mut rules: Vec<Value> = Vec::new();
        for rule in selected.flat_map(|d| d.object["rules"].as_array().into_iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        all[at].object["rules"] = rules.into();
    }
}

/// The rules of one default ClusterRole, without aggregated ones.
pub fn cluster_role_rules(name: &str) -> Vec<Rule> {
    defaults()
        .into_iter()
        .find(|d| d.plural == "clusterroles" && d.object["metadata"]["name"] == name)
        .and_then(|d| serde_json::from_value(d.object["rules"].clone()).ok())
        .unwrap_or_default()
}

fn open(words: &[&str], out: &mut Vec<Default>) {
    match *words {
        ["ClusterRole", name, ref options @ ..] => {
            out.push(cluster_role(name, options));
        }
        ["Role", namespace, name] => out.push(Default {
            plural: "roles",
            object: json!({"apiVersion": API_VERSION, "kind": "Role",
                "metadata": metadata(namespace, name), "rules": []}),
        }),
        ["ClusterRoleBinding", name, role, ref subjects @ ..] => {
            out.push(binding("", name, role, subjects));
        }
        ["RoleBinding", namespace, name, role, ref subjects @ ..] => {
            out.push(binding(namespace, name, role, subjects));
        }
        ["Controller", name] => {
            let role = format!("system:controller:{name}");
            let account = format!("ServiceAccount/kube-system/{name}");
            out.push(cluster_role(&role, &[]));
            out.push(binding("", &role, &role, &[&account, CONTROLLER_MANAGER]));
        }
        // The table is part of the program; `every_line_is_understood` holds it to this grammar.
        _ => unreachable!("roles.txt: {words:?}"),
    }
}

fn cluster_role(name: &str, options: &[&str]) -> Default {
    let mut object = json!({"apiVersion": API_VERSION, "kind": "ClusterRole",
        "metadata": metadata("", name), "rules": []});
    for option in options {
        if let Some(to) = option.strip_prefix("to=") {
            object["metadata"]["labels"][format!("{GROUP}/aggregate-to-{to}")] = json!("true");
        } else if let Some(role) = option.strip_prefix("aggregate=") {
            let label = format!("{GROUP}/aggregate-to-{role}");
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
    }
    Default { plural: "clusterroles", object }
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Default {
    let subjects: Vec<Value> = subjects.iter().filter_map(|s| subject(s)).collect();
    let (kind, role_kind, plural) = if namespace.is_empty() {
        ("ClusterRoleBinding", "ClusterRole", "clusterrolebindings")
    } else {
        ("RoleBinding", "Role", "rolebindings")
    };
    let mut object = json!({"apiVersion": API_VERSION, "kind": kind,
        "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role}});
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    Default { plural, object }
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once('/')?;
    Some(match kind {
        "ServiceAccount" => {
            let (namespace, name) = name.split_once('/')?;
            json!({"kind": kind, "name": name, "namespace": namespace})
        }
        _ => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
    })
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({"name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}});
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn rule(words: &[&str]) -> Rule {
    let split = |text: &str| -> Vec<String> {
        let plain = |part: &str| if part == "core" { "" } else { part }.to_owned();
        text.split(',').map(plain).collect()
    };
    match *words {
        ["record"] => rule(&["create,patch,update", "core,events.k8s.io", "events"]),
        [verbs, "url", urls] => Rule { non_resource_urls: split(urls), verbs: expand(verbs), ..Rule::default() },
        [verbs, groups, resources, ref names @ ..] => Rule {
            api_groups: split(groups),
            resources: split(resources),
            resource_names: names.iter().flat_map(|n| split(n)).collect(),
            verbs: expand(verbs),
            ..Rule::default()
        },
        _ => unreachable!("roles.txt: {words:?}"),
    }
}

fn expand(verbs: &str) -> Vec<String> {
    let long = |verb: &str| match verb {
        "read" => "get,list,watch".to_owned(),
        "write" => "create,delete,deletecollection,patch,update".to_owned(),
        other => other.to_owned(),
    };
    let all: Vec<String> = verbs.split(',').map(long).collect();
    let mut all: Vec<String> = all.join(",").split(',').map(str::to_owned).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let all = defaults();
        let count = |plural: &str| all.iter().filter(|d| d.plural == plural).count();
        assert!(count("clusterroles") > 60, "{}", count("clusterroles"));
        assert!(count("clusterrolebindings") > 45);
        assert!(count("roles") > 6);
        for default in &all {
            if default.plural.ends_with("bindings") {
                let role = &default.object["roleRef"]["name"];
                let namespace = &default.object["metadata"]["namespace"];
                let exists = all.iter().any(|d| {
                    !d.plural.ends_with("bindings")
                        && d.object["metadata"]["name"] == *role
                        && d.object["metadata"]["namespace"] == *namespace
                });
                assert!(exists, "{}", default.object);
            }
        }
    }

    #[test]
    fn aggregated_roles_are_written_out() {
        let rules = |name: &str| json!(cluster_role_rules(name));
        let holds = |outer: &str, inner: &str| {
            let (outer, inner) = (rules(outer), rules(inner));
            inner
                .as_array()
                .is_some_and(|i| !i.is_empty() && i.iter().all(|r| outer.as_array().is_some_and(|o| o.contains(r))))
        };
        assert!(holds("admin", "edit") && holds("edit", "view") && holds("view", "system:aggregate-to-view"));
        assert!(!holds("view", "edit"));
    }

    #[test]
    fn rules_read_as_upstreams() {
        let check = |line: &str, expected: Value| {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(json!(rule(&words)), expected, "{line}");
        };
        check(
            "read core,apps pods,pods/log web",
            json!({"apiGroups": ["", "apps"], "resources": ["pods", "pods/log"],
                "resourceNames": ["web"], "verbs": ["get", "list", "watch"]}),
        );
        check("get url /api,/api/*", json!({"nonResourceURLs": ["/api", "/api/*"], "verbs": ["get"]}));
        check(
            "record",
            json!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"],
                "verbs": ["create", "patch", "update"]}),
        );
    }
}
