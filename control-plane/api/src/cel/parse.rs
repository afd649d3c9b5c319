//! Tokens to an expression tree. Macros (`has`, `all`, `exists`, `map`, …) become nodes of their own.

use super::{
    ParseError,
    lex::{Token, tokens},
    limits,
    value::Literal,
};

/// An expression with the offset it begins at.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub(super) at: usize,
    pub(super) node: Node,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(Literal),
    Ident(String),
    Select {
        of: Box<Expr>,
        field: String,
        optional: bool,
    },
    /// `has(a.b)`
    Has {
        of: Box<Expr>,
        field: String,
    },
    Index {
        of: Box<Expr>,
        key: Box<Expr>,
        optional: bool,
    },
    Call {
        name: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    If(Box<Expr>, Box<Expr>, Box<Expr>),
    /// The flag marks `?item`.
    List(Vec<(bool, Expr)>),
    Map(Vec<(bool, Expr, Expr)>),
    /// Of whatever type: its name only tells a checker what the fields are.
    Struct(Vec<(bool, String, Expr)>),
    Each(Box<Each>),
    Bind {
        name: String,
        value: Box<Expr>,
        body: Box<Expr>,
    },
}

/// A macro that goes over a list or map.
#[derive(Clone, Debug)]
pub(super) struct Each {
    pub(super) kind: EachKind,
    pub(super) over: Expr,
    pub(super) first: String,
    /// Of the forms with two variables: index and item, or key and value.
    pub(super) second: Option<String>,
    /// What is filtered by in `map(x, condition, result)` and the `transform` macros.
    pub(super) filter: Option<Expr>,
    pub(super) body: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EachKind {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
    TransformMap,
    TransformMapEntry,
    SortBy,
}

const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether the text can name a variable.
pub fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    let keywords = ["true", "false", "null", "in"];
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !RESERVED.contains(&text)
        && !keywords.contains(&text)
}

/// Parses one expression.
pub(super) fn parse(source: &str) -> Result<Expr, ParseError> {
    if source.len() > limits::SOURCE {
        return Err(ParseError::new(
            source,
            0,
            format!("expression code point size exceeds limit: size: {}, limit {}", source.len(), limits::SOURCE),
        ));
    }
    let mut parser = Parser { source, tokens: tokens(source)?, next: 0, depth: 0 };
    let expr = parser.expr()?;
    match parser.peek() {
        Token::End => Ok(expr),
        _ => parser.unexpected(),
    }
}

fn spelled(token: &Token) -> String {
    match token {
        Token::End => "<EOF>".to_owned(),
        Token::Mark(mark) => (*mark).to_owned(),
        Token::Ident(name) | Token::Quoted(name) => name.clone(),
        Token::Text(text) => format!("{text:?}"),
        Token::Int(n) => n.to_string(),
        other => format!("{other:?}"),
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

type Parsed<T> = Result<T, ParseError>;

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn at(&self) -> usize {
        self.tokens[self.next].0
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.next].1.clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn take(&mut self, mark: &str) -> bool {
        let found = matches!(self.peek(), Token::Mark(m) if *m == mark);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, mark: &str) -> Parsed<()> {
        if self.take(mark) { Ok(()) } else { self.unexpected() }
    }

    fn unexpected<T>(&self) -> Parsed<T> {
        self.fail(format!("Syntax error: mismatched input '{}'", spelled(self.peek())))
    }

    fn fail<T>(&self, what: String) -> Parsed<T> {
        Err(ParseError::new(self.source, self.at(), what))
    }

    fn expr(&mut self) -> Parsed<Expr> {
        self.depth += 1;
        if self.depth > limits::DEPTH {
            return self.fail(format!("expression recursion limit exceeded: {}", limits::DEPTH));
        }
        let at = self.at();
        let condition = self.or()?;
        let expr = if self.take("?") {
            let yes = self.or()?;
            self.expect(":")?;
            let no = self.expr()?;
            Expr { at, node: Node::If(condition.into(), yes.into(), no.into()) }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn or(&mut self) -> Parsed<Expr> {
        let at = self.at();
        let mut left = self.and()?;
        while self.take("||") {
            left = Expr { at, node: Node::Or(left.into(), self.and()?.into()) };
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let at = self.at();
        let mut left = self.relation()?;
        while self.take("&&") {
            left = Expr { at, node: Node::And(left.into(), self.relation()?.into()) };
        }
        Ok(left)
    }

    fn relation(&mut self) -> Parsed<Expr> {
        let mut left = self.binary(&[&["+", "-"], &["*", "/", "%"]])?;
        loop {
            let at = self.at();
            let name = match self.peek() {
                Token::Mark(mark) if matches!(*mark, "==" | "!=" | "<" | "<=" | ">" | ">=") => (*mark).to_owned(),
                Token::Ident(word) if word == "in" => word.clone(),
                _ => return Ok(left),
            };
            self.advance();
            let right = self.binary(&[&["+", "-"], &["*", "/", "%"]])?;
            left = Expr { at, node: Node::Call { name, target: None, args: vec![left, right] } };
        }
    }

    fn binary(&mut self, levels: &[&[&'static str]]) -> Parsed<Expr> {
        let Some((marks, tighter)) = levels.split_first() else { return self.unary() };
        let mut left = self.binary(tighter)?;
        loop {
            let at = self.at();
            let Some(mark) = marks.iter().find(|mark| matches!(self.peek(), Token::Mark(m) if m == *mark)) else {
                return Ok(left);
            };
            self.advance();
            let right = self.binary(tighter)?;
            left = Expr { at, node: Node::Call { name: (*mark).to_owned(), target: None, args: vec![left, right] } };
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        let at = self.at();
        self.depth += 1;
        if self.depth > limits::DEPTH {
            return self.fail(format!("expression recursion limit exceeded: {}", limits::DEPTH));
        }
        let expr = if self.take("!") {
            let of = self.unary()?;
            Expr { at, node: Node::Call { name: "!".into(), target: None, args: vec![of] } }
        } else if self.take("-") {
            match self.peek().clone() {
                Token::IntMin => {
                    self.advance();
                    self.member(Expr { at, node: Node::Literal(Literal::Int(i64::MIN)) })?
                }
                Token::Int(n) => {
                    self.advance();
                    self.member(Expr { at, node: Node::Literal(Literal::Int(-n)) })?
                }
                Token::Double(n) => {
                    self.advance();
                    self.member(Expr { at, node: Node::Literal(Literal::Double(-n)) })?
                }
                _ => {
                    let of = self.unary()?;
                    Expr { at, node: Node::Call { name: "-".into(), target: None, args: vec![of] } }
                }
            }
        } else {
            let primary = self.primary()?;
            self.member(primary)?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let at = self.at();
        let literal = |literal| Ok(Expr { at, node: Node::Literal(literal) });
        match self.advance() {
            Token::Int(n) => literal(Literal::Int(n)),
            Token::Uint(n) => literal(Literal::Uint(n)),
            Token::Double(n) => literal(Literal::Double(n)),
            Token::Text(text) => literal(Literal::Text(text.into())),
            Token::Bytes(bytes) => literal(Literal::Bytes(bytes.into())),
            Token::Ident(name) => match name.as_str() {
                "true" => literal(Literal::Bool(true)),
                "false" => literal(Literal::Bool(false)),
                "null" => literal(Literal::Null),
                word if RESERVED.contains(&word) => {
                    Err(ParseError::new(self.source, at, format!("reserved identifier: {word}")))
                }
                _ => self.named(at, name),
            },
            Token::Mark("(") => {
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Mark(open @ ("[" | "[?")) => {
                let mut items = Vec::new();
                let mut first = open == "[?";
                while !self.take("]") {
                    let optional = std::mem::take(&mut first) || self.take("?");
                    items.push((optional, self.expr()?));
                    if !self.take(",") {
                        self.expect("]")?;
                        break;
                    }
                }
                Ok(Expr { at, node: Node::List(items) })
            }
            Token::Mark("{") => {
                let mut entries = Vec::new();
                while !self.take("}") {
                    let optional = self.take("?");
                    let key = self.expr()?;
                    self.expect(":")?;
                    entries.push((optional, key, self.expr()?));
                    if !self.take(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                Ok(Expr { at, node: Node::Map(entries) })
            }
            Token::Mark(".") => match self.advance() {
                Token::Ident(name) => self.named(at, name),
                _ => self.unexpected(),
            },
            other => {
                let what = format!("Syntax error: mismatched input '{}'", spelled(&other));
                Err(ParseError::new(self.source, at, what))
            }
        }
    }

    /// An identifier: a variable, a call, or the type of a struct.
    fn named(&mut self, at: usize, name: String) -> Parsed<Expr> {
        if self.take("(") {
            let mut args = self.arguments()?;
            if name == "has" {
                return match args.pop().map(|arg| arg.node) {
                    Some(Node::Select { of, field, optional: false }) if args.is_empty() => {
                        Ok(Expr { at, node: Node::Has { of, field } })
                    }
                    _ => Err(ParseError::new(self.source, at, "invalid argument to has() macro".into())),
                };
            }
            return Ok(Expr { at, node: Node::Call { name, target: None, args } });
        }
        // `Object.spec.template{...}`: names up to a brace are a type.
        let mut ahead = self.next;
        loop {
            match (&self.tokens[ahead].1, self.tokens.get(ahead + 1).map(|t| &t.1)) {
                (Token::Mark("{"), _) => {
                    self.next = ahead + 1;
                    return self.fields(at);
                }
                (Token::Mark("."), Some(Token::Ident(_))) => ahead += 2,
                _ => return Ok(Expr { at, node: Node::Ident(name) }),
            }
        }
    }

    fn fields(&mut self, at: usize) -> Parsed<Expr> {
        let mut fields = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let field = match self.advance() {
                Token::Ident(name) | Token::Quoted(name) => name,
                _ => return self.unexpected(),
            };
            self.expect(":")?;
            fields.push((optional, field, self.expr()?));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr { at, node: Node::Struct(fields) })
    }

    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        while !self.take(")") {
            args.push(self.expr()?);
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(args)
    }

    fn member(&mut self, mut of: Expr) -> Parsed<Expr> {
        let mut links = 0;
        loop {
            links += 1;
            if links > limits::DEPTH {
                return self.fail(format!("expression recursion limit exceeded: {}", limits::DEPTH));
            }
            let at = self.at();
            let optional = matches!(self.peek(), Token::Mark(".?" | "[?"));
            of = if self.take(".") || self.take(".?") {
                let field = match self.advance() {
                    Token::Ident(name) | Token::Quoted(name) => name,
                    _ => return self.unexpected(),
                };
                if !optional && self.take("(") {
                    let args = self.arguments()?;
                    self.method(at, of, field, args)?
                } else {
                    Expr { at, node: Node::Select { of: of.into(), field, optional } }
                }
            } else if self.take("[") || self.take("[?") {
                let key = self.expr()?;
                self.expect("]")?;
                Expr { at, node: Node::Index { of: of.into(), key: key.into(), optional } }
            } else {
                return Ok(of);
            };
        }
    }

    fn method(&mut self, at: usize, target: Expr, name: String, mut args: Vec<Expr>) -> Parsed<Expr> {
        use EachKind::{All, Exists, ExistsOne, Filter, Map, SortBy, TransformMap, TransformMapEntry};
        if let (Node::Ident(library), "bind", 3) = (&target.node, name.as_str(), args.len())
            && library == "cel"
            && let (Some(body), Some(value), Some(Node::Ident(name))) =
                (args.pop(), args.pop(), args.pop().map(|a| a.node))
        {
            return Ok(Expr { at, node: Node::Bind { name, value: value.into(), body: body.into() } });
        }
        // How many variables a macro may have, and whether a filter may come before its body.
        let kind = match (name.as_str(), args.len()) {
            ("all", 2 | 3) => Some((All, args.len() - 1, false)),
            ("exists", 2 | 3) => Some((Exists, args.len() - 1, false)),
            ("exists_one" | "existsOne", 2 | 3) => Some((ExistsOne, args.len() - 1, false)),
            ("filter", 2) => Some((Filter, 1, false)),
            ("map", 2) => Some((Map, 1, false)),
            ("map", 3) => Some((Map, 1, true)),
            ("transformList", 3) => Some((Map, 2, false)),
            ("transformList", 4) => Some((Map, 2, true)),
            ("transformMap", 3) => Some((TransformMap, 2, false)),
            ("transformMap", 4) => Some((TransformMap, 2, true)),
            ("transformMapEntry", 3) => Some((TransformMapEntry, 2, false)),
            ("transformMapEntry", 4) => Some((TransformMapEntry, 2, true)),
            ("sortBy", 2) => Some((SortBy, 1, false)),
            _ => None,
        };
        let Some((kind, variables, filtered)) = kind else {
            return Ok(Expr { at, node: Node::Call { name, target: Some(target.into()), args } });
        };
        let mut names = Vec::new();
        for arg in &args[..variables] {
            match &arg.node {
                Node::Ident(name) => names.push(name.clone()),
                _ => return Err(ParseError::new(self.source, arg.at, "argument must be a simple name".into())),
            }
        }
        let Some(body) = args.pop() else { return self.unexpected() };
        let filter = if filtered { args.pop() } else { None };
        let mut names = names.into_iter();
        let (first, second) = (names.next().unwrap_or_default(), names.next());
        Ok(Expr { at, node: Node::Each(Each { kind, over: target, first, second, filter, body }.into()) })
    }
}
