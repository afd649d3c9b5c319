//! A watch on etcd that outlives its connection: it opens again after the last revision delivered.
//! etcd never splits a revision between two messages (fragments are not asked for).

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use etcd_client::{EventType, WatchOptions, WatchResponse};

use super::{Seen, convert, members::Members};
use crate::{Error, Event, EventKind, Revision, Watch, WatchItem, WatchStream, backoff::Backoff, limits};

struct Watcher {
    members: Members,
    seen: Arc<Seen>,
    key: Bytes,
    end: Bytes,
    /// The first revision still to deliver; 0 until etcd has said where "now" is.
    next: Revision,
    stream: Option<etcd_client::WatchStream>,
    ready: VecDeque<WatchItem>,
    backoff: Backoff,
    ended: bool,
}

/// Opens the watch, so that whatever is written after this is delivered.
pub(super) async fn open(members: Members, seen: Arc<Seen>, watch: Watch) -> Result<WatchStream, Error> {
    let mut watcher = Watcher {
        members,
        seen,
        next: watch.start,
        key: watch.key,
        end: watch.end,
        stream: None,
        ready: VecDeque::new(),
        backoff: Backoff::default(),
        ended: false,
    };
    watcher.connect().await?;
    Ok(Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
        let item = watcher.item().await?;
        watcher.ended |= item.is_err();
        Some((item, watcher))
    })))
}

impl Watcher {
    async fn item(&mut self) -> Option<Result<WatchItem, Error>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            let lost = match &mut self.stream {
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(e @ Error::Unavailable(_)) => e,
                    Err(e) => return Some(Err(e)),
                },
                Some(stream) => match stream.message().await {
                    Ok(Some(message)) => match self.take(message) {
                        Ok(()) => continue,
                        Err(e @ Error::Unavailable(_)) => e,
                        Err(e) => return Some(Err(e)),
                    },
                    Ok(None) => Error::Unavailable("etcd ended the watch".to_owned()),
                    Err(e) => convert::error(e, self.next, &self.seen),
                },
            };
            tracing::debug!(error = %lost, next = self.next, "the watch on etcd was cut, opening it again");
            self.stream = None;
            self.backoff.wait().await;
        }
    }

    /// Opens the watch at `next` and waits until etcd has taken it.
    async fn connect(&mut self) -> Result<(), Error> {
        let mut options = WatchOptions::new().with_start_revision(self.next).with_prev_key();
        if !self.end.is_empty() {
            options = options.with_range(&self.end[..]);
        }
        let (turn, client) = self.members.current();
        let mut client = client.watch_client().max_decoding_message_size(limits::ETCD_MESSAGE_BYTES);
        let opened = tokio::time::timeout(limits::ETCD_FIRST_READ, async {
            let mut stream = client.watch(&self.key[..], Some(options)).await?;
            let created = stream.message().await?;
            Ok((stream, created))
        });
        let result = match opened.await {
            Ok(Ok((stream, Some(created)))) => {
                self.stream = Some(stream);
                self.take(created)
            }
            Ok(Ok((_, None))) => Err(Error::Unavailable("etcd refused the watch".to_owned())),
            Ok(Err(e)) => Err(convert::error(e, self.next, &self.seen)),
            Err(_) => Err(super::unanswered(limits::ETCD_FIRST_READ)),
        };
        if matches!(result, Err(Error::Unavailable(_))) {
            self.members.pass(turn);
        }
        result
    }

    fn take(&mut self, message: WatchResponse) -> Result<(), Error> {
        if message.compact_revision() > 0 {
            self.seen.compacted(message.compact_revision());
            return Err(Error::Compacted { requested: self.next, oldest: message.compact_revision() });
        }
        if message.canceled() {
            return Err(Error::Unavailable(format!("etcd cancelled the watch: {}", message.cancel_reason())));
        }
        self.backoff.reset();
        if message.created() {
            if self.next == 0 {
                self.next = convert::revision(message.header())? + 1;
            }
            return Ok(());
        }
        for event in message.events() {
            let Some(event) = convert_event(event) else {
                continue;
            };
            let revision = event.kv.mod_revision;
            self.seen.revision(revision);
            self.next = revision + 1;
            match self.ready.back_mut() {
                Some(WatchItem::Events { revision: r, events }) if *r == revision => {
                    events.push(event);
                }
                _ => self.ready.push_back(WatchItem::Events { revision, events: vec![event] }),
            }
        }
        Ok(())
    }
}

fn convert_event(event: &etcd_client::Event) -> Option<Event> {
    Some(Event {
        kind: match event.event_type() {
            EventType::Put => EventKind::Put,
            EventType::Delete => EventKind::Delete,
        },
        kv: convert::kv(event.kv()?.clone()),
        previous: event.prev_kv().cloned().map(convert::kv),
    })
}
