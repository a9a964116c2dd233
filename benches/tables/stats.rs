//! Medians and percentiles.

use std::time::Duration;

/// One metric of two sides, in pairs of neighbouring samples.
#[derive(Default)]
pub(crate) struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    pub(crate) fn push(&mut self, one: f64, other: f64) {
        self.0.push((one, other));
    }

    pub(crate) fn one(&self) -> f64 {
        median(self.0.iter().map(|(one, _)| *one))
    }

    pub(crate) fn other(&self) -> f64 {
        median(self.0.iter().map(|(_, other)| *other))
    }

    /// The median of the ratios, not the ratio of the medians: what disturbs a round disturbs both samples of a pair.
    pub(crate) fn ratio(&self) -> f64 {
        median(self.0.iter().map(|(one, other)| one / other))
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The time within which so many percent are done, in seconds; not a number where nothing was.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> f64 {
    if times.is_empty() {
        return f64::NAN;
    }
    let mut times = times.to_vec();
    let place = (times.len() - 1) * percent / 100;
    times.select_nth_unstable(place).1.as_secs_f64()
}
