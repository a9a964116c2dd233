//! Many locks that are kept alive share their renewals, and nothing else: what happens to one harms no other.

use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, stream};
use redis::cmd;
use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio::time::sleep;
use tokio_redlock::{KeepAlive, LockGuard, LossReason, Redlock};

async fn keep_alive(dlm: &Redlock, ttl: Duration) -> LockGuard {
    let request = dlm.lock(unique("r"), ttl).keep_alive(KeepAlive::new());
    request.await.expect("a lock that nobody else wants")
}

/// Takes many locks about at once, so that they share renewals.
async fn keep_many(dlm: &Redlock, count: usize, ttl: Duration) -> Vec<LockGuard> {
    let locks = stream::iter(0..count).map(|_| keep_alive(dlm, ttl));
    locks.buffer_unordered(50).collect().await
}

async fn all_hold(masters: &Masters, guards: &[LockGuard]) {
    for guard in guards {
        masters.eventually_hold(guard).await;
    }
}

fn losses(guards: &[LockGuard]) -> Vec<Option<LossReason>> {
    let losses = guards.iter().map(|guard| guard.lost().now_or_never());
    losses.collect()
}

fn assert_none_is_lost(guards: &[LockGuard]) {
    assert_eq!(losses(guards).iter().flatten().count(), 0);
}

fn resource(guard: &LockGuard) -> &str {
    std::str::from_utf8(guard.resource()).expect("text")
}

fn make_a_list(server: &Server, guard: &LockGuard) {
    server.del(resource(guard));
    server.query::<()>(cmd("RPUSH").arg(resource(guard)).arg("item"));
}

/// The renewals that a master has been sent, by lock and by request.
fn renewals(server: &Server) -> [u64; 2] {
    ["pexpire", "evalsha"].map(|command| server.calls(command))
}

/// Asserts the number of renewals of so many locks within some time, and that few requests brought them.
#[tokio::test]
async fn a_thousand_locks_are_renewed_by_few_requests() {
    const LOCKS: usize = 1_000;
    let (masters, ttl) = (Masters::start(3), Duration::from_secs(2));
    let dlm = masters.patient_client();
    let guards = keep_many(&dlm, LOCKS, ttl).await;
    let (start, before) = (Instant::now(), renewals(&masters[0]));
    sleep(3 * ttl).await;
    assert_none_is_lost(&guards);
    assert!(guards.iter().all(LockGuard::is_valid));
    let [locks, requests] = [0, 1].map(|count| renewals(&masters[0])[count] - before[count]);
    // Each lock is due about 9 times.
    assert!(locks > 8 * 900, "{locks} in {:?}", start.elapsed());
    assert!(requests < 1_000, "{requests} for {locks}");
    drop(guards);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn what_happens_to_one_lock_harms_no_other() {
    let (masters, ttl) = (Masters::start(3), Duration::from_secs(2));
    let dlm = masters.patient_client();
    let guards = keep_many(&dlm, 200, ttl).await;
    all_hold(&masters, &guards).await;
    let [
        taken,
        deleted,
        changed,
        deleted_once,
        taken_once,
        changed_once,
        ..,
    ] = &guards[..]
    else {
        unreachable!("200 locks");
    };
    for server in &masters[..2] {
        server.set(resource(taken), "another");
        server.del(resource(deleted));
        make_a_list(server, changed);
    }
    masters[2].del(resource(deleted_once));
    masters[2].set(resource(taken_once), "another");
    make_a_list(&masters[2], changed_once);

    assert_eq!(taken.lost().await, LossReason::Taken);
    assert_eq!(deleted.lost().await, LossReason::Taken);
    // Nobody says that the lock is taken. But nobody lengthens it.
    assert_eq!(changed.lost().await, LossReason::Expired);
    masters.eventually_hold(deleted_once).await;
    sleep(ttl).await;
    assert_none_is_lost(&guards[3..]);
    assert_eq!(masters[2].get(resource(taken_once)), Some("another".into()));
    all_hold(&masters, &guards[6..]).await;
}

#[tokio::test]
async fn a_master_that_hangs_delays_no_renewal() {
    let (masters, ttl) = (Masters::start(5), Duration::from_secs(3));
    let guards = keep_many(&masters.patient_client(), 200, ttl).await;
    all_hold(&masters, &guards).await;
    masters[1].freeze();
    let start = Instant::now();
    while start.elapsed() < 2 * ttl {
        let shortest = guards.iter().map(LockGuard::validity).min();
        // A renewal is due after 1.1 s at the latest, so there is more than half a second for a busy machine.
        assert!(shortest > Some(ttl / 2 - ttl / 10), "{shortest:?}");
        sleep(Duration::from_millis(20)).await;
    }
    assert_none_is_lost(&guards);
    masters[1].thaw();
}

#[tokio::test]
async fn a_master_that_comes_back_empty_gets_all_keys_again() {
    let (mut masters, ttl) = (Masters::start(3), Duration::from_secs(2));
    let guards = keep_many(&masters.patient_client(), 300, ttl).await;
    all_hold(&masters, &guards).await;
    masters[0].kill();
    masters[0].restart();
    eventually_async("all keys are back", LONG, async || {
        masters[0].keys().len() == guards.len()
    })
    .await;
    assert_none_is_lost(&guards);
}

#[tokio::test]
async fn guards_that_go_while_they_are_renewed_leave_no_key_and_harm_no_other() {
    let ttl = Duration::from_millis(1_500);
    let masters = Masters::behind_proxies(3);
    let dlm = masters.patient_client();
    let mut guards = keep_many(&dlm, 300, ttl).await;
    // So a renewal is under way nearly all the time.
    for proxy in masters.proxies() {
        proxy.delay(Duration::from_millis(25));
    }
    let kept = guards.split_off(150);
    for (place, guard) in guards.into_iter().enumerate() {
        match place % 3 {
            0 => guard.release().await.expect("ours"),
            _ => drop(guard),
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let are_only_kept = || masters.iter().all(|it| it.keys().len() == kept.len());
    assert!(are_only_kept());
    sleep(ttl).await;
    assert_none_is_lost(&kept);
    assert!(are_only_kept());
    drop(kept);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

/// A master may refuse a request because of one of its locks. The others do not suffer.
#[tokio::test]
async fn locks_are_kept_alive_one_by_one_where_masters_refuse_to_renew_several() {
    let (masters, ttl) = (Masters::start(3), Duration::from_secs(2));
    let forbidden = unique("forbidden");
    let dlm = masters.patient_client();
    let mut guards = keep_many(&dlm, 50, ttl).await;
    let request = dlm.lock(&forbidden, ttl).keep_alive(KeepAlive::new());
    let lost = request.await.expect("a lock that nobody else wants");
    all_hold(&masters, &guards).await;
    for server in &masters[..2] {
        let mut acl = cmd("ACL");
        acl.arg("SETUSER")
            .arg("default")
            .arg("resetkeys")
            .arg("~r*");
        server.query::<()>(&acl);
    }
    assert_eq!(lost.lost().await, LossReason::Expired);
    sleep(ttl).await;
    assert_none_is_lost(&guards);
    guards.push(lost);
}
