//! The OCI image: an image layout in a tar, with the program and the libraries that it loads in one layer. It runs the
//! control plane and the inspecting commands; a node needs containerd and runc beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Staged, archive, copy, gzip};
use crate::sh;

/// The name under which engines keep it.
const NAME: &str = "sluice.local/sluice";

pub(super) fn build(staged: &Staged, out: &Path) -> Result<PathBuf> {
    let program = staged.root.join("usr/bin/sluice");
    let root = tempfile::tempdir_in(out)?;
    copy(&program, &root.path().join("usr/bin/sluice"))?;
    for library in libraries(&program)? {
        copy(&library, &root.path().join(library.strip_prefix("/")?))?;
    }
    let layer = archive(root.path(), "")?;
    let packed = gzip(&layer, staged.level)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/sluice"], "Cmd": ["server"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "ExposedPorts": {"6443/tcp": {}}, "Volumes": {"/var/lib/sluice": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        "history": [{"created_by": "cargo xtask dist"}],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    }))?;
    let name = format!("{NAME}:{}", staged.version);
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    // The one is read by containerd, the other by everybody else.
    entry["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": staged.version});
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry],
    }))?;
    let layout = tempfile::tempdir_in(out)?;
    fs::create_dir_all(layout.path().join("blobs/sha256"))?;
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(layout.path().join("index.json"), index)?;
    for blob in [&packed, &config, &manifest] {
        fs::write(layout.path().join("blobs").join(digest(blob).replace(':', "/")), blob)?;
    }
    let path = out.join(format!("sluice-{}-{}.oci.tar", staged.version, std::env::consts::ARCH));
    fs::write(&path, archive(layout.path(), "")?)?;
    Ok(path)
}

/// The libraries that the program loads, and the loader, by their names in the file system.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = sh::output(sh::command("ldd").arg(program)).context("what the program loads")?;
    let words = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(blob))
}
