//! The options of LIST: which state is asked for, and continue tokens. Pure.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sluice_api::status::{FieldError, Status};
use sluice_store::Revision;

use crate::request::Query;

/// Which state a reader wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Everything acknowledged so far.
    Newest,
    /// Whatever is at hand.
    Any,
    NotOlderThan(Revision),
    Exactly(Revision),
}

/// The options of LIST (and of deletecollection).
#[derive(Debug)]
pub(crate) struct ListOptions {
    pub(crate) at: At,
    pub(crate) limit: i64,
    pub(super) from: Option<Token>,
}

/// A continue token: where the next page begins, relative to the collection, and at which
/// revision. -1 goes on at the newest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) revision: Revision,
    pub(super) start: String,
}

/// The revision of a `resourceVersion` parameter; `None` for unset.
pub(crate) fn revision(query: &Query) -> Result<Option<Revision>, Status> {
    match query.text("resourceVersion") {
        "" => Ok(None),
        text => match text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok()) {
            Some(revision) => Ok(Some(revision)),
            None => Err(Status::bad_request(format!(
                "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: invalid syntax",
                Value::from(text)
            ))),
        },
    }
}

impl ListOptions {
    /// With upstream's checks (`ValidateListOptions`).
    pub(crate) fn parse(query: &Query) -> Result<Self, Status> {
        let matching = query.text("resourceVersionMatch");
        let rv = query.text("resourceVersion");
        let mut errors = Vec::new();
        let forbidden = |why: &str| FieldError::forbidden("resourceVersionMatch", why);
        if !matching.is_empty() {
            if rv.is_empty() {
                errors.push(forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if !query.text("continue").is_empty() {
                errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(matching, "Exact" | "NotOlderThan") {
                let known = ["Exact", "NotOlderThan", ""];
                errors.push(FieldError::not_supported("resourceVersionMatch", matching, &known));
            }
            if matching == "Exact" && rv == "0" {
                errors.push(forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
        if query.get("sendInitialEvents").is_some() {
            let why = "sendInitialEvents is forbidden for list";
            errors.push(FieldError::forbidden("sendInitialEvents", why));
        }
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", errors));
        }
        let limit = query.number("limit")?.unwrap_or(0).max(0);
        let revision = revision(query)?;
        let from = match query.text("continue") {
            "" => None,
            _ if revision.is_some_and(|r| r != 0) => {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            text => Some(Token::decode(text)?),
        };
        let at = match revision {
            None => At::Newest,
            Some(0) => At::Any,
            Some(n) if matching == "Exact" => At::Exactly(n),
            // Upstream's legacy reading of a limit together with a revision.
            Some(n) if matching.is_empty() && limit > 0 => At::Exactly(n),
            Some(n) => At::NotOlderThan(n),
        };
        Ok(Self { at, limit, from })
    }
}

impl Token {
    pub(super) fn encode(&self) -> String {
        let text = json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start});
        BASE64_URL_SAFE_NO_PAD.encode(text.to_string())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let invalid = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let json = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|e| invalid(&e.to_string()))?;
        let value: Value = serde_json::from_slice(&json).map_err(|e| invalid(&e.to_string()))?;
        if value["v"] != "meta.k8s.io/v1" {
            let version = value["v"].as_str().unwrap_or_default();
            return Err(invalid(&format!("server does not recognize this encoded version {}", Value::from(version))));
        }
        let revision = value["rv"].as_i64().unwrap_or(0);
        if revision == 0 {
            return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        match value["start"].as_str() {
            Some(start) if !start.is_empty() && !start.starts_with('/') && !start.contains("..") => {
                Ok(Self { revision, start: start.to_owned() })
            }
            _ => Err(invalid("encoded start key (version meta.k8s.io/v1)")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_are_checked_as_upstream_does() {
        let check = |query: &str, code: u16, message: &str| {
            let status = ListOptions::parse(&Query::parse(query)).unwrap_err();
            assert_eq!((status.code, status.message.as_str()), (code, message), "{query}");
        };
        check(
            "resourceVersionMatch=Exact",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
        check(
            "resourceVersionMatch=Exact&resourceVersion=0",
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        );
        check(
            "resourceVersion=abc",
            400,
            "resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax",
        );
        let token = Token { revision: 3, start: "a\0".into() }.encode();
        check(
            &format!("continue={token}&resourceVersion=5"),
            400,
            "specifying resource version is not allowed when using continue",
        );
    }

    #[test]
    fn resource_versions_mean_what_upstream_says() {
        let check = |query: &str, at: At| {
            assert_eq!(ListOptions::parse(&Query::parse(query)).unwrap().at, at, "{query}");
        };
        check("", At::Newest);
        check("resourceVersion=0", At::Any);
        check("resourceVersion=0&limit=5", At::Any);
        check("resourceVersion=7", At::NotOlderThan(7));
        check("resourceVersion=7&limit=5", At::Exactly(7));
        check("resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=5", At::NotOlderThan(7));
        check("resourceVersion=7&resourceVersionMatch=Exact", At::Exactly(7));
    }

    #[test]
    fn tokens_survive_the_wire() {
        let token = Token { revision: 12, start: "ns/pod\0".into() };
        assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        for bad in ["%%", "e30", "eyJ2IjoieCJ9"] {
            assert_eq!(Token::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
