//! The book's page of limits, from the `limits.rs` of each crate: names, values and the comments above them.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result, ensure};

use crate::sh;

/// Where limits stand, and what they bound.
const FILES: &[(&str, &str)] = &[
    ("API server", "control-plane/apiserver/src/limits.rs"),
    ("Object model", "control-plane/api/src/limits.rs"),
    ("Expressions (CEL)", "control-plane/api/src/cel/limits.rs"),
    ("Store", "control-plane/store/src/limits.rs"),
    ("Scheduler", "control-plane/scheduler/src/limits.rs"),
    ("Controllers", "control-plane/controllers/src/limits.rs"),
    ("Node", "node/agent/src/limits.rs"),
    ("Container runtime", "node/runtime/src/limits.rs"),
    ("Pod network", "node/network/src/limits.rs"),
    ("Data plane", "node/dataplane/src/limits.rs"),
    ("DNS", "node/dns/src/limits.rs"),
    ("Announcements", "node/announce/src/limits.rs"),
];

/// The whole page.
pub(super) fn page() -> Result<String> {
    let mut out = "# Limits\n\n<!-- Written by `cargo xtask book`; changes here are lost. -->\n\nEverything in Sluice is bounded. These are the \
                   bounds, part by part, with the times that it waits; they are constants of the program.\n"
        .to_owned();
    for (part, file) in FILES {
        let text = fs::read_to_string(sh::root().join(file)).with_context(|| (*file).to_owned())?;
        let rows = rows(&text);
        ensure!(!rows.is_empty(), "{file} holds no limits");
        // Writing to a String cannot fail, here and below.
        let _ = write!(out, "\n## {part}\n\n| name | value | meaning |\n| --- | --- | --- |\n");
        for [name, value, meaning] in rows {
            let _ = writeln!(out, "| `{name}` | {value} | {meaning} |");
        }
    }
    Ok(out)
}

/// Constants of a file: name, value, and what the comment above says.
fn rows(text: &str) -> Vec<[String; 3]> {
    let mut rows = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(said) = line.strip_prefix("///") {
            comment.push(said.trim());
            continue;
        }
        let constant = line.strip_prefix("pub(crate) const ").or_else(|| line.strip_prefix("pub const "));
        if let Some((name, rest)) = constant.and_then(|rest| rest.split_once(':')) {
            let mut code = rest.to_owned();
            while !code.ends_with(';') {
                let Some(more) = lines.next() else { break };
                code = format!("{code} {more}");
            }
            let (kind, code) = code.split_once('=').unwrap_or(("", &code));
            let (kind, code) = (kind.trim(), code.trim().trim_end_matches(';'));
            rows.push([name.to_owned(), cell(&value(kind, code)), meaning(&comment)]);
        } else if line.starts_with("#[") {
            continue;
        }
        comment.clear();
    }
    rows
}

/// A constant without a comment belongs to the one above it.
fn meaning(comment: &[&str]) -> String {
    if comment.is_empty() { "as above".to_owned() } else { cell(&comment.join(" ")) }
}

/// A value as people read it; code that is more than a sum stays code.
fn value(kind: &str, code: &str) -> String {
    let code = code.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(code);
    let call = code.strip_prefix("Duration::from_").and_then(|rest| rest.strip_suffix(')')?.split_once('('));
    if let Some((unit, amount)) = call
        && let Some(amount) = number(amount)
    {
        let scale = match unit {
            "secs" => 1_000_000_000,
            "millis" => 1_000_000,
            "micros" => 1_000,
            _ => 1,
        };
        return time(amount * scale);
    }
    match number(code) {
        Some(amount) if kind.starts_with(['u', 'i']) => grouped(amount),
        _ => format!("`{code}`"),
    }
}

/// Products and shifts of whole numbers.
fn number(code: &str) -> Option<u128> {
    let one = |text: &str| -> Option<u128> {
        let text = text.trim().replace('_', "");
        let digits = text.trim_end_matches("usize").trim_end_matches("u64").trim_end_matches("u32");
        digits.parse().ok()
    };
    if let Some((left, right)) = code.split_once("<<") {
        return one(left)?.checked_shl(u32::try_from(one(right)?).ok()?);
    }
    code.split('*').map(one).try_fold(1_u128, |product, factor| product.checked_mul(factor?))
}

fn time(nanos: u128) -> String {
    const UNITS: [(u128, &str); 7] = [
        (86_400_000_000_000, "days"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "µs"),
        (1, "ns"),
    ];
    let fits = UNITS.iter().find(|(unit, _)| nanos >= *unit && nanos.is_multiple_of(*unit));
    fits.map_or_else(|| "0".to_owned(), |(unit, name)| format!("{} {name}", nanos / unit))
}

/// 1,048,576 rather than 1048576, with the power of two where it is one of bytes' usual ones.
fn grouped(amount: u128) -> String {
    let digits = amount.to_string();
    let grouped: String = digits
        .chars()
        .enumerate()
        .flat_map(|(index, digit)| {
            let comma = index > 0 && (digits.len() - index).is_multiple_of(3);
            comma.then_some(',').into_iter().chain([digit])
        })
        .collect();
    let whole = |unit: u128| amount >= 4 * 1024 && amount.is_multiple_of(unit);
    match [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")].into_iter().find(|(unit, _)| whole(*unit)) {
        Some((unit, name)) => format!("{grouped} ({} {name})", amount / unit),
        None => grouped,
    }
}

/// In a table a bar ends the cell, and brackets around a name link nowhere.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("[`", "`").replace("`]", "`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_says_what_the_code_does() {
        let checked_in = include_str!("../../../docs/reference/limits.md");
        assert!(page().unwrap() == checked_in, "docs/reference/limits.md is not what the code says: cargo xtask book");
    }

    #[test]
    fn values_are_read() {
        let check = |code: &str, expected: &str| {
            let found = rows(code);
            assert_eq!(found.first().map(|[_, value, _]| value.as_str()), Some(expected), "{code}");
        };
        check("pub const A: usize = 1_000;", "1,000");
        check("pub(crate) const A: u64 = 2 << 30;", "2,147,483,648 (2 Gi)");
        check("pub const A: Duration = Duration::from_secs(24 * 3600);", "1 days");
        check("pub const A: Duration = Duration::from_millis(1500);", "1500 ms");
        check("pub const A: &str = \"slc\";", "`\"slc\"`");
        check("/// Two.\n/// Lines of [`B`].\npub const A: usize =\n    16 * 1024;", "16,384 (16 Ki)");
        assert_eq!(rows("/// Two\n/// lines of [`B`].\npub const A: usize = 1;")[0][2], "Two lines of `B`.");
    }
}
