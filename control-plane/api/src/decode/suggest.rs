//! "did you mean": the known name that is nearest to an unknown one.

/// The nearest of `known`, if it is near enough to be a slip of the keyboard. The same letters in
/// another case are nearest of all.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = (unknown.chars().count() / 3).clamp(1, 3) + 1;
    let lower = unknown.to_lowercase();
    let ranked = known.map(|name| (distance(&lower, &name.to_lowercase(), far), name));
    ranked.filter(|(distance, _)| *distance < far).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours) between two texts, or `far` if they are
/// certainly that many.
fn distance(a: &str, b: &str, far: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= far {
        return far;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_name() {
        let known = ["replicas", "selector", "template", "hostIP", "podIPs", "image", "imagePullPolicy"];
        let check = |unknown: &str, want: Option<&str>| assert_eq!(nearest(unknown, known.into_iter()), want);
        check("replcas", Some("replicas"));
        check("repilcas", Some("replicas"));
        check("Image", Some("image"));
        check("hostip", Some("hostIP"));
        check("imagePulPolice", Some("imagePullPolicy"));
        check("foo", None);
        check("x", None);
        check("", None);
        check("tmpl", None);
    }
}
