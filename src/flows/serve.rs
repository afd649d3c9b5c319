//! The daemon's side of `sluice flows --follow` on its own machine: a socket of root's in the run directory. A client writes one
//! line, the query of the node's `/flows`, and reads lines until it goes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt as _;
use sluice_agent::api;
use sluice_dataplane::Dataplane;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a query at most.
const QUERY: u64 = 4_096;
/// In place of a query: the node's pods by the index of their link.
const PODS: &str = "pods";
/// Clients at a time.
const CLIENTS: usize = 16;

/// Where the daemon listens.
pub(crate) fn socket(config: &Config) -> PathBuf {
    config.run_dir.join("flows.sock")
}

/// Answers until the shutdown.
pub(crate) async fn serve(dataplane: Dataplane, path: PathBuf, shutdown: CancellationToken) -> Result<()> {
    // Left by a daemon that was killed; this one has the run directory to itself.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let own = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            continue;
        }
        let (dataplane, stop) = (dataplane.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                answered = answer(stream, &dataplane) => if let Err(error) = answered {
                    tracing::debug!(%error, "a client of the flows' socket");
                }
            }
            drop(place);
        });
    }
}

async fn answer(stream: UnixStream, dataplane: &Dataplane) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(QUERY));
    let mut query = String::new();
    tokio::time::timeout(PATIENCE, reader.read_line(&mut query)).await??;
    if query.trim_end() == PODS {
        let pods: BTreeMap<u32, String> = dataplane
            .pods()
            .into_iter()
            .map(|(link, (namespace, name))| (link, format!("{namespace}/{name}")))
            .collect();
        return writer.write_all(format!("{}\n", serde_json::to_string(&pods)?).as_bytes()).await;
    }
    let mut lines = match api::flow_lines(dataplane, query.trim_end()).await {
        Ok(lines) => lines,
        Err((_, message)) => {
            let refusal = serde_json::json!({ "error": message });
            return writer.write_all(format!("{refusal}\n").as_bytes()).await;
        }
    };
    let mut rest = [0; 64];
    loop {
        tokio::select! {
            line = lines.next() => match line {
                Some(line) => writer.write_all(line.as_bytes()).await?,
                None => return Ok(()),
            },
            // It went; what else it says is nobody's business.
            read = reader.read(&mut rest) => if read? == 0 {
                return Ok(());
            },
        }
    }
}
