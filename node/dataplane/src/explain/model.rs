//! The live maps as the packet library wants them on the host: what it reads is noted, what it writes stays here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use sluice_ebpf_common::cache::{Bucket4, Bucket6};
use sluice_ebpf_common::opened::{self, Opened};
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, Counters, Flow, FlowKey, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, Guard, NO_NODE_PORTS, PodLink, RangeKey, Reason, RuleKey, Settings, ports,
};
use sluice_packet::{
    Begun, Desk, Fast, Header, InsertError, Judging, Maps, Path, Paths, Policies, Route, Scratch, Trail,
};

use super::live::Live;
use crate::sys;

/// What the library looked at, wrote or counted, in its order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Note {
    Frontend(FrontendKey, Frontend),
    Range(RangeKey, bool),
    Affinity(AffinityKey, Option<Affinity>),
    Backend(u32, Backend),
    Random,
    Flow(FlowKey, Flow),
    Made(FlowKey, Flow),
    Guard(Guard),
    Peer(u32),
    Block(u32),
    Rule(RuleKey, u32),
    Allowed(AllowedKey, Allowed),
    Judged(AllowedKey, Allowed),
    Reason(Reason),
}

/// What differs from the live maps, and what was looked at in those that programs change.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    pub(super) flows: BTreeMap<FlowKey, Option<Flow>>,
    pub(super) affinities: BTreeMap<AffinityKey, Option<Affinity>>,
    pub(super) fragments: BTreeMap<FragmentKey, Option<FragmentPorts>>,
    pub(super) opened: BTreeMap<u32, Opened>,
    pub(super) ports: BTreeMap<u32, u64>,
    pub(super) known: BTreeMap<u32, u64>,
    /// All that the live map holds is there beside these.
    pub(super) places: BTreeMap<u32, u64>,
    pub(super) allowed: BTreeMap<AllowedKey, Option<Allowed>>,
}

impl Overlay {
    /// Learns what the live maps hold of everything that the other one knows of.
    pub(super) fn learn(&mut self, other: &Overlay, live: &Live) {
        fn fill<K: Ord + Copy, V>(own: &mut BTreeMap<K, V>, other: &BTreeMap<K, V>, look: impl Fn(&K) -> V) {
            other.keys().for_each(|key| {
                own.entry(*key).or_insert_with(|| look(key));
            });
        }
        fill(&mut self.flows, &other.flows, |key| live.flow(key));
        fill(&mut self.affinities, &other.affinities, |key| live.affinity(key));
        fill(&mut self.fragments, &other.fragments, |key| live.fragment(key));
        fill(&mut self.allowed, &other.allowed, |key| live.allowed(key));
        // Chance decides which of a row's words are looked at.
        for row in other.ports.keys().map(|word| word / ports::ROW * ports::ROW) {
            for word in row..row + ports::ROW {
                self.ports.entry(word).or_insert_with(|| live.ports(word).unwrap_or(0));
            }
        }
        fill(&mut self.opened, &other.opened, |place| live.opened(*place).unwrap_or_default());
        fill(&mut self.places, &other.places, |word| live.places(*word).unwrap_or(0));
        fill(&mut self.known, &other.known, |word| live.known(*word).unwrap_or(0));
    }

    /// Does the other one, together with what the live maps do not have, say all that was looked at here?
    pub(super) fn is_within(&self, other: &Overlay, live: &Live) -> bool {
        fn all<K: Ord, V>(own: &BTreeMap<K, V>, other: &BTreeMap<K, V>, missing: impl Fn(&K) -> bool) -> bool {
            own.keys().all(|key| other.contains_key(key) || missing(key))
        }
        let is_free = |place: &u32| live.opened(*place).is_none_or(|opened| opened.state == 0);
        all(&self.flows, &other.flows, |key| live.flow(key).is_none())
            && all(&self.opened, &other.opened, is_free)
            && all(&self.affinities, &other.affinities, |key| live.affinity(key).is_none())
            && all(&self.allowed, &other.allowed, |key| live.allowed(key).is_none())
            && all(&self.ports, &other.ports, |word| live.ports(*word) == Some(0))
            && all(&self.known, &other.known, |word| live.known(*word) == Some(0))
    }
}

/// Where the library runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On a packet that uses the link with this index.
    Link(u32),
    /// The same, where the node sends it to itself or to services.
    Own(u32),
    /// On a socket in the namespace with this cookie.
    Socket(u64),
}

/// The maps for one run of the library.
pub(super) struct Model<'a> {
    live: &'a Live,
    place: Place,
    pub(super) overlay: RefCell<Overlay>,
    pub(super) notes: RefCell<Vec<Note>>,
    /// Handed out one after the other; the last one again and again.
    random: Vec<u32>,
    next: Cell<usize>,
    scratch: RefCell<Scratch>,
    judging: RefCell<Judging>,
    desk: RefCell<Desk>,
    cache4: RefCell<Bucket4>,
    cache6: RefCell<Bucket6>,
    path: RefCell<Path>,
    /// What the kernel's routes said to the program; of link 0 when it did not ask, or in vain.
    route: Route,
    now: u32,
}

impl<'a> Model<'a> {
    pub(super) fn new(live: &'a Live, place: Place, overlay: Overlay, random: Vec<u32>) -> Model<'a> {
        Model {
            live,
            place,
            overlay: RefCell::new(overlay),
            notes: RefCell::default(),
            random,
            next: Cell::new(0),
            scratch: RefCell::default(),
            judging: RefCell::default(),
            desk: RefCell::default(),
            cache4: RefCell::default(),
            cache6: RefCell::default(),
            path: RefCell::default(),
            route: Route::default(),
            now: sys::coarse_seconds(),
        }
    }

    /// With what the kernel's routes said.
    pub(super) fn with_route(self, route: Route) -> Model<'a> {
        Model { route, ..self }
    }

    fn note(&self, note: Note) {
        self.notes.borrow_mut().push(note);
    }

    /// An entry of the flow table, which is copied here when it is looked at for the first time.
    fn entry<R>(&self, key: &FlowKey, with: impl FnOnce(&mut Option<Flow>) -> R) -> R {
        let mut overlay = self.overlay.borrow_mut();
        with(overlay.flows.entry(*key).or_insert_with(|| self.live.flow(key)))
    }
}

impl Maps for Model<'_> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.live.settings)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let found = self.live.frontend(key)?;
        self.note(Note::Frontend(*key, found));
        Some(found)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.live.slot(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        let backend = self.live.backend(id)?;
        self.note(Note::Backend(id, backend));
        Some(backend)
    }

    fn local(&self, address: &Address) -> Option<u32> {
        if address.is_loopback() {
            let closed = if address.is_v4() { Settings::NO_LOOPBACK_V4 } else { Settings::NO_LOOPBACK_V6 };
            let local = if self.live.settings.flags & closed == 0 { 0 } else { NO_NODE_PORTS };
            let own = match self.place {
                Place::Socket(cookie) => cookie == self.live.settings.host_cookie,
                Place::Own(_) => true,
                Place::Link(_) => false,
            };
            return own.then_some(local);
        }
        self.live.local(address)
    }

    fn pod(&self, address: &Address) -> Option<PodLink> {
        self.live.pod(address)
    }

    fn is_node(&self, address: &Address) -> bool {
        self.live.is_node(address)
    }

    fn translates(&self, settings: &Settings) -> bool {
        let Place::Socket(cookie) = self.place else { return true };
        settings.known_only == 0 || settings.host_cookie == cookie || self.live.is_known(cookie)
    }

    fn namespace(&self) -> u64 {
        if let Place::Socket(cookie) = self.place { cookie } else { 0 }
    }

    fn link(&self) -> u32 {
        if let Place::Link(link) | Place::Own(link) = self.place { link } else { 0 }
    }

    fn home(&self) -> u32 {
        self.live.home
    }

    fn source_address(&self, link: u32, v4: bool) -> Option<Address> {
        self.live.source_address(link, v4)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let mut overlay = self.overlay.borrow_mut();
        let found = *overlay.affinities.entry(*key).or_insert_with(|| self.live.affinity(key));
        self.note(Note::Affinity(*key, found));
        found
    }

    fn keep_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.overlay.borrow_mut().affinities.insert(*key, Some(*affinity));
    }

    fn in_range(&self, key: &RangeKey) -> bool {
        let found = self.live.in_range(key);
        self.note(Note::Range(*key, found));
        found
    }

    /// Each processor's own, and gone with the next connection.
    fn begun<R>(&self, _: u32, with: impl FnOnce(&mut Begun) -> R) -> Option<R> {
        Some(with(&mut Begun::default()))
    }

    fn scratch<R>(&self, with: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        Some(with(&mut self.scratch.borrow_mut()))
    }

    fn flow<R>(&self, key: &FlowKey, change: impl FnOnce(&mut Flow) -> R) -> Option<R> {
        self.entry(key, |flow| {
            let flow = flow.as_mut()?;
            self.note(Note::Flow(*key, *flow));
            Some(change(flow))
        })
    }

    fn holds(&self) -> bool {
        false
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        self.entry(key, |place| match place {
            Some(_) => Err(InsertError::Exists),
            None if self.live.is_full() => Err(InsertError::Full),
            None => {
                *place = Some(*flow);
                self.note(Note::Made(*key, *flow));
                Ok(())
            }
        })
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        self.entry(key, |flow| flow.take().is_some())
    }

    fn opened<R>(&self, place: u32, with: impl FnOnce(&mut Opened) -> R) -> Option<R> {
        let live = self.live.opened(place)?;
        Some(with(self.overlay.borrow_mut().opened.entry(place).or_insert(live)))
    }

    fn places(&self, word: u32) -> Option<u64> {
        let live = self.live.places(word)?;
        Some(*self.overlay.borrow_mut().places.entry(word).or_insert(live))
    }

    fn take_place(&self, place: u32) -> bool {
        let (word, bit) = opened::bit(place);
        let Some(live) = self.live.places(word) else { return false };
        let mut overlay = self.overlay.borrow_mut();
        let word = overlay.places.entry(word).or_insert(live);
        let free = *word & 1 << bit == 0;
        *word |= 1 << bit;
        free
    }

    fn give_place(&self, place: u32) {
        let (word, bit) = opened::bit(place);
        if let Some(live) = self.live.places(word) {
            *self.overlay.borrow_mut().places.entry(word).or_insert(live) &= !(1 << bit);
        }
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        *self.overlay.borrow_mut().fragments.entry(*key).or_insert_with(|| self.live.fragment(key))
    }

    fn keep_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.overlay.borrow_mut().fragments.insert(*key, Some(*ports));
    }

    fn ports(&self, word: u32) -> Option<u64> {
        let live = self.live.ports(word)?;
        Some(*self.overlay.borrow_mut().ports.entry(word).or_insert(live))
    }

    fn take_port(&self, word: u32, bit: u32) -> bool {
        let Some(live) = self.live.ports(word) else { return false };
        let mut overlay = self.overlay.borrow_mut();
        let word = overlay.ports.entry(word).or_insert(live);
        let free = *word & 1 << (bit & 63) == 0;
        *word |= 1 << (bit & 63);
        free
    }

    fn give_port(&self, word: u32, bit: u32) {
        if let Some(live) = self.live.ports(word) {
            *self.overlay.borrow_mut().ports.entry(word).or_insert(live) &= !(1 << (bit & 63));
        }
    }

    fn known(&self, word: u32) -> Option<u64> {
        let live = self.live.known(word)?;
        Some(*self.overlay.borrow_mut().known.entry(word).or_insert(live))
    }

    fn make_known(&self, word: u32, bit: u32) {
        if let Some(live) = self.live.known(word) {
            *self.overlay.borrow_mut().known.entry(word).or_insert(live) |= 1 << (bit & 63);
        }
    }

    /// None was asked about before: see [`Paths::path`].
    fn answers(&self, _: u32) -> u32 {
        0
    }

    fn note_answer(&self, _: u32) {}

    fn flow_created(&self) {}

    fn now(&self) -> u32 {
        self.now
    }

    fn random(&self) -> u32 {
        self.note(Note::Random);
        let at = self.next.get();
        self.next.set(at + 1);
        self.random.get(at).or(self.random.last()).copied().unwrap_or(0)
    }

    fn count_service(&self, _: u32, _: impl FnOnce(&mut Counters)) {}

    fn count_backend(&self, _: u32, _: impl FnOnce(&mut Counters)) {}

    fn count_reason(&self, reason: Reason) {
        self.note(Note::Reason(reason));
    }
}

impl Fast for Model<'_> {
    /// One bucket that nothing was in.
    fn bucket4<R>(&self, _: u32, with: impl FnOnce(&mut Bucket4) -> R) -> Option<R> {
        Some(with(&mut self.cache4.borrow_mut()))
    }

    fn bucket6<R>(&self, _: u32, with: impl FnOnce(&mut Bucket6) -> R) -> Option<R> {
        Some(with(&mut self.cache6.borrow_mut()))
    }

    fn desk<R>(&self, with: impl FnOnce(&mut Desk) -> R) -> Option<R> {
        Some(with(&mut self.desk.borrow_mut()))
    }

    /// Nothing is kept, as above.
    fn trail<R>(&self, _: u32, with: impl FnOnce(&mut Trail) -> R) -> Option<R> {
        Some(with(&mut Trail::default()))
    }

    fn processor(&self) -> u32 {
        0
    }

    fn jiffies(&self) -> u64 {
        0
    }

    fn vlan(&self) -> u32 {
        0
    }

    fn generation(&self, service: u32) -> u32 {
        self.live.generation(service)
    }

    fn route(&self, _: &Header, _: u16, route: &mut Route) -> bool {
        *route = self.route;
        route.link != 0
    }
}

impl Paths for Model<'_> {
    /// Nothing is kept from before: the packet asks for its way.
    fn path<R>(&self, _: u32, with: impl FnOnce(&mut Path) -> R) -> Option<R> {
        Some(with(&mut self.path.borrow_mut()))
    }
}

impl Policies for Model<'_> {
    fn guard(&self) -> Option<Guard> {
        let guard = self.live.guard(self.link())?;
        self.note(Note::Guard(guard));
        Some(guard)
    }

    fn peer(&self, address: &Address) -> u32 {
        let peer = self.live.peer(address);
        self.note(Note::Peer(peer));
        peer
    }

    fn block(&self, address: &Address) -> u32 {
        let block = self.live.block(address);
        self.note(Note::Block(block));
        block
    }

    fn rule(&self, key: &RuleKey) -> u32 {
        let found = self.live.rule(key);
        self.note(Note::Rule(*key, found));
        found
    }

    fn allowed<R>(&self, key: &AllowedKey, change: impl FnOnce(&mut Allowed) -> R) -> Option<R> {
        let mut overlay = self.overlay.borrow_mut();
        let allowed = overlay.allowed.entry(*key).or_insert_with(|| self.live.allowed(key)).as_mut()?;
        self.note(Note::Allowed(*key, *allowed));
        Some(change(allowed))
    }

    fn keep_allowed(&self, key: &AllowedKey, allowed: &Allowed) {
        self.overlay.borrow_mut().allowed.insert(*key, Some(*allowed));
        self.note(Note::Judged(*key, *allowed));
    }

    fn judging<R>(&self, with: impl FnOnce(&mut Judging) -> R) -> Option<R> {
        Some(with(&mut self.judging.borrow_mut()))
    }
}
