//! SCTP from the node's own sockets to services, which no hook sees: the addresses that have to lead to the home link, and the
//! programs there and on the loopback link. Whoever has the node's routes makes the link and the routes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::{Array, MapData};
use sluice_ebpf_common::{Address, maps};
use tokio::sync::watch;

use crate::attach::{self, Link, OWN_PROGRAMS};
use crate::range::unwire;
use crate::store::typed;
use crate::wanted::Wanted;
use crate::{Dataplane, Error};

/// What the node's own sockets reach by packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ByPacket {
    /// Services are not known yet.
    #[default]
    Unknown,
    /// Nothing.
    Nothing,
    /// Services at these addresses; and ports of the node, for which no address has to lead anywhere.
    Services(BTreeSet<IpAddr>),
}

impl ByPacket {
    fn of(wanted: &Wanted) -> ByPacket {
        let mut any = false;
        let address = |address: &Address| {
            any = true;
            (*address != address.any()).then(|| unwire(*address))
        };
        let addresses = wanted.sctp().filter_map(address).collect();
        if any { ByPacket::Services(addresses) } else { ByPacket::Nothing }
    }
}

impl Dataplane {
    /// What the node's own sockets reach by packet: a home link has to be there while that is something, and the addresses
    /// have to lead there.
    pub fn by_packet(&self) -> watch::Receiver<ByPacket> {
        self.inner.by_packet.subscribe()
    }

    pub(crate) fn tell_by_packet(&self, wanted: &Wanted) {
        let now = ByPacket::of(wanted);
        self.inner.by_packet.send_if_modified(|known| {
            let differs = *known != now;
            *known = now;
            differs
        });
    }

    /// Puts the programs on the home link with this index, and on the loopback link. Idempotent.
    pub fn set_home(&self, index: u32) -> Result<(), Error> {
        let inner = &self.inner;
        let (home, loopback) = (Link::by_index(index)?, Link::by_name("lo")?);
        self.write_home(index)?;
        let mut ebpf = inner.ebpf.lock();
        attach::attach_traffic(&mut ebpf, &inner.pins, inner.traffic, &OWN_PROGRAMS, &home, attach::BOTH)?;
        attach::attach_traffic(&mut ebpf, &inner.pins, inner.traffic, &OWN_PROGRAMS[..1], &loopback, attach::BOTH)
    }

    /// Takes them off again. Nothing there is success.
    pub fn leave_home(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let [out, _] = OWN_PROGRAMS;
        attach::detach_traffic(&inner.pins, inner.traffic, out, &Link::by_name("lo")?)?;
        let home = self.home()?.get(&0, 0).map_err(|error| Error::ebpf("read the home link", error))?;
        if let Ok(home) = Link::by_index(home) {
            OWN_PROGRAMS
                .into_iter()
                .try_for_each(|row| attach::detach_traffic(&inner.pins, inner.traffic, row, &home))?;
        }
        self.write_home(0)
    }

    fn write_home(&self, index: u32) -> Result<(), Error> {
        self.home()?.set(0, index, 0).map_err(|error| Error::ebpf("write the home link", error))
    }

    fn home(&self) -> Result<Array<MapData, u32>, Error> {
        typed(&self.inner.pins, maps::HOME)
    }
}
