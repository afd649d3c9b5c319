//! The packet programs once more, on the live tables and on copies of those that programs write: what runs here leaves no flow,
//! takes no port, moves no counter.

use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, TestRun, TestRunOptions};
use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Flow, FlowKey, FragmentKey, FragmentPorts, Reason, maps,
};
use sluice_packet::{Exit, PATHS, Path};

use super::model::Overlay;
use crate::attach::traffic_program;
use crate::pins::Pins;
use crate::{Error, object, sys};

/// Tables that no program of a packet writes: the copies look at the live ones.
const SHARED: [&str; 18] = [
    maps::FRONTENDS,
    maps::BACKENDS,
    maps::SLAB,
    maps::NAMES,
    maps::RANGES,
    maps::LOCALS,
    maps::NODES,
    maps::SOURCES,
    maps::NAMESPACES,
    maps::PODS,
    maps::GUARDS,
    maps::PEERS,
    maps::BLOCKS,
    maps::RULES,
    maps::GENERATIONS,
    maps::UPLINKS,
    maps::SETTINGS,
    maps::HOME,
];

/// Sizes of the copies: room for one packet's entries. What counts is not copied.
const SIZES: [(&str, u32); 12] = [
    (maps::FLOWS, FLOWS),
    (maps::AFFINITIES, 4_096),
    (maps::FRAGMENTS, 4_096),
    (maps::ALLOWED, 4_096),
    (maps::CACHE4, 1),
    (maps::CACHE6, 1),
    (maps::SERVICE_COUNTERS, 1),
    (maps::BACKEND_COUNTERS, 1),
    (maps::PACED, 1),
    (maps::LOST, 1),
    (maps::MEASURED, 1),
    (maps::STREAM, 4_096),
];
const FLOWS: u32 = 1_024;

/// Longest that a frame becomes: an answer or an outer header is added.
const ROOM: usize = 128;
/// Room for `struct __sk_buff`.
const CONTEXT: usize = 256;
/// Places in it.
const MARK: usize = 8;
const CAME_BY: usize = 36;
const LINK: usize = 40;

const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// What a program says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Pass,
    Drop,
    Redirect,
}

/// What became of a packet.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) says: Says,
    pub(super) frame: Vec<u8>,
    pub(super) mark: u32,
    /// What was counted.
    pub(super) reasons: Vec<Reason>,
}

/// A packet on a link.
pub(super) struct Sent<'a> {
    pub(super) frame: &'a [u8],
    pub(super) mark: u32,
    pub(super) link: u32,
    /// The link by which it came to the node; 0 when the node sent it.
    pub(super) came_by: u32,
}

pub(super) struct Copies {
    ebpf: Ebpf,
    loaded: Vec<&'static str>,
}

impl Copies {
    /// Loads the object beside the live maps.
    pub(super) fn load(pins: &Pins) -> Result<Copies, Error> {
        Ok(Copies { ebpf: object::load_beside(|name| pins.map(name), &SHARED, &SIZES)?, loaded: Vec::new() })
    }

    /// A typed map of the copies.
    fn map<'a, T: TryFrom<&'a mut Map, Error = MapError>>(&'a mut self, name: &str) -> Result<T, Error> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| Error::Kernel(format!("the object has no map {name}")))?;
        T::try_from(map).map_err(|error| Error::ebpf(format!("use the copy of {name}"), error))
    }

    /// Makes the copies hold what is known here, and nothing else. A full flow table has room for nothing else, either.
    pub(super) fn seed(&mut self, overlay: &Overlay, full: bool) -> Result<(), Error> {
        let failed = |error| Error::ebpf("write the copies", error);
        let flows = overlay.flows.iter().filter_map(|(key, flow)| Some((*key, (*flow)?)));
        self.replace::<FlowKey, Flow>(maps::FLOWS, flows)?;
        if full {
            let mut table: HashMap<&mut MapData, FlowKey, Flow> = self.map(maps::FLOWS)?;
            let filler = |number| FlowKey { reserved: 1, source_port: number, ..FlowKey::default() };
            let _ = (0..=FLOWS as u16).try_for_each(|number| table.insert(filler(number), Flow::default(), 1));
        }
        let affinities = overlay.affinities.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
        self.replace::<AffinityKey, Affinity>(maps::AFFINITIES, affinities)?;
        let fragments = overlay.fragments.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
        self.replace::<FragmentKey, FragmentPorts>(maps::FRAGMENTS, fragments)?;
        let allowed = overlay.allowed.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
        self.replace::<AllowedKey, Allowed>(maps::ALLOWED, allowed)?;
        let mut opened: Array<&mut MapData, Opened> = self.map(maps::OPENED)?;
        overlay.opened.iter().try_for_each(|(at, value)| opened.set(*at, value, 0)).map_err(failed)?;
        for (name, words) in [(maps::PORTS, &overlay.ports), (maps::KNOWN, &overlay.known)] {
            let mut array: Array<&mut MapData, u64> = self.map(name)?;
            words.iter().try_for_each(|(at, word)| array.set(*at, word, 0)).map_err(failed)?;
        }
        // Nobody is to be told of flows.
        let mut sweeper: Array<&mut MapData, u32> = self.map(maps::SWEEPER)?;
        sweeper.set(0, 1, 0).map_err(failed)
    }

    fn replace<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
        entries: impl Iterator<Item = (K, V)>,
    ) -> Result<(), Error> {
        let failed = |error| Error::ebpf(format!("write the copy of {name}"), error);
        let mut table: HashMap<&mut MapData, K, V> = self.map(name)?;
        let old: Vec<K> = table.keys().filter_map(Result::ok).collect();
        old.iter().try_for_each(|key| table.remove(key)).map_err(failed)?;
        entries.into_iter().try_for_each(|(key, value)| table.insert(key, value, 0)).map_err(failed)
    }

    /// Runs a program on a packet.
    pub(super) fn run(&mut self, name: &'static str, sent: &Sent<'_>) -> Result<Ran, Error> {
        let failed = |error| Error::ebpf(format!("run {name} on a packet"), error);
        let before = self.counted()?;
        let fresh = !self.loaded.contains(&name);
        let program = traffic_program(&mut self.ebpf, name)?;
        if fresh {
            program.load().map_err(|error| Error::ebpf(format!("load the program {name}"), error))?;
            self.loaded.push(name);
        }
        let mut context = [0_u8; LINK + 4];
        for (at, value) in [(MARK, sent.mark), (CAME_BY, sent.came_by), (LINK, sent.link)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let (mut frame, mut after) = (vec![0; sent.frame.len() + ROOM], [0; CONTEXT]);
        let mut options = TestRunOptions::new();
        options.data_in = Some(sent.frame);
        options.data_out = Some(&mut frame);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut after);
        let result = traffic_program(&mut self.ebpf, name)?.test_run(options).map_err(failed)?;
        frame.truncate(result.data_size_out as usize);
        let says = match result.return_value {
            SHOT => Says::Drop,
            REDIRECT => Says::Redirect,
            _ => Says::Pass,
        };
        let mark = u32::from_ne_bytes([after[MARK], after[MARK + 1], after[MARK + 2], after[MARK + 3]]);
        let counts = self.counted()?.into_iter().zip(before);
        let reasons = Reason::ALL.iter().zip(counts).filter(|(_, (now, then))| now > then).map(|(reason, _)| *reason);
        Ok(Ran { says, frame, mark, reasons: reasons.collect() })
    }

    fn counted(&mut self) -> Result<Vec<u64>, Error> {
        let reasons: PerCpuArray<&mut MapData, u64> = self.map(maps::REASONS)?;
        let total = |index| reasons.get(&index, 0).map(|values| values.iter().sum());
        let all: Result<Vec<u64>, _> = (0..Reason::COUNT).map(total).collect();
        all.map_err(|error| Error::ebpf("read the copies", error))
    }

    /// The ways that programs asked the kernel's routes for, by their packets' ends.
    pub(super) fn exits(&mut self) -> Result<Vec<(FlowKey, Exit)>, Error> {
        let paths: PerCpuArray<&mut MapData, [u8; size_of::<Path>()]> = self.map("paths")?;
        let mut found = Vec::new();
        for place in 0..PATHS {
            let all = paths.get(&place, 0).map_err(|error| Error::ebpf("read the copies", error))?;
            found.extend(all.iter().filter(|bytes| bytes.iter().any(|byte| *byte != 0)).map(path));
        }
        Ok(found)
    }

    /// Is the attached program of that name the same as ours? `None` when it cannot be told.
    pub(super) fn is_same(&mut self, name: &'static str, attached: u32) -> Option<bool> {
        let own = traffic_program(&mut self.ebpf, name).ok()?.fd().ok()?;
        let tags =
            [sys::program_tag(own.as_fd()), sys::open_program(attached).and_then(|fd| sys::program_tag(fd.as_fd()))];
        let [Ok(own), Ok(attached)] = tags else { return None };
        Some(own == attached)
    }
}

/// A way as it stands in the map: its connection first.
fn path(bytes: &[u8; size_of::<Path>()]) -> (FlowKey, Exit) {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let address = |at: usize| Address { words: [0, 4, 8, 12].map(|more| word(at + more)) };
    let key = FlowKey {
        source: address(std::mem::offset_of!(FlowKey, source)),
        destination: address(std::mem::offset_of!(FlowKey, destination)),
        source_port: half(std::mem::offset_of!(FlowKey, source_port)),
        destination_port: half(std::mem::offset_of!(FlowKey, destination_port)),
        protocol: bytes[std::mem::offset_of!(FlowKey, protocol)],
        kind: bytes[std::mem::offset_of!(FlowKey, kind)],
        reserved: 0,
    };
    let at = std::mem::offset_of!(Path, exit);
    let [link, mtu, family, a, b, c, d] = std::array::from_fn(|number| word(at + 4 * number));
    (key, Exit { link, mtu, family, neighbour: [a, b, c, d] })
}
