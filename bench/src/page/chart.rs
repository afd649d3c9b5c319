//! One plot as a figure with inline SVG; colours come from the page's style. Pure.

use std::fmt;

use super::{
    Text,
    scale::{Axis, Kind},
};
use crate::report::figure;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;

/// A plot of some curves.
pub(super) struct Chart {
    pub(super) title: String,
    /// What grows to the right.
    by: String,
    unit: String,
    across: Kind,
    pub(super) curves: Vec<Curve>,
}

pub(super) struct Curve {
    pub(super) name: String,
    pub(super) colour: usize,
    /// From left to right.
    pub(super) dots: Vec<Dot>,
}

pub(super) struct Dot {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Lowest and highest repeat.
    pub(super) bar: Option<(f64, f64)>,
}

impl Chart {
    pub(super) fn new(title: &str, by: &str, unit: &str, across: Kind) -> Self {
        Self { title: title.into(), by: by.into(), unit: unit.into(), across, curves: Vec::new() }
    }

    fn dots(&self) -> impl Iterator<Item = &Dot> {
        self.curves.iter().flat_map(|curve| &curve.dots)
    }

    fn heights(&self) -> impl Iterator<Item = f64> {
        self.dots().flat_map(|dot| [Some(dot.y), dot.bar.map(|bar| bar.0), dot.bar.map(|bar| bar.1)]).flatten()
    }

    /// The values that stand on the axis to the right: where curves have dots, if these are few.
    fn across(&self, axis: &Axis) -> Vec<f64> {
        let mut places: Vec<f64> = self.dots().map(|dot| dot.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        if self.across == Kind::Percentiles || places.len() > 8 { axis.ticks() } else { places }
    }
}

impl fmt::Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = Axis::new(self.across, self.dots().map(|dot| dot.x), WIDTH - LEFT - RIGHT);
        let y = Axis::new(Kind::suiting(self.heights()), self.heights(), HEIGHT - TOP - BOTTOM);
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        writeln!(f, "<figure><figcaption>{} <small>{}</small></figcaption>", Text(&self.title), Text(&self.unit))?;
        writeln!(f, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", Text(&self.title))?;
        for tick in y.ticks() {
            let at = floor - y.at(tick);
            writeln!(f, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>")?;
            let (place, at) = (LEFT - 6.0, at + 4.0);
            writeln!(f, "<text x=\"{place}\" y=\"{at:.1}\" text-anchor=\"end\">{}</text>", short(tick))?;
        }
        for tick in self.across(&x) {
            let at = LEFT + x.at(tick);
            writeln!(f, "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{floor}\"/>")?;
            let low = floor + 15.0;
            writeln!(f, "<text x=\"{at:.1}\" y=\"{low}\" text-anchor=\"middle\">{}</text>", short(tick))?;
        }
        let (middle, low) = (f64::midpoint(LEFT, right), HEIGHT - 4.0);
        writeln!(f, "<text x=\"{middle}\" y=\"{low}\" text-anchor=\"middle\">{}</text>", Text(&self.by))?;
        for curve in &self.curves {
            draw(f, curve, &x, &y, floor)?;
        }
        f.write_str("</svg>\n<div class=\"legend\">")?;
        for curve in &self.curves {
            write!(f, "<span><i class=\"key c{}\"></i>{}</span>", curve.colour, Text(&curve.name))?;
        }
        f.write_str("</div></figure>")
    }
}

fn draw(f: &mut fmt::Formatter<'_>, curve: &Curve, x: &Axis, y: &Axis, floor: f64) -> fmt::Result {
    writeln!(f, "<g class=\"c{}\">", curve.colour)?;
    let place = |dot: &Dot| (LEFT + x.at(dot.x), floor - y.at(dot.y));
    let line: Vec<String> = curve.dots.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    writeln!(f, "<polyline class=\"curve\" points=\"{}\"/>", line.join(" "))?;
    for dot in &curve.dots {
        let (across, up) = place(dot);
        if let Some((low, high)) = dot.bar {
            let (low, high) = (floor - y.at(low), floor - y.at(high));
            writeln!(
                f,
                "<line class=\"bar\" x1=\"{across:.1}\" y1=\"{low:.1}\" x2=\"{across:.1}\" y2=\"{high:.1}\"/>"
            )?;
        }
        writeln!(
            f,
            "<circle cx=\"{across:.1}\" cy=\"{up:.1}\" r=\"2.5\"><title>{}: {} at {}</title></circle>",
            Text(&curve.name),
            figure(dot.y),
            short(dot.x)
        )?;
    }
    f.write_str("</g>\n")
}

/// A value on an axis.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        size if size >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_an_axis_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.25, "0.25"), (99.9, "99.9"), (1000.0, "1000"), (12_500.0, "12.5k"), (2e6, "2M")]
        {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_chart_names_the_places_of_its_dots() {
        let mut chart = Chart::new("create", "clients", "ms", Kind::of_sizes());
        let dot = |x| Dot { x, y: 1.0, bar: None };
        chart.curves.push(Curve { name: "a".into(), colour: 0, dots: vec![dot(1.0), dot(16.0), dot(64.0)] });
        let text = chart.to_string();
        for place in ["1", "16", "64"] {
            assert!(text.contains(&format!("text-anchor=\"middle\">{place}</text>")), "{text}");
        }
        assert_eq!(text.matches("<circle").count(), 3);
    }
}
