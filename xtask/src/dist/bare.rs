//! The bare system that the package's tests install it on: debootstrap's smallest one of this machine's Debian, with the
//! packages that ours depends on in apt's cache, so that the tests need no network. Kept under `target/dist-root`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::sh;

/// What our package depends on, beside libraries, and what the book has its readers install.
const CACHED: [&str; 8] =
    ["containerd", "runc", "kubernetes-client", "curl", "iproute2", "etcd-server", "etcd-client", "bird2"];
/// In the system: what is in its cache.
const NOTE: &str = "var/cache/apt/cached-for-tests";

pub(super) fn prepare() -> Result<()> {
    let root = sh::target().join("dist-root");
    if root.exists() {
        return cached(&root);
    }
    sh::step("making the bare system (debootstrap)");
    let (suite, mirror) = source()?;
    let fresh = sh::target().join("dist-root.new");
    // Left by a run that was ended half-way.
    let _ = fs::remove_dir_all(&fresh);
    let mut debootstrap = sh::command(sh::which("debootstrap").context("debootstrap is not installed")?);
    sh::output(debootstrap.args(["--variant=minbase", &suite]).arg(&fresh).arg(&mirror))?;
    cached(&fresh)?;
    fs::rename(&fresh, &root).with_context(|| format!("cannot make {}", root.display()))
}

/// Fills apt's cache, with what those packages recommend, too: a reader's apt brings that along.
fn cached(root: &Path) -> Result<()> {
    let (note, wanted) = (root.join(NOTE), CACHED.join(" "));
    if fs::read_to_string(&note).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    inside(root, &["apt-get", "-q", "update"])?;
    let mut words = vec!["apt-get", "-q", "-y", "--download-only", "install"];
    words.extend(CACHED);
    inside(root, &words)?;
    fs::write(&note, wanted).with_context(|| format!("cannot write {}", note.display()))
}

fn inside(root: &Path, words: &[&str]) -> Result<()> {
    let mut command = sh::command(sh::which("chroot").context("chroot is not installed")?);
    sh::output(command.arg(root).args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")).map(drop)
}

/// This machine's release, and where apt gets it from.
pub(crate) fn source() -> Result<(String, String)> {
    let release = fs::read_to_string("/etc/os-release").context("which Debian this is")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("this machine's /etc/os-release names no Debian release")?.trim_matches('"').to_owned();
    let said = targets()?;
    let wanted = format!("{suite} main ");
    let mirror = said.lines().find_map(|line| line.strip_prefix(&wanted));
    let mirror = mirror.with_context(|| format!("apt has no source of {suite} main"))?.to_owned();
    Ok((suite, mirror))
}

/// What apt gets here: release, component and site, one a line.
pub(crate) fn targets() -> Result<String> {
    sh::output(sh::command("apt-get").args(["indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)"]))
}
