//! CEL's operators and standard functions, and the libraries of texts, lists, sets and mathematics.
//! What Kubernetes adds is in `library.rs`.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use jiff::{Timestamp, tz::TimeZone};
use regex::Regex;

use super::{
    Budget, EvalError, library, limits, time,
    value::{Key, List, Map, Text, Val},
};

pub(super) type Result<T> = std::result::Result<T, EvalError>;

/// What stands before the dot of functions that are no methods.
pub(super) const LIBRARIES: [&str; 10] =
    ["sets", "math", "base64", "optional", "strings", "ip", "format", "jsonpatch", "cel", "lists"];

pub(super) fn no_overload<T>() -> Result<T> {
    Err(EvalError::Failed("no such overload".into()))
}

fn fail<T>(why: impl Into<String>) -> Result<T> {
    Err(EvalError::Failed(why.into()))
}

pub(super) fn type_named(name: &str) -> Option<&'static str> {
    Some(match name {
        "bool" => "bool",
        "int" => "int",
        "uint" => "uint",
        "double" => "double",
        "string" => "string",
        "bytes" => "bytes",
        "list" => "list",
        "map" => "map",
        "null_type" => "null_type",
        "type" => "type",
        "optional_type" => "optional_type",
        _ => return None,
    })
}

/// Calls an operator (`+`), a function (`size`) or a method (`.size`, its target first).
pub(super) fn call<'a>(name: &str, args: Vec<Val<'a>>, budget: &Budget) -> Result<Val<'a>> {
    budget.charge(1)?;
    // What goes through a text or a list costs by its length, as upstream's estimates do.
    let size: usize = args.iter().map(Val::size).sum();
    budget.charge((size / 10) as u64)?;
    if let Some(result) = operator(name, &args) {
        return result;
    }
    if let Some(result) = standard(name, &args, budget) {
        return result;
    }
    if let Some(result) = text_method(name, &args) {
        return result;
    }
    if let Some(result) = list_method(name, &args) {
        return result;
    }
    if let Some(result) = library::call(name, &args) {
        return result;
    }
    no_overload()
}

fn operator<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    use Val::{Bool, Double, Int, Uint};
    let truth = |b: bool| Some(Ok(Bool(b)));
    let overflow = |n: Option<Val<'a>>, what: &str| Some(n.ok_or_else(|| EvalError::Failed(what.into())));
    match (name, args) {
        ("==", [a, b]) => truth(same(a, b)),
        ("!=", [a, b]) => truth(!same(a, b)),
        ("!", [Bool(b)]) => truth(!b),
        ("-", [Int(n)]) => overflow(n.checked_neg().map(Int), "integer overflow"),
        ("-", [Double(n)]) => Some(Ok(Double(-n))),
        ("<" | "<=" | ">" | ">=", [a, b]) => {
            let order = a.compare(b)?;
            truth(match name {
                "<" => order == Ordering::Less,
                "<=" => order != Ordering::Greater,
                ">" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            })
        }
        ("in", [item, Val::List(list)]) => truth(list.iter().any(|v| v.equals(item))),
        ("in", [key, Val::Map(map)]) => truth(Key::of(key).is_some_and(|key| map.get(&key).is_some())),
        ("+", [Val::Text(a), Val::Text(b)]) => {
            if a.len() + b.len() > limits::TEXT {
                return Some(Err(EvalError::TooExpensive));
            }
            Some(Ok(Val::text([&**a, &**b].concat())))
        }
        ("+", [Val::Bytes(a), Val::Bytes(b)]) => Some(Ok(Val::Bytes([&**a, &**b].concat().into()))),
        ("+", [Val::List(a), Val::List(b)]) => Some(Ok(concat(a, b))),
        ("+", [Val::Map(a), Val::Map(b)]) => {
            let both: BTreeMap<Key, Val<'a>> = a.entries().chain(b.entries()).collect();
            Some(Ok(Val::Map(Map::Made(both.into()))))
        }
        ("+" | "-", [a, b]) if matches!((a, b), (Val::Time(_) | Val::Duration(_), _) | (_, Val::Time(_))) => {
            Some(clock(name, a, b))
        }
        ("/", [Int(_), Int(0)] | [Uint(_), Uint(0)]) => Some(fail("division by zero")),
        ("%", [Int(_), Int(0)] | [Uint(_), Uint(0)]) => Some(fail("modulus by zero")),
        ("+" | "-" | "*" | "/" | "%", [Int(a), Int(b)]) => {
            let n = match name {
                "+" => a.checked_add(*b),
                "-" => a.checked_sub(*b),
                "*" => a.checked_mul(*b),
                "/" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            overflow(n.map(Int), "integer overflow")
        }
        ("+" | "-" | "*" | "/" | "%", [Uint(a), Uint(b)]) => {
            let n = match name {
                "+" => a.checked_add(*b),
                "-" => a.checked_sub(*b),
                "*" => a.checked_mul(*b),
                "/" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            overflow(n.map(Uint), "unsigned integer overflow")
        }
        ("+", [Double(a), Double(b)]) => Some(Ok(Double(a + b))),
        ("-", [Double(a), Double(b)]) => Some(Ok(Double(a - b))),
        ("*", [Double(a), Double(b)]) => Some(Ok(Double(a * b))),
        ("/", [Double(a), Double(b)]) => Some(Ok(Double(a / b))),
        _ => None,
    }
}

/// Equality; the lists of sets and maps are equal in any order.
fn same(a: &Val<'_>, b: &Val<'_>) -> bool {
    if let (Val::List(a), Val::List(b)) = (a, b)
        && a.schema().or(b.schema()).is_some_and(|s| s.is_unordered())
    {
        return a.len() == b.len() && a.iter().all(|item| b.iter().any(|other| item.equals(&other)));
    }
    a.equals(b)
}

/// `+` of lists; those of sets and maps merge by their keys.
fn concat<'a>(a: &List<'a>, b: &List<'a>) -> Val<'a> {
    let mut out: Vec<Val<'a>> = a.iter().collect();
    let keys = a.schema().filter(|s| s.is_unordered()).map(|s| s.list_keys());
    for item in b.iter() {
        let place = keys.and_then(|keys| {
            out.iter().position(|other| match (keys, other, &item) {
                ([], other, item) => other.equals(item),
                (keys, Val::Map(one), Val::Map(two)) => keys.iter().all(|key| {
                    let (one, two) = (one.select(key), two.select(key));
                    one.zip(two).is_some_and(|(one, two)| one.equals(&two))
                }),
                _ => false,
            })
        });
        match place {
            Some(at) => out[at] = item,
            None => out.push(item),
        }
    }
    Val::list(out)
}

fn clock<'a>(name: &str, a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>> {
    let shift = |time: &Timestamp, nanos: i128| {
        let moved = time.as_nanosecond().checked_add(nanos);
        let moved = moved.and_then(|n| Timestamp::from_nanosecond(n).ok());
        moved.map(Val::Time).ok_or_else(|| EvalError::Failed("timestamp overflow".into()))
    };
    match (name, a, b) {
        ("+", Val::Time(t), Val::Duration(d)) | ("+", Val::Duration(d), Val::Time(t)) => shift(t, *d),
        ("-", Val::Time(t), Val::Duration(d)) => shift(t, -d),
        ("-", Val::Time(a), Val::Time(b)) => Ok(Val::Duration(a.as_nanosecond() - b.as_nanosecond())),
        ("+", Val::Duration(a), Val::Duration(b)) => Ok(Val::Duration(a + b)),
        ("-", Val::Duration(a), Val::Duration(b)) => Ok(Val::Duration(a - b)),
        _ => no_overload(),
    }
}

fn count<'a>(n: usize) -> Option<Result<Val<'a>>> {
    Some(Ok(Val::Int(n as i64)))
}

/// Conversions, sizes, times, regular expressions, optionals.
fn standard<'a>(name: &str, args: &[Val<'a>], budget: &Budget) -> Option<Result<Val<'a>>> {
    Some(match (name, args) {
        ("size" | ".size", [Val::Text(text)]) => return count(text.chars().count()),
        ("size" | ".size", [value @ (Val::Bytes(_) | Val::List(_) | Val::Map(_))]) => return count(value.size()),
        ("type", [value]) => Ok(Val::Type(value.kind())),
        ("dyn", [value]) => Ok(value.clone()),
        ("string", [value]) => print(value),
        ("bytes", [Val::Text(text)]) => Ok(Val::Bytes(text.as_bytes().into())),
        ("bytes", [value @ Val::Bytes(_)]) => Ok(value.clone()),
        ("bool", [value @ Val::Bool(_)]) => Ok(value.clone()),
        ("bool", [Val::Text(text)]) => match &**text {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Val::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Val::Bool(false)),
            _ => fail("type conversion error from 'string' to 'bool'"),
        },
        ("int", [value]) => to_int(value),
        ("uint", [value]) => to_uint(value),
        ("double", [value]) => to_double(value),
        ("timestamp", [Val::Text(text)]) => text
            .parse()
            .map(Val::Time)
            .or_else(|_| fail("type conversion error from 'string' to 'google.protobuf.Timestamp'")),
        ("timestamp", [Val::Int(n)]) => {
            Timestamp::from_second(*n).map(Val::Time).or_else(|_| fail("timestamp overflow"))
        }
        ("timestamp", [value @ Val::Time(_)]) | ("duration", [value @ Val::Duration(_)]) => Ok(value.clone()),
        ("duration", [Val::Text(text)]) => match time::duration(text) {
            Some(nanos) => Ok(Val::Duration(nanos)),
            None => fail("type conversion error from 'string' to 'google.protobuf.Duration'"),
        },
        (".matches" | "matches", [Val::Text(text), Val::Text(pattern)]) => {
            if let Err(error) = budget.charge((text.len() / 10 + 1) as u64 * (pattern.len() / 4 + 1) as u64) {
                return Some(Err(error));
            }
            regex(pattern).map(|r| Val::Bool(r.is_match(text)))
        }
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.of", [value]) => Ok(Val::Optional(Some(Arc::new(value.clone())))),
        ("optional.ofNonZeroValue", [value]) => Ok(Val::Optional((!is_zero(value)).then(|| Arc::new(value.clone())))),
        (".hasValue", [Val::Optional(inner)]) => Ok(Val::Bool(inner.is_some())),
        (".value", [Val::Optional(inner)]) => match inner {
            Some(inner) => Ok((**inner).clone()),
            None => fail("optional.none() dereference"),
        },
        (method, [Val::Time(at)]) if method.starts_with(".get") => calendar(method, *at, "UTC"),
        (method, [Val::Time(at), Val::Text(zone)]) if method.starts_with(".get") => calendar(method, *at, zone),
        (".getHours", [Val::Duration(n)]) => whole(n / 3_600_000_000_000),
        (".getMinutes", [Val::Duration(n)]) => whole(n / 60_000_000_000),
        (".getSeconds", [Val::Duration(n)]) => whole(n / 1_000_000_000),
        (".getMilliseconds", [Val::Duration(n)]) => whole(n / 1_000_000),
        _ => return None,
    })
}

fn whole<'a>(n: i128) -> Result<Val<'a>> {
    i64::try_from(n).map(Val::Int).or_else(|_| fail("integer overflow"))
}

pub(super) fn regex(pattern: &str) -> Result<Regex> {
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|e| EvalError::Failed(format!("error parsing regexp: {e}")))
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null => true,
        Val::Bool(b) => !b,
        Val::Int(n) => *n == 0,
        Val::Uint(n) => *n == 0,
        Val::Double(n) => *n == 0.0,
        Val::Text(_) | Val::Bytes(_) | Val::List(_) | Val::Map(_) => value.size() == 0,
        Val::Duration(n) => *n == 0,
        _ => false,
    }
}

pub(super) fn print<'a>(value: &Val<'a>) -> Result<Val<'a>> {
    Ok(Val::text(match value {
        Val::Text(_) => return Ok(value.clone()),
        Val::Bool(b) => b.to_string(),
        Val::Int(n) => n.to_string(),
        Val::Uint(n) => n.to_string(),
        Val::Double(n) => n.to_string(),
        Val::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Val::Time(at) => at.to_string(),
        Val::Duration(nanos) => time::print(*nanos),
        Val::Quantity(quantity) => quantity.to_string(),
        Val::Ip(ip) => ip.to_string(),
        Val::Cidr(ip, bits) => format!("{ip}/{bits}"),
        Val::Semver(_, text) => text.to_string(),
        Val::Type(name) => (*name).to_owned(),
        _ => return no_overload(),
    }))
}

fn to_int<'a>(value: &Val<'a>) -> Result<Val<'a>> {
    match value {
        Val::Int(_) => Ok(value.clone()),
        Val::Uint(n) => i64::try_from(*n).map(Val::Int).or_else(|_| fail("integer overflow")),
        Val::Double(n) if n.is_finite() && n.abs() < 9.2e18 => Ok(Val::Int(n.trunc() as i64)),
        Val::Double(_) => fail("integer overflow"),
        Val::Text(text) => text.parse().map(Val::Int).or_else(|_| fail("type conversion error from 'string' to 'int'")),
        Val::Time(at) => Ok(Val::Int(at.as_second())),
        _ => no_overload(),
    }
}

fn to_uint<'a>(value: &Val<'a>) -> Result<Val<'a>> {
    match value {
        Val::Uint(_) => Ok(value.clone()),
        Val::Int(n) => u64::try_from(*n).map(Val::Uint).or_else(|_| fail("unsigned integer overflow")),
        Val::Double(n) if *n >= 0.0 && *n < 1.8e19 => Ok(Val::Uint(n.trunc() as u64)),
        Val::Double(_) => fail("unsigned integer overflow"),
        Val::Text(text) => {
            text.parse().map(Val::Uint).or_else(|_| fail("type conversion error from 'string' to 'uint'"))
        }
        _ => no_overload(),
    }
}

fn to_double<'a>(value: &Val<'a>) -> Result<Val<'a>> {
    match value {
        Val::Double(_) => Ok(value.clone()),
        Val::Int(n) => Ok(Val::Double(*n as f64)),
        Val::Uint(n) => Ok(Val::Double(*n as f64)),
        Val::Text(text) => {
            text.parse().map(Val::Double).or_else(|_| fail("type conversion error from 'string' to 'double'"))
        }
        _ => no_overload(),
    }
}

fn calendar<'a>(method: &str, at: Timestamp, zone: &str) -> Result<Val<'a>> {
    let zone = match zone {
        "" | "UTC" => TimeZone::UTC,
        name => match (TimeZone::get(name), jiff::fmt::strtime::parse("%:z", name)) {
            (Ok(zone), _) => zone,
            (_, Ok(parsed)) => parsed.offset().map_or(TimeZone::UTC, TimeZone::fixed),
            _ => return fail(format!("unknown time zone {name}")),
        },
    };
    let at = at.to_zoned(zone);
    let number: i64 = match method {
        ".getFullYear" => at.year().into(),
        ".getMonth" => i64::from(at.month()) - 1,
        ".getDate" => at.day().into(),
        ".getDayOfMonth" => i64::from(at.day()) - 1,
        ".getDayOfWeek" => at.weekday().to_sunday_zero_offset().into(),
        ".getDayOfYear" => i64::from(at.day_of_year()) - 1,
        ".getHours" => at.hour().into(),
        ".getMinutes" => at.minute().into(),
        ".getSeconds" => at.second().into(),
        ".getMilliseconds" => at.millisecond().into(),
        _ => return no_overload(),
    };
    Ok(Val::Int(number))
}

/// The index in characters of the byte `at`.
fn chars_before(text: &str, at: usize) -> i64 {
    text[..at].chars().count() as i64
}

fn char_at(text: &str, n: i64) -> Option<usize> {
    let n = usize::try_from(n).ok()?;
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(n)
}

fn text_method<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let Some(Val::Text(text)) = args.first() else { return None };
    let out_of_range = |n: &i64| EvalError::Failed(format!("index out of range: {n}"));
    let made = |text: String| Ok(Val::text(text));
    Some(match (name, &args[1..]) {
        (".contains", [Val::Text(part)]) => Ok(Val::Bool(text.contains(&**part))),
        (".startsWith", [Val::Text(part)]) => Ok(Val::Bool(text.starts_with(&**part))),
        (".endsWith", [Val::Text(part)]) => Ok(Val::Bool(text.ends_with(&**part))),
        (".lowerAscii", []) => made(text.to_ascii_lowercase()),
        (".upperAscii", []) => made(text.to_ascii_uppercase()),
        (".trim", []) => made(text.trim().to_owned()),
        (".reverse", []) => made(text.chars().rev().collect()),
        ("strings.quote", []) => made(format!("{:?}", &**text)),
        (".charAt", [Val::Int(n)]) => match char_at(text, *n) {
            Some(at) => made(text[at..].chars().take(1).collect()),
            None => Err(out_of_range(n)),
        },
        (".substring", [Val::Int(from)]) => match char_at(text, *from) {
            Some(at) => made(text[at..].to_owned()),
            None => Err(out_of_range(from)),
        },
        (".substring", [Val::Int(from), Val::Int(to)]) => match (char_at(text, *from), char_at(text, *to)) {
            (Some(a), Some(b)) if a <= b => made(text[a..b].to_owned()),
            (Some(_), Some(_)) => fail(format!("invalid substring range. start: {from}, end: {to}")),
            (None, _) => Err(out_of_range(from)),
            _ => Err(out_of_range(to)),
        },
        (".indexOf", [Val::Text(part)]) => Ok(Val::Int(text.find(&**part).map_or(-1, |at| chars_before(text, at)))),
        (".indexOf", [Val::Text(part), Val::Int(from)]) => match char_at(text, *from) {
            Some(start) => Ok(Val::Int(text[start..].find(&**part).map_or(-1, |at| chars_before(text, start + at)))),
            None => Err(out_of_range(from)),
        },
        (".lastIndexOf", [Val::Text(part)]) => {
            Ok(Val::Int(text.rfind(&**part).map_or(-1, |at| chars_before(text, at))))
        }
        (".replace", [Val::Text(from), Val::Text(to)]) => replace(text, from, to, None),
        (".replace", [Val::Text(from), Val::Text(to), Val::Int(n)]) => {
            replace(text, from, to, usize::try_from(*n).ok())
        }
        (".split", [Val::Text(by)]) => Ok(split(text, by, -1)),
        (".split", [Val::Text(by), Val::Int(n)]) => Ok(split(text, by, *n)),
        (".find", [Val::Text(pattern)]) => regex(pattern).map(|r| Val::text(r.find(text).map_or("", |m| m.as_str()))),
        (".findAll", [Val::Text(pattern)]) => {
            regex(pattern).map(|r| Val::list(r.find_iter(text).map(|m| Val::text(m.as_str())).collect()))
        }
        (".findAll", [Val::Text(pattern), Val::Int(n)]) => regex(pattern).map(|r| {
            let most = usize::try_from(*n).unwrap_or(usize::MAX);
            Val::list(r.find_iter(text).take(most).map(|m| Val::text(m.as_str())).collect())
        }),
        (".format", [Val::List(values)]) => library::format(text, values),
        _ => return None,
    })
}

fn replace<'a>(text: &str, from: &str, to: &str, most: Option<usize>) -> Result<Val<'a>> {
    let times = if from.is_empty() { text.len() + 1 } else { text.len() / from.len() };
    if text.len().saturating_add(times.saturating_mul(to.len())) > limits::TEXT {
        return Err(EvalError::TooExpensive);
    }
    Ok(Val::text(match most {
        Some(n) => text.replacen(from, to, n),
        None => text.replace(from, to),
    }))
}

fn split<'a>(text: &str, by: &str, most: i64) -> Val<'a> {
    let parts: Vec<&str> = match (usize::try_from(most), by) {
        (Ok(0), _) => Vec::new(),
        (Ok(n), by) => text.splitn(n, by).collect(),
        (Err(_), "") => text.split("").filter(|p| !p.is_empty()).collect(),
        (Err(_), by) => text.split(by).collect(),
    };
    Val::list(parts.into_iter().map(Val::text).collect())
}

fn list_method<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    Some(match (name, args) {
        ("sets.contains", [Val::List(a), Val::List(b)]) => Ok(Val::Bool(within(b, a))),
        ("sets.equivalent", [Val::List(a), Val::List(b)]) => Ok(Val::Bool(within(a, b) && within(b, a))),
        ("sets.intersects", [Val::List(a), Val::List(b)]) => {
            Ok(Val::Bool(a.iter().any(|x| b.iter().any(|y| x.equals(&y)))))
        }
        ("lists.range", [Val::Int(n)]) => Ok(Val::list((0..(*n).clamp(0, 10_000)).map(Val::Int).collect())),
        ("math.greatest" | "math.least", values) => extreme(values, name == "math.greatest"),
        ("math.abs", [Val::Int(n)]) => n.checked_abs().map(Val::Int).map_or_else(|| fail("integer overflow"), Ok),
        ("math.abs", [Val::Double(n)]) => Ok(Val::Double(n.abs())),
        ("math.ceil", [Val::Double(n)]) => Ok(Val::Double(n.ceil())),
        ("math.floor", [Val::Double(n)]) => Ok(Val::Double(n.floor())),
        ("math.round", [Val::Double(n)]) => Ok(Val::Double(n.round())),
        ("math.trunc", [Val::Double(n)]) => Ok(Val::Double(n.trunc())),
        ("math.sqrt", [Val::Double(n)]) => Ok(Val::Double(n.sqrt())),
        ("math.sqrt", [Val::Int(n)]) => Ok(Val::Double((*n as f64).sqrt())),
        ("math.sign", [Val::Int(n)]) => Ok(Val::Int(n.signum())),
        (name, [Val::List(list), rest @ ..]) => return own(name, list, rest),
        _ => return None,
    })
}

fn own<'a>(name: &str, list: &List<'a>, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let items: Vec<Val<'a>> = list.iter().collect();
    Some(match (name, rest) {
        (".isSorted", []) => Ok(Val::Bool(
            items.windows(2).all(|w| matches!(w[0].compare(&w[1]), Some(Ordering::Less | Ordering::Equal))),
        )),
        (".sum", []) => items
            .into_iter()
            .try_fold(None, |sum: Option<Val<'a>>, item| match sum {
                None => Ok(Some(item)),
                Some(sum) => operator("+", &[sum, item]).unwrap_or_else(no_overload).map(Some),
            })
            .map(|sum| sum.unwrap_or(Val::Int(0))),
        (".min", []) => extreme(&items, false),
        (".max", []) => extreme(&items, true),
        (".indexOf", [wanted]) => Ok(Val::Int(items.iter().position(|v| v.equals(wanted)).map_or(-1, |n| n as i64))),
        (".lastIndexOf", [wanted]) => {
            Ok(Val::Int(items.iter().rposition(|v| v.equals(wanted)).map_or(-1, |n| n as i64)))
        }
        (".join", []) => join(&items, ""),
        (".join", [Val::Text(by)]) => join(&items, by),
        (".reverse", []) => Ok(Val::list(items.into_iter().rev().collect())),
        (".first", []) => Ok(Val::Optional(items.into_iter().next().map(Arc::new))),
        (".last", []) => Ok(Val::Optional(items.into_iter().next_back().map(Arc::new))),
        (".slice", [Val::Int(from), Val::Int(to)]) => match (usize::try_from(*from), usize::try_from(*to)) {
            (Ok(a), Ok(b)) if a <= b && b <= items.len() => Ok(Val::list(items[a..b].to_vec())),
            _ => fail(format!("cannot slice({from}, {to}), list is length {}", items.len())),
        },
        (".distinct", []) => {
            let mut out: Vec<Val<'a>> = Vec::new();
            for item in items {
                if !out.iter().any(|v| v.equals(&item)) {
                    out.push(item);
                }
            }
            Ok(Val::list(out))
        }
        (".flatten", []) => {
            let flat = items.into_iter().flat_map(|item| match item {
                Val::List(inner) => inner.iter().collect(),
                other => vec![other],
            });
            Ok(Val::list(flat.collect()))
        }
        (".sort", []) => sorted_by(items.into_iter().map(|v| Val::list(vec![v.clone(), v])).collect()),
        _ => return None,
    })
}

/// The second of each pair, in the order of the first.
pub(super) fn sorted_by(pairs: Vec<Val<'_>>) -> Result<Val<'_>> {
    let mut split = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let Val::List(pair) = pair else { return no_overload() };
        let (Some(by), Some(value)) = (pair.get(0), pair.get(1)) else { return no_overload() };
        split.push((by, value));
    }
    if split.windows(2).any(|w| w[0].0.compare(&w[1].0).is_none()) {
        return no_overload();
    }
    split.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(Ordering::Equal));
    Ok(Val::list(split.into_iter().map(|(_, value)| value).collect()))
}

fn within(a: &List<'_>, b: &List<'_>) -> bool {
    a.iter().all(|x| b.iter().any(|y| x.equals(&y)))
}

fn extreme<'a>(values: &[Val<'a>], greatest: bool) -> Result<Val<'a>> {
    if let [Val::List(list)] = values {
        return extreme(&list.iter().collect::<Vec<_>>(), greatest);
    }
    let mut values = values.iter();
    let Some(first) = values.next() else { return fail("min called on empty list") };
    let mut best = first;
    for value in values {
        match value.compare(best) {
            Some(Ordering::Greater) if greatest => best = value,
            Some(Ordering::Less) if !greatest => best = value,
            Some(_) => {}
            None => return no_overload(),
        }
    }
    Ok(best.clone())
}

fn join<'a>(items: &[Val<'a>], by: &str) -> Result<Val<'a>> {
    let mut out = String::new();
    for (n, item) in items.iter().enumerate() {
        let Val::Text(text) = item else { return no_overload() };
        if n > 0 {
            out.push_str(by);
        }
        out.push_str(text);
        if out.len() > limits::TEXT {
            return Err(EvalError::TooExpensive);
        }
    }
    Ok(Val::Text(Text::Made(out.into())))
}
