//! Connections in the flow table, counted in one walk through it.

use std::collections::HashMap;
use std::os::fd::AsFd;

use sluice_ebpf_common::{Flow, FlowKey, FlowKind, maps};

use crate::inspect::ServiceRow;
use crate::pins::Pins;
use crate::store::descriptor;
use crate::{Error, sys};

/// How many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Active {
    /// Entries of the map.
    pub(super) entries: u64,
    /// Connections to services.
    pub(super) to_services: u64,
    /// Connections that leave with the node's address.
    pub(super) masqueraded: u64,
    services: HashMap<u32, u64>,
    backends: HashMap<u32, u64>,
}

impl Active {
    pub(super) fn read(pins: &Pins) -> Result<Active, Error> {
        let map = descriptor(&pins.map(maps::FLOWS))?;
        let mut active = Active::default();
        sys::read_each(map.as_fd(), |key, flow| active.count(&key, &flow))
            .map_err(|error| Error::system("read the flow map", error))?;
        Ok(active)
    }

    fn count(&mut self, key: &FlowKey, flow: &Flow) {
        self.entries += 1;
        if key.kind == FlowKind::Masquerade as u8 {
            self.masqueraded += 1;
        }
        if key.kind != FlowKind::Service as u8 {
            return;
        }
        self.to_services += 1;
        if flow.flags & (Flow::FIN | Flow::RST) == 0 {
            *self.services.entry(flow.service).or_default() += 1;
            *self.backends.entry(flow.backend).or_default() += 1;
        }
    }

    /// Connections to a service port that are open.
    pub(super) fn of_service(&self, row: &ServiceRow) -> u64 {
        self.services.get(&row.id).copied().unwrap_or(0)
    }

    /// Connections to a backend that are open.
    pub(super) fn of_backend(&self, id: u32) -> u64 {
        self.backends.get(&id).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_counted_by_its_clients_direction_until_it_is_closed() {
        let mut active = Active::default();
        let key = |kind: FlowKind| FlowKey { kind: kind as u8, ..FlowKey::default() };
        let flow = |flags: u16| Flow { service: 3, backend: 7, flags, ..Flow::default() };
        for (kind, flags) in [
            (FlowKind::Service, Flow::ACKNOWLEDGED),
            (FlowKind::ServiceReply, Flow::ACKNOWLEDGED),
            (FlowKind::Service, Flow::ACKNOWLEDGED | Flow::FIN),
            (FlowKind::Service, Flow::RST),
            (FlowKind::Masquerade, 0),
            (FlowKind::MasqueradeReply, 0),
        ] {
            active.count(&key(kind), &flow(flags));
        }
        assert_eq!((active.entries, active.to_services, active.masqueraded), (6, 3, 1));
        assert_eq!((active.services.get(&3), active.of_backend(7), active.of_backend(8)), (Some(&1), 1, 0));
    }
}
