//! Several servers on one etcd must have the same keys, or what one issues and seals the others refuse.
//! The first server writes the fingerprints of its keys into the store (a ConfigMap, compare-and-swap);
//! one whose own keys differ is told so before it starts. The keys themselves are never in the store.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluice_store::{Compare, DynEngine, Op, Range, Txn};

use super::pki::shared_keys;
use crate::meta;

const NAME: &str = "sluice-keys";
/// Where the store has it, as it has every ConfigMap.
const KEY: &str = "/registry/configmaps/kube-system/sluice-keys";

/// Makes the store that of the keys in `dir` (made when there are none yet and nobody was first).
/// `server` names this server for the one sentence that a later one may print.
///
/// # Errors
/// When the store belongs to other keys: the sentence says which folder to copy from where to where.
/// When the store does not answer, or the keys cannot be read or made.
pub async fn claim(engine: &DynEngine, dir: &Path, server: &str) -> Result<()> {
    // Before this server makes keys of its own that nobody wants.
    if let Some(first) = recorded(engine).await? {
        return compare(&first, dir);
    }
    let own = fingerprints(dir)?;
    let value = serde_json::to_vec(&record(&own, dir, server))?;
    let write = Txn {
        compare: vec![Compare::ModRevision { key: Bytes::from_static(KEY.as_bytes()), equals: 0 }],
        success: vec![Op::Put { key: Bytes::from_static(KEY.as_bytes()), value: value.into(), lease: 0 }],
        ..Txn::default()
    };
    if engine.txn(write).await.context("the store cannot be written")?.succeeded {
        return Ok(());
    }
    // Another server, starting at the same time, wrote first.
    let first = recorded(engine).await?.context("the record of the cluster's keys came and went; start again")?;
    compare(&first, dir)
}

/// What the first server wrote.
async fn recorded(engine: &DynEngine) -> Result<Option<BTreeMap<String, String>>> {
    let read = engine.range(Range { key: Bytes::from_static(KEY.as_bytes()), ..Range::default() }).await;
    let Some(kv) = read.context("the store cannot be read")?.kvs.into_iter().next() else { return Ok(None) };
    let object: Value = serde_json::from_slice(&kv.value).with_context(|| format!("{KEY} in the store is damaged"))?;
    let data = serde_json::from_value(object["data"].clone());
    data.map(Some).with_context(|| format!("{KEY} in the store is damaged"))
}

fn record(own: &BTreeMap<&'static str, String>, dir: &Path, server: &str) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "kube-system", "name": NAME}, "data": own});
    object["data"]["server"] = server.into();
    object["data"]["folder"] = absolute(dir).into();
    meta::stamp(&mut object);
    object
}

fn compare(first: &BTreeMap<String, String>, dir: &Path) -> Result<()> {
    // What is to be copied may not be there yet, and must not be made.
    let own = if dir.join("ca.crt").exists() { fingerprints(dir)? } else { BTreeMap::new() };
    let same = |file: &&str| first.get(*file).is_none_or(|print| own.get(*file) == Some(print));
    let Some(file) = ["ca.crt", "sa.key", "encryption.key"].into_iter().find(|file| !same(file)) else { return Ok(()) };
    let told = |field: &str| first.get(field).map_or("?", String::as_str);
    bail!(
        "this etcd belongs to a cluster with other keys than this server's ({file} differs): copy the folder {} of \
         its first server ({}) to {} on this machine, in place of what is there, and start again (if its keys are \
         lost, delete {KEY} from etcd)",
        told("folder"),
        told("server"),
        absolute(dir)
    )
}

fn absolute(dir: &Path) -> String {
    std::path::absolute(dir).unwrap_or_else(|_| dir.into()).display().to_string()
}

/// A fingerprint of each file that all servers must share.
fn fingerprints(dir: &Path) -> Result<BTreeMap<&'static str, String>> {
    let print = |(file, content): (&'static str, Vec<u8>)| {
        let mut hash = Sha256::new();
        hash.update(file);
        hash.update(content);
        (file, format!("sha256:{}", hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    };
    Ok(shared_keys(dir, SystemTime::now())?.into_iter().map(print).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, sync::Arc};

    use sluice_store::embedded::{Embedded, Options};

    use super::*;

    #[tokio::test]
    async fn a_second_server_needs_the_first_ones_keys() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name).join("pki"));
        let engine: DynEngine = Embedded::open(&dir.path().join("store"), Options::default()).unwrap();
        claim(&engine, &one, "node1").await.unwrap();
        claim(&engine, &one, "node1").await.unwrap();

        let refused = claim(&engine, &two, "node2").await.unwrap_err().to_string();
        let copy = format!("copy the folder {} of its first server (node1) to {}", one.display(), two.display());
        assert!(refused.contains("ca.crt differs") && refused.contains(&copy), "{refused}");
        assert!(!two.exists(), "keys were made that nobody wants");

        fs::create_dir_all(&two).unwrap();
        for file in ["ca.crt", "ca.key", "sa.key"] {
            fs::copy(one.join(file), two.join(file)).unwrap();
        }
        let refused = claim(&engine, &two, "node2").await.unwrap_err().to_string();
        assert!(refused.contains("encryption.key differs"), "{refused}");
        fs::copy(one.join("encryption.key"), two.join("encryption.key")).unwrap();
        claim(&engine, &two, "node2").await.unwrap();
    }

    #[tokio::test]
    async fn of_two_first_servers_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        let engine: DynEngine = Embedded::open(&dir.path().join("store"), Options::default()).unwrap();
        let again = Arc::clone(&engine);
        let (first, second) = tokio::join!(claim(&engine, &one, "node1"), claim(&again, &two, "node2"));
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    }
}
