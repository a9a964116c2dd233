//! One master: its address, its connection, and the requests it is sent. Knows nothing of quorums.

mod connection;
mod connector;
mod debts;
mod link;
mod load;
mod reply;
mod request;
mod resolver;
mod unclosed;
mod window;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

pub(crate) use self::connection::External;
use self::connection::{Command, Connection, Order, SendError, Urgency};
pub(crate) use self::connector::{Connector, address};
use self::debts::Debts;
pub(crate) use self::debts::{Debt, End, Follower};
use self::link::Link;
use self::load::Load;
pub(crate) use self::reply::{Answer, HeldKey, Payload};
use self::reply::{Next, is_unsupported};
use self::request::DeleteBy;
pub(crate) use self::request::{Request, hash_scripts};
use crate::address::Address;
use crate::engine::Engine;
use crate::permit::SendPermit;
use crate::queue::Line;
use crate::vote::MasterError;

/// A master that can be sent requests. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Master {
    link: Arc<Link>,
    debts: Arc<Debts>,
}

impl Master {
    /// `silence` is how long the master may send nothing before requests fail. Those who wait in the `line` are woken
    /// when the master has room for more requests.
    pub(crate) fn new(
        address: Address,
        connector: Connector,
        engine: Weak<Engine>,
        silence: Duration,
        line: &Arc<Line>,
    ) -> Self {
        let load = Load::new(Arc::clone(line));
        let link = Arc::new(Link::new(address, connector, engine, silence, load));
        Self {
            link,
            debts: Arc::new(Debts::default()),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        self.link.address()
    }

    /// The error with which a request would fail at once.
    pub(crate) fn known_failure(&self, patience: Duration) -> Option<MasterError> {
        self.link.known_failure(patience)
    }

    /// Has the master connected to, where a request is not sent because it would fail.
    pub(crate) fn keep_connecting(&self) {
        self.link.keep_connecting();
    }

    /// Whether a request would be sent at once.
    pub(crate) fn has_room(&self) -> bool {
        self.link.load().has_room()
    }

    /// The error for a new attempt, if the master cannot keep up with the attempts that it has.
    pub(crate) fn behind(&self) -> Option<MasterError> {
        let load = self.link.load();
        load.is_behind().then(|| {
            let error = MasterError::Behind(load.requests());
            self.link.report(&error);
            error
        })
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

    /// Sends a request and waits for the answer.
    ///
    /// Nearly every request finds an open connection, and is answered over it. What is needed otherwise is boxed, so that
    /// the future stays small: there is one for every master and request.
    async fn send(&self, request: &Request, permit: &SendPermit, patience: Duration) -> Answer {
        if let Some(command) = request.plain_delete(self.link.delete_by())
            && let Some(connection) = self.link.open_connection()
        {
            match self.send_on(connection, request, command, permit).await {
                // The user may not use the command, or a proxy does not know it. The script may be allowed.
                Next::Answer(Answer::Failed(error)) if is_unsupported(&error) => {
                    self.link.set_delete_by(DeleteBy::Script);
                }
                Next::Answer(answer) => return answer,
                Next::SendText | Next::Reconnect(_) => {}
            }
        }
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
            let connection = match self.connection(permit, patience).await {
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

    /// Waits for a connection, at most `patience`.
    async fn connection(
        &self,
        permit: &SendPermit,
        patience: Duration,
    ) -> Result<Connection, MasterError> {
        // Counted as if it were sent: there is room for so many when the master is connected.
        let _ticket = self.link.load().enter();
        let connection = async {
            match permit {
                SendPermit::Delete(..) => self.link.connection_for_delete(patience).await,
                SendPermit::ReadOnly | SendPermit::Write(..) => {
                    self.link.connection(patience).await
                }
            }
        };
        let connection = timeout(patience, connection).await;
        connection.unwrap_or(Err(MasterError::TimedOut(patience)))
    }

    /// Sends a command over a connection.
    async fn send_on(
        &self,
        connection: Connection,
        request: &Request,
        command: Arc<Command>,
        permit: &SendPermit,
    ) -> Next {
        let kind = request.kind();
        let urgency = match permit {
            SendPermit::Delete(..) => Urgency::Delete,
            SendPermit::Write(..) if kind.is_attempt() => Urgency::Attempt,
            SendPermit::ReadOnly | SendPermit::Write(..) => Urgency::Held,
        };
        let order = Order {
            command: Arc::clone(&command),
            kind: Some(kind),
            permit: permit.clone(),
            urgency,
        };
        let reply = self.link.exchange(connection, order).await;
        if matches!(reply, Err(SendError::Silent(_))) && urgency == Urgency::Delete {
            self.link.mark_unanswered(command);
        }
        Next::after(kind, reply)
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.address(), f)
    }
}
