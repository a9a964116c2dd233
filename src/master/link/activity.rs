//! When a master was last used, and since when it has been silent. Every request passes here, so nothing takes a lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A master that no request has needed for this long is not connected to again. The next request does so.
pub(super) const DISCONNECT_UNUSED_AFTER: Duration = Duration::from_secs(10);

/// The times are milliseconds since `created`, from 1; 0 stands for never.
///
/// `Relaxed` is enough for all of them: each stands for itself and guards no other memory. A task that reads an old
/// time starts a ping or gives up a connection a moment too early or too late, which is no harm.
pub(crate) struct Activity {
    created: Instant,
    /// When the oldest request without a reply was queued; 0: each has one. Any reply counts as the reply to all of
    /// them, since it shows that the master is alive.
    unanswered_since: AtomicU64,
    /// When the master last replied.
    last_reply: AtomicU64,
    /// When the last attempt to connect began.
    last_attempt: AtomicU64,
    /// When a request last needed a connection.
    last_used: AtomicU64,
    /// Whether there is a health check.
    is_checking: AtomicBool,
}

impl Activity {
    pub(in crate::master) fn new() -> Self {
        Self {
            created: Instant::now(),
            unanswered_since: AtomicU64::new(0),
            last_reply: AtomicU64::new(0),
            last_attempt: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            is_checking: AtomicBool::new(false),
        }
    }

    /// A request is queued. Returns whether the caller has to start a health check, because an earlier request has had
    /// no reply for longer than `ping_after`.
    pub(super) fn mark_sent(&self, ping_after: Duration) -> bool {
        let now = self.now();
        let since = &self.unanswered_since;
        let Err(since) = since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
        else {
            return false;
        };
        let is_silent = now.saturating_sub(since) > millis(ping_after);
        // Of several tasks, only the one whose swap returns `false` starts the health check.
        is_silent && !self.is_checking.swap(true, Ordering::Relaxed)
    }

    pub(super) fn mark_checked(&self) {
        self.is_checking.store(false, Ordering::Relaxed);
    }

    /// The master has replied, in time or not.
    pub(in crate::master) fn mark_alive(&self) {
        self.unanswered_since.store(0, Ordering::Relaxed);
        self.last_reply.store(self.now(), Ordering::Relaxed);
    }

    /// How long ago the master last replied.
    pub(super) fn since_last_reply(&self) -> Duration {
        self.since(&self.last_reply)
    }

    pub(super) fn mark_used(&self) {
        self.last_used.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.since(&self.last_used) > DISCONNECT_UNUSED_AFTER
    }

    pub(super) fn mark_attempt(&self) {
        self.last_attempt.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn since_last_attempt(&self) -> Duration {
        self.since(&self.last_attempt)
    }

    fn now(&self) -> u64 {
        millis(self.created.elapsed()) + 1
    }

    fn since(&self, then: &AtomicU64) -> Duration {
        let then = then.load(Ordering::Relaxed);
        if then == 0 {
            Duration::MAX
        } else {
            Duration::from_millis(self.now().saturating_sub(then))
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
