//! `/metrics` of the daemon itself: its pods, its data plane, its DNS server. Every metric stands in a table, here or with
//! whoever counts it; `docs/metrics.md` says the same for people, and a test compares them.

use std::sync::Arc;

use http::{Response, StatusCode};
use sluice_dataplane::Dataplane;
use sluice_metrics::{CONTENT_TYPE, Metric, Text};

use super::Shared;
use super::reply::{Reply, error, with_type};
use super::stats::views;

const NODE_NAME: Metric = Metric::gauge("kubelet_node_name", &["node"], "The node's name.");
const ACTIVE_PODS: Metric = Metric::gauge("kubelet_active_pods", &[], "Pods that the node has to do with.");
const RUNNING_PODS: Metric = Metric::gauge("kubelet_running_pods", &[], "Pods with a container that runs.");
const RUNNING_CONTAINERS: Metric =
    Metric::gauge("kubelet_running_containers", &["container_state"], "Containers that run.");
const EVENTS_DROPPED: Metric = Metric::counter(
    "sluice_events_dropped_total",
    &[],
    "Events that were not told to the API server for want of room.",
);

/// Metrics of this crate.
const METRICS: &[&Metric] = &[&NODE_NAME, &ACTIVE_PODS, &RUNNING_PODS, &RUNNING_CONTAINERS, &EVENTS_DROPPED];

/// Every metric that `/metrics` of a node may show.
pub fn metrics() -> Vec<&'static Metric> {
    [METRICS, sluice_dataplane::metrics::METRICS, sluice_dns::METRICS].concat()
}

/// Who else is asked for figures.
#[derive(Clone, Default)]
pub struct Sources {
    pub dataplane: Option<Dataplane>,
    pub dns: Arc<sluice_dns::Stats>,
}

/// All of it, as Prometheus reads it.
pub(super) async fn serve(shared: &Shared) -> Response<Reply> {
    let mut text = Text::default();
    pods(shared, &mut text);
    shared.sources.dns.write_metrics(&mut text);
    let Some(dataplane) = shared.sources.dataplane.clone() else { return with_type(CONTENT_TYPE, text.finish()) };
    // It reads maps of some megabytes.
    let written = tokio::task::spawn_blocking(move || dataplane.write_metrics(&mut text).map(|()| text));
    match written.await.map_err(|error| error.to_string()).and_then(|text| text.map_err(|error| error.to_string())) {
        Ok(text) => with_type(CONTENT_TYPE, text.finish()),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &format!("the data plane's figures: {why}")),
    }
}

fn pods(shared: &Shared, text: &mut Text) {
    let views = views(shared);
    let running: usize = views.iter().map(|v| v.containers.iter().filter(|c| c.id.is_some()).count()).sum();
    let active = views.iter().filter(|v| v.containers.iter().any(|c| c.id.is_some())).count();
    text.metric(&NODE_NAME).add(&[&shared.node.identity.name], 1);
    text.single(&ACTIVE_PODS, views.len());
    text.single(&RUNNING_PODS, active);
    text.metric(&RUNNING_CONTAINERS).add(&["running"], running);
    text.single(&EVENTS_DROPPED, shared.node.recorder.dropped());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../../docs/metrics.md");
    const DASHBOARD: &str = include_str!("../../../../packaging/grafana/sluice-traffic.json");

    /// Rows of the page's tables: name, kind, labels.
    fn rows() -> BTreeSet<[String; 3]> {
        let row = |line: &str| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
            let [name, kind, labels, ..] = cells[..] else { return None };
            let labels = labels.replace('`', "").replace("–", "");
            Some([name.trim_end_matches('`').to_owned(), kind.to_owned(), labels])
        };
        PAGE.lines().filter_map(row).collect()
    }

    #[test]
    fn the_page_says_what_is_exported() {
        let described =
            |metric: &&Metric| [metric.name.to_owned(), metric.kind.name().to_owned(), metric.labels.join(", ")];
        let own: BTreeSet<[String; 3]> = metrics().iter().map(described).collect();
        let page = rows();
        let missing: Vec<_> = own.difference(&page).collect();
        assert!(missing.is_empty(), "docs/metrics.md lacks, or describes otherwise: {missing:#?}");
        let unknown: Vec<_> = page.difference(&own).collect();
        assert!(unknown.is_empty(), "docs/metrics.md describes what is not exported: {unknown:#?}");
    }

    #[test]
    fn names_follow_the_conventions() {
        assert_eq!(sluice_metrics::lint(&metrics()), Vec::<String>::new());
    }

    /// Texts of the dashboard under these names, however deep.
    fn texts<'a>(value: &'a serde_json::Value, names: &[&str], found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| match value.as_str() {
                Some(text) if names.contains(&name.as_str()) => found.push(text),
                _ => texts(value, names, found),
            }),
            serde_json::Value::Array(values) => values.iter().for_each(|value| texts(value, names, found)),
            _ => {}
        }
    }

    /// Labels that a query selects or groups by.
    fn labels(query: &str) -> Vec<&str> {
        let inside = |open: &str, close: char| {
            let parts = query.split(open).skip(1);
            parts.filter_map(move |part| part.split(close).next()).collect::<Vec<_>>()
        };
        let selected = inside("{", '}')
            .into_iter()
            .flat_map(|part| part.split(','))
            .filter_map(|one| one.split_once(['=', '!']).map(|(name, _)| name));
        let grouped = ["by (", "on (", "group_left ("].into_iter().flat_map(|word| inside(word, ')'));
        selected.chain(grouped.flat_map(|part| part.split(','))).map(str::trim).collect()
    }

    #[test]
    fn the_dashboard_asks_for_what_is_exported() {
        let known = metrics();
        let dashboard = serde_json::from_str(DASHBOARD).unwrap();
        let mut queries = Vec::new();
        texts(&dashboard, &["expr", "query"], &mut queries);
        assert!(queries.len() > 30, "{queries:?}");
        let mut asked = BTreeSet::new();
        for query in queries {
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names =
                words.filter(|word| ["sluice_", "kubeproxy_", "kubelet_"].iter().any(|own| word.starts_with(own)));
            let own: Vec<&Metric> = names
                .map(|name| {
                    let part = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                    let whole = |metric: &&&Metric| match metric.kind {
                        sluice_metrics::Kind::Histogram => part == Some(metric.name),
                        _ => name == metric.name,
                    };
                    *known.iter().find(whole).unwrap_or_else(|| panic!("{name} in {query} is not exported"))
                })
                .collect();
            asked.extend(own.iter().map(|metric| metric.name));
            for label in labels(query).into_iter().filter(|label| !["le", "instance"].contains(label)) {
                assert!(own.iter().any(|metric| metric.labels.contains(&label)), "nothing in {query} has {label}");
            }
        }
        assert!(asked.len() > 25, "{asked:?}");
    }
}
