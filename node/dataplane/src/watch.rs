//! Services, EndpointSlices, pods and this node from the API into the kernel: watches, and one pass of compiler, planner
//! and writes for what changed, at once. What changes during a pass is what the next one is for.

use std::fmt::Debug;
use std::pin::pin;

use futures::future::{BoxFuture, Fuse, FusedFuture};
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::dataplane::{Dataplane, Update};
use crate::health::Answers;
use crate::limits::{GATHERED, QUARANTINE};
use crate::picture::Picture;
use crate::views::{NodeView, PodView, ServiceView, SliceView};

pub(crate) fn events<V>(
    client: &kube::Client,
    fields: Option<String>,
) -> impl Stream<Item = Result<Event<V>, watcher::Error>> + use<V>
where
    V: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config { field_selector: fields, ..watcher::Config::default() };
    watcher(Api::<V>::all(client.clone()), config).default_backoff()
}

impl Dataplane {
    /// Feeds the kernel from the API until the shutdown. What an earlier process left stays in effect until services, slices
    /// and pods have been listed.
    pub(crate) async fn follow_services(
        &self,
        client: kube::Client,
        checks: watch::Sender<Answers>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let node = self.inner.config.node.clone();
        let mut services = pin!(events::<ServiceView>(&client, None));
        let mut slices = pin!(events::<SliceView>(&client, None));
        let mut pods = pin!(events::<PodView>(&client, Some(format!("spec.nodeName={node}"))));
        let mut nodes = pin!(events::<NodeView>(&client, Some(format!("metadata.name={node}"))));
        let sync = &self.inner.figures.sync;
        let mut picture = Picture::new(node, self.inner.config.forwarding);
        // Is there anything to do, and how many events came since the last pass began?
        let (mut changed, mut gathered) = (false, 0);
        let mut pass: Fuse<BoxFuture<'_, Option<Duration>>> = Fuse::terminated();
        let mut again = pin!(Fuse::terminated());
        loop {
            // The first change is acted on at once; what comes while it is written waits for the next pass.
            let ready = changed && picture.listed() && pass.is_terminated();
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                later = &mut pass => {
                    again.set(later.map_or(Fuse::terminated(), |later| tokio::time::sleep(later).fuse()));
                    continue;
                }
                () = &mut again => Some(true),
                () = std::future::ready(()), if ready && gathered >= GATHERED => None,
                Some(event) = services.next() => {
                    let writes = taken(event, |event| picture.service(event));
                    sync.seen(&sync.services, writes);
                    Some(writes)
                }
                Some(event) = slices.next() => {
                    if let Ok(Event::Apply(view) | Event::InitApply(view)) = &event {
                        sync.caused(view.trigger());
                    }
                    let writes = taken(event, |event| picture.slice(event));
                    sync.seen(&sync.endpoints, writes);
                    Some(writes)
                }
                Some(event) = pods.next() => Some(taken(event, |event| picture.pod(event))),
                Some(event) = nodes.next() => Some(taken(event, |event| picture.node(event))),
                () = std::future::ready(()), if ready => None,
            };
            if let Some(event) = event {
                changed |= event;
                gathered += 1;
                continue;
            }
            (changed, gathered) = (false, 0);
            let causes = sync.taken();
            let (changes, all) = picture.changes();
            if let Some(answers) = picture.answers() {
                checks.send_if_modified(|known| {
                    let differs = known != answers;
                    if differs {
                        known.clone_from(answers);
                    }
                    differs
                });
            }
            let update = if all { Update::All(changes.into_iter().collect()) } else { Update::Some(changes) };
            pass = self.pass(update, causes).boxed().fuse();
        }
    }

    /// One pass; returns after what time to try again when not everything could be placed.
    async fn pass(&self, update: Update, causes: Vec<Timestamp>) -> Option<Duration> {
        let dataplane = self.clone();
        match tokio::task::spawn_blocking(move || dataplane.update(update)).await {
            Ok(Ok((problems, again))) => {
                self.inner.figures.sync.programmed(causes);
                for problem in problems {
                    tracing::warn!(problem, "a service cannot be served");
                }
                again.then_some(QUARANTINE)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the service table could not be written");
                Some(QUARANTINE)
            }
            Err(error) => {
                tracing::error!(%error, "the service planner failed");
                None
            }
        }
    }
}

pub(crate) fn taken<V>(event: Result<Event<V>, watcher::Error>, take: impl FnOnce(Event<V>) -> bool) -> bool {
    match event {
        Ok(event) => take(event),
        Err(error) => {
            tracing::debug!(%error, "a watch broke; it starts again");
            false
        }
    }
}
