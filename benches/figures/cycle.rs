//! Lock and release of a fresh resource, by one task and by many.

use crate::bed::Bed;
use crate::comparison::{self, Figure};
use crate::target::Target::{AtLeast, AtMost};

/// Tasks, and cycles of each in a turn; that is some tenths of a second.
const CROWDS: [(u32, u64); 3] = [(1, 1_000), (64, 64), (1_000, 6)];

pub(crate) fn print(bed: &Bed) {
    for (tasks, each) in CROWDS {
        let title = format!("cycle: lock and release, five masters, tasks: {tasks}");
        comparison::print(bed, &title, tasks, each, &figures(tasks));
    }
}

/// One task waits for each hop between threads. Many tasks share the hops, and there the rate is what counts.
fn figures(tasks: u32) -> [Figure; 7] {
    let latency = |figure: Figure| match tasks {
        1 => figure.on_thread(AtMost(1.35)).on_current(AtMost(1.10)),
        _ => figure,
    };
    let rate = |figure: Figure| match tasks {
        1 => figure,
        _ => figure.on_thread(AtLeast(1.0)),
    };
    [
        latency(Figure::LOCK_P50),
        Figure::LOCK_P99,
        latency(Figure::RELEASE_P50),
        Figure::RELEASE_P99,
        rate(Figure::CYCLES),
        Figure::CPU.on_thread(AtMost(1.2)),
        Figure::COMMANDS,
    ]
}
