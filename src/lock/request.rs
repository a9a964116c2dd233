//! The request for a lock: its options, and the future that it becomes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::error::{LockError, RunError, name};
use crate::inner::Inner;
use crate::lock::attempts::{Options, lock};
use crate::lock::guard::LockGuard;
use crate::lock::keep_alive::KeepAlive;
use crate::retry::RetryPolicy;

/// A request for a lock, which is sent when it is awaited. Made by [`Redlock::lock`](crate::Redlock::lock) and
/// [`Redlock::try_lock`](crate::Redlock::try_lock).
///
/// # Examples
///
/// ```no_run
/// # use std::time::Duration;
/// # use tokio_redlock::{Redlock, RetryPolicy};
/// # async fn example(dlm: Redlock) -> Result<(), tokio_redlock::LockError> {
/// let request = dlm.lock("report", Duration::from_secs(10)).retry(RetryPolicy::new().max_attempts(3));
/// let guard = request.await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is locked until the request is awaited"]
pub struct LockRequest(Options);

impl LockRequest {
    pub(crate) fn new(inner: &Arc<Inner>, resource: &[u8], ttl: Duration) -> Self {
        Self(Options {
            inner: Arc::clone(inner),
            key: inner.key(resource),
            ttl,
            retry: inner.retry.clone(),
            keep_alive: None,
        })
    }

    /// Sets how to wait for this lock. Defaults to the policy of the client.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.0.retry = policy;
        self
    }

    /// Keeps the lock alive as long as its guard exists. Defaults to no renewals: the lock ends with its ttl.
    ///
    /// With renewals a short ttl is enough for long work. The ttl then limits how long others wait after the process
    /// has died, not how long the work may take. Still use [`LockGuard::lost`] or [`LockGuard::run`]: masters may fail
    /// for longer than the ttl.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{KeepAlive, LockError, Redlock};
    /// # async fn example(dlm: Redlock) -> Result<(), LockError> {
    /// let leader = dlm.lock("leader", Duration::from_secs(10)).keep_alive(KeepAlive::new()).await?;
    /// leader.lost().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.0.keep_alive = Some(keep_alive);
        self
    }

    /// Takes the lock, keeps it alive while the work runs, and releases it. The same as
    /// [`Redlock::with_lock`](crate::Redlock::with_lock), with the options of this request.
    ///
    /// # Errors
    ///
    /// As for [`Redlock::with_lock`](crate::Redlock::with_lock).
    ///
    /// # Cancel safety
    ///
    /// As for [`Redlock::with_lock`](crate::Redlock::with_lock).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{KeepAlive, Redlock, RunError};
    /// # async fn import() {}
    /// # async fn example(dlm: Redlock) -> Result<(), RunError> {
    /// let an_hour = KeepAlive::new().max_lifetime(Duration::from_secs(3600));
    /// let request = dlm.try_lock("import", Duration::from_secs(10)).keep_alive(an_hour);
    /// request.run(async |_guard| import().await).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<T>(mut self, work: impl AsyncFnOnce(&LockGuard) -> T) -> Result<T, RunError> {
        self.0.keep_alive.get_or_insert_default();
        let guard = self.await?;
        // If the work panics, the drop of the guard releases the lock.
        let done = guard.run(work(&guard)).await;
        // Only logged: the caller needs the output of the work, whatever became of the lock afterwards.
        if let Err(error) = guard.release().await {
            tracing::debug!(%error, "the work is done, but the release of its lock failed");
        }
        Ok(done?)
    }
}

impl IntoFuture for LockRequest {
    type Output = Result<LockGuard, LockError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        // Boxed, because `IntoFuture` needs a name for the type of the future.
        Box::pin(lock(self.0))
    }
}

impl fmt::Debug for LockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockRequest")
            .field("resource", &name(self.0.key.resource()))
            .field("ttl", &self.0.ttl)
            .field("retry", &self.0.retry)
            .finish_non_exhaustive()
    }
}
