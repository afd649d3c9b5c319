//! `sluice status`: what is healthy, and for what is not, why and what to do.

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use sluice_runtime::Runtime;

use crate::{
    client,
    config::{Config, Options},
    control_plane, machine, node,
};

/// How long one part may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(crate) struct Arguments {
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

/// One part of the installation.
#[derive(Serialize)]
struct Part {
    name: &'static str,
    healthy: bool,
    /// What it is and where.
    detail: String,
    /// For what is not healthy: what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Serialize)]
struct Report {
    healthy: bool,
    parts: Vec<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_plane: Option<sluice_dataplane::Status>,
}

/// Fails (exit code 1) when a part is not healthy.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let config = arguments.options.resolve()?;
    let report = report(&config).await;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    if !report.healthy {
        bail!("not everything is healthy");
    }
    Ok(())
}

async fn report(config: &Config) -> Report {
    let mut parts = vec![daemon(config)];
    // A machine that only runs a node has no administrator's kubeconfig.
    if config.admin_kubeconfig().exists() {
        parts.extend(control_plane(config).await);
    }
    if node::keys(config).join("cluster.json").exists() {
        parts.push(servers(config).await);
    }
    parts.push(containerd(config).await);
    let (data_plane, part) = data_plane(&config.pin_dir());
    parts.push(part);
    Report { healthy: parts.iter().all(|part| part.healthy), parts, data_plane }
}

fn print(report: &Report) {
    for part in &report.parts {
        let mark = if part.healthy { "ok  " } else { "FAIL" };
        println!("{mark}  {:<12} {}", part.name, part.detail);
        if let Some(advice) = &part.advice {
            println!("      {:<12} -> {advice}", "");
        }
    }
    let Some(data_plane) = &report.data_plane else { return };
    println!("\neBPF programs:");
    for program in &data_plane.programs {
        println!("      {:<24} {}", program.name, program.attached);
    }
    println!("uplinks:");
    for uplink in &data_plane.uplinks {
        let why = uplink.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        println!("      {:<24} {}{why}", uplink.link, uplink.xdp);
    }
    println!("maps:");
    for map in &data_plane.maps {
        println!("      {:<24} {} of {}", map.name, map.used, map.limit);
    }
    println!("flows: {}", data_plane.flows);
    for (reason, count) in &data_plane.refused {
        println!("refused: {count} {reason}");
    }
}

fn good(name: &'static str, detail: String) -> Part {
    Part { name, healthy: true, detail, advice: None }
}

fn bad(name: &'static str, detail: String, advice: &str) -> Part {
    Part { name, healthy: false, detail, advice: Some(advice.to_owned()) }
}

fn daemon(config: &Config) -> Part {
    match machine::running(&config.pid_file()) {
        Some(pid) => good("daemon", format!("pid {pid}, {}", config.run_dir.display())),
        None => bad(
            "daemon",
            format!("not running ({} is not held)", config.pid_file().display()),
            "start it: sluice up, sluice server or sluice node (or: systemctl start sluice)",
        ),
    }
}

async fn control_plane(config: &Config) -> Vec<Part> {
    let url = control_plane::local_url(config);
    let ask = async |path: &str| -> Result<String> {
        let client = client::from_file(&config.admin_kubeconfig()).await?;
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(tokio::time::timeout(PATIENCE, client.request_text(request)).await??)
    };
    let server = match ask("/readyz?verbose").await {
        Ok(_) => good("API server", format!("ready at {url}")),
        Err(error) => bad(
            "API server",
            format!("{url}: {error:#}"),
            "look at the daemon's log; the store below it may be unreachable or the disk full",
        ),
    };
    let nodes = match nodes(config).await {
        Ok((ready, all)) if ready == all && all > 0 => good("nodes", format!("{ready} of {all} ready")),
        Ok((ready, all)) => bad(
            "nodes",
            format!("{ready} of {all} ready"),
            "kubectl describe node says why; is `sluice node` running there?",
        ),
        Err(error) => bad("nodes", format!("{error:#}"), "the API server must answer first"),
    };
    vec![server, nodes]
}

/// What the node sees of the servers that it joined.
async fn servers(config: &Config) -> Part {
    let name = "API servers";
    let known = match tokio::time::timeout(2 * PATIENCE, sluice_agent::bootstrap::known_servers(&node::keys(config)))
        .await
    {
        Ok(Ok(known)) => known,
        Ok(Err(error)) => return bad(name, format!("{error:#}"), "sluice token create on a server says how to join"),
        Err(_) => return bad(name, "no answer in time".to_owned(), "look whether this machine reaches the servers"),
    };
    let told = |(server, told): &(String, Result<()>)| match told {
        Ok(()) => format!("{server} answers"),
        Err(error) => format!("{server}: {error:#}"),
    };
    let detail = known.iter().map(told).collect::<Vec<_>>().join("; ");
    match known.iter().all(|(_, told)| told.is_ok()) {
        true => good(name, detail),
        false => bad(name, detail, "the node goes on with those that answer; is `sluice server` running there?"),
    }
}

async fn nodes(config: &Config) -> Result<(usize, usize)> {
    use k8s_openapi::api::core::v1::Node;
    let client = client::from_file(&config.admin_kubeconfig()).await?;
    let api = kube::Api::<Node>::all(client);
    let nodes = tokio::time::timeout(PATIENCE, api.list(&Default::default())).await??;
    let ready = |node: &&Node| {
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    Ok((nodes.items.iter().filter(ready).count(), nodes.items.len()))
}

async fn containerd(config: &Config) -> Part {
    let socket = node::containerd_socket(config).await;
    let version = async { Runtime::connect(node::runtime_config(config, socket.clone())).await?.version().await };
    match tokio::time::timeout(PATIENCE, version).await {
        Ok(Ok(version)) => good("containerd", format!("{version}, {} (namespace k8s.io)", socket.display())),
        Ok(Err(error)) => bad(
            "containerd",
            format!("{}: {error}", socket.display()),
            "apt-get install containerd runc; then start the node again",
        ),
        Err(_) => bad(
            "containerd",
            format!("{} does not answer", socket.display()),
            "end the process that holds the socket; the node starts containerd again",
        ),
    }
}

fn data_plane(pins: &Path) -> (Option<sluice_dataplane::Status>, Part) {
    match sluice_dataplane::status(pins) {
        Ok(status) if status.problems.is_empty() => {
            let detail = format!("{} programs attached, maps under {}", status.programs.len(), pins.display());
            (Some(status), good("data plane", detail))
        }
        Ok(status) => {
            let part =
                bad("data plane", status.problems.join("; "), "restart the node daemon: it attaches what is missing");
            (Some(status), part)
        }
        Err(error) => {
            let part =
                bad("data plane", format!("{error}"), "start the node as root; its log says what the kernel refused");
            (None, part)
        }
    }
}
