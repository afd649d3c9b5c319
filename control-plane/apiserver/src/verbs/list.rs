//! GET of one object and LIST of a collection: resourceVersion semantics, selectors and consistent
//! paging, answered from the cache and, for older revisions, from the engine.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use sluice_api::status::{FieldError, Status};
use sluice_store::{Error, Revision};

use super::Call;
use crate::{
    context::{Body, BoxError, full},
    limits,
    negotiate::As,
    request::Query,
    respond,
    storage::{StoredObject, collection, failed, key},
    view::{Object, Selection, View, encode, partial},
};

/// Which state a reader wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Everything acknowledged so far.
    Newest,
    /// Whatever is at hand.
    Any,
    NotOlderThan(Revision),
    Exactly(Revision),
}

/// The options of LIST (and of deletecollection).
#[derive(Debug)]
pub(crate) struct ListOptions {
    pub(crate) at: At,
    pub(crate) limit: i64,
    from: Option<Token>,
}

/// A continue token: where the next page begins, relative to the collection, and at which
/// revision. -1 goes on at the newest one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    revision: Revision,
    start: String,
}

/// What a list found.
pub(crate) struct Listed {
    pub(crate) revision: Revision,
    pub(crate) items: Vec<Arc<StoredObject>>,
    next: Option<Token>,
    remaining: Option<i64>,
}

/// The revision of a `resourceVersion` parameter; `None` for unset.
pub(crate) fn revision(query: &Query) -> Result<Option<Revision>, Status> {
    match query.text("resourceVersion") {
        "" => Ok(None),
        text => match text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok()) {
            Some(revision) => Ok(Some(revision)),
            None => Err(Status::bad_request(format!(
                "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: invalid syntax",
                Value::from(text)
            ))),
        },
    }
}

impl ListOptions {
    /// With upstream's checks (`ValidateListOptions`).
    pub(crate) fn parse(query: &Query) -> Result<Self, Status> {
        let matching = query.text("resourceVersionMatch");
        let rv = query.text("resourceVersion");
        let mut errors = Vec::new();
        let forbidden = |why: &str| FieldError::forbidden("resourceVersionMatch", why);
        if !matching.is_empty() {
            if rv.is_empty() {
                errors.push(forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if !query.text("continue").is_empty() {
                errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                let known = ["Exact", "NotOlderThan", ""];
                errors.push(FieldError::not_supported("resourceVersionMatch", matching, &known));
            }
            if matching == "Exact" && rv == "0" {
                errors.push(forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
        if query.get("sendInitialEvents").is_some() {
            let why = "sendInitialEvents is forbidden for list";
            errors.push(FieldError::forbidden("sendInitialEvents", why));
        }
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", errors));
        }
        let limit = query.number("limit")?.unwrap_or(0).max(0);
        let revision = revision(query)?;
        let from = match query.text("continue") {
            "" => None,
            _ if revision.is_some_and(|r| r != 0) => {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            text => Some(Token::decode(text)?),
        };
        let at = match revision {
            None => At::Newest,
            Some(0) => At::Any,
            Some(n) if matching == "Exact" => At::Exactly(n),
            // Upstream's legacy reading of a limit together with a revision.
            Some(n) if matching.is_empty() && limit > 0 => At::Exactly(n),
            Some(n) => At::NotOlderThan(n),
        };
        Ok(Self { at, limit, from })
    }
}

impl Token {
    fn encode(&self) -> String {
        let text = json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start});
        BASE64_URL_SAFE_NO_PAD.encode(text.to_string())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let invalid = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let json = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| invalid(&e.to_string()))?;
        let value: Value = serde_json::from_slice(&json).map_err(|e| invalid(&e.to_string()))?;
        if value["v"] != "meta.k8s.io/v1" {
            let version = value["v"].as_str().unwrap_or_default();
            return Err(invalid(&format!("server does not recognize this encoded version {}", Value::from(version))));
        }
        let revision = value["rv"].as_i64().unwrap_or(0);
        if revision == 0 {
            return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        match value["start"].as_str() {
            Some(start) if !start.is_empty() && !start.starts_with('/') && !start.contains("..") => {
                Ok(Self { revision, start: start.to_owned() })
            }
            _ => Err(invalid("encoded start key (version meta.k8s.io/v1)")),
        }
    }
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
        self.core
            .storage
            .get(self.view.prefix(), self.namespace(), name)
            .ok_or_else(|| Status::not_found(&self.view.resource, name))
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
        let listed = self.find(&selection, &options).await?;
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
        let start = match &options.from {
            Some(token) => format!("{prefix}{}", token.start),
            None => String::new(),
        };
        let mut found = Listed { revision: snapshot.revision, items: Vec::new(), next: None, remaining: None };
        // A single name in a known place needs no walk.
        if let (Some(name), true) =
            (selection.fields.required("metadata.name"), !self.view.resource.namespaced || !self.namespace().is_empty())
        {
            let object = snapshot.get(&key(self.view.prefix(), self.namespace(), name));
            found.items.extend(object.filter(|o| selection.matches(&self.view, o)).cloned());
            return Ok(found);
        }
        let matching = snapshot.iter_from(&start).filter(|(_, object)| selection.matches(&self.view, object));
        let mut last: Option<&Arc<str>> = None;
        for (key, object) in matching {
            if options.limit > 0 && found.items.len() as i64 == options.limit {
                found.next = last
                    .map(|last| Token { revision: snapshot.revision, start: format!("{}\0", &last[prefix.len()..]) });
                break;
            }
            last = Some(key);
            found.items.push(Arc::clone(object));
        }
        if found.next.is_some() && selection.is_empty() && options.from.is_none() {
            found.remaining = Some(snapshot.len() as i64 - options.limit);
        }
        Ok(found)
    }

    /// A page of an older revision, from the engine. A limit of 0 reads to the end.
    async fn find_at(&self, prefix: &str, token: &Token, selection: &Selection, limit: i64) -> Result<Listed, Error> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_are_checked_as_upstream_does() {
        let check = |query: &str, code: u16, message: &str| {
            let status = ListOptions::parse(&Query::parse(query)).unwrap_err();
            assert_eq!((status.code, status.message.as_str()), (code, message), "{query}");
        };
        check(
            "resourceVersionMatch=Exact",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
        check(
            "resourceVersionMatch=Exact&resourceVersion=0",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        );
        check(
            "resourceVersion=abc",
            400,
            "resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax",
        );
        let token = Token { revision: 3, start: "a\0".into() }.encode();
        check(
            &format!("continue={token}&resourceVersion=5"),
            400,
            "specifying resource version is not allowed when using continue",
        );
    }

    #[test]
    fn resource_versions_mean_what_upstream_says() {
        let check = |query: &str, at: At| {
            assert_eq!(ListOptions::parse(&Query::parse(query)).unwrap().at, at, "{query}");
        };
        check("", At::Newest);
        check("resourceVersion=0", At::Any);
        check("resourceVersion=0&limit=5", At::Any);
        check("resourceVersion=7", At::NotOlderThan(7));
        check("resourceVersion=7&limit=5", At::Exactly(7));
        check("resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=5", At::NotOlderThan(7));
        check("resourceVersion=7&resourceVersionMatch=Exact", At::Exactly(7));
    }

    #[test]
    fn tokens_survive_the_wire() {
        let token = Token { revision: 12, start: "ns/pod\0".into() };
        assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        for bad in ["%%", "e30", "eyJ2IjoieCJ9"] {
            assert_eq!(Token::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
