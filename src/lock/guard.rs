//! The guard: a lock in the hands of its holder.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tracing::Instrument;

use crate::error::{AdoptError, ExtendError, LossReason, LostError, ReleaseError, name};
use crate::inner::Inner;
use crate::lock::claim::Claim;
use crate::lock::handover::Handover;
use crate::masters::is_quorum;
use crate::observe::Operation;
use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;
use crate::release::Release;
use crate::vote::Ballots;

/// A lock that is held. Dropping the guard releases the lock in the background.
///
/// The lock can be trusted for [`validity`](Self::validity), counted from before the masters were asked. After that
/// somebody else may hold the lock, whether or not this guard still exists. So check the validity before you act,
/// extend the lock in time, and let the protected resource itself refuse late writes.
///
/// # Dropping
///
/// `drop` submits a compare-and-delete for every master that may hold the key. The background of the client waits for
/// the answers. A guard may be dropped anywhere: in an aborted task, on a thread without a runtime, while panicking.
///
/// - Within a Tokio runtime, `drop` returns at once. It spawns a small task, which keeps that runtime from ending
///   before the delete is written to the connections.
/// - On other threads, `drop` blocks until the delete is written, which takes some ten microseconds.
/// - If nothing gets written, a thread or the end of a runtime blocks for up to 250 ms in all, however many guards are
///   dropped.
/// - [`std::process::exit`] and signals end the process without waiting. Before them, await [`release`](Self::release)
///   or [`Redlock::shutdown`](crate::Redlock::shutdown), or the key may stay until its ttl is over.
/// - With [`RedlockBuilder::runtime`](crate::RedlockBuilder::runtime), `drop` never blocks and spawns no task. If that
///   runtime ends before the delete is written, the key stays until its ttl is over.
///
/// In a child of a `fork` the guard is not valid, and dropping it deletes nothing.
///
/// # Sharing
///
/// Nested callers share one lock by an [`Arc`] of its guard: the lock is released when the last of them drops the
/// `Arc`. All methods that they need take `&self`.
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
    claim: Arc<Claim>,
    /// The id under which the lock is kept alive.
    kept_alive: Option<u64>,
}

impl LockGuard {
    pub(crate) fn new(claim: Arc<Claim>) -> Self {
        Self {
            claim,
            kept_alive: None,
        }
    }

    /// Takes over a lock of another process, and extends it to `ttl`. The validity counts from this call, not from the
    /// first poll.
    pub(crate) fn adopt(
        inner: &Arc<Inner>,
        handover: Handover,
        ttl: Duration,
    ) -> impl Future<Output = Result<Self, AdoptError>> + Send + use<> {
        let Handover {
            resource,
            value,
            validity,
        } = handover;
        // Here and not in the future: the caller may poll the future much later.
        let valid_until = inner.clock.now().after(validity);
        let inner = Arc::clone(inner);
        async move {
            let (key, value) = (inner.key(&resource), Value::handed_over(value));
            // If the future is dropped from here on, this claim deletes nothing: the keys are still those of the other
            // process.
            let claim = Arc::new(Claim::of_another(&inner, &key, value, valid_until));
            let adopting = Arc::clone(&claim);
            let extended = claim.engine().run(async move { adopting.adopt(ttl).await });
            let extended = extended.await.map_err(|it| claim.not_extended(&it))??;
            // Nothing is awaited between this and the guard, so an adopted claim always has an owner who releases it.
            claim.confirm_adoption(&extended)?;
            Ok(Self::new(claim))
        }
    }

    /// A guard whose lock the engine extends.
    pub(crate) fn kept_alive(claim: Arc<Claim>, ttl: Ttl) -> Self {
        // The renewals own the claim too, so it is not enough to drop the claim of the guard: `let_go` releases the
        // claim and ends the renewals.
        let id = claim.core().renewals.add(&claim, ttl);
        Self {
            claim,
            kept_alive: Some(id),
        }
    }

    /// Returns the resource, without the key prefix.
    pub fn resource(&self) -> &[u8] {
        self.claim.resource()
    }

    /// Returns the random value that marks this lock as ours on the masters: 27 letters and digits, or the value of the
    /// lock that was adopted.
    pub fn value(&self) -> &str {
        self.claim.value()
    }

    /// Returns how long the lock can be trusted from now on. Zero if it can no longer be trusted.
    ///
    /// The validity is the ttl, less the time since before the masters were asked, less the drift. On Linux and Android
    /// the clock counts the time that the machine was suspended.
    pub fn validity(&self) -> Duration {
        self.claim.remaining().unwrap_or_default()
    }

    /// Returns whether the lock can be trusted at this moment.
    pub fn is_valid(&self) -> bool {
        !self.validity().is_zero()
    }

    /// Extends the lock to `ttl` from now on, if a quorum confirms this while the lock is still valid.
    ///
    /// An extension never shortens the lock: if more than `ttl` is left, the validity stays as it is. A master that has
    /// lost the key sets it again. That key counts from the next extension on.
    ///
    /// The call does not wait in line: extensions are sent ahead of attempts to lock. It waits for masters until the
    /// old validity ends, but not for one that is silent for the [request
    /// timeout](crate::RedlockBuilder::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`ExtendError::Ttl`]: the ttl cannot be used. Nothing was sent.
    /// - [`ExtendError::Unconfirmed`]: too few masters answered. The old validity is unchanged. Try again.
    /// - [`ExtendError::Lost`]: the lock is lost, and stays lost.
    ///
    /// An error releases nothing. To distinguish the last two, the call may wait once more for the request timeout
    /// after it is certain that there is no quorum.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the validity as it was. Some keys may then expire later than the validity says; they
    /// are released with the guard.
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
        let operation = Operation::extend(self.resource(), ttl);
        let claim = Arc::clone(&self.claim);
        let extending = async move { claim.extend(ttl).await };
        let extending = extending.instrument(operation.span().clone());
        let extended = self.claim.engine().run(extending);
        // Confirmed here and not in the engine: if this future is dropped, the extension must not count, since nobody
        // knows of it.
        let result = match extended.await {
            Ok(extended) => extended.and_then(|extended| self.claim.confirm(&extended)),
            Err(stopped) => Err(self.claim.not_extended(&stopped)),
        };
        operation.ended(&result);
        result
    }

    /// Releases the lock, and waits until a quorum has confirmed the release.
    ///
    /// The call does not wait in line: deletes are sent ahead of attempts to lock. It does not wait for a master that
    /// is silent for the [request timeout](crate::RedlockBuilder::request_timeout).
    ///
    /// # Errors
    ///
    /// - [`ReleaseError::NotHeld`]: the lock was not ours any more: it had expired, or was deleted or taken over. No
    ///   key of another holder is deleted.
    /// - [`ReleaseError::Unconfirmed`]: too few masters answered; the others failed, or were silent for the request
    ///   timeout. The client sends the deletes again in the background.
    ///
    /// To distinguish the two, the call may wait once more for the request timeout after it is certain that there is no
    /// quorum.
    ///
    /// # Cancel safety
    ///
    /// The first poll submits the deletes. If the future is dropped, before or after that, the release continues in the
    /// background.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tokio_redlock::{LockGuard, ReleaseError};
    /// # async fn example(guard: LockGuard) {
    /// if let Err(ReleaseError::NotHeld { .. }) = guard.release().await {
    ///     eprintln!("the work took longer than the lock was valid: check what it did");
    /// }
    /// # }
    /// ```
    pub async fn release(self) -> Result<(), ReleaseError> {
        let operation = Operation::release(self.resource());
        let released = match operation.span().in_scope(|| self.let_go()) {
            Some(release) => release.decided().await,
            // A child of a fork must not delete the parent's keys, and holds no lock: no ballots, and no quorum.
            None if self.claim.is_forked() => Err(Ballots::default()),
            None => Ok(()),
        };
        // `NotHeld` only if so many masters denied that the rest is no quorum. All else may still turn out well.
        let result = released.map_err(|ballots| {
            let resource = name(self.resource());
            if is_quorum(&ballots, |vote| !vote.is_denied()) {
                ReleaseError::Unconfirmed { resource, ballots }
            } else {
                ReleaseError::NotHeld { resource, ballots }
            }
        });
        operation.ended(&result);
        result
    }

    /// Gives up the claim, and ends the renewals.
    fn let_go(&self) -> Option<Release> {
        // The claim first: it refuses every later request that sets a key, so a renewal under way cannot set a key again
        // after the delete. In the other order, the renewal could still be sent before its end has taken effect.
        let release = self.claim.release();
        // Not in a child of a fork: this takes a mutex, and wakes the parent's task.
        if let Some(id) = self.kept_alive
            && !self.claim.is_forked()
        {
            self.claim.core().renewals.remove(id);
        }
        release
    }

    /// Waits until the lock can no longer be trusted. Returns at once if that is so already.
    ///
    /// The lock is lost when its validity ends, whatever the network does: the deadline was fixed before the last
    /// successful request was sent. The lock is lost earlier when an extension finds on a quorum that the key is not
    /// ours any more, when the longest lifetime is over, if one was set, or when the client ends. A lock that is lost
    /// stays lost.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped. Any number of tasks may wait, any number of times.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tokio_redlock::LockGuard;
    /// # async fn lead() {}
    /// # async fn example(guard: LockGuard) {
    /// tokio::select! {
    ///     biased;
    ///     reason = guard.lost() => eprintln!("does not lead any more: {reason}"),
    ///     () = lead() => {}
    /// }
    /// # }
    /// ```
    pub async fn lost(&self) -> LossReason {
        if let Err(loss) = self.claim.remaining() {
            return loss;
        }
        let claim = Arc::clone(&self.claim);
        // In the engine, because the caller may be polled by an executor without timers.
        let lost = self.claim.engine().run(async move { claim.lost().await });
        // An error means that the client has ended. From then on nobody can extend the lock, or announce the end of its
        // validity, so it counts as lost at once.
        let lost = lost.await;
        lost.unwrap_or_else(|_| self.claim.lose(LossReason::ClientEnded))
    }

    /// Polls a future as long as the lock is valid, and returns its output.
    ///
    /// The validity is checked before every poll. So once the lock is lost, the future is not polled again, not even
    /// after the process was suspended.
    ///
    /// # Errors
    ///
    /// [`LostError`]: the lock was lost before the future was ready. The future was dropped at its current await point.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the future that it polls. The lock is still held.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tokio_redlock::{LockGuard, LostError};
    /// # async fn import() -> u64 { 0 }
    /// # async fn example(guard: LockGuard) -> Result<(), LostError> {
    /// let rows = guard.run(import()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LostError> {
        let mut lost = pin!(self.lost());
        let mut work = pin!(work);
        let ended = poll_fn(|cx| {
            // The clock itself, because `lost` learns of the deadline only from its timer, which may be late. `lost` is
            // polled as well, for its waker.
            let loss = match self.claim.remaining() {
                Err(loss) => Poll::Ready(loss),
                Ok(_) => lost.as_mut().poll(cx),
            };
            match loss {
                Poll::Ready(loss) => Poll::Ready(Err(loss)),
                Poll::Pending => work.as_mut().poll(cx).map(Ok),
            }
        });
        let resource = || name(self.resource());
        ended.await.map_err(|reason| LostError {
            resource: resource(),
            reason,
        })
    }

    /// Gives up the lock without releasing it: the keys stay on the masters until their ttl is over.
    ///
    /// For another process, which takes the lock over with [`Redlock::adopt`](crate::Redlock::adopt). Or to keep others
    /// out until the ttl is over. Renewals end.
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
    pub fn leak(self) -> Handover {
        // The drop of the guard at the end of this function then finds the claim closed, and only ends the renewals.
        self.claim.leak();
        Handover {
            resource: self.resource().to_vec(),
            value: self.value().to_owned(),
            validity: self.validity(),
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        // Nobody waits for the answers. The drop of `Release` makes sure that the deletes are written.
        drop(self.let_go());
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
