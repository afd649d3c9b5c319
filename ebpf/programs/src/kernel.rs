//! The maps as `sluice-packet` wants them.
#![allow(unsafe_code)]

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns};
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, Counters, Event, Flow, FlowKey, Frontend, FrontendKey, RangeKey, Reason,
    SLAB_LINE, Settings, SourceKey,
};
use sluice_packet::{InsertError, Maps, Scratch};

use crate::maps;

const NANOSECONDS: u64 = 1_000_000_000;
const EEXIST: i32 = -17;

/// Where the program runs; the rest is in the maps.
pub enum Kernel {
    /// On a packet that uses the link with this index.
    Link(u32),
    /// On a socket in the network namespace with this cookie.
    Socket(u64),
}

impl Maps for Kernel {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        maps::SETTINGS.get(0)
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
    fn is_local(&self, address: &Address) -> bool {
        if address.is_loopback() {
            let Kernel::Socket(cookie) = self else { return false };
            return maps::SETTINGS.get(0).is_some_and(|settings| settings.host_cookie == *cookie);
        }
        maps::LOCALS.get_ptr(address).is_some()
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
    fn source_address(&self, v4: bool) -> Option<Address> {
        let Kernel::Link(link) = self else { return None };
        let address = maps::SOURCES.get_ptr(SourceKey { link: *link, version: if v4 { 4 } else { 6 } })?;
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
    fn scratch<R>(&self, with: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        let scratch = maps::SCRATCH.get_ptr_mut(0)?;
        // SAFETY: this CPU's own value; packet programs do not interrupt each other.
        Some(with(unsafe { &mut *scratch }))
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
    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if maps::hold() {
            return Err(InsertError::Full);
        }
        if maps::beside() && maps::FLOWS_BESIDE.get_ptr(key).is_some() {
            return Err(InsertError::Exists);
        }
        match maps::FLOWS.insert(key, flow, u64::from(BPF_NOEXIST)) {
            Ok(()) => Ok(()),
            Err(EEXIST) => Err(InsertError::Exists),
            Err(_) => Err(InsertError::Full),
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) {
        // A missing entry is what was wanted.
        let _ = maps::FLOWS.remove(key);
        if maps::beside() {
            let _ = maps::FLOWS_BESIDE.remove(key);
        }
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
        let Some(index) = place(id) else { return };
        if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(index) {
            // SAFETY: this CPU's own value.
            add(unsafe { &mut *counters });
        }
    }

    #[inline(always)]
    fn count_backend(&self, id: u32, add: impl FnOnce(&mut Counters)) {
        let Some(index) = place(id) else { return };
        if let Some(counters) = maps::BACKEND_COUNTERS.get_ptr_mut(index) {
            // SAFETY: this CPU's own value.
            add(unsafe { &mut *counters });
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

/// Where this processor counts for an id.
#[inline(always)]
fn place(id: u32) -> Option<u32> {
    let processors = maps::SETTINGS.get(0)?.processors;
    // SAFETY: the helper has no preconditions.
    let own = unsafe { bpf_get_smp_processor_id() };
    Some(id.wrapping_mul(processors).wrapping_add(own))
}
