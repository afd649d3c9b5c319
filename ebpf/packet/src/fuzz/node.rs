//! A node with services of every kind, and the way of a packet through it.

use std::sync::LazyLock;

use sluice_ebpf_common::{Address, Frontend, PodLink, Scope, protocol};

use super::whole::{destination, is_ip, source};
use crate::tests::frame::{Frame, wire};
use crate::tests::world::{UPLINK, World};
use crate::{Verdict, Way, carry_out, egress_pod, egress_uplink, from_outside, from_pod, settled, uplink};

/// Pods of this node; behind links from 10 on.
pub(super) const PODS: [&str; 4] = ["10.244.0.5", "10.244.0.6", "fd44:0:0:1::5", "fd44:0:0:1::6"];

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Uplink,
    /// The uplink, whose driver looks first.
    Driver,
    /// A pod's link.
    Pod,
}

/// Where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Out of the node by an uplink.
    Out(Frame),
    /// In a pod.
    Pod(Frame),
    /// At the node itself.
    Here(Frame),
    /// It became an answer.
    Back(Frame),
    Gone,
}

impl End {
    pub(super) fn frame(&self) -> Option<&Frame> {
        match self {
            End::Out(frame) | End::Pod(frame) | End::Here(frame) | End::Back(frame) => Some(frame),
            End::Gone => None,
        }
    }
}

/// Every service: a port of the node, a load balancer's address with a table, one with direct return, one with source
/// ranges, one with affinity, one without endpoints; in both families, and within the cluster.
pub(super) fn world(pods: bool) -> World {
    // Made once: there are more worlds than packets.
    std::thread_local!(static WORLDS: [World; 2] = [make(false), make(true)]);
    WORLDS.with(|worlds| worlds[usize::from(pods)].clone())
}

fn make(pods: bool) -> World {
    let mut world = World::new();
    for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        world.serve(number, Scope::External, "*:30080", &["10.244.0.5:80", "~10.244.9.9:80"]);
        world.serve(number, Scope::External, "*:30090", &["~10.244.9.9:90"]);
        world.serve(number, Scope::External, "[*]:30080", &["[fd44:0:0:1::5]:80", "~[fd44:0:0:2::5]:80"]);
        world.serve(number, Scope::External, "198.51.100.7:80", &["~10.244.9.9:81", "10.244.0.6:81"]);
        world.serve(number, Scope::External, "[fd07::7]:80", &["~[fd44:0:0:2::5]:81"]);
        world.serve(number, Scope::External, "198.51.100.8:80", &["~10.244.9.9:82"]);
        world.serve(number, Scope::External, "198.51.100.9:80", &["10.244.0.5:83", "~10.244.9.9:83"]);
        world.serve(number, Scope::Internal, "10.96.0.10:80", &["10.244.0.5:80", "10.244.0.6:81", "~10.244.9.9:80"]);
        world.serve(number, Scope::Internal, "10.96.0.11:80", &["10.244.0.5:84"]);
        world.serve(number, Scope::Internal, "10.96.0.12:80", &[]);
        world.serve(number, Scope::Internal, "[fd96::10]:80", &["[fd44:0:0:1::5]:80", "~[fd44:0:0:2::5]:80"]);
    }
    world.serve(protocol::TCP, Scope::External, "198.51.100.6:80", &["~10.244.9.9:85", "10.244.0.6:85"]);
    world.plan("198.51.100.6:80", &[0, 1, 1, 0, 1]);
    world.change("198.51.100.7:80", |frontend| frontend.flags |= Frontend::DIRECT);
    world.change("[fd07::7]:80", |frontend| frontend.flags |= Frontend::DIRECT);
    world.change("198.51.100.8:80", |frontend| frontend.flags |= Frontend::RANGES);
    world.change("198.51.100.9:80", |frontend| frontend.affinity = 100);
    world.ranges = [(wire("192.0.2.0"), crate::tests::frame::mask("255.255.255.0"))].into();
    world.flow_limit = 1000;
    world.random = (0..97).map(|at: u32| at.wrapping_mul(0x9e37_79b9)).collect();
    if pods {
        for (pod, link) in PODS.iter().zip([10, 11, 10, 11]) {
            let ends = [[4, 0, 0, 0, 0, link], [6, 0, 0, 0, 0, link]];
            world.pods.insert(wire(pod), PodLink::new(link.into(), 1500, ends[0], ends[1]));
        }
    }
    world
}

/// The number of a pod's link.
pub(super) fn link(address: &Address) -> Option<u32> {
    static ADDRESSES: LazyLock<[Address; 4]> = LazyLock::new(|| PODS.map(wire));
    ADDRESSES.iter().position(|pod| pod.same(address)).map(|at| 10 + at as u32 % 2)
}

/// Takes a packet through the node.
pub(super) fn travel(world: &mut World, mut frame: Frame, door: Door) -> End {
    world.link = UPLINK;
    let verdict = match door {
        Door::Pod => {
            world.link = if is_ip(&frame) { link(&source(&frame)).unwrap_or(10) } else { 10 };
            from_pod(&mut frame, world)
        }
        Door::Driver => match uplink(&mut frame, world) {
            Way::Out(_) => return End::Out(frame),
            Way::Drop => return End::Gone,
            Way::Stack => from_outside(&mut frame, world),
        },
        Door::Uplink => from_outside(&mut frame, world),
    };
    match carry_out(&mut frame, world, verdict) {
        Verdict::Pass => onward(world, frame),
        Verdict::Into(_) => End::Pod(frame),
        Verdict::Onward(_) => End::Out(frame),
        Verdict::Leave(_) if settled(&mut frame) => End::Out(frame),
        Verdict::Leave(_) => leave(world, frame),
        Verdict::Answer => End::Back(frame),
        _ => End::Gone,
    }
}

/// Past the program on the way out of an uplink.
fn leave(world: &mut World, mut frame: Frame) -> End {
    world.link = UPLINK;
    let verdict = egress_uplink(&mut frame, world);
    match carry_out(&mut frame, world, verdict) {
        Verdict::Pass => End::Out(frame),
        _ => End::Gone,
    }
}

/// As the node's routes lead, and past the programs on the way out.
fn onward(world: &mut World, mut frame: Frame) -> End {
    if !is_ip(&frame) {
        return End::Here(frame);
    }
    let to = destination(&frame);
    if crate::Maps::is_local(world, &to) {
        return End::Here(frame);
    }
    let family = world.settings.families[usize::from(!frame.v4())];
    if !to.within(&family.pod_network, &family.pod_mask) {
        return leave(world, frame);
    }
    world.link = link(&to).unwrap_or(12);
    let verdict = egress_pod(&mut frame, world);
    match carry_out(&mut frame, world, verdict) {
        Verdict::Pass => End::Pod(frame),
        _ => End::Gone,
    }
}
