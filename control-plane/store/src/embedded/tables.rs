//! What the embedded engine keeps on disk, and how it is read: pure functions over redb tables.
//!
//! `history` holds every version of every key since the last compaction, `log` the keys each
//! revision wrote, in order. The newest version of a key is the last one of its run in `history`.

use std::ops::Bound;

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use super::error;
use crate::{Error, Event, EventKind, Kv, Range, RangeResult, Revision};

/// Key and revision to [`Record`].
pub(super) const HISTORY: TableDefinition<(&[u8], i64), &[u8]> = TableDefinition::new("history");
/// Revision and place in it to the key written.
pub(super) const LOG: TableDefinition<(i64, u32), &[u8]> = TableDefinition::new("log");
/// Counters by name: the `META_` constants.
pub(super) const META: TableDefinition<&str, i64> = TableDefinition::new("meta");
/// Lease to its time to live in seconds.
pub(super) const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");
/// Lease and a key attached to it.
pub(super) const LEASE_KEYS: TableDefinition<(i64, &[u8]), ()> = TableDefinition::new("lease_keys");

pub(super) const META_FORMAT: &str = "format";
pub(super) const META_REVISION: &str = "revision";
/// Lazy writes may have used revisions up to this one without leaving a trace.
pub(super) const META_RESERVED: &str = "reserved";
pub(super) const META_COMPACTED: &str = "compacted";
pub(super) const META_LAST_LEASE: &str = "last_lease";
/// The layout this code reads and writes.
pub(super) const FORMAT: i64 = 1;
/// The revision of a store nothing was ever written to, as in etcd.
pub(super) const FIRST_REVISION: Revision = 1;

const HEADER: usize = 25;

/// One version of a key as stored; a tombstone has version 0.
pub(super) struct Record<'a> {
    pub(super) create_revision: Revision,
    pub(super) version: i64,
    pub(super) lease: i64,
    pub(super) value: &'a [u8],
}

impl Record<'_> {
    pub(super) const TOMBSTONE: Record<'static> = Record { create_revision: 0, version: 0, lease: 0, value: &[] };

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.value.len());
        bytes.push(FORMAT as u8);
        for field in [self.create_revision, self.version, self.lease] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(self.value);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Record<'_>, Error> {
        let (Some(header), Some(value)) = (bytes.get(..HEADER), bytes.get(HEADER..)) else {
            return Err(Error::Corrupt("a record is cut short".to_owned()));
        };
        let field = |n: usize| {
            let mut le = [0; 8];
            le.copy_from_slice(&header[1 + n * 8..9 + n * 8]);
            i64::from_le_bytes(le)
        };
        Ok(Record { create_revision: field(0), version: field(1), lease: field(2), value })
    }

    pub(super) fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    fn to_kv(&self, key: &[u8], revision: Revision) -> Kv {
        Kv {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(self.value),
            create_revision: self.create_revision,
            mod_revision: revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// `key` as of `revision`, unless it did not exist then.
pub(super) fn get(
    history: &impl ReadableTable<(&'static [u8], i64), &'static [u8]>,
    key: &[u8],
    revision: Revision,
) -> Result<Option<Kv>, Error> {
    let mut versions = history.range((key, 0)..=(key, revision)).map_err(error)?;
    let Some(newest) = versions.next_back() else {
        return Ok(None);
    };
    let (at, bytes) = newest.map_err(error)?;
    let record = Record::decode(bytes.value())?;
    Ok((!record.is_tombstone()).then(|| record.to_kv(key, at.value().1)))
}

/// The revision and version of `key` as of `revision`, both 0 unless it existed then. Copies nothing.
pub(super) fn versions(
    history: &impl ReadableTable<(&'static [u8], i64), &'static [u8]>,
    key: &[u8],
    revision: Revision,
) -> Result<(Revision, i64), Error> {
    let mut versions = history.range((key, 0)..=(key, revision)).map_err(error)?;
    let Some(newest) = versions.next_back() else {
        return Ok((0, 0));
    };
    let (at, bytes) = newest.map_err(error)?;
    let record = Record::decode(bytes.value())?;
    Ok(if record.is_tombstone() { (0, 0) } else { (at.value().1, record.version) })
}

/// The bounds of a request's `[key, end)` among the first parts of `history`'s keys.
pub(super) fn upper(end: &[u8]) -> Bound<(&[u8], i64)> {
    if end == b"\0" { Bound::Unbounded } else { Bound::Excluded((end, 0)) }
}

/// Reads `range` as of `revision` (already checked against the compaction); `newest` is the
/// store's revision, told in the answer.
pub(super) fn read_range(
    history: &impl ReadableTable<(&'static [u8], i64), &'static [u8]>,
    range: &Range,
    revision: Revision,
    newest: Revision,
) -> Result<RangeResult, Error> {
    let mut result = RangeResult { revision: newest, kvs: Vec::new(), more: false, count: 0 };
    let mut take = |kv: Option<Kv>, live: bool| {
        result.count += i64::from(live);
        match kv {
            Some(kv) if live && !range.count_only => {
                if range.limit > 0 && result.kvs.len() as i64 >= range.limit {
                    result.more = true;
                } else {
                    result.kvs.push(kv);
                }
            }
            _ => {}
        }
    };
    if range.end.is_empty() {
        let kv = get(history, &range.key, revision)?;
        let live = kv.is_some();
        take(kv, live);
        return Ok(result);
    }
    if !range_is_empty(&range.key, &range.end) {
        let bounds = (Bound::Included((&range.key[..], 0)), upper(&range.end));
        let mut iter = history.range::<(&[u8], i64)>(bounds).map_err(error)?;
        let mut current = None;
        loop {
            let next = iter.next().transpose().map_err(error)?;
            let ends_run = match (&current, &next) {
                (Some((key, _)), Some((next, _))) => {
                    let key: &redb::AccessGuard<'_, (&[u8], i64)> = key;
                    key.value().0 != next.value().0
                }
                _ => true,
            };
            if ends_run && let Some((key, bytes)) = current.take() {
                let bytes: redb::AccessGuard<'_, &[u8]> = bytes;
                let record = Record::decode(bytes.value())?;
                let live = !record.is_tombstone();
                let (key, at) = key.value();
                let wanted = live && !range.count_only;
                take(wanted.then(|| record.to_kv(key, at)), live);
            }
            match next {
                Some((key, bytes)) if key.value().1 <= revision => current = Some((key, bytes)),
                // A version from after the revision: what came before it still counts.
                Some(_) => {}
                None => break,
            }
        }
    }
    Ok(result)
}

/// The events of up to `limit` revisions from `start` on, by revision.
pub(super) fn read_log(
    log: &impl ReadableTable<(i64, u32), &'static [u8]>,
    history: &impl ReadableTable<(&'static [u8], i64), &'static [u8]>,
    start: Revision,
    limit: usize,
) -> Result<Vec<(Revision, Vec<Event>)>, Error> {
    let mut revisions: Vec<(Revision, Vec<Event>)> = Vec::new();
    for entry in log.range((start, 0)..).map_err(error)? {
        let (at, key) = entry.map_err(error)?;
        let revision = at.value().0;
        if revisions.last().is_none_or(|(last, _)| *last != revision) {
            if revisions.len() == limit {
                break;
            }
            revisions.push((revision, Vec::new()));
        }
        if let Some((_, events)) = revisions.last_mut() {
            events.push(event_at(history, key.value(), revision)?);
        }
    }
    Ok(revisions)
}

fn event_at(
    history: &impl ReadableTable<(&'static [u8], i64), &'static [u8]>,
    key: &[u8],
    revision: Revision,
) -> Result<Event, Error> {
    let previous = get(history, key, revision - 1)?;
    Ok(match get(history, key, revision)? {
        Some(kv) => Event { kind: EventKind::Put, kv, previous },
        None => deletion(key, revision, previous),
    })
}

pub(super) fn deletion(key: &[u8], revision: Revision, previous: Option<Kv>) -> Event {
    Event {
        kind: EventKind::Delete,
        kv: Kv {
            key: Bytes::copy_from_slice(key),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: revision,
            version: 0,
            lease: 0,
        },
        previous,
    }
}

pub(super) fn range_is_empty(start: &[u8], end: &[u8]) -> bool {
    !end.is_empty() && end != b"\0" && start >= end
}
