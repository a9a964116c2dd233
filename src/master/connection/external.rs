//! Serves the queue to a connection that the user has handed in, an *external* connection.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::ConnectionLike;
use redis::{RedisResult, Value as Reply};
use tokio::sync::mpsc;

use super::{Command, Queued, SendError, WhenCallerGone};
use crate::protocol::value::Value;

/// A connection that the user has handed in, whatever its type.
pub(crate) trait External: Send + Sync {
    fn request(&self, command: Arc<Command>) -> BoxFuture<'static, RedisResult<Reply>>;
}

impl<C> External for C
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn request(&self, command: Arc<Command>) -> BoxFuture<'static, RedisResult<Reply>> {
        let mut connection = self.clone();
        Box::pin(async move { connection.req_packed_command(&command.cmd).await })
    }
}

/// Hands the queued commands to an external connection, and passes the replies on.
///
/// Commands with the same value are sent one at a time: the next one follows when the one before is answered. An external
/// connection without room for another command may let a later command pass an earlier one, and a delete must not pass the
/// SET that it undoes. A command that was handed over is always awaited, also when its caller has gone.
pub(super) async fn dispatch(
    connection: Arc<dyn External>,
    mut queue: mpsc::UnboundedReceiver<Queued>,
) {
    let mut turns = Turns::default();
    let mut in_flight = FuturesUnordered::new();
    let send = |queued: Queued| {
        let Queued { command, reply, .. } = queued;
        // The future of the request begins with its first poll. `FuturesUnordered` polls in the order of the pushes, so
        // the connection gets commands with different values in the order of the queue, too.
        let replied = connection.request(Arc::clone(&command));
        async move {
            let replied = replied.await.and_then(Reply::extract_error);
            // Fails if the caller has gone.
            let _ = reply.send(replied.map_err(SendError::Replied));
            command
        }
    };
    loop {
        let next = tokio::select! {
            // Without this the branches would be polled in random order, and a simulation would not repeat itself.
            biased;
            Some(queued) = queue.recv() => turns.arrive(queued),
            Some(command) = in_flight.next() => turns.answered(&command),
            else => break,
        };
        if let Some(next) = next {
            in_flight.push(send(next));
        }
    }
}

/// Whose turn it is to be sent: one command for each value at a time.
#[derive(Default)]
struct Turns {
    /// For each value with a command in flight: the commands that came after that one.
    waiting: HashMap<Value, VecDeque<Queued>>,
}

impl Turns {
    /// A command has arrived. Returns the command if it is to be sent now.
    fn arrive(&mut self, queued: Queued) -> Option<Queued> {
        let Some(value) = &queued.command.value else {
            return Some(queued);
        };
        match self.waiting.entry(value.clone()) {
            Entry::Vacant(first) => {
                // The entry marks that a command with this value is in flight.
                first.insert(VecDeque::new());
                Some(queued)
            }
            Entry::Occupied(mut same) => {
                // While the connection hangs, a delete is queued again and again. Only the last one is of use: its caller
                // waits, and it deletes what each earlier command may leave.
                let is_delete = queued.when_caller_gone == WhenCallerGone::Send;
                let is_useless = |earlier: &Queued| {
                    earlier.is_skipped() || (is_delete && earlier.reply.is_closed())
                };
                same.get_mut().retain(|earlier| !is_useless(earlier));
                same.get_mut().push_back(queued);
                None
            }
        }
    }

    /// A command has been answered. Returns the command that is to be sent next.
    fn answered(&mut self, command: &Arc<Command>) -> Option<Queued> {
        let value = command.value.as_ref()?;
        let same = self.waiting.get_mut(value)?;
        same.retain(|next| !next.is_skipped());
        let next = same.pop_front();
        if next.is_none() {
            // Each lock has a value of its own, so the map would grow with every lock.
            self.waiting.remove(value);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A queued command whose caller waits for as long as the receiver exists.
    fn queued(
        value: Option<&str>,
        when_caller_gone: WhenCallerGone,
    ) -> (Queued, oneshot::Receiver<Result<Reply, SendError>>) {
        let (reply, caller) = oneshot::channel();
        let value = value.map(|value| Value::handed_over(value.to_owned()));
        let cmd = redis::cmd("SET");
        let queued = Queued {
            command: Arc::new(Command { cmd, value }),
            when_caller_gone,
            reply,
        };
        (queued, caller)
    }

    #[test]
    fn commands_of_one_value_are_sent_one_at_a_time_and_others_at_once() {
        let mut turns = Turns::default();
        let (first, _first) = queued(Some("a"), WhenCallerGone::Skip);
        let first = turns.arrive(first).expect("nothing of this value before");
        let (second, _second) = queued(Some("a"), WhenCallerGone::Skip);
        assert!(turns.arrive(second).is_none());
        let (other, _other) = queued(Some("b"), WhenCallerGone::Skip);
        assert!(turns.arrive(other).is_some());
        for _ in 0..2 {
            let (plain, _plain) = queued(None, WhenCallerGone::Skip);
            assert!(turns.arrive(plain).is_some());
        }
        let second = turns.answered(&first.command).expect("it waited");
        assert!(turns.answered(&second.command).is_none());
        let (third, _third) = queued(Some("a"), WhenCallerGone::Skip);
        assert!(turns.arrive(third).is_some());
    }

    #[test]
    fn a_command_whose_caller_has_gone_is_skipped_unless_it_deletes() {
        let mut turns = Turns::default();
        let (first, _first) = queued(Some("a"), WhenCallerGone::Skip);
        let first = turns.arrive(first).expect("nothing of this value before");
        for when_caller_gone in [WhenCallerGone::Skip, WhenCallerGone::Send] {
            let (gone, caller) = queued(Some("a"), when_caller_gone);
            assert!(turns.arrive(gone).is_none());
            drop(caller);
        }
        let next = turns.answered(&first.command).expect("the delete waits");
        assert_eq!(next.when_caller_gone, WhenCallerGone::Send);
        assert!(turns.answered(&next.command).is_none());
    }

    #[test]
    fn a_delete_replaces_no_command_whose_caller_waits_and_only_a_delete_replaces_it() {
        let mut turns = Turns::default();
        let (first, _first) = queued(Some("a"), WhenCallerGone::Skip);
        let first = turns.arrive(first).expect("nothing of this value before");
        let (waits, _waits) = queued(Some("a"), WhenCallerGone::Skip);
        let (delete, gone) = queued(Some("a"), WhenCallerGone::Send);
        drop(gone);
        let (last, _last) = queued(Some("a"), WhenCallerGone::Skip);
        let expected = [&waits, &delete, &last].map(|queued| queued.when_caller_gone);
        for queued in [waits, delete, last] {
            assert!(turns.arrive(queued).is_none());
        }
        let mut before = first.command;
        for when_caller_gone in expected {
            let next = turns.answered(&before).expect("it waits");
            assert_eq!(next.when_caller_gone, when_caller_gone);
            before = next.command;
        }
        assert!(turns.answered(&before).is_none());
    }

    #[test]
    fn the_last_delete_replaces_those_whose_callers_have_gone() {
        let mut turns = Turns::default();
        let (first, _first) = queued(Some("a"), WhenCallerGone::Skip);
        let first = turns.arrive(first).expect("nothing of this value before");
        for _ in 0..3 {
            let (delete, _gone) = queued(Some("a"), WhenCallerGone::Send);
            assert!(turns.arrive(delete).is_none());
        }
        let delete = turns.answered(&first.command).expect("the last delete");
        assert!(turns.answered(&delete.command).is_none());
    }
}
