//! The crate on the thread `redlock`, the crate on the runtime of its callers, and the floor, which take turns.

use crate::harness::Harness;
use crate::sample::Sample;
use crate::stats::{Pairs, percentile};
use crate::table::{Table, per_second, ratio, time};
use crate::target::{Judge, Target};

const ROUNDS: usize = 21;

pub(crate) struct Metric {
    name: &'static str,
    of: fn(&Sample) -> f64,
    show: fn(f64) -> String,
    /// What crate / floor should be with the connections of the crate on the thread `redlock`, and on the current runtime.
    on_thread: Option<Target>,
    on_current: Option<Target>,
}

impl Metric {
    pub(crate) const LOCK_P50: Self =
        Self::new("lock p50", |sample| percentile(&sample.run.locks, 50), time);
    pub(crate) const LOCK_P99: Self =
        Self::new("lock p99", |sample| percentile(&sample.run.locks, 99), time);
    pub(crate) const RELEASE_P50: Self = Self::new(
        "release p50",
        |sample| percentile(&sample.run.releases, 50),
        time,
    );
    pub(crate) const RELEASE_P99: Self = Self::new(
        "release p99",
        |sample| percentile(&sample.run.releases, 99),
        time,
    );
    pub(crate) const CYCLES: Self = Self::new("cycles", Sample::per_second, per_second);
    pub(crate) const CPU: Self = Self::new("CPU per cycle", |sample| sample.cpu, time);
    pub(crate) const COMMANDS: Self = Self::new(
        "commands per cycle",
        |sample| sample.commands,
        |commands| format!("{commands:.1}"),
    );

    const fn new(name: &'static str, of: fn(&Sample) -> f64, show: fn(f64) -> String) -> Self {
        Self {
            name,
            of,
            show,
            on_thread: None,
            on_current: None,
        }
    }

    pub(crate) const fn on_thread(mut self, target: Target) -> Self {
        self.on_thread = Some(target);
        self
    }

    pub(crate) const fn on_current(mut self, target: Target) -> Self {
        self.on_current = Some(target);
        self
    }
}

/// Prints a table. In each sample so many tasks lock and release a fresh resource so many times each.
pub(crate) fn print(
    harness: &Harness,
    judge: &mut Judge,
    title: &str,
    tasks: u32,
    each: u64,
    metrics: &[Metric],
) {
    let sample = |side| match side {
        0 => Sample::new(harness, &harness.dlm, tasks, each),
        1 => Sample::new(harness, &harness.dlm_here, tasks, each),
        _ => Sample::new(harness, &harness.floor, tasks, each),
    };
    let mut all_pairs: Vec<_> = metrics
        .iter()
        .map(|_| [(); 2].map(|()| Pairs::default()))
        .collect();
    let (mut keys_left, mut failed) = ([0; 3], [0; 3]);
    // The first round warms up.
    for round in 0..=ROUNDS {
        let mut samples = order(round).map(|side| (side, sample(side)));
        samples.sort_by_key(|(side, _)| *side);
        for (side, sample) in &samples {
            keys_left[*side] += sample.keys_left;
            failed[*side] += sample.failed;
        }
        if round > 0 {
            for (metric, [on_thread, on_current]) in metrics.iter().zip(&mut all_pairs) {
                let [thread, current, floor] =
                    samples.each_ref().map(|(_, sample)| (metric.of)(sample));
                on_thread.push(thread, floor);
                on_current.push(current, floor);
            }
        }
    }
    let header = [
        "",
        "thread",
        "current",
        "floor",
        "thread/floor",
        "target",
        "current/floor",
        "target",
    ];
    let mut table = Table::new(title, header);
    for (metric, [on_thread, on_current]) in metrics.iter().zip(all_pairs) {
        table.row([
            metric.name.to_owned(),
            (metric.show)(on_thread.one()),
            (metric.show)(on_current.one()),
            (metric.show)(on_thread.other()),
            ratio(on_thread.ratio()),
            judge.judge(metric.on_thread, on_thread.ratio()),
            ratio(on_current.ratio()),
            judge.judge(metric.on_current, on_current.ratio()),
        ]);
    }
    let of_each = |[thread, current, floor]: [u64; 3]| {
        format!("thread {thread}, current {current}, floor {floor}")
    };
    table.print(&format!(
        "thread: the crate by default, on the thread `redlock`; current: the crate with `.runtime(current)`, on the \
         runtime of the callers, where the floor is; medians of {ROUNDS} rounds; keys left: {}; failed: {}",
        of_each(keys_left),
        of_each(failed)
    ));
}

/// In which order the sides take their turns: all six orders in six rounds.
fn order(round: usize) -> [usize; 3] {
    let mut order = [0, 1, 2];
    order.rotate_left(round % 3);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}
