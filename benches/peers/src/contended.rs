//! Many tasks want the same resource.

use std::time::Duration;

use crate::dyn_subject::{DynSubject, places};
use crate::harness::Harness;
use crate::stats::percentile;
use crate::table::{Table, per_second, time};

/// Tasks, and how often they come at once.
const CONTESTS: [(u32, usize); 2] = [(8, 30), (64, 8)];

/// A subject's contests.
#[derive(Default)]
struct Sum {
    wanted: u32,
    elapsed: Duration,
    hand_overs: Vec<Duration>,
    commands: u64,
    keys_left: u64,
}

impl Sum {
    fn add(&mut self, harness: &Harness, subject: &dyn DynSubject, tasks: u32) {
        let commands = harness.commands();
        let contest = subject.contest(harness, tasks);
        subject.settle(harness);
        self.wanted += tasks;
        self.elapsed += contest.elapsed;
        self.hand_overs.extend(contest.hand_overs);
        self.commands += harness.commands() - commands;
        self.keys_left += harness.clear();
    }

    fn served(&self) -> u32 {
        u32::try_from(self.hand_overs.len()).expect("far fewer")
    }

    /// Another contest would hang like this one.
    fn hung(&self) -> bool {
        self.served() < self.wanted
    }
}

pub(crate) fn print<const N: usize>(harness: &Harness, subjects: [&dyn DynSubject; N]) {
    let header = [
        "tasks",
        "",
        "served",
        "locks",
        "hand-over p50",
        "hand-over p99",
        "commands per lock",
        "keys left",
    ];
    let mut table = Table::new("Contended: all tasks at once, one lock each", header);
    for (tasks, rounds) in CONTESTS {
        let mut sums = [(); N].map(|()| Sum::default());
        for round in 0..rounds {
            for place in places::<N>(round) {
                if !sums[place].hung() {
                    sums[place].add(harness, subjects[place], tasks);
                }
            }
        }
        for (subject, sum) in subjects.iter().zip(sums) {
            let served = f64::from(sum.served());
            let commands = f64::from(u32::try_from(sum.commands).expect("far fewer"));
            table.row([
                tasks.to_string(),
                subject.name().to_owned(),
                format!("{served} of {}", sum.wanted),
                per_second(served / sum.elapsed.as_secs_f64()),
                time(percentile(&sum.hand_overs, 50)),
                time(percentile(&sum.hand_overs, 99)),
                format!("{:.1}", commands / served),
                sum.keys_left.to_string(),
            ]);
        }
    }
    table.print(
        "Hand-over: from the begin of a release to the next grant. Default delays: tokio-redlock 10 ms, doubling to 500 ms, \
         random; rslock random below 200 ms, three attempts, then at once from the beginning. distributed-lock makes one \
         attempt, and the floor has none of its own; both are called again after the delays of tokio-redlock. A contest \
         ends after 10 s, and who hung in one is not asked again: a failed attempt of distributed-lock leaves its keys, and \
         gives its caller nothing to release them with, so the votes are soon all taken, until the ttl is over (30 s by \
         default, 10 min here).",
    );
}
