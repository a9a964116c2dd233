//! Sends commands over a connection that this crate has opened.

use std::future::poll_fn;
use std::iter;
use std::task::Poll;

use futures::FutureExt;
use futures::future::Either;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, RedisFuture, RedisResult, Value as Reply};

use super::serve::Transport;
use super::{Command, Queued, SendError};

/// A connection that this crate has opened.
pub(super) struct Own(pub(super) MultiplexedConnection);

impl Transport for Own {
    /// Enough commands to share the cost of a write, and so few that no reply waits long for the others of its batch.
    const MAX_BATCH: usize = 64;

    fn exchange(
        &self,
        batch: &[Queued],
    ) -> impl Future<Output = Vec<Result<Reply, SendError>>> + Send + use<> {
        let connection = self.0.clone();
        if let [only] = batch {
            return Either::Left(send(connection, std::sync::Arc::clone(&only.command)));
        }
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for queued in batch {
            pipeline.add_command(queued.command.cmd.clone());
        }
        Either::Right(send_all(connection, pipeline, batch.len()))
    }

    fn next(&mut self, queued: Queued) -> Option<Queued> {
        Some(queued)
    }

    fn after(&mut self, _: &Queued) -> Option<Queued> {
        None
    }

    fn waiting(&mut self) -> impl Iterator<Item = &mut Queued> {
        iter::empty()
    }
}

async fn send(
    mut connection: MultiplexedConnection,
    command: std::sync::Arc<Command>,
) -> Vec<Result<Reply, SendError>> {
    let (reply, was_sent) = note_if_sent(connection.req_packed_command(&command.cmd)).await;
    let reply = reply.and_then(Reply::extract_error);
    vec![reply.map_err(|error| SendError::new(error, was_sent))]
}

async fn send_all(
    mut connection: MultiplexedConnection,
    pipeline: Pipeline,
    count: usize,
) -> Vec<Result<Reply, SendError>> {
    let replies = connection.req_packed_commands(&pipeline, 0, count);
    let (replies, was_sent) = note_if_sent(replies).await;
    match replies {
        Ok(replies) => {
            let replies = replies.into_iter().map(Reply::extract_error);
            replies
                .map(|reply| reply.map_err(SendError::Replied))
                .collect()
        }
        // The pipeline fails as a whole: any of its commands may have been executed.
        Err(error) => {
            let error = || Err(SendError::new(error.clone(), was_sent));
            (0..count).map(|_| error()).collect()
        }
    }
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
