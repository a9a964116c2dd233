//! The client, and the request for a lock: attempt, undo, wait, again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::builder::RedlockBuilder;
use crate::claim::{Claim, Failure};
use crate::error::{Attempts, BuildError, LockError, name};
use crate::guard::LockGuard;
use crate::retry::RetryPolicy;
use crate::shared::Shared;
use crate::validity::Ttl;

/// A distributed lock manager over N independent Redis or Valkey masters.
///
/// Cheap to clone; clones share their connections, one to each master, which are opened when first needed.
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
    shared: Arc<Shared>,
}

impl Redlock {
    pub(crate) fn from_shared(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A client with the default options for masters given as URLs.
    ///
    /// No connection is opened, and no runtime needed. See [`RedlockBuilder::master`] for the URLs.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the master: none given, one given twice, a URL that cannot be used.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::Redlock;
    ///
    /// let dlm = Redlock::new(["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"])?;
    /// # Ok::<(), tokio_redlock::BuildError>(())
    /// ```
    pub fn new<I>(urls: I) -> Result<Self, BuildError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let builder = Self::builder();
        urls.into_iter()
            .fold(builder, |builder, url| builder.master(url))
            .build()
    }

    /// A client with options, or with masters that are not URLs.
    pub fn builder() -> RedlockBuilder {
        RedlockBuilder::new()
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
        LockRequest {
            shared: Arc::clone(&self.shared),
            resource: resource.as_ref().into(),
            ttl,
            retry: self.shared.retry.clone(),
        }
    }

    /// Locks a resource for `ttl` if that can be done at once: [`lock`](Self::lock) with
    /// [`RetryPolicy::once`].
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

    /// Waits until every release under way is confirmed by every master that may hold the key, those from drops
    /// and cancelled attempts too; at most for `timeout`. Tells how many were not: their keys go with their
    /// ttl.
    ///
    /// Call it last, when the guards are dropped: the process can then end without leaving anything behind. The
    /// client can be used after it.
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
        self.shared.releases.done(timeout).await
    }
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redlock")
            .field("masters", &self.shared.masters)
            .field("key_prefix", &name(&self.shared.key_prefix))
            .field("retry", &self.shared.retry)
            .field("request_timeout", &self.shared.request_timeout)
            .finish_non_exhaustive()
    }
}

/// A lock that is asked for, once awaited. Made by [`Redlock::lock`] and [`Redlock::try_lock`].
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
pub struct LockRequest {
    shared: Arc<Shared>,
    resource: Box<[u8]>,
    ttl: Duration,
    retry: RetryPolicy,
}

impl LockRequest {
    /// How to wait for this lock. Defaults to the policy of the client.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    async fn acquire(self, span: &Span) -> Result<LockGuard, LockError> {
        let Self {
            shared,
            resource,
            ttl,
            retry,
        } = self;
        let ttl = Ttl::new(ttl, shared.drift)?;
        let runtime = Handle::try_current().map_err(|_| LockError::NoRuntime)?;
        let key: Arc<[u8]> = [&shared.key_prefix[..], &resource].concat().into();
        let start = Instant::now();
        let mut delays = None;
        let mut attempts = 1;
        loop {
            // Armed before anything is sent: wherever this future is dropped, the claim undoes what was done.
            let claim = Claim::new(&shared, &key, runtime.clone());
            let attempt = claim.acquire(ttl).await;
            span.record("attempts", attempts);
            let Err((failure, ballots)) = attempt else {
                return Ok(LockGuard::new(claim));
            };
            drop(claim);
            let waited = start.elapsed();
            let delays = delays.get_or_insert_with(|| retry.delays(rand::random()));
            let Some(delay) = delays.next_after(waited) else {
                let attempts = Attempts {
                    resource: resource.into(),
                    attempts,
                    waited,
                    ballots,
                };
                return Err(match failure {
                    Failure::Taken => LockError::Taken(attempts),
                    Failure::Unreachable => LockError::Unreachable(attempts),
                    Failure::TooLate => LockError::TooLate(attempts),
                });
            };
            tracing::debug!(?failure, %ballots, ?delay, "not granted, waiting");
            sleep(delay).await;
            attempts += 1;
        }
    }
}

impl IntoFuture for LockRequest {
    type Output = Result<LockGuard, LockError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let span = tracing::debug_span!(
                "lock",
                resource = name(&self.resource),
                ttl = ?self.ttl,
                attempts = Empty,
                elapsed = Empty,
                outcome = Empty
            );
            let start = Instant::now();
            let result = self.acquire(&span).instrument(span.clone()).await;
            span.record("elapsed", tracing::field::debug(start.elapsed()));
            span.record(
                "outcome",
                match &result {
                    Ok(_) => "granted",
                    Err(LockError::Taken(_)) => "taken",
                    Err(LockError::Unreachable(_)) => "unreachable",
                    Err(LockError::TooLate(_)) => "too late",
                    Err(LockError::Ttl(_)) => "bad ttl",
                    Err(LockError::NoRuntime) => "no runtime",
                },
            );
            result
        })
    }
}

impl fmt::Debug for LockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockRequest")
            .field("resource", &name(&self.resource))
            .field("ttl", &self.ttl)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
