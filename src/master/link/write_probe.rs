//! Whether a master executes writes. A master may answer questions and hold back writes, as `CLIENT PAUSE` makes it do, and a
//! ping does not show this. So a delete that was left unanswered is tried on the next connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::engine::timeout_without_stalls;
use crate::master::connection::{Command, Connection};
use crate::master::reply::Sign;
use crate::sync::lock;

/// What is known of the writes of one master. `Relaxed` is enough: each flag stands for itself, and a probe too many or too
/// few does no harm.
#[derive(Default)]
pub(super) struct WriteProbe {
    /// A delete without an answer.
    unanswered: Mutex<Option<Arc<Command>>>,
    /// Whether there is one, so that most answers take no lock.
    is_unanswered: AtomicBool,
    /// Whether the master answered on the last connection that was tried, and did not execute the delete.
    is_held_back: AtomicBool,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// The master executes writes, as far as is known.
    Works,
    /// No reply came in time.
    HeldBack,
}

impl WriteProbe {
    pub(super) fn mark_unanswered(&self, delete: Arc<Command>) {
        *lock(&self.unanswered) = Some(delete);
        self.is_unanswered.store(true, Ordering::Relaxed);
    }

    /// The master has answered a delete.
    pub(super) fn mark_answered(&self) {
        if self.is_unanswered.swap(false, Ordering::Relaxed) {
            *lock(&self.unanswered) = None;
        }
    }

    pub(super) fn set_held_back(&self, is_held_back: bool) {
        self.is_held_back.store(is_held_back, Ordering::Relaxed);
    }

    pub(super) fn is_held_back(&self) -> bool {
        self.is_held_back.load(Ordering::Relaxed)
    }

    /// Sends the delete, if there is one, and waits for a reply. Any reply will do, also an error.
    pub(super) async fn run(&self, connection: &Connection, limit: Duration) -> Probed {
        let Some(delete) = lock(&self.unanswered).clone() else {
            return Probed::Works;
        };
        let reply = timeout_without_stalls(limit, connection.send_plain(delete));
        let Some(reply) = reply.await else {
            return Probed::HeldBack;
        };
        if Sign::of(&reply) == Sign::Alive {
            self.mark_answered();
        }
        Probed::Works
    }
}
