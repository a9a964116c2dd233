//! Markdown that is readable as it is, too: aligned columns.

use std::time::Duration;

pub(crate) struct Table<const N: usize> {
    title: String,
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(title: impl Into<String>, header: [&str; N]) -> Self {
        Self {
            title: title.into(),
            rows: vec![header.map(str::to_owned)],
        }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Prints it, with a line below.
    pub(crate) fn print(self, note: &str) {
        println!("\n### {}\n", self.title);
        let width = |column: usize| self.rows.iter().map(move |row| row[column].chars().count());
        let widths: [usize; N] = std::array::from_fn(|column| width(column).max().unwrap_or(0));
        // A colon at the end aligns to the right, and takes at least one dash before it.
        let rule = widths.map(|width| format!("{}:", "-".repeat(width.saturating_sub(1).max(1))));
        let (header, rows) = self.rows.split_first().expect("a header");
        for row in [header, &rule].into_iter().chain(rows) {
            let cells = row.iter().zip(widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:>width$}", width = width.max(2)))
                .collect();
            println!("| {} |", cells.join(" | "));
        }
        println!("\n{note}");
    }
}

/// Seconds as a time with a unit; a dash for none.
pub(crate) fn time(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or("-".to_owned(), |time| format!("{time:.1?}"))
}

pub(crate) fn per_second(rate: f64) -> String {
    format!("{rate:.0}/s")
}

pub(crate) fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}")
}
