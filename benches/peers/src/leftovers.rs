//! Keys that nobody removes before the ttl, by the way a lock ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::task::yield_now;

use crate::bed::{Bed, Rival, Run, fresh};
use crate::contender::{Contender, places};
use crate::picture::Picture;
use crate::stats::percentile;
use crate::table::Table;

/// In a turn.
const LOCKS: usize = 100;

const ROUNDS: usize = 3;

/// What goes on in the background has that long to end.
const GRACE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy)]
pub(crate) enum Ending {
    Released,
    /// By `?` between lock and release.
    EarlyReturn,
    Dropped,
    /// The future of the lock is dropped at a random time within its duration.
    Cancelled,
}

const ENDINGS: [Ending; 4] = [
    Ending::Released,
    Ending::EarlyReturn,
    Ending::Dropped,
    Ending::Cancelled,
];

/// Of one turn.
#[derive(Default)]
pub(crate) struct Leftovers {
    /// Locks that left a key on any master.
    locks: u32,
    keys: usize,
}

impl Leftovers {
    pub(crate) fn new(bed: &Bed, rival: &impl Rival, ending: Ending) -> Self {
        let warm_up = bed.run(rival, 1, 100);
        bed.settle(rival);
        bed.clear();
        let ended = bed.runtime.spawn(end_many(rival.clone(), ending, warm_up));
        let ended = bed.runtime.block_on(ended).expect("no task panics");
        std::thread::sleep(GRACE);

        let keys: Vec<String> = bed
            .servers
            .iter()
            .flat_map(|server| server.keys())
            .collect();
        // Some put a prefix before the resource.
        let resource = |key: &String| key[key.len() - ended[0].len()..].to_owned();
        let keys = keys.iter().map(resource);
        let left: Vec<String> = keys.filter(|resource| ended.contains(resource)).collect();
        bed.settle(rival);
        bed.clear();
        Self {
            locks: u32::try_from(left.iter().collect::<BTreeSet<_>>().len()).expect("a few"),
            keys: left.len(),
        }
    }

    fn add(&mut self, other: Self) {
        self.locks += other.locks;
        self.keys += other.keys;
    }
}

/// Returns the resources.
async fn end_many(rival: impl Rival, ending: Ending, before: Run) -> Vec<String> {
    let usual = Duration::from_secs_f64(percentile(&before.locks, 50));
    let mut ended = Vec::new();
    while ended.len() < LOCKS {
        let resource = fresh();
        let done = match ending {
            Ending::Released => release(&rival, &resource, Some(())).await.is_some(),
            Ending::EarlyReturn => release(&rival, &resource, None).await.is_none(),
            Ending::Dropped => rival.lock(&resource).await.map(drop).is_some(),
            Ending::Cancelled => cancel(&rival, &resource, usual.mul_f64(rand::random())).await,
        };
        if done {
            ended.push(resource);
        }
    }
    ended
}

async fn release(rival: &impl Rival, resource: &str, work: Option<()>) -> Option<()> {
    let held = rival.lock(resource).await?;
    work?;
    rival.release(held).await.then_some(())
}

/// Whether there was still something to cancel.
async fn cancel(rival: &impl Rival, resource: &str, after: Duration) -> bool {
    let start = Instant::now();
    // A timer is too coarse.
    let over = async {
        while start.elapsed() < after {
            yield_now().await;
        }
    };
    let held = tokio::select! {
        biased;
        held = rival.lock(resource) => held,
        () = over => return true,
    };
    if let Some(held) = held {
        rival.release(held).await;
    }
    false
}

pub(crate) fn print<const N: usize>(
    bed: &Bed,
    rivals: [&dyn Contender; N],
    picture: &mut Picture<N>,
) {
    let mut sums = ENDINGS.map(|_| [(); N].map(|()| Leftovers::default()));
    for round in 0..ROUNDS {
        for (ending, sums) in ENDINGS.into_iter().zip(&mut sums) {
            for place in places::<N>(round) {
                sums[place].add(rivals[place].leftovers(bed, ending));
            }
        }
    }
    let of = LOCKS * ROUNDS;
    let title = format!("Locks of {of} that left a key behind, and how many keys on all masters");
    let header = ["", "released", "early return", "dropped", "cancelled"];
    let mut table = Table::new(title, header);
    for (place, rival) in rivals.iter().enumerate() {
        let [a, b, c, d] = sums.each_ref().map(|sums| {
            let Leftovers { locks, keys } = sums[place];
            format!("{locks} ({keys})")
        });
        table.row([rival.name().to_owned(), a, b, c, d]);
    }
    table.print(&format!(
        "Counted {GRACE:?} after the last of {LOCKS}, {ROUNDS} times. Early return: by `?` between lock and release. \
         Cancelled: the future of the lock is dropped at a random time within what a lock usually takes. rslock does not \
         release on drop, and says so. Nor does distributed-lock, whose documentation says that it does; and it releases \
         only on the three masters that had granted when it returned, so that the keys of the other two stay."
    ));
    let [.., cancelled] = sums;
    let title = format!("Cancelled locks of {of} that left keys");
    let show = |locks| format!("{locks}");
    picture.less(&title, cancelled.map(|sum| f64::from(sum.locks)), show);
}
