//! The repository's own rules, as an ordinary test: file length, unfinished code, module
//! paragraphs. Only files that git tracks are looked at.

use std::fs;

use anyhow::{Result, bail};

use crate::sh;

/// A longer file holds two ideas.
const MAX_LINES: usize = 600;

struct Rule {
    broken: fn(path: &str, text: &str) -> Option<String>,
}

const RULES: &[Rule] = &[Rule { broken: too_long }, Rule { broken: unfinished }, Rule { broken: no_module_paragraph }];

/// Prints every broken rule and fails if there is one.
pub(crate) fn run() -> Result<()> {
    let found = findings()?;
    for line in &found {
        println!("{line}");
    }
    if !found.is_empty() {
        bail!("{} findings", found.len());
    }
    Ok(())
}

fn findings() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in sh::output(sh::command("git").args(["ls-files", "*.rs"]))?.lines() {
        // A file deleted but not yet committed is still listed.
        let Ok(text) = fs::read_to_string(sh::root().join(path)) else { continue };
        found.extend(RULES.iter().filter_map(|rule| (rule.broken)(path, &text)).map(|what| format!("{path}: {what}")));
    }
    Ok(found)
}

fn too_long(_: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MAX_LINES).then(|| format!("{lines} lines, more than {MAX_LINES}"))
}

fn unfinished(path: &str, text: &str) -> Option<String> {
    let marks = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let mark = marks.iter().find(|mark| text.contains(mark.as_str()))?;
    (!path.ends_with("tidy.rs")).then(|| format!("holds {mark}"))
}

/// A unit test's module belongs to the one beside it, which says what it is for.
fn no_module_paragraph(path: &str, text: &str) -> Option<String> {
    let unit_test = path.ends_with("tests.rs") || (path.contains("/src/") && path.contains("/tests/"));
    if unit_test {
        return None;
    }
    let begins = text.lines().find(|line| !line.starts_with("#![") && !line.is_empty())?;
    (!begins.starts_with("//!")).then(|| "does not begin with a module paragraph (//!)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_rules() {
        assert_eq!(findings().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn each_rule_can_be_broken() {
        assert!(too_long("a.rs", &"x\n".repeat(MAX_LINES + 1)).is_some());
        assert!(unfinished("a.rs", &format!("{}!()", "todo")).is_some());
        assert!(no_module_paragraph("a.rs", "fn main() {}").is_some());
        assert!(no_module_paragraph("a.rs", "#![no_std]\n//! What it is.\n").is_none());
    }
}
