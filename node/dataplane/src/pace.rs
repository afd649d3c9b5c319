//! Limits of what pods send to other machines, by departure times: the program on a pod's link notes whose packet it is, that on
//! the uplink says when it leaves, and the uplink's queue holds it until then. The maps are the only record.

use std::collections::BTreeSet;
use std::io;

use aya::maps::{Array, HashMap, MapData};
use sluice_ebpf_common::{Pace, limits, maps};

use crate::attach::Link;
use crate::pins::Pins;
use crate::queues::Queues;
use crate::store::typed;
use crate::{Dataplane, Error};

/// The places of limited pods.
pub(crate) struct Paces {
    paced: HashMap<MapData, u32, u32>,
    paces: Array<MapData, Pace>,
}

impl Paces {
    pub(crate) fn open(pins: &Pins) -> Result<Paces, Error> {
        let mut paces = Paces { paced: typed(pins, maps::PACED)?, paces: typed(pins, maps::PACES)? };
        // Of pods that went while no process ran.
        for (link, _) in paces.all()? {
            if Link::by_index(link).is_err() {
                paces.forget(link)?;
            }
        }
        Ok(paces)
    }

    fn all(&self) -> Result<Vec<(u32, u32)>, Error> {
        self.paced.iter().collect::<Result<_, _>>().map_err(failed)
    }

    /// Limits the pod behind a link; false without a place for it.
    fn set(&mut self, link: u32, rate: u64) -> Result<bool, Error> {
        let all = self.all()?;
        let taken: BTreeSet<u32> = all.iter().map(|(_, place)| *place).collect();
        let known = all.iter().find(|(known, _)| *known == link).map(|(_, place)| *place);
        let Some(place) = known.or_else(|| (Pace::ALL + 1..limits::PACES).find(|place| !taken.contains(place))) else {
            return Ok(false);
        };
        // What it has used up it has used up, whatever it may use from now on.
        let next = if known.is_some() { self.paces.get(&place, 0).map_err(failed)?.next } else { 0 };
        self.paces.set(place, Pace { rate, next }, 0).map_err(failed)?;
        self.paced.insert(link, place, 0).map_err(failed)?;
        self.count()?;
        Ok(true)
    }

    pub(crate) fn forget(&mut self, link: u32) -> Result<(), Error> {
        let Ok(place) = self.paced.get(&link, 0) else { return Ok(()) };
        self.paced.remove(&link).map_err(failed)?;
        // Its last packets are nobody's.
        self.paces.set(place, Pace::default(), 0).map_err(failed)?;
        self.count()
    }

    fn count(&mut self) -> Result<(), Error> {
        let rate = self.all()?.len() as u64;
        self.paces.set(Pace::ALL, Pace { rate, next: 0 }, 0).map_err(failed)
    }
}

fn failed(error: aya::maps::MapError) -> Error {
    Error::ebpf("write the limits of pods", error)
}

/// Pods whose limits are kept by departure times.
pub(crate) fn count(pins: &Pins) -> Result<usize, Error> {
    let paced: HashMap<MapData, u32, u32> = typed(pins, maps::PACED)?;
    Ok(paced.keys().filter_map(Result::ok).count())
}

/// What is wrong with an uplink's queue.
fn hold(queues: &Queues, link: &Link) -> Option<String> {
    let name = &link.name;
    match queues.hold(link.index) {
        Ok(None) => None,
        Ok(Some(kind)) => Some(format!("the link {name} has a queue of its own ({kind}), which stays")),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            Some("this kernel has no queue that holds packets until they are to leave (sch_fq)".into())
        }
        Err(error) => Some(format!("the link {name} did not get the queue that is needed: {error}")),
    }
}

impl Dataplane {
    /// Limits what the pod behind a link sends to other machines to `rate` bytes per second, from the next packet on; what it
    /// sends to pods of this node is not limited. Nothing is limited, and the sentence says why, where an uplink cannot hold
    /// packets until they are to leave.
    pub fn pace_pod(&self, index: u32, rate: u64) -> Result<Option<String>, Error> {
        let queues = Queues::open().map_err(|error| Error::system("ask about queues", error))?;
        let uplinks = self.inner.uplinks.lock().clone();
        if let Some(reason) = uplinks.iter().find_map(|link| hold(&queues, link)) {
            self.inner.paces.lock().forget(index)?;
            return Ok(Some(reason));
        }
        match self.inner.paces.lock().set(index, rate.max(1))? {
            true => Ok(None),
            false => Ok(Some("too many pods of this node are limited".into())),
        }
    }

    /// A link became an uplink.
    pub(crate) fn hold_packets(&self, link: &Link) -> Result<(), Error> {
        if count(&self.inner.pins)? == 0 {
            return Ok(());
        }
        let queues = Queues::open().map_err(|error| Error::system("ask about queues", error))?;
        if let Some(reason) = hold(&queues, link) {
            tracing::warn!(link = link.name, reason, "pods' bandwidth limits are not kept on this link");
        }
        Ok(())
    }
}

/// Sentences about uplinks that do not hold packets, if any pod needs that.
pub(crate) fn problems(pins: &Pins, uplinks: impl Iterator<Item = u32>) -> Result<Vec<String>, Error> {
    if count(pins)? == 0 {
        return Ok(Vec::new());
    }
    let failed = |error| Error::system("ask about queues", error);
    let queues = Queues::open().map_err(failed)?;
    let mut problems = Vec::new();
    for index in uplinks {
        let Ok(link) = Link::by_index(index) else { continue };
        if let Some(kind) = queues.lacks(index).map_err(failed)? {
            problems.push(format!(
                "egress limits of pods are not kept on the link {}: its queue ({kind}) does not hold packets until they are to \
                 leave; remove it and restart the node daemon",
                link.name
            ));
        }
    }
    Ok(problems)
}

/// Gives links the queues back that they had.
pub(crate) fn take_back(links: impl Iterator<Item = Link>) -> io::Result<()> {
    let queues = Queues::open()?;
    for link in links {
        queues.take_back(link.index)?;
    }
    Ok(())
}
