//! The client, and the request for a lock: attempt, undo, wait, again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, ready};
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::builder::RedlockBuilder;
use crate::claim::{Claim, Failure};
use crate::engine::{Running, Stopped};
use crate::error::{
    AdoptError, Attempts, Ballots, BuildError, LockError, MasterError, RunError, name,
};
use crate::guard::{Handover, LockGuard};
use crate::inner::{Core, Inner};
use crate::inspect::Inspection;
use crate::keep_alive::KeepAlive;
use crate::key::Key;
use crate::master::Request;
use crate::masters::Round;
use crate::retry::RetryPolicy;
use crate::validity::Ttl;
use crate::value::Value;

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

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
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
        Self::builder().masters(urls).build()
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
            inner: Arc::clone(&self.inner),
            key: self.inner.key(resource.as_ref()),
            ttl,
            retry: self.inner.retry.clone(),
            keep_alive: None,
        }
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
    ///     Verdict::Held { left, .. } => println!("somebody is at it, for up to {left:?}"),
    ///     other => println!("{other:?}"),
    /// }
    /// # }
    /// ```
    pub async fn inspect(&self, resource: impl AsRef<[u8]>) -> Inspection {
        let (core, patience) = (Arc::clone(self.inner.core()), self.inner.request_timeout);
        let request = Request::inspect(self.inner.key(resource.as_ref()).as_bytes());
        let looking = self
            .inner
            .core()
            .engine
            .run(async move { core.masters.look(&request, patience).await });
        let sightings = looking.await.unwrap_or_else(|stopped| {
            let error = MasterError::NotAsked(stopped.to_string());
            self.inner.core().masters.all_unreachable(&error)
        });
        Inspection::new(sightings)
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
        let Handover {
            resource,
            value,
            validity,
        } = handover;
        let inner = Arc::clone(&self.inner);
        // From the call, not from the first poll.
        let valid_until = inner.clock.now().after(validity);
        async move {
            let (key, value) = (inner.key(&resource), Value::handed_over(value));
            let claim = Arc::new(Claim::of_another(&inner, &key, value, valid_until));
            let adopting = Arc::clone(&claim);
            let extended = claim.engine().run(async move { adopting.adopt(ttl).await });
            let extended = extended.await.map_err(|it| claim.not_extended(&it))??;
            claim.confirm_adoption(&extended)?;
            Ok(LockGuard::new(claim))
        }
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
    inner: Arc<Inner>,
    key: Key,
    ttl: Duration,
    retry: RetryPolicy,
    keep_alive: Option<KeepAlive>,
}

impl LockRequest {
    /// How to wait for this lock. Defaults to the policy of the client.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Keeps the lock alive for as long as its guard exists. Defaults to not doing so: the lock ends with its
    /// ttl.
    ///
    /// With it a short ttl is enough for long work: it bounds how long others wait when the process dies, not
    /// how long the work may take. Watch [`LockGuard::lost`] all the same, or use [`LockGuard::run`]: masters
    /// may fail for longer than the ttl.
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
        self.keep_alive = Some(keep_alive);
        self
    }

    /// Locks, keeps the lock alive, works, releases: [`Redlock::with_lock`] with the options of this request.
    ///
    /// # Errors
    ///
    /// As for [`Redlock::with_lock`].
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
        self.keep_alive.get_or_insert_default();
        let guard = self.await?;
        let done = guard.run(work(&guard)).await;
        if let Err(error) = guard.release().await {
            tracing::debug!(%error, "the work is done, its lock was not released in order");
        }
        Ok(done?)
    }

    /// The lock, and the round that the slower masters may still have to answer.
    async fn acquire(self, core: Arc<Core>, span: Span) -> Result<(Granted, Round), LockError> {
        let Self {
            inner,
            key,
            ttl,
            retry,
            keep_alive,
        } = self;
        let lasting = Ttl::new(ttl, inner.drift)?;
        let max_lifetime = keep_alive
            .as_ref()
            .and_then(|keep_alive| keep_alive.max_lifetime);
        let start = Instant::now();
        let mut delays = None;
        let mut attempts = 1;
        #[cfg(test)]
        let mut first = None;
        loop {
            // Armed before anything is sent: wherever this future is dropped, the claim undoes what was done.
            let value = inner.random.draw(Value::random);
            #[cfg(test)]
            let value = if crate::simulation::Rule::ValuesAreNeverReused.is_broken() {
                first.get_or_insert(value).clone()
            } else {
                value
            };
            let claim = Arc::new(Claim::new(&inner, &core, &key, value));
            let attempt = claim.acquire(lasting, max_lifetime).await;
            let (failure, ballots) = match attempt {
                Err(failed) => failed,
                Ok(round) => {
                    span.record("attempts", attempts);
                    let guard = match keep_alive {
                        Some(_) => LockGuard::kept_alive(claim, ttl),
                        None => LockGuard::new(claim),
                    };
                    let granted = Granted {
                        guard,
                        attempts,
                        start,
                        ballots: round.ballots(),
                    };
                    return Ok((granted, round));
                }
            };
            drop(claim);
            let waited = start.elapsed();
            // Boxed, since most locks are granted at once: what is held over an await makes the future large.
            let delays = delays.get_or_insert_with(|| {
                Box::new(retry.delays(inner.random.draw(|rng| rng.next_u64())))
            });
            let Some(delay) = delays.next_after(waited) else {
                span.record("attempts", attempts);
                let attempts = Attempts {
                    resource: key.resource().into(),
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
            Box::pin(sleep(delay)).await;
            attempts += 1;
        }
    }
}

/// A lock on its way to the caller, and what to say if it comes too late.
struct Granted {
    guard: LockGuard,
    attempts: u32,
    start: Instant,
    ballots: Ballots,
}

/// A request that the engine works on. Dropped, it is cancelled, and what it had set is deleted.
struct Acquiring {
    core: Arc<Core>,
    /// `None` once it has ended.
    running: Option<Running<Result<Granted, LockError>>>,
}

impl Acquiring {
    async fn end(mut self, resource: &[u8]) -> Result<LockGuard, LockError> {
        let ended = match &mut self.running {
            Some(running) => running.await,
            None => Err(Stopped::RuntimeEnded),
        };
        self.running = None;
        let attempts = |attempts, waited, ballots| Attempts {
            resource: resource.into(),
            attempts,
            waited,
            ballots,
        };
        match ended {
            // The caller may have been kept from looking.
            Ok(Ok(granted)) if !granted.guard.is_valid() => Err(LockError::TooLate(attempts(
                granted.attempts,
                granted.start.elapsed(),
                granted.ballots,
            ))),
            Ok(ended) => ended.map(|granted| granted.guard),
            Err(stopped) => {
                let error = MasterError::NotAsked(stopped.to_string());
                let ballots = self.core.masters.all_failed(&error);
                Err(LockError::Unreachable(attempts(0, Duration::ZERO, ballots)))
            }
        }
    }
}

impl Drop for Acquiring {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            drop(running);
            self.core.engine.linger();
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
                resource = name(self.key.resource()),
                ttl = ?self.ttl,
                attempts = Empty,
                elapsed = Empty,
                outcome = Empty
            );
            let start = Instant::now();
            let (core, key) = (Arc::clone(self.inner.core()), self.key.clone());
            let patience = self.inner.request_timeout;
            let (own, recorded) = (Arc::clone(&core), span.clone());
            let job = move || {
                let span = recorded.clone();
                let acquired = self
                    .acquire(own, recorded)
                    .map(move |acquired| match acquired {
                        Ok((granted, round)) => (Ok(granted), Either::Left(round.finish(patience))),
                        Err(error) => (Err(error), Either::Right(ready(()))),
                    });
                acquired.instrument(span)
            };
            let running = Some(core.engine.run_with_rest(job));
            let result = Acquiring { core, running }.end(key.resource()).await;
            span.record("elapsed", tracing::field::debug(start.elapsed()));
            span.record(
                "outcome",
                match &result {
                    Ok(_) => "granted",
                    Err(LockError::Taken(_)) => "taken",
                    Err(LockError::Unreachable(_)) => "unreachable",
                    Err(LockError::TooLate(_)) => "too late",
                    Err(LockError::Ttl(_)) => "bad ttl",
                },
            );
            result
        })
    }
}

impl fmt::Debug for LockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockRequest")
            .field("resource", &name(self.key.resource()))
            .field("ttl", &self.ttl)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
