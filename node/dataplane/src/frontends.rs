//! Frontends in the order of their keys, in as much memory as they need: most owners want one or two of them. Pure.

use sluice_ebpf_common::FrontendKey;

use crate::compile::DesiredFrontend;

type Entry = (FrontendKey, DesiredFrontend);

/// The frontends of somebody who wants some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends(Vec<Entry>);

impl Frontends {
    /// Nothing is wanted.
    pub fn new() -> Frontends {
        Frontends::default()
    }

    /// Adds a frontend, unless there is one with its key.
    pub fn insert_first(&mut self, key: FrontendKey, frontend: DesiredFrontend) {
        if let Err(at) = self.place(&key) {
            self.0.insert(at, (key, frontend));
        }
    }

    /// What a key leads to.
    pub fn get(&self, key: &FrontendKey) -> Option<&DesiredFrontend> {
        self.place(key).ok().map(|at| &self.0[at].1)
    }

    /// Is there a frontend with this key?
    pub fn contains_key(&self, key: &FrontendKey) -> bool {
        self.place(key).is_ok()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = (&FrontendKey, &DesiredFrontend)> {
        self.0.iter().map(|(key, frontend)| (key, frontend))
    }

    /// In order.
    pub fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.0.iter().map(|(key, _)| key)
    }

    /// In the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &DesiredFrontend> {
        self.0.iter().map(|(_, frontend)| frontend)
    }

    /// Is nothing wanted?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets go of memory beyond what is needed.
    pub(crate) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    fn place(&self, key: &FrontendKey) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }
}

impl FromIterator<Entry> for Frontends {
    /// The first one of a key counts.
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Frontends {
        let mut all: Vec<Entry> = entries.into_iter().collect();
        all.sort_by_key(|(key, _)| *key);
        all.dedup_by_key(|(key, _)| *key);
        Frontends(all)
    }
}

impl<const N: usize> From<[Entry; N]> for Frontends {
    fn from(entries: [Entry; N]) -> Frontends {
        entries.into_iter().collect()
    }
}

impl IntoIterator for Frontends {
    type Item = Entry;
    type IntoIter = std::vec::IntoIter<Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Frontends {
    type Item = (&'a FrontendKey, &'a DesiredFrontend);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, Entry>, fn(&'a Entry) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, frontend)| (key, frontend))
    }
}

impl std::ops::Index<&FrontendKey> for Frontends {
    type Output = DesiredFrontend;

    /// Panics when it is not there.
    fn index(&self, key: &FrontendKey) -> &DesiredFrontend {
        self.get(key).expect("a frontend with this key")
    }
}
