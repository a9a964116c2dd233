//! Callers that nest share one lock: it is released when the last of them is done, and not before.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use support::{LONG, Masters, Servers, unique};
use tokio::task::JoinSet;
use tokio_redlock::{KeepAlive, LockError, LockGuard, Redlock};

const TTL: Duration = Duration::from_secs(60);

async fn is_taken(rival: &Redlock, resource: &str) -> bool {
    match rival.try_lock(resource, TTL).await {
        Ok(_) => false,
        Err(LockError::Taken(_)) => true,
        Err(other) => panic!("{other}"),
    }
}

/// Calls itself so many times, each with the lock, as a caller does that may or may not hold it already.
fn nested(guard: Arc<LockGuard>, rival: Redlock, depth: usize) -> BoxFuture<'static, usize> {
    async move {
        let resource = String::from_utf8_lossy(guard.resource()).into_owned();
        let inner = match depth {
            0 => 0,
            _ => nested(Arc::clone(&guard), rival.clone(), depth - 1).await,
        };
        assert!(guard.is_valid());
        assert!(is_taken(&rival, &resource).await, "at depth {depth}");
        inner + 1
    }
    .boxed()
}

#[tokio::test]
async fn callers_that_nest_hold_the_lock_until_the_outermost_is_done() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let (dlm, rival) = (masters.client(), masters.client());
    let guard = Arc::new(dlm.lock(&resource, TTL).await.unwrap());
    assert_eq!(nested(Arc::clone(&guard), rival.clone(), 5).await, 6);
    assert!(masters.all_hold(&guard));
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(!is_taken(&rival, &resource).await);
}

#[tokio::test]
async fn the_last_of_several_tasks_releases_whichever_that_is() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let (dlm, rival) = (masters.client(), masters.client());
    let request = dlm.lock(&resource, Duration::from_secs(2));
    let guard = Arc::new(request.keep_alive(KeepAlive::new()).await.unwrap());
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let guard = Arc::clone(&guard);
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(40 * task)).await;
            guard
        });
    }
    drop(guard);
    while let Some(guard) = tasks.join_next().await {
        let guard = guard.unwrap();
        assert!(guard.is_valid());
        assert!(is_taken(&rival, &resource).await);
        drop(guard);
    }
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(!is_taken(&rival, &resource).await);
}

#[tokio::test]
async fn a_shared_lock_is_extended_for_all_who_share_it() {
    let masters = Masters::start(3);
    let short = Duration::from_secs(5);
    let guard = Arc::new(masters.client().lock(unique("r"), short).await.unwrap());
    let other = Arc::clone(&guard);
    assert!(other.validity() < short);
    guard.extend(TTL).await.unwrap();
    assert!(other.validity() > short);
}

#[tokio::test]
async fn the_last_who_shares_a_lock_can_wait_for_its_release() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let guard = Arc::new(masters.client().lock(&resource, TTL).await.unwrap());
    let other = Arc::clone(&guard);
    let guard = Arc::try_unwrap(guard).expect_err("not the last");
    drop(guard);
    let last = Arc::into_inner(other).expect("the last");
    last.release().await.expect("still ours");
    assert!(!is_taken(&masters.client(), &resource).await);
}
