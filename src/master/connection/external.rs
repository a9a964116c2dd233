//! Serves the queue to a connection that the user has handed in, an *external* connection.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use futures::future::BoxFuture;
use redis::aio::ConnectionLike;
use redis::{RedisResult, Value as Reply};

use super::serve::Transport;
use super::{Command, Queued, SendError, Urgency};
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

/// Sends commands over an external connection: for each value one at a time.
///
/// An external connection without room for another command may let a later command pass an earlier one, and a delete must
/// not pass the SET that it undoes. So the next command of a value follows when the one before is answered.
pub(super) struct Turns {
    connection: Arc<dyn External>,
    /// The values with a command in flight.
    in_flight: HashSet<Value>,
    /// For some of them: the commands that came after the one in flight. Sorted, so that a simulation repeats itself.
    waiting: BTreeMap<Value, VecDeque<Queued>>,
}

impl Turns {
    pub(super) fn new(connection: Arc<dyn External>) -> Self {
        Self {
            connection,
            in_flight: HashSet::new(),
            waiting: BTreeMap::new(),
        }
    }
}

impl Transport for Turns {
    /// It may not take pipelines.
    const MAX_BATCH: usize = 1;

    fn exchange(
        &self,
        batch: &[Queued],
    ) -> impl Future<Output = Vec<Result<Reply, SendError>>> + Send + use<> {
        let request = |queued: &Queued| self.connection.request(Arc::clone(&queued.command));
        let reply = batch.first().map(request);
        async move {
            let Some(reply) = reply else {
                return Vec::new();
            };
            let reply = reply.await.and_then(Reply::extract_error);
            vec![reply.map_err(SendError::Replied)]
        }
    }

    fn next(&mut self, queued: Queued) -> Option<Queued> {
        let Some(value) = &queued.command.value else {
            return Some(queued);
        };
        if self.in_flight.insert(value.clone()) {
            return Some(queued);
        }
        let same = self.waiting.entry(value.clone()).or_default();
        // While the connection hangs, a delete is queued again and again. Only the last one is of use: its caller
        // waits, and it deletes what each earlier command may leave.
        let is_delete = queued.urgency == Urgency::Delete;
        let is_useless =
            |earlier: &Queued| earlier.is_skipped() || is_delete && earlier.is_caller_gone();
        same.retain(|earlier| !is_useless(earlier));
        same.push_back(queued);
        None
    }

    fn after(&mut self, queued: &Queued) -> Option<Queued> {
        let value = queued.command.value.as_ref()?;
        let mut same = self.waiting.remove(value).unwrap_or_default();
        same.retain(|next| !next.is_skipped());
        let next = same.pop_front();
        if next.is_none() {
            self.in_flight.remove(value);
        } else if !same.is_empty() {
            self.waiting.insert(value.clone(), same);
        }
        next
    }

    fn waiting(&mut self) -> impl Iterator<Item = &mut Queued> {
        self.waiting.values_mut().flatten()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::permit::SendPermit;
    use crate::testing::Masters;

    /// A queued command whose caller waits for as long as the receiver exists.
    fn queued(
        value: Option<&str>,
        urgency: Urgency,
    ) -> (Queued, oneshot::Receiver<Result<Reply, SendError>>) {
        let (reply, caller) = oneshot::channel();
        let value = value.map(|value| Value::handed_over(value.to_owned()));
        let cmd = redis::cmd("SET");
        let queued = Queued {
            command: Arc::new(Command { cmd, value }),
            kind: None,
            permit: SendPermit::SetsNoKey,
            urgency,
            queued: tokio::time::Instant::now(),
            is_sent: false,
            reply: Some(reply),
            ticket: None,
        };
        (queued, caller)
    }

    fn turns() -> Turns {
        Turns::new(Arc::new(Masters::new(1)[0].connect()))
    }

    #[test]
    fn commands_of_one_value_are_sent_one_at_a_time_and_others_at_once() {
        let mut turns = turns();
        let (first, _first) = queued(Some("a"), Urgency::Held);
        let first = turns.next(first).expect("nothing of this value before");
        let (second, _second) = queued(Some("a"), Urgency::Held);
        assert!(turns.next(second).is_none());
        let (other, _other) = queued(Some("b"), Urgency::Held);
        assert!(turns.next(other).is_some());
        for _ in 0..2 {
            let (plain, _plain) = queued(None, Urgency::Held);
            assert!(turns.next(plain).is_some());
        }
        let second = turns.after(&first).expect("it waited");
        assert!(turns.after(&second).is_none());
        let (third, _third) = queued(Some("a"), Urgency::Held);
        assert!(turns.next(third).is_some());
    }

    #[test]
    fn a_command_whose_caller_has_gone_is_skipped_unless_it_deletes() {
        let mut turns = turns();
        let (first, _first) = queued(Some("a"), Urgency::Held);
        let first = turns.next(first).expect("nothing of this value before");
        for urgency in [Urgency::Held, Urgency::Delete] {
            let (gone, caller) = queued(Some("a"), urgency);
            assert!(turns.next(gone).is_none());
            drop(caller);
        }
        let next = turns.after(&first).expect("the delete waits");
        assert_eq!(next.urgency, Urgency::Delete);
        assert!(turns.after(&next).is_none());
    }

    #[test]
    fn a_delete_replaces_no_command_whose_caller_waits_and_only_a_delete_replaces_it() {
        let mut turns = turns();
        let (first, _first) = queued(Some("a"), Urgency::Held);
        let first = turns.next(first).expect("nothing of this value before");
        let (waits, _waits) = queued(Some("a"), Urgency::Held);
        let (delete, gone) = queued(Some("a"), Urgency::Delete);
        drop(gone);
        let (last, _last) = queued(Some("a"), Urgency::Held);
        let expected = [&waits, &delete, &last].map(|queued| queued.urgency);
        for queued in [waits, delete, last] {
            assert!(turns.next(queued).is_none());
        }
        let mut before = first;
        for urgency in expected {
            let next = turns.after(&before).expect("it waits");
            assert_eq!(next.urgency, urgency);
            before = next;
        }
        assert!(turns.after(&before).is_none());
    }

    #[test]
    fn the_last_delete_replaces_those_whose_callers_have_gone() {
        let mut turns = turns();
        let (first, _first) = queued(Some("a"), Urgency::Held);
        let first = turns.next(first).expect("nothing of this value before");
        for _ in 0..3 {
            let (delete, _gone) = queued(Some("a"), Urgency::Delete);
            assert!(turns.next(delete).is_none());
        }
        let delete = turns.after(&first).expect("the last delete");
        assert!(turns.after(&delete).is_none());
    }
}
