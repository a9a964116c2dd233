//! The guard: the lock as its holder has it.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{AbortHandle, abortable};
use tracing::Instrument;

use crate::error::{ExtendError, LossReason, LostError, ReleaseError, name};
use crate::lock::claim::Claim;
use crate::lock::handover::Handover;
use crate::lock::keep_alive;
use crate::masters::is_quorum;
use crate::observe::Operation;
use crate::release::Release;
use crate::vote::Ballots;

/// A lock that is held. Dropped, it is released in the background.
///
/// The lock is good for [`validity`](Self::validity), counted from before the masters were asked. After that
/// somebody else may hold it, whether or not this guard still exists: look before you act on it, extend it in
/// time, and make sure that the protected resource itself refuses the late.
///
/// # Dropping
///
/// `drop` hands a compare-and-delete for every master to the background, which sees to the answers. It may be called
/// anywhere: in an aborted task, on a thread without a runtime, while panicking.
///
/// - Within a Tokio runtime it returns at once. A small task keeps that runtime from ending before the delete is
///   written to the connections.
/// - Elsewhere it waits for that itself, for some ten microseconds.
/// - When nothing gets written, both end after 250 ms in all, however many guards are dropped.
/// - [`std::process::exit`] and signals end the process without waiting. Before them, await
///   [`release`](Self::release) or [`Redlock::shutdown`](crate::Redlock::shutdown), or the key may stay until its ttl.
///
/// In a child of a `fork` a guard is of no use: it is not valid there, and dropping it deletes nothing.
///
/// # Sharing
///
/// Callers that nest share one lock by an [`Arc`] of its guard: it is released when the last of them is done.
/// All methods that they need take `&self`.
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
    keep_alive: Option<AbortHandle>,
}

impl LockGuard {
    pub(crate) fn new(claim: Arc<Claim>) -> Self {
        Self {
            claim,
            keep_alive: None,
        }
    }

    /// A guard that extends its lock by itself.
    pub(crate) fn kept_alive(claim: Arc<Claim>, ttl: Duration) -> Self {
        let (renewals, abort) = abortable(keep_alive::renew(Arc::clone(&claim), ttl));
        claim.engine().spawn(renewals.map(|_| ()));
        Self {
            claim,
            keep_alive: Some(abort),
        }
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
        self.claim.remaining().unwrap_or_default()
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
    /// - [`ExtendError::Lost`]: the lock is lost, and stays so.
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
        let operation = Operation::extend(self.resource(), ttl);
        let claim = Arc::clone(&self.claim);
        let extending = async move { claim.extend(ttl).await };
        let extending = extending.instrument(operation.span().clone());
        let extended = self.claim.engine().run(extending);
        let result = match extended.await {
            Ok(extended) => extended.and_then(|extended| self.claim.confirm(&extended)),
            Err(stopped) => Err(self.claim.not_extended(&stopped)),
        };
        operation.ended(&result);
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
        let operation = Operation::release(self.resource());
        let released = match operation.span().in_scope(|| self.let_go()) {
            Some(release) => release.decided().await,
            None if self.claim.is_forked() => Err(Ballots::default()),
            None => Ok(()),
        };
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

    fn let_go(&self) -> Option<Release> {
        // First the claim: no renewal can be sent after its release, wherever the task stands.
        let release = self.claim.release();
        if let Some(keep_alive) = &self.keep_alive
            && !self.claim.is_forked()
        {
            keep_alive.abort();
        }
        release
    }

    /// Waits until the lock can no longer be trusted; at once if that is so.
    ///
    /// That is when its validity ends, whatever the network does: the deadline was fixed before the last
    /// successful request was sent. It comes earlier when an extension finds that the key is not ours any more
    /// on a quorum, and at the end of the longest lifetime, if one was set. Once lost, a lock stays lost.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future. Any number of tasks may wait, any number of times.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use tokio_redlock::LockGuard;
    /// # async fn lead() {}
    /// # async fn example(guard: LockGuard) {
    /// tokio::select! {
    ///     biased;
    ///     reason = guard.lost() => eprintln!("leads no more: {reason}"),
    ///     () = lead() => {}
    /// }
    /// # }
    /// ```
    pub async fn lost(&self) -> LossReason {
        if let Err(loss) = self.claim.remaining() {
            return loss;
        }
        let claim = Arc::clone(&self.claim);
        let lost = self.claim.engine().run(async move { claim.lost().await });
        // Nothing can extend a lock whose client has ended, or wake those who wait for the end of its validity.
        let lost = lost.await;
        lost.unwrap_or_else(|_| self.claim.lose(LossReason::ClientEnded))
    }

    /// Drives a future for as long as the lock is good.
    ///
    /// The lock is looked at before every step: the future is not polled again once it is lost, not even after
    /// the process was suspended.
    ///
    /// # Errors
    ///
    /// [`LostError`]: the lock was lost first, and the future is dropped where it stood.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the future that it drives; the lock is still held.
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
            // The clock itself, since a waiting task is told of a deadline only by its timer.
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

    /// Gives the lock up without releasing it: the keys stay on the masters until their ttl is over.
    ///
    /// For another process, which takes it over with [`Redlock::adopt`](crate::Redlock::adopt), or to keep others
    /// out until the ttl is over.
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
