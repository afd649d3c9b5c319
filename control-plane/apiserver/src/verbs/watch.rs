//! WATCH: initial events, changes as shared frames, bookmarks, and the ways in which a watch ends.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use rand::Rng as _;
use serde_json::{Value, json};
use sluice_api::status::{FieldError, Status};
use sluice_store::{
    Revision,
    cache::{CacheItem, CacheWatch, Kind},
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Call,
    paging::{At, revision},
};
use crate::{
    context::{Body, BoxError},
    conversion, limits,
    metrics::Metrics,
    negotiate::As,
    request::Query,
    respond,
    storage::{Storage, StoredObject, frame},
    view::{Object, Selection, View, encode},
};

const TOO_OLD: &str = "The resourceVersion for the provided watch is too old.";

struct WatchOptions {
    revision: Option<Revision>,
    /// `None` when the client did not say.
    initial_events: Option<bool>,
    bookmarks: bool,
    timeout: Duration,
}

impl WatchOptions {
    /// With upstream's checks (`ValidateListOptions` for watches).
    fn parse(query: &Query) -> Result<Self, Status> {
        let matching = query.text("resourceVersionMatch");
        let initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let mut errors = Vec::new();
        let mut forbidden = |why: &str| errors.push(FieldError::forbidden("resourceVersionMatch", why));
        if initial_events.is_some() && matching != "NotOlderThan" {
            forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if !matching.is_empty() && initial_events.is_none() {
            forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if !matching.is_empty() && !query.text("continue").is_empty() {
            forbidden("resourceVersionMatch is forbidden when continue is provided");
        }
        if !matching.is_empty() && matching != "NotOlderThan" {
            errors.push(FieldError::not_supported("resourceVersionMatch", matching, &["NotOlderThan"]));
        }
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", errors));
        }
        let timeout = match query.number("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds as u64),
            _ => limits::WATCH_MIN.mul_f64(1.0 + rand::rng().random::<f64>()),
        };
        Ok(Self { revision: revision(query)?, initial_events, bookmarks: query.flag("allowWatchBookmarks"), timeout })
    }
}

/// One open watch.
struct Watcher {
    view: View,
    storage: Arc<Storage>,
    selection: Selection,
    target: As,
    changes: CacheWatch<StoredObject>,
    /// Objects to be sent as ADDED first.
    initial: std::vec::IntoIter<Arc<StoredObject>>,
    /// The revision of a bookmark that closes the initial events.
    closing: Option<Revision>,
    /// Changes up to here are not wanted.
    after: Revision,
    bookmarks: Option<Instant>,
    told: Revision,
    ends: Instant,
    last_bookmark_due: bool,
    columns_sent: bool,
    shutdown: CancellationToken,
    over: bool,
    open: Open,
}

/// Counts an open watch for as long as it lives.
struct Open {
    metrics: Arc<Metrics>,
    group: String,
    resource: String,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.watch(&self.group, &self.resource, -1);
    }
}

impl Call<'_> {
    /// WATCH of a collection (or of one object, by name).
    pub(crate) async fn watch(&self) -> Result<Response<Body>, Status> {
        let options = WatchOptions::parse(self.query)?;
        let mut selection = Selection::parse(&self.view.resource, self.query)?;
        if !self.info.is_collection() {
            // The old form `/watch/<resource>/<name>`.
            let only = format!("metadata.name={}", self.info.name);
            selection.fields = sluice_api::selector::Fields::parse(&self.view.resource, &only)?;
        }
        let wanted = options.revision.unwrap_or(0);
        let initial_events = options.initial_events.unwrap_or(wanted == 0);
        self.catch_up(match options.revision {
            None => At::Newest,
            Some(0) => At::Any,
            // A revision of the future is waited for by a list; a watch just starts there.
            Some(n) if initial_events => At::NotOlderThan(n),
            Some(_) => At::Any,
        })
        .await?;
        let storage = &self.core.storage;
        let snapshot = storage.snapshot(self.view.prefix(), self.namespace());
        let from = if initial_events || wanted == 0 { snapshot.revision } else { wanted.min(snapshot.revision) };
        let changes = match self.changes(&selection, from) {
            Ok(changes) => changes,
            // Past authorization, upstream reports an expired start within the stream.
            Err(status) if status.code == 410 => {
                let error = frame("ERROR", &encode(&status.to_json()));
                return Ok(streamed(stream::iter([Ok(Frame::data(error))])));
            }
            Err(status) => return Err(status),
        };
        let mut initial: Vec<Arc<StoredObject>> = if initial_events {
            snapshot
                .iter()
                .map(|(_, object)| object)
                .filter(|object| selection.matches(&self.view, object))
                .cloned()
                .collect()
        } else {
            Vec::new()
        };
        initial = conversion::served(storage, &self.view, initial).await?;
        let resource = &self.view.resource;
        self.core.metrics.watch(&resource.group, &resource.plural, 1);
        let watcher = Watcher {
            view: self.view.clone(),
            storage: Arc::clone(storage),
            selection,
            target: self.form.target,
            changes,
            initial: initial.into_iter(),
            closing: (options.initial_events == Some(true) && options.bookmarks).then_some(snapshot.revision),
            after: from.max(wanted),
            bookmarks: options.bookmarks.then(|| Instant::now() + limits::BOOKMARK_EVERY),
            told: from.max(wanted),
            ends: Instant::now() + options.timeout,
            last_bookmark_due: options.timeout > limits::BOOKMARK_BEFORE_END * 2,
            columns_sent: false,
            shutdown: self.core.shutdown.clone(),
            over: false,
            open: Open {
                metrics: Arc::clone(&self.core.metrics),
                group: resource.group.to_string(),
                resource: resource.plural.to_string(),
            },
        };
        Ok(streamed(stream::unfold(watcher, |mut watcher| async move {
            let bytes = watcher.next().await?;
            let metrics = &watcher.open.metrics;
            metrics.watch_events.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Some((Ok(Frame::data(bytes)), watcher))
        })))
    }
}

impl Call<'_> {
    /// The changes that concern a selection: those of objects that match or did so before.
    fn changes(&self, selection: &Selection, from: Revision) -> Result<CacheWatch<StoredObject>, Status> {
        let (storage, prefix, namespace) = (&self.core.storage, self.view.prefix(), self.namespace());
        if selection.is_empty() {
            return storage.watch(prefix, namespace, from);
        }
        let tag = crate::fields::tag(&selection.fields, &self.view.stored).map(str::to_owned);
        let (selection, view) = (selection.clone(), self.view.clone());
        let concerns = move |object: &StoredObject, previous: Option<&StoredObject>| {
            selection.matches(&view, object) || previous.is_some_and(|p| selection.matches(&view, p))
        };
        storage.watch_where(prefix, namespace, from, tag.as_deref(), Box::new(concerns))
    }
}

fn streamed(frames: impl futures::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static) -> Response<Body> {
    respond::typed(200, "application/json", StreamBody::new(frames).boxed_unsync())
}

impl Watcher {
    /// The next frame; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if let Some(object) = self.initial.next() {
            return Some(self.event("ADDED", &object));
        }
        if let Some(revision) = self.closing.take() {
            self.told = revision;
            return Some(self.bookmark(revision, true));
        }
        loop {
            let bookmark_at = self.bookmark_at();
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                item = self.changes.next() => match item {
                    CacheItem::Change { revision, kind, object, previous, .. } => {
                        if revision <= self.after {
                            continue;
                        }
                        if let Some((kind, object)) = self.change(revision, kind, &object, previous.as_deref()) {
                            self.told = revision;
                            return Some(self.converted(kind, object).await);
                        }
                    }
                    CacheItem::Progress(_) => {}
                    CacheItem::Lagged => {
                        self.over = true;
                        let status = Status::gone(TOO_OLD);
                        return Some(frame("ERROR", &encode(&status.to_json())));
                    }
                },
                () = sleep_until(self.ends) => return None,
                () = sleep_until(bookmark_at.unwrap_or(self.ends)), if bookmark_at.is_some() => {
                    let now = Instant::now();
                    self.last_bookmark_due &= now + limits::BOOKMARK_BEFORE_END < self.ends;
                    self.bookmarks = Some(now + limits::BOOKMARK_EVERY);
                    // Nothing to say while changes wait: they carry newer revisions themselves.
                    if let Some(revision) = self.changes.progress().filter(|r| *r > self.told) {
                        self.told = revision;
                        return Some(self.bookmark(revision, false));
                    }
                }
            }
        }
    }

    /// When the next bookmark is due: the regular one, or the one before the end.
    fn bookmark_at(&self) -> Option<Instant> {
        let regular = self.bookmarks?;
        let last = self.ends - limits::BOOKMARK_BEFORE_END;
        Some(if self.last_bookmark_due { regular.min(last) } else { regular })
    }

    /// What a change is to this watcher: an object may come into its selection or leave it.
    fn change(
        &self,
        revision: Revision,
        kind: Kind,
        object: &Arc<StoredObject>,
        previous: Option<&StoredObject>,
    ) -> Option<(&'static str, Arc<StoredObject>)> {
        let matches = |o: &StoredObject| self.selection.matches(&self.view, o);
        let deleted = kind == Kind::Deleted;
        let now = !deleted && matches(object);
        let before = match previous {
            Some(previous) => matches(previous),
            None => deleted && matches(object),
        };
        match (now, before) {
            (true, false) => Some(("ADDED", Arc::clone(object))),
            (true, true) => Some(("MODIFIED", Arc::clone(object))),
            (false, true) if deleted => Some(("DELETED", Arc::clone(object))),
            // Left the selection: its last matching state, at the revision of the change.
            (false, true) => {
                let last = previous?.at_revision(revision)?;
                Some(("DELETED", Arc::new(last)))
            }
            (false, false) => None,
        }
    }

    /// An event about an object in the served version; a failed conversion ends the watch.
    async fn converted(&mut self, kind: &str, object: Arc<StoredObject>) -> Bytes {
        match conversion::one(&self.storage, &self.view, object).await {
            Ok(object) => self.event(kind, &object),
            Err(status) => {
                self.over = true;
                frame("ERROR", &encode(&status.to_json()))
            }
        }
    }

    fn event(&mut self, kind: &str, object: &Arc<StoredObject>) -> Bytes {
        match self.target {
            As::Object if self.view.shares(object) => {
                let natural = if object.created { "ADDED" } else { "MODIFIED" };
                if kind == natural { object.frame.clone() } else { frame(kind, &object.bytes) }
            }
            As::Object | As::Metadata => {
                let object = Object::Stored(Arc::clone(object));
                frame(kind, &self.view.render(&object, self.target))
            }
            As::Table(include) => {
                let rows = vec![self.view.row(self.view.value(object), include)];
                let metadata = json!({"resourceVersion": object.revision.to_string()});
                self.table(kind, metadata, rows)
            }
        }
    }

    fn table(&mut self, kind: &str, metadata: Value, rows: Vec<Value>) -> Bytes {
        let columns = !std::mem::replace(&mut self.columns_sent, true);
        frame(kind, &encode(&self.view.table(metadata, rows, columns)))
    }

    fn bookmark(&mut self, revision: Revision, initial_events_end: bool) -> Bytes {
        let mut metadata = json!({
            "resourceVersion": revision.to_string(),
            "creationTimestamp": null,
        });
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.target {
            As::Table(_) => return self.table("BOOKMARK", metadata, Vec::new()),
            As::Metadata => ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into()),
            As::Object => (self.view.resource.kind.clone(), self.view.resource.api_version()),
        };
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        frame("BOOKMARK", &encode(&object))
    }
}
