//! `sluice backup`: one file with everything a control plane needs, the store at one revision and the keys, taken while it
//! serves. The embedded store is open in the daemon alone, so the daemon writes it out, to a socket in its run directory;
//! from etcd, and from a store that nobody has open, the command reads by itself.

mod file;
pub(crate) mod migrate;
pub(crate) mod restore;

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;
use sluice_store::{DynEngine, snapshot};
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Options},
    control_plane, machine,
};

/// How long a reader of the daemon's socket may take for all of it: history is kept no longer.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes on their way from a store to a file or another store.
const PIPE_BYTES: usize = 1 << 20;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The file to write, readable by its owner alone: it holds the cluster's private keys and its Secrets' key
    file: PathBuf,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let config = arguments.options.resolve()?;
    let mut stream = source(&config).await?;
    let made = file::write(&arguments.file, &config, &mut stream).await?;
    println!(
        "{}: {} keys of revision {} and {} files of keys and certificates",
        arguments.file.display(),
        made.keys,
        made.revision,
        made.files
    );
    println!("It holds the cluster's private keys: whoever reads it rules the cluster. Keep it as secret as they are.");
    Ok(())
}

/// Writes the daemon's store to whoever connects, one after the other. The socket is root's.
pub(crate) async fn serve(engine: DynEngine, path: PathBuf, shutdown: CancellationToken) -> Result<()> {
    // Left by a daemon that was killed; this one has the run directory to itself.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((mut stream, _)) = accepted else { continue };
        let own = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            continue;
        }
        let written = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            written = tokio::time::timeout(PATIENCE, snapshot::write(&engine, &mut stream)) => written,
        };
        match written {
            Ok(Ok(_)) => drop(stream.shutdown().await),
            // The reader notices by the missing end.
            Ok(Err(error)) => tracing::warn!(%error, "a backup could not be written"),
            Err(_) => tracing::warn!("a backup's reader was too slow"),
        }
    }
}

/// Where the daemon listens.
pub(crate) fn socket(config: &Config) -> PathBuf {
    config.run_dir.join("backup.sock")
}

/// A stream of the installation's store.
async fn source(config: &Config) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
    if config.etcd.is_empty() && machine::running(&config.pid_file()).is_some() {
        let path = socket(config);
        let stream = UnixStream::connect(&path).await.with_context(|| {
            format!(
                "the daemon does not answer at {}; does it run the control plane, with its own store?",
                path.display()
            )
        })?;
        return Ok(Box::new(stream));
    }
    if config.etcd.is_empty() && !control_plane::store_dir(config).exists() {
        bail!("there is no store in {}; is this the machine of the control plane?", config.data_dir.display());
    }
    Ok(Box::new(streamed(control_plane::engine(config).await?)))
}

/// A stream of a store that this process has open.
fn streamed(engine: DynEngine) -> impl AsyncRead + Send + Unpin {
    let (reader, mut writer) = tokio::io::duplex(PIPE_BYTES);
    tokio::spawn(async move {
        // The reader notices by the missing end.
        if let Err(error) = snapshot::write(&engine, &mut writer).await {
            eprintln!("error: {error}");
        }
    });
    reader
}
