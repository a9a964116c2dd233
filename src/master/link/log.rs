//! Logs that a master begins to fail, and that it answers again: once each, however many requests there are.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Link;
use crate::sync::lock;
use crate::vote::MasterError;

/// What has been logged of a master. `Relaxed` is enough for both: each stands for itself, and `swap` lets only one of
/// several tasks log the same.
#[derive(Default)]
pub(super) struct Logged {
    budget: Mutex<Budget>,
    /// The log knows that the master does not answer.
    failing: AtomicBool,
    /// The log knows that the master refuses what it is asked.
    refusing: AtomicBool,
}

/// How many times it may be logged that the master begins to fail. A master at its limit fails at one moment and answers
/// at the next.
struct Budget {
    lines: u32,
    /// When the last line was given back.
    since: Option<Instant>,
}

/// So many lines may come at once.
const MAX_LINES: u32 = 4;

/// And one more after each of these.
const LINE_EVERY: Duration = Duration::from_secs(15);

impl Default for Budget {
    fn default() -> Self {
        Self {
            lines: MAX_LINES,
            since: None,
        }
    }
}

impl Budget {
    /// Whether a line may be logged now.
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let earned = now.duration_since(since).as_secs() / LINE_EVERY.as_secs();
        let earned = u32::try_from(earned).unwrap_or(MAX_LINES).min(MAX_LINES);
        if earned > 0 {
            self.lines = (self.lines + earned).min(MAX_LINES);
            self.since = Some(now);
        }
        let is_left = self.lines > 0;
        self.lines = self.lines.saturating_sub(1);
        is_left
    }
}

impl Logged {
    /// There is a new connection. The next refusal is logged again, since it may have another reason.
    pub(super) fn connected(&self) {
        self.refusing.store(false, Ordering::Relaxed);
    }
}

impl Link {
    /// Logs that the master begins to fail, once until it answers again; or that it refuses what it is asked, once per
    /// connection.
    pub(crate) fn report(&self, error: &MasterError) {
        let Logged {
            failing, refusing, ..
        } = &self.logged;
        let is_new = match error {
            // The key is at fault, and not the master.
            MasterError::WrongType(_) => false,
            // The connection before the current one is at fault, and has been replaced.
            MasterError::Disconnected(_) if self.connector.reconnects() && self.is_up() => false,
            MasterError::Auth(_)
            | MasterError::Forbidden(_)
            | MasterError::Server(_)
            | MasterError::Protocol(_) => !refusing.swap(true, Ordering::Relaxed),
            MasterError::Connect(_)
            | MasterError::Disconnected(_)
            | MasterError::TimedOut(_)
            | MasterError::Hung(_)
            | MasterError::Behind(_)
            | MasterError::NotAsked(_) => {
                !failing.load(Ordering::Relaxed)
                    && lock(&self.logged.budget).take(Instant::now())
                    && !failing.swap(true, Ordering::Relaxed)
            }
        };
        if is_new {
            tracing::warn!(master = %self.address, %error, "master fails");
        }
    }

    /// Logs that the master answers again, once after it had failed.
    ///
    /// Not for an answer over a connection that is being replaced: such a master may hang again at once.
    pub(crate) fn report_answer(&self) {
        let failing = &self.logged.failing;
        // Nearly always `false`, so that most answers write to no memory that threads share, and take no lock.
        if failing.load(Ordering::Relaxed) && self.is_up() && failing.swap(false, Ordering::Relaxed)
        {
            tracing::info!(master = %self.address, "master answers again");
        }
    }
}
