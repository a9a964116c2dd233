//! A connection to a master in memory.

use futures::FutureExt;
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisFuture, Value as Reply};

use super::master::Master;

/// A connection to a [`Master`] in memory. Returned by [`Master::connect`].
///
/// The master executes and answers the requests of one connection in the order in which they were sent. Clones share
/// the connection. A connection that breaks opens itself again.
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
    /// The number of this connection at its master.
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
        // The crate sends single commands to a connection that was handed in, so pipelines are not needed.
        let refused = (ErrorKind::Client, "a master in memory takes no pipelines");
        futures::future::ready(Err(refused.into())).boxed()
    }

    fn get_db(&self) -> i64 {
        0
    }
}
