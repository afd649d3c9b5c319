//! What every part of the server says to every other: who asks ([`UserInfo`]), for what
//! ([`RequestInfo`], [`Attributes`]), and in which step of admission ([`Admit`]). Data only: nothing
//! here does IO. The pipeline fills these in once per request; authentication, authorization,
//! admission and the connecting subresources read them.

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_api::{resource::Resource, status::Status};

/// The error of a body or of the transport under it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every request and response, from the socket and in process alike.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// A whole body from bytes at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Who asks, as authentication found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with these groups and nothing else.
    pub fn new(username: &str, groups: &[&str]) -> Self {
        Self { username: username.into(), groups: groups.iter().map(|g| (*g).into()).collect(), ..Self::default() }
    }

    /// True if the user is a member of `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Whom the client's certificate names: a request extension set by the TLS listener when the client
/// presented one that the CA signed. Read once per connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer(pub(crate) Arc<Certified>);

/// What a certificate says of its holder.
#[derive(Debug)]
pub(crate) struct Certified {
    pub(crate) user: UserInfo,
    /// Seconds since 1970 after which it says so no longer; a connection may outlive it.
    pub(crate) until: i64,
}

/// The client's address: a request extension set by the listener.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddr(pub SocketAddr);

/// What a request asks for: upstream's `RequestInfo`, parsed from method, path and query alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// The whole path, percent-encoding kept.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the
    /// lower-case method for a non-resource path.
    pub verb: String,
    /// `api` or `apis` for resources.
    pub api_prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// Plural, lower case.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path's segments from the resource on: `pods`, `web-0`, `proxy`, `index.html`.
    pub parts: Vec<String>,
}

impl RequestInfo {
    /// This request as seen by authorization and admission.
    pub fn attributes<'a>(&'a self, user: &'a UserInfo) -> Attributes<'a> {
        Attributes {
            user,
            verb: &self.verb,
            group: &self.group,
            version: &self.version,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: &self.path,
            is_resource: self.is_resource,
        }
    }
}

/// The question to the authorizer, and the frame of an admission request.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty for collections, and for a create before its name is known.
    pub name: &'a str,
    pub path: &'a str,
    pub is_resource: bool,
}

impl Attributes<'_> {
    /// Upstream's words for a refused request, without the leading `... is forbidden: `: `User "x"
    /// cannot list resource "pods" in API group "" in the namespace "default"`.
    pub fn refusal(&self) -> String {
        let user = format!("User \"{}\"", self.user.username);
        if !self.is_resource {
            return format!("{user} cannot {} path \"{}\"", self.verb, self.path);
        }
        let resource = if self.subresource.is_empty() {
            Cow::Borrowed(self.resource)
        } else {
            Cow::Owned(format!("{}/{}", self.resource, self.subresource))
        };
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        format!("{user} cannot {} resource \"{resource}\" in API group \"{}\" {place}", self.verb, self.group)
    }
}

/// What the authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// With the reason, which may be empty.
    Deny(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// `CREATE`, as in `AdmissionReview`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One object on its way into the store. `mutate` sees it before defaults and validation,
/// `validate` in its final form; on delete there is only `old`.
#[derive(Clone, Copy, Debug)]
pub struct Admit<'a> {
    pub attributes: Attributes<'a>,
    pub resource: &'a Resource,
    pub operation: Operation,
    pub old: Option<&'a Value>,
    /// Side effects (quota counts) are forbidden.
    pub dry_run: bool,
}

/// A request for a streaming subresource (exec, attach, portforward, log, proxy), handed to
/// `connect` after authorization with its body unread. `parts.extensions` carries hyper's
/// `OnUpgrade` when the request came over a socket.
pub struct ConnectRequest {
    pub info: RequestInfo,
    pub user: Arc<UserInfo>,
    pub resource: Arc<Resource>,
    pub parts: http::request::Parts,
    pub body: Body,
}

/// A request whose answer is computed, not stored, or which needs more than the object: reviews
/// (TokenReview, *AccessReview, SelfSubjectReview) and `serviceaccounts/token`. The object is
/// decoded and has its defaults; the answer is sent with 201.
pub struct ReviewRequest<'a> {
    pub info: &'a RequestInfo,
    pub user: &'a UserInfo,
    pub resource: &'a Resource,
    pub object: Value,
    pub dry_run: bool,
}

/// Encrypts and decrypts values of chosen keys on their way into and out of the store.
pub trait AtRest: Send + Sync + 'static {
    /// The bytes to store for `plain` under `key`; the same bytes where nothing is to be hidden.
    fn seal(&self, key: &str, plain: Bytes) -> Result<Bytes, Status>;
    /// The reverse; a value that was never sealed comes back as it is.
    fn open(&self, key: &str, stored: &Bytes) -> Result<Bytes, Status>;
}

/// Stores values as they are.
pub struct Plain;

impl AtRest for Plain {
    fn seal(&self, _: &str, plain: Bytes) -> Result<Bytes, Status> {
        Ok(plain)
    }
    fn open(&self, _: &str, stored: &Bytes) -> Result<Bytes, Status> {
        Ok(stored.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstreams() {
        let user = UserInfo::new("jane", &[]);
        let check = |info: RequestInfo, expected: &str| {
            assert_eq!(info.attributes(&user).refusal(), expected);
        };
        let pods =
            RequestInfo { is_resource: true, verb: "list".into(), resource: "pods".into(), ..RequestInfo::default() };
        check(pods.clone(), "User \"jane\" cannot list resource \"pods\" in API group \"\" at the cluster scope");
        check(
            RequestInfo { namespace: "default".into(), subresource: "log".into(), ..pods },
            "User \"jane\" cannot list resource \"pods/log\" in API group \"\" in the namespace \"default\"",
        );
        check(
            RequestInfo { verb: "get".into(), path: "/metrics".into(), ..RequestInfo::default() },
            "User \"jane\" cannot get path \"/metrics\"",
        );
    }
}
