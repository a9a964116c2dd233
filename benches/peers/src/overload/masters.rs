//! Five masters, and how their keys are counted.

use std::thread::sleep;
use std::time::{Duration, Instant};

use redis::cmd;

use support::Server;

/// How long a master that has just been overloaded may take until it answers a look.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// What marks the connections of looks in a list of clients.
const LOOK: &str = " name=look ";

const PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Masters(pub(crate) [Server; 5]);

impl Masters {
    pub(crate) fn start() -> Self {
        let five = Server::many(5).try_into();
        Self(five.expect("five were asked for"))
    }

    pub(crate) fn urls(&self) -> [String; 5] {
        self.0.each_ref().map(Server::url)
    }

    /// The keys on all masters; `None` if a master does not answer.
    pub(crate) fn keys(&self) -> Option<u64> {
        let count = |server: &Server| answered(|| server.try_query::<u64>(&cmd("DBSIZE")).ok());
        self.0.iter().map(count).sum()
    }

    /// The keys that have ever expired on all masters: nobody deleted them in time.
    pub(crate) fn expired(&self) -> Option<u64> {
        let expired = |server: &Server| {
            let statistics: String = answered(|| server.try_query(cmd("INFO").arg("stats")).ok())?;
            let line = |line: &str| {
                line.strip_prefix("expired_keys:")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            statistics.lines().find_map(line)
        };
        self.0.iter().map(expired).sum()
    }

    /// Removes all keys, once every client has gone: a master may still have to read what a client sent before its end.
    pub(crate) fn clear(&self) {
        for server in &self.0 {
            answered(|| {
                let clients: String = server.try_query(cmd("CLIENT").arg("LIST")).ok()?;
                let is_look = |line: &str| line.contains(LOOK);
                clients.lines().all(is_look).then_some(())
            });
            answered(|| server.try_query::<()>(&cmd("FLUSHALL")).ok());
        }
    }
}

/// Repeats a look until it is answered, for up to [`LOOK_LIMIT`].
fn answered<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LOOK_LIMIT;
    loop {
        if let Some(answer) = look() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        sleep(PAUSE);
    }
}
