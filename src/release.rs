//! Releasing: a compare-and-delete on every master that may hold the key, once. A job of the engine waits until each
//! master has answered or failed, whether or not a caller waits. What is not deleted then becomes a debt of its master.

use std::mem;
use std::pin::pin;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};

use crate::engine::{Engine, Stopped};
use crate::master::{Debt, End, Follower, Request};
use crate::masters::Masters;
use crate::permit::Deletes;
use crate::protocol::key::Key;
use crate::protocol::quorum::Outcome;
use crate::protocol::value::Value;
use crate::sync::lock;
use crate::vote::{Ballots, MasterError, Vote};

/// A ttl may be longer than a clock can count. Nobody watches a delete for longer than this.
const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Counts the releases of one `Redlock` that are not confirmed.
#[derive(Clone, Default)]
pub(crate) struct Releases(Arc<Counted>);

#[derive(Default)]
struct Counted {
    count: Mutex<Count>,
    /// Notified when no release is under way any more.
    done: Notify,
}

#[derive(Default)]
struct Count {
    /// The releases that still run.
    under_way: usize,
    /// The releases that ended unconfirmed since the last call that returned their number.
    unconfirmed: usize,
}

impl Releases {
    /// Waits, for at most `within`, until no release is under way. Returns the number of releases that are not
    /// confirmed; their keys expire with the ttl.
    pub(crate) async fn done(&self, within: Duration) -> usize {
        let done = async {
            loop {
                // Enabled before the look at the count: a release that ends in between would otherwise notify nobody,
                // and this would wait until the timeout.
                let mut notified = pin!(self.0.done.notified());
                notified.as_mut().enable();
                if self.count().under_way == 0 {
                    return;
                }
                notified.await;
            }
        };
        // In time or not, the count below is the answer.
        let _ = timeout(within, done).await;
        self.take_unconfirmed()
    }

    /// Returns the number of releases that are not confirmed. A release that was given up is counted by one call only.
    pub(crate) fn take_unconfirmed(&self) -> usize {
        // Both numbers under one lock: a release that ends in between is counted once.
        let mut count = self.count();
        count.under_way + mem::take(&mut count.unconfirmed)
    }

    /// Counts a release as under way until the last clone of the returned value is dropped.
    fn pending(&self) -> Arc<Pending> {
        self.count().under_way += 1;
        Arc::new(Pending {
            releases: self.clone(),
            // The job of the release itself. It may be dropped at any await point.
            open: AtomicUsize::new(1),
        })
    }

    /// Counts a release that begins before the returned value is dropped.
    pub(crate) fn coming(&self) -> Coming {
        Coming(self.pending())
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        lock(&self.0.count)
    }
}

/// A release under way, counted as long as this exists.
struct Pending {
    releases: Releases,
    /// The number of parts that are not confirmed: the job, and the debts that it has left to masters.
    open: AtomicUsize,
}

/// A release that is about to begin. `shutdown` waits for it.
pub(crate) struct Coming(Arc<Pending>);

impl Drop for Coming {
    fn drop(&mut self) {
        // The release itself is counted by now.
        self.0.confirmed();
    }
}

impl Follower for Pending {
    fn confirmed(&self) {
        // Relaxed: the last part to end drops the last clone, and the count of clones orders the memory.
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let is_confirmed = *self.open.get_mut() == 0;
        let mut count = self.releases.count();
        count.under_way -= 1;
        count.unconfirmed += usize::from(!is_confirmed);
        if count.under_way == 0 {
            // With the mutex held: a waiter sees the final numbers, since it can only read them after this drop.
            self.releases.0.done.notify_waiters();
        }
    }
}

/// The caller's end of a release, which waits for the outcome. When it is dropped, the release continues in the
/// background.
pub(crate) struct Release {
    engine: Arc<Engine>,
    masters: Masters,
    /// `None` after the outcome was received.
    outcome: Option<oneshot::Receiver<Released>>,
}

/// `Ok` if the lock was ours on a quorum. Otherwise the answers of the masters.
type Released = Result<(), Ballots>;

impl Release {
    /// Starts a release. Requests that this client submits later reach each master after the compare-and-delete.
    pub(crate) fn begin(
        deletion: Deletion,
        releases: &Releases,
        masters: &Masters,
        engine: &Arc<Engine>,
    ) -> Self {
        // Counted before the job is submitted: a `shutdown` that another thread calls now must wait for this release.
        let pending = releases.pending();
        let (outcome, received) = oneshot::channel();
        let (own_masters, own_engine) = (masters.clone(), Arc::clone(engine));
        engine.begin(async move {
            deletion.run(&own_masters, pending, outcome).await;
            // The job keeps the engine alive: deletes may need a new connection, and a connection is served by the
            // engine, also after the client has been dropped.
            drop(own_engine);
        });
        Self {
            engine: Arc::clone(engine),
            masters: masters.clone(),
            outcome: Some(received),
        }
    }

    /// Waits until it is certain whether the lock was ours on a quorum.
    pub(crate) async fn decided(mut self) -> Released {
        let Some(outcome) = &mut self.outcome else {
            return Ok(());
        };
        let outcome = outcome.await;
        // The masters have the deletes by now, or the engine has ended: the drop of `self` need not wait.
        self.outcome = None;
        // The engine has dropped the job, and with it the sender: the runtime of the client has shut down.
        outcome.unwrap_or_else(|_| {
            let error = MasterError::NotAsked(Stopped::RuntimeEnded.to_string());
            Err(self.masters.all_failed(&error))
        })
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        // The delete may still be in a queue of the engine.
        if self.outcome.is_some() {
            self.engine.linger();
        }
    }
}

/// The deletes of one release.
pub(crate) struct Deletion {
    pub(crate) key: Key,
    pub(crate) value: Value,
    /// Which masters may hold the key, and whether a `SET` may still arrive there.
    pub(crate) deletes: Arc<Deletes>,
    /// How long the key lives at most on a master that executes a request now.
    pub(crate) lifetime: Duration,
    /// How long a delete waits for a connection, and the caller for the reason of a failure.
    pub(crate) patience: Duration,
}

impl Deletion {
    /// Sends the deletes, and sends the outcome to the caller as soon as it is certain. A master that does not answer
    /// is left with a debt, which this does not wait for.
    async fn run(
        self,
        masters: &Masters,
        pending: Arc<Pending>,
        outcome: oneshot::Sender<Released>,
    ) {
        // The deletes are queued by the first poll of this future. `Engine::begin` relies on that.
        let request = Request::release(slice::from_ref(&self.key), &self.value);
        let mut round = masters.delete(&request, &self.deletes, self.patience);
        let decided = round.decided(self.lifetime).await;
        if decided == Outcome::Quorum {
            let _ = outcome.send(Ok(()));
        // Only for a caller who still waits: the reason may need the answers of slower masters.
        } else if !outcome.is_closed() {
            let not_ours = Vote::is_denied;
            let _ = outcome.send(Err(round.reason_known(not_ours, self.patience).await));
        }
        // The caller has its outcome. For every other master this ends with an answer, with its silence, or with the
        // end of its connection.
        round.finished(self.lifetime).await;
        for place in 0..masters.count() {
            let Some(answer) = round.answer(place) else {
                continue;
            };
            match End::of(&answer, &self.deletes, place) {
                End::Settled => {}
                End::MayComeBack | End::Failed => {
                    pending.open.fetch_add(1, Ordering::Relaxed);
                    let follower = Arc::clone(&pending) as Arc<dyn Follower>;
                    masters.owe(self.debt(place, follower));
                }
                End::Refused => {
                    pending.open.fetch_add(1, Ordering::Relaxed);
                    masters.leave_key(place);
                }
            }
        }
        pending.confirmed();
    }

    fn debt(&self, place: usize, follower: Arc<dyn Follower>) -> Debt {
        let dirty = self.deletes.dirty(place);
        Debt {
            key: self.key.clone(),
            value: self.value.clone(),
            deletes: Arc::clone(&self.deletes),
            place,
            // From now on and not from the last request: a master may have executed that as late as now.
            gone: Instant::now() + self.lifetime.min(LONGEST_LIFETIME),
            may_come_back: dirty.is_some_and(|dirty| dirty.unanswered_on.is_some()),
            follower: Some(follower),
        }
    }
}
