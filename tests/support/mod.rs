//! Real servers that a test can start, kill, freeze and cut off, and ways to wait for what they show.

// Every file in tests/ is a program of its own that contains all of this, uses a part, and exports nothing.
#![allow(dead_code, unreachable_pub, unused_imports)]

mod logs;
mod port;
mod proxy;
mod scratch;
mod server;
mod tls;

use std::thread;
use std::time::{Duration, Instant};

pub use logs::Logs;
pub use port::free_port;
pub use proxy::{Proxy, Upstream};
pub use server::Server;
pub use tls::TlsServer;
use tokio::runtime::{Builder, Runtime};

const POLL_EVERY: Duration = Duration::from_millis(2);

/// Waits until the condition holds, and panics if it takes longer. Blocks the thread.
pub fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(POLL_EVERY);
    }
}

/// The same for a test whose runtime has to go on meanwhile.
pub async fn eventually_async(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// A runtime that runs only while a test blocks on it.
pub fn current_thread() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// A runtime with two threads.
pub fn multi_thread() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(2).enable_all();
    builder.build().expect("a runtime")
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    format!("{name}:{:016x}", rand::random::<u64>())
}
