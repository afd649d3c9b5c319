//! What can be said of an expression before it runs: unknown variables and fields, a result that is
//! no boolean, and what it may cost at most by the sizes that a schema allows.

use super::{
    ParseError, Program, functions,
    parse::{Each, EachKind, Expr, Node},
    value::{Literal, unescape},
};
use crate::structural::{Kind, Schema};

/// The largest request, in bytes: what an unbounded field is taken to hold.
const REQUEST: u64 = 3 * 1024 * 1024;

/// What a check found out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The most one evaluation costs.
    pub cost: u64,
    /// Whether the result may be a boolean.
    pub bool: bool,
    /// Whether the result may be a text.
    pub text: bool,
}

/// Checks an expression whose variables have these schemas; `None` for those of any type.
///
/// # Errors
/// For a name that is not declared and a field that its schema does not have.
pub fn check(program: &Program, variables: &[(&str, Option<&Schema>)]) -> Result<Estimate, ParseError> {
    let names = variables.iter().map(|(name, schema)| (*name, schema.map_or(Type::Any, Type::Of))).collect();
    let mut walk = Walk { source: &program.source, names, cost: 0, times: 1 };
    let result = walk.expr(&program.root)?;
    let any = matches!(result, Type::Any);
    let of = |kind: Kind| matches!(&result, Type::Of(schema) if schema.kind() == kind || schema.kind() == Kind::Any);
    Ok(Estimate {
        cost: walk.cost,
        bool: any || matches!(result, Type::Bool) || of(Kind::Boolean),
        text: any || matches!(result, Type::Text(_)) || of(Kind::String),
    })
}

/// Whether the tree reads a variable of this name.
pub(super) fn mentions(expr: &Expr, variable: &str) -> bool {
    let inside = |expr: &Expr| mentions(expr, variable);
    match &expr.node {
        Node::Literal(_) => false,
        Node::Ident(name) => name == variable,
        Node::Select { of, .. } | Node::Has { of, .. } => inside(of),
        Node::Index { of, key, .. } => inside(of) || inside(key),
        Node::Call { target, args, .. } => target.as_deref().is_some_and(inside) || args.iter().any(inside),
        Node::And(a, b) | Node::Or(a, b) => inside(a) || inside(b),
        Node::If(a, b, c) => inside(a) || inside(b) || inside(c),
        Node::List(items) => items.iter().any(|(_, item)| inside(item)),
        Node::Map(entries) => entries.iter().any(|(_, key, value)| inside(key) || inside(value)),
        Node::Struct(fields) => fields.iter().any(|(_, _, value)| inside(value)),
        Node::Each(each) => inside(&each.over) || each.filter.as_ref().is_some_and(inside) || inside(&each.body),
        Node::Bind { value, body, .. } => inside(value) || inside(body),
    }
}

#[derive(Clone, Debug)]
enum Type<'s> {
    Any,
    Bool,
    Int,
    Text(u64),
    Of(&'s Schema),
    /// Of at most so many items.
    List(Box<Type<'s>>, u64),
    Map,
}

struct Walk<'s, 'p> {
    source: &'p str,
    names: Vec<(&'p str, Type<'s>)>,
    cost: u64,
    /// How often the place of the walk is come by.
    times: u64,
}

impl<'s, 'p> Walk<'s, 'p> {
    fn charge(&mut self, cost: u64) {
        self.cost = self.cost.saturating_add(self.times.saturating_mul(cost));
    }

    fn fail<T>(&self, at: usize, what: String) -> Result<T, ParseError> {
        Err(ParseError::new(self.source, at, what))
    }

    fn expr(&mut self, expr: &'p Expr) -> Result<Type<'s>, ParseError> {
        Ok(match &expr.node {
            Node::Literal(literal) => match literal {
                Literal::Bool(_) => Type::Bool,
                Literal::Int(_) | Literal::Uint(_) | Literal::Double(_) => Type::Int,
                Literal::Text(text) => Type::Text(text.len() as u64),
                Literal::Null | Literal::Bytes(_) => Type::Any,
            },
            Node::Ident(name) => {
                self.charge(1);
                match self.names.iter().rev().find(|(n, _)| n == name) {
                    Some((_, kind)) => kind.clone(),
                    None if functions::type_named(name).is_some() => Type::Any,
                    None => return self.fail(expr.at, format!("undeclared reference to '{name}' (in container '')")),
                }
            }
            Node::Select { of, field, optional } => {
                let of = self.expr(of)?;
                self.charge(1);
                let found = self.field(&of, field, expr.at)?;
                if *optional { Type::Any } else { found }
            }
            Node::Has { of, field } => {
                let of = self.expr(of)?;
                self.charge(1);
                self.field(&of, field, expr.at)?;
                Type::Bool
            }
            Node::Index { of, key, optional } => {
                let of = self.expr(of)?;
                self.expr(key)?;
                self.charge(1);
                let (item, _) = contents(&of);
                if *optional { Type::Any } else { item }
            }
            Node::And(a, b) | Node::Or(a, b) => {
                self.expr(a)?;
                self.expr(b)?;
                Type::Bool
            }
            Node::If(condition, yes, no) => {
                self.expr(condition)?;
                let before = self.cost;
                let (first, first_cost) = (self.expr(yes)?, self.cost - before);
                let second = self.expr(no)?;
                // Only the dearer branch is paid.
                let second_cost = self.cost - before - first_cost;
                self.cost = before + first_cost.max(second_cost);
                match (&first, &second) {
                    (Type::Bool, Type::Bool) => Type::Bool,
                    (Type::Text(a), Type::Text(b)) => Type::Text(*a.max(b)),
                    _ => Type::Any,
                }
            }
            Node::List(items) => {
                let mut item = Type::Any;
                for (_, value) in items {
                    self.charge(1);
                    item = self.expr(value)?;
                }
                Type::List(item.into(), items.len() as u64)
            }
            Node::Map(entries) => {
                for (_, key, value) in entries {
                    self.charge(1);
                    self.expr(key)?;
                    self.expr(value)?;
                }
                Type::Map
            }
            Node::Struct(fields) => {
                for (_, _, value) in fields {
                    self.expr(value)?;
                }
                Type::Map
            }
            Node::Bind { name, value, body } => {
                let value = self.expr(value)?;
                self.names.push((name, value));
                let result = self.expr(body)?;
                self.names.pop();
                result
            }
            Node::Each(each) => self.each(each)?,
            Node::Call { name, target, args } => self.call(name, target.as_deref(), args)?,
        })
    }

    fn each(&mut self, each: &'p Each) -> Result<Type<'s>, ParseError> {
        let over = self.expr(&each.over)?;
        let (item, most) = contents(&over);
        let is_list = match &over {
            Type::Of(schema) => schema.kind() == Kind::Array,
            Type::Map => false,
            _ => true,
        };
        let (times, depth) = (self.times, self.names.len());
        self.times = times.saturating_mul(most.max(1));
        match &each.second {
            Some(second) => {
                self.names.push((&each.first, Type::Any));
                self.names.push((second, item.clone()));
            }
            None => self.names.push((&each.first, if is_list { item.clone() } else { Type::Any })),
        }
        self.charge(1);
        if let Some(filter) = &each.filter {
            self.expr(filter)?;
        }
        let body = self.expr(&each.body)?;
        self.names.truncate(depth);
        self.times = times;
        Ok(match each.kind {
            EachKind::All | EachKind::Exists | EachKind::ExistsOne => Type::Bool,
            EachKind::Filter | EachKind::SortBy => Type::List(item.into(), most),
            EachKind::Map => Type::List(body.into(), most),
            EachKind::TransformMap | EachKind::TransformMapEntry => Type::Map,
        })
    }

    fn call(&mut self, name: &str, target: Option<&'p Expr>, args: &'p [Expr]) -> Result<Type<'s>, ParseError> {
        let library = matches!(target, Some(Expr { node: Node::Ident(library), .. })
            if functions::LIBRARIES.contains(&library.as_str()) && !self.names.iter().any(|(n, _)| n == library));
        let mut types = Vec::new();
        if let Some(target) = target.filter(|_| !library) {
            types.push(self.expr(target)?);
        }
        // `optMap(x, ...)` names a variable of its own.
        if let ("optMap" | "optFlatMap", [Expr { node: Node::Ident(variable), .. }, body]) = (name, args) {
            self.names.push((variable, Type::Any));
            self.expr(body)?;
            self.names.pop();
            return Ok(Type::Any);
        }
        for arg in args {
            types.push(self.expr(arg)?);
        }
        let sizes = types.iter().map(length).fold(0u64, u64::saturating_add);
        let reads_all = matches!(
            name,
            "matches"
                | "contains"
                | "startsWith"
                | "endsWith"
                | "=="
                | "!="
                | "+"
                | "in"
                | "find"
                | "findAll"
                | "replace"
                | "split"
                | "lowerAscii"
                | "upperAscii"
                | "indexOf"
                | "lastIndexOf"
                | "join"
                | "isSorted"
                | "sum"
                | "min"
                | "max"
        );
        self.charge(1 + if reads_all { sizes / 10 } else { 0 });
        Ok(match name {
            "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "!" | "contains" | "startsWith" | "endsWith" | "matches" => {
                Type::Bool
            }
            "size" => Type::Int,
            "string" | "lowerAscii" | "upperAscii" | "trim" | "replace" | "join" | "format" | "substring" => {
                Type::Text(types.first().map_or(REQUEST, length))
            }
            "+" => match (types.first(), types.get(1)) {
                (Some(Type::Text(a)), Some(other)) | (Some(other), Some(Type::Text(a))) => {
                    Type::Text(a.saturating_add(length(other)))
                }
                _ => Type::Any,
            },
            _ => Type::Any,
        })
    }

    fn field(&self, of: &Type<'s>, name: &str, at: usize) -> Result<Type<'s>, ParseError> {
        let Type::Of(schema) = of else { return Ok(Type::Any) };
        let found = schema.field(name).or_else(|| unescape(name).and_then(|name| schema.field(&name)));
        match found {
            Some(found) => Ok(Type::Of(found)),
            None if schema.is_open() || schema.kind() == Kind::Any => Ok(Type::Any),
            None => self.fail(at, format!("undefined field '{name}'")),
        }
    }
}

/// What a list or map holds, and how many at most.
fn contents<'s>(of: &Type<'s>) -> (Type<'s>, u64) {
    match of {
        Type::List(item, most) => ((**item).clone(), *most),
        Type::Of(schema) => {
            let item = schema.items().or_else(|| schema.additional());
            (item.map_or(Type::Any, Type::Of), schema.most().unwrap_or_else(|| REQUEST / (least_bytes(item) + 1)))
        }
        _ => (Type::Any, 100),
    }
}

/// The shortest JSON of a value of this type, in bytes.
fn least_bytes(schema: Option<&Schema>) -> u64 {
    match schema.map(Schema::kind) {
        Some(Kind::Boolean) => 4,
        Some(Kind::Integer | Kind::Number | Kind::IntOrString) => 1,
        _ => 2,
    }
}

/// How much there is to go through in a text or list.
fn length(of: &Type<'_>) -> u64 {
    match of {
        Type::Text(length) => *length,
        Type::List(_, most) => *most,
        Type::Of(schema) => match schema.kind() {
            Kind::String if schema.is_closed_text() => 64,
            Kind::String => schema.most().unwrap_or(REQUEST),
            Kind::Array => contents(of).1,
            _ => 1,
        },
        _ => 1,
    }
}

/// How often what is below a schema's node may occur in one object.
impl Schema {
    pub(crate) fn most_occurrences(&self) -> u64 {
        let item = self.items().or_else(|| self.additional());
        self.most().unwrap_or_else(|| REQUEST / (least_bytes(item) + 1))
    }
}
