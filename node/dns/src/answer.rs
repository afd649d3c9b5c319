//! `(zone, question) -> answer`, pure, after the Kubernetes DNS-based service discovery
//! specification 1.1.0; where that leaves a choice, as CoreDNS' kubernetes plugin does.

use std::net::IpAddr;

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use crate::{
    limits,
    zone::{Kind, Port, Service, Zone},
};

/// The version of the specification answered for `dns-version`.
const SCHEMA: &str = "1.1.0";

/// What the cluster's zone has to say to a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The target of a CNAME whose addresses were asked for: to be resolved as well.
    pub follow: Option<Name>,
}

impl Zone {
    /// Answers a question of class IN; `None` when the name is not the cluster's.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let mut labels = Vec::with_capacity(8);
        for label in name.iter() {
            labels.push(std::str::from_utf8(label).ok()?.to_ascii_lowercase());
        }
        if labels.last().is_some_and(|last| last == "arpa") {
            return self.reverse(name, kind);
        }
        let own = labels.len().checked_sub(self.domain().len())?;
        if labels[own..] != *self.domain() {
            return None;
        }
        let labels: Vec<&str> = labels[..own].iter().map(String::as_str).collect();
        Some(self.forward(name, &labels, kind).finish(self))
    }

    /// A negative answer's proof, and the apex's own record.
    pub(crate) fn soa(&self) -> Record {
        let name = |prefix: &str| self.name(&[prefix]);
        let soa = SOA::new(self.name(&["ns", "dns"]), name("hostmaster"), self.serial, 7200, 1800, 86400, limits::TTL);
        record(self.name(&[]), RData::SOA(soa))
    }

    fn forward(&self, name: &Name, labels: &[&str], kind: RecordType) -> Found {
        match labels {
            [] => self.apex(name, kind),
            ["dns"] | ["svc"] | ["pod"] => Found::exists(),
            ["ns", "dns"] => addresses(name, kind, self.own.iter().copied()),
            ["dns-version"] => match kind {
                RecordType::TXT | RecordType::ANY => {
                    let txt = TXT::new(vec![SCHEMA.to_owned()]);
                    Found::one(record(name.clone(), RData::TXT(txt)))
                }
                _ => Found::exists(),
            },
            [_, "pod"] => Found::exists(),
            [pod, _, "pod"] => match pod_address(pod) {
                Some(address) => addresses(name, kind, [address]),
                None => Found::Nothing,
            },
            [namespace, "svc"] if self.has_namespace(namespace) => Found::exists(),
            [rest @ .., service, namespace, "svc"] => match self.service(namespace, service) {
                Some(service) => self.of_service(name, service, rest, kind),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Found {
        match kind {
            RecordType::SOA | RecordType::ANY => Found::one(self.soa()),
            RecordType::NS => {
                let server = self.name(&["ns", "dns"]);
                let additionals = addresses(&server, RecordType::ANY, self.own.iter().copied());
                let mut found = Found::one(record(name.clone(), RData::NS(NS(server))));
                if let (Found::Exists(found), Found::Exists(more)) = (&mut found, additionals) {
                    found.additionals = more.answers;
                }
                found
            }
            _ => Found::exists(),
        }
    }

    /// `rest` is what stands before the Service's own name.
    fn of_service(&self, name: &Name, service: &Service, rest: &[&str], kind: RecordType) -> Found {
        match (rest, &service.kind) {
            ([], Kind::External(target)) => external(name, target, kind),
            (_, Kind::External(_)) => Found::Nothing,
            ([], _) if kind == RecordType::SRV => self.srv(name, service, |_| true),
            ([], Kind::ClusterIp(ips)) => addresses(name, kind, ips.iter().copied()),
            ([], Kind::Headless) => {
                let all = self.endpoints(service).flat_map(|(e, _)| e.addresses.iter().copied());
                addresses(name, kind, all).unless_empty(|| self.endpoints(service).next().is_none())
            }
            ([port, protocol], _) => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Found::Nothing;
                };
                let found = self.srv(name, service, |p| !p.name.is_empty() && p.name == port && p.protocol == protocol);
                match (found, kind) {
                    (Found::Exists(_), k) if k != RecordType::SRV && k != RecordType::ANY => Found::exists(),
                    (found, _) => found,
                }
            }
            ([label], _) if label.starts_with('_') => {
                let named = |p: &&Port| !p.name.is_empty() && label[1..] == p.protocol;
                match service.ports.iter().find(named) {
                    Some(_) => Found::exists(),
                    None => Found::Nothing,
                }
            }
            ([label], _) => {
                let all = self.endpoints(service).flat_map(|(e, _)| {
                    let addresses = e.addresses.iter().copied();
                    addresses.filter(move |address| e.label(*address) == *label)
                });
                let known: Vec<_> = all.collect();
                addresses(name, kind, known.iter().copied()).unless_empty(|| known.is_empty())
            }
            _ => Found::Nothing,
        }
    }

    fn srv(&self, name: &Name, service: &Service, wanted: impl Fn(&Port) -> bool) -> Found {
        let mut targets: Vec<(Name, u16, Vec<IpAddr>)> = Vec::new();
        let own = |label: Option<&str>| {
            let (service, namespace) = (service.name.to_ascii_lowercase(), service.namespace.to_ascii_lowercase());
            let mut labels: Vec<&str> = label.into_iter().collect();
            labels.extend([&service[..], &namespace, "svc"]);
            self.name(&labels)
        };
        match &service.kind {
            Kind::ClusterIp(ips) => {
                for port in service.ports.iter().filter(|p| wanted(p)) {
                    targets.push((own(None), port.number, ips.clone()));
                }
            }
            Kind::Headless => {
                for (endpoint, ports) in self.endpoints(service) {
                    for port in ports.iter().filter(|p| wanted(p)) {
                        for address in &endpoint.addresses {
                            let target = own(Some(&endpoint.label(*address)));
                            match targets.iter_mut().find(|(n, p, _)| *n == target && *p == port.number) {
                                Some((_, _, addresses)) => addresses.push(*address),
                                None => targets.push((target, port.number, vec![*address])),
                            }
                        }
                    }
                }
            }
            Kind::External(_) => {}
        }
        if targets.is_empty() {
            return Found::Nothing;
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(1).max(1);
        let mut answer = Answer::empty();
        for (target, port, ips) in targets {
            for ip in ips {
                let extra = address(&target, ip);
                if answer.additionals.len() < limits::ADDITIONALS && !answer.additionals.contains(&extra) {
                    answer.additionals.push(extra);
                }
            }
            let srv = SRV::new(0, weight, port, target);
            answer.answers.push(record(name.clone(), RData::SRV(srv)));
        }
        Found::Exists(answer)
    }

    /// Names of an address: the Service whose own it is, else the Services it is an endpoint of.
    fn reverse(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let net = name.parse_arpa_name().ok()?;
        if net.prefix_len() != net.max_prefix_len() {
            return None;
        }
        let address = net.addr();
        let mut names: Vec<Name> =
            self.with_cluster_ip(address).map(|s| self.name(&[&s.name, &s.namespace, "svc"])).collect();
        if names.is_empty() {
            for service in self.with_endpoint(address) {
                for (endpoint, _) in self.endpoints(service) {
                    if endpoint.addresses.contains(&address) {
                        let label = endpoint.label(address);
                        let target = self.name(&[&label, &service.name, &service.namespace, "svc"]);
                        if !names.contains(&target) {
                            names.push(target);
                        }
                    }
                }
            }
        }
        if names.is_empty() {
            return None;
        }
        let mut answer = Answer::empty();
        if matches!(kind, RecordType::PTR | RecordType::ANY) {
            let ptr = |target| record(name.clone(), RData::PTR(PTR(target)));
            answer.answers = names.into_iter().map(ptr).collect();
        }
        Some(Found::Exists(answer).finish(self))
    }

    /// `labels` under the cluster domain. Labels come from the API server, which admits only names
    /// that fit; should one not, the domain itself is named.
    fn name(&self, labels: &[&str]) -> Name {
        let all = labels.iter().copied().chain(self.domain().iter().map(String::as_str));
        let mut name = Name::from_labels(all.map(str::as_bytes)).unwrap_or_else(|_| Name::root());
        name.set_fqdn(true);
        name
    }
}

/// What looking a name up came to.
enum Found {
    /// The name does not exist.
    Nothing,
    /// It does, though perhaps without records of the kind asked for.
    Exists(Answer),
}

impl Found {
    fn exists() -> Self {
        Found::Exists(Answer::empty())
    }

    fn one(record: Record) -> Self {
        let mut answer = Answer::empty();
        answer.answers.push(record);
        Found::Exists(answer)
    }

    fn unless_empty(self, nothing: impl FnOnce() -> bool) -> Self {
        match self {
            Found::Exists(answer) if answer.answers.is_empty() && nothing() => Found::Nothing,
            found => found,
        }
    }

    /// The answer, with the SOA record when it is negative.
    fn finish(self, zone: &Zone) -> Answer {
        let mut answer = match self {
            Found::Exists(answer) => answer,
            Found::Nothing => Answer { code: ResponseCode::NXDomain, ..Answer::empty() },
        };
        if answer.answers.is_empty() {
            answer.authorities.push(zone.soa());
        }
        answer
    }
}

impl Answer {
    fn empty() -> Self {
        Answer {
            code: ResponseCode::NoError,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            follow: None,
        }
    }
}

fn external(name: &Name, target: &str, kind: RecordType) -> Found {
    // An address in that field is no name: CoreDNS leaves such a Service out.
    if target.parse::<IpAddr>().is_ok() {
        return Found::Nothing;
    }
    let Ok(mut target) = Name::from_ascii(target) else {
        return Found::Nothing;
    };
    target.set_fqdn(true);
    let mut answer = Answer::empty();
    answer.answers.push(record(name.clone(), RData::CNAME(CNAME(target.clone()))));
    if kind != RecordType::CNAME && kind != RecordType::ANY {
        answer.follow = Some(target);
    }
    Found::Exists(answer)
}

/// The records of the kind asked for among `all`, each address once.
fn addresses(name: &Name, kind: RecordType, all: impl IntoIterator<Item = IpAddr>) -> Found {
    let mut answer = Answer::empty();
    for ip in all {
        let wanted = match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            kind => kind == RecordType::ANY,
        };
        if wanted {
            answer.answers.push(address(name, ip));
        }
    }
    answer.answers.sort_by_key(data_order);
    answer.answers.dedup();
    Found::Exists(answer)
}

fn data_order(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    }
}

fn address(name: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    };
    record(name.clone(), data)
}

fn record(name: Name, data: RData) -> Record {
    Record::from_rdata(name, limits::TTL, data)
}

/// `1-2-3-4` or `2001-db8--1` as an address.
fn pod_address(label: &str) -> Option<IpAddr> {
    let dashes = label.bytes().filter(|b| *b == b'-').count();
    if dashes == 3 && !label.contains("--") {
        label.replace('-', ".").parse().ok()
    } else {
        label.replace('-', ":").parse().ok()
    }
}
