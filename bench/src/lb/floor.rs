//! The bench's own object: the wrapper programs, and the floors that costs are compared with.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use aya::{
    Btf, Ebpf, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{BtfTracePoint, ProgramFd, SchedClassifier, Xdp, tp_btf::BtfTracePointLinkId},
};
use sluice_ebpf_common::bench::{FLOOR_ENTRIES, FLOOR_KEY, Round};

use super::cases::Kind;

/// What is looked at by name in the object, for a kind of program.
struct Names {
    wrapper: &'static str,
    target: &'static str,
    /// Empty, growing, hash lookup, LRU lookup.
    floors: [&'static str; 4],
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Tc, Kind::Xdp];

    fn names(self) -> Names {
        match self {
            Kind::Tc => {
                Names { wrapper: "wrap_tc", target: "target_tc", floors: ["empty_tc", "grow_tc", "hash_tc", "lru_tc"] }
            }
            Kind::Xdp => Names {
                wrapper: "wrap_xdp",
                target: "target_xdp",
                floors: ["empty_xdp", "grow_xdp", "hash_xdp", "lru_xdp"],
            },
        }
    }
}

/// The floors of a kind.
pub(super) struct Floors {
    pub(super) empty: ProgramFd,
    pub(super) grow: ProgramFd,
    pub(super) hash: ProgramFd,
    pub(super) lru: ProgramFd,
}

/// What one call to the kernel said.
pub(super) struct Run {
    pub(super) verdict: u32,
    /// Nanoseconds per packet, the wrapper's included.
    pub(super) time: f64,
    /// The last packet.
    pub(super) frame: Vec<u8>,
}

/// The object that `cargo xtask ebpf` makes (`SLUICE_BENCH_OBJECT` names another).
fn object() -> Result<(PathBuf, Ebpf)> {
    let path = std::env::var_os("SLUICE_BENCH_OBJECT")
        .map_or_else(|| sluice_e2e::target().join("ebpf/sluice-ebpf-bench"), PathBuf::from);
    if !path.exists() {
        bail!("{} is missing: `cargo xtask ebpf` makes it", path.display());
    }
    let ebpf = Ebpf::load_file(&path).with_context(|| format!("load {}", path.display()))?;
    Ok((path, ebpf))
}

/// An empty program at each change of a connection's state: what the kernel's trace point costs, whatever is done there.
pub(super) struct StateFloor(Ebpf);

impl StateFloor {
    pub(super) fn load() -> Result<StateFloor> {
        let mut floor = StateFloor(object()?.1);
        floor.program()?.load("inet_sock_set_state", &Btf::from_sys_fs()?).context("load empty_state")?;
        Ok(floor)
    }

    fn program(&mut self) -> Result<&mut BtfTracePoint> {
        Ok(self.0.program_mut("empty_state").context("the bench's object has no empty_state")?.try_into()?)
    }

    pub(super) fn attach(&mut self) -> Result<BtfTracePointLinkId> {
        self.program()?.attach().context("attach empty_state")
    }

    pub(super) fn detach(&mut self, link: BtfTracePointLinkId) -> Result<()> {
        self.program()?.detach(link).context("detach empty_state")
    }
}

pub(super) struct Bench {
    ebpf: Ebpf,
    round: Array<MapData, Round>,
    /// Where an XDP program's packets come in.
    link: u32,
}

impl Bench {
    /// Loads what packets need. XDP programs see packets come in on `link`, whose driver has to run one.
    pub(super) fn load(link: u32) -> Result<Bench> {
        let (path, mut ebpf) = object()?;
        for kind in Kind::ALL {
            let names = kind.names();
            for name in [names.wrapper].into_iter().chain(names.floors) {
                let program = ebpf.program_mut(name).with_context(|| format!("{} has no {name}", path.display()))?;
                match kind {
                    Kind::Tc => <&mut SchedClassifier>::try_from(program)?.load(),
                    Kind::Xdp => <&mut Xdp>::try_from(program)?.load(),
                }
                .with_context(|| format!("load {name}"))?;
            }
        }
        for name in ["floor_hash", "floor_lru"] {
            let mut map: HashMap<_, [u32; 4], u64> =
                HashMap::try_from(ebpf.map_mut(name).with_context(|| format!("{} has no {name}", path.display()))?)?;
            // Half full; the key that is looked up comes last, so that an LRU keeps it.
            for entry in 0..FLOOR_ENTRIES / 2 {
                map.insert([entry, 0, 0, 0], 0, 0)?;
            }
            map.insert(FLOOR_KEY, 0, 0)?;
        }
        let round = Array::try_from(ebpf.take_map("round").context("the object has no round")?)?;
        Ok(Bench { ebpf, round, link })
    }

    pub(super) fn floors(&self, kind: Kind) -> Result<Floors> {
        let [empty, grow, hash, lru] = kind.names().floors.map(|name| -> Result<ProgramFd> {
            Ok(self.ebpf.program(name).context("a floor is loaded")?.fd()?.try_clone()?)
        });
        Ok(Floors { empty: empty?, grow: grow?, hash: hash?, lru: lru? })
    }

    /// What the next runs restore.
    pub(super) fn set(&mut self, round: &Round) -> Result<()> {
        self.round.set(0, round, 0).context("tell the wrapper what to restore")
    }

    /// Runs a program on `repeat` packets.
    pub(super) fn run(&mut self, kind: Kind, target: &ProgramFd, frame: &[u8], repeat: u32) -> Result<Run> {
        let names = kind.names();
        let mut targets = ProgramArray::try_from(self.ebpf.map_mut(names.target).context("the object has targets")?)?;
        targets.set(0, target, 0).context("put the program behind the wrapper")?;
        let mut out = vec![0; frame.len() + 128];
        let mut options = TestRunOptions::new();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(frame.len())?;
        let context: Vec<u8> = [0, length, 0, self.link, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.repeat = repeat;
        let program = self.ebpf.program_mut(names.wrapper).context("the wrapper is loaded")?;
        let result = match kind {
            Kind::Tc => <&mut SchedClassifier>::try_from(program)?.test_run(options),
            Kind::Xdp => {
                options.ctx_in = Some(&context);
                <&mut Xdp>::try_from(program)?.test_run(options)
            }
        }
        .context("run the program on packets (BPF_PROG_TEST_RUN)")?;
        out.truncate(result.data_size_out as usize);
        Ok(Run { verdict: result.return_value, time: result.duration.as_secs_f64() * 1e9, frame: out })
    }
}
