//! Runs the probes of containers. One task per probe; it sleeps until its next time, asks once, and reports to the
//! pod's worker only when a threshold is reached. Network probes go from the node to the pod's address.

pub mod grpc;
pub mod http;
pub mod tcp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::task::AbortHandle;

use crate::model::{Container, Handler, Probe};
use crate::pod::spec::ProbeKind;
use crate::seams::Containers;

/// What one attempt said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The answer was no; upstream's message follows `… probe failed: `.
    Failure(String),
    /// It could not be asked (upstream: `… probe errored and resulted in unknown state: `).
    Error(String),
}

/// Everything a probe needs to know of its container.
#[derive(Clone)]
pub struct Target {
    pub container: Arc<Container>,
    pub id: String,
    pub ip: Option<IpAddr>,
    pub runtime: Arc<dyn Containers>,
}

/// Counts outcomes against the thresholds. Pure.
#[derive(Debug)]
pub struct Thresholds {
    success: u32,
    failure: u32,
    run: u32,
    last_ok: Option<bool>,
    verdict: Option<bool>,
}

impl Thresholds {
    /// Of a probe, with upstream's defaults.
    pub fn of(probe: &Probe) -> Thresholds {
        Thresholds {
            success: probe.success_threshold.unwrap_or(1).max(1),
            failure: probe.failure_threshold.unwrap_or(3).max(1),
            run: 0,
            last_ok: None,
            verdict: None,
        }
    }

    /// Takes one outcome in; returns the verdict when it changes.
    pub fn add(&mut self, ok: bool) -> Option<bool> {
        self.run = if self.last_ok == Some(ok) { self.run + 1 } else { 1 };
        self.last_ok = Some(ok);
        let needed = if ok { self.success } else { self.failure };
        if self.run < needed || self.verdict == Some(ok) {
            return None;
        }
        self.verdict = Some(ok);
        Some(ok)
    }
}

/// Starts a probe. `report` gets verdicts, `unhealthy` the message of every failed attempt.
pub fn start(
    target: Target,
    kind: ProbeKind,
    probe: &Probe,
    started: jiff::Timestamp,
    report: impl Fn(bool) + Send + 'static,
    unhealthy: impl Fn(String) + Send + 'static,
) -> AbortHandle {
    let probe = probe.clone();
    tokio::spawn(async move {
        let period = Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1).into());
        let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).into());
        let initial = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).into());
        let age = jiff::Timestamp::now().duration_since(started).unsigned_abs();
        tokio::time::sleep(initial.saturating_sub(age)).await;
        let mut thresholds = Thresholds::of(&probe);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = attempt(&target, &probe.handler, timeout).await;
            let word = kind.word();
            match &outcome {
                Outcome::Success => {}
                Outcome::Failure(m) => unhealthy(format!("{word} probe failed: {m}")),
                Outcome::Error(m) => {
                    unhealthy(format!("{word} probe errored and resulted in unknown state: {m}"));
                }
            }
            // Upstream: what could not be asked counts neither way.
            if matches!(outcome, Outcome::Error(_)) {
                continue;
            }
            if let Some(ok) = thresholds.add(outcome == Outcome::Success) {
                report(ok);
                if kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !ok) {
                    return;
                }
            }
        }
    })
    .abort_handle()
}

/// Asks once.
pub async fn attempt(target: &Target, handler: &Handler, timeout: Duration) -> Outcome {
    let address = |host: &str| {
        if host.is_empty() { target.ip.map(|ip| ip.to_string()) } else { Some(host.to_owned()) }
    };
    let no_ip = || Outcome::Error("the pod has no address yet".to_owned());
    if let Some(exec) = &handler.exec {
        return exec_probe(target, exec.command.clone(), timeout).await;
    }
    if let Some(get) = &handler.http_get {
        let Some(host) = address(&get.host) else { return no_ip() };
        return match port(&get.port, &target.container) {
            Ok(port) => http::probe(get, &host, port, timeout).await,
            Err(e) => Outcome::Error(e),
        };
    }
    if let Some(socket) = &handler.tcp_socket {
        let Some(host) = address(&socket.host) else { return no_ip() };
        return match port(&socket.port, &target.container) {
            Ok(port) => tcp::probe(&host, port, timeout).await,
            Err(e) => Outcome::Error(e),
        };
    }
    if let Some(grpc) = &handler.grpc {
        let Some(host) = address("") else { return no_ip() };
        return grpc::probe(&host, grpc.port, grpc.service.as_deref().unwrap_or_default(), timeout).await;
    }
    Outcome::Error("missing probe handler".to_owned())
}

/// A port number, or the container's port of that name.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(n) => u16::try_from(*n).ok().filter(|p| *p > 0).ok_or(format!("invalid port number: {n}")),
        IntOrString::String(name) => match container.ports.iter().find(|p| p.name == *name) {
            Some(p) => Ok(p.container_port),
            None => name.parse().map_err(|_| format!("couldn't find port: {name}")),
        },
    }
}

/// `host:port`, with brackets for IPv6.
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn exec_probe(target: &Target, command: Vec<String>, timeout: Duration) -> Outcome {
    let text = command.join(" ");
    match target.runtime.exec_sync(&target.id, command, Some(timeout)).await {
        Ok(out) if out.code == 0 => Outcome::Success,
        Ok(out) => {
            let mut bytes = out.stdout;
            bytes.extend(out.stderr);
            bytes.truncate(crate::limits::PROBE_BODY);
            Outcome::Failure(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(sluice_runtime::Error::Timeout { .. }) => {
            Outcome::Failure(format!("command timed out: \"{text}\" timed out after {}s", timeout.as_secs()))
        }
        Err(e) => Outcome::Error(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut t = Thresholds::of(&probe);
        let steps = [
            (true, None),
            (true, Some(true)),
            (true, None),
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
            (false, None),
            (true, None),
            (true, Some(true)),
        ];
        for (i, (ok, expected)) in steps.into_iter().enumerate() {
            assert_eq!(t.add(ok), expected, "step {i}");
        }
    }

    #[test]
    fn ports() {
        let c = Container {
            ports: vec![crate::model::Port { name: "web".into(), container_port: 8080, ..Default::default() }],
            ..Container::default()
        };
        assert_eq!(port(&IntOrString::Int(80), &c), Ok(80));
        assert_eq!(port(&IntOrString::String("web".into()), &c), Ok(8080));
        assert_eq!(port(&IntOrString::String("81".into()), &c), Ok(81));
        assert_eq!(port(&IntOrString::String("no".into()), &c), Err("couldn't find port: no".into()));
        assert_eq!(port(&IntOrString::Int(0), &c), Err("invalid port number: 0".into()));
    }
}
