use super::*;
use crate::{document::tests::report, report::Bound, report::Goal};

/// A document with a curve of two points and a distribution for each subject.
pub(super) fn full(subjects: &[&str]) -> Report {
    let empty: Vec<(&str, &[f64])> = subjects.iter().map(|name| (*name, &[][..])).collect();
    let mut report = report("api", &empty);
    for name in subjects {
        let mut measured = crate::report::Measured::default();
        for clients in [1.0, 64.0] {
            let name = format!("create, {clients} clients: latency");
            let row = Row::distribution(&name, "ms", &[vec![1.0, 2.0], vec![3.0, 90.0]]);
            measured.push(row.map(|row| row.at("create: latency", "clients", clients)));
        }
        measured.goals.push(Goal::new("create", Bound::AtMost(2.0), "ms", Some(1.0)));
        measured.note("quiet <machine>");
        report.measured.extend(measured.on(name));
    }
    report
}

/// Every tag is closed in the order in which it was opened.
fn check_tags(page: &str) {
    const ALONE: [&str; 7] = ["!DOCTYPE", "meta", "br", "line", "polyline", "circle/", "link"];
    let mut open = Vec::new();
    for part in page.split('<').skip(1) {
        let tag = part.split('>').next().unwrap();
        let name = tag.split([' ', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "before </{name}>"),
            None if tag.ends_with('/') || ALONE.contains(&name) => {}
            None => open.push(name),
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}

#[test]
fn subjects_are_drawn_beside_each_other() {
    let (a, b) = (full(&["upstream"]), full(&["embedded", "etcd"]));
    let page = page(&[a, b]);
    check_tags(&page);
    // One scaling chart, two distributions.
    assert_eq!(page.matches("<figure>").count(), 3, "{page}");
    assert_eq!(page.matches("<polyline").count(), 9);
    for name in ["upstream", "embedded", "etcd"] {
        assert_eq!(page.matches(&format!("</i>{name}</span>")).count(), 3, "{name}");
    }
    assert_eq!(page.matches("<td class=\"met\">yes</td>").count(), 3);
    assert_eq!(page.matches("<li>").count(), 3);
}

#[test]
fn the_page_needs_nothing_else() {
    let page = page(&[full(&["x"])]);
    for word in ["http:", "https:", "src=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn words_of_documents_are_no_markup() {
    let page = page(&[full(&["<b>x</b> & \"y\""])]);
    check_tags(&page);
    assert!(page.contains("&lt;b&gt;x&lt;/b&gt; &amp; &quot;y&quot;: quiet &lt;machine&gt;"), "{page}");
}

#[test]
fn documents_of_several_benches_have_sections_of_their_own() {
    let page =
        page(&[report("api", &[("x", &[1.0])]), report("startup", &[("y", &[2.0])]), report("api", &[("x", &[3.0])])]);
    check_tags(&page);
    assert_eq!(page.matches("<section>").count(), 2);
    // The same subject twice is told apart, and the second has its ratio to the first.
    assert!(page.contains("x (A)") && page.contains("x (B)") && page.contains("3.00 ×"), "{page}");
}
