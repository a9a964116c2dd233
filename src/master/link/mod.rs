//! The connection to one master. It is opened when a request first needs it, shared by all requests, and replaced when it
//! breaks or hangs. A request to a master that is known to be down fails at once.
//!
//! This module drives the state machine of the module `state`: it passes events on, and starts the reconnector and the
//! health check.

mod activity;
mod health_check;
mod log;
mod reconnector;
mod state;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use redis::Value as Reply;
use tokio::time::Instant;

use self::activity::{Activity, PING_AFTER};
use self::health_check::HealthCheck;
use self::log::Logged;
use self::reconnector::Reconnector;
use self::state::{Event, State, Transition};
use super::connection::{Command, Connection, SendError, WhenCallerGone};
use super::connector::Connector;
use super::reply::Sign;
use super::unclosed::Unclosed;
use crate::address::Address;
use crate::engine::Engine;
use crate::sync::FairWatch;
use crate::vote::MasterError;

/// A master that has not answered a ping for this long hangs. Longer where connecting may take longer.
const PING_TIMEOUT: Duration = Duration::from_millis(200);

/// How long an attempt to connect may take, unless requests may take longer. It is several round trips of any sane
/// network, and so short that a master that comes back after a partition votes within half a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(400);

/// How long an attempt to connect may take at most, for masters so far away that requests may take longer.
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Link {
    address: Address,
    connector: Connector,
    /// Serves the connections. It is gone when the client has been dropped.
    engine: Weak<Engine>,
    connect_timeout: Duration,
    state: FairWatch<State>,
    /// The connections that may still be open at the master's end, including the current one.
    unclosed: Mutex<Unclosed>,
    /// The serial number of the latest connection, other than the current one, that the master may still have open; 0:
    /// none. Set before the current one is used.
    latest_unclosed: AtomicU64,
    /// The number of attempts to open a connection.
    serials: AtomicU64,
    activity: Activity,
    logged: Logged,
}

impl Link {
    /// `timeout` is how long a request may take.
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
            connect_timeout: timeout.clamp(CONNECT_TIMEOUT, LONGEST_CONNECT_TIMEOUT),
            state: FairWatch::new(State::Idle),
            unclosed: Mutex::new(Unclosed::default()),
            latest_unclosed: AtomicU64::new(0),
            serials: AtomicU64::new(0),
            activity: Activity::new(),
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

    /// The error with which a request would fail at once. Like a request, this starts to connect.
    pub(crate) fn known_failure(self: &Arc<Self>, patience: Duration) -> Option<MasterError> {
        let failure = self.failure(&self.state.borrow(), patience);
        if failure.is_some() {
            // Otherwise no request would reach the link while the master is down, and the attempts to connect would end.
            self.request();
        }
        failure
    }

    fn failure(&self, state: &State, patience: Duration) -> Option<MasterError> {
        // Every round asks this of every master, so the clock is only read where the answer depends on it.
        match state.connection() {
            Some(_) => None,
            None => state.failure(Instant::now(), patience, self.silence()),
        }
    }

    /// The serial number of the latest connection, other than the current one, on which a request may still be executed;
    /// 0: none.
    pub(crate) fn latest_unclosed(&self) -> u64 {
        // Pairs with the Release of the store. Whoever holds a connection sees what was stored before it was offered.
        self.latest_unclosed.load(Ordering::Acquire)
    }

    /// Sends one command and waits for the reply. The first poll queues the command.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        connection: Connection,
        command: Arc<Command>,
        when_caller_gone: WhenCallerGone,
    ) -> Result<Reply, SendError> {
        // Before the command is queued: its reply may come before this future is polled again.
        self.mark_sent(&connection);
        let reply = connection.send(command, when_caller_gone).await;
        match Sign::of(&reply) {
            Sign::Alive => self.activity.mark_alive(),
            Sign::Broken => {
                self.on(Event::Broke(connection.serial()));
            }
            Sign::Unknown => {}
        }
        reply
    }

    /// Records that a command is sent. Starts a health check if the master has been silent for too long.
    fn mark_sent(self: &Arc<Self>, connection: &Connection) {
        if self.activity.mark_sent() {
            // A task of its own, because this request may be dropped before the ping is answered.
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

    /// Passes an event to the state machine, and starts a reconnector if need be. Returns whether the state has changed.
    fn on(self: &Arc<Self>, event: Event) -> bool {
        let mut transition = Transition::Unchanged;
        let is_changed = self.state.modify(|state| {
            transition = state.on(event, Instant::now());
            transition != Transition::Unchanged
        });
        // After the lock of the state is released: a runtime that shuts down drops the task at once, and the task takes
        // the lock when it is dropped.
        if transition == Transition::StartReconnector {
            let reconnector = Reconnector::new(self, true);
            tokio::spawn(async move { reconnector.connect_until_it_works().await });
        }
        is_changed
    }

    /// How long a master may take to answer a ping: longer where connecting may take longer.
    fn ping_timeout(&self) -> Duration {
        PING_TIMEOUT.max(self.connect_timeout.saturating_sub(CONNECT_TIMEOUT))
    }

    /// How long a master has kept silent when it is known to hang.
    fn silence(&self) -> Duration {
        PING_AFTER + self.ping_timeout()
    }
}
