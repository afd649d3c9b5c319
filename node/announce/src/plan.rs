//! Which addresses this node answers for, from what the API wants and what is heard on the links. Pure: time is an argument.
//!
//! An address has its candidates in an order that all nodes know. A node holds it when every candidate before it is dead. Two
//! things tell: a dead node's kernel does not answer for the node's own address, which is noticed soon; and a dead daemon
//! does not answer for the addresses of load balancers, which is noticed only after a while, so that a daemon that is
//! started anew moves nothing (the data plane works without it). Who stood in lets go as soon as the node answers for, or
//! claims, an address again. Two that hold one address after the network was parted hear each other: who stands in says so
//! from time to time, who is before it objects, and the other lets go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::frame::Mac;
use crate::limits::{BURST, DEFEND, MISSES, PROBE, REMIND, SILENCES};

/// An address and those who may announce it, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) nodes: Vec<Candidate>,
}

/// A node in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    /// Its own address on a link of ours; without one nothing can be known of it, and it counts as alive.
    pub(crate) watched: Option<IpAddr>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask on the link where this node is.
    Probe(IpAddr),
    /// Ask the node with the first address, at this place, for the second one.
    Ask(IpAddr, Mac, IpAddr),
    /// This node answers for the address from now on.
    Hold(IpAddr),
    /// Tell the link that the address is here.
    Claim(IpAddr),
    /// This node answers for the address no more.
    Yield(IpAddr),
    /// Somebody who is no candidate uses the address.
    Conflict(IpAddr, Mac),
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct Plan {
    me: String,
    wanted: BTreeMap<IpAddr, Candidates>,
    watched: BTreeMap<IpAddr, Watched>,
    held: BTreeMap<IpAddr, Held>,
    next_probe: Option<Instant>,
}

/// A node that stands before this one for some address.
#[derive(Debug)]
struct Watched {
    /// Questions for itself in a row without an answer. Counted, not timed: a process that was held up itself judges
    /// nobody by it.
    missed: u32,
    /// Questions in a row for an address that it holds.
    silent: u32,
    /// Such an address: the node is the first in its line.
    first_of: Option<IpAddr>,
    /// Where it was heard from last.
    mac: Option<Mac>,
    dead: bool,
}

#[derive(Debug)]
struct Held {
    since: Instant,
    /// How many of the burst are out.
    claims: usize,
    reminded: Instant,
    defended: Option<Instant>,
}

impl Plan {
    pub(crate) fn new(me: String) -> Self {
        Self { me, wanted: BTreeMap::new(), watched: BTreeMap::new(), held: BTreeMap::new(), next_probe: None }
    }

    /// Whether this node answers for an address.
    pub(crate) fn holds(&self, address: &IpAddr) -> bool {
        self.held.contains_key(address)
    }

    /// The API wants this.
    pub(crate) fn want(&mut self, wanted: BTreeMap<IpAddr, Candidates>, now: Instant) -> Vec<Action> {
        self.wanted = wanted;
        let mut before: BTreeMap<IpAddr, Option<IpAddr>> = BTreeMap::new();
        for (address, candidates) in &self.wanted {
            for (place, node) in self.before(candidates).iter().enumerate() {
                let Some(watched) = node.watched else { continue };
                let first_of = before.entry(watched).or_default();
                if place == 0 && watched.is_ipv4() == address.is_ipv4() {
                    *first_of = first_of.or(Some(*address));
                }
            }
        }
        self.watched.retain(|address, _| before.contains_key(address));
        for (address, first_of) in before {
            let new = Watched { missed: 0, silent: 0, first_of: None, mac: None, dead: false };
            let node = self.watched.entry(address).or_insert(new);
            if node.first_of != first_of {
                (node.first_of, node.silent) = (first_of, 0);
            }
        }
        if self.watched.is_empty() {
            self.next_probe = None;
        } else if self.next_probe.is_none() {
            self.next_probe = Some(now);
        }
        self.settle(now)
    }

    /// Somebody says on a link that an address is at a place, which is not here.
    pub(crate) fn hear(&mut self, address: IpAddr, mac: Mac, now: Instant) -> Vec<Action> {
        if let Some(node) = self.watched.get_mut(&address) {
            (node.missed, node.mac) = (0, Some(mac));
            return Vec::new();
        }
        let Some(candidates) = self.wanted.get(&address) else { return Vec::new() };
        let line: Vec<IpAddr> = self.before(candidates).iter().filter_map(|candidate| candidate.watched).collect();
        let claimant = line.iter().find(|at| self.watched.get(at).is_some_and(|node| node.mac == Some(mac)));
        if let Some(node) = claimant.copied().and_then(|at| self.watched.get_mut(&at)) {
            (node.missed, node.silent, node.dead) = (0, 0, false);
            return self.settle(now);
        }
        let others = candidates.nodes.len() > 1;
        let Some(held) = self.held.get_mut(&address) else { return Vec::new() };
        if held.defended.is_some_and(|last| now.duration_since(last) < DEFEND) {
            return Vec::new();
        }
        held.defended = Some(now);
        // Another candidate that stands behind this one will hear it and let go; anybody else is a mistake of people.
        if others { vec![Action::Claim(address)] } else { vec![Action::Claim(address), Action::Conflict(address, mac)] }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.next_probe.is_some_and(|at| at <= now) {
            self.next_probe = Some(now + PROBE);
            for (address, node) in &mut self.watched {
                node.dead |= node.missed >= MISSES || node.silent >= SILENCES;
                actions.push(Action::Probe(*address));
                // One whose kernel is silent too is not asked for more.
                if node.missed == 0
                    && let (Some(mac), Some(held)) = (node.mac, node.first_of)
                {
                    node.silent = node.silent.saturating_add(1);
                    actions.push(Action::Ask(*address, mac, held));
                }
                node.missed = node.missed.saturating_add(1);
            }
        }
        actions.extend(self.settle(now));
        for (address, held) in &mut self.held {
            let stands_in = self.wanted.get(address).and_then(|c| c.nodes.first()).is_some_and(|n| n.name != self.me);
            if held.claims < BURST.len() && now >= held.since + BURST[held.claims] {
                held.claims += 1;
                held.reminded = now;
                actions.push(Action::Claim(*address));
            } else if stands_in && now >= held.reminded + REMIND {
                held.reminded = now;
                actions.push(Action::Claim(*address));
            }
        }
        actions
    }

    /// When [`Self::tick`] has something to do; never while every address has one candidate.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let claims = self.held.iter().filter_map(|(address, held)| {
            let stands_in = self.wanted.get(address).and_then(|c| c.nodes.first()).is_some_and(|n| n.name != self.me);
            match BURST.get(held.claims) {
                Some(after) => Some(held.since + *after),
                None => stands_in.then_some(held.reminded + REMIND),
            }
        });
        claims.chain(self.next_probe).min()
    }

    /// Those who come before this node; nobody where it is no candidate.
    fn before<'a>(&self, candidates: &'a Candidates) -> &'a [Candidate] {
        let place = candidates.nodes.iter().position(|node| node.name == self.me);
        place.map_or(&[], |place| &candidates.nodes[..place])
    }

    fn settle(&mut self, now: Instant) -> Vec<Action> {
        let dead = |candidate: &Candidate| {
            let node = candidate.watched.and_then(|address| self.watched.get(&address));
            node.is_some_and(|node| node.dead)
        };
        let mine: BTreeSet<IpAddr> = self
            .wanted
            .iter()
            .filter(|(_, candidates)| {
                candidates
                    .nodes
                    .iter()
                    .find(|node| node.name == self.me || !dead(node))
                    .is_some_and(|n| n.name == self.me)
            })
            .map(|(address, _)| *address)
            .collect();
        let mut actions = Vec::new();
        self.held.retain(|address, _| {
            let keep = mine.contains(address);
            if !keep {
                actions.push(Action::Yield(*address));
            }
            keep
        });
        for address in mine {
            self.held.entry(address).or_insert_with(|| {
                actions.push(Action::Hold(address));
                Held { since: now, claims: 0, reminded: now, defended: None }
            });
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn mac(node: u8) -> Mac {
        [2, 0, 0, 0, 0, node]
    }

    /// The address of node `a`, `b`, ...
    fn address(name: &str) -> IpAddr {
        IpAddr::from([10, 0, 0, name.as_bytes()[0]])
    }

    fn line(names: &str) -> BTreeMap<IpAddr, Candidates> {
        let node = |name: &str| Candidate { name: name.into(), watched: Some(address(name)) };
        [(VIP, Candidates { nodes: names.split_whitespace().map(node).collect() })].into()
    }

    /// A node under test with a clock that counts milliseconds.
    struct Node {
        plan: Plan,
        start: Instant,
        now: u64,
        /// Nodes whose kernels answer, and those whose daemons do.
        alive: Vec<&'static str>,
        daemons: Vec<&'static str>,
        claims: usize,
    }

    impl Node {
        fn new(me: &str, names: &str, alive: &[&'static str]) -> Self {
            let start = Instant::now();
            let mut node = Self {
                plan: Plan::new(me.into()),
                start,
                now: 0,
                alive: alive.to_vec(),
                daemons: alive.to_vec(),
                claims: 0,
            };
            node.want(names);
            node
        }

        fn time(&self) -> Instant {
            self.start + Duration::from_millis(self.now)
        }

        fn want(&mut self, names: &str) {
            let actions = self.plan.want(line(names), self.time());
            self.carry_out(actions);
        }

        fn hear(&mut self, what: IpAddr, from: u8) -> Vec<Action> {
            let actions = self.plan.hear(what, mac(from), self.time());
            self.carry_out(actions.clone());
            actions
        }

        fn carry_out(&mut self, actions: Vec<Action>) {
            for action in actions {
                match action {
                    Action::Probe(to) => {
                        if let Some(name) = self.alive.iter().find(|name| address(name) == to).copied() {
                            self.hear(to, name.as_bytes()[0]);
                        }
                    }
                    Action::Ask(to, place, what) => {
                        let here = |name: &&'static str| address(name) == to && mac(name.as_bytes()[0]) == place;
                        if self.alive.iter().any(|name| here(name) && self.daemons.contains(name)) {
                            self.hear(what, place[5]);
                        }
                    }
                    Action::Claim(_) => self.claims += 1,
                    Action::Hold(_) | Action::Yield(_) | Action::Conflict(..) => {}
                }
            }
        }

        /// Lets time pass as the deadlines ask.
        fn pass(&mut self, milliseconds: u64) {
            let end = self.now + milliseconds;
            while let Some(next) = self.plan.deadline() {
                let next = next.duration_since(self.start).as_millis() as u64;
                if next > end {
                    break;
                }
                self.now = self.now.max(next);
                let actions = self.plan.tick(self.time());
                self.carry_out(actions);
            }
            self.now = end;
        }

        fn holds(&self) -> bool {
            self.plan.holds(&VIP)
        }
    }

    #[test]
    fn the_first_holds_at_once_and_says_so_a_few_times() {
        let mut a = Node::new("a", "a b", &["b"]);
        assert!(a.holds());
        a.pass(60_000);
        assert_eq!((a.claims, a.plan.deadline()), (BURST.len(), None));
    }

    #[test]
    fn who_is_no_candidate_does_nothing() {
        let mut c = Node::new("c", "a b", &[]);
        c.pass(60_000);
        assert!(!c.holds() && c.plan.deadline().is_none() && c.claims == 0);
    }

    #[test]
    fn the_next_takes_over_within_two_seconds_of_a_death_and_not_before() {
        let mut b = Node::new("b", "a b c", &["a", "c"]);
        b.pass(60_000);
        assert!(!b.holds());
        b.alive = vec!["c"];
        b.pass(1_000);
        assert!(!b.holds());
        b.pass(1_000);
        assert!(b.holds() && b.claims >= 1);
    }

    #[test]
    fn the_third_takes_over_when_two_are_dead_and_not_for_one() {
        let mut c = Node::new("c", "a b c", &["a", "b"]);
        c.pass(10_000);
        c.alive = vec!["b"];
        c.pass(10_000);
        assert!(!c.holds());
        c.alive.clear();
        c.pass(2_500);
        assert!(c.holds());
    }

    #[test]
    fn one_lost_answer_is_no_death() {
        let mut b = Node::new("b", "a b", &["a"]);
        for _ in 0..20 {
            b.pass(1_000);
            b.alive.clear();
            b.pass(1_000);
            b.alive = vec!["a"];
            assert!(!b.holds());
        }
    }

    #[test]
    fn a_node_that_is_back_gets_its_address_when_it_claims_it() {
        let mut b = Node::new("b", "a b", &["a"]);
        b.pass(1_000);
        (b.alive, b.daemons) = (Vec::new(), Vec::new());
        b.pass(3_000);
        assert!(b.holds());
        // Its kernel answers before its daemon is there.
        b.alive = vec!["a"];
        b.pass(5_000);
        assert!(b.holds());
        b.hear(VIP, b'a');
        assert!(!b.holds());
        b.daemons = vec!["a"];
        b.pass(20_000);
        assert!(!b.holds());
    }

    #[test]
    fn a_node_that_is_back_gets_its_address_when_it_answers_for_it() {
        let mut b = Node::new("b", "a b", &[]);
        b.pass(3_000);
        assert!(b.holds());
        (b.alive, b.daemons) = (vec!["a"], vec!["a"]);
        b.pass(1_500);
        assert!(!b.holds());
    }

    #[test]
    fn a_daemon_that_is_away_for_a_moment_keeps_its_address_and_one_that_stays_away_loses_it() {
        let mut b = Node::new("b", "a b", &["a"]);
        for _ in 0..5 {
            b.pass(10_000);
            b.daemons.clear();
            b.pass(4_000);
            assert!(!b.holds());
            b.daemons = vec!["a"];
        }
        b.pass(10_000);
        b.daemons.clear();
        b.pass(6_000);
        assert!(b.holds());
        b.daemons = vec!["a"];
        b.pass(1_000);
        assert!(!b.holds());
    }

    #[test]
    fn the_api_moves_an_address_at_once() {
        let mut b = Node::new("b", "a b", &["a"]);
        b.pass(5_000);
        b.want("b a");
        assert!(b.holds());
        b.want("c");
        assert!(!b.holds());
        b.want("b");
        assert!(b.holds());
        b.plan.want(BTreeMap::new(), b.time());
        assert!(!b.holds() && b.plan.deadline().is_none());
    }

    #[test]
    fn an_address_is_defended_against_who_stands_behind_but_not_endlessly() {
        let mut a = Node::new("a", "a b", &["b"]);
        a.pass(10_000);
        assert_eq!(a.hear(VIP, b'b'), [Action::Claim(VIP)]);
        assert_eq!(a.hear(VIP, b'b'), []);
        a.pass(2_000);
        assert_eq!(a.hear(VIP, b'b'), [Action::Claim(VIP)]);
        let mut alone = Node::new("a", "a", &[]);
        assert_eq!(alone.hear(VIP, 9), [Action::Claim(VIP), Action::Conflict(VIP, mac(9))]);
    }

    #[test]
    fn who_stands_in_reminds_and_lets_go_when_the_first_objects() {
        let mut b = Node::new("b", "a b", &["a"]);
        b.pass(2_000);
        b.alive.clear();
        b.pass(10_000);
        let before = b.claims;
        b.pass(REMIND.as_millis() as u64 + 100);
        assert!(b.holds() && b.claims > before);
        b.hear(VIP, b'a');
        assert!(!b.holds());
    }

    #[test]
    fn a_node_that_cannot_be_watched_counts_as_alive() {
        let mut wanted = line("a b");
        wanted.get_mut(&VIP).unwrap().nodes[0].watched = None;
        let mut b = Node::new("b", "b", &[]);
        b.plan.want(wanted, b.time());
        b.pass(60_000);
        assert!(!b.holds() && b.plan.deadline().is_none());
    }
}
