//! The state of a pod on this node: plain data, cheap to clone and compare, changed only by [`super::machine`].
//! It never holds handles or does IO; a restarted daemon rebuilds it from containerd, the kernel and the status
//! last written to the API server ([`super::adopt`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::spec::{ContainerSpec, Spec};
use crate::limits;
use crate::model::Resources;

/// A whole pod.
#[derive(Clone, Debug)]
pub struct PodState {
    pub spec: Arc<Spec>,
    /// When this node accepted the pod.
    pub start_time: Timestamp,
    pub network: Step,
    pub volumes: Step,
    pub ips: Vec<IpAddr>,
    /// Parallel to `spec.containers`.
    pub containers: Vec<Ctr>,
    /// Set once the pod is going down, for whatever reason.
    pub stop: Option<Stop>,
    /// The API server asked for the pod's deletion.
    pub deleting: bool,
    /// A change of resources that is not through.
    pub resize: Option<Resize>,
    /// Why the pod failed as a whole (`DeadlineExceeded`, `OutOfcpu`, …).
    pub failure: Option<Failure>,
    pub teardown: Teardown,
}

/// A step of the set-up that may be retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Not done; to be tried at once or at `retry_at`.
    Todo {
        retry_at: Option<Timestamp>,
        failures: u32,
    },
    /// Under way.
    Running {
        failures: u32,
    },
    Done,
}

impl Step {
    /// Not tried yet.
    pub const NEW: Step = Step::Todo { retry_at: None, failures: 0 };
}

/// A reason and a sentence, as status and events carry them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

/// The end of a pod: containers get until `deadline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub deadline: Timestamp,
}

/// How far the pod's network and volumes are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teardown {
    No,
    Running,
    Done,
    /// The API object's deletion was asked for.
    Deleting,
}

/// How far a change of the pod's resources is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The node does not have it: `Deferred` or `Infeasible`.
    Pending { reason: &'static str, message: String },
    /// Given, and being carried out; with what went wrong the last time.
    Under(Option<String>),
}

/// One container.
#[derive(Clone, Debug)]
pub struct Ctr {
    pub phase: Phase,
    /// Restarts so far; the number of the newest container's attempt.
    pub restarts: u32,
    /// True once any container of this name was made.
    pub made: bool,
    /// The exit before the one in `phase`.
    pub last: Option<Box<Exit>>,
    /// Image reference and id as the runtime reports them.
    pub image: String,
    pub image_id: String,
    pub crash: Option<Backoff>,
    pub pull: Option<Backoff>,
    /// Startup done (no probe: running).
    pub started: bool,
    /// Last verdict of the readiness probe.
    pub probe_ready: bool,
    /// What the node gave it of processors and memory.
    pub allocated: Option<Resources>,
    /// What it runs with.
    pub resources: Option<Resources>,
}

/// Where a container is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Nothing runs; `why` says what stood in the way, `retry_at` when to try again (none: at once).
    Waiting {
        why: Option<Failure>,
        retry_at: Option<Timestamp>,
    },
    /// A start is under way: image, configuration, create, start, post-start hook.
    Starting {
        exit: Option<Box<Exit>>,
        why: Option<Failure>,
        aborted: bool,
        /// An exit that was seen before the start was reported.
        early: Option<Box<Exit>>,
    },
    Running(Run),
    /// Gone. `why` replaces the terminated state while a restart waits.
    Exited {
        exit: Box<Exit>,
        why: Option<Failure>,
        retry_at: Option<Timestamp>,
    },
}

/// A container that runs.
#[derive(Clone, Debug)]
pub struct Run {
    pub id: String,
    pub at: Timestamp,
    /// Its stop is under way and will be forced at this time.
    pub stopping: Option<Timestamp>,
}

/// A container that was made: its id, and its image as the runtime names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    pub id: String,
    pub image: String,
    pub image_id: String,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub id: String,
    pub code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    pub message: Option<String>,
    pub started: Option<Timestamp>,
    pub finished: Timestamp,
}

/// A doubling delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub delay: Duration,
    /// When the delay was last raised.
    pub updated: Timestamp,
}

impl Backoff {
    /// The delay after this one; forgotten when the last raise is older than twice `max` (upstream's rule: ten
    /// minutes for containers).
    pub fn next(previous: Option<Backoff>, first: Duration, max: Duration, now: Timestamp) -> Backoff {
        let delay = match previous {
            Some(p) if now.duration_since(p.updated).unsigned_abs() <= max * 2 => (p.delay * 2).min(max),
            _ => first,
        };
        Backoff { delay, updated: now }
    }
}

impl PodState {
    /// A pod that this node sees for the first time.
    pub fn new(spec: Arc<Spec>, now: Timestamp) -> PodState {
        let containers = spec.containers.iter().map(|_| Ctr::new()).collect();
        PodState {
            spec,
            start_time: now,
            network: Step::NEW,
            volumes: Step::NEW,
            ips: Vec::new(),
            containers,
            stop: None,
            deleting: false,
            resize: None,
            failure: None,
            teardown: Teardown::No,
        }
    }

    /// Spec and state of each container, in start order.
    pub fn each(&self) -> impl DoubleEndedIterator<Item = (usize, &ContainerSpec, &Ctr)> {
        self.spec.containers.iter().zip(&self.containers).enumerate().map(|(i, (s, c))| (i, s, c))
    }

    /// True when everything of the pod is down and it will not run again.
    pub fn is_finished(&self) -> bool {
        self.stop.is_some() && self.containers.iter().all(|c| !c.is_active())
    }
}

impl Ctr {
    /// A container that was never started.
    pub fn new() -> Ctr {
        Ctr {
            phase: Phase::Waiting { why: None, retry_at: None },
            restarts: 0,
            made: false,
            last: None,
            image: String::new(),
            image_id: String::new(),
            crash: None,
            pull: None,
            started: false,
            probe_ready: false,
            allocated: None,
            resources: None,
        }
    }

    /// True while something of it runs or is being started.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Running(_))
    }

    /// The run, if it runs.
    pub fn run(&self) -> Option<&Run> {
        match &self.phase {
            Phase::Running(run) => Some(run),
            _ => None,
        }
    }

    /// The newest exit, whatever follows it.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            Phase::Exited { exit, .. } => Some(exit),
            Phase::Starting { exit, .. } => exit.as_deref(),
            _ => None,
        }
    }

    /// True if it ran to its end with code 0.
    pub fn succeeded(&self) -> bool {
        matches!(&self.phase, Phase::Exited { exit, .. } if exit.code == 0)
    }
}

impl Default for Ctr {
    fn default() -> Self {
        Ctr::new()
    }
}

impl Exit {
    /// The exit a failed start is reported as (upstream and containerd: code 128, `StartError`, a start that
    /// never was written as the beginning of time).
    pub fn start_error(id: String, message: String, now: Timestamp) -> Exit {
        Exit {
            id,
            code: 128,
            signal: None,
            reason: "StartError".into(),
            message: Some(message),
            started: Some(Timestamp::UNIX_EPOCH),
            finished: now,
        }
    }
}

/// Delay before the `failures`-th retry of a set-up step.
pub fn setup_delay(failures: u32) -> Duration {
    (limits::SETUP_RETRY_FIRST * 2u32.saturating_pow(failures.saturating_sub(1).min(8))).min(limits::SETUP_RETRY_MAX)
}
