//! Create, get, update, patch and delete of single pods by a number of clients.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::{Options, fill, pod};
use crate::{
    cluster::{Caller, Cluster, Object, Reading, Space},
    lab::say,
    report::{Measured, Row},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Create,
    Get,
    Update,
    Patch,
    Delete,
}

impl Verb {
    const ALL: [Self; 5] = [Self::Create, Self::Get, Self::Update, Self::Patch, Self::Delete];

    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    fn method(self) -> (Method, &'static str) {
        match self {
            Self::Create => (Method::POST, "application/json"),
            Self::Get => (Method::GET, ""),
            Self::Update => (Method::PUT, "application/json"),
            Self::Patch => (Method::PATCH, "application/merge-patch+json"),
            Self::Delete => (Method::DELETE, ""),
        }
    }
}

/// Figures of all repeats of one verb.
#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    latencies: Vec<Vec<f64>>,
    costs: Vec<Reading>,
}

pub(super) async fn run(
    options: &Options,
    cluster: &Cluster,
    space: &Space,
    clients: usize,
    measured: &mut Measured,
) -> Result<()> {
    let callers: Vec<Caller> = (0..clients).map(|_| cluster.caller()).collect::<Result<_>>()?;
    let requests = if clients == 1 { options.requests.div_ceil(4) } else { options.requests };
    let mut all: BTreeMap<Verb, Figures> = BTreeMap::new();
    // Connections are made before the first repeat.
    fill::run(&callers, clients * 4, |caller, _| async move { caller.get("/version").await.map(drop) }).await?;
    for repeat in 1..=options.repeats {
        say(&format!("pods by {clients} clients, {repeat} of {}", options.repeats));
        let mut objects = Vec::new();
        for verb in Verb::ALL {
            if verb == Verb::Update {
                objects = changed(&callers, space, requests, clients, repeat).await?;
            }
            let work = work(verb, space, clients, repeat, std::mem::take(&mut objects));
            let before = cluster.meter.read()?;
            let done = fill::run(&callers, requests, work).await.context(verb.name())?;
            let cost = cluster.meter.read()?.per(before, requests);
            let figures = all.entry(verb).or_default();
            figures.rates.push(done.rate());
            figures.latencies.push(done.latencies);
            figures.costs.push(cost);
        }
    }
    for (verb, figures) in all {
        add(verb.name(), clients, &figures, measured);
    }
    Ok(())
}

fn add(verb: &str, clients: usize, figures: &Figures, measured: &mut Measured) {
    #[expect(clippy::cast_precision_loss)]
    let at =
        |row: Option<Row>, what: &str| row.map(|row| row.at(&format!("{verb}: {what}"), "clients", clients as f64));
    let crowd = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
    let name = |what: &str| format!("{verb}, {crowd}: {what}");
    measured.push(at(Row::of(&name("rate"), "per s", &figures.rates), "rate"));
    measured.push(at(Row::distribution(&name("latency"), "ms", &figures.latencies), "latency"));
    let costs = |of: fn(&Reading) -> Option<f64>| figures.costs.iter().filter_map(of).collect::<Vec<f64>>();
    measured.push(at(Row::of(&name("server CPU"), "ms", &costs(|cost| cost.server)), "server CPU"));
    measured.push(at(Row::of(&name("etcd CPU"), "ms", &costs(|cost| cost.store)), "etcd CPU"));
}

type Work = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// What one request is; `objects` are the updates' bodies.
fn work(
    verb: Verb,
    space: &Space,
    clients: usize,
    repeat: usize,
    objects: Vec<Bytes>,
) -> impl Fn(Caller, usize) -> Work + Clone + Send + Sync + 'static {
    let (collection, objects) = (space.path(Object::Pods), Arc::new(objects));
    move |caller, number| {
        let name = name(clients, repeat, number);
        let path = if verb == Verb::Create { collection.clone() } else { format!("{collection}/{name}") };
        let body = match verb {
            Verb::Create => pod(&name).to_string().into(),
            Verb::Update => objects.get(number).cloned().unwrap_or_default(),
            Verb::Patch => json!({"metadata": {"annotations": {"patched": number.to_string()}}}).to_string().into(),
            Verb::Get | Verb::Delete => Bytes::new(),
        };
        let (method, content) = verb.method();
        Box::pin(async move { caller.call(method, &path, content, body).await.map(drop) })
    }
}

/// The pods as they are, with one annotation more and for whatever version there is.
async fn changed(
    callers: &[Caller],
    space: &Space,
    requests: usize,
    clients: usize,
    repeat: usize,
) -> Result<Vec<Bytes>> {
    let collection = space.path(Object::Pods);
    let mut all = Vec::with_capacity(requests);
    let names: Vec<String> =
        (0..requests).map(|number| format!("{collection}/{}", name(clients, repeat, number))).collect();
    for names in names.chunks(callers.len()) {
        let read = names.iter().zip(callers).map(|(path, caller)| caller.get(path));
        for object in futures::future::try_join_all(read).await? {
            all.push(annotated(&object)?);
        }
    }
    Ok(all)
}

fn annotated(object: &[u8]) -> Result<Bytes> {
    let mut object: Value = serde_json::from_slice(object).context("the server's answer is no JSON")?;
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).context("a pod without metadata")?;
    metadata.remove("resourceVersion");
    metadata.remove("managedFields");
    metadata.insert("annotations".into(), json!({"updated": "yes"}));
    Ok(object.to_string().into())
}

fn name(clients: usize, repeat: usize, number: usize) -> String {
    format!("load-{clients}-{repeat}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_for_any_version() {
        let object = br#"{"kind":"Pod","metadata":{"name":"a","resourceVersion":"7","managedFields":[]},"spec":{}}"#;
        let expected = r#"{"kind":"Pod","metadata":{"name":"a","annotations":{"updated":"yes"}},"spec":{}}"#;
        let value = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        assert_eq!(value(&annotated(object).unwrap()), value(expected.as_bytes()));
        assert!(annotated(b"{}").is_err() && annotated(b"x").is_err());
    }

    #[test]
    fn figures_stand_on_curves_by_clients() {
        let mut measured = Measured::default();
        let costs = vec![Reading { server: Some(0.5), store: None }; 2];
        let figures = Figures { rates: vec![10.0, 12.0], latencies: vec![vec![1.0, 2.0], vec![3.0]], costs };
        add("create", 16, &figures, &mut measured);
        let names: Vec<&str> = measured.results.iter().map(|row| &*row.name).collect();
        assert_eq!(
            names,
            ["create, 16 clients: rate", "create, 16 clients: latency", "create, 16 clients: server CPU"]
        );
        let point = measured.results[1].point.as_ref().unwrap();
        assert_eq!((&*point.of, &*point.by, point.at), ("create: latency", "clients", 16.0));
        assert_eq!(measured.results[1].repeats, [1.0, 3.0]);
    }
}
