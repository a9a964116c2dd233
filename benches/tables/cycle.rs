//! Lock and release of a fresh resource, by one task and by many.

use crate::comparison::{self, Metric};
use crate::harness::Harness;
use crate::target::Judge;
use crate::target::Target::{AtLeast, AtMost};

/// Tasks, and cycles of each in a sample; that is some tenths of a second.
const CROWDS: [(u32, u64); 3] = [(1, 1_000), (64, 64), (1_000, 6)];

pub(crate) fn print(harness: &Harness, judge: &mut Judge) {
    for (tasks, each) in CROWDS {
        let title = format!("cycle: lock and release, five masters, tasks: {tasks}");
        comparison::print(harness, judge, &title, tasks, each, &metrics(tasks));
    }
}

/// One task waits for each hop between threads. Many tasks share the hops, and there the rate is what counts.
fn metrics(tasks: u32) -> [Metric; 7] {
    let latency = |metric: Metric| match tasks {
        1 => metric.on_thread(AtMost(1.35)).on_current(AtMost(1.10)),
        _ => metric,
    };
    let rate = |metric: Metric| match tasks {
        1 => metric,
        _ => metric.on_thread(AtLeast(1.0)),
    };
    [
        latency(Metric::LOCK_P50),
        Metric::LOCK_P99,
        latency(Metric::RELEASE_P50),
        Metric::RELEASE_P99,
        rate(Metric::CYCLES),
        Metric::CPU.on_thread(AtMost(1.2)),
        Metric::COMMANDS,
    ]
}
