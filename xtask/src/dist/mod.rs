//! What is handed out: a Debian package, a tarball and an OCI image, all of one staged tree with the one program (the
//! eBPF object inside), services, default settings, man pages and completions. Under `target/dist`.

mod bare;
mod deb;
mod oci;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use flate2::{Compression, write::GzEncoder};

pub(crate) use bare::{source, targets};

use crate::{ebpf, image, setup, sh};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Package the debug build, quickly rather than small: for tests
    #[arg(long)]
    debug: bool,
    /// The version that the package says [default: the workspace's]
    #[arg(long)]
    package_version: Option<String>,
    /// Make what the package's tests need: packages of the debug build as it is, an older one, and a bare system
    #[arg(long, conflicts_with_all = ["debug", "package_version"])]
    for_tests: bool,
}

/// What the kinds of packages are made of.
struct Staged {
    root: PathBuf,
    version: String,
    /// How hard to compress, as gzip counts.
    level: u32,
}

/// Where a file of the repository goes.
const FILES: &[(&str, &str)] = &[
    ("packaging/sluice.service", "usr/lib/systemd/system"),
    ("packaging/sluice-server.service", "usr/lib/systemd/system"),
    ("packaging/sluice-node.service", "usr/lib/systemd/system"),
    ("packaging/sluice.yaml", "etc/sluice"),
    ("README.md", "usr/share/doc/sluice"),
    ("xtask/samples/echo.yaml", "usr/share/sluice/samples"),
];

/// Where a shell looks for its completions, under which name.
const COMPLETIONS: &[(&str, &str)] = &[
    ("sluice.bash", "usr/share/bash-completion/completions/sluice"),
    ("_sluice", "usr/share/zsh/vendor-completions/_sluice"),
    ("sluice.fish", "usr/share/fish/vendor_completions.d/sluice.fish"),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.for_tests {
        setup::ensure(setup::Purpose::Everything)?;
        return for_tests();
    }
    setup::ensure(setup::Purpose::Build)?;
    ebpf::build()?;
    sh::step(if options.debug { "building sluice (debug)" } else { "building sluice (release)" });
    let mut build = sh::cargo();
    build.args(["build", "--package", "sluice"]);
    if !options.debug {
        build.arg("--release");
    }
    sh::run(&mut build)?;
    for file in package(options)? {
        println!("{} ({:.1} MB)", file.display(), fs::metadata(&file)?.len() as f64 / 1e6);
    }
    Ok(())
}

/// Packages what is built already; returns the package, the tarball and the image.
fn package(options: &Options) -> Result<Vec<PathBuf>> {
    let out = sh::target().join("dist");
    let staged = stage(options, &out)?;
    let made = vec![deb::build(&staged, &out)?, tarball(&staged, &out)?, oci::build(&staged, &out)?];
    fs::remove_dir_all(&staged.root)?;
    Ok(made)
}

/// What the tests of the package need: the packages of the debug build, one that is older, and a system to install them on.
pub(crate) fn for_tests() -> Result<()> {
    sh::step("packaging sluice for the tests");
    bare::prepare()?;
    package(&Options { debug: true, ..Options::default() })?;
    let out = sh::target().join("dist");
    let older = stage(&Options { debug: true, package_version: Some("0.0.1".to_owned()), ..Options::default() }, &out)?;
    deb::build(&older, &out)?;
    fs::remove_dir_all(&older.root).map_err(Into::into)
}

fn stage(options: &Options, out: &Path) -> Result<Staged> {
    let version = options.package_version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let root = out.join("stage");
    let staged = Staged { root, version, level: if options.debug { 1 } else { 9 } };
    // Left by a run that was ended half-way.
    let _ = fs::remove_dir_all(&staged.root);
    let built = sh::target().join(if options.debug { "debug/sluice" } else { "release/sluice" });
    let program = staged.root.join("usr/bin/sluice");
    fs::create_dir_all(staged.root.join("usr/bin"))?;
    sh::output(sh::command("strip").arg("-o").arg(&program).arg(&built))?;
    for (file, dir) in FILES {
        let from = sh::root().join(file);
        let to = staged.root.join(dir).join(from.file_name().context("a file's name")?);
        copy(&from, &to)?;
    }
    // What a first pod runs, without a registry.
    copy(&image::build()?, &staged.root.join("usr/share/sluice/samples/echo.tar"))?;
    copy(&sh::root().join("LICENSE"), &staged.root.join("usr/share/doc/sluice/copyright"))?;
    documents(&staged, &program)?;
    Ok(staged)
}

/// The program writes its own man pages and completions.
fn documents(staged: &Staged, program: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    sh::output(sh::command(program).arg("documents").arg(dir.path()))?;
    for (file, place) in COMPLETIONS {
        copy(&dir.path().join(file), &staged.root.join(place))?;
    }
    let man = staged.root.join("usr/share/man/man1");
    fs::create_dir_all(&man)?;
    for entry in fs::read_dir(dir.path())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // `sluice help image` says what `sluice image --help` says.
        if name.ends_with(".1") && !name.contains("-help") {
            fs::write(man.join(format!("{name}.gz")), gzip(&fs::read(&path)?, 9)?)?;
        }
    }
    Ok(())
}

fn tarball(staged: &Staged, out: &Path) -> Result<PathBuf> {
    let name = format!("sluice-{}-{}", staged.version, std::env::consts::ARCH);
    let path = out.join(format!("{name}.tar.gz"));
    fs::write(&path, gzip(&archive(&staged.root, &name)?, staged.level)?)?;
    Ok(path)
}

/// A tar of a tree, owned by root, with the same bytes for the same content.
fn archive(root: &Path, under: &str) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.mode(tar::HeaderMode::Deterministic);
    tar.follow_symlinks(false);
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let mut entries: Vec<_> = fs::read_dir(root.join(&dir))?.collect::<std::io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let inside = dir.join(entry.file_name());
            tar.append_path_with_name(entry.path(), Path::new(under).join(&inside))?;
            if entry.file_type()?.is_dir() {
                dirs.push(inside);
            }
        }
    }
    Ok(tar.into_inner()?)
}

fn gzip(data: &[u8], level: u32) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display())).map(drop)
}
