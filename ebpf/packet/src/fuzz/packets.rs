//! One packet through every door.

use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::{Address, Scope};

use super::node::{Door, End, link, travel, world};
use super::whole::{answer, destination, is_ip, is_right, is_whole, seal, source};
use crate::tests::frame::{Frame, wire};
use crate::tests::world::World;
use crate::{
    Begun, MARK_NEEDS_SOURCE, Verdict, Way, carry_out, egress_pod, egress_uplink, from_outside, from_pod, ingress,
    uplink,
};

/// The first byte says how the packet is taken, the others are the packet.
const SEALED: u8 = 1;
const MARKED: u8 = 2;
const AMID: u8 = 4;
const POD_LINKS: u8 = 8;

/// A frame as any link may bring it: no byte of it makes the packet logic fail; what is not for us stays as it is; checksums
/// that were right stay right; the driver's way and the stack's lead to the same packet; answers come back.
pub fn packets(bytes: &[u8]) {
    let Some((control, bytes)) = bytes.split_first() else { return };
    let mut frame = Frame { bytes: bytes.to_vec(), mark: 0 };
    if control & SEALED != 0 {
        seal(&mut frame);
    }
    if control & MARKED != 0 {
        frame.mark = MARK_NEEDS_SOURCE;
    }
    let pods = control & POD_LINKS != 0;
    let make = || {
        let mut world = world(pods);
        if control & AMID != 0 {
            amid(&mut world);
        }
        world
    };
    every_door(&frame, make, control & AMID == 0);
    frame.mark = 0;
    if is_whole(&frame) {
        alike(&frame, make);
        if control & AMID == 0 {
            answered(&frame, make);
        }
    }
}

/// A few connections that are under way.
fn amid(world: &mut World) {
    for to in ["10.1.0.1:30080", "10.1.0.1:30090", "198.51.100.7:80", "198.51.100.6:80"] {
        travel(world, Frame::tcp("192.0.2.9:5000", to, 2, b""), Door::Driver);
        travel(world, Frame::tcp("192.0.2.9:5001", to, 2, b""), Door::Uplink);
    }
    for to in ["192.0.2.9:443", "10.96.0.10:80"] {
        travel(world, Frame::udp("10.244.0.5:1000", to, b"?"), Door::Pod);
    }
    travel(world, Frame::echo("10.244.0.5", "192.0.2.9", 8, 77), Door::Pod);
    travel(world, Frame::tcp("[fd02::9]:5000", "[fd01::1]:30080", 2, b""), Door::Driver);
    travel(world, Frame::udp("[fd44:0:0:1::5]:1000", "[2001:db8::9]:443", b"?"), Door::Pod);
}

type Program = fn(&mut Frame, &World) -> Verdict;

const PROGRAMS: [Program; 7] = [
    |frame, world| ingress(frame, world, Scope::External),
    |frame, world| ingress(frame, world, Scope::Internal),
    |frame, world| from_outside(frame, world),
    |frame, world| from_pod(frame, world),
    |frame, world| egress_uplink(frame, world),
    |frame, world| egress_pod(frame, world),
    |frame, world| match uplink(frame, world) {
        Way::Drop => Verdict::Drop(sluice_ebpf_common::Reason::Rewrite),
        _ => Verdict::Pass,
    },
];

fn every_door(frame: &Frame, make: impl Fn() -> World, empty: bool) {
    for (at, program) in PROGRAMS.iter().enumerate() {
        let mut world = make();
        world.link = if is_ip(frame) { link(&source(frame)).unwrap_or(10) } else { 10 };
        let mut after = frame.clone();
        let verdict = program(&mut after, &world);
        // What only opens a connection by direct return is noted, not recorded.
        let noted = world.begun.borrow().values().any(|begun| *begun != Begun::default());
        if empty && verdict == Verdict::Pass && world.flows.borrow().is_empty() && !noted {
            assert_eq!(after.bytes, frame.bytes, "program {at} changed what it does not know");
        }
        let verdict = carry_out(&mut after, &world, verdict);
        if is_right(frame) && !matches!(verdict, Verdict::Drop(_)) && is_whole(&after) {
            assert!(after.valid(), "program {at} left a wrong checksum: {frame:?} became {after:?}");
        }
    }
}

/// What both ways have to agree about: all but the Ethernet header, hops, and how zero is written in a checksum.
fn agreed(end: &End) -> End {
    let mut end = end.clone();
    if let End::Out(frame) | End::Pod(frame) | End::Here(frame) | End::Back(frame) = &mut end {
        frame.mark = 0;
        frame.bytes[..12].fill(0);
        if is_whole(frame) {
            let life = if frame.v4() { 22 } else { 21 };
            frame.bytes[life] = 64;
            seal(frame);
        } else if frame.v4() && frame.protocol() == 4 {
            frame.bytes[44..46].fill(0);
        }
    }
    end
}

/// The flow table is one: a packet goes the same way by the driver and by the stack, whichever saw the connection first.
fn alike(frame: &Frame, make: impl Fn() -> World) {
    let flags = if frame.protocol() == 6 { frame.bytes[frame.transport() + 13] } else { 0 };
    // A connection that ends as it begins is a new one with every packet.
    if !is_right(frame) || flags & 2 != 0 && flags & 5 != 0 || frame.protocol() == 132 {
        return;
    }
    for doors in [[Door::Driver, Door::Uplink], [Door::Uplink, Door::Driver]] {
        let mut world = make();
        let ends = doors.map(|door| travel(&mut world, frame.clone(), door));
        for frame in ends.iter().filter_map(End::frame).filter(|frame| is_whole(frame)) {
            assert!(frame.valid(), "{doors:?}: wrong checksum");
        }
        let [first, second] = &ends;
        // Until it is answered, the other way may let it go on by another port.
        if is_opened(&world, frame) {
            continue;
        }
        assert_eq!(agreed(first), agreed(second), "{doors:?}");
    }
}

/// Is it of a connection that was only opened?
fn is_opened(world: &World, frame: &Frame) -> bool {
    let at = frame.transport();
    let ports = u32::from_ne_bytes(frame.bytes[at..at + 4].try_into().unwrap_or_default());
    world.opened.borrow().values().any(|Opened { client, .. }| {
        let [[a, b], [c, d]] = [client.source_port, client.destination_port].map(u16::to_ne_bytes);
        client.source.same(&source(frame))
            && client.destination.same(&destination(frame))
            && ports == u32::from_ne_bytes([a, b, c, d])
    })
}

/// Does a sender at this door have such an address?
fn plausible(address: &Address, door: Door, world: &World) -> bool {
    if door == Door::Pod {
        return link(address).is_some();
    }
    let family = world.settings.families[usize::from(!address.is_v4())];
    let served = world.frontends.keys().any(|key| key.address.same(address));
    !served
        && !crate::Maps::is_local(world, address)
        && !address.within(&family.cluster_network, &family.cluster_mask)
        && !address.is_loopback()
        && *address != wire("0.0.0.0")
}

/// The answer to what a translated packet became comes to its sender, from whom it was sent to.
fn answered(frame: &Frame, make: impl Fn() -> World) {
    for door in [Door::Uplink, Door::Driver, Door::Pod] {
        let mut world = make();
        if !is_right(frame) || !plausible(&source(frame), door, &world) || source(frame).same(&destination(frame)) {
            continue;
        }
        let end = travel(&mut world, frame.clone(), door);
        let (sent, back) = match &end {
            End::Out(sent) => (sent, if door == Door::Driver { Door::Driver } else { Door::Uplink }),
            End::Pod(sent) => (sent, Door::Pod),
            _ => continue,
        };
        // What another node has to take out first, and what was not translated.
        if !is_whole(sent) || sent.ends() == frame.ends() {
            continue;
        }
        let (Some(expected), Some(answer)) = (answer(frame), answer(sent)) else { continue };
        let came = travel(&mut world, answer, back);
        let right = match &came {
            End::Out(came) if door != Door::Pod => came.ends() == expected.ends(),
            End::Pod(came) if door == Door::Pod => came.ends() == expected.ends(),
            _ => false,
        };
        assert!(right, "{door:?}: {} became {}, whose answer is {came:?}", frame.ends(), sent.ends());
    }
}
