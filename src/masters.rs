//! All masters: one request to every one of them at once, and the votes as they come in.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, JoinAll, join_all};
use tokio::time::timeout;

use crate::error::{Ballots, MasterError, Vote};
use crate::inspect::{Sighting, State};
use crate::master::{Master, Request};
use crate::permit::{Deletes, DirtyMasters, SendPermit};
use crate::quorum::{Tally, Verdict, quorum};

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

    /// Sends a request to every master at once, and notes which may hold a key from it.
    ///
    /// Where too many are known to fail, nothing is sent: there would only be something to delete.
    pub(crate) fn ask(
        &self,
        request: &Request,
        dirty: &Arc<DirtyMasters>,
        patience: Duration,
    ) -> Round {
        let failures = self.0.iter().map(|it| it.known_failure(patience));
        let failures = failures
            .enumerate()
            .filter_map(|(master, it)| Some((master, it?)));
        // Takes no memory where none fails.
        let failures: Vec<_> = failures.collect();
        if self.count() - failures.len() < quorum(self.count()) {
            return Round::decided_by(self, failures);
        }
        let permit = |master| Some(SendPermit::Write(Arc::clone(dirty), master));
        self.round(request, permit, patience)
    }

    /// Sends a delete to those masters that may hold a key; the others count as having none.
    pub(crate) fn delete(
        &self,
        request: &Request,
        deletes: &Arc<Deletes>,
        patience: Duration,
    ) -> Round {
        let permit = |master| {
            deletes.dirty(master)?;
            Some(SendPermit::Delete(Arc::clone(deletes), master))
        };
        self.round(request, permit, patience)
    }

    /// Sends a delete to one master again and again, until there is an answer.
    pub(crate) async fn delete_until_answered(
        &self,
        master: usize,
        request: &Request,
        deletes: &Arc<Deletes>,
    ) -> Vote {
        let permit = SendPermit::Delete(Arc::clone(deletes), master);
        self.0[master].ask_until_answered(request, &permit).await
    }

    /// The votes where every master failed in the same way.
    pub(crate) fn all_failed(&self, error: &MasterError) -> Ballots {
        let votes = self.0.iter().map(|master| {
            let vote = Vote::Failed(error.clone());
            (master.address().clone(), vote)
        });
        Ballots::new(votes)
    }

    /// What there is to see where every master failed in the same way.
    pub(crate) fn all_unreachable(&self, error: &MasterError) -> Vec<Sighting> {
        let sightings = self.0.iter().map(|master| Sighting {
            master: master.address().clone(),
            state: State::Unreachable(error.clone()),
        });
        sightings.collect()
    }

    /// Asks every master what there is, and waits for all of them; for none longer than `patience`.
    pub(crate) async fn look(&self, request: &Request, patience: Duration) -> Vec<Sighting> {
        let masters = self.0.iter().cloned();
        join_all(masters.map(|master| master.look(request.clone(), patience))).await
    }

    fn round(
        &self,
        request: &Request,
        permit: impl Fn(usize) -> Option<SendPermit>,
        patience: Duration,
    ) -> Round {
        let votes = Arc::new(Mutex::new(Votes::new(self.count())));
        let asked = self.0.iter().enumerate().filter_map(|(place, master)| {
            let Some(permit) = permit(place) else {
                lock(&votes).cast(place, Vote::Refused);
                return None;
            };
            let vote = master.clone().ask(request.clone(), permit, patience);
            let votes = Arc::clone(&votes);
            // Boxed, because it is large, and moved on its way to the others.
            Some(vote.map(move |vote| lock(&votes).cast(place, vote)).boxed())
        });
        Round {
            asked: Some(join_all(asked)),
            masters: self.clone(),
            votes,
            patience,
        }
    }
}

/// One request to every master, under way.
pub(crate) struct Round {
    masters: Masters,
    votes: Arc<Mutex<Votes>>,
    /// How long a master may take to answer.
    patience: Duration,
    /// The masters that have not answered yet; `None` when all have.
    asked: Option<JoinAll<BoxFuture<'static, ()>>>,
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
    /// A round that ends before it begins, by the masters that are known to fail.
    fn decided_by(masters: &Masters, failures: Vec<(usize, MasterError)>) -> Self {
        let mut votes = Votes::new(masters.count());
        for (place, error) in failures {
            votes.cast(place, Vote::Failed(error));
        }
        Self {
            masters: masters.clone(),
            votes: Arc::new(Mutex::new(votes)),
            patience: Duration::ZERO,
            asked: None,
        }
    }

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

    /// Sees to the end of a round whose outcome is known, so that the slower masters get the request too.
    pub(crate) async fn finish(mut self, within: Duration) {
        self.ended(within).await;
    }

    /// What every master has said.
    pub(crate) fn ballots(&self) -> Ballots {
        let votes = lock(&self.votes);
        let votes = votes
            .cast
            .iter()
            .map(|vote| vote.clone().unwrap_or(Vote::Unheard));
        let masters = self.masters.0.iter().map(|it| it.address().clone());
        Ballots::new(masters.zip(votes))
    }

    /// What one master has said, if anything.
    pub(crate) fn vote(&self, master: usize) -> Option<Vote> {
        lock(&self.votes).cast[master].clone()
    }

    /// Whether all masters have answered or failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.asked.is_none()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Verdict {
        if let Some(asked) = &mut self.asked
            && asked.poll_unpin(cx).is_ready()
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
                // Given less time than that, it has not failed.
                let error = if after < self.patience {
                    MasterError::TimedOut(after)
                } else {
                    master.report_timeout(after)
                };
                votes.cast(place, Vote::Failed(error));
            }
        }
        votes.tally.verdict()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
