//! One master of five hangs: it keeps its connections and answers nothing.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::dyn_subject::{DynSubject, places};
use crate::harness::{Harness, Run, Subject, fresh};
use crate::picture::Picture;
use crate::stats::percentile;
use crate::table::{Table, time};

/// A sample is so many cycles, or as many as begin within some time.
const CYCLES: usize = 2_000;
const SAMPLE_TIME: Duration = Duration::from_secs(2);

/// What takes longer hangs.
const HUNG: Duration = Duration::from_secs(10);

const ROUNDS: usize = 5;

/// A subject's cycles while a master hangs.
#[derive(Default)]
pub(crate) struct FrozenRun {
    run: Run,
    hung: usize,
    failed: usize,
    keys_left: u64,
}

impl FrozenRun {
    pub(crate) fn new(harness: &Harness, subject: &impl Subject) -> Self {
        // Whatever the last round did to its connections is over.
        harness.run(subject, 1, 100);
        harness.clear();
        harness.servers[0].freeze();
        let cycles = harness.runtime.spawn(Self::cycles(subject.clone()));
        let mut frozen_run = harness.runtime.block_on(cycles).expect("no task panics");
        harness.servers[0].thaw();
        harness.settle(subject);
        frozen_run.keys_left = harness.clear();
        frozen_run
    }

    async fn cycles(subject: impl Subject) -> Self {
        let mut frozen_run = Self::default();
        let begin = Instant::now();
        for _ in 0..CYCLES {
            if begin.elapsed() > SAMPLE_TIME {
                break;
            }
            frozen_run.cycle(&subject).await;
        }
        frozen_run
    }

    async fn cycle(&mut self, subject: &impl Subject) {
        let resource = fresh();
        let start = Instant::now();
        let held = match timeout(HUNG, subject.lock(&resource)).await {
            Ok(Some(held)) => held,
            Ok(None) => return self.failed += 1,
            Err(_) => return self.hung += 1,
        };
        let locked = Instant::now();
        self.run.locks.push(locked - start);
        match timeout(HUNG, subject.release(held)).await {
            Ok(true) => self.run.releases.push(locked.elapsed()),
            Ok(false) => self.failed += 1,
            Err(_) => self.hung += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.run.locks.extend(other.run.locks);
        self.run.releases.extend(other.run.releases);
        self.hung += other.hung;
        self.failed += other.failed;
        self.keys_left += other.keys_left;
    }
}

pub(crate) fn print<const N: usize>(
    harness: &Harness,
    subjects: [&dyn DynSubject; N],
    picture: &mut Picture<N>,
) {
    let mut runs = [(); N].map(|()| FrozenRun::default());
    for round in 0..ROUNDS {
        for place in places::<N>(round) {
            runs[place].add(subjects[place].frozen_run(harness));
        }
    }
    let header = [
        "",
        "lock p50",
        "lock p99",
        "release p50",
        "release p99",
        "locks",
        "failed",
        "hung",
        "keys left",
    ];
    let mut table = Table::new("One of five masters frozen, one task", header);
    for (subject, frozen_run) in subjects.iter().zip(&runs) {
        let run = &frozen_run.run;
        table.row([
            subject.name().to_owned(),
            time(percentile(&run.locks, 50)),
            time(percentile(&run.locks, 99)),
            time(percentile(&run.releases, 50)),
            time(percentile(&run.releases, 99)),
            run.locks.len().to_string(),
            frozen_run.failed.to_string(),
            frozen_run.hung.to_string(),
            frozen_run.keys_left.to_string(),
        ]);
    }
    table.print(&format!(
        "In {ROUNDS} rounds the master is frozen under each, for {CYCLES} cycles or {SAMPLE_TIME:?}; in between it answers, so that \
         each has to notice anew. Hung: longer than {HUNG:?}. Keys left are counted once the master goes on."
    ));
    let medians = runs.map(|frozen_run| percentile(&frozen_run.run.locks, 50));
    picture.less("Lock p50, one of five masters frozen", medians, time);
}
