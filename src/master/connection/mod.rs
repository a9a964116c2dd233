//! A connection to one master: a queue of commands, and the job that sends them.
//!
//! The lock depends on the order: a compare-and-delete must never overtake the SET that it undoes. [`Connection::send`]
//! queues a command. One job of the engine takes the commands out of the queue and sends them. What it has sent keeps
//! its order. Of what waits, deletes and extensions are sent before attempts. A delete that passes the attempt of its
//! own lock in the queue does no harm: the attempt is then not permitted any more.

mod external;
mod own;
mod serve;

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value as Reply};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub(crate) use self::external::External;
pub(crate) use self::serve::Terms;
use super::load::{Load, Ticket};
use super::reply::effect;
use super::request::Kind;
use crate::engine::Engine;
use crate::permit::SendPermit;
use crate::protocol::value::Value;

/// The queue to an open connection. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Connection {
    serial: u64,
    queue: mpsc::UnboundedSender<Queued>,
    load: Arc<Load>,
}

/// A command, and the value of the lock that it is about.
pub(crate) struct Command {
    pub(crate) cmd: Cmd,
    /// `None` if the command is about no lock or about several. Such a command sets no key.
    pub(crate) value: Option<Value>,
}

/// Why a command has no reply that counts.
pub(crate) enum SendError {
    /// The connection had ended before the command was sent.
    Unsent {
        error: RedisError,
        /// `false` where the connection runs on another thread: that thread may have sent the command just before the
        /// connection ended.
        is_certain: bool,
    },
    /// The command was not sent: it is no longer permitted.
    NotPermitted,
    /// The master has sent nothing for this long. The command may have been executed, or may be executed later.
    Silent(Duration),
    /// The connection broke. The command may have been executed.
    Broken(RedisError),
    /// The master replied with an error. Or an external connection returned an error of its own.
    Replied(RedisError),
}

/// Which commands are sent first, where not all can be sent at once. Commands of one urgency, and deletes and
/// extensions together, keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// A check whether the master is alive, or what a new connection needs. Sent ahead of all others, whether or not
    /// there is room, also when its caller has dropped the future.
    Ping,
    /// A delete. Sent also when its caller has dropped the future, because it deletes what an earlier command has set.
    Delete,
    /// An extension, or a request that only reads.
    Held,
    /// A new attempt. Sent last: it must not keep a lock that is held from being extended or released.
    Attempt,
}

/// A command in the queue.
struct Queued {
    command: Arc<Command>,
    /// `None` if the command is no request of a lock.
    kind: Option<Kind>,
    permit: SendPermit,
    urgency: Urgency,
    queued: Instant,
    /// Whether the permit counts the command as sent.
    is_sent: bool,
    /// `None` once the caller has its reply, or its error.
    reply: Option<oneshot::Sender<Result<Reply, SendError>>>,
    /// Counts the command until it is answered or given up, or leaves the line.
    ticket: Option<Ticket>,
}

impl Command {
    /// A command that is about no lock.
    pub(crate) fn plain(cmd: Cmd) -> Arc<Self> {
        Arc::new(Self { cmd, value: None })
    }
}

/// A command to be sent, and the conditions.
pub(crate) struct Order {
    pub(crate) command: Arc<Command>,
    pub(crate) kind: Option<Kind>,
    pub(crate) permit: SendPermit,
    pub(crate) urgency: Urgency,
}

impl Order {
    /// A command that is about no lock, and is sent ahead of all others.
    pub(crate) fn plain(command: Arc<Command>) -> Self {
        Self {
            command,
            kind: None,
            permit: SendPermit::SetsNoKey,
            urgency: Urgency::Ping,
        }
    }
}

impl Connection {
    /// A connection that this crate has opened.
    pub(crate) fn own(
        connection: MultiplexedConnection,
        terms: Terms,
        engine: &Weak<Engine>,
    ) -> Self {
        Self::served_by(terms, engine, |terms, queue| {
            serve::serve(own::Own(connection), terms, queue)
        })
    }

    /// A connection that the user has handed in.
    pub(crate) fn external(
        connection: Arc<dyn External>,
        terms: Terms,
        engine: &Weak<Engine>,
    ) -> Self {
        Self::served_by(terms, engine, |terms, queue| {
            serve::serve(external::Turns::new(connection), terms, queue)
        })
    }

    /// Makes a job of the engine serve the queue.
    ///
    /// It is a job, and not a task of its own, because the engine polls a job only after all other jobs that can
    /// proceed. So the commands of these jobs are written together.
    fn served_by<J>(
        terms: Terms,
        engine: &Weak<Engine>,
        job: impl FnOnce(Terms, mpsc::UnboundedReceiver<Queued>) -> J,
    ) -> Self
    where
        J: Future<Output = ()> + Send + 'static,
    {
        // Unbounded: a full queue would make senders wait, and let a later command come in before an earlier one.
        let (queue, received) = mpsc::unbounded_channel();
        let (serial, load) = (terms.serial, Arc::clone(&terms.load));
        // Without an engine the receiver is dropped here, and every send fails.
        if let Some(engine) = engine.upgrade() {
            engine.spawn(job(terms, received));
        }
        Self {
            serial,
            queue,
            load,
        }
    }

    /// The number of this connection among all connections to its master, from 1. A later connection has a greater one.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether the connection has ended. It may have ended without that being noticed.
    pub(crate) fn is_broken(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues a command, and returns a future of the reply. When this is dropped, the outcome is unknown.
    pub(crate) fn send(&self, order: Order) -> Sent {
        let (reply, received) = oneshot::channel();
        let Order {
            command,
            kind,
            permit,
            urgency,
        } = order;
        let queued = Queued {
            command,
            kind,
            permit,
            urgency,
            queued: Instant::now(),
            is_sent: false,
            reply: Some(reply),
            ticket: Some(self.load.enter()),
        };
        let is_queued = self.queue.send(queued).is_ok();
        Sent {
            connection: self.serial,
            reply: is_queued.then_some(received),
        }
    }

    /// Sends a command that is about no lock, ahead of all others.
    pub(crate) fn send_plain(&self, command: Arc<Command>) -> Sent {
        self.send(Order::plain(command))
    }
}

/// A command in the queue, and a future of the reply.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Sent {
    /// The serial number of the connection.
    pub(crate) connection: u64,
    /// `None` if the connection had ended.
    reply: Option<oneshot::Receiver<Result<Reply, SendError>>>,
}

impl Future for Sent {
    type Output = Result<Reply, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(reply) = &mut self.reply else {
            return Poll::Ready(Err(SendError::unsent()));
        };
        let reply = ready!(reply.poll_unpin(cx));
        // The job that serves the queue was dropped. It may have sent the command before.
        Poll::Ready(reply.unwrap_or_else(|_| Err(SendError::Broken(closed()))))
    }
}

impl Queued {
    /// Whether the command is not to be sent: its caller has gone, and nobody else needs it.
    fn is_skipped(&self) -> bool {
        self.is_caller_gone() && matches!(self.urgency, Urgency::Held | Urgency::Attempt)
    }

    /// Whether the command would not be sent even if there were room.
    fn is_useless(&self) -> bool {
        self.is_skipped() || !self.permit.is_open()
    }

    /// Whether nobody waits for the reply.
    fn is_caller_gone(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Records what the command has done, and passes the reply on.
    fn answer(mut self, reply: Result<Reply, SendError>) {
        if let (Some(kind), true) = (self.kind, self.is_sent) {
            // Here and not where the caller waits: the caller may be gone.
            self.permit.record(effect(kind, &reply));
        }
        self.tell(reply);
    }

    /// Returns to the caller that the master has been silent for that long. The command may still be executed.
    ///
    /// Does nothing for a ping: its caller waits for a sign of life, however late.
    fn give_up(&mut self, silence: Duration) {
        if self.urgency != Urgency::Ping {
            self.tell(Err(SendError::Silent(silence)));
            self.ticket = None;
        }
    }

    fn tell(&mut self, reply: Result<Reply, SendError>) {
        if let Some(caller) = self.reply.take() {
            // Fails if the caller has gone.
            let _ = caller.send(reply);
        }
    }
}

impl SendError {
    /// Why a command on a connection of our own failed.
    fn new(error: RedisError, was_sent: bool) -> Self {
        if !error.is_io_error() && !error.is_unrecoverable_error() {
            Self::Replied(error)
        } else if was_sent {
            Self::Broken(error)
        } else {
            // The task that writes to the socket is another one. On a current-thread runtime it cannot have run between
            // the moment the command was handed over and the error. On any other runtime it may have written the
            // command.
            let flavor = Handle::current().runtime_flavor();
            let is_certain = flavor == RuntimeFlavor::CurrentThread;
            Self::Unsent { error, is_certain }
        }
    }

    /// The connection had ended before the command was taken out of the line.
    fn unsent() -> Self {
        Self::Unsent {
            error: closed(),
            is_certain: true,
        }
    }
}

fn closed() -> RedisError {
    let kind = std::io::ErrorKind::BrokenPipe;
    std::io::Error::new(kind, "the connection has been closed").into()
}
