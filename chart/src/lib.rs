//! Pictures of measurements, as SVG: a start as a [`waterfall`], and [`bars`] side by side.
//!
//! What it looks like is decided here, so that all pictures look alike. No library draws: of SVG four elements are used.

pub mod bars;
mod svg;
pub mod waterfall;

/// Colours that can be told apart by everyone, also in grey.
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a"];

/// A colour for the thing of this number.
fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// The distance between the marks of an axis up to `end`: 1, 2 or 5 times a power of ten, so that there are 4 to 10 of them.
fn tick(end: f64) -> f64 {
    let rough = (end / 8.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power)
}

/// The marks of an axis from 0 to `end`, with what is written at each.
fn ticks(end: f64) -> Vec<(f64, String)> {
    let step = tick(end);
    let decimals = usize::from(step < 1.0) + usize::from(step < 0.1);
    (0..=10)
        .map(|number| f64::from(number) * step)
        .take_while(|at| *at <= end * 1.0001)
        .map(|at| (at, format!("{at:.decimals$}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_a_few_round_marks() {
        let marks = |end| ticks(end).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(marks(1000.0), ["0", "200", "400", "600", "800", "1000"]);
        assert_eq!(marks(1.1), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        for end in [0.0, 1e-9, 0.3, 7.0, 99.0, 5e5, f64::MAX] {
            assert!((1..=11).contains(&ticks(end).len()), "{end}");
        }
    }
}
