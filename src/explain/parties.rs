//! Who sends to whom: from what a person writes to addresses and ports. Pure.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;
use sluice_dataplane::model::Protocol;

use super::objects::{Objects, addresses, text};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

/// What holds for both ends.
pub(super) struct Wanted<'a> {
    /// Of names without one.
    pub(super) namespace: &'a str,
    /// Is it an address of this node, or of one of its pods?
    pub(super) is_here: &'a dyn Fn(IpAddr) -> bool,
    /// The cluster's DNS domain.
    pub(super) domain: &'a str,
    pub(super) protocol: Option<Protocol>,
}

/// A pod with addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
}

impl Pod {
    fn is_here(&self, wanted: &Wanted<'_>) -> bool {
        self.addresses.iter().any(|address| (wanted.is_here)(*address))
    }
}

/// An end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// This node.
    Node,
    /// Somebody.
    Address(IpAddr),
    Pod(Pod),
    /// `namespace/name` and cluster addresses.
    Service(String, Vec<IpAddr>),
}

/// The end that is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) party: Party,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

impl fmt::Display for Party {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Node => write!(formatter, "this node"),
            Party::Address(address) => write!(formatter, "{address}"),
            Party::Pod(pod) => write!(formatter, "pod {}", pod.name),
            Party::Service(name, _) => write!(formatter, "service {name}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.party {
            Party::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]:{}", self.port),
            party => write!(formatter, "{party}:{}", self.port),
        }
    }
}

/// Does one of them say a name?
pub(super) fn need_names(source: &str, destination: &str) -> bool {
    let (destination, _) = split(destination);
    !is_node(source) && source.parse::<IpAddr>().is_err() || destination.parse::<IpAddr>().is_err()
}

fn is_node(text: &str) -> bool {
    matches!(text, "node" | "host")
}

/// Who sends.
pub(super) fn source(text: &str, wanted: &Wanted<'_>, objects: Option<&Objects>) -> Result<Party> {
    if is_node(text) {
        return Ok(Party::Node);
    }
    if let Ok(address) = text.parse() {
        return Ok(at(address, objects));
    }
    if service_name(text, wanted).is_some() {
        bail!("{text} is a Service, and Services send nothing: name one of its pods");
    }
    pod(text, wanted, objects).map(|(party, _)| party)
}

/// An address by the name of who has it, if the API says so.
fn at(address: IpAddr, objects: Option<&Objects>) -> Party {
    let found = objects.and_then(|objects| objects.pod_at(address));
    found.map_or(Party::Address(address), |pod| Party::Pod(own(pod)))
}

fn own(pod: &Value) -> Pod {
    Pod {
        name: format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name")),
        node: text(pod, "/spec/nodeName").to_owned(),
        addresses: addresses(pod, "/status/podIPs"),
    }
}

/// A pod by name. One with its node's network is that node.
fn pod<'a>(name: &str, wanted: &Wanted<'_>, objects: Option<&'a Objects>) -> Result<(Party, &'a Value)> {
    let plain = name.strip_prefix("pod/").unwrap_or(name);
    let (namespace, plain) = plain.split_once('/').unwrap_or((wanted.namespace, plain));
    if plain.is_empty() || plain.contains('/') {
        bail!("{name:?} names nobody: a pod is namespace/name, a Service is svc/name, this node is `node`");
    }
    let objects = objects.context("names need the API")?;
    let found = objects.pod(namespace, plain).with_context(|| {
        let hint = match objects.service(namespace, plain) {
            Some(_) => format!("; the Service of that name is svc/{plain}"),
            None => String::new(),
        };
        format!("pods \"{plain}\" not found in the namespace \"{namespace}\"{hint}")
    })?;
    let phase = text(found, "/status/phase");
    if matches!(phase, "Succeeded" | "Failed") {
        bail!("the pod {namespace}/{plain} has ended ({phase}): it sends and receives nothing");
    }
    let pod = own(found);
    if pod.node.is_empty() {
        bail!("the pod {namespace}/{plain} is on no node yet: `kubectl describe pod` says why");
    }
    let Some(first) = pod.addresses.first() else {
        bail!("the pod {namespace}/{plain} has no address yet ({phase}): its containers have not started");
    };
    if found["spec"]["hostNetwork"] == true {
        let party = if (wanted.is_here)(*first) { Party::Node } else { Party::Address(*first) };
        return Ok((party, found));
    }
    Ok((Party::Pod(pod), found))
}

/// The namespace and name of a Service, where the text says that it is one.
fn service_name<'a>(text: &'a str, wanted: &Wanted<'a>) -> Option<(&'a str, &'a str)> {
    for prefix in ["svc/", "service/", "services/"] {
        if let Some(name) = text.strip_prefix(prefix) {
            return Some(name.split_once('/').unwrap_or((wanted.namespace, name)));
        }
    }
    let name = text.trim_end_matches('.');
    let name = name.strip_suffix(wanted.domain).and_then(|name| name.strip_suffix('.')).unwrap_or(name);
    let (name, namespace) = name.strip_suffix(".svc")?.split_once('.')?;
    Some((namespace, name))
}

/// To whom.
pub(super) fn destination(given: &str, wanted: &Wanted<'_>, objects: Option<&Objects>) -> Result<Target> {
    let (name, port) = split(given);
    let protocol = wanted.protocol.unwrap_or(Protocol::Tcp);
    if is_node(name) {
        bail!("name one of the node's addresses: a node port or a socket is asked for at one of them");
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return match objects.and_then(|objects| objects.service_at(address)) {
            Some(service) => to_service(service, Some(address), port, wanted),
            None => {
                let found = objects.and_then(|objects| objects.pod_at(address));
                let party = at(address, objects);
                Ok(Target { port: pod_port(found, given, port, protocol)?, party, protocol })
            }
        };
    }
    if let Some((namespace, plain)) = service_name(name, wanted) {
        let objects = objects.context("names need the API")?;
        let service = objects
            .service(namespace, plain)
            .with_context(|| format!("services \"{plain}\" not found in the namespace \"{namespace}\""))?;
        return to_service(service, None, port, wanted);
    }
    let (party, found) = pod(name, wanted, objects)?;
    let party = match (party, addresses(found, "/status/podIPs").first()) {
        (Party::Node, Some(address)) => Party::Address(*address),
        (party, _) => party,
    };
    Ok(Target { port: pod_port(Some(found), given, port, protocol)?, party, protocol })
}

/// Splits the port off: `name:port`, `10.0.0.1:80`, `[fd00::1]:80`; an IPv6 address without brackets has none.
fn split(given: &str) -> (&str, Option<&str>) {
    if let Some(rest) = given.strip_prefix('[')
        && let Some((address, port)) = rest.split_once(']')
    {
        return (address, port.strip_prefix(':'));
    }
    match given.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, Some(port)),
        _ => (given, None),
    }
}

fn number(port: &str) -> Option<u16> {
    port.parse().ok().filter(|port| *port != 0)
}

/// A port, or the only one that a pod's containers name.
fn pod_port(pod: Option<&Value>, given: &str, port: Option<&str>, protocol: Protocol) -> Result<u16> {
    let containers = pod.and_then(|pod| pod.pointer("/spec/containers")).and_then(Value::as_array);
    let all =
        containers.into_iter().flatten().flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let named: Vec<(&str, u16)> = all
        .filter(|port| Protocol::from_api(port["protocol"].as_str()) == Some(protocol))
        .filter_map(|port| Some((text(port, "/name"), u16::try_from(port["containerPort"].as_u64()?).ok()?)))
        .collect();
    if let Some(port) = port {
        let by_name = || named.iter().find(|(name, _)| *name == port).map(|(_, number)| *number);
        return number(port)
            .or_else(by_name)
            .with_context(|| format!("{port:?} is no port (1 to 65535), and no name of one"));
    }
    match named.as_slice() {
        [(_, only)] => Ok(*only),
        [] => bail!("say the port: {given}:PORT"),
        several => {
            let all: Vec<String> = several.iter().map(|(_, number)| number.to_string()).collect();
            bail!("say which port: {given}:PORT; the pod's containers name {}", all.join(", "))
        }
    }
}

fn to_service(service: &Value, address: Option<IpAddr>, port: Option<&str>, wanted: &Wanted<'_>) -> Result<Target> {
    let name = format!("{}/{}", text(service, "/metadata/namespace"), text(service, "/metadata/name"));
    if text(service, "/spec/type") == "ExternalName" {
        let other = text(service, "/spec/externalName");
        bail!("the Service {name} is another name of {other}, which DNS answers with: explain to that one's address");
    }
    let own = addresses(service, "/spec/clusterIPs");
    if own.is_empty() {
        bail!(
            "the Service {name} is headless: its name leads to its pods' own addresses; explain to one of those \
             (`kubectl get endpointslices`)"
        );
    }
    let ports: Vec<(&str, Protocol, u16)> = service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|port| {
            let protocol = Protocol::from_api(port["protocol"].as_str())?;
            Some((text(port, "/name"), protocol, u16::try_from(port["port"].as_u64()?).ok()?))
        })
        .collect();
    let fits = |(known, protocol, _): &&(&str, Protocol, u16), text: Option<&str>, number: Option<u16>, own: u16| {
        wanted.protocol.is_none_or(|wanted| wanted == *protocol)
            && (text.is_none() || number == Some(own) || text == Some(*known))
    };
    let said = port.and_then(number);
    let matching: Vec<_> = ports.iter().filter(|row| fits(row, port, said, row.2)).collect();
    let party = Party::Service(name.clone(), address.map_or(own, |address| vec![address]));
    let list = || {
        let row = |(name, protocol, port): &(&str, Protocol, u16)| match *name {
            "" => format!("{port}/{}", protocol.name()),
            name => format!("{port}/{} ({name})", protocol.name()),
        };
        ports.iter().map(row).collect::<Vec<_>>().join(", ")
    };
    match (matching.as_slice(), port, said) {
        ([(_, protocol, port)], ..) => Ok(Target { party, protocol: *protocol, port: *port }),
        // The same port over several protocols: TCP, as where nothing is said.
        ([..], Some(_), Some(port)) if matching.len() > 1 => Ok(Target { party, protocol: Protocol::Tcp, port }),
        // What nobody serves can be asked about, too.
        ([], Some(_), Some(port)) => Ok(Target { party, protocol: wanted.protocol.unwrap_or(Protocol::Tcp), port }),
        ([], Some(port), None) => bail!("{port:?} is no port of the Service {name}, which has {}", list()),
        ([], None, _) => bail!("the Service {name} has no port of this protocol, but {}", list()),
        (_, port, _) => {
            let what = port.map_or_else(String::new, |port| format!(" called {port}"));
            bail!("the Service {name} has several ports{what}: say which, with :PORT and --protocol, of {}", list())
        }
    }
}

/// The addresses of both ends, of one family; `None` for this node's own.
pub(super) fn addresses_of(from: &Party) -> Option<Vec<IpAddr>> {
    match from {
        Party::Node => None,
        Party::Address(address) => Some(vec![*address]),
        Party::Pod(pod) => Some(pod.addresses.clone()),
        Party::Service(_, addresses) => Some(addresses.clone()),
    }
}

/// The same, chosen: the destination's first address that the source has the family of.
pub(super) fn choose(from: &Party, to: &Party, family: Option<Family>) -> Result<(Option<IpAddr>, IpAddr)> {
    let all = addresses_of(to).unwrap_or_default();
    let candidates: Vec<IpAddr> = match family {
        Some(family) => all.into_iter().filter(|address| address.is_ipv4() == (family == Family::Ipv4)).collect(),
        None => all,
    };
    let Some(own) = addresses_of(from) else {
        let first = candidates.first().with_context(|| format!("{to} has no address of that family"))?;
        return Ok((None, *first));
    };
    let pair = candidates.iter().find_map(|to| {
        let from = own.iter().find(|from| from.is_ipv4() == to.is_ipv4())?;
        Some((Some(*from), *to))
    });
    pair.with_context(|| {
        let list = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("{from} ({}) and {to} ({}) have no address of the same family", list(&own), list(&candidates))
    })
}

/// What to say about ends on other nodes, and what to run there.
///
/// # Errors
/// When this node sees nothing of it.
pub(super) fn notes(from: &Party, to: &Target, wanted: &Wanted<'_>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if let Party::Pod(pod) = from
        && !pod.is_here(wanted)
    {
        let (name, other) = (&pod.name, &pod.node);
        if let Party::Service(service, _) = &to.party {
            bail!(
                "the pod {name} runs on {other}, and there the Service's address becomes a backend's: run there: sluice explain \
                 {name} svc/{service}:{}. This node sees packets to backends alone: explain {name} to one of the Service's pods",
                to.port
            );
        }
        notes.push(format!(
            "the pod {name} runs on {other}: this is what this node sees of its packets. What happens to them before: run there: \
             sluice explain {name} {}",
            argument(to)
        ));
    }
    if let Party::Pod(pod) = &to.party
        && !pod.is_here(wanted)
    {
        notes.push(format!(
            "the pod {} runs on {}: what happens there: run there: sluice explain {} {}",
            pod.name,
            pod.node,
            addresses_of(from)
                .and_then(|all| all.first().copied())
                .map_or_else(|| "ADDRESS-OF-THIS-NODE".into(), |ip| ip.to_string()),
            argument(to)
        ));
    }
    Ok(notes)
}

/// An end as one would write it.
fn argument(to: &Target) -> String {
    match &to.party {
        Party::Pod(pod) => format!("{}:{}", pod.name, to.port),
        Party::Service(name, _) => format!("svc/{name}:{}", to.port),
        _ => to.to_string(),
    }
}

#[cfg(test)]
#[path = "parties_tests.rs"]
mod tests;
