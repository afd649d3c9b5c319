//! The programs on the trace points of TCP: loading them with the offsets of the running kernel's fields, and reading what they
//! count. A kernel that lacks something loses that probe, with a sentence, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf};
use sluice_ebpf_common::maps;
use sluice_ebpf_common::probe::{Durations, ProbeFields, ProbeFigures, ProbeKey, seat};
use sluice_metrics::Text;

use crate::dataplane::Inner;
use crate::limits::SEATS_GOING;
use crate::metrics::catalog;
use crate::pins::Pins;
use crate::plan::Write;
use crate::store::{descriptor, processors, typed};
use crate::{Dataplane, Error, btf, resize, sys};

/// Programs and their trace points.
const PROGRAMS: [(&str, &str); 4] = [
    ("tcp_state", "inet_sock_set_state"),
    ("tcp_retransmit", "tcp_retransmit_skb"),
    ("tcp_reset_received", "tcp_receive_reset"),
    ("tcp_reset_sent", "tcp_send_reset"),
];

/// The members that the programs read, in the order of [`ProbeFields`].
const FIELDS: [(&str, &str); 16] = [
    ("sock_common", "skc_net"),
    ("net", "net_cookie"),
    ("sock_common", "skc_family"),
    ("sock_common", "skc_dport"),
    ("sock_common", "skc_daddr"),
    ("sock_common", "skc_v6_daddr"),
    ("tcp_sock", "srtt_us"),
    ("tcp_sock", "bytes_acked"),
    ("tcp_sock", "bytes_received"),
    ("tcp_sock", "total_retrans"),
    ("sock_common", "skc_rcv_saddr"),
    ("sock_common", "skc_v6_rcv_saddr"),
    ("inet_sock", "inet_sport"),
    ("sock_common", "skc_state"),
    ("tcp_sock", "retrans_stamp"),
    ("sock", "sk_max_ack_backlog"),
];

/// A program at work.
struct Probe {
    name: &'static str,
    program: OwnedFd,
    _link: BtfTracePointLink,
}

/// The programs at work, for as long as this lives.
#[derive(Default)]
pub(crate) struct Probes {
    running: Vec<Probe>,
    /// Why some are not.
    missing: Vec<String>,
}

impl Probes {
    /// Do sockets tell of their connections?
    pub(crate) fn tell_connections(&self) -> bool {
        self.running.iter().any(|probe| probe.name == PROGRAMS[0].0)
    }

    /// Says which programs run, and how often the kernel left one out.
    pub(crate) fn write(&self, text: &mut Text) {
        let mut series = text.metric(&catalog::PROBES);
        for (name, _) in PROGRAMS {
            series.add(&[name], u8::from(self.running.iter().any(|probe| probe.name == name)));
        }
        let mut series = text.metric(&catalog::PROBE_MISSES);
        for probe in &self.running {
            series.add(&[probe.name], sys::recursion_misses(probe.program.as_fd()).unwrap_or(0));
        }
    }
}

/// Where this kernel has what the programs read; found once.
pub(crate) fn fields() -> &'static Result<ProbeFields, String> {
    static FOUND: LazyLock<Result<ProbeFields, String>> = LazyLock::new(|| {
        let failed = |error: std::io::Error| format!("{}: {error}", btf::VMLINUX);
        fields_of(btf::offsets(&File::open(btf::VMLINUX).map_err(failed)?, FIELDS).map_err(failed)?)
    });
    &FOUND
}

fn fields_of(offsets: [Option<u32>; FIELDS.len()]) -> Result<ProbeFields, String> {
    let offsets = btf::all(&FIELDS, offsets)?;
    let [net, cookie, family, port, address4, address6, round_trip, acknowledged, received, ..] = offsets;
    let [.., sent_again, own4, own6, own_port, state, first_sent, backlog] = offsets;
    Ok(ProbeFields {
        net,
        cookie,
        family,
        port,
        address4,
        address6,
        round_trip,
        acknowledged,
        received,
        sent_again,
        own4,
        own6,
        own_port,
        state,
        first_sent,
        backlog,
    })
}

/// Puts every program to work that this kernel takes.
fn attach(ebpf: &mut Ebpf, programs: &[(&'static str, &str)]) -> Probes {
    let mut probes = Probes::default();
    if let Err(why) = fields() {
        probes.missing.push(format!("TCP connections are not measured: {why}"));
        return probes;
    }
    let types = match Btf::from_sys_fs() {
        Ok(types) => types,
        Err(error) => {
            probes.missing.push(format!("TCP connections are not measured: the kernel's types: {error}"));
            return probes;
        }
    };
    for (name, point) in programs {
        match attach_one(ebpf, name, point, &types) {
            Ok(probe) => probes.running.push(probe),
            Err(why) => probes.missing.push(format!("the probe {name} (trace point {point}) does not run: {why}")),
        }
    }
    probes
}

fn attach_one(ebpf: &mut Ebpf, name: &'static str, point: &str, types: &Btf) -> Result<Probe, String> {
    let program: Option<&mut BtfTracePoint> = ebpf.program_mut(name).and_then(|found| found.try_into().ok());
    let program = program.ok_or("the embedded object has no such program")?;
    match program.load(point, types) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(format!("the kernel refused it: {}", Error::ebpf("load", error))),
    }
    let link = program.attach().and_then(|id| program.take_link(id));
    let link = link.map_err(|error| format!("the kernel refused to attach it: {}", Error::ebpf("attach", error)))?;
    let program = program.fd().map_err(|error| error.to_string())?.as_fd().try_clone_to_owned();
    Ok(Probe { name, program: program.map_err(|error| error.to_string())?, _link: link })
}

impl Dataplane {
    /// As [`Self::probe_sockets`], on a thread where it may block; what is missing is logged.
    pub(crate) async fn probe_aside(&self) -> Result<(), Error> {
        let dataplane = self.clone();
        let missing = tokio::task::spawn_blocking(move || dataplane.probe_sockets()).await;
        match missing {
            Ok(Ok(missing)) => missing.iter().for_each(|what| tracing::warn!("{what}")),
            Ok(Err(error)) => tracing::warn!(%error, "TCP connections are not measured"),
            Err(error) => tracing::error!(%error, "TCP connections are not measured"),
        }
        Ok(())
    }

    /// Measures no TCP connections from now on.
    pub fn leave_sockets(&self) {
        *self.inner.probes.lock() = Probes::default();
    }

    /// Measures TCP connections from now on, for as long as this process runs. Returns sentences about what this kernel cannot
    /// measure. Reads the kernel's type information, which takes some time: call it where that is allowed.
    pub fn probe_sockets(&self) -> Result<Vec<String>, Error> {
        let mut seats = seats(&self.inner.pins)?;
        for (place, key) in [(seat::NODE, ProbeKey::NODE), (seat::REST, ProbeKey::REST)] {
            seats.set(place, key, 0).map_err(|error| Error::ebpf("write the seats of figures", error))?;
        }
        let probes = attach(&mut self.inner.ebpf.lock(), &PROGRAMS);
        sys::give_memory_back();
        let missing = probes.missing.clone();
        *self.inner.probes.lock() = probes;
        Ok(missing)
    }
}

fn seats(pins: &Pins) -> Result<Array<MapData, ProbeKey>, Error> {
    typed(pins, maps::SEATS)
}

fn measured(pins: &Pins) -> Result<PerCpuArray<MapData, ProbeFigures>, Error> {
    typed(pins, maps::MEASURED)
}

/// Seats that somebody has.
fn taken(pins: &Pins) -> Result<Vec<(u32, ProbeKey)>, Error> {
    let mut taken = Vec::new();
    sys::read_each(descriptor(&pins.map(maps::SEATS))?.as_fd(), |place: u32, key: ProbeKey| {
        if key != ProbeKey::NOBODY {
            taken.push((place, key));
        }
    })
    .map_err(|error| Error::system("read the seats of figures", error))?;
    Ok(taken)
}

/// What was counted, over all processors; nothing where the daemon that runs is of a build that had no such figures.
pub(crate) fn read(pins: &Pins) -> Result<BTreeMap<ProbeKey, ProbeFigures>, Error> {
    let mut all = BTreeMap::new();
    if !pins.map(maps::MEASURED).exists() && pins.map(maps::SETTINGS).exists() {
        return Ok(all);
    }
    let measured = measured(pins)?;
    for (place, key) in taken(pins)?.into_iter().filter(|(_, key)| *key != ProbeKey::GOING) {
        let values = measured.get(&place, 0).map_err(|error| Error::ebpf("read the figures", error))?;
        let figures: &mut ProbeFigures = all.entry(key).or_default();
        *figures = values.iter().fold(*figures, plus);
    }
    Ok(all)
}

impl Inner {
    /// Gives up the seats of ids that new service ports get.
    pub(crate) fn forget_services(&self, writes: &[Write]) -> Result<(), Error> {
        let new = |write: &Write| if let Write::Name(id, _) = write { Some(ProbeKey::of_service(*id)) } else { None };
        self.forget_figures(&writes.iter().filter_map(new).collect())
    }

    /// Gives up the seats of those that are no more: nobody counts there from now on. Others get the seats later, when there are
    /// many, as that takes a wait for programs that still count.
    pub(crate) fn forget_figures(&self, gone: &BTreeSet<ProbeKey>) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        // Two at a time would give up what the first one gave to others.
        let _alone = self.probes.lock();
        let failed = |error| Error::ebpf("give up seats of figures", error);
        let mut seats = seats(&self.pins)?;
        let mut going = Vec::new();
        for (place, key) in taken(&self.pins)? {
            if gone.contains(&key) {
                seats.set(place, ProbeKey::GOING, 0).map_err(failed)?;
            }
            if gone.contains(&key) || key == ProbeKey::GOING {
                going.push(place);
            }
        }
        if going.len() < SEATS_GOING {
            return Ok(());
        }
        resize::grace()?;
        let mut measured = measured(&self.pins)?;
        for place in going {
            let nothing = PerCpuValues::try_from(vec![ProbeFigures::default(); processors()?])
                .map_err(|error| Error::system("give up seats of figures", error))?;
            measured.set(place, nothing, 0).map_err(failed)?;
            seats.set(place, ProbeKey::NOBODY, 0).map_err(failed)?;
        }
        Ok(())
    }
}

/// Adds up two sets of figures.
pub(crate) fn plus(a: ProbeFigures, b: &ProbeFigures) -> ProbeFigures {
    let durations = |a: &Durations, b: &Durations| Durations {
        counts: std::array::from_fn(|at| a.counts[at] + b.counts[at]),
        microseconds: a.microseconds + b.microseconds,
    };
    ProbeFigures {
        connect: durations(&a.connect, &b.connect),
        round_trip: durations(&a.round_trip, &b.round_trip),
        accepted: a.accepted + b.accepted,
        failed: a.failed + b.failed,
        unmeasured: a.unmeasured + b.unmeasured,
        retransmits: a.retransmits + b.retransmits,
        syn_retransmits: a.syn_retransmits + b.syn_retransmits,
        resets_received: a.resets_received + b.resets_received,
        resets_sent: a.resets_sent + b.resets_sent,
        sent_bytes: a.sent_bytes + b.sent_bytes,
        received_bytes: a.received_bytes + b.received_bytes,
        unplaced: a.unplaced + b.unplaced,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use sluice_ebpf_common::limits;
    use sluice_metrics::Text;

    use super::*;
    use crate::common::{PATIENCE, connect, isolated, service, tcp_server};
    use crate::model::Protocol;

    /// Until both ends of so many connections within the node are closed: one that closes later takes a seat again.
    fn closed(pins: &Pins, connections: u64) {
        let start = Instant::now();
        while read(pins).unwrap()[&ProbeKey::NODE].closed() < 2 * connections {
            assert!(start.elapsed() < PATIENCE, "{:?}", read(pins));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_full_map_is_told_and_nothing_is_lost() {
        isolated("probes::tests::a_full_map_is_told_and_nothing_is_lost", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            assert_eq!(dataplane.probe_sockets().unwrap(), Vec::<String>::new());
            let mut seats = seats(&dataplane.inner.pins).unwrap();
            let others: Vec<u32> = (0..limits::FIGURES).filter(|at| ![seat::NODE, seat::REST].contains(at)).collect();
            for place in others {
                seats.set(place, ProbeKey::of_pod(1_000_000 + place), 0).unwrap();
            }
            tcp_server("127.0.0.2:8001");
            dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &["127.0.0.2:8001"])).unwrap();
            for _ in 0..5 {
                connect("10.96.0.10:80").unwrap();
            }
            closed(&dataplane.inner.pins, 5);
            let all = read(&dataplane.inner.pins).unwrap();
            let connected = |key| all[&key].connect.counts.iter().sum::<u64>();
            // The node has its own seat whatever comes; the Service has none.
            assert_eq!((connected(ProbeKey::REST), connected(ProbeKey::NODE)), (5, 5));
            assert!(all[&ProbeKey::REST].unplaced >= 5, "{all:?}");
            // A look gives up the seats of pods that are no more.
            let mut text = Text::default();
            dataplane.write_metrics(&mut text).unwrap();
            assert_eq!(read(&dataplane.inner.pins).unwrap().len(), 2);
            connect("10.96.0.10:80").unwrap();
            let all = read(&dataplane.inner.pins).unwrap();
            assert!(all.keys().any(|key| key.service().is_some()), "{all:?}");
        });
    }

    #[test]
    fn who_comes_later_does_not_get_what_was_counted_before() {
        isolated("probes::tests::who_comes_later_does_not_get_what_was_counted_before", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            assert_eq!(dataplane.probe_sockets().unwrap(), Vec::<String>::new());
            tcp_server("127.0.0.2:8001");
            dataplane.apply(&service(Protocol::Tcp, "10.96.0.10:80", 0, &["127.0.0.2:8001"])).unwrap();
            connect("10.96.0.10:80").unwrap();
            let pins = &dataplane.inner.pins;
            let services = || -> Vec<(ProbeKey, u64)> {
                let all = read(pins).unwrap().into_iter().filter(|(key, _)| key.service().is_some());
                all.map(|(key, figures)| (key, figures.connect.counts.iter().sum())).collect()
            };
            closed(pins, 1);
            let [(key, 1)] = services()[..] else { panic!("{:?}", services()) };
            let again = [Write::Name(key.service().unwrap(), "shop/other:main".into())];
            dataplane.inner.forget_services(&again).unwrap();
            assert_eq!(services(), []);
            // It takes another seat, until the first one is free again.
            connect("10.96.0.10:80").unwrap();
            closed(pins, 2);
            assert_eq!(services(), [(key, 1)]);
            let mut free = seats(pins).unwrap();
            for place in 1_000..1_000 + SEATS_GOING as u32 {
                free.set(place, ProbeKey::of_pod(place), 0).unwrap();
            }
            dataplane.inner.forget_figures(&(1_000..2_000).map(ProbeKey::of_pod).chain([key]).collect()).unwrap();
            assert_eq!(taken(pins).unwrap().len(), 2);
            connect("10.96.0.10:80").unwrap();
            assert_eq!(services(), [(key, 1)]);
        });
    }

    #[test]
    fn a_trace_point_that_is_missing_costs_its_probe_alone() {
        isolated("probes::tests::a_trace_point_that_is_missing_costs_its_probe_alone", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            let points = [("tcp_state", "inet_sock_set_state"), ("tcp_retransmit", "no_such_point")];
            let probes = attach(&mut dataplane.inner.ebpf.lock(), &points);
            assert_eq!(probes.running.len(), 1);
            assert_eq!(probes.missing.len(), 1);
            assert!(probes.missing[0].contains("no_such_point"), "{:?}", probes.missing);
        });
    }

    #[test]
    fn a_kernel_without_a_field_is_told_by_the_fields_name() {
        let mut offsets = [Some(1); FIELDS.len()];
        assert!(fields_of(offsets).is_ok());
        (offsets[1], offsets[6]) = (None, None);
        assert_eq!(fields_of(offsets).unwrap_err(), "this kernel has no net.net_cookie, tcp_sock.srtt_us");
    }

    #[test]
    fn this_kernel_has_all_of_them() {
        let fields = fields().as_ref().unwrap();
        // Ports and addresses stand in the first bytes of a socket, as every program relies on.
        assert!(fields.port < 64 && fields.address4 < 64 && fields.family < 64, "{fields:?}");
    }
}
