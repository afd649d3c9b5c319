//! The syntax of names: labels, qualified names, DNS labels and subdomains, as upstream's
//! `util/validation` checks and words them. Each check returns the rules that the text breaks.

use std::sync::LazyLock;

use regex::Regex;

/// The longest DNS label, label value and name part of a qualified name, in bytes.
pub const MAX_LABEL: usize = 63;
/// The longest DNS subdomain, in bytes.
pub const MAX_SUBDOMAIN: usize = 253;

/// The longest name of a kernel parameter, in bytes.
pub const MAX_SYSCTL: usize = 253;
/// The names of kernel parameters, as upstream words the rule.
pub const SYSCTL: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";

/// A label or annotation key: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    const RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(dns_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")));
            }
            name
        }
        _ => {
            let rule = regex_error(&format!("a qualified name {RULE}"), QUALIFIED, EXAMPLES);
            return vec![format!("{rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_LABEL {
        errors.push(format!("name part {}", max_len_error(MAX_LABEL)));
    }
    if !matches(QUALIFIED, name) {
        errors.push(format!("name part {}", regex_error(RULE, QUALIFIED, EXAMPLES)));
    }
    errors
}

/// The value of a label; may be empty.
pub fn label_value(text: &str) -> Vec<String> {
    const RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                        '.', and must start and end with an alphanumeric character";
    syntax(text, MAX_LABEL, LABEL_VALUE, RULE, &["MyValue", "my_value", "12345"])
}

/// A DNS label by RFC 1123: names of namespaces, containers, ...
pub fn dns_label(text: &str) -> Vec<String> {
    const RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                        must start and end with an alphanumeric character";
    syntax(text, MAX_LABEL, DNS_LABEL, RULE, &["my-name", "123-abc"])
}

/// A DNS subdomain by RFC 1123: names of most objects.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    const RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                        '.', and must start and end with an alphanumeric character";
    syntax(text, MAX_SUBDOMAIN, DNS_SUBDOMAIN, RULE, &["example.com"])
}

/// A DNS label by RFC 1035: names of Services.
pub fn dns_1035_label(text: &str) -> Vec<String> {
    const RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                        alphabetic character, and end with an alphanumeric character";
    syntax(text, MAX_LABEL, DNS_1035, RULE, &["my-name", "abc-123"])
}

/// A name that is one path segment: RBAC objects and others with free names.
pub fn path_segment(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    let contains = |c: &&str| text.contains(*c);
    ["/", "%"].iter().filter(|c| contains(c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Whether the text can name a kernel parameter: [`SYSCTL`], at most [`MAX_SYSCTL`] bytes.
pub fn is_sysctl(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |part: &str| part.starts_with(edge) && part.ends_with(edge) && part.chars().all(inner);
    text.len() <= MAX_SYSCTL && text.split(['.', '/']).all(segment)
}

/// `must be no more than {max} bytes`.
pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A broken regular expression in upstream's words, with examples of what would do.
pub fn regex_error(rule: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    let open = if examples.is_empty() { "" } else { "e.g. " };
    format!("{rule} ({open}{}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn syntax(text: &str, max: usize, pattern: &'static str, rule: &str, examples: &[&str]) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > max {
        errors.push(max_len_error(max));
    }
    if !matches(pattern, text) {
        errors.push(regex_error(rule, pattern, examples));
    }
    errors
}

/// Whether all of `text` matches one of this module's patterns.
fn matches(pattern: &'static str, text: &str) -> bool {
    static COMPILED: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
        let compile = |p| Regex::new(&format!("^(?:{p})$")).map(|r| (p, r)).ok();
        [QUALIFIED, LABEL_VALUE, DNS_LABEL, DNS_SUBDOMAIN, DNS_1035].into_iter().filter_map(compile).collect()
    });
    COMPILED.iter().any(|(p, r)| *p == pattern && r.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_upstream() {
        type Check = fn(&str) -> Vec<String>;
        let good: [(Check, &[&str]); 6] = [
            (qualified_name, &["a", "A.b_c-d", "example.com/x", "1"]),
            (label_value, &["", "a", "A_1.x"]),
            (dns_label, &["a", "1a", "a-b"]),
            (dns_subdomain, &["a", "a.b-c.d"]),
            (dns_1035_label, &["a", "a-1"]),
            (path_segment, &["system:node", "a b"]),
        ];
        for (check, texts) in good {
            for text in texts {
                assert_eq!(check(text), [""; 0], "{text}");
            }
        }
        let bad: [(Check, &[&str]); 6] = [
            (qualified_name, &["", "-a", "a/b/c", "/a", "A.com/x", "a/"]),
            (label_value, &["-", "a b", "a-"]),
            (dns_label, &["", "A", "a.b", "-a"]),
            (dns_subdomain, &["", "a..b", "A"]),
            (dns_1035_label, &["1a", ""]),
            (path_segment, &[".", "..", "a/b", "a%b"]),
        ];
        for (check, texts) in bad {
            for text in texts {
                assert_ne!(check(text), [""; 0], "{text}");
            }
        }
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn broken_patterns_are_worded_as_upstream() {
        assert_eq!(
            dns_label("A"),
            ["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
        );
    }
}
