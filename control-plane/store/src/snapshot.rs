//! The whole store at one revision as a stream of bytes, and back into another store: backup, restore and moving from one
//! engine to the other. Works through [`Engine`] alone, beside whatever else goes on in it.
//!
//! A stream is the revision (8 bytes), then for each key a flag, two lengths (4 bytes each), key and value, and at last the
//! flag of the end, so that a cut is noticed. Numbers are little-endian.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{DynEngine, Error, Op, Range, Revision, Txn, limits, prefix_end};

/// Everything of a cluster is below it; an etcd may hold other things besides.
const PREFIX: &[u8] = b"/registry/";
/// Who serves the cluster at the moment is no part of what it holds.
const SERVERS: &[u8] = b"/registry/masterleases/";
/// Written again and again to raise an engine's revision; gone afterwards.
const STEP: &[u8] = b"/registry/sluice-restore";

const END: u8 = 0;
const KEY: u8 = 1;
/// A key that ends with a lease (an event).
const LEASED: u8 = 2;

/// What a stream held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub revision: Revision,
    pub keys: u64,
}

/// Writes the store as it is at its newest revision; changes made meanwhile are not in it.
///
/// # Errors
/// When the store does not answer, when it is compacted beyond that revision before the end (a very slow reader), or when
/// `out` fails.
pub async fn write(engine: &DynEngine, out: &mut (impl AsyncWrite + Unpin)) -> Result<Summary, Error> {
    let mut summary = Summary { revision: engine.revision().await?, keys: 0 };
    out.write_all(&summary.revision.to_le_bytes()).await.map_err(broken)?;
    let mut key = Bytes::from_static(PREFIX);
    loop {
        let range = Range {
            key,
            end: prefix_end(PREFIX),
            revision: summary.revision,
            limit: limits::LOAD_PAGE,
            count_only: false,
        };
        let page = engine.range(range).await?;
        for kv in page.kvs.iter().filter(|kv| !kv.key.starts_with(SERVERS)) {
            let flag = if kv.lease == 0 { KEY } else { LEASED };
            out.write_all(&[flag]).await.map_err(broken)?;
            for part in [&kv.key, &kv.value] {
                out.write_all(&length(part).to_le_bytes()).await.map_err(broken)?;
            }
            out.write_all(&kv.key).await.map_err(broken)?;
            out.write_all(&kv.value).await.map_err(broken)?;
            summary.keys += 1;
        }
        match page.kvs.last().filter(|_| page.more) {
            Some(last) => key = [&last.key[..], b"\0"].concat().into(),
            None => break,
        }
    }
    out.write_all(&[END]).await.map_err(broken)?;
    out.flush().await.map_err(broken)?;
    Ok(summary)
}

/// Reads a stream to its end without keeping it: whether it is whole, and what it holds.
///
/// # Errors
/// [`Error::Corrupt`] for what is no stream, or a part of one.
pub async fn check(input: &mut (impl AsyncRead + Unpin)) -> Result<Summary, Error> {
    let mut summary = Summary { revision: revision(input).await?, keys: 0 };
    while record(input).await?.is_some() {
        summary.keys += 1;
    }
    Ok(summary)
}

/// Whether the store holds nothing of a cluster.
///
/// # Errors
/// When it does not answer.
pub async fn is_empty(engine: &DynEngine) -> Result<bool, Error> {
    let range = Range { key: PREFIX.into(), end: prefix_end(PREFIX), limit: 1, ..Range::default() };
    Ok(engine.range(range).await?.kvs.is_empty())
}

/// Removes everything of a cluster from the store.
///
/// # Errors
/// When it does not answer.
pub async fn clear(engine: &DynEngine) -> Result<(), Error> {
    let delete = Op::Delete { key: PREFIX.into(), end: prefix_end(PREFIX) };
    engine.txn(Txn { success: vec![delete], ..Txn::default() }).await.map(drop)
}

/// Writes what a stream holds into a store that [is empty](is_empty). All its revisions come after those of the stream, so
/// that who has seen the cluster before sees time go on.
///
/// # Errors
/// [`Error::Corrupt`] for a stream that ends early; otherwise when the store does not take a write. What was written until
/// then is there.
pub async fn read(engine: &DynEngine, input: &mut (impl AsyncRead + Unpin)) -> Result<Summary, Error> {
    let mut summary = Summary { revision: revision(input).await?, keys: 0 };
    advance(engine, summary.revision + limits::RESTORE_MARGIN).await?;
    let (mut lease, mut batch, mut size) = (0, Vec::new(), 0);
    while let Some((flag, key, value)) = record(input).await? {
        if flag == LEASED && lease == 0 {
            lease = engine.lease_grant(limits::RESTORED_LEASE.as_secs().cast_signed()).await?;
        }
        let more = key.len() + value.len();
        if batch.len() == limits::MAX_TXN_OPS || (size > 0 && size + more > limits::RESTORE_BATCH_BYTES) {
            put(engine, std::mem::take(&mut batch)).await?;
            size = 0;
        }
        size += more;
        summary.keys += 1;
        batch.push(Op::Put { key, value, lease: if flag == LEASED { lease } else { 0 } });
    }
    put(engine, batch).await?;
    Ok(summary)
}

/// One transaction of these writes.
async fn put(engine: &DynEngine, batch: Vec<Op>) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    engine.txn(Txn { success: batch, ..Txn::default() }).await.map(drop)
}

/// Raises the store's revision to `target` at least.
async fn advance(engine: &DynEngine, target: Revision) -> Result<(), Error> {
    let now = engine.revision().await?;
    if now >= target {
        return Ok(());
    }
    let step = || put(engine, vec![Op::Put { key: Bytes::from_static(STEP), value: Bytes::new(), lease: 0 }]);
    let steps = stream::iter(now..target).map(|_| step());
    steps.buffer_unordered(limits::RESTORE_WRITES).try_collect::<()>().await?;
    put(engine, vec![Op::Delete { key: Bytes::from_static(STEP), end: Bytes::new() }]).await?;
    engine.compact(engine.revision().await?).await
}

async fn revision(input: &mut (impl AsyncRead + Unpin)) -> Result<Revision, Error> {
    input.read_i64_le().await.map_err(cut)
}

async fn record(input: &mut (impl AsyncRead + Unpin)) -> Result<Option<(u8, Bytes, Bytes)>, Error> {
    let flag = input.read_u8().await.map_err(cut)?;
    if flag == END {
        return Ok(None);
    }
    let key = input.read_u32_le().await.map_err(cut)? as usize;
    let value = input.read_u32_le().await.map_err(cut)? as usize;
    if !matches!(flag, KEY | LEASED) || key > limits::MAX_KEY_BYTES || value > limits::MAX_TXN_BYTES {
        return Err(Error::Corrupt("this is no snapshot of a store, or a damaged one".to_owned()));
    }
    let mut bytes = vec![0; key + value];
    input.read_exact(&mut bytes).await.map_err(cut)?;
    let mut key_bytes = Bytes::from(bytes);
    let value = key_bytes.split_off(key);
    Ok(Some((flag, key_bytes, value)))
}

/// Keys and values are bounded by what a transaction may hold.
fn length(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn broken(error: std::io::Error) -> Error {
    Error::Unavailable(format!("the snapshot cannot be written: {error}"))
}

fn cut(error: std::io::Error) -> Error {
    Error::Corrupt(format!("the snapshot ends early: {error}"))
}
