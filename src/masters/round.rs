//! One request to all masters, from sending it to the outcome.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, JoinAll, join_all};
use tokio::time::timeout;

use super::Masters;
use crate::master::Master;
use crate::protocol::quorum::{Outcome, Tally, reaches_quorum};
use crate::sync::lock;
use crate::vote::{Ballots, MasterError, Vote};

/// Whether a quorum of the votes is of a kind.
pub(crate) fn is_quorum(ballots: &Ballots, kind: impl Fn(&Vote) -> bool) -> bool {
    reaches_quorum(ballots.count(kind), ballots.len())
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
    /// Asks each master at once, in the way that `ask` says; or casts the vote of one that is not to be asked.
    pub(super) fn begin<F>(
        masters: &Masters,
        patience: Duration,
        ask: impl Fn(usize, &Master) -> Result<F, Vote>,
    ) -> Self
    where
        F: Future<Output = Vote> + Send + 'static,
    {
        let votes = Arc::new(Mutex::new(Votes::new(masters.count())));
        let asked = masters.0.iter().enumerate().filter_map(|(place, master)| {
            let vote = match ask(place, master) {
                Ok(vote) => vote,
                Err(vote) => {
                    lock(&votes).cast(place, vote);
                    return None;
                }
            };
            let votes = Arc::clone(&votes);
            // Boxed, because it is large, and moved on its way to the others.
            Some(vote.map(move |vote| lock(&votes).cast(place, vote)).boxed())
        });
        Self {
            asked: Some(join_all(asked)),
            masters: masters.clone(),
            votes,
            patience,
        }
    }

    /// A round that ends before it begins, by the masters that are known to fail.
    pub(super) fn decided_by(masters: &Masters, failures: Vec<(usize, MasterError)>) -> Self {
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
    pub(crate) async fn decided(&mut self, within: Duration) -> Outcome {
        let decided = poll_fn(|cx| match self.poll(cx) {
            Outcome::Undecided => Poll::Pending,
            outcome => Poll::Ready(outcome),
        });
        match timeout(within, decided).await {
            Ok(outcome) => outcome,
            Err(_) => self.give_up(within),
        }
    }

    /// Waits, after a defeat, until it is certain as well whether a quorum has given that reason for it; at most
    /// `within`. That there is no quorum is certain before.
    pub(crate) async fn reason_known(
        &mut self,
        reason: impl Fn(&Vote) -> bool,
        within: Duration,
    ) -> Ballots {
        let possible = |vote: &Vote| reason(vote) || matches!(vote, Vote::NotNeeded);
        let ballots = self.ballots();
        if is_quorum(&ballots, &reason) || !is_quorum(&ballots, possible) {
            return ballots;
        }
        self.finished(within).await;
        self.ballots()
    }

    /// Waits until every master has answered or failed, or `within` has passed.
    pub(crate) async fn finished(&mut self, within: Duration) {
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
        self.finished(within).await;
    }

    /// What every master has said.
    pub(crate) fn ballots(&self) -> Ballots {
        let votes = lock(&self.votes);
        let votes = votes
            .cast
            .iter()
            .map(|vote| vote.clone().unwrap_or(Vote::NotNeeded));
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Outcome {
        if let Some(asked) = &mut self.asked
            && asked.poll_unpin(cx).is_ready()
        {
            self.asked = None;
        }
        lock(&self.votes).tally.outcome()
    }

    fn give_up(&mut self, after: Duration) -> Outcome {
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
        votes.tally.outcome()
    }
}
