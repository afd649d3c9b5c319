//! What the node's pods were given of its processors and memory. A worker enters its pod, asks before a pod grows, and
//! is told when others give something back.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::quantity;

/// Thousandths of a processor, and bytes.
pub type Amounts = (i128, i128);

/// Why a pod cannot have more, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not now: others have it.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

/// The node's account.
pub struct Allocations {
    /// `None`: not bounded.
    capacity: (Option<i128>, Option<i128>),
    given: Mutex<HashMap<String, Amounts>>,
    returned: watch::Sender<()>,
}

impl Allocations {
    /// Nothing is given yet of what the node has to give.
    pub fn new(allocatable: &BTreeMap<String, String>) -> Allocations {
        let read = |name: &str, scale: fn(&str) -> Option<i128>| allocatable.get(name).and_then(|q| scale(q));
        let capacity = (read("cpu", quantity::milli), read("memory", quantity::value));
        Allocations { capacity, given: Mutex::default(), returned: watch::Sender::new(()) }
    }

    /// Enters a pod that runs here whatever it takes.
    pub fn enter(&self, uid: &str, amounts: Amounts) {
        self.given.lock().insert(uid.to_owned(), amounts);
    }

    /// Gives a pod more or less than it has.
    ///
    /// # Errors
    /// Why it stays as it is.
    pub fn change(&self, uid: &str, wanted: Amounts) -> Result<(), Refusal> {
        let too_much = |what: &str, wanted: i128, has: Option<i128>| {
            let has = has.filter(|has| wanted > *has)?;
            Some(format!("Node didn't have enough capacity: {what}, requested: {wanted}, capacity: {has}"))
        };
        let never =
            too_much("memory", wanted.1, self.capacity.1).or_else(|| too_much("cpu", wanted.0, self.capacity.0));
        if let Some(message) = never {
            return Err(Refusal::Infeasible(message));
        }
        let mut given = self.given.lock();
        let old = given.get(uid).copied().unwrap_or_default();
        let used = given.iter().filter(|(other, _)| *other != uid).fold((0, 0), |a, (_, b)| (a.0 + b.0, a.1 + b.1));
        let short = |what: &str, wanted: i128, old: i128, used: i128, has: Option<i128>| {
            let has = has.filter(|has| wanted > old && used + wanted > *has)?;
            Some(format!(
                "Node didn't have enough resource: {what}, requested: {wanted}, used: {used}, capacity: {has}"
            ))
        };
        let later = short("cpu", wanted.0, old.0, used.0, self.capacity.0)
            .or_else(|| short("memory", wanted.1, old.1, used.1, self.capacity.1));
        if let Some(message) = later {
            return Err(Refusal::Deferred(message));
        }
        given.insert(uid.to_owned(), wanted);
        drop(given);
        if wanted.0 < old.0 || wanted.1 < old.1 {
            self.returned.send_replace(());
        }
        Ok(())
    }

    /// The pod needs nothing any more.
    pub fn leave(&self, uid: &str) {
        if self.given.lock().remove(uid).is_some() {
            self.returned.send_replace(());
        }
    }

    /// Changes whenever something is given back.
    pub fn returned(&self) -> watch::Receiver<()> {
        self.returned.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_share_what_there_is() {
        let node = Allocations::new(&BTreeMap::from([("cpu".into(), "2".into()), ("memory".into(), "1000".into())]));
        let mut returned = node.returned();
        node.enter("a", (500, 400));
        node.enter("b", (1000, 400));
        let infeasible = |m: &str| Err(Refusal::Infeasible(m.into()));
        let deferred = |m: &str| Err(Refusal::Deferred(m.into()));
        assert_eq!(node.change("a", (1000, 600)), Ok(()));
        for (wanted, expected) in [
            ((2001, 1), infeasible("Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000")),
            ((9999, 1001), infeasible("Node didn't have enough capacity: memory, requested: 1001, capacity: 1000")),
            ((1001, 1), deferred("Node didn't have enough resource: cpu, requested: 1001, used: 1000, capacity: 2000")),
            ((1, 601), deferred("Node didn't have enough resource: memory, requested: 601, used: 400, capacity: 1000")),
        ] {
            assert_eq!(node.change("a", wanted), expected, "{wanted:?}");
        }
        assert!(!returned.has_changed().unwrap_or(true));
        node.leave("b");
        assert!(returned.has_changed().unwrap_or(false));
        returned.mark_unchanged();
        assert_eq!(node.change("a", (2000, 600)), Ok(()));
        assert!(!returned.has_changed().unwrap_or(true), "growth gives nothing back");
    }
}
