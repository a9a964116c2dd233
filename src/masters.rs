//! All masters: one request to every one of them at once, and the votes as they come in.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::runtime;
use tokio::time::timeout;

use crate::error::{Ballots, Vote};
use crate::inspect::Sighting;
use crate::master::{Identity, Master, Request};
use crate::quorum::{Tally, Verdict};
use crate::trail::{Step, Trail};

/// The masters, in the order in which they were given.
#[derive(Clone, Debug)]
pub(crate) struct Masters(Arc<[Master]>);

impl Masters {
    pub(crate) fn new(masters: Vec<Master>) -> Self {
        Self(masters.into())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The same masters with connections of their own.
    pub(crate) fn siblings(&self) -> Self {
        Self(self.0.iter().map(Master::sibling).collect())
    }

    /// Asks every master at once, and notes on the trail what is handed over.
    pub(crate) fn ask(&self, request: &Request, trail: &Arc<Trail>, patience: Duration) -> Round {
        let step = |master| Some(Step::On(Arc::clone(trail), master));
        self.round(request, step, patience)
    }

    /// Asks those masters that may hold a key to delete it; the others count as having none.
    pub(crate) fn undo(&self, request: &Request, held: &[bool], patience: Duration) -> Round {
        let step = |master: usize| held[master].then_some(Step::Undo);
        self.round(request, step, patience)
    }

    /// Asks every master what there is, and waits for all of them; for none longer than `patience`.
    pub(crate) async fn look(&self, request: &Request, patience: Duration) -> Vec<Sighting> {
        let masters = self.0.iter().cloned();
        join_all(masters.map(|master| master.look(request.clone(), patience))).await
    }

    fn round(
        &self,
        request: &Request,
        step: impl Fn(usize) -> Option<Step>,
        patience: Duration,
    ) -> Round {
        let poll = Arc::new(Mutex::new(Votes::new(self.count())));
        let asked = self.0.iter().enumerate().filter_map(|(place, master)| {
            let Some(step) = step(place) else {
                lock(&poll).cast(place, Vote::Refused);
                return None;
            };
            let (master, request, poll) = (master.clone(), request.clone(), Arc::clone(&poll));
            Some(async move {
                let vote = master.ask(request, step, patience).await;
                lock(&poll).cast(place, vote);
            })
        });
        let asked = join_all(asked);
        Round {
            masters: self.clone(),
            votes: poll,
            asked: Some(Box::pin(async move {
                asked.await;
            })),
        }
    }

    /// The connections that have ended or end with a runtime, in the order of the masters.
    pub(crate) fn orphans(&self, gone: Option<runtime::Id>) -> Vec<Option<Identity>> {
        self.0.iter().map(|master| master.orphan(gone)).collect()
    }

    /// Asks those masters that may hold a key to delete it, once another connection to each has been closed. Tells
    /// whether all of them have answered.
    pub(crate) async fn undo_after(
        &self,
        closing: Vec<Option<Identity>>,
        request: &Request,
        held: &[bool],
        patience: Duration,
    ) -> bool {
        let masters = self.0.iter().cloned().zip(closing).zip(held);
        let asked =
            masters
                .filter(|(_, held)| **held)
                .map(|((master, connection), _)| async move {
                    if let Some(connection) = connection {
                        master.close(connection, patience).await;
                    }
                    master
                        .ask(request.clone(), Step::Undo, patience)
                        .await
                        .is_settled()
                });
        join_all(asked).await.into_iter().all(|settled| settled)
    }

    pub(crate) fn get(&self, place: usize) -> Master {
        self.0[place].clone()
    }
}

/// One request to every master, under way.
pub(crate) struct Round {
    masters: Masters,
    votes: Arc<Mutex<Votes>>,
    /// The masters that have not answered yet; `None` when all have.
    asked: Option<BoxFuture<'static, ()>>,
}

/// Who has said what, and what that makes.
struct Votes {
    cast: Vec<Option<Vote>>,
    tally: Tally,
}

impl Votes {
    fn new(masters: usize) -> Self {
        Self {
            cast: vec![None; masters],
            tally: Tally::new(masters),
        }
    }

    fn cast(&mut self, master: usize, vote: Vote) {
        self.tally.count(matches!(vote, Vote::Granted));
        self.cast[master] = Some(vote);
    }
}

impl Round {
    /// Waits until the outcome is certain, and for nobody longer; at the latest `within` from now, when those
    /// who have not answered count as failed.
    pub(crate) async fn decided(&mut self, within: Duration) -> Verdict {
        let decided = poll_fn(|cx| match self.poll(cx) {
            Verdict::Open => Poll::Pending,
            verdict => Poll::Ready(verdict),
        });
        match timeout(within, decided).await {
            Ok(verdict) => verdict,
            Err(_) => self.give_up(within),
        }
    }

    /// Waits, after a defeat, until it is certain as well whether a quorum has given that reason for it; at most
    /// `within`. That there is no quorum is certain before.
    pub(crate) async fn explained(
        &mut self,
        reason: impl Fn(&Vote) -> bool,
        within: Duration,
    ) -> Ballots {
        let possible = |vote: &Vote| reason(vote) || matches!(vote, Vote::Unheard);
        let ballots = self.ballots();
        if ballots.is_quorum(&reason) || !ballots.is_quorum(possible) {
            return ballots;
        }
        self.ended(within).await;
        self.ballots()
    }

    /// Waits until every master has answered or failed, or `within` has passed.
    pub(crate) async fn ended(&mut self, within: Duration) {
        let ended = poll_fn(|cx| {
            self.poll(cx);
            if self.asked.is_some() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        if timeout(within, ended).await.is_err() {
            self.give_up(within);
        }
    }

    /// Hands the request to every master that there is a connection to, here and now.
    pub(crate) fn hand_over(&mut self) {
        self.poll(&mut Context::from_waker(Waker::noop()));
    }

    /// What every master has said.
    pub(crate) fn ballots(&self) -> Ballots {
        let votes = lock(&self.votes);
        let votes = votes
            .cast
            .iter()
            .map(|vote| vote.clone().unwrap_or(Vote::Unheard));
        Ballots::new(
            self.masters
                .0
                .iter()
                .map(|master| master.address().clone())
                .zip(votes),
        )
    }

    /// The places of those masters whose vote is not among the ones asked for.
    pub(crate) fn without(&self, answered: impl Fn(&Vote) -> bool) -> Vec<usize> {
        let votes = lock(&self.votes);
        let votes = votes.cast.iter().enumerate();
        let unanswered = votes.filter(|(_, vote)| !vote.as_ref().is_some_and(&answered));
        unanswered.map(|(place, _)| place).collect()
    }

    /// Whether all masters have answered or failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.asked.is_none()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Verdict {
        if let Some(asked) = &mut self.asked
            && asked.as_mut().poll(cx).is_ready()
        {
            self.asked = None;
        }
        lock(&self.votes).tally.verdict()
    }

    fn give_up(&mut self, after: Duration) -> Verdict {
        self.asked = None;
        let mut votes = lock(&self.votes);
        for (place, master) in self.masters.0.iter().enumerate() {
            if votes.cast[place].is_none() {
                let error = master.report_timeout(after);
                votes.cast(place, Vote::Failed(error));
            }
        }
        votes.tally.verdict()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
