//! What is under load: the crate, the floor below it, and rslock.

use std::fmt::Display;
use std::future::ready;
use std::sync::Once;
use std::time::Duration;

use rslock::{Lock, LockManager};
use tokio::time::sleep;
use tokio_redlock::{KeepAlive, LockGuard, Redlock};

use crate::harness::{Floor, Subject};

/// Of every lock that is not kept alive.
pub(crate) const TTL: Duration = Duration::from_secs(10);

/// Masters on the same machine have long done by then what rslock asked them: its release waits for every master.
const QUIET: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    Floor,
    Rslock,
    Crate,
}

impl Library {
    pub(crate) const ALL: [Self; 3] = [Self::Floor, Self::Rslock, Self::Crate];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Rslock => "rslock",
            Self::Crate => "tokio-redlock",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|library| library.name() == name)
    }
}

/// Something that locks and releases.
pub(crate) trait Locker: Clone + Send + Sync + 'static {
    type Held: Send + 'static;

    /// Locks a resource that nobody holds for [`TTL`]; `None` if that fails.
    fn lock(&self, resource: &str) -> impl Future<Output = Option<Self::Held>> + Send;

    /// Whether the release was confirmed.
    fn release(&self, held: Self::Held) -> impl Future<Output = bool> + Send;

    /// Locks a resource and keeps the lock alive; `None` if that fails, or if the library cannot do it.
    fn keep(
        &self,
        _resource: &str,
        _ttl: Duration,
    ) -> impl Future<Output = Option<Self::Held>> + Send {
        ready(None)
    }

    /// Whether a lock that is kept alive is still good.
    fn is_valid(_held: &Self::Held) -> bool {
        false
    }

    /// Waits until the masters have done all that they were asked so far, for up to `limit` where the library has such
    /// a limit; returns the number of releases that are not confirmed.
    fn settle(&self, limit: Duration) -> impl Future<Output = usize> + Send;
}

impl Locker for Redlock {
    type Held = LockGuard;

    async fn lock(&self, resource: &str) -> Option<LockGuard> {
        let locked = self.lock(resource, TTL).await;
        locked.inspect_err(complain).ok()
    }

    async fn release(&self, held: LockGuard) -> bool {
        held.release().await.inspect_err(complain).is_ok()
    }

    async fn keep(&self, resource: &str, ttl: Duration) -> Option<LockGuard> {
        let request = self.lock(resource, ttl).keep_alive(KeepAlive::new());
        request.await.inspect_err(complain).ok()
    }

    fn is_valid(held: &LockGuard) -> bool {
        held.is_valid()
    }

    async fn settle(&self, limit: Duration) -> usize {
        self.shutdown(limit).await
    }
}

impl Locker for Floor {
    type Held = <Self as Subject>::Held;

    async fn lock(&self, resource: &str) -> Option<<Self as Subject>::Held> {
        self.lock_for(resource, TTL).await
    }

    async fn release(&self, held: <Self as Subject>::Held) -> bool {
        Subject::release(self, held).await
    }

    async fn settle(&self, _limit: Duration) -> usize {
        Subject::settle(self).await;
        0
    }
}

/// By `lock`, not by `acquire`, which tries for ever and hides its failures.
impl Locker for LockManager {
    type Held = Lock;

    async fn lock(&self, resource: &str) -> Option<Lock> {
        self.lock(resource, TTL).await.inspect_err(complain).ok()
    }

    /// It does not return whether the masters confirmed.
    async fn release(&self, held: Lock) -> bool {
        held.release().await;
        true
    }

    async fn settle(&self, _limit: Duration) -> usize {
        sleep(QUIET).await;
        0
    }
}

/// Prints the first failure. The others are counted.
fn complain(error: &impl Display) {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        let error = error.to_string();
        let beginning: String = error.chars().take(300).collect();
        eprintln!("first failure: {beginning}");
    });
}
