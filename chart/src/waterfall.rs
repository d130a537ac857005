//! The steps of a start, from top to bottom in the order of their ends, each as long as it took.

use sealock_sandbox::timeline::steps::{Actor, Span};

use crate::{
    colour,
    svg::{Anchor, Svg},
    ticks,
};

/// Draws `spans`, each in the colour of its actor.
#[must_use]
pub fn draw(title: &str, spans: &[Span<'_>]) -> String {
    const NAMES: f64 = 190.0;
    const PLOT: f64 = 640.0;
    const ROW: f64 = 22.0;
    const TOP: f64 = 78.0;
    let rows = spans.len() as f64;
    let bottom = TOP + rows * ROW;
    let end = spans.iter().map(|span| span.to).fold(0.001, f64::max);
    let at = |ms: f64| NAMES + ms / end * PLOT;

    let mut svg = Svg::new(NAMES + PLOT + 90.0, bottom + 34.0);
    svg.text(16.0, 26.0, Anchor::Start, 16, title);
    for actor in Actor::ALL {
        let x = NAMES + 150.0 * actor.number() as f64;
        svg.rectangle(x, 42.0, 12.0, 12.0, colour(actor.number()), actor.name());
        svg.text(x + 18.0, 52.0, Anchor::Start, 12, actor.name());
    }
    for (ms, text) in ticks(end) {
        svg.line((at(ms), TOP - 6.0), (at(ms), bottom), "#dddddd");
        svg.text(at(ms), bottom + 18.0, Anchor::Middle, 11, &text);
    }
    svg.text(NAMES + PLOT + 30.0, bottom + 18.0, Anchor::Start, 11, "ms");
    for (row, span) in spans.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let tip = format!("{:.1} to {:.1} ms: {}", span.from, span.to, span.what);
        svg.text(NAMES - 10.0, y + 14.0, Anchor::End, 12, span.step);
        // Even what took no time is to be seen.
        let width = (at(span.to) - at(span.from)).max(1.5);
        svg.rectangle(
            at(span.from),
            y + 4.0,
            width,
            ROW - 8.0,
            colour(span.actor.number()),
            &tip,
        );
        svg.text(
            at(span.from) + width + 5.0,
            y + 14.0,
            Anchor::Start,
            11,
            &format!("{:.1}", span.to - span.from),
        );
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_there_with_its_time() {
        let span = |step, actor, from, to| Span {
            step,
            actor,
            from,
            to,
            what: "something",
        };
        let picture = draw(
            "start of demo",
            &[
                span("spawned", Actor::Shim, 0.0, 12.5),
                span("hello", Actor::Guest, 12.5, 20.0),
            ],
        );
        for text in [
            "start of demo",
            ">shim<",
            ">spawned<",
            ">12.5<",
            "12.5 to 20.0 ms: something",
        ] {
            assert!(picture.contains(text), "{text}: {picture}");
        }
        assert!(draw("nothing", &[]).ends_with("</svg>\n"));
    }
}
