//! The maps as `sluice-packet` wants them.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns};
use sluice_ebpf_common::cache::{Bucket4, Bucket6};
use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, Counters, Event, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Guard, NO_NODE_PORTS, PodLink, RangeKey, Reason, RuleKey, SLAB_LINE,
    Settings, SourceKey, limits, opened,
};
use sluice_packet::{
    Begun, Desk, Fast, Header, InsertError, Judging, Maps, Path, Paths, Policies, Route, Scratch, Trail,
};

use crate::counters::Own;
use crate::route::way_out;
use crate::{maps, once, stream};

const NANOSECONDS: u64 = 1_000_000_000;
const EEXIST: i32 = -17;
const ADDRESS_BITS: u32 = 128;

/// Where the program runs; the rest is in the maps.
pub enum Kernel {
    /// On a packet that uses the link with this index.
    Link(u32),
    /// The same, where the node sends it to itself or to services: loopback addresses are its own there.
    Own(u32),
    /// On a packet that comes in on an uplink: one that its driver just received, or on the link itself.
    Wire(Wire),
    /// On a socket in the network namespace with this cookie.
    Socket(u64),
}

/// What is known of a packet before the kernel's stack sees it.
pub struct Wire {
    /// The program's.
    pub context: *mut c_void,
    /// Index of the link.
    pub link: u32,
    /// VLAN tags, as `Uplink::vlan` makes them; or [`Uplink::ON_LINK`].
    pub vlan: u32,
}

impl Maps for Kernel {
    #[inline(always)]
    fn hide(&self, value: u32) -> u32 {
        maps::hide(value)
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        // SAFETY: the map's whole value, readable until the program ends.
        maps::only(&raw const maps::SETTINGS).map(|settings| unsafe { settings.as_ref() })
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // The element may be reused for another frontend while it is read; the generation, unique per write, tells.
        for _ in 0..2 {
            let entry = maps::FRONTENDS.get_ptr(key)?;
            // SAFETY: the map returned a pointer to a whole value, readable until the program ends.
            let (copy, generation) = unsafe { (read_volatile(entry), read_volatile(addr_of!((*entry).generation))) };
            if copy.generation == generation {
                return Some(copy);
            }
        }
        None
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        let line = maps::SLAB.get_ptr(index / SLAB_LINE as u32)?.cast::<u32>();
        // SAFETY: inside the line, whose length is a power of two.
        Some(unsafe { read_volatile(line.add(index as usize % SLAB_LINE)) })
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        maps::BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn local(&self, address: &Address) -> Option<u32> {
        if address.is_loopback() {
            let settings = maps::SETTINGS.get(0)?;
            let own = match self {
                Kernel::Socket(cookie) => settings.host_cookie == *cookie,
                Kernel::Own(_) => true,
                _ => false,
            };
            let closed = if address.is_v4() { Settings::NO_LOOPBACK_V4 } else { Settings::NO_LOOPBACK_V6 };
            let local = if settings.flags & closed == 0 { 0 } else { NO_NODE_PORTS };
            return own.then_some(local);
        }
        let local = maps::LOCALS.get_ptr(address)?;
        // SAFETY: the map returned a pointer to a whole value.
        Some(unsafe { read_volatile(local) })
    }

    #[inline(always)]
    fn pod(&self, address: &Address) -> Option<PodLink> {
        let pod = maps::PODS.get_ptr(address)?;
        // SAFETY: the map returned a pointer to a whole value. When the pod goes at this very moment, what stands there may
        // be another one's, which takes no packet for this address.
        Some(unsafe { read_volatile(pod) })
    }

    #[inline(always)]
    fn is_node(&self, address: &Address) -> bool {
        maps::NODES.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn translates(&self, settings: &Settings) -> bool {
        let Kernel::Socket(cookie) = self else { return true };
        settings.known_only == 0 || settings.host_cookie == *cookie || maps::NAMESPACES.get_ptr(cookie).is_some()
    }

    #[inline(always)]
    fn namespace(&self) -> u64 {
        if let Kernel::Socket(cookie) = self { *cookie } else { 0 }
    }

    #[inline(always)]
    fn link(&self) -> u32 {
        match self {
            Kernel::Link(link) | Kernel::Own(link) => *link,
            Kernel::Wire(wire) => wire.link,
            Kernel::Socket(_) => 0,
        }
    }

    #[inline(always)]
    fn home(&self) -> u32 {
        // SAFETY: the map returned a pointer to a whole value.
        maps::HOME.get_ptr(0).map_or(0, |link| unsafe { read_volatile(link) })
    }

    #[inline(always)]
    fn source_address(&self, link: u32, v4: bool) -> Option<Address> {
        let address = maps::SOURCES.get_ptr(SourceKey { link, version: if v4 { 4 } else { 6 } })?;
        // SAFETY: the map returned a pointer to a whole value.
        Some(unsafe { read_volatile(address) })
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let affinity = maps::AFFINITIES.get_ptr(key)?;
        // SAFETY: the map returned a pointer to a whole value.
        Some(unsafe { read_volatile(affinity) })
    }

    #[inline(always)]
    fn keep_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        // Without room the client is sent anywhere.
        let _ = maps::AFFINITIES.insert(key, affinity, 0);
    }

    #[inline(always)]
    fn in_range(&self, key: &RangeKey) -> bool {
        maps::RANGES.get(&Key::new(RangeKey::BITS, *key)).is_some()
    }

    #[inline(always)]
    fn begun<R>(&self, place: u32, with: impl FnOnce(&mut Begun) -> R) -> Option<R> {
        let begun = maps::BEGUN.get_ptr_mut(place)?;
        // SAFETY: as with the scratch space.
        Some(with(unsafe { &mut *begun }))
    }

    #[inline(always)]
    fn scratch<R>(&self, with: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        let mut scratch = maps::only::<Scratch, _>(&raw const maps::SCRATCH)?;
        // SAFETY: this CPU's own value; packet programs do not interrupt each other.
        Some(with(unsafe { scratch.as_mut() }))
    }

    #[inline(always)]
    fn flow<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        let flow = match maps::FLOWS.get_ptr_mut(key) {
            Some(flow) => flow,
            None if maps::beside() => maps::FLOWS_BESIDE.get_ptr_mut(key)?,
            None => return None,
        };
        // SAFETY: the map returned a pointer to a whole value. Other CPUs may count in it at the same time; its
        // fields are independent words and lost counts are accepted.
        Some(change(unsafe { &mut *flow }))
    }

    #[inline(always)]
    fn holds(&self) -> bool {
        maps::hold()
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if self.holds() {
            return Err(InsertError::Full);
        }
        if maps::beside() && maps::FLOWS_BESIDE.get_ptr(key).is_some() {
            return Err(InsertError::Exists);
        }
        match maps::FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)) {
            Ok(()) => {
                stream::tell_flow(key, flow, self.link());
                Ok(())
            }
            Err(EEXIST) => Err(InsertError::Exists),
            Err(_) => Err(InsertError::Full),
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) -> bool {
        if self.holds() {
            return false;
        }
        let removed = maps::FLOWS.remove(key).is_ok();
        maps::beside() && maps::FLOWS_BESIDE.remove(key).is_ok() || removed
    }

    #[inline(always)]
    fn opened<R>(&self, place: u32, with: impl FnOnce(&mut Opened) -> R) -> Option<R> {
        let opened = maps::OPENED.get_ptr_mut(place)?;
        // SAFETY: the map returned a pointer to a whole value. Who took the place writes it before it says that it is whole.
        Some(with(unsafe { &mut *opened }))
    }

    #[inline(always)]
    fn places(&self, word: u32) -> Option<u64> {
        let word = maps::PLACES.get_ptr(word)?;
        // SAFETY: a word of an array map.
        Some(unsafe { read_volatile(word) })
    }

    #[inline(always)]
    fn take_place(&self, place: u32) -> bool {
        let (word, bit) = opened::bit(place);
        maps::PLACES.get_ptr_mut(word).is_some_and(|word| set(word, bit))
    }

    #[inline(always)]
    fn give_place(&self, place: u32) {
        let (word, bit) = opened::bit(place);
        if let Some(word) = maps::PLACES.get_ptr_mut(word) {
            clear(word, bit);
        }
    }

    #[inline(always)]
    fn seek(&self, reply: &FlowKey) -> Option<u32> {
        let place = once::seek_opened(reply);
        if place == once::NOWHERE { None } else { Some(place) }
    }

    #[inline(always)]
    fn join(&self) -> bool {
        once::join_opened(self.link()) != 0
    }

    #[inline(always)]
    fn divide(&self) -> bool {
        once::divide_fused(self.link()) != 0
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        let ports = maps::FRAGMENTS.get_ptr(key)?;
        // SAFETY: the map returned a pointer to a whole value.
        Some(unsafe { read_volatile(ports) })
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        // Without room the later fragments are counted.
        let _ = maps::FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn ports(&self, word: u32) -> Option<u64> {
        let word = maps::PORTS.get_ptr(word)?;
        // SAFETY: a word of an array map.
        Some(unsafe { read_volatile(word) })
    }

    #[inline(always)]
    fn take_port(&self, word: u32, bit: u32) -> bool {
        maps::PORTS.get_ptr_mut(word).is_some_and(|word| set(word, bit))
    }

    #[inline(always)]
    fn give_port(&self, word: u32, bit: u32) {
        if let Some(word) = maps::PORTS.get_ptr_mut(word) {
            clear(word, bit);
        }
    }

    #[inline(always)]
    fn known(&self, word: u32) -> Option<u64> {
        let word = maps::KNOWN.get_ptr(word)?;
        // SAFETY: a word of an array map.
        Some(unsafe { read_volatile(word) })
    }

    #[inline(always)]
    fn make_known(&self, word: u32, bit: u32) {
        let Some(word) = maps::KNOWN.get_ptr_mut(word) else { return };
        let mask = 1_u64 << (bit & 63);
        // SAFETY: as with ports.
        unsafe { asm!("lock *(u64 *)({word} + 0) |= {mask}", mask = in(reg) mask, word = in(reg) word) };
    }

    #[inline(always)]
    fn answers(&self, place: u32) -> u32 {
        // SAFETY: a word of an array map.
        maps::ANSWERS.get_ptr(place).map_or(0, |count| unsafe { read_volatile(count) })
    }

    #[inline(always)]
    fn note_answer(&self, place: u32) {
        let Some(count) = maps::ANSWERS.get_ptr_mut(place) else { return };
        // SAFETY: as with ports.
        unsafe { asm!("lock *(u32 *)({count} + 0) += {one}", one = in(reg) 1_u64, count = in(reg) count) };
    }

    #[inline(always)]
    fn flow_created(&self) {
        let Some(armed) = maps::SWEEPER.get_ptr_mut(0) else { return };
        // SAFETY: a word of an array map. Two CPUs may both send the event: the second one is harmless.
        unsafe {
            if read_volatile(armed) == 0 && maps::EVENTS.output(Event { kind: Event::FLOWS, value: 0 }, 0).is_ok() {
                *armed = 1;
            }
        }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        (unsafe { bpf_ktime_get_coarse_ns() } / NANOSECONDS) as u32
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn count_service(&self, id: u32, add: impl FnOnce(&mut Counters)) {
        if let Some(own) = Own::new() {
            own.count(&maps::SERVICE_COUNTERS, id, add);
        }
    }

    #[inline(always)]
    fn count_backend(&self, id: u32, add: impl FnOnce(&mut Counters)) {
        if let Some(own) = Own::new() {
            own.count(&maps::BACKEND_COUNTERS, id, add);
        }
    }

    #[inline(always)]
    fn count(&self, service: u32, backend: u32, add: impl Fn(&mut Counters)) {
        if let Some(own) = Own::new() {
            own.count(&maps::SERVICE_COUNTERS, service, &add);
            own.count(&maps::BACKEND_COUNTERS, backend, &add);
        }
    }

    #[inline(always)]
    fn count_reason(&self, reason: Reason) {
        if let Some(counter) = maps::REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own value.
            unsafe { *counter += 1 };
        }
    }
}

impl Fast for Kernel {
    #[inline(always)]
    fn bucket4<R>(&self, index: u32, with: impl FnOnce(&mut Bucket4) -> R) -> Option<R> {
        let bucket = maps::CACHE4.get_ptr_mut(index)?;
        // SAFETY: this CPU's own value; packet programs do not interrupt each other.
        Some(with(unsafe { &mut *bucket }))
    }

    #[inline(always)]
    fn bucket6<R>(&self, index: u32, with: impl FnOnce(&mut Bucket6) -> R) -> Option<R> {
        let bucket = maps::CACHE6.get_ptr_mut(index)?;
        // SAFETY: as above.
        Some(with(unsafe { &mut *bucket }))
    }

    #[inline(always)]
    fn processor(&self) -> u32 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_smp_processor_id() }
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn vlan(&self) -> u32 {
        if let Kernel::Wire(wire) = self { wire.vlan } else { 0 }
    }

    #[inline(always)]
    fn generation(&self, service: u32) -> u32 {
        let Some(generation) = maps::GENERATIONS.get_ptr(service) else { return 0 };
        // SAFETY: a word of an array map.
        unsafe { read_volatile(generation) }
    }

    #[inline(always)]
    fn desk<R>(&self, with: impl FnOnce(&mut Desk) -> R) -> Option<R> {
        let mut desk = maps::only::<Desk, _>(&raw const maps::DESK)?;
        // SAFETY: this CPU's own value; packet programs do not interrupt each other.
        Some(with(unsafe { desk.as_mut() }))
    }

    #[inline(always)]
    fn trail<R>(&self, backend: u32, with: impl FnOnce(&mut Trail) -> R) -> Option<R> {
        let trail = maps::TRAILS.get_ptr_mut(backend % limits::TRAILS)?;
        // SAFETY: as above.
        Some(with(unsafe { &mut *trail }))
    }

    #[inline(always)]
    fn route(&self, header: &Header, length: u16, route: &mut Route) -> bool {
        let Kernel::Wire(wire) = self else { return false };
        way_out(wire, header, length, route)
    }
}

impl Paths for Kernel {
    #[inline(always)]
    fn path<R>(&self, place: u32, with: impl FnOnce(&mut Path) -> R) -> Option<R> {
        let path = maps::PATHS.get_ptr_mut(place)?;
        // SAFETY: this CPU's own value; packet programs do not interrupt each other.
        Some(with(unsafe { &mut *path }))
    }
}

impl Policies for Kernel {
    #[inline(always)]
    fn guard(&self) -> Option<Guard> {
        let guard = maps::GUARDS.get_ptr(self.link())?;
        // SAFETY: the map returned a pointer to a whole value, and a write puts another one in its place.
        Some(unsafe { read_volatile(guard) })
    }

    #[inline(always)]
    fn peer(&self, address: &Address) -> u32 {
        let Some(peer) = maps::PEERS.get_ptr(address) else { return 0 };
        // SAFETY: as above.
        unsafe { read_volatile(peer) }
    }

    #[inline(always)]
    fn block(&self, address: &Address) -> u32 {
        maps::BLOCKS.get(&Key::new(ADDRESS_BITS, *address)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> u32 {
        maps::RULES.get(&Key::new(RuleKey::BITS, *key)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn allowed<R>(&self, key: &AllowedKey, change: impl FnOnce(&mut Allowed) -> R) -> Option<R> {
        let allowed = maps::ALLOWED.get_ptr_mut(key)?;
        // SAFETY: the map returned a pointer to a whole value, whose fields are independent words.
        Some(change(unsafe { &mut *allowed }))
    }

    #[inline(always)]
    fn keep_allowed(&self, key: &AllowedKey, allowed: &Allowed) {
        // Without room the next packet is judged as well.
        let _ = maps::ALLOWED.insert(key, allowed, 0);
        stream::allowed(key, allowed.opener);
    }

    #[inline(always)]
    fn judging<R>(&self, with: impl FnOnce(&mut Judging) -> R) -> Option<R> {
        let judging = maps::JUDGING.get_ptr_mut(0)?;
        // SAFETY: this CPU's own value; packet programs do not interrupt each other.
        Some(with(unsafe { &mut *judging }))
    }
}

/// Sets a bit of a word that all sides change by atomic operations; false if it was set.
#[inline(always)]
fn set(word: *mut u64, bit: u32) -> bool {
    let mask = 1_u64 << (bit & 63);
    let mut value = mask;
    // SAFETY: a word of an array map. (The library has no such operation for this target.)
    unsafe {
        asm!("{value} = atomic_fetch_or((u64 *)({word} + 0), {value})", value = inout(reg) value, word = in(reg) word)
    };
    value & mask == 0
}

/// Clears such a bit.
#[inline(always)]
fn clear(word: *mut u64, bit: u32) {
    let mask = !(1_u64 << (bit & 63));
    // SAFETY: as above.
    unsafe { asm!("lock *(u64 *)({word} + 0) &= {mask}", mask = in(reg) mask, word = in(reg) word) };
}
