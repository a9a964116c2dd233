//! The errors: one type per operation, each with what every master had to say.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use thiserror::Error;

use crate::quorum::quorum;

/// Why a [`Redlock`](crate::Redlock) could not be built.
///
/// Masters are named as they were given, without user, password and query.
///
/// # Examples
///
/// ```
/// use tokio_redlock::{BuildError, Redlock};
///
/// let error = Redlock::new(["redis://:secret@10.0.0.1", "redis://10.0.0.1:6379"]).unwrap_err();
/// assert!(matches!(error, BuildError::DuplicateMaster { .. }));
/// assert_eq!(error.to_string(), "master 10.0.0.1:6379 is given twice: each must be an independent Redis");
/// ```
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No master was given.
    #[error("no master is given: name at least one, better three or five independent ones")]
    NoMaster,
    /// The same master was given twice: it would have two votes.
    #[error("master {master} is given twice: each must be an independent Redis")]
    DuplicateMaster {
        /// The address that came up again.
        master: Address,
    },
    /// A URL that is not one of a Redis master.
    #[error(
        "master {master:?} cannot be used: {source} (expected redis://, rediss://, valkey://, valkeys:// or \
         unix:// and an address)"
    )]
    Url {
        /// The URL as it was given, without user, password and query.
        master: String,
        /// What is wrong with it.
        source: RedisError,
    },
    /// A master wants TLS, and the crate was built without it.
    #[error(
        "master {master:?} wants TLS: build tokio-redlock with the feature tls-rustls or tls-native-tls"
    )]
    TlsDisabled {
        /// The URL as it was given, without user, password and query.
        master: String,
    },
    /// A drift factor below 0, above 0.5, or not a number.
    #[error("drift factor {factor} is out of range: it must be between 0 and 0.5, usually 0.01")]
    DriftFactor {
        /// What was given.
        factor: f64,
    },
    /// A request timeout below 1 ms or above 60 s.
    #[error("request timeout {timeout:?} is out of range: it must be between 1 ms and 60 s")]
    RequestTimeout {
        /// What was given.
        timeout: Duration,
    },
}

/// A ttl that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TtlError {
    /// Nothing would be left of it once the drift is taken off, which is 1 % and 2 ms unless set otherwise.
    #[error(
        "ttl {ttl:?} is too short: clock drift alone takes {drift:?} of it (a ttl is a Duration: was that meant \
         to be seconds?)"
    )]
    TooShort {
        /// What was given.
        ttl: Duration,
        /// What the drift takes off it.
        drift: Duration,
    },
    /// More milliseconds than Redis can count.
    #[error("ttl {ttl:?} is too long: Redis takes at most {max:?}")]
    TooLong {
        /// What was given.
        ttl: Duration,
        /// The longest ttl there is.
        max: Duration,
    },
}

/// Why a lock was not granted.
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use tokio_redlock::{LockError, Redlock};
/// # async fn example(dlm: Redlock) {
/// match dlm.lock("invoice:42", Duration::from_secs(30)).await {
///     Ok(guard) => drop(guard),
///     Err(LockError::Taken(attempts)) => println!("somebody else is at it: {attempts}"),
///     Err(LockError::Unreachable(attempts)) => {
///         for ballot in &attempts.ballots {
///             eprintln!("{}: {}", ballot.master, ballot.vote);
///         }
///     }
///     Err(other) => eprintln!("{other}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// The ttl cannot be used. Nothing was sent.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// A quorum was within reach, but others hold the lock, or compete for it.
    #[error("resource {:?} is taken: {}", name(&.0.resource), .0)]
    Taken(Attempts),
    /// Too few masters answered for a quorum, whoever holds the lock.
    #[error("too few masters can be reached to lock {:?}: {}", name(&.0.resource), .0)]
    Unreachable(#[source] Attempts),
    /// A quorum agreed, but only when the ttl, less drift, had passed.
    #[error(
        "lock on {:?} was won too late, its ttl was over before a quorum had agreed: {}",
        name(&.0.resource), .0
    )]
    TooLate(Attempts),
}

/// How a lock was tried for in vain: for how long, how often, and what each master said the last time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attempts {
    /// The resource, without the key prefix.
    pub resource: Vec<u8>,
    /// How many attempts were made.
    pub attempts: u32,
    /// From the beginning of the first attempt to the end of the last.
    pub waited: Duration,
    /// What every master said in the last attempt, in the order of the masters.
    pub ballots: Ballots,
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            attempts,
            waited,
            ballots,
            ..
        } = self;
        let plural = if *attempts == 1 {
            "attempt"
        } else {
            "attempts"
        };
        write!(
            f,
            "gave up after {attempts} {plural} in {waited:.1?} ({ballots})"
        )
    }
}

impl std::error::Error for Attempts {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.ballots.first_error()
    }
}

/// A lock that can no longer be trusted, while something still depended on it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("lock on {resource:?} is lost: {loss}")]
#[non_exhaustive]
pub struct Lost {
    /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
    pub resource: String,
    /// How it was lost.
    pub loss: Loss,
}

/// How a lock came to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Its validity ended: it was not extended, or no quorum confirmed that in time.
    Expired,
    /// A quorum of masters said that the key is not ours any more: deleted, or taken over.
    Taken,
    /// The longest lifetime that was set for keeping it alive is over.
    LifetimeReached,
    /// Its client has ended: the runtime that was given to
    /// [`RedlockBuilder::runtime`](crate::RedlockBuilder::runtime) has shut down, or this process was forked from the
    /// one that holds the lock.
    ClientEnded,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its validity is over",
            Self::Taken => "a quorum of masters does not hold it for us any more",
            Self::LifetimeReached => "its longest lifetime is over",
            Self::ClientEnded => {
                "its client has ended, with the runtime it was given or with a fork of the process"
            }
        })
    }
}

/// Why work under a lock was not done, or not to the end.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The lock was not granted; the work was not begun.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lock was lost; the work was dropped where it stood.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why a lock was not extended. Nothing is released, and what validity was left still stands.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ExtendError {
    /// The ttl cannot be used. Nothing was sent.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// The lock is lost, before the extension was asked for or before a quorum had confirmed it. It must not be
    /// relied on any more, even if masters still hold the key.
    #[error("lock on {resource:?} is lost: {loss}{}", in_parentheses(ballots))]
    Lost {
        /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
        resource: String,
        /// How it was lost.
        loss: Loss,
        /// What every master said; empty where that did not matter.
        ballots: Ballots,
    },
    /// Fewer than a quorum confirmed in time. The old validity stands; try again while it lasts.
    #[error(
        "too few masters confirmed the extension of {resource:?}, the old validity stands ({ballots})"
    )]
    Unconfirmed {
        /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
        resource: String,
        /// What every master said.
        ballots: Ballots,
    },
}

/// Why a lock of another process was not taken over. It is left as it was.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// It could not be extended.
    #[error(transparent)]
    Extend(#[from] ExtendError),
}

/// What a release found. Either way the guard is used up, and masters that did not answer are asked again in the
/// background until the ttl is over.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The lock was not ours any more on a quorum of masters: it had expired, or was deleted or taken over.
    /// Nobody else's key was touched.
    #[error(
        "lock on {resource:?} was not ours any more when released: it had expired or was taken over{}",
        in_parentheses(ballots)
    )]
    NotHeld {
        /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
        resource: String,
        /// What every master said.
        ballots: Ballots,
    },
    /// Fewer than a quorum answered in time.
    #[error(
        "too few masters confirmed the release of {resource:?}; it goes on in the background, until the ttl is over at most ({ballots})"
    )]
    Unconfirmed {
        /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
        resource: String,
        /// What every master said.
        ballots: Ballots,
    },
}

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
    /// Not waited for: the outcome was certain without it.
    Unheard,
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

impl MasterError {
    /// The master answered, and this is what it said; or the connection failed with this.
    pub(crate) fn from_redis(error: RedisError) -> Self {
        match (error.code(), error.kind()) {
            (Some("WRONGTYPE"), _) => Self::WrongType(error),
            (_, ErrorKind::Server(ServerErrorKind::NoPerm)) => Self::Forbidden(error),
            // What Redis 7.0 says when the script runs, and a command or key in it is forbidden.
            (Some("ERR"), _)
                if error
                    .detail()
                    .is_some_and(|detail| detail.contains("executing the script can't")) =>
            {
                Self::Forbidden(error)
            }
            (Some("NOAUTH" | "WRONGPASS"), _) | (_, ErrorKind::AuthenticationFailed) => {
                Self::Auth(error)
            }
            (_, ErrorKind::Io) => Self::Disconnected(error),
            (_, ErrorKind::Parse | ErrorKind::UnexpectedReturnType) => {
                Self::Protocol(error.to_string())
            }
            _ => Self::Server(error),
        }
    }

    /// Whether the master replied this before it did anything: the request has surely left nothing.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Auth(_) | Self::Forbidden(_) | Self::WrongType(_) => true,
            Self::Server(error) => matches!(
                error.code(),
                Some(
                    "LOADING"
                        | "READONLY"
                        | "OOM"
                        | "MISCONF"
                        | "NOREPLICAS"
                        | "MASTERDOWN"
                        | "BUSY"
                )
            ),
            _ => false,
        }
    }

    /// Whether the same request may well be answered another time.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(
            self,
            Self::WrongType(_) | Self::Forbidden(_) | Self::Protocol(_)
        )
    }

    /// Opening a connection failed with this.
    pub(crate) fn from_connecting(error: RedisError) -> Self {
        match Self::from_redis(error) {
            Self::Disconnected(error) => Self::Connect(error),
            other => other,
        }
    }
}

/// Where a master is: `host:port`, a socket's path, or for a connection that was handed in, its place in the
/// list. Never a user or a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address(Arc<str>);

impl Address {
    pub(crate) fn new(address: impl Into<Arc<str>>) -> Self {
        Self(address.into())
    }

    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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

    /// Whether a quorum of the votes is of a kind.
    pub(crate) fn is_quorum(&self, kind: impl Fn(&Vote) -> bool) -> bool {
        self.iter().filter(|ballot| kind(&ballot.vote)).count() >= quorum(self.0.len())
    }

    fn first_error(&self) -> Option<&(dyn std::error::Error + 'static)> {
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
    /// Whether a master surely holds nothing of ours after this answer to a release.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::Granted | Self::Refused => true,
            Self::Failed(error) => matches!(error, MasterError::WrongType(_)),
            Self::Recreated | Self::Unheard => false,
        }
    }
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted => f.write_str("granted"),
            Self::Refused => f.write_str("refused, not ours"),
            Self::Recreated => f.write_str("was missing, set again"),
            Self::Unheard => f.write_str("not needed to decide"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

fn in_parentheses(ballots: &Ballots) -> String {
    if ballots.0.is_empty() {
        String::new()
    } else {
        format!(" ({ballots})")
    }
}

/// A resource as it stands in messages: text as it is, other bytes replaced.
pub(crate) fn name(resource: &[u8]) -> String {
    String::from_utf8_lossy(resource).into_owned()
}
