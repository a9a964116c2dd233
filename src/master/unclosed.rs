//! The connections that a master may still have open at its end. Requests that were sent on such a connection may still
//! be executed. Pure.

use std::collections::VecDeque;

/// The id that a master gave a connection.
///
/// After a restart a master gives the same ids again, but its run has another id. So both together never name the
/// connection of another client.
#[derive(Clone)]
pub(crate) struct ClientId {
    pub(crate) run: String,
    pub(crate) id: u64,
}

/// How many connections are remembered one by one. Each one costs a `CLIENT KILL` with every new connection.
const MAX_UNCLOSED: usize = 8;

/// The connections that may still be open at the master's end.
#[derive(Clone, Default)]
pub(crate) struct Unclosed {
    /// By serial number, oldest first. A connection without an id cannot be closed.
    connections: VecDeque<(u64, Option<ClientId>)>,
    /// The serial number of the latest connection that may be open but is no longer remembered one by one; 0: none.
    latest_forgotten: u64,
}

impl Unclosed {
    pub(crate) fn push(&mut self, serial: u64, client_id: Option<ClientId>) {
        self.connections.push_back((serial, client_id));
        if self.connections.len() > MAX_UNCLOSED
            && let Some((forgotten, _)) = self.connections.pop_front()
        {
            self.latest_forgotten = forgotten;
        }
    }

    /// The ids, oldest first.
    pub(crate) fn client_ids(&self) -> impl Iterator<Item = Option<&ClientId>> {
        let client_ids = self.connections.iter();
        client_ids.map(|(_, client_id)| client_id.as_ref())
    }

    /// Forgets the connections that are closed; `closed` is in the order of the ids.
    pub(crate) fn forget(&mut self, closed: &[bool]) {
        let mut closed = closed.iter();
        self.connections
            .retain(|_| !closed.next().is_some_and(|is_closed| *is_closed));
    }

    /// The serial number of the latest connection; 0: none.
    pub(crate) fn latest(&self) -> u64 {
        let latest = self.connections.back().map(|(serial, _)| *serial);
        latest.unwrap_or(self.latest_forgotten)
    }

    /// Forgets the connections to earlier runs of the master, and those before them: they ended with its process.
    pub(crate) fn forget_earlier_runs(&mut self, run: &str) {
        let is_of_earlier_run = |(_, client_id): &(u64, Option<ClientId>)| {
            client_id
                .as_ref()
                .is_some_and(|client_id| client_id.run != run)
        };
        // Later connections without an id stay: they may be to this run.
        if let Some(last) = self.connections.iter().rposition(is_of_earlier_run) {
            self.connections.drain(..=last);
            self.latest_forgotten = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_id(run: &str, id: u64) -> Option<ClientId> {
        let run = run.into();
        Some(ClientId { run, id })
    }

    fn unclosed(connections: impl IntoIterator<Item = Option<ClientId>>) -> Unclosed {
        let mut unclosed = Unclosed::default();
        for (serial, identity) in (1..).zip(connections) {
            unclosed.push(serial, identity);
        }
        unclosed
    }

    #[test]
    fn what_is_closed_is_forgotten_and_the_latest_of_the_rest_counts() {
        let mut unclosed = unclosed([client_id("a", 4), None, client_id("a", 6)]);
        assert_eq!(unclosed.latest(), 3);
        unclosed.forget(&[true, false, true]);
        assert_eq!(unclosed.latest(), 2);
        unclosed.forget(&[true]);
        assert_eq!(unclosed.latest(), 0);
    }

    #[test]
    fn a_restart_closes_what_came_before_it_and_nothing_after() {
        let mut known = unclosed([None, client_id("a", 4), client_id("b", 4)]);
        known.forget_earlier_runs("b");
        assert_eq!(known.client_ids().count(), 1);
        let mut unknown = unclosed([client_id("a", 4), None]);
        unknown.forget_earlier_runs("b");
        assert_eq!(unknown.latest(), 2, "it may be one to the run of today");
        let mut same = unclosed([None, client_id("b", 4)]);
        same.forget_earlier_runs("b");
        assert_eq!(same.client_ids().count(), 2);
    }

    #[test]
    fn however_many_there_are_the_memory_is_bounded_and_none_is_taken_for_closed() {
        let mut many = unclosed((0..100).map(|_| None));
        assert_eq!(many.client_ids().count(), MAX_UNCLOSED);
        many.forget(&[true; MAX_UNCLOSED]);
        assert_eq!(many.latest(), 100 - MAX_UNCLOSED as u64);
    }
}
