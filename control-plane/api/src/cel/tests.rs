#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;
use crate::structural::Schema;

fn eval(source: &str, variables: &Value) -> String {
    let program = match Program::parse(source) {
        Ok(program) => program,
        Err(error) => return error.to_string(),
    };
    let variables: Vec<(&str, Val<'_>)> =
        variables.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), Val::json(v, None))).collect();
    match program.eval(&variables, &Budget::new(limits::OBJECT_COST)) {
        Ok(value) => value.to_json().map_or_else(|| value.kind().to_owned(), |v| v.to_string()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn expressions_have_their_values() {
    let object = json!({"o": {"a": 1, "list": [1, 2, 3], "map": {"x": "y"}, "namespace": "n", "text": "héllo"},
        "names": ["a", "b"], "none": null});
    #[rustfmt::skip]
    let table = [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3 == 9 && !false", "true"),
        ("7 / 2", "3"), ("7 % 4", "3"), ("-7 / 2", "-3"), ("7.0 / 2.0", "3.5"), ("1u + 2u", "3"), ("0x10", "16"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("1 / 0", "division by zero"),
        ("1 == 1.0", "true"), ("1 < 1.5", "true"), ("'a' < 'b'", "true"),
        ("1 + 'a'", "no such overload"),
        ("o.a", "1"), ("o.namespace", "\"n\""), ("o['map'].x", "\"y\""), ("o.nothing", "no such key: nothing"),
        ("has(o.a) && !has(o.b)", "true"), ("'x' in o.map", "true"), ("2 in o.list", "true"),
        ("o.list[5]", "index out of bounds: 5"),
        ("o.?b.orValue('d')", "\"d\""), ("o.?a.hasValue()", "true"), ("o.?b.c.optMap(x, x + 1).orValue(9)", "9"),
        ("o.list[?9].orValue(4)", "4"), ("[?o.?b, 1]", "[1]"), ("{?'k': o.?b}", "{}"),
        ("o.list.all(x, x > 0)", "true"), ("o.list.exists(x, x == 2)", "true"), ("o.list.exists_one(x, x > 1)", "false"),
        ("o.list.map(x, x * 2)", "[2,4,6]"), ("o.list.map(x, x > 1, x * 2)", "[4,6]"), ("o.list.filter(x, x > 1)", "[2,3]"),
        ("o.map.all(k, k == 'x')", "true"), ("o.list.all(i, v, v == i + 1)", "true"),
        ("o.map.transformMap(k, v, v + k)", "{\"x\":\"yx\"}"), ("o.list.transformList(i, v, v * i)", "[0,2,6]"),
        ("[3, 1, 2].sortBy(x, -x)", "[3,2,1]"), ("cel.bind(x, 2, x * x)", "4"),
        ("[1, 2].exists(x, x / 0 > 1 || x == 2)", "true"),
        ("false && o.nothing == 1", "false"), ("o.nothing == 1 || true", "true"), ("true ? 1 : o.nothing", "1"),
        ("size('héllo')", "5"), ("o.text.size()", "5"), ("'Ab'.lowerAscii() + 'c'.upperAscii()", "\"abC\""),
        ("'a,b'.split(',')", "[\"a\",\"b\"]"), ("['a', 'b'].join('-')", "\"a-b\""), ("'abc'.substring(1)", "\"bc\""),
        ("'abc'.replace('b', 'x')", "\"axc\""), ("'abcb'.lastIndexOf('b')", "3"), ("' a '.trim()", "\"a\""),
        ("'abc123'.find('[0-9]+')", "\"123\""), ("'abc'.matches('^[a-c]+$')", "true"),
        ("'%s is %d'.format(['a', 3])", "\"a is 3\""), ("'%.2f'.format([1.5])", "\"1.50\""),
        ("'%q'.format(['a'])", "could not parse formatting clause: unrecognized formatting clause \"q\""),
        ("sets.contains(names, ['a'])", "true"), ("sets.intersects([1], [2])", "false"), ("math.greatest(1, 3, 2)", "3"),
        ("[1, 2, 3].sum()", "6"), ("[1, 3, 2].isSorted()", "false"), ("[1, 1, 2].distinct()", "[1,2]"),
        ("quantity('1Gi').isGreaterThan(quantity('500Mi'))", "true"), ("quantity('1').add(quantity('500m')).compareTo(quantity('1.5'))", "0"),
        ("isURL('https://a.b:80/c?d=e') && url('https://a.b:80/c').getPort() == '80'", "true"),
        ("cidr('10.0.0.0/8').containsIP('10.1.2.3') && ip('::1').family() == 6", "true"),
        ("semver('1.2.3').isLessThan(semver('1.10.0'))", "true"),
        ("format.dns1123Label().validate('A-').hasValue()", "true"),
        ("duration('1h') + duration('30m') == duration('90m')", "true"),
        ("timestamp('2024-01-02T03:04:05Z').getHours()", "3"), ("timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')", "true"),
        ("string(1) + string(true)", "\"1true\""), ("int('12') + 1", "13"), ("type(1) == int", "true"),
        ("Object{spec: Object.spec{replicas: 3}}", "{\"spec\":{\"replicas\":3}}"),
        ("[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: 1}]", "[{\"op\":\"add\",\"path\":\"/a/b~1c\",\"value\":1}]"),
        ("none == null", "true"), ("b'ab' == bytes('ab')", "true"), ("r'\\d' + '\\u00e9'", "\"\\\\dé\""),
        ("\"\"\"a\"b\"\"\"", "\"a\\\"b\""), ("1 // comment\n + 1", "2"),
        ("unknown", "undeclared reference to 'unknown' (in container '')"),
    ];
    for (source, expected) in table {
        assert_eq!(eval(source, &object), expected, "{source}");
    }
}

#[test]
fn texts_that_are_no_expressions_are_told_with_their_place() {
    let check = |source: &str, expected: &str| {
        let error = Program::parse(source).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{source}: {error}");
    };
    check("self.a ==", "ERROR: <input>:1:10: Syntax error: mismatched input '<EOF>'\n | self.a ==\n | .........^");
    check("a b", "ERROR: <input>:1:3: Syntax error: mismatched input 'b'");
    check("'abc", "ERROR: <input>:1:1: Syntax error");
    check("has(a)", "ERROR: <input>:1:1: invalid argument to has() macro");
    check("namespace == 1", "ERROR: <input>:1:1: reserved identifier: namespace");
    check("a.all(x.y, true)", "ERROR: <input>:1:8: argument must be a simple name");
    check(&"(".repeat(10_000), "ERROR: <input>:1:");
    check(&"!".repeat(10_000), "ERROR: <input>:1:");
    check(&"[".repeat(10_000), "ERROR: <input>:1:");
    check(&format!("a{}", ".a".repeat(10_000)), "ERROR: <input>:1:");
    check("é", "ERROR: <input>:1:1: Syntax error: token recognition error at: 'é'");
    // Reading a text takes time in proportion to its length.
    check(&"!".repeat(limits::SOURCE), "ERROR: <input>:1:");
    check("99999999999999999999", "ERROR: <input>:1:1: Syntax error: invalid int literal");
}

/// Costs stop what would take too long, and long texts are not made.
#[test]
fn evaluations_are_bounded() {
    let long: Vec<i64> = (0..2000).collect();
    let object = json!({"l": long, "t": "x".repeat(100_000)});
    let limit = "operation cancelled: actual cost limit exceeded";
    assert_eq!(eval("l.all(x, l.all(y, l.all(z, x + y + z >= 0)))", &object), limit);
    assert_eq!(eval("l.map(x, t).join(t)", &object), limit);
    assert_eq!(eval("l.map(x, t + t + t).size() < 0", &object), limit);
    assert_eq!(eval("l.all(x, x >= 0)", &object), "true");
    let budget = Budget::new(limits::OBJECT_COST);
    let program = Program::parse("l.all(x, x >= 0)").unwrap();
    program.eval(&[("l", Val::json(&object["l"], None))], &budget).unwrap();
    assert!(budget.left() < limits::OBJECT_COST && budget.left() > limits::OBJECT_COST - 20_000);
}

#[test]
fn schemas_decide_how_values_are_read_and_what_may_be_named() {
    let schema = Schema::root(&json!({"type": "object", "properties": {
        "n": {"type": "number"}, "when": {"type": "string", "format": "date-time"}, "a-b": {"type": "integer"},
        "items": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "maxItems": 5},
        "many": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}));
    let object = json!({"n": 1, "when": "2024-01-01T00:00:00Z", "a-b": 2, "items": ["a", "b"]});
    let run = |source: &str| {
        let program = Program::parse(source).unwrap();
        let result = program.eval(&[("self", Val::json(&object, Some(&schema)))], &Budget::new(1_000_000));
        result.map(|v| matches!(v, Val::Bool(true))).map_err(|e| e.to_string())
    };
    for rule in [
        "self.n / 2.0 == 0.5",
        "self.when < timestamp('2025-01-01T00:00:00Z')",
        "self.a__dash__b == 2",
        "self.items == ['b', 'a']",
    ] {
        assert_eq!(run(rule), Ok(true), "{rule}");
    }
    let check = |source: &str| check(&Program::parse(source).unwrap(), &[("self", Some(&schema))]);
    let told = |source: &str| check(source).unwrap_err().to_string();
    assert!(told("self.nothing == 1").contains("undefined field 'nothing'"));
    assert!(told("self.items.all(x, y == x)").contains("undeclared reference to 'y'"));
    assert!(check("self.any.whatever.x == 1").unwrap().bool);
    assert!(!check("self.n").unwrap().bool && !check("'a'").unwrap().bool);
    assert!(check("self.items.all(x, x.size() < 5)").unwrap().cost < 100);
    assert!(check("self.many.all(x, x.all(y, self.many.all(z, z.size() > 0)))").unwrap().cost > limits::RULE_ESTIMATE);
}
