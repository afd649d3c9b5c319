//! The values of CEL. What comes from an object is borrowed from its JSON, with the schema that
//! tells how to read it (`number` is a double even without a fraction, `format: date-time` is a time).

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, fmt, net::IpAddr, ops::Deref, sync::Arc};

use jiff::Timestamp;
use serde_json::{Map as JsonMap, Value};

use crate::{
    quantity::Quantity,
    structural::{Kind, Schema},
};

/// A constant in an expression.
#[derive(Clone, Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// A value during an evaluation.
#[derive(Clone, Debug)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    Bytes(Arc<[u8]>),
    List(List<'a>),
    Map(Map<'a>),
    Time(Timestamp),
    /// In nanoseconds.
    Duration(i128),
    Optional(Option<Arc<Val<'a>>>),
    Type(&'static str),
    Quantity(Quantity),
    Url(Arc<http_url::Url>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Semver(Arc<[u64; 3]>, Arc<str>),
    /// A named format (`format.dns1123Label()`).
    Format(&'static str),
    /// What another part of the program answers for (`authorizer`).
    Foreign(Arc<dyn Foreign>),
    /// A variable whose own expression failed: using it fails with these words.
    Failed(Arc<str>),
}

/// A value whose methods are another part's.
pub trait Foreign: fmt::Debug + Send + Sync {
    /// `None` where there is no such method.
    fn call(&self, name: &str, args: &[Val<'_>]) -> Option<Result<Val<'static>, String>>;

    /// `None` where there is no such field.
    fn field(&self, _name: &str) -> Option<Val<'static>> {
        None
    }
}

/// A text of the object or a computed one.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Of(&'a str),
    Made(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Of(text) => text,
            Self::Made(text) => text,
        }
    }
}

/// A list of the object or a computed one.
#[derive(Clone, Debug)]
pub enum List<'a> {
    Of(&'a [Value], Option<&'a Schema>),
    Made(Arc<Vec<Val<'a>>>),
}

/// A map of the object or a computed one.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    Of(&'a JsonMap<String, Value>, Option<&'a Schema>),
    Made(Arc<BTreeMap<Key, Val<'a>>>),
}

/// A key of a computed map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Text(Arc<str>),
}

impl<'a> Val<'a> {
    /// A JSON value read by its schema, if there is one.
    pub fn json(value: &'a Value, schema: Option<&'a Schema>) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => match (schema.map(Schema::kind), n.as_i64()) {
                (Some(Kind::Number), _) | (_, None) => Self::Double(n.as_f64().unwrap_or(f64::NAN)),
                (_, Some(n)) => Self::Int(n),
            },
            Value::String(text) => schema.and_then(|s| formatted(s, text)).unwrap_or(Self::Text(Text::Of(text))),
            Value::Array(items) => Self::List(List::Of(items, schema)),
            Value::Object(fields) => Self::Map(Map::Of(fields, schema)),
        }
    }

    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::Text(Text::Made(text.into()))
    }

    pub fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(items.into()))
    }

    /// The name of its type, as messages spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Time(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Semver(..) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Foreign(_) => "object",
            Self::Failed(_) => "error",
        }
    }

    /// As JSON, where it has a form there.
    pub fn to_json(&self) -> Option<Value> {
        Some(match self {
            Self::Null => Value::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            Self::Text(text) => (&**text).into(),
            Self::List(List::Of(items, _)) => Value::Array(items.to_vec()),
            Self::List(List::Made(items)) => items.iter().map(Self::to_json).collect::<Option<Vec<_>>>()?.into(),
            Self::Map(Map::Of(fields, _)) => Value::Object((*fields).clone()),
            Self::Map(Map::Made(entries)) => {
                let entry = |(key, value): (&Key, &Self)| Some((key.to_string(), value.to_json()?));
                Value::Object(entries.iter().map(entry).collect::<Option<JsonMap<_, _>>>()?)
            }
            Self::Optional(inner) => inner.as_ref().map_or(Some(Value::Null), |v| v.to_json())?,
            Self::Time(time) => time.to_string().into(),
            Self::Quantity(quantity) => quantity.to_string().into(),
            Self::Bytes(bytes) => {
                use base64::Engine as _;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            _ => return None,
        })
    }

    /// How much there is to go through, for costs.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.len(),
            Self::Map(map) => map.len(),
            _ => 1,
        }
    }

    fn number(&self) -> Option<f64> {
        Some(match self {
            Self::Int(n) => *n as f64,
            Self::Uint(n) => *n as f64,
            Self::Double(n) => *n,
            _ => return None,
        })
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(n) => Some((*n).into()),
            Self::Uint(n) => Some((*n).into()),
            _ => None,
        }
    }

    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        if let (Some(a), Some(b)) = (self.integer(), other.integer()) {
            return Some(a.cmp(&b));
        }
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Some((**a).cmp(&**b)),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Quantity(a), Self::Quantity(b)) => a.partial_cmp(b),
            _ => self.number()?.partial_cmp(&other.number()?),
        }
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::List(a), Self::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(&b)),
            (Self::Map(a), Self::Map(b)) => {
                let same = |(key, value): (Key, Val<'_>)| b.get(&key).is_some_and(|other| value.equals(&other));
                a.len() == b.len() && a.entries().all(same)
            }
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equals(b),
                _ => false,
            },
            (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => a == b,
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a, n), Self::Cidr(b, m)) => a == b && n == m,
            (Self::Semver(a, x), Self::Semver(b, y)) => a == b && x == y,
            _ => self.compare(other) == Some(Ordering::Equal),
        }
    }
}

/// A text whose schema's format makes it something else.
fn formatted<'a>(schema: &Schema, text: &'a str) -> Option<Val<'a>> {
    match schema.format() {
        Some("date-time") => text.parse().ok().map(Val::Time),
        Some("date") => {
            let date: jiff::civil::Date = text.parse().ok()?;
            date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| Val::Time(z.timestamp()))
        }
        Some("duration") => super::time::duration(text).map(Val::Duration),
        Some("byte") => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).ok().map(|b| Val::Bytes(b.into()))
        }
        _ => None,
    }
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Of(items, _) => items.len(),
            Self::Made(items) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, at: usize) -> Option<Val<'a>> {
        match self {
            Self::Of(items, schema) => items.get(at).map(|v| Val::json(v, schema.and_then(|s| s.items()))),
            Self::Made(items) => items.get(at).cloned(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Val<'a>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// What the lists of sets and maps are compared by: their order does not count.
    pub(super) fn schema(&self) -> Option<&'a Schema> {
        match self {
            Self::Of(_, schema) => *schema,
            Self::Made(_) => None,
        }
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Of(fields, _) => fields.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By the literal key.
    pub fn get(&self, key: &Key) -> Option<Val<'a>> {
        match (self, key) {
            (Self::Of(fields, schema), Key::Text(name)) => {
                fields.get(&**name).map(|value| Val::json(value, schema.and_then(|s| s.field(name))))
            }
            (Self::Of(..), _) => None,
            (Self::Made(entries), key) => entries.get(key).cloned(),
        }
    }

    /// As `map.name`: by the name itself, or by the one it stands for when escaped.
    pub fn select(&self, name: &str) -> Option<Val<'a>> {
        let by = |name: &str| match self {
            Self::Of(fields, schema) => {
                fields.get(name).map(|value| Val::json(value, schema.and_then(|s| s.field(name))))
            }
            Self::Made(entries) => entries.get(&Key::Text(name.into())).cloned(),
        };
        by(name).or_else(|| unescape(name).and_then(|name| by(&name)))
    }

    pub fn entries(&self) -> Box<dyn Iterator<Item = (Key, Val<'a>)> + '_> {
        match self {
            Self::Of(fields, schema) => Box::new(fields.iter().map(move |(key, value)| {
                (Key::Text(key.as_str().into()), Val::json(value, schema.and_then(|s| s.field(key))))
            })),
            Self::Made(entries) => Box::new(entries.iter().map(|(key, value)| (key.clone(), value.clone()))),
        }
    }
}

impl Key {
    pub(super) fn of(value: &Val<'_>) -> Option<Self> {
        Some(match value {
            Val::Bool(b) => Self::Bool(*b),
            Val::Int(n) => Self::Int(*n),
            Val::Uint(n) => Self::Int(i64::try_from(*n).ok()?),
            Val::Text(text) => Self::Text((**text).into()),
            _ => return None,
        })
    }

    pub(super) fn value<'a>(&self) -> Val<'a> {
        match self {
            Self::Bool(b) => Val::Bool(*b),
            Self::Int(n) => Val::Int(*n),
            Self::Text(text) => Val::Text(Text::Made(Arc::clone(text))),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The JSON name behind an escaped one (`foo__dash__bar`, `__namespace__`); `None` where it is the same.
pub(super) fn unescape(name: &str) -> Option<Cow<'static, str>> {
    if !name.contains("__") {
        return None;
    }
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__")).filter(|w| !w.contains("__")) {
        return Some(word.to_owned().into());
    }
    let mut out = name.to_owned();
    for (escaped, plain) in [("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__")] {
        out = out.replace(escaped, plain);
    }
    (out != name).then_some(out.into())
}

/// Just enough of URLs for CEL's library.
pub(super) mod http_url {
    /// The parts of an absolute URL or path.
    #[derive(Debug, PartialEq)]
    pub struct Url {
        pub scheme: String,
        pub host: String,
        pub port: String,
        pub path: String,
        pub query: String,
    }

    /// `None` where the text is neither absolute nor a path.
    pub(in crate::cel) fn parse(text: &str) -> Option<Url> {
        let (text, _) = text.split_once('#').unwrap_or((text, ""));
        let (rest, query) = text.split_once('?').unwrap_or((text, ""));
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return None;
        }
        let mut url = Url {
            scheme: String::new(),
            host: String::new(),
            port: String::new(),
            path: rest.into(),
            query: query.into(),
        };
        if rest.starts_with('/') {
            return Some(url);
        }
        let (scheme, rest) = rest.split_once(':')?;
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(good) {
            return None;
        }
        url.scheme = scheme.to_lowercase();
        url.path = rest.to_owned();
        if let Some(rest) = rest.strip_prefix("//") {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let port_at = host.rfind(':').filter(|at| !host[*at..].contains(']'));
            let (host, port) = port_at.map_or((host, ""), |at| (&host[..at], &host[at + 1..]));
            if !port.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (url.host, url.port, url.path) = (host.to_owned(), port.to_owned(), path.to_owned());
        }
        Some(url)
    }
}
