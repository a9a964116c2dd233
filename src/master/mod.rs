//! One master: its address, its connection, and the requests it is sent. Knows nothing of quorums.

mod connection;
mod connector;
mod link;
mod reply;
mod request;
mod unclosed;

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{sleep, timeout};

pub(crate) use self::connection::External;
use self::connection::{Command, Connection, WhenCallerGone};
pub(crate) use self::connector::{Connector, address};
use self::link::Link;
pub(crate) use self::reply::{Answer, HeldKey, Payload};
use self::reply::{Meaning, Next};
pub(crate) use self::request::{Request, hash_scripts};
use crate::address::Address;
use crate::engine::Engine;
use crate::permit::SendPermit;
use crate::vote::MasterError;

/// How long a delete that is sent until it is answered waits for the first answer before it is sent again.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);

/// How long it waits at most. Each wait is twice as long as the one before, so a slow master is not sent ever more deletes.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// A master that can be sent requests. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Master {
    link: Arc<Link>,
}

impl Master {
    /// `timeout` is how long a request may take.
    pub(crate) fn new(
        address: Address,
        connector: Connector,
        engine: Weak<Engine>,
        timeout: Duration,
    ) -> Self {
        let link = Arc::new(Link::new(address, connector, engine, timeout));
        Self { link }
    }

    pub(crate) fn address(&self) -> &Address {
        self.link.address()
    }

    /// The error with which a request would fail at once. Like a request, this makes the master be connected to.
    pub(crate) fn known_failure(&self, patience: Duration) -> Option<MasterError> {
        self.link.known_failure(patience)
    }

    /// Logs that no answer came in time, and returns the error that says so.
    pub(crate) fn report_timeout(&self, timeout: Duration) -> MasterError {
        let error = MasterError::TimedOut(timeout);
        self.link.report(&error);
        error
    }

    /// Sends a request, if it is still permitted when there is a connection, and waits for the answer.
    ///
    /// `patience` is how long an attempt to connect may have taken before the request fails. The request is queued by the
    /// poll that finds an open connection; by the first poll if the connection is open already.
    pub(crate) async fn ask(
        self,
        request: Request,
        permit: SendPermit,
        patience: Duration,
    ) -> Answer {
        let answer = self.send(&request, &permit, patience).await;
        match &answer {
            Answer::Failed(error) => self.link.report(error),
            Answer::Granted(_) | Answer::Refused | Answer::Recreated => self.link.report_answer(),
            Answer::NotNeeded | Answer::HoldsNothing => {}
        }
        answer
    }

    /// Sends a request that only reads, and waits at most `patience` for the answer.
    pub(crate) async fn inspect(&self, request: &Request, patience: Duration) -> Answer {
        let answer = self.send(request, &SendPermit::ReadOnly, patience);
        let answer = timeout(patience, answer).await;
        answer.unwrap_or_else(|_| Answer::Failed(self.report_timeout(patience)))
    }

    /// Sends a request again and again, over one connection after the other, until there is an answer.
    ///
    /// Only for a request that may be executed any number of times.
    pub(crate) async fn ask_until_answered(
        &self,
        request: &Request,
        permit: &SendPermit,
    ) -> Answer {
        let mut patience = FIRST_PATIENCE;
        loop {
            self.link.wait_until_up().await;
            // Nothing is logged: an answer that takes several attempts does not show that the master answers in time.
            let answer = self.send(request, permit, patience);
            match timeout(patience, answer).await {
                Ok(answer) if answer.may_pass() => sleep(patience / 10).await,
                Ok(answer) => return answer,
                Err(_) => {}
            }
            patience = (patience * 2).min(LONGEST_PATIENCE);
        }
    }

    /// Sends a request and waits for the answer.
    ///
    /// Nearly every request finds an open connection, and is answered over it. What is needed otherwise is boxed, so that
    /// the future stays small: there is one for every master and request.
    async fn send(&self, request: &Request, permit: &SendPermit, patience: Duration) -> Answer {
        let mut command = request.command();
        if let Some(connection) = self.link.open_connection() {
            let next = self.send_on(connection, request, Arc::clone(&command), permit);
            match next.await {
                Next::Answer(answer) => return answer,
                Next::SendText => command = request.command_with_text(),
                Next::Reconnect(_) => {}
            }
        }
        Box::pin(self.send_once_connected(request, command, permit, patience)).await
    }

    /// Waits for a connection and sends. Sends once more with the text of the script, and once more over another
    /// connection, if need be.
    async fn send_once_connected(
        &self,
        request: &Request,
        mut command: Arc<Command>,
        permit: &SendPermit,
        patience: Duration,
    ) -> Answer {
        // Each way out is tried once, so a master that always replies the same cannot keep this loop busy.
        let (mut may_reconnect, mut is_text) = (true, false);
        loop {
            let connection = match permit {
                SendPermit::Delete(..) => self.link.connection_for_delete(patience).await,
                SendPermit::ReadOnly | SendPermit::Write(..) => {
                    self.link.connection(patience).await
                }
            };
            let connection = match connection {
                Ok(connection) => connection,
                // Nothing was sent. This says nothing of requests that were sent before, so nothing is recorded.
                Err(error) => return Answer::Failed(error),
            };
            let next = self.send_on(connection, request, Arc::clone(&command), permit);
            match next.await {
                Next::Answer(answer) => return answer,
                Next::Reconnect(_) if may_reconnect => may_reconnect = false,
                Next::Reconnect(error) => return Answer::Failed(error),
                Next::SendText if !is_text => {
                    is_text = true;
                    command = request.command_with_text();
                }
                Next::SendText => {
                    let error = MasterError::Protocol("NOSCRIPT to the text of a script".into());
                    return Answer::Failed(error);
                }
            }
        }
    }

    /// Sends a command over a connection, and records in the permit what the request has done.
    async fn send_on(
        &self,
        connection: Connection,
        request: &Request,
        command: Arc<Command>,
        permit: &SendPermit,
    ) -> Next {
        let serial = connection.serial();
        let when_caller_gone = match permit {
            SendPermit::Delete(..) => WhenCallerGone::Send,
            SendPermit::ReadOnly | SendPermit::Write(..) => WhenCallerGone::Skip,
        };
        let mut exchange = pin!(self.link.exchange(connection, command, when_caller_gone));
        // Read after the connection was taken: the link sets this before it offers a new connection.
        let latest_unclosed = self.link.latest_unclosed();
        // The first poll queues the command. It is made by the permit, in the same step as the check: between the two
        // another thread could close the permit and queue a delete.
        let first_poll = poll_fn(|cx| {
            let send = || exchange.as_mut().poll(cx);
            Poll::Ready(permit.send(serial, latest_unclosed, send))
        });
        let reply = match first_poll.await {
            None => return Next::Answer(Answer::NotNeeded),
            Some(Poll::Ready(reply)) => reply,
            Some(Poll::Pending) => exchange.await,
        };
        // When this future is dropped before, nothing is recorded: the request counts as one that may be executed later.
        let Meaning { next, effect } = Meaning::of(request.kind(), reply);
        permit.record(effect);
        next
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.address(), f)
    }
}
