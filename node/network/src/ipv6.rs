//! What IPv6 needs of a node's namespace beside addresses and routes: that the kernel has it, and forwarding. Runs on a thread
//! in that namespace; changes nothing unless pods have IPv6 addresses.

use std::fs;
use std::path::Path;

use crate::{Error, limits, netns};

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// # Errors
/// A sentence that says what to do when the kernel has no IPv6, or has it switched off.
pub(crate) fn require() -> Result<(), Error> {
    let what = "pods have an IPv6 range";
    match fs::read_to_string(Path::new(SETTINGS).join("lo/disable_ipv6")) {
        Err(_) => Err(Error::Invalid(format!(
            "{what}, but this machine's kernel runs without IPv6: boot it without ipv6.disable=1, or give podCidr and \
             serviceCidr IPv4 ranges alone"
        ))),
        Ok(text) if text.trim() != "0" => Err(Error::Invalid(format!(
            "{what}, but IPv6 is switched off here: sysctl -w net.ipv6.conf.all.disable_ipv6=0 \
             net.ipv6.conf.lo.disable_ipv6=0, or give podCidr and serviceCidr IPv4 ranges alone"
        ))),
        Ok(_) => Ok(()),
    }
}

/// Lets packets through. A machine that forwards no longer listens to routers, so links that do by now are told to go on
/// (`accept_ra=2`): it keeps its own address and its default route.
pub(crate) fn forward() -> Result<(), Error> {
    let value = |link: &str, name: &str| {
        let text = fs::read_to_string(Path::new(SETTINGS).join(link).join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    if value("all", "forwarding") == "1" {
        return Ok(());
    }
    let links = fs::read_dir(SETTINGS).map_err(netns::failed(format!("reading {SETTINGS}")))?;
    for link in links.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let ours = link.starts_with(limits::LINK_PREFIX) || link == limits::VXLAN_LINK;
        if !matches!(link.as_str(), "all" | "default" | "lo") && !ours && value(&link, "accept_ra") == "1" {
            netns::set_sysctl(&format!("net/ipv6/conf/{link}/accept_ra"), "2")?;
        }
    }
    netns::set_sysctl("net/ipv6/conf/all/forwarding", "1")
}
