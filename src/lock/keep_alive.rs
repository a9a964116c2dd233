//! Keeping a lock alive: while the guard exists, the engine extends the lock long before its validity ends.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::{ExtendError, LossReason, name};
use crate::lock::claim::Claim;
use crate::random::Random;

/// The longest pause after a failed renewal. With a ttl of an hour, a thirtieth is two minutes: too seldom to find a
/// short time in which the masters answer.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Keeps a lock alive while its guard exists; see [`LockRequest::keep_alive`](crate::LockRequest::keep_alive).
///
/// The client extends the lock about every third of its ttl, at random up to a tenth earlier or later. After a renewal
/// that failed it pauses for about a thirtieth of the ttl, at most half a second, and tries again, while the lock is
/// valid. This ends with the guard. If the lock is lost, a warning is logged.
///
/// Renewals run in the background of the client. They continue while the caller's runtime is blocked or is not run. So
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
    /// lost, with [`LossReason::LifetimeReached`]. Defaults to no limit.
    ///
    /// For work that may hang: without a limit, such work keeps all other clients out for ever.
    #[must_use]
    pub const fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = Some(lifetime);
        self
    }
}

/// Extends a claim again and again until it is lost. The guard aborts this future when it is released or dropped.
pub(crate) async fn renew(claim: Arc<Claim>, ttl: Duration) {
    // A third: a renewal that fails then has two thirds of the ttl left for further tries.
    let interval = ttl / 3;
    let mut due = Instant::now();
    loop {
        // Counted from one due time to the next. Counted from the wake-up, the delays of the timer would add up. After
        // a suspension or a long retry there is nothing to catch up on, so the count starts anew.
        if due.elapsed() > interval {
            due = Instant::now();
        }
        due += spread(interval, claim.random());
        // The loss first: after a suspension both are ready, and a lost lock must not be renewed.
        tokio::select! {
            biased;
            reason = claim.lost() => return warn_lost(&claim, reason),
            () = sleep_until(due) => {}
        }
        loop {
            // Confirmed at once, since no caller waits for this one.
            let extended = claim.extend(ttl).await;
            match extended.and_then(|extended| claim.confirm(&extended)) {
                Ok(()) => break,
                Err(error @ ExtendError::Unconfirmed { .. }) => {
                    tracing::debug!(%error, "not renewed, trying again");
                    // Short against the interval, so that many attempts fit into the validity that is left. `extend`
                    // returns `Lost` when the validity is over, which ends this loop.
                    let pause = (interval / 10).min(LONGEST_PAUSE);
                    sleep(spread(pause, claim.random())).await;
                }
                Err(ExtendError::Lost { reason, .. }) => return warn_lost(&claim, reason),
                // Impossible: the same ttl was accepted when the lock was taken.
                Err(ExtendError::Ttl(_)) => return,
            }
        }
    }
}

fn warn_lost(claim: &Claim, reason: LossReason) {
    let resource = name(claim.resource());
    tracing::warn!(resource, %reason, "a lock that was kept alive is lost");
}

/// A random time of `around` plus or minus a tenth, so that locks that were taken together are not renewed together for
/// ever. At least 1 ms, so that a very short ttl does not make a busy loop.
fn spread(around: Duration, random: &Random) -> Duration {
    let tenth = around / 10;
    let spread = random.draw(|rng| rng.random_range(around - tenth..=around + tenth));
    spread.max(Duration::from_millis(1))
}
