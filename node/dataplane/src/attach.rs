//! Attaching programs: to the cgroup, to uplinks, to pods' links. Links are pinned, so programs stay when the process
//! goes, and the next process puts its own programs behind the same links.
//!
//! Pods' links get filters of the clsact qdisc on every kernel: attaching or ending a TCX link waits for an RCU grace
//! period while it holds the lock of all links (16 ms each on a machine with a 250 Hz tick; a filter takes 0.1 ms). A pin
//! of the program, named after the link's index, says that the filters are there; uplinks without TCX have such pins, too.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockAddrAttachType, CgroupSockAttachType, LinkOrder, Program,
    ProgramError, ProgramFd, SchedClassifier, TcAttachType, TcError,
};
use aya::util::KernelVersion;
use parking_lot::Mutex;

use crate::pins::Pins;
use crate::{Error, sys, wire};

/// Programs on socket addresses, all attached to one cgroup.
pub(crate) const SOCKET_PROGRAMS: [(&str, CgroupSockAddrAttachType); 8] = [
    ("connect4", CgroupSockAddrAttachType::Connect4),
    ("connect6", CgroupSockAddrAttachType::Connect6),
    ("sendmsg4", CgroupSockAddrAttachType::UDPSendMsg4),
    ("sendmsg6", CgroupSockAddrAttachType::UDPSendMsg6),
    ("recvmsg4", CgroupSockAddrAttachType::UDPRecvMsg4),
    ("recvmsg6", CgroupSockAddrAttachType::UDPRecvMsg6),
    ("getpeername4", CgroupSockAddrAttachType::GetPeerName4),
    ("getpeername6", CgroupSockAddrAttachType::GetPeerName6),
];

/// Programs on sockets that got an address of their own, attached to the same cgroup.
pub(crate) const GUARD_PROGRAMS: [(&str, CgroupSockAttachType); 2] =
    [("post_bind4", CgroupSockAttachType::PostBind4), ("post_bind6", CgroupSockAttachType::PostBind6)];

/// A packet program: its name, the side of a link that it sees, and where it stands among that side's filters.
pub(crate) type Row = (&'static str, TcAttachType, u16);

/// Programs on packets of uplinks: ingress, egress.
pub(crate) const UPLINK_PROGRAMS: [Row; 2] =
    [("uplink_in", TcAttachType::Ingress, FILTER_PRIORITY), ("uplink_out", TcAttachType::Egress, FILTER_PRIORITY)];

/// The program before `uplink_in` where the driver does not run ours.
pub(crate) const ONWARD: Row = ("uplink_onward", TcAttachType::Ingress, FILTER_PRIORITY - 1);

/// Programs on the home link, which leads to services for the node's own sockets; the first one is on the loopback link, too.
pub(crate) const OWN_PROGRAMS: [Row; 2] =
    [("own_out", TcAttachType::Egress, FILTER_PRIORITY + 2), ("own_in", TcAttachType::Ingress, FILTER_PRIORITY)];

/// All that a link may have that is no pod's.
fn of_uplinks() -> impl Iterator<Item = Row> {
    UPLINK_PROGRAMS.into_iter().chain([ONWARD]).chain(OWN_PROGRAMS)
}

/// Programs on packets of pods' links, as the node sees them: policies are asked about the ends of a connection as they are,
/// behind the translation of what a pod sends and before that of what comes to it. They are attached first and go last.
pub(crate) const POD_PROGRAMS: [Row; 4] = [
    ("policy_in", TcAttachType::Ingress, FILTER_PRIORITY + 1),
    ("policy_out", TcAttachType::Egress, FILTER_PRIORITY - 1),
    ("pod_in", TcAttachType::Ingress, FILTER_PRIORITY),
    ("pod_out", TcAttachType::Egress, FILTER_PRIORITY),
];

/// The program whose pin says that a pod's link has ours.
const POD_PROGRAM: &str = "pod_in";

/// Both directions of packets.
pub(crate) const BOTH: &[TcAttachType] = &[TcAttachType::Ingress, TcAttachType::Egress];

/// Place and number of our filter where TCX is missing.
const FILTER_PRIORITY: u16 = 0x51c;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Which of the kernel's two attachments for packet programs is used on uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Links (Linux 6.6 and newer).
    Tcx,
    /// The clsact qdisc; filters stay by themselves. Pods' links always use it.
    Clsact,
}

impl Traffic {
    /// The better one that this kernel has.
    pub fn best() -> Traffic {
        let tcx = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
        if tcx { Traffic::Tcx } else { Traffic::Clsact }
    }
}

/// Of the first two an uplink has one, and a node's uplinks mostly the same; the others are for SCTP alone: they are loaded when
/// a link has them or gets them.
const ON_DEMAND: [&str; 4] = [wire::PROGRAM, ONWARD.0, OWN_PROGRAMS[0].0, OWN_PROGRAMS[1].0];

/// Loads the programs that a node has, unless they are kept from before, with those that are attached only to some links if
/// they are, on all processors: the verifier walks each for itself, the long ones for a fifth of a second. Without the driver's program the others do its work.
pub(crate) fn load_programs(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), Error> {
    let is_missing = |name: &str, program: &Program| is_needed(pins, name, program) && program.fd().is_err();
    let mut programs: Vec<_> = ebpf.programs_mut().filter(|(name, program)| is_missing(name, program)).collect();
    // Taken from the end: the long ones first.
    programs.sort_by_key(|(_, program)| matches!(program, Program::SchedClassifier(_) | Program::Xdp(_)));
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(programs.len());
    let programs = Mutex::new(programs);
    let work = || {
        while let Some((name, program)) = next(&programs) {
            match load(name, program) {
                Err(error) if name == wire::PROGRAM => wire::refused(&error),
                loaded => loaded?,
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))).fold(own, Result::and)
    })
}

fn next<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    queue.lock().pop()
}

/// The others are loaded when they are attached, if they are.
pub(crate) fn is_needed(pins: &Pins, name: &str, program: &Program) -> bool {
    use Program::{CgroupSock, CgroupSockAddr, SchedClassifier, Xdp};
    matches!(program, CgroupSockAddr(_) | CgroupSock(_) | SchedClassifier(_) | Xdp(_))
        && (!ON_DEMAND.contains(&name) || pins.is_attached(name))
}

fn load(name: &str, program: &mut Program) -> Result<(), Error> {
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Ok(()),
    };
    loaded.map_err(|error| Error::ebpf(format!("load the program {name}"), error))
}

/// Loads a program that is about to be attached, unless it is loaded.
pub(crate) fn ensure_loaded(ebpf: &mut Ebpf, name: &str) -> Result<(), Error> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    if program.fd().is_ok() { Ok(()) } else { load(name, program) }
}

fn missing(name: &str) -> Error {
    Error::Kernel(format!("the embedded object has no program {name}"))
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, Error> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| missing(name))
}

fn guard_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSock, Error> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| missing(name))
}

pub(crate) fn traffic_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| missing(name))
}

/// Attaches the socket programs to a cgroup and all cgroups below it.
pub(crate) fn attach_sockets(ebpf: &mut Ebpf, pins: &Pins, cgroup: &Path) -> Result<(), Error> {
    let what = |name: &str| format!("attach {name} to {}", cgroup.display());
    let file = File::open(cgroup).map_err(|error| Error::system(format!("open {}", cgroup.display()), error))?;
    let id = file.metadata().map_err(|error| Error::system(format!("read {}", cgroup.display()), error))?.ino();
    // A link always lives beside others; the mode is for kernels without links.
    let mode = CgroupAttachMode::Single;
    for (name, _) in SOCKET_PROGRAMS {
        let attach = |program: &mut CgroupSockAddr| program.attach(&file, mode).and_then(|id| program.take_link(id));
        hook(socket_program(ebpf, name)?, CgroupSockAddr::fd, attach, &pins.link(name), id, &what(name))?;
    }
    for (name, _) in GUARD_PROGRAMS {
        let attach = |program: &mut CgroupSock| program.attach(&file, mode).and_then(|id| program.take_link(id));
        hook(guard_program(ebpf, name)?, CgroupSock::fd, attach, &pins.link(name), id, &what(name))?;
    }
    Ok(())
}

/// Puts a program behind the pinned link to the cgroup, or attaches it and pins the link.
fn hook<P, L>(
    program: &mut P,
    fd: impl Fn(&P) -> Result<&ProgramFd, ProgramError>,
    attach: impl FnOnce(&mut P) -> Result<L, ProgramError>,
    pin: &Path,
    cgroup: u64,
    what: &str,
) -> Result<(), Error>
where
    L: TryInto<FdLink, Error = LinkError>,
{
    let own = fd(program).map_err(|error| Error::ebpf(what, error))?;
    if replace(pin, |target| target.cgroup() == cgroup, own.as_fd())? {
        return Ok(());
    }
    let link: L = attach(program).map_err(|error| Error::ebpf(what, error))?;
    let link: FdLink = link.try_into().map_err(|error| Error::ebpf(what, error))?;
    link.pin(pin).map(drop).map_err(|error| Error::ebpf(what, error))
}

/// Attaches packet programs to a link of this network namespace.
pub(crate) fn attach_traffic(
    ebpf: &mut Ebpf,
    pins: &Pins,
    traffic: Traffic,
    programs: &[Row],
    link: &Link,
    sides: &[TcAttachType],
) -> Result<(), Error> {
    for &(name, side, priority) in programs.iter().filter(|(_, side, _)| sides.contains(side)) {
        let what = || format!("attach {name} to the link {}", link.name);
        ensure_loaded(ebpf, name)?;
        let order = order(ebpf, name).map_err(|error| Error::ebpf(what(), error))?;
        let program = traffic_program(ebpf, name)?;
        match traffic {
            Traffic::Tcx => {
                let pin = pins.link(&format!("{name}-{}", link.index));
                let fd = program.fd().map_err(|error| Error::ebpf(what(), error))?;
                if replace(&pin, |target| target.link_index() == link.index, fd.as_fd())? {
                    continue;
                }
                let attached = program
                    .attach_with_options(&link.name, side, TcAttachOptions::TcxOrder(order))
                    .and_then(|id| program.take_link(id))
                    .map_err(|error| Error::ebpf(what(), error))?;
                let attached: FdLink = attached.try_into().map_err(|error| Error::ebpf(what(), error))?;
                attached.pin(&pin).map_err(|error| Error::ebpf(what(), error))?;
            }
            Traffic::Clsact => {
                attach_filter(program, link, side, priority).map_err(|error| Error::ebpf(what(), error))?;
                mark(program, name, &pins.uplink_filter(name, link.index))?;
            }
        }
    }
    Ok(())
}

/// Where a program's link stands among those of others and ours.
fn order(ebpf: &mut Ebpf, name: &str) -> Result<LinkOrder, ProgramError> {
    match traffic_program(ebpf, UPLINK_PROGRAMS[0].0) {
        Ok(next) if name == ONWARD.0 => LinkOrder::before_program(next),
        _ => Ok(LinkOrder::default()),
    }
}

/// Attaches the pod programs to a pod's link. Idempotent; what is attached is replaced.
pub(crate) fn attach_pod(ebpf: &mut Ebpf, pins: &Pins, link: &Link, sides: &[TcAttachType]) -> Result<(), Error> {
    for (name, side, priority) in POD_PROGRAMS.into_iter().filter(|(_, side, _)| sides.contains(side)) {
        let program = traffic_program(ebpf, name)?;
        attach_filter(program, link, side, priority)
            .map_err(|error| Error::ebpf(format!("attach {name} to the link {}", link.name), error))?;
        mark(program, name, &pins.filter(name, link.index))?;
    }
    Ok(())
}

/// Pins the program that a link has as a filter.
fn mark(program: &SchedClassifier, name: &str, marker: &Path) -> Result<(), Error> {
    unpin(marker)?;
    let program = program.fd().map_err(|error| Error::ebpf(format!("pin {name}"), error))?;
    sys::pin(program.as_fd(), marker).map_err(|error| Error::system(format!("pin {}", marker.display()), error))
}

/// Does a pod's link have our programs?
pub(crate) fn has_pod_programs(pins: &Pins, index: u32) -> bool {
    pins.filter(POD_PROGRAM, index).exists()
}

/// Takes the pod programs off a link. A link that is gone took its filters with it.
pub(crate) fn detach_pod(pins: &Pins, index: u32) -> Result<(), Error> {
    if pins.filter(POD_PROGRAM, index).exists()
        && let Ok(link) = Link::by_index(index)
    {
        for (_, side, priority) in POD_PROGRAMS.into_iter().rev() {
            detach_filter(&link, side, priority);
        }
    }
    POD_PROGRAMS.iter().rev().try_for_each(|(name, ..)| unpin(&pins.filter(name, index)))
}

fn detach_filter(link: &Link, side: TcAttachType, priority: u16) {
    if let Ok(place) = SchedClassifierLink::attached(&link.name, side, priority, FILTER_HANDLE, None) {
        drop(place);
    }
}

/// The filter has a fixed place, so that a later process replaces it there.
fn attach_filter(
    program: &mut SchedClassifier,
    link: &Link,
    side: TcAttachType,
    priority: u16,
) -> Result<(), aya::programs::ProgramError> {
    match tc::qdisc_add_clsact(&link.name) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() != Some(libc::EEXIST) => {
            return Err(TcError::NetlinkError(error).into());
        }
        _ => {}
    }
    let place =
        SchedClassifierLink::attached(&link.name, side, priority, FILTER_HANDLE, None).map_err(TcError::IoError)?;
    let id = match program.attach_to_link(place) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority, handle: FILTER_HANDLE, classid: None };
            program.attach_with_options(&link.name, side, TcAttachOptions::Netlink(options))?
        }
    };
    // Dropping it would detach the filter, which has to outlive this process.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Takes all programs off an uplink.
pub(crate) fn detach_uplink(pins: &Pins, traffic: Traffic, link: &Link) -> Result<(), Error> {
    of_uplinks().try_for_each(|program| detach_traffic(pins, traffic, program, link))
}

/// Takes a program off an uplink.
pub(crate) fn detach_traffic(
    pins: &Pins,
    traffic: Traffic,
    (name, side, priority): Row,
    link: &Link,
) -> Result<(), Error> {
    if traffic == Traffic::Tcx {
        return unpin(&pins.link(&format!("{name}-{}", link.index)));
    }
    detach_filter(link, side, priority);
    unpin(&pins.uplink_filter(name, link.index))
}

/// Forgets the filters of an uplink that is gone.
pub(crate) fn forget_filters(pins: &Pins, index: u32) -> Result<(), Error> {
    of_uplinks().try_for_each(|(name, ..)| unpin(&pins.uplink_filter(name, index)))
}

/// Does an uplink have the program that sends packets on?
pub(crate) fn has_onward(pins: &Pins, index: u32) -> bool {
    pins.link(&format!("{}-{index}", ONWARD.0)).exists() || pins.uplink_filter(ONWARD.0, index).exists()
}

/// The filters that an uplink has.
pub(crate) fn uplink_filters(pins: &Pins, index: u32) -> Vec<Row> {
    of_uplinks().filter(|(name, ..)| pins.uplink_filter(name, index).exists()).collect()
}

/// Puts this process's programs in the place of an earlier one's on uplinks and pods' links, for these directions, and
/// forgets links that are gone.
pub(crate) fn take_over(ebpf: &mut Ebpf, pins: &Pins, sides: &[TcAttachType]) -> Result<(), Error> {
    for index in pins.filters() {
        match Link::by_index(index) {
            Ok(link) => attach_pod(ebpf, pins, &link, sides)?,
            Err(_) => detach_pod(pins, index)?,
        }
    }
    for index in pins.uplink_filters() {
        match Link::by_index(index) {
            Ok(link) => attach_traffic(ebpf, pins, Traffic::Clsact, &uplink_filters(pins, index), &link, sides)?,
            Err(_) => forget_filters(pins, index)?,
        }
    }
    for name in pins.link_names() {
        let Some((program_name, index)) = name.rsplit_once('-') else { continue };
        let Ok(index) = index.parse::<u32>() else { continue };
        if program_name == wire::PROGRAM {
            if sides.contains(&TcAttachType::Ingress)
                && let Some(fd) = wire::program(ebpf).and_then(|program| program.fd().ok())
            {
                replace(&pins.link(&name), |target| target.link_index() == index, fd.as_fd())?;
            }
            continue;
        }
        if !of_uplinks().any(|(known, side, _)| known == program_name && sides.contains(&side)) {
            continue;
        }
        let program = traffic_program(ebpf, program_name)?;
        let fd = program.fd().map_err(|error| Error::ebpf(format!("take over {name}"), error))?;
        replace(&pins.link(&name), |target| target.link_index() == index, fd.as_fd())?;
    }
    Ok(())
}

/// Puts a program behind a pinned link if the link is still attached where it should be; otherwise the pin is removed.
pub(crate) fn replace(
    pin: &Path,
    right: impl Fn(sys::LinkTarget) -> bool,
    program: std::os::fd::BorrowedFd<'_>,
) -> Result<bool, Error> {
    let what = || format!("take over the link {}", pin.display());
    let link = match sys::open_pinned(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::system(what(), error)),
    };
    let target = sys::link_target(link.as_fd()).map_err(|error| Error::system(what(), error))?;
    if right(target) {
        sys::update_link(link.as_fd(), program).map_err(|error| Error::system(what(), error))?;
        return Ok(true);
    }
    unpin(pin)?;
    Ok(false)
}

/// Ends a pinned link and removes its pin. No pin, or a link whose cgroup or device is gone, is success.
pub(crate) fn unpin(pin: &Path) -> Result<(), Error> {
    if let Ok(link) = sys::open_pinned(pin) {
        // What it was attached to may have gone first: then there is nothing to detach.
        let _ = sys::detach_link(link.as_fd());
    }
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("remove {}", pin.display()), error))
        }
        _ => Ok(()),
    }
}

/// A link of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
}

impl Link {
    pub(crate) fn by_index(index: u32) -> Result<Link, Error> {
        let missing = |error| Error::system(format!("find the link with index {index}"), error);
        let name = nix::net::if_::if_indextoname(index).map_err(|errno| missing(errno.into()))?;
        if name.is_empty() {
            // What nix 0.31 makes of glibc's null pointer.
            return Err(missing(io::Error::from_raw_os_error(libc::ENXIO)));
        }
        Ok(Link { index, name: name.to_string_lossy().into_owned() })
    }

    /// A link's name, for people.
    pub(crate) fn name_of(index: u32) -> String {
        Link::by_index(index).map_or_else(|_| format!("link {index}"), |link| link.name)
    }

    /// Every link of this namespace.
    pub(crate) fn all() -> Result<Vec<Link>, Error> {
        let links = nix::net::if_::if_nameindex().map_err(|errno| Error::system("list the links", errno.into()))?;
        Ok(links
            .iter()
            .map(|link| Link { index: link.index(), name: link.name().to_string_lossy().into_owned() })
            .collect())
    }

    pub(crate) fn by_name(name: &str) -> Result<Link, Error> {
        let index = nix::net::if_::if_nametoindex(name)
            .map_err(|errno| Error::system(format!("find the link {name}"), errno.into()))?;
        Ok(Link { index, name: name.to_owned() })
    }
}
