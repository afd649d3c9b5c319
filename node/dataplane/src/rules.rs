//! Rules that choose between tables of routes. Where there are none but the kernel's own, the way of a packet depends on nothing
//! but its destination.

use std::io;

use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NLM_F_DUMP;

use crate::netlink::Netlink;

/// Priorities of the rules for the tables local, main and default (`ip-rule(8)`).
const KERNELS: [u32; 3] = [0, 32_766, 32_767];

/// Has this namespace no other rules than the kernel's?
pub(crate) fn are_plain() -> io::Result<bool> {
    let netlink = Netlink::open()?;
    let mut plain = true;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        netlink.ask(RouteNetlinkMessage::GetRule(request), NLM_F_DUMP, |message| {
            let RouteNetlinkMessage::NewRule(rule) = message else { return };
            plain &= is_kernels(&rule);
        })?;
    }
    Ok(plain)
}

fn is_kernels(rule: &RuleMessage) -> bool {
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    KERNELS.contains(&priority.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use aya::maps::{Array, MapData};
    use sluice_ebpf_common::{Settings, maps};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::Dataplane;
    use crate::common::{PATIENCE, isolated, run};
    use crate::store::typed;

    #[test]
    fn another_rule_is_seen_and_followed() {
        isolated("rules::tests::another_rule_is_seen_and_followed", |place| {
            let ip = |text: &str| run("ip", &text.split(' ').collect::<Vec<_>>());
            assert!(are_plain().unwrap());
            let dataplane = Dataplane::load(place.config()).unwrap();
            let settings: Array<MapData, Settings> = typed(&dataplane.inner.pins, maps::SETTINGS).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let shutdown = CancellationToken::new();
            let (follower, stop) = (dataplane.clone(), shutdown.clone());
            let follower = runtime.spawn(async move { follower.follow_links(&stop).await });
            for version in ["-4", "-6"] {
                for (what, plain) in [("add", false), ("delete", true)] {
                    ip(&format!("{version} rule {what} fwmark 7 table 99"));
                    assert_eq!(are_plain().unwrap(), plain, "{version} {what}");
                    let told = || settings.get(&0, 0).unwrap().flags & Settings::PLAIN_RULES != 0;
                    let start = Instant::now();
                    while told() != plain && start.elapsed() < PATIENCE {
                        std::thread::yield_now();
                    }
                    assert_eq!(told(), plain, "{version} {what}");
                }
            }
            shutdown.cancel();
            runtime.block_on(follower).unwrap().unwrap();
        });
    }
}
