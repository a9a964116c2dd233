//! A connection to a master in memory.

use futures::FutureExt;
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisFuture, Value as Reply};

use super::master::Master;

/// A connection to a [`Master`] in memory, as from [`Master::connect`].
///
/// Requests on one connection are executed in the order of their calls, and answered in it; clones share the
/// connection. It opens itself again whenever it breaks.
///
/// # Examples
///
/// ```
/// use tokio_redlock::redis::cmd;
/// use tokio_redlock::testing::Masters;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tokio_redlock::redis::RedisError> {
/// let masters = Masters::new(1);
/// let mut connection = masters[0].connect();
/// let answer: String = cmd("PING").query_async(&mut connection).await?;
/// assert_eq!(answer, "PONG");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Connection {
    master: Master,
    /// Which of the master's connections.
    lane: usize,
}

impl Connection {
    pub(super) fn new(master: Master, lane: usize) -> Self {
        Self { master, lane }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Reply> {
        let arguments = cmd.args_iter().filter_map(|arg| match arg {
            Arg::Simple(bytes) => Some(bytes.to_vec()),
            _ => None,
        });
        self.master.send(self.lane, arguments.collect()).boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Reply>> {
        let refused = (ErrorKind::Client, "a master in memory takes no pipelines");
        futures::future::ready(Err(refused.into())).boxed()
    }

    fn get_db(&self) -> i64 {
        0
    }
}
