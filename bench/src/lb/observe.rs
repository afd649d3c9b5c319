//! What it costs to be observed: connections from a pod to a Service on one node, in turn with no probe at work, with an empty program
//! where they would be called, with all of them, and with somebody who follows every connection as well. Client, servers, the
//! kernel's work and the daemon's share one CPU.

use std::thread;

use anyhow::{Context, Result, bail};
use sluice_dataplane::{Dataplane, Filter};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::call::{Client, Order, Use};
use super::floor::StateFloor;
use super::place::{Place, on_one_cpu};
use super::sockets::{FIRST, Node, PORT, add_pods, median, on_a_node, rate, services, snapshot};
use crate::{
    lab::say,
    limits,
    report::{Bound, Goal, Measured},
};

/// What is at work.
const STATES: [&str; 4] = ["unobserved", "an empty trace point", "probes", "probes and a follower"];
const UNOBSERVED: usize = 0;
const EMPTY: usize = 1;
const PROBES: usize = 2;
const FOLLOWED: usize = 3;
/// What is compared: the second pair is what the kernel takes for calling a program, the last what the program takes.
const BESIDE: [(usize, usize); 4] =
    [(PROBES, UNOBSERVED), (EMPTY, UNOBSERVED), (FOLLOWED, UNOBSERVED), (PROBES, EMPTY)];
const USES: [(Use, &str); 2] = [(Use::Short, "short connections"), (Use::Kept, "kept connection")];
const SERVICES: u32 = 10;

pub(super) fn run(place: &Place) -> Result<Measured> {
    on_one_cpu(|| on_a_node(place, "observed", |node, dataplane| measure(place, node, dataplane)))
}

fn measure(place: &Place, node: &Node, dataplane: &Dataplane) -> Result<Measured> {
    add_pods(node, dataplane)?;
    dataplane.apply(&snapshot(&services(SERVICES)))?;
    let mut floor = StateFloor::load()?;
    let mut client = Client::start(&node.client(), Some(place.cgroup()))?;
    let mut measured = Measured::default();
    let mut rates = vec![vec![Vec::new(); STATES.len()]; USES.len()];
    say("observe: connections with and without probes and a follower");
    for round in 0..=limits::OBSERVE_ROUNDS {
        for step in 0..STATES.len() {
            place.interrupts.check()?;
            // Each round begins with another state.
            let state = (step + round) % STATES.len();
            let empty = if state == EMPTY { Some(floor.attach()?) } else { None };
            if state >= PROBES {
                dataplane.probe_sockets()?;
            }
            let follower = if state == FOLLOWED { Some(Following::begin(dataplane)?) } else { None };
            // A follower hears of everything as long as events' tokens last: they are spent before it counts.
            let order = |uses, time| Order { first: FIRST, count: SERVICES, port: PORT, uses, time };
            client.call(&order(Use::Short, limits::OBSERVE_LEAD))?;
            for (at, (uses, title)) in USES.into_iter().enumerate() {
                let outcome = client.call(&order(uses, limits::OBSERVE_SLICE))?;
                if outcome.failed > 0 {
                    bail!("{title}, {}: {} of {} failed", STATES[state], outcome.failed, outcome.done);
                }
                // The first round warms up.
                if round > 0 {
                    rates[at][state].push(rate(&outcome, uses));
                }
            }
            follower.map_or(Ok(()), Following::end)?;
            dataplane.leave_sockets();
            empty.map_or(Ok(()), |link| floor.detach(link))?;
        }
    }
    for ((_, title), rates) in USES.iter().zip(&rates) {
        for (state, rates) in STATES.iter().zip(rates) {
            measured.row(&format!("{title}, {state}"), "/s", rates);
        }
        for (state, beside) in BESIDE {
            let name = format!("{title}, {} beside {}", STATES[state], STATES[beside]);
            let shares: Vec<f64> = rates[state].iter().zip(&rates[beside]).map(|(on, off)| on / off).collect();
            measured.row(&name, "", &shares);
            if (state, beside) != (EMPTY, UNOBSERVED) {
                measured.goals.push(Goal::new(&name, Bound::AtLeast(0.98), "", median(shares.into_iter())));
            }
        }
    }
    Ok(measured)
}

/// Somebody who follows everything, on a thread of its own.
struct Following {
    end: CancellationToken,
    thread: thread::JoinHandle<Result<()>>,
}

impl Following {
    fn begin(dataplane: &Dataplane) -> Result<Following> {
        let mut follower = dataplane.follow(Filter::default()).context("too many follow")?;
        let (end, teller) = (CancellationToken::new(), dataplane.clone());
        let stop = end.clone();
        let (begun, begins) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let follow = async {
                    follower.begun().await;
                    let _ = begun.send(());
                    loop {
                        drop(follower.next().await);
                    }
                };
                tokio::select! {
                    told = teller.tell_flows(&stop) => told.context("tell of connections"),
                    () = follow => Ok(()),
                }
            })
        });
        begins.blocking_recv().context("nobody tells of connections")?;
        Ok(Following { end, thread })
    }

    fn end(self) -> Result<()> {
        self.end.cancel();
        self.thread.join().map_err(|_| anyhow::anyhow!("the follower failed"))?
    }
}
