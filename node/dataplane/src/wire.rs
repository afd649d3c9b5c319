//! The XDP program on uplinks: attached in the driver where the driver can, nowhere else, and never a reason to fail, as the
//! programs on the link do all of its work, too. What became of each uplink stands in the map that also tells the programs
//! where packets may be sent out at once.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::Xdp as Program;
use serde::Serialize;
use sluice_ebpf_common::cache::Uplink;
use sluice_ebpf_common::maps;

use crate::attach::{self, Link, replace, unpin};
use crate::pins::Pins;
use crate::store::typed;
use crate::{Error, sys};

/// Name of the program.
pub(crate) const PROGRAM: &str = "uplink_xdp";

/// Links that are made of other links: what comes in there came in by another one.
const VIRTUAL: [&str; 9] =
    ["bridge", "vxlan", "geneve", "tun", "macvlan", "ipvlan", "dummy", sys::VLAN_DRIVER, "openvswitch"];

/// Which uplinks get the XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// Those that have a wire behind them.
    #[default]
    Auto,
    /// None.
    Off,
    /// veth links, too. Their other ends have to send finished checksums (`ethtool -K … tx off`), as the program sees
    /// packets before the kernel completes them.
    Always,
}

/// How packets come in on an uplink.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkRow {
    /// The link's name.
    pub link: String,
    /// `native`: the driver runs the XDP program; `tc`: the kernel's stack runs the others alone.
    pub xdp: &'static str,
    /// Why it is not the driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A kernel that refuses the program does without.
pub(crate) fn refused(error: &Error) {
    tracing::warn!(%error, "the kernel refused the XDP program: packets take the longer way");
}

pub(crate) fn program(ebpf: &mut Ebpf) -> Option<&mut Program> {
    ebpf.program_mut(PROGRAM)?.try_into().ok()
}

/// Attaches the program to a link if it should and can be, and notes what became of it: does a driver run it?
pub(crate) fn attach(ebpf: &mut Ebpf, pins: &Pins, xdp: Xdp, link: &Link) -> Result<bool, Error> {
    let bond = sys::bond_of(&link.name);
    let own = (bond.unwrap_or(link.index), 0);
    let (parent, vlan) = sys::vlan_parent(&link.name).unwrap_or(own);
    let note = |reason: u32| Uplink { flags: if reason == 0 { Uplink::NATIVE } else { 0 }, reason, parent, vlan };
    let mut uplink = note(attempt(ebpf, pins, xdp, link, bond.is_some())?);
    if vlan != 0 && pin(pins, parent).exists() {
        uplink.flags = Uplink::NATIVE;
    }
    let mut map: HashMap<MapData, u32, Uplink> = typed(pins, maps::UPLINKS)?;
    map.insert(link.index, uplink, 0).map_err(|error| Error::ebpf("write the uplinks", error))?;
    Ok(uplink.flags & Uplink::NATIVE != 0)
}

fn pin(pins: &Pins, index: u32) -> std::path::PathBuf {
    pins.link(&format!("{PROGRAM}-{index}"))
}

/// 0, or why the driver does not run the program.
fn attempt(ebpf: &mut Ebpf, pins: &Pins, xdp: Xdp, link: &Link, is_slave: bool) -> Result<u32, Error> {
    let pin = pin(pins, link.index);
    // The kernel gives a bond's program to all slaves, and takes none for a slave beside it.
    let bonded = (is_slave && xdp != Xdp::Off).then_some(Uplink::WHY_BOND);
    if let Some(reason) = bonded.or_else(|| unwanted(xdp, &link.name)) {
        unpin(&pin)?;
        return Ok(reason);
    }
    match program(ebpf).and_then(|program| program.fd().ok()) {
        Some(fd) if replace(&pin, |target| target.link_index() == link.index, fd.as_fd())? => return Ok(0),
        Some(_) => {}
        // An earlier build's, which this kernel took.
        None => unpin(&pin)?,
    }
    let attached = attach_anew(ebpf, link.index, &pin);
    Ok(attached.err().map_or(0, |error| error.raw_os_error().map_or(Uplink::WHY_REFUSED, i32::unsigned_abs)))
}

/// Many drivers run no program: a short one asks. The long one, which takes its place, would be loaded in vain.
fn attach_anew(ebpf: &mut Ebpf, index: u32, pin: &Path) -> io::Result<()> {
    let attached = sys::attach_native_xdp(sys::passing_xdp()?.as_fd(), index)?;
    attach::ensure_loaded(ebpf, PROGRAM).inspect_err(refused).map_err(io::Error::other)?;
    let program = program(ebpf).and_then(|program| program.fd().ok()).ok_or(io::ErrorKind::NotFound)?;
    sys::update_link(attached.as_fd(), program.as_fd())?;
    sys::pin(attached.as_fd(), pin)
}

fn unwanted(xdp: Xdp, name: &str) -> Option<u32> {
    let driver = sys::driver(name).unwrap_or_default();
    match xdp {
        Xdp::Off => Some(Uplink::WHY_OFF),
        _ if VIRTUAL.contains(&driver.as_str()) => Some(Uplink::WHY_VIRTUAL),
        Xdp::Auto if driver == sys::VETH_DRIVER => Some(Uplink::WHY_VETH),
        Xdp::Auto | Xdp::Always => None,
    }
}

/// Takes the program off a link that is no uplink any more, or gone.
pub(crate) fn detach(pins: &Pins, index: u32) -> Result<(), Error> {
    unpin(&pin(pins, index))?;
    let mut map: HashMap<MapData, u32, Uplink> = typed(pins, maps::UPLINKS)?;
    // It was none of them.
    let _ = map.remove(&index);
    Ok(())
}

/// The uplinks' indices.
pub(crate) fn indices(pins: &Pins) -> Result<BTreeSet<u32>, Error> {
    let map: HashMap<MapData, u32, Uplink> = typed(pins, maps::UPLINKS)?;
    Ok(map.keys().filter_map(Result::ok).collect())
}

/// How packets come in on each uplink.
pub(crate) fn rows(pins: &Pins) -> Result<Vec<UplinkRow>, Error> {
    let map: HashMap<MapData, u32, Uplink> = typed(pins, maps::UPLINKS)?;
    let mut uplinks: Vec<_> = map.iter().filter_map(Result::ok).collect();
    uplinks.sort_unstable_by_key(|(index, _)| *index);
    let runs: BTreeSet<u32> = uplinks.iter().filter(|(_, uplink)| uplink.runs()).map(|(index, _)| *index).collect();
    let row = |(index, mut uplink): (u32, Uplink)| {
        if uplink.reason == Uplink::WHY_BOND && runs.contains(&uplink.parent) {
            (uplink.reason, uplink.flags) = (0, Uplink::NATIVE);
        }
        let native = uplink.runs();
        let reason = (!native).then(|| reason(uplink));
        UplinkRow { link: Link::name_of(index), xdp: if native { "native" } else { "tc" }, reason }
    };
    Ok(uplinks.into_iter().map(row).collect())
}

fn reason(uplink: Uplink) -> String {
    match uplink.reason {
        Uplink::WHY_OFF => "turned off by configuration".into(),
        Uplink::WHY_VETH => "a veth link's packets come with unfinished checksums".into(),
        Uplink::WHY_VIRTUAL if uplink.flags & Uplink::NATIVE != 0 => "the link below it has the program".into(),
        Uplink::WHY_VIRTUAL => "no wire is behind it".into(),
        Uplink::WHY_BOND => "the bond above it does not have the program".into(),
        Uplink::WHY_REFUSED => "the kernel refused the program".into(),
        number => match i32::try_from(number) {
            Ok(libc::EOPNOTSUPP) => "the driver has no native XDP".into(),
            Ok(libc::EBUSY | libc::EEXIST) => "another XDP program is there".into(),
            Ok(number) => format!("the driver refused: {}", io::Error::from_raw_os_error(number)),
            Err(_) => format!("unknown reason {number}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_the_program_and_why_not() {
        let cases = [
            (Xdp::Off, "lo", Some(Uplink::WHY_OFF)),
            (Xdp::Auto, "no-such-link", None),
            (Xdp::Always, "no-such-link", None),
        ];
        for (xdp, name, expected) in cases {
            assert_eq!(unwanted(xdp, name), expected, "{xdp:?} {name}");
        }
        let texts = [
            (libc::EOPNOTSUPP as u32, "no native XDP"),
            (libc::ENOMEM as u32, "Cannot allocate memory"),
            (Uplink::WHY_VETH, "unfinished checksums"),
        ];
        for (number, expected) in texts {
            let text = reason(Uplink { reason: number, ..Uplink::default() });
            assert!(text.contains(expected), "{text}");
        }
    }
}
