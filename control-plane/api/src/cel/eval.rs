//! Evaluation of a tree. Errors of one side of `&&` and `||` give way to the other side's answer.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Budget, EvalError,
    functions::{self, no_overload},
    parse::{Each, EachKind, Expr, Node},
    value::{Key, List, Literal, Map, Text, Val, unescape},
};

type Result<T> = std::result::Result<T, EvalError>;

/// Variables by name, the innermost last.
struct Scope<'s, 'a> {
    names: Vec<(&'s str, Val<'a>)>,
    budget: &'s Budget,
}

pub(super) fn run<'a>(root: &Expr, variables: &[(&str, Val<'a>)], budget: &Budget) -> Result<Val<'a>> {
    let mut scope = Scope { names: variables.iter().map(|(n, v)| (*n, v.clone())).collect(), budget };
    scope.eval(root)
}

fn fail<T>(why: impl Into<String>) -> Result<T> {
    Err(EvalError::Failed(why.into()))
}

fn usable(value: Val<'_>) -> Result<Val<'_>> {
    match value {
        Val::Failed(why) => fail(&*why),
        value => Ok(value),
    }
}

impl<'s, 'a> Scope<'s, 'a> {
    fn eval(&mut self, expr: &'s Expr) -> Result<Val<'a>> {
        match &expr.node {
            Node::Literal(literal) => Ok(constant(literal)),
            Node::Ident(name) => {
                self.budget.charge(1)?;
                self.variable(name)
            }
            Node::Select { of, field, optional } => {
                let of = self.eval(of)?;
                self.budget.charge(1)?;
                select(of, field, *optional)
            }
            Node::Has { of, field } => {
                let of = self.eval(of)?;
                self.budget.charge(1)?;
                has(of, field).map(Val::Bool)
            }
            Node::Index { of, key, optional } => {
                let (of, key) = (self.eval(of)?, self.eval(key)?);
                self.budget.charge(1)?;
                index(of, &key, *optional)
            }
            Node::And(left, right) => self.logic(left, right, false),
            Node::Or(left, right) => self.logic(left, right, true),
            Node::If(condition, yes, no) => match self.eval(condition)? {
                Val::Bool(true) => self.eval(yes),
                Val::Bool(false) => self.eval(no),
                _ => no_overload(),
            },
            Node::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (optional, item) in items {
                    self.budget.charge(1)?;
                    match (optional, self.eval(item)?) {
                        (true, Val::Optional(inner)) => out.extend(inner.map(|v| (*v).clone())),
                        (_, value) => out.push(value),
                    }
                }
                Ok(Val::list(out))
            }
            Node::Map(entries) => {
                let mut out = BTreeMap::new();
                for (optional, key, value) in entries {
                    self.budget.charge(1)?;
                    let key = self.eval(key)?;
                    let Some(key) = Key::of(&key) else {
                        return fail(format!("unsupported key type: {}", key.kind()));
                    };
                    match (optional, self.eval(value)?) {
                        (true, Val::Optional(inner)) => out.extend(inner.map(|v| (key, (*v).clone()))),
                        (_, value) => drop(out.insert(key, value)),
                    }
                }
                Ok(Val::Map(Map::Made(out.into())))
            }
            Node::Struct(fields) => {
                let mut out = BTreeMap::new();
                for (optional, name, value) in fields {
                    self.budget.charge(1)?;
                    let name = unescape(name).map_or_else(|| Arc::from(name.as_str()), |n| Arc::from(&*n));
                    match (optional, self.eval(value)?) {
                        (true, Val::Optional(inner)) => {
                            out.extend(inner.map(|v| (Key::Text(name), (*v).clone())));
                        }
                        (_, value) => drop(out.insert(Key::Text(name), value)),
                    }
                }
                Ok(Val::Map(Map::Made(out.into())))
            }
            Node::Bind { name, value, body } => {
                let value = self.eval(value)?;
                self.with(&[(name, value)], body)
            }
            Node::Each(each) => self.each(each),
            Node::Call { name, target, args } => self.call(name, target.as_deref(), args),
        }
    }

    fn variable(&self, name: &str) -> Result<Val<'a>> {
        match self.names.iter().rev().find(|(n, _)| *n == name) {
            Some((_, value)) => usable(value.clone()),
            None => match functions::type_named(name) {
                Some(kind) => Ok(Val::Type(kind)),
                None => fail(format!("undeclared reference to '{name}' (in container '')")),
            },
        }
    }

    /// `&&` with `decides` false, `||` with `decides` true.
    fn logic(&mut self, left: &'s Expr, right: &'s Expr, decides: bool) -> Result<Val<'a>> {
        let truth = |value: Result<Val<'a>>| match value {
            Ok(Val::Bool(b)) => Ok(b),
            Ok(_) => no_overload(),
            Err(error) => Err(error),
        };
        let first = truth(self.eval(left));
        match first {
            Ok(answer) if answer == decides => return Ok(Val::Bool(decides)),
            Err(EvalError::TooExpensive) => return Err(EvalError::TooExpensive),
            _ => {}
        }
        match (first, truth(self.eval(right))) {
            (_, Ok(answer)) if answer == decides => Ok(Val::Bool(decides)),
            (Ok(_), Ok(_)) => Ok(Val::Bool(!decides)),
            (_, Err(EvalError::TooExpensive)) => Err(EvalError::TooExpensive),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    fn with(&mut self, names: &[(&'s str, Val<'a>)], body: &'s Expr) -> Result<Val<'a>> {
        let depth = self.names.len();
        self.names.extend(names.iter().cloned());
        let result = self.eval(body);
        self.names.truncate(depth);
        result
    }

    fn truth(&mut self, names: &[(&'s str, Val<'a>)], body: &'s Expr) -> Result<bool> {
        match self.with(names, body)? {
            Val::Bool(b) => Ok(b),
            _ => no_overload(),
        }
    }

    fn each(&mut self, each: &'s Each) -> Result<Val<'a>> {
        let over = self.eval(&each.over)?;
        // Keys or items, and with two variables what goes with them.
        let pairs: Vec<(Val<'a>, Val<'a>)> = match &over {
            Val::List(list) => list.iter().enumerate().map(|(i, v)| (Val::Int(i as i64), v)).collect(),
            Val::Map(map) => map.entries().map(|(k, v)| (k.value(), v)).collect(),
            Val::Optional(Some(inner)) => vec![(Val::Null, (**inner).clone())],
            Val::Optional(None) => Vec::new(),
            other => return fail(format!("no such overload: cannot iterate over {}", other.kind())),
        };
        let is_list = !matches!(over, Val::Map(_));
        let mut out = Vec::new();
        let mut made = BTreeMap::new();
        let mut count = 0;
        let mut error = None;
        for (key, value) in pairs {
            self.budget.charge(1)?;
            let names: Vec<(&'s str, Val<'a>)> = match &each.second {
                Some(second) => vec![(&each.first, key.clone()), (second, value.clone())],
                None if is_list => vec![(&each.first, value.clone())],
                None => vec![(&each.first, key.clone())],
            };
            let kept = match &each.filter {
                Some(filter) => self.truth(&names, filter)?,
                None => true,
            };
            if !kept {
                continue;
            }
            match each.kind {
                EachKind::All | EachKind::Exists => {
                    let decides = each.kind == EachKind::Exists;
                    match self.truth(&names, &each.body) {
                        Ok(answer) if answer == decides => return Ok(Val::Bool(decides)),
                        Ok(_) => {}
                        Err(EvalError::TooExpensive) => return Err(EvalError::TooExpensive),
                        Err(other) => error = error.or(Some(other)),
                    }
                }
                EachKind::ExistsOne => count += usize::from(self.truth(&names, &each.body)?),
                EachKind::Filter => {
                    if self.truth(&names, &each.body)? {
                        out.push(if is_list { value } else { key });
                    }
                }
                EachKind::Map => out.push(self.with(&names, &each.body)?),
                EachKind::SortBy => {
                    let by = self.with(&names, &each.body)?;
                    out.push(Val::list(vec![by, value]));
                }
                EachKind::TransformMap => {
                    let made_value = self.with(&names, &each.body)?;
                    if let Some(key) = Key::of(&key) {
                        made.insert(key, made_value);
                    }
                }
                EachKind::TransformMapEntry => match self.with(&names, &each.body)? {
                    Val::Map(map) => made.extend(map.entries()),
                    _ => return no_overload(),
                },
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        Ok(match each.kind {
            EachKind::All => Val::Bool(true),
            EachKind::Exists => Val::Bool(false),
            EachKind::ExistsOne => Val::Bool(count == 1),
            EachKind::Filter | EachKind::Map => Val::list(out),
            EachKind::TransformMap | EachKind::TransformMapEntry => Val::Map(Map::Made(made.into())),
            EachKind::SortBy => functions::sorted_by(out)?,
        })
    }

    fn call(&mut self, name: &str, target: Option<&'s Expr>, args: &'s [Expr]) -> Result<Val<'a>> {
        // `sets.contains(...)`: a library's function, unless a variable has the library's name.
        if let Some(Expr { node: Node::Ident(library), .. }) = target
            && functions::LIBRARIES.contains(&library.as_str())
            && !self.names.iter().any(|(n, _)| *n == library)
        {
            let values = args.iter().map(|arg| self.eval(arg)).collect::<Result<Vec<_>>>()?;
            return functions::call(&format!("{library}.{name}"), values, self.budget);
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            let target = self.eval(target)?;
            // The alternatives of optionals are only looked at when they are needed.
            if let (Val::Optional(inner), "orValue" | "or", [other]) = (&target, name, args) {
                return match (inner, name) {
                    (Some(inner), "orValue") => Ok((**inner).clone()),
                    (Some(_), _) => Ok(target),
                    (None, _) => self.eval(other),
                };
            }
            if let (Val::Optional(inner), "optMap" | "optFlatMap", [Expr { node: Node::Ident(variable), .. }, body]) =
                (&target, name, args)
            {
                let Some(inner) = inner else { return Ok(Val::Optional(None)) };
                let made = self.with(&[(variable, (**inner).clone())], body)?;
                return Ok(if name == "optMap" { Val::Optional(Some(made.into())) } else { made });
            }
            values.push(target);
        }
        for arg in args {
            values.push(self.eval(arg)?);
        }
        if target.is_some()
            && let Some(Val::Foreign(foreign)) = values.first()
        {
            self.budget.charge(1)?;
            return match foreign.call(name, &values[1..]) {
                Some(result) => result.map_err(EvalError::Failed),
                None => no_overload(),
            };
        }
        let method = target.is_some();
        let name = if method { format!(".{name}") } else { name.to_owned() };
        functions::call(&name, values, self.budget)
    }
}

fn constant<'a>(literal: &Literal) -> Val<'a> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(b) => Val::Bool(*b),
        Literal::Int(n) => Val::Int(*n),
        Literal::Uint(n) => Val::Uint(*n),
        Literal::Double(n) => Val::Double(*n),
        Literal::Text(text) => Val::Text(Text::Made(Arc::clone(text))),
        Literal::Bytes(bytes) => Val::Bytes(Arc::clone(bytes)),
    }
}

fn wrapped(value: Option<Val<'_>>) -> Val<'_> {
    Val::Optional(value.map(Arc::new))
}

fn select<'a>(of: Val<'a>, field: &str, optional: bool) -> Result<Val<'a>> {
    match of {
        Val::Optional(None) => Ok(Val::Optional(None)),
        Val::Optional(Some(inner)) => select((*inner).clone(), field, true).map(|value| match value {
            Val::Optional(inner) => Val::Optional(inner),
            value => wrapped(Some(value)),
        }),
        Val::Map(map) => match map.select(field) {
            found if optional => Ok(wrapped(found)),
            Some(value) => usable(value),
            None => fail(format!("no such key: {field}")),
        },
        Val::Null if optional => Ok(Val::Optional(None)),
        Val::Foreign(foreign) => match foreign.field(field) {
            Some(value) => Ok(value),
            None => fail(format!("no such key: {field}")),
        },
        _ => no_overload(),
    }
}

fn has(of: Val<'_>, field: &str) -> Result<bool> {
    match of {
        Val::Map(map) => Ok(map.select(field).is_some()),
        Val::Optional(None) => Ok(false),
        Val::Optional(Some(inner)) => has((*inner).clone(), field),
        _ => no_overload(),
    }
}

fn index<'a>(of: Val<'a>, key: &Val<'a>, optional: bool) -> Result<Val<'a>> {
    let found = match (&of, key) {
        (Val::Optional(None), _) => return Ok(Val::Optional(None)),
        (Val::Optional(Some(inner)), key) => return index((**inner).clone(), key, true),
        (Val::List(list), key) => item(list, key)?,
        (Val::Map(map), key) => Key::of(key).and_then(|key| map.get(&key)),
        _ => return no_overload(),
    };
    match found {
        found if optional => Ok(wrapped(found)),
        Some(value) => usable(value),
        None => fail(match (&of, Key::of(key)) {
            (Val::List(_), Some(key)) => format!("index out of bounds: {key}"),
            (_, Some(key)) => format!("no such key: {key}"),
            _ => "no such key".to_owned(),
        }),
    }
}

fn item<'a>(list: &List<'a>, key: &Val<'_>) -> Result<Option<Val<'a>>> {
    Ok(match key {
        Val::Int(n) => usize::try_from(*n).ok().and_then(|n| list.get(n)),
        Val::Uint(n) => usize::try_from(*n).ok().and_then(|n| list.get(n)),
        Val::Double(n) if n.fract() == 0.0 && *n >= 0.0 => list.get(*n as usize),
        _ => return no_overload(),
    })
}
