//! What locking costs without this crate: the same commands on bare connections, and nothing around them.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Script, Value, cmd};

use super::TTL;
use super::subject::Subject;

const RELEASE: &str = include_str!("../../src/master/scripts/release.lua");

/// A connection to each master, with the options of the crate that make a difference here.
#[derive(Clone)]
pub(crate) struct Floor {
    masters: Arc<[MultiplexedConnection]>,
    release: Arc<str>,
}

/// A key and our value.
pub(crate) struct Held(String, String);

impl Floor {
    /// The connections belong to the current runtime.
    pub(crate) async fn connect(urls: &[String]) -> Self {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let mut masters = Vec::new();
        for url in urls {
            let client = Client::open(url.as_str()).expect("a valid address");
            let info = client.get_connection_info().clone();
            let tcp = info.tcp_settings().clone().set_nodelay(true);
            let client = Client::open(info.set_tcp_settings(tcp)).expect("a valid address");
            let mut master = client
                .get_multiplexed_async_connection_with_config(&config)
                .await
                .expect("the server accepts connections");
            let mut load = cmd("SCRIPT");
            load.arg("LOAD").arg(RELEASE);
            load.exec_async(&mut master).await.expect("a valid script");
            masters.push(master);
        }
        Self {
            masters: masters.into(),
            release: Script::new(RELEASE).get_hash().into(),
        }
    }

    /// Locks for a ttl of whole seconds.
    pub(crate) async fn lock_for(&self, resource: &str, ttl: Duration) -> Option<Held> {
        let value = format!(
            "{:032x}{:08x}",
            rand::random::<u128>(),
            rand::random::<u32>()
        );
        let ttl = ttl.as_secs() * 1_000;
        let mut set = cmd("SET");
        set.arg(resource).arg(&value).arg("NX").arg("PX").arg(ttl);
        let held = Held(resource.to_owned(), value);
        if self.ask(&set, &Value::Okay).await {
            return Some(held);
        }
        self.release(held).await;
        None
    }

    /// Asks all masters, and waits until a majority has agreed or can no longer be had.
    async fn ask(&self, command: &Cmd, aye: &Value) -> bool {
        let ask = |mut master: MultiplexedConnection| async move {
            master.send_packed_command(command).await
        };
        let mut votes: FuturesUnordered<_> = self.masters.iter().cloned().map(ask).collect();
        let majority = self.masters.len() / 2 + 1;
        let (mut ayes, mut noes) = (0, 0);
        while ayes < majority && noes < majority {
            match votes.next().await {
                Some(Ok(vote)) if vote == *aye => ayes += 1,
                Some(_) => noes += 1,
                None => break,
            }
        }
        ayes >= majority
    }
}

impl Subject for Floor {
    const NAME: &'static str = "floor";

    type Held = Held;

    async fn lock(&self, resource: &str) -> Option<Held> {
        self.lock_for(resource, TTL).await
    }

    async fn release(&self, Held(resource, value): Held) -> bool {
        let mut call = cmd("EVALSHA");
        call.arg(&*self.release).arg(1).arg(resource).arg(value);
        self.ask(&call, &Value::Int(1)).await
    }

    async fn settle(&self) {
        // Replies come in the order of the requests.
        for mut master in self.masters.iter().cloned() {
            let ping = cmd("PING").exec_async(&mut master).await;
            ping.expect("the server still answers");
        }
    }
}
