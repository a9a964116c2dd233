//! All masters: sends one request to every master at once, and collects the answers.

mod round;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

pub(crate) use self::round::{Round, is_quorum};
use crate::address::Address;
use crate::master::{Answer, HeldKey, Master, Payload, Request};
use crate::permit::{Deletes, DirtyMasters, SendPermit};
use crate::protocol::quorum::quorum;
use crate::vote::{Ballots, KeyState, MasterError, MasterView, Vote};

/// The masters, in the order in which the user named them.
#[derive(Clone, Debug)]
pub(crate) struct Masters(Arc<[Master]>);

impl Masters {
    pub(crate) fn new(masters: Vec<Master>) -> Self {
        Self(masters.into())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Sends a request to every master at once. Records in `dirty` which masters may hold a key from it.
    ///
    /// `patience` is how long a master may take to answer. Where so many masters are known to fail that there can be no
    /// quorum, nothing is sent: the other masters would only get a key that must be deleted again.
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
        // Allocates nothing where no master fails.
        let failures: Vec<_> = failures.collect();
        if self.count() - failures.len() < quorum(self.count()) {
            return Round::decided_by(self, failures);
        }
        let permit = |master| Some(SendPermit::Write(Arc::clone(dirty), master));
        self.round(request, permit, patience)
    }

    /// Sends a delete to every master that may hold a key. The other masters count as holding none.
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

    /// Sends a delete to one master again and again until the master answers.
    pub(crate) async fn delete_until_answered(
        &self,
        master: usize,
        request: &Request,
        deletes: &Arc<Deletes>,
    ) -> Answer {
        let permit = SendPermit::Delete(Arc::clone(deletes), master);
        self.0[master].ask_until_answered(request, &permit).await
    }

    /// The votes where every master failed with the same error.
    pub(crate) fn all_failed(&self, error: &MasterError) -> Ballots {
        let votes = self.0.iter().map(|master| {
            let vote = Vote::Failed(error.clone());
            (master.address().clone(), vote)
        });
        Ballots::new(votes)
    }

    /// The views where every master failed with the same error.
    pub(crate) fn all_unreachable(&self, error: &MasterError) -> Vec<MasterView> {
        let views = self.0.iter().map(|master| {
            let answer = Answer::Failed(error.clone());
            view(master.address(), answer)
        });
        views.collect()
    }

    /// Asks every master for a key, and waits for all of them; for each at most `patience`.
    pub(crate) async fn inspect(&self, request: &Request, patience: Duration) -> Vec<MasterView> {
        let views = self.0.iter().map(async |master| {
            let answer = master.inspect(request, patience).await;
            view(master.address(), answer)
        });
        join_all(views).await
    }

    fn round(
        &self,
        request: &Request,
        permit: impl Fn(usize) -> Option<SendPermit>,
        patience: Duration,
    ) -> Round {
        let ask = |place, master: &Master| match permit(place) {
            Some(permit) => Ok(master.clone().ask(request.clone(), permit, patience)),
            None => Err(Answer::HoldsNothing),
        };
        Round::begin(self, patience, ask)
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
