//! The guard: the lock as its holder has it.

use std::fmt;
use std::time::Duration;

use tracing::{Instrument, field::Empty};

use crate::claim::Claim;
use crate::error::{ExtendError, ReleaseError, Vote, name};
use crate::quorum::Verdict;

/// A lock that is held. Dropped, it is released in the background.
///
/// The lock is good for [`validity`](Self::validity), counted from before the masters were asked. After that
/// somebody else may hold it, whether or not this guard still exists: look before you act on it, extend it in
/// time, and make sure that the protected resource itself refuses the late.
///
/// # Dropping
///
/// `drop` sends a compare-and-delete to every master and returns at once; a task sees to the answers. It may be
/// called anywhere: in an aborted task, on a thread without a runtime, while panicking. If the runtime has
/// shut down, a thread of its own sends it, and `drop` waits for that, at most 100 ms. To wait for all releases
/// before a process ends there is [`Redlock::shutdown`](crate::Redlock::shutdown).
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use tokio_redlock::Redlock;
/// # async fn charge(_: &str) {}
/// # async fn example(dlm: Redlock) -> Result<(), Box<dyn std::error::Error>> {
/// let guard = dlm.lock("invoice:42", Duration::from_secs(30)).await?;
/// charge("invoice:42").await;
/// drop(guard);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropped at once, the lock is released at once; bind it to a name"]
#[clippy::has_significant_drop]
pub struct LockGuard {
    claim: Claim,
}

impl LockGuard {
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim }
    }

    /// What is locked, without the key prefix.
    pub fn resource(&self) -> &[u8] {
        self.claim.resource()
    }

    /// The random value that marks this lock as ours on the masters.
    pub fn value(&self) -> &str {
        self.claim.value()
    }

    /// How long the lock can be trusted from now on; zero when it no longer can.
    ///
    /// That is the ttl, less the time since before the masters were asked, less the drift. The clock it goes by
    /// counts the time that the machine was suspended.
    pub fn validity(&self) -> Duration {
        self.claim.validity()
    }

    /// Whether the lock can be trusted at this moment.
    pub fn is_valid(&self) -> bool {
        !self.validity().is_zero()
    }

    /// Makes the lock good for `ttl` from now on, if a quorum confirms it while it is still good.
    ///
    /// Never shortens: with less than what is left, what is left stays. On a master that lost the key it is set
    /// again, and counts from the next extension on.
    ///
    /// # Errors
    ///
    /// - [`ExtendError::Ttl`]: the ttl cannot be used; nothing was sent.
    /// - [`ExtendError::Unconfirmed`]: too few masters answered. The old validity stands; try again.
    /// - [`ExtendError::Expired`], [`ExtendError::Lost`]: the lock is lost.
    ///
    /// Nothing is released by an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the validity as it was; the keys may have been lengthened, and are released
    /// with the guard.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{ExtendError, LockGuard};
    /// # async fn example(guard: &LockGuard) -> Result<(), ExtendError> {
    /// if guard.validity() < Duration::from_secs(10) {
    ///     guard.extend(Duration::from_secs(30)).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn extend(&self, ttl: Duration) -> Result<(), ExtendError> {
        let span = tracing::debug_span!(
            "extend",
            resource = name(self.resource()),
            ?ttl,
            elapsed = Empty,
            outcome = Empty
        );
        let started = tokio::time::Instant::now();
        let result = self.claim.extend(ttl).instrument(span.clone()).await;
        span.record("elapsed", tracing::field::debug(started.elapsed()));
        span.record(
            "outcome",
            match &result {
                Ok(()) => "extended",
                Err(ExtendError::Ttl(_)) => "bad ttl",
                Err(ExtendError::Expired { .. }) => "expired",
                Err(ExtendError::Lost { .. }) => "lost",
                Err(ExtendError::Unconfirmed { .. }) => "unconfirmed",
            },
        );
        result
    }

    /// Releases the lock, and waits until a quorum has confirmed that.
    ///
    /// # Errors
    ///
    /// - [`ReleaseError::NotHeld`]: it was not ours any more: expired, deleted or taken over. Nobody else's key
    ///   is touched.
    /// - [`ReleaseError::Unconfirmed`]: too few masters answered within the request timeout.
    ///
    /// # Cancel safety
    ///
    /// The masters are asked at the first poll; dropping the future leaves the rest to the background.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{LockGuard, ReleaseError};
    /// # async fn example(guard: LockGuard) {
    /// if let Err(ReleaseError::NotHeld { .. }) = guard.release().await {
    ///     eprintln!("the work took longer than the lock was good for: check what it did");
    /// }
    /// # }
    /// ```
    pub async fn release(self) -> Result<(), ReleaseError> {
        let resource = name(self.resource());
        let span = tracing::debug_span!("release", resource, elapsed = Empty, outcome = Empty);
        let started = tokio::time::Instant::now();
        let Some(release) = self.claim.release() else {
            return Ok(());
        };
        let (verdict, ballots) = release.decided().instrument(span.clone()).await;
        span.record("elapsed", tracing::field::debug(started.elapsed()));
        let (outcome, result) = if verdict == Verdict::Carried {
            ("released", Ok(()))
        } else if ballots.is_quorum(|vote| matches!(vote, Vote::Refused)) {
            ("not held", Err(ReleaseError::NotHeld { resource, ballots }))
        } else {
            (
                "unconfirmed",
                Err(ReleaseError::Unconfirmed { resource, ballots }),
            )
        };
        span.record("outcome", outcome);
        result
    }

    /// Gives the lock up without releasing it: the keys stay on the masters until their ttl is over.
    ///
    /// For handing it to another process, together with [`resource`](Self::resource) and
    /// [`value`](Self::value).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::Redlock;
    /// # async fn example(dlm: Redlock) -> Result<(), Box<dyn std::error::Error>> {
    /// // At most one report a day: the lock outlives the process on purpose.
    /// let guard = dlm.try_lock("daily-report", Duration::from_secs(24 * 3600)).await?;
    /// guard.leak();
    /// # Ok(())
    /// # }
    /// ```
    pub fn leak(self) {
        self.claim.leak();
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("resource", &name(self.resource()))
            .field("value", &self.value())
            .field("validity", &self.validity())
            .finish()
    }
}
