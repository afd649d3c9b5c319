//! Trace points of TCP: how long connecting takes, round trips, retransmits, resets, counted for the Service that was asked for
//! and for the pod whose socket it is. They run when a connection's state changes and when something goes wrong; never for
//! a packet of a connection that goes well.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{null_mut, read_volatile};

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sk_storage_get, bpf_skc_to_tcp_sock};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use sluice_ebpf_common::probe::{DURATION_BUCKETS, Durations, ProbeFields, ProbeFigures, ProbeKey, Watched};
use sluice_ebpf_common::stream::{Told, bucket};
use sluice_ebpf_common::{Address, SocketState, protocol};
use sluice_packet::original;
use sluice_packet::probe::{Step, state, step};

use crate::maps;
use crate::stream::{self, add};

const AF_INET: u16 = 2;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
/// The kernel keeps the smoothed round-trip time in eighths.
const EIGHTHS: u32 = 3;

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
    own4: 0,
    own6: 0,
    own_port: 0,
    state: 0,
    first_sent: 0,
    backlog: 0,
};

/// What a place begins with.
static NOTHING: ProbeFigures = ProbeFigures {
    connect: Durations { counts: [0; DURATION_BUCKETS], microseconds: 0 },
    round_trip: Durations { counts: [0; DURATION_BUCKETS], microseconds: 0 },
    accepted: 0,
    failed: 0,
    closed: 0,
    retransmits: 0,
    syn_retransmits: 0,
    resets_received: 0,
    resets_sent: 0,
    sent_bytes: 0,
    received_bytes: 0,
    unplaced: 0,
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
    let took = if step == Step::Opened || step == Step::Failed { asked(socket, tcp) } else { 0 };
    let (round_trip, sent, received) = if step == Step::Closed { ended(tcp) } else { (0, 0, 0) };
    let kind = match step {
        Step::Opened => Told::OPENED,
        Step::Accepted => Told::ACCEPTED,
        Step::Failed => Told::FAILED,
        _ => Told::CLOSED,
    };
    if stream::followed() {
        tell(socket, tcp, kind, took + round_trip);
    }
    // One place in the program for all steps: it stays small.
    count(socket, |figures| match step {
        Step::Opened => duration(&raw mut figures.connect, took),
        Step::Accepted => add(&raw mut figures.accepted, 1),
        Step::Failed => add(&raw mut figures.failed, 1),
        _ => {
            add(&raw mut figures.closed, 1);
            add(&raw mut figures.sent_bytes, sent);
            add(&raw mut figures.received_bytes, received);
            // Nothing was measured.
            if round_trip != 0 {
                duration(&raw mut figures.round_trip, round_trip);
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
    count(socket, |figures| {
        add(&raw mut figures.retransmits, 1);
        if asking {
            add(&raw mut figures.syn_retransmits, 1);
        }
    });
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_reset_received(context: BtfTracePointContext) -> i32 {
    count(context.arg(0), |figures| add(&raw mut figures.resets_received, 1));
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_reset_sent(context: BtfTracePointContext) -> i32 {
    let socket: *mut c_void = context.arg(0);
    // For a port that nobody listens on.
    if socket.is_null() {
        return 0;
    }
    count(socket, |figures| add(&raw mut figures.resets_sent, 1));
    0
}

/// What a socket remembers, or null. It is valid while the program runs.
#[inline(always)]
fn watched(socket: *mut c_void, flags: u64) -> *mut Watched {
    // SAFETY: the trace point's socket is valid for the whole program; the helper refuses those that have no room.
    unsafe { bpf_sk_storage_get((&raw const maps::WATCHED).cast_mut().cast(), socket, null_mut(), flags) }.cast()
}

/// Whose socket it is, by its network namespace: kind and link. A stranger's is nobody's.
#[inline(always)]
fn owner(socket: *const c_void) -> Option<(u16, u32)> {
    // SAFETY: the offsets are the running kernel's, and the verifier checks what is read by the kernel's own types.
    let cookie = unsafe {
        let net = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.net)).cast::<*const c_void>());
        read_volatile(net.byte_add(place(&raw const PROBE_FIELDS.cookie)).cast::<u64>())
    };
    if maps::SETTINGS.get(0)?.host_cookie == cookie {
        return Some((ProbeKey::NODE, 0));
    }
    let link = maps::NAMESPACES.get_ptr(cookie)?;
    // SAFETY: the map returned a pointer to a whole value.
    Some((ProbeKey::POD, unsafe { read_volatile(link) }))
}

/// Writes the Service behind a socket's destination, if it was translated; else false.
#[inline(never)]
fn service(socket: *mut c_void, key: &mut ProbeKey) -> bool {
    let map = (&raw const maps::SOCKETS).cast_mut().cast();
    // SAFETY: as in `watched`.
    let state: *const SocketState = unsafe { bpf_sk_storage_get(map, socket, null_mut(), 0) }.cast();
    if state.is_null() {
        return false;
    }
    // SAFETY: as in `owner`; the state is valid while the program runs.
    let asked = unsafe {
        let port = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.port)).cast::<u16>());
        let family = read_volatile(socket.byte_add(place(&raw const PROBE_FIELDS.family)).cast::<u16>());
        let address = address(socket, family, &raw const PROBE_FIELDS.address4, &raw const PROBE_FIELDS.address6);
        original(&*state, &address, port)
    };
    let Some((address, port)) = asked else { return false };
    (key.address, key.port, key.kind) = (address, port, ProbeKey::SERVICE);
    true
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
fn asked(socket: *mut c_void, tcp: *const c_void) -> u64 {
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

/// Tells of a step, for the socket's owner.
#[inline(never)]
fn tell(socket: *mut c_void, tcp: *const c_void, kind: u16, took: u64) {
    let Some((_, link)) = owner(socket) else { return };
    let mut asked = ProbeKey::default();
    let of_service = service(socket, &mut asked);
    let Some(mut entry) = stream::place::<Told>(bucket::SOCKETS) else { return };
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
        if of_service {
            ((*told).address, (*told).port) = (asked.address, asked.port);
        }
        // Who was accepted has the listener's backlog, which is hardly ever 0.
        let backlog = read_volatile(tcp.byte_add(place(&raw const PROBE_FIELDS.backlog)).cast::<u32>());
        if of_service || backlog == 0 {
            (*told).flags = Told::OPENER;
        }
        (*told).took = took;
        if kind == Told::CLOSED {
            (_, (*told).sent, (*told).received) = ended(tcp);
        }
    }
    entry.submit(0);
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

/// Counts for the Service and for the socket's owner.
#[inline(always)]
fn count(socket: *mut c_void, add: impl Fn(&mut ProbeFigures)) {
    let Some((kind, link)) = owner(socket) else { return };
    let mut key = ProbeKey::default();
    if service(socket, &mut key) {
        at(&key, &add);
    }
    at(&ProbeKey { kind, link, ..ProbeKey::default() }, &add);
}

/// Counts at a place, which is made when it is not there.
#[inline(never)]
fn at(key: &ProbeKey, add: &impl Fn(&mut ProbeFigures)) {
    let mut figures = maps::FIGURES.get_ptr_mut(key);
    if figures.is_none() && maps::FIGURES.insert(key, &NOTHING, u64::from(BPF_NOEXIST)).is_ok() {
        figures = maps::FIGURES.get_ptr_mut(key);
    }
    let figures = match figures {
        Some(figures) => figures,
        None => {
            let rest = ProbeKey { address: Address { words: [0; 4] }, port: 0, kind: ProbeKey::REST, link: 0 };
            let Some(rest) = maps::FIGURES.get_ptr_mut(rest) else { return };
            // SAFETY: the map returned a pointer to a whole value.
            self::add(unsafe { &raw mut (*rest).unplaced }, 1);
            rest
        }
    };
    // SAFETY: this processor's own value, which is changed by atomic operations alone: an interrupt may come in between.
    add(unsafe { &mut *figures });
}

#[inline(always)]
fn duration(durations: *mut Durations, microseconds: u64) {
    let mut place = u64::from(sluice_packet::probe::bucket(microseconds));
    // SAFETY: the verifier is shown that the place is inside.
    unsafe {
        asm!("{place} &= 31", place = inout(reg) place);
        add((&raw mut (*durations).counts).cast::<u64>().add(place as usize), 1);
        add(&raw mut (*durations).microseconds, microseconds);
    }
}
