//! Events to many watchers of one collection, each on a connection of its own: small ConfigMaps are created, and every watcher
//! has to get every one of them.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt as _, future::try_join_all};
use serde_json::json;

use super::{Options, fill};
use crate::{
    cluster::{Caller, Cluster, Object, Space},
    lab::say,
    limits,
    report::{Measured, Row},
};

pub(super) async fn run(
    options: &Options,
    cluster: &Cluster,
    space: &Space,
    watchers: usize,
    measured: &mut Measured,
) -> Result<()> {
    let callers: Vec<Caller> = (0..limits::LOAD_WRITERS).map(|_| cluster.caller()).collect::<Result<_>>()?;
    let events = options.events;
    let (mut times, mut rates, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=options.repeats {
        say(&format!("{events} events to {watchers} watchers, {repeat} of {}", options.repeats));
        let revision = space.revision(Object::ConfigMaps).await?;
        let watch = format!("{}?watch=1&resourceVersion={revision}", space.path(Object::ConfigMaps));
        let mut streams = Vec::with_capacity(watchers);
        // A crowd that connects at once would wait for its own handshakes.
        for _ in 0..watchers.div_ceil(limits::LOAD_WRITERS) {
            let room = limits::LOAD_WRITERS.min(watchers - streams.len());
            let caller = space.caller();
            streams.extend(try_join_all((0..room).map(|_| caller.stream(&watch))).await?);
        }
        let before = cluster.meter.read()?;
        let begun = Instant::now();
        let ends: Vec<_> = streams
            .into_iter()
            .map(|stream| tokio_util::task::AbortOnDropHandle::new(tokio::spawn(count(stream, events))))
            .collect();
        let path = space.path(Object::ConfigMaps);
        let create = move |caller: Caller, number: usize| {
            let path = path.clone();
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": format!("event-{watchers}-{repeat}-{number}")},
                "data": {"number": number.to_string()},
            });
            async move { caller.post(&path, &object).await.map(drop) }
        };
        fill::run(&callers, events, create).await?;
        for end in ends {
            end.await??;
        }
        let seconds = begun.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss)]
        rates.push((watchers * events) as f64 / seconds);
        times.push(seconds);
        costs.extend(cluster.meter.read()?.per(before, watchers * events).server.map(|each| each * 1e3));
        space.empty(Object::ConfigMaps).await?;
    }
    #[expect(clippy::cast_precision_loss)]
    let mut add = |what: &str, unit: &str, values: &[f64]| {
        let row = Row::of(&format!("{watchers} watchers: {what}"), unit, values);
        measured.push(row.map(|row| row.at(&format!("watch: {what}"), "watchers", watchers as f64)));
    };
    add("until all have all events", "s", &times);
    add("events delivered", "per s", &rates);
    add("server CPU, each event to each watcher, its write included", "µs", &costs);
    Ok(())
}

/// Reads until that many events have come: each is a line.
async fn count(stream: impl Stream<Item = Result<bytes::Bytes>>, events: usize) -> Result<()> {
    let mut stream = std::pin::pin!(stream);
    let mut seen = 0;
    while seen < events {
        let next = tokio::time::timeout(limits::NEXT_EVENT, stream.next()).await;
        let Ok(next) = next else {
            bail!("a watcher got {seen} of {events} events and no more in {} s", limits::NEXT_EVENT.as_secs())
        };
        let piece = next.with_context(|| format!("a watch ended after {seen} of {events} events"))??;
        seen += piece.iter().filter(|byte| **byte == b'\n').count();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn events_are_lines_in_whatever_pieces_they_come() {
        let pieces = |texts: &[&'static str]| {
            futures::stream::iter(texts.iter().map(|text| Ok(Bytes::from_static(text.as_bytes()))).collect::<Vec<_>>())
        };
        count(pieces(&["{\"a\":1", "}\n{\"b\":2}\n", "{}\n"]), 3).await.unwrap();
        let error = count(pieces(&["{}\n"]), 2).await.unwrap_err();
        assert_eq!(error.to_string(), "a watch ended after 1 of 2 events");
    }
}
