//! One request to all masters, from the first byte to the outcome.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{JoinAll, join_all};
use tokio::time::timeout;

use super::Masters;
use crate::master::{Answer, Asked, Master};
use crate::protocol::quorum::{Outcome, Tally, reaches_quorum};
use crate::sync::lock;
use crate::vote::{Ballots, MasterError, Vote};

/// Whether a quorum of the votes is of a kind.
pub(crate) fn is_quorum(ballots: &Ballots, kind: impl Fn(&Vote) -> bool) -> bool {
    reaches_quorum(ballots.count(kind), ballots.len())
}

/// One request to every master, in progress.
pub(crate) struct Round {
    record: Record,
    /// The requests that have no answer yet; `None` when each has one.
    unanswered: Option<JoinAll<Counted>>,
}

/// The masters, and what they have answered so far. Clones share the answers.
#[derive(Clone)]
pub(crate) struct Record {
    masters: Masters,
    answers: Arc<Mutex<Answers>>,
}

/// A request to one master, whose answer is added to the others.
struct Counted {
    asked: Asked,
    answers: Arc<Mutex<Answers>>,
    place: usize,
}

impl Future for Counted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let answer = ready!(self.asked.poll_unpin(cx));
        lock(&self.answers).add(self.place, answer);
        Poll::Ready(())
    }
}

/// The answers so far, and the outcome that they make.
struct Answers {
    /// In the order of the masters.
    received: Vec<Option<Answer>>,
    tally: Tally,
}

impl Answers {
    fn new(masters: usize) -> Self {
        Self {
            received: vec![None; masters],
            tally: Tally::new(masters),
        }
    }

    fn add(&mut self, master: usize, answer: Answer) {
        self.tally.count(matches!(answer, Answer::Granted(_)));
        self.received[master] = Some(answer);
    }
}

impl Round {
    /// Asks every master at once by `ask`. Where this returns an answer instead, the master is not asked.
    pub(super) fn begin(
        masters: &Masters,
        ask: impl Fn(usize, &Master) -> Result<Asked, Answer>,
    ) -> Self {
        let answers = Arc::new(Mutex::new(Answers::new(masters.count())));
        let mut unanswered = Vec::with_capacity(masters.count());
        for (place, master) in masters.all.iter().enumerate() {
            match ask(place, master) {
                Ok(asked) => unanswered.push(Counted {
                    asked,
                    answers: Arc::clone(&answers),
                    place,
                }),
                Err(answer) => lock(&answers).add(place, answer),
            }
        }
        Self {
            // Polls the requests in the order of the masters, so a simulation repeats itself.
            unanswered: Some(join_all(unanswered)),
            record: Record {
                masters: masters.clone(),
                answers,
            },
        }
    }

    /// A round in which nothing is sent, because these masters are known to fail.
    pub(super) fn decided_by(masters: &Masters, failures: Vec<(usize, MasterError)>) -> Self {
        let mut answers = Answers::new(masters.count());
        for (place, error) in failures {
            answers.add(place, Answer::Failed(error));
        }
        Self {
            record: Record {
                masters: masters.clone(),
                answers: Arc::new(Mutex::new(answers)),
            },
            unanswered: None,
        }
    }

    /// Waits until the outcome is certain, and for no further answer; at most `within`. Masters that have not answered by
    /// then count as failed.
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

    /// After a round without a quorum: waits until it is also certain whether a quorum of the votes has that reason; at
    /// most `within`.
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

    /// Waits until every master has answered or failed; at most `within`.
    pub(crate) async fn finished(&mut self, within: Duration) {
        let finished = poll_fn(|cx| {
            self.poll(cx);
            if self.unanswered.is_some() {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        if timeout(within, finished).await.is_err() {
            self.give_up(within);
        }
    }

    /// Runs a round whose outcome is known to its end, so that the slower masters get the request, too.
    pub(crate) async fn finish(mut self, within: Duration) {
        self.finished(within).await;
    }

    /// The vote of every master.
    pub(crate) fn ballots(&self) -> Ballots {
        self.record.ballots()
    }

    pub(crate) fn record(&self) -> Record {
        self.record.clone()
    }

    /// The answer of one master; `None` if there is none yet.
    pub(crate) fn answer(&self, master: usize) -> Option<Answer> {
        lock(&self.record.answers).received[master].clone()
    }

    /// Whether every master has answered or failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.unanswered.is_none()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Outcome {
        if let Some(unanswered) = &mut self.unanswered
            && unanswered.poll_unpin(cx).is_ready()
        {
            // Never polled again: a `JoinAll` that has ended panics.
            self.unanswered = None;
        }
        // After the futures are polled: they take the same lock to add their answers.
        lock(&self.record.answers).tally.outcome()
    }

    /// Stops waiting. Masters that have not answered count as failed.
    fn give_up(&mut self, after: Duration) -> Outcome {
        // Dropped first: an answer that is added later would be counted twice.
        self.unanswered = None;
        let mut answers = lock(&self.record.answers);
        for place in 0..answers.received.len() {
            if answers.received[place].is_none() {
                answers.add(place, Answer::Failed(MasterError::TimedOut(after)));
            }
        }
        answers.tally.outcome()
    }
}

impl Record {
    /// The vote of every master.
    pub(crate) fn ballots(&self) -> Ballots {
        let answers = lock(&self.answers);
        let votes = answers
            .received
            .iter()
            .map(|answer| answer.clone().map_or(Vote::NotNeeded, Vote::from));
        let masters = self.masters.all.iter().map(|it| it.address().clone());
        Ballots::new(masters.zip(votes))
    }
}
