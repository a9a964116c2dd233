//! A request on its way to one master, until there is an answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::Master;
use super::connection::{Command, Connection, Order, SendError, Sent, Urgency};
use super::reply::{Answer, Next, is_unsupported};
use super::request::{DeleteBy, Request};
use crate::permit::SendPermit;
use crate::vote::MasterError;

/// A request, and a future of the answer.
///
/// Nearly every request finds an open connection, and is answered over it. So this is a small future without an
/// allocation: there is one for each master and request. What is needed otherwise is boxed.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Asked {
    asking: Asking,
    progress: Progress,
}

/// What is asked for.
#[derive(Clone)]
struct Asking {
    master: Master,
    request: Request,
    permit: SendPermit,
    /// How long the request waits for a connection.
    patience: Duration,
}

enum Progress {
    /// A plain delete, for which a script may have to be sent instead.
    PlainDelete(Sent),
    /// On a connection that was open when the request was made.
    Sent(Sent),
    /// Everything that may have to wait for a connection.
    Other(BoxFuture<'static, Answer>),
}

impl Master {
    /// Sends a request, if it is still permitted when there is a connection, and returns a future of the answer. If the
    /// connection is open, the request is queued when this returns.
    ///
    /// `patience` is how long the request waits for a connection. Once it is queued, it has no limit of its own: it
    /// ends with an answer, with the silence of the master, or with the end of the connection.
    pub(crate) fn ask(&self, request: &Request, permit: SendPermit, patience: Duration) -> Asked {
        let asking = Asking {
            master: self.clone(),
            request: request.clone(),
            permit,
            patience,
        };
        Asked {
            progress: asking.begin(),
            asking,
        }
    }
}

impl Future for Asked {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let Self { asking, progress } = &mut *self;
        loop {
            let (sent, is_plain_delete) = match progress {
                Progress::PlainDelete(sent) => (sent, true),
                Progress::Sent(sent) => (sent, false),
                Progress::Other(answer) => {
                    let answer = ready!(answer.poll_unpin(cx));
                    asking.report(&answer);
                    return Poll::Ready(answer);
                }
            };
            let reply = ready!(sent.poll_unpin(cx));
            let command = match asking.after(sent.connection, reply) {
                // The user may not use the command, or a proxy does not know it. The script may be allowed.
                Next::Answer(Answer::Failed(error))
                    if is_plain_delete && is_unsupported(&error) =>
                {
                    asking.master.link.set_delete_by(DeleteBy::Script);
                    asking.request.command()
                }
                Next::Answer(answer) => {
                    asking.report(&answer);
                    return Poll::Ready(answer);
                }
                Next::SendText => asking.request.command_with_text(),
                Next::Reconnect(_) => asking.request.command(),
            };
            *progress = Progress::Other(asking.clone().send_once_connected(command).boxed());
        }
    }
}

impl Asking {
    /// Queues the request on an open connection. Where there is none, waits for one.
    fn begin(&self) -> Progress {
        let link = &self.master.link;
        let Some(connection) = link.open_connection() else {
            let waiting = self.clone().send_once_connected(self.request.command());
            return Progress::Other(waiting.boxed());
        };
        match self.request.plain_delete(link.delete_by()) {
            Some(command) => Progress::PlainDelete(self.send(&connection, command)),
            None => Progress::Sent(self.send(&connection, self.request.command())),
        }
    }

    /// Waits for a connection and sends. Sends once more with the text of the script, and once more over another
    /// connection, if need be.
    async fn send_once_connected(self, mut command: Arc<Command>) -> Answer {
        // Each way out is tried once, so a master that always replies the same cannot keep this loop busy.
        let (mut may_reconnect, mut is_text) = (true, false);
        loop {
            let connection = match self.connection().await {
                Ok(connection) => connection,
                // Nothing was sent. This says nothing of requests that were sent before, so nothing is recorded.
                Err(error) => return Answer::Failed(error),
            };
            let reply = self.send(&connection, Arc::clone(&command)).await;
            match self.after(connection.serial(), reply) {
                Next::Answer(answer) => return answer,
                Next::Reconnect(_) if may_reconnect => may_reconnect = false,
                Next::Reconnect(error) => return Answer::Failed(error),
                Next::SendText if !is_text => {
                    is_text = true;
                    command = self.request.command_with_text();
                }
                Next::SendText => {
                    let error = MasterError::Protocol("NOSCRIPT to the text of a script".into());
                    return Answer::Failed(error);
                }
            }
        }
    }

    /// Waits for a connection, at most for the patience.
    async fn connection(&self) -> Result<Connection, MasterError> {
        let Self {
            master, patience, ..
        } = self;
        // Counted as if it were sent, so that no more attempts wait for a connection than can be sent over it at once.
        let _ticket = master.link.load().enter();
        let connection = async {
            match self.permit {
                SendPermit::Delete(..) => master.link.connection_for_delete(*patience).await,
                SendPermit::SetsNoKey | SendPermit::Write(..) => {
                    master.link.connection(*patience).await
                }
            }
        };
        let connection = timeout(*patience, connection).await;
        connection.unwrap_or(Err(MasterError::TimedOut(*patience)))
    }

    fn send(&self, connection: &Connection, command: Arc<Command>) -> Sent {
        let kind = self.request.kind();
        let urgency = match self.permit {
            SendPermit::Delete(..) => Urgency::Delete,
            SendPermit::Write(..) if kind.is_attempt() => Urgency::Attempt,
            SendPermit::SetsNoKey | SendPermit::Write(..) => Urgency::Held,
        };
        let order = Order {
            command,
            kind: Some(kind),
            permit: self.permit.clone(),
            urgency,
        };
        self.master.link.send(connection, order)
    }

    /// What follows when the request has a reply, or none.
    fn after(&self, connection: u64, reply: Result<redis::Value, SendError>) -> Next {
        self.master.link.received(connection, &reply);
        if let SendPermit::Delete(..) = self.permit {
            self.master.link.deleted(self.request.command(), &reply);
        }
        Next::after(self.request.kind(), reply)
    }

    fn report(&self, answer: &Answer) {
        let link = &self.master.link;
        match answer {
            Answer::Failed(error) => link.report(error),
            Answer::Granted(_) | Answer::Refused | Answer::Recreated => link.report_answer(),
            Answer::NotNeeded | Answer::HoldsNothing => {}
        }
    }
}
