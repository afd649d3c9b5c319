//! The way of a packet over the node: which programs see it, in which order, and where it ends.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use sluice_ebpf_common::Reason;
use sluice_packet::{MARK_NEEDS_SOURCE, SocketVerdict, Verdict, connect};

use super::copies::{Copies, Says};
use super::decide::{self, Decision, Names, advice, end};
use super::frame::{Ends, Frame, Role, Ways, packet};
use super::listens::listens;
use super::live::{Before, Live};
use super::model::{Model, Note, Overlay, Place};
use super::names::Dictionary;
use super::routes::{Route, Routes};
use super::stage::{self, Done, Spot};
use super::{Answer, Explanation, Fate, Known, Question, Step};
use crate::attach::Link;
use crate::model::Protocol;
use crate::policy::model::Direction;
use crate::range::wire;
use crate::{Error, sys, wire};

/// Ports that a packet without a connection may have come from: the first one that no connection has.
pub(super) const CLIENT_PORTS: std::ops::Range<u16> = 40_000..40_064;
/// Ethernet address of whoever has none here.
const SOMEBODY: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What the pod network calls its tunnel.
const TUNNEL: &str = "sluice.vxlan";

/// Where a packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// In the pod behind this link.
    Pod(u32),
    /// On the node.
    Node,
    /// It comes in by this link.
    Outside(u32),
}

/// Where a packet ended that an answer may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    place: Origin,
    ends: Ends,
}

/// What a link is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pod,
    Uplink,
    Other,
}

pub(super) struct Walk<'a> {
    pub(super) live: &'a Live,
    pub(super) copies: &'a mut Copies,
    overlay: Overlay,
    pub(super) routes: Routes,
    pub(super) names: Dictionary<'a>,
    steps: Vec<Step>,
    pub(super) warnings: Vec<String>,
    pub(super) checked: Vec<&'static str>,
    /// What is followed is an answer that a program made.
    is_answer: bool,
    arrival: Option<Arrival>,
}

/// Either the packet goes on, or this becomes of it.
pub(super) type Way<T> = Result<Result<T, Fate>, Error>;

pub(super) fn walk(live: &Live, copies: &mut Copies, question: &Question) -> Result<Explanation, Error> {
    let routes = Routes::open().map_err(|error| Error::system("open netlink", error))?;
    let mut walk = Walk {
        live,
        copies,
        overlay: Overlay::default(),
        routes,
        names: Dictionary { live, cluster: question.cluster.as_ref(), protocol: question.protocol },
        steps: Vec::new(),
        warnings: Vec::new(),
        checked: Vec::new(),
        is_answer: false,
        arrival: None,
    };
    let origin = walk.origin(question.sender)?;
    let (ends, existing) = walk.ends(origin, question)?;
    let (fate, sent) = walk.on(origin, ends, question, existing)?;
    let steps = std::mem::take(&mut walk.steps);
    let answer = walk.answered(&sent, question.protocol)?;
    Ok(Explanation {
        protocol: question.protocol.name(),
        asked: ends,
        existing,
        steps,
        fate,
        answer,
        warnings: walk.warnings,
    })
}

impl Walk<'_> {
    /// From where it begins to where it ends, and with which ends it began there.
    fn on(
        &mut self,
        origin: Origin,
        mut ends: Ends,
        question: &Question,
        existing: bool,
    ) -> Result<(Fate, Ends), Error> {
        if let Some(cookie) = self.socket_of(origin, question.protocol, existing) {
            match self.connects(cookie, &mut ends, question) {
                Ok(()) => {}
                Err(fate) => return Ok((fate, ends)),
            }
            if origin == Origin::Node {
                ends.source.address = self.own_address(ends.destination.address)?;
            }
        }
        if let Origin::Pod(link) = origin
            && ends.source.address == ends.destination.address
        {
            // It never leaves the pod.
            let fate = self.delivered(&ends, Some(link));
            self.arrival = None;
            return Ok((fate, ends));
        }
        let role = if existing { Role::Continues } else { Role::Opens };
        Ok((self.follow(origin, &ends, question.protocol, role)?, ends))
    }

    /// A packet from its link on, or from the node's stack.
    fn follow(&mut self, origin: Origin, ends: &Ends, protocol: Protocol, role: Role) -> Result<Fate, Error> {
        let routes = Routes::open().map_err(|error| Error::system("open netlink", error))?;
        let ways = Ways { routes: Some(routes), for_node: true, ..Ways::default() };
        let own = match origin {
            Origin::Node => SOMEBODY,
            Origin::Pod(link) | Origin::Outside(link) => hardware_address(link)?,
        };
        let bytes = packet(ends, protocol.number(), role, [own, SOMEBODY]);
        let frame = Frame { bytes, mark: 0, ways: &ways };
        let fate = match origin {
            Origin::Node => self.by_stack(frame, 0),
            Origin::Pod(link) => self.sent_by_pod(frame, link),
            Origin::Outside(link) if self.kind(link) == Kind::Uplink => self.came_in(frame, link),
            Origin::Outside(link) => self.by_stack(frame, link),
        };
        fate.map(|fate| fate.unwrap_or_else(|fate| fate))
    }

    /// What becomes of the answer of whoever the packet came to, and whether the sender takes it for one.
    fn answered(&mut self, sent: &Ends, protocol: Protocol) -> Result<Option<Answer>, Error> {
        let Some(Arrival { place, ends }) = self.arrival.take() else { return Ok(None) };
        self.is_answer = true;
        let back = Ends { source: ends.destination, destination: ends.source };
        let fate = self.follow(place, &back, protocol, Role::Accepts)?;
        let fits = match &fate {
            Fate::Delivered { to, seen_as, .. } | Fate::Leaves { to, seen_as, .. } => {
                (*to, *seen_as) == (sent.source, sent.destination)
            }
            _ => false,
        };
        Ok(Some(Answer { fits, steps: std::mem::take(&mut self.steps), fate }))
    }

    /// A socket's connect or first datagram.
    fn connects(&mut self, cookie: u64, ends: &mut Ends, question: &Question) -> Result<(), Fate> {
        let model = Model::new(self.live, Place::Socket(cookie), self.overlay.clone(), vec![chance()]);
        let destination = ends.destination;
        let number = question.protocol.number();
        let says = connect(&model, &wire(destination.address), destination.port.to_be(), number);
        self.overlay = model.overlay.into_inner();
        let notes = model.notes.into_inner();
        let before = *ends;
        if let SocketVerdict::Translated(translation, _) = says {
            ends.destination = end(&translation.backend_address, translation.backend_port);
        }
        let refused_at_once = matches!(says, SocketVerdict::Refused(_));
        let after = (!refused_at_once).then_some(*ends);
        let mut decisions = decide::translation(&notes, &before, after.as_ref(), sys::coarse_seconds(), &self.names);
        if decisions.is_empty() {
            decisions.push(Decision::NotAService { address: destination });
        }
        self.steps.push(Step {
            at: "connect",
            link: None,
            program: None,
            known: Known::Computed,
            answer: false,
            before,
            after,
            decisions,
        });
        if !refused_at_once {
            return Ok(());
        }
        Err(refused(reason(&notes).unwrap_or(Reason::NoEndpoint)))
    }

    fn sent_by_pod(&mut self, mut frame: Frame<'_>, link: u32) -> Way<Fate> {
        let spot = Spot { program: "pod_in", link, came_by: link };
        match self.translates(&mut frame, spot)? {
            Ok(()) => {}
            Err(fate) => return Ok(Err(fate)),
        }
        match self.judges(&mut frame, Spot { program: "policy_in", ..spot })? {
            Ok(()) => self.by_stack(frame, link),
            Err(fate) => Ok(Err(fate)),
        }
    }

    fn came_in(&mut self, mut frame: Frame<'_>, link: u32) -> Way<Fate> {
        let before = self.live.sends_onward(link);
        if let Some(Before::Here(program)) = before
            && let Err(fate) = self.sends_on(&mut frame, Spot { program, link, came_by: link })?
        {
            return Ok(Err(fate));
        }
        if let Err(fate) = self.translates(&mut frame, Spot { program: "uplink_in", link, came_by: link })? {
            return Ok(Err(fate));
        }
        // What goes on to another node.
        if before == Some(Before::Below) && frame.mark & MARK_NEEDS_SOURCE != 0 {
            self.warnings.push(format!(
                "the driver of the link below {} runs uplink_xdp first: where the packet goes out again at once, that program \
                 does in one step what uplink_in, the routes and uplink_out do here, and the node's firewall does not see it",
                Link::name_of(link)
            ));
        }
        self.by_stack(frame, link)
    }

    /// A program before all others on a link, which sends a Service's packet on to a backend elsewhere, or leaves it to them.
    fn sends_on(&mut self, frame: &mut Frame<'_>, spot: Spot) -> Way<()> {
        let Some(before) = frame.seen() else { return Ok(Err(dropped(Reason::Rewrite))) };
        let done = stage::run(self.live, self.copies, &mut self.overlay, frame, spot)?;
        let after = (done.says != Says::Drop).then(|| frame.seen().unwrap_or(before));
        let mut decisions =
            decide::translation(&done.notes, &before, after.as_ref(), sys::coarse_seconds(), &self.names);
        let by = match frame.ways.out.get().link {
            0 => spot.link,
            link => link.into(),
        };
        let mut gateway = None;
        match done.says {
            Says::Pass => decisions.push(Decision::Stack),
            Says::Redirect => {
                let outer = frame.ends();
                if let (Some(_), Some(outer)) = (frame.carried(), outer) {
                    let (source, destination) = (outer.source.address, outer.destination.address);
                    decisions.push(Decision::Carried { source, destination });
                }
                gateway = self.gateway(outer);
                decisions.push(Decision::Onward { link: Link::name_of(by), gateway });
            }
            Says::Drop => {}
        }
        self.add(spot, &done, before, after, decisions);
        match done.says {
            Says::Pass => Ok(Ok(())),
            Says::Drop => Ok(Err(dropped(done.reasons.first().copied().unwrap_or(Reason::Rewrite)))),
            // The driver sends it.
            Says::Redirect if spot.program == wire::PROGRAM => Ok(Err(self.left(frame, by, gateway))),
            Says::Redirect => {
                let fate = self.leaves(frame.clone(), by, gateway, spot.came_by)?;
                Ok(Err(fate.unwrap_or_else(|fate| fate)))
            }
        }
    }

    /// The neighbour by which a packet with these ends goes, where it is not the destination itself.
    fn gateway(&self, ends: Option<Ends>) -> Option<IpAddr> {
        match self.find(None, ends?.destination.address, 0) {
            Ok(Route::By { gateway, .. }) => gateway,
            _ => None,
        }
    }

    /// The stack's routes, and the programs of the link that they name.
    fn by_stack(&mut self, mut frame: Frame<'_>, came_by: u32) -> Way<Fate> {
        let Some(ends) = frame.ends() else { return Ok(Err(dropped(Reason::Rewrite))) };
        let route = self
            .routes
            .of(&ends, came_by, frame.mark)
            .map_err(|error| Error::system(format!("ask for the route to {}", ends.destination.address), error))?;
        let (kind, to, gateway, why) = match route {
            Route::Here { .. } => ("here", None, None, None),
            Route::By { link, gateway, .. } => ("forward", Some(link), gateway, None),
            Route::Nowhere(why) => ("nowhere", None, None, Some(why)),
        };
        let mut decisions = vec![Decision::Route { kind, link: to.map(Link::name_of), gateway, why: why.clone() }];
        if let Some(link) = to.filter(|to| Link::name_of(*to) == TUNNEL) {
            let end = gateway.map(|gateway| self.routes.tunnel_end(link, gateway)).transpose();
            let node = end.map_err(|error| Error::system("ask for the tunnel's ends", error))?.flatten();
            decisions.push(Decision::Tunnel { kind: "VXLAN", node });
        }
        let after = why.is_none().then_some(ends);
        self.steps.push(Step {
            at: "route",
            link: None,
            program: None,
            known: Known::Asked,
            answer: self.is_answer,
            before: ends,
            after,
            decisions,
        });
        if let Some(text) = why {
            let advice = "look at the node's routes: `ip route get` with the packet's ends says the same";
            return Ok(Err(Fate::Unreachable { text, advice }));
        }
        if came_by == 0
            && let Some(link) = self.own_link(to)
        {
            return self.sent_by_node(frame, link);
        }
        let Some(to) = to else { return Ok(Ok(self.arrives(&ends))) };
        if came_by != 0 {
            frame.forwarded([SOMEBODY, hardware_address(to).unwrap_or(SOMEBODY)]);
        }
        match self.kind(to) {
            Kind::Pod => self.goes_to_pod(frame, to, came_by),
            Kind::Uplink => self.leaves(frame, to, gateway, came_by),
            Kind::Other => Ok(Ok(self.left(&frame, to, gateway))),
        }
    }

    /// What a program made of the packet goes back by the link that it came by, where it meets the programs of what goes out.
    fn answers(&mut self, mut frame: Frame<'_>, spot: Spot) -> Way<()> {
        self.is_answer = true;
        let pair: &[&'static str] = match self.kind(spot.link) {
            Kind::Pod => &["policy_out", "pod_out"],
            // It comes in by the home link.
            _ if spot.is_own() => return Ok(self.comes_home(frame)?.map(drop)),
            _ => &["uplink_out"],
        };
        for program in pair {
            let back = Spot { program, link: spot.link, came_by: spot.link };
            let passed = match *program {
                "policy_out" => self.judges(&mut frame, back)?,
                _ => self.translates(&mut frame, back)?,
            };
            if let Err(fate) = passed {
                self.warnings.push(format!("the sender is not told: {program} drops the answer"));
                return Ok(Err(fate));
            }
        }
        Ok(Ok(()))
    }

    /// Out of the stack and into a pod.
    fn goes_to_pod(&mut self, mut frame: Frame<'_>, link: u32, came_by: u32) -> Way<Fate> {
        let spot = Spot { program: "policy_out", link, came_by };
        match self.judges(&mut frame, spot)? {
            Ok(()) => {}
            Err(fate) => return Ok(Err(fate)),
        }
        match self.translates(&mut frame, Spot { program: "pod_out", ..spot })? {
            Ok(()) => Ok(Ok(self.delivered_by(&frame, link))),
            Err(fate) => Ok(Err(fate)),
        }
    }

    /// Out of the node.
    fn leaves(&mut self, mut frame: Frame<'_>, link: u32, gateway: Option<IpAddr>, came_by: u32) -> Way<Fate> {
        match self.translates(&mut frame, Spot { program: "uplink_out", link, came_by })? {
            Ok(()) => Ok(Ok(self.left(&frame, link, gateway))),
            Err(fate) => Ok(Err(fate)),
        }
    }

    /// A program that judges.
    fn judges(&mut self, frame: &mut Frame<'_>, spot: Spot) -> Way<()> {
        let Some(before) = frame.ends() else { return Ok(Err(dropped(Reason::Rewrite))) };
        let done = stage::run(self.live, self.copies, &mut self.overlay, frame, spot)?;
        let passes = done.says == Says::Pass;
        let own = if spot.program == "policy_in" { Direction::Egress } else { Direction::Ingress };
        let decision = decide::policy(&done.notes, &before, own, passes, &self.names);
        let after = passes.then_some(before);
        self.add(spot, &done, before, after, vec![decision]);
        let reason = if own == Direction::Egress { Reason::PolicyEgress } else { Reason::PolicyIngress };
        Ok(if passes { Ok(()) } else { Err(dropped(done.reasons.first().copied().unwrap_or(reason))) })
    }

    /// A program that translates, and sends on past the stack where it can.
    pub(super) fn translates(&mut self, frame: &mut Frame<'_>, spot: Spot) -> Way<()> {
        let Some(before) = frame.seen() else { return Ok(Err(dropped(Reason::Rewrite))) };
        let done = stage::run(self.live, self.copies, &mut self.overlay, frame, spot)?;
        let goes_on = done.says != Says::Drop && done.verdict != Some(Verdict::Answer);
        let after = goes_on.then(|| frame.seen().unwrap_or(before));
        let mut decisions =
            decide::translation(&done.notes, &before, after.as_ref(), sys::coarse_seconds(), &self.names);
        if decisions.is_empty() && spot.program.ends_with("_in") {
            decisions.push(Decision::NotAService { address: before.destination });
        }
        let exit = self.exit(frame, &done, &mut decisions)?;
        self.add(spot, &done, before, after, decisions);
        let counted = done.reasons.iter().copied().find(|reason| reason.drops());
        match (done.says, done.verdict) {
            (Says::Drop, _) => Ok(Err(dropped(counted.unwrap_or(Reason::Rewrite)))),
            (_, Some(Verdict::Answer)) => {
                let fate = refused(counted.unwrap_or(Reason::NoEndpoint));
                Ok(Err(self.answers(frame.clone(), spot)?.err().unwrap_or(fate)))
            }
            // The kernel answers for its own addresses as for any closed port.
            (Says::Pass, _) if counted == Some(Reason::NoEndpoint) => Ok(Err(refused(Reason::NoEndpoint))),
            (Says::Pass, _) => Ok(Ok(())),
            (Says::Redirect, Some(Verdict::Into(link))) => Ok(Err(self.delivered_by(frame, link))),
            (Says::Redirect, Some(Verdict::Home)) => {
                Ok(Err(self.comes_home(frame.clone())?.unwrap_or_else(|fate| fate)))
            }
            (Says::Redirect, Some(_)) => match exit {
                Some((link, gateway)) => {
                    let fate = match self.kind(link) {
                        Kind::Pod => self.goes_to_pod(frame.clone(), link, spot.came_by)?,
                        _ => self.leaves(frame.clone(), link, gateway, spot.came_by)?,
                    };
                    Ok(Err(fate.unwrap_or_else(|fate| fate)))
                }
                None => Ok(Err(dropped(Reason::Rewrite))),
            },
            (Says::Redirect, None) => Ok(Err(self.left(frame, spot.link, None))),
        }
    }

    /// By which link and to whom a program sends a packet on.
    fn exit(
        &self,
        frame: &Frame<'_>,
        done: &Done,
        decisions: &mut Vec<Decision>,
    ) -> Result<Option<(u32, Option<IpAddr>)>, Error> {
        let ends = frame.ends();
        match done.verdict {
            Some(Verdict::Into(link)) => {
                decisions.push(Decision::Straight { link: Link::name_of(link) });
                Ok(None)
            }
            Some(Verdict::Onward(link)) => {
                if let (Some(_), Some(outer)) = (frame.carried(), ends) {
                    let (source, destination) = (outer.source.address, outer.destination.address);
                    decisions.push(Decision::Carried { source, destination });
                }
                let gateway = self.gateway(ends);
                decisions.push(Decision::Onward { link: Link::name_of(link), gateway });
                Ok(Some((link, gateway)))
            }
            Some(Verdict::Leave(_)) => {
                let exits = frame.ways.exits.borrow();
                let of_packet = |key: &sluice_ebpf_common::FlowKey| {
                    ends.is_some_and(|ends| key.destination == wire(ends.destination.address))
                };
                let Some((_, exit)) = exits.iter().find(|(key, exit)| exit.link != 0 && of_packet(key)) else {
                    return Ok(None);
                };
                let gateway = self.gateway(ends);
                decisions.push(Decision::Onward { link: Link::name_of(exit.link), gateway });
                Ok(Some((exit.link, gateway)))
            }
            _ => Ok(None),
        }
    }

    fn add(&mut self, spot: Spot, done: &Done, before: Ends, after: Option<Ends>, decisions: Vec<Decision>) {
        let known = if done.verdict.is_some() { Known::Run } else { Known::RunDiffers };
        if known == Known::RunDiffers {
            self.warnings.push(format!(
                "{} did something else in the kernel than the same library did on the host: believe the kernel's result, not \
                 the decisions, and report this",
                spot.program
            ));
        }
        let program = self.attached(spot);
        self.check(spot, program);
        let (link, answer) = (Some(Link::name_of(spot.link)), self.is_answer);
        self.steps.push(Step { at: spot.program, link, program, known, answer, before, after, decisions });
    }

    /// At the node itself, where somebody has to listen.
    pub(super) fn arrives(&mut self, ends: &Ends) -> Fate {
        if !self.is_answer && listens(ends.destination, self.names.protocol) == Some(false) {
            return Fate::Refused {
                reason: "NO_SOCKET",
                text: "no socket of this node is open on the port",
                advice: "start the program that listens there; `ss -lntu` shows those that do",
            };
        }
        self.delivered(ends, None)
    }

    fn delivered_by(&mut self, frame: &Frame<'_>, link: u32) -> Fate {
        match frame.ends() {
            Some(ends) => self.delivered(&ends, Some(link)),
            None => dropped(Reason::Rewrite),
        }
    }

    fn delivered(&mut self, ends: &Ends, link: Option<u32>) -> Fate {
        self.arrival = Some(Arrival { place: link.map_or(Origin::Node, Origin::Pod), ends: *ends });
        Fate::Delivered {
            to: ends.destination,
            seen_as: ends.source,
            pod: self.names.pod(ends.destination.address),
            link: link.map(Link::name_of),
        }
    }

    /// Out by a link. What is carried inside another packet is answered by another way.
    fn left(&mut self, frame: &Frame<'_>, link: u32, gateway: Option<IpAddr>) -> Fate {
        let Some(ends) = frame.seen() else { return dropped(Reason::Rewrite) };
        let outer = frame.carried().and(frame.ends()).map(|outer| outer.destination.address);
        self.arrival = outer.is_none().then_some(Arrival { place: Origin::Outside(link), ends });
        Fate::Leaves {
            to: ends.destination,
            seen_as: ends.source,
            link: Link::name_of(link),
            gateway,
            inside_to: outer,
        }
    }
}

fn refused(reason: Reason) -> Fate {
    Fate::Refused { reason: reason.name(), text: reason.text(), advice: advice(reason) }
}

pub(super) fn dropped(reason: Reason) -> Fate {
    Fate::Dropped { reason: reason.name(), text: reason.text(), advice: advice(reason) }
}

fn reason(notes: &[Note]) -> Option<Reason> {
    notes.iter().rev().find_map(|note| if let Note::Reason(reason) = note { Some(*reason) } else { None })
}

fn hardware_address(link: u32) -> Result<[u8; 6], Error> {
    let Link { name, .. } = Link::by_index(link)?;
    sys::hardware_address(&name).map_err(|error| Error::system(format!("ask about the link {name}"), error))
}

/// A number by chance.
fn chance() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
