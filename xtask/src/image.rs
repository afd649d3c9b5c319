//! The sample image: the static echo server and busybox in one layer, as a docker-archive tar
//! that `sluice image import` (or any container engine) loads. No registry is involved.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::sh;

/// The name the sample manifests use.
pub(crate) const NAME: &str = "sluice.local/echo:latest";

/// The static busybox that goes into the image.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// The path of the static `echo` program after [`build`].
pub(crate) fn program() -> Result<PathBuf> {
    let host = host_triple()?;
    Ok(sh::target().join(&host).join("release/echo"))
}

/// Builds the image and returns the tar's path. The same input gives the same bytes.
pub(crate) fn build() -> Result<PathBuf> {
    let host = host_triple()?;
    let mut cargo = sh::cargo();
    cargo
        .args(["build", "--quiet", "--release", "--package", "sluice-echo", "--target", &host])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    sh::run(&mut cargo)?;
    let archive = archive(&layer(&fs::read(program()?)?)?)?;
    let path = sh::target().join("image/echo.tar");
    fs::create_dir_all(sh::target().join("image"))?;
    if fs::read(&path).ok().as_deref() != Some(&archive) {
        fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

fn host_triple() -> Result<String> {
    let version = sh::output(sh::command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}

fn layer(echo: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (dir, mode) in [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777), ("var/", 0o755)] {
        entry(&mut tar, dir, EntryType::Directory, mode, b"")?;
    }
    entry(&mut tar, "echo", EntryType::Regular, 0o755, echo)?;
    entry(
        &mut tar,
        "etc/passwd",
        EntryType::Regular,
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    entry(&mut tar, "etc/group", EntryType::Regular, 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    let busybox = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX} (package busybox-static)"))?;
    entry(&mut tar, "bin/busybox", EntryType::Regular, 0o755, &busybox)?;
    for applet in sh::output(sh::command(BUSYBOX).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}

fn archive(layer: &[u8]) -> Result<Vec<u8>> {
    let diff_id = format!("sha256:{:x}", Sha256::digest(layer));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin"],
            "Entrypoint": ["/echo"],
            "Cmd": ["serve"],
            "ExposedPorts": {"8080/tcp": {}, "8080/udp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    let config = serde_json::to_vec(&config)?;
    let config_name = format!("{:x}.json", Sha256::digest(&config));
    let manifest = json!([{"Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, &config_name, EntryType::Regular, 0o644, &config)?;
    entry(&mut tar, "layer.tar", EntryType::Regular, 0o644, layer)?;
    entry(&mut tar, "manifest.json", EntryType::Regular, 0o644, &serde_json::to_vec(&manifest)?)?;
    Ok(tar.into_inner()?)
}

fn entry<W: Write>(tar: &mut Builder<W>, path: &str, kind: EntryType, mode: u32, data: &[u8]) -> Result<()> {
    tar.append_data(&mut header(kind, mode, data.len() as u64), path, data).context(path.to_owned())
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}
