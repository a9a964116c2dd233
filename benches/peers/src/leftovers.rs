//! Keys that nobody removes before the ttl, by the way a lock ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::task::yield_now;

use crate::dyn_subject::{DynSubject, places};
use crate::harness::{Harness, Run, Subject, fresh};
use crate::picture::Picture;
use crate::stats::percentile;
use crate::table::Table;

/// In a sample.
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

/// Of one sample.
#[derive(Default)]
pub(crate) struct Leftovers {
    /// Locks that left a key on any master.
    locks: u32,
    keys: usize,
}

impl Leftovers {
    pub(crate) fn new(harness: &Harness, subject: &impl Subject, ending: Ending) -> Self {
        let warm_up = harness.run(subject, 1, 100);
        harness.settle(subject);
        harness.clear();
        let ended = harness
            .runtime
            .spawn(end_many(subject.clone(), ending, warm_up));
        let ended = harness.runtime.block_on(ended).expect("no task panics");
        std::thread::sleep(GRACE);

        let keys: Vec<String> = harness
            .servers
            .iter()
            .flat_map(|server| server.keys())
            .collect();
        // Some put a prefix before the resource.
        let resource = |key: &String| key[key.len() - ended[0].len()..].to_owned();
        let keys = keys.iter().map(resource);
        let left: Vec<String> = keys.filter(|resource| ended.contains(resource)).collect();
        harness.settle(subject);
        harness.clear();
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
async fn end_many(subject: impl Subject, ending: Ending, before: Run) -> Vec<String> {
    let usual = Duration::from_secs_f64(percentile(&before.locks, 50));
    let mut ended = Vec::new();
    while ended.len() < LOCKS {
        let resource = fresh();
        let done = match ending {
            Ending::Released => release(&subject, &resource, Some(())).await.is_some(),
            Ending::EarlyReturn => release(&subject, &resource, None).await.is_none(),
            Ending::Dropped => subject.lock(&resource).await.map(drop).is_some(),
            Ending::Cancelled => cancel(&subject, &resource, usual.mul_f64(rand::random())).await,
        };
        if done {
            ended.push(resource);
        }
    }
    ended
}

async fn release(subject: &impl Subject, resource: &str, work: Option<()>) -> Option<()> {
    let held = subject.lock(resource).await?;
    work?;
    subject.release(held).await.then_some(())
}

/// Whether there was still something to cancel.
async fn cancel(subject: &impl Subject, resource: &str, after: Duration) -> bool {
    let start = Instant::now();
    // A timer is too coarse.
    let over = async {
        while start.elapsed() < after {
            yield_now().await;
        }
    };
    let held = tokio::select! {
        biased;
        held = subject.lock(resource) => held,
        () = over => return true,
    };
    if let Some(held) = held {
        subject.release(held).await;
    }
    false
}

pub(crate) fn print<const N: usize>(
    harness: &Harness,
    subjects: [&dyn DynSubject; N],
    picture: &mut Picture<N>,
) {
    let mut sums = ENDINGS.map(|_| [(); N].map(|()| Leftovers::default()));
    for round in 0..ROUNDS {
        for (ending, sums) in ENDINGS.into_iter().zip(&mut sums) {
            for place in places::<N>(round) {
                sums[place].add(subjects[place].leftovers(harness, ending));
            }
        }
    }
    let of = LOCKS * ROUNDS;
    let title = format!("Locks of {of} that left a key behind, and how many keys on all masters");
    let header = ["", "released", "early return", "dropped", "cancelled"];
    let mut table = Table::new(title, header);
    for (place, subject) in subjects.iter().enumerate() {
        let [a, b, c, d] = sums.each_ref().map(|sums| {
            let Leftovers { locks, keys } = sums[place];
            format!("{locks} ({keys})")
        });
        table.row([subject.name().to_owned(), a, b, c, d]);
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
