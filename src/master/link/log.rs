//! Logs that a master begins to fail, and that it answers again: once each, however many requests there are.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Link;
use crate::vote::MasterError;

/// What has been logged of a master. `Relaxed` is enough for both: each stands for itself, and `swap` lets only one of
/// several tasks log the same.
#[derive(Default)]
pub(super) struct Logged {
    /// The log knows that the master does not answer.
    failing: AtomicBool,
    /// The log knows that the master refuses what it is asked.
    refusing: AtomicBool,
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
        let Logged { failing, refusing } = &self.logged;
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
            | MasterError::NotAsked(_) => !failing.swap(true, Ordering::Relaxed),
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
