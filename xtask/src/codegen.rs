//! `cargo xtask codegen`: facts about API fields, from the sources of two crates into one table.
//!
//! k8s-pb's generated sources still carry upstream's marker comments (`+listType`, `+patchMergeKey`,
//! ...), but name fields in snake case; k8s-openapi's carry the JSON names. The table that comes out
//! (`control-plane/api/src/schema/facts.tsv`) is checked in: one line per field, or type (field
//! `.`), that has any fact.

mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// The Kubernetes version whose facts are wanted, as k8s-openapi names its module.
const VERSION: &str = "v1_36";
const FACTS: &str = "control-plane/api/src/schema/facts.tsv";
const WIRE: &str = "control-plane/api/src/wire/wire.tsv";

/// Writes the table of facts anew.
pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    let markers = crate_dir(root, "k8s-pb")?.join("src");
    let names = crate_dir(root, "k8s-openapi")?.join("src").join(VERSION);
    let names = json_names(&names)?;
    for (place, table) in [(FACTS, facts(&names, &markers)?), (WIRE, wire::table(&names, &markers)?)] {
        ensure!(!table.is_empty(), "nothing found for {place} in {}", markers.display());
        let out = root.join(place);
        fs::write(&out, &table).with_context(|| format!("writing {}", out.display()))?;
        println!("{}: {} lines", out.display(), table.lines().count());
    }
    Ok(())
}

/// Where cargo keeps the sources of a crate that the lock file names.
fn crate_dir(root: &Path, name: &str) -> Result<PathBuf> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest = packages.filter(|p| p["name"] == name).filter_map(|p| p["manifest_path"].as_str()).next();
    let Some(manifest) = manifest else { bail!("{name} is not in Cargo.lock") };
    Ok(Path::new(manifest).parent().context("a manifest lies in a folder")?.to_path_buf())
}

/// Structs that upstream embeds, so that their fields are the embedding type's own.
const EMBEDDED: [(&str, &str); 4] = [
    ("io.k8s.api.core.v1.EphemeralContainerCommon", "io.k8s.api.core.v1.EphemeralContainer"),
    ("io.k8s.api.admissionregistration.v1.Rule", "io.k8s.api.admissionregistration.v1.RuleWithOperations"),
    ("io.k8s.api.admissionregistration.v1.Rule", "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations"),
    (
        "io.k8s.api.admissionregistration.v1.RuleWithOperations",
        "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
    ),
];

/// What the reference OpenAPI of 1.36 has and the markers of k8s-pb 0.9 (types of 1.35) have not.
const NEWER: &[(&str, &str, &str)] = &[
    (
        "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicySpec",
        "matchConditions",
        "list=map keys=name patch=merge key=name",
    ),
    ("io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicySpec", "mutations", "list=atomic"),
    ("io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicySpec", "variables", "list=atomic"),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus", "containers", "list=set"),
    ("io.k8s.api.core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses", "list=atomic"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "bools", "list=atomic"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "ints", "list=atomic"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "strings", "list=atomic"),
    ("io.k8s.api.resource.v1.DeviceAttribute", "versions", "list=atomic"),
];

/// Constants that markers name instead of a value.
const CONSTANTS: [(&str, &str); 2] =
    [("ref(AzureDataDiskCachingReadWrite)", "\"ReadWrite\""), ("ref(AzureSharedBlobDisk)", "\"Shared\"")];

/// By [`plain`] type name: the types as k8s-openapi names them, and their fields' JSON names by
/// [`plain`] name.
type Names = HashMap<String, Vec<(String, HashMap<String, String>)>>;

fn json_names(dir: &Path) -> Result<Names> {
    let mut names = Names::new();
    for file in rust_files(dir)? {
        let text = fs::read_to_string(&file)?;
        let Some(rest) = text.strip_prefix("// Generated from definition ") else { continue };
        let Some(name) = rest.lines().next() else { continue };
        let fields = text.lines().filter_map(|line| {
            let (json, _) = line.trim().strip_prefix('"')?.split_once("\" => Field::Key_")?;
            Some((plain(json), json.to_owned()))
        });
        names.entry(plain(name.trim())).or_default().push((name.trim().to_owned(), fields.collect()));
    }
    for (inner, outer) in EMBEDDED {
        let outer = names.get(&plain(outer)).cloned().unwrap_or_default();
        names.entry(plain(inner)).or_default().extend(outer);
    }
    Ok(names)
}

/// The table: `type<tab>field<tab>facts`, sorted.
fn facts(names: &Names, dir: &Path) -> Result<String> {
    let mut lines = BTreeMap::new();
    for file in rust_files(dir)? {
        let package = package(file.strip_prefix(dir)?);
        let (mut comments, mut current) = (Vec::new(), None);
        for line in fs::read_to_string(&file)?.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("///") {
                comments.push(comment.trim().to_owned());
                continue;
            }
            if line.starts_with("#[") {
                continue;
            }
            if let Some(rest) = line.strip_prefix("pub struct ") {
                let name = rest.trim_end_matches([' ', '{', '}', ';']);
                let types = names.get(&plain(&format!("{package}.{name}")));
                for (name, _) in types.into_iter().flatten().take(1) {
                    keep(&mut lines, name, ".", markers(&comments));
                }
                current = types;
            } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':')) {
                for (name, fields) in current.into_iter().flatten() {
                    if let Some(json) = fields.get(&plain(field)) {
                        keep(&mut lines, name, json, markers(&comments));
                    }
                }
            }
            comments.clear();
        }
    }
    for (name, field, facts) in NEWER {
        keep(&mut lines, name, field, (*facts).to_owned());
    }
    Ok(lines.into_iter().map(|((name, field), facts)| format!("{name}\t{field}\t{facts}\n")).collect())
}

fn keep(lines: &mut BTreeMap<(String, String), String>, name: &str, field: &str, facts: String) {
    // Only GA types are served: `v1`, `v2`, or packages without a version.
    let stable = !name.contains("alpha") && !name.contains("beta");
    if stable && !facts.is_empty() {
        lines.insert((name.to_owned(), field.to_owned()), facts);
    }
}

/// `list=map keys=a,b patch=merge key=a map=atomic default="x"`, from a field's comment.
fn markers(comments: &[String]) -> String {
    let all = |name: &str| -> Vec<&str> {
        comments.iter().filter_map(|c| c.strip_prefix('+')?.strip_prefix(name)?.strip_prefix('=')).collect()
    };
    let mut facts = Vec::new();
    let mut add = |fact: &str, values: Vec<&str>| {
        if !values.is_empty() {
            facts.push(format!("{fact}={}", values.join(",").replace('`', "")));
        }
    };
    add("list", all("listType"));
    add("keys", all("listMapKey"));
    add("patch", all("patchStrategy"));
    add("key", all("patchMergeKey"));
    add("map", [all("mapType"), all("structType")].concat());
    // Every absent field means its zero value: only other defaults are facts.
    let constant = |v: &str| CONSTANTS.into_iter().find(|(name, _)| *name == v).map(|(_, value)| value);
    let defaults = comments.iter().filter_map(|c| c.strip_prefix("+default="));
    let defaults = defaults.map(|v| constant(v).unwrap_or(v)).filter(|v| !["0", "false", "\"\""].contains(v));
    add("default", defaults.collect());
    facts.join(" ")
}

/// `api/core/v1/mod.rs` as the types' names have it: `io.k8s.api.core.v1`.
fn package(file: &Path) -> String {
    let parts = file.parent().into_iter().flatten().map(|part| part.to_string_lossy().replace('_', "-"));
    let mut parts: Vec<String> = ["io".to_owned(), "k8s".to_owned()].into_iter().chain(parts).collect();
    parts.retain(|p| !p.is_empty());
    parts.join(".")
}

/// A name without what snake case and camel case differ in.
fn plain(name: &str) -> String {
    name.trim_start_matches("r#").replace(['_', '-'], "").to_lowercase()
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_become_facts() {
        let check = |lines: &[&str], facts: &str| {
            let lines: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
            assert_eq!(markers(&lines), facts);
        };
        check(&["Words.", "+optional"], "");
        check(
            &[
                "+patchMergeKey=containerPort",
                "+patchStrategy=merge",
                "+listType=map",
                "+listMapKey=a",
                "+listMapKey=b",
            ],
            "list=map keys=a,b patch=merge key=containerPort",
        );
        check(&["+structType=atomic", "+default=\"TCP\""], "map=atomic default=\"TCP\"");
        check(&["+k8s:listType=map"], "");
    }

    #[test]
    fn names_are_matched_across_cases() {
        assert_eq!(plain("pod_i_ps"), plain("podIPs"));
        assert_eq!(plain("r#type"), plain("type"));
        assert_eq!(package(Path::new("kube_aggregator/pkg/apis/v1/mod.rs")), "io.k8s.kube-aggregator.pkg.apis.v1");
    }
}
