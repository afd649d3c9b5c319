//! Which version of a group clients should prefer, from the versions' names alone (upstream's
//! `version.CompareKubeAwareVersionStrings`).

use std::cmp::Reverse;

/// Sorts the preferred version first: `v2`, `v1`, `v2beta1`, `v1beta2`, `v3alpha1`, and names of another form
/// by the alphabet behind them.
pub(super) fn sort(versions: &mut [&str]) {
    versions.sort_by_key(|name| (rank(name), *name));
}

/// How stable a version is, the most stable first, and its numbers.
fn rank(name: &str) -> (u8, Reverse<u64>, Reverse<u64>) {
    const OTHER: (u8, Reverse<u64>, Reverse<u64>) = (3, Reverse(0), Reverse(0));
    let Some(rest) = name.strip_prefix('v') else { return OTHER };
    let (major, stability, minor) = match rest.find(|c: char| !c.is_ascii_digit()) {
        None => (rest, 0, "0"),
        Some(end) => match (rest[end..].strip_prefix("beta"), rest[end..].strip_prefix("alpha")) {
            (Some(minor), _) => (&rest[..end], 1, minor),
            (_, Some(minor)) => (&rest[..end], 2, minor),
            _ => return OTHER,
        },
    };
    let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) => (stability, Reverse(major), Reverse(minor)),
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_upstreams() {
        let expected = "v10 v2 v1 v11beta2 v10beta3 v3beta1 v12alpha1 v11alpha2 foo1 foo10 v v1beta v1beta+1 v1x";
        let expected: Vec<&str> = expected.split(' ').collect();
        let mut given = expected.clone();
        given.reverse();
        sort(&mut given);
        assert_eq!(given, expected);
    }
}
