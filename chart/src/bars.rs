//! Horizontal bars in groups, each made of one part or several, for comparing.

use crate::{
    colour,
    svg::{Anchor, Svg},
    ticks,
};

/// A picture of bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars<'a> {
    /// What was measured.
    pub title: &'a str,
    /// Of all values.
    pub unit: &'a str,
    /// The names of the parts, each of which has a colour.
    pub parts: &'a [&'a str],
    /// The groups, from top to bottom.
    pub groups: Vec<Group>,
}

/// Bars that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What they have in common; may be empty.
    pub name: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// What it stands for.
    pub name: String,
    /// The numbers of its parts in [`Bars::parts`], and how long each is.
    pub values: Vec<(usize, f64)>,
    /// Between which values half of the measurements were.
    pub spread: Option<[f64; 2]>,
    /// What it should not exceed.
    pub limit: Option<f64>,
}

impl Bar {
    fn length(&self) -> f64 {
        self.values.iter().map(|(_, value)| value).sum()
    }
}

/// Draws them.
#[must_use]
pub fn draw(picture: &Bars<'_>) -> String {
    const NAMES: f64 = 190.0;
    const PLOT: f64 = 600.0;
    const ROW: f64 = 24.0;
    const HEAD: f64 = 22.0;
    const INK: &str = "#222222";
    let legend = picture.parts.len() > 1;
    let top = if legend { 70.0 } else { 46.0 };
    let height: f64 = picture
        .groups
        .iter()
        .map(|group| head(group, HEAD) + ROW * group.bars.len() as f64 + 8.0)
        .sum();
    let bottom = top + height;
    let end = picture
        .groups
        .iter()
        .flat_map(|group| &group.bars)
        .flat_map(|bar| {
            [
                bar.length(),
                bar.spread.map_or(0.0, |[_, high]| high),
                bar.limit.unwrap_or(0.0),
            ]
        })
        .fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| NAMES + value / end * PLOT;

    let mut svg = Svg::new(NAMES + PLOT + 110.0, bottom + 30.0);
    svg.text(16.0, 26.0, Anchor::Start, 16, picture.title);
    if legend {
        for (number, part) in picture.parts.iter().enumerate() {
            let x = NAMES + 150.0 * number as f64;
            svg.rectangle(x, 42.0, 12.0, 12.0, colour(number), part);
            svg.text(x + 18.0, 52.0, Anchor::Start, 12, part);
        }
    }
    for (value, text) in ticks(end) {
        svg.line((at(value), top), (at(value), bottom), "#dddddd");
        svg.text(at(value), bottom + 18.0, Anchor::Middle, 11, &text);
    }
    svg.text(
        NAMES + PLOT + 40.0,
        bottom + 18.0,
        Anchor::Start,
        11,
        picture.unit,
    );
    let mut y = top;
    for group in &picture.groups {
        if !group.name.is_empty() {
            svg.text(16.0, y + 16.0, Anchor::Start, 13, &group.name);
        }
        y += head(group, HEAD);
        for bar in &group.bars {
            svg.text(NAMES - 10.0, y + 15.0, Anchor::End, 12, &bar.name);
            let mut from = 0.0;
            for (part, value) in &bar.values {
                let name = picture.parts.get(*part).copied().unwrap_or_default();
                let tip = format!("{name}: {value:.1} {}", picture.unit);
                svg.rectangle(
                    at(from),
                    y + 3.0,
                    at(from + value) - at(from),
                    ROW - 6.0,
                    colour(*part),
                    &tip,
                );
                from += value;
            }
            let middle = y + ROW / 2.0;
            if let Some([low, high]) = bar.spread {
                svg.line((at(low), middle), (at(high), middle), INK);
                for end in [low, high] {
                    svg.line((at(end), middle - 4.0), (at(end), middle + 4.0), INK);
                }
            }
            if let Some(limit) = bar.limit {
                svg.line((at(limit), y + 1.0), (at(limit), y + ROW - 1.0), "#d00000");
            }
            let right = from.max(bar.spread.map_or(0.0, |[_, high]| high));
            svg.text(
                at(right) + 6.0,
                y + 15.0,
                Anchor::Start,
                11,
                &figure(bar.length()),
            );
            y += ROW;
        }
        y += 8.0;
    }
    svg.finish()
}

fn head(group: &Group, height: f64) -> f64 {
    if group.name.is_empty() { 0.0 } else { height }
}

/// A value with three digits, or all of those before the point.
fn figure(value: f64) -> String {
    match value {
        small if small < 10.0 => format!("{small:.2}"),
        medium if medium < 100.0 => format!("{medium:.1}"),
        large => format!("{large:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_its_whole_value_its_parts_its_spread_and_its_limit() {
        let picture = draw(&Bars {
            title: "memory of a pod",
            unit: "MiB",
            parts: &["shim", "guest"],
            groups: vec![Group {
                name: "restored".to_owned(),
                bars: vec![Bar {
                    name: "sealock".to_owned(),
                    values: vec![(0, 2.0), (1, 4.5)],
                    spread: Some([6.0, 7.0]),
                    limit: Some(12.0),
                }],
            }],
        });
        for text in [
            ">memory of a pod<",
            ">restored<",
            ">sealock<",
            ">6.50<",
            "guest: 4.5 MiB",
            "#d00000",
        ] {
            assert!(picture.contains(text), "{text}: {picture}");
        }
        assert_eq!(figure(1.2345), "1.23");
        assert_eq!(figure(12.345), "12.3");
        assert_eq!(figure(1234.5), "1234");
    }
}
