//! A connection to one master: a queue of commands that are sent in their order.
//!
//! The lock depends on the order: a compare-and-delete must never overtake the SET that it undoes. The first poll of
//! [`Connection::send`] queues a command. Dropping the future later does not change the place of the command. One job of
//! the engine takes the commands from the queue and sends them in their order.

mod external;
mod own;

use std::sync::{Arc, Weak};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value as Reply};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::external::External;
use crate::engine::Engine;
use crate::protocol::value::Value;

/// The queue to an open connection. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Connection {
    serial: u64,
    queue: mpsc::UnboundedSender<Queued>,
}

/// A command, and the value of the lock that it is about.
pub(crate) struct Command {
    pub(crate) cmd: Cmd,
    /// `None` if the command writes no key.
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
    /// The connection broke. The command may have been executed.
    Broken(RedisError),
    /// The master replied with an error. Or an external connection returned an error of its own.
    Replied(RedisError),
}

/// Whether a queued command is still sent when its caller has dropped the future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenCallerGone {
    /// The command is not sent.
    Skip,
    /// The command is sent: it deletes what an earlier command has set.
    Send,
}

/// A command in the queue.
struct Queued {
    command: Arc<Command>,
    when_caller_gone: WhenCallerGone,
    reply: oneshot::Sender<Result<Reply, SendError>>,
}

impl Command {
    /// A command that is about no lock.
    pub(crate) fn plain(cmd: Cmd) -> Arc<Self> {
        Arc::new(Self { cmd, value: None })
    }
}

impl Connection {
    /// A connection that this crate has opened.
    pub(crate) fn own(
        connection: MultiplexedConnection,
        serial: u64,
        engine: &Weak<Engine>,
    ) -> Self {
        Self::served_by(serial, engine, |queue| own::serve(connection, queue))
    }

    /// A connection that the user has handed in.
    pub(crate) fn external(
        connection: Arc<dyn External>,
        serial: u64,
        engine: &Weak<Engine>,
    ) -> Self {
        Self::served_by(serial, engine, |queue| {
            external::dispatch(connection, queue)
        })
    }

    /// Makes a job of the engine serve the queue.
    ///
    /// It is a job, and not a task of its own, because the engine polls a job only after all other jobs that can
    /// proceed. So the commands of these jobs are written together.
    fn served_by<J>(
        serial: u64,
        engine: &Weak<Engine>,
        job: impl FnOnce(mpsc::UnboundedReceiver<Queued>) -> J,
    ) -> Self
    where
        J: Future<Output = ()> + Send + 'static,
    {
        // Unbounded: a full queue would make senders wait, and let a later command come in before an earlier one.
        let (queue, received) = mpsc::unbounded_channel();
        // Without an engine the receiver is dropped here, and every send fails.
        if let Some(engine) = engine.upgrade() {
            engine.spawn(job(received));
        }
        Self { serial, queue }
    }

    /// The number of this connection among all connections to its master, from 1. A later connection has a greater one.
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// Sends a command and waits for the reply.
    ///
    /// The first poll queues the command. When the future is dropped after that, the outcome is unknown.
    pub(crate) async fn send(
        &self,
        command: Arc<Command>,
        when_caller_gone: WhenCallerGone,
    ) -> Result<Reply, SendError> {
        let (reply, received) = oneshot::channel();
        let queued = Queued {
            command,
            when_caller_gone,
            reply,
        };
        if self.queue.send(queued).is_err() {
            return Err(SendError::Unsent {
                error: closed(),
                // The command has never been in the queue.
                is_certain: true,
            });
        }
        let reply = received.await;
        // The job that serves the queue was dropped. It may have sent the command before.
        reply.unwrap_or_else(|_| Err(SendError::Broken(closed())))
    }
}

impl Queued {
    /// Whether the command is left out: its caller has gone, and it deletes nothing.
    fn is_skipped(&self) -> bool {
        // The caller may go just after this. Then the command is sent, and the delete that is queued behind it follows.
        self.when_caller_gone == WhenCallerGone::Skip && self.reply.is_closed()
    }

    fn answer(self, reply: Result<Reply, SendError>) {
        // Fails if the caller has gone.
        let _ = self.reply.send(reply);
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
            // the moment the command was handed over and the error. On any other runtime it may have written the command.
            let flavor = Handle::current().runtime_flavor();
            let is_certain = flavor == RuntimeFlavor::CurrentThread;
            Self::Unsent { error, is_certain }
        }
    }

    fn is_replied(&self) -> bool {
        matches!(self, Self::Replied(_))
    }
}

fn closed() -> RedisError {
    let kind = std::io::ErrorKind::BrokenPipe;
    std::io::Error::new(kind, "the connection has been closed").into()
}
