//! Five masters on this machine, and the two that are compared on them: the crate, and the floor below it.

// Every file in benches/ is a program of its own that contains all of this and uses a part.
#![allow(dead_code)]

mod contest;
mod floor;
mod rival;
mod run;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::cmd;
use tokio::runtime::{self, Runtime};
use tokio_redlock::Redlock;

pub(crate) use self::contest::contest;
pub(crate) use self::floor::Floor;
pub(crate) use self::rival::Rival;
pub(crate) use self::run::Run;
use self::support::Server;

/// Longer than anything takes, so that a key that is left behind is still there to be counted.
pub(crate) const TTL: Duration = Duration::from_secs(600);

pub(crate) struct Bed {
    pub(crate) runtime: Runtime,
    pub(crate) dlm: Redlock,
    pub(crate) floor: Floor,
    pub(crate) servers: [Server; 5],
}

impl Bed {
    pub(crate) fn new() -> Self {
        let servers = Server::many();
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        Self {
            dlm: Redlock::new(servers.each_ref().map(Server::url)).expect("valid masters"),
            floor: runtime.block_on(Floor::connect(&servers)),
            runtime,
            servers,
        }
    }

    /// Has so many tasks lock and release a fresh resource so many times each.
    pub(crate) fn run(&self, rival: &impl Rival, tasks: u32, each: u64) -> Run {
        self.runtime.block_on(Run::new(rival, tasks, each))
    }

    /// Waits for what is still under way.
    pub(crate) fn settle(&self, rival: &impl Rival) {
        self.runtime.block_on(rival.settle());
    }

    /// Removes the keys that are left, and tells how many there were on all masters.
    pub(crate) fn clear(&self) -> u64 {
        let left = |server: &Server| {
            let keys: u64 = server.query(&cmd("DBSIZE"));
            server.query::<()>(&cmd("FLUSHDB"));
            keys
        };
        self.servers.iter().map(left).sum()
    }

    /// How many commands clients have sent to all masters so far to lock and release.
    pub(crate) fn commands(&self) -> u64 {
        let sent = |server: &Server| ["set", "evalsha", "eval"].map(|name| server.calls(name));
        self.servers.iter().flat_map(sent).sum()
    }
}

/// A resource that nobody has locked before. All are equally long.
pub(crate) fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("resource:{:023}", NEXT.fetch_add(1, Ordering::Relaxed))
}
