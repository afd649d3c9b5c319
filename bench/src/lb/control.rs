//! The data plane's user space, as a process of its own that follows an API: from an endpoint's change to the kernel's map,
//! from a restart until all is said again, and its memory.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use clap::Args;
use serde_json::{Value, json};
use sluice_dataplane::Dataplane;
use sluice_ebpf_common::{Address, Frontend, FrontendKey, SCHEMA, Scope, maps, protocol};

use super::{api::Api, place::Place};
use crate::{
    lab::say,
    limits, proc,
    report::{Bound, Goal, Measured},
};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 0);
const PORT: u16 = 80;
const CHANGE: &str = "endpoint change to the kernel's map";
const FRESH: &str = "start with empty maps until complete";
const RESTART: &str = "restart until complete";
const MEMORY: &str = "memory of the data plane's process (PSS)";

/// The C library's allocator as the daemon sets it (`src/allocator.rs`).
const ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

/// What the process of the data plane is told.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    api: String,
    #[arg(long)]
    cgroup: PathBuf,
}

/// The process of the data plane: follows the API until it is ended.
pub(crate) fn follow(options: &Options) -> Result<()> {
    let dataplane = Dataplane::load(super::place::config(&options.cgroup)?).context("load the data plane")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // The connector wants one even where nothing is encrypted. Another one may be there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = kube::Client::try_from(kube::Config::new(options.api.parse()?))?;
        dataplane.run(client, tokio_util::sync::CancellationToken::new()).await?;
        Ok(())
    })
}

pub(super) fn run(place: &Place) -> Result<Measured> {
    place.cleaned(|| measure(place))
}

fn measure(place: &Place) -> Result<Measured> {
    let count = limits::CONTROL_SERVICES;
    let api = Api::serve((0..count).map(service).collect(), (0..count).map(|at| slice(at, 0)).collect())?;
    let mut measured = Measured::default();
    say(&format!("control, {count} services: start"));
    let begun = Instant::now();
    let mut process = Process::start(place, &api)?;
    let frontends = Frontends::of(place)?;
    for at in (0..count).rev() {
        wait(place, || frontends.generation(at))?;
    }
    measured.row(FRESH, "ms", &[milliseconds(begun)]);
    say("control: changes");
    let mut times = Vec::new();
    for round in 1..=limits::CONTROL_CHANGES {
        let at = round.wrapping_mul(7_919) % count;
        let begun = Instant::now();
        changed(place, &frontends, &api, at, round, || Ok(())).with_context(|| format!("change {round}"))?;
        times.push(milliseconds(begun));
        place.interrupts.sleep(limits::CONTROL_PAUSE)?;
    }
    measured.row(CHANGE, "ms", &times);
    let p99 = measured.results.iter().find(|row| row.name == CHANGE).map(|row| row.p99);
    measured.goals.push(Goal::new("endpoint change, p99", Bound::Below(5.0), "ms", p99));
    place.interrupts.sleep(limits::CONTROL_SETTLE)?;
    #[expect(clippy::cast_precision_loss)]
    let memory = proc::memory(process.0.id())?.pss as f64 / 1e6;
    measured.row(MEMORY, "MB", &[memory]);
    measured.goals.push(Goal::new(MEMORY, Bound::Below(60.0), "MB", Some(memory)));
    say("control: restarts");
    let mut times = Vec::new();
    for round in 1..=limits::CONTROL_RESTARTS {
        process.end();
        let begun = Instant::now();
        // Changed while nobody follows: all is said once this is.
        changed(place, &frontends, &api, count - 1, limits::CONTROL_CHANGES + round, || {
            process = Process::start(place, &api)?;
            Ok(())
        })?;
        times.push(milliseconds(begun));
        place.interrupts.sleep(limits::CONTROL_SETTLE)?;
    }
    measured.row(RESTART, "ms", &times);
    measured.goals.push(Goal::new(RESTART, Bound::Below(1000.0), "ms", measured.p50(RESTART)));
    measured.note(format!("the data plane's user space has {count} services of 2 endpoints, changed one at a time"));
    Ok(measured)
}

/// Changes an endpoint of a service, does `then`, and waits until the kernel's map says so.
fn changed(
    place: &Place,
    frontends: &Frontends,
    api: &Api,
    at: u32,
    round: u32,
    then: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = frontends.generation(at).context("the service is in the map")?;
    api.change(at as usize, slice(at, round))?;
    then()?;
    wait(place, || frontends.generation(at).filter(|now| *now != before)).map(drop)
}

fn wait<T>(place: &Place, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limits::CONTROL_PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        place.interrupts.check()?;
        if Instant::now() > end {
            bail!("the data plane did not write the service table in {} s", limits::CONTROL_PATIENCE.as_secs());
        }
        // Looking costs a CPU that the data plane needs, too.
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// The kernel's map of what is served, by its pin: a map that grows is replaced.
struct Frontends(PathBuf);

impl Frontends {
    fn of(place: &Place) -> Result<Frontends> {
        Ok(Frontends(place.config()?.pin_dir.join(format!("v{SCHEMA}")).join(maps::FRONTENDS)))
    }

    /// Of a service's cluster address; it differs after every change. `None` while it leads nowhere.
    fn generation(&self, at: u32) -> Option<u32> {
        let map = Map::from_map_data(MapData::from_pin(&self.0).ok()?).ok()?;
        let map: HashMap<MapData, FrontendKey, Frontend> = map.try_into().ok()?;
        let address = Address::v4((u32::from(FIRST) + at).to_be());
        let key = FrontendKey { address, port: PORT.to_be(), protocol: protocol::TCP, scope: Scope::Internal as u8 };
        map.get(&key, 0).ok().filter(|frontend| frontend.count > 0).map(|frontend| frontend.generation)
    }
}

/// The process of the data plane.
struct Process(Child);

impl Process {
    fn start(place: &Place, api: &Api) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["follow", "--api", &format!("http://{}", api.address), "--cgroup"]).arg(place.cgroup());
        command.envs(ALLOCATOR);
        Ok(Process(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start the data plane")?))
    }

    /// As `kill -9` does.
    fn end(&mut self) {
        // It may have ended by itself; then the wait for its work says so.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn service(at: u32) -> Value {
    json!({
        "metadata": {"name": format!("service-{at}"), "namespace": "bench", "resourceVersion": "1"},
        "spec": {
            "clusterIP": Ipv4Addr::from(u32::from(FIRST) + at).to_string(),
            "ports": [{"port": PORT, "protocol": "TCP"}]
        }
    })
}

/// The slice of a service; its second endpoint has another address in each round that it is changed in.
fn slice(at: u32, round: u32) -> Value {
    let [_, _, high, low] = at.to_be_bytes();
    // Round 0 is what was there before.
    let second = if round == 0 { 100 } else { 101 + u8::try_from(round % 100).unwrap_or_default() };
    let endpoint = |address: [u8; 4]| json!({"addresses": [Ipv4Addr::from(address).to_string()], "conditions": {"ready": true}, "nodeName": "there"});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("service-{at}-1"), "namespace": "bench", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": format!("service-{at}")}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [endpoint([10, 20, high, low]), endpoint([10, second, high, low])]
    })
}
