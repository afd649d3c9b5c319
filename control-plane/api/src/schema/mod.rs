//! The types of objects as a compact arena: per type its fields with their shapes and facts (list
//! type, merge key, ...). Decoding, pruning and strategic merge run on it.
//!
//! The built-in types come from k8s-openapi's JSON schemas, the facts from `facts.tsv`, which
//! `cargo xtask codegen` writes; the types of our own group are written by hand, in `own.json` and
//! `own.tsv`. The crate's build script makes constants of them: the arena costs no time at a start
//! and no memory but the program's own. Descriptions are not part of it: [`crate::openapi`] unpacks
//! the schemas when it needs them.

mod builtin;
mod facts;
mod required;

pub use builtin::builtin;
pub(crate) use builtin::{DEFINITIONS, definitions, reference};
pub use facts::{Facts, ListType};
pub use required::missing;

/// An immutable set of types that refer to each other.
#[derive(Debug)]
pub struct Schemas {
    /// All names, each once; [`Sym`]s point into it.
    text: &'static str,
    /// Sorted by name.
    types: &'static [TypeData],
    fields: &'static [FieldData],
    shapes: &'static [ShapeData],
    /// Distinct facts; the first has none.
    facts: Vec<Facts>,
}

impl Schemas {
    /// The type of this name, e.g. `io.k8s.api.core.v1.Pod`.
    pub fn get(&self, name: &str) -> Option<TypeRef<'_>> {
        let at = self.types.binary_search_by(|t| self.str(t.name).cmp(name)).ok()?;
        Some(TypeRef { schemas: self, at })
    }

    /// All types, by name.
    pub fn types(&self) -> impl Iterator<Item = TypeRef<'_>> {
        (0..self.types.len()).map(|at| TypeRef { schemas: self, at })
    }

    fn str(&self, sym: Sym) -> &str {
        &self.text[sym.start as usize..][..usize::from(sym.len)]
    }
}

/// An object type.
#[derive(Clone, Copy)]
pub struct TypeRef<'a> {
    schemas: &'a Schemas,
    at: usize,
}

/// A field of an object type.
#[derive(Clone, Copy)]
pub struct FieldRef<'a> {
    schemas: &'a Schemas,
    data: &'a FieldData,
}

/// What a value has to look like.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'a> {
    String,
    Int32,
    Int64,
    Number,
    Bool,
    Quantity,
    IntOrString,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// Base64.
    Bytes,
    /// Any JSON, kept as it is.
    Any,
    Object(TypeRef<'a>),
    /// An object of the type, an array of such objects, or other JSON (`JSONSchemaPropsOrBool`).
    ObjectOr(TypeRef<'a>),
    Array(Item<'a>),
    Map(Item<'a>),
}

/// The shape of an array's or map's values.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    schemas: &'a Schemas,
    at: ShapeId,
}

impl<'a> TypeRef<'a> {
    pub fn name(self) -> &'a str {
        self.schemas.str(self.data().name)
    }

    /// The last part of the name: `Container`.
    pub fn short_name(self) -> &'a str {
        let name = self.name();
        name.rsplit('.').next().unwrap_or(name)
    }

    /// By JSON name.
    pub fn field(self, name: &str) -> Option<FieldRef<'a>> {
        let fields = self.field_data();
        let at = fields.binary_search_by(|f| self.schemas.str(f.name).cmp(name)).ok()?;
        Some(FieldRef { schemas: self.schemas, data: &fields[at] })
    }

    /// By JSON name, in alphabetical order.
    pub fn fields(self) -> impl Iterator<Item = FieldRef<'a>> {
        self.field_data().iter().map(move |data| FieldRef { schemas: self.schemas, data })
    }

    /// Facts about the type itself (atomic structs).
    pub fn facts(self) -> &'a Facts {
        &self.schemas.facts[usize::from(self.data().facts)]
    }

    fn data(self) -> &'a TypeData {
        &self.schemas.types[self.at]
    }

    fn field_data(self) -> &'a [FieldData] {
        let data = self.data();
        &self.schemas.fields[data.first as usize..][..usize::from(data.count)]
    }
}

impl std::fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl<'a> FieldRef<'a> {
    pub fn name(self) -> &'a str {
        self.schemas.str(self.data.name)
    }

    pub fn required(self) -> bool {
        self.data.required
    }

    pub fn shape(self) -> Shape<'a> {
        Item { schemas: self.schemas, at: self.data.shape }.shape()
    }

    pub fn facts(self) -> &'a Facts {
        &self.schemas.facts[usize::from(self.data.facts)]
    }
}

impl<'a> Item<'a> {
    pub fn shape(self) -> Shape<'a> {
        let schemas = self.schemas;
        let object = |at: TypeId| TypeRef { schemas, at: at as usize };
        match schemas.shapes[self.at as usize] {
            ShapeData::String => Shape::String,
            ShapeData::Int32 => Shape::Int32,
            ShapeData::Int64 => Shape::Int64,
            ShapeData::Number => Shape::Number,
            ShapeData::Bool => Shape::Bool,
            ShapeData::Quantity => Shape::Quantity,
            ShapeData::IntOrString => Shape::IntOrString,
            ShapeData::Time => Shape::Time,
            ShapeData::MicroTime => Shape::MicroTime,
            ShapeData::Bytes => Shape::Bytes,
            ShapeData::Any => Shape::Any,
            ShapeData::Object(at) => Shape::Object(object(at)),
            ShapeData::ObjectOr(at) => Shape::ObjectOr(object(at)),
            ShapeData::Array(at) => Shape::Array(Item { schemas, at }),
            ShapeData::Map(at) => Shape::Map(Item { schemas, at }),
        }
    }
}

/// Index into `Schemas::types`.
type TypeId = u32;
/// Index into `Schemas::shapes`.
type ShapeId = u32;

/// A name inside `Schemas::text`.
#[derive(Clone, Copy, Debug)]
struct Sym {
    start: u32,
    len: u16,
}

#[derive(Debug)]
struct TypeData {
    name: Sym,
    /// Its fields are `fields[first..first + count]`, sorted by name.
    first: u32,
    count: u16,
    /// Index into `Schemas::facts`.
    facts: u16,
}

#[derive(Debug)]
struct FieldData {
    name: Sym,
    shape: ShapeId,
    facts: u16,
    required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ShapeData {
    String,
    Int32,
    Int64,
    Number,
    Bool,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Bytes,
    Any,
    Object(TypeId),
    ObjectOr(TypeId),
    Array(ShapeId),
    Map(ShapeId),
}

#[cfg(test)]
mod tests;
