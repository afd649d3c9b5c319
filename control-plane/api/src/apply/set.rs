//! Sets of fields, as trees of path elements: a node may be a member itself and may have members
//! below it. The operations are those of upstream's `fieldpath.Set`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::element::Element;

/// A set of fields of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Sorted by element; none is neither a member nor has any below it.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) element: Element,
    /// The place itself is in the set.
    pub(super) member: bool,
    pub(super) children: Set,
}

impl Set {
    /// The set of these paths of field names, e.g. `[&["spec", "replicas"]]`.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<Element> = path.iter().map(|name| Element::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    /// Adds one path; its parents are not members by that. The empty path is in no set.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = match self.find(first) {
            Ok(at) => at,
            Err(at) => {
                self.nodes.insert(at, Node { element: first.clone(), member: false, children: Self::default() });
                at
            }
        };
        let node = &mut self.nodes[at];
        if rest.is_empty() {
            node.member = true;
        } else {
            node.children.insert(rest);
        }
    }

    /// From nodes in any order, each element once; empty ones are left out.
    pub(super) fn from_nodes(mut nodes: Vec<Node>) -> Self {
        nodes.retain(|node| node.member || !node.children.is_empty());
        nodes.sort_unstable_by(|a, b| a.element.cmp(&b.element));
        Self { nodes }
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many fields are in the set.
    pub fn len(&self) -> usize {
        self.nodes.iter().map(|node| usize::from(node.member) + node.children.len()).sum()
    }

    /// Whether this very path is in the set.
    pub fn has(&self, path: &[Element]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        match self.get(first) {
            Some(node) if rest.is_empty() => node.member,
            Some(node) => node.children.has(rest),
            None => false,
        }
    }

    pub(super) fn get(&self, element: &Element) -> Option<&Node> {
        self.find(element).ok().map(|at| &self.nodes[at])
    }

    fn find(&self, element: &Element) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.element.cmp(element))
    }

    /// What is in either.
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, true, true, |a, b| (a.member || b.member, a.children.union(&b.children)))
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, false, false, |a, b| (a.member && b.member, a.children.intersection(&b.children)))
    }

    /// What is in this one alone; a member of `other` does not take along what is below it.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, true, false, |a, b| (a.member && !b.member, a.children.difference(&b.children)))
    }

    /// What is in this one and neither in `other` nor below one of its members.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.combine(other, true, false, |a, b| match b.member {
            true => (false, Self::default()),
            false => (a.member, a.children.recursive_difference(&b.children)),
        })
    }

    /// Whether nothing of this set is missing in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.difference(other).is_empty()
    }

    /// Every path of the set, parents before children.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        for node in &self.nodes {
            prefix.push(node.element.clone());
            if node.member {
                out.push(prefix.clone());
            }
            node.children.collect(prefix, out);
            prefix.pop();
        }
    }

    /// Walks both in step: `left` and `right` keep what only one side has, `both` combines.
    fn combine(&self, other: &Self, left: bool, right: bool, both: impl Fn(&Node, &Node) -> (bool, Self)) -> Self {
        let (mut a, mut b) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        let mut nodes = Vec::with_capacity(self.nodes.len());
        loop {
            let order = match (a.peek(), b.peek()) {
                (None, None) => return Self { nodes },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(x), Some(y)) => x.element.cmp(&y.element),
            };
            match order {
                Ordering::Less => nodes.extend(a.next().filter(|_| left).cloned()),
                Ordering::Greater => nodes.extend(b.next().filter(|_| right).cloned()),
                Ordering::Equal => {
                    if let (Some(x), Some(y)) = (a.next(), b.next()) {
                        let (member, children) = both(x, y);
                        if member || !children.is_empty() {
                            nodes.push(Node { element: x.element.clone(), member, children });
                        }
                    }
                }
            }
        }
    }

    /// As FieldsV1.
    pub fn to_json(&self) -> Value {
        self.encode(false)
    }

    fn encode(&self, member: bool) -> Value {
        let mut out = Map::with_capacity(self.nodes.len() + 1);
        if member && !self.nodes.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for node in &self.nodes {
            out.insert(node.element.encode(), node.children.encode(node.member));
        }
        Value::Object(out)
    }

    /// Reads FieldsV1; elements of kinds that are not known are left out.
    pub fn from_json(fields: &Value) -> Result<Self, String> {
        Ok(Self::decode(fields)?.1)
    }

    /// Whether the place itself is a member, and what is below it.
    fn decode(fields: &Value) -> Result<(bool, Self), String> {
        let fields = match fields {
            Value::Object(fields) => fields,
            Value::Null => return Ok((true, Self::default())),
            other => return Err(format!("expected an object, got {other}")),
        };
        let mut member = false;
        let mut nodes = Vec::with_capacity(fields.len());
        for (key, below) in fields {
            if key == "." {
                member = true;
                continue;
            }
            if let Some(element) = Element::decode(key)? {
                let (member, children) = Self::decode(below)?;
                nodes.push(Node { element, member, children });
            }
        }
        let mut children = Self::from_nodes(nodes);
        // Keys that differ in their spelling alone are one element.
        children.nodes.dedup_by(|later, first| {
            let same = later.element == first.element;
            if same {
                first.member |= later.member;
                first.children = first.children.union(&later.children);
            }
            same
        });
        Ok((member || children.is_empty(), children))
    }
}
