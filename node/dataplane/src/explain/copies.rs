//! The packet programs once more, on the live tables and on copies of those that programs write: what runs here leaves no flow,
//! takes no port, moves no counter.

use std::os::fd::AsFd;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::{Ebpf, TestRun, TestRunOptions, TestRunResult};
use sluice_ebpf_common::cache::{Bucket4, Bucket6};
use sluice_ebpf_common::opened::{self, Opened};
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Flow, FlowKey, FragmentKey, FragmentPorts, Reason, Settings,
    limits, maps,
};
use sluice_packet::{Begun, Desk, Exit, PATHS, Path, Route, Trail};

use super::live::Live;
use super::model::Overlay;
use crate::attach::traffic_program;
use crate::pins::Pins;
use crate::store::processors;
use crate::{Error, object, sys, wire};

/// Tables that no program of a packet writes: the copies look at the live ones.
const SHARED: [&str; 17] = [
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
    maps::HOME,
];

/// Sizes of the copies: room for one packet's entries. What counts is not copied.
const SIZES: [(&str, u32); 10] = [
    (maps::FLOWS, FLOWS),
    (maps::AFFINITIES, 4_096),
    (maps::FRAGMENTS, 4_096),
    (maps::ALLOWED, 4_096),
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

/// `struct xdp_md`, and places in it.
const XDP_CONTEXT: usize = 24;
const XDP_END: usize = 4;
const XDP_LINK: usize = 12;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

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
    /// How often they were made to hold something else.
    seeds: u32,
}

impl Copies {
    /// Loads the object beside the live maps.
    pub(super) fn load(pins: &Pins) -> Result<Copies, Error> {
        // A bucket of the cache for each processor.
        let processors = processors()? as u32;
        let sizes: Vec<(&str, u32)> =
            SIZES.into_iter().chain([maps::CACHE4, maps::CACHE6].map(|name| (name, processors))).collect();
        Ok(Copies { ebpf: object::load_beside(|name| pins.map(name), &SHARED, &sizes)?, loaded: Vec::new(), seeds: 0 })
    }

    /// A typed map of the copies.
    fn map<'a, T: TryFrom<&'a mut Map, Error = MapError>>(&'a mut self, name: &str) -> Result<T, Error> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| Error::Kernel(format!("the object has no map {name}")))?;
        T::try_from(map).map_err(|error| Error::ebpf(format!("use the copy of {name}"), error))
    }

    /// Makes the copies hold what is known here, and nothing else. A full flow table has room for nothing else, either.
    pub(super) fn seed(&mut self, overlay: &Overlay, live: &Live) -> Result<(), Error> {
        self.seeds += 1;
        let seeds = self.seeds;
        let failed = |error| Error::ebpf("write the copies", error);
        let flows = overlay.flows.iter().filter_map(|(key, flow)| Some((*key, (*flow)?)));
        self.replace::<FlowKey, Flow>(maps::FLOWS, flows)?;
        if live.was_full() {
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
        // Nobody follows, the cache is small, and what programs kept of an earlier seed's packets is of another time.
        let mut settings: Array<&mut MapData, Settings> = self.map(maps::SETTINGS)?;
        let flags = live.settings.flags & !Settings::FOLLOWED;
        let epoch = live.settings.epoch.wrapping_add(seeds);
        settings.set(0, Settings { cache_mask: 0, flags, epoch, ..live.settings }, 0).map_err(failed)?;
        // Nobody is to be told of flows.
        let mut sweeper: Array<&mut MapData, u32> = self.map(maps::SWEEPER)?;
        sweeper.set(0, 1, 0).map_err(failed)
    }

    /// The same for what programs before the stack keep beside.
    pub(super) fn seed_early(&mut self, overlay: &Overlay, live: &Live) -> Result<(), Error> {
        let failed = |error| Error::ebpf("write the copies", error);
        self.clear::<{ size_of::<Desk>() }>("desk", 1)?;
        self.clear::<{ size_of::<Begun>() }>("begun", limits::BEGUN)?;
        self.clear::<{ size_of::<Trail>() }>("trails", limits::TRAILS)?;
        let processors = processors()? as u32;
        let mut cache: Array<&mut MapData, [u8; size_of::<Bucket4>()]> = self.map(maps::CACHE4)?;
        (0..processors).try_for_each(|at| cache.set(at, [0; _], 0)).map_err(failed)?;
        let mut cache: Array<&mut MapData, [u8; size_of::<Bucket6>()]> = self.map(maps::CACHE6)?;
        (0..processors).try_for_each(|at| cache.set(at, [0; _], 0)).map_err(failed)?;
        let mut places: Array<&mut MapData, u64> = self.map(maps::PLACES)?;
        (0..opened::WORDS)
            .map(|word| (word, overlay.places.get(&word).copied().or_else(|| live.places(word)).unwrap_or(0)))
            .try_for_each(|(word, bits)| places.set(word, bits, 0))
            .map_err(failed)
    }

    fn clear<const N: usize>(&mut self, name: &str, entries: u32) -> Result<(), Error> {
        let failed = |error| Error::ebpf(format!("write the copy of {name}"), error);
        let mut map: PerCpuArray<&mut MapData, [u8; N]> = self.map(name)?;
        let processors = processors()?;
        (0..entries).try_for_each(|at| {
            let nothing = PerCpuValues::try_from(vec![[0; N]; processors])
                .map_err(|error| Error::system("write the copies", error))?;
            map.set(at, nothing, 0).map_err(failed)
        })
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
        let before = self.counted()?;
        let (says, frame, mark) =
            if name == wire::PROGRAM { self.run_in_driver(sent)? } else { self.run_on_link(name, sent)? };
        let counts = self.counted()?.into_iter().zip(before);
        let reasons = Reason::ALL.iter().zip(counts).filter(|(_, (now, then))| now > then).map(|(reason, _)| *reason);
        Ok(Ran { says, frame, mark, reasons: reasons.collect() })
    }

    /// Is it the first time that a program is asked for?
    fn is_new(&mut self, name: &'static str) -> bool {
        let fresh = !self.loaded.contains(&name);
        if fresh {
            self.loaded.push(name);
        }
        fresh
    }

    fn run_on_link(&mut self, name: &'static str, sent: &Sent<'_>) -> Result<(Says, Vec<u8>, u32), Error> {
        let fresh = self.is_new(name);
        let program = traffic_program(&mut self.ebpf, name)?;
        if fresh {
            program.load().map_err(|error| Error::ebpf(format!("load the program {name}"), error))?;
        }
        let mut context = [0_u8; LINK + 4];
        for (at, value) in [(MARK, sent.mark), (CAME_BY, sent.came_by), (LINK, sent.link)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let (frame, result, after) = test(program, name, sent.frame, &context)?;
        let says = match result {
            SHOT => Says::Drop,
            REDIRECT => Says::Redirect,
            _ => Says::Pass,
        };
        Ok((says, frame, u32::from_ne_bytes([after[MARK], after[MARK + 1], after[MARK + 2], after[MARK + 3]])))
    }

    fn run_in_driver(&mut self, sent: &Sent<'_>) -> Result<(Says, Vec<u8>, u32), Error> {
        let name = wire::PROGRAM;
        let fresh = self.is_new(name);
        let program = wire::program(&mut self.ebpf)
            .ok_or_else(|| Error::Kernel(format!("the embedded object has no program {name}")))?;
        if fresh {
            program.load().map_err(|error| Error::ebpf(format!("load the program {name}"), error))?;
        }
        let mut context = [0_u8; XDP_CONTEXT];
        for (at, value) in [(XDP_END, sent.frame.len() as u32), (XDP_LINK, sent.link)] {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let (frame, result, _) = test(program, name, sent.frame, &context)?;
        let says = match result {
            XDP_PASS => Says::Pass,
            XDP_TX | XDP_REDIRECT => Says::Redirect,
            _ => Says::Drop,
        };
        Ok((says, frame, sent.mark))
    }

    /// The way out that a program before the stack found; of link 0 when it asked for none, or in vain.
    pub(super) fn route(&mut self) -> Result<Route, Error> {
        let desk: PerCpuArray<&mut MapData, [u8; size_of::<Desk>()]> = self.map("desk")?;
        let all = desk.get(&0, 0).map_err(|error| Error::ebpf("read the copies", error))?;
        Ok(all.iter().map(route).find(|route| route.link != 0).unwrap_or_default())
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
            found.extend(all.iter().filter(|bytes| bytes.iter().any(|byte| *byte != 0)).filter_map(path));
        }
        Ok(found)
    }

    /// Is the attached program of that name the same as ours? `None` when it cannot be told.
    pub(super) fn is_same(&mut self, name: &'static str, attached: u32) -> Option<bool> {
        let own = self.ebpf.program(name)?.fd().ok()?;
        let tags =
            [sys::program_tag(own.as_fd()), sys::open_program(attached).and_then(|fd| sys::program_tag(fd.as_fd()))];
        let [Ok(own), Ok(attached)] = tags else { return None };
        Some(own == attached)
    }
}

/// Runs a program on a frame: what became of it, what the program returned, and its context afterwards.
fn test(
    program: &mut impl for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
    name: &str,
    sent: &[u8],
    context: &[u8],
) -> Result<(Vec<u8>, u32, [u8; CONTEXT]), Error> {
    let (mut frame, mut after) = (vec![0; sent.len() + ROOM], [0; CONTEXT]);
    let mut options = TestRunOptions::new();
    options.data_in = Some(sent);
    options.data_out = Some(&mut frame);
    options.ctx_in = Some(context);
    options.ctx_out = Some(&mut after);
    let result = program.test_run(options).map_err(|error| Error::ebpf(format!("run {name} on a packet"), error))?;
    frame.truncate(result.data_size_out as usize);
    Ok((frame, result.return_value, after))
}

/// A way out as it stands on the desk.
fn route(desk: &[u8; size_of::<Desk>()]) -> Route {
    let at = |field: usize| Desk::ROUTE + field;
    let word = |at: usize| u32::from_ne_bytes([desk[at], desk[at + 1], desk[at + 2], desk[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([desk[at], desk[at + 1]]);
    let words = |field: usize| move |more: usize| word(at(field) + more);
    Route {
        link: half(at(std::mem::offset_of!(Route, link))),
        mtu: half(at(std::mem::offset_of!(Route, mtu))),
        ethernet: [0, 4, 8].map(words(std::mem::offset_of!(Route, ethernet))),
        device: word(at(std::mem::offset_of!(Route, device))),
        own: Address { words: [0, 4, 8, 12].map(words(std::mem::offset_of!(Route, own))) },
    }
}

/// A way to the outside as it stands in the map: its connection first.
fn path(bytes: &[u8; size_of::<Path>()]) -> Option<(FlowKey, Exit)> {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if word(std::mem::offset_of!(Path, decided)) == Path::INTO {
        return None;
    }
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
    Some((key, Exit { link, mtu, family, neighbour: [a, b, c, d] }))
}
