//! PATCH: the three client-side forms, applied to what the client sees and then taken like a PUT.

use bytes::Bytes;
use serde_json::Value;
use sluice_api::{
    patch, schema,
    status::{FieldError, Status},
};

use super::{Call, faces::Face};
use crate::{
    body::{self, Expected, PatchKind},
    meta,
};

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
    pub(super) fn apply(&self, patch: &Patch, face: &Face, shown: &Value) -> Result<Value, Status> {
        let resource = &self.view.resource;
        let version = resource.api_version();
        let expected = match face.expected {
            Some((api_version, kind)) => Expected { api_version, kind },
            None => Expected { api_version: &version, kind: &resource.kind },
        };
        let mut patched = match patch.kind {
            PatchKind::Json => patch::json(shown, patch.value.clone())?,
            PatchKind::Merge => patch::merge(shown, &patch.value)?,
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
                patch::strategic(schema, shown, patch.value.clone())?
            }
            PatchKind::Apply => return Err(body::unsupported_patch()),
        };
        body::check_type(&mut patched, expected)?;
        let patched = self.check_schema(patched, patch.duplicates.clone(), expected)?;
        let (name, namespace) = (meta::name(&patched), meta::namespace(&patched));
        let mut errors = Vec::new();
        if name != self.name() {
            errors.push(FieldError::invalid("metadata.name", name, "field is immutable"));
        }
        if namespace != self.namespace() {
            errors.push(FieldError::invalid("metadata.namespace", namespace, "field is immutable"));
        }
        crate::rules::invalid(resource, shown, errors)?;
        Ok(patched)
    }
}
