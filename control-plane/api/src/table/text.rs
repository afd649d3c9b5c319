//! Small texts of the tables: durations, selectors, `<none>`.

use serde_json::Value;

/// Upstream's `HumanDuration`: two units while the first is small.
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, big_name: &str, small: i64, small_name: &str| match small {
        0 => format!("{big}{big_name}"),
        _ => format!("{big}{big_name}{small}{small_name}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let years = days / 365;
    match seconds {
        ..=-2 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// A selector as a cell: `<none>` for nothing.
pub(super) fn label_selector(selector: &Value) -> String {
    or_none(&selector_text(selector)).to_owned()
}

/// A `LabelSelector`, or a plain map of labels, in the text form that clients parse again.
pub fn selector_text(selector: &Value) -> String {
    let mut parts = Vec::new();
    let plain = selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let labels = if plain { selector } else { &selector["matchLabels"] };
    for (key, value) in labels.as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    parts.sort();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_read_as_upstreams() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (30_000, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (86_400 * 800, "2y70d"),
            (86_400 * 365 * 9, "9y"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn selectors_read_as_upstreams() {
        let check = |selector: Value, expected: &str| assert_eq!(label_selector(&selector), expected);
        check(json!(null), "<none>");
        check(json!({"b": "2", "a": "1"}), "a=1,b=2");
        check(
            json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]}),
            "a=1,k in (x,y)",
        );
    }
}
