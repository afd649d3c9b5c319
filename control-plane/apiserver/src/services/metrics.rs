//! Figures of what Services are given, by upstream's names (`ipallocator` and `portallocator`): what was given and refused is
//! counted by this server, what is taken and free is read from the cache when somebody asks.

use std::{collections::BTreeMap, fmt::Write as _};

use parking_lot::Mutex;

use super::{Range, held::Held};
use crate::{limits, metrics::head};

/// Whether somebody asked for it by name or number (upstream's `scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Dynamic,
    Static,
}

/// Of what something was given, or could not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Addresses(String),
    Ports,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    given: u64,
    refused: u64,
}

/// What this server gave and refused.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<(Source, Scope), Count>>);

/// How much of something is taken and free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// By range.
    pub(super) addresses: Vec<(Range, u64)>,
    pub(super) ports: u64,
}

impl Scope {
    pub(super) fn of(is_asked: bool) -> Self {
        if is_asked { Self::Static } else { Self::Dynamic }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
        }
    }
}

impl Counts {
    pub(super) fn refuse(&self, source: Source, scope: Scope) {
        self.change(source, scope, |count| count.refused += 1);
    }

    /// Counts what a Service newly holds. `asked` is what it had named.
    pub(super) fn give(&self, ranges: &[Range], asked: &Held, new: &Held, before: &Held) {
        for address in new.addresses.difference(&before.addresses) {
            if let Some(range) = ranges.iter().find(|range| range.contains(*address)) {
                let scope = Scope::of(asked.addresses.contains(address));
                self.change(Source::Addresses(range.to_string()), scope, |count| count.given += 1);
            }
        }
        for port in new.ports.difference(&before.ports) {
            self.change(Source::Ports, Scope::of(asked.ports.contains(port)), |count| count.given += 1);
        }
    }

    fn change(&self, source: Source, scope: Scope, change: impl FnOnce(&mut Count)) {
        let mut counts = self.0.lock();
        let key = (source, scope);
        // Ranges that came and went are no reason to count for ever.
        let room = counts.len() < limits::METRIC_SERIES || counts.contains_key(&key);
        let key = if room { key } else { (Source::Addresses("other".into()), scope) };
        change(counts.entry(key).or_default());
    }

    /// The text of `/metrics`.
    pub(super) fn render(&self, used: &Used) -> String {
        let mut out = String::new();
        let counts = self.0.lock();
        let name = "kube_apiserver_clusterip_allocator_allocated_ips";
        head(&mut out, name, "gauge", "Addresses of each range of a ServiceCIDR that Services have.");
        for (range, taken) in &used.addresses {
            let _ = writeln!(out, "{name}{{cidr=\"{range}\"}} {taken}");
        }
        let name = "kube_apiserver_clusterip_allocator_available_ips";
        head(&mut out, name, "gauge", "Addresses of each range of a ServiceCIDR that are free.");
        for (range, taken) in &used.addresses {
            let _ = writeln!(out, "{name}{{cidr=\"{range}\"}} {}", range.hosts().saturating_sub(*taken));
        }
        let addresses = |out: &mut String, name: &str, number: fn(&Count) -> u64| {
            for ((source, scope), count) in &*counts {
                if let (Source::Addresses(cidr), number @ 1..) = (source, number(count)) {
                    let _ = writeln!(out, "{name}{{cidr=\"{cidr}\",scope=\"{}\"}} {number}", scope.label());
                }
            }
        };
        let ports = |out: &mut String, name: &str, number: fn(&Count) -> u64| {
            for ((source, scope), count) in &*counts {
                if let (Source::Ports, number @ 1..) = (source, number(count)) {
                    let _ = writeln!(out, "{name}{{scope=\"{}\"}} {number}", scope.label());
                }
            }
        };
        let name = "kube_apiserver_clusterip_allocator_allocation_total";
        head(&mut out, name, "counter", "Addresses that this server gave to Services.");
        addresses(&mut out, name, |count| count.given);
        let name = "kube_apiserver_clusterip_allocator_allocation_errors_total";
        head(&mut out, name, "counter", "Addresses that this server could not give to Services.");
        addresses(&mut out, name, |count| count.refused);
        let name = "kube_apiserver_nodeport_allocator_allocated_ports";
        head(&mut out, name, "gauge", "Node ports that Services have, health checks' among them.");
        let _ = writeln!(out, "{name} {}", used.ports);
        let name = "kube_apiserver_nodeport_allocator_available_ports";
        head(&mut out, name, "gauge", "Node ports that are free.");
        let _ = writeln!(out, "{name} {}", (limits::NODE_PORTS.len() as u64).saturating_sub(used.ports));
        let name = "kube_apiserver_nodeport_allocator_allocation_total";
        head(&mut out, name, "counter", "Node ports that this server gave to Services.");
        ports(&mut out, name, |count| count.given);
        let name = "kube_apiserver_nodeport_allocator_allocation_errors_total";
        head(&mut out, name, "counter", "Node ports that this server could not give to Services.");
        ports(&mut out, name, |count| count.refused);
        out
    }
}

/// The metrics of a server that gave nothing yet.
pub(crate) fn described() -> String {
    Counts::default().render(&Used::default())
}
