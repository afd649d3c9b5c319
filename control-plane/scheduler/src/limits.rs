//! Every bound of the scheduler in one place.

use std::time::Duration;

/// First delay before an unschedulable pod is tried again after something changed that may help it.
pub(crate) const BACKOFF_INITIAL: Duration = Duration::from_secs(1);
/// Longest such delay; it doubles with every attempt.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A pod nobody woke is tried again after this time, in case an event was missed (as upstream).
pub(crate) const UNSCHEDULABLE_FLUSH: Duration = Duration::from_secs(300);
/// Bindings in flight at once.
pub(crate) const BINDS_IN_FLIGHT: usize = 256;
/// Status patches and events waiting to be written; more are dropped and counted.
pub(crate) const REPORTS_QUEUED: usize = 4096;
/// Status patches and events written at once.
pub(crate) const REPORTS_IN_FLIGHT: usize = 32;
/// Pods planned before the informers are looked at again.
pub(crate) const PLAN_BATCH: usize = 64;
/// Changes taken from the informers in one go.
pub(crate) const EVENT_BATCH: usize = 4096;
/// Changes waiting between the informers and the planner.
pub(crate) const EVENT_QUEUE: usize = 8192;
/// Below this many nodes every node is examined.
pub(crate) const MIN_FEASIBLE_NODES: usize = 100;
/// Selector groups counted incrementally; when full they are dropped and rebuilt on demand.
pub(crate) const COUNT_GROUPS: usize = 4096;
/// Kinds of wishes about nodes that are kept worked out; when full they are dropped and rebuilt on demand.
pub(crate) const WISHES: usize = 256;
/// Nodes on which preemption is tried for one pod.
pub(crate) const PREEMPTION_CANDIDATES: usize = 100;
/// A leader that has not renewed its lease for so long has lost it. With a renewal under way and the taking over this is
/// the time without a leader when one dies: under two seconds (upstream's 15 s make it half a minute).
pub(crate) const LEASE_DURATION: Duration = Duration::from_millis(1500);
/// Time between a leader's renewals.
pub(crate) const LEASE_RENEW: Duration = Duration::from_millis(500);
