//! Extending a lock, and when that is refused.

use std::time::Duration;

use support::{LONG, Masters, Proxy, Server, Servers, eventually_async, unique};
use tokio_redlock::{
    Ballots, ExtendError, LockError, LockGuard, LossReason, MasterError, Redlock, TtlError, Vote,
};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// What one master takes longer than the others.
const DELAY: Duration = Duration::from_millis(100);

const FOREIGN: &[u8] = b"\xff\xfe\x00";

/// Ends delays, and the connections on which answers are still under way.
fn heal(masters: &Masters) {
    for proxy in masters.proxies() {
        proxy.resume();
        proxy.cut();
    }
}

/// A lock that every master holds.
async fn lock(dlm: &Redlock, masters: &[Server], ttl: Duration) -> LockGuard {
    let guard = dlm.lock(unique("resource"), ttl).await.unwrap();
    masters.eventually_hold(&guard).await;
    guard
}

async fn expire(guard: &LockGuard) {
    let expired = async || !guard.is_valid();
    eventually_async("it expires", LONG, expired).await;
}

/// How long the key lives on a master; zero if it is not there.
fn left(server: &Server, guard: &LockGuard) -> Duration {
    let left = u64::try_from(server.pttl(guard.resource()));
    Duration::from_millis(left.unwrap_or(0))
}

fn is_foreign(server: &Server, guard: &LockGuard) -> bool {
    server.get(guard.resource()).as_deref() == Some(FOREIGN)
}

fn count(ballots: &Ballots, vote: impl Fn(&Vote) -> bool) -> usize {
    ballots.iter().filter(|ballot| vote(&ballot.vote)).count()
}

fn lost(extended: Result<(), ExtendError>) -> Ballots {
    match extended {
        Err(ExtendError::Lost { ballots, .. }) => ballots,
        other => panic!("not lost: {other:?}"),
    }
}

fn unconfirmed(extended: Result<(), ExtendError>) -> Ballots {
    match extended {
        Err(ExtendError::Unconfirmed { ballots, .. }) => ballots,
        other => panic!("not unconfirmed: {other:?}"),
    }
}

#[tokio::test]
async fn an_extension_lengthens_the_validity_and_the_keys() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;
    let value = guard.value().to_owned();
    guard.extend(2 * TTL).await.unwrap();

    assert!(guard.validity() > TTL);
    assert!(guard.validity() < 2 * TTL);
    assert_eq!(guard.value(), value);
    for server in &masters {
        let lengthened = async || left(server, &guard) > TTL;
        eventually_async("the key is lengthened", LONG, lengthened).await;
        assert!(left(server, &guard) <= 2 * TTL);
        assert!(left(server, &guard) >= guard.validity());
    }
    masters.eventually_hold(&guard).await;
    guard.release().await.unwrap();
}

#[tokio::test]
async fn an_extended_lock_outlives_its_first_ttl() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let short = Duration::from_secs(2);
    let guard = lock(&dlm, &masters, short).await;
    let other = lock(&dlm, &masters, short).await;
    guard.extend(TTL).await.unwrap();

    expire(&other).await;
    assert!(guard.is_valid());
    let again = dlm.lock(other.resource(), TTL).await;
    assert!(again.is_ok(), "{again:?}");
    let again = dlm.try_lock(guard.resource(), TTL).await;
    assert!(matches!(again, Err(LockError::Taken(_))), "{again:?}");
    masters.eventually_hold(&guard).await;
}

#[tokio::test]
async fn a_lock_can_be_extended_again_and_again() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;
    for times in 2..20 {
        guard.extend(times * TTL).await.unwrap();
        assert!(guard.validity() > (times - 1) * TTL);
    }
    // Whichever of several comes last, the longest stands.
    let extensions = [30, 50, 40].map(|times| guard.extend(times * TTL));
    let extended = futures::future::join_all(extensions).await;
    assert!(extended.iter().all(Result::is_ok), "{extended:?}");
    assert!(guard.validity() > 49 * TTL);
}

#[tokio::test]
async fn an_extension_never_shortens() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, 2 * TTL).await;
    guard.extend(Duration::from_secs(1)).await.unwrap();
    assert!(guard.validity() > TTL);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters {
        assert!(left(server, &guard) > TTL);
    }
}

#[tokio::test]
async fn a_missing_key_is_set_again_and_counts_from_the_next_extension_on() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;

    // Two of three still count.
    assert!(masters[0].del(guard.resource()));
    guard.extend(2 * TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    assert!(left(&masters[0], &guard) > TTL);

    // The first counts again, or these would be too few.
    assert!(masters[1].del(guard.resource()));
    guard.extend(3 * TTL).await.unwrap();
    masters.eventually_hold(&guard).await;

    // One of three is too few, however many are set again.
    for server in &masters[1..] {
        assert!(server.del(guard.resource()));
    }
    let ballots = lost(guard.extend(5 * TTL).await);
    let recreated = count(&ballots, |vote| matches!(vote, Vote::Recreated));
    assert_eq!(recreated, 2, "{ballots}");
    // Somebody else may have had it in between, so it stays lost.
    assert!(!guard.is_valid());
    lost(guard.extend(5 * TTL).await);
    guard.release().await.expect("the keys are ours to delete");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_master_that_had_refused_the_lock_gets_its_vote_when_it_is_free() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    masters[0].set_px(&resource, FOREIGN, 60_000);
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    guard.extend(2 * TTL).await.unwrap();
    assert!(is_foreign(&masters[0], &guard));

    assert!(masters[0].del(&resource));
    guard.extend(2 * TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    assert!(masters[1].del(&resource));
    guard.extend(3 * TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

/// Its connection is opened only after the lock was granted and extended by the others: whichever of the two it gets
/// first, it sets the key.
#[tokio::test]
async fn a_master_that_comes_late_holds_the_lock_and_is_released_too() {
    let masters = Masters::start(3).with_proxies([0]);
    for _ in 0..20 {
        masters.proxy(0).hang();
        let dlm = masters.patient_client();
        let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
        guard.extend(2 * TTL).await.unwrap();
        guard.extend(3 * TTL).await.unwrap();
        masters.proxy(0).resume();
        let comes = async || masters[0].get(guard.resource()).is_some();
        eventually_async("it sets the key", LONG, comes).await;
        let resource = guard.resource().to_vec();
        guard.release().await.unwrap();
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert_eq!(masters[0].get(&resource[..]), None);
    }
}

#[tokio::test]
async fn masters_that_come_back_empty_one_by_one_do_not_lose_the_lock() {
    let mut masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;
    for server in &mut masters {
        server.restart();
        let back = async || {
            guard.extend(2 * TTL).await.unwrap();
            server.get(guard.resource()).is_some()
        };
        eventually_async("it holds the key again", LONG, back).await;
    }
    masters.eventually_hold(&guard).await;
    guard.release().await.unwrap();
}

#[tokio::test]
async fn an_expired_lock_is_not_extended_even_where_the_keys_are_left() {
    let masters = Masters::start(3);
    // With this much drift the validity ends long before the keys.
    let dlm = masters.builder().request_timeout(LONG).drift_factor(0.5);
    let dlm = dlm.build().unwrap();
    let guard = lock(&dlm, &masters, Duration::from_secs(6)).await;
    expire(&guard).await;
    masters.eventually_hold(&guard).await;

    let extended = guard.extend(TTL).await;
    let Err(ExtendError::Lost {
        resource,
        reason: LossReason::Expired,
        ..
    }) = extended
    else {
        panic!("not expired: {extended:?}");
    };
    assert_eq!(resource.as_bytes(), guard.resource());
    assert!(!guard.is_valid());
    for server in &masters {
        assert!(left(server, &guard) < Duration::from_secs(6));
    }
    let resource = guard.resource().to_vec();
    guard.release().await.unwrap();
    assert!(dlm.lock(resource, TTL).await.is_ok());
}

#[tokio::test]
async fn an_extension_confirmed_after_the_old_validity_does_not_count() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.builder().request_timeout(LONG).drift_factor(0.5);
    let dlm = dlm.build().unwrap();
    let guard = lock(&dlm, &masters, Duration::from_secs(6)).await;
    for proxy in masters.proxies() {
        proxy.delay_answers(LONG);
    }
    let extended = guard.extend(TTL).await;
    assert!(
        matches!(
            extended,
            Err(ExtendError::Lost {
                reason: LossReason::Expired,
                ..
            })
        ),
        "{extended:?}"
    );
    assert!(!guard.is_valid());
    for server in &masters {
        // They did what they were asked; only nobody heard of it in time.
        assert!(left(server, &guard) > TTL / 2);
    }
    heal(&masters);
    drop(guard);
    masters.eventually_empty().await;
}

#[tokio::test]
async fn a_lock_that_somebody_else_holds_on_a_quorum_is_lost() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for stolen in [2, 3] {
        let guard = lock(&dlm, &masters, TTL).await;
        let theirs = &masters[..stolen];
        for server in theirs {
            server.set_px(guard.resource(), FOREIGN, 60_000);
        }
        let ballots = lost(guard.extend(2 * TTL).await);
        assert!(count(&ballots, |vote| matches!(vote, Vote::Refused)) >= 2);
        assert!(guard.validity() < TTL);
        drop(guard.extend(2 * TTL).await.unwrap_err());
        for server in theirs {
            assert!(is_foreign(server, &guard));
            assert!(left(server, &guard) <= Duration::from_secs(60));
        }
    }
}

#[tokio::test]
async fn a_key_stolen_on_a_minority_is_neither_touched_nor_missed() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;
    masters[0].set_px(guard.resource(), FOREIGN, 60_000);
    guard.extend(2 * TTL).await.unwrap();
    assert!(guard.validity() > TTL);
    assert!(is_foreign(&masters[0], &guard));
    assert!(left(&masters[0], &guard) <= Duration::from_secs(60));
    masters[1..].eventually_hold(&guard).await;
}

/// A quorum answers, and says no: which masters are down, or answer first, makes no difference.
#[tokio::test]
async fn a_lock_that_a_quorum_does_not_hold_is_lost_whoever_answers_first() {
    for (number, down) in [(2, 0), (3, 1), (4, 0), (4, 1), (5, 1), (5, 2)] {
        let masters = Masters::behind_proxies(number);
        let dlm = masters.patient_client();
        let guard = lock(&dlm, &masters, TTL).await;
        masters.proxies().take(down).for_each(Proxy::refuse);
        masters.proxy(number - 1).delay(DELAY);
        for server in &masters[down..] {
            server.set_px(guard.resource(), FOREIGN, 120_000);
        }
        let extended = guard.extend(2 * TTL).await;
        assert!(
            matches!(extended, Err(ExtendError::Lost { .. })),
            "{down} of {number} down: {extended:?}"
        );
    }
}

#[tokio::test]
async fn a_ttl_that_cannot_be_used_changes_nothing() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;
    for millis in 0..=2 {
        let extended = guard.extend(Duration::from_millis(millis)).await;
        let Err(ExtendError::Ttl(TtlError::TooShort { .. })) = extended else {
            panic!("{millis} ms: {extended:?}");
        };
    }
    let extended = guard.extend(Duration::MAX).await;
    let Err(ExtendError::Ttl(TtlError::TooLong { .. })) = extended else {
        panic!("{extended:?}");
    };
    assert!(guard.validity() > TTL / 2);
    for server in &masters {
        assert_eq!(server.calls("evalsha") + server.calls("eval"), 0);
        assert!(left(server, &guard) > TTL / 2);
    }
}

#[tokio::test]
async fn an_extension_that_too_few_masters_answer_leaves_the_old_validity() {
    let masters = Masters::start(3);
    let dlm = masters
        .builder()
        .request_timeout(Duration::from_millis(200));
    let dlm = dlm.build().unwrap();
    let guard = lock(&dlm, &masters, TTL).await;
    let frozen = &masters[1..];
    frozen.iter().for_each(Server::freeze);

    for _ in 0..3 {
        let ballots = unconfirmed(guard.extend(2 * TTL).await);
        let late = |vote: &Vote| {
            let late = |error: &_| matches!(error, MasterError::TimedOut(_) | MasterError::Hung(_));
            matches!(vote, Vote::Failed(error) if late(error))
        };
        assert_eq!(count(&ballots, late), 2, "{ballots}");
        assert!(guard.is_valid());
        assert!(guard.validity() < TTL && guard.validity() > TTL / 4);
    }

    frozen.iter().for_each(Server::thaw);
    let extended = async || guard.extend(2 * TTL).await.is_ok();
    eventually_async("it is extended after all", LONG, extended).await;
    assert!(guard.validity() > TTL);
    masters.eventually_hold(&guard).await;
}

#[tokio::test]
async fn an_extension_that_is_dropped_half_way_leaves_the_old_validity() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.patient_client();
    let guard = lock(&dlm, &masters, TTL).await;
    for proxy in masters.proxies() {
        proxy.delay_answers(LONG);
    }
    let lengthened = async || masters.iter().all(|server| left(server, &guard) > TTL);
    tokio::select! {
        extended = guard.extend(2 * TTL) => panic!("answered: {extended:?}"),
        () = eventually_async("the keys are lengthened", LONG, lengthened) => {}
    }
    heal(&masters);
    assert!(guard.is_valid() && guard.validity() < TTL);
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}
