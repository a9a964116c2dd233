//! Lock and release of a fresh resource, all masters answering.

use crate::bed::Bed;
use crate::contender::{Contender, places};
use crate::picture::Picture;
use crate::stats::{median, percentile};
use crate::table::{Table, per_second, time};
use crate::turn::Turn;

/// Tasks, and cycles of each in a turn; that is some tenths of a second.
const CROWDS: [(u32, u64); 3] = [(1, 600), (64, 64), (1_000, 4)];

const ROUNDS: usize = 11;

struct Figure {
    name: &'static str,
    of: fn(&Turn) -> f64,
    show: fn(f64) -> String,
}

const LOCK: Figure = Figure {
    name: "lock p50",
    of: |turn| percentile(&turn.run.locks, 50),
    show: time,
};

const CYCLES: Figure = Figure {
    name: "cycles",
    of: Turn::per_second,
    show: per_second,
};

const FIGURES: [Figure; 7] = [
    LOCK,
    Figure {
        name: "lock p99",
        of: |turn| percentile(&turn.run.locks, 99),
        show: time,
    },
    Figure {
        name: "release p50",
        of: |turn| percentile(&turn.run.releases, 50),
        show: time,
    },
    Figure {
        name: "release p99",
        of: |turn| percentile(&turn.run.releases, 99),
        show: time,
    },
    CYCLES,
    Figure {
        name: "CPU per cycle",
        of: |turn| turn.cpu,
        show: time,
    },
    Figure {
        name: "commands per cycle",
        of: |turn| turn.commands,
        show: |commands| format!("{commands:.1}"),
    },
];

pub(crate) fn print<const N: usize>(
    bed: &Bed,
    rivals: [&dyn Contender; N],
    picture: &mut Picture<N>,
) {
    for (tasks, each) in CROWDS {
        let turns = measure(bed, rivals, tasks, each);
        table(rivals, tasks, &turns);
        let medians = |figure: &Figure| turns.each_ref().map(|turns| of(figure, turns));
        match tasks {
            1 => picture.less("Lock p50", medians(&LOCK), LOCK.show),
            64 => picture.more("Cycles, 64 tasks", medians(&CYCLES), CYCLES.show),
            _ => {}
        }
    }
}

fn measure<const N: usize>(
    bed: &Bed,
    rivals: [&dyn Contender; N],
    tasks: u32,
    each: u64,
) -> [Vec<Turn>; N] {
    let mut turns = [const { Vec::new() }; N];
    // The first round warms up.
    for round in 0..=ROUNDS {
        for place in places::<N>(round) {
            let turn = rivals[place].turn(bed, tasks, each);
            if round > 0 {
                turns[place].push(turn);
            }
        }
    }
    turns
}

fn table<const N: usize>(rivals: [&dyn Contender; N], tasks: u32, turns: &[Vec<Turn>; N]) {
    let title = format!("Lock and release, five masters, tasks: {tasks}");
    let [a, b, c, d, e, f, g] = FIGURES.map(|figure| figure.name);
    let header = ["", a, b, c, d, e, f, g, "keys left", "failed"];
    let mut table = Table::new(title, header);
    for (rival, turns) in rivals.into_iter().zip(turns) {
        let [a, b, c, d, e, f, g] = FIGURES.map(|figure| (figure.show)(of(&figure, turns)));
        let keys_left: u64 = turns.iter().map(|turn| turn.keys_left).sum();
        let failed: u64 = turns.iter().map(|turn| turn.failed).sum();
        let (name, keys_left, failed) = (rival.name(), keys_left.to_string(), failed.to_string());
        table.row([name.to_owned(), a, b, c, d, e, f, g, keys_left, failed]);
    }
    let cycles: usize = turns[0].iter().map(|turn| turn.run.locks.len()).sum();
    table.print(&format!(
        "Medians of {ROUNDS} rounds, {cycles} cycles in all. CPU is that of the client. Commands: SET, EVAL and EVALSHA; \
         10 ask each master to lock and to release. Keys left: on all masters, though every lock was released."
    ));
}

fn of(figure: &Figure, turns: &[Turn]) -> f64 {
    median(turns.iter().map(figure.of))
}
