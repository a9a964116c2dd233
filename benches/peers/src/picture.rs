//! Bars, as SVG: one panel per metric, one bar per subject, readable on light and on dark.

use std::fmt::{self, Display, Formatter};

const WIDTH: u32 = 820;
const PANEL: u32 = WIDTH / 2;
const BAR_LEFT: u32 = 122;
const BAR_WIDTH: f64 = 200.0;
const LINE: u32 = 22;
const MARGIN: u32 = 12;

/// `N` is how many subjects there are; the first is ours.
pub(crate) struct Picture<const N: usize> {
    names: [&'static str; N],
    panels: Vec<Panel<N>>,
}

struct Panel<const N: usize> {
    title: String,
    hint: &'static str,
    bars: [Bar; N],
}

struct Bar {
    /// Its share of the longest.
    share: f64,
    label: String,
}

impl<const N: usize> Picture<N> {
    pub(crate) const fn new(names: [&'static str; N]) -> Self {
        let panels = Vec::new();
        Self { names, panels }
    }

    /// Adds a panel of what should be large.
    pub(crate) fn more(&mut self, title: &str, values: [f64; N], show: impl Fn(f64) -> String) {
        self.panel(title, "more is better", values, show);
    }

    /// Adds a panel of what should be small.
    pub(crate) fn less(&mut self, title: &str, values: [f64; N], show: impl Fn(f64) -> String) {
        self.panel(title, "less is better", values, show);
    }

    fn panel(
        &mut self,
        title: &str,
        hint: &'static str,
        values: [f64; N],
        show: impl Fn(f64) -> String,
    ) {
        // Neither what is not a number nor nothing but zeros makes a bar.
        let longest = values.into_iter().fold(f64::MIN_POSITIVE, f64::max);
        let bars = values.map(|value| Bar {
            share: (value / longest).max(0.0),
            label: show(value),
        });
        let title = title.to_owned();
        self.panels.push(Panel { title, hint, bars });
    }
}

impl<const N: usize> Display for Picture<N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let lines = u32::try_from(N).expect("a few") + 2;
        let rows = u32::try_from(self.panels.len().div_ceil(2)).expect("a few");
        let height = rows * lines * LINE + MARGIN;
        writeln!(
            f,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #1f2328 }}
.title {{ font-weight: 600 }}
.hint {{ font-weight: normal; fill-opacity: 0.7 }}
.name {{ text-anchor: end }}
rect {{ fill: #8c959f }}
.ours {{ fill: #0969da }}
@media (prefers-color-scheme: dark) {{
  text {{ fill: #e6edf3 }}
  rect {{ fill: #7d8590 }}
  .ours {{ fill: #4493f8 }}
}}
</style>"##
        )?;
        for (place, panel) in (0..).zip(&self.panels) {
            let (x, y) = (place % 2 * PANEL, place / 2 * lines * LINE);
            writeln!(f, r#"<g transform="translate({x} {y})">"#)?;
            panel.draw(f, self.names)?;
            writeln!(f, "</g>")?;
        }
        writeln!(f, "</svg>")
    }
}

impl<const N: usize> Panel<N> {
    fn draw(&self, f: &mut Formatter<'_>, names: [&str; N]) -> fmt::Result {
        let Self { title, hint, bars } = self;
        writeln!(
            f,
            r#"<text class="title" x="{MARGIN}" y="{LINE}">{title}<tspan class="hint" dx="6">{hint}</tspan></text>"#
        )?;
        for (place, (name, bar)) in (0..).zip(names.into_iter().zip(bars)) {
            let top = (place + 1) * LINE + 8;
            let base = top + 13;
            let ours = if place == 0 { r#" class="ours""# } else { "" };
            // The shortest is a line to begin at.
            let width = (bar.share * BAR_WIDTH).max(1.0);
            let name_right = BAR_LEFT - 6;
            let label_left = f64::from(BAR_LEFT) + width + 6.0;
            let label = &bar.label;
            writeln!(
                f,
                r#"<text class="name" x="{name_right}" y="{base}">{name}</text><rect{ours} x="{BAR_LEFT}" y="{top}" width="{width:.1}" height="16"/><text x="{label_left:.1}" y="{base}">{label}</text>"#
            )?;
        }
        Ok(())
    }
}
