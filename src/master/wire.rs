//! A way to hand requests to one master, in order.
//!
//! The order is what the lock stands on: a compare-and-delete must never overtake the SET that it undoes. So a
//! request is handed over for good by the first poll of [`Wire::send`], whatever becomes of the future after. That holds
//! only where the poll has no limited budget, as in jobs of the engine: else a task that has used up its budget would put
//! the hand-over off to a later poll.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, Cmd, RedisError, RedisResult, Value as Reply};
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
    unwanted: Unwanted,
    reply: oneshot::Sender<RedisResult<Reply>>,
}

/// What becomes of a request that waits for its turn when nobody waits for its reply any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwanted {
    /// It is not sent.
    Dropped,
    /// It is sent all the same: it undoes what was sent before.
    Sent,
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
    pub(crate) async fn send(self, command: Arc<Cmd>, unwanted: Unwanted) -> Result<Reply, Fault> {
        match self {
            Self::Own(connection) => request(connection, command).await,
            Self::Given(queue) => enqueue(queue, command, unwanted).await,
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
    unwanted: Unwanted,
) -> Result<Reply, Fault> {
    let (reply, answer) = oneshot::channel();
    let sent = queue.send(Envelope {
        command,
        unwanted,
        reply,
    });
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

/// Hands requests to a connection that the user gave us, and the replies back.
///
/// Requests with the same value go one after the other, each when the one before is answered: a connection that has no
/// room for more may let a later request pass an earlier one, and none may pass the SET that it undoes. A request that
/// was handed over is followed to its end. One that still waits for its turn when its sender is gone is not sent, unless
/// it deletes.
async fn deliver(connection: Arc<dyn Given>, mut requests: mpsc::UnboundedReceiver<Envelope>) {
    // What came after the request that is under way, for each value.
    let mut waiting: HashMap<Vec<u8>, VecDeque<Envelope>> = HashMap::new();
    let mut under_way = FuturesUnordered::new();
    let deliver = |Envelope { command, reply, .. }| {
        let answer = connection.request(Arc::clone(&command));
        unconstrained(async move {
            drop(reply.send(answer.await));
            command
        })
    };
    loop {
        tokio::select! {
            biased;
            Some(envelope) = requests.recv() => {
                match value(&envelope.command).map(|value| waiting.entry(value.to_vec())) {
                    Some(Entry::Occupied(mut same)) => {
                        // While the connection hangs a delete is repeated; only the last one is of use.
                        same.get_mut().retain(|earlier| !earlier.reply.is_closed());
                        same.get_mut().push_back(envelope);
                    }
                    Some(Entry::Vacant(first)) => {
                        first.insert(VecDeque::new());
                        under_way.push(deliver(envelope));
                    }
                    None => under_way.push(deliver(envelope)),
                }
            }
            Some(command) = under_way.next() => {
                let Some(value) = value(&command) else { continue };
                let Some(same) = waiting.get_mut(value) else { continue };
                same.retain(|next| next.unwanted == Unwanted::Sent || !next.reply.is_closed());
                match same.pop_front() {
                    Some(next) => under_way.push(deliver(next)),
                    None => drop(waiting.remove(value)),
                }
            }
            else => break,
        }
    }
}

/// The value that a request is about.
fn value(command: &Cmd) -> Option<&[u8]> {
    #[cfg(test)]
    if crate::simulation::Rule::DeletesNeverOvertake.is_broken() {
        return None;
    }
    let mut arguments = command.args_iter();
    let place = match arguments.next()? {
        // After the key.
        Arg::Simple(b"SET") => 1,
        // After the script, the number of keys, and the key.
        Arg::Simple(b"EVALSHA" | b"EVAL") => 3,
        _ => return None,
    };
    match arguments.nth(place)? {
        Arg::Simple(value) => Some(value),
        _ => None,
    }
}
