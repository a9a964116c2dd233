//! The connection to one master: opened when first needed, shared by all requests, replaced when it breaks or
//! hangs, and never waited for longer than a request may take.

mod reconnector;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use redis::Value as Reply;
use tokio::time::{Instant, sleep, timeout};

use self::reconnector::{Mender, Prober};
use super::connection::{Command, Connection, SendError, WhenCallerGone};
use super::connector::{Connector, close_earlier};
use super::reply::{Sign, connect_error};
use super::unclosed::Unclosed;
use crate::address::Address;
use crate::engine::Engine;
use crate::sync::{FairWatch, lock};
use crate::vote::MasterError;

/// A master that has left everything unanswered for this long is asked for a sign of life.
const SILENCE: Duration = Duration::from_millis(300);

/// One that does not give it for this long hangs.
const DOUBT: Duration = Duration::from_millis(200);

/// How long an attempt to connect may take, unless requests may take longer: several round trips of any sane
/// network, and short enough for a master that comes back after a partition to vote within half a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(400);

/// And for masters so far away that requests may take longer, at most this long.
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// At least this long between two attempts to connect, so that a port that refuses is not hammered.
const MIN_PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Link {
    address: Address,
    connector: Connector,
    /// Where its connections are served. Gone with the client.
    engine: Weak<Engine>,
    /// How long an attempt to connect may take.
    timeout: Duration,
    state: FairWatch<State>,
    /// The connections so far that may still be open at the master's end, the current one included.
    unclosed: Mutex<Unclosed>,
    /// The latest connection, other than the current one, that the master may still have open; 0: none. Set before the
    /// current one is used.
    latest_unclosed: AtomicU64,
    /// How many connections there have been.
    serials: AtomicU64,
    /// Where the two times below count from.
    created: Instant,
    /// When the oldest request was sent since the last reply, in milliseconds since `created`; 0: all is answered.
    asked: AtomicU64,
    /// When the last attempt to connect began, likewise.
    attempted: AtomicU64,
    /// When somebody last wanted this master, likewise.
    wanted: AtomicU64,
    probing: AtomicBool,
    /// Whether the log knows that it does not answer, and that it refuses what it is asked.
    failing: AtomicBool,
    refusing: AtomicBool,
}

enum State {
    Idle,
    Connecting {
        since: Instant,
    },
    Up(Connection),
    /// A connection that does not answer; a task tries to open another one.
    Hung(Connection),
    /// No connection, and why; a task is at it.
    Down(MasterError),
}

impl State {
    fn connecting() -> Self {
        Self::Connecting {
            since: Instant::now(),
        }
    }
}

impl Link {
    pub(crate) fn new(
        address: Address,
        connector: Connector,
        engine: Weak<Engine>,
        timeout: Duration,
    ) -> Self {
        Self {
            address,
            connector,
            engine,
            timeout: timeout.clamp(CONNECT_TIMEOUT, LONGEST_CONNECT_TIMEOUT),
            state: FairWatch::new(State::Idle),
            unclosed: Mutex::new(Unclosed::default()),
            latest_unclosed: AtomicU64::new(0),
            serials: AtomicU64::new(0),
            created: Instant::now(),
            asked: AtomicU64::new(0),
            attempted: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The connection, if there is one that is good.
    pub(crate) fn open_connection(&self) -> Option<Connection> {
        match &*self.state.borrow() {
            State::Up(live) => Some(live.clone()),
            _ => None,
        }
    }

    /// The connection, opened now if need be.
    ///
    /// Waits for an attempt to connect, unless that has gone on for longer than `patience`: a master that is known
    /// to be down, or to hang, fails at once. Sets no timer; how long to wait is up to the caller.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Connection, MasterError> {
        let look = |state: &State| match state {
            State::Up(live) => Some(Ok(live.clone())),
            _ => self.failure(state, patience).map(Err),
        };
        self.state.wait_for(|| self.connect_if_idle(), look).await
    }

    /// Why a request would fail at once. Begins to connect, as a request does.
    pub(crate) fn known_failure(self: &Arc<Self>, patience: Duration) -> Option<MasterError> {
        let failure = self.failure(&self.state.borrow(), patience);
        if failure.is_some() {
            self.connect_if_idle();
        }
        failure
    }

    fn failure(&self, state: &State, patience: Duration) -> Option<MasterError> {
        match state {
            State::Hung(_) => Some(MasterError::Hung(self.silence())),
            State::Down(error) => Some(error.clone()),
            State::Connecting { since } if since.elapsed() > patience => {
                Some(MasterError::TimedOut(patience))
            }
            State::Up(_) | State::Connecting { .. } | State::Idle => None,
        }
    }

    /// The latest connection, other than the current one, on which something may still be under way; 0: none.
    pub(crate) fn latest_unclosed(&self) -> u64 {
        self.latest_unclosed.load(Ordering::Acquire)
    }

    /// The connection for what undoes something, also one that hangs: there it is executed behind what it undoes,
    /// whenever that is.
    pub(crate) async fn connection_for_delete(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Connection, MasterError> {
        if let State::Hung(live) = &*self.state.borrow() {
            return Ok(live.clone());
        }
        self.connection(patience).await
    }

    /// Waits until there is a connection, however long that takes.
    pub(crate) async fn wait_until_up(self: &Arc<Self>) {
        let look = |state: &State| matches!(state, State::Up(_)).then_some(());
        self.state.wait_for(|| self.connect_if_idle(), look).await;
    }

    /// Sends one command and waits for the reply; the first poll hands it over.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        live: Connection,
        command: Arc<Command>,
        unwanted: WhenCallerGone,
    ) -> Result<Reply, SendError> {
        self.mark_asked(&live);
        let reply = live.send(command, unwanted).await;
        match Sign::of(&reply) {
            Sign::Broken => self.broken(live.serial()),
            Sign::Unknown => {}
            Sign::Alive => self.heard(),
        }
        reply
    }

    /// Tells the log that this master begins to fail, once; or that it refuses what it is asked, once a connection.
    pub(crate) fn report(&self, error: &MasterError) {
        let first = match error {
            // This says something about the key, not about the master.
            MasterError::WrongType(_) => false,
            // This is about the connection before the one that is up.
            MasterError::Disconnected(_) if self.connector.reconnects() && self.is_up() => false,
            MasterError::Auth(_)
            | MasterError::Forbidden(_)
            | MasterError::Server(_)
            | MasterError::Protocol(_) => !self.refusing.swap(true, Ordering::Relaxed),
            _ => !self.failing.swap(true, Ordering::Relaxed),
        };
        if first {
            tracing::warn!(master = %self.address, %error, "master fails");
        }
    }

    /// Tells the log, once, that it answers in time after it had failed. Not for what comes over a connection that
    /// is being replaced.
    pub(crate) fn report_answer(&self) {
        if self.failing.load(Ordering::Relaxed)
            && self.is_up()
            && self.failing.swap(false, Ordering::Relaxed)
        {
            tracing::info!(master = %self.address, "master answers again");
        }
    }

    fn is_up(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up(_))
    }

    /// It has replied, in time or not.
    fn heard(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    fn mark_asked(self: &Arc<Self>, live: &Connection) {
        let now = self.now();
        let asked = &self.asked;
        let Err(since) = asked.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
        else {
            return;
        };
        if now.saturating_sub(since) > millis(SILENCE)
            && !self.probing.swap(true, Ordering::Relaxed)
        {
            tokio::spawn(Prober::new(self).run(live.clone()));
        }
    }

    /// A request found its connection broken: another one is opened at once.
    fn broken(self: &Arc<Self>, serial: u64) {
        self.connect_if(|state| matches!(state, State::Up(current) if current.serial() == serial));
    }

    fn connect_if_idle(self: &Arc<Self>) {
        self.wanted.store(self.now(), Ordering::Relaxed);
        self.connect_if(|state| matches!(state, State::Idle));
    }

    /// Sets a task to connect if the state is such a one, in one step.
    fn connect_if(self: &Arc<Self>, condition: impl FnOnce(&State) -> bool) {
        if self.change(condition, State::connecting()) {
            let mender = Mender::new(self, true);
            tokio::spawn(async move { mender.connect_until_it_works().await });
        }
    }

    /// Goes on to the next state if the state is such a one, in one step; tells whether it was.
    fn change(&self, condition: impl FnOnce(&State) -> bool, next: State) -> bool {
        self.state.modify(|state| {
            let changes = condition(state);
            if changes {
                *state = next;
            }
            changes
        })
    }

    /// Opens a connection. Where that may take longer than usual, with another attempt beside the first: it may
    /// have set out while the master could not be reached, and come back to nothing.
    async fn open_somehow(&self) -> Result<(), MasterError> {
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(self.open());
            let usual = MIN_PAUSE + CONNECT_TIMEOUT + MIN_PAUSE;
            if let Ok(Some(first)) = timeout(usual, attempts.next()).await {
                return first;
            }
        }
    }

    /// Opens a connection and puts it in place.
    async fn open(&self) -> Result<(), MasterError> {
        let since_last = self.since(&self.attempted);
        sleep(MIN_PAUSE.saturating_sub(since_last)).await;
        self.attempted.store(self.now(), Ordering::Relaxed);
        // Only one of the attempts that run at the same time can succeed, so connections in use have rising numbers.
        let serial = self.serials.fetch_add(1, Ordering::Relaxed) + 1;
        let opened = timeout(self.timeout, async {
            let connection = self.connector.open(serial, &self.engine).await?;
            // From here on the old connection is closed, even should it come back to life.
            self.change(|state| matches!(state, State::Hung(_)), State::connecting());
            let client_id = self.connector.set_up(&connection).await;
            Ok((connection, client_id))
        });
        let opened = opened.await.unwrap_or_else(|_| {
            let error = format!("timed out after {:?}", self.timeout);
            Err(io::Error::new(io::ErrorKind::TimedOut, error).into())
        });
        let (connection, client_id) = opened.map_err(connect_error)?;
        let mut unclosed = lock(&self.unclosed).clone();
        if let Some(new) = &client_id {
            // With a time of its own: a master far away is used also if this takes too long.
            let _ = timeout(self.timeout, close_earlier(&connection, &mut unclosed, new)).await;
        }
        self.latest_unclosed
            .store(unclosed.latest(), Ordering::Release);
        unclosed.push(serial, client_id);
        *lock(&self.unclosed) = unclosed;
        self.refusing.store(false, Ordering::Relaxed);
        self.heard();
        self.change(|_| true, State::Up(connection));
        Ok(())
    }

    /// How long a master may keep silent when it is asked for a sign of life: longer where connecting may take longer.
    fn doubt(&self) -> Duration {
        DOUBT.max(self.timeout.saturating_sub(CONNECT_TIMEOUT))
    }

    /// How long a master has kept silent when it is known to hang.
    fn silence(&self) -> Duration {
        SILENCE + self.doubt()
    }

    /// Milliseconds since this link was made, from 1.
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
