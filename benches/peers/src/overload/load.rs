//! Many tasks that lock and release resources of their own all the time: the crate beside the floor and rslock.

use std::thread::sleep;
use std::time::Duration;

use crate::busy::BusyLoops;
use crate::child::{Child, Collapse};
use crate::library::Library;
use crate::masters::Masters;
use crate::options::Options;
use crate::order::{Order, float};
use crate::stats::median;
use crate::table::{Table, per_second, ratio, time};
use crate::usage::Usage;
use crate::verdicts::Verdicts;

/// By default, in seconds.
const TURN: u64 = 5;

/// A turn begins with as many seconds as all tasks need for a cycle at this rate, which do not count: about what the floor
/// needs until every task has been served once. What counts is at least as long.
const WARM_UP_RATE: u32 = 10_000;

/// Of the floor's rate.
const LEAST_RATE: f64 = 1.0;

pub(crate) struct Conditions {
    name: &'static str,
    tasks: &'static [u32],
    beside_busy_loops: bool,
    quarter_of_a_core: bool,
}

pub(crate) const TASKS: Conditions = Conditions {
    name: "tasks",
    tasks: &[1_000, 5_000, 20_000, 50_000],
    beside_busy_loops: false,
    quarter_of_a_core: false,
};

pub(crate) const BUSY: Conditions = Conditions {
    name: "busy",
    tasks: &[5_000, 20_000],
    beside_busy_loops: true,
    quarter_of_a_core: false,
};

pub(crate) const QUARTER: Conditions = Conditions {
    name: "quarter",
    tasks: &[5_000],
    beside_busy_loops: false,
    quarter_of_a_core: true,
};

/// One library under load, until it is the next one's turn.
#[derive(Clone, Copy)]
struct Turn {
    /// Cycles per second.
    rate: f64,
    /// Seconds of the client's processor time per cycle.
    cpu: f64,
    /// Share of one core that the client used.
    cores: f64,
    failures: u64,
    /// Tasks that did not end when they were stopped.
    stuck: u64,
    /// Releases that the library counts as such in the end.
    unconfirmed: u64,
    /// `None` if a master did not answer.
    keys_left: Option<u64>,
    /// Keys that nobody had deleted when their ttl was over.
    expired: Option<u64>,
    usage: Usage,
    /// By what means the client had a quarter of a core, if so.
    limited: Option<&'static str>,
}

/// The turns of a library with so many tasks.
struct Turns {
    library: Library,
    turns: Vec<Turn>,
    collapse: Option<Collapse>,
}

pub(crate) fn print(conditions: &Conditions, options: &Options, verdicts: &mut Verdicts) {
    let header = [
        "tasks",
        "",
        "cycles",
        "of the floor",
        "errors",
        "stuck",
        "unconfirmed",
        "keys left",
        "expired",
        "peak memory, MiB",
        "CPU per cycle",
        "cores",
        "threads",
        "descriptors",
        "turns",
    ];
    let window = options.seconds_or(TURN);
    let masters = Masters::start();
    let busy_loops = conditions.beside_busy_loops.then(BusyLoops::start);
    let mut table = Table::new(conditions.title(), header);
    let mut remarks = Vec::new();
    for &tasks in conditions.tasks {
        let all = measure(conditions, &masters, tasks, window, options.rounds);
        for turns in &all {
            table.row(turns.row(conditions.name, tasks, &all[0], verdicts));
            if let Some(collapse) = &turns.collapse {
                let library = turns.library.name();
                remarks.push(format!("{library}, {tasks} tasks: {collapse}"));
            }
        }
        let limited = all.iter().flat_map(|turns| &turns.turns);
        if let Some(means) = limited.filter_map(|turn| turn.limited).next() {
            remarks.push(format!("a quarter of a core {means}"));
        }
    }
    drop(busy_loops);
    table.print(&format!(
        "Medians of up to {} turns of {window:?} or more, after a warm-up; of errors, keys, memory, threads and descriptors the \
         most. After each turn all tasks are stopped and all releases waited for. Of the floor: the median of the ratios \
         within a round. Errors: locks and releases that failed, and tasks that were stuck when they were to stop. A \
         library with stuck tasks gets no more turns with as many tasks. Expired: keys that nobody had deleted when their \
         ttl was over. A shutdown may wait for that, so expired keys are no better than keys left.",
        options.rounds
    ));
    for remark in remarks {
        println!("- {remark}");
    }
}

impl Conditions {
    fn title(&self) -> String {
        let beside = if self.beside_busy_loops {
            ", beside two busy loops"
        } else if self.quarter_of_a_core {
            ", the client with a quarter of a core"
        } else {
            ""
        };
        format!("{}: lock and release, five masters{beside}", self.name)
    }
}

fn measure(
    conditions: &Conditions,
    masters: &Masters,
    tasks: u32,
    window: Duration,
    rounds: usize,
) -> [Turns; 3] {
    let mut all = Library::ALL.map(|library| Turns {
        library,
        turns: Vec::new(),
        collapse: None,
    });
    for round in 0..rounds {
        for place in 0..all.len() {
            let turns = &mut all[(place + round) % Library::ALL.len()];
            if turns.has_collapsed() {
                continue;
            }
            match turn(conditions, masters, turns.library, tasks, window) {
                Ok(turn) => turns.turns.push(turn),
                Err(collapse) => turns.collapse = Some(collapse),
            }
            masters.clear();
        }
    }
    all
}

fn turn(
    conditions: &Conditions,
    masters: &Masters,
    library: Library,
    tasks: u32,
    window: Duration,
) -> Result<Turn, Collapse> {
    let expired = masters.expired();
    let mut child = Child::start(library, &masters.urls())?;
    let limited = conditions.quarter_of_a_core.then(|| child.limit_cpu());
    let began = child.look()?;
    child.order(Order::Tasks(tasks))?;
    let warm_up = Duration::from_secs(1) * tasks / WARM_UP_RATE;
    sleep(warm_up);
    let before = child.look()?;
    sleep(window.max(warm_up));
    let after = child.look()?;
    let stopped = child.order(Order::Stop)?;
    let settled = child.order(Order::Settle)?;
    let keys_left = masters.keys();
    let expired = masters.expired().zip(expired).map(|(now, then)| now - then);
    Ok(Turn {
        rate: after.rate_since(&before),
        // What goes on in the background counts as well.
        cpu: (settled.cpu - began.cpu).as_secs_f64() / (settled.cycles() - began.cycles()),
        cores: (after.cpu - before.cpu).as_secs_f64() / (after.at - before.at).as_secs_f64(),
        failures: settled.failures() - began.failures(),
        stuck: stopped.running,
        unconfirmed: settled.unconfirmed,
        keys_left,
        expired,
        usage: child.usage(),
        limited,
    })
}

impl Turns {
    /// Another turn would end like the last one.
    fn has_collapsed(&self) -> bool {
        self.collapse.is_some() || self.turns.iter().any(|turn| turn.stuck > 0)
    }

    fn median(&self, of: impl Fn(&Turn) -> f64) -> f64 {
        if self.turns.is_empty() {
            return f64::NAN;
        }
        median(self.turns.iter().map(of))
    }

    /// Not a number if one of them is not known.
    fn most(&self, of: impl Fn(&Turn) -> Option<f64>) -> f64 {
        let all: Option<Vec<f64>> = self.turns.iter().map(of).collect();
        let all = all.unwrap_or_default();
        all.into_iter().reduce(f64::max).unwrap_or(f64::NAN)
    }

    fn row(
        &self,
        scenario: &str,
        tasks: u32,
        floor: &Self,
        verdicts: &mut Verdicts,
    ) -> [String; 15] {
        let pairs = self.turns.iter().zip(&floor.turns);
        let ratios: Vec<f64> = pairs.map(|(turn, floor)| turn.rate / floor.rate).collect();
        let of_floor = if ratios.is_empty() {
            f64::NAN
        } else {
            median(ratios.into_iter())
        };
        let errors = self.most(|turn| Some(float(turn.failures + turn.stuck)));
        let keys_left = self.most(|turn| turn.keys_left.map(float));
        let expired = self.most(|turn| turn.expired.map(float));
        let [of_floor, errors, keys_left, expired] = if self.library == Library::Crate {
            let what = |figure: &str| format!("{scenario}, {tasks} tasks: {figure}");
            if let Some(collapse) = &self.collapse {
                verdicts.miss(&what("answers"), &collapse.to_string());
            }
            [
                verdicts.at_least(&what("of the floor's rate"), of_floor, LEAST_RATE),
                verdicts.at_most(&what("errors"), errors, 0.0),
                verdicts.at_most(&what("keys left"), keys_left, 0.0),
                verdicts.at_most(&what("keys expired"), expired, 0.0),
            ]
        } else {
            [
                ratio(of_floor),
                count(errors),
                count(keys_left),
                count(expired),
            ]
        };
        [
            tasks.to_string(),
            self.library.name().to_owned(),
            per_second(self.median(|turn| turn.rate)),
            of_floor,
            errors,
            count(self.most(|turn| Some(float(turn.stuck)))),
            count(self.most(|turn| Some(float(turn.unconfirmed)))),
            keys_left,
            expired,
            count(self.most(|turn| Some(turn.usage.peak_mebibytes()))),
            time(self.median(|turn| turn.cpu)),
            ratio(self.median(|turn| turn.cores)),
            count(self.most(|turn| Some(f64::from(turn.usage.threads)))),
            count(self.most(|turn| Some(f64::from(turn.usage.descriptors)))),
            self.turns.len().to_string(),
        ]
    }
}

/// A dash for what is not known.
fn count(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.0}")
    }
}
