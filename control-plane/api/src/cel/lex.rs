//! CEL source to tokens.

use super::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    /// `` `with-dashes` ``: a field's name that is no identifier.
    Quoted(String),
    Int(i64),
    /// 2^63, which is only an integer after a minus.
    IntMin,
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Mark(&'static str),
    End,
}

/// Longest first.
const MARKS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", "[?", ".?", "{", "}", "[", "]", "(", ")", ".", ",", "-", "!", "?", ":", "+",
    "*", "/", "%", "<", ">", "=",
];

/// The tokens with their byte offsets; the last one is [`Token::End`].
pub(super) fn tokens(source: &str) -> Result<Vec<(usize, Token)>, ParseError> {
    let mut lexer = Lexer { source, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.blank();
        let start = lexer.at;
        let token = lexer.token()?;
        let end = token == Token::End;
        out.push((start, token));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            let skipped = rest.len() - trimmed.len();
            let comment = if trimmed.starts_with("//") { trimmed.find('\n').unwrap_or(trimmed.len()) } else { 0 };
            if skipped + comment == 0 {
                return;
            }
            self.at += skipped + comment;
        }
    }

    fn fail<T>(&self, start: usize, what: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError::new(self.source, start, format!("Syntax error: {}", what.into())))
    }

    fn token(&mut self) -> Result<Token, ParseError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        let digit_next = rest.strip_prefix('.').is_some_and(|after| after.starts_with(|c: char| c.is_ascii_digit()));
        if first.is_ascii_digit() || digit_next {
            return self.number();
        }
        if let Some(token) = self.text()? {
            return Ok(token);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let name = rest[..end].to_owned();
            self.at += end;
            return Ok(Token::Ident(name));
        }
        if first == '`' {
            let Some(end) = rest[1..].find('`') else { return self.fail(self.at, "missing '`'") };
            let name = rest[1..=end].to_owned();
            self.at += end + 2;
            return Ok(Token::Quoted(name));
        }
        match MARKS.iter().find(|mark| rest.starts_with(**mark)) {
            Some(mark) => {
                self.at += mark.len();
                Ok(Token::Mark(mark))
            }
            None => self.fail(self.at, format!("token recognition error at: '{first}'")),
        }
    }

    fn number(&mut self) -> Result<Token, ParseError> {
        let (start, rest) = (self.at, self.rest());
        if let Some(hex) = rest.strip_prefix("0x") {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let digits = &hex[..end];
            let unsigned = hex[end..].starts_with(['u', 'U']);
            let value = u64::from_str_radix(digits, 16);
            self.at += 2 + end + usize::from(unsigned);
            return match value {
                Ok(value) if unsigned => Ok(Token::Uint(value)),
                Ok(value) => i64::try_from(value).map(Token::Int).or_else(|_| self.fail(start, "invalid int literal")),
                Err(_) => self.fail(start, "invalid int literal"),
            };
        }
        let bytes = rest.as_bytes();
        let mut end = 0;
        let mut double = false;
        while let Some(byte) = bytes.get(end) {
            match byte {
                b'0'..=b'9' => {}
                b'.' if !double && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) => double = true,
                b'e' | b'E' => {
                    let sign = usize::from(bytes.get(end + 1).is_some_and(|b| matches!(b, b'+' | b'-')));
                    if !bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
                        break;
                    }
                    double = true;
                    end += sign;
                }
                _ => break,
            }
            end += 1;
        }
        let text = &rest[..end];
        let unsigned = !double && rest[end..].starts_with(['u', 'U']);
        let token = match (double, unsigned) {
            (true, _) => text.parse().ok().map(Token::Double),
            (_, true) => text.parse().ok().map(Token::Uint),
            _ => match text.parse::<u64>() {
                Ok(n) if n == 1 << 63 => Some(Token::IntMin),
                Ok(n) => i64::try_from(n).ok().map(Token::Int),
                Err(_) => None,
            },
        };
        self.at += end + usize::from(unsigned);
        token.map_or_else(|| self.fail(start, "invalid int literal"), Ok)
    }

    /// A string or bytes literal, if one begins here.
    fn text(&mut self) -> Result<Option<Token>, ParseError> {
        let (start, rest) = (self.at, self.rest());
        // At most two letters stand before the quote: looking further would cost a pass over the source for each token.
        let quote_at = rest.bytes().take(3).position(|byte| matches!(byte, b'"' | b'\''));
        let Some(quote_at) = quote_at else { return Ok(None) };
        let lower = rest[..quote_at].to_ascii_lowercase();
        if !matches!(lower.as_str(), "" | "r" | "b" | "br" | "rb") {
            return Ok(None);
        }
        let (raw, bytes) = (lower.contains('r'), lower.contains('b'));
        let body = &rest[quote_at..];
        let one = &body[..1];
        let close = if body.starts_with(&one.repeat(3)) { one.repeat(3) } else { one.to_owned() };
        let mut out: Vec<u8> = Vec::new();
        let mut chars = body[close.len()..].char_indices();
        while let Some((at, c)) = chars.next() {
            if body[close.len() + at..].starts_with(&close) {
                self.at += quote_at + close.len() + at + close.len();
                return match bytes {
                    true => Ok(Some(Token::Bytes(out))),
                    false => match String::from_utf8(out) {
                        Ok(text) => Ok(Some(Token::Text(text))),
                        Err(_) => self.fail(start, "invalid string literal"),
                    },
                };
            }
            if c == '\n' && close.len() == 1 {
                break;
            }
            if c != '\\' || raw {
                out.extend(c.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
            let Some((_, escape)) = chars.next() else { break };
            let digits = |chars: &mut std::str::CharIndices<'_>, first: Option<char>, count: usize, radix: u32| {
                let mut text: String = first.into_iter().collect();
                text.extend(chars.by_ref().take(count).map(|(_, c)| c));
                u32::from_str_radix(&text, radix).ok()
            };
            let (code, byte) = match escape {
                'a' => (Some(7), false),
                'b' => (Some(8), false),
                'f' => (Some(12), false),
                'n' => (Some(10), false),
                'r' => (Some(13), false),
                't' => (Some(9), false),
                'v' => (Some(11), false),
                '\\' | '?' | '"' | '\'' | '`' => (Some(u32::from(escape)), false),
                'x' | 'X' => (digits(&mut chars, None, 2, 16), true),
                'u' => (digits(&mut chars, None, 4, 16), false),
                'U' => (digits(&mut chars, None, 8, 16), false),
                '0'..='3' => (digits(&mut chars, Some(escape), 2, 8), true),
                _ => (None, false),
            };
            match code {
                Some(code) if byte && bytes => out.push(code.to_le_bytes()[0]),
                Some(code) => match char::from_u32(code) {
                    Some(c) => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
                    None => return self.fail(start, "invalid unicode escape"),
                },
                None => return self.fail(start, format!("invalid escape sequence '\\{escape}'")),
            }
        }
        self.fail(start, "token recognition error: the text has no end")
    }
}
