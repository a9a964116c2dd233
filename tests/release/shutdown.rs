//! `shutdown` waits for the releases that are under way.

use std::time::{Duration, Instant};

use support::{LONG, Masters, Proxy, Server, Servers, current_thread, eventually_async, unique};
use tokio::time::timeout;
use tokio_redlock::{LockGuard, Redlock};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// For what is to time out.
const SHORT: Duration = Duration::from_millis(300);

/// So many locks, each held by every master.
async fn locks<const N: usize>(dlm: &Redlock, masters: &[Server]) -> [LockGuard; N] {
    let guards = [(); N].map(|()| dlm.lock(unique("resource"), TTL).into_future());
    let guards = futures::future::try_join_all(guards).await.unwrap();
    let held = async || masters.iter().all(|server| server.keys().len() == N);
    eventually_async("every master holds them", LONG, held).await;
    guards.try_into().expect("as many as asked for")
}

#[tokio::test]
async fn drops_are_waited_for() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for _ in 0..5 {
        drop(locks::<20>(&dlm, &masters).await);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(masters.are_empty());
    }
}

#[tokio::test]
async fn releases_that_a_quorum_has_confirmed_are_waited_for_on_the_other_masters() {
    let masters = Masters::start(3).with_proxies([2]);
    let dlm = masters.patient_client();
    let [guard] = locks(&dlm, &masters).await;
    masters.proxy(2).delay(SHORT);
    guard.release().await.unwrap();
    assert!(!masters.are_empty());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn cancelled_attempts_are_waited_for() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.patient_client();
    drop(locks::<1>(&dlm, &masters).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);

    masters.proxies().for_each(Proxy::hang);
    let attempt = dlm.lock(unique("resource"), TTL).into_future();
    assert!(timeout(SHORT, attempt).await.is_err());
    assert_eq!(dlm.shutdown(SHORT).await, 1);
    masters.proxies().for_each(Proxy::resume);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn an_attempt_cancelled_before_there_was_a_connection_leaves_nothing_to_wait_for() {
    let masters = Masters::behind_proxies(3);
    masters.proxies().for_each(Proxy::hang);
    let dlm = masters.patient_client();
    let attempt = dlm.lock(unique("resource"), TTL).into_future();
    assert!(timeout(SHORT, attempt).await.is_err());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    masters.proxies().for_each(Proxy::resume);
    // What comes later on the same connections comes after all there was before.
    let guard = dlm.lock("later", TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_frozen_master_is_waited_for_until_the_timeout() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guards = locks::<4>(&dlm, &masters).await;
    masters[0].freeze();
    drop(guards);

    let start = Instant::now();
    assert_eq!(dlm.shutdown(SHORT).await, 4);
    assert!(start.elapsed() >= SHORT);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert!(masters[1..].are_empty());

    masters[0].thaw();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn all_clones_are_waited_for_and_other_clients_are_not() {
    let masters = Masters::start(3);
    let [dlm, other] = [masters.patient_client(), masters.patient_client()];
    drop(locks::<1>(&other, &masters).await);
    assert_eq!(other.shutdown(LONG).await, 0);
    let guards = locks::<2>(&dlm.clone(), &masters).await;
    masters[0].freeze();
    drop(guards);
    assert_eq!(dlm.clone().shutdown(SHORT).await, 2);
    assert_eq!(other.shutdown(SHORT).await, 0);
}

#[tokio::test]
async fn nothing_to_wait_for_takes_no_time() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let at_once = |timeout| dlm.shutdown(timeout);
    for limit in [Duration::ZERO, LONG * 10, Duration::MAX] {
        // A client that was never used.
        assert_eq!(timeout(LONG, at_once(limit)).await, Ok(0));
    }
    // A lock that is held is no release under way.
    let [guard] = locks(&dlm, &masters).await;
    assert_eq!(timeout(LONG, at_once(LONG * 10)).await, Ok(0));
    assert!(guard.is_valid());
    assert!(!masters.are_empty());
    guard.release().await.unwrap();
    assert_eq!(timeout(LONG, at_once(LONG * 10)).await, Ok(0));
    assert_eq!(timeout(LONG, at_once(Duration::MAX)).await, Ok(0));
}

#[tokio::test]
async fn no_time_to_wait_still_tells_how_many_are_under_way() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guards = locks::<3>(&dlm, &masters).await;
    masters[0].freeze();
    drop(guards);
    assert_eq!(dlm.shutdown(Duration::ZERO).await, 3);
}

#[tokio::test]
async fn the_client_works_afterwards() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for _ in 0..3 {
        let [guard] = locks(&dlm, &masters).await;
        guard.extend(2 * TTL).await.unwrap();
        let resource = guard.resource().to_vec();
        drop(guard);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(masters.are_empty());
        let guard = dlm.try_lock(resource, TTL).await.unwrap();
        guard.release().await.unwrap();
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
}

#[tokio::test]
async fn a_key_that_has_expired_on_a_dead_master_is_not_waited_for() {
    let mut masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = dlm.lock("resource", Duration::from_secs(2)).await.unwrap();
    masters.eventually_hold(&guard).await;
    masters[0].kill();
    drop(guard);
    assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
    // It would be unconfirmed for ever.
    assert_eq!(timeout(LONG, dlm.shutdown(LONG * 10)).await, Ok(0));
    assert!(masters[1..].are_empty());
}

#[test]
fn a_release_that_ends_with_the_runtime_of_its_client_is_counted_once() {
    let masters = Masters::start(3);
    let own = current_thread();
    let builder = masters.builder();
    let dlm = builder.runtime(own.handle().clone()).build().unwrap();
    let [guard] = own.block_on(locks(&dlm, &masters));
    // Its runtime has the release in its queue and never looks at it.
    drop(guard);
    drop(own);
    let shutdown = || current_thread().block_on(dlm.shutdown(Duration::from_secs(1)));
    assert_eq!(shutdown(), 1);
    assert_eq!(shutdown(), 0);
}

/// It executes the request when it goes on, so the key may come as late as then.
#[cfg(feature = "test-util")]
#[tokio::test(start_paused = true)]
async fn a_master_frozen_for_longer_than_the_ttl_is_waited_for() {
    let ttl = Duration::from_secs(2);
    let masters = tokio_redlock::testing::Masters::new(3);
    let dlm = Redlock::builder().testing(&masters).build().unwrap();
    dlm.lock("warm", ttl)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    masters[0].hang();
    let guard = dlm.lock("r", ttl).await.unwrap();
    guard.release().await.expect("two masters are well");
    assert_eq!(dlm.shutdown(5 * ttl).await, 1);
    masters[0].resume();
    assert_eq!(dlm.shutdown(ttl).await, 0);
    assert!(masters.iter().all(|master| master.keys().is_empty()));
}
