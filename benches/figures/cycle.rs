//! Lock and release of a fresh resource, by one task and by many.

use crate::bed::{Bed, Rival, Run};
use crate::process::cpu_time;
use crate::stats::{Duel, percentile};
use crate::table::{Table, per_second, ratio, time};
use crate::target::{Target, judge};

/// Tasks, and cycles of each in a turn; that is some tenths of a second.
const CROWDS: [(u32, u64); 3] = [(1, 1_000), (64, 64), (1_000, 6)];

const ROUNDS: u32 = 21;

struct Turn {
    run: Run,
    /// Processor time of this process, in seconds per cycle.
    cpu: f64,
    /// What all masters were sent, per cycle.
    commands: f64,
    keys_left: u64,
    failed: u64,
}

struct Figure {
    name: &'static str,
    of: fn(&Turn) -> f64,
    show: fn(f64) -> String,
    /// What crate / floor should be for so many tasks.
    target: fn(u32) -> Option<Target>,
}

const FIGURES: [Figure; 7] = [
    Figure {
        name: "lock p50",
        of: |turn| percentile(&turn.run.locks, 50),
        show: time,
        target: |_| Some(Target::AtMost(1.15)),
    },
    Figure {
        name: "lock p99",
        of: |turn| percentile(&turn.run.locks, 99),
        show: time,
        target: |_| None,
    },
    Figure {
        name: "release p50",
        of: |turn| percentile(&turn.run.releases, 50),
        show: time,
        target: |_| Some(Target::AtMost(1.15)),
    },
    Figure {
        name: "release p99",
        of: |turn| percentile(&turn.run.releases, 99),
        show: time,
        target: |_| None,
    },
    Figure {
        name: "cycles",
        of: |turn| count(&turn.run) / turn.run.elapsed.as_secs_f64(),
        show: per_second,
        target: |tasks| (tasks == 64).then_some(Target::AtLeast(0.85)),
    },
    Figure {
        name: "CPU per cycle",
        of: |turn| turn.cpu,
        show: time,
        target: |_| Some(Target::AtMost(1.3)),
    },
    Figure {
        name: "commands per cycle",
        of: |turn| turn.commands,
        show: |commands| format!("{commands:.1}"),
        target: |_| None,
    },
];

pub(crate) fn print(bed: &Bed) {
    for (tasks, each) in CROWDS {
        print_crowd(bed, tasks, each);
    }
}

fn print_crowd(bed: &Bed, tasks: u32, each: u64) {
    let mut duels = FIGURES.map(|_| Duel::default());
    let (mut keys_left, mut failed) = ([0, 0], [0, 0]);
    // The first round warms up.
    for round in 0..=ROUNDS {
        let ours = || turn(bed, &bed.dlm, tasks, each);
        let theirs = || turn(bed, &bed.floor, tasks, each);
        let turns = if round % 2 == 0 {
            [ours(), theirs()]
        } else {
            let theirs = theirs();
            [ours(), theirs]
        };
        for (side, turn) in turns.iter().enumerate() {
            keys_left[side] += turn.keys_left;
            failed[side] += turn.failed;
        }
        if round > 0 {
            for (figure, duel) in FIGURES.iter().zip(&mut duels) {
                let [ours, theirs] = turns.each_ref().map(figure.of);
                duel.push(ours, theirs);
            }
        }
    }
    let title = format!("cycle: lock and release, five masters, tasks: {tasks}");
    let mut table = Table::new(title, ["", "crate", "floor", "crate/floor", "target"]);
    for (figure, duel) in FIGURES.iter().zip(duels) {
        table.row([
            figure.name.to_owned(),
            (figure.show)(duel.one()),
            (figure.show)(duel.other()),
            ratio(duel.ratio()),
            judge((figure.target)(tasks), duel.ratio()),
        ]);
    }
    table.print(&format!(
        "medians of {ROUNDS} rounds; keys left: crate {}, floor {}; failed: crate {}, floor {}",
        keys_left[0], keys_left[1], failed[0], failed[1]
    ));
}

fn turn(bed: &Bed, rival: &impl Rival, tasks: u32, each: u64) -> Turn {
    let commands = bed.commands();
    let before = cpu_time();
    let run = bed.run(rival, tasks, each);
    // What goes on in the background counts as well.
    bed.settle(rival);
    let cpu = cpu_time() - before;
    let commands = u32::try_from(bed.commands() - commands).expect("far fewer");
    Turn {
        cpu: cpu.as_secs_f64() / count(&run),
        commands: f64::from(commands) / count(&run),
        keys_left: bed.clear(),
        failed: u64::from(tasks) * each - u64::try_from(run.releases.len()).expect("a count"),
        run,
    }
}

fn count(run: &Run) -> f64 {
    f64::from(u32::try_from(run.locks.len()).expect("far fewer cycles"))
}
