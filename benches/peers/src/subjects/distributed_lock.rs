//! distributed-lock, see <https://docs.rs/distributed-lock-redis/0.2.0>.

use std::sync::Arc;

use distributed_lock_core::traits::{DistributedLock as _, LockHandle, LockProvider};
use distributed_lock_redis::{RedisLockHandle, RedisLockProvider};
use support::Server;

use super::quiet;
use crate::harness::{Subject, TTL};

#[derive(Clone)]
pub(crate) struct DistributedLock(Arc<RedisLockProvider>);

impl DistributedLock {
    /// Its defaults keep the lock alive every third of the expiry, and want nine tenths of it to be left when granted.
    pub(crate) async fn connect(servers: &[Server]) -> Self {
        let urls: Vec<_> = servers.iter().map(Server::url).collect();
        let provider = RedisLockProvider::builder()
            .urls(&urls)
            .expiry(TTL)
            .extension_cadence(TTL / 3)
            .min_validity(TTL / 10 * 9);
        Self(Arc::new(
            provider.build().await.expect("masters that answer"),
        ))
    }
}

impl Subject for DistributedLock {
    const NAME: &'static str = "distributed-lock";

    type Held = RedisLockHandle;

    /// Each lock object has one value for all its attempts, so there is one per attempt. `acquire` makes one attempt,
    /// whatever its timeout; with one it would also start a timer that outlives it.
    async fn lock(&self, resource: &str) -> Option<RedisLockHandle> {
        self.0.create_lock(resource).acquire(None).await.ok()
    }

    async fn release(&self, held: RedisLockHandle) -> bool {
        held.release().await.is_ok()
    }

    async fn settle(&self) {
        quiet().await;
    }
}
