//! Logs that a master begins to fail, and that it answers again: once each, however many requests there are. A master
//! that fails and answers in turns is logged a few times, and then only now and then.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Link;
use crate::sync::lock;
use crate::vote::MasterError;

/// What has been logged of a master. `Relaxed` is enough for both flags: each stands for itself, and `swap` lets only
/// one of several tasks log the same.
#[derive(Default)]
pub(super) struct Logged {
    budget: Mutex<Budget>,
    /// The log knows that the master does not answer.
    failing: AtomicBool,
    /// The log knows that the master refuses requests.
    refusing: AtomicBool,
}

/// How many times it may still be logged that the master begins to fail. A master that is just fast enough for its
/// requests fails at one moment and answers at the next.
struct Budget {
    lines: u32,
    /// From when on the time counts that earns the next line; `None` before the first line.
    since: Option<Instant>,
}

/// The most lines that may be logged at once.
const MAX_LINES: u32 = 4;

/// Each time this long has passed, one more line may be logged.
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
    /// Logs that the master begins to fail, once until it answers again; or that it refuses requests, once per connection.
    /// Both as far as the budget allows.
    pub(crate) fn report(&self, error: &MasterError) {
        let Logged {
            budget,
            failing,
            refusing,
        } = &self.logged;
        let is_known = match error {
            // The key is at fault, and not the master.
            MasterError::WrongType(_) => return,
            // The connection before the current one is at fault, and has been replaced.
            MasterError::Disconnected(_) if self.connector.reconnects() && self.is_up() => return,
            MasterError::Auth(_)
            | MasterError::Forbidden(_)
            | MasterError::Server(_)
            | MasterError::Protocol(_) => refusing,
            MasterError::Connect(_)
            | MasterError::Disconnected(_)
            | MasterError::TimedOut(_)
            | MasterError::Hung(_)
            | MasterError::Behind(_)
            | MasterError::NotAsked(_) => failing,
        };
        let is_new = !is_known.load(Ordering::Relaxed)
            && lock(budget).take(Instant::now())
            && !is_known.swap(true, Ordering::Relaxed);
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
        if failing.load(Ordering::Relaxed)
            && self.is_up()
            && !self.load.is_behind()
            && failing.swap(false, Ordering::Relaxed)
        {
            tracing::info!(master = %self.address, "master answers again");
        }
    }
}
