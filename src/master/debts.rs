//! The deletes that one master owes an answer to. They are sent again, all together and at one pace, until the master has
//! answered or the keys have expired.
//!
//! A debt is a few hundred bytes, and there are at most [`MOST`] of them: a master that is silent, refuses deletes, or
//! cannot keep up costs neither a task for each key nor a log line.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};

use super::link::Openness;
use super::{Answer, Master, Request};
use crate::permit::{Deletes, SendPermit};
use crate::protocol::key::Key;
use crate::protocol::value::Value;
use crate::sync::lock;

/// More deletes than this are not remembered: with some 500 bytes each, 8 MB for one master of one client.
const MOST: usize = 16_384;

/// The pause between two rounds of deletes on a master that answers none of them.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a master that has not come back is watched for requests that it may still execute, after their ttl.
const LONGEST_WATCH: Duration = Duration::from_secs(600);

/// How many deletes are sent together.
const BATCH: usize = 64;

/// A key that may be left on a master.
pub(crate) struct Debt {
    pub(crate) key: Key,
    pub(crate) value: Value,
    pub(crate) deletes: Arc<Deletes>,
    /// The place of the master among all masters, for `deletes`.
    pub(crate) place: usize,
    /// When the key has expired, unless a `SET` is executed after now.
    pub(crate) gone: Instant,
    /// Told how it ends.
    pub(crate) follower: Option<Arc<dyn Follower>>,
}

/// Who wants to know how the deletes end.
pub(crate) trait Follower: Send + Sync {
    /// The master holds no key any more.
    fn confirmed(&self);
}

/// How one delete of a debt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The key is not there, now and later.
    Settled,
    /// The delete has to be sent again.
    Open,
    /// The master does not allow it.
    Refused,
}

/// The debts of one master.
#[derive(Default)]
pub(crate) struct Debts(Mutex<List>);

#[derive(Default)]
struct List {
    debts: Vec<Debt>,
    /// Whether a job settles them.
    is_settling: bool,
    /// How many keys may be left until their ttl ends, since that was last logged.
    left: usize,
}

impl Master {
    /// Deletes a key until the master has answered.
    pub(crate) fn owe(&self, debt: Debt) {
        let mut list = lock(&self.debts.0);
        if list.debts.len() >= MOST {
            list.left += 1;
            return;
        }
        list.debts.push(debt);
        if !list.is_settling
            && let Some(engine) = self.link.engine()
        {
            list.is_settling = true;
            drop(list);
            let settling = Settling {
                master: self.clone(),
            };
            engine.spawn(async move { settling.run().await });
        }
    }
}

/// The job that settles the debts of a master.
struct Settling {
    master: Master,
}

impl Drop for Settling {
    fn drop(&mut self) {
        lock(&self.master.debts.0).is_settling = false;
    }
}

impl Settling {
    async fn run(&self) {
        let Self { master } = self;
        // Keeps the engine alive, which serves the connection, also when the client has been dropped.
        let _engine = master.link.engine();
        while let Some(next_look) = self.expire() {
            if timeout_at(next_look, master.link.wait_until_up())
                .await
                .is_err()
            {
                continue;
            }
            let is_progress = self.delete_all().await;
            if !is_progress {
                sleep(PAUSE).await;
            }
        }
    }

    /// Forgets the debts whose keys have expired. Returns when that is to be done again; `None` if there are no debts,
    /// and then this job has ended.
    fn expire(&self) -> Option<Instant> {
        let now = Instant::now();
        let link = &self.master.link;
        let mut list = lock(&self.master.debts.0);
        let mut left = 0;
        let mut released = Vec::new();
        list.debts.retain_mut(|debt| {
            if debt.gone > now {
                return true;
            }
            match debt.unanswered_on().map(|serial| link.openness(serial)) {
                // A SET that was sent and not answered is executed when the master comes back to life, and its key lives
                // for a whole ttl from then on. The debt ends when a delete behind it is answered.
                Some(Openness::Current) if debt.gone + LONGEST_WATCH > now => return true,
                // The same on a connection that could not be closed. No delete is behind it there.
                Some(Openness::Current | Openness::Unclosed) => {}
                // Nothing is left that could be confirmed.
                None | Some(Openness::Closed) => released.extend(debt.follower.take()),
            }
            left += 1;
            false
        });
        list.left += left;
        let is_empty = list.debts.is_empty();
        let mut to_log = 0;
        if is_empty {
            list.is_settling = false;
            to_log = std::mem::take(&mut list.left);
        }
        drop(list);
        for follower in released {
            follower.confirmed();
        }
        if to_log > 0 {
            tracing::warn!(
                master = %link.address(),
                keys = to_log,
                "the master did not confirm deletes until the ttl was over"
            );
        }
        (!is_empty).then_some(now + PAUSE)
    }

    /// Sends all deletes once. Returns whether the master has settled some.
    async fn delete_all(&self) -> bool {
        let Self { master } = self;
        let debts = std::mem::take(&mut lock(&master.debts.0).debts);
        // Put back also when this is dropped half way.
        let mut rest = Rest { master, debts };
        let mut kept = Vec::new();
        let before = rest.debts.len();
        let mut settled = 0;
        while !rest.debts.is_empty() {
            let from = rest.debts.len().saturating_sub(BATCH);
            let ends = rest.debts[from..].iter().map(|debt| debt.delete(master));
            let ends = join_all(ends).await;
            let batch = rest.debts.split_off(from);
            let mut is_silent = true;
            for (debt, end) in batch.into_iter().zip(ends) {
                match end {
                    End::Settled => {
                        settled += 1;
                        is_silent = false;
                        if let Some(follower) = &debt.follower {
                            follower.confirmed();
                        }
                    }
                    End::Refused => {
                        is_silent = false;
                        lock(&master.debts.0).left += 1;
                    }
                    End::Open => kept.push(debt),
                }
            }
            if is_silent {
                break;
            }
        }
        rest.debts.extend(kept);
        settled > 0 && settled < before
    }
}

/// Debts that are being settled.
struct Rest<'a> {
    master: &'a Master,
    debts: Vec<Debt>,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let mut list = lock(&self.master.debts.0);
        // Before those that have come meanwhile.
        let new = std::mem::take(&mut list.debts);
        list.debts = std::mem::take(&mut self.debts);
        list.debts.extend(new);
    }
}

impl Debt {
    fn unanswered_on(&self) -> Option<u64> {
        self.deletes.dirty(self.place)?.unanswered_on
    }

    async fn delete(&self, master: &Master) -> End {
        let request = Request::release(std::slice::from_ref(&self.key), &self.value);
        let permit = SendPermit::Delete(Arc::clone(&self.deletes), self.place);
        let answer = master.send(&request, &permit, PAUSE).await;
        let has_found = matches!(answer, Answer::Granted(_));
        if answer.is_settled() && !self.deletes.may_be_late(self.place, has_found) {
            End::Settled
        } else if answer.is_settled() || answer.may_pass() {
            End::Open
        } else {
            End::Refused
        }
    }
}
