//! The renewal of several locks by one request to each master.

use std::sync::Arc;

use futures::StreamExt;
use tokio::time::timeout;

use super::schedule::Due;
use super::{Kept, alone};
use crate::clock::Moment;
use crate::inner::Core;
use crate::master::{Answer, Payload, Renewed, Request};
use crate::protocol::quorum::{Outcome, Tally};
use crate::vote::MasterError;

/// Renews locks. Each lock is confirmed when a quorum has lengthened its key. It does not wait for the other locks.
pub(super) async fn renew(core: Arc<Core>, due: Vec<Due<Kept>>) {
    // Read before anything is sent: each master starts the ttl after this moment.
    let start = core.renewals.clock.now();
    let locks = due
        .iter()
        .map(|Due { item, .. }| item.claim.to_renew(item.ttl));
    let request = Request::renew(locks);
    let mut answers = core.masters.renew(&request, core.renewals.patience);
    let masters = core.masters.count();
    let remaining = due
        .iter()
        .map(|due| due.item.claim.remaining().unwrap_or_default());
    let useful_for = remaining.max().unwrap_or_default();
    let mut locks: Vec<_> = due.into_iter().map(|due| Lock::new(due, masters)).collect();
    let counting = async {
        while let Some(answer) = answers.next().await {
            for (place, lock) in locks.iter_mut().enumerate() {
                lock.votes.count(Found::of(&answer, place));
                lock.proceed(&core, start);
            }
        }
    };
    // Each master answers, or is silent, or its connection breaks. But a slow one may answer when all is over.
    let _ = timeout(useful_for, counting).await;
    for lock in &mut locks {
        lock.give_up(&core);
    }
}

/// One of the locks.
struct Lock {
    due: Due<Kept>,
    votes: Votes,
    state: State,
}

/// What the masters have said of one lock so far.
struct Votes {
    tally: Tally,
    /// Whether a master lacks the key.
    is_missing: bool,
    /// Whether an extension of this lock alone may find more than the shared request did.
    is_doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Undecided,
    Renewed,
    /// Nothing is left to do here.
    Ended,
}

/// What the answer of a master says of one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Key(Renewed),
    /// Nothing, because the master refused the whole request. It may have done so because of one lock.
    Refusal,
    /// Nothing, because the master did not answer.
    Silence,
}

impl Found {
    fn of(answer: &Answer, place: usize) -> Self {
        match answer {
            Answer::Granted(Payload::Renewed(renewed)) => match renewed.get(place) {
                Some(renewed) => Self::Key(*renewed),
                None => Self::Refusal,
            },
            Answer::Failed(
                MasterError::Forbidden(_) | MasterError::Server(_) | MasterError::Protocol(_),
            ) => Self::Refusal,
            _ => Self::Silence,
        }
    }
}

impl Votes {
    fn new(masters: usize) -> Self {
        Self {
            tally: Tally::new(masters),
            is_missing: false,
            is_doubtful: false,
        }
    }

    fn count(&mut self, found: Found) {
        let is_lengthened = found == Found::Key(Renewed::Lengthened);
        self.tally.count(is_lengthened);
        self.is_missing |= found == Found::Key(Renewed::Missing);
        self.is_doubtful |= !is_lengthened && found != Found::Silence;
    }
}

impl Lock {
    fn new(due: Due<Kept>, masters: usize) -> Self {
        Self {
            due,
            votes: Votes::new(masters),
            state: State::Undecided,
        }
    }

    /// Does what follows from the answers so far.
    fn proceed(&mut self, core: &Arc<Core>, start: Moment) {
        if self.state == State::Undecided {
            self.state = match self.votes.tally.outcome() {
                Outcome::Undecided => State::Undecided,
                Outcome::Quorum => self.confirm(core, start),
                Outcome::NoQuorum => self.try_again(core),
            };
        }
        // Also where the answer comes after the quorum.
        if self.state == State::Renewed && self.votes.is_missing {
            self.state = State::Ended;
            alone::heal(core, self.due.id);
        }
    }

    /// Waits for no further answer.
    fn give_up(&mut self, core: &Arc<Core>) {
        if self.state == State::Undecided {
            self.state = self.try_again(core);
        }
    }

    fn confirm(&self, core: &Core, start: Moment) -> State {
        let Kept { claim, ttl } = &self.due.item;
        match claim.confirm_renewal(start, *ttl) {
            Ok(()) => {
                core.renewals.renewed(&self.due);
                State::Renewed
            }
            Err(reason) => {
                core.renewals.lost(&self.due, reason);
                State::Ended
            }
        }
    }

    /// The extension of one lock says why there is no quorum. But while masters are silent it would fail as this one did.
    fn try_again(&self, core: &Arc<Core>) -> State {
        if self.votes.is_doubtful {
            alone::begin(core, self.due.clone());
        } else {
            core.renewals.failed(&self.due);
        }
        State::Ended
    }
}

#[cfg(test)]
mod tests {
    use super::Renewed::{Lengthened, Missing, NotOurs};
    use super::*;

    const ALL: [Found; 5] = [
        Found::Key(Lengthened),
        Found::Key(Missing),
        Found::Key(NotOurs),
        Found::Refusal,
        Found::Silence,
    ];

    #[test]
    fn only_keys_that_are_lengthened_make_a_quorum() {
        let answers = ALL.into_iter().flat_map(|a| ALL.map(|b| (a, b)));
        let answers = answers.flat_map(|(a, b)| ALL.map(|c| [a, b, c]));
        for found in answers {
            let mut votes = Votes::new(3);
            found.into_iter().for_each(|it| votes.count(it));
            let has = |what: &[Found]| found.iter().any(|it| what.contains(it));
            let lengthened = found.iter().filter(|it| **it == Found::Key(Lengthened));
            let expected = match lengthened.count() {
                0 | 1 => Outcome::NoQuorum,
                _ => Outcome::Quorum,
            };
            assert_eq!(votes.tally.outcome(), expected, "{found:?}");
            assert_eq!(votes.is_missing, has(&[ALL[1]]), "{found:?}");
            assert_eq!(votes.is_doubtful, has(&ALL[1..4]), "{found:?}");
        }
    }

    #[test]
    fn each_lock_has_a_digit_of_its_own_and_a_failure_is_for_all() {
        let renewed = Payload::Renewed([Lengthened, Missing].into());
        let answer = Answer::Granted(renewed);
        let expected = [ALL[0], ALL[1], Found::Refusal];
        assert_eq!([0, 1, 2].map(|place| Found::of(&answer, place)), expected);
        let nonsense = Answer::Failed(MasterError::Protocol("nonsense".into()));
        assert_eq!(Found::of(&nonsense, 1), Found::Refusal);
        let silent = MasterError::TimedOut(std::time::Duration::ZERO);
        assert_eq!(Found::of(&Answer::Failed(silent), 1), Found::Silence);
    }
}
