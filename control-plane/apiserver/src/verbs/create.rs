//! CREATE: everything between a submitted object and its place in the store, also for updates and
//! applies that make what is not there.

use http::Response;
use serde_json::Value;
use sluice_api::{
    apply,
    resource::Resource,
    status::{Details, FieldError, Status},
    strategy,
};

use super::{Call, write::Tracked};
use crate::{
    context::{Body, Operation},
    conversion, limits, meta, rules, services,
    view::Object,
};

impl Call<'_> {
    /// CREATE of an object from a request's body.
    pub(crate) async fn create(&self, object: Value) -> Result<Response<Body>, Status> {
        let written = self.store_new(object, Tracked::Update).await?;
        Ok(self.object_response(201, &written))
    }

    /// Everything between a decoded new object and its place in the store.
    pub(crate) async fn store_new(&self, mut object: Value, tracked: Tracked) -> Result<Object, Status> {
        let resource = &*self.view.resource;
        self.place(&mut object)?;
        if !matches!(meta::text(&object, "resourceVersion"), "" | "0") {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Status::new(500, "", why));
        }
        let base = match meta::name(&object) {
            "" => Some(meta::text(&object, "generateName").to_owned()).filter(|b| !b.is_empty()),
            _ => None,
        };
        let managers = object["metadata"].get("managedFields").cloned();
        self.dedup_owners(&mut object);
        meta::stamp(&mut object);
        if let Some(managers) = managers {
            meta::set(&mut object, "managedFields", managers);
        }
        // Another name, or other addresses and ports, may have to be tried.
        let may_repeat = base.is_some() || services::is_service(resource);
        for attempt in 1.. {
            let mut object = if may_repeat { object.clone() } else { object.take() };
            if let Some(base) = &base {
                meta::set(&mut object, "name", meta::generate_name(base));
            }
            let name = meta::name(&object).to_owned();
            rules::defaults(resource, &mut object);
            if tracked == Tracked::Update {
                self.track(None, &mut object);
            }
            let frame = self.admit(Operation::Create, &name, None);
            let warnings = self.core.admission.mutate(&frame, &mut object).await?;
            self.warn(warnings);
            self.mend_managers(None, &mut object);
            rules::defaults(resource, &mut object);
            strategy::prepare_create(resource, &mut object);
            if name.is_empty() {
                let required = "name or generateName is required";
                let error = FieldError::required("metadata.name", required);
                return Err(Status::invalid(resource, "", vec![error]));
            }
            // What a Service is given is taken with its write; it is held until then.
            let mut allocation = self.core.services.create(self, &mut object).await?;
            let mut errors = strategy::validate_create(resource, &object);
            errors.extend(apply::validate_managers(&object));
            rules::invalid(resource, &object, errors)?;
            self.warn(strategy::warnings(resource, &object));
            let warnings = self.core.admission.validate(&frame, Some(&object)).await?;
            self.warn(warnings);
            if self.dry_run {
                if self.current(&name).is_some() {
                    return Err(Status::already_exists(resource, &name));
                }
                return Ok(Object::Made(object));
            }
            let stored = conversion::stored(&self.core.storage, &self.view, object).await?;
            let along = std::mem::take(&mut allocation.along);
            let takes = !along.is_empty();
            match self.core.storage.insert(&self.view.stored, &stored, along).await? {
                Some(stored) => return Ok(Object::Stored(self.served(stored).await?)),
                None if takes && self.lost_to_others(&name).await? => {
                    if attempt >= limits::ALLOCATION_ATTEMPTS {
                        return Err(Status::conflict(resource, &name));
                    }
                }
                None if base.is_some() && attempt < limits::GENERATE_NAME_ATTEMPTS => {}
                None if base.is_some() => return Err(no_name_left(resource, &name)),
                None => return Err(Status::already_exists(resource, &name)),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Whether a write failed for what goes along with the object, whose own name is free.
    async fn lost_to_others(&self, name: &str) -> Result<bool, Status> {
        self.core.storage.fresh().await?;
        Ok(self.current(name).is_none())
    }

    /// Sets and checks the namespace of a new object.
    fn place(&self, object: &mut Value) -> Result<(), Status> {
        let namespace = meta::namespace(object);
        if !self.view.resource.namespaced {
            if !namespace.is_empty() {
                return Err(Status::bad_request("namespace may not be set on a cluster-scoped object".to_owned()));
            }
            return Ok(());
        }
        if namespace.is_empty() {
            meta::set(object, "namespace", self.namespace());
        } else if namespace != self.namespace() {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(())
    }

    /// The object that an update or an apply makes, if the user may create it.
    pub(super) async fn created(&self, object: Value, tracked: Tracked) -> Result<Object, Status> {
        let (resource, name) = (&*self.view.resource, self.name());
        if !meta::text(&object, "resourceVersion").is_empty() {
            return Err(Status::not_found(resource, name));
        }
        let uid = meta::text(&object, "uid");
        if !uid.is_empty() {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict_because(resource, name, why));
        }
        let mut attributes = self.info.attributes(self.user);
        attributes.verb = "create";
        self.core.authorizer.check(&attributes)?;
        self.store_new(object, tracked).await
    }
}

/// 409 after all attempts to find a free name (upstream's `NewGenerateNameConflict`).
fn no_name_left(resource: &Resource, name: &str) -> Status {
    let mut status = Status::already_exists(resource, name);
    status.message.push_str(", the server was not able to generate a unique name for the object");
    let details = status.details.take().map(|details| *details).unwrap_or_default();
    status.with_details(Details { retry_after_seconds: 1, ..details })
}
