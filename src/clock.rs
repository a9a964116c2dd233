//! The clock that counts suspend.
//!
//! `std::time::Instant` stops while a Linux machine sleeps, the masters' clocks do not: a process that wakes up
//! would go on believing in a lock that others have long taken over. Every decision about validity therefore
//! reads this clock; timers only wake us up.

use std::time::Duration;

/// A moment: nanoseconds since some fixed point in the past, the same for the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The moment `span` later; the far end of the scale, 584 years away, where that would pass it.
    pub(crate) fn after(self, span: Duration) -> Self {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long it is from here until `later`; zero where that has passed.
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// Where the time comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Clock {
    /// From the operating system.
    #[default]
    System,
    /// From Tokio, whose clock a test may have paused. Holds the beginning of time.
    #[cfg(any(test, feature = "test-util"))]
    Tokio(tokio::time::Instant),
}

impl Clock {
    /// Tokio's clock, from this moment on.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn tokio() -> Self {
        Self::Tokio(tokio::time::Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        match self {
            Self::System => Moment::of_the_system(),
            #[cfg(any(test, feature = "test-util"))]
            // A second on, since zero stands for never.
            Self::Tokio(beginning) => Moment(1_000_000_000).after(beginning.elapsed()),
        }
    }
}

impl Moment {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn of_the_system() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn of_the_system() -> Self {
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
