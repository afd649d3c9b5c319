//! The libraries that Kubernetes adds to CEL: quantities, URLs, addresses, versions, named formats,
//! formatted texts.

use std::{cmp::Ordering, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    EvalError,
    functions::{self, Result, no_overload},
    value::{List, Val, http_url},
};
use crate::{names, quantity::Quantity};

fn fail<T>(why: impl Into<String>) -> Result<T> {
    Err(EvalError::Failed(why.into()))
}

fn truth<'a>(b: bool) -> Result<Val<'a>> {
    Ok(Val::Bool(b))
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    Some(match (name, args) {
        ("quantity", [Val::Text(text)]) => match Quantity::parse(text) {
            Some(quantity) => Ok(Val::Quantity(quantity)),
            None => fail("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        },
        ("isQuantity", [Val::Text(text)]) => truth(Quantity::parse(text).is_some()),
        ("url", [Val::Text(text)]) => match http_url::parse(text) {
            Some(url) => Ok(Val::Url(Arc::new(url))),
            None => fail(format!(
                "URL parse error during conversion from string: parse {:?}: invalid URI for request",
                &**text
            )),
        },
        ("isURL", [Val::Text(text)]) => truth(http_url::parse(text).is_some()),
        ("ip", [Val::Text(text)]) => match text.parse() {
            Ok(ip) => Ok(Val::Ip(ip)),
            Err(_) => fail(format!("IP Address {:?} parse error during conversion from string", &**text)),
        },
        ("isIP", [Val::Text(text)]) => truth(text.parse::<IpAddr>().is_ok()),
        ("ip.isCanonical", [Val::Text(text)]) => match text.parse::<IpAddr>() {
            Ok(ip) => truth(ip.to_string() == **text),
            Err(_) => fail(format!("IP Address {:?} parse error during conversion from string", &**text)),
        },
        ("cidr", [Val::Text(text)]) => match parse_cidr(text) {
            Some((ip, bits)) => Ok(Val::Cidr(ip, bits)),
            None => fail(format!("network address parse error during conversion from string: {:?}", &**text)),
        },
        ("isCIDR", [Val::Text(text)]) => truth(parse_cidr(text).is_some()),
        ("semver", [Val::Text(text), ..]) => match semver(text) {
            Some(parts) => Ok(Val::Semver(Arc::new(parts), Arc::from(&**text))),
            None => fail(format!("semver parse error: {:?}", &**text)),
        },
        ("isSemver", [Val::Text(text), ..]) => truth(semver(text).is_some()),
        ("base64.encode", [Val::Bytes(bytes)]) => Ok(Val::text(STANDARD.encode(bytes))),
        ("base64.decode", [Val::Text(text)]) => match STANDARD.decode(text.as_bytes()) {
            Ok(bytes) => Ok(Val::Bytes(bytes.into())),
            Err(_) => fail("illegal base64 data"),
        },
        ("jsonpatch.escapeKey", [Val::Text(text)]) => Ok(Val::text(text.replace('~', "~0").replace('/', "~1"))),
        ("format.named", [Val::Text(name)]) => {
            let known = FORMATS.iter().find(|known| ***known == **name);
            Ok(Val::Optional(known.map(|known| Arc::new(Val::Format(known)))))
        }
        (name, []) if name.starts_with("format.") => {
            let known = FORMATS.iter().find(|known| ***known == name["format.".len()..]);
            known.map_or_else(no_overload, |known| Ok(Val::Format(known)))
        }
        (".validate", [Val::Format(format), Val::Text(text)]) => {
            let broken = check_format(format, text);
            let list = |broken: Vec<String>| Val::list(broken.into_iter().map(Val::text).collect());
            Ok(Val::Optional((!broken.is_empty()).then(|| Arc::new(list(broken)))))
        }
        (name, [Val::Quantity(quantity), rest @ ..]) => return quantity_method(name, quantity, rest),
        (name, [Val::Url(url)]) => return url_method(name, url),
        (name, [Val::Ip(ip), rest @ ..]) => return ip_method(name, *ip, rest),
        (name, [Val::Cidr(ip, bits), rest @ ..]) => return cidr_method(name, *ip, *bits, rest),
        (name, [Val::Semver(parts, text), rest @ ..]) => return semver_method(name, parts, text, rest),
        _ => return None,
    })
}

fn quantity_method<'a>(name: &str, own: &Quantity, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let order = |other: &Quantity| own.partial_cmp(other).unwrap_or(Ordering::Equal);
    Some(match (name, rest) {
        (".isInteger", []) => truth(own.is_integer()),
        (".asInteger", []) if own.is_integer() => Ok(Val::Int(own.value())),
        (".asInteger", []) => fail("cannot convert value to integer"),
        (".asApproximateFloat", []) => Ok(Val::Double(own.approximate())),
        (".sign", []) => Ok(Val::Int(if own.is_zero() {
            0
        } else if own.is_negative() {
            -1
        } else {
            1
        })),
        (".isGreaterThan", [Val::Quantity(other)]) => truth(order(other) == Ordering::Greater),
        (".isLessThan", [Val::Quantity(other)]) => truth(order(other) == Ordering::Less),
        (".compareTo", [Val::Quantity(other)]) => Ok(Val::Int(order(other) as i64)),
        (".add", [Val::Quantity(other)]) => Ok(Val::Quantity(*own + *other)),
        (".sub", [Val::Quantity(other)]) => Ok(Val::Quantity(*own + -*other)),
        (".add", [Val::Int(n)]) => Ok(Val::Quantity(*own + Quantity::of(*n))),
        (".sub", [Val::Int(n)]) => Ok(Val::Quantity(*own + -Quantity::of(*n))),
        _ => return None,
    })
}

fn url_method<'a>(name: &str, url: &http_url::Url) -> Option<Result<Val<'a>>> {
    let host = || match url.port.as_str() {
        "" => url.host.clone(),
        port => format!("{}:{port}", url.host),
    };
    Some(Ok(Val::text(match name {
        ".getScheme" => url.scheme.clone(),
        ".getHost" => host(),
        ".getHostname" => url.host.trim_matches(['[', ']']).to_owned(),
        ".getPort" => url.port.clone(),
        ".getEscapedPath" => url.path.clone(),
        ".getQuery" => {
            let mut all: std::collections::BTreeMap<super::value::Key, Val<'a>> = Default::default();
            for (key, value) in
                url.query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
            {
                let key = super::value::Key::Text(key.into());
                let before = match all.remove(&key) {
                    Some(Val::List(list)) => list.iter().collect(),
                    _ => Vec::new(),
                };
                all.insert(key, Val::list(before.into_iter().chain([Val::text(value)]).collect()));
            }
            return Some(Ok(Val::Map(super::value::Map::Made(all.into()))));
        }
        _ => return None,
    })))
}

fn ip_method<'a>(name: &str, ip: IpAddr, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    Some(match (name, rest) {
        (".family", []) => Ok(Val::Int(if ip.is_ipv4() { 4 } else { 6 })),
        (".isUnspecified", []) => truth(ip.is_unspecified()),
        (".isLoopback", []) => truth(ip.is_loopback()),
        (".isLinkLocalMulticast", []) => truth(match ip {
            IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
            IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
        }),
        (".isLinkLocalUnicast", []) => truth(match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }),
        (".isGlobalUnicast", []) => truth(match ip {
            IpAddr::V4(v4) => {
                !(v4.is_unspecified()
                    || v4.is_loopback()
                    || v4.is_multicast()
                    || v4.is_link_local()
                    || v4.is_broadcast())
            }
            IpAddr::V6(v6) => {
                !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
            }
        }),
        _ => return None,
    })
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let (ip, bits): (IpAddr, u8) = (ip.parse().ok()?, bits.parse().ok()?);
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

fn cidr_method<'a>(name: &str, own: IpAddr, bits: u8, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let holds = |ip: IpAddr| ip.is_ipv4() == own.is_ipv4() && masked(ip, bits) == masked(own, bits);
    Some(match (name, rest) {
        (".containsIP", [Val::Ip(ip)]) => truth(holds(*ip)),
        (".containsIP", [Val::Text(text)]) => match text.parse() {
            Ok(ip) => truth(holds(ip)),
            Err(_) => fail(format!("IP Address {:?} parse error during conversion from string", &**text)),
        },
        (".containsCIDR", [Val::Cidr(ip, inner)]) => truth(*inner >= bits && holds(*ip)),
        (".containsCIDR", [Val::Text(text)]) => match parse_cidr(text) {
            Some((ip, inner)) => truth(inner >= bits && holds(ip)),
            None => fail(format!("network address parse error during conversion from string: {:?}", &**text)),
        },
        (".ip", []) => Ok(Val::Ip(own)),
        (".masked", []) => Ok(Val::Cidr(masked(own, bits), bits)),
        (".prefixLength", []) => Ok(Val::Int(bits.into())),
        _ => return None,
    })
}

fn semver(text: &str) -> Option<[u64; 3]> {
    let core = text.split_once('+').map_or(text, |(core, _)| core);
    let core = core.split_once('-').map_or(core, |(core, _)| core);
    let mut parts = core.split('.').map(|part| {
        let good =
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        if good { part.parse().ok() } else { None }
    });
    let all = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(all)
}

/// Precedence by semver.org: a release comes after its own pre-releases.
fn semver_order(a: (&[u64; 3], &str), b: (&[u64; 3], &str)) -> Ordering {
    fn pre(text: &str) -> Option<&str> {
        text.split_once('+').map_or(text, |(core, _)| core).split_once('-').map(|(_, pre)| pre)
    }
    a.0.cmp(b.0).then_with(|| match (pre(a.1), pre(b.1)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => {
            let key = |part: &str| part.parse::<u64>().map_or((1, 0, part.to_owned()), |n| (0, n, String::new()));
            a.split('.').map(key).cmp(b.split('.').map(key))
        }
    })
}

fn semver_method<'a>(name: &str, parts: &[u64; 3], text: &str, rest: &[Val<'a>]) -> Option<Result<Val<'a>>> {
    let number = |n: u64| Ok(Val::Int(i64::try_from(n).unwrap_or(i64::MAX)));
    Some(match (name, rest) {
        (".major", []) => number(parts[0]),
        (".minor", []) => number(parts[1]),
        (".patch", []) => number(parts[2]),
        (method, [Val::Semver(other, other_text)]) => {
            let order = semver_order((parts, text), (other, other_text));
            match method {
                ".isGreaterThan" => truth(order == Ordering::Greater),
                ".isLessThan" => truth(order == Ordering::Less),
                ".compareTo" => Ok(Val::Int(order as i64)),
                _ => return None,
            }
        }
        _ => return None,
    })
}

const FORMATS: [&str; 15] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
    "cidr",
    "ip",
];

fn check_format(format: &str, text: &str) -> Vec<String> {
    let prefix = || format!("{}a", text.trim_end_matches('-'));
    let plain = |good: bool, what: &str| if good { Vec::new() } else { vec![format!("invalid {what}")] };
    match format {
        "dns1123Label" => names::dns_label(text),
        "dns1123Subdomain" => names::dns_subdomain(text),
        "dns1035Label" => names::dns_1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns_label(&prefix()),
        "dns1123SubdomainPrefix" => names::dns_subdomain(&prefix()),
        "dns1035LabelPrefix" => names::dns_1035_label(&prefix()),
        "labelValue" => names::label_value(text),
        "uri" => plain(http_url::parse(text).is_some(), "URI"),
        other => plain(crate::structural::has_format(other, text), other),
    }
}

/// `'%s of %d'.format([...])`
pub(super) fn format<'a>(pattern: &str, values: &List<'a>) -> Result<Val<'a>> {
    let mut out = String::new();
    let mut next = 0;
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = digits.parse::<usize>().ok().filter(|p| *p <= 100);
        }
        let Some(value) = values.get(next) else { return fail(format!("index {next} out of range")) };
        next += 1;
        let verb = chars.next().unwrap_or(' ');
        match (verb, &value) {
            ('s', value) => out.push_str(&shown(value)),
            ('d', Val::Int(n)) => out.push_str(&n.to_string()),
            ('d', Val::Uint(n)) => out.push_str(&n.to_string()),
            ('d', Val::Double(n)) if n.fract() == 0.0 => out.push_str(&n.to_string()),
            ('f', Val::Double(n)) => out.push_str(&format!("{n:.*}", precision.unwrap_or(6))),
            ('f', Val::Int(n)) => out.push_str(&format!("{:.*}", precision.unwrap_or(6), *n as f64)),
            ('e', Val::Double(n)) => out.push_str(&format!("{n:.*e}", precision.unwrap_or(6))),
            ('b', Val::Int(n)) => out.push_str(&format!("{n:b}")),
            ('o', Val::Int(n)) => out.push_str(&format!("{n:o}")),
            ('x', Val::Int(n)) => out.push_str(&format!("{n:x}")),
            ('X', Val::Int(n)) => out.push_str(&format!("{n:X}")),
            ('x', Val::Text(text)) => text.bytes().for_each(|b| out.push_str(&format!("{b:02x}"))),
            ('d' | 'f' | 'e' | 'b' | 'o' | 'x' | 'X', other) => {
                return fail(format!("error during formatting: %{verb} clause cannot be used on {}", other.kind()));
            }
            _ => return fail(format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\"")),
        }
    }
    Ok(Val::text(out))
}

fn shown(value: &Val<'_>) -> String {
    match value {
        Val::Null => "null".into(),
        Val::List(list) => format!("[{}]", list.iter().map(|v| shown(&v)).collect::<Vec<_>>().join(", ")),
        Val::Map(map) => {
            let entries: Vec<String> = map.entries().map(|(k, v)| format!("{k}: {}", shown(&v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => match functions::print(other) {
            Ok(Val::Text(text)) => text.to_string(),
            _ => other.kind().to_owned(),
        },
    }
}
