//! Kubernetes quantities (`250m`, `64Mi`, `1e3`) as integers: thousandths, or whole units rounded up.

/// Thousandths of the unit, rounded up; `None` if the text is no quantity.
pub fn milli(text: &str) -> Option<i128> {
    scaled(text, 1000)
}

/// Whole units, rounded up; `None` if the text is no quantity.
pub fn value(text: &str) -> Option<i128> {
    scaled(text, 1)
}

/// Bytes as a quantity with the largest binary suffix that fits without a rest, as upstream prints amounts.
pub fn binary(bytes: i128) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let (mut number, mut suffix) = (bytes, 0);
    while number != 0 && number % 1024 == 0 && suffix + 1 < SUFFIXES.len() {
        number /= 1024;
        suffix += 1;
    }
    format!("{number}{}", SUFFIXES[suffix])
}

fn scaled(text: &str, scale: i128) -> Option<i128> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(12)];
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (up, down) = multiplier(suffix)?;
    let denominator = down.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let numerator = digits.checked_mul(up)?.checked_mul(scale)?;
    let rounded = numerator / denominator + i128::from(numerator % denominator != 0);
    Some(if negative { -rounded } else { rounded })
}

fn multiplier(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_printed_short() {
        for (bytes, text) in [(0, "0"), (1, "1"), (1024, "1Ki"), (1536, "1536"), (100 << 20, "100Mi"), (5 << 30, "5Gi")]
        {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn table() {
        for (text, thousandths, whole) in [
            ("100m", Some(100), Some(1)),
            ("1", Some(1000), Some(1)),
            ("1.5", Some(1500), Some(2)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("0.1m", Some(1), Some(1)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("2E", Some(2_000_000_000_000_000_000_000), Some(2_000_000_000_000_000_000)),
            ("-1", Some(-1000), Some(-1)),
            ("x", None, None),
            ("", None, None),
            ("1Q", None, None),
        ] {
            assert_eq!(milli(text), thousandths, "{text}");
            assert_eq!(value(text), whole, "{text}");
        }
    }
}
