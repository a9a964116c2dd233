//! Lock and release of a fresh resource, all masters answering.

use crate::dyn_subject::{DynSubject, places};
use crate::harness::Harness;
use crate::picture::Picture;
use crate::sample::Sample;
use crate::stats::{median, percentile};
use crate::table::{Table, per_second, time};

/// Tasks, and cycles of each in a sample; that is some tenths of a second.
const CROWDS: [(u32, u64); 3] = [(1, 600), (64, 64), (1_000, 4)];

const ROUNDS: usize = 11;

struct Metric {
    name: &'static str,
    of: fn(&Sample) -> f64,
    show: fn(f64) -> String,
}

const LOCK: Metric = Metric {
    name: "lock p50",
    of: |sample| percentile(&sample.run.locks, 50),
    show: time,
};

const CYCLES: Metric = Metric {
    name: "cycles",
    of: Sample::per_second,
    show: per_second,
};

const METRICS: [Metric; 7] = [
    LOCK,
    Metric {
        name: "lock p99",
        of: |sample| percentile(&sample.run.locks, 99),
        show: time,
    },
    Metric {
        name: "release p50",
        of: |sample| percentile(&sample.run.releases, 50),
        show: time,
    },
    Metric {
        name: "release p99",
        of: |sample| percentile(&sample.run.releases, 99),
        show: time,
    },
    CYCLES,
    Metric {
        name: "CPU per cycle",
        of: |sample| sample.cpu,
        show: time,
    },
    Metric {
        name: "commands per cycle",
        of: |sample| sample.commands,
        show: |commands| format!("{commands:.1}"),
    },
];

pub(crate) fn print<const N: usize>(
    harness: &Harness,
    subjects: [&dyn DynSubject; N],
    picture: &mut Picture<N>,
) {
    for (tasks, each) in CROWDS {
        let samples = measure(harness, subjects, tasks, each);
        table(subjects, tasks, &samples);
        let medians = |metric: &Metric| samples.each_ref().map(|samples| of(metric, samples));
        match tasks {
            1 => picture.less("Lock p50", medians(&LOCK), LOCK.show),
            64 => picture.more("Cycles, 64 tasks", medians(&CYCLES), CYCLES.show),
            _ => {}
        }
    }
}

fn measure<const N: usize>(
    harness: &Harness,
    subjects: [&dyn DynSubject; N],
    tasks: u32,
    each: u64,
) -> [Vec<Sample>; N] {
    let mut samples = [const { Vec::new() }; N];
    // The first round warms up.
    for round in 0..=ROUNDS {
        for place in places::<N>(round) {
            let sample = subjects[place].sample(harness, tasks, each);
            if round > 0 {
                samples[place].push(sample);
            }
        }
    }
    samples
}

fn table<const N: usize>(subjects: [&dyn DynSubject; N], tasks: u32, samples: &[Vec<Sample>; N]) {
    let title = format!("Lock and release, five masters, tasks: {tasks}");
    let [a, b, c, d, e, f, g] = METRICS.map(|metric| metric.name);
    let header = ["", a, b, c, d, e, f, g, "keys left", "failed"];
    let mut table = Table::new(title, header);
    for (subject, samples) in subjects.into_iter().zip(samples) {
        let [a, b, c, d, e, f, g] = METRICS.map(|metric| (metric.show)(of(&metric, samples)));
        let keys_left: u64 = samples.iter().map(|sample| sample.keys_left).sum();
        let failed: u64 = samples.iter().map(|sample| sample.failed).sum();
        let (name, keys_left, failed) = (subject.name(), keys_left.to_string(), failed.to_string());
        table.row([name.to_owned(), a, b, c, d, e, f, g, keys_left, failed]);
    }
    let cycles: usize = samples[0].iter().map(|sample| sample.run.locks.len()).sum();
    table.print(&format!(
        "Medians of {ROUNDS} rounds, {cycles} cycles in all. CPU is that of the client. Commands: SET, EVAL and EVALSHA; \
         10 ask each master to lock and to release. Keys left: on all masters, though every lock was released."
    ));
}

fn of(metric: &Metric, samples: &[Sample]) -> f64 {
    median(samples.iter().map(metric.of))
}
