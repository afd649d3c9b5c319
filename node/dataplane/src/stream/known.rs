//! Names for what is told, from the kernel's maps and from what the policies know of the cluster's pods; and who else tells of
//! the same connection.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::AsFd;

use aya::maps::{self as kernel, MapData};
use sluice_ebpf_common::stream::Told;
use sluice_ebpf_common::{Address, Flow, FlowKey, FlowKind, Frontend, FrontendKey, Scope, ServiceName, maps, protocol};

use super::decode::{Names, opener};
use crate::flows::FlowRow;
use crate::model::ObjectName;
use crate::range::unwire;
use crate::store::{decode_name, descriptor, typed};
use crate::{Dataplane, Error, sys};

/// What is known, as of the last look.
pub(crate) struct Known {
    node: String,
    pods: HashMap<IpAddr, ObjectName>,
    links: BTreeMap<u32, ObjectName>,
    /// Addresses whose sockets tell of what they open.
    telling: HashSet<IpAddr>,
    flows: kernel::HashMap<MapData, FlowKey, Flow>,
    frontends: kernel::HashMap<MapData, FrontendKey, Frontend>,
    services: kernel::HashMap<MapData, u32, ServiceName>,
    /// Service ports by address, asked for since [`Known::ask_again`]: the kernel need not be asked for each event.
    asked: RefCell<HashMap<(Address, u16, u8), Option<String>>>,
}

impl Known {
    pub(crate) fn read(dataplane: &Dataplane) -> Result<Known, Error> {
        let inner = &dataplane.inner;
        let pins = &inner.pins;
        let (links, pods) = {
            let policies = inner.policies.lock();
            (policies.links(), policies.addresses())
        };
        let mut telling = HashSet::new();
        if inner.probes.lock().tell_connections() {
            let failed = |error| Error::system("read whose sockets tell", error);
            let mut own: BTreeSet<u32> = BTreeSet::new();
            let map = descriptor(&pins.map(maps::NAMESPACES))?;
            sys::read_each(map.as_fd(), |_: u64, link: u32| {
                own.insert(link);
            })
            .map_err(failed)?;
            let map = descriptor(&pins.map(maps::LOCALS))?;
            sys::read_each(map.as_fd(), |address: Address, _: u32| {
                telling.insert(unwire(address));
            })
            .map_err(failed)?;
            let here: HashSet<&ObjectName> =
                links.iter().filter(|(link, _)| own.contains(link)).map(|(_, name)| name).collect();
            telling.extend(pods.iter().filter(|(_, name)| here.contains(name)).map(|(address, _)| *address));
        }
        Ok(Known {
            node: inner.config.node.clone(),
            pods,
            links,
            telling,
            flows: typed(pins, maps::FLOWS)?,
            frontends: typed(pins, maps::FRONTENDS)?,
            services: typed(pins, maps::NAMES)?,
            asked: RefCell::default(),
        })
    }

    /// What comes next is named as Services are from now on.
    pub(crate) fn ask_again(&self) {
        self.asked.borrow_mut().clear();
    }

    fn ask_for_service(&self, address: &Address, port: u16, number: u8) -> Option<String> {
        let scopes = [Scope::Internal, Scope::External];
        let keys = scopes.into_iter().flat_map(|scope| {
            [*address, address.any()].map(|address| FrontendKey { address, port, protocol: number, scope: scope as u8 })
        });
        let found = keys.into_iter().find_map(|key| self.frontends.get(&key, 0).ok())?;
        self.service(found.service)
    }

    /// Does somebody else tell of this connection? A connection is told by the socket that opened it where that is on this node,
    /// else by the flow table, else by the socket that took it.
    pub(crate) fn told_elsewhere(&self, told: &Told) -> bool {
        match told.kind {
            Told::FLOW if told.ends.kind == FlowKind::Masquerade as u8 => {
                self.answers_a_service(&told.ends) || self.tells(told.ends.protocol, unwire(told.ends.source))
            }
            Told::ACCEPTED | Told::CLOSED if !opener(told) => {
                self.tells(told.ends.protocol, unwire(told.ends.destination)) || self.is_reply(&told.ends)
            }
            _ => false,
        }
    }

    /// The same for a row of the flow table.
    pub(crate) fn row_told_elsewhere(&self, row: &FlowRow) -> bool {
        row.service.is_none() && row.protocol == "TCP" && self.tells(protocol::TCP, row.client.address)
    }

    fn tells(&self, number: u8, address: IpAddr) -> bool {
        number == protocol::TCP
            && (self.telling.contains(&address) || !self.telling.is_empty() && address.is_loopback())
    }

    /// Is it the way out of a Service's connection?
    fn answers_a_service(&self, out: &FlowKey) -> bool {
        let reply = FlowKey {
            source: out.destination,
            destination: out.source,
            source_port: out.destination_port,
            destination_port: out.source_port,
            ..*out
        };
        self.is_reply(&reply)
    }

    /// Are packets with these ends answers in the flow table?
    fn is_reply(&self, ends: &FlowKey) -> bool {
        self.flows.get(&FlowKey { kind: FlowKind::ServiceReply as u8, reserved: 0, ..*ends }, 0).is_ok()
    }
}

impl Names for Known {
    fn node(&self) -> &str {
        &self.node
    }

    fn pod(&self, address: IpAddr) -> Option<String> {
        self.pods.get(&address).map(text)
    }

    fn link(&self, link: u32) -> Option<String> {
        self.links.get(&link).map(text)
    }

    fn service(&self, id: u32) -> Option<String> {
        self.services.get(&id, 0).ok().map(|name| decode_name(&name))
    }

    fn service_at(&self, address: &Address, port: u16, number: u8) -> Option<String> {
        let mut asked = self.asked.borrow_mut();
        asked.entry((*address, port, number)).or_insert_with(|| self.ask_for_service(address, port, number)).clone()
    }
}

fn text((namespace, name): &ObjectName) -> String {
    [&**namespace, "/", &**name].concat()
}
