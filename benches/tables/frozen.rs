//! One master of five hangs: it keeps its connections and answers nothing.

use tokio_redlock::Redlock;

use crate::harness::{Harness, Run, Subject};
use crate::stats::{Pairs, percentile};
use crate::table::{Table, ratio, time};
use crate::target::{Judge, Target};

/// In a sample of one task: about a second, which is longer than it takes to notice that a master hangs.
const CYCLES: u64 = 3_000;

const ROUNDS: u32 = 7;

struct Metric {
    name: &'static str,
    of: fn(&Run) -> f64,
    /// What frozen / healthy should be for the crate.
    target: Option<Target>,
}

const METRICS: [Metric; 4] = [
    Metric {
        name: "lock p50",
        of: |run| percentile(&run.locks, 50),
        target: Some(Target::AtMost(1.15)),
    },
    Metric {
        name: "lock p99",
        of: |run| percentile(&run.locks, 99),
        target: None,
    },
    Metric {
        name: "release p50",
        of: |run| percentile(&run.releases, 50),
        target: Some(Target::AtMost(1.15)),
    },
    Metric {
        name: "release p99",
        of: |run| percentile(&run.releases, 99),
        target: None,
    },
];

pub(crate) fn print(harness: &Harness, judge: &mut Judge) {
    let header = ["", "", "frozen", "healthy", "frozen/healthy", "target"];
    let mut table = Table::new("frozen: one task, one of five masters frozen", header);
    let ours = measure(harness, judge, &harness.dlm, &mut table);
    let theirs = measure(harness, judge, &harness.floor, &mut table);
    table.print(&format!(
        "medians of {ROUNDS} rounds; keys left: crate {ours}, floor {theirs}"
    ));
}

/// Returns how many keys were left.
fn measure<R: Subject>(
    harness: &Harness,
    judge: &mut Judge,
    subject: &R,
    table: &mut Table<6>,
) -> u64 {
    let mut all_pairs = METRICS.map(|_| Pairs::default());
    let mut keys_left = 0;
    for _ in 0..ROUNDS {
        let healthy = harness.run(subject, 1, CYCLES);
        harness.settle(subject);
        harness.servers[0].freeze();
        let frozen = harness.run(subject, 1, CYCLES);
        harness.servers[0].thaw();
        harness.settle(subject);
        keys_left += harness.clear();
        for (metric, pairs) in METRICS.iter().zip(&mut all_pairs) {
            pairs.push((metric.of)(&frozen), (metric.of)(&healthy));
        }
    }
    for (metric, pairs) in METRICS.iter().zip(all_pairs) {
        let target = metric.target.filter(|_| R::NAME == Redlock::NAME);
        table.row([
            R::NAME.to_owned(),
            metric.name.to_owned(),
            time(pairs.one()),
            time(pairs.other()),
            ratio(pairs.ratio()),
            judge.judge(target, pairs.ratio()),
        ]);
    }
    keys_left
}
