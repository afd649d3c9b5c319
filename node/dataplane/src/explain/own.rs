//! SCTP of the node's own sockets: translated by packet, on the loopback link and on the home link.

use sluice_ebpf_common::Reason;

use super::Fate;
use super::frame::Frame;
use super::stage::Spot;
use super::walk::{Walk, Way, dropped};
use crate::attach::OWN_PROGRAMS;
use crate::model::Protocol;

/// Index of the loopback link.
const LOOPBACK: u32 = 1;
const OUT: &str = OWN_PROGRAMS[0].0;
const IN: &str = OWN_PROGRAMS[1].0;

impl Walk<'_> {
    /// The link on which the node's program sees what the node sends that way, if it does.
    pub(super) fn own_link(&self, to: Option<u32>) -> Option<u32> {
        let home = self.live.home;
        let link = to.unwrap_or(LOOPBACK);
        (home != 0 && self.names.protocol == Protocol::Sctp && [LOOPBACK, home].contains(&link)).then_some(link)
    }

    /// Out of the stack by one of these links; what is for nobody else than the node comes in there.
    pub(super) fn sent_by_node(&mut self, frame: Frame<'_>, link: u32) -> Way<Fate> {
        self.reaches_node(frame, Spot { program: OUT, link, came_by: 0 })
    }

    /// In by the home link: what services answer, and what is for a server of the node's own.
    pub(super) fn comes_home(&mut self, frame: Frame<'_>) -> Way<Fate> {
        self.reaches_node(frame, Spot { program: IN, link: self.live.home, came_by: self.live.home })
    }

    /// What a program lets go on is for the node.
    fn reaches_node(&mut self, mut frame: Frame<'_>, spot: Spot) -> Way<Fate> {
        if let Err(fate) = self.translates(&mut frame, spot)? {
            return Ok(Err(fate));
        }
        let Some(ends) = frame.ends() else { return Ok(Err(dropped(Reason::Rewrite))) };
        Ok(Ok(self.arrives(&ends)))
    }
}

impl Spot {
    /// Does it see what the node sends by itself?
    pub(super) fn is_own(self) -> bool {
        self.program == OUT
    }
}
