//! Label selectors: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`, and the `LabelSelector` object.
//!
//! Grammar and errors are those of upstream's `apimachinery/pkg/labels`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    names,
    status::{FieldError, Status, quote},
};

/// What a requirement asks of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// One term of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

/// All of these requirements; none: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    pub requirements: Vec<Requirement>,
}

impl Labels {
    /// Parses the text form. `BadRequest` with upstream's message.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let tokens = scan(text);
        Parser { tokens, at: 0 }.parse().map_err(Status::bad_request)
    }

    /// From a `metav1.LabelSelector` (`matchLabels`, `matchExpressions`); null or absent parts add
    /// nothing, so `{}` selects everything. An error in words.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Word::In, [value].into())?);
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default();
            let word = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Word::In,
                "NotIn" => Word::NotIn,
                "Exists" => Word::Exists,
                "DoesNotExist" => Word::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", quote(other))),
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(key, word, values)?);
        }
        Ok(Self { requirements })
    }

    /// Whether every object matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Matches labels given by a lookup.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.operator.holds(get(&r.key)))
    }

    /// Matches `metadata.labels` as JSON; absent labels are an empty map.
    pub fn matches_map(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(values) => value.is_some_and(|v| values.contains(v)),
            Self::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
            Self::GreaterThan(bound) => number().is_some_and(|n| n > *bound),
            Self::LessThan(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// An operator as written, before its values are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    In,
    NotIn,
    /// `=` and `==`.
    Equals,
    NotEquals,
    GreaterThan,
    LessThan,
    Exists,
    DoesNotExist,
}

impl Requirement {
    fn new(key: &str, word: Word, values: BTreeSet<String>) -> Result<Self, String> {
        check_key(key)?;
        for (i, value) in values.iter().enumerate() {
            let broken = names::label_value(value);
            if !broken.is_empty() {
                let path = format!("values[{i}][{key}]");
                return Err(FieldError::invalid(path, value.as_str(), broken.join("; ")).to_string());
            }
        }
        if matches!(word, Word::In | Word::NotIn) && values.is_empty() {
            let empty = Value::Array(Vec::new());
            let detail = "for 'in', 'notin' operators, values set can't be empty";
            return Err(FieldError::invalid("values", empty, detail).to_string());
        }
        let operator = match word {
            Word::In | Word::Equals => Operator::In(values),
            Word::NotIn | Word::NotEquals => Operator::NotIn(values),
            Word::Exists | Word::DoesNotExist if !values.is_empty() => {
                let values = Value::from(values.into_iter().collect::<Vec<_>>());
                let detail = "values set must be empty for exists and does not exist";
                return Err(FieldError::invalid("values", values, detail).to_string());
            }
            Word::Exists => Operator::Exists,
            Word::DoesNotExist => Operator::DoesNotExist,
            Word::GreaterThan => Operator::GreaterThan(bound(&values)?),
            Word::LessThan => Operator::LessThan(bound(&values)?),
        };
        Ok(Self { key: key.to_owned(), operator })
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let broken = names::qualified_name(key);
    if broken.is_empty() {
        return Ok(());
    }
    Err(FieldError::invalid("key", key, broken.join("; ")).to_string())
}

fn bound(values: &BTreeSet<String>) -> Result<i64, String> {
    let text = values.first().map_or("", String::as_str);
    text.parse().map_err(|_| {
        let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
        FieldError::invalid("values[0]", text, detail).to_string()
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Identifier(String),
    In,
    NotIn,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    End,
}

impl Token {
    fn literal(&self) -> &str {
        match self {
            Self::Identifier(text) => text,
            Self::In => "in",
            Self::NotIn => "notin",
            Self::Open => "(",
            Self::Close => ")",
            Self::Comma => ",",
            Self::Not => "!",
            Self::Equals => "=",
            Self::DoubleEquals => "==",
            Self::NotEquals => "!=",
            Self::Greater => ">",
            Self::Less => "<",
            Self::End => "",
        }
    }

    /// Where a value is expected `in` and `notin` are plain words.
    fn as_value(&self) -> Self {
        match self {
            Self::In | Self::NotIn => Self::Identifier(self.literal().to_owned()),
            other => other.clone(),
        }
    }
}

fn scan(text: &str) -> Vec<Token> {
    let special = |c: char| "=!(),><".contains(c);
    let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if space(first) {
            rest = &rest[1..];
            continue;
        }
        let (token, len) = match (first, rest.as_bytes().get(1)) {
            ('=', Some(b'=')) => (Token::DoubleEquals, 2),
            ('!', Some(b'=')) => (Token::NotEquals, 2),
            ('=', _) => (Token::Equals, 1),
            ('!', _) => (Token::Not, 1),
            ('(', _) => (Token::Open, 1),
            (')', _) => (Token::Close, 1),
            (',', _) => (Token::Comma, 1),
            ('>', _) => (Token::Greater, 1),
            ('<', _) => (Token::Less, 1),
            _ => {
                let len = rest.find(|c| special(c) || space(c)).unwrap_or(rest.len());
                let token = match &rest[..len] {
                    "in" => Token::In,
                    "notin" => Token::NotIn,
                    word => Token::Identifier(word.to_owned()),
                };
                (token, len)
            }
        };
        tokens.push(token);
        rest = &rest[len..];
    }
    tokens.push(Token::End);
    tokens
}

/// Recursive descent over the tokens; the last one is `End` and is never passed.
struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).map_or(Token::End, Token::as_value)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn next_operator(&mut self) -> Token {
        let token = self.tokens.get(self.at).cloned().unwrap_or(Token::End);
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Labels, String> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(Labels::default());
        }
        loop {
            match self.peek() {
                Token::Identifier(_) | Token::Not => {}
                other => {
                    let found = other.literal();
                    return Err(format!("found '{found}', expected: !, identifier, or 'end of string'"));
                }
            }
            let one = self.requirement();
            requirements.push(one.map_err(|e| format!("unable to parse requirement: {e}"))?);
            match self.next() {
                Token::End => return Ok(Labels { requirements }),
                Token::Comma => match self.peek() {
                    Token::Identifier(_) | Token::Not => {}
                    other => {
                        let found = other.literal();
                        return Err(format!("found '{found}', expected: identifier after ','"));
                    }
                },
                other => {
                    let found = other.literal();
                    return Err(format!("found '{found}', expected: ',' or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek() == Token::Not;
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Identifier(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.literal())),
        };
        check_key(&key)?;
        if absent {
            return Requirement::new(&key, Word::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(&key, Word::Exists, BTreeSet::new());
        }
        let word = match self.next_operator() {
            Token::In => Word::In,
            Token::NotIn => Word::NotIn,
            Token::Equals | Token::DoubleEquals => Word::Equals,
            Token::NotEquals => Word::NotEquals,
            Token::Greater => Word::GreaterThan,
            Token::Less => Word::LessThan,
            other => {
                let found = other.literal();
                return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt"));
            }
        };
        let values = match word {
            Word::In | Word::NotIn => self.set()?,
            _ => BTreeSet::from([self.exact()?]),
        };
        Requirement::new(&key, word, values)
    }

    fn exact(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Identifier(value) => Ok(value),
            other => Err(format!("found '{}', expected: identifier", other.literal())),
        }
    }

    /// `(a,b)`; a missing value between commas is the empty one.
    fn set(&mut self) -> Result<BTreeSet<String>, String> {
        match self.next() {
            Token::Open => {}
            other => return Err(format!("found '{}' expected: '('", other.literal())),
        }
        let mut values = BTreeSet::new();
        if self.peek() == Token::Close {
            self.next();
            return Ok(values);
        }
        loop {
            match self.peek() {
                Token::Identifier(value) => {
                    self.next();
                    values.insert(value);
                }
                Token::Comma | Token::Close => {
                    values.insert(String::new());
                }
                other => {
                    let found = other.literal();
                    return Err(format!("found '{found}', expected: ',', ')' or identifier"));
                }
            }
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.literal())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: Value) -> bool {
        Labels::parse(selector).unwrap().matches_map(labels.as_object())
    }

    #[test]
    fn selectors_match() {
        let check = |selector: &str, labels: Value, want: bool| {
            assert_eq!(matches(selector, labels.clone()), want, "{selector} on {labels}");
        };
        let ab = || json!({"a": "b"});
        for selector in ["", " ", "a", "a=b", "a==b", " a = b ", "a!=c", "x!=c", "!x", "! x", "a in (b)"] {
            check(selector, ab(), true);
        }
        for selector in ["x", "a=c", "a!=b", "!a", "a in (c)", "a in (c, d)", "a notin (b)", "a=b,x", "a="] {
            check(selector, ab(), false);
        }
        check("a in (b,c),!x,a notin (d)", ab(), true);
        check("x notin (b)", ab(), true);
        check("a in (,b)", json!({"a": ""}), true);
        check("a in (b,)", json!({"a": ""}), true);
        check("a=,b", json!({"a": "", "b": "1"}), true);
        check("in=notin", json!({"in": "notin"}), true);
        check("n>3,n<5", json!({"n": "4"}), true);
        check("n>3", json!({"n": "x"}), false);
        check("example.com/a=b", json!({"example.com/a": "b"}), true);
    }

    #[test]
    fn errors_are_upstreams() {
        let check = |selector: &str, message: &str| {
            let status = Labels::parse(selector).unwrap_err();
            assert_eq!((status.code, &*status.message), (400, message));
        };
        check("a=b=c", "found '=', expected: ',' or 'end of string'");
        check("=a", "found '=', expected: !, identifier, or 'end of string'");
        check("a,", "found '', expected: identifier after ','");
        check("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        check("a in b", "unable to parse requirement: found 'b' expected: '('");
        check("a in (b", "unable to parse requirement: found '', expected: ',' or ')'");
        check(
            "a in ()",
            "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't \
             be empty",
        );
        check(
            "a>x",
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must \
             be an integer",
        );
        for broken in ["-a", "a=-", "a in (-)", "a/b/c=d", "!", "!=b", "(a)"] {
            assert!(Labels::parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn objects_select_as_text_does() {
        let check = |object: Value, text: &str| {
            assert_eq!(Labels::from_object(&object).unwrap(), Labels::parse(text).unwrap());
        };
        check(json!({}), "");
        check(Value::Null, "");
        check(json!({"matchLabels": {"a": "b"}}), "a=b");
        check(
            json!({"matchExpressions": [
                {"key": "a", "operator": "In", "values": ["b", "c"]},
                {"key": "d", "operator": "NotIn", "values": ["e"]},
                {"key": "f", "operator": "Exists"},
                {"key": "g", "operator": "DoesNotExist"},
            ]}),
            "a in (b,c),d notin (e),f,!g",
        );
        let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Is"}]});
        assert_eq!(Labels::from_object(&wrong).unwrap_err(), "\"Is\" is not a valid label selector operator");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z!=<>(), é./-]{0,20}|\\PC{0,20}") {
            let _ = Labels::parse(&text);
        }
    }
}
