//! The last revisions, in memory, for watchers that keep up; others read the log on disk.

use std::{collections::VecDeque, sync::Arc};

use crate::{Event, Revision, limits};

pub(super) type Published = (Revision, Arc<[Event]>);

#[derive(Default)]
pub(super) struct Recent {
    revisions: VecDeque<Published>,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, revision: Revision, events: Vec<Event>) {
        self.bytes += size(&events);
        self.revisions.push_back((revision, events.into()));
        while self.revisions.len() > limits::RECENT_REVISIONS
            || (self.bytes > limits::RECENT_BYTES && self.revisions.len() > 1)
        {
            if let Some((_, events)) = self.revisions.pop_front() {
                self.bytes -= size(&events);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Recent::default();
    }

    /// Up to a bounded number of revisions from `start` on; `None` when they are no longer here.
    pub(super) fn since(&self, start: Revision) -> Option<Vec<Published>> {
        let first = self.revisions.front()?.0;
        let skip = usize::try_from(start - first).ok()?;
        let rest = self.revisions.iter().skip(skip);
        Some(rest.take(limits::REPLAY_REVISIONS).cloned().collect())
    }
}

fn size(events: &[Event]) -> usize {
    let bytes = |e: &Event| e.kv.value.len() + e.previous.as_ref().map_or(0, |p| p.value.len());
    events.iter().map(bytes).sum()
}
