//! The options of a lock that is kept alive.

use std::time::Duration;

/// Keeps a lock alive while its guard exists; see [`LockRequest::keep_alive`](crate::LockRequest::keep_alive).
///
/// The client extends the lock about every third of its ttl, at random up to a tenth earlier or later. After a renewal
/// that failed it pauses for about a thirtieth of the ttl, at most half a second, and tries again, while the lock is
/// valid. This ends with the guard. If the lock is lost, a warning is logged.
///
/// Renewals run in the background of the client. Locks that are due at about the same time are renewed by one request
/// to each master, so many locks cost little. Renewals continue while the caller's runtime is blocked or is not run. So
/// work that hangs keeps all other clients out. [`max_lifetime`](Self::max_lifetime) limits that time.
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use tokio_redlock::{KeepAlive, LockError, Redlock};
/// # async fn example(dlm: Redlock) -> Result<(), LockError> {
/// let for_an_hour_at_most = KeepAlive::new().max_lifetime(Duration::from_secs(3600));
/// let guard = dlm.lock("import", Duration::from_secs(10)).keep_alive(for_an_hour_at_most).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepAlive {
    /// `None` for no limit.
    pub(crate) max_lifetime: Option<Duration>,
}

impl KeepAlive {
    /// Keeps the lock alive as long as its guard exists.
    #[must_use]
    pub const fn new() -> Self {
        Self { max_lifetime: None }
    }

    /// Sets the longest lifetime of the lock, counted from the start of the attempt that got the lock. Then the lock is
    /// lost, with [`LossReason::LifetimeReached`](crate::LossReason::LifetimeReached). Defaults to no limit.
    ///
    /// For work that may hang: without a limit, such work keeps all other clients out for ever.
    #[must_use]
    pub const fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = Some(lifetime);
        self
    }
}
