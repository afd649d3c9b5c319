//! The Debian package: the staged tree with control data, built by dpkg's own tools.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Staged, copy};
use crate::sh;

const SCRIPTS: &[&str] = &["postinst", "prerm", "postrm"];

pub(super) fn build(staged: &Staged, out: &Path) -> Result<PathBuf> {
    let tree = out.join("deb");
    // Left by a run that was ended half-way.
    let _ = fs::remove_dir_all(&tree);
    sh::output(sh::command("cp").args(["-al"]).arg(&staged.root).arg(&tree))?;
    let control = tree.join("DEBIAN");
    fs::create_dir(&control)?;
    let architecture = sh::output(sh::command("dpkg").arg("--print-architecture"))?;
    let fields = fs::read_to_string(sh::root().join("packaging/debian/control"))?
        .replace("@VERSION@", &staged.version)
        .replace("@ARCHITECTURE@", architecture.trim())
        .replace("@SIZE@", &size(&staged.root)?)
        .replace("@LIBRARIES@", &libraries(&staged.root.join("usr/bin/sluice"))?);
    fs::write(control.join("control"), fields)?;
    fs::write(control.join("conffiles"), "/etc/sluice/sluice.yaml\n")?;
    for script in SCRIPTS {
        let to = control.join(script);
        copy(&sh::root().join("packaging/debian").join(script), &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    let package = out.join(format!("sluice_{}_{}.deb", staged.version, architecture.trim()));
    let kind = if staged.level < 9 { "-Zgzip" } else { "-Zxz" };
    let level = if staged.level < 9 { "-z1" } else { "-z6" };
    let mut build = sh::command("dpkg-deb");
    sh::output(build.args(["--root-owner-group", kind, level, "--build"]).arg(&tree).arg(&package))?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// The packages with the libraries that the program loads, at the versions that have its symbols.
fn libraries(program: &Path) -> Result<String> {
    let source = tempfile::tempdir()?;
    fs::create_dir(source.path().join("debian"))?;
    // The tool wants to be in a source package.
    fs::write(source.path().join("debian/control"), "Source: sluice\n\nPackage: sluice\nArchitecture: any\n")?;
    let said = sh::output(sh::command("dpkg-shlibdeps").arg("-O").arg(program).current_dir(source.path()))?;
    let depends = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    depends.map(str::to_owned).with_context(|| format!("dpkg-shlibdeps named no packages: {said}"))
}

/// In KiB, as dpkg counts it.
fn size(root: &Path) -> Result<String> {
    let said = sh::output(sh::command("du").args(["-sk", "--apparent-size"]).arg(root))?;
    Ok(said.split_whitespace().next().context("du said nothing")?.to_owned())
}
