//! The connection to one master. It is opened when a request first needs it, shared by all requests, and replaced when
//! it breaks or hangs. A request to a master that is known to be down fails at once.
//!
//! This module drives the state machine of the module `state`: it passes events on, and starts the reconnector and the
//! health check.

mod activity;
mod health_check;
mod log;
mod reconnector;
mod state;
mod write_probe;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use redis::Value as Reply;
use tokio::time::Instant;

pub(super) use self::activity::Activity;
use self::health_check::HealthCheck;
use self::log::Logged;
use self::reconnector::Reconnector;
use self::state::{Event, State, Transition};
use self::write_probe::WriteProbe;
use super::connection::{Command, Connection, Order, SendError, Sent, Terms};
use super::connector::Connector;
use super::load::Load;
use super::reply::Sign;
use super::request::DeleteBy;
use super::resolver::Resolver;
use super::unclosed::Unclosed;
use crate::address::Address;
use crate::engine::Engine;
use crate::sync::{FairWatch, lock};
use crate::vote::MasterError;

/// A health check begins when a request is queued while an earlier one has had no reply for this long. Longer than a
/// round trip in any sane network, and short enough that a connection that hangs is replaced within half a second.
/// Longer with a longer request timeout.
pub(super) const PING_AFTER: Duration = Duration::from_millis(300);

/// A master hangs if it has sent no reply for this long after a ping was sent. Longer where connecting may take longer.
const PING_TIMEOUT: Duration = Duration::from_millis(200);

/// How long an attempt to connect may take, unless the request timeout is longer. It is several round trips of any sane
/// network, and so short that a master that comes back after a partition votes within half a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(400);

/// How long an attempt to connect may take with the longest request timeouts, which are for masters far away.
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Link {
    address: Address,
    connector: Connector,
    /// Serves the connections. It is gone when the client has been dropped.
    engine: Weak<Engine>,
    connect_timeout: Duration,
    /// A request fails when the master has been silent for this long.
    silence: Duration,
    load: Arc<Load>,
    resolver: Resolver,
    writes: WriteProbe,
    /// How the master of the current connection deletes.
    delete_by: Mutex<DeleteBy>,
    state: FairWatch<State>,
    /// The connections that may still be open at the master's end, including the current one.
    unclosed: Mutex<Unclosed>,
    /// The serial number of the latest connection, other than the current one, that the master may still have open; 0:
    /// none. Set before the current one is used.
    latest_unclosed: Arc<AtomicU64>,
    /// The number of connections that have been opened.
    serials: AtomicU64,
    activity: Arc<Activity>,
    logged: Logged,
}

/// Whether what was sent on a connection may still be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Openness {
    /// Yes: the connection has not been replaced.
    Current,
    /// Yes: it has been replaced, but the master did not close it.
    Unclosed,
    /// No.
    Closed,
}

impl Link {
    /// `silence` is how long a master may send nothing before requests fail.
    pub(crate) fn new(
        address: Address,
        connector: Connector,
        engine: Weak<Engine>,
        silence: Duration,
        load: Arc<Load>,
    ) -> Self {
        Self {
            address,
            connector,
            engine,
            connect_timeout: silence.clamp(CONNECT_TIMEOUT, LONGEST_CONNECT_TIMEOUT),
            silence,
            load,
            resolver: Resolver::default(),
            writes: WriteProbe::default(),
            delete_by: Mutex::new(DeleteBy::Script),
            state: FairWatch::new(State::Idle),
            unclosed: Mutex::new(Unclosed::default()),
            latest_unclosed: Arc::new(AtomicU64::new(0)),
            serials: AtomicU64::new(0),
            activity: Arc::new(Activity::new()),
            logged: Logged::default(),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The connection, if there is one that works.
    pub(crate) fn open_connection(&self) -> Option<Connection> {
        // The lock is held for the clone only. A connection that breaks right after it refuses the command.
        self.state.borrow().connection().cloned()
    }

    /// The connection, opened now if need be.
    ///
    /// Fails at once where the master is known to be down or to hang, or where connecting has taken longer than
    /// `patience`. Sets no timer: the caller decides how long it waits for the connection.
    pub(crate) async fn connection(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Connection, MasterError> {
        let inspect = |state: &State| match state.connection() {
            Some(connection) => Some(Ok(connection.clone())),
            None => self.failure(state, patience).map(Err),
        };
        self.state.wait_for(|| self.request(), inspect).await
    }

    /// The connection for a delete, also one that hangs: there the delete is executed behind the request whose key it
    /// deletes, whenever that is.
    pub(crate) async fn connection_for_delete(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Connection, MasterError> {
        if let State::Hung(connection) = &*self.state.borrow() {
            return Ok(connection.clone());
        }
        // The state may have become `Hung` since. Then this fails at once, and the delete is repeated later.
        self.connection(patience).await
    }

    /// Waits until there is a connection, however long that takes.
    pub(crate) async fn wait_until_up(self: &Arc<Self>) {
        let inspect = |state: &State| state.connection().map(drop);
        self.state.wait_for(|| self.request(), inspect).await;
    }

    /// The error with which a request would fail at once.
    pub(crate) fn known_failure(&self, patience: Duration) -> Option<MasterError> {
        self.failure(&self.state.borrow(), patience)
    }

    /// Connects as for a request, if need be.
    pub(crate) fn keep_connecting(self: &Arc<Self>) {
        self.request();
    }

    fn failure(&self, state: &State, patience: Duration) -> Option<MasterError> {
        // Every round asks this of every master, so the clock is only read where the answer depends on it.
        match state.connection() {
            Some(_) => None,
            None => state.failure(Instant::now(), patience, self.hung_after()),
        }
    }

    /// What serves the connections; `None` when the client has been dropped.
    pub(crate) fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.upgrade()
    }

    /// Whether a new connection can replace one that hangs or broke.
    pub(crate) fn reconnects(&self) -> bool {
        self.connector.reconnects()
    }

    /// Whether the master may still execute what was sent on a connection.
    pub(crate) fn openness(&self, serial: u64) -> Openness {
        let is_current = match &*self.state.borrow() {
            State::Up(current) | State::Hung(current) => current.serial() == serial,
            // The next connection closes those before.
            State::Idle | State::Connecting { .. } | State::Down(_) => true,
        };
        if is_current {
            Openness::Current
        } else if serial <= self.latest_unclosed.load(Ordering::Acquire) {
            Openness::Unclosed
        } else {
            Openness::Closed
        }
    }

    /// Learns from what became of a delete whether the master executes writes.
    pub(crate) fn deleted(&self, delete: Arc<Command>, reply: &Result<Reply, SendError>) {
        if matches!(reply, Err(SendError::Silent(_))) {
            self.writes.mark_unanswered(delete);
        } else if Sign::of(reply) == Sign::Alive {
            self.writes.mark_answered();
        }
    }

    pub(crate) fn delete_by(&self) -> DeleteBy {
        *lock(&self.delete_by)
    }

    pub(crate) fn set_delete_by(&self, delete_by: DeleteBy) {
        *lock(&self.delete_by) = delete_by;
    }

    /// The requests to this master that have no answer yet.
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// How a new connection is served.
    fn terms(&self, serial: u64) -> Terms {
        Terms {
            serial,
            latest_unclosed: Arc::clone(&self.latest_unclosed),
            load: Arc::clone(&self.load),
            activity: Arc::clone(&self.activity),
            silence: self.silence,
        }
    }

    /// Queues one command. The reply has to be [passed on](Self::received).
    pub(crate) fn send(self: &Arc<Self>, connection: &Connection, order: Order) -> Sent {
        // Before the command is queued: its reply may come at once.
        self.mark_sent(connection);
        connection.send(order)
    }

    /// Learns from a reply whether the connection still works.
    pub(crate) fn received(self: &Arc<Self>, connection: u64, reply: &Result<Reply, SendError>) {
        if Sign::of(reply) == Sign::Broken {
            self.on(Event::Broke(connection));
        }
    }

    /// Records that a command is sent. Starts a health check if the master has been silent for too long.
    fn mark_sent(self: &Arc<Self>, connection: &Connection) {
        if self.activity.mark_sent(self.ping_after()) {
            tokio::spawn(HealthCheck::new(self).run(connection.clone()));
        }
    }

    fn is_up(&self) -> bool {
        self.state.borrow().connection().is_some()
    }

    /// Connects if there is neither a connection nor a task that connects.
    fn request(self: &Arc<Self>) {
        // First, so that a reconnector that is about to give up sees that the master is needed.
        self.activity.mark_used();
        self.on(Event::Requested);
    }

    /// Passes an event to the state machine, and starts a reconnector if need be. Returns whether the state has
    /// changed.
    fn on(self: &Arc<Self>, event: Event) -> bool {
        let mut transition = Transition::Unchanged;
        let mut old = None;
        let is_changed = self.state.modify(|state| {
            if let State::Up(connection) | State::Hung(connection) = &*state {
                old = Some(connection.clone());
            }
            transition = state.on(event, Instant::now());
            transition != Transition::Unchanged
        });
        // After the lock of the state is released: the drop of a connection may drop requests, which wake others.
        drop(old);
        // After the lock of the state is released: a runtime that shuts down drops the task at once, and the task takes
        // the lock when it is dropped.
        if transition == Transition::StartReconnector {
            let reconnector = Reconnector::new(self, true);
            tokio::spawn(async move { reconnector.connect_until_it_works().await });
        }
        if is_changed {
            // Whoever waits for room may find that this master is not to be waited for.
            self.load.wake_line();
        }
        is_changed
    }

    /// How long a master may take to answer a ping: longer where connecting may take longer.
    fn ping_timeout(&self) -> Duration {
        PING_TIMEOUT.max(self.connect_timeout.saturating_sub(CONNECT_TIMEOUT))
    }

    fn ping_after(&self) -> Duration {
        PING_AFTER.max(self.silence.saturating_sub(self.ping_timeout()))
    }

    /// How long a master has kept silent when it is known to hang.
    fn hung_after(&self) -> Duration {
        self.ping_after() + self.ping_timeout()
    }
}
