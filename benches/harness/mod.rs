//! Five masters on this machine, and what is compared on them: the crate, and the floor below it.

// Every file in benches/ is a program of its own that contains all of this and uses a part.
#![allow(dead_code)]

mod contest;
mod floor;
mod run;
mod subject;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::cmd;
use support::Server;
use tokio::runtime::{self, Runtime};
use tokio_redlock::Redlock;

pub(crate) use self::contest::Contest;
pub(crate) use self::floor::Floor;
pub(crate) use self::run::Run;
pub(crate) use self::subject::Subject;

/// Longer than anything takes, so that a key that is left behind is still there to be counted.
pub(crate) const TTL: Duration = Duration::from_secs(600);

pub(crate) struct Harness {
    /// Runs the callers, and the connections of `dlm_here` and of the floor.
    pub(crate) runtime: Arc<Runtime>,
    /// The crate by default: its connections are on the thread `redlock`.
    pub(crate) dlm: Redlock,
    /// The crate on the runtime of its callers.
    pub(crate) dlm_here: Redlock,
    pub(crate) floor: Floor,
    pub(crate) servers: Arc<[Server]>,
}

impl Harness {
    pub(crate) fn new() -> Self {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let servers = Server::many(5);
        let urls: Vec<_> = servers.iter().map(Server::url).collect();
        Self::connect(Arc::new(runtime), servers.into(), &urls)
    }

    /// The same masters, reached at other addresses.
    pub(crate) fn reached_at(&self, urls: &[String]) -> Self {
        Self::connect(Arc::clone(&self.runtime), Arc::clone(&self.servers), urls)
    }

    fn connect(runtime: Arc<Runtime>, servers: Arc<[Server]>, urls: &[String]) -> Self {
        let builder = || Redlock::builder().masters(urls);
        let here = builder().runtime(runtime.handle().clone());
        Self {
            dlm: builder().build().expect("valid masters"),
            dlm_here: here.build().expect("valid masters"),
            floor: runtime.block_on(Floor::connect(urls)),
            runtime,
            servers,
        }
    }

    /// Has so many tasks lock and release a fresh resource so many times each.
    pub(crate) fn run(&self, subject: &impl Subject, tasks: u32, each: u64) -> Run {
        self.runtime.block_on(Run::new(subject, tasks, each))
    }

    /// Has so many tasks want a fresh resource so many times each.
    pub(crate) fn contest(&self, subject: &impl Subject, tasks: u32, each: u32) -> Contest {
        self.runtime.block_on(Contest::new(subject, tasks, each))
    }

    /// Waits for what is still under way.
    pub(crate) fn settle(&self, subject: &impl Subject) {
        self.runtime.block_on(subject.settle());
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
