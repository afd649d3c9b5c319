//! What of the API's policies may be there or not: kinds that users install, watched while they are, and nodes, watched while a
//! policy names some.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};

use super::model::TierKind;
use super::tier_views::{DefinitionView, PlaceView, TierView};
use crate::watch::events;

type Said<V> = Result<Event<V>, watcher::Error>;

/// What became known.
pub(super) enum Heard {
    /// Is the kind installed?
    Installed(bool),
    Object(Box<Said<TierView>>),
}

/// One kind: its definition is watched, and its objects while there is one.
pub(super) struct Kind {
    pub(super) kind: TierKind,
    client: Client,
    definitions: BoxStream<'static, Said<DefinitionView>>,
    objects: Option<BoxStream<'static, Said<TierView>>>,
    /// In the list under way.
    serves: bool,
}

impl Kind {
    pub(super) fn new(client: &Client, kind: TierKind) -> Kind {
        let fields = format!("metadata.name={}", kind.definition());
        let definitions = events::<DefinitionView>(client, Some(fields)).boxed();
        Kind { kind, client: client.clone(), definitions, objects: None, serves: false }
    }

    /// What an event of the definition says; `None` before a list is whole.
    fn is_installed(&mut self, event: Said<DefinitionView>) -> Option<bool> {
        match event {
            Ok(Event::Init) => {
                self.serves = false;
                None
            }
            Ok(Event::InitApply(view)) => {
                self.serves = view.serves(self.kind);
                None
            }
            Ok(Event::InitDone) => Some(self.serves),
            Ok(Event::Apply(view)) => Some(view.serves(self.kind)),
            Ok(Event::Delete(_)) => Some(false),
            // An older control plane does not let nodes look; it must not keep pods waiting.
            Err(error) if is_forbidden(&error) => Some(false),
            Err(error) => {
                tracing::debug!(%error, "a watch broke; it starts again");
                None
            }
        }
    }
}

impl Stream for Kind {
    type Item = Heard;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Heard>> {
        while let Poll::Ready(Some(event)) = self.definitions.poll_next_unpin(context) {
            let Some(installed) = self.is_installed(event) else { continue };
            if installed != self.objects.is_some() {
                let api = Api::<TierView>::all_with(self.client.clone(), &self.kind);
                self.objects = installed.then(|| watcher(api, watcher::Config::default()).default_backoff().boxed());
            }
            return Poll::Ready(Some(Heard::Installed(installed)));
        }
        match &mut self.objects {
            Some(objects) => {
                objects.poll_next_unpin(context).map(|said| said.map(|said| Heard::Object(Box::new(said))))
            }
            None => Poll::Pending,
        }
    }
}

/// All nodes, while somebody asks for them.
pub(super) struct Nodes {
    client: Client,
    events: Option<BoxStream<'static, Said<PlaceView>>>,
}

impl Nodes {
    pub(super) fn new(client: &Client) -> Nodes {
        Nodes { client: client.clone(), events: None }
    }

    /// Starts or stops to watch; true if that is another thing than before.
    pub(super) fn watch(&mut self, wanted: bool) -> bool {
        let changes = wanted != self.events.is_some();
        if changes {
            self.events = wanted.then(|| events::<PlaceView>(&self.client, None).boxed());
        }
        changes
    }

    pub(super) async fn next(&mut self) -> Said<PlaceView> {
        loop {
            match &mut self.events {
                Some(events) => match events.next().await {
                    Some(said) => return said,
                    None => self.events = None,
                },
                None => std::future::pending().await,
            }
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}
