//! The refusals of authentication, authorization and admission, in upstream's words.

use sluice_api::status::{Denied, Details, Status};

use crate::context::Attributes;

/// 404 for a resource named as upstream does (`pods`, `deployments.apps`).
pub fn not_found(group: &str, plural: &str, name: &str) -> Status {
    Status::new(404, "NotFound", format!("{} \"{name}\" not found", qualified(group, plural)))
        .with_details(details(group, plural, name))
}

/// 403 by the authorizer. `reason` may be empty.
pub fn forbidden(attributes: &Attributes<'_>, reason: &str) -> Status {
    if attributes.is_resource {
        return Status::access_denied(&Denied {
            user: &attributes.user.username,
            verb: attributes.verb,
            group: attributes.group,
            resource: attributes.resource,
            subresource: attributes.subresource,
            namespace: attributes.namespace,
            name: attributes.name,
            reason,
        });
    }
    let colon = if reason.is_empty() { "" } else { ": " };
    Status::forbidden_path(format!("{}{colon}{reason}", attributes.refusal()))
}

/// 403 by admission: `pods "x" is forbidden: <why>`.
pub fn forbid(group: &str, plural: &str, name: &str, why: &str) -> Status {
    let what = qualified(group, plural);
    let message = if name.is_empty() {
        format!("{what} is forbidden: {why}")
    } else {
        format!("{what} \"{name}\" is forbidden: {why}")
    };
    Status::new(403, "Forbidden", message).with_details(details(group, plural, name))
}

fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.into() } else { format!("{plural}.{group}") }
}

fn details(group: &str, plural: &str, name: &str) -> Details {
    Details { name: name.into(), group: group.into(), kind: plural.into(), ..Details::default() }
}
