//! All masters: sends one request to every master at once, and collects the answers.

mod round;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::time::timeout;

pub(crate) use self::round::{Record, Round, is_quorum};
use crate::address::Address;
use crate::master::{Answer, Debt, HeldKey, Master, Payload, Request};
use crate::permit::{Deletes, DirtyMasters, SendPermit};
use crate::protocol::quorum::{quorum, reaches_quorum};
use crate::queue::Line;
use crate::vote::{Ballots, KeyState, MasterError, MasterView, Vote};

/// How long a master that goes on answering other requests may leave an inspection unanswered.
const LONGEST_INSPECTION: Duration = Duration::from_secs(10);

/// The masters, in the order in which the user named them.
#[derive(Clone)]
pub(crate) struct Masters {
    all: Arc<[Master]>,
    /// The attempts that wait until the masters have room.
    line: Arc<Line>,
}

impl Masters {
    /// `line` is the one that the masters were made with.
    pub(crate) fn new(masters: Vec<Master>, line: Arc<Line>) -> Self {
        Self {
            all: masters.into(),
            line,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Sends a request to every master at once. Records in `dirty` which masters may hold a key from it.
    ///
    /// `patience` is how long a request waits for a connection. An attempt is not sent to a master that cannot keep up.
    /// Where so many masters are known to fail that there can be no quorum, nothing is sent: the other masters would
    /// only get a key that must be deleted again.
    pub(crate) fn ask(
        &self,
        request: &Request,
        dirty: &Arc<DirtyMasters>,
        patience: Duration,
    ) -> Round {
        let failures = self.known_failures(patience);
        if !self.may_reach_quorum(&failures) {
            return Round::decided_by(self, failures);
        }
        let is_attempt = request.kind().is_attempt();
        let ask = |place, master: &Master| {
            if is_attempt && let Some(error) = master.behind() {
                return Err(Answer::Failed(error));
            }
            let permit = SendPermit::Write(Arc::clone(dirty), place);
            Ok(master.ask(request, permit, patience))
        };
        Round::begin(self, ask)
    }

    /// Sends a renewal to every master at once, and returns the answers as they come. Masters that are known to fail are
    /// not asked. Where they leave no quorum, nobody is asked, and only their failures are returned.
    pub(crate) fn renew(
        &self,
        request: &Request,
        patience: Duration,
    ) -> impl Stream<Item = Answer> + Send + Unpin + use<> {
        let failures = self.known_failures(patience);
        let asks = self.may_reach_quorum(&failures);
        let is_failing = |place| failures.iter().any(|(failing, _)| *failing == place);
        let asked = self.all.iter().enumerate();
        let asked = asked.filter(|(place, _)| asks && !is_failing(*place));
        let answers: FuturesUnordered<_> = asked
            // A renewal sets no key, so no delete has to follow it.
            .map(|(_, master)| master.ask(request, SendPermit::SetsNoKey, patience))
            .collect();
        let failures = failures.into_iter().map(|(_, it)| Answer::Failed(it));
        stream::iter(failures).chain(answers)
    }

    /// The masters that are known to fail, and why. They are connected to all the same: otherwise no request might reach
    /// them, and the attempts to connect would end.
    fn known_failures(&self, patience: Duration) -> Vec<(usize, MasterError)> {
        let failures = self.all.iter().enumerate().filter_map(|(place, master)| {
            let failure = master.known_failure(patience)?;
            master.keep_connecting();
            Some((place, failure))
        });
        // Allocates nothing where no master fails.
        failures.collect()
    }

    /// Whether the masters that are not among the failing ones are a quorum.
    fn may_reach_quorum(&self, failures: &[(usize, MasterError)]) -> bool {
        reaches_quorum(self.count() - failures.len(), self.count())
    }

    /// Waits in line until a quorum of the masters would be sent a request at once, or so many masters are known to
    /// fail that there is nothing to wait for. A slower minority is not waited for: its requests wait in the queues of
    /// their connections, until the master counts as [behind](Master::behind).
    pub(crate) fn room(&self, patience: Duration) -> impl Future<Output = ()> + '_ {
        self.line.wait(move || {
            let usable = self
                .all
                .iter()
                .filter(|it| it.known_failure(patience).is_none());
            let (mut usable_count, mut with_room) = (0, 0);
            for master in usable {
                usable_count += 1;
                with_room += usize::from(master.has_room());
            }
            let quorum = quorum(self.count());
            usable_count < quorum || with_room >= quorum
        })
    }

    /// Sends a delete to every master that may hold a key. The other masters count as holding none.
    pub(crate) fn delete(
        &self,
        request: &Request,
        deletes: &Arc<Deletes>,
        patience: Duration,
    ) -> Round {
        let ask = |place, master: &Master| {
            if deletes.dirty(place).is_none() {
                return Err(Answer::HoldsNothing);
            }
            let permit = SendPermit::Delete(Arc::clone(deletes), place);
            Ok(master.ask(request, permit, patience))
        };
        Round::begin(self, ask)
    }

    /// Sends a delete to one master again and again, until it has answered or the key has expired.
    pub(crate) fn owe(&self, debt: Debt) {
        self.all[debt.place].owe(debt);
    }

    /// Counts a key that one master will not delete.
    pub(crate) fn leave_key(&self, place: usize) {
        self.all[place].leave_key();
    }

    /// How many attempts wait in line.
    pub(crate) fn line_length(&self) -> usize {
        self.line.length()
    }

    /// The votes where every master failed with the same error.
    pub(crate) fn all_failed(&self, error: &MasterError) -> Ballots {
        let votes = self.all.iter().map(|master| {
            let vote = Vote::Failed(error.clone());
            (master.address().clone(), vote)
        });
        Ballots::new(votes)
    }

    /// The views where every master failed with the same error.
    pub(crate) fn all_unreachable(&self, error: &MasterError) -> Vec<MasterView> {
        let views = self.all.iter().map(|master| {
            let answer = Answer::Failed(error.clone());
            view(master.address(), answer)
        });
        views.collect()
    }

    /// Asks every master for a key, and waits until each has answered or failed.
    pub(crate) async fn inspect(&self, request: &Request, patience: Duration) -> Vec<MasterView> {
        let views = self.all.iter().map(async |master| {
            let answer = master.ask(request, SendPermit::SetsNoKey, patience);
            let longest = patience.max(LONGEST_INSPECTION);
            let answer = timeout(longest, answer).await;
            let answer = answer.unwrap_or_else(|_| Answer::Failed(MasterError::TimedOut(longest)));
            view(master.address(), answer)
        });
        join_all(views).await
    }
}

/// An answer to an inspection, as the user sees it.
fn view(master: &Address, answer: Answer) -> MasterView {
    let state = match answer {
        Answer::Granted(Payload::Key(None)) => KeyState::Free,
        Answer::Granted(Payload::Key(Some(HeldKey { value, expires_in }))) => {
            KeyState::Held { value, expires_in }
        }
        Answer::Failed(error) => KeyState::Unreachable(error),
        // An inspection has no other answer.
        other => KeyState::Unreachable(MasterError::Protocol(format!("{other:?}"))),
    };
    MasterView {
        master: master.clone(),
        state,
    }
}
