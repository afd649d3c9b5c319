//! `sluice migrate`: from the embedded store of one server to an etcd that several may share. The store is copied at rest,
//! counted on the other side, and kept under another name.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use sluice_apiserver::bootstrap::claim::claim;
use sluice_store::{DynEngine, embedded, snapshot};

use super::streamed;
use crate::{
    config::{Config, Options},
    control_plane, etcd, machine,
};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let settings = arguments.options.settings_file();
    let config = arguments.options.resolve()?;
    if config.etcd.is_empty() {
        bail!("say where etcd is: --etcd http://ADDRESS:2379, once for each of its members");
    }
    let store = control_plane::store_dir(&config);
    if !store.exists() {
        bail!("there is no store in {}: nothing to migrate", store.display());
    }
    let _pid_file = machine::take_pid_file(&config.pid_file())?;
    let target = control_plane::engine(&config).await?;
    if !snapshot::is_empty(&target).await? {
        bail!(
            "etcd at {} holds a cluster already; a migration that was ended half-way can be begun anew after: etcdctl del \
             --prefix /registry/",
            config.etcd.join(", ")
        );
    }
    let source: DynEngine = embedded::Embedded::open(&store, embedded::Options::default())?;
    let moved = snapshot::read(&target, &mut streamed(source)).await.context("etcd did not take all of it")?;
    let there = snapshot::check(&mut streamed(target.clone())).await.context("etcd cannot be read")?;
    if there.keys != moved.keys {
        bail!("etcd has {} of {} keys; does something else write to it?", there.keys, moved.keys);
    }
    claim(&target, &config.pki_dir(), &config.node_name).await?;
    let kept = control_plane::migrated_dir(&config);
    fs::rename(&store, &kept).with_context(|| format!("cannot rename {}", store.display()))?;
    println!(
        "moved {} keys to etcd at {}; the store before is kept in {}",
        moved.keys,
        config.etcd.join(", "),
        kept.display()
    );
    tell(&config, settings)
}

/// Makes the settings say so, or says that they have to.
fn tell(config: &Config, settings: Option<PathBuf>) -> Result<()> {
    let files = config.etcd_files.as_ref().map(etcd::Files::settings).unwrap_or_default();
    let mut line = format!("etcd: [{}]", config.etcd.join(", "));
    for (setting, _, file) in &files {
        line += &format!("\n{setting}: {}", file.display());
    }
    match settings {
        Some(file) if names_etcd(&file)? => {}
        Some(file) => {
            let opened = fs::OpenOptions::new().append(true).open(&file);
            let written = opened.and_then(|mut to| writeln!(to, "\n{line}"));
            written.with_context(|| format!("cannot write {}; add to it: {line}", file.display()))?;
            println!("added to {}: {line}", file.display());
        }
        None => {
            let mut flags = format!("--etcd {}", config.etcd.join(" --etcd "));
            for (_, flag, file) in &files {
                flags += &format!(" {flag} {}", file.display());
            }
            println!("start the server with {flags} from here on");
        }
    }
    println!(
        "further servers: copy {} to the same place on each of them before its first start, with the same setting",
        config.pki_dir().display()
    );
    Ok(())
}

fn names_etcd(file: &Path) -> Result<bool> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.lines().any(|line| line.starts_with("etcd:")))
}
