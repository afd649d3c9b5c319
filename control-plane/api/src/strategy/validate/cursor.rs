//! A place in an object: the value there and the path that errors name.

use serde_json::Value;

use super::Errors;
use crate::status::FieldError;

/// A value with its path from the object's root. What is absent is null.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

impl<'a> At<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    pub(super) fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { value: self.value.get(name).unwrap_or(&Value::Null), path }
    }

    /// Through several fields: `at("spec.template")`.
    pub(super) fn at(&self, path: &str) -> Self {
        path.split('.').fold(self.clone(), |at, name| at.field(name))
    }

    /// The elements of a list: `ports[0]`, ...
    pub(super) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let list = self.value.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().map(move |(i, value)| At { value, path: format!("{path}[{i}]") })
    }

    /// The entries of a map: `data[key]`, ...
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| (key.as_str(), At { value, path: format!("{path}[{key}]") }))
    }

    pub(super) fn present(&self) -> bool {
        !self.value.is_null()
    }

    pub(super) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub(super) fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub(super) fn is_true(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    pub(super) fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        }
    }

    /// `Required value` when empty; true if it is not.
    pub(super) fn require(&self, errors: &mut Errors) -> bool {
        self.require_because("", errors)
    }

    pub(super) fn require_because(&self, detail: &str, errors: &mut Errors) -> bool {
        if self.is_empty() {
            errors.push(FieldError::required(&self.path, detail));
        }
        !self.is_empty()
    }

    /// `Invalid value`; a text that is missing reads `""`, as upstream's zero value does.
    pub(super) fn invalid(&self, detail: impl Into<String>, errors: &mut Errors) {
        self.invalid_or("", detail, errors);
    }

    /// `Invalid value` of a number; one that is missing reads 0.
    pub(super) fn invalid_number(&self, detail: impl Into<String>, errors: &mut Errors) {
        self.invalid_or(0, detail, errors);
    }

    fn invalid_or(&self, missing: impl Into<Value>, detail: impl Into<String>, errors: &mut Errors) {
        let value = if self.present() { self.value.clone() } else { missing.into() };
        errors.push(FieldError::invalid(&self.path, value, detail));
    }

    /// `Invalid value` of what may not change: upstream's pointers, whose absence it tells.
    pub(super) fn immutable(&self, detail: impl Into<String>, errors: &mut Errors) {
        errors.push(FieldError::invalid(&self.path, self.value.clone(), detail));
    }

    pub(super) fn forbid(&self, detail: &str, errors: &mut Errors) {
        errors.push(FieldError::forbidden(&self.path, detail));
    }

    /// One of `allowed`; empty is an error only if `required`.
    pub(super) fn one_of(&self, allowed: &[&str], errors: &mut Errors) {
        if !self.is_empty() && !allowed.contains(&self.text()) {
            errors.push(FieldError::not_supported(&self.path, self.value.clone(), allowed));
        }
    }

    /// An integer of at least `min`, if there is one.
    pub(super) fn at_least(&self, min: i64, errors: &mut Errors) {
        if self.int().is_some_and(|number| number < min) {
            let detail = match min {
                0 => "must be greater than or equal to 0".to_owned(),
                1 => "must be greater than zero".to_owned(),
                min => format!("must be greater than or equal to {min}"),
            };
            self.invalid(detail, errors);
        }
    }

    /// A text that a syntax check of [`crate::names`] accepts.
    pub(super) fn syntax(&self, check: fn(&str) -> Vec<String>, errors: &mut Errors) {
        for detail in check(self.text()) {
            self.invalid(detail, errors);
        }
    }

    /// A port number, if there is one.
    pub(super) fn port(&self, errors: &mut Errors) {
        if self.int().is_some_and(|number| !(1..=65535).contains(&number)) {
            self.invalid("must be between 1 and 65535, inclusive", errors);
        }
    }

    /// A port number or the name of one.
    pub(super) fn port_or_name(&self, errors: &mut Errors) {
        match self.value {
            Value::String(_) => self.port_name(errors),
            _ => self.port(errors),
        }
    }

    /// A service name by RFC 6335: at most 15 lower-case letters, digits and single hyphens, one letter at least.
    pub(super) fn port_name(&self, errors: &mut Errors) {
        let name = self.text();
        if name.len() > 15 {
            self.invalid("must be no more than 15 characters", errors);
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(allowed) {
            self.invalid("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)", errors);
        } else if !name.contains(|c: char| c.is_ascii_lowercase()) {
            self.invalid("must contain at least one letter (a-z)", errors);
        }
        if name.contains("--") {
            self.invalid("must not contain consecutive hyphens", errors);
        }
        if name.starts_with('-') || name.ends_with('-') {
            self.invalid("must not begin or end with a hyphen", errors);
        }
    }

    pub(super) fn ip(&self, errors: &mut Errors) {
        if self.text().parse::<std::net::IpAddr>().is_err() {
            self.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", errors);
        }
    }
}
