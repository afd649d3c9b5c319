//! When each pod of the namespace was bound, from one watch that reads two fields of an event.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    cluster::{Object, Space},
    limits,
};

/// The lines of a watch.
pub(super) struct Lines {
    stream: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
    rest: BytesMut,
    /// Bytes at the beginning of `rest` that hold no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(stream: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self { stream: Box::pin(stream), rest: BytesMut::new(), searched: 0 }
    }

    /// The next line, read as far as `T` wants.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T> {
        loop {
            if let Some(end) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.searched + end + 1);
                self.searched = 0;
                return serde_json::from_slice(&line).context("an event of a watch");
            }
            self.searched = self.rest.len();
            let piece = self.stream.next().await.context("a watch ended")??;
            self.rest.extend_from_slice(&piece);
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Seen,
}

#[derive(Deserialize)]
struct Seen {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

/// Follows until it is dropped.
pub(super) struct Follower {
    bound: mpsc::Receiver<(String, Instant)>,
    seen: HashMap<String, Instant>,
    _task: AbortOnDropHandle<()>,
}

impl Follower {
    /// Returns when the watch stands.
    pub(super) async fn start(space: &Space) -> Result<Self> {
        let revision = space.revision(Object::Pods).await?;
        let path = format!("{}?watch=1&resourceVersion={revision}", space.path(Object::Pods));
        let lines = Lines::new(space.caller().stream(&path).await?);
        let (sender, bound) = mpsc::channel(limits::EVENTS);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = read(lines, sender).await {
                eprintln!("the watch of pods: {error:#}");
            }
        }));
        Ok(Self { bound, seen: HashMap::new(), _task: task })
    }

    /// Waits until so many pods have been bound since the start: when each of them was, by name.
    pub(super) async fn bound(&mut self, pods: usize) -> Result<&HashMap<String, Instant>> {
        while self.seen.len() < pods {
            let next = tokio::time::timeout(limits::NEXT_BOUND, self.bound.recv()).await;
            let Ok(next) = next else {
                bail!(
                    "{} of {pods} pods were bound, and no more in {} s",
                    self.seen.len(),
                    limits::NEXT_BOUND.as_secs()
                )
            };
            let (name, at) = next.context("the watch of pods ended")?;
            self.seen.insert(name, at);
        }
        Ok(&self.seen)
    }
}

async fn read(mut lines: Lines, sender: mpsc::Sender<(String, Instant)>) -> Result<()> {
    let mut known = HashSet::new();
    loop {
        let event: Event = lines.next().await?;
        let at = Instant::now();
        if event.kind == "ERROR" {
            bail!("the server ended it");
        }
        let name = event.object.metadata.name;
        if event.object.spec.node_name.is_some() && known.insert(name.clone()) && sender.send((name, at)).await.is_err()
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_is_bound_once() {
        let pieces = [
            r#"{"type":"ADDED","object":{"metadata":{"name":"a"},"spec":{}}}"#,
            "\n",
            r#"{"type":"MODIFIED","object":{"metadata":{"name":"a"},"spec":{"node"#,
            "Name\":\"n\"}}}\n{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"a\"},\"spec\":{\"nodeName\":\"n\"}}}\n",
        ];
        let lines = Lines::new(futures::stream::iter(pieces.map(|piece| Ok(Bytes::from_static(piece.as_bytes())))));
        let (sender, mut bound) = mpsc::channel(10);
        let end = read(lines, sender).await.unwrap_err();
        assert_eq!(end.to_string(), "a watch ended");
        assert_eq!(bound.recv().await.unwrap().0, "a");
        assert!(bound.recv().await.is_none());
    }
}
