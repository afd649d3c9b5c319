//! Pods waiting for a node: ready ones by priority, those backing off by time, and those that nothing could help so far.
//! Time comes from the caller.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits;
use crate::pod::Pod;
use crate::reason::Rules;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    BackingOff(Instant),
    /// Waits for a change that meets these rules, since then.
    Unschedulable(Instant),
    /// The planner or a binding has it.
    Taken,
    /// Has scheduling gates.
    Gated,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    place: Place,
    rules: Rules,
    attempts: u32,
    /// While it is taken: its own wishes changed.
    woken: bool,
    /// [`Queue::wakes`] when it was taken.
    taken: u64,
    /// Distinguishes this stay in a heap from earlier ones.
    ticket: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Ready {
    priority: i32,
    ticket: u64,
    uid: Arc<str>,
}

impl Ord for Ready {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.cmp(&other.priority).then(other.ticket.cmp(&self.ticket))
    }
}

impl PartialOrd for Ready {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The scheduling queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Arc<str>, Entry>,
    /// Those a change can wake.
    unschedulable: HashSet<Arc<str>>,
    /// Calls of [`Queue::wake`]: pods that are taken look back at whether there were any.
    wakes: u64,
    ready: BinaryHeap<Ready>,
    timers: BinaryHeap<Reverse<(Instant, u64, Arc<str>)>>,
    tickets: u64,
}

impl Queue {
    /// Takes in a pod that wants a node, or its new state.
    pub fn upsert(&mut self, pod: Arc<Pod>, now: Instant) {
        let gated = pod.gated;
        let Some(entry) = self.entries.get_mut(&pod.uid) else {
            let place = if gated { Place::Gated } else { Place::Ready };
            let uid = pod.uid.clone();
            let entry = Entry { pod, place, rules: Rules::ALL, attempts: 0, woken: false, taken: 0, ticket: 0 };
            self.entries.insert(uid.clone(), entry);
            self.enter(&uid, place);
            return;
        };
        let changed = differs(&entry.pod, &pod);
        let uid = pod.uid.clone();
        entry.pod = pod;
        match entry.place {
            Place::Gated if !gated => self.enter(&uid, Place::Ready),
            Place::Unschedulable(_) if changed => self.wake_one(&uid, now),
            Place::Taken if changed => entry.woken = true,
            _ => {}
        }
    }

    /// Forgets a pod: it was deleted, bound or finished.
    pub fn remove(&mut self, uid: &str) {
        self.entries.remove(uid);
        self.unschedulable.remove(uid);
    }

    /// The pod as last seen.
    pub fn get(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.entries.get(uid).map(|e| &e.pod)
    }

    /// Uids of all pods known.
    pub fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }

    /// The next pod to plan; it stays known until `remove`, `failed` or `retry`.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<Pod>> {
        self.fire(now);
        while let Some(Ready { ticket, uid, .. }) = self.ready.pop() {
            if let Some(entry) = self.entries.get_mut(&uid)
                && entry.ticket == ticket
                && entry.place == Place::Ready
            {
                entry.place = Place::Taken;
                entry.attempts += 1;
                (entry.woken, entry.taken) = (false, self.wakes);
                return Some(entry.pod.clone());
            }
        }
        None
    }

    /// No node was found, for these rules.
    pub fn failed(&mut self, uid: &str, rules: Rules, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.rules = rules;
        let uid = entry.pod.uid.clone();
        if entry.woken || entry.taken != self.wakes {
            self.back_off(&uid, now);
        } else {
            self.enter(&uid, Place::Unschedulable(now));
        }
    }

    /// A node was found but binding failed: try again after the back-off.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.entries.get(uid) {
            let uid = entry.pod.uid.clone();
            self.back_off(&uid, now);
        }
    }

    /// Something changed that may satisfy any of `rules`.
    pub fn wake(&mut self, rules: Rules, now: Instant) {
        self.wakes += 1;
        let meets = |uid: &&Arc<str>| self.entries.get(*uid).is_some_and(|entry| entry.rules.meets(rules));
        let woken: Vec<_> = self.unschedulable.iter().filter(meets).cloned().collect();
        woken.iter().for_each(|uid| self.wake_one(uid, now));
    }

    /// When [`Queue::pop`] may give more without anything else happening; now if it would at once.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(now);
        }
        while let Some(Reverse((at, ticket, uid))) = self.timers.peek() {
            if self.entries.get(uid).is_some_and(|e| e.ticket == *ticket) {
                return Some(*at);
            }
            self.timers.pop();
        }
        None
    }

    fn wake_one(&mut self, uid: &Arc<str>, now: Instant) {
        self.back_off(uid, now);
    }

    /// Ready when the back-off of its attempts so far has passed.
    fn back_off(&mut self, uid: &Arc<str>, now: Instant) {
        let Some(entry) = self.entries.get(uid) else { return };
        let since = match entry.place {
            Place::Unschedulable(since) => since,
            _ => now,
        };
        let until = since + delay(entry.attempts);
        let place = if until <= now { Place::Ready } else { Place::BackingOff(until) };
        self.enter(uid, place);
    }

    fn enter(&mut self, uid: &Arc<str>, place: Place) {
        self.tickets += 1;
        let ticket = self.tickets;
        let Some(entry) = self.entries.get_mut(uid) else { return };
        (entry.place, entry.ticket, entry.woken) = (place, ticket, false);
        if matches!(place, Place::Unschedulable(_)) {
            self.unschedulable.insert(uid.clone());
        } else {
            self.unschedulable.remove(uid);
        }
        match place {
            Place::Ready => {
                self.ready.push(Ready { priority: entry.pod.priority, ticket, uid: uid.clone() });
            }
            Place::BackingOff(until) => self.timers.push(Reverse((until, ticket, uid.clone()))),
            Place::Unschedulable(since) => {
                self.timers.push(Reverse((since + limits::UNSCHEDULABLE_FLUSH, ticket, uid.clone())));
            }
            Place::Taken | Place::Gated => {}
        }
    }

    fn fire(&mut self, now: Instant) {
        while let Some(Reverse((at, ticket, uid))) = self.timers.peek().cloned() {
            let current = self.entries.get(&uid).is_some_and(|e| e.ticket == ticket);
            if current && at > now {
                break;
            }
            self.timers.pop();
            if current {
                self.enter(&uid, Place::Ready);
            }
        }
    }
}

/// 1 s after the first attempt, doubling to 10 s.
fn delay(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(8);
    (limits::BACKOFF_INITIAL * 2u32.pow(doublings)).min(limits::BACKOFF_MAX)
}

/// Whether an update may make the pod schedulable: anything of its own wishes, not its status.
fn differs(old: &Pod, new: &Pod) -> bool {
    old.gated != new.gated
        || old.labels != new.labels
        || old.requests != new.requests
        || old.tolerations != new.tolerations
        || old.node_selector != new.node_selector
        || old.node_terms != new.node_terms
        || old.priority != new.priority
        || old.nominated != new.nominated
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(uid: &str, priority: i32) -> Arc<Pod> {
        Arc::new(Pod { uid: uid.into(), priority, ..Default::default() })
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|p| p.uid.to_string())
    }

    #[test]
    fn priority_then_arrival() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            queue.upsert(pod(uid, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn only_a_change_that_may_help_wakes_and_only_after_the_back_off() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.upsert(pod("a", 0), now);
        queue.pop(now).unwrap();
        queue.failed("a", Rules::FIT, now);
        queue.wake(Rules::TAINTS, now);
        assert_eq!(queue.deadline(now), Some(now + limits::UNSCHEDULABLE_FLUSH));
        queue.wake(Rules::FIT, now);
        assert_eq!(queue.deadline(now), Some(now + Duration::from_secs(1)));
        assert_eq!(popped(&mut queue, now), None);
        let later = now + Duration::from_secs(1);
        assert_eq!(popped(&mut queue, later).as_deref(), Some("a"));
        queue.failed("a", Rules::FIT, later);
        // Two attempts: 2 s from the second failure.
        queue.wake(Rules::FIT, later + Duration::from_secs(3));
        assert_eq!(popped(&mut queue, later + Duration::from_secs(3)).as_deref(), Some("a"));
    }

    #[test]
    fn a_change_during_planning_is_not_lost() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.upsert(pod("a", 0), now);
        queue.pop(now).unwrap();
        queue.wake(Rules::FIT, now);
        queue.failed("a", Rules::FIT, now);
        assert_eq!(queue.deadline(now), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn gates_hold_and_removal_forgets() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let gated = Arc::new(Pod { gated: true, ..(*pod("a", 0)).clone() });
        queue.upsert(gated, now);
        assert_eq!(popped(&mut queue, now), None);
        queue.upsert(pod("a", 0), now);
        queue.upsert(pod("b", 0), now);
        queue.remove("a");
        assert_eq!(popped(&mut queue, now).as_deref(), Some("b"));
        assert_eq!(popped(&mut queue, now), None);
        assert_eq!(delay(1), Duration::from_secs(1));
        assert_eq!(delay(40), limits::BACKOFF_MAX);
    }
}
