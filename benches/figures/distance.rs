//! Lock and release by one task where the masters are half a millisecond away.

use std::time::Duration;

use crate::bed::Bed;
use crate::comparison::{self, Figure};
use crate::proxy;
use crate::stats::percentile;
use crate::table::time;
use crate::target::Target::AtMost;
use crate::turn::Turn;

/// A round trip takes twice as long, about what it takes between two data centres of one region.
const EACH_WAY: Duration = Duration::from_micros(250);

/// In a turn; that is some tenths of a second.
const CYCLES: u64 = 200;

pub(crate) fn print(bed: &Bed) {
    let far = bed.reached_at(&proxy::start(&bed.servers, EACH_WAY));
    let near = Turn::new(bed, &bed.floor, 1, 10 * CYCLES);
    let title = format!("distance: one task, five masters, each way longer by {EACH_WAY:?}");
    // Not the CPU, which would include that of the proxies.
    let figures = [
        Figure::LOCK_P50.on_thread(AtMost(1.10)),
        Figure::LOCK_P99,
        Figure::RELEASE_P50.on_thread(AtMost(1.10)),
        Figure::RELEASE_P99,
        Figure::CYCLES,
    ];
    comparison::print(&far, &title, 1, CYCLES, &figures);
    let near = time(percentile(&near.run.locks, 50));
    println!("\nlock p50 of the floor without this delay: {near}");
}
