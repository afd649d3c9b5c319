//! Where a value stands on an axis, and which values are named there. Pure.

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// From zero, evenly.
    Even,
    /// By powers of ten.
    Powers,
    /// Percentiles: the last ones get as much room as all before them.
    Percentiles,
}

impl Kind {
    /// Sizes of a load grow by factors.
    pub(super) fn of_sizes() -> Self {
        Self::Powers
    }

    /// What suits these values: powers where they differ by much.
    pub(super) fn suiting(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = bounds(values.filter(|value| *value > 0.0));
        if low > 0.0 && high / low > 20.0 { Self::Powers } else { Self::Even }
    }

    fn place(self, value: f64) -> f64 {
        match self {
            Self::Even => value,
            Self::Powers => value.max(f64::MIN_POSITIVE).log10(),
            // 100 would be infinitely far: it is drawn where 99.97 would be.
            Self::Percentiles => -(1.0 - value.clamp(0.0, 99.97) / 100.0).log10(),
        }
    }
}

/// An axis of some length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    kind: Kind,
    from: f64,
    to: f64,
    length: f64,
}

impl Axis {
    /// One that has room for all `values`.
    pub(super) fn new(kind: Kind, values: impl Iterator<Item = f64>, length: f64) -> Self {
        let values = values.filter(|value| kind != Kind::Powers || *value > 0.0);
        let (low, high) = bounds(values);
        let (from, to) = match kind {
            Kind::Even => (0.0, if high > 0.0 { high * 1.08 } else { 1.0 }),
            Kind::Powers if low > high => (0.0, 1.0),
            Kind::Powers => (low.log10() - 0.08, high.log10() + 0.08),
            Kind::Percentiles => (0.0, Kind::Percentiles.place(100.0)),
        };
        Self { kind, from, to, length }
    }

    /// From the axis' beginning, in its length's unit.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (self.kind.place(value) - self.from) / (self.to - self.from);
        share.clamp(0.0, 1.0) * self.length
    }

    /// Values to name.
    pub(super) fn ticks(&self) -> Vec<f64> {
        match self.kind {
            Kind::Even => even(self.to),
            Kind::Powers => powers(self.from, self.to),
            Kind::Percentiles => vec![0.0, 50.0, 90.0, 99.0, 99.9, 100.0],
        }
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// Round values from zero on, four to six of them.
fn even(to: f64) -> Vec<f64> {
    let magnitude = 10_f64.powf((to / 5.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * magnitude).find(|step| to / step <= 5.5);
    let step = step.unwrap_or(magnitude * 10.0);
    (0..).map(|number| f64::from(number) * step).take_while(|value| *value <= to).collect()
}

/// One, two and five times powers of ten; over many powers only the powers.
fn powers(from: f64, to: f64) -> Vec<f64> {
    #[expect(clippy::cast_possible_truncation, reason = "logarithms of what is measured are small")]
    let exponents = from.floor() as i32..=to.ceil() as i32;
    let steps: &[f64] = if to - from > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    exponents
        .flat_map(|exponent| steps.iter().map(move |step| step * 10_f64.powi(exponent)))
        .filter(|value| (from..=to).contains(&value.log10()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_where_the_axis_has_them() {
        let axis = |kind, values: &[f64]| Axis::new(kind, values.iter().copied(), 100.0);
        assert_eq!(axis(Kind::Even, &[0.0, 50.0]).at(0.0), 0.0);
        assert!((axis(Kind::Even, &[100.0]).at(54.0) - 50.0).abs() < 1e-9);
        let powers = axis(Kind::Powers, &[1.0, 100.0]);
        assert!((powers.at(10.0) - 50.0).abs() < 1e-9);
        let percent = axis(Kind::Percentiles, &[]);
        assert_eq!((percent.at(0.0), percent.at(100.0)), (0.0, 100.0));
        assert!((percent.at(99.0) - 2.0 * percent.at(90.0)).abs() < 1e-9);
    }

    #[test]
    fn no_value_leaves_the_axis() {
        for kind in [Kind::Even, Kind::Powers, Kind::Percentiles] {
            for values in [&[][..], &[0.0], &[0.0, 1e-9, 1e9]] {
                let axis = Axis::new(kind, values.iter().copied(), 100.0);
                for value in values.iter().chain(&[-1.0, 0.0, 1e12]) {
                    assert!((0.0..=100.0).contains(&axis.at(*value)), "{kind:?} {values:?} {value}");
                }
            }
        }
    }

    #[test]
    fn ticks_are_round() {
        let axis = |kind, values: &[f64]| Axis::new(kind, values.iter().copied(), 100.0);
        assert_eq!(axis(Kind::Even, &[100.0]).ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(axis(Kind::Powers, &[1.0, 64.0]).ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(axis(Kind::Powers, &[1.0, 10_000.0]).ticks(), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn what_differs_by_much_is_drawn_by_powers() {
        let suiting = |values: &[f64]| Kind::suiting(values.iter().copied());
        assert_eq!(
            (suiting(&[1.0, 10.0]), suiting(&[0.0, 10.0]), suiting(&[1.0, 100.0])),
            (Kind::Even, Kind::Even, Kind::Powers)
        );
    }
}
