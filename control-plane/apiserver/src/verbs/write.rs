//! The one read-modify-write under UPDATE, PATCH and the subresources.

use std::sync::Arc;

use http::Response;
use serde_json::Value;
use sluice_api::{
    apply,
    status::{FieldError, Status},
    strategy,
};
use sluice_store::Revision;

use super::Call;
use crate::{
    context::{Admit, Body, Operation},
    conversion, limits, meta, respond, rules,
    services::{self, Allocation},
    storage::{Along, StoredObject, key},
    view::Object,
};

/// Which part of an object an update is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status.
    Whole,
    Status,
    /// Only what is below this field, by the rules of a new object there: what the object's own
    /// updates may not touch (`pods/resize`, `pods/ephemeralcontainers`).
    Below(&'static str),
    /// The change itself kept everything else as it was.
    Kept,
}

/// Who comes to own the fields that a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracked {
    /// The request's manager, as the updater of them.
    Update,
    /// The new object has the list as it is to be: an apply made it, or nobody's fields change.
    Already,
}

/// Makes the object to store when there is none.
pub(super) type Create<'a> = &'a (dyn Fn() -> Result<Value, Status> + Send + Sync);

/// What a modification did.
pub(crate) struct Written {
    pub(crate) object: Object,
    pub(crate) created: bool,
}

impl Call<'_> {
    /// An object in the form asked for.
    pub(crate) fn object_response(&self, code: u16, object: &Object) -> Response<Body> {
        let bytes = self.view.render(object, self.form.target);
        respond::object(code, bytes, self.form)
    }

    /// UPDATE of an object from a request's body.
    pub(crate) async fn update(&self, object: Value) -> Result<Response<Body>, Status> {
        self.check_address(&object)?;
        let create = || Ok(object.clone());
        let written = self.modify(Part::Whole, Tracked::Update, |_| Ok(object.clone()), Some(&create)).await?;
        let code = if written.created { 201 } else { 200 };
        Ok(self.object_response(code, &written.object))
    }

    /// Name and namespace of a body are those of the path.
    pub(crate) fn check_address(&self, object: &Value) -> Result<(), Status> {
        let (name, namespace) = (meta::name(object), meta::namespace(object));
        if name != self.name() {
            if name.is_empty() {
                return Err(Status::bad_request(format!(
                    "the name of the object ({} based on URL) was undeterminable: name must be provided",
                    self.name()
                )));
            }
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.name()
            )));
        }
        if !namespace.is_empty() && namespace != self.namespace() {
            return Err(Status::bad_request(format!(
                "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
                self.namespace()
            )));
        }
        Ok(())
    }

    /// Reads, changes and writes the object that the request names, and tries again when another
    /// write came in between (unless `change` brought a resourceVersion along). `create` makes what
    /// to store when there is nothing, for applies and for kinds that an update may create.
    pub(crate) async fn modify(
        &self,
        part: Part,
        tracked: Tracked,
        change: impl Fn(&Value) -> Result<Value, Status>,
        create: Option<Create<'_>>,
    ) -> Result<Written, Status> {
        let resource = &*self.view.resource;
        let name = self.name();
        let _lock = self.core.storage.lock(self.view.prefix(), self.namespace(), name).await;
        let mut newest = false;
        for _ in 0..limits::WRITE_ATTEMPTS {
            let Some(current) = self.current(name) else {
                if !newest {
                    self.core.storage.fresh().await?;
                    newest = true;
                    continue;
                }
                let may = tracked == Tracked::Already || rules::created_by_update(resource);
                let Some(create) = create.filter(|_| may && part == Part::Whole) else {
                    return Err(Status::not_found(resource, name));
                };
                match self.created(create()?, tracked).await {
                    // Somebody else was faster: there is something to change by now.
                    Err(status) if status.reason == "AlreadyExists" && !self.dry_run => {
                        self.core.storage.fresh().await?;
                        continue;
                    }
                    object => return Ok(Written { object: object?, created: true }),
                }
            };
            let old = self.view.value(&*self.served(Arc::clone(&current)).await?);
            let mut new = change(&old)?;
            let wanted = meta::resource_version(&new).map_err(|text| bad_version(self, &text))?;
            if let Some(wanted) = wanted
                && wanted != current.revision
            {
                if !newest {
                    self.core.storage.fresh().await?;
                    newest = true;
                    continue;
                }
                return Err(Status::conflict(resource, name));
            }
            if wanted.is_none() && rules::must_be_conditional(resource) && part != Part::Kept {
                let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
                return Err(Status::invalid(resource, name, vec![error]));
            }
            let uid = meta::text(&new, "uid");
            if !uid.is_empty() && uid != &*current.uid {
                let key = key(self.view.prefix(), &current.namespace, name);
                let why = format!(
                    "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
                     Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    current.uid
                );
                return Err(Status::conflict_because(resource, name, why));
            }
            if resource.namespaced {
                meta::set(&mut new, "namespace", self.namespace());
            }
            self.dedup_owners(&mut new);
            rules::defaults(resource, &mut new);
            if tracked == Tracked::Update {
                if part == Part::Status {
                    // Nobody loses what a status does not take, whatever the client left out.
                    strategy::prepare_status_update(resource, &old, &mut new);
                }
                self.track(Some(&old), &mut new);
            }
            let mut allocation = self.prepare(part, &old, &mut new).await?;
            let along = std::mem::take(&mut allocation.along);
            let committed = self.commit(&current, &old, new, along).await?;
            // That nothing changed is only known of the newest state.
            let unchanged = matches!(&committed, Some(Object::Stored(same)) if Arc::ptr_eq(same, &current));
            if let Some(object) = committed.filter(|_| newest || !unchanged) {
                let object = match object {
                    Object::Stored(stored) => Object::Stored(self.served(stored).await?),
                    made => made,
                };
                return Ok(Written { object, created: false });
            }
            self.core.storage.fresh().await?;
            newest = true;
        }
        Err(Status::conflict(resource, name))
    }

    /// Owner references that are there twice are there once, with upstream's warning.
    pub(super) fn dedup_owners(&self, object: &mut Value) {
        let twice = dedup_owners(object);
        if !twice.is_empty() {
            self.warn(vec![format!(
                ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and \
                 may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
                twice.join(", ")
            )]);
        }
    }

    /// Admission, defaults and validation of a changed object, whose defaults are set.
    async fn prepare(&self, part: Part, old: &Value, new: &mut Value) -> Result<Allocation, Status> {
        let resource = &*self.view.resource;
        let name = self.name();
        let frame = self.admit(Operation::Update, name, Some(old));
        let warnings = self.core.admission.mutate(&frame, new).await?;
        self.warn(warnings);
        self.mend_managers(Some(old), new);
        rules::defaults(resource, new);
        match part {
            Part::Whole | Part::Below(_) => strategy::prepare_update(resource, old, new),
            Part::Status => strategy::prepare_status_update(resource, old, new),
            Part::Kept => {}
        }
        let mut errors = rules::keep_system_fields(old, new);
        if old["metadata"]["managedFields"] != new["metadata"]["managedFields"] {
            errors.extend(apply::validate_managers(new));
        }
        let mut allocation = Allocation::default();
        if part == Part::Whole {
            allocation = self.core.services.update(self, old, new).await?;
            errors.extend(strategy::validate_update(resource, old, new));
        }
        if part == Part::Status {
            errors.extend(strategy::validate_status_update(resource, old, new));
        }
        if let Part::Below(field) = part {
            let found = strategy::validate_create(resource, new);
            errors.extend(found.into_iter().filter(|e| e.field.starts_with(field)));
        }
        rules::invalid(resource, new, errors)?;
        let warnings = self.core.admission.validate(&frame, Some(new)).await?;
        self.warn(warnings);
        Ok(allocation)
    }

    /// Writes a changed object on top of `current`, and `along` with it: not at all when nothing changed, as a removal
    /// when its last finalizer is gone. `None` when another write came in between.
    pub(super) async fn commit(
        &self,
        current: &Arc<StoredObject>,
        old: &Value,
        mut new: Value,
        along: Along,
    ) -> Result<Option<Object>, Status> {
        meta::set(&mut new, "resourceVersion", current.revision.to_string());
        // A write of the same moves an object into the version that is stored.
        let moves = self.view.resource.is_storage_version() && !self.view.is_stored(current);
        if !moves && apply::same_but_times(old, &new) {
            return Ok(Some(Object::Stored(Arc::clone(current))));
        }
        if self.dry_run {
            return Ok(Some(Object::Made(new)));
        }
        let storage = &self.core.storage;
        if self.finished(old, &new) {
            let removed = self.remove(current).await?;
            return Ok(removed.map(|revision| {
                meta::set(&mut new, "resourceVersion", revision.to_string());
                Object::Made(new)
            }));
        }
        let stored = conversion::stored(storage, &self.view, new).await?;
        let written = storage.replace(&self.view.stored, &stored, current.revision, along).await?;
        Ok(written.map(Object::Stored))
    }

    /// Removes an object with what it holds. `None` when another write came in between.
    pub(super) async fn remove(&self, current: &StoredObject) -> Result<Option<Revision>, Status> {
        let (storage, stored) = (&self.core.storage, &self.view.stored);
        let along = services::released(storage, stored, current);
        storage.remove(stored, &current.namespace, &current.name, current.revision, along).await
    }

    /// True when nothing holds a deleted object back any more (upstream's
    /// `ShouldDeleteDuringUpdate`, and that of namespaces).
    fn finished(&self, old: &Value, new: &Value) -> bool {
        let resource = &*self.view.resource;
        let namespace = resource.group.is_empty() && resource.plural == "namespaces";
        meta::deleting(old)
            && meta::finalizers(new).is_empty()
            && if namespace {
                new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            } else {
                old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
            }
    }

    /// The object as the cache has it now.
    pub(crate) fn current(&self, name: &str) -> Option<Arc<StoredObject>> {
        self.core.storage.get(self.view.prefix(), self.namespace(), name)
    }

    /// A stored object in the version that the request is about.
    pub(super) async fn served(&self, object: Arc<StoredObject>) -> Result<Arc<StoredObject>, Status> {
        conversion::one(&self.core.storage, &self.view, object).await
    }

    /// The frame of an admission request about this call's resource.
    pub(crate) fn admit<'a>(&'a self, operation: Operation, name: &'a str, old: Option<&'a Value>) -> Admit<'a> {
        let mut attributes = self.info.attributes(self.user);
        attributes.name = name;
        Admit { attributes, resource: &self.view.resource, operation, old, dry_run: self.dry_run }
    }
}

/// Removes owner references that are there twice; their UIDs.
fn dedup_owners(object: &mut Value) -> Vec<String> {
    let Some(owners) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else {
        return Vec::new();
    };
    let mut twice = Vec::new();
    let mut at = 0;
    while at < owners.len() {
        if owners[..at].contains(&owners[at]) {
            twice.push(owners.remove(at)["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            at += 1;
        }
    }
    twice
}

fn bad_version(call: &Call<'_>, text: &str) -> Status {
    let error = FieldError::invalid(
        "metadata.resourceVersion",
        text,
        format!("strconv.ParseUint: parsing {}: invalid syntax", Value::from(text)),
    );
    Status::invalid(&call.view.resource, call.name(), vec![error])
}
