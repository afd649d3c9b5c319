//! Content negotiation: which form of the answer `Accept` asks for. Pure.

use http::{HeaderMap, header::ACCEPT};
use sluice_api::status::Status;

use crate::context::RequestInfo;
use crate::request::Query;

/// What objects are turned into before they are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum As {
    /// The object or list itself.
    #[default]
    Object,
    Table(IncludeObject),
    /// `PartialObjectMetadata`, or its list.
    Metadata,
}

/// How much of the object a table's row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

/// The form of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) target: As,
    pub(crate) yaml: bool,
    pub(crate) pretty: bool,
}

/// The media types that answers can have.
pub(crate) const ANSWERS: [&str; 2] = ["application/json", "application/yaml"];

/// One clause of an `Accept` header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Clause<'a> {
    pub(crate) media: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    pub(crate) fn param(&self, key: &str) -> Option<&'a str> {
        self.params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

/// The clauses of all `Accept` headers by falling preference; `*/*` if there are none.
pub(crate) fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().filter(|m| !m.is_empty())?;
            let params =
                parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
            Some(Clause { media, params })
        })
        .collect();
    let quality = |c: &Clause<'_>| -> u32 {
        let q = c.param("q").and_then(|q| q.parse::<f32>().ok());
        (q.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u32
    };
    clauses.sort_by_key(|c| std::cmp::Reverse(quality(c)));
    clauses.retain(|c| quality(c) > 0);
    if headers.get(ACCEPT).is_none() {
        clauses.push(Clause { media: "*/*", params: Vec::new() });
    }
    clauses
}

/// Can the answer be a table? What is computed for one request alone, and never read, has none.
pub(crate) fn has_tables(info: &RequestInfo) -> bool {
    let reviewed = matches!(info.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io");
    let asked = matches!(info.subresource.as_str(), "token" | "binding" | "eviction");
    !reviewed && !asked && info.resource != "bindings"
}

/// The first clause that can be answered. 406 when there is none.
pub(crate) fn form(headers: &HeaderMap, query: &Query, tables: bool) -> Result<Form, Status> {
    let found = clauses(headers).iter().find_map(|clause| {
        let yaml = match clause.media {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let target = match clause.param("as") {
            None => As::Object,
            Some("Table") if !tables => return None,
            Some(wanted) => transformed(clause, wanted, query)?,
        };
        Some((target, yaml))
    });
    let (target, yaml) = found.ok_or_else(|| Status::not_acceptable(&ANSWERS))?;
    Ok(Form { target, yaml, pretty: pretty(headers, query) })
}

fn transformed(clause: &Clause<'_>, wanted: &str, query: &Query) -> Option<As> {
    let known = clause.param("g") == Some("meta.k8s.io") && matches!(clause.param("v"), Some("v1" | "v1beta1"));
    match wanted {
        "Table" if known => Some(As::Table(match query.text("includeObject") {
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            _ => IncludeObject::Metadata,
        })),
        "PartialObjectMetadata" | "PartialObjectMetadataList" if known => Some(As::Metadata),
        _ => None,
    }
}

/// Upstream's rule: `?pretty=1`, or a person's tool that did not say anything about it.
fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    if query.get("pretty").is_some() {
        return query.flag("pretty");
    }
    headers
        .get(http::header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .is_some_and(|agent| ["curl", "Wget", "Mozilla/5.0"].iter().any(|t| agent.starts_with(t)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn negotiate(accept: &str, query: &str) -> Result<Form, Status> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, accept.parse().unwrap());
        }
        form(&headers, &Query::parse(query), true)
    }

    #[test]
    fn what_is_computed_has_no_table() {
        let asked =
            |method: http::Method, path: &str| has_tables(&RequestInfo::parse(&method, path, &Query::parse("")));
        for path in [
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            "/api/v1/namespaces/a/serviceaccounts/b/token",
            "/api/v1/namespaces/a/pods/b/eviction",
            "/api/v1/namespaces/a/bindings",
        ] {
            assert!(!asked(http::Method::POST, path), "{path}");
        }
        assert!(asked(http::Method::POST, "/api/v1/namespaces/a/pods"));
        let mut headers = HeaderMap::new();
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        headers.insert(ACCEPT, table.parse().unwrap());
        assert_eq!(form(&headers, &Query::parse(""), false).unwrap_err().code, 406);
        headers.insert(ACCEPT, format!("{table},application/json").parse().unwrap());
        assert_eq!(form(&headers, &Query::parse(""), false).unwrap().target, As::Object);
    }

    #[test]
    fn the_first_answerable_clause_wins() {
        let check = |accept: &str, target: As| {
            assert_eq!(negotiate(accept, "").unwrap().target, target, "{accept}");
        };
        check("", As::Object);
        check("*/*", As::Object);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            As::Table(IncludeObject::Metadata),
        );
        check("application/json;as=Chair;v=v1;g=meta.k8s.io,application/json", As::Object);
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", As::Metadata);
        check("application/vnd.kubernetes.protobuf,application/json", As::Object);
        check("application/vnd.kubernetes.protobuf, */*", As::Object);
        check("text/html;q=1,application/json;q=0.5", As::Object);
    }

    #[test]
    fn nothing_answerable_is_406() {
        for accept in ["text/html", "application/json;as=Chair;v=v1;g=x", "application/vnd.kubernetes.protobuf"] {
            let status = negotiate(accept, "").unwrap_err();
            assert_eq!((status.code, status.reason.as_str()), (406, "NotAcceptable"), "{accept}");
        }
    }

    #[test]
    fn rows_carry_what_is_asked_for() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let check = |query: &str, include: IncludeObject| {
            assert_eq!(negotiate(accept, query).unwrap().target, As::Table(include));
        };
        check("includeObject=None", IncludeObject::None);
        check("includeObject=Object", IncludeObject::Object);
        check("includeObject=Metadata", IncludeObject::Metadata);
    }
}
