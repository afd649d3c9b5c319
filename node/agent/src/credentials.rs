//! Registry credentials from imagePullSecrets: reads dockerconfigjson and dockercfg, and finds the entries that fit
//! an image by upstream's rules (globs per host label, equal port, path prefix, the longest match first). Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::env::KeyData;

/// One login.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Basic { username: String, password: String },
    Token(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

/// The logins for `image` among `secrets`, the best match first.
pub fn logins(image: &str, secrets: &[std::sync::Arc<KeyData>]) -> Vec<Login> {
    let image = strip_reference(image);
    let mut found: Vec<(String, Login)> = Vec::new();
    for secret in secrets {
        for (registry, entry) in entries(secret) {
            if let Some(login) = entry.login()
                && matches(&registry, &image)
            {
                found.push((normal(&registry), login));
            }
        }
    }
    found.sort_by(|a, b| b.0.cmp(&a.0));
    found.into_iter().map(|(_, login)| login).collect()
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    registrytoken: String,
}

impl Entry {
    fn login(&self) -> Option<Login> {
        if !self.registrytoken.is_empty() {
            return Some(Login::Token(self.registrytoken.clone()));
        }
        if !self.username.is_empty() {
            return Some(Login::Basic { username: self.username.clone(), password: self.password.clone() });
        }
        let text = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        let password = password.trim_matches('\0');
        Some(Login::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

fn entries(secret: &KeyData) -> BTreeMap<String, Entry> {
    if let Some(bytes) = secret.data.get(".dockerconfigjson") {
        return serde_json::from_slice::<Config>(bytes).unwrap_or_default().auths;
    }
    secret.data.get(".dockercfg").and_then(|b| serde_json::from_slice(b).ok()).unwrap_or_default()
}

/// The image with its registry written out, without tag and digest.
fn strip_reference(image: &str) -> String {
    let image = image.split('@').next().unwrap_or(image);
    let name = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    };
    let first = name.split('/').next().unwrap_or_default();
    let has_registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    match name.strip_prefix("docker.io/") {
        Some(rest) => format!("index.docker.io/{rest}"),
        None if has_registry => name.to_owned(),
        None => format!("index.docker.io/{name}"),
    }
}

fn normal(registry: &str) -> String {
    let text = registry.trim_start_matches("https://").trim_start_matches("http://");
    let text = text.strip_suffix("/v1/").or(text.strip_suffix("/v2/")).unwrap_or(text);
    let text = text.strip_suffix("/v1").or(text.strip_suffix("/v2")).unwrap_or(text);
    let text = text.trim_end_matches('/');
    match text.split_once('/') {
        None if text == "docker.io" || text == "registry-1.docker.io" => "index.docker.io".to_owned(),
        Some(("docker.io", path)) => format!("index.docker.io/{path}"),
        _ => text.to_owned(),
    }
}

fn matches(registry: &str, image: &str) -> bool {
    let pattern = normal(registry);
    let split = |s: &str| s.split_once('/').map_or((s.to_owned(), String::new()), |(h, p)| (h.into(), p.into()));
    let ((pattern_host, pattern_path), (host, path)) = (split(&pattern), split(image));
    let port = |h: &str| h.split_once(':').map(|(_, p)| p.to_owned());
    if port(&pattern_host) != port(&host) {
        return false;
    }
    let labels = |h: &str| h.split(':').next().unwrap_or_default().split('.').map(str::to_owned).collect::<Vec<_>>();
    let (a, b) = (labels(&pattern_host), labels(&host));
    a.len() == b.len() && a.iter().zip(&b).all(|(p, l)| glob(p, l)) && path.starts_with(&pattern_path)
}

/// `*` matches any run of characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).any(|i| rest.is_char_boundary(i) && glob(tail, &rest[i..]))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn matching() {
        for (registry, image, expected) in [
            ("registry.test", "registry.test/a/b:1", true),
            ("https://registry.test/v2/", "registry.test/a", true),
            ("registry.test:5000", "registry.test/a", false),
            ("registry.test:5000", "registry.test:5000/a@sha256:00", true),
            ("*.test", "registry.test/a", true),
            ("*.test", "a.registry.test/a", false),
            ("registry.test/team", "registry.test/team/x", true),
            ("registry.test/team", "registry.test/other/x", false),
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "library/nginx:1", true),
            ("docker.io", "registry.test/nginx", false),
            ("127.0.0.1:5000", "127.0.0.1:5000/x", true),
        ] {
            assert_eq!(matches(registry, &strip_reference(image)), expected, "{registry} {image}");
        }
    }

    #[test]
    fn reads_both_formats_and_orders_by_length() {
        let secret = |key: &str, v: serde_json::Value| {
            Arc::new(KeyData { data: BTreeMap::from([(key.into(), v.to_string().into_bytes())]), ..KeyData::default() })
        };
        let basic = |u: &str, p: &str| Login::Basic { username: u.into(), password: p.into() };
        let secrets = [
            secret(".dockercfg", json!({"r.test": {"username": "short", "password": "p"}})),
            secret(
                ".dockerconfigjson",
                json!({"auths": {"r.test/team": {"auth": STANDARD.encode("long:a:b")}, "x.test": {"auth": "!"}}}),
            ),
        ];
        assert_eq!(logins("r.test/team/app:1", &secrets), [basic("long", "a:b"), basic("short", "p")]);
        assert_eq!(logins("r.test/app", &secrets), [basic("short", "p")]);
        assert_eq!(logins("x.test/app", &secrets), []);
    }
}
