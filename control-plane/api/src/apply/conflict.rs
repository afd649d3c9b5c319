//! What an apply would take from other managers, and the 409 that says so in upstream's words.

use std::collections::BTreeMap;

use super::{
    element::Element,
    managers::{Id, Operation},
    set::Set,
};
use crate::status::{Cause, Details, Status, quote};

/// By manager: the fields that it owns and would lose.
pub(super) type Conflicts = BTreeMap<Id, Set>;

/// `Apply failed with 2 conflicts: ...`, each conflict as a cause.
pub(super) fn status(conflicts: &Conflicts) -> Status {
    let all: Vec<(&Id, String)> =
        conflicts.iter().flat_map(|(id, set)| set.paths().into_iter().map(move |path| (id, text(&path)))).collect();
    let causes = all
        .iter()
        .map(|(id, path)| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", name(id)),
            field: path.clone(),
        })
        .collect();
    let message = match &all[..] {
        [(id, path)] => format!("Apply failed with 1 conflict: conflict with {}: {path}", name(id)),
        several => {
            let mut lines = Vec::new();
            let mut last = None;
            for (id, path) in several {
                if last != Some(*id) {
                    lines.push(format!("conflicts with {}:", name(id)));
                    last = Some(*id);
                }
                lines.push(format!("- {path}"));
            }
            format!("Apply failed with {} conflicts: {}", several.len(), lines.join("\n"))
        }
    };
    Status::new(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
}

fn text(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

/// `"kubectl" using apps/v1`.
fn name(id: &Id) -> String {
    let mut out = quote(&id.manager);
    if !id.subresource.is_empty() {
        out.push_str(&format!(" with subresource {}", quote(&id.subresource)));
    }
    if id.operation == Operation::Update {
        out.push_str(&format!(" using {}", id.version));
    }
    out
}
