//! Keeping a lock alive: extending it again and again, long before its validity ends, for as long as the guard
//! lives.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::{ExtendError, LossReason, name};
use crate::lock::claim::Claim;
use crate::random::Random;

/// The longest pause between two attempts at a renewal that has failed.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Keeps a lock alive while its guard exists; see [`LockRequest::keep_alive`](crate::LockRequest::keep_alive).
///
/// The lock is extended every third of its ttl, give or take a tenth. A renewal that fails is tried again a tenth of
/// that later, and after half a second at most, for as long as there is validity left. All of this ends with the
/// guard. A loss is a warning in the log.
///
/// Renewals run in the background of the client. They go on while the caller's runtime is blocked or is not run, so work
/// that hangs keeps everybody else out; [`max_lifetime`](Self::max_lifetime) is the bound for that.
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
    pub(crate) max_lifetime: Option<Duration>,
}

impl KeepAlive {
    /// For as long as the guard exists.
    #[must_use]
    pub const fn new() -> Self {
        Self { max_lifetime: None }
    }

    /// At most for so long after the lock was asked for; then it is lost, by
    /// [`LossReason::LifetimeReached`](crate::LossReason::LifetimeReached). Defaults to no limit.
    ///
    /// For work that might hang: without a limit it would keep everybody else out for ever.
    #[must_use]
    pub const fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.max_lifetime = Some(lifetime);
        self
    }
}

/// Extends a claim until it is lost. Whoever holds the guard ends this with it.
pub(crate) async fn renew(claim: Arc<Claim>, ttl: Duration) {
    let interval = ttl / 3;
    let mut due = Instant::now();
    loop {
        // From one due time to the next, not from the wake-up, or the delays of the timer would add up. After a
        // pause there is nothing to catch up on.
        if due.elapsed() > interval {
            due = Instant::now();
        }
        due += spread(interval, claim.random());
        tokio::select! {
            biased;
            reason = claim.lost() => return warn_lost(&claim, reason),
            () = sleep_until(due) => {}
        }
        loop {
            let extended = claim.extend(ttl).await;
            match extended.and_then(|extended| claim.confirm(&extended)) {
                Ok(()) => break,
                Err(error @ ExtendError::Unconfirmed { .. }) => {
                    tracing::debug!(%error, "not renewed, trying again");
                    let pause = (interval / 10).min(LONGEST_PAUSE);
                    sleep(spread(pause, claim.random())).await;
                }
                Err(ExtendError::Lost { reason, .. }) => return warn_lost(&claim, reason),
                // It was good when the lock was taken.
                Err(ExtendError::Ttl(_)) => return,
            }
        }
    }
}

fn warn_lost(claim: &Claim, reason: LossReason) {
    let resource = name(claim.resource());
    tracing::warn!(resource, %reason, "a lock that was kept alive is lost");
}

/// A random time around the given one, so that many locks taken at once are not renewed at once for ever. Never
/// none at all.
fn spread(around: Duration, random: &Random) -> Duration {
    let tenth = around / 10;
    let spread = random.draw(|rng| rng.random_range(around - tenth..=around + tenth));
    spread.max(Duration::from_millis(1))
}
