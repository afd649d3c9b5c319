//! What a user may do: `system:masters`, the Node authorizer, then RBAC; the first to allow wins.
//!
//! Pure questions to the cached store through [`View`]: no IO, no waiting. The RBAC objects are
//! compiled into an index that is made again when one of them changes.

pub mod escalation;
pub mod node;
pub mod policy;
pub mod rbac;

use std::sync::Arc;

use sluice_api::status::Status;

pub use policy::Rule;

use crate::{
    auth::{MASTERS, refusal, view::View},
    context::{Attributes, Decision, UserInfo},
};

/// Answers for every request. Shared as `Arc<Authorizer>`.
pub struct Authorizer {
    node: node::NodeAuthorizer,
    rbac: rbac::Rbac,
}

impl Authorizer {
    pub fn new(view: Arc<dyn View>) -> Self {
        Self { node: node::NodeAuthorizer::new(view.clone()), rbac: rbac::Rbac::new(view) }
    }

    /// The decision, with a reason where upstream gives one.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow;
        }
        let mut reasons = Vec::new();
        match self.node.authorize(attributes) {
            node::Opinion::Allow => return Decision::Allow,
            node::Opinion::None(reason) => reasons.extend(reason),
        }
        match self.rbac.authorize(attributes) {
            Ok(()) => Decision::Allow,
            Err(missing) => {
                reasons.extend(missing);
                Decision::Deny(reasons.join("\n"))
            }
        }
    }

    /// [`Authorizer::authorize`] as the answer to send: 403 in upstream's words.
    pub fn check(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        match self.authorize(attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(refusal::forbidden(attributes, &reason)),
        }
    }

    /// Every RBAC rule that holds for a user in a namespace (cluster-wide ones alone for `""`).
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        if user.in_group(MASTERS) {
            return policy::everything();
        }
        let mut rules = self.rbac.rules_for(user, namespace);
        rules.extend(self.node.rules_for(user));
        rules
    }

    /// The rules that a RoleRef stands for; `namespace` is the binding's (empty for cluster-wide).
    pub fn role_rules(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.rbac.role_rules(kind, namespace, name)
    }
}

#[cfg(test)]
mod tests;
