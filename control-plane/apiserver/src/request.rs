//! From method, path and query to [`RequestInfo`], by upstream's rules, and the typed query options
//! of each verb. Pure.

use http::Method;
use serde_json::Value;
use sluice_api::status::Status;

use crate::context::RequestInfo;

/// Decoded query parameters in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Splits and percent-decodes a query string.
    pub fn parse(query: &str) -> Self {
        Self(
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (unescape(key, true), unescape(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value, or `""`.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Upstream's reading of a boolean: there and neither `0` nor `false`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    /// A number, if there is one; upstream's words if it is none.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", Value::from(text)))
            }),
        }
    }
}

/// Percent-decodes; `+` means a space in queries only. What is not UTF-8 is replaced.
pub fn unescape(text: &str, query: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
                continue;
            }
            (b'+', ..) if query => out.push(b' '),
            (other, ..) => out.push(other),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl RequestInfo {
    /// Upstream's `RequestInfoFactory.NewRequestInfo`.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { path: path.to_owned(), verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        let segments: Vec<String> = path.trim_matches('/').split('/').map(|s| unescape(s, false)).collect();
        let mut rest: &[String] = &segments;
        if rest.len() < 3 || !matches!(rest[0].as_str(), "api" | "apis") {
            return info;
        }
        info.api_prefix.clone_from(&rest[0]);
        rest = &rest[1..];
        if info.api_prefix == "apis" {
            if rest.len() < 3 {
                return info;
            }
            info.group.clone_from(&rest[0]);
            rest = &rest[1..];
        }
        info.is_resource = true;
        info.version.clone_from(&rest[0]);
        rest = &rest[1..];

        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        let watch_prefix = rest[0] == "watch" && rest.len() > 1;
        if watch_prefix {
            rest = &rest[1..];
        }
        if rest[0] == "namespaces" && rest.len() > 1 {
            info.namespace.clone_from(&rest[1]);
            let own = rest.len() > 2 && matches!(rest[2].as_str(), "status" | "finalize");
            if rest.len() > 2 && !own {
                rest = &rest[2..];
            }
        }
        info.parts = rest.to_vec();
        let part = |i: usize| rest.get(i).cloned().unwrap_or_default();
        info.resource = part(0);
        info.name = part(1);
        info.subresource = part(2);

        if info.name.is_empty() {
            match info.verb.as_str() {
                "get" if query.flag("watch") => info.verb = "watch".into(),
                "get" => info.verb = "list".into(),
                "delete" => info.verb = "deletecollection".into(),
                _ => {}
            }
            // Rules that name an object also cover a list or watch of only that object.
            if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection")
                && let Some(name) = exact_name(query.text("fieldSelector"))
            {
                info.name = name;
            }
        }
        if watch_prefix && matches!(info.verb.as_str(), "get" | "list") {
            info.verb = "watch".into();
        }
        info
    }

    /// True for the collection itself: the path has no object's name (a list of one object by
    /// field selector has `name` set for authorization).
    pub fn is_collection(&self) -> bool {
        self.parts.len() < 2
    }

    /// Upstream's `BasicLongRunningRequestCheck`: no timeout, no place among the short ones.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch" || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
    }
}

/// The name in a field selector of exactly `metadata.name=<name>` among its terms.
fn exact_name(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let rest = term.strip_prefix("metadata.name")?;
        let name = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
        (!name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn info(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn resource_paths() {
        // method, uri, then: verb, group, version, namespace, resource, subresource, name
        let check = |method: &str, uri: &str, expected: [&str; 7]| {
            let i = info(method, uri);
            assert!(i.is_resource, "{uri}");
            assert_eq!(
                [&*i.verb, &*i.group, &*i.version, &*i.namespace, &*i.resource, &*i.subresource, &*i.name],
                expected,
                "{uri}"
            );
        };
        check("GET", "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check("GET", "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "", "a"]);
        check("PUT", "/api/v1/namespaces/a/finalize", ["update", "", "v1", "a", "namespaces", "finalize", "a"]);
        check("GET", "/api/v1/namespaces/a/pods", ["list", "", "v1", "a", "pods", "", ""]);
        check(
            "GET",
            "/api/v1/namespaces/a/pods?watch=true&fieldSelector=metadata.name%3Dx",
            ["watch", "", "v1", "a", "pods", "", "x"],
        );
        check("POST", "/api/v1/namespaces/a/pods/p/binding", ["create", "", "v1", "a", "pods", "binding", "p"]);
        check(
            "DELETE",
            "/apis/apps/v1/namespaces/a/deployments",
            ["deletecollection", "apps", "v1", "a", "deployments", "", ""],
        );
        check("GET", "/apis/apps/v1/watch/deployments", ["watch", "apps", "v1", "", "deployments", "", ""]);
        check("GET", "/api/v1/nodes/n/proxy/a%2Fb", ["get", "", "v1", "", "nodes", "proxy", "n"]);
        check("GET", "/api/v1/pods?watch=0", ["list", "", "v1", "", "pods", "", ""]);
    }

    #[test]
    fn other_paths_keep_the_method_as_verb() {
        for path in ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3/api/v1"] {
            let i = info("GET", path);
            assert!(!i.is_resource, "{path}");
            assert_eq!(i.verb, "get");
        }
    }

    #[test]
    fn queries_decode() {
        let q = Query::parse("labelSelector=a+in+%28b%2Cc%29&limit=5&x&bad=%zz");
        assert_eq!(q.text("labelSelector"), "a in (b,c)");
        assert_eq!(q.number("limit").unwrap(), Some(5));
        assert!(q.flag("x"));
        assert_eq!(q.text("bad"), "%zz");
        assert_eq!(
            Query::parse("limit=ten").number("limit").unwrap_err().message,
            "strconv.ParseInt: parsing \"ten\": invalid syntax"
        );
    }
}
