//! Which container is started or stopped next: the planning half of [`super::machine`].

use std::time::Duration;

use jiff::Timestamp;

use super::machine::{Action, StopReason, initialized};
use super::spec::Kind;
use super::state::{Backoff, Failure, Phase, PodState, Stop, Teardown};
use crate::limits;

/// What the state of one container asks for.
enum Wish {
    /// Nothing to do and nothing to wait for.
    Fine,
    /// To be started now.
    Start,
    /// Under way or waiting for its time.
    Busy,
    /// Ended for good; with success or not.
    Ended(bool),
}

/// Starts what is due. One start at a time, in the order of the spec, as upstream: a post-start hook of one
/// container holds back the next.
pub(super) fn plan_containers(state: &mut PodState, now: Timestamp, out: &mut Vec<Action>) {
    show_pull_backoff(state, now, out);
    let mut start = None;
    let mut init_done = initialized(state);
    let mut ended = 0;
    let mut failed_init = false;
    let mains = state.spec.containers.iter().filter(|c| c.kind == Kind::Main).count();
    let was_initialized = init_done;
    if !was_initialized {
        init_done = true;
    }
    // Ephemeral containers wait for nobody, and nobody waits for them.
    for (index, ..) in state.each().filter(|(_, spec, _)| spec.kind == Kind::Ephemeral) {
        if matches!(wish(state, index, now), Wish::Start) {
            start = start.or(Some(index));
        }
    }
    for (index, spec, c) in state.each() {
        let wish = wish(state, index, now);
        match spec.kind {
            Kind::Ephemeral => {}
            Kind::Init if was_initialized => {}
            Kind::Init => match wish {
                Wish::Ended(true) => {}
                Wish::Ended(false) => {
                    failed_init = true;
                    break;
                }
                Wish::Start => {
                    start = start.or(Some(index));
                    init_done = false;
                    break;
                }
                Wish::Busy | Wish::Fine => {
                    init_done = false;
                    break;
                }
            },
            Kind::Sidecar => {
                if matches!(wish, Wish::Start) {
                    start = start.or(Some(index));
                }
                let runs = c.started && c.run().is_some();
                if !(was_initialized || runs) {
                    init_done = false;
                    break;
                }
            }
            Kind::Main if !init_done => break,
            Kind::Main => match wish {
                Wish::Start => start = start.or(Some(index)),
                Wish::Ended(_) => ended += 1,
                Wish::Fine | Wish::Busy => {}
            },
        }
    }
    if failed_init || (init_done && ended == mains) {
        state.stop = Some(Stop { deadline: now + state.spec.grace });
        return;
    }
    let starting = state.containers.iter().any(|c| matches!(c.phase, Phase::Starting { .. }));
    if let Some(index) = start
        && !starting
    {
        begin(state, index, now, out);
    }
}

fn wish(state: &PodState, index: usize, now: Timestamp) -> Wish {
    let due = |retry_at: &Option<Timestamp>| retry_at.is_none_or(|t| t <= now);
    match &state.containers[index].phase {
        Phase::Waiting { retry_at, .. } if due(retry_at) => Wish::Start,
        Phase::Waiting { .. } | Phase::Starting { .. } => Wish::Busy,
        Phase::Running(_) => Wish::Fine,
        Phase::Exited { exit, .. } if !state.spec.containers[index].restarts_after(exit.code) => {
            Wish::Ended(exit.code == 0)
        }
        Phase::Exited { retry_at, .. } if due(retry_at) => Wish::Start,
        Phase::Exited { .. } => Wish::Busy,
    }
}

fn begin(state: &mut PodState, index: usize, now: Timestamp, out: &mut Vec<Action>) {
    let c = &mut state.containers[index];
    let (exit, why) = match std::mem::replace(&mut c.phase, Phase::Waiting { why: None, retry_at: None }) {
        Phase::Exited { exit, why, .. } => {
            c.crash = Some(Backoff::next(c.crash, limits::CRASH_BACKOFF_FIRST, limits::CRASH_BACKOFF_MAX, now));
            (Some(exit), why)
        }
        Phase::Waiting { why, .. } => (None, why),
        Phase::Starting { exit, why, .. } => (exit, why),
        Phase::Running(_) => (None, None),
    };
    c.phase = Phase::Starting { exit, why, aborted: false, early: None };
    let attempt = if c.made { c.restarts + 1 } else { 0 };
    out.push(Action::Start { index, attempt });
}

/// `ErrImagePull` is shown for a while, then `ImagePullBackOff` until the next attempt.
fn show_pull_backoff(state: &mut PodState, now: Timestamp, out: &mut Vec<Action>) {
    for (index, c) in state.containers.iter_mut().enumerate() {
        let Phase::Waiting { why: Some(why), retry_at } = &mut c.phase else { continue };
        let Some(pull) = c.pull else { continue };
        if why.reason != "ErrImagePull"
            || now < pull.updated + limits::PULL_ERROR_SHOWN
            || retry_at.is_none_or(|t| t <= now)
        {
            continue;
        }
        let message = format!("Back-off pulling image \"{}\"", c.image);
        *why =
            Failure { reason: "ImagePullBackOff".into(), message: format!("{message}: ErrImagePull: {}", why.message) };
        out.push(Action::Record { warning: false, reason: "BackOff", message, container: Some(index) });
        out.push(Action::Record {
            warning: true,
            reason: "Failed",
            message: "Error: ImagePullBackOff".into(),
            container: Some(index),
        });
    }
}

/// Main containers (and a running init container) first, all at once; then sidecars one by one from the last to
/// the first; then network and volumes; then the API object.
pub(super) fn plan_stop(state: &mut PodState, now: Timestamp, out: &mut Vec<Action>) {
    let Some(stop) = state.stop.clone() else { return };
    let spec = state.spec.clone();
    let left = Duration::try_from(stop.deadline.duration_since(now)).unwrap_or_default();
    for (index, c) in state.containers.iter_mut().enumerate() {
        if let Phase::Starting { aborted: aborted @ false, .. } = &mut c.phase {
            *aborted = true;
            out.push(Action::AbortStart { index });
        }
        if let Phase::Exited { why, retry_at, .. } = &mut c.phase {
            *why = None;
            *retry_at = None;
        }
    }
    let mut mains_up = false;
    for (index, spec) in spec.containers.iter().enumerate() {
        if spec.kind == Kind::Sidecar {
            continue;
        }
        mains_up |= state.containers[index].is_active();
        stop_one(state, index, left, now, out);
    }
    if mains_up {
        return;
    }
    for (index, spec) in spec.containers.iter().enumerate().rev() {
        if spec.kind == Kind::Sidecar && state.containers[index].is_active() {
            stop_one(state, index, left.max(limits::MIN_GRACE), now, out);
            return;
        }
    }
    match state.teardown {
        Teardown::No => {
            state.teardown = Teardown::Running;
            out.push(Action::TearDown);
        }
        Teardown::Done if state.deleting => {
            state.teardown = Teardown::Deleting;
            out.push(Action::DeletePod);
        }
        _ => {}
    }
}

fn stop_one(state: &mut PodState, index: usize, grace: Duration, now: Timestamp, out: &mut Vec<Action>) {
    let name = state.spec.containers[index].name.clone();
    let Phase::Running(run) = &mut state.containers[index].phase else { return };
    if run.stopping.is_some() {
        return;
    }
    run.stopping = Some(now + grace);
    out.push(Action::EndProbes { index, readiness: false });
    out.push(Action::Record {
        warning: false,
        reason: "Killing",
        message: format!("Stopping container {name}"),
        container: Some(index),
    });
    out.push(Action::Stop { index, grace, reason: StopReason::PodStops });
}
