//! The second kernel's package: fetched by apt, which checks its signature, and unpacked under `target/kernel`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::sh;

/// The kernel that the lane is about.
const SERIES: &str = "6.1.";

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) version: String,
    pub(super) image: PathBuf,
    /// The folder of its modules, with their dependencies in `modules.dep`.
    pub(super) modules: PathBuf,
}

/// Unpacks it unless it is there already. It is kept until apt offers another one.
pub(super) fn unpacked() -> Result<Kernel> {
    let version = offered()?;
    let root = sh::target().join("kernel").join(&version);
    let kernel = Kernel {
        image: root.join("boot").join(format!("vmlinuz-{version}")),
        modules: root.join("lib/modules").join(&version),
        version,
    };
    if kernel.modules.join("modules.dep").exists() {
        return Ok(kernel);
    }
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let mut download = sh::command("apt-get");
    // As root in a folder that only root may write.
    download.args(["-o", "APT::Sandbox::User=root", "-q", "download", &format!("linux-image-{}", kernel.version)]);
    sh::output(download.current_dir(&root))?;
    let deb = fs::read_dir(&root)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download made no file")?;
    sh::output(sh::command("dpkg").arg("-x").arg(&deb).arg(&root))?;
    fs::remove_file(&deb)?;
    index(&root, &kernel)?;
    Ok(kernel)
}

/// Writes `modules.dep`, last, as a sign that all is there.
fn index(root: &Path, kernel: &Kernel) -> Result<()> {
    if !kernel.image.exists() {
        bail!("the kernel's package has no {}", kernel.image.display());
    }
    sh::output(sh::command("busybox").arg("depmod").arg("-b").arg(root).arg(&kernel.version)).map(drop)
}

/// The version of the newest kernel of the series that apt offers.
fn offered() -> Result<String> {
    let said = sh::output(sh::command("apt-cache").args(["depends", "linux-image-amd64"]))
        .context("ask apt for Debian 12's kernel; on another system the second kernel cannot be fetched")?;
    let names = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let version = names.into_iter().find(|name| name.starts_with(SERIES) && name.ends_with("-amd64"));
    version.map(str::to_owned).with_context(|| format!("apt offers no kernel {SERIES}x (Debian 12's); it said: {said}"))
}
