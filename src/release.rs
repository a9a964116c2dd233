//! Releasing: a compare-and-delete on every master that may hold the key. The engine follows each delete until the
//! master answers or the key has expired, whether or not somebody waits.

use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use crate::clock::{Clock, Moment};
use crate::engine::{Engine, Stopped};
use crate::error::name;
use crate::master::{Answer, Request};
use crate::masters::Masters;
use crate::permit::Deletes;
use crate::protocol::key::Key;
use crate::protocol::quorum::Outcome;
use crate::sync::lock;
use crate::vote::{Ballots, MasterError, Vote};

/// The longest pause between two deletes for a `SET` that may still arrive. The pause doubles up to this limit, so a
/// long ttl costs a master few requests. A `SET` that arrives meanwhile holds the resource for at most 10 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

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

    /// Counts a release as under way until the returned value is dropped.
    fn begin(&self, key: &Key) -> Pending {
        self.count().under_way += 1;
        Pending {
            releases: self.clone(),
            key: key.clone(),
            // The release may be dropped at any await point, so it counts as unconfirmed until it has ended well.
            unconfirmed: Some("its client has ended"),
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        lock(&self.0.count)
    }
}

/// A release under way, counted as long as this exists.
struct Pending {
    releases: Releases,
    key: Key,
    /// Why the release is unconfirmed if it ends now. `None` if it is confirmed.
    unconfirmed: Option<&'static str>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Logged before the mutex is taken, because a subscriber may run any code. Not while panicking: the subscriber
        // may have caused that panic, and a second panic in a drop aborts the process.
        if let Some(reason) = self.unconfirmed
            && !thread::panicking()
        {
            warn_unconfirmed(&self.key, reason);
        }
        let mut count = self.releases.count();
        count.under_way -= 1;
        count.unconfirmed += usize::from(self.unconfirmed.is_some());
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
        let pending = releases.begin(&deletion.key);
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
    pub(crate) request: Request,
    /// Which masters may hold the key, and whether a `SET` may still arrive there.
    pub(crate) deletes: Arc<Deletes>,
    /// When the key has expired on all masters.
    pub(crate) gone: Moment,
    pub(crate) clock: Clock,
    /// How long to wait for a master's answer at first.
    pub(crate) patience: Duration,
    pub(crate) key: Key,
}

impl Deletion {
    /// Sends the deletes, sends the outcome to the caller as soon as it is certain, and then follows every delete to
    /// its end.
    async fn run(
        self,
        masters: &Masters,
        mut pending: Pending,
        outcome: oneshot::Sender<Released>,
    ) {
        // The deletes are queued by the first poll of this future. `Engine::begin` relies on that.
        let mut round = masters.delete(&self.request, &self.deletes, self.patience);
        let decided = round.decided(self.patience).await;
        if decided == Outcome::Quorum {
            let _ = outcome.send(Ok(()));
        // Only for a caller who still waits: the reason may need the answers of slower masters.
        } else if !outcome.is_closed() {
            let not_ours = Vote::is_denied;
            let _ = outcome.send(Err(round.reason_known(not_ours, self.patience).await));
        }
        // The caller has its outcome. The other masters still get their time to answer this delete before it is
        // repeated.
        round.finished(self.patience).await;
        let unsettled: Vec<usize> = (0..masters.count())
            .filter(|master| !self.is_final(*master, round.answer(*master).as_ref()))
            .collect();
        // The round holds the futures and votes of all masters. What follows may take as long as the ttl.
        drop(round);
        pending.unconfirmed = self.finish(masters, unsettled).await;
    }

    /// Deletes again on the given masters, until it is certain that no key is left or until the key has expired.
    /// Returns the reason if the release is not confirmed.
    async fn finish(&self, masters: &Masters, unsettled: Vec<usize>) -> Option<&'static str> {
        if unsettled.is_empty() {
            return None;
        }
        let deleted = unsettled.iter().map(|&it| self.delete_on(masters, it));
        // This timer stops while the machine is suspended. Then the deletes go on for longer than needed, which does no
        // harm.
        let deleted = timeout(self.clock.now().until(self.gone), join_all(deleted)).await;
        match deleted {
            Ok(answers) if answers.iter().all(Answer::is_settled) => return None,
            Ok(_) => return Some("a master refused it"),
            Err(_) => {}
        }
        // No answer, and a `SET` may still arrive, after which its key lives for a whole ttl. So the release is not
        // confirmed.
        if unsettled
            .iter()
            .any(|&master| self.deletes.may_be_late(master, false))
        {
            return Some(
                "an earlier connection could not be closed, and a SET on it may still set the key",
            );
        }
        // The key has expired, so nothing is left that a later answer could confirm. The log still shows the silent
        // master.
        warn_unconfirmed(&self.key, "a master did not answer until the ttl was over");
        None
    }

    /// Deletes on one master, until no request that was sent before can arrive after the last delete.
    async fn delete_on(&self, masters: &Masters, master: usize) -> Answer {
        let mut pause = self.patience;
        loop {
            let answer = masters
                .delete_until_answered(master, &self.request, &self.deletes)
                .await;
            // An error that a repeated delete would not change, or a delete that no `SET` can follow.
            if !answer.is_settled() || self.is_final(master, Some(&answer)) {
                return answer;
            }
            // The master has answered, but an unclosed earlier connection may still deliver a `SET`. So the delete is
            // repeated until the caller's timeout, when the ttl is over.
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether the master holds no key of ours after this answer, now and later.
    fn is_final(&self, master: usize, answer: Option<&Answer>) -> bool {
        // A delete that found the key shows that the `SET` has arrived, if there was only one `SET`.
        let has_found = matches!(answer, Some(Answer::Granted(_)));
        answer.is_some_and(Answer::is_settled) && !self.deletes.may_be_late(master, has_found)
    }
}

fn warn_unconfirmed(key: &Key, reason: &str) {
    tracing::warn!(
        resource = name(key.resource()),
        reason,
        "a release in the background could not be confirmed"
    );
}
