//! Between the store's types and etcd's. Pure.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, GetOptions, GetResponse, KeyValue, PutOptions, ResponseHeader,
    TxnOp, TxnOpResponse, TxnResponse,
};

use super::Seen;
use crate::{Compare, Error, Kv, Op, OpResult, Range, RangeResult, Revision, Txn, TxnResult};

pub(super) fn get_options(range: &Range) -> GetOptions {
    let mut options = GetOptions::new().with_limit(range.limit).with_revision(range.revision);
    if !range.end.is_empty() {
        options = options.with_range(&range.end[..]);
    }
    if range.count_only {
        options = options.with_count_only();
    }
    options
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> Result<Revision, Error> {
    match header {
        Some(header) => Ok(header.revision()),
        None => Err(Error::Corrupt("etcd's answer has no header".to_owned())),
    }
}

pub(super) fn range_result(answer: &mut GetResponse) -> Result<RangeResult, Error> {
    Ok(RangeResult {
        revision: revision(answer.header())?,
        kvs: answer.take_kvs().into_iter().map(kv).collect(),
        more: answer.more(),
        count: answer.count(),
    })
}

pub(super) fn kv(kv: KeyValue) -> Kv {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (version, lease) = (kv.version(), kv.lease());
    let (key, value) = kv.into_key_value();
    Kv { key: Bytes::from(key), value: Bytes::from(value), create_revision, mod_revision, version, lease }
}

pub(super) fn txn(txn: Txn) -> etcd_client::Txn {
    let compare: Vec<_> = txn.compare.into_iter().map(compare).collect();
    let success: Vec<_> = txn.success.into_iter().map(op).collect();
    let failure: Vec<_> = txn.failure.into_iter().map(op).collect();
    etcd_client::Txn::new().when(compare).and_then(success).or_else(failure)
}

fn compare(compare: Compare) -> EtcdCompare {
    match compare {
        Compare::ModRevision { key, equals } => EtcdCompare::mod_revision(key, CompareOp::Equal, equals),
        Compare::Version { key, equals } => EtcdCompare::version(key, CompareOp::Equal, equals),
        Compare::Value { key, equals } => EtcdCompare::value(key, CompareOp::Equal, equals),
    }
}

fn op(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = (lease != 0).then(|| PutOptions::new().with_lease(lease));
            TxnOp::put(key, value, options)
        }
        Op::Delete { key, end } => {
            let options = (!end.is_empty()).then(|| DeleteOptions::new().with_range(end));
            TxnOp::delete(key, options)
        }
        Op::Get(range) => {
            let options = get_options(&range);
            TxnOp::get(range.key, Some(options))
        }
    }
}

pub(super) fn txn_result(answer: &TxnResponse) -> Result<TxnResult, Error> {
    let mut results = Vec::new();
    for response in answer.op_responses() {
        results.push(match response {
            TxnOpResponse::Put(_) => OpResult::Put,
            TxnOpResponse::Delete(delete) => OpResult::Delete { deleted: delete.deleted() },
            TxnOpResponse::Get(mut get) => OpResult::Get(RangeResult {
                revision: match get.header() {
                    Some(header) => header.revision(),
                    None => revision(answer.header())?,
                },
                kvs: get.take_kvs().into_iter().map(kv).collect(),
                more: get.more(),
                count: get.count(),
            }),
            TxnOpResponse::Txn(_) => {
                return Err(Error::Corrupt("etcd answered a nested txn".to_owned()));
            }
        });
    }
    Ok(TxnResult { succeeded: answer.succeeded(), revision: revision(answer.header())?, results })
}

/// etcd's errors as the caller can act on them. Their text is part of etcd's API (`rpctypes`);
/// `requested` is the revision the request was about.
pub(super) fn error(e: etcd_client::Error, requested: Revision, seen: &Seen) -> Error {
    let etcd_client::Error::GRpcStatus(status) = &e else {
        return match e {
            etcd_client::Error::LeaseKeepAliveError(why) if why == "lease not found" => Error::LeaseNotFound(0),
            e => Error::Unavailable(e.to_string()),
        };
    };
    let text = status.message();
    let has = |part: &str| text.contains(part);
    if has("required revision has been compacted") {
        let known = seen.compacted.load(Ordering::Relaxed);
        Error::Compacted { requested, oldest: known.max(requested + 1) }
    } else if has("required revision is a future revision") {
        Error::Future { requested, newest: seen.revision.load(Ordering::Relaxed) }
    } else if has("requested lease not found") {
        Error::LeaseNotFound(0)
    } else if has("database space exceeded") {
        Error::NoSpace(format!("{text}: compact and defragment etcd or raise its quota"))
    } else if has("request is too large") || has("too many operations") || has("message length too large") {
        Error::TooLarge(text.to_owned())
    } else if has("duplicate key") || has("key is not provided") || has("too large lease TTL") {
        Error::Invalid(text.to_owned())
    } else {
        Error::Unavailable(text.to_owned())
    }
}

/// Whether nothing was done: no connection came about, or the member knows of no leader and looks at no request.
pub(super) fn undone(e: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = e else { return false };
    if status.message() == "etcdserver: no leader" {
        return true;
    }
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Fills in which lease was not found.
pub(super) fn lease_error(e: Error, lease: i64) -> Error {
    match e {
        Error::LeaseNotFound(_) => Error::LeaseNotFound(lease),
        e => e,
    }
}
