//! One master of five hangs: it keeps its connections and answers nothing.

use tokio_redlock::Redlock;

use crate::bed::{Bed, Rival, Run};
use crate::stats::{Duel, percentile};
use crate::table::{Table, ratio, time};
use crate::target::{Target, judge};

/// In a turn of one task: about a second, which is longer than it takes to notice that a master hangs.
const CYCLES: u64 = 3_000;

const ROUNDS: u32 = 7;

struct Figure {
    name: &'static str,
    of: fn(&Run) -> f64,
    /// What frozen / healthy should be for the crate.
    target: Option<Target>,
}

const FIGURES: [Figure; 4] = [
    Figure {
        name: "lock p50",
        of: |run| percentile(&run.locks, 50),
        target: Some(Target::AtMost(1.15)),
    },
    Figure {
        name: "lock p99",
        of: |run| percentile(&run.locks, 99),
        target: None,
    },
    Figure {
        name: "release p50",
        of: |run| percentile(&run.releases, 50),
        target: Some(Target::AtMost(1.15)),
    },
    Figure {
        name: "release p99",
        of: |run| percentile(&run.releases, 99),
        target: None,
    },
];

pub(crate) fn print(bed: &Bed) {
    let header = ["", "", "frozen", "healthy", "frozen/healthy", "target"];
    let mut table = Table::new("frozen: one task, one of five masters frozen", header);
    let ours = measure(bed, &bed.dlm, &mut table);
    let theirs = measure(bed, &bed.floor, &mut table);
    table.print(&format!(
        "medians of {ROUNDS} rounds; keys left: crate {ours}, floor {theirs}"
    ));
}

/// Returns how many keys were left.
fn measure<R: Rival>(bed: &Bed, rival: &R, table: &mut Table<6>) -> u64 {
    let mut duels = FIGURES.map(|_| Duel::default());
    let mut keys_left = 0;
    for _ in 0..ROUNDS {
        let healthy = bed.run(rival, 1, CYCLES);
        bed.settle(rival);
        bed.servers[0].freeze();
        let frozen = bed.run(rival, 1, CYCLES);
        bed.servers[0].thaw();
        bed.settle(rival);
        keys_left += bed.clear();
        for (figure, duel) in FIGURES.iter().zip(&mut duels) {
            duel.push((figure.of)(&frozen), (figure.of)(&healthy));
        }
    }
    for (figure, duel) in FIGURES.iter().zip(duels) {
        let target = figure.target.filter(|_| R::NAME == Redlock::NAME);
        table.row([
            R::NAME.to_owned(),
            figure.name.to_owned(),
            time(duel.one()),
            time(duel.other()),
            ratio(duel.ratio()),
            judge(target, duel.ratio()),
        ]);
    }
    keys_left
}
