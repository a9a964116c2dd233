//! The wait for releases at the end of a program.

use std::time::{Duration, Instant};

use support::{Proxy, Server, eventually_async, unique};
use tokio::time::timeout;
use tokio_redlock::{LockGuard, Redlock};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// Only reached by a test that fails.
const LONG: Duration = Duration::from_secs(30);

/// For what is to time out.
const SHORT: Duration = Duration::from_millis(300);

/// A client that a busy machine does not make impatient.
fn client(urls: impl IntoIterator<Item = String>) -> Redlock {
    let builder = Redlock::builder().request_timeout(LONG);
    let builder = urls.into_iter().fold(builder, |it, url| it.master(url));
    builder.build().expect("valid masters")
}

fn direct(servers: &[Server]) -> Redlock {
    client(servers.iter().map(Server::url))
}

fn is_empty(servers: &[Server]) -> bool {
    servers.iter().all(|server| server.keys().is_empty())
}

/// So many locks, each held by every master.
async fn locks<const N: usize>(dlm: &Redlock, servers: &[Server]) -> [LockGuard; N] {
    let guards = [(); N].map(|()| dlm.lock(unique("resource"), TTL).into_future());
    let guards = futures::future::try_join_all(guards).await.unwrap();
    let held = async || servers.iter().all(|server| server.keys().len() == N);
    eventually_async("every master holds them", LONG, held).await;
    guards.try_into().expect("as many as asked for")
}

#[tokio::test]
async fn drops_are_waited_for() {
    let servers = Server::many::<3>();
    let dlm = direct(&servers);
    for _ in 0..5 {
        drop(locks::<20>(&dlm, &servers).await);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(is_empty(&servers));
    }
}

#[tokio::test]
async fn releases_that_a_quorum_has_confirmed_are_waited_for_on_the_other_masters() {
    let servers = Server::many::<3>();
    let slow = Proxy::start(&servers[2]);
    let dlm = client([servers[0].url(), servers[1].url(), slow.url()]);
    let [guard] = locks(&dlm, &servers).await;
    slow.delay(SHORT);
    guard.release().await.unwrap();
    assert!(!is_empty(&servers));
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(is_empty(&servers));
}

#[tokio::test]
async fn cancelled_attempts_are_waited_for() {
    let servers = Server::many::<3>();
    let proxies = servers.each_ref().map(Proxy::start);
    let dlm = client(proxies.iter().map(Proxy::url));
    drop(locks::<1>(&dlm, &servers).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);

    proxies.iter().for_each(Proxy::hang);
    let attempt = dlm.lock(unique("resource"), TTL).into_future();
    assert!(timeout(SHORT, attempt).await.is_err());
    assert_eq!(dlm.shutdown(SHORT).await, 1);
    proxies.iter().for_each(Proxy::resume);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(is_empty(&servers));
}

#[tokio::test]
async fn an_attempt_cancelled_before_there_was_a_connection_leaves_nothing_to_wait_for() {
    let servers = Server::many::<3>();
    let proxies = servers.each_ref().map(Proxy::start);
    proxies.iter().for_each(Proxy::hang);
    let dlm = client(proxies.iter().map(Proxy::url));
    let attempt = dlm.lock(unique("resource"), TTL).into_future();
    assert!(timeout(SHORT, attempt).await.is_err());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    proxies.iter().for_each(Proxy::resume);
    // What comes later on the same connections comes after all there was before.
    let guard = dlm.lock("later", TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(is_empty(&servers));
}

#[tokio::test]
async fn a_frozen_master_is_waited_for_until_the_timeout() {
    let servers = Server::many::<3>();
    let dlm = direct(&servers);
    let guards = locks::<4>(&dlm, &servers).await;
    servers[0].freeze();
    drop(guards);

    let start = Instant::now();
    assert_eq!(dlm.shutdown(SHORT).await, 4);
    assert!(start.elapsed() >= SHORT);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert!(is_empty(&servers[1..]));

    servers[0].thaw();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(is_empty(&servers));
}

#[tokio::test]
async fn all_clones_are_waited_for_and_other_clients_are_not() {
    let servers = Server::many::<3>();
    let [dlm, other] = [direct(&servers), direct(&servers)];
    drop(locks::<1>(&other, &servers).await);
    assert_eq!(other.shutdown(LONG).await, 0);
    let guards = locks::<2>(&dlm.clone(), &servers).await;
    servers[0].freeze();
    drop(guards);
    assert_eq!(dlm.clone().shutdown(SHORT).await, 2);
    assert_eq!(other.shutdown(SHORT).await, 0);
}

#[tokio::test]
async fn nothing_to_wait_for_takes_no_time() {
    let servers = Server::many::<3>();
    let dlm = direct(&servers);
    let at_once = |timeout| dlm.shutdown(timeout);
    for limit in [Duration::ZERO, LONG * 10, Duration::MAX] {
        // A client that was never used.
        assert_eq!(timeout(LONG, at_once(limit)).await, Ok(0));
    }
    // A lock that is held is no release under way.
    let [guard] = locks(&dlm, &servers).await;
    assert_eq!(timeout(LONG, at_once(LONG * 10)).await, Ok(0));
    assert!(guard.is_valid());
    assert!(!is_empty(&servers));
    guard.release().await.unwrap();
    assert_eq!(timeout(LONG, at_once(LONG * 10)).await, Ok(0));
    assert_eq!(timeout(LONG, at_once(Duration::MAX)).await, Ok(0));
}

#[tokio::test]
async fn no_time_to_wait_still_tells_how_many_are_under_way() {
    let servers = Server::many::<3>();
    let dlm = direct(&servers);
    let guards = locks::<3>(&dlm, &servers).await;
    servers[0].freeze();
    drop(guards);
    assert_eq!(dlm.shutdown(Duration::ZERO).await, 3);
}

#[tokio::test]
async fn the_client_works_afterwards() {
    let servers = Server::many::<3>();
    let dlm = direct(&servers);
    for _ in 0..3 {
        let [guard] = locks(&dlm, &servers).await;
        guard.extend(2 * TTL).await.unwrap();
        let resource = guard.resource().to_vec();
        drop(guard);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(is_empty(&servers));
        let guard = dlm.try_lock(resource, TTL).await.unwrap();
        guard.release().await.unwrap();
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
}

#[tokio::test]
async fn a_key_that_has_expired_on_a_dead_master_is_not_waited_for() {
    let mut servers = Server::many::<3>();
    let dlm = direct(&servers);
    let guard = dlm.lock("resource", Duration::from_secs(2)).await.unwrap();
    let held = async || servers.iter().all(|server| !server.keys().is_empty());
    eventually_async("every master holds it", LONG, held).await;
    servers[0].kill();
    drop(guard);
    assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
    // It would be unconfirmed for ever.
    assert_eq!(timeout(LONG, dlm.shutdown(LONG * 10)).await, Ok(0));
    assert!(is_empty(&servers[1..]));
}

#[test]
fn a_release_that_ends_with_the_runtime_of_its_client_is_counted_once() {
    let servers = Server::many::<3>();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    };
    let own = runtime();
    let builder = Redlock::builder().masters(servers.iter().map(Server::url));
    let dlm = builder.runtime(own.handle().clone()).build().unwrap();
    let [guard] = own.block_on(locks(&dlm, &servers));
    // Its runtime has the release in its queue and never looks at it.
    drop(guard);
    drop(own);
    let shutdown = || runtime().block_on(dlm.shutdown(Duration::from_secs(1)));
    assert_eq!(shutdown(), 1);
    assert_eq!(shutdown(), 0);
}
