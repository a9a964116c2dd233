//! The attempts to get a lock: wait in line, ask all masters, delete the keys of a failed attempt, pause, begin again.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::ready;
use futures::poll;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use crate::engine::{Running, Stopped};
use crate::error::{LockError, LockFailure};
use crate::inner::{Core, Inner};
use crate::lock::claim::{Claim, Failure};
use crate::lock::guard::LockGuard;
use crate::lock::keep_alive::KeepAlive;
use crate::masters::{Record, Round};
use crate::observe::Operation;
use crate::protocol::key::Key;
use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;
use crate::release::Coming;
use crate::retry::RetryPolicy;
use crate::vote::{Ballots, MasterError, Vote};

/// A failed attempt waits for the replies that are under way for as long as the attempt took, but at least this long.
/// On one machine an attempt takes so little time that the replies of slower masters would often come too late.
const LEAST_GRACE: Duration = Duration::from_millis(1);

/// The options of a lock request.
pub(crate) struct Options {
    pub(crate) inner: Arc<Inner>,
    pub(crate) key: Key,
    pub(crate) ttl: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) keep_alive: Option<KeepAlive>,
}

/// A granted lock on its way from the engine to the caller.
struct Granted {
    guard: LockGuard,
    attempts: u32,
    /// For the error if the validity ends before the caller receives the lock.
    record: Record,
    /// The start of the call.
    start: Instant,
}

/// Gets a lock: runs the attempts as one job of the engine, and returns the guard.
pub(crate) async fn lock(options: Options) -> Result<LockGuard, LockError> {
    let operation = Operation::lock(options.key.resource(), options.ttl);
    let (core, key) = (Arc::clone(options.inner.core()), options.key.clone());
    // The job owns a core of its own: the caller may drop its client while the job runs.
    let (own, span) = (Arc::clone(&core), operation.span().clone());
    let job = move || {
        let attempts = run(options, own, span.clone());
        // The masters that have not answered yet also get the request. Their votes make the lock survive the loss of
        // more masters. The caller does not wait for them.
        let attempts = attempts.map(|ended| match ended {
            Ok((granted, round)) => {
                let validity = granted.guard.validity();
                (Ok(granted), round.finish(validity).boxed())
            }
            Err(error) => (Err(error), ready(()).boxed()),
        });
        attempts.instrument(span)
    };
    // Nothing is awaited between this and `end`: a future that is dropped always drops `Acquiring`, which cancels the
    // job.
    let running = Some(core.engine.run_with_rest(job));
    let result = Acquiring { core, running }.end(&key).await;
    operation.ended(&result);
    result
}

/// Makes attempts until a lock is granted or the retry policy gives up. Returns the lock, and the round to which slower
/// masters may still have to answer.
#[allow(
    clippy::manual_async_fn,
    reason = "an async fn would have room for each argument twice"
)]
fn run(
    options: Options,
    core: Arc<Core>,
    span: tracing::Span,
) -> impl Future<Output = Result<(Granted, Round), LockError>> + Send {
    async move {
        let Options {
            inner,
            key,
            ttl,
            retry,
            keep_alive,
        } = &options;
        // Before anything is sent: a ttl that cannot be used is an error of the call, not of a master.
        let checked_ttl = Ttl::new(*ttl, inner.drift)?;
        let max_lifetime = keep_alive.as_ref().and_then(|it| it.max_lifetime);
        // Tokio's clock is enough for the retry policy, as no validity depends on this time.
        let start = Instant::now();
        let mut delays = None;
        let mut attempts = 0;
        let mut last = None;
        let error = |failure, attempts, ballots| {
            error_of(failure, failure_of(key, attempts, start.elapsed(), ballots))
        };
        loop {
            let left = retry.time_left(start.elapsed());
            if !get_room(&core, inner.request_timeout, left).await {
                let (failure, ballots) = last.unwrap_or_default();
                return Err(error(failure, attempts, ballots));
            }
            attempts += 1;
            span.record("attempts", attempts);
            // A new value for each attempt: a late SET of an earlier attempt must never be taken for the SET of this
            // attempt.
            let value = inner.random.draw(Value::random);
            // Made before anything is sent. Wherever this future is dropped, the claim deletes what was set.
            let claim = Arc::new(Claim::new(inner, &core, key, value));
            let asked = Instant::now();
            // Read again, since the wait in line took some of it. At the end of the total wait an attempt still gets the time
            // after which a silent master counts as failed: with less it might have no chance.
            let left = retry.time_left(start.elapsed());
            let wait = left.unwrap_or(Duration::MAX).max(inner.request_timeout);
            let attempt = claim.acquire(checked_ttl, max_lifetime, wait).await;
            let (failure, round) = match attempt {
                Err(failed) => failed,
                Ok(round) => {
                    // Here in the engine, so that the lock is kept alive even if the caller is polled late.
                    let guard = match keep_alive {
                        Some(_) => LockGuard::kept_alive(claim, checked_ttl),
                        None => LockGuard::new(claim),
                    };
                    let granted = Granted {
                        guard,
                        attempts,
                        record: round.record(),
                        start,
                    };
                    return Ok((granted, round));
                }
            };
            let ballots = round.ballots();
            // Made only after a failure, since most locks are granted at once. Boxed, because a value that lives across
            // an await makes every future larger.
            let delays = delays.get_or_insert_with(|| {
                Box::new(retry.delays(inner.random.draw(|rng| rng.next_u64())))
            });
            let Some(delay) = delays.next_after(start.elapsed()) else {
                // The drop of the claim queues the deletes before the caller hears of the failure.
                return Err(error(failure, attempts, ballots));
            };
            tracing::debug!(?failure, %ballots, ?delay, "not granted, waiting");
            last = Some((failure, ballots));
            let undo = Undo::new(claim, round, &core);
            let replies_within = asked.elapsed().max(LEAST_GRACE).min(delay);
            // Boxed for the same reason. The deletes are queued before the pause ends, so on each connection they
            // precede the SETs of the next attempt.
            Box::pin(async { futures::join!(undo.run(replies_within), sleep(delay)) }).await;
        }
    }
}

fn error_of(failure: Failure, details: LockFailure) -> LockError {
    match failure {
        Failure::NotAdmitted => LockError::Overloaded(details),
        Failure::Taken => LockError::Taken(details),
        Failure::Unreachable => LockError::Unreachable(details),
        Failure::TooLate => LockError::TooLate(details),
    }
}

/// Waits in line until the masters have room for another attempt. Returns `false` if `left` passes first.
async fn get_room(core: &Core, patience: Duration, left: Option<Duration>) -> bool {
    let mut room = core.masters.room(patience);
    // Nearly always there is room at once, and then no timer is set.
    if poll!(&mut room).is_ready() {
        return true;
    }
    tracing::debug!(
        in_line = core.masters.line_length(),
        "waits until the masters have room"
    );
    match left {
        None => room.await,
        // Boxed, because the timer would make every future larger.
        Some(left) => return Box::pin(timeout(left, room)).await.is_ok(),
    }
    true
}

/// What an attempt that was not granted leaves to be deleted.
struct Undo {
    claim: Arc<Claim>,
    round: Round,
    /// `shutdown` waits for it.
    _coming: Coming,
}

impl Undo {
    fn new(claim: Arc<Claim>, round: Round, core: &Core) -> Self {
        Self {
            claim,
            round,
            _coming: core.releases.coming(),
        }
    }

    /// Deletes what the attempt has set.
    ///
    /// Where no master is known to have granted the key, first waits for the replies that are under way, for at most
    /// `replies_within`. On a resource that is taken on every master there is then nothing to delete.
    async fn run(mut self, replies_within: Duration) {
        let is_granted = |vote: &Vote| matches!(vote, Vote::Granted);
        if self.round.ballots().count(is_granted) == 0 {
            self.round.finished(replies_within).await;
        }
        // Requests that were not sent leave the line.
        drop(self.round);
        drop(self.claim);
    }
}

/// The caller's end of the job that makes the attempts. When it is dropped, the job is cancelled, and the keys that the
/// job has set are deleted.
struct Acquiring {
    core: Arc<Core>,
    /// `None` after the job has ended.
    running: Option<Running<Result<Granted, LockError>>>,
}

impl Acquiring {
    async fn end(mut self, key: &Key) -> Result<LockGuard, LockError> {
        let ended = match &mut self.running {
            Some(running) => running.await,
            None => Err(Stopped::RuntimeEnded),
        };
        // The job has ended, so the drop of `self` has nothing to cancel.
        self.running = None;
        match ended {
            // The caller's executor may have polled the caller late. The guard is dropped here, and releases the lock.
            Ok(Ok(granted)) if !granted.guard.is_valid() => {
                let Granted {
                    attempts,
                    record,
                    start,
                    ..
                } = granted;
                let failure = failure_of(key, attempts, start.elapsed(), record.ballots());
                Err(LockError::TooLate(failure))
            }
            Ok(ended) => ended.map(|granted| granted.guard),
            Err(stopped) => {
                // The engine did not take the job, or has dropped it, so the number of attempts is not known here.
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
            // Before `linger`: the drop cancels the job, so the deletes are queued before `linger` begins to wait for
            // the writes.
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
