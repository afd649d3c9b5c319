//! Counters of which each processor has its own.
#![allow(unsafe_code)]

use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use sluice_ebpf_common::Counters;

use crate::maps;

/// Where this processor counts.
pub struct Own {
    processors: u32,
    number: u32,
}

impl Own {
    #[inline(always)]
    pub fn new() -> Option<Own> {
        let processors = maps::SETTINGS.get(0)?.processors;
        // SAFETY: the helper has no preconditions.
        Some(Own { processors, number: unsafe { bpf_get_smp_processor_id() } })
    }

    #[inline(always)]
    pub fn count<const N: usize, const F: usize>(
        &self,
        counters: &Array<Counters, N, F>,
        id: u32,
        add: impl FnOnce(&mut Counters),
    ) {
        if let Some(counters) = counters.get_ptr_mut(id.wrapping_mul(self.processors).wrapping_add(self.number)) {
            // SAFETY: this CPU's own value.
            add(unsafe { &mut *counters });
        }
    }
}
