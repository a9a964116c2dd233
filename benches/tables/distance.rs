//! Lock and release by one task where the masters are half a millisecond away.

use std::time::Duration;

use crate::comparison::{self, Metric};
use crate::harness::Harness;
use crate::proxy;
use crate::sample::Sample;
use crate::stats::percentile;
use crate::table::time;
use crate::target::Judge;
use crate::target::Target::AtMost;

/// A round trip takes twice as long, about what it takes between two data centres of one region.
const EACH_WAY: Duration = Duration::from_micros(250);

/// In a sample; that is some tenths of a second.
const CYCLES: u64 = 200;

pub(crate) fn print(harness: &Harness, judge: &mut Judge) {
    let far = harness.reached_at(&proxy::start(&harness.servers, EACH_WAY));
    let near = Sample::new(harness, &harness.floor, 1, 10 * CYCLES);
    let title = format!("distance: one task, five masters, each way longer by {EACH_WAY:?}");
    // Not the CPU, which would include that of the proxies.
    let metrics = [
        Metric::LOCK_P50.on_thread(AtMost(1.10)),
        Metric::LOCK_P99,
        Metric::RELEASE_P50.on_thread(AtMost(1.10)),
        Metric::RELEASE_P99,
        Metric::CYCLES,
    ];
    comparison::print(&far, judge, &title, 1, CYCLES, &metrics);
    let near = time(percentile(&near.run.locks, 50));
    println!("\nlock p50 of the floor without this delay: {near}");
}
