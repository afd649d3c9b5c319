//! Sets of completion indexes and their text, such as `0-2,4`. Pure.

use std::collections::BTreeSet;

/// `0-2,4` for {0, 1, 2, 4}; two neighbours are written `0,1`.
pub(crate) fn ranges(set: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &i in set {
        match runs.last_mut().filter(|(_, end)| *end + 1 == i) {
            Some((_, end)) => *end = i,
            None => runs.push((i, i)),
        }
    }
    let text = |(start, end): (i32, i32)| match end - start {
        0 => start.to_string(),
        1 => format!("{start},{end}"),
        _ => format!("{start}-{end}"),
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// The set behind such a text, without what is `end` or more; what cannot be read is left out.
pub(crate) fn parse(text: &str, end: i32) -> BTreeSet<i32> {
    let run = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<i32>().ok()?.max(0)..last.trim().parse::<i32>().ok()?.saturating_add(1).min(end))
    };
    text.split(',').filter_map(run).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,9"] {
            assert_eq!(ranges(&parse(text, 10)), text);
        }
        assert_eq!(ranges(&parse("0-2000000000,x", 4)), "0-3");
    }
}
