//! Trace points of TCP: how long connecting takes, round trips, retransmits, resets, counted for the Service that was asked for
//! and for the pod whose socket it is. They run when a connection's state changes and when something goes wrong; never for
//! a packet of a connection that goes well.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_storage_get, bpf_skc_to_tcp_sock};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use sluice_ebpf_common::probe::{Durations, ProbeFields, ProbeFigures, ProbeKey, Watched, seat};
use sluice_ebpf_common::stream::{self as telling, Told};
use sluice_ebpf_common::{Address, Owner, SocketState, Translation, limits, protocol};
use sluice_packet::asked_for;
use sluice_packet::probe::{Step, bucket, state, step};

use crate::maps;
use crate::stream::{self, add};

const AF_INET: u16 = 2;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
/// The kernel keeps the smoothed round-trip time in eighths.
const EIGHTHS: u32 = 3;
/// No seat.
const NONE: u32 = u32::MAX;

/// Where the running kernel has its fields: the loader writes it before the kernel sees the programs, so that the verifier
/// knows every offset and checks every read against the kernel's types.
#[unsafe(no_mangle)]
static PROBE_FIELDS: ProbeFields = ProbeFields {
    net: 0,
    cookie: 0,
    family: 0,
    port: 0,
    address4: 0,
    address6: 0,
    round_trip: 0,
    acknowledged: 0,
    received: 0,
    sent_again: 0,
    own4: 0,
    own6: 0,
    own_port: 0,
    state: 0,
    first_sent: 0,
    backlog: 0,
};

/// One of the words above.
#[inline(always)]
fn place(word: *const u32) -> usize {
    // SAFETY: a word of the object's constants.
    unsafe { read_volatile(word) as usize }
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state(context: BtfTracePointContext) -> i32 {
    let (socket, from, to): (*mut c_void, i32, i32) = (context.arg(0), context.arg(1), context.arg(2));
    let step = step(from, to);
    if step == Step::Nothing {
        return 0;
    }
    // SAFETY: the trace point's socket is valid for the whole program. Other protocols' sockets are none.
    let tcp: *const c_void = unsafe { bpf_skc_to_tcp_sock(socket) }.cast();
    if tcp.is_null() {
        return 0;
    }
    let Some((owner, flags)) = owner(socket) else { return 0 };
    let asked = if step == Step::Accepted { None } else { asked(socket) };
    let (mut took, mut sent, mut received) = (0, 0, 0);
    match step {
        Step::Opened | Step::Failed => took = opening(socket, tcp),
        Step::Closed => (took, sent, received) = ended(tcp),
        _ => {}
    }
    if flags & Owner::BY_PACKET == 0 && stream::followed() {
        let kind = match step {
            Step::Opened => Told::OPENED,
            Step::Accepted => Told::ACCEPTED,
            Step::Failed => Told::FAILED,
            _ => Told::CLOSED,
        };
        tell(socket, tcp, kind, owner, [took, sent, received]);
    }
    let bucket = maps::hide(bucket(took ^ u64::from(maps::hide(0))));
    // One place in the program for all steps: it stays small.
    count(owner, asked, |figures| match step {
        Step::Opened => duration(&raw mut figures.connect, bucket, took),
        Step::Accepted => own(&raw mut figures.accepted, 1),
        Step::Failed => own(&raw mut figures.failed, 1),
        _ => {
            own(&raw mut figures.sent_bytes, sent);
            own(&raw mut figures.received_bytes, received);
            if took == 0 {
                own(&raw mut figures.unmeasured, 1);
            } else {
                duration(&raw mut figures.round_trip, bucket, took);
            }
        }
    });
    0
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit(context: BtfTracePointContext) -> i32 {
    let socket: *mut c_void = context.arg(0);
    // SAFETY: as in `owner`.
    let state = unsafe { read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.state)).cast::<u8>()) };
    let asking = i32::from(state) == state::SYN_SENT;
    if asking {
        asks_again(socket);
    }
    let Some((owner, _)) = owner(socket) else { return 0 };
    count(owner, asked(socket), |figures| {
        own(&raw mut figures.retransmits, 1);
        if asking {
            own(&raw mut figures.syn_retransmits, 1);
        }
    });
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_reset_received(context: BtfTracePointContext) -> i32 {
    let socket: *mut c_void = context.arg(0);
    let Some((owner, _)) = owner(socket) else { return 0 };
    count(owner, asked(socket), |figures| own(&raw mut figures.resets_received, 1));
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_reset_sent(context: BtfTracePointContext) -> i32 {
    let socket: *mut c_void = context.arg(0);
    // For a port that nobody listens on.
    if socket.is_null() {
        return 0;
    }
    let Some((owner, _)) = owner(socket) else { return 0 };
    count(owner, asked(socket), |figures| own(&raw mut figures.resets_sent, 1));
    0
}

/// What a socket remembers, or null. It is valid while the program runs.
#[inline(always)]
fn watched(socket: *mut c_void, flags: u64) -> *mut Watched {
    // SAFETY: the trace point's socket is valid for the whole program; the helper refuses those that have no room.
    unsafe { bpf_sk_storage_get((&raw const maps::WATCHED).cast_mut().cast(), socket, null_mut(), flags) }.cast()
}

/// Whose socket it is, by its network namespace: 0 for the node's, else the pod's link, and the owner's flags. A stranger's is
/// nobody's.
#[inline(always)]
fn owner(socket: *const c_void) -> Option<(u32, u32)> {
    // SAFETY: the offsets are the running kernel's, and the verifier checks what is read by the kernel's own types.
    let cookie = unsafe {
        let net = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.net)).cast::<*const c_void>());
        read_volatile(net.byte_add(place(&raw const PROBE_FIELDS.cookie)).cast::<u64>())
    };
    owner_of(cookie)
}

/// Whose a network namespace is, by its cookie.
#[inline(always)]
pub fn owner_of(cookie: u64) -> Option<(u32, u32)> {
    if maps::SETTINGS.get(0)?.host_cookie == cookie {
        return Some((0, 0));
    }
    // SAFETY: the maps returned pointers to whole values. While one is written, its namespace has no sockets yet or none any
    // more.
    unsafe {
        let owner = maps::OWNERS.get_ptr(Owner::place(cookie))?;
        let (link, flags) = (read_volatile(&raw const (*owner).link), read_volatile(&raw const (*owner).flags));
        if read_volatile(&raw const (*owner).namespace) == cookie && link != 0 {
            return Some((link, flags));
        }
        maps::NAMESPACES.get_ptr(cookie).map(|link| (read_volatile(link), 0))
    }
}

/// May this socket have asked for its connection? Who was accepted has the listener's backlog, which is hardly ever 0.
#[inline(always)]
fn may_have_asked(socket: *const c_void) -> bool {
    // SAFETY: as in `owner`.
    unsafe { read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.backlog)).cast::<u32>()) == 0 }
}

/// The Service that a socket asked for, if its destination was translated: its id, address and port.
#[inline(always)]
fn asked(socket: *mut c_void) -> Option<(u32, &'static Translation)> {
    if !may_have_asked(socket) {
        return None;
    }
    let map = (&raw const maps::SOCKETS).cast_mut().cast();
    // SAFETY: as in `watched`.
    let state: *const SocketState = unsafe { bpf_sk_storage_get(map, socket, null_mut(), 0) }.cast();
    if state.is_null() {
        return None;
    }
    // SAFETY: as in `owner`; the state is valid while the program runs.
    unsafe {
        let port = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.port)).cast::<u16>());
        let family = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.family)).cast::<u16>());
        let address = address(socket, family, &raw const PROBE_FIELDS.address4, &raw const PROBE_FIELDS.address6);
        asked_for(&*state, &address, port)
    }
}

/// A connection is asked for again: the time of the first SYN is noted with the socket.
#[inline(always)]
fn asks_again(socket: *mut c_void) {
    // SAFETY: the trace point's socket is valid for the whole program. Other protocols' sockets are none.
    let tcp: *const c_void = unsafe { bpf_skc_to_tcp_sock(socket) }.cast();
    let watched = watched(socket, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    if tcp.is_null() || watched.is_null() {
        return;
    }
    // SAFETY: as in `owner`; see `watched`. Nobody else looks at a socket that is not connected.
    unsafe {
        let first_sent = read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.first_sent)).cast::<u32>());
        *watched = Watched { first_sent, asked_again: 1 };
    }
}

/// How many microseconds it took until a connection was there, or was not to be. The kernel's own measurement of the first round
/// trip, unless the SYN was sent again.
#[inline(always)]
fn opening(socket: *mut c_void, tcp: *const c_void) -> u64 {
    // SAFETY: as in `owner`.
    if unsafe { read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.sent_again)).cast::<u32>()) } == 0 {
        return round_trip(tcp);
    }
    let watched = watched(socket, 0);
    // SAFETY: see `watched`; the helper has no preconditions.
    unsafe {
        if watched.is_null() || (*watched).asked_again == 0 {
            return round_trip(tcp);
        }
        // The socket may ask for another connection.
        (*watched).asked_again = 0;
        let now = (bpf_ktime_get_ns() / MILLISECOND) as u32;
        u64::from(now.wrapping_sub((*watched).first_sent)) * (MILLISECOND / MICROSECOND)
    }
}

/// The smoothed round-trip time, in microseconds.
#[inline(always)]
fn round_trip(tcp: *const c_void) -> u64 {
    // SAFETY: as in `owner`.
    u64::from(
        unsafe { read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.round_trip)).cast::<u32>()) } >> EIGHTHS,
    )
}

/// What an ended connection measured and carried: microseconds, bytes sent, bytes received.
#[inline(always)]
fn ended(tcp: *const c_void) -> (u64, u64, u64) {
    // SAFETY: as in `owner`.
    unsafe {
        (
            round_trip(tcp),
            read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.acknowledged)).cast::<u64>()),
            read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.received)).cast::<u64>()),
        )
    }
}

/// Tells of a step, for the socket's owner: with microseconds, bytes sent and received.
#[inline(never)]
fn tell(socket: *mut c_void, tcp: *const c_void, kind: u16, link: u32, figures: [u64; 3]) {
    let Some(mut entry) = stream::place::<Told>(telling::bucket::SOCKETS) else { return };
    let asked = asked(socket);
    let told = entry.as_mut_ptr();
    // SAFETY: the ring lends a whole place; every field is written before it is given back. Sockets as in `owner`.
    unsafe {
        ((*told).kind, (*told).reason, (*told).link) = (kind, 0, link);
        stream::nobody(told);
        let family = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.family)).cast::<u16>());
        (*told).ends.source = address(socket, family, &raw const PROBE_FIELDS.own4, &raw const PROBE_FIELDS.own6);
        (*told).ends.destination =
            address(socket, family, &raw const PROBE_FIELDS.address4, &raw const PROBE_FIELDS.address6);
        (*told).ends.source_port = read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.own_port)).cast::<u16>());
        (*told).ends.destination_port =
            read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.port)).cast::<u16>());
        ((*told).ends.protocol, (*told).ends.kind, (*told).ends.reserved) = (protocol::TCP, 0, 0);
        if let Some((_, translation)) = asked {
            ((*told).address, (*told).port) = (translation.service_address, translation.service_port);
        }
        if may_have_asked(socket) {
            (*told).flags = Told::OPENER;
        }
        [(*told).took, (*told).sent, (*told).received] = figures;
    }
    stream::give(entry);
}

/// An address of a socket. SAFETY: as in `owner`.
#[inline(always)]
unsafe fn address(socket: *const c_void, family: u16, four: *const u32, six: *const u32) -> Address {
    // SAFETY: as the caller promised.
    unsafe {
        if family == AF_INET {
            return Address::v4(read_volatile(socket.byte_add(place(four)).cast::<u32>()));
        }
        let words: *const u32 = socket.byte_add(place(six)).cast();
        let word = |at: usize| read_volatile(words.add(at));
        Address { words: [word(0), word(1), word(2), word(3)] }
    }
}

/// Counts for the socket's owner and for the Service that it asked for.
#[inline(always)]
fn count(owner: u32, asked: Option<(u32, &Translation)>, add: impl Fn(&mut ProbeFigures)) {
    let mut seat = if owner == 0 { seat::NODE } else { seat_of(ProbeKey::of_pod(owner)) };
    let mut next = asked.map_or(NONE, |(service, _)| seat_of(ProbeKey::of_service(service)));
    loop {
        if let Some(figures) = maps::MEASURED.get_ptr_mut(seat) {
            // SAFETY: this processor's own value; see `own`.
            add(unsafe { &mut *figures });
        }
        if next == NONE {
            break;
        }
        (seat, next) = (next, NONE);
    }
}

/// Where somebody's figures are.
#[inline(always)]
fn seat_of(key: ProbeKey) -> u32 {
    let first = key.first_seat();
    // SAFETY: the map returned a pointer to a whole value.
    if maps::SEATS.get_ptr(first).is_some_and(|seat| unsafe { read_volatile(seat) } == key) {
        return first;
    }
    look_for_seat(key.0)
}

/// The seat that somebody has further on, or a new one, or that of all others. The verifier looks at a function with
/// a name of its own once, whoever calls it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_for_seat(key: u64) -> u32 {
    let first = ProbeKey(key).first_seat();
    for look in 0..2 * seat::LOOKS {
        let index = (first + look % seat::LOOKS) % limits::FIGURES;
        let Some(seat) = maps::SEATS.get_ptr_mut(index) else { break };
        // SAFETY: the map returned a pointer to a whole value.
        let mut taken = unsafe { read_volatile(seat) };
        // Only when it has none anywhere.
        if look >= seat::LOOKS && taken == ProbeKey::NOBODY {
            // SAFETY: as above. Another processor may be faster, for the same one or for another.
            unsafe {
                asm!("r0 = cmpxchg_64({word} + 0, r0, {to})", inout("r0") 0_u64 => taken.0, word = in(reg) seat, to = in(reg) key);
            }
            if taken == ProbeKey::NOBODY {
                return index;
            }
        }
        if taken.0 == key {
            return index;
        }
    }
    if let Some(rest) = maps::MEASURED.get_ptr_mut(seat::REST) {
        // SAFETY: as above.
        add(unsafe { &raw mut (*rest).unplaced }, 1);
    }
    seat::REST
}

#[inline(always)]
fn duration(durations: *mut Durations, bucket: u32, microseconds: u64) {
    let mut place = u64::from(bucket);
    // SAFETY: the verifier is shown that the place is inside.
    unsafe {
        asm!("{place} &= 31", place = inout(reg) place);
        own((&raw mut (*durations).counts).cast::<u64>().add(place as usize), 1);
        own(&raw mut (*durations).microseconds, microseconds);
    }
}

/// Adds to a figure of this processor that no other program changes. The kernel starts none of these programs again on a
/// processor where it was interrupted, so nobody else comes in between.
#[inline(always)]
fn own(figure: *mut u64, more: u64) {
    // SAFETY: a word of a map's value.
    unsafe { write_volatile(figure, read_volatile(figure) + more) };
}
