//! `lb`: what the Service data plane costs. Seven parts: a packet in each program (`packets`), connections over sockets beside
//! direct ones and beside kube-proxy's rules (`sockets`), the same with and without observers (`observe`), those between pods of
//! two nodes beside plain routing (`pods`), changes, restart and memory of its user space (`control`), changes of policies
//! (`policies`), and changes of a very large table (`scale`).
//!
//! It needs no cluster: the data plane is fed by its own compiler and planner, in a private network and mount namespace that
//! end with the process. Comparisons are ratios within one run.

mod api;
pub(crate) mod call;
mod cases;
pub(crate) mod control;
mod floor;
mod frame;
mod observe;
mod packets;
mod place;
mod pods;
mod policies;
mod rules;
mod scale;
mod sockets;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{lab::Interrupts, report::Measured};

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure these parts alone
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds per packet in each program
    Packets,
    /// Connections to Services beside direct ones and kube-proxy's rules
    Sockets,
    /// Connections with and without probes and somebody who follows them
    Observe,
    /// Connections between pods of two nodes beside the kernel's routing
    Pods,
    /// Changes, restart and memory of the data plane's user space
    Control,
    /// Changes of a thousand policies for a thousand pods
    Policies,
    /// Load and changes of a table of 100,000 services with 1,000,000 endpoints
    Scale,
}

impl Part {
    const ALL: [Part; 7] =
        [Part::Packets, Part::Sockets, Part::Observe, Part::Pods, Part::Control, Part::Policies, Part::Scale];

    fn measure(self, place: &place::Place) -> Result<Measured> {
        match self {
            Part::Packets => packets::run(place),
            Part::Sockets => sockets::run(place),
            Part::Observe => observe::run(place),
            Part::Pods => pods::run(place),
            Part::Control => control::run(place),
            Part::Policies => policies::run(place),
            Part::Scale => scale::run(place),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let interrupts = Interrupts::catch()?;
    let mut all = Measured::default();
    let place = place::Place::enter(interrupts)?;
    for part in Part::ALL.into_iter().filter(|part| options.only.is_empty() || options.only.contains(part)) {
        let measured = part.measure(&place)?;
        all.results.extend(measured.results);
        all.goals.extend(measured.goals);
        all.notes.extend(measured.notes);
    }
    Ok(all)
}
