//! `lb`: what the Service data plane costs. Seven parts: a packet in each program (`packets`), connections over sockets beside
//! direct ones and beside kube-proxy's rules (`sockets`), the same with and without observers (`observe`), those between pods of
//! two nodes beside plain routing (`pods`), changes, restart and memory of its user space (`control`), changes of policies
//! (`policies`), and changes of a very large table (`scale`).
//!
//! It needs no cluster: the data plane is fed by its own compiler and planner, in a private network and mount namespace that
//! end with the process. Comparisons are ratios within one run. Of a cluster that is somebody else's, what its pods see is
//! measured (`elsewhere`).

mod api;
pub(crate) mod call;
mod cases;
pub(crate) mod control;
mod elsewhere;
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

use crate::{
    lab::Interrupts,
    report::{Measured, Report},
    trial::Trial,
};

#[derive(Args)]
pub(crate) struct Options {
    /// One JSON document on standard output instead of the table
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure these parts alone
    #[arg(long, value_name = "PART", value_delimiter = ',', conflicts_with = "kubeconfig")]
    only: Vec<Part>,
    #[command(flatten)]
    elsewhere: elsewhere::Elsewhere,
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

pub(crate) fn run(options: &Options) -> Result<Report> {
    if options.elsewhere.kubeconfig.is_some() {
        return elsewhere::run(&options.elsewhere);
    }
    let parts: Vec<Part> =
        Part::ALL.into_iter().filter(|part| options.only.is_empty() || options.only.contains(part)).collect();
    let interrupts = Interrupts::catch()?;
    let names = parts.iter().filter_map(|part| Some(part.to_possible_value()?.get_name().to_owned()));
    Trial::begin("lb", [("parts", names.collect::<Vec<_>>().join(","))])?.own(|| {
        let mut all = Measured::default();
        let place = place::Place::enter(interrupts)?;
        for part in parts {
            all.extend(part.measure(&place)?);
        }
        Ok(all)
    })
}
