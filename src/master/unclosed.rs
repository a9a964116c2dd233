//! The connections that a master may still have open, so that what was sent on them may still be executed. Pure.

use std::collections::VecDeque;

/// A connection as its master knows it. Ids start again when a master restarts, but the id of the run changes then, so
/// the two together never name the connection of somebody else.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) run: String,
    pub(crate) id: u64,
}

/// More earlier connections than this are not remembered one by one.
const MAX_UNCLOSED: usize = 8;

/// The connections that may still be open at the master's end.
#[derive(Clone, Default)]
pub(crate) struct Unclosed {
    /// Oldest first; without an identity it cannot be closed.
    connections: VecDeque<(u64, Option<Identity>)>,
    /// The latest of those that are not remembered any more, although they may be open; 0: none.
    latest_forgotten: u64,
}

impl Unclosed {
    pub(crate) fn push(&mut self, serial: u64, identity: Option<Identity>) {
        self.connections.push_back((serial, identity));
        if self.connections.len() > MAX_UNCLOSED
            && let Some((forgotten, _)) = self.connections.pop_front()
        {
            self.latest_forgotten = forgotten;
        }
    }

    /// What the master calls them, oldest first.
    pub(crate) fn identities(&self) -> impl Iterator<Item = Option<&Identity>> {
        self.connections
            .iter()
            .map(|(_, identity)| identity.as_ref())
    }

    /// Forgets those that are closed, in the order of the identities.
    pub(crate) fn forget(&mut self, closed: &[bool]) {
        let mut closed = closed.iter();
        self.connections
            .retain(|_| !closed.next().is_some_and(|is_closed| *is_closed));
    }

    /// The latest of them; 0: none.
    pub(crate) fn latest(&self) -> u64 {
        let latest = self.connections.back().map(|(serial, _)| *serial);
        latest.unwrap_or(self.latest_forgotten)
    }

    /// Forgets the connections to earlier runs of the master: they ended with its process, and so did those before them.
    pub(crate) fn forget_earlier_runs(&mut self, run: &str) {
        let of_earlier_run = |(_, identity): &(u64, Option<Identity>)| {
            identity
                .as_ref()
                .is_some_and(|identity| identity.run != run)
        };
        if let Some(last) = self.connections.iter().rposition(of_earlier_run) {
            self.connections.drain(..=last);
            self.latest_forgotten = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(run: &str, id: u64) -> Option<Identity> {
        let run = run.into();
        Some(Identity { run, id })
    }

    fn unclosed(connections: impl IntoIterator<Item = Option<Identity>>) -> Unclosed {
        let mut unclosed = Unclosed::default();
        for (serial, identity) in (1..).zip(connections) {
            unclosed.push(serial, identity);
        }
        unclosed
    }

    #[test]
    fn what_is_closed_is_forgotten_and_the_latest_of_the_rest_counts() {
        let mut unclosed = unclosed([identity("a", 4), None, identity("a", 6)]);
        assert_eq!(unclosed.latest(), 3);
        unclosed.forget(&[true, false, true]);
        assert_eq!(unclosed.latest(), 2);
        unclosed.forget(&[true]);
        assert_eq!(unclosed.latest(), 0);
    }

    #[test]
    fn a_restart_closes_what_came_before_it_and_nothing_after() {
        let mut known = unclosed([None, identity("a", 4), identity("b", 4)]);
        known.forget_earlier_runs("b");
        assert_eq!(known.identities().count(), 1);
        let mut unknown = unclosed([identity("a", 4), None]);
        unknown.forget_earlier_runs("b");
        assert_eq!(unknown.latest(), 2, "it may be one to the run of today");
        let mut same = unclosed([None, identity("b", 4)]);
        same.forget_earlier_runs("b");
        assert_eq!(same.identities().count(), 2);
    }

    #[test]
    fn however_many_there_are_the_memory_is_bounded_and_none_is_taken_for_closed() {
        let mut many = unclosed((0..100).map(|_| None));
        assert_eq!(many.identities().count(), MAX_UNCLOSED);
        many.forget(&[true; MAX_UNCLOSED]);
        assert_eq!(many.latest(), 100 - MAX_UNCLOSED as u64);
    }
}
