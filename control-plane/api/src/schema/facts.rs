//! What the JSON schemas do not say about a field: how it merges, and its default.

use std::borrow::Cow;

use serde_json::Value;

/// Facts about a field, or about a type (only [`Facts::atomic`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// How server-side apply sees the list; absent means atomic.
    pub list: Option<ListType>,
    /// The keys of an associative list, in upstream's order.
    pub keys: Vec<Cow<'static, str>>,
    /// Strategic merge merges the list instead of replacing it.
    pub merge: bool,
    /// Strategic merge replaces the map or struct instead of merging it.
    pub replace: bool,
    /// Strategic merge drops the fields that the patch does not name when it brings a
    /// `$retainKeys` list.
    pub retain_keys: bool,
    /// The key by which strategic merge finds the items of a list of objects.
    pub merge_key: Option<Cow<'static, str>>,
    /// Server-side apply owns the map or struct as a whole.
    pub atomic: bool,
    /// Server-side apply owns the fields of the struct one by one, although its type is atomic.
    pub granular: bool,
    /// The value that an absent field stands for, where it is not zero.
    pub default: Option<Value>,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

impl ListType {
    /// As the OpenAPI extension spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::Set => "set",
            Self::Map => "map",
        }
    }

    /// From the OpenAPI extension's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Atomic, Self::Set, Self::Map].into_iter().find(|t| t.as_str() == text)
    }
}

impl Facts {
    /// Of a field about which nothing is known.
    pub const NONE: Self = Self {
        list: None,
        keys: Vec::new(),
        merge: false,
        replace: false,
        retain_keys: false,
        merge_key: None,
        atomic: false,
        granular: false,
        default: None,
    };

    /// From the third column of `facts.tsv`; unknown words say nothing.
    pub(super) fn parse(text: &'static str) -> Self {
        let mut facts = Self::NONE;
        for (word, value) in text.split(' ').filter_map(|word| word.split_once('=')) {
            match word {
                "list" => facts.list = ListType::parse(value),
                "keys" => facts.keys = value.split(',').map(Cow::Borrowed).collect(),
                "patch" => {
                    let has = |strategy: &str| value.split(',').any(|s| s == strategy);
                    facts.merge = has("merge");
                    facts.replace = has("replace");
                    facts.retain_keys = has("retainKeys");
                }
                "key" => facts.merge_key = Some(Cow::Borrowed(value)),
                "map" => {
                    facts.atomic = value == "atomic";
                    facts.granular = value == "granular";
                }
                "default" => facts.default = serde_json::from_str(value).ok(),
                _ => {}
            }
        }
        facts
    }

    /// The value of `x-kubernetes-patch-strategy`.
    pub fn patch_strategy(&self) -> Option<&'static str> {
        match (self.merge, self.retain_keys) {
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => self.replace.then_some("replace"),
        }
    }
}

#[cfg(test)]
/// The checked-in tables: type, field (`.`: the type itself), facts.
pub(super) fn table() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    include_str!("facts.tsv").lines().chain(include_str!("own.tsv").lines()).filter_map(|line| {
        let mut columns = line.split('\t');
        Some((columns.next()?, columns.next()?, columns.next()?))
    })
}
