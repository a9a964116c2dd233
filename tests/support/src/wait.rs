//! Waits for a condition.

use std::thread;
use std::time::{Duration, Instant};

pub(crate) const POLL_EVERY: Duration = Duration::from_millis(2);

/// Waits until the condition holds, and panics if it takes longer. Blocks the thread.
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(POLL_EVERY);
    }
}

/// The same for a test whose runtime has to go on meanwhile.
pub async fn eventually_async(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(POLL_EVERY).await;
    }
}
