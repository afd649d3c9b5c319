//! A program on a packet, twice: in the kernel on copies, and by the library on the host. The host is told what the kernel
//! chose by chance, and what the kernel's routes said.

use sluice_ebpf_common::{Frontend, HOME_MAC, Reason};
use sluice_packet::{
    Bytes, Maps, Routed, Verdict, Way, carry_out, egress_pod, egress_uplink, from_node, from_outside, from_pod,
    may_receive, may_send, onward, settle, settled, uplink,
};

use super::copies::{Copies, Ran, Says, Sent};
use super::frame::{Early, Frame};
use super::live::Live;
use super::model::{Model, Note, Overlay, Place};
use crate::attach::ONWARD;
use crate::range::unwire;
use crate::{Error, wire};

/// Runs at most, while the host finds what the kernel has to know, too.
const ATTEMPTS: usize = 4;

/// Where a program runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub(super) program: &'static str,
    pub(super) link: u32,
    /// The link by which the packet came to the node; 0 when the node sent it.
    pub(super) came_by: u32,
}

impl Spot {
    /// Does it see packets before the others of its link?
    fn is_early(self) -> bool {
        self.program == wire::PROGRAM || self.program == ONWARD.0
    }
}

/// What a program did.
pub(super) struct Done {
    pub(super) says: Says,
    /// Where the library sends it; `None` when the host did not come to the same.
    pub(super) verdict: Option<Verdict>,
    pub(super) notes: Vec<Note>,
    /// What the kernel counted.
    pub(super) reasons: Vec<Reason>,
}

/// Runs a program on a packet, which is changed, and on what is known so far, which grows.
pub(super) fn run(
    live: &Live,
    copies: &mut Copies,
    overlay: &mut Overlay,
    frame: &mut Frame<'_>,
    spot: Spot,
) -> Result<Done, Error> {
    let place = if spot.is_own() { Place::Own(spot.link) } else { Place::Link(spot.link) };
    let scout = Model::new(live, place, overlay.clone(), vec![0]);
    host(spot, &mut frame.clone(), &scout);
    let mut seeds = overlay.clone();
    seeds.learn(&scout.overlay.borrow(), live);
    let frontend = frontend(&scout.notes.borrow());
    let mut last = None;
    for _ in 0..ATTEMPTS {
        copies.seed(&seeds, live)?;
        if spot.is_early() {
            copies.seed_early(&seeds, live)?;
        }
        let sent = Sent { frame: &frame.bytes, mark: frame.mark, link: spot.link, came_by: spot.came_by };
        let ran = copies.run(spot.program, &sent)?;
        *frame.ways.exits.borrow_mut() = copies.exits()?;
        let route = copies.route()?;
        frame.ways.out.set(route);
        let mut missing = None;
        for random in chances(live, frame, &ran, frontend.as_ref()) {
            let model = Model::new(live, place, overlay.clone(), random).with_route(route);
            let mut ours = frame.clone();
            let verdict = host(spot, &mut ours, &model);
            let (found, notes) = (model.overlay.into_inner(), model.notes.into_inner());
            if !found.is_within(&seeds, live) {
                missing = Some(found);
                continue;
            }
            if agrees(verdict, &ours, &notes, &ran) {
                *overlay = found;
                *frame = ours;
                return Ok(Done { says: ran.says, verdict: Some(verdict), notes, reasons: ran.reasons });
            }
            last = Some((notes, found));
        }
        match missing {
            Some(found) => seeds.learn(&found, live),
            None => {
                (frame.bytes, frame.mark) = (ran.frame, ran.mark);
                let notes = last.map(|(notes, _)| notes).unwrap_or_default();
                return Ok(Done { says: ran.says, verdict: None, notes, reasons: ran.reasons });
            }
        }
    }
    Err(Error::Kernel("the tables change faster than they can be looked at: try again".into()))
}

/// The library's part of a program, as in `ebpf/programs`.
fn host(spot: Spot, frame: &mut Frame<'_>, model: &Model<'_>) -> Verdict {
    let verdict = match spot.program {
        wire::PROGRAM => return early(uplink(&mut Early::<true>(frame), model)),
        "uplink_onward" => return onward_by(frame, model),
        "pod_in" => from_pod(frame, model),
        "pod_out" => egress_pod(frame, model),
        "uplink_in" => from_outside(frame, model),
        "uplink_out" if settled(frame) => return Verdict::Pass,
        "own_out" => from_node(frame, model),
        "own_in" => egress_pod(frame, model),
        "uplink_out" => egress_uplink(frame, model),
        "policy_in" => return may_send(frame, model),
        _ => return may_receive(frame, model, spot.came_by),
    };
    let verdict = carry_out(frame, model, verdict);
    let home = verdict == Verdict::Home || spot.is_own() && verdict == Verdict::Answer;
    if home && frame.write(0, HOME_MAC).is_none() {
        return Verdict::Drop(Reason::Rewrite);
    }
    verdict
}

/// What a program before the stack says, as the others say it.
fn early(way: Way) -> Verdict {
    match way {
        Way::Stack => Verdict::Pass,
        Way::Out(link) => Verdict::Onward(link),
        Way::Drop => Verdict::Drop(Reason::Rewrite),
    }
}

fn onward_by(frame: &mut Frame<'_>, model: &Model<'_>) -> Verdict {
    if !frame.is_for_node() || frame.mark != 0 {
        return Verdict::Pass;
    }
    let verdict = early(onward(&mut Early::<false>(frame), model, || true));
    match verdict {
        Verdict::Onward(_) => settle(frame),
        Verdict::Drop(reason) => model.count_reason(reason),
        _ => {}
    }
    verdict
}

fn agrees(verdict: Verdict, frame: &Frame<'_>, notes: &[Note], ran: &Ran) -> bool {
    let says = match verdict {
        Verdict::Pass => Says::Pass,
        Verdict::Answer | Verdict::Onward(_) | Verdict::Into(_) | Verdict::Leave(_) | Verdict::Home => Says::Redirect,
        Verdict::Drop(_) | Verdict::Refuse(_) | Verdict::TooBig(_) | Verdict::Encapsulate => Says::Drop,
    };
    let counted = notes.iter().filter_map(|note| if let Note::Reason(reason) = note { Some(reason) } else { None });
    says == ran.says
        && counted.clone().all(|reason| ran.reasons.contains(reason))
        && ran.reasons.iter().all(|reason| counted.clone().any(|known| known == reason))
        // What is dropped is half changed.
        && (says == Says::Drop || frame.bytes == ran.frame && frame.mark == ran.mark)
}

fn frontend(notes: &[Note]) -> Option<Frontend> {
    notes.iter().rev().find_map(|note| if let Note::Frontend(_, frontend) = note { Some(*frontend) } else { None })
}

/// What chance has to say on the host to choose as the kernel did: a backend, a port, both, or nothing.
fn chances(live: &Live, frame: &Frame<'_>, ran: &Ran, frontend: Option<&Frontend>) -> Vec<Vec<u32>> {
    let after = Frame { bytes: ran.frame.clone(), mark: ran.mark, ways: frame.ways }.ends();
    let (Some(before), Some(after)) = (frame.ends(), after) else { return vec![vec![0]] };
    let backend = frontend.filter(|_| before.destination != after.destination).and_then(|frontend| {
        let at = (0..frontend.count).find(|at| {
            let id = live.slot(frontend.base.wrapping_add(*at));
            id.and_then(|id| live.backend(id)).is_some_and(|backend| {
                unwire(backend.address) == after.destination.address
                    && u16::from_be(backend.port) == after.destination.port
            })
        })?;
        Some(place(at, frontend.count))
    });
    let port = (before.source.port != after.source.port).then(|| port(live, after.source.port)).flatten();
    let both = backend.zip(port).map(|(backend, port)| vec![backend, port]);
    let mut all: Vec<Vec<u32>> = both.into_iter().chain(port.map(|port| vec![port])).collect();
    all.extend(backend.map(|backend| vec![backend]));
    all.push(vec![0]);
    all
}

/// The smallest number that leads to a place among so many.
fn place(at: u32, of: u32) -> u32 {
    (u64::from(at) << 32).div_ceil(u64::from(of.max(1))) as u32
}

/// A number that leads to this port, if it is free: see `nat` in the packet library.
fn port(live: &Live, port: u16) -> Option<u32> {
    let settings = &live.settings;
    let number = u32::from(port.checked_sub(settings.source_port_first)?);
    let ports = u32::from(settings.source_port_last.checked_sub(settings.source_port_first)?) + 1;
    let group = (u64::from(number / 128) << 32).div_ceil(u64::from(ports.div_ceil(128))) as u32;
    Some((((group >> 16) + 1) << 16) | ((number % 64) << 8) | (number / 64 % 2))
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_number_leads_to_its_place() {
        for of in [1, 2, 3, 7, 64, 1_000] {
            for at in 0..of {
                assert_eq!((u64::from(place(at, of)) * u64::from(of)) >> 32, u64::from(at), "{at} of {of}");
            }
        }
    }
}
