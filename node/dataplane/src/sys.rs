//! The few system calls that aya does not offer: link update and link info, namespace cookies, clocks.
//!
//! All `unsafe` of this crate is here and in `words`.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sluice_ebpf_common::cache::Uplink;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_NOEXIST: u64 = 1;
/// Elements that are read from a map in one call, at least; more where a bucket of a hash map holds more.
const BATCH: usize = 4_096;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_LINK_DETACH: libc::c_long = 34;
const SO_NETNS_COOKIE: libc::c_int = 71;
/// Room for any command's attributes; the kernel ignores zeroes past those it knows.
const ATTRIBUTES: usize = 16;

#[repr(C, align(8))]
struct Attributes([u64; ATTRIBUTES]);

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are 128 initialised bytes, all pointers in them are to live buffers of the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = path.as_ptr() as u64;
    let fd = bpf(BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes many elements of a map in one call. On failure some of them are written.
pub(crate) fn update_batch<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    let count = keys.len().min(values.len());
    if count == 0 {
        return Ok(());
    }
    // in_batch, out_batch, keys, values, count with the map's descriptor, elem_flags, flags.
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[2] = keys.as_ptr() as u64;
    attributes.0[3] = values.as_ptr() as u64;
    attributes.0[4] = count as u64 | (map.as_raw_fd() as u64) << 32;
    bpf(BPF_MAP_UPDATE_BATCH, &mut attributes).map(|_| ())
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) key: u32,
    pub(crate) value: u32,
    pub(crate) entries: u32,
    pub(crate) flags: u32,
}

/// Asks the kernel about a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, …
    let info = info(map)?;
    let half = |at: usize| if at.is_multiple_of(2) { info[at / 2] as u32 } else { (info[at / 2] >> 32) as u32 };
    Ok(MapInfo { kind: half(0), key: half(2), value: half(3), entries: half(4), flags: half(5) })
}

/// Reads all elements of a map, many in one call: `take` gets runs of keys and of values, `key` and `value` bytes each. An
/// element that comes or goes meanwhile may be seen or not.
pub(crate) fn read_all(
    map: BorrowedFd<'_>,
    key: usize,
    value: usize,
    mut take: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut room = BATCH;
    let (mut keys, mut values) = (vec![0_u8; room * key], vec![0_u8; room * value]);
    // Where the walk stands: the kernel's own word, as long as a key or four bytes.
    let mut place = vec![0_u8; key.max(8)];
    let mut started = false;
    loop {
        let mut attributes = Attributes([0; ATTRIBUTES]);
        attributes.0[0] = if started { place.as_ptr() as u64 } else { 0 };
        attributes.0[1] = place.as_mut_ptr() as u64;
        attributes.0[2] = keys.as_mut_ptr() as u64;
        attributes.0[3] = values.as_mut_ptr() as u64;
        attributes.0[4] = room as u64 | (map.as_raw_fd() as u64) << 32;
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes);
        let last = match &result {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                // The end of the map.
                Some(libc::ENOENT) => true,
                // A bucket holds more than there is room for.
                Some(libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(room * key, 0);
                    values.resize(room * value, 0);
                    continue;
                }
                _ => return result.map(drop),
            },
        };
        let count = (attributes.0[4] as u32 as usize).min(room);
        take(&keys[..count * key], &values[..count * value]);
        if last {
            return Ok(());
        }
        started = true;
    }
}

/// As [`read_all`], one element after the other.
pub(crate) fn read_each<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, mut take: impl FnMut(K, V)) -> io::Result<()> {
    let (key, value) = (size_of::<K>(), size_of::<V>());
    read_all(map, key, value, |keys, values| {
        for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)) {
            // SAFETY: the bytes are as many as the type has, and every bit pattern is one of its values.
            let entry =
                unsafe { (key.as_ptr().cast::<K>().read_unaligned(), value.as_ptr().cast::<V>().read_unaligned()) };
            take(entry.0, entry.1);
        }
    })
}

/// A value of so many bytes.
pub(crate) fn exactly<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the bytes are as many as the type has, and every bit pattern is one of its values.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Writes an element if its key is not there yet; says whether it was missing.
pub(crate) fn insert_new(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<bool> {
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = map.as_raw_fd() as u64;
    attributes.0[1] = key.as_ptr() as u64;
    attributes.0[2] = value.as_ptr() as u64;
    attributes.0[3] = BPF_NOEXIST;
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes an element.
pub(crate) fn write_one(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = map.as_raw_fd() as u64;
    attributes.0[1] = key.as_ptr() as u64;
    attributes.0[2] = value.as_ptr() as u64;
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Waits until every program that runs now has ended.
pub(crate) fn grace() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: the command takes no memory; it waits for an RCU grace period, which programs run inside of.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs a thread on each of these processors in turn; false if it may not run on one of them.
pub(crate) fn visit_processors(processors: &[u32]) -> bool {
    let visit = |processor: u32| {
        let mut set = nix::sched::CpuSet::new();
        set.set(processor as usize)?;
        // The thread has moved when the call returns.
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
    };
    std::thread::scope(|scope| scope.spawn(|| processors.iter().all(|processor| visit(*processor).is_ok())).join())
        .unwrap_or(false)
}

/// Pins a program, map or link.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = path.as_ptr() as u64;
    attributes.0[1] = object.as_raw_fd() as u64;
    bpf(BPF_OBJ_PIN, &mut attributes).map(|_| ())
}

/// The id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // struct bpf_prog_info: type, id, …
    let info = info(program)?;
    Ok((info[0] >> 32) as u32)
}

/// What the kernel makes of a program's instructions: the same for the same program.
pub(crate) fn program_tag(program: BorrowedFd<'_>) -> io::Result<u64> {
    // struct bpf_prog_info: type, id, tag, …
    Ok(info(program)?[1])
}

/// Opens a program by its id.
pub(crate) fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = id.into();
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes)?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program behind a link; packets and connects see the old or the new one, never none.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = link.as_raw_fd() as u64 | (program.as_raw_fd() as u64) << 32;
    bpf(BPF_LINK_UPDATE, &mut attributes).map(|_| ())
}

/// Ends a link now; removing its pin alone would end it some time later.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = link.as_raw_fd() as u64;
    bpf(BPF_LINK_DETACH, &mut attributes).map(|_| ())
}

/// What a link is attached to: the link index (TCX) or the cgroup's id. 0 when that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkTarget {
    pub(crate) program: u32,
    target: u64,
}

impl LinkTarget {
    /// For a TCX link.
    pub(crate) fn link_index(self) -> u32 {
        self.target as u32
    }

    /// For a cgroup link.
    pub(crate) fn cgroup(self) -> u64 {
        self.target
    }
}

/// Asks the kernel about a link.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    // struct bpf_link_info: type, id, prog_id, then a union that starts with the target.
    let info = info(link)?;
    Ok(LinkTarget { program: info[1] as u32, target: info[2] })
}

/// How often the kernel did not run a tracing program because it was running on that processor.
pub(crate) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    // struct bpf_prog_info: recursion_misses stands at byte 208.
    const PLACE: usize = 208 / 8;
    let info: [u64; 32] = info_of(program)?;
    Ok(info[PLACE])
}

/// The first bytes of what the kernel tells about a program or link.
fn info(object: BorrowedFd<'_>) -> io::Result<[u64; ATTRIBUTES]> {
    info_of(object)
}

fn info_of<const N: usize>(object: BorrowedFd<'_>) -> io::Result<[u64; N]> {
    let mut info = [0_u64; N];
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = object.as_raw_fd() as u64 | (size_of_val(&info) as u64) << 32;
    attributes.0[1] = info.as_mut_ptr() as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// Waits for a descriptor that `inner` keeps open for its whole life to become readable.
pub(crate) fn watch<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both traits give out the one descriptor that `inner` owns, so it stays open while it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}

/// Cookie of the calling thread's network namespace.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes into the cookie.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Cookie of another network namespace, pinned at a path.
pub(crate) fn netns_cookie_of(path: &Path) -> io::Result<u64> {
    inside(path, netns_cookie)
}

/// Does something in another network namespace, pinned at a path.
pub(crate) fn inside<T: Send>(path: &Path, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let file = std::fs::File::open(path)?;
    // Entering is for a thread of its own, which ends with it.
    std::thread::scope(|scope| {
        let visit = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            act()
        })?;
        visit.join().map_err(|_| io::Error::other("the visit failed"))?
    })
}

/// What an iterator's program says, for reading; of sockets, those of the calling thread's network namespace.
pub(crate) fn iterate(program: BorrowedFd<'_>) -> io::Result<std::fs::File> {
    const BPF_TRACE_ITER: u64 = 28;
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = program.as_raw_fd() as u64;
    attributes.0[1] = BPF_TRACE_ITER;
    let link = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = link.as_raw_fd() as u64;
    let file = bpf(BPF_ITER_CREATE, &mut attributes)?;
    // SAFETY: as above.
    Ok(unsafe { std::fs::File::from_raw_fd(file) })
}

/// What drivers call themselves.
pub(crate) const VETH_DRIVER: &str = "veth";
pub(crate) const BOND_DRIVER: &str = "bonding";
pub(crate) const VLAN_DRIVER: &str = "802.1Q VLAN Support";

/// The name of a link's driver.
pub(crate) fn driver(name: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: the command, then the driver's name, 196 bytes in all.
    const COMMAND: u32 = 3;
    const DRIVER: std::ops::Range<usize> = 4..36;
    let mut info = [0_u8; 196];
    info[..4].copy_from_slice(&COMMAND.to_ne_bytes());
    let mut request = named(name);
    request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the request names a buffer of the length that this command fills.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(text(&info[DRIVER]))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Is this link one end of a veth pair?
pub(crate) fn is_veth(name: &str) -> io::Result<bool> {
    driver(name).map(|driver| driver == VETH_DRIVER)
}

/// For a VLAN's link: the link that its packets are tagged on, and their tags as `Uplink::vlan` makes them.
pub(crate) fn vlan_parent(name: &str) -> Option<(u32, u32)> {
    let (parent, id) = vlan_of(name)?;
    // A tag inside another one, at most.
    let (lowest, outer) = match vlan_of(&parent) {
        Some((lowest, id)) => (lowest, Uplink::vlan(0, id)),
        None => (parent, 0),
    };
    let index = nix::net::if_::if_nametoindex(lowest.as_str()).ok()?;
    Some((index, Uplink::vlan(outer, id)))
}

fn vlan_of(name: &str) -> Option<(String, u16)> {
    const REAL_DEVICE: libc::c_int = 8;
    const ID: libc::c_int = 9;
    let parent = vlan_ioctl(REAL_DEVICE, name)?;
    let [a, b, ..] = vlan_ioctl(ID, name)?;
    Some((text(&parent), u16::from_ne_bytes([a, b])))
}

/// Asks about a VLAN's link; the kernel answers for no other.
fn vlan_ioctl(command: libc::c_int, name: &str) -> Option<[u8; 24]> {
    const SIOCGIFVLAN: libc::c_ulong = 0x8982;
    // struct vlan_ioctl_args
    #[repr(C)]
    struct Request {
        command: libc::c_int,
        device: [u8; 24],
        answer: [u8; 24],
        priority: libc::c_short,
    }
    let mut request = Request { command, device: [0; 24], answer: [0; 24], priority: 0 };
    request.device.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()).for_each(|(to, from)| *to = from);
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // SAFETY: the request has the layout that this command reads and fills.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIFVLAN as _, &raw mut request) };
    (result >= 0).then_some(request.answer)
}

/// The bond that has this link as a slave.
pub(crate) fn bond_of(name: &str) -> Option<u32> {
    let links = nix::net::if_::if_nameindex().ok()?;
    links.iter().find_map(|link| {
        let bond = link.name().to_str().ok()?;
        let slaves = if driver(bond).is_ok_and(|driver| driver == BOND_DRIVER) { slaves(bond) } else { Vec::new() };
        slaves.iter().any(|slave| slave == name).then_some(link.index())
    })
}

/// Names of a bond's slaves.
fn slaves(bond: &str) -> Vec<String> {
    const SIOCBONDSLAVEINFOQUERY: libc::c_ulong = 0x8993;
    // struct ifslave: number, name, state.
    const NAME: std::ops::Range<usize> = 4..20;
    let slave = |number: u32| {
        let mut about = [0_u8; 28];
        about[..4].copy_from_slice(&number.to_ne_bytes());
        let mut request = named(bond);
        request.ifr_ifru.ifru_data = about.as_mut_ptr().cast();
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // SAFETY: the request names a buffer of the length that this command fills.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBONDSLAVEINFOQUERY as _, &raw mut request) };
        (result >= 0).then(|| text(&about[NAME]))
    };
    (0..).map_while(slave).collect()
}

/// Number of the kind of attachment, which programs that take each other's place have in common.
const BPF_XDP: u64 = 37;

/// Loads an XDP program that lets every packet pass.
pub(crate) fn passing_xdp() -> io::Result<OwnedFd> {
    const PROGRAM_XDP: u64 = 6;
    // r0 = XDP_PASS; exit
    let instructions = [0x2_0000_00b7_u64, 0x95];
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = PROGRAM_XDP | (instructions.len() as u64) << 32;
    attributes.0[1] = instructions.as_ptr() as u64;
    attributes.0[2] = c"GPL".as_ptr() as u64;
    attributes.0[8] = BPF_XDP << 32;
    let fd = bpf(BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches an XDP program to a link, in its driver.
pub(crate) fn attach_native_xdp(program: BorrowedFd<'_>, index: u32) -> io::Result<OwnedFd> {
    const DRIVER_MODE: u64 = 1 << 2;
    let mut attributes = Attributes([0; ATTRIBUTES]);
    attributes.0[0] = program.as_raw_fd() as u64 | u64::from(index) << 32;
    attributes.0[1] = BPF_XDP | DRIVER_MODE << 32;
    let fd = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A link's Ethernet address.
pub(crate) fn hardware_address(name: &str) -> io::Result<[u8; 6]> {
    let request = ask(name, libc::SIOCGIFHWADDR)?;
    // SAFETY: this command fills in an address.
    let [a, b, c, d, e, f, ..] = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data.map(|byte| byte as u8);
    Ok([a, b, c, d, e, f])
}

/// The longest IP packet on a link.
pub(crate) fn mtu(name: &str) -> io::Result<u32> {
    let request = ask(name, libc::SIOCGIFMTU)?;
    // SAFETY: this command fills in a number.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// A request about a link.
fn named(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Asks one of the short questions about a link.
fn ask(name: &str, command: libc::c_ulong) -> io::Result<libc::ifreq> {
    let mut request = named(name);
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: these commands read the name and fill in the rest of the request.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

/// How often a second the kernel's timer ticks.
pub(crate) fn timer_rate() -> u64 {
    let mut step = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes into the local.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut step) };
    1_000_000_000 / u64::try_from(step.tv_nsec).unwrap_or(0).max(1)
}

/// Bytes of the machine's memory.
pub(crate) fn memory() -> u64 {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: writes into the local; all zeroes is a value of it.
    let info = unsafe {
        libc::sysinfo(info.as_mut_ptr());
        info.assume_init()
    };
    info.totalram.saturating_mul(info.mem_unit.into())
}

/// Gives memory that is free inside the C library's allocator back to the kernel; others do so by themselves.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Seconds of the clock that the programs stamp flows with.
pub(crate) fn coarse_seconds() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes into the local.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec as u32
}
