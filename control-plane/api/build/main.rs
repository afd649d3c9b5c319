//! Writes down at build time what the crate knows of the built-in types, from the JSON schemas of
//! k8s-openapi's types and the facts of `facts.tsv`, and for the kinds of our own group from `own.json`
//! and `own.tsv`: the arena as constants (`arena.rs`), and the schemas with their descriptions,
//! compressed, for the OpenAPI documents. Made at run time they would take tens of megabytes and a
//! part of every start.

#![allow(clippy::expect_used, reason = "a build that cannot go on has nobody else to tell")]

mod arena;
mod definitions;
mod roots;

use std::{env, fs, io::Write as _, path::PathBuf};

use flate2::{Compression, write::GzEncoder};

fn main() {
    for file in ["build", "src/schema"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let read = |name: &str| fs::read_to_string(format!("src/schema/{name}")).expect("the file is checked in");
    let facts = read("facts.tsv") + &read("own.tsv");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to write"));
    let definitions = definitions::definitions(&read("own.json"));
    fs::write(out.join("arena.rs"), arena::write(&definitions, &facts)).expect("the output directory can be written");
    let text = serde_json::to_vec(&definitions).expect("values are JSON");
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&text).expect("memory can be written");
    let packed = packed.finish().expect("memory can be written");
    fs::write(out.join("definitions.json.gz"), packed).expect("the output directory can be written");
}
