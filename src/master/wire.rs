//! A way to send requests to one master, in order.
//!
//! The order is what the lock stands on: a compare-and-delete must never overtake the SET that it undoes. So a request
//! is queued for good by the first poll of [`Wire::send`], whatever becomes of the future after, and the task that
//! serves the queue keeps its order.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisResult, Value as Reply};
use tokio::sync::{mpsc, oneshot};
use tokio::task::coop::unconstrained;

/// How many requests are written, and answered, together at most. Enough that the cost of each write is shared, and few
/// enough that no answer waits long for those that come with it.
const MAX_BATCH: usize = 64;

/// The queue to an open connection.
#[derive(Clone)]
pub(crate) struct Wire(mpsc::UnboundedSender<Envelope>);

/// Why a request has no reply that counts.
pub(crate) enum Fault {
    /// The connection had ended before the request was sent.
    Unsent(RedisError),
    /// The connection is of no use any more. The request may have been executed.
    Broken(RedisError),
    /// The master, or a connection that the user gave us, replied with an error.
    Replied(RedisError),
}

/// A request in the queue.
struct Envelope {
    command: Arc<Cmd>,
    unwanted: Unwanted,
    reply: oneshot::Sender<Result<Reply, Fault>>,
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
    /// A wire to a connection of our own, served by a task of the current runtime.
    pub(crate) fn own(connection: MultiplexedConnection) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        tokio::spawn(unconstrained(serve(connection, requests)));
        Self(queue)
    }

    /// A wire to a connection that the user gave us, served by a task of the current runtime.
    pub(crate) fn given(connection: Arc<dyn Given>) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        tokio::spawn(unconstrained(deliver(connection, requests)));
        Self(queue)
    }

    /// Sends a command and waits for the reply. The first poll queues it; dropping the future after that leaves the
    /// outcome unknown.
    pub(crate) async fn send(&self, command: Arc<Cmd>, unwanted: Unwanted) -> Result<Reply, Fault> {
        let (reply, answer) = oneshot::channel();
        let queued = self.0.send(Envelope {
            command,
            unwanted,
            reply,
        });
        if queued.is_err() {
            return Err(Fault::Unsent(closed()));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Fault::Broken(closed())))
    }
}

impl Envelope {
    /// Whether nobody would miss it if it were not sent.
    fn is_unwanted(&self) -> bool {
        self.unwanted == Unwanted::Dropped && self.reply.is_closed()
    }

    fn answer(self, reply: Result<Reply, Fault>) {
        // Whoever has sent it may be gone.
        let _ = self.reply.send(reply);
    }
}

fn closed() -> RedisError {
    let kind = std::io::ErrorKind::BrokenPipe;
    std::io::Error::new(kind, "the connection has been closed").into()
}

/// Writes what has come together as one pipeline, without waiting for earlier answers. Ends with the connection.
async fn serve(connection: MultiplexedConnection, mut requests: mpsc::UnboundedReceiver<Envelope>) {
    let mut under_way = FuturesUnordered::new();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            1.. = requests.recv_many(&mut batch, MAX_BATCH) => {
                batch.retain(|request| !request.is_unwanted());
                under_way.push(exchange(connection.clone(), std::mem::take(&mut batch)));
            }
            Some(is_broken) = under_way.next() => {
                if is_broken {
                    requests.close();
                }
            }
            else => break,
        }
    }
}

/// Sends requests and hands out the replies. Tells whether the connection has broken.
async fn exchange(connection: MultiplexedConnection, batch: Vec<Envelope>) -> bool {
    let commands = batch.iter().map(|request| Arc::clone(&request.command));
    let mut replies = pin!(request_all(connection, commands.collect()));
    let first_poll = poll_fn(|cx| Poll::Ready(replies.as_mut().poll(cx))).await;
    let fault = match first_poll {
        // Not even queued behind the connection.
        Poll::Ready(_) => Fault::Unsent,
        Poll::Pending => Fault::Broken,
    };
    let replies = match first_poll {
        Poll::Ready(replies) => replies,
        Poll::Pending => replies.await,
    };
    match replies {
        Ok(replies) => {
            for (request, reply) in batch.into_iter().zip(replies) {
                request.answer(reply.extract_error().map_err(Fault::Replied));
            }
            false
        }
        Err(error) => {
            let is_broken = error.is_io_error() || error.is_unrecoverable_error();
            for request in batch {
                let error = error.clone();
                request.answer(Err(if is_broken {
                    fault(error)
                } else {
                    Fault::Replied(error)
                }));
            }
            is_broken
        }
    }
}

async fn request_all(
    mut connection: MultiplexedConnection,
    commands: Vec<Arc<Cmd>>,
) -> RedisResult<Vec<Reply>> {
    match &commands[..] {
        [] => Ok(Vec::new()),
        [command] => {
            let reply = connection.req_packed_command(command).await;
            reply.map(|reply| vec![reply])
        }
        several => {
            let mut pipeline = Pipeline::with_capacity(several.len());
            for command in several {
                pipeline.add_command(Cmd::clone(command));
            }
            let replies = connection.req_packed_commands(&pipeline, 0, several.len());
            replies.await
        }
    }
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
        async move {
            let answer = answer.await.and_then(Reply::extract_error);
            drop(reply.send(answer.map_err(Fault::Replied)));
            command
        }
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
                same.retain(|next| !next.is_unwanted());
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
