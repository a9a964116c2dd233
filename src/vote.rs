//! What masters said, for people to read. Counts no quorum.

use std::fmt;
use std::time::Duration;

use redis::RedisError;
use thiserror::Error;

use crate::address::Address;

/// What every master said to one request, in the order of the masters.
#[derive(Clone, Default)]
pub struct Ballots(Vec<Ballot>);

/// What one master said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Ballot {
    /// Which master.
    pub master: Address,
    /// What it said.
    pub vote: Vote,
}

/// A master's answer to a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Vote {
    /// Yes: the key is set, extended, or deleted, as was asked.
    Granted,
    /// No: the key belongs to another value, or on a release, is not there.
    Refused,
    /// Only to an extension: the key was missing and is set again, which counts from the next extension on.
    Recreated,
    /// Only from a release: the master was not asked, because no request of this lock reached it. It holds no key of
    /// ours.
    NothingSent,
    /// Not waited for: the outcome was certain without it.
    NotNeeded,
    /// No answer, or not one that counts.
    Failed(MasterError),
}

/// Why one master did not vote.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum MasterError {
    /// There is no connection, and the last attempt to open one failed: refused, no such host, TLS.
    #[error("cannot connect: {0}")]
    Connect(#[source] RedisError),
    /// The connection ended before the answer came.
    #[error("connection lost: {0}")]
    Disconnected(#[source] RedisError),
    /// No answer within the request timeout.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It has left everything unanswered for a while, and is not asked until it answers again.
    #[error("hangs: it has not answered for more than {0:?}")]
    Hung(Duration),
    /// User or password are missing or wrong.
    #[error("authentication failed: {0}")]
    Auth(#[source] RedisError),
    /// The user may not do that: a command, a script or the key is forbidden (ACL).
    #[error("forbidden: {0}")]
    Forbidden(#[source] RedisError),
    /// The key holds something else than a string.
    #[error("the key is in use for something that is no lock: {0}")]
    WrongType(#[source] RedisError),
    /// Another error that the master replied: loading, read-only, out of memory ...
    #[error("{0}")]
    Server(#[source] RedisError),
    /// A reply that makes no sense here.
    #[error("unexpected reply: {0}")]
    Protocol(String),
    /// Nothing was sent, since the client cannot work: its runtime has shut down, or no thread can be started.
    #[error("not asked: {0}")]
    NotAsked(String),
}

/// What one master says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MasterView {
    /// Which master.
    pub master: Address,
    /// What it says.
    pub state: KeyState,
}

/// The key on one master.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyState {
    /// There is none.
    Free,
    /// There is one.
    Held {
        /// The value of the holder.
        value: Vec<u8>,
        /// The time to live that is left; `None` if it never expires.
        expires_in: Option<Duration>,
    },
    /// The master did not answer, or not in a way that counts.
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

    /// The ballots, in the order of the masters.
    pub fn iter(&self) -> std::slice::Iter<'_, Ballot> {
        self.0.iter()
    }

    /// How many masters were asked, or could have been.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many of the votes are of a kind.
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
    /// Whether the key is not ours on this master.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Refused | Self::NothingSent)
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted => f.write_str("granted"),
            Self::Refused => f.write_str("refused, not ours"),
            Self::NothingSent => f.write_str("not asked, it was never sent the lock"),
            Self::Recreated => f.write_str("was missing, set again"),
            Self::NotNeeded => f.write_str("not needed to decide"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}
