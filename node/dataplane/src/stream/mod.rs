//! Connections as they come and go, for whoever follows: the programs tell through a ring, looks at the flow table tell the rest,
//! names are put to addresses here. While nobody follows, the programs tell nothing and nobody looks.

mod counts;
mod decode;
mod event;
mod kernel;
mod known;
mod looks;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use sluice_ebpf_common::stream::{Told, ToldLost};
use sluice_ebpf_common::{Settings, maps};
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use counts::write as write_metrics;
pub use event::{Figures, Filter, FlowEvent, Party, Seen, Step, Verdict, is_service};

use crate::flows::{self, FlowRow};
use crate::limits::{EVENTS_AT_ONCE, FOLLOWED, FOLLOWERS, GATHER, LOOK, LOOK_SHARE, WAITING};
use crate::store::typed;
use crate::{Dataplane, Error, sys};
use counts::Counts;
use decode::Names;
use known::Known;
use looks::Looks;

/// What followers and the one who tells them share.
#[derive(Debug)]
pub(crate) struct Stream {
    events: broadcast::Sender<Arc<FlowEvent>>,
    followers: watch::Sender<usize>,
    /// The programs tell.
    begun: watch::Sender<bool>,
    /// Events that followers were too slow for.
    late: AtomicU64,
}

impl Default for Stream {
    fn default() -> Stream {
        Stream {
            events: broadcast::Sender::new(WAITING),
            followers: watch::Sender::new(0),
            begun: watch::Sender::new(false),
            late: AtomicU64::new(0),
        }
    }
}

impl Stream {
    /// How many follow, and what they were too slow for.
    pub(crate) fn figures(&self) -> (usize, u64) {
        (*self.followers.borrow(), self.late.load(Ordering::Relaxed))
    }
}

/// Somebody who follows connections, until this is dropped.
pub struct Follower {
    dataplane: Dataplane,
    events: broadcast::Receiver<Arc<FlowEvent>>,
    filter: Filter,
}

impl Follower {
    /// Resolves once everything that happens from then on is told.
    pub async fn begun(&self) {
        // The sender lives as long as the data plane, which this keeps.
        let _ = self.dataplane.inner.stream.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// The next event that is wanted. A follower that is slow loses the oldest ones, and is told how many.
    pub async fn next(&mut self) -> Arc<FlowEvent> {
        loop {
            match self.events.recv().await {
                Ok(event) if self.filter.wants(&event) => return event,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let inner = &self.dataplane.inner;
                    inner.stream.late.fetch_add(missed, Ordering::Relaxed);
                    return Arc::new(FlowEvent::lost(&inner.config.node, "reader", missed));
                }
                // As above.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.dataplane.inner.stream.followers.send_modify(|followers| *followers -= 1);
    }
}

impl Dataplane {
    /// Follows connections from now on; `None` when too many do.
    pub fn follow(&self, filter: Filter) -> Option<Follower> {
        let stream = &self.inner.stream;
        let events = stream.events.subscribe();
        let placed = stream.followers.send_if_modified(|followers| {
            let room = *followers < FOLLOWERS;
            *followers += usize::from(room);
            room
        });
        placed.then(|| Follower { dataplane: self.clone(), events, filter })
    }

    /// The connections in the flow table now that are wanted.
    pub fn flows_now(&self, filter: &Filter) -> Result<Vec<FlowRow>, Error> {
        let known = Known::read(self)?;
        let mut rows = flows::read(&self.inner.pins)?;
        rows.retain(|row| filter.wants(&of_row(Step::Periodic, row, &known)));
        Ok(rows)
    }

    /// Tells followers, while there are some, until the shutdown.
    pub async fn tell_flows(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut followers = self.inner.stream.followers.subscribe();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = reach(&mut followers, |followers| followers > 0) => {}
            }
            let told = self.tell_while_followed(&mut followers, shutdown).await;
            self.inner.stream.begun.send_replace(false);
            self.set_flag(Settings::FOLLOWED, false)?;
            sys::give_memory_back();
            if let Err(error) = told {
                tracing::error!(%error, "connections are not told to those who follow them");
                // Trying again at once would fail alike.
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }

    async fn tell_while_followed(
        &self,
        followers: &mut watch::Receiver<usize>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let failed = |error| Error::system("listen to the ring of connections", error);
        let ring: RingBuf<MapData> = typed(&self.inner.pins, maps::STREAM)?;
        let mut ring = sys::watch(ring).map_err(failed)?;
        // Told to those who followed before.
        while ring.get_mut().next().is_some() {}
        let (mut teller, _) = Teller::new(self)?.aside(self).await?;
        self.set_flag(Settings::FOLLOWED, true)?;
        // Until nobody follows.
        let _kernel = self.kernel_aside().await;
        self.inner.stream.begun.send_replace(true);
        let (mut pause, mut more) = (LOOK, false);
        let mut next = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = reach(followers, |followers| followers == 0) => return Ok(()),
                () = tokio::time::sleep_until(next) => {
                    (teller, pause) = teller.aside(self).await?;
                    next = tokio::time::Instant::now() + pause;
                }
                gathered = gather(&mut ring), if !more => gathered.map_err(failed)?,
                // Followers have their turn.
                () = tokio::task::yield_now(), if more => {}
            }
            // Whatever came first: nothing wakes a second time for what is left in the ring.
            more = teller.tell(ring.get_mut(), &self.inner.stream.events);
        }
    }
}

impl Dataplane {
    /// As [`Inner::tell_kernel_losses`], on a thread where it may block.
    async fn kernel_aside(&self) -> Option<kernel::Telling> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.tell_kernel_losses()).await.ok().flatten()
    }
}

/// Waits until something is told, and then for what may be told with it: [`GATHER`] for all of it, or until the ring fills.
/// Only what comes into an empty ring wakes, and what finds it filled a good part.
async fn gather(ring: &mut AsyncFd<RingBuf<MapData>>) -> io::Result<()> {
    woken(ring).await?;
    // Nothing is the matter when the time is over.
    tokio::time::timeout(GATHER, woken(ring)).await.unwrap_or(Ok(()))
}

async fn woken(ring: &mut AsyncFd<RingBuf<MapData>>) -> io::Result<()> {
    ring.readable_mut().await?.clear_ready();
    Ok(())
}

/// Waits until there are so many. The sender is kept by the data plane of those who wait.
async fn reach(followers: &mut watch::Receiver<usize>, enough: impl Fn(usize) -> bool) {
    let _ = followers.wait_for(|followers| enough(*followers)).await;
}

/// Makes events of what the programs tell and of what looks show.
struct Teller {
    known: Known,
    looks: Looks,
    counts: Counts,
    /// There are too many connections to look at.
    crowded: bool,
}

impl Teller {
    fn new(dataplane: &Dataplane) -> Result<Teller, Error> {
        let (known, counts) = (Known::read(dataplane)?, counts::read(&dataplane.inner.pins)?);
        Ok(Teller { known, looks: Looks::default(), counts, crowded: false })
    }

    /// Tells what is in the ring, or so much of it that followers should have a turn. May there be more?
    fn tell(&self, ring: &mut RingBuf<MapData>, events: &broadcast::Sender<Arc<FlowEvent>>) -> bool {
        self.known.ask_again();
        for _ in 0..EVENTS_AT_ONCE {
            let Some(bytes) = ring.next() else { return false };
            if let Some(event) = self.told(&bytes) {
                // Nobody may be left to hear it.
                let _ = events.send(Arc::new(event));
            }
        }
        true
    }

    /// An event from the ring, unless somebody else tells of it.
    fn told(&self, bytes: &[u8]) -> Option<FlowEvent> {
        if let Some(lost) = sys::exactly::<ToldLost>(bytes) {
            return Some(decode::lost(&lost, &self.known));
        }
        let told = sys::exactly::<Told>(bytes)?;
        if self.known.told_elsewhere(&told) { None } else { decode::told(&told, &self.known) }
    }

    /// A look, on a thread where it may block. Returns the time until the next one.
    async fn aside(mut self, dataplane: &Dataplane) -> Result<(Teller, Duration), Error> {
        let dataplane = dataplane.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            for event in self.look(&dataplane)? {
                // Nobody may be left to hear it.
                let _ = dataplane.inner.stream.events.send(Arc::new(event));
            }
            Ok((self, LOOK.max(begun.elapsed() * LOOK_SHARE)))
        });
        looked.await.map_err(|error| Error::system("look at the flows", std::io::Error::other(error)))?
    }

    fn look(&mut self, dataplane: &Dataplane) -> Result<Vec<FlowEvent>, Error> {
        self.known = Known::read(dataplane)?;
        let pins = &dataplane.inner.pins;
        let mut events = Vec::new();
        match flows::read_few(pins, FOLLOWED)? {
            Ok((rows, now)) => {
                self.crowded = false;
                let told = self.looks.look(rows, now);
                let own = told.iter().filter(|(_, row)| !self.known.row_told_elsewhere(row));
                events.extend(own.map(|(step, row)| of_row(*step, row, &self.known)));
            }
            Err(connections) => {
                self.looks.forget();
                if !std::mem::replace(&mut self.crowded, true) {
                    events.push(FlowEvent::lost(self.known.node(), "table", connections as u64));
                }
            }
        }
        let counts = counts::read(pins)?;
        let before = counts::lost(&std::mem::replace(&mut self.counts, counts));
        for ((why, after), before) in ["rate", "ring"].into_iter().zip(counts::lost(&counts)).zip(before) {
            if after > before {
                events.push(FlowEvent::lost(self.known.node(), why, after - before));
            }
        }
        Ok(events)
    }
}

/// A row of the flow table as an event.
fn of_row(step: Step, row: &FlowRow, names: &impl Names) -> FlowEvent {
    FlowEvent {
        seen_by: Some(Seen::Packets),
        protocol: Some(row.protocol.to_owned()),
        source: Some(decode::party(names, row.client)),
        destination: Some(decode::party(names, row.destination)),
        service: row.service.clone(),
        backend: row.backend.map(|backend| decode::party(names, backend)),
        leaves_as: row.leaves_as,
        figures: Figures {
            packets: Some(row.packets),
            bytes: Some(row.bytes),
            answer_packets: Some(row.answer_packets),
            answer_bytes: Some(row.answer_bytes),
            age_seconds: Some(row.age_seconds),
            ..Figures::default()
        },
        ..FlowEvent::new(names.node(), step)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::UdpSocket;

    use sluice_ebpf_common::limits;

    use super::*;
    use crate::common::{PATIENCE, isolated, service};
    use crate::model::Protocol;

    #[test]
    fn whoever_waits_for_more_is_woken_when_the_ring_fills() {
        isolated("stream::tests::whoever_waits_for_more_is_woken_when_the_ring_fills", |place| {
            let dataplane = Dataplane::load(place.config()).unwrap();
            dataplane.apply(&service(Protocol::Udp, "10.96.0.10:53", 0, &[])).unwrap();
            dataplane.set_flag(Settings::FOLLOWED, true).unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let refused = || drop(socket.send_to(b"x", "10.96.0.10:53").unwrap_err());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut ring =
                    sys::watch(typed::<RingBuf<MapData>>(&dataplane.inner.pins, maps::STREAM).unwrap()).unwrap();
                refused();
                tokio::time::timeout(PATIENCE, woken(&mut ring)).await.unwrap().unwrap();
                // Each with the eight bytes of the ring's own.
                let enough = limits::STREAM_FILLED as usize / (size_of::<Told>() + 8);
                (0..enough).for_each(|_| refused());
                tokio::time::timeout(PATIENCE, woken(&mut ring)).await.unwrap().unwrap();
                let told = std::iter::from_fn(|| ring.get_mut().next().map(drop)).count();
                assert_eq!(told, 1 + enough);
            });
        });
    }
}
