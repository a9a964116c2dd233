//! How long to wait between attempts, and when to give up. Pure: the caller passes the elapsed time, and the randomness
//! comes from a seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// How a call waits for a lock that is not granted at once.
///
/// Between two attempts it waits a random time. The shortest wait is the smallest delay. The longest wait starts at
/// twice the smallest delay and doubles with every attempt, up to the largest delay. This is "exponential backoff with
/// full jitter": clients that collided once do not collide again in step.
///
/// It gives up after a number of attempts, after a total wait, after whichever comes first, or never. It gives up
/// instead of starting a wait between attempts that would exceed the total. An attempt that has begun ends with the
/// total, or after one [request timeout](crate::RedlockBuilder::request_timeout) if that is later. So the call ends at
/// most one request timeout after `max_wait`.
///
/// # Waiting in line
///
/// Each attempt waits in line, behind the earlier attempts of its client, until a quorum of masters has room for it. So
/// a client sends no more than its masters answer soon. Mostly there is room at once. The wait in line counts towards
/// the total wait, and not towards the number of attempts. If the total is over in line, the call returns the error of
/// its last attempt, or [`LockError::Overloaded`](crate::LockError::Overloaded) if it has made none.
///
/// # Defaults
///
/// | setting | default | why |
/// | --- | --- | --- |
/// | delay | 10 ms to 500 ms | a few round trips at first; later about four attempts a second |
/// | attempts | no limit | a caller notices the total wait, not the number of attempts |
/// | total wait | 5 s | clients of a web service usually wait longer than that |
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::RetryPolicy;
///
/// // A nightly job may wait long, and need not ask often.
/// let patient = RetryPolicy::new()
///     .delay(Duration::from_millis(100), Duration::from_secs(5))
///     .max_wait(Duration::from_secs(600));
/// // A handler that has something else to do makes one attempt.
/// let impatient = RetryPolicy::once();
/// # let _ = (patient, impatient);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    min_delay: Duration,
    max_delay: Duration,
    max_attempts: Option<u32>,
    max_wait: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryPolicy {
    /// Returns the default policy, which suits a web service; see the table of [`RetryPolicy`].
    #[must_use]
    pub const fn new() -> Self {
        Self {
            min_delay: Duration::from_millis(10),
            max_delay: Duration::from_millis(500),
            max_attempts: None,
            max_wait: Some(Duration::from_secs(5)),
        }
    }

    /// Returns a policy with one attempt, which does not wait until others release the lock.
    ///
    /// The attempt may wait [in line](Self#waiting-in-line), for the default total of 5 s at most.
    /// [`max_wait`](Self::max_wait) changes that.
    #[must_use]
    pub const fn once() -> Self {
        Self {
            max_attempts: Some(1),
            ..Self::new()
        }
    }

    /// Sets the smallest and the largest delay between two attempts. Defaults to 10 ms and 500 ms.
    ///
    /// With equal delays every wait is the same. Zero is allowed: the next attempt then starts at once. If `min` is
    /// above `max`, both are `min`.
    #[must_use]
    pub const fn delay(mut self, min: Duration, max: Duration) -> Self {
        self.min_delay = min;
        self.max_delay = if max.as_nanos() < min.as_nanos() {
            min
        } else {
            max
        };
        self
    }

    /// Sets the number of attempts, the first one included, after which the call gives up. 0 counts as 1. Defaults to
    /// no limit.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Sets the total time after which the call gives up, counted from when the request is first awaited. Defaults to
    /// 5 s.
    ///
    /// The total includes all attempts, the delays between them, and the time [in line](Self#waiting-in-line). It may
    /// be longer than the ttl.
    #[must_use]
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = Some(wait);
        self
    }

    /// Removes both limits: the call waits until the lock is granted, in line too.
    #[must_use]
    pub const fn forever(mut self) -> Self {
        self.max_attempts = None;
        self.max_wait = None;
        self
    }

    /// What is left of the total wait; `None` if there is no limit.
    pub(crate) fn time_left(&self, elapsed: Duration) -> Option<Duration> {
        Some(self.max_wait?.saturating_sub(elapsed))
    }

    /// Returns the delays of one run of this policy. The same seed gives the same delays.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::RetryPolicy;
    ///
    /// let policy = RetryPolicy::new().max_attempts(4);
    /// assert_eq!(policy.delays(7).count(), 3);
    /// assert!(policy.delays(7).eq(policy.delays(7)));
    /// ```
    #[must_use]
    pub fn delays(&self, seed: u64) -> Delays {
        Delays {
            policy: self.clone(),
            rng: StdRng::seed_from_u64(seed),
            attempts: 1,
            ceiling: self.min_delay,
            waited: Duration::ZERO,
        }
    }
}

/// One run of a [`RetryPolicy`]: the delay before each further attempt.
///
/// The iterator assumes that the attempts themselves take no time.
#[derive(Debug)]
pub struct Delays {
    policy: RetryPolicy,
    rng: StdRng,
    /// The number of attempts so far.
    attempts: u32,
    /// The longest delay that may come next.
    ceiling: Duration,
    /// The sum of the delays that the iterator has returned.
    waited: Duration,
}

impl Delays {
    /// Returns the delay before the next attempt, or `None` to give up. `elapsed` is the time since the call began.
    pub(crate) fn next_after(&mut self, elapsed: Duration) -> Option<Duration> {
        let policy = &self.policy;
        if policy.max_attempts.is_some_and(|max| self.attempts >= max) {
            return None;
        }
        // At least 1 ms before doubling: doubling zero stays zero.
        self.ceiling = self.ceiling.max(Duration::from_millis(1)).saturating_mul(2);
        self.ceiling = self.ceiling.min(policy.max_delay);
        let ceiling = self.ceiling.max(policy.min_delay);
        // An empty range would panic, and equal bounds need no random number.
        let delay = if policy.min_delay < ceiling {
            self.rng.random_range(policy.min_delay..=ceiling)
        } else {
            ceiling
        };
        // Give up before the wait, not after it: a caller gains nothing from a wait without an attempt.
        let total = elapsed.saturating_add(delay);
        if policy.max_wait.is_some_and(|max| total > max) {
            return None;
        }
        self.attempts = self.attempts.saturating_add(1);
        Some(delay)
    }
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = self.next_after(self.waited)?;
        self.waited = self.waited.saturating_add(delay);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_attempt_never_waits() {
        assert_eq!(RetryPolicy::once().delays(1).next(), None);
        assert_eq!(RetryPolicy::new().max_attempts(0).delays(1).next(), None);
    }

    #[test]
    fn delays_stay_within_their_bounds_and_the_ceiling_doubles() {
        let policy = RetryPolicy::new().delay(10 * MS, 100 * MS).forever();
        for seed in 0..200 {
            for (attempt, delay) in (1..).zip(policy.delays(seed).take(12)) {
                let ceiling = (10 * MS * 2u32.pow(attempt)).min(100 * MS);
                assert!(10 * MS <= delay && delay <= ceiling, "{attempt}: {delay:?}");
            }
        }
    }

    #[test]
    fn jitter_fills_the_whole_range() {
        let policy = RetryPolicy::new().delay(Duration::ZERO, 64 * MS).forever();
        let late: Vec<_> = (0..400)
            .filter_map(|seed| policy.delays(seed).nth(10))
            .collect();
        assert!(late.iter().any(|&delay| delay < 8 * MS));
        assert!(late.iter().any(|&delay| delay > 56 * MS));
    }

    #[test]
    fn zero_and_equal_delays_are_exactly_that() {
        let zero = RetryPolicy::new()
            .delay(Duration::ZERO, Duration::ZERO)
            .forever();
        assert!(zero.delays(1).take(5).all(|delay| delay.is_zero()));
        let equal = RetryPolicy::new().delay(7 * MS, 7 * MS).forever();
        assert!(equal.delays(1).take(5).all(|delay| delay == 7 * MS));
        let crossed = RetryPolicy::new().delay(7 * MS, MS).forever();
        assert!(crossed.delays(1).take(5).all(|delay| delay == 7 * MS));
        assert_eq!(crossed, equal);
    }

    #[test]
    fn the_largest_delays_do_not_overflow() {
        let policy = RetryPolicy::new().delay(MS, Duration::MAX).forever();
        assert_eq!(policy.delays(1).take(200).count(), 200);
        let most = RetryPolicy::new()
            .delay(Duration::MAX, Duration::MAX)
            .forever();
        assert_eq!(most.delays(1).next(), Some(Duration::MAX));
    }

    #[test]
    fn it_gives_up_instead_of_a_wait_that_would_exceed_the_total() {
        let policy = RetryPolicy::new().delay(10 * MS, 10 * MS).max_wait(35 * MS);
        assert_eq!(policy.delays(1).take(100).count(), 3);
        let mut delays = policy.delays(1);
        assert_eq!(delays.next_after(25 * MS), Some(10 * MS));
        assert_eq!(delays.next_after(26 * MS), None);
    }

    #[test]
    fn the_limit_that_comes_first_applies() {
        let policy = RetryPolicy::new().delay(10 * MS, 10 * MS);
        let count = |policy: RetryPolicy| policy.delays(1).take(100).count();
        assert_eq!(count(policy.clone().max_attempts(3).max_wait(100 * MS)), 2);
        assert_eq!(count(policy.max_attempts(30).max_wait(50 * MS)), 5);
    }

    #[test]
    fn forever_does_not_end() {
        let policy = RetryPolicy::once().forever();
        assert_eq!(policy.delays(1).take(10_000).count(), 10_000);
    }

    proptest::proptest! {
        #[test]
        fn no_policy_panics_or_exceeds_its_limits(
            min: Duration,
            max: Duration,
            attempts: Option<u32>,
            wait: Option<Duration>,
            seed: u64,
        ) {
            let mut policy = RetryPolicy::new().delay(min, max).forever();
            policy.max_attempts = attempts;
            policy.max_wait = wait;
            let delays: Vec<_> = policy.delays(seed).take(50).collect();
            assert!(delays.iter().all(|&delay| min <= delay && delay <= max.max(min)));
            assert!(attempts.is_none_or(|most| delays.len() <= most.saturating_sub(1) as usize));
            let total = delays.iter().fold(Duration::ZERO, |sum, delay| sum.saturating_add(*delay));
            assert!(wait.is_none_or(|wait| total <= wait));
            assert!(policy.delays(seed).take(50).eq(delays));
        }

        #[test]
        fn elapsed_time_counts_towards_the_total(
            wait: Duration,
            elapsed: Duration,
            delay: Duration,
        ) {
            let policy = RetryPolicy::new().delay(delay, delay).max_wait(wait);
            let next = policy.delays(0).next_after(elapsed);
            assert_eq!(next.is_some(), elapsed.saturating_add(delay) <= wait);
        }
    }
}
