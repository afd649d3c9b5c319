//! Feeds the cache: loads the prefix, then follows the engine's watch, and starts over when the
//! engine no longer has the history in between.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures::StreamExt;

use super::{
    Decode, Inner,
    state::{State, Update},
};
use crate::{
    DynEngine, Error, Event, EventKind, Kv, Range, Revision, Watch, WatchItem, backoff::Backoff, limits, prefix_end,
};

/// Reads everything under the prefix at one revision.
pub(super) async fn load<D: Decode>(inner: &Inner<D>, engine: &DynEngine) -> Result<(), Error> {
    loop {
        match load_once(inner, engine).await {
            Err(Error::Compacted { .. }) => continue,
            other => return other,
        }
    }
}

async fn load_once<D: Decode>(inner: &Inner<D>, engine: &DynEngine) -> Result<(), Error> {
    let end = prefix_end(inner.prefix.as_bytes());
    let mut range = Range {
        key: Bytes::copy_from_slice(inner.prefix.as_bytes()),
        end,
        limit: limits::LOAD_PAGE,
        ..Range::default()
    };
    let mut objects = Vec::new();
    loop {
        let page = engine.range(range.clone()).await?;
        if range.revision == 0 {
            range.revision = page.revision;
        }
        for kv in &page.kvs {
            if let (Some(key), Some(object)) = (text(&kv.key), inner.decode.decode(kv)) {
                objects.push((Arc::from(key), Arc::new(object)));
            }
        }
        match page.kvs.last() {
            Some(last) if page.more => range.key = successor(&last.key),
            _ => break,
        }
    }
    // The old state is freed after the lock.
    let fresh = State::new(&inner.prefix, &inner.limits, D::tag).loaded(range.revision, objects);
    let _old = inner.state.write().replace(fresh);
    inner.applied.send_replace(range.revision);
    Ok(())
}

/// Follows the engine for ever.
pub(super) async fn follow<D: Decode>(inner: Arc<Inner<D>>, engine: DynEngine) {
    let mut backoff = Backoff::default();
    loop {
        let error = match follow_once(&inner, &engine, &mut backoff).await {
            Err(Error::Compacted { requested, oldest }) => {
                tracing::warn!(requested, oldest, "the watch cache fell behind, loading again");
                match load(&inner, &engine).await {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            }
            Err(error) => error,
            Ok(()) => Error::Unavailable("the watch ended".to_owned()),
        };
        tracing::warn!(%error, "the watch cache lost its watch, trying again");
        backoff.wait().await;
    }
}

async fn follow_once<D: Decode>(inner: &Inner<D>, engine: &DynEngine, backoff: &mut Backoff) -> Result<(), Error> {
    let start = *inner.applied.borrow() + 1;
    let mut stream = engine
        .watch(Watch {
            key: Bytes::copy_from_slice(inner.prefix.as_bytes()),
            end: prefix_end(inner.prefix.as_bytes()),
            start,
        })
        .await?;
    while let Some(item) = stream.next().await {
        let (revision, events) = match item? {
            WatchItem::Events { revision, events } => (revision, events),
            WatchItem::Progress(revision) => (revision, Vec::new()),
        };
        backoff.reset();
        let updates = events.into_iter().filter_map(|event| decode(inner, revision, event)).collect();
        inner.state.write().apply(revision, updates, Instant::now());
        inner.applied.send_if_modified(|applied| {
            let newer = revision > *applied;
            *applied = revision.max(*applied);
            newer
        });
    }
    Ok(())
}

fn decode<D: Decode>(inner: &Inner<D>, revision: Revision, event: Event) -> Option<Update<D::Object>> {
    let key = Arc::from(text(&event.kv.key)?);
    let deleted = matches!(event.kind, EventKind::Delete);
    let kv = if deleted {
        // The engine may have lost the value to a compaction: the cache then reuses its object.
        event.previous.map(|previous| Kv { mod_revision: revision, ..previous })
    } else {
        Some(event.kv)
    };
    Some(Update {
        key,
        bytes: kv.as_ref().map_or(0, |kv| kv.value.len()),
        object: kv.and_then(|kv| inner.decode.decode(&kv)).map(Arc::new),
        deleted,
    })
}

fn text(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}
