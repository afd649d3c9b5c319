//! The maps, under the names of `sluice_ebpf_common::maps`. User space pins them all.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::helpers::bpf_map_lookup_elem;
use aya_ebpf::macros::btf_map;
use sluice_ebpf_common::cache::{Bucket4, Bucket6, Uplink};
use sluice_ebpf_common::lost::LostFields;
use sluice_ebpf_common::maps::mode;
use sluice_ebpf_common::opened::Opened;
use sluice_ebpf_common::probe::{ProbeFigures, ProbeKey, Watched};
use sluice_ebpf_common::stream::{Telling, Told, bucket};
use sluice_ebpf_common::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, Counters, Event, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Guard, Owner, Pace, PodLink, RangeKey, Reason, RuleKey, SLAB_LINE,
    ServiceName, Settings, SocketState, SourceKey, known, limits, opened, ports,
};
use sluice_packet::{Begun, Desk, Judging, Path, Scratch, Trail};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
const MAPPED: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "frontends")]
pub static FRONTENDS: HashMap<FrontendKey, Frontend, { limits::FRONTENDS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { limits::BACKENDS as usize }> = Array::new();

#[btf_map(name = "slab")]
pub static SLAB: Array<[u32; SLAB_LINE], { limits::SLAB as usize / SLAB_LINE }, MAPPED> = Array::new();

/// For user space only: no program reads it.
#[btf_map(name = "names")]
pub static NAMES: HashMap<u32, ServiceName, { limits::SERVICES as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "affinities")]
pub static AFFINITIES: LruHashMap<AffinityKey, Affinity, { limits::AFFINITIES as usize }> = LruHashMap::new();

#[btf_map(name = "ranges")]
pub static RANGES: LpmTrie<RangeKey, u32, { limits::RANGES as usize }> = LpmTrie::new();

#[btf_map(name = "flows")]
pub static FLOWS: HashMap<FlowKey, Flow, { limits::FLOWS as usize }> = HashMap::new();

/// While the flow map is replaced by another one: the other one. Not pinned under this name.
#[btf_map(name = "flows_beside")]
pub static FLOWS_BESIDE: HashMap<FlowKey, Flow, 1> = HashMap::new();

/// A `maps::mode` that the loader writes. The kernel removes what depends on another one.
#[unsafe(no_mangle)]
static MODE: u8 = mode::NORMAL;

#[inline(always)]
fn mode() -> u8 {
    // SAFETY: a byte of the object's constants, which the loader may have written before the kernel saw it.
    unsafe { core::ptr::read_volatile(&raw const MODE) }
}

/// Always 0, which the verifier does not know: it takes what stands in a map that can be written for anything.
#[unsafe(no_mangle)]
static mut NOTHING: u32 = 0;

/// See [`sluice_packet::Maps::hide`].
#[inline(always)]
pub fn hide(value: u32) -> u32 {
    // SAFETY: a word of the object's own, which nobody writes.
    value ^ unsafe { core::ptr::read_volatile(&raw const NOTHING) }
}

/// The one value of an array, by a key that is not on the stack: a word there would be one more thing by which the verifier
/// tells ways through a program apart.
#[inline(always)]
pub fn only<T, M>(map: *const M) -> Option<NonNull<T>> {
    // SAFETY: the map is one of the object's, and the key a word of it.
    NonNull::new(unsafe { bpf_map_lookup_elem(map.cast_mut().cast(), (&raw const NOTHING).cast()) }.cast())
}

/// Do flows stand in two maps?
#[inline(always)]
pub fn beside() -> bool {
    mode() == mode::BESIDE
}

/// May no flow be made?
#[inline(always)]
pub fn hold() -> bool {
    mode() == mode::HOLD
}
#[btf_map(name = "opened")]
pub static OPENED: Array<Opened, { opened::PLACES as usize }, MAPPED> = Array::new();

#[btf_map(name = "places")]
pub static PLACES: Array<u64, { opened::WORDS as usize }, MAPPED> = Array::new();

#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { limits::FRAGMENTS as usize }> = LruHashMap::new();
#[btf_map(name = "ports")]
pub static PORTS: Array<u64, { (ports::ROWS * ports::ROW) as usize }, MAPPED> = Array::new();

#[btf_map(name = "known")]
pub static KNOWN: Array<u64, { known::WORDS as usize }, MAPPED> = Array::new();

#[btf_map(name = "answers")]
pub static ANSWERS: Array<u32, { limits::ANSWERS as usize }> = Array::new();

#[btf_map(name = "locals")]
pub static LOCALS: HashMap<Address, u32, { limits::LOCALS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "nodes")]
pub static NODES: HashMap<Address, u32, { limits::NODES as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "sources")]
pub static SOURCES: HashMap<SourceKey, Address, { limits::LOCALS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "namespaces")]
pub static NAMESPACES: HashMap<u64, u32, { limits::PODS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "owners")]
pub static OWNERS: Array<Owner, { limits::OWNERS as usize }> = Array::new();

#[btf_map(name = "pods")]
pub static PODS: HashMap<Address, PodLink, { limits::POD_ADDRESSES as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "guards")]
pub static GUARDS: HashMap<u32, Guard, { limits::PODS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "peers")]
pub static PEERS: HashMap<Address, u32, { limits::PEERS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "blocks")]
pub static BLOCKS: LpmTrie<Address, u32, { limits::BLOCKS as usize }> = LpmTrie::new();

#[btf_map(name = "rules")]
pub static RULES: LpmTrie<RuleKey, u32, { limits::RULES as usize }> = LpmTrie::new();

#[btf_map(name = "allowed")]
pub static ALLOWED: LruHashMap<AllowedKey, Allowed, { limits::ALLOWED as usize }> = LruHashMap::new();

#[btf_map(name = "paced")]
pub static PACED: HashMap<u32, u32, { limits::PODS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "paces")]
pub static PACES: Array<Pace, { limits::PACES as usize }> = Array::new();

/// The loader makes it as large as the processors need; the mapping puts records on cache lines.
#[btf_map(name = "cache4")]
pub static CACHE4: Array<Bucket4, { limits::CACHE_BUCKETS as usize }, MAPPED> = Array::new();

#[btf_map(name = "cache6")]
pub static CACHE6: Array<Bucket6, { limits::CACHE_BUCKETS as usize }, MAPPED> = Array::new();

#[btf_map(name = "generations")]
pub static GENERATIONS: Array<u32, { limits::SERVICES as usize }> = Array::new();

#[btf_map(name = "uplinks")]
pub static UPLINKS: HashMap<u32, Uplink, { limits::LOCALS as usize }, ON_DEMAND> = HashMap::new();

#[btf_map(name = "settings")]
pub static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map(name = "home")]
pub static HOME: Array<u32, 1> = Array::new();

#[btf_map(name = "sweeper")]
pub static SWEEPER: Array<u32, 1> = Array::new();

/// The loader makes room for every processor.
#[btf_map(name = "service_counters")]
pub static SERVICE_COUNTERS: Array<Counters, { limits::SERVICES as usize }, MAPPED> = Array::new();

#[btf_map(name = "backend_counters")]
pub static BACKEND_COUNTERS: Array<Counters, { limits::BACKENDS as usize }, MAPPED> = Array::new();

/// This processor's own, for the length of one program; not pinned.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// As the scratch.
#[btf_map(name = "desk")]
pub static DESK: PerCpuArray<Desk, 1> = PerCpuArray::new();

/// As the desk.
#[btf_map(name = "judging")]
pub static JUDGING: PerCpuArray<Judging, 1> = PerCpuArray::new();

/// As the desk.
#[btf_map(name = "trails")]
pub static TRAILS: PerCpuArray<Trail, { limits::TRAILS as usize }> = PerCpuArray::new();

/// As the desk.
#[btf_map(name = "begun")]
pub static BEGUN: PerCpuArray<Begun, { limits::BEGUN as usize }> = PerCpuArray::new();

/// As the desk.
#[btf_map(name = "paths")]
pub static PATHS: PerCpuArray<Path, { sluice_packet::PATHS as usize }> = PerCpuArray::new();

/// As the scratch.
#[btf_map(name = "question")]
pub static QUESTION: PerCpuArray<bpf_fib_lookup, 1> = PerCpuArray::new();

#[btf_map(name = "reasons")]
pub static REASONS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();

#[btf_map(name = "lost")]
pub static LOST: PerCpuArray<u64, { limits::KERNEL_REASONS as usize }> = PerCpuArray::new();

#[btf_map(name = "seats")]
pub static SEATS: Array<ProbeKey, { limits::FIGURES as usize }, MAPPED> = Array::new();

#[btf_map(name = "measured")]
pub static MEASURED: PerCpuArray<ProbeFigures, { limits::FIGURES as usize }> = PerCpuArray::new();

/// What sockets remember for the probes; not pinned, as nobody else asks.
#[btf_map(name = "watched")]
pub static WATCHED: SkStorage<Watched> = SkStorage::new();

#[btf_map(name = "events")]
pub static EVENTS: RingBuf<Event, { limits::EVENTS as usize }> = RingBuf::new();

#[btf_map(name = "stream")]
pub static STREAM: RingBuf<Told, { limits::STREAM as usize }> = RingBuf::new();

#[btf_map(name = "telling")]
pub static TELLING: PerCpuArray<Telling, { bucket::COUNT as usize }> = PerCpuArray::new();

#[btf_map(name = "telling_lost")]
pub static TELLING_LOST: PerCpuArray<Telling, { limits::KERNEL_REASONS as usize }> = PerCpuArray::new();

/// The loader writes it before the program that reads it is attached.
#[btf_map(name = "lost_fields")]
pub static LOST_FIELDS: Array<LostFields, 1> = Array::new();

#[btf_map(name = "sockets")]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();
