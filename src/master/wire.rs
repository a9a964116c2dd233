//! A way to hand requests to one master, in order.
//!
//! The order is what the lock stands on: a compare-and-delete must never overtake the SET that it undoes. So a
//! request is handed over for good by the first poll of [`Wire::send`], whatever becomes of the future after.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, RedisResult, Value as Reply};
use tokio::sync::{mpsc, oneshot};
use tokio::task::coop::unconstrained;

/// An open connection.
#[derive(Clone)]
pub(crate) enum Wire {
    /// A connection of our own. Its queue has no bound, so nothing ever waits for room in it.
    Own(MultiplexedConnection),
    /// The queue to a connection that the user gave us.
    Given(mpsc::UnboundedSender<Envelope>),
}

/// Why a request has no reply that counts.
pub(crate) enum Fault {
    /// The wire is of no use any more. The request may have been executed.
    Broken(RedisError),
    /// The master, or a connection that the user gave us, replied with an error.
    Replied(RedisError),
}

/// A request on its way to a connection that the user gave us.
pub(crate) struct Envelope {
    command: Arc<Cmd>,
    reply: oneshot::Sender<RedisResult<Reply>>,
}

/// A connection that the user gave us, whatever its type.
pub(crate) trait Given: Send + Sync {
    fn request(&self, command: Arc<Cmd>) -> BoxFuture<'static, RedisResult<Reply>>;
}

impl<C> Given for C
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn request(&self, command: Arc<Cmd>) -> BoxFuture<'static, RedisResult<Reply>> {
        let mut connection = self.clone();
        Box::pin(async move { connection.req_packed_command(&command).await })
    }
}

impl Wire {
    /// A wire to a connection that the user gave us, served by a task of the current runtime.
    pub(crate) fn to(connection: Arc<dyn Given>) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        tokio::spawn(deliver(connection, requests));
        Self::Given(queue)
    }

    /// Sends a command and waits for the reply. The first poll hands it over; dropping the future after that
    /// leaves the outcome unknown.
    pub(crate) async fn send(self, command: Arc<Cmd>) -> Result<Reply, Fault> {
        // Unconstrained, or a task that has used up its budget would put the hand-over off to a later poll.
        match self {
            Self::Own(connection) => unconstrained(request(connection, command)).await,
            Self::Given(queue) => unconstrained(enqueue(queue, command)).await,
        }
    }
}

async fn request(mut connection: MultiplexedConnection, command: Arc<Cmd>) -> Result<Reply, Fault> {
    let reply = connection.send_packed_command(&command).await;
    reply.and_then(Reply::extract_error).map_err(|error| {
        if error.is_io_error() || error.is_unrecoverable_error() {
            Fault::Broken(error)
        } else {
            Fault::Replied(error)
        }
    })
}

async fn enqueue(
    queue: mpsc::UnboundedSender<Envelope>,
    command: Arc<Cmd>,
) -> Result<Reply, Fault> {
    let (reply, answer) = oneshot::channel();
    let sent = queue.send(Envelope { command, reply });
    let answer = match sent {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    let reply = answer.ok_or_else(|| Fault::Broken(runtime_gone()))?;
    reply.and_then(Reply::extract_error).map_err(Fault::Replied)
}

fn runtime_gone() -> RedisError {
    std::io::Error::new(
        std::io::ErrorKind::BrokenPipe,
        "the runtime that served this connection has shut down",
    )
    .into()
}

/// Hands requests to a connection that the user gave us, in the order in which they came, and the replies back.
/// Every request is followed to its end, whether or not somebody still waits for it.
async fn deliver(connection: Arc<dyn Given>, mut requests: mpsc::UnboundedReceiver<Envelope>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            envelope = requests.recv() => match envelope {
                Some(Envelope { command, reply }) => {
                    let answer = connection.request(command);
                    under_way.push(unconstrained(async move { drop(reply.send(answer.await)) }));
                }
                None => break,
            },
            Some(()) = under_way.next() => {}
        }
    }
    while under_way.next().await.is_some() {}
}
