//! rslock, see <https://docs.rs/rslock/0.10.0>.

use ::rslock::{LockGuard, LockManager};
use support::Server;

use super::quiet;
use crate::harness::{Subject, TTL};

pub(crate) fn rslock(servers: &[Server]) -> LockManager {
    LockManager::new(servers.iter().map(Server::url).collect())
}

impl Subject for LockManager {
    const NAME: &'static str = "rslock";

    type Held = LockGuard;

    async fn lock(&self, resource: &str) -> Option<LockGuard> {
        self.acquire(resource, TTL).await.ok()
    }

    /// `acquire` tries again by itself, for ever.
    async fn contend(&self, resource: &str) -> LockGuard {
        self.acquire(resource, TTL).await.expect("a ttl it takes")
    }

    /// It does not tell whether the masters confirmed.
    async fn release(&self, held: LockGuard) -> bool {
        held.release().await;
        true
    }

    async fn settle(&self) {
        quiet().await;
    }
}
