//! One master of five hangs: it keeps its connections and answers nothing.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::bed::{Bed, Rival, Run, fresh};
use crate::contender::{Contender, places};
use crate::picture::Picture;
use crate::stats::percentile;
use crate::table::{Table, time};

/// A turn is so many cycles, or as many as begin within some time.
const CYCLES: usize = 2_000;
const TURN: Duration = Duration::from_secs(2);

/// What takes longer hangs.
const HUNG: Duration = Duration::from_secs(10);

const ROUNDS: usize = 5;

/// A rival's cycles while a master hangs.
#[derive(Default)]
pub(crate) struct Ordeal {
    run: Run,
    hung: usize,
    failed: usize,
    keys_left: u64,
}

impl Ordeal {
    pub(crate) fn new(bed: &Bed, rival: &impl Rival) -> Self {
        // Whatever the last round did to its connections is over.
        bed.run(rival, 1, 100);
        bed.clear();
        bed.servers[0].freeze();
        let cycles = bed.runtime.spawn(Self::cycles(rival.clone()));
        let mut ordeal = bed.runtime.block_on(cycles).expect("no task panics");
        bed.servers[0].thaw();
        bed.settle(rival);
        ordeal.keys_left = bed.clear();
        ordeal
    }

    async fn cycles(rival: impl Rival) -> Self {
        let mut ordeal = Self::default();
        let begin = Instant::now();
        for _ in 0..CYCLES {
            if begin.elapsed() > TURN {
                break;
            }
            ordeal.cycle(&rival).await;
        }
        ordeal
    }

    async fn cycle(&mut self, rival: &impl Rival) {
        let resource = fresh();
        let start = Instant::now();
        let held = match timeout(HUNG, rival.lock(&resource)).await {
            Ok(Some(held)) => held,
            Ok(None) => return self.failed += 1,
            Err(_) => return self.hung += 1,
        };
        let locked = Instant::now();
        self.run.locks.push(locked - start);
        match timeout(HUNG, rival.release(held)).await {
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
    bed: &Bed,
    rivals: [&dyn Contender; N],
    picture: &mut Picture<N>,
) {
    let mut ordeals = [(); N].map(|()| Ordeal::default());
    for round in 0..ROUNDS {
        for place in places::<N>(round) {
            ordeals[place].add(rivals[place].ordeal(bed));
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
    for (rival, ordeal) in rivals.iter().zip(&ordeals) {
        let run = &ordeal.run;
        table.row([
            rival.name().to_owned(),
            time(percentile(&run.locks, 50)),
            time(percentile(&run.locks, 99)),
            time(percentile(&run.releases, 50)),
            time(percentile(&run.releases, 99)),
            run.locks.len().to_string(),
            ordeal.failed.to_string(),
            ordeal.hung.to_string(),
            ordeal.keys_left.to_string(),
        ]);
    }
    table.print(&format!(
        "In {ROUNDS} rounds the master is frozen under each, for {CYCLES} cycles or {TURN:?}; in between it answers, so that \
         each has to notice anew. Hung: longer than {HUNG:?}. Keys left are counted once the master goes on."
    ));
    let medians = ordeals.map(|ordeal| percentile(&ordeal.run.locks, 50));
    picture.less("Lock p50, one of five masters frozen", medians, time);
}
