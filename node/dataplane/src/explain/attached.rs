//! Are the programs that ran here those that packets meet?

use std::os::fd::AsFd;

use super::stage::Spot;
use super::walk::Walk;
use crate::attach::Link;
use crate::sys;

impl Walk<'_> {
    /// The program that the link has.
    pub(super) fn attached(&self, Spot { program, link, .. }: Spot) -> Option<u32> {
        let pins = &self.live.pins;
        let filter = [pins.filter(program, link), pins.uplink_filter(program, link)];
        if let Some(pinned) = filter.iter().find_map(|path| sys::open_pinned(path).ok()) {
            return sys::program_id(pinned.as_fd()).ok();
        }
        let link = sys::open_pinned(&pins.link(&format!("{program}-{link}"))).ok()?;
        sys::link_target(link.as_fd()).ok().map(|target| target.program)
    }

    /// Is it the program that ran here?
    pub(super) fn check(&mut self, spot: Spot, attached: Option<u32>) {
        if self.checked.contains(&spot.program) {
            return;
        }
        self.checked.push(spot.program);
        match attached {
            None => self.warnings.push(format!(
                "{} is not attached to {}: packets pass there unchanged; restart the node daemon",
                spot.program,
                Link::name_of(spot.link)
            )),
            Some(id) if self.copies.is_same(spot.program, id) == Some(false) => self.warnings.push(format!(
                "the attached {} is another build's than this program's: what it does may differ; use the node daemon's own build",
                spot.program
            )),
            Some(_) => {}
        }
    }
}
