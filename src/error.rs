//! The errors: one type per operation, with the answer of every master.

use std::fmt;
use std::time::Duration;

use redis::RedisError;
use thiserror::Error;

use crate::address::Address;
use crate::vote::Ballots;

/// Why a [`Redlock`](crate::Redlock) could not be built.
///
/// Messages name a master as it was given, without user, password and query.
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
    /// The same master was given twice, and would have two votes.
    #[error("master {master} is given twice: each must be an independent Redis")]
    DuplicateMaster {
        /// The address that was given twice.
        master: Address,
    },
    /// A URL cannot be used for a Redis master.
    #[error(
        "master {master:?} cannot be used: {source} (expected redis://, rediss://, valkey://, valkeys:// or \
         unix:// and an address)"
    )]
    Url {
        /// The URL as it was given, without user, password and query.
        master: String,
        /// What is wrong with the URL.
        source: RedisError,
    },
    /// A master needs TLS, and the crate was built without TLS.
    #[error(
        "master {master:?} wants TLS: build tokio-redlock with the feature tls-rustls or tls-native-tls"
    )]
    TlsDisabled {
        /// The URL as it was given, without user, password and query.
        master: String,
    },
    /// The drift factor is below 0, above 0.5, or not a number.
    #[error("drift factor {factor} is out of range: it must be between 0 and 0.5, usually 0.01")]
    DriftFactor {
        /// The factor that was given.
        factor: f64,
    },
    /// The request timeout is below 1 ms or above 60 s.
    #[error("request timeout {timeout:?} is out of range: it must be between 1 ms and 60 s")]
    RequestTimeout {
        /// The timeout that was given.
        timeout: Duration,
    },
}

/// Why a ttl cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TtlError {
    /// No validity would be left after the drift is taken off. The drift is 1 % of the ttl and 2 ms, unless set
    /// otherwise.
    #[error(
        "ttl {ttl:?} is too short: clock drift alone takes {drift:?} of it (a ttl is a Duration: was that meant \
         to be seconds?)"
    )]
    TooShort {
        /// The ttl that was given.
        ttl: Duration,
        /// The drift for this ttl.
        drift: Duration,
    },
    /// The ttl has more milliseconds than Redis can count.
    #[error("ttl {ttl:?} is too long: Redis takes at most {max:?}")]
    TooLong {
        /// The ttl that was given.
        ttl: Duration,
        /// The longest ttl that is allowed.
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
///     Err(LockError::Taken(failure)) => println!("somebody else holds it: {failure}"),
///     Err(LockError::Unreachable(failure)) => {
///         for ballot in &failure.ballots {
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
    /// Others hold the lock, or compete for it. Fewer masters failed than would make a quorum impossible.
    #[error("resource {:?} is taken: {}", name(&.0.resource), .0)]
    Taken(LockFailure),
    /// So many masters failed that a quorum was impossible, whoever holds the lock.
    #[error("too few masters could vote on the lock {:?}: {}", name(&.0.resource), .0)]
    Unreachable(#[source] LockFailure),
    /// A quorum granted the lock, but the validity was over before the call returned.
    #[error(
        "lock on {:?} was won too late, its ttl was over before a quorum had agreed: {}",
        name(&.0.resource), .0
    )]
    TooLate(LockFailure),
    /// The total wait of the [`RetryPolicy`](crate::RetryPolicy) was over while the call still waited in line for its
    /// first attempt: this client has more requests than its masters answer. Nothing was sent, so the number of
    /// attempts is 0, and there are no ballots. A call that has made an attempt returns the error of its last attempt
    /// instead.
    #[error(
        "lock on {:?} was still in line behind other requests of this client: {}",
        name(&.0.resource), .0
    )]
    Overloaded(LockFailure),
}

/// How a call for a lock failed: after how long, after how many attempts, and what each master answered last.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockFailure {
    /// The resource, without the key prefix.
    pub resource: Vec<u8>,
    /// The number of attempts. 0 if none was made, or if the client has ended.
    pub attempts: u32,
    /// The time from the start of the call until it gave up, including the time in line. Zero if the client has
    /// ended, or could not start.
    pub waited: Duration,
    /// The answer of every master in the last attempt, in the order of the masters. Empty in
    /// [`LockError::Overloaded`].
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
        write!(f, "gave up after {attempts} {plural} in {waited:.1?}")?;
        if ballots.len() > 0 {
            write!(f, " ({ballots})")?;
        }
        Ok(())
    }
}

impl std::error::Error for LockFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.ballots.first_error()
    }
}

/// The lock was lost while something still depended on it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("lock on {resource:?} is lost: {reason}")]
#[non_exhaustive]
pub struct LostError {
    /// The resource, without the key prefix. Bytes that are not UTF-8 are replaced.
    pub resource: String,
    /// Why the lock was lost.
    pub reason: LossReason,
}

/// Why a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The validity ended: the lock was not extended, or no quorum confirmed the extension in time.
    Expired,
    /// A quorum of masters answered that the key is not ours any more: it was deleted or taken over.
    Taken,
    /// The `max_lifetime` of [`KeepAlive`](crate::KeepAlive) is over.
    LifetimeReached,
    /// The client has ended: the runtime that was given to [`RedlockBuilder::runtime`](crate::RedlockBuilder::runtime)
    /// has shut down, or this process was forked from the process that holds the lock.
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

/// Why work under a lock did not run, or not to its end.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The lock was not granted. The work was not started.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lock was lost. The work was dropped at its current await point.
    #[error(transparent)]
    Lost(#[from] LostError),
}

/// Why a lock was not extended. The error releases nothing.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ExtendError {
    /// The ttl cannot be used. Nothing was sent.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// The lock is lost: either before the extension was sent, or before a quorum had confirmed the extension. Do not
    /// rely on the lock any more, even if masters still hold its key.
    #[error("lock on {resource:?} is lost: {reason}{}", in_parentheses(ballots))]
    Lost {
        /// The resource, without the key prefix. Bytes that are not UTF-8 are replaced.
        resource: String,
        /// Why the lock was lost.
        reason: LossReason,
        /// The answer of every master. Empty where the answers did not matter.
        ballots: Ballots,
    },
    /// Fewer than a quorum confirmed in time. The old validity is unchanged. Try again before it ends.
    #[error(
        "too few masters confirmed the extension of {resource:?}, the old validity is unchanged ({ballots})"
    )]
    Unconfirmed {
        /// The resource, without the key prefix. Bytes that are not UTF-8 are replaced.
        resource: String,
        /// The answer of every master.
        ballots: Ballots,
    },
}

/// Why a lock of another process was not taken over. No key was set or deleted.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The lock could not be extended.
    #[error(transparent)]
    Extend(#[from] ExtendError),
}

/// Why a release was not successful. In each case the guard is consumed. The client sends the delete again in the
/// background to masters that did not answer, until the ttl is over. [`Redlock::shutdown`](crate::Redlock::shutdown)
/// waits for that, and names the limits.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The lock was not ours any more on a quorum of masters: it had expired, or was deleted or taken over. No key of
    /// another holder was deleted.
    #[error(
        "lock on {resource:?} was not ours any more when released: it had expired or was taken over{}",
        in_parentheses(ballots)
    )]
    NotHeld {
        /// The resource, without the key prefix. Bytes that are not UTF-8 are replaced.
        resource: String,
        /// The answer of every master.
        ballots: Ballots,
    },
    /// Fewer than a quorum answered: the other masters failed, or were silent for the request timeout.
    #[error(
        "too few masters confirmed the release of {resource:?}; it continues in the background until the ttl is over \
         ({ballots})"
    )]
    Unconfirmed {
        /// The resource, without the key prefix. Bytes that are not UTF-8 are replaced.
        resource: String,
        /// The answer of every master.
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

/// A resource as messages show it: bytes that are not UTF-8 are replaced.
pub(crate) fn name(resource: &[u8]) -> String {
    String::from_utf8_lossy(resource).into_owned()
}
