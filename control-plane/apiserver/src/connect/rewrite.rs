//! Links in what a proxied backend answers: those to the backend itself are led through the proxy (upstream's
//! `apimachinery/pkg/util/proxy`). Pages are rewritten as they pass; only a tag that is not whole yet is held back.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use crate::limits;

/// Where a backend's answer is seen from.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The path up to and with `/proxy`, which comes before the backend's own paths.
    pub(super) prefix: String,
    /// What the client calls this server (its `Host`); links that name it go on to.
    pub(super) client: String,
    /// What the backend calls itself: `10.244.0.3:80`.
    pub(super) backend: String,
}

impl Place {
    /// The link as the client must follow it; `None` if it may stay as it is.
    pub(super) fn link(&self, url: &str) -> Option<String> {
        let (origin, rest) = origin(url);
        let host = origin.rsplit('/').next().unwrap_or_default();
        let elsewhere = !host.is_empty() && host != self.backend && host != self.client;
        if elsewhere || !rest.starts_with('/') {
            return None;
        }
        let origin = if !host.is_empty() && host == self.client { origin } else { "" };
        let (path, tail) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let path = if path.starts_with(&self.prefix) { path.to_owned() } else { join(&self.prefix, path) };
        Some(format!("{origin}{path}{tail}"))
    }
}

/// `scheme://host` or `//host`, and what follows.
fn origin(url: &str) -> (&str, &str) {
    let host = match url.find("//") {
        Some(0) => 2,
        Some(at) if url[..at].strip_suffix(':').is_some_and(|scheme| !scheme.contains(['/', '?', '#'])) => at + 2,
        _ => return ("", url),
    };
    url.split_at(url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at))
}

/// Both paths as one, without `.`, `..` and empty segments; a final slash stays.
fn join(prefix: &str, path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in prefix.split('/').chain(path.split('/')) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let end = if path.ends_with('/') { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// The attributes that hold one URL each, by element.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text up to their end tag, whatever it looks like.
const TEXT: &[&str] = &["iframe", "noembed", "noframes", "noscript", "script", "style", "textarea", "title", "xmp"];

const COMMENT: &[u8] = b"<!--";

/// A page on its way.
pub(super) struct Page {
    place: Place,
    /// What cannot be passed on yet.
    held: Vec<u8>,
    /// Everything up to this is text.
    until: Option<Vec<u8>>,
}

impl Page {
    pub(super) fn new(place: Place) -> Self {
        Self { place, held: Vec::new(), until: None }
    }

    /// Takes the next bytes; what can be passed on.
    fn push(&mut self, data: &[u8]) -> Vec<u8> {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(data);
        let mut out = Vec::with_capacity(held.len());
        let mut rest = held.as_slice();
        while let Some(passed) = self.step(rest, &mut out) {
            rest = &rest[passed..];
        }
        if rest.len() > limits::PROXY_TAG {
            out.extend_from_slice(rest);
        } else {
            self.held = rest.to_vec();
        }
        out
    }

    /// Passes a piece on and says how long it was; `None` when more has to come first.
    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if rest.is_empty() {
            return None;
        }
        let text = match &self.until {
            Some(end) => match find(rest, end) {
                Some(at) => {
                    let passed = at + end.len();
                    self.until = None;
                    passed
                }
                // Its end may have begun.
                None => (rest.len() + 1).saturating_sub(end.len()),
            },
            None => rest.iter().position(|byte| *byte == b'<').unwrap_or(rest.len()),
        };
        if text > 0 || self.until.is_some() {
            out.extend_from_slice(&rest[..text]);
            return Some(text).filter(|passed| *passed > 0);
        }
        if rest.starts_with(COMMENT) {
            self.until = Some(b"-->".to_vec());
            out.extend_from_slice(COMMENT);
            return Some(COMMENT.len());
        }
        if COMMENT.starts_with(rest) {
            return None;
        }
        if !rest[1].is_ascii_alphabetic() {
            out.push(b'<');
            return Some(1);
        }
        let tag = Tag::parse(rest)?;
        self.rewrite(rest, &tag, out);
        let text = TEXT.contains(&&*tag.name);
        self.until = text.then(|| format!("</{}", tag.name).into_bytes());
        Some(tag.end)
    }

    fn rewrite(&self, text: &[u8], tag: &Tag, out: &mut Vec<u8>) {
        let links = LINKS.iter().find(|(element, _)| *element == tag.name).map_or(&[][..], |(_, links)| links);
        let mut from = 0;
        for (name, start, end) in &tag.attributes {
            let link = std::str::from_utf8(&text[*start..*end]).ok().filter(|_| links.contains(&&**name));
            if let Some(link) = link.and_then(|link| self.place.link(link)) {
                out.extend_from_slice(&text[from..*start]);
                out.extend_from_slice(link.as_bytes());
                from = *end;
            }
        }
        out.extend_from_slice(&text[from..tag.end]);
    }
}

/// A start tag: its element, where the values of its attributes are, and where it ends.
struct Tag {
    name: String,
    attributes: Vec<(String, usize, usize)>,
    end: usize,
}

impl Tag {
    /// The tag that `text` begins with, if it is all there.
    fn parse(text: &[u8]) -> Option<Self> {
        let until = |from: usize, ends: &dyn Fn(u8) -> bool| {
            text[from..].iter().position(|byte| ends(*byte)).map(|length| from + length)
        };
        let lower = |from: usize, to: usize| String::from_utf8_lossy(&text[from..to]).to_ascii_lowercase();
        let mut at = until(1, &|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>'))?;
        let mut tag = Self { name: lower(1, at), attributes: Vec::new(), end: 0 };
        loop {
            at = until(at, &|byte| !byte.is_ascii_whitespace() && byte != b'/')?;
            if text[at] == b'>' {
                tag.end = at + 1;
                return Some(tag);
            }
            // A name has at least one letter, even if that is an equals sign.
            let named = until(at + 1, &|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>' | b'='))?;
            let name = lower(at, named);
            at = until(named, &|byte| !byte.is_ascii_whitespace())?;
            if text[at] != b'=' {
                continue;
            }
            let value = until(at + 1, &|byte| !byte.is_ascii_whitespace())?;
            let (start, end, next) = match text[value] {
                quote @ (b'"' | b'\'') => {
                    let end = until(value + 1, &|byte| byte == quote)?;
                    (value + 1, end, end + 1)
                }
                _ => {
                    let end = until(value, &|byte| byte.is_ascii_whitespace() || byte == b'>')?;
                    (value, end, end)
                }
            };
            tag.attributes.push((name, start, end));
            at = next;
        }
    }
}

/// Where `wanted` stands, in letters of either case.
fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window.eq_ignore_ascii_case(wanted))
}

/// The body of an answer whose page is rewritten.
pub(super) struct Rewritten<B> {
    inner: B,
    page: Page,
}

impl<B> Rewritten<B> {
    pub(super) fn new(inner: B, page: Page) -> Self {
        Self { inner, page }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Rewritten<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let rest = std::mem::take(&mut self.page.held);
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest.into()))));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            let out = self.page.push(&data);
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { prefix: "/p/proxy".into(), client: "k.example:6443".into(), backend: "10.0.0.1:80".into() }
    }

    #[test]
    fn links_to_the_backend_go_through_the_proxy() {
        let check = |url: &str, expected: &str| {
            assert_eq!(place().link(url).as_deref().unwrap_or(url), expected, "{url}");
        };
        check("/", "/p/proxy/");
        check("/a/b?x=/y#z", "/p/proxy/a/b?x=/y#z");
        check("/a/../b//c/", "/p/proxy/b/c/");
        check("/p/proxy/a", "/p/proxy/a");
        check("http://10.0.0.1:80/a", "/p/proxy/a");
        check("//10.0.0.1:80/a", "/p/proxy/a");
        check("https://k.example:6443/a", "https://k.example:6443/p/proxy/a");
        check("https://other.example/a", "https://other.example/a");
        check("a/b", "a/b");
        check("mailto:x@y", "mailto:x@y");
        check("#here", "#here");
        check("", "");
    }

    fn check(page: &str, expected: &str) {
        // However it is cut.
        for size in [1, 2, 3, 7, page.len().max(1)] {
            let mut rewriting = Page::new(place());
            let mut out: Vec<u8> = page.as_bytes().chunks(size).flat_map(|piece| rewriting.push(piece)).collect();
            out.extend_from_slice(&rewriting.held);
            assert_eq!(String::from_utf8_lossy(&out), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn pages_are_rewritten_where_they_hold_links() {
        check("<a href=\"/x\">test</a>", "<a href=\"/p/proxy/x\">test</a>");
        check("<A class=k HREF = '/x' >", "<A class=k HREF = '/p/proxy/x' >");
        check("<img src=/x/><p href=\"/x\">", "<img src=/p/proxy/x/><p href=\"/x\">");
        check("<a title='a > b' href=/x>", "<a title='a > b' href=/p/proxy/x>");
        check("<!-- <a href=\"/x\"> --><a href=\"/x\">", "<!-- <a href=\"/x\"> --><a href=\"/p/proxy/x\">");
        check(
            "<script src=\"/s.js\">'<a href=\"/x\">'</SCRIPT ><a href=/x>",
            "<script src=\"/p/proxy/s.js\">'<a href=\"/x\">'</SCRIPT ><a href=/p/proxy/x>",
        );
        check("1 < 2, <3 and <", "1 < 2, <3 and <");
        check("<a href=\"/x", "<a href=\"/x");
        check("<a =x href>", "<a =x href>");
        check("", "");
    }

    #[test]
    fn a_tag_without_end_is_not_held_for_ever() {
        let mut page = Page::new(place());
        let endless = format!("<a href=\"{}", "x".repeat(limits::PROXY_TAG));
        assert_eq!(page.push(endless.as_bytes()).len(), endless.len());
        assert!(page.held.is_empty());
    }
}
