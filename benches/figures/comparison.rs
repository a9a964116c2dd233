//! The crate on the thread `redlock`, the crate on the runtime of its callers, and the floor, which take turns.

use crate::bed::Bed;
use crate::stats::{Duel, percentile};
use crate::table::{Table, per_second, ratio, time};
use crate::target::{Target, judge};
use crate::turn::Turn;

const ROUNDS: usize = 21;

pub(crate) struct Figure {
    name: &'static str,
    of: fn(&Turn) -> f64,
    show: fn(f64) -> String,
    /// What crate / floor should be with the connections of the crate on the thread `redlock`, and on the current runtime.
    on_thread: Option<Target>,
    on_current: Option<Target>,
}

impl Figure {
    pub(crate) const LOCK_P50: Self =
        Self::new("lock p50", |turn| percentile(&turn.run.locks, 50), time);
    pub(crate) const LOCK_P99: Self =
        Self::new("lock p99", |turn| percentile(&turn.run.locks, 99), time);
    pub(crate) const RELEASE_P50: Self = Self::new(
        "release p50",
        |turn| percentile(&turn.run.releases, 50),
        time,
    );
    pub(crate) const RELEASE_P99: Self = Self::new(
        "release p99",
        |turn| percentile(&turn.run.releases, 99),
        time,
    );
    pub(crate) const CYCLES: Self = Self::new("cycles", Turn::per_second, per_second);
    pub(crate) const CPU: Self = Self::new("CPU per cycle", |turn| turn.cpu, time);
    pub(crate) const COMMANDS: Self = Self::new(
        "commands per cycle",
        |turn| turn.commands,
        |commands| format!("{commands:.1}"),
    );

    const fn new(name: &'static str, of: fn(&Turn) -> f64, show: fn(f64) -> String) -> Self {
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

/// Prints a table. In each turn so many tasks lock and release a fresh resource so many times each.
pub(crate) fn print(bed: &Bed, title: &str, tasks: u32, each: u64, figures: &[Figure]) {
    let turn = |side| match side {
        0 => Turn::new(bed, &bed.dlm, tasks, each),
        1 => Turn::new(bed, &bed.dlm_here, tasks, each),
        _ => Turn::new(bed, &bed.floor, tasks, each),
    };
    let mut duels: Vec<_> = figures
        .iter()
        .map(|_| [(); 2].map(|()| Duel::default()))
        .collect();
    let (mut keys_left, mut failed) = ([0; 3], [0; 3]);
    // The first round warms up.
    for round in 0..=ROUNDS {
        let mut turns = order(round).map(|side| (side, turn(side)));
        turns.sort_by_key(|(side, _)| *side);
        for (side, turn) in &turns {
            keys_left[*side] += turn.keys_left;
            failed[*side] += turn.failed;
        }
        if round > 0 {
            for (figure, [on_thread, on_current]) in figures.iter().zip(&mut duels) {
                let [thread, current, floor] = turns.each_ref().map(|(_, turn)| (figure.of)(turn));
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
    for (figure, [on_thread, on_current]) in figures.iter().zip(duels) {
        table.row([
            figure.name.to_owned(),
            (figure.show)(on_thread.one()),
            (figure.show)(on_current.one()),
            (figure.show)(on_thread.other()),
            ratio(on_thread.ratio()),
            judge(figure.on_thread, on_thread.ratio()),
            ratio(on_current.ratio()),
            judge(figure.on_current, on_current.ratio()),
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
