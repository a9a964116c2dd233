//! The debts of one master: deletes that it has not answered. One job sends all of them again at one pace, until the
//! master has answered or the keys have expired.
//!
//! A debt is a few hundred bytes, and there are at most [`MOST`] of them. So a master that is silent or refuses deletes
//! costs neither a job nor a log line for each key.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::link::Openness;
use super::{Answer, Master, Request};
use crate::permit::{Deletes, SendPermit};
use crate::protocol::key::Key;
use crate::protocol::value::Value;
use crate::sync::lock;

/// More deletes than this are not remembered: with some 500 bytes each, 8 MB for one master of one client.
const MOST: usize = 16_384;

/// The pause between two rounds of deletes, when some have to be sent again.
const PAUSE: Duration = Duration::from_secs(1);

/// How long after the ttl the debt of a `SET` without an answer is kept, while no new connection to its master works.
/// The master may still execute the `SET` when it comes back. After this time the debt is dropped, unconfirmed.
const LONGEST_WATCH: Duration = Duration::from_secs(600);

/// The same for an external connection. It may have returned an error for the `SET`, and work again since: then nothing shows
/// that the `SET` is not executed any more.
const LONGEST_WATCH_OF_EXTERNAL: Duration = Duration::from_secs(60);

/// How long a delete is waited for before it is sent again.
const LONGEST_DELETE: Duration = Duration::from_secs(10);

/// How many deletes are sent together, until the master has answered one.
const BATCH: usize = 64;

/// The shortest time between two log lines about keys that are left.
const LOG_EVERY: Duration = Duration::from_secs(15);

/// A key that may be left on a master.
pub(crate) struct Debt {
    pub(crate) key: Key,
    pub(crate) value: Value,
    pub(crate) deletes: Arc<Deletes>,
    /// The place of the master among all masters, for `deletes`.
    pub(crate) place: usize,
    /// When the key has expired, if no `SET` is executed after this debt was made.
    pub(crate) gone: Instant,
    /// Whether a `SET` may be executed after this debt was made.
    pub(crate) may_come_back: bool,
    /// Called when the debt ends well.
    pub(crate) follower: Option<Arc<dyn Follower>>,
}

/// Learns that a debt has ended well. It is dropped without a call where the debt ends in another way.
pub(crate) trait Follower: Send + Sync {
    /// The master holds no key any more, and sets none later.
    fn confirmed(&self);
}

/// How one delete ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The key is not there, now and later.
    Settled,
    /// The key is not there now. A `SET` that may still be executed can bring it back.
    MayComeBack,
    /// The master has not executed the delete, or has not said so.
    Failed,
    /// The master will never execute it.
    Refused,
}

impl End {
    /// How a delete ended that a master has answered so.
    pub(crate) fn of(answer: &Answer, deletes: &Deletes, place: usize) -> Self {
        // A delete that found the key shows that the `SET` has arrived, if there was only one `SET`.
        let has_found = matches!(answer, Answer::Granted(_));
        if answer.is_settled() && deletes.may_be_late(place, has_found) {
            Self::MayComeBack
        } else if answer.is_settled() {
            Self::Settled
        } else if answer.may_pass() {
            Self::Failed
        } else {
            Self::Refused
        }
    }
}

/// The debts of one master.
#[derive(Default)]
pub(crate) struct Debts(Mutex<List>);

#[derive(Default)]
struct List {
    waiting: VecDeque<Debt>,
    /// How many were taken out of `waiting` for the batch that is being deleted.
    under_way: usize,
    /// Whether a job settles them.
    is_settling: bool,
    /// How many keys stayed until their ttl ended, or will, since that was last logged.
    left: usize,
    last_logged: Option<Instant>,
}

/// What a look at the list says the job has to do.
enum Step {
    Delete {
        next_look: Instant,
    },
    /// Only a log line is to come.
    Wait {
        next_look: Instant,
    },
    End,
}

impl List {
    /// A debt for which there is no room is dropped, after the lock is released.
    fn push(&mut self, debt: Debt) -> Option<Debt> {
        if self.waiting.len() + self.under_way >= MOST {
            self.left += 1;
            return Some(debt);
        }
        self.waiting.push_back(debt);
        None
    }

    /// Returns the number of keys that are left, if it is time to log it.
    fn left_to_log(&mut self, now: Instant) -> Option<usize> {
        let is_due = self.last_logged.is_none_or(|last| now >= last + LOG_EVERY);
        if self.left == 0 || !is_due {
            return None;
        }
        self.last_logged = Some(now);
        Some(std::mem::take(&mut self.left))
    }

    fn step(&self, now: Instant) -> Step {
        if !self.waiting.is_empty() {
            Step::Delete {
                next_look: now + PAUSE,
            }
        } else if self.left > 0 {
            Step::Wait {
                next_look: now + PAUSE,
            }
        } else {
            Step::End
        }
    }
}

impl Master {
    /// Deletes a key until the master has answered.
    pub(crate) fn owe(&self, debt: Debt) {
        drop(self.add_to_debts(|list| list.push(debt)));
    }

    /// Counts a key that the master will not delete, for the log.
    pub(crate) fn leave_key(&self) {
        self.add_to_debts(|list| list.left += 1);
    }

    /// Changes the list, and starts the job that settles it.
    fn add_to_debts<T>(&self, add: impl FnOnce(&mut List) -> T) -> T {
        let mut list = lock(&self.debts.0);
        let added = add(&mut list);
        let is_settling = std::mem::replace(&mut list.is_settling, true);
        drop(list);
        if !is_settling {
            self.settle();
        }
        added
    }

    fn settle(&self) {
        let mut settling = Settling {
            master: self.clone(),
            has_ended: false,
        };
        // Without an engine the drop of `settling` undoes what was begun.
        if let Some(engine) = self.link.engine() {
            // Keeps the engine alive, which serves the connection, also when the client has been dropped.
            let own = Arc::clone(&engine);
            engine.spawn(async move {
                settling.run().await;
                drop(own);
            });
        }
    }
}

/// The job that settles the debts of a master.
struct Settling {
    master: Master,
    has_ended: bool,
}

impl Drop for Settling {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        // The runtime has shut down. The followers are dropped, so their releases count as unconfirmed. The next debt
        // starts another job.
        let mut list = lock(&self.master.debts.0);
        list.is_settling = false;
        let followers = list.waiting.iter_mut().map(|debt| debt.follower.take());
        let followers: Vec<_> = followers.collect();
        drop(list);
        drop(followers);
    }
}

impl Settling {
    async fn run(&mut self) {
        loop {
            match self.look() {
                Step::End => return,
                Step::Wait { next_look } => sleep_until(next_look).await,
                Step::Delete { next_look } => {
                    let up = self.master.link.wait_until_up();
                    if timeout_at(next_look, up).await.is_ok() && self.delete_all().await {
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Forgets the debts whose keys have expired, logs how many keys were left, and says what is to be done.
    fn look(&mut self) -> Step {
        let now = Instant::now();
        let mut list = lock(&self.master.debts.0);
        let mut expired = Vec::new();
        list.waiting.retain_mut(|debt| {
            if debt.gone > now {
                return true;
            }
            let end = self.expired(debt, now);
            expired.extend(end.map(|end| (end, debt.follower.take())));
            end.is_none()
        });
        list.left += expired.len();
        let to_log = list.left_to_log(now);
        let step = list.step(now);
        if matches!(step, Step::End) {
            list.is_settling = false;
            self.has_ended = true;
        }
        drop(list);
        for (end, follower) in expired {
            if let (End::Settled, Some(follower)) = (end, follower) {
                follower.confirmed();
            }
        }
        if let Some(keys) = to_log {
            tracing::warn!(
                master = %self.master.address(),
                keys,
                "the master did not confirm deletes; keys that it holds stay until their ttl ends"
            );
        }
        step
    }

    /// How a debt ends whose key has expired; `None` if it goes on.
    fn expired(&self, debt: &Debt, now: Instant) -> Option<End> {
        if !debt.may_come_back {
            return Some(End::Settled);
        }
        // A SET that was sent and not answered is executed when the master comes back to life, and its key lives for a
        // whole ttl from then on. The debt ends when a delete behind it is answered. Where the connection could not be
        // closed, no delete is behind it.
        let link = &self.master.link;
        let openness = debt.unanswered_on().map(|serial| link.openness(serial));
        let watch = if link.reconnects() {
            LONGEST_WATCH
        } else {
            LONGEST_WATCH_OF_EXTERNAL
        };
        let is_watched = openness != Some(Openness::Unclosed) && debt.gone + watch > now;
        (!is_watched).then_some(End::MayComeBack)
    }

    /// Sends each delete once. Returns whether some have to be sent again.
    async fn delete_all(&self) -> bool {
        let mut count = lock(&self.master.debts.0).waiting.len();
        let (mut has_kept, mut most) = (false, BATCH);
        while count > 0 {
            let mut batch = Batch::take(&self.master, count.min(most));
            count -= batch.debts.len();
            let has_answered = batch.delete().await;
            has_kept |= !batch.debts.is_empty();
            if !has_answered {
                break;
            }
            // The master answers, so it gets as many as it answers soon: far away, 64 for each round trip are few.
            most = BATCH.max(self.master.link.load().window());
        }
        has_kept
    }
}

/// Debts that are just being deleted. What is left of them goes back to the end of the list.
struct Batch<'a> {
    master: &'a Master,
    debts: Vec<Debt>,
    taken: usize,
}

impl<'a> Batch<'a> {
    fn take(master: &'a Master, most: usize) -> Self {
        let mut list = lock(&master.debts.0);
        let taken = most.min(list.waiting.len());
        let debts = list.waiting.drain(..taken).collect();
        list.under_way += taken;
        Self {
            master,
            debts,
            taken,
        }
    }

    /// Sends each delete, and forgets what is settled. Returns whether the master has answered one.
    async fn delete(&mut self) -> bool {
        let ends = join_all(self.debts.iter().map(|debt| debt.delete(self.master))).await;
        let mut ends_left = ends.iter();
        let mut refused = 0;
        self.debts.retain(|debt| match ends_left.next() {
            Some(End::Settled) => {
                if let Some(follower) = &debt.follower {
                    follower.confirmed();
                }
                false
            }
            Some(End::Refused) => {
                refused += 1;
                false
            }
            Some(End::MayComeBack | End::Failed) | None => true,
        });
        lock(&self.master.debts.0).left += refused;
        ends.iter().any(|end| *end != End::Failed)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut list = lock(&self.master.debts.0);
        list.under_way -= self.taken;
        list.waiting.extend(self.debts.drain(..));
    }
}

impl Debt {
    fn unanswered_on(&self) -> Option<u64> {
        self.deletes.dirty(self.place)?.unanswered_on
    }

    async fn delete(&self, master: &Master) -> End {
        // The answer to the last request has come meanwhile, and said that it set nothing.
        if self.deletes.dirty(self.place).is_none() {
            return End::Settled;
        }
        let request = Request::release(std::slice::from_ref(&self.key), &self.value);
        let permit = SendPermit::Delete(Arc::clone(&self.deletes), self.place);
        // An external connection may answer others and not this one. It must not hold up the rest.
        let answer = timeout(LONGEST_DELETE, master.ask(&request, permit, PAUSE)).await;
        answer.map_or(End::Failed, |answer| {
            End::of(&answer, &self.deletes, self.place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permit::DirtyMasters;

    fn debt(deletes: &Arc<Deletes>) -> Debt {
        Debt {
            key: Key::new(b"", b"key"),
            value: Value::handed_over("value".into()),
            deletes: Arc::clone(deletes),
            place: 0,
            gone: Instant::now(),
            may_come_back: false,
            follower: None,
        }
    }

    #[test]
    fn a_list_that_is_full_takes_no_more_and_counts_what_it_leaves() {
        let deletes = Arc::new(DirtyMasters::new(1).close().expect("it was open"));
        let mut list = List::default();
        for _ in 0..MOST {
            assert!(list.push(debt(&deletes)).is_none());
        }
        assert!(list.push(debt(&deletes)).is_some());
        // What is just being deleted may come back to the list.
        list.waiting.drain(..BATCH);
        list.under_way = BATCH;
        assert!(list.push(debt(&deletes)).is_some());
        assert_eq!((list.waiting.len(), list.left), (MOST - BATCH, 2));
        list.under_way = 0;
        assert!(list.push(debt(&deletes)).is_none());
    }

    #[test]
    fn keys_that_are_left_are_logged_together_and_seldom() {
        let (mut list, start) = (List::default(), Instant::now());
        assert_eq!(list.left_to_log(start), None);
        list.left = 3;
        assert_eq!(list.left_to_log(start), Some(3));
        list.left = 4;
        let soon = start + LOG_EVERY - Duration::from_millis(1);
        assert_eq!(list.left_to_log(soon), None);
        assert!(matches!(list.step(soon), Step::Wait { next_look } if next_look == soon + PAUSE));
        assert_eq!(list.left_to_log(start + LOG_EVERY), Some(4));
        assert!(matches!(list.step(soon), Step::End));
    }
}
