//! Builds the eBPF object that `sluice-dataplane` embeds, and the one of the packet bench beside it.
//!
//! Finds a compiler that can build `core` for the BPF target (Debian's `rustc-web` with `rust-web-src`, or a rustup
//! nightly with `rust-src`) and `bpf-linker`, which it builds from its crate when missing. Installs no system package:
//! it says which ones are needed.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const LLVM_MAJOR: &str = "22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Everything the object depends on.
const INPUTS: [&str; 5] = ["ebpf/common", "ebpf/packet", "ebpf/programs", "Cargo.lock", "xtask/src/ebpf.rs"];
/// The product's object, and the bench's.
const OBJECTS: [&str; 2] = ["sluice-ebpf", "sluice-ebpf-bench"];

/// Builds the objects in `target/ebpf` unless their inputs are unchanged, and returns the product's path.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let root = workspace()?;
    let made = root.join("target/ebpf");
    let objects = OBJECTS.map(|name| made.join(name));
    let stamp = made.join("inputs.sha256");
    let inputs = fingerprint(&root)?;
    let [object, _] = &objects;
    if objects.iter().all(|object| object.exists())
        && std::fs::read_to_string(&stamp).is_ok_and(|known| known == inputs)
    {
        return Ok(object.clone());
    }
    let compiler = Compiler::find()?;
    let linker = linker(&root)?;
    eprintln!("building the eBPF object with {}", compiler.name);
    compile(&root, &compiler, &linker)?;
    let built = root.join("target/bpf").join(TARGET).join("release");
    for (name, object) in OBJECTS.iter().zip(&objects) {
        install(&built.join(name), object)?;
    }
    std::fs::write(&stamp, inputs).with_context(|| format!("write {}", stamp.display()))?;
    Ok(object.clone())
}

struct Compiler {
    name: String,
    rustc: PathBuf,
    cargo: Vec<OsString>,
}

impl Compiler {
    fn find() -> anyhow::Result<Compiler> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let debian = Path::new("/usr/bin/rustc");
        if has_source(debian) && llvm_major(debian).as_deref() == Some(LLVM_MAJOR) {
            return Ok(Compiler { name: "Debian's rustc".into(), rustc: debian.into(), cargo: vec![cargo] });
        }
        if let Some(nightly) = rustup_nightly()
            && has_source(&nightly)
        {
            let cargo = nightly.with_file_name("cargo").into_os_string();
            return Ok(Compiler { name: "rustup's nightly".into(), rustc: nightly, cargo: vec![cargo] });
        }
        bail!(
            "no compiler can build the eBPF programs: install Debian's packages (apt-get install rustc-web rust-web-src \
             llvm-{LLVM_MAJOR}-dev, or `cargo xtask setup`), or a nightly with its sources (rustup toolchain install nightly \
             --component rust-src)"
        );
    }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn has_source(rustc: &Path) -> bool {
    output(Command::new(rustc).args(["--print", "sysroot"]))
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists())
}

fn llvm_major(rustc: &Path) -> Option<String> {
    let version = output(Command::new(rustc).arg("-vV"))?;
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next().map(str::to_owned)
}

fn rustup_nightly() -> Option<PathBuf> {
    output(Command::new("rustup").args(["which", "rustc", "--toolchain", "nightly"])).map(PathBuf::from)
}

fn linker(root: &Path) -> anyhow::Result<PathBuf> {
    let own = root.join("target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push(own.join("bin"));
    if let Some(found) = places.iter().map(|dir| dir.join("bpf-linker")).find(|file| file.is_file()) {
        return Ok(found);
    }
    if !Path::new(LLVM_PREFIX).join("include/llvm-c").exists() {
        bail!(
            "bpf-linker is missing and cannot be built without LLVM {LLVM_MAJOR}: install Debian's llvm-{LLVM_MAJOR}-dev \
             (`cargo xtask setup` does), or put a bpf-linker {LINKER_VERSION} on PATH"
        );
    }
    eprintln!("building bpf-linker {LINKER_VERSION} (once, a few minutes)");
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", "llvm-22", "--root"])
        .arg(&own)
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env("LLVM_SYS_221_PREFIX", LLVM_PREFIX)
        .env("CARGO_TARGET_DIR", root.join("target/tools/build"))
        .current_dir("/")
        .status()
        .context("run cargo install bpf-linker")?;
    if !status.success() {
        bail!("bpf-linker could not be built: see cargo's message above");
    }
    Ok(own.join("bin/bpf-linker"))
}

fn compile(root: &Path, compiler: &Compiler, linker: &Path) -> anyhow::Result<()> {
    let (program, arguments) = compiler.cargo.split_first().context("a compiler has a cargo")?;
    let mut flags = OsString::from(format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH));
    // As long as copies have to keep their order, LLVM calls loops over single bytes for them.
    for flag in ["debuginfo=2", "target-cpu=v3", "link-arg=--btf", "link-arg=--disable-expand-memcpy-in-order"] {
        flags.push(format!("\u{1f}-C{flag}"));
    }
    flags.push("\u{1f}-Clinker=");
    flags.push(linker);
    let status = Command::new(program)
        .args(arguments)
        .args(["build", "--quiet", "--release", "--package", "sluice-ebpf-programs"])
        .args(["--target", TARGET, "-Zbuild-std=core"])
        .current_dir(root)
        // This process runs under cargo itself: nothing of the outer build may leak in.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", root.join("target/bpf"))
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .status()
        .context("run cargo for the BPF target")?;
    if !status.success() {
        bail!("the eBPF programs could not be built: see the compiler's messages above");
    }
    Ok(())
}

/// Puts the object in place at once, without its DWARF when an objcopy is there: the kernel reads BTF only.
fn install(built: &Path, object: &Path) -> anyhow::Result<()> {
    let dir = object.parent().context("the object has a folder")?;
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let fresh = object.with_extension("new");
    let objcopy = Path::new(LLVM_PREFIX).join("bin/llvm-objcopy");
    let stripped = Command::new(objcopy).arg("--strip-debug").args([built, fresh.as_path()]).status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(built, &fresh).with_context(|| format!("copy {}", built.display()))?;
    }
    std::fs::rename(&fresh, object).with_context(|| format!("install {}", object.display()))
}

fn workspace() -> anyhow::Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(Path::to_path_buf).context("xtask lives in the workspace")
}

fn fingerprint(root: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(&root.join(input), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        hash.update(file.strip_prefix(root).unwrap_or(&file).as_os_str().as_encoded_bytes());
        hash.update(locked(&file, bytes));
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// Of the lock file only the crates that the object is made of count.
fn locked(file: &Path, bytes: Vec<u8>) -> Vec<u8> {
    if !file.ends_with("Cargo.lock") {
        return bytes;
    }
    let mut kept = Vec::new();
    for package in String::from_utf8_lossy(&bytes).split("[[package]]") {
        if package.contains("name = \"aya-ebpf") {
            // A write into memory cannot fail.
            let _ = kept.write_all(package.as_bytes());
        }
    }
    kept
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path.is_file() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
