//! How a lock ends: released, dropped, leaked, expired, deleted or stolen.

use std::time::{Duration, Instant};

use redis::cmd;
use support::{LONG, Masters, Proxy, Server, Servers, eventually, eventually_async, unique};
use tokio_redlock::{
    Ballots, ExtendError, LockError, LockGuard, MasterError, Redlock, ReleaseError, Vote,
};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// For locks that are to expire.
const SHORT: Duration = Duration::from_millis(300);

/// What one master takes longer than the others.
const DELAY: Duration = Duration::from_millis(100);

const FOREIGN: &[u8] = b"\xff\xfe\x00";

/// Waits until the lock has expired for us and for the masters.
async fn expire(masters: &[Server], guard: &LockGuard) {
    let resource = guard.resource();
    let expired = async || {
        let gone = |server: &Server| server.get(resource).is_none();
        !guard.is_valid() && masters.iter().all(gone)
    };
    eventually_async("it expires", LONG, expired).await;
}

fn count(ballots: &Ballots, vote: impl Fn(&Vote) -> bool) -> usize {
    ballots.iter().filter(|ballot| vote(&ballot.vote)).count()
}

fn refused(ballots: &Ballots) -> usize {
    count(ballots, |vote| matches!(vote, Vote::Refused))
}

fn assert_not_held(released: Result<(), ReleaseError>, resource: &str) -> Ballots {
    let Err(error @ ReleaseError::NotHeld { .. }) = released else {
        panic!("not NotHeld: {released:?}");
    };
    assert!(error.to_string().contains(resource), "{error}");
    let ReleaseError::NotHeld { ballots, .. } = error else {
        unreachable!("matched above");
    };
    ballots
}

#[tokio::test]
async fn a_release_leaves_nothing_on_any_master() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    guard.release().await.unwrap();
    masters.eventually_empty().await;
}

#[tokio::test]
async fn a_drop_leaves_nothing_on_any_master() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    drop(guard);
    masters.eventually_empty().await;
}

#[tokio::test]
async fn a_guard_that_outlives_its_ttl_leaves_nothing_on_any_master() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, SHORT).await.unwrap();
    expire(&masters, &guard).await;
    let next = dlm.lock(&resource, TTL).await.unwrap();
    assert_ne!(next.value(), guard.value());
    assert!(next.is_valid() && !guard.is_valid());
}

async fn assert_free_for_the_next_try(dlm: &Redlock, resource: &str) {
    let guard = dlm.lock(resource, TTL).await.unwrap();
    drop(guard);
    let next = dlm.try_lock(resource, TTL).await;
    assert!(next.is_ok(), "{next:?}");
}

#[tokio::test]
async fn a_dropped_lock_is_free_for_the_very_next_try() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    for _ in 0..100 {
        assert_free_for_the_next_try(&dlm, &resource).await;
    }
    drop(dlm.lock(&resource, TTL).await.unwrap());
    masters.eventually_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_lock_is_free_for_the_very_next_try_with_many_threads_too() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    for _ in 0..100 {
        assert_free_for_the_next_try(&dlm, &resource).await;
    }
}

#[tokio::test]
async fn a_dropped_lock_is_free_for_the_very_next_try_on_fresh_servers_too() {
    for _ in 0..10 {
        let masters = Masters::start(3);
        assert_free_for_the_next_try(&masters.patient_client(), "resource").await;
    }
}

#[tokio::test]
async fn servers_that_lost_the_scripts_are_given_them_again() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    for server in &masters {
        server.query::<()>(cmd("SCRIPT").arg("FLUSH"));
    }
    guard.extend(2 * TTL).await.unwrap();
    for server in &masters {
        server.query::<()>(cmd("SCRIPT").arg("FLUSH"));
    }
    guard.release().await.unwrap();
    masters.eventually_empty().await;
}

#[tokio::test]
async fn a_leaked_lock_keeps_its_keys_until_the_ttl() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let ttl = Duration::from_secs(4);
    let guard = dlm.lock(&resource, ttl).await.unwrap();
    masters.eventually_hold(&guard).await;
    let value = guard.value().as_bytes().to_vec();
    guard.leak();

    assert_eq!(dlm.shutdown(LONG).await, 0);
    let again = dlm.try_lock(&resource, ttl).await;
    assert!(matches!(again, Err(LockError::Taken(_))), "{again:?}");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters {
        assert_eq!(server.get(&resource).as_ref(), Some(&value));
    }
    masters.eventually_empty().await;
}

#[tokio::test]
async fn the_release_of_an_expired_lock_says_that_it_was_not_held() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, SHORT).await.unwrap();
    expire(&masters, &guard).await;
    let ballots = assert_not_held(guard.release().await, &resource);
    assert!(refused(&ballots) >= 2, "{ballots}");
}

#[tokio::test]
async fn the_release_of_an_expired_lock_leaves_the_next_holder_alone() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, SHORT).await.unwrap();
    expire(&masters, &guard).await;
    let next = masters.patient_client().lock(&resource, TTL).await.unwrap();
    masters.eventually_hold(&next).await;
    assert_not_held(guard.release().await, &resource);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    masters.eventually_hold(&next).await;
    next.release().await.unwrap();
}

#[tokio::test]
async fn the_release_of_a_deleted_lock_says_so_if_a_quorum_lost_it() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for (deleted, held) in [(1, true), (2, false), (3, false)] {
        let resource = unique("resource");
        let guard = dlm.lock(&resource, TTL).await.unwrap();
        masters.eventually_hold(&guard).await;
        for server in &masters[..deleted] {
            assert!(server.del(&resource));
        }
        let released = guard.release().await;
        if held {
            released.unwrap();
        } else {
            assert_not_held(released, &resource);
        }
        masters.eventually_empty().await;
    }
}

#[tokio::test]
async fn the_release_of_a_stolen_lock_leaves_the_key_of_the_thief_alone() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for (stolen, held) in [(1, true), (2, false), (3, false)] {
        let resource = unique("resource");
        let guard = dlm.lock(&resource, TTL).await.unwrap();
        masters.eventually_hold(&guard).await;
        let (theirs, ours) = masters.split_at(stolen);
        for server in theirs {
            server.set_px(&resource, FOREIGN, 120_000);
        }
        let released = guard.release().await;
        if held {
            released.unwrap();
        } else {
            assert_not_held(released, &resource);
        }
        assert_eq!(dlm.shutdown(LONG).await, 0);
        for server in theirs {
            assert_eq!(server.get(&resource).as_deref(), Some(FOREIGN));
            assert!(server.pttl(&resource) > 0);
        }
        assert!(ours.iter().all(|server| server.get(&resource).is_none()));
    }
}

#[tokio::test]
async fn the_drop_of_an_expired_guard_leaves_the_next_holder_alone() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, SHORT).await.unwrap();
    expire(&masters, &guard).await;
    for server in &masters {
        server.set_px(&resource, FOREIGN, 120_000);
    }
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters {
        assert_eq!(server.get(&resource).as_deref(), Some(FOREIGN));
    }
}

/// A quorum answers, and says no: which masters are down, or answer first, makes no difference.
#[tokio::test]
async fn a_lock_that_a_quorum_does_not_hold_was_not_held_whoever_answers_first() {
    for (number, down) in [(2, 0), (3, 1), (4, 0), (4, 1), (5, 1), (5, 2)] {
        let masters = Masters::behind_proxies(number);
        let dlm = masters.patient_client();
        let resource = unique("resource");
        let guard = dlm.lock(&resource, TTL).await.unwrap();
        masters.eventually_hold(&guard).await;
        masters.proxies().take(down).for_each(Proxy::refuse);
        masters.proxy(number - 1).delay(DELAY);
        for server in &masters[down..] {
            assert!(server.del(&resource));
        }
        let released = guard.release().await;
        assert!(
            matches!(released, Err(ReleaseError::NotHeld { .. })),
            "{down} of {number} down: {released:?}"
        );
    }
}

#[tokio::test]
async fn the_release_of_a_lock_that_an_extension_found_lost_says_that_it_was_not_held() {
    for number in [1, 3] {
        let masters = Masters::start(number);
        let dlm = masters.patient_client();
        let resource = unique("resource");
        let guard = dlm.lock(&resource, TTL).await.unwrap();
        masters.eventually_hold(&guard).await;
        for server in &masters {
            server.set_px(&resource, FOREIGN, 120_000);
        }
        // More than once, so that every master has been heard.
        for _ in 0..3 {
            let extended = guard.extend(TTL).await;
            assert!(
                matches!(extended, Err(ExtendError::Lost { .. })),
                "{extended:?}"
            );
        }
        assert_not_held(guard.release().await, &resource);
    }
}

#[tokio::test]
async fn a_release_that_too_few_masters_answer_is_not_confirmed() {
    let mut masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    let [one, others @ ..] = &mut *masters else {
        panic!("there are three");
    };
    for server in &mut *others {
        server.kill();
    }

    let released = guard.release().await;
    let Err(error @ ReleaseError::Unconfirmed { .. }) = released else {
        panic!("confirmed: {released:?}");
    };
    let text = error.to_string();
    assert!(text.contains(&resource), "{text}");
    let ReleaseError::Unconfirmed { ballots, .. } = error else {
        unreachable!("matched above");
    };
    let down = |vote: &Vote| {
        matches!(
            vote,
            Vote::Failed(MasterError::Connect(_) | MasterError::Disconnected(_))
        )
    };
    assert_eq!(count(&ballots, down), 2, "{ballots}");
    for server in &*others {
        assert!(text.contains(&server.addr()), "{text}");
    }
    let gone = async || one.get(&resource).is_none();
    eventually_async("gone where it can be", LONG, gone).await;
}

#[tokio::test]
async fn a_release_that_is_dropped_half_way_goes_on() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.patient_client();
    for polled in [false, true] {
        let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
        masters.eventually_hold(&guard).await;
        // No answer comes during the poll, however long this thread is kept from it.
        masters
            .proxies()
            .for_each(|proxy| proxy.delay_answers(DELAY));
        let mut release = Box::pin(guard.release());
        if polled {
            assert!(futures::poll!(&mut release).is_pending());
        }
        drop(release);
        masters.eventually_empty().await;
    }
}

#[tokio::test]
async fn the_validity_starts_below_the_ttl_goes_down_and_stays_at_zero() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let start = Instant::now();
    let guard = dlm.lock(unique("resource"), SHORT).await.unwrap();

    let drift = SHORT / 100 + Duration::from_millis(2);
    let mut before = guard.validity();
    assert!(before <= SHORT - drift, "{before:?}");
    eventually("it ends", LONG, || {
        let now = guard.validity();
        assert!(now <= before, "{now:?} after {before:?}");
        before = now;
        !guard.is_valid()
    });
    assert!(start.elapsed() >= SHORT - drift);
    assert_eq!(guard.validity(), Duration::ZERO);
    assert!(!guard.is_valid());
    assert_eq!(guard.validity(), Duration::ZERO);
}

#[tokio::test]
async fn a_lock_is_valid_for_as_long_as_it_is_held() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    assert!(guard.is_valid());
    assert!(guard.validity() > TTL / 2);
    // No master lets go of it while it is valid.
    masters.eventually_hold(&guard).await;
    for server in &masters {
        let left = u64::try_from(server.pttl(guard.resource())).unwrap();
        assert!(Duration::from_millis(left) <= TTL);
        assert!(Duration::from_millis(left) >= guard.validity());
    }
}

#[tokio::test]
async fn a_master_that_was_never_sent_the_lock_is_not_said_to_have_refused() {
    let mut masters = Masters::start(5);
    let dlm = masters.client();
    masters[3..].iter_mut().for_each(Server::kill);
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters[..3].eventually_hold(&guard).await;
    masters[2].freeze();
    let released = guard.release().await;
    let Err(ReleaseError::Unconfirmed { ballots, .. }) = released else {
        panic!("two of five confirmed: {released:?}");
    };
    let votes: Vec<_> = ballots.iter().map(|ballot| &ballot.vote).collect();
    assert!(
        matches!(votes[..2], [Vote::Granted, Vote::Granted]),
        "{votes:?}"
    );
    assert!(matches!(votes[2], Vote::Failed(_)), "{votes:?}");
    assert!(
        matches!(votes[3..], [Vote::HoldsNothing, Vote::HoldsNothing]),
        "{votes:?}"
    );
    assert!(
        ballots.to_string().contains("holds no key of ours"),
        "{ballots}"
    );
    masters[2].thaw();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters[..3].are_empty());
}
