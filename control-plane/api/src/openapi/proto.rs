//! The version 2 document as protobuf (`openapi.v2.Document` of gnostic's OpenAPIv2.proto), which is the only form that
//! kubectl before 1.27 asks for. JSON in, bytes out, by a table of the messages' fields; words that the messages do not
//! know are left out.

use serde_json::{Map, Value};

/// A message: its fields by JSON name and, if it has one, the field of words beginning with `x-`.
struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    extensions: u32,
}

/// How a JSON value is written.
enum Kind {
    Text,
    Bool,
    Int,
    Double,
    /// Any value, as YAML: JSON is that too.
    Any,
    /// Every value of an array, or the only value.
    Many(&'static Kind),
    Message(&'static Message),
    /// A message around a value, which is its field of that number.
    Wrap(u32, &'static Kind),
    /// A message whose field 1 repeats pairs of a name (1) and a value (2).
    Map(&'static Kind),
    /// A schema (1) or a boolean (2).
    SchemaOrBool,
    /// A parameter, in a message for each place it may stand in.
    Parameter,
}

use Kind::{Any, Bool, Double, Int, Many, Map as Named, Message as Of, Parameter, SchemaOrBool, Text, Wrap};

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, Of(&INFO)),
        ("security", 12, Many(&Named(&Wrap(1, &Many(&Text))))),
        ("securityDefinitions", 13, Named(&Wrap(2, &Of(&API_KEY)))),
    ],
    extensions: 16,
};

static INFO: Message =
    Message { fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], extensions: 7 };

static API_KEY: Message = Message {
    fields: &[("type", 1, Text), ("name", 2, Text), ("in", 3, Text), ("description", 4, Text)],
    extensions: 5,
};

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Of(&OPERATION)),
        ("put", 3, Of(&OPERATION)),
        ("post", 4, Of(&OPERATION)),
        ("delete", 5, Of(&OPERATION)),
        ("options", 6, Of(&OPERATION)),
        ("head", 7, Of(&OPERATION)),
        ("patch", 8, Of(&OPERATION)),
        ("parameters", 9, Many(&Parameter)),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Many(&Text)),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Many(&Text)),
        ("consumes", 7, Many(&Text)),
        ("parameters", 8, Many(&Parameter)),
        ("responses", 9, Named(&Wrap(1, &Of(&RESPONSE)))),
        ("schemes", 10, Many(&Text)),
        ("deprecated", 11, Bool),
    ],
    extensions: 13,
};

static RESPONSE: Message =
    Message { fields: &[("description", 1, Text), ("schema", 2, Wrap(1, &Of(&SCHEMA)))], extensions: 5 };

static BODY: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Bool),
        ("schema", 5, Of(&SCHEMA)),
    ],
    extensions: 6,
};

static QUERY: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Bool),
    ],
    extensions: 23,
};

static PATH: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Bool),
    ],
    extensions: 22,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Bool),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Bool),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Bool),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Many(&Text)),
        ("enum", 20, Many(&Any)),
        ("additionalProperties", 21, SchemaOrBool),
        ("type", 22, Wrap(1, &Many(&Text))),
        ("items", 23, Wrap(1, &Of(&SCHEMA))),
        ("allOf", 24, Many(&Of(&SCHEMA))),
        ("properties", 25, Named(&Of(&SCHEMA))),
        ("example", 30, Any),
    ],
    extensions: 31,
};

/// The document without its paths and definitions.
pub(super) fn head(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    message(&DOCUMENT, document, &mut out);
    out
}

/// One path of the document. A message's parts may come in pieces that are merged, so each stands alone.
pub(super) fn path(name: &str, item: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    nested(8, &mut out, |paths| nested(2, paths, |pair| named(name, &Of(&PATH_ITEM), item, pair)));
    out
}

/// One definition of the document.
pub(super) fn definition(name: &str, schema: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    nested(9, &mut out, |all| nested(1, all, |pair| named(name, &Of(&SCHEMA), schema, pair)));
    out
}

fn message(shape: &Message, object: &Value, out: &mut Vec<u8>) {
    let none = Map::new();
    for (name, value) in object.as_object().unwrap_or(&none) {
        if let Some((_, number, kind)) = shape.fields.iter().find(|(known, ..)| known == name) {
            field(*number, kind, value, out);
        } else if name.starts_with("x-") {
            nested(shape.extensions, out, |pair| named(name, &Any, value, pair));
        }
    }
}

fn field(number: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match kind {
        Text => bytes(number, value.as_str().unwrap_or_default().as_bytes(), out),
        Bool if value == &Value::Bool(true) => integer(number, 1, out),
        Bool => {}
        Int => integer(number, value.as_i64().unwrap_or_default().cast_unsigned(), out),
        Double => {
            varint(u64::from(number << 3 | 1), out);
            out.extend(value.as_f64().unwrap_or_default().to_le_bytes());
        }
        Any => nested(number, out, |any| bytes(2, format!("{value}\n").as_bytes(), any)),
        Many(kind) => match value {
            Value::Array(items) => items.iter().for_each(|item| field(number, kind, item, out)),
            one => field(number, kind, one, out),
        },
        Of(shape) => nested(number, out, |inner| message(shape, value, inner)),
        Wrap(inside, kind) => nested(number, out, |inner| field(*inside, kind, value, inner)),
        Named(kind) => nested(number, out, |map| {
            for (name, value) in value.as_object().into_iter().flatten() {
                nested(1, map, |pair| named(name, kind, value, pair));
            }
        }),
        SchemaOrBool if value.is_boolean() => nested(number, out, |inner| field(2, &Bool, value, inner)),
        SchemaOrBool => nested(number, out, |inner| field(1, &Of(&SCHEMA), value, inner)),
        Parameter => nested(number, out, |item| nested(1, item, |parameter| place(value, parameter))),
    }
}

/// A parameter by where it stands: in the body, the path or the query; others are not published.
fn place(value: &Value, out: &mut Vec<u8>) {
    match value["in"].as_str() {
        Some("body") => field(1, &Of(&BODY), value, out),
        Some("path") => nested(2, out, |other| field(4, &Of(&PATH), value, other)),
        _ => nested(2, out, |other| field(3, &Of(&QUERY), value, other)),
    }
}

fn named(name: &str, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    bytes(1, name.as_bytes(), out);
    field(2, kind, value, out);
}

fn nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(number, &inner, out);
}

fn bytes(number: u32, data: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | 2), out);
    varint(data.len() as u64, out);
    out.extend(data);
}

fn integer(number: u32, value: u64, out: &mut Vec<u8>) {
    varint(u64::from(number << 3), out);
    varint(value, out);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_on_the_wire() {
        for (kind, value, expected) in [
            (&Text, json!("a"), &b"\x0a\x01a"[..]),
            (&Bool, json!(true), b"\x08\x01"),
            (&Bool, json!(false), b""),
            (&Int, json!(300), b"\x08\xac\x02"),
            (&Double, json!(1), b"\x09\0\0\0\0\0\0\xf0\x3f"),
            (&Any, json!({"a": [1]}), b"\x0a\x0c\x12\x0a{\"a\":[1]}\n"),
            (&Many(&Text), json!(["a", "b"]), b"\x0a\x01a\x0a\x01b"),
            (&Wrap(1, &Many(&Text)), json!("object"), b"\x0a\x08\x0a\x06object"),
            (&Named(&Text), json!({"k": "v"}), b"\x0a\x08\x0a\x06\x0a\x01k\x12\x01v"),
            (&SchemaOrBool, json!(true), b"\x0a\x02\x10\x01"),
            (&SchemaOrBool, json!({"format": "x"}), b"\x0a\x05\x0a\x03\x12\x01x"),
            (&Parameter, json!({"in": "path"}), b"\x0a\x0c\x0a\x0a\x12\x08\x22\x06\x12\x04path"),
        ] {
            let mut out = Vec::new();
            field(1, kind, &value, &mut out);
            assert_eq!(out, expected, "{value}");
        }
    }

    #[test]
    fn unknown_words_are_left_out_and_extensions_kept() {
        let mut out = Vec::new();
        message(&SCHEMA, &json!({"nullable": true, "x-kind": "A"}), &mut out);
        assert_eq!(out, b"\xfa\x01\x10\x0a\x06x-kind\x12\x06\x12\x04\"A\"\n");
    }
}
