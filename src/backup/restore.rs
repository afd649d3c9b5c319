//! `sluice restore`: a backup back into an empty store, of either engine, with the keys that belong to it. Everything is
//! checked before the first byte is written, and what was there is moved aside, not removed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use sluice_store::{DynEngine, embedded, limits, snapshot};

use super::file;
use crate::{
    config::{Config, Options},
    control_plane, machine,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// What `sluice backup` wrote
    file: PathBuf,
    /// Put it in place of what is there: a store on this machine and its keys are moved aside, what an etcd holds of a
    /// cluster is deleted. No server may run meanwhile, on other machines neither
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let config = arguments.options.resolve()?;
    let mut backup = file::open(&arguments.file).await?;
    let _pid_file = machine::take_pid_file(&config.pid_file())?;
    let keys = config.pki_dir();
    let others = keys.exists() && !same(&file::keys(&keys)?, &backup.files);
    if others && !arguments.replace {
        bail!("{} holds other keys than the backup: say --replace to move them aside", keys.display());
    }
    let revision = backup.header.revision + limits::RESTORE_MARGIN;
    let (engine, fresh) = target(&config, revision, arguments.replace).await?;
    let read = snapshot::read(&engine, &mut backup.stream).await;
    read.context("the store did not take all of it; run the same with --replace again")?;
    drop(engine);
    if others {
        aside(&keys)?;
    }
    put_keys(&keys, &backup.files)?;
    if let Some(fresh) = fresh {
        let store = control_plane::store_dir(&config);
        if store.exists() {
            aside(&store)?;
        }
        fs::rename(&fresh, &store).with_context(|| format!("cannot make {}", store.display()))?;
    }
    println!(
        "restored {} keys of revision {} (written {} by sluice {}) and {} files of keys and certificates",
        backup.header.keys, backup.header.revision, backup.header.created, backup.header.version, backup.header.files
    );
    Ok(())
}

/// The store to fill; for the embedded engine beside the place where it belongs, so that it is there whole or not at all.
async fn target(config: &Config, revision: i64, replace: bool) -> Result<(DynEngine, Option<PathBuf>)> {
    let full = |place: &str| format!("the store {place} is not empty: say --replace to put the backup in its place");
    if !config.etcd.is_empty() {
        let engine = control_plane::engine(config).await?;
        if !snapshot::is_empty(&engine).await? {
            if !replace {
                bail!(full(&format!("in etcd at {}", config.etcd.join(", "))));
            }
            snapshot::clear(&engine).await.context("etcd cannot be emptied")?;
        }
        return Ok((engine, None));
    }
    let store = control_plane::store_dir(config);
    if store.exists() && !replace {
        let there: DynEngine = embedded::Embedded::open(&store, embedded::Options::default())?;
        if !snapshot::is_empty(&there).await? {
            bail!(full(&format!("in {}", store.display())));
        }
    }
    let fresh = store.with_extension("restoring");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    let options = embedded::Options { first_revision: revision, ..embedded::Options::default() };
    Ok((embedded::Embedded::open(&fresh, options)?, Some(fresh)))
}

/// Servers renew certificates by themselves; what makes a cluster is its authority and the keys.
fn same(have: &[(String, Vec<u8>)], backup: &[(String, Vec<u8>)]) -> bool {
    let lasting = |name: &str| matches!(name, "ca.crt" | "ca.key" | "sa.key" | "encryption.key");
    let of = |files: &[(String, Vec<u8>)]| files.iter().filter(|(name, _)| lasting(name)).cloned().collect::<Vec<_>>();
    of(have) == of(backup)
}

fn put_keys(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    for (name, content) in files {
        machine::write_secret(&dir.join(name), content)?;
    }
    Ok(())
}

/// Renames a directory to one that says what it was.
fn aside(dir: &Path) -> Result<()> {
    let seconds = k8s_openapi::jiff::Timestamp::now().as_second();
    let to = dir.with_extension(format!("before-restore-{seconds}"));
    fs::rename(dir, &to).with_context(|| format!("cannot move {} aside", dir.display()))?;
    println!("moved {} to {}", dir.display(), to.display());
    Ok(())
}
