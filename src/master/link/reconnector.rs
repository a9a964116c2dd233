//! The task that connects to a master, again and again until that works.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use redis::{RedisError, RedisResult};
use tokio::time::{Instant, sleep, timeout};

use super::state::Event;
use super::write_probe::Probed;
use super::{CONNECT_TIMEOUT, Link};
use crate::engine::timeout_without_stalls;
use crate::master::connection::Connection;
use crate::master::connector::{Greeting, close_earlier};
use crate::master::reply::connect_error;
use crate::sync::lock;
use crate::vote::MasterError;

/// The shortest pause between two attempts to connect, so that a port that refuses is not flooded.
const MIN_PAUSE: Duration = Duration::from_millis(20);

/// The pause where the master holds back writes. Longer, because each attempt leaves one more delete in a socket of the
/// master.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause, so that a master that comes back votes within half a second, unless it had held back writes.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// The task that connects. When its runtime shuts down first, the next request starts another one.
pub(super) struct Reconnector {
    link: Arc<Link>,
    /// Whether this task owns the state of the link. Relaxed: only this task uses it. It is atomic because the future
    /// of the task may move between threads while it borrows this.
    owns_state: AtomicBool,
}

impl Drop for Reconnector {
    fn drop(&mut self) {
        // Never after a connection was established: nothing is awaited between that and the end of the ownership.
        if *self.owns_state.get_mut() {
            self.link.on(Event::Abandoned);
        }
    }
}

impl Reconnector {
    pub(super) fn new(link: &Arc<Link>, owns_state: bool) -> Self {
        Self {
            link: Arc::clone(link),
            owns_state: AtomicBool::new(owns_state),
        }
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(super) fn set_owns_state(&self, owns_state: bool) {
        self.owns_state.store(owns_state, Ordering::Relaxed);
    }

    /// Makes attempts until one succeeds, or no request needs the master any more.
    pub(super) async fn connect_until_it_works(&self) {
        let link = &self.link;
        let mut pause = MIN_PAUSE;
        loop {
            let started = Instant::now();
            let attempt = link.attempt().await;
            let Err(error) = attempt else {
                self.set_owns_state(false);
                return;
            };
            link.report(&error);
            link.on(Event::AttemptFailed(error));
            // The pause counts from the beginning of the attempt. None follows an attempt that timed out.
            sleep(pause.saturating_sub(started.elapsed())).await;
            pause = (pause * 2).min(MAX_PAUSE);
            if self.is_unused() {
                return;
            }
        }
    }

    /// Whether no request waits for this master, and none has needed it lately, or none can come any more.
    pub(super) fn is_unused(&self) -> bool {
        let link = &self.link;
        // The last handle is that of this task: the client has been dropped.
        let is_unused = link.activity.is_unused() || Arc::strong_count(link) == 1;
        is_unused && !link.state.is_watched()
    }
}

impl Link {
    /// Connects. When an attempt takes longer than usual, makes another one beside it: the first may have begun while
    /// the master could not be reached, and may never get a reply.
    async fn attempt(self: &Arc<Self>) -> Result<(), MasterError> {
        // What an attempt takes at most where requests do not take longer.
        let usual = self.least_pause() + CONNECT_TIMEOUT + MIN_PAUSE;
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(self.connect());
            if let Ok(Some(first)) = timeout(usual, attempts.next()).await {
                // The others are dropped, so at most one of them is established.
                return first;
            }
        }
    }

    /// How long after an attempt the next one may begin.
    fn least_pause(&self) -> Duration {
        if self.writes.is_held_back() {
            WRITE_PAUSE
        } else {
            MIN_PAUSE
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<(), MasterError> {
        let pause = self.least_pause();
        sleep(pause.saturating_sub(self.activity.since_last_attempt())).await;
        self.activity.mark_attempt();
        self.writes.set_held_back(false);
        let opened = timeout_without_stalls(self.connect_timeout, self.open());
        let opened = opened.await.unwrap_or_else(|| {
            let error = format!("timed out after {:?}", self.connect_timeout);
            Err(io_error(&error))
        });
        let (connection, greeting) = opened.map_err(connect_error)?;
        self.establish(connection, greeting).await;
        Ok(())
    }

    async fn open(self: &Arc<Self>) -> RedisResult<(Connection, Greeting)> {
        // Relaxed: only the numbers must differ, and rise. Connections come into use in the order of their numbers,
        // because one task connects at a time, and only one of its attempts is established.
        let serial = self.serials.fetch_add(1, Ordering::Relaxed) + 1;
        let connection = self
            .connector
            .open(self.terms(serial), &self.resolver, &self.engine)
            .await?;
        // The new connection will close the hung one, so a sign of life on that one counts no more.
        self.on(Event::HungGivenUp);
        // Together, so that the probe takes no further round trip.
        let probe = self.writes.run(&connection, self.ping_timeout());
        let (greeting, probed) = futures::join!(self.connector.set_up(&connection), probe);
        self.writes.set_held_back(probed == Probed::HeldBack);
        if probed == Probed::HeldBack {
            return Err(io_error("it answers, and does not execute writes"));
        }
        if connection.is_broken() {
            // Never offered to requests, so nothing of ours is executed on it.
            return Err(io_error("the new connection broke"));
        }
        Ok((connection, greeting))
    }

    /// Closes earlier connections at the master's end, and offers the new one to requests.
    async fn establish(self: &Arc<Self>, connection: Connection, greeting: Greeting) {
        let Greeting {
            client_id,
            delete_by,
        } = greeting;
        // A copy, so that the lock is not held across an await. No other task changes it meanwhile.
        let mut unclosed = lock(&self.unclosed).clone();
        if let Some(new) = &client_id {
            // This has a time limit of its own. When it passes, the new connection is used all the same, and deletes
            // are repeated until the requests on the earlier ones can no longer be executed.
            let closing = close_earlier(&connection, &mut unclosed, new);
            let _ = timeout_without_stalls(self.connect_timeout, closing).await;
        }
        // Before the new connection is offered. A delete on it must know of the earlier connections: otherwise it would
        // count as final, while a SET on one of those could still be executed after it.
        self.latest_unclosed
            .store(unclosed.latest(), Ordering::Release);
        unclosed.push(connection.serial(), client_id);
        *lock(&self.unclosed) = unclosed;
        self.set_delete_by(delete_by);
        self.load.reset_window(connection.serial());
        self.logged.connected();
        self.activity.mark_alive();
        self.on(Event::Established(connection));
    }
}

fn io_error(text: &str) -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, text).into()
}
