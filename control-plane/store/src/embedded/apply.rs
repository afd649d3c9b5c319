//! Applies requests inside one redb write transaction: the engine's semantics, without threads,
//! clocks or fsync. Every request is checked before its first write, so a refused one leaves nothing.

use bytes::Bytes;
use redb::{Durability, ReadableTable, Table, WriteTransaction};

use super::{error, tables};
use crate::{Compare, Error, Event, EventKind, Kv, Op, OpResult, Range, Revision, Txn, TxnResult, limits};

/// What revisions did, in order.
pub(super) type Revisions = Vec<(Revision, Vec<Event>)>;

/// The tables of a write transaction, and how far it has come.
pub(super) struct Batch<'t> {
    history: Table<'t, (&'static [u8], i64), &'static [u8]>,
    log: Table<'t, (i64, u32), &'static [u8]>,
    meta: Table<'t, &'static str, i64>,
    leases: Table<'t, i64, i64>,
    lease_keys: Table<'t, (i64, &'static [u8]), ()>,
    revision: Revision,
    compacted: Revision,
    /// Up to here a crash may lose lazy writes: their revisions are not used again.
    reserved: Revision,
    /// True once something was written that must be durable before it is acknowledged.
    eager: bool,
    /// What the revisions of this batch did, to be published once durable.
    pub(super) published: Revisions,
    /// True once anything was written, revision or not.
    pub(super) dirty: bool,
}

impl<'t> Batch<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, Error> {
        let meta = txn.open_table(tables::META).map_err(error)?;
        let counter = |name| -> Result<i64, Error> { Ok(meta.get(name).map_err(error)?.map_or(0, |v| v.value())) };
        Ok(Batch {
            revision: counter(tables::META_REVISION)?,
            compacted: counter(tables::META_COMPACTED)?,
            reserved: counter(tables::META_RESERVED)?,
            eager: false,
            history: txn.open_table(tables::HISTORY).map_err(error)?,
            log: txn.open_table(tables::LOG).map_err(error)?,
            leases: txn.open_table(tables::LEASES).map_err(error)?,
            lease_keys: txn.open_table(tables::LEASE_KEYS).map_err(error)?,
            meta,
            published: Vec::new(),
            dirty: false,
        })
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Skips the revisions that lazy writes may have used before a crash. True if there were any.
    pub(super) fn skip_reserved(&mut self) -> Result<bool, Error> {
        let skips = self.reserved > self.revision;
        if skips {
            self.revision = self.reserved;
            self.meta.insert(tables::META_REVISION, self.revision).map_err(error)?;
        }
        Ok(skips)
    }

    /// Gives back the revisions set apart for lazy writes, which all become durable with this batch;
    /// false if there are none. Lazy writes need more of them than they use, so where some are not
    /// durable there is something to give back: redb makes nothing durable by an empty transaction.
    pub(super) fn give_back_reserved(&mut self) -> Result<bool, Error> {
        let some = self.reserved > 0 && self.reserved != self.revision;
        if some {
            self.meta.insert(tables::META_RESERVED, self.revision).map_err(error)?;
            (self.dirty, self.eager) = (true, true);
        }
        Ok(some)
    }

    /// Writes the counters; to be called once before the commit. With what was published comes how
    /// durable the commit has to be.
    pub(super) fn finish(mut self) -> Result<(Revisions, Durability), Error> {
        let mut eager = self.eager;
        if !self.published.is_empty() {
            self.meta.insert(tables::META_REVISION, self.revision).map_err(error)?;
            if !eager && self.revision >= self.reserved {
                self.meta.insert(tables::META_RESERVED, self.revision + limits::LAZY_REVISIONS).map_err(error)?;
                eager = true;
            }
        }
        Ok((self.published, if eager { Durability::Immediate } else { Durability::None }))
    }

    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnResult, Error> {
        let mut succeeded = true;
        for compare in &txn.compare {
            succeeded &= self.holds(compare)?;
        }
        let ops = if succeeded { &txn.success } else { &txn.failure };
        for op in ops {
            match op {
                Op::Put { lease, .. } if *lease != 0 => self.require_lease(*lease)?,
                Op::Get(range) => self.check_revision(range.revision)?,
                _ => {}
            }
        }
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    self.put(revision, key, value, *lease, &mut events)?;
                    OpResult::Put
                }
                Op::Delete { key, end } => OpResult::Delete { deleted: self.delete(revision, key, end, &mut events)? },
                Op::Get(range) => {
                    let newest = if events.is_empty() { self.revision } else { revision };
                    let at = if range.revision > 0 { range.revision } else { newest };
                    OpResult::Get(tables::read_range(&self.history, range, at, newest)?)
                }
            });
        }
        self.eager |= !txn.lazy && !events.is_empty();
        self.publish(revision, events);
        Ok(TxnResult { succeeded, revision: self.revision, results })
    }

    pub(super) fn grant(&mut self, ttl: i64) -> Result<i64, Error> {
        let last = self.meta.get(tables::META_LAST_LEASE).map_err(error)?;
        let id = last.map_or(0, |v| v.value()) + 1;
        self.meta.insert(tables::META_LAST_LEASE, id).map_err(error)?;
        self.leases.insert(id, ttl).map_err(error)?;
        (self.dirty, self.eager) = (true, true);
        Ok(id)
    }

    /// Ends a lease and deletes its keys, in one revision.
    pub(super) fn revoke(&mut self, lease: i64) -> Result<(), Error> {
        self.require_lease(lease)?;
        let mut keys = Vec::new();
        let attached = self.lease_keys.range((lease, &[][..])..(lease + 1, &[][..])).map_err(error)?;
        for entry in attached {
            keys.push(Bytes::copy_from_slice(entry.map_err(error)?.0.value().1));
        }
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for key in keys {
            self.delete(revision, &key, &[], &mut events)?;
        }
        self.leases.remove(lease).map_err(error)?;
        (self.dirty, self.eager) = (true, true);
        self.publish(revision, events);
        Ok(())
    }

    /// Forbids reads before `revision`. The history goes later, by [`Batch::trim`].
    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::Future { requested: revision, newest: self.revision });
        }
        if revision <= self.compacted {
            return Err(Error::Compacted { requested: revision, oldest: self.compacted });
        }
        self.compacted = revision;
        self.meta.insert(tables::META_COMPACTED, revision).map_err(error)?;
        (self.dirty, self.eager) = (true, true);
        Ok(())
    }

    /// Removes up to `limit` log entries from before the compacted revision, and the versions they
    /// replaced. True when nothing is left to remove.
    pub(super) fn trim(&mut self, limit: usize) -> Result<bool, Error> {
        let mut entries = Vec::new();
        for entry in self.log.range(..(self.compacted, 0)).map_err(error)?.take(limit) {
            let (at, key) = entry.map_err(error)?;
            entries.push((at.value(), Bytes::copy_from_slice(key.value())));
        }
        for ((revision, place), key) in &entries {
            let tombstone = {
                let record = self.history.get((&key[..], *revision)).map_err(error)?;
                match &record {
                    Some(bytes) => tables::Record::decode(bytes.value())?.is_tombstone(),
                    None => false,
                }
            };
            let end = revision + i64::from(tombstone);
            self.history.retain_in::<(&[u8], i64), _>((&key[..], 0)..(&key[..], end), |_, _| false).map_err(error)?;
            self.log.remove((*revision, *place)).map_err(error)?;
        }
        self.dirty |= !entries.is_empty();
        Ok(entries.len() < limit)
    }

    pub(super) fn leases(&self) -> Result<Vec<(i64, i64)>, Error> {
        let mut leases = Vec::new();
        for entry in self.leases.iter().map_err(error)? {
            let (id, ttl) = entry.map_err(error)?;
            leases.push((id.value(), ttl.value()));
        }
        Ok(leases)
    }

    fn publish(&mut self, revision: Revision, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision = revision;
            self.dirty = true;
            self.published.push((revision, events));
        }
    }

    fn holds(&self, compare: &Compare) -> Result<bool, Error> {
        let versions = |key: &Bytes| tables::versions(&self.history, key, self.revision);
        Ok(match compare {
            Compare::ModRevision { key, equals } => versions(key)?.0 == *equals,
            Compare::Version { key, equals } => versions(key)?.1 == *equals,
            // A missing key fails every comparison of values, as in etcd.
            Compare::Value { key, equals } => {
                tables::get(&self.history, key, self.revision)?.is_some_and(|kv| kv.value == *equals)
            }
        })
    }

    pub(super) fn require_lease(&self, lease: i64) -> Result<(), Error> {
        match self.leases.get(lease).map_err(error)? {
            Some(_) => Ok(()),
            None => Err(Error::LeaseNotFound(lease)),
        }
    }

    pub(super) fn check_revision(&self, revision: Revision) -> Result<(), Error> {
        super::check_revision(revision, self.revision, self.compacted)
    }

    fn put(
        &mut self,
        revision: Revision,
        key: &Bytes,
        value: &Bytes,
        lease: i64,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let previous = tables::get(&self.history, key, revision)?;
        let kv = Kv {
            key: key.clone(),
            value: value.clone(),
            create_revision: previous.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
            version: previous.as_ref().map_or(0, |p| p.version) + 1,
            lease,
        };
        self.attach(key, previous.as_ref().map_or(0, |p| p.lease), lease)?;
        let record = tables::Record { create_revision: kv.create_revision, version: kv.version, lease, value };
        self.write(revision, events.len(), key, &record)?;
        events.push(Event { kind: EventKind::Put, kv, previous });
        Ok(())
    }

    fn delete(&mut self, revision: Revision, key: &Bytes, end: &[u8], events: &mut Vec<Event>) -> Result<i64, Error> {
        let range = Range { key: key.clone(), end: Bytes::copy_from_slice(end), ..Range::default() };
        let found = tables::read_range(&self.history, &range, revision, revision)?;
        for previous in found.kvs {
            self.attach(&previous.key, previous.lease, 0)?;
            let key = previous.key.clone();
            self.write(revision, events.len(), &key, &tables::Record::TOMBSTONE)?;
            events.push(tables::deletion(&key, revision, Some(previous)));
        }
        Ok(found.count)
    }

    fn write(
        &mut self,
        revision: Revision,
        place: usize,
        key: &[u8],
        record: &tables::Record<'_>,
    ) -> Result<(), Error> {
        self.history.insert((key, revision), &record.encode()[..]).map_err(error)?;
        self.log.insert((revision, place as u32), key).map_err(error)?;
        Ok(())
    }

    fn attach(&mut self, key: &[u8], old: i64, new: i64) -> Result<(), Error> {
        if old == new {
            return Ok(());
        }
        if old != 0 {
            self.lease_keys.remove((old, key)).map_err(error)?;
        }
        if new != 0 {
            self.lease_keys.insert((new, key), ()).map_err(error)?;
        }
        Ok(())
    }
}
