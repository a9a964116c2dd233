//! Serves the queue to a connection that this crate has opened.

use std::future::poll_fn;
use std::mem;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::Either;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, RedisFuture, RedisResult, Value as Reply};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Queued, SendError};

/// How many commands are written together at most, and answered together. So many share the cost of a write, and no
/// reply waits long for the others of its batch.
const MAX_BATCH: usize = 64;

/// How long the job waits for replies after every handle to the connection is gone. A master that hangs would keep the
/// connection open for ever.
const LAST_REPLIES: Duration = Duration::from_secs(10);

/// Sends the queued commands. Writes those that have arrived together as one pipeline, without waiting for earlier
/// replies.
///
/// Returns when the connection has broken, or at most [`LAST_REPLIES`] after every handle to the connection is gone.
pub(super) async fn serve(
    connection: MultiplexedConnection,
    mut queue: mpsc::UnboundedReceiver<Queued>,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut arrived = Vec::new();
    let serving = poll_fn(|cx| {
        loop {
            let received = queue.poll_recv_many(cx, &mut arrived, MAX_BATCH);
            // Just before the commands are sent, so that few are sent for callers that have gone.
            arrived.retain(|queued| !queued.is_skipped());
            if arrived.len() > 1 {
                let batch = mem::take(&mut arrived);
                in_flight.push(Either::Right(exchange_all(connection.clone(), batch)));
            } else if let Some(only) = arrived.pop() {
                in_flight.push(Either::Left(exchange(connection.clone(), only)));
            }
            // The first poll of an exchange hands its commands to the connection, so the order of the exchanges is the
            // order of the queue: `FuturesUnordered` polls new futures in the order in which they were pushed.
            while let Poll::Ready(Some(is_broken)) = in_flight.poll_next_unpin(cx) {
                if is_broken {
                    // From here on `send` fails at once, and its caller knows that nothing was sent.
                    queue.close();
                }
            }
            match received {
                Poll::Ready(0) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
                // There may be more.
                Poll::Ready(_) => {}
            }
        }
    });
    serving.await;
    // Nothing more can be queued. What was sent is awaited, because its callers may still wait.
    let rest = in_flight.for_each(async |_| {});
    let _ = timeout(LAST_REPLIES, rest).await;
}

/// Sends a command and passes the reply on. Returns whether the connection has broken.
async fn exchange(mut connection: MultiplexedConnection, queued: Queued) -> bool {
    let reply = connection.req_packed_command(&queued.command.cmd);
    let (reply, was_sent) = note_if_sent(reply).await;
    let reply = reply.and_then(Reply::extract_error);
    let reply = reply.map_err(|error| SendError::new(error, was_sent));
    let is_broken = reply.as_ref().is_err_and(|error| !error.is_replied());
    queued.answer(reply);
    is_broken
}

/// Sends several commands in their order and passes the replies on. Returns whether the connection has broken.
async fn exchange_all(mut connection: MultiplexedConnection, batch: Vec<Queued>) -> bool {
    let mut pipeline = Pipeline::with_capacity(batch.len());
    for queued in &batch {
        pipeline.add_command(queued.command.cmd.clone());
    }
    let replies = connection.req_packed_commands(&pipeline, 0, batch.len());
    let (replies, was_sent) = note_if_sent(replies).await;
    let mut is_broken = false;
    match replies {
        Ok(replies) => {
            for (queued, reply) in batch.into_iter().zip(replies) {
                queued.answer(reply.extract_error().map_err(SendError::Replied));
            }
        }
        // The pipeline fails as a whole: any of its commands may have been executed.
        Err(error) => {
            for queued in batch {
                let error = SendError::new(error.clone(), was_sent);
                is_broken |= !error.is_replied();
                queued.answer(Err(error));
            }
        }
    }
    is_broken
}

/// Awaits a reply. Returns as well whether the command was sent.
///
/// The first poll hands the command to the connection. A connection that has ended before fails at that poll.
async fn note_if_sent<T>(mut reply: RedisFuture<'_, T>) -> (RedisResult<T>, bool) {
    match poll_fn(|cx| Poll::Ready(reply.poll_unpin(cx))).await {
        Poll::Ready(reply) => (reply, false),
        Poll::Pending => (reply.await, true),
    }
}
