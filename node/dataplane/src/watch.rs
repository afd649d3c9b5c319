//! Services, EndpointSlices, pods and this node from the API into the kernel: watches, a short pause to gather changes, one
//! pass of compiler, planner and writes for what changed.

use std::fmt::Debug;
use std::pin::pin;

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::dataplane::{Dataplane, Update};
use crate::health::Answers;
use crate::limits::{DEBOUNCE, DEBOUNCE_MOST, QUARANTINE};
use crate::picture::Picture;
use crate::views::{NodeView, PodView, ServiceView, SliceView};

fn events<V>(
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
        let mut picture = Picture::new(node, self.inner.config.forwarding);
        // When the change that waits came, and when to act on it.
        let mut waiting: Option<(Instant, Instant)> = None;
        loop {
            let due = waiting.map(|(_, due)| due).filter(|_| picture.listed());
            let changed = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(event) = services.next() => taken(event, |event| picture.service(event)),
                Some(event) = slices.next() => taken(event, |event| picture.slice(event)),
                Some(event) = pods.next() => taken(event, |event| picture.pod(event)),
                Some(event) = nodes.next() => taken(event, |event| picture.node(event)),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let (changes, all) = picture.changes();
                    checks.send_if_modified(|known| {
                        let differs = known != picture.answers();
                        if differs {
                            known.clone_from(picture.answers());
                        }
                        differs
                    });
                    let update = if all { Update::All(changes.into_iter().collect()) } else { Update::Some(changes) };
                    waiting = self.pass(update).await.map(|later| (Instant::now(), Instant::now() + later));
                    false
                }
            };
            if changed {
                let now = Instant::now();
                let since = waiting.map_or(now, |(since, _)| since);
                waiting = Some((since, (now + DEBOUNCE).min(since + DEBOUNCE_MOST)));
            }
        }
    }

    /// One pass; returns after what time to try again when not everything could be placed.
    async fn pass(&self, update: Update) -> Option<Duration> {
        let dataplane = self.clone();
        match tokio::task::spawn_blocking(move || dataplane.update(update)).await {
            Ok(Ok((problems, again))) => {
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

fn taken<V>(event: Result<Event<V>, watcher::Error>, take: impl FnOnce(Event<V>) -> bool) -> bool {
    match event {
        Ok(event) => take(event),
        Err(error) => {
            tracing::debug!(%error, "a watch broke; it starts again");
            false
        }
    }
}
