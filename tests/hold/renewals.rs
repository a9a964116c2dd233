//! How often a lock that is kept alive is renewed: by masters in memory and a paused clock, so that minutes pass in no
//! time and no busy machine blurs the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd};
use support::AnsweredBy;
use tokio::time::sleep;
use tokio_redlock::testing::Masters;
use tokio_redlock::{KeepAlive, LockGuard, Redlock};

/// Two masters, and a third one that counts the scripts that it is sent.
fn counted() -> (Redlock, Arc<AtomicU32>) {
    let (two, third) = (Masters::new(2), Masters::new(1));
    let scripts = Arc::new(AtomicU32::new(0));
    let (connection, counter) = (third[0].connect(), Arc::clone(&scripts));
    let counting = AnsweredBy(move |command: Cmd| {
        if command.args_iter().next() == Some(Arg::Simple(b"EVALSHA")) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let mut connection = connection.clone();
        async move { connection.req_packed_command(&command).await }
    });
    let builder = Redlock::builder().testing(&two).connection(counting);
    (builder.build().expect("three masters"), scripts)
}

async fn keep_alive(dlm: &Redlock, ttl: Duration) -> LockGuard {
    let request = dlm.lock("r", ttl).keep_alive(KeepAlive::new());
    request.await.expect("nobody else wants it")
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_every_third_of_its_ttl() {
    for millis in [20, 1_000, 60_000] {
        let (dlm, scripts) = counted();
        let ttl = Duration::from_millis(millis);
        let guard = keep_alive(&dlm, ttl).await;
        sleep(100 * ttl).await;
        assert_eq!(guard.lost().now_or_never(), None);
        let renewals = scripts.load(Ordering::Relaxed);
        assert!((285..=315).contains(&renewals), "{ttl:?}: {renewals}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_nobody_keeps_alive_is_not_renewed() {
    let (dlm, scripts) = counted();
    let guard = dlm.lock("r", Duration::from_secs(60)).await.unwrap();
    guard.lost().await;
    assert_eq!(scripts.load(Ordering::Relaxed), 0);
}
