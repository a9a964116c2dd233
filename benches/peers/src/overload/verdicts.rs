//! Figures and their targets.

#[derive(Default)]
pub(crate) struct Verdicts {
    judged: usize,
    missed: Vec<String>,
}

impl Verdicts {
    /// Notes whether a figure is small enough, and returns it with its target, for a table.
    pub(crate) fn at_most(&mut self, what: &str, value: f64, most: f64) -> String {
        self.judge(what, value, value <= most, &format!("≤ {}", number(most)))
    }

    /// Notes whether a figure is less than a limit, and returns it with its target.
    pub(crate) fn below(&mut self, what: &str, value: f64, limit: f64) -> String {
        self.judge(what, value, value < limit, &format!("< {}", number(limit)))
    }

    /// Notes whether a figure is large enough, and returns it with its target.
    pub(crate) fn at_least(&mut self, what: &str, value: f64, least: f64) -> String {
        self.judge(what, value, value >= least, &format!("≥ {}", number(least)))
    }

    /// Notes a target as missed because nothing was measured.
    pub(crate) fn miss(&mut self, what: &str, reason: &str) {
        self.judged += 1;
        self.missed.push(format!("{what}: {reason}"));
    }

    /// What is not a number is missed: it could not be measured.
    fn judge(&mut self, what: &str, value: f64, is_met: bool, target: &str) -> String {
        self.judged += 1;
        let value = number(value);
        if !is_met {
            self.missed.push(format!("{what}: {value}, not {target}"));
        }
        let verdict = if is_met { "met" } else { "missed" };
        format!("{value} ({target} {verdict})")
    }

    pub(crate) fn has_missed(&self) -> bool {
        !self.missed.is_empty()
    }

    pub(crate) fn print(&self) {
        let met = self.judged - self.missed.len();
        println!("\n{met} of {} targets met", self.judged);
        for missed in &self.missed {
            println!("- missed: {missed}");
        }
    }
}

/// Without decimals where it has none.
fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
