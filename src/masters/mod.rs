//! All masters: one request to every one of them at once, and the votes as they come in.

mod round;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

pub(crate) use self::round::{Round, is_quorum};
use crate::master::{Master, Request};
use crate::permit::{Deletes, DirtyMasters, SendPermit};
use crate::protocol::quorum::quorum;
use crate::vote::{Ballots, KeyState, MasterError, MasterView, Vote};

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
    pub(crate) fn all_unreachable(&self, error: &MasterError) -> Vec<MasterView> {
        let views = self.0.iter().map(|master| MasterView {
            master: master.address().clone(),
            state: KeyState::Unreachable(error.clone()),
        });
        views.collect()
    }

    /// Asks every master what there is, and waits for all of them; for none longer than `patience`.
    pub(crate) async fn look(&self, request: &Request, patience: Duration) -> Vec<MasterView> {
        let masters = self.0.iter().cloned();
        join_all(masters.map(|master| master.look(request.clone(), patience))).await
    }

    fn round(
        &self,
        request: &Request,
        permit: impl Fn(usize) -> Option<SendPermit>,
        patience: Duration,
    ) -> Round {
        let ask = |place, master: &Master| match permit(place) {
            Some(permit) => Ok(master.clone().ask(request.clone(), permit, patience)),
            None => Err(Vote::NothingSent),
        };
        Round::begin(self, patience, ask)
    }
}
