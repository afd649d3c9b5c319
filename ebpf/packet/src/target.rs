//! Where a packet of a service goes.

use sluice_ebpf_common::{Address, Flow};

/// The destination that a packet of a service goes to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Target {
    pub(crate) address: Address,
    pub(crate) port: u16,
    /// As its connection's.
    pub(crate) flags: u16,
    pub(crate) service: u32,
    pub(crate) backend: u32,
}

impl Target {
    #[inline(always)]
    pub(crate) fn of(flow: &Flow) -> Target {
        Target {
            address: flow.address,
            port: flow.port,
            flags: flow.flags,
            service: flow.service,
            backend: flow.backend,
        }
    }

    /// Is one of these bits set?
    #[inline(always)]
    pub(crate) fn has(&self, bits: u16) -> bool {
        self.flags & bits != 0
    }
}
