//! Quantities (`100m`, `1.5Gi`, `2e3`): parsing, comparing and upstream's canonical text.
//! Source: apimachinery's `pkg/api/resource`.

use std::{cmp::Ordering, fmt};

use serde_json::Value;

/// The smallest unit a quantity keeps: 10⁻⁹. What is finer is rounded up.
const NANO_DIGITS: i32 = 9;

/// How a quantity was written, which decides how it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    BinarySi,
    DecimalSi,
    DecimalExponent,
}

/// An exact number with 10⁻⁹ as its smallest step.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

impl Quantity {
    /// `None` where the text is no quantity.
    pub fn parse(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (negative, number) = match number.as_bytes().first()? {
            b'-' => (true, &number[1..]),
            b'+' => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
            return None;
        }
        let (factor, power, format) = scale(suffix)?;
        // More digits than i128 holds cannot matter: they are below a nano or beyond every limit.
        let fraction = &fraction[..fraction.len().min(18)];
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
        let power = power + NANO_DIGITS - i32::try_from(fraction.len()).ok()?;
        let scaled = mantissa.checked_mul(factor)?;
        let nano = if power >= 0 {
            scaled.checked_mul(10i128.checked_pow(power.unsigned_abs())?)?
        } else {
            let divisor = 10i128.checked_pow(power.unsigned_abs())?;
            scaled / divisor + i128::from(scaled % divisor != 0)
        };
        Some(Self { nano: if negative { -nano } else { nano }, format })
    }

    /// A whole number.
    pub fn of(number: i64) -> Self {
        Self { nano: i128::from(number) * 10i128.pow(NANO_DIGITS.unsigned_abs()), format: Format::DecimalSi }
    }

    /// From a JSON string or number.
    pub fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether it is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nano % 10i128.pow(NANO_DIGITS.unsigned_abs()) == 0
    }
}

impl Quantity {
    /// In whole units, rounded up; the largest integer where it is more.
    pub fn value(&self) -> i64 {
        self.scaled(10i128.pow(NANO_DIGITS.unsigned_abs()))
    }

    /// In thousandths, rounded up; the largest integer where it is more.
    pub fn milli(&self) -> i64 {
        self.scaled(10i128.pow(NANO_DIGITS.unsigned_abs() - 3))
    }

    fn scaled(&self, unit: i128) -> i64 {
        let whole = self.nano.div_euclid(unit) + i128::from(self.nano.rem_euclid(unit) != 0);
        i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;

    /// The sum, written as the first unless that is nothing.
    fn add(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }
}

impl std::ops::Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nano: -self.nano, ..self }
    }
}

impl Quantity {
    /// The nearest float.
    pub fn approximate(&self) -> f64 {
        self.nano as f64 / 10f64.powi(NANO_DIGITS)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.nano.partial_cmp(&other.nano)
    }
}

/// The canonical text: no fraction, the largest suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        if self.nano == 0 {
            return f.write_str("0");
        }
        let one = 10i128.pow(NANO_DIGITS.unsigned_abs());
        if self.format == Format::BinarySi && self.is_integer() && (self.nano / one).abs() >= 1024 {
            let mut number = self.nano / one;
            let mut step = 0;
            while number % 1024 == 0 && step + 1 < BINARY.len() {
                number /= 1024;
                step += 1;
            }
            return write!(f, "{number}{}", BINARY[step]);
        }
        let (mut number, mut step) = (self.nano, 0);
        while number % 1000 == 0 && step + 1 < DECIMAL.len() {
            number /= 1000;
            step += 1;
        }
        match (self.format, i32::try_from(step).unwrap_or_default() * 3 - NANO_DIGITS) {
            (Format::DecimalExponent, 0) => write!(f, "{number}"),
            (Format::DecimalExponent, exponent) => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{}", DECIMAL[step]),
        }
    }
}

/// (factor, decimal power, format) of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32, Format)> {
    let decimal = |power| Some((1, power, Format::DecimalSi));
    let binary = |shift: u32| Some((1i128 << shift, 0, Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-18..=18).contains(&exponent).then_some((1, exponent, Format::DecimalExponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_canonical() {
        for (given, expected) in [
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("2e3", "2e3"),
            ("0Mi", "0"),
            ("-100m", "-100m"),
            ("100n", "100n"),
            ("0.1n", "1n"),
        ] {
            assert_eq!(Quantity::parse(given).unwrap().to_string(), expected, "{given}");
        }
        for bad in ["", "m", "1.2.3", "1x", "1 Gi", "--1", "1e", "1e99", "."] {
            assert!(Quantity::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_rounded_up() {
        for (text, thousandths, units) in [
            ("0", 0, 0),
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("2Ki", 2_048_000, 2048),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("12e3", 12_000_000, 12_000),
            ("1E", i64::MAX, 1_000_000_000_000_000_000),
            ("1n", 1, 1),
            ("-1", -1000, -1),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!((quantity.milli(), quantity.value()), (thousandths, units), "{text}");
        }
        let sum = Quantity::parse("0").unwrap() + Quantity::parse("512Mi").unwrap() + Quantity::parse("1Gi").unwrap();
        assert_eq!(sum.to_string(), "1536Mi");
    }

    #[test]
    fn quantities_compare_by_value() {
        assert_eq!(Quantity::parse("1"), Quantity::parse("1000m"));
        assert!(Quantity::parse("1Gi") > Quantity::parse("1G"));
    }
}
