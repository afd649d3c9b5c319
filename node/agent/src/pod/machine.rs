//! The pod state machine: `(state, event) → (state, actions)`. Pure: the clock comes in with the event, everything
//! that must happen goes out as [`Action`]s, and what came of them comes back as [`Event`]s. The order of things
//! is upstream's kubelet's (network and volumes, init containers and sidecars in order, main containers in order;
//! down in reverse), without its polling: [`wake`] says when time alone would change something.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::spec::{Kind, ProbeKind};
use super::state::{Backoff, Exit, Failure, Made, Phase, PodState, Run, Step, Stop, Teardown, setup_delay};
use crate::limits;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed, or the pod was adopted: look again.
    Wake,
    /// The pod was found running: its probes start again.
    Adopted,
    /// The node refuses the pod.
    Rejected(Failure),
    NetworkReady(Vec<IpAddr>),
    NetworkFailed(String),
    VolumesReady,
    VolumesFailed(String),
    /// Container `index` runs.
    Started {
        index: usize,
        id: String,
        image: String,
        image_id: String,
        at: Timestamp,
    },
    /// Its start did not get that far.
    StartFailed {
        index: usize,
        error: StartError,
    },
    Exited {
        index: usize,
        exit: Exit,
    },
    /// A probe reached its threshold.
    Probe {
        index: usize,
        id: String,
        kind: ProbeKind,
        ok: bool,
    },
    /// Container `index` is to be started again with other resources.
    Restart {
        index: usize,
    },
    /// A ConfigMap or Secret the pod refers to appeared or changed.
    ReferenceChanged,
    /// The pod is to go down within `grace`; `deleting` if the API object is to be deleted.
    Delete {
        grace: Duration,
    },
    /// The node evicts the pod.
    Evict {
        failure: Failure,
        grace: Duration,
    },
    /// Network and volumes are gone.
    TornDown,
}

/// Why a start failed.
#[derive(Clone, Debug)]
pub enum StartError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, …: retried with the image's own back-off.
    Image { reason: &'static str, message: String, image: String },
    /// `CreateContainerConfigError`: retried when a referenced object changes, and now and then.
    Config { reason: &'static str, message: String },
    /// `CreateContainerError`.
    Create { message: String },
    /// `RunContainerError`: the container was made but did not start.
    Run { made: Made, message: String },
    /// `PostStartHookError`: it ran, the hook failed, it was stopped again.
    PostStart { made: Made, message: String, exit: Exit },
    /// The start was aborted before anything was made.
    Aborted,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    SetupNetwork,
    SetupVolumes,
    /// Make and start container `index` as attempt number `attempt`.
    Start {
        index: usize,
        attempt: u32,
    },
    /// Give up a start under way as soon as that is possible.
    AbortStart {
        index: usize,
    },
    /// Pre-stop hook, stop signal, SIGKILL, all within `grace`. A second one shortens the first.
    Stop {
        index: usize,
        grace: Duration,
        reason: StopReason,
    },
    StartProbe {
        index: usize,
        kind: ProbeKind,
    },
    /// End the container's probes; `readiness` says whether that one too.
    EndProbes {
        index: usize,
        readiness: bool,
    },
    /// Remove network and volumes.
    TearDown,
    /// Final status, then DELETE with grace 0.
    DeletePod,
    /// An event about the pod or one of its containers.
    Record {
        warning: bool,
        reason: &'static str,
        message: String,
        container: Option<usize>,
    },
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    PodStops,
    Liveness,
    Startup,
    Resize,
}

/// Applies an event, then plans.
pub fn step(mut state: PodState, event: Event, now: Timestamp) -> (PodState, Vec<Action>) {
    let mut actions = Vec::new();
    apply(&mut state, event, now, &mut actions);
    plan(&mut state, now, &mut actions);
    (state, actions)
}

/// The next moment at which time alone changes something.
pub fn wake(state: &PodState) -> Option<Timestamp> {
    let mut next: Option<Timestamp> = None;
    let mut at = |t: Option<Timestamp>| {
        if let Some(t) = t {
            next = Some(next.map_or(t, |n| n.min(t)));
        }
    };
    if state.stop.is_none() {
        at(state.spec.deadline.map(|d| state.start_time + d));
        for s in [&state.network, &state.volumes] {
            if let Step::Todo { retry_at, .. } = s {
                at(*retry_at);
            }
        }
        for c in &state.containers {
            match &c.phase {
                Phase::Waiting { retry_at, why } => {
                    at(*retry_at);
                    // ErrImagePull turns into ImagePullBackOff after a while.
                    if why.as_ref().is_some_and(|w| w.reason == "ErrImagePull") {
                        at(c.pull.map(|b| b.updated + limits::PULL_ERROR_SHOWN));
                    }
                }
                Phase::Exited { retry_at, .. } => at(*retry_at),
                _ => {}
            }
        }
    }
    next
}

fn apply(state: &mut PodState, event: Event, now: Timestamp, out: &mut Vec<Action>) {
    match event {
        Event::Wake => {}
        Event::Adopted => {
            for index in 0..state.containers.len() {
                let spec = &state.spec.containers[index];
                let c = &mut state.containers[index];
                if c.run().is_none() {
                    continue;
                }
                if spec.has_startup && !c.started {
                    out.push(Action::StartProbe { index, kind: ProbeKind::Startup });
                } else {
                    c.started = true;
                    start_probes(state, index, out);
                }
            }
        }
        Event::Rejected(failure) => {
            out.push(Action::Record {
                warning: true,
                reason: known_reason(&failure.reason),
                message: failure.message.clone(),
                container: None,
            });
            state.failure = Some(failure);
            state.stop = Some(Stop { deadline: now });
        }
        Event::NetworkReady(ips) => {
            state.ips = ips;
            state.network = Step::Done;
        }
        Event::NetworkFailed(message) => {
            let message = format!("Failed to create pod sandbox: {message}");
            out.push(record(true, "FailedCreatePodSandBox", message, None));
            retry(&mut state.network, now);
        }
        Event::VolumesReady => state.volumes = Step::Done,
        Event::VolumesFailed(message) => {
            out.push(record(true, "FailedMount", message, None));
            retry(&mut state.volumes, now);
        }
        Event::Started { index, id, image, image_id, at } => {
            let early = started(state, index, id, image, image_id, at, out);
            if let Some(exit) = early {
                exited(state, index, *exit, now, out);
            }
        }
        Event::StartFailed { index, error } => start_failed(state, index, error, now, out),
        Event::Exited { index, exit } => exited(state, index, exit, now, out),
        Event::Probe { index, id, kind, ok } => probed(state, index, &id, kind, ok, now, out),
        Event::Restart { index } => {
            let grace = state.spec.grace;
            let name = &state.spec.containers[index].name;
            let message = format!("Container {name} resize requires restart");
            if let Phase::Running(run @ Run { stopping: None, .. }) = &mut state.containers[index].phase {
                run.stopping = Some(now + grace);
                out.push(record(false, "Killing", message, Some(index)));
                out.push(Action::EndProbes { index, readiness: false });
                out.push(Action::Stop { index, grace, reason: StopReason::Resize });
            }
        }
        Event::ReferenceChanged => {
            for s in [&mut state.volumes, &mut state.network] {
                if let Step::Todo { retry_at, .. } = s {
                    *retry_at = None;
                }
            }
            for c in &mut state.containers {
                if let Phase::Waiting { why: Some(why), retry_at } = &mut c.phase
                    && why.reason == "CreateContainerConfigError"
                {
                    *retry_at = None;
                }
            }
        }
        Event::Delete { grace } => {
            state.deleting = true;
            stop_pod(state, grace.max(Duration::from_secs(1)), now, out);
        }
        Event::Evict { failure, grace } => {
            if state.stop.is_none() {
                out.push(record(true, known_reason(&failure.reason), failure.message.clone(), None));
                state.failure = Some(failure);
                stop_pod(state, grace, now, out);
            }
        }
        Event::TornDown => state.teardown = Teardown::Done,
    }
}

fn record(warning: bool, reason: &'static str, message: String, container: Option<usize>) -> Action {
    Action::Record { warning, reason, message, container }
}

/// Event reasons are a fixed set; those of a rejected or evicted pod are looked up in it.
fn known_reason(reason: &str) -> &'static str {
    const KNOWN: [&str; 10] = [
        "OutOfcpu",
        "OutOfmemory",
        "OutOfpods",
        "OutOfephemeral-storage",
        "NodeAffinity",
        "NodePorts",
        "SysctlForbidden",
        "Evicted",
        "DeadlineExceeded",
        "Taint",
    ];
    KNOWN.iter().find(|k| **k == reason).copied().unwrap_or("Failed")
}

fn retry(step: &mut Step, now: Timestamp) {
    let failures = match step {
        Step::Running { failures } | Step::Todo { failures, .. } => *failures + 1,
        Step::Done => 1,
    };
    *step = Step::Todo { retry_at: Some(now + setup_delay(failures)), failures };
}

fn started(
    state: &mut PodState,
    index: usize,
    id: String,
    image: String,
    image_id: String,
    at: Timestamp,
    out: &mut Vec<Action>,
) -> Option<Box<Exit>> {
    let spec = &state.spec.containers[index];
    let c = &mut state.containers[index];
    let mut seen = None;
    if let Phase::Starting { exit, early, .. } = &mut c.phase {
        c.last = exit.take().or(c.last.take());
        seen = early.take().filter(|e| e.id == id);
    }
    if c.made {
        c.restarts += 1;
    }
    c.made = true;
    c.image = image;
    c.image_id = image_id;
    c.pull = None;
    c.probe_ready = false;
    c.started = !spec.has_startup;
    c.phase = Phase::Running(Run { id, at, stopping: None });
    if state.stop.is_some() || seen.is_some() {
        return seen;
    }
    if spec.has_startup {
        out.push(Action::StartProbe { index, kind: ProbeKind::Startup });
    } else {
        start_probes(state, index, out);
    }
    None
}

fn start_probes(state: &PodState, index: usize, out: &mut Vec<Action>) {
    let spec = &state.spec.containers[index];
    if spec.has_liveness {
        out.push(Action::StartProbe { index, kind: ProbeKind::Liveness });
    }
    if spec.has_readiness {
        out.push(Action::StartProbe { index, kind: ProbeKind::Readiness });
    }
}

fn start_failed(state: &mut PodState, index: usize, error: StartError, now: Timestamp, out: &mut Vec<Action>) {
    let c = &mut state.containers[index];
    let Phase::Starting { exit, .. } = &mut c.phase else { return };
    let previous = exit.take();
    match error {
        StartError::Aborted => {
            c.phase = match previous {
                Some(exit) => Phase::Exited { exit, why: None, retry_at: None },
                None => Phase::Waiting { why: None, retry_at: None },
            };
        }
        StartError::Image { reason, message, image } => {
            let backoff = Backoff::next(c.pull, limits::PULL_BACKOFF_FIRST, limits::PULL_BACKOFF_MAX, now);
            c.pull = Some(backoff);
            c.image = image;
            out.push(record(true, "Failed", format!("Error: {reason}"), Some(index)));
            c.last = previous.or(c.last.take());
            c.phase = Phase::Waiting {
                why: Some(Failure { reason: reason.into(), message }),
                retry_at: Some(now + backoff.delay),
            };
        }
        StartError::Config { reason, message } => {
            out.push(record(true, "Failed", format!("Error: {message}"), Some(index)));
            c.last = previous.or(c.last.take());
            c.phase = Phase::Waiting {
                why: Some(Failure { reason: reason.into(), message }),
                retry_at: Some(now + limits::CONFIG_RETRY),
            };
        }
        StartError::Create { message } => {
            out.push(record(true, "Failed", format!("Error: {message}"), Some(index)));
            let backoff = Backoff::next(c.crash, limits::CRASH_BACKOFF_FIRST, limits::CRASH_BACKOFF_MAX, now);
            c.crash = Some(backoff);
            c.last = previous.or(c.last.take());
            c.phase = Phase::Waiting {
                why: Some(Failure { reason: "CreateContainerError".into(), message }),
                retry_at: Some(now + backoff.delay),
            };
        }
        StartError::Run { made, message } => {
            out.push(record(true, "Failed", format!("Error: {message}"), Some(index)));
            let exit = Exit::start_error(made.id.clone(), message.clone(), now);
            let why = Failure { reason: "RunContainerError".into(), message };
            failed_run(state, index, previous, (made, exit), why, now);
        }
        StartError::PostStart { made, message, exit } => {
            out.push(record(true, "FailedPostStartHook", "PostStartHook failed".into(), Some(index)));
            let why = Failure { reason: "PostStartHookError".into(), message };
            failed_run(state, index, previous, (made, exit), why, now);
        }
    }
}

/// A container that was made, and is gone before it counted as started.
fn failed_run(
    state: &mut PodState,
    index: usize,
    previous: Option<Box<Exit>>,
    (made, exit): (Made, Exit),
    why: Failure,
    now: Timestamp,
) {
    let again = state.spec.containers[index].restarts_after(exit.code);
    let c = &mut state.containers[index];
    c.last = previous.or(c.last.take());
    if c.made {
        c.restarts += 1;
    }
    c.made = true;
    c.image = made.image;
    c.image_id = made.image_id;
    let backoff = Backoff::next(c.crash, limits::CRASH_BACKOFF_FIRST, limits::CRASH_BACKOFF_MAX, now);
    c.crash = Some(backoff);
    c.phase =
        Phase::Exited { exit: Box::new(exit), why: again.then_some(why), retry_at: again.then(|| now + backoff.delay) };
}

fn exited(state: &mut PodState, index: usize, exit: Exit, now: Timestamp, out: &mut Vec<Action>) {
    let spec = state.spec.clone();
    let c = &mut state.containers[index];
    if let Phase::Starting { early, .. } = &mut c.phase {
        *early = Some(Box::new(exit));
        return;
    }
    if c.run().is_none_or(|run| run.id != exit.id) {
        return;
    }
    out.push(Action::EndProbes { index, readiness: true });
    c.started = false;
    c.probe_ready = false;
    let again = state.stop.is_none() && spec.containers[index].restarts_after(exit.code);
    let mut why = None;
    let mut retry_at = None;
    if again {
        // Upstream: the first restart comes at once, later ones wait as long as the previous raise says.
        match c.crash {
            Some(b) if exit.finished.duration_since(b.updated).unsigned_abs() <= limits::CRASH_BACKOFF_RESET => {
                let due = exit.finished + b.delay;
                if due > now {
                    retry_at = Some(due);
                    why = Some(crash_loop(&spec.containers[index].name, &spec.full_name, b.delay));
                    let message = format!(
                        "Back-off restarting failed container {} in pod {}",
                        spec.containers[index].name, spec.full_name
                    );
                    out.push(record(true, "BackOff", message, Some(index)));
                }
            }
            _ => c.crash = None,
        }
    }
    c.phase = Phase::Exited { exit: Box::new(exit), why, retry_at };
}

/// The waiting state of a crash-looping container, in upstream's words.
pub fn crash_loop(container: &str, pod: &str, delay: Duration) -> Failure {
    Failure {
        reason: "CrashLoopBackOff".into(),
        message: format!("back-off {} restarting failed container={container} pod={pod}", go_duration(delay)),
    }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(d: Duration) -> String {
    let s = d.as_secs();
    match (s / 3600, s % 3600 / 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

fn probed(
    state: &mut PodState,
    index: usize,
    id: &str,
    kind: ProbeKind,
    ok: bool,
    now: Timestamp,
    out: &mut Vec<Action>,
) {
    let spec = state.spec.clone();
    let c = &mut state.containers[index];
    let Phase::Running(run) = &mut c.phase else { return };
    if run.id != id {
        return;
    }
    let name = &spec.containers[index].name;
    let kill = |reason, grace: Option<Duration>, run: &mut Run, out: &mut Vec<Action>| {
        if run.stopping.is_some() {
            return;
        }
        let grace = grace.unwrap_or(spec.grace);
        run.stopping = Some(now + grace);
        let word = if reason == StopReason::Liveness { "liveness" } else { "startup" };
        let message = format!("Container {name} failed {word} probe, will be restarted");
        out.push(record(false, "Killing", message, Some(index)));
        out.push(Action::EndProbes { index, readiness: false });
        out.push(Action::Stop { index, grace, reason });
    };
    match (kind, ok) {
        (ProbeKind::Readiness, ok) => c.probe_ready = ok,
        (ProbeKind::Liveness, true) => {}
        (ProbeKind::Liveness, false) => {
            kill(StopReason::Liveness, spec.containers[index].liveness_grace, run, out);
        }
        (ProbeKind::Startup, false) => {
            kill(StopReason::Startup, spec.containers[index].startup_grace, run, out);
        }
        (ProbeKind::Startup, true) => {
            if !c.started {
                c.started = true;
                if state.stop.is_none() {
                    start_probes(state, index, out);
                }
            }
        }
    }
}

/// Begins the end of a pod, or shortens it.
fn stop_pod(state: &mut PodState, grace: Duration, now: Timestamp, out: &mut Vec<Action>) {
    let deadline = now + grace;
    match &mut state.stop {
        Some(stop) if stop.deadline <= deadline => {}
        Some(stop) => {
            stop.deadline = deadline;
            for (index, c) in state.containers.iter_mut().enumerate() {
                if let Phase::Running(run) = &mut c.phase
                    && run.stopping.is_some_and(|at| at > deadline)
                {
                    run.stopping = Some(deadline);
                    out.push(Action::Stop { index, grace, reason: StopReason::PodStops });
                }
            }
        }
        None => state.stop = Some(Stop { deadline }),
    }
}

fn plan(state: &mut PodState, now: Timestamp, out: &mut Vec<Action>) {
    if state.stop.is_none() {
        check_deadline(state, now, out);
    }
    if state.stop.is_none() {
        plan_setup(state, now, out);
    }
    if state.stop.is_none() && state.network == Step::Done && state.volumes == Step::Done {
        super::order::plan_containers(state, now, out);
    }
    if state.stop.is_some() {
        super::order::plan_stop(state, now, out);
    }
}

fn check_deadline(state: &mut PodState, now: Timestamp, out: &mut Vec<Action>) {
    let Some(deadline) = state.spec.deadline else { return };
    if now < state.start_time + deadline {
        return;
    }
    let message = "Pod was active on the node longer than the specified deadline";
    out.push(record(false, "DeadlineExceeded", message.into(), None));
    state.failure = Some(Failure { reason: "DeadlineExceeded".into(), message: message.into() });
    stop_pod(state, state.spec.grace, now, out);
}

fn plan_setup(state: &mut PodState, now: Timestamp, out: &mut Vec<Action>) {
    for (step, action) in [(&mut state.network, Action::SetupNetwork), (&mut state.volumes, Action::SetupVolumes)] {
        if let Step::Todo { retry_at, failures } = *step
            && retry_at.is_none_or(|t| t <= now)
        {
            *step = Step::Running { failures };
            out.push(action);
        }
    }
}

/// True once every init container is through: regular ones succeeded, sidecars started at least once.
pub fn initialized(state: &PodState) -> bool {
    // Once a main container was made, the pod stays initialized, whatever a sidecar does later.
    state.each().any(|(_, s, c)| s.kind == Kind::Main && (c.made || c.is_active()))
        || state.each().all(|(_, s, c)| match s.kind {
            Kind::Init => c.succeeded(),
            Kind::Sidecar => c.started && c.run().is_some(),
            Kind::Main | Kind::Ephemeral => true,
        })
}
