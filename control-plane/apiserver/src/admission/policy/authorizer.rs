//! `authorizer` in expressions: asks what a user may do, one step of the question after another
//! (`authorizer.group('apps').resource('deployments').namespace('x').check('get').allowed()`).

use std::{fmt, sync::Arc};

use sluice_api::cel::{Foreign, Val};

use crate::{
    authz::Authorizer,
    context::{Attributes, Decision, UserInfo},
};

/// A question that is being put together.
#[derive(Clone)]
pub(super) struct Asker {
    authorizer: Arc<Authorizer>,
    user: UserInfo,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
    path: String,
    /// What the write itself is about.
    own: Arc<[String; 5]>,
}

/// What was answered.
#[derive(Debug)]
struct Answer(Decision);

impl Asker {
    pub(super) fn new(authorizer: Arc<Authorizer>, a: &Attributes<'_>) -> Self {
        let own = [a.group, a.resource, a.subresource, a.namespace, a.name].map(str::to_owned);
        let empty = String::new;
        Self {
            authorizer,
            user: a.user.clone(),
            group: empty(),
            resource: empty(),
            subresource: empty(),
            namespace: empty(),
            name: empty(),
            path: empty(),
            own: Arc::new(own),
        }
    }

    /// `authorizer.requestResource`
    fn for_request(&self) -> Self {
        let [group, resource, subresource, namespace, name] = (*self.own).clone();
        Self { group, resource, subresource, namespace, name, ..self.clone() }
    }

    fn ask(&self, verb: &str) -> Answer {
        let is_resource = self.path.is_empty();
        Answer(self.authorizer.authorize(&Attributes {
            user: &self.user,
            verb,
            group: &self.group,
            version: if is_resource { "*" } else { "" },
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: &self.path,
            is_resource,
        }))
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "authorizer({}/{} {})", self.group, self.resource, self.path)
    }
}

impl Foreign for Asker {
    fn call(&self, name: &str, args: &[Val<'_>]) -> Option<Result<Val<'static>, String>> {
        let words: Vec<String> =
            args.iter().filter_map(|a| if let Val::Text(t) = a { Some(t.to_string()) } else { None }).collect();
        let foreign = |asker: Self| Some(Ok(Val::Foreign(Arc::new(asker))));
        let own = self.clone();
        match (name, &words[..]) {
            ("path", [path]) => foreign(Self { path: path.clone(), ..own }),
            ("group", [group]) => foreign(Self { group: group.clone(), ..own }),
            ("resource", [resource]) => foreign(Self { resource: resource.clone(), ..own }),
            ("subresource", [subresource]) => foreign(Self { subresource: subresource.clone(), ..own }),
            ("namespace", [namespace]) => foreign(Self { namespace: namespace.clone(), ..own }),
            ("name", [name]) => foreign(Self { name: name.clone(), ..own }),
            ("serviceAccount", [namespace, name]) => {
                let username = format!("system:serviceaccount:{namespace}:{name}");
                let groups =
                    ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
                foreign(Self { user: UserInfo::new(&username, &groups), ..own })
            }
            ("check", [verb]) => Some(Ok(Val::Foreign(Arc::new(self.ask(verb))))),
            _ => None,
        }
    }

    fn field(&self, name: &str) -> Option<Val<'static>> {
        (name == "requestResource").then(|| Val::Foreign(Arc::new(self.for_request())))
    }
}

impl Foreign for Answer {
    fn call(&self, name: &str, _: &[Val<'_>]) -> Option<Result<Val<'static>, String>> {
        Some(Ok(match (name, &self.0) {
            ("allowed", decision) => Val::Bool(*decision == Decision::Allow),
            ("errored", _) => Val::Bool(false),
            ("error", _) => Val::text(""),
            ("reason", Decision::Deny(reason)) => Val::text(reason.as_str()),
            ("reason", Decision::Allow) => Val::text(""),
            _ => return None,
        }))
    }
}
