//! Whether a command's output is what a page shows of it. Ages, generated names, addresses that are given by chance and the
//! like differ from run to run: both sides are compared without them. `…` stands for any text in a line, and alone on a
//! line for any lines. The order of lines does not count, as generated names come in the order of chance.

use std::sync::LazyLock;

use regex::Regex;

/// What differs from run to run, and what stands for it.
static VARYING: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\x1b\[[0-9;]*m", ""),
        (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( UTC|Z)?", "DATE"),
        (r"\b\d+(\.\d+)?(µs|us|ms|s|m|h|d)(\d+[smh])*\b", "TIME"),
        (r"-[0-9a-f]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-CHANCE"),
        (r"-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-CHANCE"),
        (r"\bslc[0-9a-f]{8}\b", "LINK"),
        (r"\b[0-9a-f]{12,}\b", "HEX"),
        (r"\b10\.244\.\d+\.\d+\b", "POD"),
        (r"\b10\.96\.\d+\.\d+\b", "SERVICE"),
        (r"\b3\d{4}\b", "PORT"),
        (r"\s+", " "),
    ]
    .into_iter()
    .filter_map(|(pattern, name)| Some((Regex::new(pattern).ok()?, name)))
    .collect()
});

/// None, or what of the page was not to be seen, or what was to be seen and is not in the page.
pub(super) fn differs(shown: &[String], got: &str) -> Option<String> {
    let mut left: Vec<String> = got.lines().map(plain).filter(|line| !line.is_empty()).collect();
    let mut more = false;
    for line in shown.iter().map(|line| plain(line)).filter(|line| !line.is_empty()) {
        if line == "…" {
            more = true;
            continue;
        }
        let Some(at) = left.iter().position(|seen| alike(&line, seen)) else {
            return Some(format!("the page shows {line:?}, which is not in:\n{got}"));
        };
        left.remove(at);
    }
    let unknown = (!more).then(|| left.first()).flatten()?;
    Some(format!("the page does not show {unknown:?} of:\n{got}"))
}

fn plain(line: &str) -> String {
    let line = VARYING.iter().fold(line.to_owned(), |line, (pattern, name)| pattern.replace_all(&line, *name).into());
    line.trim().to_owned()
}

fn alike(shown: &str, got: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = got.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        (rest, last) = (&rest[at + part.len()..], Some(part));
    }
    // The last part is the line's end, wherever else it stands.
    last.map_or(rest.is_empty(), |part| part.is_empty() || got.ends_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shown: &str, got: &str, same: bool) {
        let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        let found = differs(&shown, got);
        assert_eq!(found.is_none(), same, "{shown:?} {got:?}: {found:?}");
    }

    #[test]
    fn chance_does_not_count() {
        check(
            "echo-7c5ddbdf54-x2x4q   1/1   Running   0   12s   10.244.0.7",
            "echo-6d4cf56db6-9xkz7  1/1  Running 0 2m3s 10.244.1.12\n",
            true,
        );
        check(
            "The token may be used until 2026-01-02 10:11 UTC.",
            "The token may be used until 2027-03-04 01:01 UTC.",
            true,
        );
        check("one\ntwo", "two\none\n", true);
    }

    #[test]
    fn words_do() {
        check("1/1 Running", "0/1 Running", false);
        check("node1 Ready", "node1 NotReady", false);
        check("one", "one\ntwo", false);
        check("one\n…", "one\ntwo", true);
        check("a … c", "a b c", true);
        check("a … c", "a b d", false);
        check("a … c …", "a b c d", true);
        check("10.96.0.1", "10.244.0.1", false);
    }
}
