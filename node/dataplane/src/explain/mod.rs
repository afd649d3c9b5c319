//! What becomes of a packet, decision by decision: the packet programs run once more on the live tables and on copies of what
//! they write, and the same library runs on the host, where it can be watched. What is said is what the kernel's program did;
//! where the host does not come to the same, that is said, too.
//!
//! Nothing here writes a live map, sends a packet, or attaches a program. What sockets decide when they connect cannot be run
//! in the kernel, and is the library's word alone.

mod attached;
mod copies;
mod decide;
mod frame;
mod listens;
mod live;
mod model;
mod names;
mod own;
mod routes;
mod stage;
mod start;
mod walk;

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;
use sluice_ebpf_common::SCHEMA;

pub use decide::{Because, Choice, Decision, advice};
pub use frame::Ends;

use crate::attach::has_pod_programs;
use crate::model::Protocol;
use crate::pins::Pins;
use crate::policy::model::Snapshot;
use crate::{End, Error};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A socket of this node itself.
    Node,
    /// A pod of this node, or somebody outside, by address.
    At(IpAddr),
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who sends.
    pub sender: Sender,
    /// To whom.
    pub destination: End,
    /// By which protocol.
    pub protocol: Protocol,
    /// From which port, where it matters: that of a connection that is there.
    pub source_port: Option<u16>,
    /// Pods, namespaces and policies, for their names' sake; without them numbers are said.
    pub cluster: Option<Snapshot>,
}

/// How a step is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Known {
    /// The kernel ran its program on the packet, and the library on the host came to the same.
    Run,
    /// The kernel ran its program on the packet, and the library on the host came to something else: what is said here is
    /// the kernel's result, but not why.
    RunDiffers,
    /// Computed by the library on the host, from the live tables.
    Computed,
    /// The kernel's routes were asked.
    Asked,
}

/// A place that the packet comes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `connect`, `route`, or a program's name.
    pub at: &'static str,
    /// The link that the program is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The attached program's id in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<u32>,
    /// How this is known.
    pub known: Known,
    /// It is about an answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub answer: bool,
    /// The packet's ends before.
    pub before: Ends,
    /// And after; `None` when it went no further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Ends>,
    /// What was decided, in its order.
    pub decisions: Vec<Decision>,
}

/// What becomes of the packet in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Fate {
    /// It comes to somebody on this node.
    Delivered {
        /// Address and port.
        to: End,
        /// Who the receiver takes for the sender.
        seen_as: End,
        /// `namespace/name` of the pod; `None` for the node itself, and where it is not known.
        #[serde(skip_serializing_if = "Option::is_none")]
        pod: Option<String>,
        /// The node's side of the pod's link; `None` for the node itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        link: Option<String>,
    },
    /// It leaves this node.
    Leaves {
        /// Address and port.
        to: End,
        /// With this source.
        seen_as: End,
        /// By this link.
        link: String,
        /// To this neighbour, where it is not the destination itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
        /// Inside a packet to this backend, whose node answers the client itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        inside_to: Option<IpAddr>,
    },
    /// The sender is told that nobody is there.
    Refused {
        /// The reason's name, as `sluice drops` prints it.
        reason: &'static str,
        /// For people.
        text: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// It is lost.
    Dropped {
        /// As above.
        reason: &'static str,
        /// As above.
        text: &'static str,
        /// As above.
        advice: &'static str,
    },
    /// The kernel's routes lead nowhere.
    Unreachable {
        /// Why.
        text: String,
        /// What to do.
        advice: &'static str,
    },
}

/// What becomes of an answer to the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// It comes to who sent the packet, from where that was sent to.
    pub fits: bool,
    /// The places that it comes by on this node.
    pub steps: Vec<Step>,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of a packet and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// What was asked about.
    pub asked: Ends,
    /// It belongs to a connection that is there.
    pub existing: bool,
    /// The places that it comes by.
    pub steps: Vec<Step>,
    /// What becomes of it.
    pub fate: Fate,
    /// What becomes of the answer, where the packet came to somebody whose answers come by this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// What to be careful about.
    pub warnings: Vec<String>,
}

/// A node's tables, and its programs beside them: ready to be asked.
pub struct Explainer {
    live: live::Live,
    copies: copies::Copies,
}

impl Explainer {
    /// For the node whose data plane is pinned there.
    pub fn open(pin_dir: &Path) -> Result<Explainer, Error> {
        let live = live::Live::open(Pins::new(pin_dir, SCHEMA))?;
        let copies = copies::Copies::load(&live.pins)?;
        Ok(Explainer { live, copies })
    }

    /// Is it an address of this node, or of one of its pods?
    pub fn is_here(&self, address: IpAddr) -> Result<bool, Error> {
        let failed = |error| Error::system(format!("ask for the route to {address}"), error);
        let found = routes::Routes::open().and_then(|routes| routes.find(None, address, 0, 0)).map_err(failed)?;
        Ok(match found {
            routes::Route::Here { .. } => true,
            routes::Route::By { link, .. } => has_pod_programs(&self.live.pins, link),
            routes::Route::Nowhere(_) => false,
        })
    }

    /// What becomes of a packet. Links and routes are those of the calling network namespace.
    pub fn explain(&mut self, question: &Question) -> Result<Explanation, Error> {
        self.live.refresh()?;
        walk::walk(&self.live, &mut self.copies, question)
    }
}

/// What becomes of one packet.
pub fn explain(pin_dir: &Path, question: &Question) -> Result<Explanation, Error> {
    Explainer::open(pin_dir)?.explain(question)
}
