//! Finds the eBPF object to embed: `SLUICE_EBPF_OBJECT`, else the one that `cargo xtask ebpf` made.

use std::path::PathBuf;

fn main() {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let made = here.join("../../target/ebpf/sluice-ebpf");
    println!("cargo:rerun-if-env-changed=SLUICE_EBPF_OBJECT");
    let object = std::env::var_os("SLUICE_EBPF_OBJECT").map_or(made, PathBuf::from);
    println!("cargo:rerun-if-changed={}", object.display());
    let Ok(object) = object.canonicalize() else {
        eprintln!("the eBPF object {} is missing: run `cargo xtask ebpf`", object.display());
        std::process::exit(1);
    };
    println!("cargo:rustc-env=SLUICE_EBPF_OBJECT_PATH={}", object.display());
}
