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

use redis::{ErrorKind, ServerErrorKind, Value as Reply};
use tokio::time::{sleep, timeout};

pub(crate) use self::connection::External;
use self::connection::{Command, Connection, SendError, WhenCallerGone};
pub(crate) use self::connector::{Connector, address};
use self::link::Link;
use self::reply::{read, read_state};
pub(crate) use self::request::{Request, hash_scripts};
use crate::address::Address;
use crate::engine::Engine;
use crate::permit::SendPermit;
use crate::vote::{KeyState, MasterError, MasterView, Vote};

/// The first and the longest time to wait for an answer that must come in the end.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// A master, as something that can be asked.
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

    /// Why a request would fail at once; has the master connected to as a request would.
    pub(crate) fn known_failure(&self, patience: Duration) -> Option<MasterError> {
        self.link.known_failure(patience)
    }

    /// No answer came in time.
    pub(crate) fn report_timeout(&self, timeout: Duration) -> MasterError {
        let error = MasterError::TimedOut(timeout);
        self.link.report(&error);
        error
    }

    /// Sends a request, if it is still permitted when there is a connection, and waits for the vote.
    ///
    /// `patience` is how long to wait for a connection. The request is handed over by the poll that finds one,
    /// the first if it is open already.
    pub(crate) async fn ask(
        self,
        request: Request,
        permit: SendPermit,
        patience: Duration,
    ) -> Vote {
        let vote = self.vote(&request, &permit, patience).await;
        match &vote {
            Vote::Failed(error) => self.link.report(error),
            Vote::Granted | Vote::Refused | Vote::Recreated => self.link.report_answer(),
            Vote::NotNeeded | Vote::NothingSent => {}
        }
        vote
    }

    async fn vote(&self, request: &Request, permit: &SendPermit, patience: Duration) -> Vote {
        let vote = match self.send(request, permit, patience).await {
            Ok(Some(reply)) => read(request.kind(), &reply),
            Ok(None) => Vote::NotNeeded,
            Err(error) => Vote::Failed(error),
        };
        if matches!(vote, Vote::Refused) {
            permit.retract();
        }
        vote
    }

    /// What there is on this master; waits for it as long as for a connection.
    pub(crate) async fn look(self, request: Request, patience: Duration) -> MasterView {
        let reply = match timeout(
            patience,
            self.send(&request, &SendPermit::ReadOnly, patience),
        )
        .await
        {
            Ok(reply) => reply,
            Err(_) => Err(self.report_timeout(patience)),
        };
        let state = match reply {
            Ok(reply) => read_state(&reply.unwrap_or(Reply::Nil)),
            Err(error) => KeyState::Unreachable(error),
        };
        let master = self.address().clone();
        MasterView { master, state }
    }

    /// Sends a request and waits for the reply; `None` if it was not permitted any more.
    ///
    /// Nearly every request goes over the connection there is, and is answered. All else is boxed, so that the future
    /// stays small: there is one for every master and request.
    async fn send(
        &self,
        request: &Request,
        permit: &SendPermit,
        patience: Duration,
    ) -> Result<Option<Reply>, MasterError> {
        let sent = match self.link.live_now() {
            Some(live) => Some(self.send_on(live, request.command(), permit).await),
            None => None,
        };
        let command = match sent {
            Some(Ok(reply)) => return Ok(Some(reply)),
            Some(Err(Unanswered::NotPermitted)) => return Ok(None),
            Some(Err(Unanswered::Failed(error))) => return Err(error),
            Some(Err(Unanswered::NoScript)) => request.command_with_text(),
            Some(Err(Unanswered::Unsent(_))) | None => request.command(),
        };
        Box::pin(self.send_once_connected(request, command, permit, patience)).await
    }

    /// Waits for a connection, and sends; again with the text of the script, or once over another connection.
    async fn send_once_connected(
        &self,
        request: &Request,
        mut command: Arc<Command>,
        permit: &SendPermit,
        patience: Duration,
    ) -> Result<Option<Reply>, MasterError> {
        let (mut reconnect, mut with_text) = (true, false);
        loop {
            let live = match permit {
                SendPermit::Delete(..) => self.link.live_to_undo(patience).await?,
                SendPermit::ReadOnly | SendPermit::Write(..) => self.link.live(patience).await?,
            };
            match self.send_on(live, Arc::clone(&command), permit).await {
                Ok(reply) => return Ok(Some(reply)),
                Err(Unanswered::NotPermitted) => return Ok(None),
                Err(Unanswered::Failed(error)) => return Err(error),
                Err(Unanswered::Unsent(_)) if reconnect => reconnect = false,
                Err(Unanswered::Unsent(error)) => return Err(error),
                Err(Unanswered::NoScript) if !with_text => {
                    with_text = true;
                    command = request.command_with_text();
                }
                Err(Unanswered::NoScript) => {
                    let error = MasterError::Protocol("NOSCRIPT to the text of a script".into());
                    return Err(error);
                }
            }
        }
    }

    /// Sends a command on a connection. Records in the permit whether the master has answered, and whether the request left
    /// nothing.
    async fn send_on(
        &self,
        live: Connection,
        command: Arc<Command>,
        permit: &SendPermit,
    ) -> Result<Reply, Unanswered> {
        let (link, connection) = (&self.link, live.serial());
        let unwanted = match permit {
            SendPermit::Delete(..) => WhenCallerGone::Send,
            SendPermit::ReadOnly | SendPermit::Write(..) => WhenCallerGone::Skip,
        };
        let mut exchange = pin!(link.exchange(live, command, unwanted));
        let latest_unclosed = link.latest_unclosed();
        let first_poll = poll_fn(|cx| {
            let send = || exchange.as_mut().poll(cx);
            Poll::Ready(permit.send(connection, latest_unclosed, send))
        });
        let reply = match first_poll.await {
            None => return Err(Unanswered::NotPermitted),
            Some(Poll::Ready(reply)) => reply,
            Some(Poll::Pending) => exchange.await,
        };
        let error = match reply {
            Ok(reply) => {
                permit.answered();
                return Ok(reply);
            }
            // The connection had ended before. Typically it was idle.
            Err(SendError::Unsent { error, is_certain }) => {
                if is_certain {
                    permit.answered();
                    permit.retract();
                }
                return Err(Unanswered::Unsent(MasterError::from_redis(error)));
            }
            Err(SendError::Broken(error)) => {
                return Err(Unanswered::Failed(MasterError::from_redis(error)));
            }
            Err(SendError::Replied(error)) => error,
        };
        // A connection that the user gave us may reply with an error of its own.
        if !error.is_io_error() {
            permit.answered();
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) {
            permit.retract();
            return Err(Unanswered::NoScript);
        }
        let error = MasterError::from_redis(error);
        // Said of this very request; what a connection is refused for says nothing of an earlier one.
        if error.is_refusal() {
            permit.retract();
        }
        Err(Unanswered::Failed(error))
    }

    /// Sends a request again and again, on one connection after the other, until there is an answer.
    ///
    /// Only for a request that may be executed any number of times.
    pub(crate) async fn ask_until_answered(&self, request: &Request, permit: &SendPermit) -> Vote {
        let mut patience = FIRST_PATIENCE;
        loop {
            self.link.up().await;
            // The log is told nothing: an answer that takes this long is not one in time.
            let vote = self.vote(request, permit, patience);
            match timeout(patience, vote).await {
                Ok(Vote::Failed(error)) if error.may_pass() => sleep(patience / 10).await,
                Ok(vote) => return vote,
                Err(_) => {}
            }
            patience = (patience * 2).min(LONGEST_PATIENCE);
        }
    }
}

/// Why a command has no reply that counts.
enum Unanswered {
    NotPermitted,
    /// The connection had ended before.
    Unsent(MasterError),
    /// The master does not know the script.
    NoScript,
    Failed(MasterError),
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.address(), f)
    }
}
