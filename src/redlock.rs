//! The client: every public verb. What a verb does is in the modules below.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{AdoptError, RunError, name};
use crate::inner::Inner;
use crate::inspect::Inspection;
use crate::lock::guard::LockGuard;
use crate::lock::handover::Handover;
use crate::lock::request::LockRequest;
use crate::master::Request;
use crate::retry::RetryPolicy;
use crate::vote::MasterError;

/// A distributed lock manager over N independent Redis or Valkey masters.
///
/// Cheap to clone; clones share their connections, one to each master, which are opened when first needed.
///
/// The connections and all background work live on a thread of the process named `redlock`, which all clients share and
/// the first request starts; or on a runtime that you name by [`RedlockBuilder::runtime`]. The futures of this crate
/// may be awaited on any executor, and outlive the runtime that they were begun in.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use tokio_redlock::Redlock;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let dlm = Redlock::new(["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"])?;
/// let guard = dlm.lock("invoice:42", Duration::from_secs(30)).await?;
/// // ... nobody else holds "invoice:42" for as long as the guard is valid ...
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redlock {
    inner: Arc<Inner>,
}

impl Redlock {
    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Locks a resource for `ttl`, waiting for it as the retry policy says.
    ///
    /// The request does nothing until awaited; options for this one call go before that. The future is `'static`
    /// and can be spawned.
    ///
    /// # Errors
    ///
    /// A [`LockError`] that tells taken from unreachable from too late, with what every master said.
    ///
    /// # Cancel safety
    ///
    /// Drop the future whenever you like: what it had asked for is undone in the background, and nothing is left
    /// on a master that can be reached.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{Redlock, RetryPolicy};
    /// # async fn example(dlm: Redlock) -> Result<(), tokio_redlock::LockError> {
    /// let patient = RetryPolicy::new().max_wait(Duration::from_secs(60));
    /// let guard = dlm.lock("report", Duration::from_secs(10)).retry(patient).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock(&self, resource: impl AsRef<[u8]>, ttl: Duration) -> LockRequest {
        LockRequest::new(&self.inner, resource.as_ref(), ttl)
    }

    /// Locks a resource for `ttl` if that can be done at once: [`lock`](Self::lock) with
    /// [`RetryPolicy::once`].
    ///
    /// When several clients ask at the very same moment, each may win a minority of the masters, and none the
    /// lock. Where one of them must win, let them try for a second or two.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{LockError, Redlock};
    /// # async fn example(dlm: Redlock) -> Result<(), LockError> {
    /// match dlm.try_lock("nightly", Duration::from_secs(600)).await {
    ///     Ok(guard) => drop(guard),
    ///     Err(LockError::Taken(_)) => println!("another machine is at it"),
    ///     Err(other) => return Err(other),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_lock(&self, resource: impl AsRef<[u8]>, ttl: Duration) -> LockRequest {
        self.lock(resource, ttl).retry(RetryPolicy::once())
    }

    /// Does some work under a lock: waits for the lock, keeps it alive while the work runs, and releases it.
    ///
    /// The lock is waited for as the retry policy of the client says; [`LockRequest::run`] does the same with
    /// options. What the work returns is returned, whatever becomes of the release; should it panic, the lock is
    /// released and the panic goes on.
    ///
    /// # Errors
    ///
    /// - [`RunError::Lock`]: the lock was not granted, and the work not begun.
    /// - [`RunError::Lost`]: the lock was lost, and the work dropped where it stood.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the work, and releases the lock in the background.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{Redlock, RunError};
    /// # async fn import() -> Result<u64, std::io::Error> { Ok(0) }
    /// # async fn example(dlm: Redlock) -> Result<(), Box<dyn std::error::Error>> {
    /// let ttl = Duration::from_secs(10);
    /// let rows = dlm.with_lock("import", ttl, async |_guard| import().await).await??;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn with_lock<T>(
        &self,
        resource: impl AsRef<[u8]>,
        ttl: Duration,
        work: impl AsyncFnOnce(&LockGuard) -> T,
    ) -> Result<T, RunError> {
        self.lock(resource, ttl).run(work).await
    }

    /// Asks every master who holds a resource. Takes no lock.
    ///
    /// Waits for all masters, for none longer than the request timeout. There is no error: a master that does not
    /// answer is part of the picture.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tokio_redlock::{Redlock, inspect::Verdict};
    /// # async fn example(dlm: Redlock) {
    /// match dlm.inspect("invoice:42").await.verdict {
    ///     Verdict::Free => println!("nobody is at it"),
    ///     Verdict::Held { expires_in, .. } => println!("somebody is at it, for for up to {expires_in:?} more"),
    ///     other => println!("{other:?}"),
    /// }
    /// # }
    /// ```
    pub async fn inspect(&self, resource: impl AsRef<[u8]>) -> Inspection {
        let (core, patience) = (Arc::clone(self.inner.core()), self.inner.request_timeout);
        let request = Request::inspect(&self.inner.key(resource.as_ref()));
        let looking = self
            .inner
            .core()
            .engine
            .run(async move { core.masters.inspect(&request, patience).await });
        let views = looking.await.unwrap_or_else(|stopped| {
            let error = MasterError::NotAsked(stopped.to_string());
            self.inner.core().masters.all_unreachable(&error)
        });
        Inspection::new(views)
    }

    /// Takes over a lock that another process has given up by [`LockGuard::leak`], and extends it to `ttl`.
    ///
    /// # Errors
    ///
    /// [`AdoptError`], mostly as for [`LockGuard::extend`]: the lock is only taken over if a quorum confirms that, and before the
    /// validity that was handed over, counted from the call, has ended. After an error no key is set or deleted; it
    /// may be tried again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the lock where it is, as an error does.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{AdoptError, LockGuard, Redlock};
    /// # async fn example(guard: LockGuard, dlm: Redlock) -> Result<(), AdoptError> {
    /// let handover = guard.leak();
    /// // ... in another process ...
    /// let guard = dlm.adopt(handover, Duration::from_secs(30)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn adopt(
        &self,
        handover: Handover,
        ttl: Duration,
    ) -> impl Future<Output = Result<LockGuard, AdoptError>> + Send + use<> {
        handover.adopt(&self.inner, ttl)
    }

    /// Waits until every release under way is confirmed by every master that may hold the key, those from drops
    /// and cancelled attempts too; at most for `timeout`. Returns the number of those that are not: their keys expire
    /// with the ttl. A release that was given up is counted once.
    ///
    /// Call it last, when the guards are dropped: the process can then end in any way without leaving anything behind.
    /// The client can be used after it.
    ///
    /// A release also counts as under way while a `SET` may still come over an earlier connection that its master does
    /// not allow to be closed: the delete is repeated until the ttl is over.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::Redlock;
    /// # async fn example(dlm: Redlock) {
    /// let unconfirmed = dlm.shutdown(Duration::from_secs(1)).await;
    /// if unconfirmed > 0 {
    ///     eprintln!("{unconfirmed} locks will only end with their ttl");
    /// }
    /// # }
    /// ```
    pub async fn shutdown(&self, timeout: Duration) -> usize {
        let core = Arc::clone(self.inner.core());
        if !core.engine.has_started() {
            return core.releases.take_unconfirmed();
        }
        // A job, so that it comes after what has been dropped before.
        let done = core.releases.clone();
        let done = core.engine.run(async move { done.done(timeout).await });
        done.await
            .unwrap_or_else(|_| core.releases.take_unconfirmed())
    }
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redlock")
            .field("masters", &self.inner.addresses())
            .field("key_prefix", &name(&self.inner.key_prefix))
            .field("retry", &self.inner.retry)
            .field("request_timeout", &self.inner.request_timeout)
            .finish_non_exhaustive()
    }
}
