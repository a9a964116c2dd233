//! The time, as all processes on this machine see it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Since the machine was started. Unlike an `Instant`, it can be told to another process.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    time.try_into().expect("this clock begins at zero")
}
