//! `/logs/`: the node's own logs, files and directories of `/var/log`, as the kubelet's file server shows them. The query for
//! services' logs (`enableSystemLogQuery`) is off, as by upstream's default. Unlike there, a symbolic link that leads out of
//! the directory is refused: who may write there, by a volume, could read every file of the node by it.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::decode_path;
use super::reply::{Reply, error, full};
use crate::limits;

/// What a path leads to.
enum Found {
    File { file: File, size: u64, changed: SystemTime, head: Vec<u8> },
    Directory { listing: String, changed: SystemTime },
}

/// Answers a request whose path begins with `/logs`; without a directory nothing is served.
pub(super) async fn serve<B>(directory: Option<&Path>, request: &Request<B>) -> Response<Reply> {
    let Some(directory) = directory else {
        return error(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n");
    };
    if request.method() != Method::GET {
        let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let path = request.uri().path().trim_start_matches('/');
    let Some(asked) = path.strip_prefix("logs/") else {
        return redirect("/logs/", request.uri().query());
    };
    let asked = decode_path(asked);
    let inside = clean(&asked);
    let is_directory = asked.is_empty() || asked.ends_with('/');
    let name = inside.file_name().map(|name| encode(&name.to_string_lossy())).unwrap_or_default();
    let directory = directory.to_owned();
    // A directory may be large, and a disk slow.
    let found = tokio::task::spawn_blocking(move || open(&directory, &inside)).await;
    match found.map_err(std::io::Error::other).and_then(|found| found) {
        Ok(Found::File { .. }) if is_directory => redirect(&format!("../{name}"), request.uri().query()),
        Ok(Found::Directory { .. }) if !is_directory => redirect(&format!("{name}/"), request.uri().query()),
        Ok(Found::Directory { listing, changed }) => show_directory(listing, changed, request.headers()),
        Ok(Found::File { file, size, changed, head }) => {
            show_file(tokio::fs::File::from_std(file), size, changed, &head, request.headers()).await
        }
        Err(why) => match why.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR) => error(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some(Errno::EACCES | Errno::EPERM) => error(StatusCode::FORBIDDEN, "403 Forbidden\n"),
            _ => error(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n"),
        },
    }
}

/// The path below the directory: no step of it leads up.
fn clean(asked: &str) -> PathBuf {
    let mut inside = PathBuf::new();
    for step in Path::new(asked).components() {
        match step {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir => _ = inside.pop(),
            _ => {}
        }
    }
    inside
}

/// Opens what is there. Links are followed first and must stay inside; then none is, so that nothing is put in between.
fn open(directory: &Path, inside: &Path) -> std::io::Result<Found> {
    if inside.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Errno::ENOENT.into());
    }
    let root = directory.canonicalize()?;
    let path = root.join(inside).canonicalize()?;
    let rest = path.strip_prefix(&root).map_err(|_| Errno::EACCES)?;
    let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
    // Without a wait for the other end of a pipe.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
    let root = File::open(&root)?;
    let mut file = File::from(openat2(root.as_fd(), rest, how)?);
    let metadata = file.metadata()?;
    let changed = metadata.modified()?;
    if metadata.is_dir() {
        return Ok(Found::Directory { listing: listing(&path)?, changed });
    }
    if !is_regular(&metadata) {
        return Err(Errno::EACCES.into());
    }
    let mut head = Vec::new();
    file.by_ref().take(limits::SNIFFED).read_to_end(&mut head)?;
    Ok(Found::File { file, size: metadata.len(), changed, head })
}

/// Pipes, sockets and devices are no logs.
fn is_regular(metadata: &Metadata) -> bool {
    let kind = metadata.file_type();
    kind.is_file() && !kind.is_fifo() && !kind.is_socket() && !kind.is_block_device() && !kind.is_char_device()
}

/// A directory's page, in the form of Go's file server, which scripts read.
fn listing(path: &Path) -> std::io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let slash = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort_unstable();
    let lines = names.iter().map(|name| format!("<a href=\"{}\">{}</a>\n", link(name), escape(name)));
    let lines: String = lines.collect();
    Ok(format!("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{lines}</pre>\n"))
}

fn link(name: &str) -> String {
    // Before a slash a colon would end a scheme.
    let start = if name.contains(':') { "./" } else { "" };
    format!("{start}{}", encode(name))
}

/// As part of a URL's path.
fn encode(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(one).collect()
}

fn escape(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn redirect(to: &str, query: Option<&str>) -> Response<Reply> {
    let to = query.map_or_else(|| to.to_owned(), |query| format!("{to}?{query}"));
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    // What was encoded is ASCII, and a query came as a header's neighbour.
    if let Ok(to) = HeaderValue::try_from(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

fn show_directory(listing: String, changed: SystemTime, asked: &HeaderMap) -> Response<Reply> {
    if is_known(asked, changed) {
        return unchanged(changed);
    }
    let mut response = Response::new(full(listing));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    date(response.headers_mut(), changed);
    response
}

async fn show_file(
    mut file: tokio::fs::File,
    size: u64,
    changed: SystemTime,
    head: &[u8],
    asked: &HeaderMap,
) -> Response<Reply> {
    if is_known(asked, changed) {
        return unchanged(changed);
    }
    let part = match asked.get(header::RANGE).and_then(|range| range.to_str().ok()).map(|text| range(text, size)) {
        Some(Part::None) => {
            let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "invalid range: failed to overlap\n");
            set(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
            return response;
        }
        Some(Part::Some(part)) => Some(part),
        Some(Part::All) | None => None,
    };
    let sent = part.clone().unwrap_or(0..size);
    if file.seek(std::io::SeekFrom::Start(sent.start)).await.is_err() {
        return error(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n");
    }
    let length = sent.end - sent.start;
    // What is written meanwhile is for the next request.
    let chunks = stream::unfold(Some((file, length)), |state| async {
        let (mut file, left) = state?;
        let mut chunk = vec![0; usize::try_from(left.min(limits::FILE_CHUNK)).unwrap_or_default()];
        match file.read(&mut chunk).await {
            Ok(0) => None,
            Ok(n) => {
                chunk.truncate(n);
                Some((Ok(Frame::data(Bytes::from(chunk))), Some((file, left - n as u64))))
            }
            Err(why) => Some((Err(why), None)),
        }
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(head)));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    date(headers, changed);
    if let Some(part) = part {
        set(headers, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", part.start, part.end - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn unchanged(changed: SystemTime) -> Response<Reply> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    date(response.headers_mut(), changed);
    response
}

/// Whether the client has what was changed then.
fn is_known(asked: &HeaderMap, changed: SystemTime) -> bool {
    let since = asked.get(header::IF_MODIFIED_SINCE).and_then(|since| since.to_str().ok());
    let since = since.and_then(|since| rfc2822::DateTimeParser::new().parse_timestamp(since).ok());
    since.is_some_and(|since| seconds(changed) <= since.as_second())
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn date(headers: &mut HeaderMap, changed: SystemTime) {
    let text = Timestamp::from_second(seconds(changed)).ok().and_then(|changed| {
        let printer = rfc2822::DateTimePrinter::new();
        printer.timestamp_to_rfc9110_string(&changed).ok()
    });
    if let Some(text) = text {
        set(headers, header::LAST_MODIFIED, &text);
    }
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Which bytes a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    All,
    Some(Range<u64>),
    None,
}

/// Of one range; several are answered with the whole file, and so is what cannot be read.
fn range(text: &str, size: u64) -> Part {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-')) else {
        return Part::All;
    };
    let part = match (first.trim(), last.trim()) {
        ("", last) => last.parse::<u64>().map(|last| size.saturating_sub(last)..size),
        (first, "") => first.parse().map(|first| first..size),
        (first, last) => first.parse().and_then(|first| {
            let last: u64 = last.parse()?;
            Ok(first..last.saturating_add(1).min(size))
        }),
    };
    match part {
        Ok(part) if part.is_empty() => Part::None,
        Ok(part) => Part::Some(part),
        Err(_) => Part::All,
    }
}

/// By a file's first bytes, never a page: nobody's log runs as one in a browser.
fn content_type(head: &[u8]) -> &'static str {
    let binary = |byte: &u8| matches!(byte, 0..=8 | 11 | 14..=26 | 28..=31);
    match head {
        [0x1f, 0x8b, ..] => "application/x-gzip",
        head if head.iter().any(binary) => "application/octet-stream",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A request's answer: code, a header, body.
    async fn get(directory: &Path, path: &str, header: Option<(&str, &str)>) -> (u16, HeaderMap, String) {
        let mut request = Request::get(format!("https://node{path}"));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let answer = serve(Some(directory), &request.body(()).unwrap()).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
    }

    /// `log` with files, and something outside that no path leads to.
    fn world() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::create_dir_all(log.join("pods/a")).unwrap();
        fs::write(dir.path().join("secret"), "key").unwrap();
        fs::write(log.join("syslog"), "one\ntwo\n").unwrap();
        fs::write(log.join("a:b<\"c\" d"), "").unwrap();
        fs::write(log.join("wtmp"), [0, 1, 2]).unwrap();
        fs::write(log.join("pods/a/0.log"), "pod").unwrap();
        symlink(log.join("pods/a/0.log"), log.join("inside")).unwrap();
        symlink("../secret", log.join("outside")).unwrap();
        symlink("/", log.join("pods/root")).unwrap();
        symlink("nothing", log.join("dangling")).unwrap();
        nix::unistd::mkfifo(&log.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_directory_is_listed_as_by_gos_file_server() {
        let dir = world();
        let (code, headers, body) = get(&dir.path().join("log"), "/logs/", None).await;
        let expected = concat!(
            "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
            "<a href=\"./a:b%3C%22c%22%20d\">a:b&lt;&#34;c&#34; d</a>\n",
            "<a href=\"dangling\">dangling</a>\n<a href=\"inside\">inside</a>\n<a href=\"outside\">outside</a>\n",
            "<a href=\"pipe\">pipe</a>\n<a href=\"pods/\">pods/</a>\n<a href=\"syslog\">syslog</a>\n",
            "<a href=\"wtmp\">wtmp</a>\n</pre>\n"
        );
        assert_eq!((code, body.as_str()), (200, expected));
        assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    }

    #[tokio::test]
    async fn paths_lead_to_files_below_the_directory_and_to_nothing_else() {
        let dir = world();
        let log = dir.path().join("log");
        for (path, code, expected) in [
            ("/logs/syslog", 200, "one\ntwo\n"),
            ("/logs//pods/./a/../a/0.log?query=kubelet", 200, "pod"),
            ("/logs/%73yslog", 200, "one\ntwo\n"),
            ("/logs/a:b%3C%22c%22%20d", 200, ""),
            ("/logs/inside", 200, "pod"),
            ("/logs/../../../../syslog", 200, "one\ntwo\n"),
            ("/logs/../secret", 404, "404 page not found\n"),
            ("/logs/%2e%2e/secret", 404, "404 page not found\n"),
            ("/logs/..%2Fsecret", 404, "404 page not found\n"),
            ("/logs/pods/../../secret", 404, "404 page not found\n"),
            ("/logs/dangling", 404, "404 page not found\n"),
            ("/logs/syslog/more", 404, "404 page not found\n"),
            ("/logs/a+b", 404, "404 page not found\n"),
            ("/logs/nul%00", 404, "404 page not found\n"),
            ("/logs/outside", 403, "403 Forbidden\n"),
            ("/logs/pods/root/", 403, "403 Forbidden\n"),
            ("/logs/pods/root/etc/passwd", 403, "403 Forbidden\n"),
            ("/logs/pipe", 403, "403 Forbidden\n"),
        ] {
            let (status, _, body) = get(&log, path, None).await;
            assert_eq!((status, body.as_str()), (code, expected), "{path}");
        }
    }

    #[tokio::test]
    async fn slashes_are_put_right() {
        let dir = world();
        for (path, to) in [
            ("/logs", "/logs/"),
            ("/logs/pods", "pods/"),
            ("/logs/pods/a?x=1", "a/?x=1"),
            ("/logs/syslog/", "../syslog"),
            ("/logs/a:b%3C%22c%22%20d/", "../a:b%3C%22c%22%20d"),
        ] {
            let (code, headers, _) = get(&dir.path().join("log"), path, None).await;
            assert_eq!((code, headers[header::LOCATION].to_str().unwrap()), (301, to), "{path}");
        }
    }

    #[tokio::test]
    async fn parts_and_what_did_not_change() {
        let dir = world();
        let log = dir.path().join("log");
        for (asked, code, part, expected) in [
            ("bytes=0-2", 206, Some("bytes 0-2/8"), "one"),
            ("bytes=4-", 206, Some("bytes 4-7/8"), "two\n"),
            ("bytes=4-99", 206, Some("bytes 4-7/8"), "two\n"),
            ("bytes=-2", 206, Some("bytes 6-7/8"), "o\n"),
            ("bytes=-99", 206, Some("bytes 0-7/8"), "one\ntwo\n"),
            ("bytes=8-", 416, Some("bytes */8"), "invalid range: failed to overlap\n"),
            ("bytes=3-1", 416, Some("bytes */8"), "invalid range: failed to overlap\n"),
            ("bytes=0-1,3-4", 200, None, "one\ntwo\n"),
            ("lines=1-2", 200, None, "one\ntwo\n"),
        ] {
            let (status, headers, body) = get(&log, "/logs/syslog", Some(("range", asked))).await;
            let got = headers.get(header::CONTENT_RANGE).map(|value| value.to_str().unwrap());
            assert_eq!((status, got, body.as_str()), (code, part, expected), "{asked}");
        }
        let (_, headers, _) = get(&log, "/logs/syslog", None).await;
        assert_eq!(headers[header::CONTENT_LENGTH], "8");
        assert_eq!(headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
        let changed = headers[header::LAST_MODIFIED].to_str().unwrap().to_owned();
        assert_eq!(get(&log, "/logs/syslog", Some(("if-modified-since", &changed))).await.0, 304);
        let before = "Thu, 01 Jan 1970 00:00:00 GMT";
        assert_eq!(get(&log, "/logs/syslog", Some(("if-modified-since", before))).await.0, 200);
        let (_, headers, body) = get(&log, "/logs/wtmp", None).await;
        assert_eq!((headers[header::CONTENT_TYPE].to_str().unwrap(), body.len()), ("application/octet-stream", 3));
    }

    #[tokio::test]
    async fn only_get_and_only_where_it_is_on() {
        let dir = world();
        for method in ["POST", "HEAD", "DELETE"] {
            let request = Request::builder().method(method).uri("/logs/syslog").body(()).unwrap();
            let answer = serve(Some(dir.path()), &request).await;
            assert_eq!((answer.status().as_u16(), &answer.headers()[header::ALLOW]), (405, &"GET".parse().unwrap()));
        }
        let answer = serve(None, &Request::get("/logs/").body(()).unwrap()).await;
        assert_eq!(answer.status(), 405);
    }
}
