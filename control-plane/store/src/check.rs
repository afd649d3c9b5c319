//! What can be said of a request without looking at the store; the same for every engine.

use bytes::Bytes;

use crate::{Error, Op, Range, Txn, limits};

/// Refuses ranges without a key.
pub(crate) fn range(range: &Range) -> Result<(), Error> {
    check_key(&range.key)
}

/// True when `key` lies in a request's `[start, end)`.
pub(crate) fn contains(start: &[u8], end: &[u8], key: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::Invalid("a key is empty".to_owned()));
    }
    if key.len() > limits::MAX_KEY_BYTES {
        return Err(Error::TooLarge(format!(
            "a key of {} bytes, at most {} are allowed",
            key.len(),
            limits::MAX_KEY_BYTES
        )));
    }
    Ok(())
}

/// Refuses transactions that are too large or contradict themselves.
pub(crate) fn txn(txn: &Txn) -> Result<(), Error> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > limits::MAX_TXN_OPS {
        return Err(Error::TooLarge(format!(
            "{ops} operations in one transaction, at most {} are allowed",
            limits::MAX_TXN_OPS
        )));
    }
    let bytes = size(txn);
    if bytes > limits::MAX_TXN_BYTES {
        return Err(Error::TooLarge(format!(
            "{bytes} bytes in one transaction, at most {} are allowed",
            limits::MAX_TXN_BYTES
        )));
    }
    check_branch(&txn.success)?;
    check_branch(&txn.failure)
}

/// Keys must be sane, and no key may be put twice or put and deleted, as in etcd.
fn check_branch(ops: &[Op]) -> Result<(), Error> {
    let mut puts: Vec<&Bytes> = Vec::new();
    for op in ops {
        let key = match op {
            Op::Put { key, .. } => {
                puts.push(key);
                key
            }
            Op::Delete { key, .. } => key,
            Op::Get(range) => &range.key,
        };
        check_key(key)?;
    }
    puts.sort();
    let twice = puts.windows(2).any(|pair| pair[0] == pair[1]);
    let deleted = ops.iter().any(|op| match op {
        Op::Delete { key, end } => puts.iter().any(|put| contains(key, end, put)),
        _ => false,
    });
    if twice || deleted {
        return Err(Error::Invalid("a key is written twice in one transaction".to_owned()));
    }
    Ok(())
}

/// Whether a transaction may add data.
pub(crate) fn puts(txn: &Txn) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| matches!(op, Op::Put { .. }))
}

/// Bytes of keys and values a transaction may write.
pub(crate) fn size(txn: &Txn) -> usize {
    let branch = |ops: &[Op]| -> usize {
        ops.iter()
            .map(|op| match op {
                Op::Put { key, value, .. } => key.len() + value.len(),
                Op::Delete { key, .. } => key.len(),
                Op::Get(_) => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}
