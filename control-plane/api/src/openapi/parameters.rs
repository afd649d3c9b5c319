//! The parameters of requests, as OpenAPI tells clients about them.

use serde_json::{Value, json};

/// One parameter.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// `query` or `path`.
    pub(super) place: &'static str,
    /// `string`, `integer`, `boolean`.
    pub(super) kind: &'static str,
    pub(super) text: &'static str,
}

impl Parameter {
    pub(super) fn v3(&self) -> Value {
        let mut out = json!({
            "name": self.name,
            "in": self.place,
            "description": self.text,
            "schema": {"type": self.kind, "uniqueItems": true},
        });
        self.require(&mut out);
        out
    }

    pub(super) fn v2(&self) -> Value {
        let mut out = json!({
            "name": self.name,
            "in": self.place,
            "description": self.text,
            "type": self.kind,
            "uniqueItems": true,
        });
        self.require(&mut out);
        out
    }

    fn require(&self, out: &mut Value) {
        if self.place == "path" {
            out["required"] = json!(true);
        }
    }
}

const fn query(name: &'static str, kind: &'static str, text: &'static str) -> Parameter {
    Parameter { name, place: "query", kind, text }
}

const fn path(name: &'static str, text: &'static str) -> Parameter {
    Parameter { name, place: "path", kind: "string", text }
}

/// The parameters of these names; each name is in one of the tables.
pub(super) fn named(names: &[&str]) -> Vec<&'static Parameter> {
    names.iter().filter_map(|name| COMMON.iter().find(|p| p.name == *name)).collect()
}

/// The query parameters of a subresource that takes its options there.
pub(super) fn options(subresource: &str) -> &'static [Parameter] {
    match subresource {
        "exec" => EXEC,
        "attach" => ATTACH,
        "log" => LOG,
        "portforward" => PORT_FORWARD,
        "proxy" => PROXY,
        _ => &[],
    }
}

pub(super) const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
pub(super) const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
pub(super) const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
pub(super) const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
pub(super) const DELETE_COLLECTION: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];

const PRETTY: Parameter = query("pretty", "string", "Whether the answer is indented for people to read ('true').");

const COMMON: &[Parameter] = &[
    path("name", "Name of the object."),
    path("namespace", "Namespace of the object."),
    path("path", "The path that is requested from the proxied server."),
    PRETTY,
    query("allowWatchBookmarks", "boolean", "Whether a watch may send BOOKMARK events."),
    query("continue", "string", "Where to go on: the token of the previous part of a list."),
    query("fieldSelector", "string", "Only objects whose fields match."),
    query("labelSelector", "string", "Only objects whose labels match."),
    query("limit", "integer", "The most objects in one answer; there is a token for the rest."),
    query("resourceVersion", "string", "Which resource version the answer has to be as new as, or to start from."),
    query("resourceVersionMatch", "string", "How resourceVersion applies to a list: 'Exact' or 'NotOlderThan'."),
    query("sendInitialEvents", "boolean", "Whether a watch begins with the objects that exist and a bookmark."),
    query("timeoutSeconds", "integer", "When the server ends the request, in seconds."),
    query("watch", "boolean", "Watch for changes instead of listing."),
    query("dryRun", "string", "'All': go through every stage, but store nothing."),
    query("fieldManager", "string", "Who changes the object, as its managed fields name the change."),
    query(
        "fieldValidation",
        "string",
        "What unknown and duplicate fields lead to: 'Ignore', 'Warn' (the default) or 'Strict'.",
    ),
    query("force", "boolean", "Whether an apply takes over fields that others own."),
    query("gracePeriodSeconds", "integer", "Seconds until the object is deleted; zero: at once."),
    query("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    query("propagationPolicy", "string", "What becomes of dependents: 'Orphan', 'Background' or 'Foreground'."),
];

const CONTAINER: Parameter = query("container", "string", "The container; may be omitted if there is only one.");
const STDIN: Parameter = query("stdin", "boolean", "Whether standard input is sent.");
const STDOUT: Parameter = query("stdout", "boolean", "Whether standard output is received.");
const STDERR: Parameter = query("stderr", "boolean", "Whether standard error is received.");
const TTY: Parameter = query("tty", "boolean", "Whether the process gets a terminal.");

const EXEC: &[Parameter] =
    &[query("command", "string", "The command and its arguments, one each."), CONTAINER, STDERR, STDIN, STDOUT, TTY];
const ATTACH: &[Parameter] = &[CONTAINER, STDERR, STDIN, STDOUT, TTY];
const PORT_FORWARD: &[Parameter] = &[query("ports", "integer", "The ports to forward.")];
const PROXY: &[Parameter] = &[query("path", "string", "The path that is requested from the proxied server.")];
const LOG: &[Parameter] = &[
    CONTAINER,
    query("follow", "boolean", "Whether the answer goes on as the container writes."),
    query("insecureSkipTLSVerifyBackend", "boolean", "Whether the node's certificate is not checked."),
    PRETTY,
    query("limitBytes", "integer", "The most bytes in the answer."),
    query("previous", "boolean", "The log of the container's previous run."),
    query("sinceSeconds", "integer", "Only lines of the last so many seconds."),
    query("stream", "string", "'All', 'Stdout' or 'Stderr'."),
    query("tailLines", "integer", "Only the last so many lines."),
    query("timestamps", "boolean", "Whether every line begins with its time."),
];
