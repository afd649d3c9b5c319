//! Load balancers: what a Service says of its own, in upstream's words (`ValidateService`), and the kinds of our own group,
//! pools of addresses and their announcements.

use super::{Errors, cursor::At, workload};
use crate::{block::Block, names, status::FieldError};

/// Blocks of one pool.
const MAX_BLOCKS: usize = 64;
/// Links of one announcement.
const MAX_INTERFACES: usize = 32;
/// The kernel's bound of a link's name.
const INTERFACE_NAME: usize = 15;

/// The fields of a Service that are about traffic from outside.
pub(super) fn service(object: At<'_>, errors: &mut Errors) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let spec = object.field("spec");
    let kind = spec.field("type");
    let balanced = kind.text() == "LoadBalancer";
    let ranges = spec.field("loadBalancerSourceRanges");
    if !ranges.is_empty() && !balanced {
        ranges.forbid(ONLY, errors);
    }
    for range in ranges.items() {
        if Block::cidr(range.text().trim()).is_none() {
            range.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)", errors);
        }
    }
    let allocate = spec.field("allocateLoadBalancerNodePorts");
    if allocate.present() && !balanced {
        allocate.forbid(ONLY, errors);
    }
    let class = spec.field("loadBalancerClass");
    if class.present() && balanced {
        class.syntax(names::qualified_name, errors);
    } else if class.present() {
        class.forbid(ONLY, errors);
    }
    let outside = balanced || kind.text() == "NodePort" || !spec.field("externalIPs").is_empty();
    let policy = spec.field("externalTrafficPolicy");
    if !policy.is_empty() && !outside {
        policy.invalid("may only be set for externally-accessible services", errors);
    }
    let health = spec.field("healthCheckNodePort");
    let checked = balanced && policy.text() == "Local";
    if health.int().is_some_and(|port| port != 0) && !checked {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        health.invalid(detail, errors);
    }
}

/// Who makes a load balancer stays who makes it.
pub(super) fn service_change(old: At<'_>, new: At<'_>, errors: &mut Errors) {
    let balanced = |object: &At<'_>| object.at("spec.type").text() == "LoadBalancer";
    let class = new.at("spec.loadBalancerClass");
    if balanced(&old) && balanced(&new) && old.at("spec.loadBalancerClass").value != class.value {
        class.immutable("may not change once set", errors);
    }
}

pub(super) fn pool(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let blocks = spec.field("blocks");
    blocks.require_because("at least one block is needed", errors);
    let count = blocks.items().count();
    if count > MAX_BLOCKS {
        errors.push(FieldError::too_many(&blocks.path, count, MAX_BLOCKS));
    }
    let mut known: Vec<(Block, String)> = Vec::new();
    for at in blocks.items().take(MAX_BLOCKS) {
        let Some((block, field)) = block(&at, errors) else { continue };
        match known.iter().find(|(other, _)| other.overlaps(block)) {
            Some((_, path)) => field.invalid(format!("must not overlap {path}"), errors),
            None => known.push((block, at.path.clone())),
        }
    }
    for selector in ["serviceSelector", "namespaceSelector", "announcement.nodeSelector"] {
        workload::label_selector(&spec.at(selector), errors);
    }
    let policy = spec.field("announcement");
    policy.field("type").one_of(&["L2", "None"], errors);
    interfaces(&policy.field("interfaces"), errors);
}

pub(super) fn announcement(object: At<'_>, errors: &mut Errors) {
    let spec = object.field("spec");
    let address = spec.field("address");
    if address.require(errors) {
        address.ip(errors);
    }
    interfaces(&spec.field("interfaces"), errors);
    for node in spec.field("nodes").items() {
        let name = node.field("name");
        if name.require(errors) {
            name.syntax(names::dns_subdomain, errors);
        }
        for address in node.field("addresses").items() {
            address.ip(errors);
        }
    }
}

/// The block and the field to blame for what is wrong with it.
fn block<'a>(at: &At<'a>, errors: &mut Errors) -> Option<(Block, At<'a>)> {
    let (cidr, start, stop) = (at.field("cidr"), at.field("start"), at.field("stop"));
    let (block, field) = match (cidr.is_empty(), start.is_empty()) {
        (true, true) => {
            errors.push(FieldError::required(&at.path, "must specify `cidr` or `start`"));
            return None;
        }
        (false, _) => {
            for other in [&start, &stop].into_iter().filter(|other| !other.is_empty()) {
                other.forbid("may not be specified when `cidr` is specified", errors);
            }
            let Some(block) = Block::cidr(cidr.text()) else {
                cidr.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)", errors);
                return None;
            };
            (block, cidr)
        }
        (true, false) => {
            let before = errors.len();
            start.ip(errors);
            let stop = match stop.is_empty() {
                true => start.clone(),
                false => {
                    stop.ip(errors);
                    stop
                }
            };
            if errors.len() > before {
                return None;
            }
            let ends = start.text().parse().ok().zip(stop.text().parse().ok());
            let Some(block) = ends.and_then(|(start, stop)| Block::span(start, stop)) else {
                stop.invalid("must be of the same IP family as `start` and not before it", errors);
                return None;
            };
            (block, start)
        }
    };
    match SPECIAL.iter().find(|(range, _)| Block::cidr(range).is_some_and(|range| range.overlaps(block))) {
        Some((_, detail)) => {
            field.invalid(*detail, errors);
            None
        }
        None => Some((block, field)),
    }
}

/// Addresses that no load balancer can have.
const SPECIAL: [(&str, &str); 8] = [
    ("0.0.0.0/8", "may not be unspecified (0.0.0.0 or ::)"),
    ("::/128", "may not be unspecified (0.0.0.0 or ::)"),
    ("127.0.0.0/8", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
    ("::1/128", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
    ("169.254.0.0/16", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
    ("fe80::/10", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
    ("224.0.0.0/3", "may not be in the multicast or reserved range (224.0.0.0/3, ff00::/8)"),
    ("ff00::/8", "may not be in the multicast or reserved range (224.0.0.0/3, ff00::/8)"),
];

fn interfaces(at: &At<'_>, errors: &mut Errors) {
    let count = at.items().count();
    if count > MAX_INTERFACES {
        errors.push(FieldError::too_many(&at.path, count, MAX_INTERFACES));
    }
    for name in at.items().take(MAX_INTERFACES) {
        let good = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        if name.require(errors) && !(name.text().len() <= INTERFACE_NAME && name.text().chars().all(good)) {
            name.invalid("must be the name of a link: at most 15 characters, no spaces, '/' or ':'", errors);
        }
    }
}
