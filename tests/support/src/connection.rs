//! A connection whose answers a test makes up.

use std::fmt;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};

/// A connection that answers each request with what a function returns for it. The client never sends pipelines.
#[derive(Clone)]
pub struct AnsweredBy<F>(pub F);

impl<F, A> ConnectionLike for AnsweredBy<F>
where
    F: Fn(Cmd) -> A + Send,
    A: Future<Output = RedisResult<Value>> + Send + 'static,
{
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin((self.0)(command.clone()))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        unreachable!("requests are sent one by one")
    }

    fn get_db(&self) -> i64 {
        0
    }
}

impl<F> fmt::Debug for AnsweredBy<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnsweredBy").finish_non_exhaustive()
    }
}
