//! Aligned columns.

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
        println!("\n{}\n", self.title);
        let width = |column: usize| self.rows.iter().map(move |row| row[column].chars().count());
        let widths: [usize; N] = std::array::from_fn(|column| width(column).max().unwrap_or(0));
        for row in &self.rows {
            let cells = row.iter().zip(widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:>width$}"))
                .collect();
            println!("  {}", cells.join("  "));
        }
        println!("\n  {note}");
    }
}

/// Seconds as a time with a unit.
pub(crate) fn time(seconds: f64) -> String {
    format!("{:.1?}", Duration::from_secs_f64(seconds))
}

pub(crate) fn per_second(rate: f64) -> String {
    format!("{rate:.0}/s")
}

pub(crate) fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}")
}
