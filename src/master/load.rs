//! How much a master has to do for one client: the requests that it has not answered yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::window::FIRST;
use crate::queue::Line;

/// The requests to one master that have no answer yet, sent or not.
pub(crate) struct Load {
    requests: AtomicUsize,
    /// How many of them may be under way at a time; see [`Window`](super::window::Window).
    window: AtomicUsize,
    /// Those who wait for room on the masters.
    line: Arc<Line>,
}

impl Load {
    pub(crate) fn new(line: Arc<Line>) -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicUsize::new(0),
            window: AtomicUsize::new(FIRST),
            line,
        })
    }

    /// Counts a request until the ticket is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Ticket {
        self.requests.fetch_add(1, Ordering::SeqCst);
        Ticket(Arc::clone(self))
    }

    /// Whether another request would be sent at once.
    pub(crate) fn has_room(&self) -> bool {
        // SeqCst, as in `Line::wake_head`: the head of the line must not miss the last ticket.
        self.requests.load(Ordering::SeqCst) < self.window.load(Ordering::Relaxed)
    }

    /// Whether the master cannot keep up: as many requests as it may have under way wait for it besides.
    pub(crate) fn is_behind(&self) -> bool {
        // Relaxed: a guide. A request more or less does no harm.
        self.requests.load(Ordering::Relaxed) >= 2 * self.window.load(Ordering::Relaxed)
    }

    /// The number of requests without an answer.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn set_window(&self, window: usize) {
        self.window.store(window, Ordering::Relaxed);
    }

    /// The state of the master has changed: those who wait look again.
    pub(crate) fn wake_line(&self) {
        self.line.wake_head();
    }
}

/// A request that is counted.
pub(crate) struct Ticket(Arc<Load>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
        self.0.line.wake_head();
    }
}
