//! What `drop(guard)` costs the task that drops: it hands the release to the engine, and spawns a small task that keeps
//! the runtime from ending before the delete is written.

use std::time::Instant;

use crate::harness::{Harness, Subject, fresh};
use crate::stats::percentile;
use crate::table::{Table, time};

const DROPS: u32 = 5_000;

pub(crate) fn print(harness: &Harness) {
    let dlm = harness.dlm.clone();
    let dropping = harness.runtime.spawn(async move {
        let mut times = Vec::new();
        for _ in 0..DROPS {
            let guard = Subject::lock(&dlm, &fresh()).await.expect("granted");
            let start = Instant::now();
            drop(guard);
            times.push(start.elapsed());
        }
        times
    });
    let times = harness.runtime.block_on(dropping).expect("no task panics");
    harness.settle(&harness.dlm);
    let mut table = Table::new("drop: in a task, five masters", ["p50", "p99"]);
    table.row([50, 99].map(|percent| time(percentile(&times, percent))));
    table.print(&format!("{DROPS} drops; keys left: {}", harness.clear()));
}
