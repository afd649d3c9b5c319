//! What the state machine needs to know of a pod's spec: containers in start order, their kinds, policies and
//! which probes they have. Built again when the spec changes, which never moves a container: ephemeral ones are added at
//! the end.

use std::time::Duration;

use crate::limits;
use crate::model::{Container, Pod, RestartRule};

/// A container's part in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// A restartable init container: started in order, runs beside the main ones, stopped after them.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Added to a running pod to look at it: started once, whatever the others do.
    Ephemeral,
}

/// When an exited container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    fn parse(text: &str) -> Restart {
        match text {
            "Never" => Restart::Never,
            "OnFailure" => Restart::OnFailure,
            _ => Restart::Always,
        }
    }
}

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Liveness,
    Readiness,
    Startup,
}

impl ProbeKind {
    /// The word upstream's messages use: `Liveness`.
    pub fn word(self) -> &'static str {
        match self {
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Startup => "Startup",
        }
    }
}

/// One container as the state machine sees it.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub name: Box<str>,
    pub kind: Kind,
    pub restart: Restart,
    pub rules: Box<[RestartRule]>,
    pub has_startup: bool,
    pub has_readiness: bool,
    pub has_liveness: bool,
    /// Grace of a kill by the liveness and startup probes, when the probe sets one.
    pub liveness_grace: Option<Duration>,
    pub startup_grace: Option<Duration>,
}

impl ContainerSpec {
    /// Whether a container that exited with `code` is started again (Kubernetes' restartPolicy, and since 1.35
    /// restartPolicyRules: the first rule whose exit codes match decides).
    pub fn restarts_after(&self, code: i32) -> bool {
        for rule in &self.rules {
            let Some(codes) = &rule.exit_codes else { continue };
            let listed = codes.values.contains(&code);
            if listed == (codes.operator != "NotIn") && rule.action.starts_with("Restart") {
                return true;
            }
        }
        match self.restart {
            Restart::Always => true,
            Restart::OnFailure => code != 0,
            Restart::Never => false,
        }
    }
}

/// A pod as the state machine sees it.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `name_namespace(uid)`, for messages.
    pub full_name: Box<str>,
    pub restart: Restart,
    /// Init containers in order, then the main ones in order.
    pub containers: Box<[ContainerSpec]>,
    pub deadline: Option<Duration>,
    pub grace: Duration,
}

impl Spec {
    /// Reads what matters from a pod.
    pub fn of(pod: &Pod) -> Spec {
        let restart = Restart::parse(&pod.spec.restart_policy);
        let init = pod.spec.init_containers.iter().map(|c| {
            if c.restart_policy.as_deref() == Some("Always") {
                container(c, Kind::Sidecar, Restart::Always)
            } else {
                // An init container of an `Always` pod is retried only when it fails.
                let inherited = if restart == Restart::Always { Restart::OnFailure } else { restart };
                let own = c.restart_policy.as_deref().map(Restart::parse);
                container(c, Kind::Init, own.unwrap_or(inherited))
            }
        });
        let main = pod
            .spec
            .containers
            .iter()
            .map(|c| container(c, Kind::Main, c.restart_policy.as_deref().map_or(restart, Restart::parse)));
        let ephemeral = pod.spec.ephemeral_containers.iter();
        let ephemeral = ephemeral.map(|c| container(c, Kind::Ephemeral, Restart::Never));
        Spec {
            full_name: pod.full_name().into(),
            restart,
            containers: init.chain(main).chain(ephemeral).collect(),
            deadline: pod.spec.active_deadline_seconds.map(seconds),
            grace: pod.spec.termination_grace_period_seconds.map_or(limits::DEFAULT_GRACE, seconds),
        }
    }

    /// Position of the container of that name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| &*c.name == name)
    }

    /// True if the pod has init containers of either kind.
    pub fn has_init(&self) -> bool {
        self.containers.first().is_some_and(|c| matches!(c.kind, Kind::Init | Kind::Sidecar))
    }
}

/// Seconds of an API field as a duration, at least zero and at most ten years.
pub fn seconds(n: i64) -> Duration {
    Duration::from_secs(n.clamp(0, 315_360_000).unsigned_abs())
}

fn container(c: &Container, kind: Kind, restart: Restart) -> ContainerSpec {
    let probed = matches!(kind, Kind::Main | Kind::Sidecar);
    let grace =
        |p: &Option<Box<crate::model::Probe>>| p.as_ref().and_then(|p| p.termination_grace_period_seconds).map(seconds);
    ContainerSpec {
        name: c.name.as_str().into(),
        kind,
        restart,
        rules: c.restart_policy_rules.clone().into(),
        has_startup: probed && c.startup_probe.is_some(),
        has_readiness: probed && c.readiness_probe.is_some(),
        has_liveness: probed && c.liveness_probe.is_some(),
        liveness_grace: grace(&c.liveness_probe),
        startup_grace: grace(&c.startup_probe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RestartExitCodes;

    #[test]
    fn restart_decisions() {
        let rule = |op: &str, values: &[i32]| RestartRule {
            action: "Restart".into(),
            exit_codes: Some(RestartExitCodes { operator: op.into(), values: values.to_vec() }),
        };
        let cases: &[(Restart, Vec<RestartRule>, i32, bool)] = &[
            (Restart::Always, vec![], 0, true),
            (Restart::OnFailure, vec![], 0, false),
            (Restart::OnFailure, vec![], 3, true),
            (Restart::Never, vec![], 3, false),
            (Restart::Never, vec![rule("In", &[42])], 42, true),
            (Restart::Never, vec![rule("In", &[42])], 41, false),
            (Restart::Never, vec![rule("NotIn", &[42])], 41, true),
            (Restart::Never, vec![rule("NotIn", &[42])], 42, false),
        ];
        for (restart, rules, code, expected) in cases {
            let spec = ContainerSpec {
                name: "c".into(),
                kind: Kind::Main,
                restart: *restart,
                rules: rules.clone().into(),
                has_startup: false,
                has_readiness: false,
                has_liveness: false,
                liveness_grace: None,
                startup_grace: None,
            };
            assert_eq!(spec.restarts_after(*code), *expected, "{restart:?} {rules:?} {code}");
        }
    }
}
