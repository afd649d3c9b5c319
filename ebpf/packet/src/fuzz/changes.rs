//! Packets of a few connections by whichever way, and what user space does to the tables meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use sluice_ebpf_common::{Backend, Flow, FlowKey, FlowKind, Frontend, FrontendKey, ports, protocol};

use super::node::{Door, End, travel, world};
use super::whole::{answer, is_whole, seal, source};
use crate::tests::frame::{Frame, end, wire};
use crate::tests::world::World;
use crate::{Maps, nat};

/// Services whose backends no other one of these has, so that a client's port is enough to tell its connections apart.
const SERVICES: [&str; 6] =
    ["10.1.0.1:30080", "10.1.0.1:30090", "198.51.100.7:80", "198.51.100.8:80", "198.51.100.9:80", "[fd01::1]:30080"];
const FLAGS: [u8; 4] = [0x02, 0x10, 0x11, 0x14];
/// FIN and RST.
const CLOSES: u8 = 0x05;
/// Timer ticks of a second, as the maps of tests have them.
const SECOND: u64 = 256;

/// A story told by bytes. Connections keep their backend and their source while nothing ends them, answers find their client,
/// no port is lost or had twice, and entries name entries that are there.
pub fn changes(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let world = world(false);
    let all = world.frontends.clone();
    let mut story = Story { world, held: BTreeMap::new(), ended: BTreeSet::new(), removed: Vec::new(), all };
    for _ in 0..200 {
        let Some(event) = bytes.next() else { return };
        let Some(detail) = bytes.next() else { return };
        story.event(event, detail);
        story.ports_are_counted();
        story.pairs_are_whole();
        story.places_are_counted();
    }
}

/// A connection: client, service, TCP or not.
type Name = (u8, usize, bool);

struct Story {
    world: World,
    /// What the client's last packet became, while the connection has to stay as it is.
    held: BTreeMap<Name, End>,
    /// Connections of which one end said that it ends: the next one may begin.
    ended: BTreeSet<Name>,
    removed: Vec<(FrontendKey, Frontend)>,
    /// As they were in the beginning.
    all: BTreeMap<FrontendKey, Frontend>,
}

impl Story {
    fn event(&mut self, event: u8, detail: u8) {
        let door = if detail & 0x80 == 0 { Door::Driver } else { Door::Uplink };
        let client = detail & 3;
        let service = usize::from(detail >> 2 & 7) % SERVICES.len();
        let (tcp, kind) = (detail & 0x20 == 0, event % 16);
        match kind {
            0..4 => self.client((client, service, tcp), FLAGS[usize::from(kind)], door),
            4..7 => self.backend((client, service, tcp), FLAGS[usize::from(kind - 3)], door),
            7 => self.error((client, service, tcp), door),
            8 => self.fragment((client, service), door),
            9 => self.toggle(detail),
            10 => self.endpoints(service, u32::from(detail >> 5) % 3),
            11 => self.pass(u64::from(detail)),
            12 => self.world.settings.epoch += 1,
            13 => self.pass_and_sweep(u32::from(detail)),
            14 => self.bound(detail),
            _ => self.direct(service),
        }
    }

    fn packet(name: Name, flags: u8) -> Frame {
        let (client, service, tcp) = name;
        let to = SERVICES[service];
        let host = if to.starts_with('[') { "[fd02::9]" } else { "192.0.2.9" };
        let from = format!("{host}:{}", 5000 + u32::from(client));
        if tcp { Frame::tcp(&from, to, flags, b"?") } else { Frame::udp(&from, to, b"?") }
    }

    /// A client's packet becomes what the one before became.
    fn client(&mut self, name: Name, flags: u8, door: Door) {
        let begins = name.2 && flags == FLAGS[0];
        // The same port's next connection, or one whose backend may be gone.
        if begins
            && (self.ended.remove(&name)
                || self.world.backends.values().any(|backend| backend.flags & Backend::USED == 0))
        {
            self.held.remove(&name);
            // What the driver knows of the old one ends with its tick.
            self.pass(SECOND);
        }
        // Before it is answered it may go on by another port, if not from the same processor and by the same way.
        if self.is_half(name) {
            self.held.remove(&name);
        }
        let end = travel(&mut self.world, Story::packet(name, flags), door);
        if name.2 && flags & CLOSES != 0 {
            self.ended.insert(name);
        }
        let ends = |end: &End| end.frame().filter(|frame| is_whole(frame)).map(Frame::ends);
        if let Some(frame) = end.frame().filter(|frame| is_whole(frame)) {
            assert!(frame.valid());
        }
        if end == End::Gone && self.is_full() {
            return;
        }
        if let Some(before) = self.held.get(&name) {
            assert_eq!(ends(before), ends(&end), "{name:?} by {door:?}");
        }
        if ends(&end).is_some() {
            self.held.insert(name, end);
        }
    }

    /// Is it only opened, and nothing but its answer to be expected?
    fn is_half(&self, (client, service, tcp): Name) -> bool {
        let (to, port) = (end(SERVICES[service]), (5000 + u16::from(client)).to_be());
        let waits = |FlowKey { destination, destination_port, source_port, .. }: FlowKey| {
            (destination, destination_port) == to && source_port == port
        };
        let asks = |key: &FlowKey| key.kind == FlowKind::Service as u8 && key.protocol == protocol::TCP;
        let known = self.world.flows.borrow().keys().any(|key| asks(key) && waits(*key));
        tcp && !known && self.world.opened.borrow().values().any(|opened| waits(opened.client))
    }

    /// What the backend answers comes to the client.
    fn backend(&mut self, name: Name, flags: u8, door: Door) {
        let Some(end) = self.held.get(&name).cloned() else { return };
        let (sent, door) = match &end {
            End::Out(sent) => (sent, door),
            End::Pod(sent) => (sent, Door::Pod),
            _ => return,
        };
        let Some(mut back) = answer(sent) else { return };
        let at = back.transport();
        if name.2 {
            back.bytes[at + 13] = flags;
            seal(&mut back);
        }
        if name.2 && flags & CLOSES != 0 {
            self.ended.insert(name);
        }
        let end = travel(&mut self.world, back, door);
        if end == End::Gone && self.is_full() {
            return;
        }
        let End::Out(came) = end else { panic!("{name:?}: the answer is lost: {end:?}") };
        assert!(came.valid());
        assert_eq!(Some(came.ends()), answer(&Story::packet(name, 0)).map(|frame| frame.ends()));
    }

    /// An error about what left with the node's address is for the client.
    fn error(&mut self, name: Name, door: Door) {
        let Some(End::Out(sent)) = self.held.get(&name).cloned() else { return };
        let (router, node, client) =
            if sent.v4() { ("10.1.0.7", "10.1.0.1", "192.0.2.9") } else { ("fd01::7", "fd01::1", "fd02::9") };
        if !is_whole(&sent) || source(&sent) != wire(node) {
            return;
        }
        let end = travel(&mut self.world, Frame::error(router, node, &sent), door);
        // What only opened a connection stays that where there is no room, and the node's kernel knows nothing of it.
        if matches!(end, End::Gone | End::Here(_)) && self.is_full() {
            return;
        }
        let End::Out(came) = end else { panic!("{name:?}: the error is lost: {end:?}") };
        assert!(came.valid() && came.ends().contains(&format!("> {}", bare(client))), "{}", came.ends());
    }

    /// The first part of a datagram takes its connection's way, the second one follows.
    fn fragment(&mut self, (client, service): (u8, usize), door: Door) {
        let name = (client, service, false);
        let frame = Story::packet(name, 0);
        let mut long = frame.clone();
        long.bytes.extend([7; 32]);
        seal(&mut long);
        let ends = long.fragments(16).map(|part| travel(&mut self.world, part, door));
        if let (Some(End::Out(_)), [End::Out(first), End::Out(second)]) = (self.held.get(&name), &ends)
            && first.v4()
            && first.protocol() == protocol::UDP
        {
            let whole = Frame::whole(&[first.clone(), second.clone()]);
            assert!(whole.valid());
            assert_eq!(self.held[&name].frame().filter(|frame| is_whole(frame)).map(Frame::ends), Some(whole.ends()));
        }
    }

    /// A service comes or goes. Connections go on, but for those that begin.
    fn toggle(&mut self, detail: u8) {
        self.world.generation += 1;
        self.held.clear();
        if let Some((key, frontend)) = self.removed.pop() {
            self.world.frontends.insert(key, frontend);
        } else {
            let (address, port) = end(SERVICES[usize::from(detail) % SERVICES.len()]);
            let found = self.world.frontends.iter().find(|(key, _)| key.address == address && key.port == port);
            if let Some((key, frontend)) = found.map(|(key, frontend)| (*key, *frontend)) {
                self.world.frontends.remove(&key);
                self.removed.push((key, frontend));
            }
        }
    }

    /// A service has all its backends, or one of them; the others' slots go out of use.
    fn endpoints(&mut self, service: usize, which: u32) {
        let (address, port) = end(SERVICES[service]);
        let World { frontends, backends, slab, .. } = &mut self.world;
        for (key, frontend) in frontends.iter_mut().filter(|(key, _)| key.address == address && key.port == port) {
            let all = self.all[key];
            let one = which > 0 && which <= all.count;
            frontend.base = if one { all.base + which - 1 } else { all.base };
            frontend.count = if one { 1 } else { all.count };
            for at in all.base..all.base + all.count {
                let used = at >= frontend.base && at < frontend.base + frontend.count;
                let backend = backends.get_mut(&slab[at as usize]).unwrap();
                backend.flags = backend.flags & !Backend::USED | if used { Backend::USED } else { 0 };
            }
        }
        self.world.generation += 1;
        self.held.clear();
    }

    fn pass(&mut self, ticks: u64) {
        self.world.jiffies += ticks;
        self.world.now = 1000 + (self.world.jiffies / SECOND) as u32;
    }

    /// What was silent for so many seconds ends, as user space sees it.
    fn pass_and_sweep(&mut self, seconds: u32) {
        self.pass(SECOND);
        let seen = |flows: &BTreeMap<FlowKey, Flow>, flow: &Flow| flows.get(&flow.other).map_or(0, |other| other.seen);
        let (now, settings) = (self.world.now, self.world.settings);
        let flows = self.world.flows.borrow().clone();
        for (key, flow) in &flows {
            if now - flow.seen.max(seen(&flows, flow)) > seconds % 8 {
                self.world.remove_flow(key);
                if key.kind == FlowKind::MasqueradeReply as u8 {
                    nat::give(&self.world, &settings, key);
                }
            }
        }
        let (all, kept): (BTreeMap<_, _>, _) =
            self.world.opened.take().into_iter().partition(|(_, opened)| now - opened.seen > seconds % 8);
        self.world.opened.replace(kept);
        for (place, opened) in all {
            nat::give(&self.world, &settings, &opened.reply);
            self.world.give_place(place);
        }
        self.held.clear();
    }

    /// The table has room for so many more.
    fn bound(&mut self, detail: u8) {
        self.world.flow_limit = self.world.flows.borrow().len() + usize::from(detail);
        self.held.clear();
    }

    /// No room for what the stack needs for a connection.
    fn is_full(&self) -> bool {
        self.world.flows.borrow().len() + 2 > self.world.flow_limit
    }

    /// Direct return begins or ends. Connections hold.
    fn direct(&mut self, service: usize) {
        self.world.change(SERVICES[service], |frontend| frontend.flags ^= Frontend::DIRECT);
        self.world.generation += 1;
    }

    /// Every taken port is one connection's, and every connection's port is taken.
    fn ports_are_counted(&self) {
        let mut expected: BTreeMap<u32, u64> = BTreeMap::new();
        let (flows, opened) = (self.world.flows.borrow(), self.world.opened.borrow());
        let answered = flows.keys().filter(|key| key.kind == FlowKind::MasqueradeReply as u8);
        for key in answered.chain(opened.values().map(|opened| &opened.reply)) {
            let number = u16::from_be(key.destination_port) - self.world.settings.source_port_first;
            let row = ports::row(&key.source, key.source_port, key.protocol);
            let (word, bit) = ports::place(row, number.into());
            *expected.entry(word).or_default() |= 1 << bit;
        }
        let words = self.world.ports.borrow();
        let taken = words.iter().filter(|(word, bits)| !word.is_multiple_of(ports::ROW) && **bits != 0);
        assert_eq!(taken.map(|(word, bits)| (*word, *bits)).collect::<BTreeMap<_, _>>(), expected);
    }

    /// Every place that somebody has is a connection's.
    fn places_are_counted(&self) {
        assert!(self.world.places.borrow().iter().eq(self.world.opened.borrow().keys()));
    }

    /// A client's entry names another that is there, or itself. (What the way out leaves behind goes when it was silent for
    /// long enough; its port is counted until then.)
    fn pairs_are_whole(&self) {
        let flows = self.world.flows.borrow();
        for (key, flow) in flows.iter().filter(|(key, _)| key.kind == FlowKind::Service as u8) {
            assert!(flows.contains_key(&flow.other), "{key:?} names what is not there");
        }
    }
}

fn bare(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.into() }
}
