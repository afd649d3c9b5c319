//! The arena of the built-in types and their JSON schemas, both made at build time (`build/`).

use std::{collections::BTreeMap, io::Read as _, sync::LazyLock};

use flate2::read::GzDecoder;
use serde_json::{Value, value::RawValue};

use super::{Facts, FieldData, Schemas, ShapeData, ShapeId, Sym, TypeData};

include!(concat!(env!("OUT_DIR"), "/arena.rs"));

static DEFINITIONS_GZ: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/definitions.json.gz"));

/// Where the schemas refer to each other.
pub(crate) const DEFINITIONS: &str = "/components/schemas";

/// The types of every built-in resource and of the bodies of their requests.
pub fn builtin() -> &'static Schemas {
    static BUILTIN: LazyLock<Schemas> = LazyLock::new(|| Schemas {
        text: TEXT,
        types: TYPES,
        fields: FIELDS,
        shapes: SHAPES,
        facts: FACTS.iter().map(|text| Facts::parse(text)).collect(),
    });
    &BUILTIN
}

/// The JSON schemas of the built-in types by name, with descriptions: 2 MB of text that is unpacked
/// for every call, for who needs it needs it rarely.
pub(crate) fn definitions() -> BTreeMap<String, Box<RawValue>> {
    let mut text = String::new();
    GzDecoder::new(DEFINITIONS_GZ).read_to_string(&mut text).expect("the build packed the schemas");
    serde_json::from_str(&text).expect("the build wrote the schemas as JSON")
}

/// The name of the type that a schema refers to.
pub(crate) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

const fn object(start: u32, len: u16, first: u32, count: u16, facts: u16) -> TypeData {
    TypeData { name: Sym { start, len }, first, count, facts }
}

const fn field(start: u32, len: u16, shape: ShapeId, facts: u16, required: bool) -> FieldData {
    FieldData { name: Sym { start, len }, shape, facts, required }
}
