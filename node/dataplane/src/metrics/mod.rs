//! Figures for Prometheus: what the kernel's maps count, and what this process does. Read when somebody asks, and by nobody
//! else; each look costs one walk through the service table, the flow table and the flow cache.

pub(crate) mod catalog;
mod flows;
mod node;
mod services;
mod sync;
mod tcp;

use parking_lot::Mutex;
use sluice_metrics::Text;

pub use catalog::METRICS;
pub(crate) use sync::Sync;

use crate::attach::Link;
use crate::{Dataplane, Error, inspect, probes, stream};

/// What is kept between two looks.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) sync: Sync,
    said: Mutex<services::Said>,
}

impl Dataplane {
    /// Writes every metric of [`METRICS`]. Blocks for some milliseconds, longer with many flows: call it where that is allowed.
    pub fn write_metrics(&self, text: &mut Text) -> Result<(), Error> {
        let inner = &self.inner;
        // Several at a time would read the same.
        let mut said = inner.figures.said.lock();
        let active = flows::Active::read(&inner.pins)?;
        let seen = inspect::seen(&inner.pins, active.entries as usize)?;
        let [services, backends] = services::write(text, &seen.services, &active, &mut said);
        let pods = inner.policies.lock().links();
        let is_link = |index| Link::by_index(index).is_ok();
        let measured = tcp::Measured::new(&probes::read(&inner.pins)?, &seen.tables, &pods, is_link);
        inner.forget_figures(&measured.gone)?;
        let [tcp_services, tcp_pods] = measured.write(text);
        let merged =
            [("services", services), ("backends", backends), ("tcp_services", tcp_services), ("tcp_pods", tcp_pods)];
        let mut series = text.metric(&catalog::MERGED);
        merged.into_iter().for_each(|(of, rows)| series.add(&[of], rows));
        inner.probes.lock().write(text);
        node::write(text, &inner.pins, &seen.maps, &active)?;
        let (followers, late) = inner.stream.figures();
        stream::write_metrics(text, &inner.pins, followers, late)?;
        inner.figures.sync.write(text, &seen.tables);
        Ok(())
    }
}
