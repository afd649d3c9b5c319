//! The live maps, to be looked at only.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapInfo};
use sluice_ebpf_common::cache::Uplink;
use sluice_ebpf_common::opened::{self, Opened};
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend,
    FrontendKey, Guard, PodLink, RangeKey, RuleKey, SLAB_LINE, ServiceName, Settings, SourceKey, known, maps, ports,
};

use crate::attach::{self, ONWARD};
use crate::pins::Pins;
use crate::store::{descriptor, typed, words};
use crate::words::Words;
use crate::{Error, sys, wire};

const ADDRESS_BITS: u32 = 128;

type Table<K, V> = HashMap<MapData, K, V>;
type Trie<K> = LpmTrie<MapData, K, u32>;

/// The maps under a pin directory.
pub(super) struct Live {
    /// Index of the home link, 0 for none.
    pub(super) home: u32,
    pub(super) pins: Pins,
    pub(super) settings: Settings,
    frontends: Table<FrontendKey, Frontend>,
    slab: Words,
    backends: Array<MapData, Backend>,
    names: Table<u32, ServiceName>,
    affinities: Table<AffinityKey, Affinity>,
    ranges: Trie<RangeKey>,
    flows: Table<FlowKey, Flow>,
    opened: Array<MapData, Opened>,
    fragments: Table<FragmentKey, FragmentPorts>,
    ports: Words,
    known: Words,
    places: Words,
    locals: Table<Address, u32>,
    nodes: Table<Address, u32>,
    sources: Table<SourceKey, Address>,
    namespaces: Table<u64, u32>,
    pods: Table<Address, PodLink>,
    guards: Table<u32, Guard>,
    peers: Table<Address, u32>,
    blocks: Trie<Address>,
    rules: Trie<RuleKey>,
    allowed: Table<AllowedKey, Allowed>,
    pub(super) uplinks: BTreeMap<u32, Uplink>,
    generations: Array<MapData, u32>,
    full: OnceCell<bool>,
}

/// What is there. A failed look at a map of ours that is open is as good as nothing there.
fn get<K: aya::Pod, V: aya::Pod>(table: &Table<K, V>, key: &K) -> Option<V> {
    table.get(key, 0).ok()
}

fn settings(pins: &Pins) -> Result<Settings, Error> {
    let settings: Array<MapData, Settings> = typed(pins, maps::SETTINGS)?;
    settings.get(&0, 0).map_err(|error| Error::ebpf("read the settings", error))
}

fn home(pins: &Pins) -> Result<u32, Error> {
    let home: Array<MapData, u32> = typed(pins, maps::HOME)?;
    home.get(&0, 0).map_err(|error| Error::ebpf("read the home link", error))
}

/// The program that looks at a packet before all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// On the link itself: this one.
    Here(&'static str),
    /// In the driver of a link below it.
    Below,
}

impl Live {
    pub(super) fn open(pins: Pins) -> Result<Live, Error> {
        let at = &pins;
        let settings = settings(at)?;
        let slab = MapInfo::from_pin(at.map(maps::SLAB))
            .map_err(|error| Error::ebpf("read the size of the slab", error))?
            .max_entries();
        let uplinks: Table<u32, Uplink> = typed(at, maps::UPLINKS)?;
        let uplinks = uplinks.iter().collect::<Result<_, _>>().map_err(|error| Error::ebpf("read the uplinks", error));
        Ok(Live {
            settings,
            home: home(at)?,
            frontends: typed(at, maps::FRONTENDS)?,
            slab: words(&at.map(maps::SLAB), slab as usize * SLAB_LINE, false)?,
            backends: typed(at, maps::BACKENDS)?,
            names: typed(at, maps::NAMES)?,
            affinities: typed(at, maps::AFFINITIES)?,
            ranges: typed(at, maps::RANGES)?,
            flows: typed(at, maps::FLOWS)?,
            opened: typed(at, maps::OPENED)?,
            fragments: typed(at, maps::FRAGMENTS)?,
            ports: words(&at.map(maps::PORTS), (ports::ROWS * ports::ROW) as usize * 2, false)?,
            known: words(&at.map(maps::KNOWN), known::WORDS as usize * 2, false)?,
            places: words(&at.map(maps::PLACES), opened::WORDS as usize * 2, false)?,
            locals: typed(at, maps::LOCALS)?,
            nodes: typed(at, maps::NODES)?,
            sources: typed(at, maps::SOURCES)?,
            namespaces: typed(at, maps::NAMESPACES)?,
            pods: typed(at, maps::PODS)?,
            guards: typed(at, maps::GUARDS)?,
            peers: typed(at, maps::PEERS)?,
            blocks: typed(at, maps::BLOCKS)?,
            rules: typed(at, maps::RULES)?,
            allowed: typed(at, maps::ALLOWED)?,
            uplinks: uplinks?,
            generations: typed(at, maps::GENERATIONS)?,
            full: OnceCell::new(),
            pins,
        })
    }

    /// Looks at the settings and the home link again.
    pub(super) fn refresh(&mut self) -> Result<(), Error> {
        (self.settings, self.home) = (settings(&self.pins)?, home(&self.pins)?);
        Ok(())
    }

    pub(super) fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        get(&self.frontends, key)
    }

    pub(super) fn slot(&self, index: u32) -> Option<u32> {
        self.slab.get(index as usize)
    }

    pub(super) fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id, 0).ok()
    }

    pub(super) fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        get(&self.affinities, key)
    }

    pub(super) fn in_range(&self, key: &RangeKey) -> bool {
        self.ranges.get(&Key::new(RangeKey::BITS, *key), 0).is_ok()
    }

    pub(super) fn flow(&self, key: &FlowKey) -> Option<Flow> {
        get(&self.flows, key)
    }

    pub(super) fn opened(&self, place: u32) -> Option<Opened> {
        self.opened.get(&place, 0).ok()
    }

    pub(super) fn places(&self, word: u32) -> Option<u64> {
        self.places.get_long(word as usize * 2)
    }

    pub(super) fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        get(&self.fragments, key)
    }

    pub(super) fn ports(&self, word: u32) -> Option<u64> {
        self.ports.get_long(word as usize * 2)
    }

    pub(super) fn known(&self, word: u32) -> Option<u64> {
        self.known.get_long(word as usize * 2)
    }

    pub(super) fn local(&self, address: &Address) -> Option<u32> {
        get(&self.locals, address)
    }

    pub(super) fn is_node(&self, address: &Address) -> bool {
        get(&self.nodes, address).is_some()
    }

    pub(super) fn source_address(&self, link: u32, v4: bool) -> Option<Address> {
        get(&self.sources, &SourceKey { link, version: if v4 { 4 } else { 6 } })
    }

    pub(super) fn is_known(&self, namespace: u64) -> bool {
        get(&self.namespaces, &namespace).is_some()
    }

    /// The namespace of the pod behind a link, where its sockets are translated when they connect.
    pub(super) fn namespace_of(&self, link: u32) -> Option<u64> {
        self.namespaces.iter().filter_map(Result::ok).find(|(_, known)| *known == link).map(|(cookie, _)| cookie)
    }

    pub(super) fn pod(&self, address: &Address) -> Option<PodLink> {
        get(&self.pods, address)
    }

    pub(super) fn guard(&self, link: u32) -> Option<Guard> {
        get(&self.guards, &link)
    }

    pub(super) fn peer(&self, address: &Address) -> u32 {
        get(&self.peers, address).unwrap_or(0)
    }

    pub(super) fn block(&self, address: &Address) -> u32 {
        self.blocks.get(&Key::new(ADDRESS_BITS, *address), 0).unwrap_or(0)
    }

    pub(super) fn rule(&self, key: &RuleKey) -> u32 {
        self.rules.get(&Key::new(RuleKey::BITS, *key), 0).unwrap_or(0)
    }

    /// The program that sends services' packets on before all else on a link.
    pub(super) fn sends_onward(&self, link: u32) -> Option<Before> {
        let uplink = self.uplinks.get(&link).copied().unwrap_or_default();
        match uplink.flags & Uplink::NATIVE != 0 {
            true if uplink.runs() && uplink.vlan == 0 => Some(Before::Here(wire::PROGRAM)),
            true => Some(Before::Below),
            false => attach::has_onward(&self.pins, link).then_some(Before::Here(ONWARD.0)),
        }
    }

    pub(super) fn allowed(&self, key: &AllowedKey) -> Option<Allowed> {
        get(&self.allowed, key)
    }

    pub(super) fn generation(&self, service: u32) -> u32 {
        self.generations.get(&service, 0).unwrap_or(0)
    }

    /// `namespace/name:port` of a service.
    pub(super) fn service_name(&self, service: u32) -> Option<String> {
        let name = get(&self.names, &service)?;
        let end = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(name.bytes.len());
        Some(String::from_utf8_lossy(&name.bytes[..end]).into_owned())
    }

    /// Can no flow be made? Counted once, as late as possible: the table may be large.
    pub(super) fn is_full(&self) -> bool {
        *self.full.get_or_init(|| self.count_flows().is_ok_and(|(used, limit)| used >= limit))
    }

    /// Was it found out that no flow can be made?
    pub(super) fn was_full(&self) -> bool {
        self.full.get().copied().unwrap_or(false)
    }

    fn count_flows(&self) -> Result<(usize, usize), Error> {
        let path = self.pins.map(maps::FLOWS);
        let failed = |error| Error::system("count the flows", error);
        let map = descriptor(&path)?;
        let limit = sys::map_info(map.as_fd()).map_err(failed)?.entries as usize;
        let mut used = 0;
        let (key, value) = (size_of::<FlowKey>(), size_of::<Flow>());
        sys::read_all(map.as_fd(), key, value, |keys, _| used += keys.len() / key).map_err(failed)?;
        Ok((used, limit))
    }
}
