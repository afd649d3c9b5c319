//! The paths and operations of a row, before they are written in either version of OpenAPI.

use super::parameters::{self, Parameter, named};
use crate::resource::{Resource, Subresource};
use crate::schema;

/// A path with its operations.
pub(super) struct Route {
    pub(super) path: String,
    pub(super) parameters: Vec<&'static Parameter>,
    pub(super) operations: Vec<Operation>,
}

/// What one method of a path does.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) id: String,
    pub(super) description: String,
    /// `x-kubernetes-action`; empty for those that are about no kind.
    pub(super) action: &'static str,
    /// Group, version and kind of what is read or written.
    pub(super) kind: (String, String, String),
    pub(super) tag: String,
    pub(super) parameters: Vec<&'static Parameter>,
    /// The schema of the body.
    pub(super) body: Option<String>,
    /// Media types of the body.
    pub(super) takes: &'static [&'static str],
    /// The schema of the answer; `None`: text.
    pub(super) answer: Option<String>,
    pub(super) codes: &'static [&'static str],
}

pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const RESOURCE_LIST: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// The address of the version's own resource list.
pub(super) fn version_route(group: &str, version: &str) -> Route {
    let operation = Operation {
        method: "get",
        id: format!("get{}APIResources", camel(group, version)),
        description: "get available resources".into(),
        action: "",
        kind: Default::default(),
        tag: tag(group, version),
        parameters: Vec::new(),
        body: None,
        takes: ANY,
        answer: Some(RESOURCE_LIST.into()),
        codes: &["200", "401"],
    };
    let path = format!("{}/", base(group, version));
    Route { path, parameters: Vec::new(), operations: vec![operation] }
}

/// Every path of a row.
pub(super) fn routes(row: &Resource) -> Vec<Route> {
    let base = base(&row.group, &row.version);
    let scoped = if row.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
    let scope: &[&str] = if row.namespaced { &["namespace"] } else { &[] };
    let with = |names: &[&'static str]| named(&[scope, names].concat());
    let collection = format!("{scoped}/{}", row.plural);
    let object = format!("{collection}/{{name}}");
    let mut routes = Vec::new();
    let mut add = |path: String, parameters, operations: Vec<Operation>| {
        if !operations.is_empty() {
            routes.push(Route { path, parameters, operations });
        }
    };
    if row.namespaced && row.verbs.contains("list") {
        let path = format!("{base}/{}", row.plural);
        let mut list = main_operation(row, "list");
        list.id = format!("list{}{}ForAllNamespaces", camel(&row.group, &row.version), row.kind);
        add(path, named(&["pretty"]), vec![list]);
    }
    let some = |verbs: &[&'static str]| -> Vec<Operation> {
        let served = verbs.iter().filter(|verb| row.verbs.contains(verb));
        served.map(|verb| main_operation(row, verb)).collect()
    };
    add(collection, with(&["pretty"]), some(&["deletecollection", "list", "create"]));
    add(object.clone(), with(&["name", "pretty"]), some(&["delete", "get", "patch", "update"]));
    for sub in row.subresources() {
        let mut parameters = with(&["name"]);
        parameters.extend(parameters::options(sub.name));
        if parameters::options(sub.name).is_empty() {
            parameters.extend(named(&["pretty"]));
        }
        let path = format!("{object}/{}", sub.name);
        let operations = |suffix: &str| -> Vec<Operation> {
            let plain = if sub.name == "proxy" { &["head", "options"][..] } else { &[] };
            sub.verbs.iter().chain(plain).map(|verb| sub_operation(row, &sub, verb, suffix)).collect()
        };
        if sub.name == "proxy" {
            let mut parameters = parameters.clone();
            parameters.extend(named(&["path"]));
            add(format!("{path}/{{path}}"), parameters, operations("WithPath"));
        }
        add(path, parameters, operations(""));
    }
    routes
}

/// The schema of a row's lists.
pub(super) fn list_schema(row: &Resource) -> String {
    let package = row.schema.rsplit_once('.').map_or("", |(package, _)| package);
    format!("{package}.{}", row.list_kind)
}

fn main_operation(row: &Resource, verb: &'static str) -> Operation {
    let own = || Some(row.schema.to_string());
    let scope = if row.namespaced { "Namespaced" } else { "" };
    let camel = camel(&row.group, &row.version);
    let kind = &row.kind;
    let form = form(verb);
    let (body, answer) = match verb {
        "list" => (None, Some(list_schema(row))),
        "deletecollection" | "delete" => (Some(DELETE_OPTIONS.to_owned()), Some(STATUS.to_owned())),
        "create" | "update" => (own(), own()),
        "patch" => (Some(PATCH.to_owned()), own()),
        _ => (None, own()),
    };
    let id = match verb {
        "deletecollection" => format!("delete{camel}Collection{scope}{kind}"),
        _ => format!("{}{camel}{scope}{kind}", form.id),
    };
    Operation {
        method: form.method,
        id,
        description: format!("{} {kind}", form.words),
        action: form.action,
        kind: (row.group.to_string(), row.version.to_string(), row.kind.to_string()),
        tag: tag(&row.group, &row.version),
        parameters: named(form.parameters),
        body,
        takes: match verb {
            // Clients go by this when they choose how to say a change.
            "patch" if schema::builtin().get(&row.schema).is_none() => &PATCH_TYPES[..3],
            "patch" => &PATCH_TYPES,
            _ => ANY,
        },
        answer,
        codes: form.codes,
    }
}

fn sub_operation(row: &Resource, sub: &Subresource, verb: &'static str, suffix: &str) -> Operation {
    let mut operation = main_operation(row, verb);
    let name = upper_first(sub.name);
    operation.id.push_str(&name);
    operation.description = format!("{verb} {} of {}", sub.name, row.kind);
    if let Some((group, version, kind)) = sub.kind {
        operation.kind = (group.into(), version.into(), kind.into());
        let schema = format!("io.k8s.api.{}.{version}.{kind}", first_label(group));
        for place in [&mut operation.body, &mut operation.answer] {
            if place.as_deref() == Some(&*row.schema) {
                *place = Some(schema.clone());
            }
        }
    }
    if !parameters::options(sub.name).is_empty() {
        if sub.name != "log" {
            operation.action = "connect";
            let camel = camel(&row.group, &row.version);
            let scope = if row.namespaced { "Namespaced" } else { "" };
            let method = upper_first(operation.method);
            operation.id = format!("connect{camel}{method}{scope}{}{name}{suffix}", row.kind);
        }
        (operation.body, operation.answer) = (None, None);
        (operation.parameters, operation.codes) = (Vec::new(), &["200", "401"]);
    }
    operation
}

/// What all operations of one verb have in common.
struct Form {
    method: &'static str,
    /// What the operation's id begins with.
    id: &'static str,
    action: &'static str,
    words: &'static str,
    parameters: &'static [&'static str],
    codes: &'static [&'static str],
}

fn form(verb: &str) -> Form {
    let new = |method, id, action, words, parameters, codes| Form { method, id, action, words, parameters, codes };
    match verb {
        "list" => new("get", "list", "list", "list or watch objects of kind", parameters::LIST, &["200", "401"]),
        "create" => new("post", "create", "post", "create a", parameters::WRITE, &["200", "201", "202", "401"]),
        "update" => new("put", "replace", "put", "replace the specified", parameters::WRITE, &["200", "201", "401"]),
        "patch" => {
            new("patch", "patch", "patch", "partially update the specified", parameters::PATCH, &["200", "201", "401"])
        }
        "delete" => new("delete", "delete", "delete", "delete a", parameters::DELETE, &["200", "202", "401"]),
        "deletecollection" => new(
            "delete",
            "delete",
            "deletecollection",
            "delete collection of",
            parameters::DELETE_COLLECTION,
            &["200", "401"],
        ),
        "head" => new("head", "head", "connect", "connect to", &[], &["200", "401"]),
        "options" => new("options", "options", "connect", "connect to", &[], &["200", "401"]),
        _ => new("get", "read", "get", "read the specified", &[], &["200", "401"]),
    }
}

fn base(group: &str, version: &str) -> String {
    format!("/{}", super::document_path(group, version))
}

/// `CoreV1`, `RbacAuthorizationV1`.
fn camel(group: &str, version: &str) -> String {
    let group = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
    group.split('.').chain([version]).map(upper_first).collect()
}

/// `core_v1`, `rbacAuthorization_v1`.
fn tag(group: &str, version: &str) -> String {
    let name = camel(group, "");
    let lower: String = name.chars().take(1).map(|c| c.to_ascii_lowercase()).chain(name.chars().skip(1)).collect();
    format!("{lower}_{version}")
}

/// The name of a group in its types' package.
fn first_label(group: &str) -> &str {
    match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    }
}

fn upper_first(text: &str) -> String {
    text.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(text.chars().skip(1)).collect()
}

const ANY: &[&str] = &["*/*"];

/// The media types of patches. Custom resources have no strategies, so they do not take the last one.
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
];

/// What an HTTP code means in the documents.
pub(super) fn meaning(code: &str) -> &'static str {
    match code {
        "201" => "Created",
        "202" => "Accepted",
        _ => "OK",
    }
}
