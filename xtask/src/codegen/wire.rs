//! The protobuf field numbers of API types, from k8s-pb's generated sources: one line per message,
//! `type<tab>number:field ...` with JSON field names. A message that JSON has inline (an embedded Go
//! struct) is `number:^type`, and has a line of its own.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::{Names, package, plain, rust_files};

/// A field of a message as the generated sources have it.
struct Field {
    number: u32,
    name: String,
    /// The full name of its message, for fields that hold one message.
    message: Option<String>,
}

/// The table, sorted by type.
pub(crate) fn table(names: &Names, dir: &Path) -> Result<String> {
    let messages = messages(dir)?;
    let mut lines = BTreeMap::new();
    for (message, fields) in &messages {
        // Embedded structs are also known by the types that embed them: those have lines of their own.
        let known = names.get(&plain(message)).into_iter().flatten();
        for (known, json) in known.filter(|(known, _)| plain(known) == plain(message)) {
            line(&messages, &mut lines, known, fields, json);
        }
    }
    Ok(lines.into_iter().map(|(name, fields)| format!("{name}\t{fields}\n")).collect())
}

type Messages = BTreeMap<String, Vec<Field>>;

fn line(
    messages: &Messages,
    lines: &mut BTreeMap<String, String>,
    name: &str,
    fields: &[Field],
    json: &std::collections::HashMap<String, String>,
) {
    if name.contains("alpha") || name.contains("beta") {
        return;
    }
    let mut words = Vec::new();
    for field in fields {
        let number = field.number;
        if let Some(json) = json.get(&plain(&field.name)) {
            words.push(format!("{number}:{json}"));
        } else if let Some(inner) = &field.message
            && let Some(inner_fields) = messages.get(inner)
            && inner != name
            && inner_fields.iter().any(|field| json.contains_key(&plain(&field.name)))
        {
            words.push(format!("{number}:^{inner}"));
            if !lines.contains_key(inner) {
                line(messages, lines, inner, inner_fields, json);
            }
        }
    }
    lines.insert(name.to_owned(), words.join(" "));
}

fn messages(dir: &Path) -> Result<Messages> {
    let mut messages = Messages::new();
    for file in rust_files(dir)? {
        let package = package(file.strip_prefix(dir)?);
        // rustfmt breaks long types over two lines: joined, every field is one statement.
        let text = fs::read_to_string(&file)?.replace(":\n", ":");
        let (mut name, mut number, mut single) = (String::new(), None, false);
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("pub struct ") {
                name = format!("{package}.{}", rest.trim_end_matches([' ', '{', '}', ';']));
                messages.entry(name.clone()).or_default();
            } else if let Some(rest) = line.strip_prefix("#[prost(") {
                single = rest.starts_with("message, optional");
                number = rest.split("tag = \"").nth(1).and_then(|tag| tag.split('"').next()?.parse().ok());
            } else if let (Some(at), Some((field, kind))) =
                (number, line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')))
            {
                let message = single.then(|| message(&package, kind)).flatten();
                let fields = messages.get_mut(&name).context("a field outside a message")?;
                fields.push(Field { number: at, name: field.trim_start_matches("r#").to_owned(), message });
                number = None;
            }
        }
    }
    Ok(messages)
}

/// The full name of the message in `Option<super::v1::LabelSelector>`, seen from `package`.
fn message(package: &str, kind: &str) -> Option<String> {
    let path = kind.split("Option<").nth(1)?.trim_end_matches([',', '>', ' ']);
    let path = path.trim_start_matches("::prost::alloc::boxed::Box<");
    let ups = path.matches("super::").count();
    let kept: Vec<&str> = package.split('.').collect();
    let kept = kept.get(..kept.len().checked_sub(ups)?)?;
    let below = path.trim_start_matches("super::").replace("::", ".").replace("r#", "").replace('_', "-");
    Some(format!("{}.{below}", kept.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_named_from_where_they_are_seen() {
        let check = |kind: &str, expected: &str| {
            assert_eq!(message("io.k8s.api.apps.v1", kind).as_deref(), Some(expected));
        };
        check(" ::core::option::Option<DeploymentStrategy>,", "io.k8s.api.apps.v1.DeploymentStrategy");
        check(" ::core::option::Option<super::super::core::v1::PodSpec>,", "io.k8s.api.core.v1.PodSpec");
    }
}
