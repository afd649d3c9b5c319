//! Who manages which fields: every update and every apply passes here on its way from what was
//! submitted to what is admitted, as upstream's handlers call their field manager.

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;
use sluice_api::{
    apply::{self, Set, Type, Versions, Write},
    convert,
    resource::{Registry, Resource, api_version, split_api_version},
    status::{FieldError, Status},
};

use super::Call;
use crate::{meta, request::Query, view::View};

/// What upstream warns of when a webhook breaks the list of managers.
const BROKEN: &str = ".metadata.managedFields was in an invalid state after admission; this could be caused by an \
    outdated mutating admission controller; please fix your requests";

/// The checks of a write's parameters, in upstream's words: `ValidateCreateOptions` and its kin.
pub(super) fn check_options(verb: &str, apply: bool, query: &Query, errors: &mut Vec<FieldError>) {
    let manager = query.text("fieldManager");
    if verb == "patch" {
        if apply && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if !apply && query.get("force").is_some() {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
    }
    errors.extend(apply::validate_manager("fieldManager", manager));
}

/// The check of `fieldValidation`, which upstream does last.
pub(super) fn check_validation(query: &Query, errors: &mut Vec<FieldError>) {
    let known = ["", "Ignore", "Strict", "Warn"];
    let asked = query.text("fieldValidation");
    if !known.contains(&asked) {
        errors.push(FieldError::not_supported("fieldValidation", asked, &known));
    }
}

/// The versions of a served kind.
struct Kind<'a> {
    view: &'a View,
    version: &'a str,
    registry: Arc<Registry>,
}

impl Kind<'_> {
    fn row(&self, version: &str) -> Option<&Arc<Resource>> {
        if version == self.version {
            return Some(&self.view.resource);
        }
        let (group, version) = split_api_version(version);
        self.registry
            .by_kind(group, version, &self.view.resource.kind)
            .filter(|row| row.storage == self.view.resource.storage)
    }
}

impl Versions for Kind<'_> {
    fn type_of(&self, api_version: &str) -> Option<Type<'_>> {
        self.row(api_version).map(|row| Type::of(row))
    }

    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        Some(convert::convert(self.row(from)?, self.row(to)?, object.clone()))
    }
}

impl Call<'_> {
    /// Brings the managers of `new` up to date after an update of `live` (`None`: a create).
    pub(super) fn track(&self, live: Option<&Value>, new: &mut Value) {
        self.written(|write| write.update(live, new));
    }

    /// `live` after an apply of `config`, managers included; not yet decoded.
    pub(super) fn merged(&self, live: Option<&Value>, config: &Value) -> Result<Value, Status> {
        let force = self.query.flag("force");
        self.written(|write| write.apply(live, config, force))
    }

    fn written<T>(&self, then: impl FnOnce(&Write<'_>) -> T) -> T {
        let resource = &self.view.resource;
        let version = api_version(&resource.group, &resource.version);
        let kind = Kind { view: &self.view, version: &version, registry: self.core.registry.load_full() };
        let reset: Set = apply::reset_fields(resource, &self.info.subresource);
        then(&Write {
            versions: &kind,
            api_version: &version,
            subresource: &self.info.subresource,
            reset: &reset,
            manager: &self.manager(),
            now: &meta::now(),
        })
    }

    /// The request's manager: the one that it names, else the client by its User-Agent.
    fn manager(&self) -> Cow<'_, str> {
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let own = || match self.user.username.strip_prefix("system:") {
            // Our own parts talk to each other without introducing themselves.
            Some(node) if node.starts_with("node:") => "kubelet",
            Some(part) if !part.contains(':') => part,
            _ => "",
        };
        apply::manager_or_agent(self.query.text("fieldManager"), agent.unwrap_or_else(own))
    }

    /// Puts `old`'s managers back, with a warning, when admission left a list that cannot be read.
    pub(super) fn mend_managers(&self, old: Option<&Value>, new: &mut Value) {
        let readable = match &new["metadata"]["managedFields"] {
            Value::Null => true,
            Value::Array(list) => list.iter().all(|entry| {
                matches!(entry["operation"].as_str(), Some("Apply" | "Update"))
                    && entry["apiVersion"].as_str().is_some_and(|version| !version.is_empty())
                    && entry["fieldsType"] == "FieldsV1"
            }),
            _ => false,
        };
        if readable {
            return;
        }
        self.warn(vec![BROKEN.to_owned()]);
        match old.and_then(|old| old["metadata"].get("managedFields")) {
            Some(list) => meta::set(new, "managedFields", list.clone()),
            None => meta::clear(new, &["managedFields"]),
        }
    }
}
