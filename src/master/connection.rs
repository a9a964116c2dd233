//! A way to send requests to one master, in order.
//!
//! The lock depends on the order: a compare-and-delete must never overtake the SET that it undoes. The first poll of
//! [`Wire::send`] queues a request. Dropping the future later does not change its place. The job that serves the queue
//! sends the requests in their order.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value as Reply};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::engine::Engine;

/// How many requests are written, and answered, together at most. Enough that the cost of each write is shared, and few
/// enough that no answer waits long for those that come with it.
const MAX_BATCH: usize = 64;

/// How long answers are waited for on a connection that nobody can send on any more.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// The queue to an open connection.
#[derive(Clone)]
pub(crate) struct Wire(mpsc::UnboundedSender<Envelope>);

/// Why a request has no reply that counts.
pub(crate) enum Fault {
    /// The connection had ended before the request was sent.
    Unsent {
        error: RedisError,
        /// Not where the connection runs on another thread, which may have sent the request and ended just now.
        is_certain: bool,
    },
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

/// Whether a queued request is still sent when its caller has dropped the future.
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

impl Fault {
    fn new(error: RedisError, was_sent: bool) -> Self {
        if !error.is_io_error() && !error.is_unrecoverable_error() {
            Self::Replied(error)
        } else if was_sent {
            Self::Broken(error)
        } else {
            let flavor = Handle::current().runtime_flavor();
            let is_certain = flavor == RuntimeFlavor::CurrentThread;
            Self::Unsent { error, is_certain }
        }
    }
}

impl Wire {
    /// A wire to a connection of our own.
    pub(crate) fn own(connection: MultiplexedConnection, engine: &Weak<Engine>) -> Self {
        Self::served_by(engine, |requests| serve(connection, requests))
    }

    /// A wire to a connection that the user gave us.
    pub(crate) fn given(connection: Arc<dyn Given>, engine: &Weak<Engine>) -> Self {
        Self::served_by(engine, |requests| deliver(connection, requests))
    }

    /// A job of the engine serves the queue, and not a task of its own: it gets its turn when all jobs that could go on
    /// have, so what they send is written together.
    fn served_by<J>(
        engine: &Weak<Engine>,
        job: impl FnOnce(mpsc::UnboundedReceiver<Envelope>) -> J,
    ) -> Self
    where
        J: Future<Output = ()> + Send + 'static,
    {
        let (queue, requests) = mpsc::unbounded_channel();
        if let Some(engine) = engine.upgrade() {
            engine.spawn(job(requests));
        }
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
            return Err(Fault::Unsent {
                error: closed(),
                is_certain: true,
            });
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

/// Writes what has come together as one pipeline, without waiting for earlier answers. Ends with the connection, or soon
/// after nobody can send on it any more: what was sent is written by then, and a master that hangs would keep it open.
async fn serve(connection: MultiplexedConnection, mut requests: mpsc::UnboundedReceiver<Envelope>) {
    let mut under_way = FuturesUnordered::new();
    let mut arrived = Vec::new();
    let serving = poll_fn(|cx| {
        loop {
            let taken = requests.poll_recv_many(cx, &mut arrived, MAX_BATCH);
            arrived.retain(|request| !request.is_unwanted());
            if arrived.len() > 1 {
                let batch = mem::take(&mut arrived);
                under_way.push(Either::Right(exchange_all(connection.clone(), batch)));
            } else if let Some(only) = arrived.pop() {
                under_way.push(Either::Left(exchange(connection.clone(), only)));
            }
            while let Poll::Ready(Some(is_broken)) = under_way.poll_next_unpin(cx) {
                if is_broken {
                    requests.close();
                }
            }
            match taken {
                Poll::Ready(0) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
                // There may be more.
                Poll::Ready(_) => {}
            }
        }
    });
    serving.await;
    let rest = under_way.for_each(async |_| {});
    let _ = timeout(LAST_ANSWERS, rest).await;
}

/// Sends a request and hands out the reply. Tells whether the connection has broken.
async fn exchange(mut connection: MultiplexedConnection, request: Envelope) -> bool {
    let reply = connection.req_packed_command(&request.command);
    let (reply, was_sent) = note_if_sent(reply).await;
    let reply = reply.and_then(Reply::extract_error);
    let reply = reply.map_err(|error| Fault::new(error, was_sent));
    let is_broken = matches!(reply, Err(Fault::Unsent { .. } | Fault::Broken(_)));
    request.answer(reply);
    is_broken
}

/// The same for several requests, in their order.
async fn exchange_all(mut connection: MultiplexedConnection, batch: Vec<Envelope>) -> bool {
    let mut pipeline = Pipeline::with_capacity(batch.len());
    for request in &batch {
        pipeline.add_command(Cmd::clone(&request.command));
    }
    let replies = connection.req_packed_commands(&pipeline, 0, batch.len());
    let (replies, was_sent) = note_if_sent(replies).await;
    let mut is_broken = false;
    match replies {
        Ok(replies) => {
            for (request, reply) in batch.into_iter().zip(replies) {
                request.answer(reply.extract_error().map_err(Fault::Replied));
            }
        }
        Err(error) => {
            for request in batch {
                let fault = Fault::new(error.clone(), was_sent);
                is_broken |= !matches!(fault, Fault::Replied(_));
                request.answer(Err(fault));
            }
        }
    }
    is_broken
}

/// Awaits a reply. Tells as well whether the request was sent: a connection that has ended fails at the first poll.
async fn note_if_sent<T>(mut reply: RedisFuture<'_, T>) -> (RedisResult<T>, bool) {
    match poll_fn(|cx| Poll::Ready(reply.poll_unpin(cx))).await {
        Poll::Ready(reply) => (reply, false),
        Poll::Pending => (reply.await, true),
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
                        let is_delete = envelope.unwanted == Unwanted::Sent;
                        let is_useless = |earlier: &Envelope| {
                            earlier.reply.is_closed() && (is_delete || earlier.is_unwanted())
                        };
                        same.get_mut().retain(|earlier| !is_useless(earlier));
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
