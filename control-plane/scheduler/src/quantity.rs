//! Parses Kubernetes quantities (`100m`, `1.5Gi`, `2e3`) into integers. Knows nothing of resources' names.

/// The quantity in thousandths, rounded up; `None` when the text is no quantity.
pub(crate) fn milli(text: &str) -> Option<i64> {
    scaled(text, 3)
}

/// The quantity in whole units, rounded up; `None` when the text is no quantity.
pub(crate) fn value(text: &str) -> Option<i64> {
    scaled(text, 0)
}

fn scaled(text: &str, extra_power: i32) -> Option<i64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(12)];
    let digits = format!("{whole}{fraction}");
    let mantissa: i128 = digits.parse().ok()?;
    let (binary, power) = multiplier(suffix)?;
    let power = power + extra_power - i32::try_from(fraction.len()).ok()?;
    let shifted = mantissa.checked_mul(binary)?;
    let result = if power >= 0 {
        shifted.checked_mul(10i128.checked_pow(power.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(power.unsigned_abs())?;
        shifted / divisor + i128::from(shifted % divisor != 0)
    };
    let result = i64::try_from(result).unwrap_or(i64::MAX);
    Some(if negative { -result } else { result })
}

/// (binary factor, decimal exponent) of a suffix.
fn multiplier(suffix: &str) -> Option<(i128, i32)> {
    Some(match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let power: i32 = digits.parse().ok()?;
            if !(-18..=18).contains(&power) {
                return None;
            }
            (1, power)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, thousandths, units) in [
            ("0", Some(0), Some(0)),
            ("1", Some(1000), Some(1)),
            ("100m", Some(100), Some(1)),
            ("1.5", Some(1500), Some(2)),
            ("0.1", Some(100), Some(1)),
            ("2Ki", Some(2_048_000), Some(2048)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("12e3", Some(12_000_000), Some(12_000)),
            ("1E", Some(i64::MAX), Some(1_000_000_000_000_000_000)),
            ("1n", Some(1), Some(1)),
            ("-1", Some(-1000), Some(-1)),
            ("", None, None),
            ("abc", None, None),
            ("1Qi", None, None),
        ] {
            assert_eq!(milli(text), thousandths, "{text} in thousandths");
            assert_eq!(value(text), units, "{text} in units");
        }
    }
}
