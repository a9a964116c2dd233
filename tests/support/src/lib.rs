//! Real servers that a test can start, kill, freeze and cut off, and ways to wait for what they show.

mod connection;
mod detour;
mod logs;
mod masters;
mod port;
mod process;
mod proxy;
mod scratch;
mod server;
mod tls;
mod turn;
mod wait;

use std::time::Duration;

pub use connection::AnsweredBy;
pub use detour::{Detour, Held};
pub use logs::{Logs, ask_every_thread};
pub use masters::{Masters, Servers};
pub use port::free_port;
pub use process::{CAME_TO_ITS_END, comes_to_its_end, passes, test_process};
pub use proxy::{Proxy, Upstream};
pub use scratch::Scratch;
pub use server::Server;
pub use tls::TlsServer;
use tokio::runtime::{Builder, Runtime};
pub use wait::{eventually, eventually_async};

/// How long a test waits for what comes much sooner: only a test that fails waits so long.
pub const LONG: Duration = Duration::from_secs(30);

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
