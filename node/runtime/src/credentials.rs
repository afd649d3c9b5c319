//! Which credentials of a `dockerconfigjson` are for an image, as upstream's keyring matches them. Pure.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::Credentials;
use crate::images::normalise;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    registrytoken: String,
}

/// The credentials for the image in the document of a pull secret (`.dockerconfigjson`, or `.dockercfg` without `auths`),
/// the most specific key first. A document that cannot be read has none, and the reason.
pub fn for_image(document: &[u8], image: &str) -> Result<Vec<Credentials>, String> {
    let reference = normalise(image).map_err(|error| error.to_string())?;
    let path = format!("{}/{}", reference.registry(), reference.repository());
    let parsed: serde_json::Value = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let entries = if parsed.get("auths").is_some() {
        serde_json::from_value::<DockerConfig>(parsed).map(|config| config.auths)
    } else {
        serde_json::from_value(parsed)
    };
    let mut matching: Vec<(String, Entry)> = entries
        .map_err(|error| error.to_string())?
        .into_iter()
        .map(|(key, entry)| (plain(&key), entry))
        .filter(|(key, _)| matches(key, &path))
        .collect();
    matching.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
    Ok(matching.into_iter().filter_map(|(_, entry)| entry.credentials()).collect())
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        if !self.registrytoken.is_empty() {
            return Some(Credentials::Bearer(self.registrytoken));
        }
        if !self.username.is_empty() {
            return Some(Credentials::Basic { username: self.username, password: self.password });
        }
        let decoded = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        Some(Credentials::Basic { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }
}

/// A key without scheme and without the version that Docker Hub's old key ends with.
fn plain(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.trim_end_matches("/v1").trim_end_matches("/v2");
    if key == "index.docker.io" { "docker.io".to_owned() } else { key.to_owned() }
}

/// Host by host part (`*` stands for one), port exactly, path by whole segments.
fn matches(key: &str, image: &str) -> bool {
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let (host, path) = image.split_once('/').unwrap_or((image, ""));
    let host_fits = key_host.split('.').count() == host.split('.').count()
        && key_host.split('.').zip(host.split('.')).all(|(key, part)| key == "*" || key == part);
    let path_fits =
        key_path.is_empty() || path.strip_prefix(key_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    host_fits && path_fits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(key: &str, image: &str, want: bool) {
        let document = format!(r#"{{"auths":{{"{key}":{{"auth":"{}"}}}}}}"#, STANDARD.encode("me:a:b"));
        let got = for_image(document.as_bytes(), image).unwrap();
        let me = Credentials::Basic { username: "me".into(), password: "a:b".into() };
        assert_eq!(got, if want { vec![me] } else { vec![] }, "{key} for {image}");
    }

    #[test]
    fn keys_match_images() {
        check("https://index.docker.io/v1/", "nginx", true);
        check("docker.io", "someone/app:1", true);
        check("registry.example:5000", "registry.example:5000/app", true);
        check("registry.example", "registry.example:5000/app", false);
        check("registry.example/team", "registry.example/team/app", true);
        check("registry.example/team", "registry.example/teams/app", false);
        check("*.example.com", "eu.example.com/app", true);
        check("*.example.com", "a.eu.example.com/app", false);
        check("other.example", "nginx", false);
    }

    #[test]
    fn the_most_specific_comes_first_and_old_files_are_read() {
        let document = br#"{"r.io":{"username":"all","password":"1"},"r.io/team":{"registrytoken":"t"}}"#;
        let all = Credentials::Basic { username: "all".into(), password: "1".into() };
        assert_eq!(for_image(document, "r.io/team/app").unwrap(), [Credentials::Bearer("t".into()), all]);
        assert!(for_image(b"{", "r.io/app").is_err());
    }
}
