//! The loaded data plane of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::raw_trace_point::RawTracePointLink;
use parking_lot::Mutex;
use sluice_ebpf_common::probe::ProbeKey;
use sluice_ebpf_common::{Address, Settings, SourceKey, maps};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attach::{self, Link, ONWARD, Traffic, UPLINK_PROGRAMS};
use crate::compile::{Frontends, Owner};
use crate::datagrams::Datagrams;
use crate::limits::{self, PROBLEMS};
use crate::metrics::Figures;
use crate::migrate::{self, BUILD, Build};
use crate::model::{Forwarding, Snapshot};
use crate::namespaces::{Namespaces, cookie_of};
use crate::neighbours::{Neighbour, Neighbours, Redirect};
use crate::node_ports::NodePortAddresses;
use crate::object::Mode;
use crate::own::ByPacket;
use crate::pace::{self, Paces};
use crate::pins::{self, Pins};
use crate::plan::{Capacity, Tables};
use crate::policy::driver::Policies;
use crate::probes::Probes;
use crate::range::{Range, wire};
use crate::resize::{self, Sizes};
use crate::store::{Store, typed};
use crate::stream::Stream;
use crate::wanted::{Changes, Wanted};
use crate::wire::{self, Xdp};
use crate::{Error, health, kept, lengths::Lengths, links, lost, object, settings, sweep, sys};

/// What the data plane of a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name in the API, to tell local endpoints.
    pub node: String,
    /// The cgroup whose sockets are translated, with all below it; `None` for the root of the v2 tree.
    pub cgroup: Option<PathBuf>,
    /// Where maps and links are pinned, below `/sys/fs/bpf`; one per node on this machine.
    pub pin_dir: PathBuf,
    /// The node's addresses, one per family: what masqueraded traffic leaves with where a link has none of its own.
    pub node_addresses: Vec<IpAddr>,
    /// Ports of NodePort services.
    pub node_ports: RangeInclusive<u16>,
    /// On which of the node's own addresses they answer.
    pub node_port_addresses: NodePortAddresses,
    /// This node's pods: their traffic to the outside leaves with the node's address. `None` keeps what an earlier
    /// process was told.
    pub pod_range: Option<Range>,
    /// All pods of the cluster.
    pub cluster_range: Option<Range>,
    /// Links that packets from outside arrive on.
    pub uplinks: Uplinks,
    /// Which of them get the XDP program.
    pub xdp: Xdp,
    /// How services of the API that do not say so reach backends on other nodes.
    pub forwarding: Forwarding,
    /// Whether packets between this node's pods pass through its stack.
    pub redirect: Redirect,
}

/// Links that packets from outside arrive on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplinks {
    /// Every Ethernet link of the namespace, as they come and go, except loopback and veth links whose names start with
    /// one of these (pods' links). A tunnel to other nodes' pods has to be among them, whatever its name.
    Every {
        /// Prefixes of the names of pods' links.
        except: Vec<String>,
    },
    /// These links.
    Named(Vec<String>),
}

/// A pod, for messages, and how it reaches services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How it reaches services.
    pub services: ServicePath,
    /// How other pods of this node reach it without the node's stack; `None` when what comes to it has to pass there, as with
    /// a limit of its traffic.
    pub neighbour: Option<Neighbour>,
}

/// Where a pod's connections to services are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServicePath {
    /// When its sockets connect: nothing per packet afterwards.
    #[default]
    Sockets,
    /// Packet by packet on its link: for pods whose sockets are not this kernel's (virtual machines, gVisor), and for
    /// those with a proxy of their own that has to see the service's address.
    Packets,
}

/// The loaded data plane of a node. Cheap to clone. Dropping it leaves programs and maps in the kernel, at work; only
/// [`Dataplane::remove_all`] ends them.
#[derive(Clone)]
pub struct Dataplane {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) pins: Pins,
    pub(crate) traffic: Traffic,
    pub(crate) ebpf: Mutex<Ebpf>,
    pub(crate) locals: Mutex<HashMap<MapData, Address, u32>>,
    nodes: Mutex<HashMap<MapData, Address, u32>>,
    pub(crate) sources: Mutex<HashMap<MapData, SourceKey, Address>>,
    pub(crate) uplinks: Mutex<BTreeSet<Link>>,
    pub(crate) cgroup: PathBuf,
    /// Held while flows are swept, or while their map is replaced.
    pub(crate) sweeping: Mutex<()>,
    build: Build,
    namespaces: Mutex<Namespaces>,
    pub(crate) neighbours: Mutex<Neighbours>,
    /// Held while the neighbours are changed for their sake.
    pub(crate) policies: Mutex<Policies>,
    pub(crate) paces: Mutex<Paces>,
    pub(crate) datagrams: Datagrams,
    pub(crate) settings: Mutex<(Settings, Array<MapData, Settings>)>,
    pub(crate) table: Mutex<Table>,
    started: Instant,
    pub(crate) figures: Figures,
    pub(crate) stream: Stream,
    /// Counts what the kernel drops; hears what routers say.
    _kept: (Option<RawTracePointLink>, Lengths),
    /// Measure TCP connections.
    pub(crate) probes: Mutex<Probes>,
    /// Why services are not served, as people are told.
    refused: watch::Sender<Vec<String>>,
    pub(crate) by_packet: watch::Sender<ByPacket>,
}

pub(crate) struct Table {
    pub(crate) store: Store,
    pub(crate) tables: Tables,
    pub(crate) sizes: Sizes,
    pub(crate) wanted: Wanted,
    /// The kernel may hold frontends that nobody wants: those of an earlier process, or after a failed write.
    unsure: bool,
    /// Those of the last pass.
    problems: Vec<String>,
}

/// What somebody wants from now on.
pub(crate) enum Update {
    /// All that anybody wants.
    All(BTreeMap<Owner, Frontends>),
    /// What these owners want; nothing when they are gone.
    Some(Vec<(Owner, Frontends)>),
}

impl Dataplane {
    /// Loads the programs onto new maps, or onto those that an earlier process left, and attaches them. Has to run in
    /// the node's network namespace. Existing attachments get the new programs atomically.
    pub fn load(config: Config) -> Result<Dataplane, Error> {
        Self::load_with(config, Traffic::best())
    }

    /// As [`Self::load`], with a chosen kind of attachment for packet programs. When it fails on a fresh machine, nothing
    /// is left behind; what an earlier process had attached stays in effect.
    pub fn load_with(config: Config, traffic: Traffic) -> Result<Dataplane, Error> {
        Self::load_build(config, traffic, BUILD)
    }

    /// As [`Self::load_with`], as if by another build: with its own schema, revisions of maps and sizes.
    pub fn load_build(config: Config, traffic: Traffic, build: Build) -> Result<Dataplane, Error> {
        let pins = Pins::new(&config.pin_dir, build.schema);
        let taken = pins.taken();
        Self::start(config, traffic, build).inspect_err(|_| {
            if !taken && let Err(error) = pins.remove_all() {
                tracing::warn!(%error, "pinned maps were left behind");
            }
        })
    }

    fn start(config: Config, traffic: Traffic, build: Build) -> Result<Dataplane, Error> {
        let cgroup = match &config.cgroup {
            Some(cgroup) => cgroup.clone(),
            None => pins::cgroup_root()?,
        };
        let pins = Pins::new(&config.pin_dir, build.schema);
        pins.prepare()?;
        let source = pins.in_use();
        let unfinished = match &source {
            Some(source) if *source == pins => resize::settle(&pins)?,
            Some(source) => resize::gather(source).map(|()| false)?,
            None => false,
        };
        let adoption = migrate::adopt(&pins, source.as_ref(), &build, &object::layouts(&build)?)?;
        let sizes = source.as_ref().map_or(build.start, |source| build.start.at_least(Sizes::of(source)));
        let mut ebpf = resize::programs(&pins, |name| pins.map(name), &sizes, Mode::Normal)?;
        let holding = match adoption.holds_flows() {
            true => Some(resize::programs(&pins, |name| pins.map(name), &sizes, Mode::Hold)?),
            false => None,
        };
        let lost = lost::attach(&mut ebpf);
        adoption.copy(&pins)?;
        if adoption.from.is_some() {
            sweep::know(&pins)?;
        }
        let store = Store::open(&pins, true)?;
        let tables = Tables::new(store.read()?, store.capacity());
        let sizes = Sizes::of(&pins);
        let mut settings_map: Array<MapData, Settings> = typed(&pins, maps::SETTINGS)?;
        let earlier = settings_map.get(&0, 0).map_err(|error| Error::ebpf("read the settings", error))?;
        let settings = settings::by(&config, earlier)?;
        settings_map.set(0, settings, 0).map_err(|error| Error::ebpf("write the settings", error))?;
        let policies = Policies::open(&pins)?;
        let inner = Inner {
            traffic,
            cgroup,
            locals: Mutex::new(typed(&pins, maps::LOCALS)?),
            nodes: Mutex::new(typed(&pins, maps::NODES)?),
            namespaces: Mutex::new(Namespaces::open(&pins)?),
            datagrams: Datagrams::default(),
            neighbours: Mutex::new(Neighbours::open(&pins, config.redirect, policies.isolated())?),
            policies: Mutex::new(policies),
            paces: Mutex::new(Paces::open(&pins)?),
            sources: Mutex::new(typed(&pins, maps::SOURCES)?),
            uplinks: Mutex::default(),
            sweeping: Mutex::default(),
            settings: Mutex::new((settings, settings_map)),
            table: Mutex::new(Table {
                store,
                tables,
                sizes,
                wanted: Wanted::default(),
                unsure: true,
                problems: Vec::new(),
            }),
            ebpf: Mutex::new(ebpf),
            pins,
            build,
            config,
            started: Instant::now(),
            figures: Figures::default(),
            stream: Stream::default(),
            _kept: (lost, Lengths::learn()),
            probes: Mutex::default(),
            refused: watch::Sender::default(),
            by_packet: watch::Sender::default(),
        };
        let dataplane = Dataplane { inner: Arc::new(inner) };
        {
            let inner = &dataplane.inner;
            if unfinished {
                inner.finish_flows(&sizes, |name| inner.pins.map(name))?;
                *inner.ebpf.lock() = resize::programs(&inner.pins, |name| inner.pins.map(name), &sizes, Mode::Normal)?;
            }
            if let Some(mut holding) = holding {
                inner.hold_flows(&mut holding, &adoption)?;
            }
            inner.flip(&mut inner.ebpf.lock())?;
            inner.pins.use_now()?;
            if adoption.from.is_some() {
                sweep::know(&inner.pins)?;
            }
            if !adoption.is_empty() {
                resize::grace()?;
                adoption.catch_up(&inner.pins)?;
            }
            inner.pins.remove_others(adoption.from.as_ref())?;
        }
        if let Uplinks::Named(names) = &dataplane.inner.config.uplinks {
            for name in names {
                let link = Link::by_name(name)?;
                dataplane.attach_uplink(&link)?;
                dataplane.inner.uplinks.lock().insert(link);
            }
        }
        dataplane.reconcile_links()?;
        dataplane.grow(build.start)?;
        kept::keep(&dataplane.inner.ebpf.lock(), &dataplane.inner.pins)?;
        // The loader reads all of the kernel's type information (20 MB as parsed) for programs that may need it.
        sys::give_memory_back();
        Ok(dataplane)
    }

    /// Follows the API's services, the kernel's links and the flows until the shutdown.
    pub async fn run(&self, client: kube::Client, shutdown: CancellationToken) -> Result<(), Error> {
        let (checks, wanted) = watch::channel(health::Answers::default());
        let inner = Arc::clone(&self.inner);
        let open: health::Open =
            Arc::new(move |address| inner.config.node_port_addresses.answers(&inner.config.node_addresses, address));
        tokio::try_join!(
            self.follow_services(client.clone(), checks, &shutdown),
            self.follow_policies(client, &shutdown),
            health::serve(wanted, open, &shutdown),
            self.follow_links(&shutdown),
            sweep::run(self, &shutdown),
            self.follow_datagrams(&shutdown),
            self.keep_for_rollback(&shutdown),
            self.probe_aside(),
            self.tell_flows(&shutdown),
        )?;
        Ok(())
    }

    /// One look at the flows: those that ended go, and their map grows when it is under pressure. Returns the entries that are
    /// left.
    pub fn tend(&self) -> Result<usize, Error> {
        sweep::turn(self)
    }

    /// Removes every program and map that is pinned below `pin_dir`, from any process. Nothing there is success.
    pub fn remove_all(pin_dir: &Path) -> Result<(), Error> {
        let pins = Pins::new(pin_dir, BUILD.schema);
        let links = Link::all()?;
        pace::take_back(links.iter().cloned()).map_err(|error| Error::system("give queues back", error))?;
        if Traffic::best() == Traffic::Clsact {
            for link in links {
                attach::detach_uplink(&pins, Traffic::Clsact, &link)?;
            }
        }
        for index in pins.filters() {
            attach::detach_pod(&pins, index)?;
        }
        pins.remove_all()
    }

    /// Attaches the pod programs to the node's side of a pod's link. Idempotent. Takes well under a millisecond and blocks:
    /// call it where that is allowed.
    pub fn attach_pod(&self, index: u32, pod: &PodInfo) -> Result<(), Error> {
        let link = Link::by_index(index)?;
        tracing::debug!(link = link.name, namespace = pod.namespace, pod = pod.name, "attach the pod's link");
        let inner = &self.inner;
        let name = (pod.namespace.as_str().into(), pod.name.as_str().into());
        let fresh = !attach::has_pod_programs(&inner.pins, index);
        // What the pod may do stands before its first packet passes.
        let mut policies = inner.policies.lock();
        policies.add(index, name, fresh)?;
        self.change_neighbours(|neighbours| neighbours.isolate(policies.isolated()))?;
        drop(policies);
        attach::attach_pod(&mut inner.ebpf.lock(), &inner.pins, &link, attach::BOTH)?;
        self.change_neighbours(|neighbours| neighbours.set(&link, pod.neighbour.as_ref()))
    }

    /// All that a new pod needs: [`Self::attach_pod`] and, unless its packets are translated, [`Self::know_namespace`]. It has to be done before the pod's first
    /// container starts, and may run beside everything else that prepares it.
    pub fn add_pod(&self, index: u32, netns: &Path, pod: &PodInfo) -> Result<(), Error> {
        match pod.services {
            ServicePath::Sockets => self.know_namespace(index, netns)?,
            // A stranger's sockets are left alone once strangers are told apart.
            ServicePath::Packets => {
                self.forget_namespace(index)?;
                self.inner.namespaces.lock().insert_by_packet(cookie_of(netns)?, index)?;
                self.change_settings(|settings| settings.known_only = 1)?;
            }
        }
        self.attach_pod(index, pod)
    }

    /// Tells the addresses of the other nodes: pods' packets to them keep the pod's address.
    pub fn set_nodes<A: Into<IpAddr>>(&self, nodes: impl IntoIterator<Item = A>) -> Result<(), Error> {
        let nodes = nodes.into_iter().map(|address| (wire(address), 1)).collect();
        links::replace(&mut self.inner.nodes.lock(), &nodes, "other nodes")
    }

    /// Makes a pod's namespace known: its sockets are translated when they connect, which costs nothing per packet
    /// afterwards. From the first call on, sockets of namespaces that are neither the node's nor a known pod's are left
    /// alone (their packets are translated on arrival), because an address that is right here may lead nowhere there.
    pub fn know_namespace(&self, index: u32, netns: &Path) -> Result<(), Error> {
        self.inner.namespaces.lock().insert(cookie_of(netns)?, index)?;
        self.inner.datagrams.know(index, netns);
        self.change_settings(|settings| settings.known_only = 1)
    }

    fn forget_namespace(&self, index: u32) -> Result<(), Error> {
        self.inner.datagrams.forget(index);
        self.inner.namespaces.lock().forget(index)
    }

    /// Takes the pod programs off a link; a link that is gone is success.
    pub fn detach_pod(&self, index: u32) -> Result<(), Error> {
        self.change_neighbours(|neighbours| neighbours.forget_link(index))?;
        self.inner.paces.lock().forget(index)?;
        self.forget_namespace(index)?;
        attach::detach_pod(&self.inner.pins, index)?;
        self.inner.forget_figures(&[ProbeKey::of_pod(index)].into())?;
        self.inner.policies.lock().forget_link(index)
    }

    /// Forgets the programs of a link that is gone; they went with it.
    pub(crate) fn forget_link(&self, index: u32) -> Result<(), Error> {
        self.detach_pod(index)?;
        let gone = Link { index, name: String::new() };
        attach::detach_uplink(&self.inner.pins, Traffic::Tcx, &gone)?;
        attach::forget_filters(&self.inner.pins, index)?;
        wire::detach(&self.inner.pins, index)
    }

    pub(crate) fn attach_uplink(&self, link: &Link) -> Result<(), Error> {
        let inner = &self.inner;
        let mut ebpf = inner.ebpf.lock();
        let Inner { pins, traffic, config, .. } = &**inner;
        attach::attach_traffic(&mut ebpf, pins, *traffic, &UPLINK_PROGRAMS, link, attach::BOTH)?;
        let by_driver = wire::attach(&mut ebpf, pins, config.xdp, link)?;
        if by_driver || config.redirect == Redirect::Off {
            attach::detach_traffic(pins, *traffic, ONWARD, link)?;
        } else {
            attach::attach_traffic(&mut ebpf, pins, *traffic, &[ONWARD], link, attach::BOTH)?;
        }
        self.hold_packets(link)
    }

    pub(crate) fn detach_uplink(&self, link: &Link) -> Result<(), Error> {
        attach::detach_uplink(&self.inner.pins, self.inner.traffic, link)?;
        pace::take_back([link.clone()].into_iter()).map_err(|error| Error::system("give a queue back", error))?;
        wire::detach(&self.inner.pins, link.index)
    }

    /// Tells the pods' networks of one address family once they are known (`spec.podCIDRs`).
    pub fn set_pod_ranges(&self, pods: Range, cluster: Range) -> Result<(), Error> {
        self.change_settings(|settings| settings::set_ranges(settings, pods, cluster))?;
        self.ask_anew()
    }

    /// Makes the kernel's table say what the snapshot says. Returns sentences about what could not be placed.
    pub fn apply(&self, snapshot: &Snapshot) -> Result<Vec<String>, Error> {
        self.update(Update::All(snapshot.compile())).map(|(problems, _)| problems)
    }

    /// As [`Self::apply`], for the services and pods of the snapshot alone: all others stay.
    pub fn apply_some(&self, snapshot: &Snapshot) -> Result<Vec<String>, Error> {
        self.update(Update::Some(snapshot.compile().into_iter().collect())).map(|(problems, _)| problems)
    }

    /// Takes in what somebody wants; the flag says that trying again a little later may place more.
    pub(crate) fn update(&self, update: Update) -> Result<(Vec<String>, bool), Error> {
        let mut table = self.inner.table.lock();
        let unsure = table.unsure;
        let begun = Instant::now();
        let result = self.update_table(&mut table, update);
        if result.is_ok() {
            self.inner.figures.sync.written(begun);
        }
        let refused = bounded(table.tables.unplaced());
        self.inner.refused.send_if_modified(|known| {
            let differs = *known != refused;
            *known = refused;
            differs
        });
        if unsure {
            // Everything was compiled and planned a moment ago.
            sys::give_memory_back();
        }
        result
    }

    fn update_table(&self, table: &mut Table, update: Update) -> Result<(Vec<String>, bool), Error> {
        let mut changes = Changes::new();
        let all = matches!(update, Update::All(_));
        match update {
            Update::All(all) => table.wanted.replace(all, &mut changes),
            Update::Some(some) => {
                for (owner, frontends) in some {
                    table.wanted.set(&owner, frontends, &mut changes);
                }
            }
        }
        if table.unsure {
            changes = table.tables.difference(&table.wanted);
        }
        let host_ports = table.wanted.has_pods();
        if host_ports {
            self.set_flag(Settings::HOST_PORTS, true)?;
        }
        let need = Sizes { table: table.tables.need(&changes), flows: 0 };
        let sizes = table.sizes.holding(need, &self.inner.build.most);
        if sizes != table.sizes
            && let Err(error) = self.resize(table, sizes)
        {
            tracing::error!(%error, "the maps cannot grow");
        }
        let plan = table.tables.plan(&changes, self.inner.started.elapsed());
        let written = self.inner.forget_services(&plan.writes).and_then(|()| table.store.apply(&plan.writes));
        if let Err(error) = written {
            // What was written and what not is known to the kernel alone now.
            table.tables = Tables::new(table.store.read()?, table.store.capacity());
            table.unsure = true;
            return Err(error);
        }
        table.unsure = false;
        self.inner.datagrams.notice(all, &changes);
        self.tell_by_packet(&table.wanted);
        self.set_flag(Settings::HOST_PORTS, host_ports)?;
        table.problems = bounded(plan.problems.iter().map(String::as_str));
        Ok((table.problems.clone(), table.tables.may_fit_later()))
    }

    /// Grows the flow map when so many entries press it. It fills while it is replaced, so it counts twice.
    pub(crate) fn grow_flows(&self, used: u32) -> Result<(), Error> {
        let mut table = self.inner.table.lock();
        // Twice as much as there is: flows may come faster than their map grows.
        let need = Sizes { table: Capacity::default(), flows: used.saturating_mul(2) };
        let most = self.inner.build.most;
        let most = Sizes { flows: most.flows.min(limits::flows(sys::memory())), ..most };
        let sizes = table.sizes.holding(need, &most);
        if sizes == table.sizes { Ok(()) } else { self.resize(&mut table, sizes) }
    }

    /// Entries of the flow map at most, until it grows.
    pub(crate) fn flow_capacity(&self) -> u32 {
        self.inner.table.lock().sizes.flows
    }

    /// Makes every map at least so large.
    fn grow(&self, least: Sizes) -> Result<(), Error> {
        let mut table = self.inner.table.lock();
        let sizes = table.sizes.at_least(least);
        if sizes == table.sizes { Ok(()) } else { self.resize(&mut table, sizes) }
    }

    /// Service ports that are not served for want of room: sentences that begin with `namespace/name:port: `, a few of them
    /// when there are many.
    pub fn refused(&self) -> watch::Receiver<Vec<String>> {
        self.inner.refused.subscribe()
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        let table = self.inner.table.lock();
        bounded(table.tables.unplaced().chain(table.problems.iter().map(String::as_str)))
    }
}

/// As many as people read, each once, and how many more there are.
fn bounded<'a>(problems: impl Iterator<Item = &'a str>) -> Vec<String> {
    let all: BTreeSet<&str> = problems.collect();
    let mut few: Vec<String> = all.iter().take(PROBLEMS).map(|problem| (*problem).to_owned()).collect();
    if all.len() > PROBLEMS {
        few.push(format!("and {} more like these", all.len() - PROBLEMS));
    }
    few
}
