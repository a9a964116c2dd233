//! The client, with every public verb. The modules below implement the verbs.

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
/// A `Redlock` is cheap to clone. All clones share one connection to each master, which is opened when it is first
/// needed.
///
/// The connections and all background work run on one thread of the process, named `redlock`. The first request starts
/// this thread, and all clients share it. [`RedlockBuilder::runtime`](crate::RedlockBuilder::runtime) names a runtime
/// to use instead. The futures of this crate may be awaited on any executor, also after the runtime that first polled
/// them has ended.
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
/// // ... nobody else holds "invoice:42" while the guard is valid ...
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

    /// Locks a resource for `ttl`, and retries as the retry policy says.
    ///
    /// The request sends nothing until it is awaited. Options for this one call go before the `.await`. The future is
    /// `'static`, so it can be spawned.
    ///
    /// When this client has more requests under way than its masters answer soon, an attempt first waits
    /// [in line](RetryPolicy#waiting-in-line). The validity counts from the end of that wait.
    ///
    /// # Errors
    ///
    /// A [`LockError`](crate::LockError), with the answer of every master in the last attempt.
    ///
    /// - [`LockError::Taken`](crate::LockError::Taken): others hold the lock or compete for it.
    /// - [`LockError::Unreachable`](crate::LockError::Unreachable): too few masters answered, or allowed the request.
    /// - [`LockError::TooLate`](crate::LockError::TooLate): a quorum agreed when the validity was already over.
    /// - [`LockError::Overloaded`](crate::LockError::Overloaded): the total wait of the retry policy was over before
    ///   the masters had room for the first attempt. Nothing was sent.
    /// - [`LockError::Ttl`](crate::LockError::Ttl): the ttl cannot be used. Nothing was sent.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any await point. The client then deletes in the background what the future had set.
    /// No key stays on a master that can be reached and allows the delete. What was not sent yet is not sent any more:
    /// a future that waits in line has set nothing.
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

    /// Locks a resource for `ttl` with one attempt: [`lock`](Self::lock) with [`RetryPolicy::once`].
    ///
    /// The call does not wait until others release the lock. While the masters have no room for the attempt, it waits
    /// [in line](RetryPolicy#waiting-in-line), for 5 s at most. A policy such as
    /// `RetryPolicy::once().max_wait(Duration::ZERO)` makes it return
    /// [`LockError::Overloaded`](crate::LockError::Overloaded) at once instead.
    ///
    /// When several clients ask at the same moment, each may win a minority of the masters, and no client gets the
    /// lock. Where one client must win, use [`lock`](Self::lock) with a `max_wait` of a second or two.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{LockError, Redlock};
    /// # async fn example(dlm: Redlock) -> Result<(), LockError> {
    /// match dlm.try_lock("nightly", Duration::from_secs(600)).await {
    ///     Ok(guard) => drop(guard),
    ///     Err(LockError::Taken(_)) => println!("another machine does it"),
    ///     Err(other) => return Err(other),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_lock(&self, resource: impl AsRef<[u8]>, ttl: Duration) -> LockRequest {
        self.lock(resource, ttl).retry(RetryPolicy::once())
    }

    /// Runs some work under a lock: takes the lock, keeps the lock alive while the work runs, and releases the lock.
    ///
    /// The retry policy of the client applies. [`LockRequest::run`] does the same with options for one call.
    ///
    /// The output of the work is returned, also when the release fails. If the work panics, the guard is dropped, which
    /// releases the lock, and the panic continues.
    ///
    /// # Errors
    ///
    /// - [`RunError::Lock`]: the lock was not granted. The work was not started.
    /// - [`RunError::Lost`]: the lock was lost. The work was dropped at its current await point.
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
    /// Waits for all masters, but not for one that is silent for the
    /// [request timeout](crate::RedlockBuilder::request_timeout). Does not wait in line. There is no error: the result
    /// lists a master that did not answer as unreachable.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tokio_redlock::{Redlock, inspect::Verdict};
    /// # async fn example(dlm: Redlock) {
    /// match dlm.inspect("invoice:42").await.verdict {
    ///     Verdict::Free => println!("nobody holds it"),
    ///     Verdict::Held { expires_in, .. } => println!("somebody holds it, for up to {expires_in:?} more"),
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
        // Without an engine nothing was asked, and there is no error type: the reason is put into every view.
        let views = looking.await.unwrap_or_else(|stopped| {
            let error = MasterError::NotAsked(stopped.to_string());
            self.inner.core().masters.all_unreachable(&error)
        });
        Inspection::new(views)
    }

    /// Takes over a lock that another process has given up by [`LockGuard::leak`], and extends the lock to `ttl`.
    ///
    /// The validity that was handed over counts from this call, not from the first poll of the future.
    ///
    /// # Errors
    ///
    /// An [`AdoptError`], with the same causes as for [`LockGuard::extend`]. The lock is taken over only if a quorum
    /// confirms the extension before the validity that was handed over has ended. After an error no key is set or
    /// deleted, but some keys may expire later. The call may be tried again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has the same effect as an error: no key is set or deleted.
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
        LockGuard::adopt(&self.inner, handover, ttl)
    }

    /// Waits, for at most `timeout`, until every release under way is confirmed, and returns the number of unconfirmed
    /// ones.
    ///
    /// A release is confirmed when every master that may hold the key has answered, or when the key has expired there.
    /// The releases of dropped guards and of cancelled attempts count too. The keys of unconfirmed releases expire with
    /// their ttl. A release that the client has given up is counted by one call only.
    ///
    /// Call this last, when all guards are dropped. If it returns 0, the process can then end in any way and leaves no
    /// key. The client can still be used afterwards.
    ///
    /// The client sends a delete without an answer again, about once a second, until the ttl is over. So a release
    /// stays under way
    ///
    /// - while a master does not answer;
    /// - while a `SET` may still arrive over an earlier connection that its master does not allow to be closed;
    /// - for up to ten minutes after the ttl where a master has left a `SET` without an answer, and has not come back.
    ///   When it comes back, it may still execute the `SET`.
    ///
    /// The client gives up a release at once if a master forbids the delete, or already owes the answers to 16,384
    /// deletes of this client.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the wait. The releases go on in the background.
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
        // Without a job there was no request, so nothing is to be deleted. Do not start the thread for this.
        if !core.engine.has_started() {
            return core.releases.take_unconfirmed();
        }
        // A job of the engine: the engine drops the jobs that were cancelled before, and so counts their releases,
        // first.
        let done = core.releases.clone();
        let done = core.engine.run(async move { done.done(timeout).await });
        // The runtime has shut down: it dropped its releases, which are counted as unconfirmed.
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
