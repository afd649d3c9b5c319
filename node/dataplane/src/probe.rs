//! Running the real programs on the live maps with a made-up packet: what `explain` and the tests are built on.

use std::time::Duration;

use aya::programs::ProgramFd;
use aya::{TestRun, TestRunOptions};

use crate::attach::{self, traffic_program};
use crate::{Dataplane, Error, sweep, wire};

/// What a packet may be longer than the original: an answer has an IP and an ICMP header more.
const ROOM: usize = 64;
/// Where `struct __sk_buff` names the link by which a packet came, and what is its lowest byte there.
const INGRESS_LINK: usize = if cfg!(target_endian = "little") { 36 } else { 39 };
/// Another link than the one on which the packet is: that is loopback, the first one.
const ELSEWHERE: u8 = 2;
const DROPPED: u32 = 2;
const REDIRECTED: u32 = 7;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Where a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Comes in from outside.
    UplinkIn,
    /// Goes outside.
    UplinkOut,
    /// Comes from a pod.
    PodIn,
    /// Goes to a pod.
    PodOut,
    /// Comes from a pod, and is asked for by its policies.
    PolicyIn,
    /// Goes to a pod, and is asked for by its policies. It came by the loopback link.
    PolicyOut,
    /// Was received by an uplink's driver.
    Wire,
    /// Comes in on an uplink whose driver does not look at it.
    Onward,
    /// Is sent by the node on its loopback link.
    OwnOut,
    /// Comes in on the node's home link.
    OwnIn,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Hook::UplinkIn => "uplink_in",
            Hook::UplinkOut => "uplink_out",
            Hook::PodIn => "pod_in",
            Hook::PodOut => "pod_out",
            Hook::PolicyIn => "policy_in",
            Hook::PolicyOut => "policy_out",
            Hook::Wire => wire::PROGRAM,
            Hook::Onward => attach::ONWARD.0,
            Hook::OwnOut => attach::OWN_PROGRAMS[0].0,
            Hook::OwnIn => attach::OWN_PROGRAMS[1].0,
        }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Passed,
    /// It was dropped.
    Dropped,
    /// It leaves at once: as an answer back where it came from, or inside another packet to another node.
    Redirected,
    /// It leaves at once by a link, or is put into a pod.
    Sent,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What became of the packet.
    pub outcome: Outcome,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Time per run.
    pub time: Duration,
}

impl Dataplane {
    /// Runs a program `repeat` times on a frame (Ethernet header first), each run on the previous one's result. It
    /// counts, and it creates flows, as a real packet would.
    pub fn probe(&self, hook: Hook, frame: &[u8], repeat: u32) -> Result<Probe, Error> {
        let mut ebpf = self.inner.ebpf.lock();
        attach::ensure_loaded(&mut ebpf, hook.program())?;
        let mut out = vec![0; frame.len() + ROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.repeat = repeat;
        // The beginning of `struct __sk_buff`, as far as the link by which a packet came.
        let context: [u8; 40] = std::array::from_fn(|at| if at == INGRESS_LINK { ELSEWHERE } else { 0 });
        if hook == Hook::PolicyOut {
            options.ctx_in = Some(&context);
        }
        let result = match hook {
            Hook::Wire => wire::program(&mut ebpf)
                .ok_or_else(|| Error::Kernel(format!("the embedded object has no program {}", wire::PROGRAM)))?
                .test_run(options),
            _ => traffic_program(&mut ebpf, hook.program())?.test_run(options),
        };
        let result = result.map_err(|error| Error::ebpf(format!("run {} on a packet", hook.program()), error))?;
        out.truncate(result.data_size_out as usize);
        let outcome = match (hook, result.return_value) {
            (Hook::Wire, XDP_TX | XDP_REDIRECT) => Outcome::Sent,
            (Hook::Wire, XDP_PASS) => Outcome::Passed,
            (Hook::Wire, _) | (_, DROPPED) => Outcome::Dropped,
            (Hook::Onward, REDIRECTED) => Outcome::Sent,
            // An answer goes back to where the packet came from, and what is inside another packet is longer.
            (Hook::PodIn | Hook::UplinkIn, REDIRECTED)
                if frame.get(..6) != out.get(6..12) && frame.len() == out.len() =>
            {
                Outcome::Sent
            }
            (_, REDIRECTED) => Outcome::Redirected,
            _ => Outcome::Passed,
        };
        Ok(Probe { outcome, frame: out, time: result.duration })
    }

    /// A program, loaded, for benches that run it by a tail call; `None` when there is none of that name.
    pub fn program(&self, name: &str) -> Option<ProgramFd> {
        let mut ebpf = self.inner.ebpf.lock();
        attach::ensure_loaded(&mut ebpf, name).ok()?;
        ebpf.program(name)?.fd().ok()?.try_clone().ok()
    }

    /// Forgets every connection that is translated packet by packet, as if all had ended long ago.
    pub fn forget_flows(&self) -> Result<(), Error> {
        // Of what was only opened, one look says that it ended, and the next one frees its place.
        for _ in 0..2 {
            sweep::sweep(&self.inner.pins, u32::MAX)?;
        }
        self.ask_anew()
    }
}
