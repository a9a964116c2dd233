//! The clock that counts suspend.
//!
//! On Linux `std::time::Instant` stops while the machine is suspended, but the clocks of the masters do not. A process
//! that wakes up would still trust a lock that others have taken over long ago. So every decision about validity reads
//! this clock. Timers only wake tasks up.

use std::time::Duration;

/// A moment: nanoseconds since a fixed point in the past. The point is the same for the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The moment `span` later. Saturates at the end of the scale, after 584 years.
    pub(crate) fn after(self, span: Duration) -> Self {
        // Saturating is safe: it can only make a validity shorter.
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The time from this moment until `later`. Zero if `later` has passed.
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// The source of the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Clock {
    /// The operating system.
    #[default]
    System,
    /// Tokio, whose clock a test may have paused. Holds the moment at which the clock was made.
    #[cfg(any(test, feature = "test-util"))]
    Tokio(tokio::time::Instant),
}

impl Clock {
    /// Tokio's clock, starting now.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn tokio() -> Self {
        Self::Tokio(tokio::time::Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        match self {
            Self::System => Moment::of_the_system(),
            #[cfg(any(test, feature = "test-util"))]
            // One second ahead, because a moment of zero means "never granted" in a lease.
            Self::Tokio(beginning) => Moment(1_000_000_000).after(beginning.elapsed()),
        }
    }
}

impl Moment {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn of_the_system() -> Self {
        // CLOCK_BOOTTIME counts suspend, and no time server can step it, unlike the wall clock.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn of_the_system() -> Self {
        // No clock here counts suspend without `unsafe`: the README names this limit for macOS.
        static START: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        Self(0).after(START.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_never_overflow_or_underflow() {
        let end = Moment(u64::MAX);
        assert_eq!(end.after(Duration::MAX), end);
        assert_eq!(end.until(Moment(0)), Duration::ZERO);
        assert_eq!(Moment(5).until(Moment(9)), Duration::from_nanos(4));
    }

    #[test]
    fn the_clock_runs_forward() {
        let earlier = Clock::System.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(earlier.until(Clock::System.now()) >= Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_tokio_can_be_paused() {
        let clock = Clock::tokio();
        let earlier = clock.now();
        assert_eq!(clock.now(), earlier);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(earlier.until(clock.now()), Duration::from_secs(60));
    }
}
