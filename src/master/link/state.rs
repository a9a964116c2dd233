//! The states of a link, and the events that change them. Pure: reads no clock, sends nothing, and starts no task.
//!
//! | event | state before | state after |
//! | --- | --- | --- |
//! | `Requested` | `Idle` | `Connecting`; a reconnector is started |
//! | `Broke` | `Up` with this connection | `Connecting`; a reconnector is started |
//! | `PingTimedOut` | `Up` with this connection | `Hung` |
//! | `Revived` | `Hung` with this connection | `Up` with this connection |
//! | `HungGivenUp` | `Hung` | `Connecting` |
//! | `AttemptFailed` | any but `Hung` | `Down` |
//! | `Established` | any | `Up` with the new connection |
//! | `Abandoned` | any | `Idle` |
//!
//! In every other state an event changes nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::master::connection::Connection;
use crate::vote::MasterError;

/// Whether there is a connection, and whether a task of the link owns the state.
///
/// In `Connecting`, `Hung` and `Down` exactly one task owns the state: a reconnector or a health check. When this task
/// ends, also by the end of its runtime, it leaves the state `Up` or `Idle`, so no request waits for a task that is gone.
pub(super) enum State {
    /// There is no connection. The next request starts a task that connects.
    Idle,
    /// A task makes the first attempt since the link was idle or the last connection was given up.
    Connecting { since: Instant },
    /// There is a connection, which works as far as is known.
    Up(Connection),
    /// The connection does not answer. A task waits for a sign of life, and tries to open another connection. The old
    /// connection is kept, since deletes are sent there: behind the requests whose keys they delete.
    Hung(Connection),
    /// There is no connection, because the last attempt failed with this error. A task makes further attempts.
    Down(MasterError),
}

/// What happens to a link.
#[derive(Clone)]
pub(super) enum Event {
    /// A request needs a connection.
    Requested,
    /// A request found the connection with this serial number broken.
    Broke(u64),
    /// The connection with this serial number has not answered a ping.
    PingTimedOut(u64),
    /// The hung connection with this serial number has answered.
    Revived(u64),
    /// The hung connection is not used again: it broke, or a new connection is being set up and will close it.
    HungGivenUp,
    /// A new connection is ready for requests.
    Established(Connection),
    /// An attempt to connect failed.
    AttemptFailed(MasterError),
    /// The task that owned the state has ended without a connection.
    Abandoned,
}

/// What an event has done, and what the link has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// The event means nothing in this state.
    Unchanged,
    /// There is another state now.
    Changed,
    /// There is another state now. The link starts a reconnector, which owns the state.
    StartReconnector,
}

impl State {
    /// Goes on to the state that follows an event at the time `now`.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Transition {
        let connecting = Self::Connecting { since: now };
        let (next, transition) = match (&*self, event) {
            (Self::Idle, Event::Requested) => (connecting, Transition::StartReconnector),
            // A request may report a connection that has been replaced since; only the current one counts.
            (Self::Up(current), Event::Broke(serial)) if current.serial() == serial => {
                (connecting, Transition::StartReconnector)
            }
            (Self::Up(current), Event::PingTimedOut(serial)) if current.serial() == serial => {
                (Self::Hung(current.clone()), Transition::Changed)
            }
            (Self::Hung(current), Event::Revived(serial)) if current.serial() == serial => {
                (Self::Up(current.clone()), Transition::Changed)
            }
            (Self::Hung(_), Event::HungGivenUp) => (connecting, Transition::Changed),
            // The hung connection is still needed for deletes.
            (Self::Hung(_), Event::AttemptFailed(_)) => return Transition::Unchanged,
            (_, Event::AttemptFailed(error)) => (Self::Down(error), Transition::Changed),
            (_, Event::Established(connection)) => (Self::Up(connection), Transition::Changed),
            (_, Event::Abandoned) => (Self::Idle, Transition::Changed),
            (
                _,
                Event::Requested
                | Event::Broke(_)
                | Event::PingTimedOut(_)
                | Event::Revived(_)
                | Event::HungGivenUp,
            ) => return Transition::Unchanged,
        };
        *self = next;
        transition
    }

    /// The connection for requests.
    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Up(connection) => Some(connection),
            Self::Idle | Self::Connecting { .. } | Self::Hung(_) | Self::Down(_) => None,
        }
    }

    /// The error with which a request fails at once, instead of waiting for a connection: the master is known to be down
    /// or to hang, or connecting has taken longer than `patience`. `silence` is how long a hung master has kept silent.
    pub(super) fn failure(
        &self,
        now: Instant,
        patience: Duration,
        silence: Duration,
    ) -> Option<MasterError> {
        match self {
            Self::Hung(_) => Some(MasterError::Hung(silence)),
            Self::Down(error) => Some(error.clone()),
            Self::Connecting { since } if now.duration_since(*since) > patience => {
                Some(MasterError::TimedOut(patience))
            }
            Self::Idle | Self::Connecting { .. } | Self::Up(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Weak};

    use super::*;
    use crate::master::connection::Terms;
    use crate::testing::Masters;

    const OLD: u64 = 6;
    const CURRENT: u64 = 7;
    const NEW: u64 = 8;

    fn connection(serial: u64) -> Connection {
        let external = Arc::new(Masters::new(1)[0].connect());
        Connection::external(external, Terms::unused(serial), &Weak::new())
    }

    fn error(text: &str) -> MasterError {
        MasterError::Protocol(text.into())
    }

    /// A state as text: its name, the serial number of its connection, its error; `+` if it began at the event.
    fn text(state: &State, at: Instant) -> String {
        match state {
            State::Idle => "idle".into(),
            State::Connecting { since } if *since == at => "connecting+".into(),
            State::Connecting { .. } => "connecting".into(),
            State::Up(connection) => format!("up {}", connection.serial()),
            State::Hung(connection) => format!("hung {}", connection.serial()),
            State::Down(MasterError::Protocol(text)) => format!("down {text}"),
            State::Down(_) => "down".into(),
        }
    }

    #[test]
    fn every_event_in_every_state_does_what_the_table_says() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let states = || {
            [
                State::Idle,
                State::Connecting { since: start },
                State::Up(connection(CURRENT)),
                State::Hung(connection(CURRENT)),
                State::Down(error("a")),
            ]
        };
        // `!`: a reconnector is started. `-`: the state stays as it was.
        #[rustfmt::skip]
        let table = [
            (Event::Requested,                      ["connecting+!", "-", "-", "-", "-"]),
            (Event::Broke(CURRENT),                 ["-", "-", "connecting+!", "-", "-"]),
            (Event::Broke(OLD),                     ["-", "-", "-", "-", "-"]),
            (Event::PingTimedOut(CURRENT),          ["-", "-", "hung 7", "-", "-"]),
            (Event::PingTimedOut(OLD),              ["-", "-", "-", "-", "-"]),
            (Event::Revived(CURRENT),               ["-", "-", "-", "up 7", "-"]),
            (Event::Revived(OLD),                   ["-", "-", "-", "-", "-"]),
            (Event::HungGivenUp,                    ["-", "-", "-", "connecting+", "-"]),
            (Event::Established(connection(NEW)),   ["up 8", "up 8", "up 8", "up 8", "up 8"]),
            (Event::AttemptFailed(error("b")),      ["down b", "down b", "down b", "-", "down b"]),
            (Event::Abandoned,                      ["idle", "idle", "idle", "idle", "idle"]),
        ];
        for (row, (event, expected)) in table.into_iter().enumerate() {
            for (mut state, expected) in states().into_iter().zip(expected) {
                let before = text(&state, later);
                let transition = state.on(event.clone(), later);
                let (expected, expected_transition) = match expected {
                    "-" => (&*before, Transition::Unchanged),
                    other => match other.strip_suffix('!') {
                        Some(next) => (next, Transition::StartReconnector),
                        None => (other, Transition::Changed),
                    },
                };
                assert_eq!(text(&state, later), expected, "row {row}, {before}");
                assert_eq!(transition, expected_transition, "row {row}, {before}");
            }
        }
    }

    #[test]
    fn a_request_fails_at_once_where_the_master_is_known_to_fail() {
        let (patience, silence) = (Duration::from_millis(100), Duration::from_millis(500));
        let start = Instant::now();
        let failure = |state: State, after| state.failure(start + after, patience, silence);
        let connecting = || State::Connecting { since: start };
        assert!(failure(State::Idle, silence).is_none());
        assert!(failure(State::Up(connection(CURRENT)), silence).is_none());
        assert!(failure(connecting(), patience).is_none());
        let too_long = failure(connecting(), patience + Duration::from_millis(1));
        assert!(matches!(too_long, Some(MasterError::TimedOut(after)) if after == patience));
        let hung = failure(State::Hung(connection(CURRENT)), Duration::ZERO);
        assert!(matches!(hung, Some(MasterError::Hung(after)) if after == silence));
        let down = failure(State::Down(error("a")), Duration::ZERO);
        assert!(matches!(down, Some(MasterError::Protocol(text)) if text == "a"));
    }

    #[test]
    fn only_a_connection_that_works_is_for_requests() {
        assert!(State::Up(connection(CURRENT)).connection().is_some());
        for state in [State::Idle, State::Hung(connection(CURRENT))] {
            assert!(state.connection().is_none());
        }
    }
}
