//! Releasing: a compare-and-delete on every master that may hold the key, followed until it is answered or the
//! key is gone, whoever waits for it and whatever becomes of them.

use std::mem;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::{self, Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::{Clock, Moment};
use crate::error::{Ballots, Vote, name};
use crate::farewell::{Farewell, PATIENCE, Wish};
use crate::key::Key;
use crate::master::Request;
use crate::masters::{Masters, Round};
use crate::quorum::Verdict;

/// The releases of one `Redlock` that are not confirmed yet.
#[derive(Clone)]
pub(crate) struct Releases(Arc<Inner>);

struct Inner {
    count: watch::Sender<Count>,
    farewell: Arc<Farewell>,
}

#[derive(Default)]
struct Count {
    under_way: usize,
    /// Those that have ended unconfirmed, as far as nobody has been told yet.
    unconfirmed: usize,
}

impl Releases {
    pub(crate) fn new(masters: &Masters) -> Self {
        Self(Arc::new(Inner {
            count: watch::Sender::default(),
            farewell: Farewell::new(masters.clone()),
        }))
    }

    /// Waits until none is under way, at most for `within`, and tells how many are not confirmed.
    pub(crate) async fn done(&self, within: Duration) -> usize {
        let mut count = self.0.count.subscribe();
        // In time or not: then these are what is left.
        let _ = timeout(within, count.wait_for(|count| count.under_way == 0)).await;
        let mut left = 0;
        self.0.count.send_if_modified(|count| {
            left = count.under_way + mem::take(&mut count.unconfirmed);
            false
        });
        left
    }

    fn begin(&self, key: &Key) -> Ticket {
        self.0.count.send_modify(|count| count.under_way += 1);
        Ticket {
            releases: self.clone(),
            key: key.clone(),
            complaint: Some("its runtime or its thread has ended"),
        }
    }
}

/// A release under way, counted as long as this exists.
struct Ticket {
    releases: Releases,
    key: Key,
    /// Why it is not confirmed, should it end now; `None` if it is.
    complaint: Option<&'static str>,
}

impl Ticket {
    fn settle(&mut self) {
        self.complaint = None;
    }

    fn farewell(&self) -> Arc<Farewell> {
        Arc::clone(&self.releases.0.farewell)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(reason) = self.complaint {
            warn_unconfirmed(&self.key, reason);
        }
        self.releases.0.count.send_modify(|count| {
            count.under_way -= 1;
            count.unconfirmed += usize::from(self.complaint.is_some());
        });
    }
}

/// What is to be released, and where.
#[derive(Clone)]
pub(crate) struct Task {
    pub(crate) masters: Masters,
    pub(crate) request: Request,
    /// The masters that may hold the key.
    pub(crate) held: Vec<bool>,
    /// When the key is gone by itself.
    pub(crate) gone: Moment,
    pub(crate) clock: Clock,
    pub(crate) patience: Duration,
    pub(crate) runtime: Handle,
    pub(crate) key: Key,
}

/// A release under way. Dropped, it goes on in the background.
pub(crate) struct Release(Option<Undo>);

struct Undo {
    task: Task,
    round: Round,
    ticket: Ticket,
}

impl Release {
    /// Hands the compare-and-delete to every master that may hold the key, here and now: whatever the same
    /// client asks of a master next comes after it.
    pub(crate) fn begin(task: Task, releases: &Releases) -> Self {
        let ticket = releases.begin(&task.key);
        let mut round = task.masters.undo(&task.request, &task.held, task.patience);
        // Not while the thread is being taken down: then there is no entering a runtime any more.
        if !is_thread_ending() {
            let context = task.runtime.enter();
            round.hand_over();
            drop(context);
        }
        Self(Some(Undo {
            task,
            round,
            ticket,
        }))
    }

    /// Waits until it is certain whether the lock was ours on a quorum.
    pub(crate) async fn decided(mut self) -> Result<(), Ballots> {
        let Some(undo) = &mut self.0 else {
            return Ok(());
        };
        let Undo { task, round, .. } = undo;
        if round.decided(task.patience).await == Verdict::Carried {
            return Ok(());
        }
        let not_ours = |vote: &Vote| matches!(vote, Vote::Refused);
        Err(round.explained(not_ours, task.patience).await)
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let Some(mut undo) = self.0.take() else {
            return;
        };
        if undo.round.unsettled().is_empty() {
            undo.ticket.settle();
            return;
        }
        if is_thread_ending() {
            undo.finish_elsewhere(None);
            return;
        }
        let own = undo.task.runtime.clone();
        let is_within = Handle::try_current().is_ok_and(|here| here.id() == own.id());
        if is_within || own.runtime_flavor() != RuntimeFlavor::CurrentThread {
            own.spawn(Unattended(Some(undo)).run());
        } else {
            undo.finish_here_or_elsewhere(&own);
        }
    }
}

fn is_thread_ending() -> bool {
    Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed())
}

/// A release in the background. Should its runtime drop it unfinished when it shuts down, it is finished without
/// one.
struct Unattended(Option<Undo>);

impl Unattended {
    async fn run(mut self) {
        if let Some(undo) = &mut self.0 {
            undo.finish().await;
        }
        self.0 = None;
    }
}

impl Drop for Unattended {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            let gone = undo.task.runtime.id();
            undo.finish_elsewhere(Some(gone));
        }
    }
}

/// A release in the background that is finished beside its runtime too, until that one takes it.
struct Untaken(Arc<Mutex<Option<Undo>>>);

impl Untaken {
    async fn run(self) {
        Unattended(take(&self.0)).run().await;
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        drop(Unattended(take(&self.0)));
    }
}

impl Undo {
    /// Finishes it without its runtime. If that has shut down, `gone`, its connections are closed first.
    fn finish_elsewhere(self, gone: Option<runtime::Id>) {
        let Self {
            task,
            round,
            mut ticket,
        } = self;
        let unsettled = round.unsettled();
        drop(round);
        bid(&ticket.farewell(), &task, unsettled, gone, move |granted| {
            if granted {
                ticket.settle();
            }
        });
    }

    /// Finishes it without its runtime, which may never run again; and within it, should it run before that is done.
    fn finish_here_or_elsewhere(self, own: &Handle) {
        let (task, unsettled) = (self.task.clone(), self.round.unsettled());
        let farewell = self.ticket.farewell();
        let slot = Arc::new(Mutex::new(Some(self)));
        own.spawn(Untaken(Arc::clone(&slot)).run());
        bid(&farewell, &task, unsettled, None, move |granted| {
            if granted && let Some(mut undo) = take(&slot) {
                undo.ticket.settle();
            }
        });
    }

    async fn finish(&mut self) {
        let Self {
            task,
            round,
            ticket,
        } = self;
        round.ended(task.patience).await;
        let unsettled = round.unsettled();
        if unsettled.is_empty() {
            ticket.settle();
            return;
        }
        let asked = unsettled.into_iter().map(|place| {
            let master = task.masters.get(place);
            master.ask_until_answered(task.request.clone())
        });
        let left = task.clock.now().until(task.gone);
        ticket.complaint = match timeout(left, join_all(asked)).await {
            Ok(votes) if votes.iter().all(Vote::is_settled) => None,
            Ok(_) => Some("a master refused it"),
            Err(_) => {
                // The key is gone: nothing is left that could be confirmed.
                warn_unconfirmed(&task.key, "a master did not answer until the ttl was over");
                None
            }
        };
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Sends what is left of a task without its runtime, and waits for that a moment, where that keeps no runtime from
/// its work.
fn bid(
    farewell: &Arc<Farewell>,
    task: &Task,
    unsettled: Vec<usize>,
    gone: Option<runtime::Id>,
    granted: impl FnOnce(bool) + Send + 'static,
) {
    let (finished, wait) = sync_channel(1);
    farewell.send(Wish {
        request: task.request.clone(),
        places: unsettled,
        connections: task.masters.orphans(gone),
        granted: Box::new(move |is_granted| {
            granted(is_granted);
            let _ = finished.try_send(());
        }),
    });
    let wait = move || {
        let _ = wait.recv_timeout(PATIENCE);
    };
    match Handle::try_current() {
        // A runtime that is alive is not made to wait, but should not end before.
        Ok(here) if here.id() != task.runtime.id() => drop(here.spawn_blocking(wait)),
        // Its own, if we are within it, is shutting down.
        _ => wait(),
    }
}

fn warn_unconfirmed(key: &Key, reason: &str) {
    tracing::warn!(
        resource = name(key.resource()),
        reason,
        "a release in the background could not be confirmed"
    );
}
