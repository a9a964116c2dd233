//! Releasing: a compare-and-delete on every master that may hold the key, followed until it is answered or the key is
//! gone, whether or not somebody waits.

use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::vote::{Ballots, MasterError, Vote};

/// The longest pause between two deletes of what may still come late.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The releases of one `Redlock` that are not confirmed yet.
#[derive(Clone, Default)]
pub(crate) struct Releases(Arc<Counted>);

#[derive(Default)]
struct Counted {
    count: Mutex<Count>,
    /// Notified when none is under way any more.
    done: Notify,
}

#[derive(Default)]
struct Count {
    under_way: usize,
    /// Those that have ended unconfirmed, as far as nobody has been told yet.
    unconfirmed: usize,
}

impl Releases {
    /// Waits until none is under way, at most for `within`, and returns how many are not confirmed.
    pub(crate) async fn done(&self, within: Duration) -> usize {
        let done = async {
            loop {
                // Before the look, so that no notification is missed.
                let mut notified = pin!(self.0.done.notified());
                notified.as_mut().enable();
                if self.count().under_way == 0 {
                    return;
                }
                notified.await;
            }
        };
        // In time or not: then these are what is left.
        let _ = timeout(within, done).await;
        self.take_unconfirmed()
    }

    /// How many are not confirmed. Those that have been given up are counted once.
    pub(crate) fn take_unconfirmed(&self) -> usize {
        let mut count = self.count();
        count.under_way + mem::take(&mut count.unconfirmed)
    }

    fn begin(&self, key: &Key) -> Pending {
        self.count().under_way += 1;
        Pending {
            releases: self.clone(),
            key: key.clone(),
            complaint: Some("its client has ended"),
        }
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A release under way, counted as long as this exists.
struct Pending {
    releases: Releases,
    key: Key,
    /// Why it is not confirmed, should it end now; `None` if it is.
    complaint: Option<&'static str>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        // A subscriber that panics may be why this is dropped; a second panic would abort the process.
        if let Some(reason) = self.complaint
            && !thread::panicking()
        {
            warn_unconfirmed(&self.key, reason);
        }
        let mut count = self.releases.count();
        count.under_way -= 1;
        count.unconfirmed += usize::from(self.complaint.is_some());
        if count.under_way == 0 {
            self.releases.0.done.notify_waiters();
        }
    }
}

/// The caller's end of a release: waits for the outcome. When it is dropped, the release goes on in the background.
pub(crate) struct Release {
    engine: Arc<Engine>,
    masters: Masters,
    /// `None` once the outcome was received.
    outcome: Option<oneshot::Receiver<Released>>,
}

/// Whether the lock was ours on a quorum; if not, what the masters said.
type Released = Result<(), Ballots>;

impl Release {
    /// Begins to delete. Whatever the same client sends to a master from now on comes after the compare-and-delete.
    pub(crate) fn begin(
        deletion: Deletion,
        releases: &Releases,
        masters: &Masters,
        engine: &Arc<Engine>,
    ) -> Self {
        let pending = releases.begin(&deletion.key);
        let (outcome, received) = oneshot::channel();
        let (own_masters, own_engine) = (masters.clone(), Arc::clone(engine));
        engine.begin(async move {
            deletion.run(&own_masters, pending, outcome).await;
            // Until then it serves the connections, also when the client has been dropped.
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
        self.outcome = None;
        outcome.unwrap_or_else(|_| {
            let error = MasterError::NotAsked(Stopped::RuntimeEnded.to_string());
            Err(self.masters.all_failed(&error))
        })
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if self.outcome.is_some() {
            self.engine.linger();
        }
    }
}

/// What is to be deleted, and where.
pub(crate) struct Deletion {
    pub(crate) request: Request,
    pub(crate) deletes: Arc<Deletes>,
    /// When the key is gone by itself.
    pub(crate) gone: Moment,
    pub(crate) clock: Clock,
    pub(crate) patience: Duration,
    pub(crate) key: Key,
}

impl Deletion {
    async fn run(
        self,
        masters: &Masters,
        mut pending: Pending,
        outcome: oneshot::Sender<Released>,
    ) {
        let mut round = masters.delete(&self.request, &self.deletes, self.patience);
        let decided = round.decided(self.patience).await;
        if decided == Outcome::Quorum {
            let _ = outcome.send(Ok(()));
        } else if !outcome.is_closed() {
            let not_ours = Vote::is_denied;
            let _ = outcome.send(Err(round.reason_known(not_ours, self.patience).await));
        }
        round.finished(self.patience).await;
        let unsettled: Vec<usize> = (0..masters.count())
            .filter(|master| !self.is_final(*master, round.answer(*master).as_ref()))
            .collect();
        drop(round);
        pending.complaint = self.finish(masters, unsettled).await;
    }

    /// Deletes where that is not done for certain, until it is or the key is gone; returns why it is not confirmed.
    async fn finish(&self, masters: &Masters, unsettled: Vec<usize>) -> Option<&'static str> {
        if unsettled.is_empty() {
            return None;
        }
        let deleted = unsettled.iter().map(|&it| self.delete_on(masters, it));
        let deleted = timeout(self.clock.now().until(self.gone), join_all(deleted)).await;
        match deleted {
            Ok(answers) if answers.iter().all(Answer::is_settled) => return None,
            Ok(_) => return Some("a master refused it"),
            Err(_) => {}
        }
        if unsettled
            .iter()
            .any(|&master| self.deletes.may_be_late(master, false))
        {
            return Some("an earlier connection that could not be closed may still bring the lock");
        }
        // The key is gone: nothing is left that could be confirmed.
        warn_unconfirmed(&self.key, "a master did not answer until the ttl was over");
        None
    }

    /// Deletes on one master until what was sent before can no longer come after it.
    async fn delete_on(&self, masters: &Masters, master: usize) -> Answer {
        let mut pause = self.patience;
        loop {
            let answer = masters
                .delete_until_answered(master, &self.request, &self.deletes)
                .await;
            if !answer.is_settled() || self.is_final(master, Some(&answer)) {
                return answer;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether a master holds nothing of ours after this answer, now and later.
    fn is_final(&self, master: usize, answer: Option<&Answer>) -> bool {
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
