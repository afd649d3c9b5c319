//! `sluice image`: the node's images in containerd.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use sluice_runtime::Runtime;

use crate::{
    config::{Config, Options},
    node,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Add the images of a tar (`docker save` format or OCI layout, also compressed)
    Import {
        /// The tar file
        tar: PathBuf,
        #[command(flatten)]
        options: Options,
    },
    /// List the node's images
    List(Options),
    /// Remove an image by name
    Remove {
        name: String,
        #[command(flatten)]
        options: Options,
    },
}

pub(crate) async fn run(command: Command) -> Result<()> {
    match command {
        Command::Import { tar, options } => {
            let runtime = connect(&options.resolve()?).await?;
            let images = runtime.import(&tar).await.with_context(|| format!("cannot import {}", tar.display()))?;
            for name in images.iter().flat_map(|image| &image.names) {
                println!("imported {name}");
            }
        }
        Command::List(options) => {
            for image in connect(&options.resolve()?).await?.images().await? {
                let size = image.size / 1024 / 1024;
                println!("{:<60} {:<20} {size:>6} MiB", image.names.join(","), &image.id[..image.id.len().min(19)]);
            }
        }
        Command::Remove { name, options } => {
            connect(&options.resolve()?).await?.remove_image(&name).await?;
            println!("removed {name}");
        }
    }
    Ok(())
}

async fn connect(config: &Config) -> Result<Runtime> {
    let socket = node::containerd_socket(config).await;
    Runtime::connect(node::runtime_config(config, socket)).await.context(
        "cannot reach containerd; is the node running? (`sluice up` or `sluice node`; --run-dir and --containerd say where)",
    )
}
