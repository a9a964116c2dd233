//! What is compared: something that locks and releases.

use std::fmt::Display;
use std::sync::Once;
use std::time::Duration;

use tokio::time::sleep;
use tokio_redlock::{LockGuard, Redlock, RetryPolicy};

use super::TTL;

/// Only ever waited for in full when something is wrong.
const LONG: Duration = Duration::from_secs(60);

pub(crate) trait Subject: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    type Held: Send + 'static;

    /// Locks a resource that nobody holds. `None` if that fails.
    fn lock(&self, resource: &str) -> impl Future<Output = Option<Self::Held>> + Send;

    /// Locks a resource that others want too, however long that takes. Unless a subject knows better, by the delays of
    /// the crate.
    fn contend(&self, resource: &str) -> impl Future<Output = Self::Held> + Send {
        async move {
            let mut delays = RetryPolicy::new().forever().delays(rand::random());
            loop {
                if let Some(held) = self.lock(resource).await {
                    return held;
                }
                sleep(delays.next().expect("no last one")).await;
            }
        }
    }

    /// Whether it was confirmed.
    fn release(&self, held: Self::Held) -> impl Future<Output = bool> + Send;

    /// Waits until the masters have done all that they were asked so far.
    fn settle(&self) -> impl Future<Output = ()> + Send;
}

impl Subject for Redlock {
    const NAME: &'static str = "tokio-redlock";

    type Held = LockGuard;

    async fn lock(&self, resource: &str) -> Option<LockGuard> {
        let locked = self.lock(resource, TTL).await;
        locked.inspect_err(complain).ok()
    }

    async fn contend(&self, resource: &str) -> LockGuard {
        let request = self.lock(resource, TTL);
        let patient = request.retry(RetryPolicy::new().forever());
        patient.await.expect("granted in the end")
    }

    async fn release(&self, held: LockGuard) -> bool {
        held.release().await.inspect_err(complain).is_ok()
    }

    async fn settle(&self) {
        let unconfirmed = self.shutdown(LONG).await;
        if unconfirmed > 0 {
            eprintln!("{unconfirmed} releases were not confirmed within {LONG:?}");
        }
    }
}

/// Only of the first failure: the others will be like it, and are counted.
fn complain(error: &impl Display) {
    static FIRST: Once = Once::new();
    FIRST.call_once(|| eprintln!("{error}"));
}
