//! The errors: one type per operation, each with what every master had to say.

use std::fmt;
use std::time::Duration;

use redis::RedisError;
use thiserror::Error;

use crate::address::Address;
use crate::vote::Ballots;

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
    Taken(LockFailure),
    /// Too few masters answered for a quorum, whoever holds the lock.
    #[error("too few masters can be reached to lock {:?}: {}", name(&.0.resource), .0)]
    Unreachable(#[source] LockFailure),
    /// A quorum agreed, but only when the ttl, less drift, had passed.
    #[error(
        "lock on {:?} was won too late, its ttl was over before a quorum had agreed: {}",
        name(&.0.resource), .0
    )]
    TooLate(LockFailure),
}

/// How a lock was tried for in vain: for how long, how often, and what each master said the last time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockFailure {
    /// The resource, without the key prefix.
    pub resource: Vec<u8>,
    /// How many attempts were made.
    pub attempts: u32,
    /// From the beginning of the first attempt to the end of the last.
    pub waited: Duration,
    /// What every master said in the last attempt, in the order of the masters.
    pub ballots: Ballots,
}

impl fmt::Display for LockFailure {
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

impl std::error::Error for LockFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.ballots.first_error()
    }
}

/// A lock that can no longer be trusted, while something still depended on it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("lock on {resource:?} is lost: {reason}")]
#[non_exhaustive]
pub struct LostError {
    /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
    pub resource: String,
    /// How it was lost.
    pub reason: LossReason,
}

/// How a lock came to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
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

impl fmt::Display for LossReason {
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
    Lost(#[from] LostError),
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
    #[error("lock on {resource:?} is lost: {reason}{}", in_parentheses(ballots))]
    Lost {
        /// The resource, without the key prefix; bytes that are not UTF-8 are replaced.
        resource: String,
        /// How it was lost.
        reason: LossReason,
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

fn in_parentheses(ballots: &Ballots) -> String {
    if ballots.len() == 0 {
        String::new()
    } else {
        format!(" ({ballots})")
    }
}

/// A resource as it stands in messages: text as it is, other bytes replaced.
pub(crate) fn name(resource: &[u8]) -> String {
    String::from_utf8_lossy(resource).into_owned()
}
