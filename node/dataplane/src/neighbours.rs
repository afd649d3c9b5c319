//! Pods whose packets go past this node's stack: their addresses, in the map that the programs look at. The map is the only
//! record: a process that starts takes over what it finds there, less the pods that have gone meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use sluice_ebpf_common::{Address, PodLink, maps};

use crate::attach::Link;
use crate::pins::Pins;
use crate::range::wire;
use crate::store::typed;
use crate::{Dataplane, Error, sys};

/// Whether packets of this node's pods pass through its stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirect {
    /// They go straight into pods, and straight to the outside, where nothing of the stack is needed; so do services' packets
    /// for backends elsewhere, and their answers. The node's firewall (its FORWARD chain) and what others attach to the
    /// receiving pod's link do not see them.
    #[default]
    On,
    /// All of them do.
    Off,
}

/// How a pod is reached without the node's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Ethernet address of its own side of the link.
    pub mac: [u8; 6],
}

pub(crate) struct Neighbours {
    redirect: Redirect,
    map: HashMap<MapData, Address, PodLink>,
    /// What the map holds.
    known: BTreeMap<Address, PodLink>,
    /// What it would hold if no pod had policies.
    wanted: BTreeMap<Address, PodLink>,
    /// Links of pods that policies hold for: their packets have to pass the programs that judge.
    isolated: BTreeSet<u32>,
    /// How often the map was written.
    writes: u64,
}

impl Neighbours {
    pub(crate) fn open(pins: &Pins, redirect: Redirect, isolated: BTreeSet<u32>) -> Result<Neighbours, Error> {
        let map: HashMap<MapData, Address, PodLink> = typed(pins, maps::PODS)?;
        let known: BTreeMap<Address, PodLink> =
            map.iter().collect::<Result<_, _>>().map_err(|error| Error::ebpf("read the pods", error))?;
        let mut neighbours = Neighbours { redirect, map, wanted: known.clone(), known, isolated, writes: 0 };
        neighbours.keep(|pod| redirect == Redirect::On && is_there(pod))?;
        neighbours.settle()?;
        Ok(neighbours)
    }

    /// The pod behind a link is reached so from now on, and no longer as it was before.
    pub(crate) fn set(&mut self, link: &Link, neighbour: Option<&Neighbour>) -> Result<(), Error> {
        let mut wanted = BTreeMap::new();
        if self.redirect == Redirect::On
            && let Some(Neighbour { addresses, mac }) = neighbour
        {
            let failed = |error| Error::system(format!("ask about the link {}", link.name), error);
            let own = sys::hardware_address(&link.name).map_err(failed)?;
            let pod = PodLink::new(link.index, sys::mtu(&link.name).map_err(failed)?, *mac, own);
            wanted.extend(addresses.iter().map(|address| (wire(*address), pod)));
        }
        self.forget(|address, pod| pod.link == link.index && !wanted.contains_key(address))?;
        self.wanted.extend(wanted);
        self.settle()
    }

    /// Packets of the pods behind these links, and of no others, pass through the stack for their policies' sake.
    pub(crate) fn isolate(&mut self, links: BTreeSet<u32>) -> Result<(), Error> {
        if links == self.isolated {
            return Ok(());
        }
        self.isolated = links;
        self.settle()
    }

    /// Brings the map in line.
    fn settle(&mut self) -> Result<(), Error> {
        let gone: Vec<Address> = self
            .known
            .iter()
            .filter(|(_, pod)| self.isolated.contains(&pod.link))
            .map(|(address, _)| *address)
            .collect();
        self.remove(gone)?;
        for (address, pod) in self.wanted.iter().filter(|(_, pod)| !self.isolated.contains(&pod.link)) {
            if self.known.insert(*address, *pod) != Some(*pod) {
                self.writes += 1;
                self.map.insert(address, pod, 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The pod behind a link has gone.
    pub(crate) fn forget_link(&mut self, link: u32) -> Result<(), Error> {
        self.keep(|pod| pod.link != link)
    }

    fn keep(&mut self, stays: impl Fn(&PodLink) -> bool) -> Result<(), Error> {
        self.forget(|_, pod| !stays(pod))
    }

    fn forget(&mut self, goes: impl Fn(&Address, &PodLink) -> bool) -> Result<(), Error> {
        self.wanted.retain(|address, pod| !goes(address, pod));
        let gone: Vec<Address> =
            self.known.iter().filter(|(address, pod)| goes(address, pod)).map(|(address, _)| *address).collect();
        self.remove(gone)
    }

    fn remove(&mut self, gone: Vec<Address>) -> Result<(), Error> {
        for address in gone {
            self.writes += 1;
            self.map.remove(&address).map_err(failed)?;
            self.known.remove(&address);
        }
        Ok(())
    }
}

/// Addresses that are reached past the stack.
pub(crate) fn count(pins: &Pins) -> Result<usize, Error> {
    let map: HashMap<MapData, Address, PodLink> = typed(pins, maps::PODS)?;
    Ok(map.keys().filter_map(Result::ok).count())
}

fn failed(error: aya::maps::MapError) -> Error {
    Error::ebpf("write the pods", error)
}

/// Is it still the same link? Its index may be another one's by now.
fn is_there(pod: &PodLink) -> bool {
    let own = Link::by_index(pod.link).and_then(|link| {
        sys::hardware_address(&link.name).map_err(|error| Error::system("ask about a pod's link", error))
    });
    own.is_ok_and(|own| PodLink::new(pod.link, pod.mtu, [0; 6], own).same_node_side(pod))
}

impl Dataplane {
    /// A pod is about to go: packets from other pods of this node pass through the stack again, which knows what to say about
    /// an address that is nobody's. To be called before the pod's link goes; what nobody knows is success.
    pub fn forget_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
        let gone: Vec<Address> = addresses.into_iter().map(wire).collect();
        self.change_neighbours(|neighbours| neighbours.forget(|address, _| gone.contains(address)))
    }

    /// Changes who is reached past the stack. Programs keep what they found out about a connection's ends: they ask anew then.
    pub(crate) fn change_neighbours(
        &self,
        change: impl FnOnce(&mut Neighbours) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut neighbours = self.inner.neighbours.lock();
        let before = neighbours.writes;
        let changed = change(&mut neighbours);
        if neighbours.writes != before {
            self.ask_anew()?;
        }
        changed
    }
}
