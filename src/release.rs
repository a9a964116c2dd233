//! Releasing: a compare-and-delete on every master that may hold the key, followed until it is answered or the
//! key is gone, whoever waits for it and whatever becomes of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::{Clock, Moment};
use crate::error::{Ballots, Vote, name};
use crate::farewell::{Farewell, PATIENCE, Wish};
use crate::master::Request;
use crate::masters::{Masters, Round};
use crate::quorum::Verdict;

/// The releases of one `Redlock` that are not confirmed yet.
#[derive(Clone)]
pub(crate) struct Releases(Arc<Inner>);

struct Inner {
    under_way: watch::Sender<usize>,
    /// Those that a master has answered in a way that leaves no hope.
    failed: AtomicUsize,
    farewell: Arc<Farewell>,
}

impl Releases {
    pub(crate) fn new(masters: &Masters) -> Self {
        Self(Arc::new(Inner {
            under_way: watch::Sender::new(0),
            failed: AtomicUsize::new(0),
            farewell: Farewell::new(masters.siblings()),
        }))
    }

    /// Waits until none is under way, at most for `within`, and tells how many are not confirmed.
    pub(crate) async fn done(&self, within: Duration) -> usize {
        let mut under_way = self.0.under_way.subscribe();
        let done = under_way.wait_for(|&count| count == 0);
        let left = match timeout(within, done).await {
            Ok(_) => 0,
            Err(_) => *self.0.under_way.borrow(),
        };
        left + self.0.failed.load(Ordering::Relaxed)
    }

    fn begin(&self) -> Ticket {
        self.0.under_way.send_modify(|count| *count += 1);
        Ticket(self.clone())
    }
}

/// A release under way, counted as long as this exists.
struct Ticket(Releases);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.under_way.send_modify(|count| *count -= 1);
    }
}

/// What is to be released, and where.
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
    pub(crate) resource: Box<[u8]>,
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
        let ticket = releases.begin();
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
    pub(crate) async fn decided(mut self) -> (Verdict, Ballots) {
        let Some(undo) = &mut self.0 else {
            return (Verdict::Defeated, Ballots::default());
        };
        let Undo { task, round, .. } = undo;
        let verdict = round.decided(task.patience).await;
        if verdict == Verdict::Carried {
            return (verdict, round.ballots());
        }
        let not_ours = |vote: &Vote| matches!(vote, Vote::Refused);
        (verdict, round.explained(not_ours, task.patience).await)
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let Some(undo) = self.0.take() else { return };
        if undo.round.without(Vote::is_settled).is_empty() {
            return;
        }
        let own = undo.task.runtime.clone();
        // A current-thread runtime that we are not within may never run again.
        let runs = own.runtime_flavor() != RuntimeFlavor::CurrentThread
            || Handle::try_current().is_ok_and(|here| here.id() == own.id());
        if runs && !is_thread_ending() {
            own.spawn(
                Unattended {
                    undo: Some(undo),
                    spawned: true,
                }
                .run(),
            );
        } else {
            drop(Unattended {
                undo: Some(undo),
                spawned: false,
            });
        }
    }
}

fn is_thread_ending() -> bool {
    Handle::try_current().is_err_and(|error| error.is_thread_local_destroyed())
}

/// A release in the background. Should its runtime drop it unfinished when it shuts down, it is finished without
/// one.
struct Unattended {
    undo: Option<Undo>,
    spawned: bool,
}

impl Unattended {
    async fn run(mut self) {
        if let Some(undo) = &mut self.undo {
            undo.finish().await;
        }
        self.undo = None;
    }
}

impl Drop for Unattended {
    fn drop(&mut self) {
        let Some(Undo {
            task,
            round,
            ticket,
        }) = self.undo.take()
        else {
            return;
        };
        let Task {
            masters,
            request,
            runtime,
            resource,
            ..
        } = task;
        let mut held = vec![false; masters.count()];
        for place in round.without(Vote::is_settled) {
            held[place] = true;
        }
        drop(round);
        let farewell = Arc::clone(&ticket.0.0.farewell);
        let (finished, wait) = sync_channel(1);
        let wish = Wish {
            request,
            held,
            connections: masters.orphans(self.spawned.then(|| runtime.id())),
            granted: Box::new(move |granted| {
                if !granted {
                    warn_unconfirmed(&resource, "its runtime has shut down");
                }
                drop(ticket);
                let _ = finished.try_send(());
            }),
        };
        farewell.send(wish);
        let wait = move || {
            let _ = wait.recv_timeout(PATIENCE);
        };
        match Handle::try_current() {
            // A runtime that is alive is not made to wait, but should not end before.
            Ok(here) if here.id() != runtime.id() => drop(here.spawn_blocking(wait)),
            // Its own, if we are within it, is shutting down.
            _ => wait(),
        }
    }
}

impl Undo {
    async fn finish(&mut self) {
        let Self {
            task,
            round,
            ticket,
        } = self;
        round.ended(task.patience).await;
        let unsettled = round.without(Vote::is_settled);
        if unsettled.is_empty() {
            return;
        }
        let asked = unsettled.into_iter().map(|place| {
            let master = task.masters.get(place);
            master.ask_until_answered(task.request.clone())
        });
        let left = task.clock.now().until(task.gone);
        match timeout(left, join_all(asked)).await {
            Ok(votes) if votes.iter().all(Vote::is_settled) => {}
            Ok(_) => {
                ticket.0.0.failed.fetch_add(1, Ordering::Relaxed);
                warn_unconfirmed(&task.resource, "a master refused it");
            }
            Err(_) => warn_unconfirmed(
                &task.resource,
                "a master did not answer until the ttl was over",
            ),
        }
    }
}

fn warn_unconfirmed(resource: &[u8], reason: &str) {
    tracing::warn!(
        resource = name(resource),
        reason,
        "a release in the background could not be confirmed"
    );
}
