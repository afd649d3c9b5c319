//! DELETE and DELETECOLLECTION, carrying out what [`super::deletion`] plans.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use http::Response;
use jiff::Timestamp;
use serde_json::Value;
use sluice_api::status::Status;

use super::{
    Call,
    deletion::{DeleteOptions, Plan, plan, plan_namespace, pod_grace},
    paging::ListOptions,
};
use crate::{
    context::{Body, Operation},
    conversion, limits, meta, respond, rules,
    storage::{Along, StoredObject},
    view::{Object, Selection, encode},
};

/// What became of an object.
pub(crate) struct Deleted {
    pub(crate) object: Object,
    pub(crate) gone: bool,
}

impl Call<'_> {
    /// DELETE of one object.
    pub(crate) async fn delete(&self, options: &DeleteOptions) -> Result<Response<Body>, Status> {
        let deleted = self.delete_one(self.name(), options).await?;
        let code = if !deleted.gone && options.orphan_dependents == Some(false) { 202 } else { 200 };
        let resource = &self.view.resource;
        if deleted.gone && !rules::returns_deleted(resource) {
            let uid = match &deleted.object {
                Object::Stored(stored) => stored.uid.to_string(),
                Object::Made(value) => meta::text(value, "uid").to_owned(),
            };
            let success = Status::success(resource, self.name(), &uid);
            return Ok(respond::object(code, encode(&success), self.form));
        }
        Ok(self.object_response(code, &deleted.object))
    }

    /// Deletes one object as far as it goes now.
    pub(crate) async fn delete_one(&self, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
        let resource = &*self.view.resource;
        let storage = &self.core.storage;
        let _lock = storage.lock(self.view.prefix(), self.namespace(), name).await;
        let mut newest = false;
        for _ in 0..limits::WRITE_ATTEMPTS {
            let Some(current) = self.current(name) else {
                if newest {
                    return Err(Status::not_found(resource, name));
                }
                storage.fresh().await?;
                newest = true;
                continue;
            };
            if let Some(failed) = self.precondition(&current, options) {
                if newest {
                    return Err(failed);
                }
                storage.fresh().await?;
                newest = true;
                continue;
            }
            let shown = self.served(Arc::clone(&current)).await?;
            let old = self.view.value(&shown);
            let frame = self.admit(Operation::Delete, name, Some(&old));
            let warnings = self.core.admission.validate(&frame, None).await?;
            self.warn(warnings);
            match self.plan(&old, options) {
                Plan::Pending => {
                    return Ok(Deleted { object: Object::Stored(shown), gone: false });
                }
                Plan::Update(new) => {
                    if let Some(object) = self.commit(&current, &old, new, Along::default()).await? {
                        let object = match object {
                            Object::Stored(stored) => Object::Stored(self.served(stored).await?),
                            made => made,
                        };
                        return Ok(Deleted { object, gone: false });
                    }
                }
                Plan::Remove if self.dry_run || options.dry_run => {
                    return Ok(Deleted { object: Object::Stored(shown), gone: true });
                }
                Plan::Remove => {
                    if let Some(revision) = self.remove(&current).await? {
                        let last = shown.at_revision(revision).map_or(shown, Arc::new);
                        return Ok(Deleted { object: Object::Stored(last), gone: true });
                    }
                }
            }
            storage.fresh().await?;
            newest = true;
        }
        Err(Status::conflict(resource, name))
    }

    fn plan(&self, old: &Value, options: &DeleteOptions) -> Plan {
        let resource = &*self.view.resource;
        let now = Timestamp::now();
        match (&*resource.group, &*resource.plural) {
            ("", "namespaces") => plan_namespace(old, options, now),
            (group, plural) => {
                let pod = group.is_empty() && plural == "pods";
                let orphans = rules::orphans_by_default(resource);
                let grace = pod.then(|| pod_grace(old, options));
                plan(old, options, grace, orphans, rules::collected(resource), now)
            }
        }
    }

    fn precondition(&self, current: &StoredObject, options: &DeleteOptions) -> Option<Status> {
        let resource = &self.view.resource;
        let failed = |what: &str, wanted: &str, is: &str, perhaps: &str| {
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). \
                 The object might have been {perhaps}"
            );
            // Upstream names the kind here, where it names the resource everywhere else.
            let mut status = Status::conflict_because(resource, &current.name, why);
            status.message = status.message.replacen(&resource.qualified(), &resource.qualified_kind(), 1);
            if let Some(details) = &mut status.details {
                details.kind = resource.kind.to_string();
            }
            status
        };
        if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != &*current.uid) {
            return Some(failed("UID", uid, &current.uid, "deleted and then recreated"));
        }
        let is = current.revision.to_string();
        options
            .resource_version
            .as_deref()
            .filter(|wanted| *wanted != is)
            .map(|wanted| failed("ResourceVersion", wanted, &is, "modified"))
    }

    /// DELETECOLLECTION: each object that the selectors find, as by DELETE.
    pub(crate) async fn delete_collection(&self, options: &DeleteOptions) -> Result<Response<Body>, Status> {
        let selection = Selection::parse(&self.view.resource, self.query)?;
        let list = ListOptions::parse(self.query)?;
        let mut listed = self.find(&selection, &list).await?;
        listed.items = conversion::served(&self.core.storage, &self.view, listed.items).await?;
        let deletions: Vec<BoxFuture<'_, _>> =
            listed.items.iter().map(|object| self.delete_found(object, options).boxed()).collect();
        stream::iter(deletions).buffer_unordered(limits::COLLECTION_DELETES).try_collect::<()>().await?;
        Ok(self.list_response(listed))
    }

    /// Deletes one object of a collection; one that is gone already is no failure.
    async fn delete_found(&self, object: &StoredObject, options: &DeleteOptions) -> Result<(), Status> {
        // A collection over all namespaces names each object's own.
        match self.within(&object.namespace).delete_one(&object.name, options).await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }
}
