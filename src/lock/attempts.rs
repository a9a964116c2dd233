//! The attempts to get a lock: ask all masters, undo a failure, wait, ask again.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, ready};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::engine::{Running, Stopped};
use crate::error::{LockError, LockFailure};
use crate::inner::{Core, Inner};
use crate::lock::claim::{Claim, Failure};
use crate::lock::guard::LockGuard;
use crate::lock::keep_alive::KeepAlive;
use crate::masters::Round;
use crate::observe::Operation;
use crate::protocol::key::Key;
use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;
use crate::retry::RetryPolicy;
use crate::vote::{Ballots, MasterError};

/// What a lock is asked for with.
pub(crate) struct Options {
    pub(crate) inner: Arc<Inner>,
    pub(crate) key: Key,
    pub(crate) ttl: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) keep_alive: Option<KeepAlive>,
}

/// A lock on its way to the caller.
struct Granted {
    guard: LockGuard,
    /// What the error says if the lock arrives too late.
    failure: LockFailure,
    start: Instant,
}

/// Gets a lock: runs the attempts as one job of the engine, and hands over the guard.
pub(crate) async fn lock(options: Options) -> Result<LockGuard, LockError> {
    let operation = Operation::lock(options.key.resource(), options.ttl);
    let (core, key) = (Arc::clone(options.inner.core()), options.key.clone());
    let patience = options.inner.request_timeout;
    let (own, span) = (Arc::clone(&core), operation.span().clone());
    let job = move || {
        let attempts = run(options, own, span.clone());
        // The masters that have not answered yet get the request, too; the caller does not wait for them.
        let attempts = attempts.map(move |ended| match ended {
            Ok((granted, round)) => (Ok(granted), Either::Left(round.finish(patience))),
            Err(error) => (Err(error), Either::Right(ready(()))),
        });
        attempts.instrument(span)
    };
    let running = Some(core.engine.run_with_rest(job));
    let result = Acquiring { core, running }.end(&key).await;
    operation.ended(&result);
    result
}

/// Makes attempts until one is granted, or the retry policy gives up. Returns the lock, and the round that slower
/// masters may still have to answer.
async fn run(
    options: Options,
    core: Arc<Core>,
    span: tracing::Span,
) -> Result<(Granted, Round), LockError> {
    let Options {
        inner,
        key,
        ttl,
        retry,
        keep_alive,
    } = options;
    let checked_ttl = Ttl::new(ttl, inner.drift)?;
    let max_lifetime = keep_alive.as_ref().and_then(|it| it.max_lifetime);
    let start = Instant::now();
    let mut delays = None;
    let mut attempts = 1;
    loop {
        // A new value for each attempt: a late SET of an earlier attempt must never look like this one's.
        let value = inner.random.draw(Value::random);
        // Armed before anything is sent. Wherever this future is dropped, the claim deletes what was set.
        let claim = Arc::new(Claim::new(&inner, &core, &key, value));
        let attempt = claim.acquire(checked_ttl, max_lifetime).await;
        let (failure, ballots) = match attempt {
            Err(failed) => failed,
            Ok(round) => {
                span.record("attempts", attempts);
                let guard = match keep_alive {
                    Some(_) => LockGuard::kept_alive(claim, ttl),
                    None => LockGuard::new(claim),
                };
                let failure = failure_of(&key, attempts, start.elapsed(), round.ballots());
                let granted = Granted {
                    guard,
                    failure,
                    start,
                };
                return Ok((granted, round));
            }
        };
        // The deletes are queued here, ahead of the next attempt.
        drop(claim);
        let waited = start.elapsed();
        // Boxed, since most locks are granted at once: what lives across an await makes every future larger.
        let delays = delays
            .get_or_insert_with(|| Box::new(retry.delays(inner.random.draw(|rng| rng.next_u64()))));
        let Some(delay) = delays.next_after(waited) else {
            span.record("attempts", attempts);
            let details = failure_of(&key, attempts, waited, ballots);
            return Err(match failure {
                Failure::Taken => LockError::Taken(details),
                Failure::Unreachable => LockError::Unreachable(details),
                Failure::TooLate => LockError::TooLate(details),
            });
        };
        tracing::debug!(?failure, %ballots, ?delay, "not granted, waiting");
        Box::pin(sleep(delay)).await;
        attempts += 1;
    }
}

/// The job in the engine that makes the attempts. Dropped, it is cancelled, and what it had set is deleted.
struct Acquiring {
    core: Arc<Core>,
    /// `None` once it has ended.
    running: Option<Running<Result<Granted, LockError>>>,
}

impl Acquiring {
    async fn end(mut self, key: &Key) -> Result<LockGuard, LockError> {
        let ended = match &mut self.running {
            Some(running) => running.await,
            None => Err(Stopped::RuntimeEnded),
        };
        self.running = None;
        match ended {
            // The executor may have polled the caller late.
            Ok(Ok(granted)) if !granted.guard.is_valid() => {
                let waited = granted.start.elapsed();
                Err(LockError::TooLate(LockFailure {
                    waited,
                    ..granted.failure
                }))
            }
            Ok(ended) => ended.map(|granted| granted.guard),
            Err(stopped) => {
                let error = MasterError::NotAsked(stopped.to_string());
                let ballots = self.core.masters.all_failed(&error);
                let failure = failure_of(key, 0, Duration::ZERO, ballots);
                Err(LockError::Unreachable(failure))
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

fn failure_of(key: &Key, attempts: u32, waited: Duration, ballots: Ballots) -> LockFailure {
    LockFailure {
        resource: key.resource().into(),
        attempts,
        waited,
        ballots,
    }
}
