//! The locks of one client that are kept alive. One job of the engine renews them all. Locks that are due at about the
//! same time share one request to each master, which lengthens their keys and sets none. A lock with which anything is
//! wrong is extended alone.

mod alone;
mod chunk;
mod schedule;

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::AbortHandle;
use rand::RngExt;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;
use tokio::time::timeout;

use self::schedule::{Due, Schedule};
use crate::clock::{Clock, Moment};
use crate::error::{LossReason, name};
use crate::inner::Core;
use crate::lock::claim::Claim;
use crate::protocol::validity::Ttl;
use crate::random::Random;
use crate::sync::lock;

/// How many locks a request renews at most. A master executes nothing else meanwhile: 128 locks take it about 0.25 ms.
const MOST_PER_REQUEST: usize = 128;

/// How many locks are extended alone at a time, at most, to set a missing key again. A master that restarts without its
/// keys lacks the keys of all locks, and has other work to do.
const MOST_HEALED_AT_A_TIME: usize = 64;

/// The longest pause after a failed renewal. With a ttl of an hour, a thirtieth is two minutes: too seldom to find a
/// short time in which the masters answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Timers stop while the machine is suspended, but the clock does not. After a resume, locks that have become due
/// meanwhile are renewed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// The locks of one client that are kept alive.
pub(crate) struct Renewals {
    clock: Clock,
    /// How long a master may be silent.
    patience: Duration,
    /// Never locked across an await. No other mutex is taken, and no claim is dropped, while this is locked.
    list: Mutex<List>,
    /// Wakes the job: a lock is due before all others, or the last lock is gone.
    changed: Notify,
    /// A permit for each job that may set missing keys again.
    healers: Arc<Semaphore>,
}

#[derive(Default)]
struct List {
    schedule: Schedule<Kept>,
    /// What ends the renewals that are under way for one lock alone.
    alone: HashMap<u64, AbortHandle>,
    /// The locks whose key a master lacks, until they get their turn to be extended alone.
    missing: BTreeSet<u64>,
    /// Whether a job renews the locks.
    is_served: bool,
}

/// A lock that is kept alive.
#[derive(Clone)]
struct Kept {
    claim: Arc<Claim>,
    ttl: Ttl,
}

impl Renewals {
    pub(crate) fn new(clock: Clock, patience: Duration) -> Self {
        Self {
            clock,
            patience,
            list: Mutex::default(),
            changed: Notify::new(),
            healers: Arc::new(Semaphore::new(MOST_HEALED_AT_A_TIME)),
        }
    }

    /// Renews a claim from now on, until it is lost or [removed](Self::remove). Returns the id for its removal.
    ///
    /// The claim owns the core that owns this list, so a claim that is never removed stays in memory.
    pub(crate) fn add(&self, claim: &Arc<Claim>, ttl: Ttl) -> u64 {
        let kept = Kept {
            claim: Arc::clone(claim),
            ttl,
        };
        let due = kept.due(self.clock.now(), kept.interval());
        let early = kept.early();
        let mut list = lock(&self.list);
        let id = list.schedule.add(kept, due, early);
        let is_served = mem::replace(&mut list.is_served, true);
        let is_first = list.schedule.first() == Some(due);
        drop(list);
        if !is_served {
            let serving = Serving::new(claim.core());
            claim.engine().spawn(serve(serving));
        } else if is_first {
            self.changed.notify_one();
        }
        id
    }

    /// Renews a claim no more. A request that also renews other claims continues. Returns `false` if the claim was removed
    /// before.
    pub(crate) fn remove(&self, id: u64) -> bool {
        let mut list = lock(&self.list);
        let kept = list.schedule.remove(id);
        let alone = list.alone.remove(&id);
        list.missing.remove(&id);
        let is_empty = list.schedule.is_empty();
        drop(list);
        if let Some(alone) = alone {
            alone.abort();
        }
        if kept.is_some() && is_empty {
            self.changed.notify_one();
        }
        kept.is_some()
    }

    /// A claim was renewed: it is due again after the usual time.
    fn renewed(&self, due: &Due<Kept>) {
        let (now, interval) = (self.clock.now(), due.item.interval());
        // Counted from one due time to the next. Counted from now, the delays of each renewal would add up. After a
        // suspension or a long retry there is nothing to catch up on, so the count starts anew.
        let is_late = due.at.until(now) > interval;
        let from = if is_late { now } else { due.at };
        self.wait_until(due.id, due.item.due(from, interval));
    }

    /// A claim was not renewed: it is due again after a pause.
    fn failed(&self, due: &Due<Kept>) {
        let again = due.item.due(self.clock.now(), due.item.pause());
        self.wait_until(due.id, again);
    }

    fn wait_until(&self, id: u64, due: Moment) {
        let mut list = lock(&self.list);
        let alone = list.alone.remove(&id);
        list.schedule.wait_until(id, due);
        let is_first = list.schedule.first() == Some(due);
        drop((list, alone));
        if is_first {
            self.changed.notify_one();
        }
    }

    /// A claim is lost: it is not renewed any more.
    fn lost(&self, due: &Due<Kept>, reason: LossReason) {
        // Whoever has given up a lock is not warned of its loss.
        if self.remove(due.id) {
            let resource = name(due.item.claim.resource());
            tracing::warn!(resource, %reason, "a lock that was kept alive is lost");
        }
    }
}

impl Kept {
    /// The time from one renewal to the next. A third of the ttl: a renewal that fails then has two thirds of the ttl left
    /// for further tries.
    fn interval(&self) -> Duration {
        self.ttl.duration() / 3
    }

    /// The time from a failed renewal to the next try. Short against the interval, so that many tries fit into the
    /// validity that is left.
    fn pause(&self) -> Duration {
        (self.interval() / 10).min(LONGEST_PAUSE)
    }

    /// How early it may be renewed. Shorter than the pause, so that no pause is skipped.
    fn early(&self) -> Duration {
        self.interval() / 20
    }

    /// When it is due, about so long after a moment. Or when it is lost, if that is sooner.
    fn due(&self, from: Moment, after: Duration) -> Moment {
        let due = from.after(spread(after, self.claim.random()));
        match self.claim.remaining() {
            // With the time by which it may be taken early: the loss is logged then, so it must have happened.
            Ok(left) => due.min(self.claim.now().after(left + self.early())),
            Err(_) => self.claim.now(),
        }
    }
}

/// A random time of `around` plus or minus a tenth, so that locks that were taken together are not renewed together for
/// ever. At least 1 ms, so that a very short ttl does not make a busy loop.
fn spread(around: Duration, random: &Random) -> Duration {
    let tenth = around / 10;
    let spread = random.draw(|rng| rng.random_range(around - tenth..=around + tenth));
    spread.max(Duration::from_millis(1))
}

/// The job that renews the locks of a list, from its first lock until it is empty.
struct Serving {
    core: Arc<Core>,
    has_ended: bool,
}

/// What the job does next.
enum Step {
    Renew(Vec<Due<Kept>>),
    Wait(Duration),
    End,
}

/// Renews all locks when they are due. Waits for no answer, so no master delays a renewal.
async fn serve(mut serving: Serving) {
    loop {
        match serving.next() {
            Step::Renew(due) => {
                serving.renew(due);
                // After a suspension all locks are due. Other jobs and the connections get their turn in between.
                yield_now().await;
            }
            Step::Wait(within) => {
                let changed = serving.core.renewals.changed.notified();
                let _ = timeout(within, changed).await;
            }
            Step::End => return,
        }
    }
}

impl Serving {
    fn new(core: &Arc<Core>) -> Self {
        Self {
            core: Arc::clone(core),
            has_ended: false,
        }
    }

    fn next(&mut self) -> Step {
        let renewals = &self.core.renewals;
        let now = renewals.clock.now();
        let mut list = lock(&renewals.list);
        if list.schedule.is_empty() {
            // Under the lock under which locks are added: the next one starts another job.
            list.is_served = false;
            self.has_ended = true;
            return Step::End;
        }
        let due = list.schedule.take_due(now, MOST_PER_REQUEST);
        if !due.is_empty() {
            return Step::Renew(due);
        }
        let first = list.schedule.first().map(|first| now.until(first));
        Step::Wait(first.map_or(LONGEST_SLEEP, |first| first.min(LONGEST_SLEEP)))
    }

    /// Begins to renew locks. Those that are lost leave the list.
    fn renew(&self, mut due: Vec<Due<Kept>>) {
        let Core {
            engine, renewals, ..
        } = &*self.core;
        due.retain(|due| {
            let remaining = due.item.claim.remaining();
            remaining
                .map_err(|reason| renewals.lost(due, reason))
                .is_ok()
        });
        match <[_; 1]>::try_from(due) {
            // The extension of one lock also sets missing keys again.
            Ok([due]) => alone::begin(&self.core, due),
            Err(due) if due.is_empty() => {}
            // A job of its own: a master that does not answer delays no other renewal.
            Err(due) => engine.spawn(chunk::renew(Arc::clone(&self.core), due)),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.has_ended {
            // The runtime has shut down. With masters in memory there may be another one, and the next lock starts
            // another job there.
            lock(&self.core.renewals.list).is_served = false;
        }
    }
}
