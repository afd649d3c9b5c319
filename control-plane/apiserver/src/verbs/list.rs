//! GET of one object and LIST of a collection: resourceVersion semantics, selectors and consistent
//! paging, answered from the cache and, for older revisions, from the engine.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use sluice_api::status::Status;
use sluice_store::{Error, Revision, cache::Snapshot};

use super::{
    Call,
    paging::{At, ListOptions, Token, revision},
};
use crate::{
    context::{Body, BoxError, full},
    conversion, limits,
    negotiate::As,
    respond,
    storage::{StoredObject, collection, failed, key},
    view::{Object, Selection, View, encode, partial},
};

/// What a list found.
pub(crate) struct Listed {
    pub(crate) revision: Revision,
    pub(crate) items: Vec<Arc<StoredObject>>,
    next: Option<Token>,
    remaining: Option<i64>,
}

impl Call<'_> {
    /// GET of one object.
    pub(crate) async fn get(&self) -> Result<Response<Body>, Status> {
        let object = self.read(self.name(), revision(self.query)?).await?;
        let bytes = self.view.render(&Object::Stored(object), self.form.target);
        Ok(respond::object(200, bytes, self.form))
    }

    /// One object in the state that `revision` asks for (`None`: the newest).
    pub(crate) async fn read(&self, name: &str, revision: Option<Revision>) -> Result<Arc<StoredObject>, Status> {
        self.catch_up(match revision {
            None => At::Newest,
            Some(0) => At::Any,
            Some(n) => At::NotOlderThan(n),
        })
        .await?;
        let found = self.current(name).ok_or_else(|| Status::not_found(&self.view.resource, name))?;
        self.served(found).await
    }

    /// Waits until the cache shows the state asked for.
    pub(super) async fn catch_up(&self, at: At) -> Result<(), Status> {
        match at {
            At::Newest => self.core.storage.fresh().await.map(drop),
            At::Any => Ok(()),
            At::NotOlderThan(n) | At::Exactly(n) => self.core.storage.wait_for(n).await,
        }
    }

    /// LIST.
    pub(crate) async fn list(&self) -> Result<Response<Body>, Status> {
        let selection = Selection::parse(&self.view.resource, self.query)?;
        let options = ListOptions::parse(self.query)?;
        let mut listed = self.find(&selection, &options).await?;
        listed.items = conversion::served(&self.core.storage, &self.view, listed.items).await?;
        Ok(self.list_response(listed))
    }

    /// The objects that a list with these options shows.
    pub(crate) async fn find(&self, selection: &Selection, options: &ListOptions) -> Result<Listed, Status> {
        let storage = &self.core.storage;
        let prefix = collection(self.view.prefix(), self.namespace());
        match &options.from {
            Some(token) if token.revision > 0 => {
                return self.find_at(&prefix, token, selection, options.limit).await.map_err(|error| match error {
                    Error::Compacted { .. } => {
                        let next = Token { revision: -1, start: token.start.clone() };
                        Status::continue_expired(Some(next.encode()))
                    }
                    other => failed(other),
                });
            }
            _ => {}
        }
        self.catch_up(options.at).await?;
        let snapshot = storage.snapshot(self.view.prefix(), self.namespace());
        if let At::Exactly(revision) = options.at
            && snapshot.revision != revision
        {
            let token = Token { revision, start: String::new() };
            return self.find_at(&prefix, &token, selection, options.limit).await.map_err(failed);
        }
        // A single name in a known place needs no walk.
        if let (Some(name), true) =
            (selection.fields.required("metadata.name"), !self.view.resource.namespaced || !self.namespace().is_empty())
        {
            let object = snapshot.get(&key(self.view.prefix(), self.namespace(), name));
            let items = object.filter(|o| selection.matches(&self.view, o)).cloned().into_iter().collect();
            return Ok(Listed { revision: snapshot.revision, items, next: None, remaining: None });
        }
        let start = options.from.as_ref().map_or("", |token| &token.start);
        Ok(self.walk(&snapshot, &prefix, start, selection, options.limit))
    }

    /// The objects of one state from `start` on, which is a key without the prefix. A limit of 0 reads to the end.
    fn walk(
        &self,
        snapshot: &Snapshot<StoredObject>,
        prefix: &str,
        start: &str,
        selection: &Selection,
        limit: i64,
    ) -> Listed {
        let start = if start.is_empty() { String::new() } else { format!("{prefix}{start}") };
        let mut found = Listed { revision: snapshot.revision, items: Vec::new(), next: None, remaining: None };
        let matching = snapshot.iter_from(&start).filter(|(_, object)| selection.matches(&self.view, object));
        let mut last: Option<&Arc<str>> = None;
        for (key, object) in matching {
            if limit > 0 && found.items.len() as i64 == limit {
                found.next = last
                    .map(|last| Token { revision: snapshot.revision, start: format!("{}\0", &last[prefix.len()..]) });
                break;
            }
            last = Some(key);
            found.items.push(Arc::clone(object));
        }
        if found.next.is_some() && selection.is_empty() {
            found.remaining = Some(snapshot.len_from(&start) as i64 - limit);
        }
        found
    }

    /// A page of an older revision: from the cache while that can tell, else from the engine. A limit of 0 reads to the end.
    async fn find_at(&self, prefix: &str, token: &Token, selection: &Selection, limit: i64) -> Result<Listed, Error> {
        let state = self.core.storage.snapshot_at(self.view.prefix(), self.namespace(), token.revision).await?;
        if let Some(state) = state {
            return Ok(self.walk(&state, prefix, &token.start, selection, limit));
        }
        let mut found = Listed { revision: token.revision, items: Vec::new(), next: None, remaining: None };
        let mut start = format!("{prefix}{}", token.start);
        loop {
            let wanted = match limit {
                0 => limits::PAGE_READ,
                limit => (limit - found.items.len() as i64).clamp(1, limits::PAGE_READ),
            };
            let page = self.core.storage.page(prefix, start, token.revision, wanted).await?;
            let Some((last, _)) = page.items.last() else {
                return Ok(found);
            };
            start = format!("{last}\0");
            let read = page.items.len() as i64;
            found.items.extend(
                page.items.into_iter().map(|(_, object)| object).filter(|object| selection.matches(&self.view, object)),
            );
            if !page.more {
                return Ok(found);
            }
            if limit > 0 && found.items.len() as i64 >= limit {
                found.next = Some(Token { revision: token.revision, start: start[prefix.len()..].to_owned() });
                found.remaining = selection.is_empty().then_some(page.count - read);
                return Ok(found);
            }
        }
    }

    /// A found collection in the form asked for.
    pub(crate) fn list_response(&self, listed: Listed) -> Response<Body> {
        let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
        if let Some(next) = &listed.next {
            metadata["continue"] = next.encode().into();
        }
        if let Some(remaining) = listed.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let target = self.form.target;
        let resource = &self.view.resource;
        let head = match target {
            As::Object => {
                let version = resource.api_version();
                list_head(&resource.list_kind, &version, &metadata, "items")
            }
            As::Metadata => list_head("PartialObjectMetadataList", "meta.k8s.io/v1", &metadata, "items"),
            As::Table(_) => {
                let table = encode(&self.view.table(metadata, Vec::new(), true));
                // The rows are the last field: "rows":[]} is reopened to be filled piece by piece.
                table[..table.len() - 2].to_vec()
            }
        };
        let view = self.view.clone();
        let pieces = Pieces {
            head: Some(head),
            items: listed.items.into_iter(),
            first: true,
            done: false,
            write: Box::new(move |object, out| write_item(&view, object, target, out)),
        };
        if self.form.yaml || self.form.pretty {
            let all: Vec<u8> = pieces.flatten().collect();
            return respond::object(200, all.into(), self.form);
        }
        respond::typed(200, "application/json", pieces.body())
    }
}

fn list_head(kind: &str, version: &str, metadata: &Value, items: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"{items}\":[").into_bytes()
}

/// Appends one item.
fn write_item(view: &View, object: &StoredObject, target: As, out: &mut Vec<u8>) {
    match target {
        As::Object => out.extend_from_slice(&view.bytes(object)),
        As::Metadata => out.extend_from_slice(&partial(object.metadata_json())),
        As::Table(include) => {
            out.extend_from_slice(&encode(&view.row(view.value(object), include)));
        }
    }
}

type WriteItem = Box<dyn Fn(&StoredObject, &mut Vec<u8>) + Send>;

/// A list's JSON in pieces of about [`limits::LIST_CHUNK`], made as they are sent.
struct Pieces {
    head: Option<Vec<u8>>,
    items: std::vec::IntoIter<Arc<StoredObject>>,
    first: bool,
    done: bool,
    write: WriteItem,
}

impl Pieces {
    /// Short lists get a Content-Length; longer ones are streamed.
    fn body(mut self) -> Body {
        let first = self.next().unwrap_or_default();
        if self.done {
            return full(first);
        }
        let frames = std::iter::once(first).chain(self).map(|piece| Ok::<_, BoxError>(Frame::data(Bytes::from(piece))));
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }
}

impl Iterator for Pieces {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.done {
            return None;
        }
        let mut out = self.head.take().unwrap_or_default();
        while out.len() < limits::LIST_CHUNK {
            let Some(object) = self.items.next() else {
                out.extend_from_slice(b"]}");
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.push(b',');
            }
            (self.write)(&object, &mut out);
        }
        Some(out)
    }
}
