//! The parameters of a write that concern field managers: their checks and their defaults.

use std::borrow::Cow;

use crate::{limits, status::FieldError};

/// What is wrong with a manager's name (upstream's `ValidateFieldManager`).
pub fn validate_manager(field: &str, manager: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() > limits::FIELD_MANAGER {
        errors.push(FieldError::too_long(field.to_owned(), limits::FIELD_MANAGER));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| !printable(*c)) {
        let shown = if c.is_control() { String::new() } else { format!(" '{c}'") };
        let why = format!("invalid character U+{:04X}{shown} (at position {at})", u32::from(c));
        errors.push(FieldError::invalid(field.to_owned(), manager, why));
    }
    errors
}

/// The manager of an update: the one named, or the first part of the client's User-Agent.
pub fn manager_or_agent<'a>(manager: &'a str, agent: &'a str) -> Cow<'a, str> {
    if !manager.is_empty() {
        return manager.into();
    }
    let prefix = agent.split('/').next().unwrap_or_default();
    if prefix.len() <= limits::FIELD_MANAGER && prefix.chars().all(printable) {
        return prefix.into();
    }
    let mut out = String::new();
    for c in prefix.chars().filter(|c| printable(*c)) {
        if out.len() + c.len_utf8() > limits::FIELD_MANAGER {
            break;
        }
        out.push(c);
    }
    out.into()
}

/// Go's `unicode.IsPrint` as far as it matters: no controls, and no space but the plain one.
fn printable(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{feff}' | '\u{ad}'))
}
