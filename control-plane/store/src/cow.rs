//! A sorted map whose clone is one reference count: the watch cache's snapshots.
//!
//! Entries sit in chunks under one vector of chunks; a write copies only the chunk it touches (and
//! the vector), and only when a clone still shares them. It knows nothing of stores or revisions.

use std::sync::Arc;

/// Entries in a full chunk: what one write copies at most while a snapshot is alive.
const CHUNK: usize = 64;

type Entry<V> = (Arc<str>, V);

#[derive(Clone)]
pub(crate) struct CowMap<V> {
    /// Sorted, none of them empty.
    chunks: Arc<Vec<Arc<Vec<Entry<V>>>>>,
}

impl<V> Default for CowMap<V> {
    fn default() -> Self {
        CowMap { chunks: Arc::new(Vec::new()) }
    }
}

impl<V: Clone> CowMap<V> {
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    /// Sets `key` and returns what it held.
    pub(crate) fn insert(&mut self, key: Arc<str>, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let last = at + 1 == chunks.len();
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![(key, value)]));
            return None;
        };
        let entries = Arc::make_mut(chunk);
        match entries.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(i) => Some(std::mem::replace(&mut entries[i].1, value)),
            Err(i) => {
                if entries.len() < CHUNK {
                    entries.insert(i, (key, value));
                } else if last && i == entries.len() {
                    // Loading in order packs the chunks full.
                    chunks.push(Arc::new(vec![(key, value)]));
                } else {
                    entries.insert(i, (key, value));
                    let tail = entries.split_off(CHUNK / 2);
                    chunks.insert(at + 1, Arc::new(tail));
                }
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        self.get(key)?;
        let at = self.chunk_of(key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(&mut chunks[at]);
        let i = entries.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        let (_, value) = entries.remove(i);
        let left = entries.len();
        if left == 0 {
            chunks.remove(at);
        } else if at + 1 < chunks.len() && left + chunks[at + 1].len() <= CHUNK / 2 {
            let next = chunks.remove(at + 1);
            Arc::make_mut(&mut chunks[at]).extend(next.iter().cloned());
        }
        Some(value)
    }

    /// Entries with keys at or after `start`, in order.
    pub(crate) fn iter_from<'a>(&'a self, start: &str) -> impl Iterator<Item = (&'a Arc<str>, &'a V)> + use<'a, V> {
        let (chunk, at) = self.position(start);
        let first = self.chunks.get(chunk).map_or(&[][..], |c| &c[at..]);
        let rest = self.chunks.get(chunk + 1..).unwrap_or(&[]);
        first.iter().chain(rest.iter().flat_map(|c| c.iter())).map(|(k, v)| (k, v))
    }

    /// How many entries have keys before the first one for which `before` is false.
    /// `before` must be true for a head of the sorted keys and false for the tail.
    pub(crate) fn rank(&self, before: impl Fn(&str) -> bool) -> usize {
        let full = self.chunks.partition_point(|c| before(&c[c.len() - 1].0));
        let whole: usize = self.chunks[..full].iter().map(|c| c.len()).sum();
        whole + self.chunks.get(full).map_or(0, |c| c.partition_point(|(k, _)| before(k)))
    }

    /// The chunk that holds `key`, or would.
    fn chunk_of(&self, key: &str) -> usize {
        self.chunks.partition_point(|c| *c[0].0 <= *key).saturating_sub(1)
    }

    /// Chunk and index of the first entry at or after `key`.
    fn position(&self, key: &str) -> (usize, usize) {
        let chunk = self.chunks.partition_point(|c| *c[c.len() - 1].0 < *key);
        let at = self.chunks.get(chunk).map_or(0, |c| c.partition_point(|(k, _)| **k < *key));
        (chunk, at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is done to it, the map equals a `BTreeMap`, and a clone never changes.
        #[test]
        fn behaves_as_a_btree_map(ops in prop::collection::vec((0u16..300, prop::option::weighted(0.6, 0u32..1000)), 0..900)) {
            let (mut map, mut model) = (CowMap::default(), BTreeMap::new());
            let mut frozen = Vec::new();
            for (n, (key, value)) in ops.iter().enumerate() {
                let key = format!("/k/{key:03}");
                match value {
                    Some(v) => prop_assert_eq!(map.insert(Arc::from(key.as_str()), *v), model.insert(key, *v)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.rank(|_| true), model.len());
                if n % 97 == 0 {
                    frozen.push((map.clone(), model.clone()));
                }
            }
            frozen.push((map, model));
            for (map, model) in frozen {
                for start in ["", "/k/150", "/k/1505", "/l"] {
                    let got: Vec<_> = map.iter_from(start).map(|(k, v)| (k.to_string(), *v)).collect();
                    let want: Vec<_> = model.range(start.to_string()..).map(|(k, v)| (k.clone(), *v)).collect();
                    prop_assert_eq!(map.rank(|k| k < start), model.len() - want.len());
                    prop_assert_eq!(got, want);
                }
                for (k, v) in &model {
                    prop_assert_eq!(map.get(k), Some(v));
                }
            }
        }
    }

    #[test]
    fn loading_in_order_packs_chunks() {
        let mut map = CowMap::default();
        for n in 0..CHUNK * 10 {
            map.insert(Arc::from(format!("{n:05}")), n);
        }
        assert_eq!(map.chunks.len(), 10);
    }
}
