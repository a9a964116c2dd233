//! How much a master has to do for one client: the requests that it has not answered yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::window::{FIRST, MOST};
use crate::queue::Line;

/// A master whose line is so long that a request waits in it for longer than this cannot keep up. Longer than a window
/// needs to grow with a burst of requests.
const BEHIND_AFTER: Duration = Duration::from_millis(250);

/// The requests to one master that have no answer yet, sent or not. A request that was given up does not count.
pub(crate) struct Load {
    created: Instant,
    requests: AtomicUsize,
    /// How many of them may be under way at a time; see [`Window`](super::window::Window).
    window: AtomicUsize,
    /// The serial number of the connection that has this window.
    connection: AtomicU64,
    /// Since when the oldest attempt waits to be sent, in milliseconds since `created`, from 1; 0: none waits.
    head_since: AtomicU64,
    /// The attempts that wait for room on the masters.
    line: Arc<Line>,
}

impl Load {
    pub(crate) fn new(line: Arc<Line>) -> Arc<Self> {
        Arc::new(Self {
            created: Instant::now(),
            requests: AtomicUsize::new(0),
            head_since: AtomicU64::new(0),
            window: AtomicUsize::new(FIRST),
            connection: AtomicU64::new(0),
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

    /// Whether the master cannot keep up with the attempts that it has.
    pub(crate) fn is_behind(&self) -> bool {
        // Relaxed: a guide. A request more or less does no harm.
        let requests = self.requests.load(Ordering::Relaxed);
        // First what needs no clock.
        if requests < 2 * self.window.load(Ordering::Relaxed) {
            return false;
        }
        let since = self.head_since.load(Ordering::Relaxed);
        let has_waited = self.millis(Instant::now()).saturating_sub(since);
        requests >= 2 * MOST || since > 0 && u128::from(has_waited) > BEHIND_AFTER.as_millis()
    }

    /// The number of requests without an answer.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many requests may be under way.
    pub(crate) fn window(&self) -> usize {
        self.window.load(Ordering::Relaxed)
    }

    /// There is a new connection.
    pub(crate) fn reset_window(&self, connection: u64) {
        // Relaxed, as for `is_behind`: the next reply sets the window again.
        self.connection.store(connection, Ordering::Relaxed);
        self.window.store(FIRST, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    /// Sets the window, if this connection is the one in use.
    pub(crate) fn set_window(&self, connection: u64, window: usize) {
        if self.connection.load(Ordering::Relaxed) == connection {
            self.window.store(window, Ordering::Relaxed);
        }
    }

    /// Sets since when the oldest attempt waits to be sent, if this connection is the one in use.
    pub(crate) fn set_head(&self, connection: u64, since: Option<Instant>) {
        if self.connection.load(Ordering::Relaxed) == connection {
            let since = since.map_or(0, |since| self.millis(since));
            self.head_since.store(since, Ordering::Relaxed);
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        let millis = at.duration_since(self.created).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The state of the master has changed: the head of the line looks again.
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

#[cfg(test)]
mod tests {
    use std::iter;

    use tokio::time::advance;

    use super::*;

    /// A connection with the number 1, and so many requests.
    fn load(requests: usize) -> (Arc<Load>, Vec<Ticket>) {
        let load = Load::new(Arc::default());
        load.reset_window(1);
        let tickets = iter::repeat_with(|| load.enter()).take(requests).collect();
        (load, tickets)
    }

    #[test]
    fn there_is_room_as_long_as_the_window_is_not_full() {
        let (load, mut tickets) = load(FIRST);
        assert!(!load.has_room());
        tickets.pop();
        assert!(load.has_room());
        load.set_window(1, FIRST - 1);
        assert!(!load.has_room());
        load.set_window(2, FIRST);
        assert!(!load.has_room(), "the window of another connection");
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_is_behind_when_its_line_is_long_and_does_not_move() {
        let long = 2 * FIRST;
        for (requests, has_waited, is_behind) in [
            (long, BEHIND_AFTER, false),
            (long, BEHIND_AFTER + Duration::from_millis(2), true),
            (long - 1, 10 * BEHIND_AFTER, false),
            (2 * MOST - 1, Duration::ZERO, false),
            (2 * MOST, Duration::ZERO, true),
        ] {
            let (load, tickets) = load(requests);
            assert!(requests >= 2 * MOST || !load.is_behind(), "nobody waits");
            load.set_head(1, Some(Instant::now()));
            advance(has_waited).await;
            assert_eq!(load.is_behind(), is_behind, "{requests}, {has_waited:?}");
            load.set_head(1, None);
            drop(tickets);
            assert!(!load.is_behind());
        }
    }
}
