//! The answers of masters, for people to read. Nothing here counts a quorum.

use std::fmt;
use std::time::Duration;

use redis::RedisError;
use thiserror::Error;

use crate::address::Address;

/// The answer of every master to one request, in the order of the masters.
#[derive(Clone, Default)]
pub struct Ballots(Vec<Ballot>);

/// The answer of one master.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ballot {
    /// The master.
    pub master: Address,
    /// Its answer.
    pub vote: Vote,
}

/// The answer of a master to a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Vote {
    /// Yes: the key is set, extended or deleted, as requested.
    Granted,
    /// No: the key has the value of another holder. Or, to an extension by [`adopt`](crate::Redlock::adopt) and to a
    /// release: there is no such key.
    Refused,
    /// The key was missing and is set again, which counts from the next extension on. Only an extension has this
    /// answer.
    Recreated,
    /// The master was not asked, because it holds no key of ours: no request of this lock reached the master, or the
    /// master refused every request. Only a release has this answer.
    HoldsNothing,
    /// The outcome was certain without this master, so the call did not wait for its answer.
    NotNeeded,
    /// No answer, or an answer that does not count.
    Failed(MasterError),
}

/// Why one master did not vote.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum MasterError {
    /// There is no connection, and the last attempt to open one failed: connection refused, no such host, TLS.
    #[error("cannot connect: {0}")]
    Connect(#[source] RedisError),
    /// The connection ended before the answer arrived.
    #[error("connection lost: {0}")]
    Disconnected(#[source] RedisError),
    /// No answer within this time. Either the master was silent for the [request
    /// timeout](crate::RedlockBuilder::request_timeout), or no connection to it could be opened in that time. Or the
    /// answer was of no more use: the validity or the total wait was over.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The master has answered nothing for this long. Until it answers again, or a new connection to it works, it is
    /// sent no locks and no extensions.
    #[error("hangs: it has not answered for more than {0:?}")]
    Hung(Duration),
    /// The master answers, but more slowly than this client sends requests. A new attempt to lock was not sent to it.
    /// The number is that of the requests that it has not answered yet, whether sent or in line.
    #[error("cannot keep up: {0} requests wait for it")]
    Behind(usize),
    /// The user or the password is missing or wrong.
    #[error("authentication failed: {0}")]
    Auth(#[source] RedisError),
    /// The user has no right (ACL) to a command, a script or the key.
    #[error("forbidden: {0}")]
    Forbidden(#[source] RedisError),
    /// The key exists and is not a string.
    #[error("the key is in use for something that is no lock: {0}")]
    WrongType(#[source] RedisError),
    /// The master replied with another error: loading, read-only, out of memory ...
    #[error("{0}")]
    Server(#[source] RedisError),
    /// The reply is not one that the request can have.
    #[error("unexpected reply: {0}")]
    Protocol(String),
    /// The client cannot work: its runtime has shut down, or no thread can be started. Nothing was sent, unless the
    /// runtime shut down during the call.
    #[error("not asked: {0}")]
    NotAsked(String),
}

/// The view of one master on a resource.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MasterView {
    /// The master.
    pub master: Address,
    /// The key on this master.
    pub state: KeyState,
}

/// A key on one master.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyState {
    /// There is no such key.
    Free,
    /// The key exists.
    Held {
        /// The value of the holder.
        value: Vec<u8>,
        /// The time to live that is left. `None` if the key never expires.
        expires_in: Option<Duration>,
    },
    /// The master did not answer, or its answer does not count.
    Unreachable(MasterError),
}

impl Ballots {
    pub(crate) fn new(ballots: impl IntoIterator<Item = (Address, Vote)>) -> Self {
        let ballots = ballots.into_iter();
        Self(
            ballots
                .map(|(master, vote)| Ballot { master, vote })
                .collect(),
        )
    }

    /// Returns the ballots, in the order of the masters.
    pub fn iter(&self) -> std::slice::Iter<'_, Ballot> {
        self.0.iter()
    }

    /// The number of ballots: one for every master, whether or not it was asked.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The number of votes of a kind.
    pub(crate) fn count(&self, kind: impl Fn(&Vote) -> bool) -> usize {
        self.iter().filter(|ballot| kind(&ballot.vote)).count()
    }

    pub(crate) fn first_error(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.iter().find_map(|ballot| match &ballot.vote {
            Vote::Failed(error) => Some(error as _),
            _ => None,
        })
    }
}

impl<'a> IntoIterator for &'a Ballots {
    type Item = &'a Ballot;
    type IntoIter = std::slice::Iter<'a, Ballot>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Ballots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl fmt::Display for Ballots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Ballot { master, vote }) in self.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}{master}: {vote}")?;
        }
        Ok(())
    }
}

impl Vote {
    /// Whether the master has no key of ours.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Refused | Self::HoldsNothing)
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted => f.write_str("granted"),
            Self::Refused => f.write_str("refused, not ours"),
            Self::HoldsNothing => f.write_str("not asked, it holds no key of ours"),
            Self::Recreated => f.write_str("was missing, set again"),
            Self::NotNeeded => f.write_str("not needed to decide"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}
