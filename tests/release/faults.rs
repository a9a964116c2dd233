//! A release after the lock was lost, or while masters are silent or down: its result is true, no key of anybody else
//! is deleted, no master is waited for in vain, and what cannot be deleted at once is deleted later.

use std::time::{Duration, Instant};

use redis::cmd;
use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio_redlock::inspect::Verdict;
use tokio_redlock::{ExtendError, LockGuard, MasterError, Redlock, ReleaseError, Vote};

/// Long against anything that a test does.
const TTL: Duration = Duration::from_secs(40);

/// As long as a master may take to be clean once it can be reached again.
const SOON: Duration = Duration::from_secs(2);

async fn lock_everywhere(dlm: &Redlock, masters: &[Server], ttl: Duration) -> LockGuard {
    masters.lock_everywhere(dlm, &unique("lock"), ttl).await
}

/// Releases, which must not take long against the request timeout of a patient client.
async fn release_at_once(guard: LockGuard) -> Result<(), ReleaseError> {
    let start = Instant::now();
    let result = guard.release().await;
    let took = start.elapsed();
    assert!(took < LONG / 6, "it took {took:?}: {result:?}");
    result
}

async fn assert_clean_soon(masters: &[Server]) {
    let clean = async || masters.are_empty();
    eventually_async("no key is left", SOON, clean).await;
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
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, Duration::from_millis(500)).await;
    // It expires.
    masters.eventually_empty().await;
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
    let masters = Masters::start(3);
    let (dlm, other) = (masters.client(), masters.client());
    let late = lock_everywhere(&dlm, &masters, Duration::from_millis(500)).await;
    // It expires.
    masters.eventually_empty().await;
    let guard = other.lock(late.resource(), TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    assert!(!late.is_valid());
    assert!(is_not_held(&late.release().await));
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.all_hold(&guard));
    guard
        .release()
        .await
        .expect("the lock of the next is its own");
}

/// Takes the lock away from its holder on the first `n` of five masters, for every `n`, and releases it.
async fn release_after_losing(lose: impl Fn(&Server, &[u8]), check: impl Fn(&Server, &[u8])) {
    let masters = Masters::start(5);
    let dlm = masters.client();
    for lost in 0..=masters.len() {
        let guard = lock_everywhere(&dlm, &masters, TTL).await;
        let resource = guard.resource().to_vec();
        for server in &masters[..lost] {
            lose(server, &resource);
        }
        let result = guard.release().await;
        if lost <= 2 {
            assert!(result.is_ok(), "lost on {lost}: {result:?}");
        } else {
            assert!(is_not_held(&result), "lost on {lost}: {result:?}");
        }
        assert_eq!(dlm.shutdown(LONG).await, 0);
        for server in &masters[..lost] {
            check(server, &resource);
        }
        for server in &masters[lost..] {
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
    let masters = Masters::start(3);
    let dlm = masters.client();
    for taken in 1..=3 {
        let guard = lock_everywhere(&dlm, &masters, TTL).await;
        let resource = guard.resource().to_vec();
        for server in &masters[..taken] {
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
        for server in &masters[..taken] {
            assert_eq!(server.query::<u64>(cmd("LLEN").arg(&resource)), 1);
            server.del(&resource);
        }
        assert_clean_soon(&masters).await;
    }
}

#[tokio::test]
async fn a_frozen_minority_is_not_waited_for_and_is_clean_when_it_thaws() {
    let masters = Masters::start(5);
    let dlm = masters.patient_client();
    for frozen in 1..=2 {
        let guard = lock_everywhere(&dlm, &masters, TTL).await;
        for server in &masters[..frozen] {
            server.freeze();
        }
        release_at_once(guard).await.expect("a quorum answers");
        assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
        assert_clean_soon(&masters[frozen..]).await;
        for server in &masters[..frozen] {
            server.thaw();
        }
        assert_clean_soon(&masters).await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
}

#[tokio::test]
async fn a_frozen_majority_leaves_the_release_unconfirmed_and_is_clean_when_it_thaws() {
    let masters = Masters::start(5);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    for server in &masters[..3] {
        server.freeze();
    }
    let result = guard.release().await;
    assert!(is_unconfirmed(&result), "{result:?}");
    for vote in &votes(&result.unwrap_err())[..3] {
        assert!(matches!(vote, Vote::Failed(_)), "{vote:?}");
    }
    assert_clean_soon(&masters[3..]).await;
    for server in &masters[..3] {
        server.thaw();
    }
    assert_clean_soon(&masters).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

#[tokio::test]
async fn masters_that_are_down_are_not_waited_for_whatever_the_outcome() {
    for down in 1..=3 {
        let mut masters = Masters::start(5);
        let dlm = masters.patient_client();
        let guard = lock_everywhere(&dlm, &masters, TTL).await;
        for server in &mut masters[..down] {
            server.kill();
        }
        let result = release_at_once(guard).await;
        if down <= 2 {
            assert!(result.is_ok(), "{down} down: {result:?}");
        } else {
            assert!(is_unconfirmed(&result), "{down} down: {result:?}");
        }
        assert_clean_soon(&masters[down..]).await;
        // They may still hold the key for all that the client can know.
        assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
    }
}

#[tokio::test]
async fn a_master_that_cannot_be_reached_is_clean_soon_after_it_can() {
    let masters = Masters::start(3).with_proxies([0]);
    let dlm = masters.client();
    for by_drop in [false, true] {
        let guard = lock_everywhere(&dlm, &masters, TTL).await;
        let resource = guard.resource().to_vec();
        masters.proxy(0).refuse();
        if by_drop {
            drop(guard);
        } else {
            guard.release().await.expect("a quorum answers");
        }
        assert_clean_soon(&masters[1..]).await;
        assert_eq!(dlm.shutdown(Duration::ZERO).await, 1);
        assert!(masters[0].get(&resource).is_some());
        masters.proxy(0).resume();
        assert_clean_soon(&masters).await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
}

#[tokio::test]
async fn a_master_that_remembers_its_keys_is_clean_soon_after_its_restart() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut masters = vec![Server::start_with(&durable)];
    masters.extend(Server::many(2));
    let mut masters = Masters::from(masters);
    let dlm = masters.client();
    for by_drop in [false, true] {
        let guard = lock_everywhere(&dlm, &masters, TTL).await;
        let leaked = lock_everywhere(&dlm, &masters, TTL).await;
        let (resource, left) = (guard.resource().to_vec(), leaked.resource().to_vec());
        leaked.leak();
        masters[0].kill();
        if by_drop {
            drop(guard);
        } else {
            guard.release().await.expect("a quorum answers");
        }
        masters[0].restart();
        eventually_async("the key is gone", SOON, async || {
            masters[0].get(&resource).is_none()
        })
        .await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
        // It was there before, as is the one that nobody released.
        assert!(masters[0].deletes() > 0);
        assert!(masters[0].get(&left).is_some());
    }
}

#[tokio::test]
async fn a_master_that_forgot_the_key_does_not_hinder_the_release() {
    let mut masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    masters[0].restart();
    guard.release().await.expect("a quorum had it");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_clean_soon(&masters).await;
}

#[tokio::test]
async fn what_cannot_be_confirmed_is_given_up_when_the_ttl_is_over() {
    let mut masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, Duration::from_secs(2)).await;
    let held_until = Instant::now() + guard.validity();
    masters[0].kill();
    guard.release().await.expect("a quorum answers");
    assert_eq!(dlm.shutdown(Duration::from_millis(100)).await, 1);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(Instant::now() >= held_until);
}

/// A connection that is refused says nothing of the keys that an earlier one has set.
#[tokio::test]
async fn a_lock_that_could_not_be_extended_for_want_of_a_password_is_released_all_the_same() {
    let masters = Masters::start(3);
    let set_user = |rule: &str| {
        for server in &masters {
            let mut user = cmd("ACL");
            user.arg(&["SETUSER", "locker", rule, ">secret", "~*", "+@all"]);
            server.query::<()>(&user);
        }
    };
    set_user("on");
    let url = |server: &Server| format!("redis://locker:secret@{}", server.addr());
    let dlm = Redlock::new(masters.iter().map(url)).expect("valid URLs");
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters.eventually_hold(&guard).await;

    set_user("off");
    masters.iter().for_each(Server::kill_clients);
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
    assert!(masters.are_empty());
}
