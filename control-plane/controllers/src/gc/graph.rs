//! The garbage collector's graph: who owns whom, as far as the watches have shown. Pure: changes go in, the objects to look
//! at come out, and [`Graph::judge`] says what an object needs given which owners really exist.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Finalizer of a foreground deletion.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an orphaning deletion.
pub(crate) const ORPHAN: &str = "orphan";

/// An object as the graph knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// `resource.group`.
    pub(crate) resource: Arc<str>,
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) owners: Vec<Owner>,
    pub(crate) deleting: bool,
    /// Waits for the dependents that block it.
    pub(crate) foreground: bool,
    /// Waits until its dependents have let go of it.
    pub(crate) orphaning: bool,
}

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) uid: Arc<str>,
    pub(crate) api_version: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) name: Box<str>,
    /// Holds up the owner's foreground deletion.
    pub(crate) blocks: bool,
}

/// Whether an owner exists, asked of the API when the graph does not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It exists.
    Solid,
    /// It exists and waits for its dependents to go.
    WaitsForDependents,
    /// It does not exist (any more).
    Absent,
}

/// What an object needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Delete it: its last owner is gone. The way it is deleted follows its own finalizers.
    Delete(Propagation),
    /// Let go of these owners, which are gone; others remain.
    Release(Vec<Arc<str>>),
    /// Stop holding up its owners: one of them waits for it, and it for one of them.
    Unblock,
    /// Make its dependents let go of it, then remove the orphan finalizer.
    Orphan(Vec<Arc<str>>),
    /// Remove the foreground finalizer: nothing blocks it any more.
    FinishForeground,
}

/// How a deletion treats dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// Objects by uid and their dependents.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<Arc<str>, Node>,
    dependents: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// Owners the API said are gone; uids never come back.
    absent: HashSet<Arc<str>>,
}

impl Graph {
    /// The object with this uid.
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Uids of all objects of a resource.
    pub(crate) fn of_resource(&self, resource: &str) -> Vec<Arc<str>> {
        self.nodes.iter().filter(|(_, node)| &*node.resource == resource).map(|(uid, _)| uid.clone()).collect()
    }

    /// Takes in an object; returns the uids that need a look.
    pub(crate) fn put(&mut self, uid: &Arc<str>, node: Node) -> Vec<Arc<str>> {
        let old = self.nodes.get(uid);
        let mut look = Vec::new();
        if old == Some(&node) {
            return look;
        }
        let before: HashSet<Arc<str>> =
            old.map(|o| o.owners.iter().map(|o| o.uid.clone()).collect()).unwrap_or_default();
        let after: HashSet<Arc<str>> = node.owners.iter().map(|o| o.uid.clone()).collect();
        let unblocked = old.is_some_and(|old| old.owners != node.owners);
        for gone in before.difference(&after) {
            self.unlink(gone, uid);
        }
        for owner in after.difference(&before) {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
        }
        if unblocked {
            // An owner that waits may wait no longer.
            look.extend(before.iter().filter(|owner| self.nodes.get(*owner).is_some_and(|o| o.foreground)).cloned());
        }
        let newly_waiting = (node.foreground || node.orphaning) && node.deleting;
        if !node.owners.is_empty() || newly_waiting {
            look.push(uid.clone());
        }
        if node.foreground && node.deleting {
            look.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        }
        self.nodes.insert(uid.clone(), node);
        look
    }

    /// Forgets an object that is gone; returns the uids that need a look.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<Arc<str>> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else { return Vec::new() };
        let mut look: Vec<Arc<str>> = self.dependents.get(&uid).into_iter().flatten().cloned().collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, &uid);
            if self.nodes.get(&owner.uid).is_some_and(|o| o.foreground) {
                look.push(owner.uid.clone());
            }
        }
        if self.dependents.contains_key(&uid) {
            self.absent.insert(uid);
        }
        look
    }

    /// Notes that the API knows no object with this uid.
    pub(crate) fn note_absent(&mut self, uid: &Arc<str>) {
        if !self.nodes.contains_key(uid) {
            self.absent.insert(uid.clone());
        }
    }

    /// What is known of an owner; `None` when the API has to be asked.
    pub(crate) fn standing(&self, dependent: &Node, owner: &Owner) -> Option<Standing> {
        if self.absent.contains(&owner.uid) {
            return Some(Standing::Absent);
        }
        let node = self.nodes.get(&owner.uid)?;
        // A namespaced owner of another namespace (or of a cluster-scoped object) owns nothing.
        if !node.namespace.is_empty() && node.namespace != dependent.namespace {
            return Some(Standing::Absent);
        }
        Some(if node.deleting && node.foreground { Standing::WaitsForDependents } else { Standing::Solid })
    }

    /// What an object needs, given the standing of each of its owners (in order).
    pub(crate) fn judge(&self, uid: &str, standings: &[Standing]) -> Verdict {
        let Some(node) = self.nodes.get(uid) else { return Verdict::Keep };
        if node.deleting && node.orphaning {
            return Verdict::Orphan(self.dependents.get(uid).into_iter().flatten().cloned().collect());
        }
        if node.deleting && node.foreground {
            return if self.blocked(uid) { Verdict::Keep } else { Verdict::FinishForeground };
        }
        if node.deleting || node.owners.is_empty() {
            return Verdict::Keep;
        }
        let with =
            |wanted: Standing| node.owners.iter().zip(standings).filter(move |(_, s)| **s == wanted).map(|(o, _)| o);
        let gone = || with(Standing::Absent).chain(with(Standing::WaitsForDependents)).map(|o| o.uid.clone());
        if with(Standing::Solid).next().is_some() {
            let gone: Vec<_> = gone().collect();
            return if gone.is_empty() { Verdict::Keep } else { Verdict::Release(gone) };
        }
        let dependents = || self.dependents.get(uid).into_iter().flatten();
        if with(Standing::WaitsForDependents).next().is_some() && dependents().next().is_some() {
            // As upstream, a dependent that waits itself is taken for a circle.
            let mut known = dependents().filter_map(|dependent| self.nodes.get(dependent));
            let circle = known.any(|dependent| dependent.deleting && dependent.foreground);
            let holds_up = node.owners.iter().any(|owner| owner.blocks);
            return if circle && holds_up { Verdict::Unblock } else { Verdict::Delete(Propagation::Foreground) };
        }
        Verdict::Delete(match (node.orphaning, node.foreground) {
            (true, _) => Propagation::Orphan,
            (_, true) => Propagation::Foreground,
            _ => Propagation::Background,
        })
    }

    fn blocked(&self, uid: &str) -> bool {
        let mut dependents = self.dependents.get(uid).into_iter().flatten().filter_map(|d| self.nodes.get(d));
        dependents.any(|node| node.owners.iter().any(|o| &*o.uid == uid && o.blocks))
    }

    fn unlink(&mut self, owner: &Arc<str>, dependent: &Arc<str>) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
                self.absent.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(owners: &[&str]) -> Node {
        let owner = |uid: &&str| Owner {
            uid: (*uid).into(),
            api_version: "v1".into(),
            kind: "K".into(),
            name: (*uid).into(),
            blocks: true,
        };
        Node {
            resource: "things.".into(),
            namespace: "n".into(),
            name: "x".into(),
            owners: owners.iter().map(owner).collect(),
            deleting: false,
            foreground: false,
            orphaning: false,
        }
    }

    fn verdict(graph: &Graph, uid: &str) -> Verdict {
        let Some(node) = graph.get(uid) else { return Verdict::Keep };
        let known: Vec<_> = node.owners.iter().map(|o| graph.standing(node, o).unwrap_or(Standing::Absent)).collect();
        graph.judge(uid, &known)
    }

    fn graph(nodes: &[(&str, Node)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, node) in nodes {
            graph.put(&(*uid).into(), node.clone());
        }
        graph
    }

    #[test]
    fn background() {
        let mut graph = graph(&[("d", node(&[])), ("r", node(&["d"])), ("p", node(&["r"]))]);
        assert_eq!(verdict(&graph, "r"), Verdict::Keep);
        assert_eq!(graph.remove("d"), ["r".into()]);
        assert_eq!(verdict(&graph, "r"), Verdict::Delete(Propagation::Background));
        assert_eq!(graph.remove("r"), ["p".into()]);
        assert_eq!(verdict(&graph, "p"), Verdict::Delete(Propagation::Background));
        graph.remove("p");
        assert!(graph.absent.is_empty() && graph.dependents.is_empty(), "nothing is remembered for ever");
    }

    #[test]
    fn one_owner_of_two_goes() {
        let mut graph = graph(&[("a", node(&[])), ("b", node(&[])), ("p", node(&["a", "b"]))]);
        graph.remove("a");
        assert_eq!(verdict(&graph, "p"), Verdict::Release(vec!["a".into()]));
    }

    #[test]
    fn foreground_waits_for_those_that_block() {
        let mut graph = graph(&[("d", node(&[])), ("r", node(&["d"])), ("p", node(&["r"]))]);
        let leaving = Node { deleting: true, foreground: true, ..node(&[]) };
        assert!(graph.put(&"d".into(), leaving).contains(&"r".into()));
        assert_eq!(verdict(&graph, "d"), Verdict::Keep);
        assert_eq!(verdict(&graph, "r"), Verdict::Delete(Propagation::Foreground));
        graph.put(&"r".into(), Node { deleting: true, foreground: true, ..node(&["d"]) });
        assert_eq!(verdict(&graph, "p"), Verdict::Delete(Propagation::Background));
        assert_eq!(graph.remove("p"), ["r".into()]);
        assert_eq!(verdict(&graph, "r"), Verdict::FinishForeground);
        assert_eq!(graph.remove("r"), ["d".into()]);
        assert_eq!(verdict(&graph, "d"), Verdict::FinishForeground);
    }

    #[test]
    fn a_circle_does_not_wait_for_itself() {
        let mut graph = graph(&[("a", node(&["c"])), ("b", node(&["a"])), ("c", node(&["b"]))]);
        let leaving = |owner: &str| Node { deleting: true, foreground: true, ..node(&[owner]) };
        graph.put(&"a".into(), leaving("c"));
        assert_eq!(verdict(&graph, "b"), Verdict::Delete(Propagation::Foreground));
        graph.put(&"b".into(), leaving("a"));
        assert_eq!(verdict(&graph, "c"), Verdict::Unblock);
        let mut unblocked = node(&["b"]);
        unblocked.owners[0].blocks = false;
        assert!(graph.put(&"c".into(), unblocked.clone()).contains(&"b".into()));
        assert_eq!(verdict(&graph, "c"), Verdict::Delete(Propagation::Foreground));
        graph.put(&"c".into(), Node { deleting: true, foreground: true, ..unblocked });
        for uid in ["b", "a", "c"] {
            assert_eq!(verdict(&graph, uid), Verdict::FinishForeground, "{uid}");
            graph.remove(uid);
        }
    }

    #[test]
    fn orphans_are_let_go() {
        let mut graph = graph(&[("d", node(&[])), ("r", node(&["d"]))]);
        graph.put(&"d".into(), Node { deleting: true, orphaning: true, ..node(&[]) });
        assert_eq!(verdict(&graph, "d"), Verdict::Orphan(vec!["r".into()]));
        assert_eq!(verdict(&graph, "r"), Verdict::Keep);
    }

    #[test]
    fn owners_of_other_namespaces_own_nothing() {
        let elsewhere = Node { namespace: "m".into(), ..node(&[]) };
        let graph = graph(&[("a", elsewhere), ("p", node(&["a"])), ("q", node(&["never-seen"]))]);
        assert_eq!(verdict(&graph, "p"), Verdict::Delete(Propagation::Background));
        let q = graph.get("q").map(|q| graph.standing(q, &q.owners[0]));
        assert_eq!(q, Some(None), "the API has to be asked about owners never seen");
    }
}
