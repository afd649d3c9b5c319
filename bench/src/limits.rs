//! Every size and bound of the benches.

use std::time::Duration;

use anyhow::{Result, bail};

/// Refuses a number of an option that is none, or more than what is measured.
pub(crate) fn within(option: &str, number: usize, most: usize) -> Result<()> {
    match (1..=most).contains(&number) {
        true => Ok(()),
        false => bail!("{option} {number}: must be from 1 to {most}"),
    }
}

/// Nodes of a cluster on this machine.
pub(crate) const LAB_NODES: usize = 10;
/// Repeats of `startup`, `pods` and the idle seconds of `memory`, at most.
pub(crate) const REPEATS: usize = 1000;
pub(crate) const IDLE_MOST: usize = 3600;
/// Pods that are created at once, at most.
pub(crate) const BURST_MOST: usize = 1100;
/// Longest until a cluster that is somebody else's has started or ended.
pub(crate) const ELSEWHERE: Duration = Duration::from_secs(300);
/// Between two looks at it: nothing tells when.
pub(crate) const ELSEWHERE_PAUSE: Duration = Duration::from_millis(10);
/// Not counted before those: the first start of an image unpacks it and fills caches.
pub(crate) const WARM_UP: usize = 2;
/// Pods created at once.
pub(crate) const BURST: usize = 30;
/// Pods that a node may have: created at once, too, once.
pub(crate) const FULL_NODE: usize = 110;
/// Loads on the pod's address and the Service's in turns, for each kind of connection.
pub(crate) const TRAFFIC_ROUNDS: usize = 20;
/// How long each of them lasts.
pub(crate) const TRAFFIC_SLICE: Duration = Duration::from_millis(800);
/// Threads that ask at the same time; more only measure the scheduler of a small machine.
pub(crate) const TRAFFIC_THREADS: usize = 2;
/// Requests kept per load: more are not sent.
pub(crate) const TRAFFIC_REQUESTS: usize = 1_000_000;
/// A load gives up after so many failed requests.
pub(crate) const TRAFFIC_FAILURES: usize = 100;
/// Longest one request may take.
pub(crate) const REQUEST: Duration = Duration::from_secs(2);
/// Longest answer that the load generator reads.
pub(crate) const ANSWER: usize = 16 * 1024;
/// Longest until a pod is in the state that is waited for.
pub(crate) const POD: Duration = Duration::from_secs(60);
/// Longest until a new Service answers.
pub(crate) const SERVICE: Duration = Duration::from_secs(20);
/// Longest for containerd to say what it did.
pub(crate) const CONTAINERD_EVENT: Duration = Duration::from_secs(5);
/// Events of pods and of containerd that wait to be looked at.
pub(crate) const EVENTS: usize = 4096;
/// How long the daemon's work after the last pod is Ready counts for that burst's CPU time.
pub(crate) const BURST_TAIL: Duration = Duration::from_secs(1);
/// How often the memory is read meanwhile.
pub(crate) const IDLE_READINGS: u32 = 6;
/// Processors kept busy by others, above which a bench says that medians may not hold.
pub(crate) const CALM: f64 = 0.3;
/// How long others are looked at before a bench begins.
pub(crate) const CALM_LOOK: Duration = Duration::from_secs(2);
/// Rounds of all packet cases.
pub(crate) const PACKET_ROUNDS: usize = 5;
/// Runs of a case in a round, each beside one of the wrapper alone.
pub(crate) const PACKET_RUNS: usize = 7;
/// Packets in a run.
pub(crate) const PACKETS: u32 = 100_000;
/// Runs of new flows in a round: the table is emptied before each.
pub(crate) const PACKET_NEW_RUNS: usize = 3;
/// Entries that the flow map has room for: what it grows to for the most connections that a case has, two entries for each.
pub(crate) const PACKET_FLOWS: u32 = 262_144;
/// Packets in such a run.
pub(crate) const PACKETS_NEW: u32 = 32_768;
/// Services that stand in the tables without being asked for.
pub(crate) const PACKET_SERVICES: u32 = 1_000;
/// Numbers of services that sockets are measured with.
pub(crate) const CALL_SERVICES: [u32; 3] = [10, 1_000, 10_000];
/// Rounds in which all ways to a service take turns.
pub(crate) const CALL_ROUNDS: usize = 50;
/// How long each way is used in a round.
pub(crate) const CALL_SLICE: Duration = Duration::from_millis(40);
/// Rounds of being observed and not.
pub(crate) const OBSERVE_ROUNDS: usize = 120;
/// Not counted before them: longer than events' tokens last.
pub(crate) const OBSERVE_LEAD: Duration = Duration::from_millis(150);
/// How long each use of a Service is observed.
pub(crate) const OBSERVE_SLICE: Duration = Duration::from_millis(80);
/// Rounds in which pairs of nodes take turns: they differ by less than one slice does from the next.
pub(crate) const POD_ROUNDS: usize = 150;
/// A client gives up after so many failures in a slice.
pub(crate) const CALL_FAILURES: u64 = 20;
/// Threads of a server: connections that it serves at once.
pub(crate) const CALL_SERVERS: usize = 4;
/// Longest that a proxy's rules may take to come into effect, in seconds.
pub(crate) const RULES_SECONDS: u32 = 180;
/// Services that the data plane's user space is measured with.
pub(crate) const CONTROL_SERVICES: u32 = 10_000;
/// Changes of one endpoint each.
pub(crate) const CONTROL_CHANGES: u32 = 300;
/// Between two of them.
pub(crate) const CONTROL_PAUSE: Duration = Duration::from_millis(20);
/// Restarts.
pub(crate) const CONTROL_RESTARTS: u32 = 5;
/// Between two of them, and before the memory is read.
pub(crate) const CONTROL_SETTLE: Duration = Duration::from_secs(2);
/// Longest until the kernel's map says what it should.
pub(crate) const CONTROL_PATIENCE: Duration = Duration::from_secs(20);
/// Policies, and pods of one node that they are for.
pub(crate) const POLICIES: u32 = 1_000;
/// How often they change.
pub(crate) const POLICY_ROUNDS: u16 = 7;
/// Services of a very large cluster, in table and backend addresses below 131,072.
pub(crate) const SCALE_SERVICES: u32 = 100_000;
/// Endpoints of each, below 16.
pub(crate) const SCALE_EACH: u32 = 10;
/// Changes of one service each while packets are sent.
pub(crate) const SCALE_CHANGES: u32 = 10_000;
/// Packets at most: the flow map holds those that have not ended.
pub(crate) const SCALE_PACKETS: u32 = 24_000;
/// Longest that one answer to a load may take: a slow cluster deletes thousands of pods in minutes.
pub(crate) const LOAD_REQUEST: Duration = Duration::from_secs(600);
/// Longest that all loads on one cluster may take together.
pub(crate) const LOAD_WHOLE: Duration = Duration::from_secs(2 * 3600);
/// Longest until a control plane of our own, or its etcd, is ready.
pub(crate) const SERVER_START: Duration = Duration::from_secs(60);
/// What a load's parameters may be at most.
pub(crate) const LOAD_CLIENTS: usize = 1024;
pub(crate) const LOAD_OBJECTS: usize = 100_000;
pub(crate) const LOAD_WATCHERS: usize = 3000;
pub(crate) const LOAD_REPEATS: usize = 100;
/// Clients that fill a namespace, and that write what is watched.
pub(crate) const LOAD_WRITERS: usize = 16;
/// Lists of each kind.
pub(crate) const LISTS: usize = 7;
/// Objects on a page of a list.
pub(crate) const PAGE: usize = 500;
/// Longest until a watcher has the next event.
pub(crate) const NEXT_EVENT: Duration = Duration::from_secs(60);
/// Samples of the server in a second, for `--flamegraph`.
#[cfg(feature = "flamegraph")]
pub(crate) const SAMPLES: u32 = 199;
/// Bytes of stack in each.
#[cfg(feature = "flamegraph")]
pub(crate) const SAMPLED_STACK: u32 = 16 * 1024;
/// Share of the machine's CPU time, in percent, above which others' work is told.
pub(crate) const OTHERS: f64 = 10.0;
/// What `sched` takes at most.
pub(crate) const LOAD_NODES: usize = 20_000;
pub(crate) const STEADY_RATE: usize = 1000;
pub(crate) const STEADY_SECONDS: usize = 3600;
/// Pods of the loads that ask for more than room.
pub(crate) const SHAPED_PODS: usize = 2000;
/// How often each node's lease is renewed, and by how many requests at once; half of what makes a node unreachable.
pub(crate) const LEASE_PERIOD: Duration = Duration::from_secs(20);
pub(crate) const LEASE_WRITERS: usize = 8;
/// Longest until all nodes take pods.
pub(crate) const NODES_READY: Duration = Duration::from_secs(300);
/// Longest until the next pod is bound.
pub(crate) const NEXT_BOUND: Duration = Duration::from_secs(120);
/// How often something changes beside the load `churn`.
pub(crate) const CHURN: Duration = Duration::from_millis(100);
/// Longest until the namespace of a bench is gone, and between two looks.
pub(crate) const GONE: Duration = Duration::from_secs(300);
pub(crate) const GONE_PAUSE: Duration = Duration::from_millis(200);
/// Services that `lb` makes on a cluster that is somebody else's, at most.
pub(crate) const LOAD_SERVICES: usize = 20_000;
/// How long its client uses each way in a round.
pub(crate) const LB_TURN: Duration = Duration::from_millis(200);
