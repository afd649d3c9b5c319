//! `sluice flows --follow`: connections as they come and go, of this machine's node by its daemon's socket, or of any through the API
//! server, which proxies to the nodes for whoever may `get` `nodes/proxy`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use futures::AsyncBufReadExt as _;
use sluice_dataplane::{Filter, FlowEvent};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{events, serve};
use crate::client;
use crate::config::Config;

/// Lines that wait to be printed.
const WAITING: usize = 1_024;

/// Whose connections.
pub(super) enum Nodes {
    /// This machine's.
    Own,
    /// Those with these names, or all.
    Cluster { names: Vec<String>, kubeconfig: Option<PathBuf> },
}

/// Prints until everybody who tells has ended.
pub(super) async fn run(config: &Config, nodes: Nodes, filter: &Filter, json: bool) -> Result<()> {
    let query = query(filter);
    let (lines, told) = mpsc::channel(WAITING);
    let all = match nodes {
        Nodes::Own => {
            let path = serve::socket(config);
            vec![tokio::spawn(local(path, query, lines))]
        }
        Nodes::Cluster { names, kubeconfig } => {
            let file = kubeconfig
                .or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from))
                .unwrap_or_else(|| config.admin_kubeconfig());
            let client = client::lasting(&file).await?;
            let names = if names.is_empty() { node_names(&client).await? } else { names };
            if names.is_empty() {
                bail!("the cluster has no nodes");
            }
            let each = |name| tokio::spawn(remote(client.clone(), name, query.clone(), lines.clone()));
            let all = names.into_iter().map(each).collect();
            // Each has its own.
            drop(lines);
            all
        }
    };
    if !print(told, json).await? {
        return Ok(());
    }
    let count = all.len();
    let mut failed = Vec::new();
    for one in all {
        failed.extend(one.await?.err());
    }
    match failed.into_iter().next() {
        Some(first) if count == 1 => Err(first),
        Some(first) => Err(first.context("no node can be followed any more; of the first one")),
        None => Ok(()),
    }
}

/// Until nobody tells any more; false when nobody reads.
async fn print(mut told: mpsc::Receiver<String>, json: bool) -> Result<bool> {
    let mut out = std::io::stdout();
    if !json {
        writeln!(out, "{}", events::HEADER)?;
    }
    while let Some(line) = told.recv().await {
        let printed = if json {
            writeln!(out, "{line}")
        } else {
            let event: FlowEvent = serde_json::from_str(&line).with_context(|| format!("cannot be read: {line}"))?;
            writeln!(out, "{}", events::line(&event))
        };
        match printed.and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(false),
            printed => printed?,
        }
    }
    Ok(true)
}

/// By the socket of this machine's daemon.
async fn local(path: PathBuf, query: String, lines: mpsc::Sender<String>) -> Result<()> {
    let stream = UnixStream::connect(&path).await.with_context(|| {
        format!("the daemon does not answer at {}; is the node running, and are you root?", path.display())
    })?;
    let (reader, mut writer) = stream.into_split();
    writer.write_all(format!("{query}\n").as_bytes()).await?;
    let mut reader = BufReader::new(reader).lines();
    while let Some(line) = reader.next_line().await? {
        if let Some(message) = refusal(&line) {
            bail!(message);
        }
        if lines.send(line).await.is_err() {
            return Ok(());
        }
    }
    bail!("the daemon ended")
}

/// A line that says why there will be no others.
fn refusal(line: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("error")?.as_str().map(str::to_owned)
}

/// Through the API server.
async fn remote(client: kube::Client, node: String, query: String, lines: mpsc::Sender<String>) -> Result<()> {
    let followed = async {
        let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy/flows?{query}")).body(Vec::new())?;
        let mut reader = Box::pin(client.request_stream(request).await?).lines();
        while let Some(line) = futures::StreamExt::next(&mut reader).await {
            if lines.send(line?).await.is_err() {
                return Ok(());
            }
        }
        bail!("the stream ended")
    };
    let ended: Result<()> = followed.await;
    if let Err(error) = &ended
        && lines.strong_count() > 1
    {
        // The others go on.
        eprintln!("{node}: {error:#}");
    }
    ended.with_context(|| format!("node {node}"))
}

async fn node_names(client: &kube::Client) -> Result<Vec<String>> {
    let request = http::Request::get("/api/v1/nodes").body(Vec::new())?;
    let list: serde_json::Value = client.request(request).await.context("list the nodes")?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// The query of a node's `/flows`.
fn query(filter: &Filter) -> String {
    let encode = |value: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        value.bytes().map(one).collect::<String>()
    };
    let pairs = filter.pairs();
    let wishes = pairs.iter().map(|(name, value)| format!("&{name}={}", encode(value)));
    format!("follow=true{}", wishes.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_queries() {
        let mut filter = Filter::default();
        for (name, value) in [("pod", "shop/web-1"), ("address", "fd00::1"), ("port", "80")] {
            assert_eq!(filter.set(name, value), Ok(()));
        }
        assert_eq!(query(&filter), "follow=true&pod=shop%2Fweb-1&port=80&address=fd00%3A%3A1");
        assert_eq!(refusal(r#"{"error":"too many"}"#).as_deref(), Some("too many"));
        assert_eq!(refusal(r#"{"event":"first"}"#), None);
    }
}
