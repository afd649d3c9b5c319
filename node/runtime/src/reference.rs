//! Reads image names (the grammar of the distribution project's `reference` package) by hand: the
//! library's regular expression for the same takes eight megabytes once it is compiled.

use oci_client::Reference;

const DOCKER_HUB: &str = "docker.io";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// Completes a name as every client does: `nginx` is `docker.io/library/nginx:latest`.
pub(crate) fn parse(name: &str) -> Result<Reference, &'static str> {
    const FORMAT: &str = "invalid reference format";
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(checked_digest(digest)?)),
        None => (name, None),
    };
    let path = rest.rfind('/').map_or(0, |at| at + 1);
    let (full, tag) = match rest[path..].split_once(':') {
        Some((last, tag)) => (&rest[..path + last.len()], Some(tag)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(FORMAT);
    }
    let (registry, repository) = split(full);
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    if repository.len() > MAX_REPOSITORY {
        return Err("invalid reference format: repository name must not be more than 255 characters");
    }
    if full.is_empty() || !is_registry(&registry) || !repository.split('/').all(is_component) {
        return Err(FORMAT);
    }
    Ok(match (tag.map(str::to_owned), digest) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag, digest),
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".into())),
    })
}

/// Registry and repository: what comes before the first slash is a registry if it looks like a host.
fn split(name: &str) -> (String, String) {
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    let official = registry == DOCKER_HUB && !repository.contains('/');
    (registry.to_owned(), if official { format!("library/{repository}") } else { repository.to_owned() })
}

/// `host` or `host:port`.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        let ends = !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
        ends && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Lower-case letters and digits, parted by a dot, one or two underscores, or hyphens.
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let between = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|s| !s.is_empty());
    let ends = text.bytes().next().is_some_and(is_word) && text.bytes().last().is_some_and(is_word);
    ends && between.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

fn checked_digest(text: &str) -> Result<String, &'static str> {
    let (algorithm, hex) = text.split_once(':').ok_or("invalid checksum digest format")?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("unsupported digest algorithm"),
    };
    match hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        true if hex.len() == length => Ok(text.to_owned()),
        true => Err("invalid checksum digest length"),
        false => Err("invalid checksum digest format"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_completed_as_by_the_library() {
        let digest = format!("sha256:{}", "f".repeat(64));
        let names = [
            "busybox",
            "test.com:tag",
            "test.com:5000",
            "test.com/repo:tag",
            "test:5000/repo",
            "test:5000/repo:tag",
            &format!("test:5000/repo@{digest}"),
            &format!("test:5000/repo:tag@{digest}"),
            "lowercase:Uppercase",
            "sub-dom1.foo.com/bar/baz/quux",
            "b.gcr.io/test.example.com/my-app:test.example.com",
            "xn--n3h.com/myimage:xn--n3h.com",
            "foo_bar.com:8080",
            "foo/foo_bar.com:8080",
            "opensuse/leap:15.3",
            "localhost/a",
            "localhost:5000/a/b-c__d.e:v1",
            "index.docker.io/a",
            "a--b",
            "127.0.0.1:5000/x:1",
        ];
        for name in names {
            assert_eq!(parse(name).unwrap(), Reference::try_from(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn broken_names_are_refused_as_by_the_library() {
        let names = [
            "",
            ":justtag",
            &format!("@sha256:{}", "f".repeat(64)),
            "repo@sha256:ffffffffffffffffffffffffffffffff",
            &format!("validname@invaliddigest:{}", "f".repeat(128)),
            "Uppercase:tag",
            "test:5000/Uppercase/lowercase:tag",
            &"a".repeat(256),
            "aa/asdf$$^/aa",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:-x",
            "a b",
            "-a",
            "a___b",
            "a.-b",
            "a@",
            "host:port/a",
        ];
        for name in names {
            assert!(parse(name).is_err(), "{name}");
            assert!(Reference::try_from(name).is_err(), "{name}");
        }
    }
}
