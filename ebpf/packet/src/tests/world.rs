//! Maps made of collections.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::vec;
use std::vec::Vec;

use sluice_ebpf_common::cache::{Bucket4, Bucket6};
use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, Counters, Family, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Guard, NO_NODE_PORTS, PodLink, RangeKey, Reason, RuleKey, Scope, Settings,
    limits, ports,
};

use super::frame::{end, mask, wire};
use crate::{
    Begun, Desk, ETHERNET, Exit, Fast, Header, InsertError, Judging, Maps, PATHS, Path, Paths, Policies, Rate, Route,
    Scratch, Trail,
};

/// The maps of a node 10.1.0.1 with pods in 10.244.0.0/24 of 10.244.0.0/16.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(crate) slab: Vec<u32>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) flows: RefCell<BTreeMap<FlowKey, Flow>>,
    pub(crate) flow_limit: usize,
    /// No flow may be made.
    pub(crate) holds: bool,
    pub(crate) opened: RefCell<BTreeMap<u32, Opened>>,
    pub(crate) places: RefCell<BTreeSet<u32>>,
    fragments: RefCell<BTreeMap<FragmentKey, FragmentPorts>>,
    scratch: RefCell<Scratch>,
    pub(crate) ports: RefCell<BTreeMap<u32, u64>>,
    /// How many words of them were read.
    pub(crate) looks: Cell<usize>,
    pub(crate) services: RefCell<BTreeMap<u32, Counters>>,
    pub(crate) reasons: RefCell<Vec<Reason>>,
    /// Handed out in a row, over and over.
    pub(crate) random: Vec<u32>,
    next: Cell<usize>,
    affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
    /// Source ranges: network and mask.
    pub(crate) ranges: Vec<(Address, Address)>,
    /// Networks that pods' packets go to with the pod's own address.
    pub(crate) unmasqueraded: Vec<(Address, Address)>,
    /// Own addresses on which node ports do not answer.
    pub(crate) without_node_ports: Vec<Address>,
    /// Cookie of the namespace that sockets are in.
    pub(crate) namespace: u64,
    pub(crate) now: u32,
    cache4: RefCell<BTreeMap<u32, Bucket4>>,
    cache6: RefCell<BTreeMap<u32, Bucket6>>,
    /// Longest packet on every link.
    pub(crate) mtu: u16,
    /// The timer's ticks.
    pub(crate) jiffies: u64,
    /// Every service's generation.
    pub(crate) generation: u32,
    desk: RefCell<Desk>,
    trails: RefCell<BTreeMap<u32, Trail>>,
    pub(crate) begun: RefCell<BTreeMap<u32, Begun>>,
    pub(crate) known: RefCell<BTreeMap<u32, u64>>,
    answers: RefCell<BTreeMap<u32, u32>>,
    paths: RefCell<BTreeMap<u32, Path>>,
    /// Index of the link that packets use.
    pub(crate) link: u32,
    /// Index of the home link.
    pub(crate) home: u32,
    /// Pods that packets go straight into.
    pub(crate) pods: BTreeMap<Address, PodLink>,
    /// How often the routes were asked.
    pub(crate) routed: Cell<usize>,
    /// What holds for the pod behind the link.
    pub(crate) guard: Option<Guard>,
    pub(crate) peers: BTreeMap<Address, u32>,
    /// Blocks of addresses: network, mask, who.
    pub(crate) blocks: Vec<(Address, Address, u32)>,
    /// Rules with the bits that count.
    pub(crate) rules: Vec<(RuleKey, u32)>,
    /// Rules that deny.
    pub(crate) denying: Vec<(RuleKey, u32)>,
    pub(crate) allowed: RefCell<BTreeMap<AllowedKey, Allowed>>,
    judging: RefCell<Judging>,
}

impl World {
    pub(crate) fn new() -> World {
        let settings = Settings {
            families: [
                Family {
                    node: wire("10.1.0.1"),
                    pod_network: wire("10.244.0.0"),
                    pod_mask: mask("255.255.255.0"),
                    cluster_network: wire("10.244.0.0"),
                    cluster_mask: mask("255.255.0.0"),
                },
                Family {
                    node: wire("fd01::1"),
                    pod_network: wire("fd44:0:0:1::"),
                    pod_mask: wire("ffff:ffff:ffff:ffff::"),
                    cluster_network: wire("fd44::"),
                    cluster_mask: wire("ffff:ffff:ffff::"),
                },
            ],
            node_port_first: 30000,
            node_port_last: 32767,
            source_port_first: 61000,
            source_port_last: 65535,
            cache_mask: 15,
            tick_shift: 8,
            ..Settings::default()
        };
        World {
            settings,
            frontends: BTreeMap::new(),
            slab: Vec::new(),
            backends: BTreeMap::new(),
            flows: RefCell::default(),
            flow_limit: 100,
            holds: false,
            opened: RefCell::default(),
            places: RefCell::default(),
            fragments: RefCell::default(),
            scratch: RefCell::default(),
            ports: RefCell::default(),
            looks: Cell::new(0),
            services: RefCell::default(),
            reasons: RefCell::default(),
            random: vec![0, 1 << 30, 1 << 31, 3 << 30],
            next: Cell::new(0),
            affinities: RefCell::default(),
            ranges: Vec::new(),
            without_node_ports: Vec::new(),
            unmasqueraded: Vec::new(),
            namespace: 7,
            now: 1000,
            cache4: RefCell::default(),
            cache6: RefCell::default(),
            mtu: 1500,
            jiffies: 0,
            generation: 1,
            desk: RefCell::default(),
            trails: RefCell::default(),
            begun: RefCell::default(),
            known: RefCell::default(),
            answers: RefCell::default(),
            paths: RefCell::default(),
            link: 1,
            home: 0,
            pods: BTreeMap::new(),
            routed: Cell::new(0),
            guard: None,
            peers: BTreeMap::new(),
            blocks: Vec::new(),
            rules: Vec::new(),
            denying: Vec::new(),
            allowed: RefCell::default(),
            judging: RefCell::default(),
        }
    }

    /// Adds a frontend (`*:30080` for a node port); backends marked with `~` are on other nodes.
    pub(crate) fn serve(&mut self, protocol: u8, scope: Scope, frontend: &str, backends: &[&str]) {
        let (address, port) = end(frontend);
        let base = self.slab.len() as u32;
        for text in backends {
            let (address, port) = end(text.trim_start_matches('~'));
            let flags = Backend::USED | if text.starts_with('~') { 0 } else { Backend::LOCAL };
            let id = self.backends.len() as u32 + 1;
            self.backends.insert(id, Backend { address, port, flags });
            self.slab.push(id);
        }
        let key = FrontendKey { address, port, protocol, scope: scope as u8 };
        let generation = self.frontends.len() as u32 + 1;
        let count = backends.len() as u32;
        self.frontends.insert(key, Frontend { generation, service: 1, base, count, ..Frontend::default() });
    }

    /// Puts a table of places behind a frontend's list, which has to be the last one.
    pub(crate) fn plan(&mut self, frontend: &str, places: &[u16]) {
        let (address, port) = end(frontend);
        let mut keys = self.frontends.iter_mut().filter(|(key, _)| key.address == address && key.port == port);
        let (_, found) = keys.next().unwrap();
        assert_eq!(found.table_base(), self.slab.len() as u32);
        found.table = places.len() as u32;
        let half = |pair: &[u16], at: usize| u32::from(pair.get(at).copied().unwrap_or(0));
        self.slab.extend(places.chunks(2).map(|pair| half(pair, 0) | half(pair, 1) << 16));
    }

    /// Changes a frontend.
    pub(crate) fn change(&mut self, frontend: &str, change: impl Fn(&mut Frontend)) {
        let (address, port) = end(frontend);
        self.frontends.iter_mut().filter(|(key, _)| key.address == address && key.port == port).for_each(
            |(_, found)| {
                change(found);
            },
        );
    }

    /// As if so many connections had been remembered in this second.
    pub(crate) fn made(&self, number: u32) {
        self.scratch.borrow_mut().rate = Rate::after(self.now, number);
    }

    /// The way that is kept at a place.
    pub(crate) fn exit(&self, place: u32) -> Exit {
        self.paths.borrow()[&place].exit
    }

    /// As if the kernel had named another link for it.
    pub(crate) fn keep_exit(&self, place: u32, link: u32) {
        self.paths.borrow_mut().get_mut(&place).unwrap().exit.link = link;
    }

    /// Takes a backend out of service.
    pub(crate) fn retire(&mut self, id: u32) {
        self.backends.get_mut(&id).unwrap().flags &= !Backend::USED;
    }
}

impl Maps for World {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slab.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn local(&self, address: &Address) -> Option<u32> {
        static OWN: LazyLock<[Address; 4]> = LazyLock::new(|| ["10.1.0.1", "127.0.0.1", "fd01::1", "::1"].map(wire));
        let closed = if self.without_node_ports.contains(address) { NO_NODE_PORTS } else { 0 };
        OWN.contains(address).then_some(closed)
    }

    fn pod(&self, address: &Address) -> Option<PodLink> {
        self.pods.get(address).copied()
    }

    fn is_node(&self, address: &Address) -> bool {
        *address == wire("10.1.0.3") || *address == wire("fd01::3")
    }

    fn translates(&self, settings: &Settings) -> bool {
        settings.known_only == 0
    }

    fn namespace(&self) -> u64 {
        self.namespace
    }

    fn link(&self) -> u32 {
        self.link
    }

    fn home(&self) -> u32 {
        self.home
    }

    fn source_address(&self, _: u32, _: bool) -> Option<Address> {
        None
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn keep_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn in_range(&self, key: &RangeKey) -> bool {
        let ranges = if key.service == RangeKey::UNMASQUERADED { &self.unmasqueraded } else { &self.ranges };
        ranges.iter().any(|(network, mask)| key.address.within(network, mask))
    }

    fn begun<R>(&self, place: u32, with: impl FnOnce(&mut Begun) -> R) -> Option<R> {
        Some(with(self.begun.borrow_mut().entry(place).or_default()))
    }

    fn scratch<R>(&self, with: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        Some(with(&mut self.scratch.borrow_mut()))
    }

    fn flow<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        self.flows.borrow_mut().get_mut(key).map(change)
    }

    fn opened<R>(&self, place: u32, with: impl FnOnce(&mut Opened) -> R) -> Option<R> {
        let mut opened = self.opened.borrow_mut();
        let result = with(opened.entry(place).or_default());
        opened.retain(|_, opened| opened.state != 0);
        Some(result)
    }

    fn places(&self, word: u32) -> Option<u64> {
        let places = self.places.borrow();
        Some(places.range(word * 64..(word + 1) * 64).fold(0, |bits, place| bits | 1 << (place % 64)))
    }

    fn take_place(&self, place: u32) -> bool {
        self.places.borrow_mut().insert(place)
    }

    fn give_place(&self, place: u32) {
        self.places.borrow_mut().remove(&place);
    }

    fn holds(&self) -> bool {
        self.holds
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        if self.holds {
            return Err(InsertError::Full);
        }
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if flows.len() >= self.flow_limit {
            return Err(InsertError::Full);
        }
        flows.insert(*key, *flow);
        Ok(())
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        !self.holds && self.flows.borrow_mut().remove(key).is_some()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }

    fn ports(&self, word: u32) -> Option<u64> {
        assert!(word < ports::ROWS * ports::ROW);
        self.looks.set(self.looks.get() + 1);
        Some(self.ports.borrow().get(&word).copied().unwrap_or(0))
    }

    fn take_port(&self, word: u32, bit: u32) -> bool {
        let mut words = self.ports.borrow_mut();
        let word = words.entry(word).or_default();
        let free = *word & 1 << bit == 0;
        *word |= 1 << bit;
        free
    }

    fn give_port(&self, word: u32, bit: u32) {
        *self.ports.borrow_mut().entry(word).or_default() &= !(1 << bit);
    }

    fn known(&self, word: u32) -> Option<u64> {
        Some(self.known.borrow().get(&word).copied().unwrap_or(0))
    }

    fn make_known(&self, word: u32, bit: u32) {
        *self.known.borrow_mut().entry(word).or_default() |= 1 << bit;
    }

    fn answers(&self, place: u32) -> u32 {
        assert!(place < limits::ANSWERS);
        self.answers.borrow().get(&place).copied().unwrap_or(0)
    }

    fn note_answer(&self, place: u32) {
        *self.answers.borrow_mut().entry(place).or_default() += 1;
    }

    fn flow_created(&self) {}

    fn now(&self) -> u32 {
        self.now
    }

    fn random(&self) -> u32 {
        let at = self.next.get();
        self.next.set(at + 1);
        self.random[at % self.random.len()]
    }

    fn count_service(&self, id: u32, add: impl FnOnce(&mut Counters)) {
        add(self.services.borrow_mut().entry(id).or_default());
    }

    fn count_backend(&self, _: u32, _: impl FnOnce(&mut Counters)) {}

    fn count_reason(&self, reason: Reason) {
        self.reasons.borrow_mut().push(reason);
    }
}

/// The uplink that clients are on.
pub(crate) const UPLINK: u32 = 2;
/// The link towards the other nodes.
pub(crate) const INWARD: u32 = 3;

impl Fast for World {
    fn bucket4<R>(&self, index: u32, with: impl FnOnce(&mut Bucket4) -> R) -> Option<R> {
        Some(with(self.cache4.borrow_mut().entry(index).or_default()))
    }

    fn bucket6<R>(&self, index: u32, with: impl FnOnce(&mut Bucket6) -> R) -> Option<R> {
        Some(with(self.cache6.borrow_mut().entry(index).or_default()))
    }

    fn trail<R>(&self, backend: u32, with: impl FnOnce(&mut Trail) -> R) -> Option<R> {
        Some(with(self.trails.borrow_mut().entry(backend % 4).or_default()))
    }

    fn processor(&self) -> u32 {
        0
    }

    fn jiffies(&self) -> u64 {
        self.jiffies
    }

    fn vlan(&self) -> u32 {
        0
    }

    fn generation(&self, _: u32) -> u32 {
        self.generation
    }

    fn desk<R>(&self, with: impl FnOnce(&mut Desk) -> R) -> Option<R> {
        Some(with(&mut self.desk.borrow_mut()))
    }

    fn route(&self, header: &Header, length: u16, route: &mut Route) -> bool {
        self.routed.set(self.routed.get() + 1);
        let inward = ["10.244.9.9", "fd44:0:0:2::5"].iter().any(|pod| header.destination == wire(pod));
        let link = if inward { INWARD } else { UPLINK };
        let ethernet = [u32::from_ne_bytes([6, 0, 0, 0]), u32::from_ne_bytes([0, link as u8, 4, 0]), 0];
        *route = Route { link: link as u16, mtu: self.mtu, ethernet, device: link, ..Route::default() };
        length <= self.mtu
    }
}

impl Paths for World {
    fn path<R>(&self, place: u32, with: impl FnOnce(&mut Path) -> R) -> Option<R> {
        assert!(place < PATHS);
        Some(with(self.paths.borrow_mut().entry(place).or_default()))
    }
}

impl Policies for World {
    fn guard(&self) -> Option<Guard> {
        self.guard
    }

    fn peer(&self, address: &Address) -> u32 {
        self.peers.get(address).copied().unwrap_or(0)
    }

    fn block(&self, address: &Address) -> u32 {
        let inside = self.blocks.iter().filter(|(network, mask, _)| address.within(network, mask));
        let length =
            |(_, mask, _): &&(Address, Address, u32)| mask.words.iter().map(|word| word.count_ones()).sum::<u32>();
        inside.max_by_key(length).map_or(0, |(_, _, who)| *who)
    }

    fn rule(&self, key: &RuleKey) -> u32 {
        let place = |key: &RuleKey| {
            let [high, low] = key.port;
            u128::from(key.set) << 56
                | u128::from(key.who) << 24
                | u128::from(u32::from_be_bytes([0, key.protocol, high, low]))
        };
        let covers = |(rule, bits): &&(RuleKey, u32)| (place(rule) ^ place(key)) >> (RuleKey::BITS - bits) == 0;
        let longest = |rules: &[(RuleKey, u32)]| rules.iter().filter(covers).map(|(_, bits)| *bits).max();
        match (longest(&self.rules), longest(&self.denying)) {
            (None, None) => 0,
            (allows, denies) if allows > denies => RuleKey::ALLOWS,
            _ => RuleKey::DENIES,
        }
    }

    fn allowed<R>(&self, key: &AllowedKey, change: impl FnOnce(&mut Allowed) -> R) -> Option<R> {
        self.allowed.borrow_mut().get_mut(key).map(change)
    }

    fn keep_allowed(&self, key: &AllowedKey, allowed: &Allowed) {
        self.allowed.borrow_mut().insert(*key, *allowed);
    }

    fn judging<R>(&self, with: impl FnOnce(&mut Judging) -> R) -> Option<R> {
        Some(with(&mut self.judging.borrow_mut()))
    }
}

/// The length that every test frame has at least.
pub(crate) const SHORTEST: usize = ETHERNET as usize + 20 + 8;
