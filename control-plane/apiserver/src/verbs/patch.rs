//! PATCH: the three client-side forms, applied to what the client sees and then taken like a PUT.

use bytes::Bytes;
use serde_json::Value;
use sluice_api::{
    patch, schema,
    status::{FieldError, Status},
};

use super::{Call, faces::Face};
use crate::body::{self, Expected, PatchKind};

/// A parsed patch.
pub(super) struct Patch {
    kind: PatchKind,
    value: Value,
    duplicates: Vec<String>,
}

impl Patch {
    pub(super) fn parse(kind: PatchKind, bytes: &Bytes) -> Result<Self, Status> {
        let parsed = body::parse(bytes, body::Form::Json)?;
        Ok(Self { kind, value: parsed.value, duplicates: parsed.duplicates })
    }
}

impl Call<'_> {
    /// The patched form of `shown`, read like a submitted body.
    pub(super) fn patch(&self, patch: &Patch, face: &Face, shown: &Value) -> Result<Value, Status> {
        let resource = &self.view.resource;
        let version = resource.api_version();
        let expected = match face.expected {
            Some((api_version, kind)) => Expected { api_version, kind },
            None => Expected { api_version: &version, kind: &resource.kind },
        };
        let patched = || -> Result<Value, Status> {
            let mut patched = self.patched_value(patch, face, shown)?;
            body::check_type(&mut patched, expected)?;
            Ok(patched)
        };
        // Only a failure shows what the patch led to.
        let text = || match patch.kind {
            PatchKind::Strategic => patch::go_text(&patch.value),
            _ => patched().unwrap_or_default().to_string(),
        };
        let checked = self.check_schema(patched()?, patch.duplicates.clone(), expected);
        let patched = checked.map_err(|status| misfit(status, text))?;
        self.check_address(&patched)?;
        Ok(patched)
    }

    fn patched_value(&self, patch: &Patch, face: &Face, shown: &Value) -> Result<Value, Status> {
        let resource = &self.view.resource;
        match patch.kind {
            PatchKind::Json => patch::json(shown, patch.value.clone()),
            PatchKind::Merge => patch::merge(shown, &patch.value),
            PatchKind::Strategic => {
                let name = match face.expected {
                    Some((_, "Scale")) => "io.k8s.api.autoscaling.v1.Scale",
                    _ => &*resource.schema,
                };
                // Custom resources have no strategies.
                let schema = schema::builtin().get(name);
                if schema.is_none() {
                    return Err(body::unsupported_patch());
                }
                patch::strategic(schema, shown, patch.value.clone())
            }
            // Applies take a way of their own.
            PatchKind::Apply => Err(body::unsupported_patch()),
        }
    }
}

/// 422 for a patch that leads to no object of the kind, in upstream's words: about the patch, with
/// what it led to.
fn misfit(status: Status, text: impl FnOnce() -> String) -> Status {
    let why = match status.message.split_once(" cannot be handled as a ") {
        Some((_, why)) => why.split_once(": ").map_or(why, |(_, why)| why).to_owned(),
        None => return status,
    };
    Status::invalid_kind("", "", "", vec![FieldError::invalid("patch", text(), why)])
}
