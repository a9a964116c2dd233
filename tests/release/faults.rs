//! Releasing a lock that is lost, or while masters are silent or down: the answer is true, nobody else's key is
//! touched, nothing is waited for that does not matter, and what could not be undone at once is undone later.

use std::time::{Duration, Instant};

use redis::cmd;
use support::{Proxy, Server, eventually_async, unique};
use tokio::time::sleep;
use tokio_redlock::inspect::Verdict;
use tokio_redlock::{ExtendError, LockGuard, MasterError, Redlock, ReleaseError, Vote};

/// Only reached by a test that fails.
const LONG: Duration = Duration::from_secs(20);

/// Long against anything that a test does.
const TTL: Duration = Duration::from_secs(40);

/// After so long a key that is not there will not come.
const SETTLED: Duration = Duration::from_millis(400);

/// As long as a master may take to be clean once it can be reached again.
const SOON: Duration = Duration::from_secs(2);

fn client(servers: &[Server]) -> Redlock {
    Redlock::new(servers.iter().map(Server::url)).expect("valid URLs")
}

/// A client that shows when it waits for masters that do not answer: it does so for very long.
fn patient_client(servers: &[Server]) -> Redlock {
    let builder = Redlock::builder().request_timeout(LONG);
    let urls = servers.iter().map(Server::url);
    let builder = urls.fold(builder, |builder, url| builder.master(url));
    builder.build().expect("valid URLs")
}

fn holds(server: &Server, guard: &LockGuard) -> bool {
    server.get(guard.resource()).as_deref() == Some(guard.value().as_bytes())
}

/// A lock that is on all masters, the last one too, which a busy machine may have made too slow for the first.
async fn lock_everywhere(dlm: &Redlock, servers: &[Server], ttl: Duration) -> LockGuard {
    let start = Instant::now();
    loop {
        let guard = dlm.lock(unique("lock"), ttl).await.expect("it is free");
        let latest = Instant::now() + SETTLED;
        while Instant::now() < latest {
            if servers.iter().all(|server| holds(server, &guard)) {
                return guard;
            }
            sleep(Duration::from_millis(2)).await;
        }
        assert!(start.elapsed() < LONG, "never on all masters");
    }
}

/// Releases, which must not take long against the request timeout of a patient client.
async fn release_at_once(guard: LockGuard) -> Result<(), ReleaseError> {
    let start = Instant::now();
    let result = guard.release().await;
    let took = start.elapsed();
    assert!(took < LONG / 4, "it took {took:?}: {result:?}");
    result
}

async fn assert_clean_soon(servers: &[Server]) {
    eventually_async("no key is left", SOON, async || {
        servers.iter().all(|server| server.keys().is_empty())
    })
    .await;
}

fn is_not_held(result: &Result<(), ReleaseError>) -> bool {
    matches!(result, Err(ReleaseError::NotHeld { .. }))
}

fn is_unconfirmed(result: &Result<(), ReleaseError>) -> bool {
    matches!(result, Err(ReleaseError::Unconfirmed { .. }))
}

fn votes(error: &ReleaseError) -> Vec<Vote> {
    let (ReleaseError::NotHeld { ballots, .. } | ReleaseError::Unconfirmed { ballots, .. }) = error
    else {
        panic!("no votes in {error:?}");
    };
    ballots.iter().map(|ballot| ballot.vote.clone()).collect()
}

#[tokio::test]
async fn releasing_an_expired_lock_says_that_it_was_not_held() {
    let servers = Server::many::<3>();
    let dlm = client(&servers);
    let guard = lock_everywhere(&dlm, &servers, Duration::from_millis(500)).await;
    eventually_async("it expires", LONG, async || {
        servers.iter().all(|server| server.keys().is_empty())
    })
    .await;
    assert!(!guard.is_valid());
    let error = guard.release().await.unwrap_err();
    let votes = votes(&error);
    assert!(matches!(error, ReleaseError::NotHeld { .. }), "{error:?}");
    let refused = |vote: &&Vote| matches!(vote, Vote::Refused);
    assert!(votes.iter().filter(refused).count() >= 2, "{votes:?}");
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

#[tokio::test]
async fn the_next_holder_is_not_hurt_by_the_release_of_the_one_before() {
    let servers = Server::many::<3>();
    let (dlm, other) = (client(&servers), client(&servers));
    let late = lock_everywhere(&dlm, &servers, Duration::from_millis(500)).await;
    eventually_async("it expires", LONG, async || {
        servers.iter().all(|server| server.keys().is_empty())
    })
    .await;
    let guard = other.lock(late.resource(), TTL).await.unwrap();
    eventually_async("the next has it", LONG, async || {
        servers.iter().all(|server| holds(server, &guard))
    })
    .await;
    assert!(!late.is_valid());
    assert!(is_not_held(&late.release().await));
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &servers {
        assert!(holds(server, &guard));
    }
    guard
        .release()
        .await
        .expect("the lock of the next is its own");
}

/// Takes the lock away from its holder on the first `n` of five masters, for every `n`, and releases it.
async fn release_after_losing(lose: impl Fn(&Server, &[u8]), check: impl Fn(&Server, &[u8])) {
    let servers = Server::start_n(5);
    let dlm = client(&servers);
    for lost in 0..=servers.len() {
        let guard = lock_everywhere(&dlm, &servers, TTL).await;
        let resource = guard.resource().to_vec();
        for server in &servers[..lost] {
            lose(server, &resource);
        }
        let result = guard.release().await;
        if lost <= 2 {
            assert!(result.is_ok(), "lost on {lost}: {result:?}");
        } else {
            assert!(is_not_held(&result), "lost on {lost}: {result:?}");
        }
        assert_eq!(dlm.shutdown(LONG).await, 0);
        for server in &servers[..lost] {
            check(server, &resource);
        }
        for server in &servers[lost..] {
            assert_eq!(server.get(&resource), None, "left, lost on {lost}");
        }
    }
}

#[tokio::test]
async fn a_stolen_lock_is_reported_if_a_quorum_is_lost_and_the_thief_keeps_all_it_has() {
    release_after_losing(
        |server, resource| server.set(resource, "thief"),
        |server, resource| {
            assert_eq!(server.get(resource).as_deref(), Some(&b"thief"[..]));
            assert_eq!(server.pttl(resource), -1);
        },
    )
    .await;
}

#[tokio::test]
async fn a_deleted_lock_is_reported_if_a_quorum_is_lost() {
    release_after_losing(
        |server, resource| assert!(server.del(resource)),
        |server, resource| assert_eq!(server.get(resource), None),
    )
    .await;
}

#[tokio::test]
async fn a_key_that_has_become_something_else_than_a_string_is_left_alone() {
    let servers = Server::many::<3>();
    let dlm = client(&servers);
    for taken in 1..=3 {
        let guard = lock_everywhere(&dlm, &servers, TTL).await;
        let resource = guard.resource().to_vec();
        for server in &servers[..taken] {
            server.del(&resource);
            server.query::<()>(cmd("RPUSH").arg(&resource).arg("item"));
        }
        let result = guard.release().await;
        if taken == 1 {
            assert!(result.is_ok(), "{result:?}");
        } else {
            assert!(is_unconfirmed(&result), "{result:?}");
            let votes = votes(&result.unwrap_err());
            let wrong = |vote: &&Vote| matches!(vote, Vote::Failed(MasterError::WrongType(_)));
            assert!(votes.iter().filter(wrong).count() >= 2, "{votes:?}");
        }
        // There is nothing of ours left to wait for.
        assert_eq!(dlm.shutdown(LONG).await, 0);
        for server in &servers[..taken] {
            assert_eq!(server.query::<u64>(cmd("LLEN").arg(&resource)), 1);
            server.del(&resource);
        }
        assert_clean_soon(&servers).await;
    }
}

#[tokio::test]
async fn a_frozen_minority_is_not_waited_for_and_is_clean_when_it_thaws() {
    let servers = Server::start_n(5);
    let dlm = patient_client(&servers);
    for frozen in 1..=2 {
        let guard = lock_everywhere(&dlm, &servers, TTL).await;
        for server in &servers[..frozen] {
            server.freeze();
        }
        release_at_once(guard).await.expect("a quorum answers");
        assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
        assert_clean_soon(&servers[frozen..]).await;
        for server in &servers[..frozen] {
            server.thaw();
        }
        assert_clean_soon(&servers).await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
}

#[tokio::test]
async fn a_frozen_majority_leaves_the_release_unconfirmed_and_is_clean_when_it_thaws() {
    let servers = Server::start_n(5);
    let dlm = client(&servers);
    let guard = lock_everywhere(&dlm, &servers, TTL).await;
    for server in &servers[..3] {
        server.freeze();
    }
    let result = guard.release().await;
    assert!(is_unconfirmed(&result), "{result:?}");
    for vote in &votes(&result.unwrap_err())[..3] {
        assert!(matches!(vote, Vote::Failed(_)), "{vote:?}");
    }
    assert_clean_soon(&servers[3..]).await;
    for server in &servers[..3] {
        server.thaw();
    }
    assert_clean_soon(&servers).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

#[tokio::test]
async fn masters_that_are_down_are_not_waited_for_whatever_the_outcome() {
    for down in 1..=3 {
        let mut servers = Server::start_n(5);
        let dlm = patient_client(&servers);
        let guard = lock_everywhere(&dlm, &servers, TTL).await;
        for server in &mut servers[..down] {
            server.kill();
        }
        let result = release_at_once(guard).await;
        if down <= 2 {
            assert!(result.is_ok(), "{down} down: {result:?}");
        } else {
            assert!(is_unconfirmed(&result), "{down} down: {result:?}");
        }
        assert_clean_soon(&servers[down..]).await;
        // They may still hold the key for all that the client can know.
        assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
    }
}

#[tokio::test]
async fn a_master_that_cannot_be_reached_is_clean_soon_after_it_can() {
    let servers = Server::many::<3>();
    let proxies = servers.each_ref().map(Proxy::start);
    let dlm = Redlock::new(proxies.iter().map(Proxy::url)).unwrap();
    for by_drop in [false, true] {
        let guard = lock_everywhere(&dlm, &servers, TTL).await;
        let resource = guard.resource().to_vec();
        proxies[0].refuse();
        if by_drop {
            drop(guard);
        } else {
            guard.release().await.expect("a quorum answers");
        }
        assert_clean_soon(&servers[1..]).await;
        assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
        assert!(servers[0].get(&resource).is_some());
        proxies[0].resume();
        assert_clean_soon(&servers).await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
}

#[tokio::test]
async fn a_master_that_remembers_its_keys_is_clean_soon_after_its_restart() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = [
        Server::start_with(&durable),
        Server::start(),
        Server::start(),
    ];
    let dlm = client(&servers);
    for by_drop in [false, true] {
        let guard = lock_everywhere(&dlm, &servers, TTL).await;
        let leaked = lock_everywhere(&dlm, &servers, TTL).await;
        let (resource, left) = (guard.resource().to_vec(), leaked.resource().to_vec());
        leaked.leak();
        servers[0].kill();
        if by_drop {
            drop(guard);
        } else {
            guard.release().await.expect("a quorum answers");
        }
        servers[0].restart();
        eventually_async("the key is gone", SOON, async || {
            servers[0].get(&resource).is_none()
        })
        .await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
        // It was there before, as is the one that nobody released.
        assert_eq!(servers[0].calls("del"), 1);
        assert!(servers[0].get(&left).is_some());
    }
}

#[tokio::test]
async fn a_master_that_forgot_the_key_does_not_hinder_the_release() {
    let mut servers = Server::many::<3>();
    let dlm = client(&servers);
    let guard = lock_everywhere(&dlm, &servers, TTL).await;
    servers[0].restart();
    guard.release().await.expect("a quorum had it");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_clean_soon(&servers).await;
}

#[tokio::test]
async fn what_cannot_be_confirmed_is_given_up_when_the_ttl_is_over() {
    let mut servers = Server::many::<3>();
    let dlm = client(&servers);
    let guard = lock_everywhere(&dlm, &servers, Duration::from_secs(2)).await;
    let held_until = Instant::now() + guard.validity();
    servers[0].kill();
    guard.release().await.expect("a quorum answers");
    assert_eq!(dlm.shutdown(Duration::from_millis(100)).await, 1);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(Instant::now() >= held_until);
}

/// A connection that is refused says nothing of the keys that an earlier one has set.
#[tokio::test]
async fn a_lock_that_could_not_be_extended_for_want_of_a_password_is_released_all_the_same() {
    let servers = Server::many::<3>();
    let set_user = |rule: &str| {
        for server in &servers {
            let mut user = cmd("ACL");
            user.arg(&["SETUSER", "locker", rule, ">secret", "~*", "+@all"]);
            server.query::<()>(&user);
        }
    };
    set_user("on");
    let url = |server: &Server| format!("redis://locker:secret@{}", server.addr());
    let dlm = Redlock::new(servers.each_ref().map(url)).expect("valid URLs");
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    let held = async || servers.iter().all(|server| !server.keys().is_empty());
    eventually_async("every master holds it", LONG, held).await;

    set_user("off");
    servers.iter().for_each(Server::kill_clients);
    let refused = async |times: &mut u32| {
        let extended = guard.extend(TTL).await;
        let Err(ExtendError::Unconfirmed { ballots, .. }) = extended else {
            panic!("{extended:?}");
        };
        let is_auth = |vote: &Vote| matches!(vote, Vote::Failed(MasterError::Auth(_)));
        *times += u32::from(ballots.iter().all(|ballot| is_auth(&ballot.vote)));
        *times > 3
    };
    let mut times = 0;
    eventually_async("refused", LONG, async || refused(&mut times).await).await;

    set_user("on");
    let released = async || dlm.inspect("other").await.verdict == Verdict::Free;
    eventually_async("they are connected again", LONG, released).await;
    guard.release().await.expect("it is still held");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(servers.iter().all(|server| server.keys().is_empty()));
}
