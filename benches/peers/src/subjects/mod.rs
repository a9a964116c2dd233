//! The peers, each as its documentation says, with its defaults except for the ttl.

mod distributed_lock;
mod rslock;

use std::time::Duration;

use tokio::time::sleep;

pub(crate) use self::distributed_lock::DistributedLock;
pub(crate) use self::rslock::rslock;

/// Masters on the same machine have long done by then what they were asked. None of the peers has a way to wait for that.
async fn quiet() {
    sleep(Duration::from_millis(100)).await;
}
