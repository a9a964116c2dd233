//! Extending a lock while masters fail, forget and come back: only what a quorum confirms in time counts, and
//! whatever else happens the old validity stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep};
use tokio_redlock::{ExtendError, LockError, LockGuard, LossReason, Redlock, RetryPolicy, Vote};

/// Long against anything that a test does.
const TTL: Duration = Duration::from_secs(40);
const LONGER: Duration = Duration::from_secs(80);

const ROUNDING: Duration = Duration::from_millis(2);

/// What is left of a ttl once the default drift is taken off.
fn net(ttl: Duration) -> Duration {
    ttl - ttl / 100 - ROUNDING
}

async fn lock_everywhere(dlm: &Redlock, masters: &[Server], ttl: Duration) -> LockGuard {
    masters.lock_everywhere(dlm, &unique("lock"), ttl).await
}

/// A request that all masters have answered, and so all that was sent before it.
async fn pass_all(dlm: &Redlock, masters: &[Server]) {
    let guard = lock_everywhere(dlm, masters, TTL).await;
    guard.release().await.expect("it is ours");
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

/// Runs `action`, which must leave the validity of the guard where it is.
async fn without_change<T>(guard: &LockGuard, action: impl AsyncFnOnce() -> T) -> T {
    let start = Instant::now();
    let before = guard.validity();
    let result = action().await;
    let after = guard.validity();
    assert!(after <= before, "{before:?} grew to {after:?}");
    assert!(before - after <= start.elapsed(), "{before:?} to {after:?}");
    result
}

/// Extends, which must make the guard good for the whole ttl from now on.
async fn extend_fully(guard: &LockGuard, ttl: Duration) {
    let start = Instant::now();
    guard.extend(ttl).await.expect("a quorum confirms");
    let validity = guard.validity();
    assert!(validity <= net(ttl), "{validity:?}");
    assert!(validity + start.elapsed() >= net(ttl), "{validity:?}");
}

async fn eventually_extends(guard: &LockGuard, ttl: Duration) {
    eventually_async("the extension succeeds", LONG, async || {
        guard.extend(ttl).await.is_ok()
    })
    .await;
}

fn votes(error: &ExtendError) -> Vec<Vote> {
    let (ExtendError::Lost { ballots, .. } | ExtendError::Unconfirmed { ballots, .. }) = error
    else {
        panic!("no votes in {error:?}");
    };
    ballots.iter().map(|ballot| ballot.vote.clone()).collect()
}

fn assert_expired(error: &ExtendError) {
    let expired =
        matches!(error, ExtendError::Lost { reason, .. } if *reason == LossReason::Expired);
    assert!(expired, "{error:?}");
}

fn assert_unconfirmed(error: &ExtendError) {
    let unconfirmed = matches!(error, ExtendError::Unconfirmed { .. });
    assert!(unconfirmed, "{error:?}");
}

/// A rival's attempt, which must fail because the lock is taken.
async fn assert_taken(rival: &Redlock, guard: &LockGuard) {
    let attempt = rival.try_lock(guard.resource(), TTL).await;
    assert!(matches!(attempt, Err(LockError::Taken(_))), "{attempt:?}");
}

/// Two of three masters are made silent by `fail` and well again by `mend`, with their keys still there.
async fn a_minority_is_not_enough(
    dlm: &Redlock,
    masters: &[Server],
    fail: impl AsyncFn(usize),
    mend: impl AsyncFn(usize),
) {
    let guard = lock_everywhere(dlm, masters, TTL).await;
    fail(1).await;
    fail(2).await;
    let error = without_change(&guard, async || guard.extend(LONGER).await)
        .await
        .unwrap_err();
    assert_unconfirmed(&error);
    let votes = votes(&error);
    assert!(matches!(votes[1], Vote::Failed(_)), "{votes:?}");
    assert!(matches!(votes[2], Vote::Failed(_)), "{votes:?}");
    assert!(guard.is_valid());
    eventually_async("it reaches the minority", LONG, async || {
        masters[0].pttl(guard.resource()) > 40_000
    })
    .await;
    assert!(guard.validity() <= net(TTL));

    mend(1).await;
    mend(2).await;
    assert!(masters.all_hold(&guard), "released");
    eventually_extends(&guard, LONGER).await;
    assert!(guard.validity() > net(TTL));
    eventually_async("all masters know", LONG, async || {
        guard.extend(LONGER).await.is_ok()
            && masters
                .iter()
                .all(|server| server.pttl(guard.resource()) > 40_000)
    })
    .await;
    guard.release().await.expect("still ours");
}

#[tokio::test]
async fn an_extension_that_only_a_minority_answers_changes_nothing_and_may_be_repeated() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    a_minority_is_not_enough(
        &dlm,
        &masters,
        async |place| masters[place].freeze(),
        async |place| masters[place].thaw(),
    )
    .await;
}

#[tokio::test]
async fn an_extension_that_only_a_minority_gets_changes_nothing_and_may_be_repeated() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.client();
    a_minority_is_not_enough(
        &dlm,
        &masters,
        async |place| masters.proxy(place).refuse(),
        async |place| masters.proxy(place).resume(),
    )
    .await;
}

#[tokio::test]
async fn a_minority_that_fails_does_not_hinder_an_extension() {
    let mut masters = Masters::start(5);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    masters[3].freeze();
    masters[4].kill();
    extend_fully(&guard, LONGER).await;
    guard.release().await.unwrap();
}

#[tokio::test]
async fn an_expired_lock_is_not_extended_and_nothing_is_sent() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, Duration::from_millis(500)).await;
    extend_fully(&guard, Duration::from_millis(500)).await;
    eventually_async("it expires", LONG, async || {
        !guard.is_valid() && masters.are_empty()
    })
    .await;

    let sent = || {
        masters
            .iter()
            .map(|server| server.calls("evalsha") + server.calls("eval"))
            .collect::<Vec<_>>()
    };
    let before = sent();
    assert!(
        before.iter().all(|&calls| calls >= 1),
        "the valid one was sent"
    );
    let error = guard.extend(TTL).await.unwrap_err();
    assert_expired(&error);
    assert!(!guard.is_valid());
    // A SET to each, behind which nothing can be under way any more.
    lock_everywhere(&dlm, &masters, TTL).await.leak();
    assert_eq!(sent(), before);
    for server in &masters {
        assert_eq!(server.get(guard.resource()), None);
    }
}

#[tokio::test]
async fn keys_that_outlive_the_validity_do_not_bring_it_back() {
    let masters = Masters::start(3);
    let dlm = masters.builder().drift_factor(0.5).build().unwrap();
    let ttl = Duration::from_secs(4);
    let guard = lock_everywhere(&dlm, &masters, ttl).await;
    extend_fully_by_half(&guard, ttl).await;
    eventually_async("the validity ends", LONG, async || !guard.is_valid()).await;

    let error = guard.extend(TTL).await.unwrap_err();
    assert_expired(&error);
    assert!(!guard.is_valid());
    for server in &masters {
        let left = server.pttl(guard.resource());
        assert!(left > 0, "the test was too slow to show anything");
        assert!(left <= 4_000, "lengthened to {left} ms");
    }
}

/// With a drift factor of 0.5.
async fn extend_fully_by_half(guard: &LockGuard, ttl: Duration) {
    guard.extend(ttl).await.expect("it is still good");
    assert!(guard.validity() <= ttl / 2);
}

#[tokio::test]
async fn an_extension_by_less_than_what_is_left_keeps_what_is_left() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, LONGER).await;
    for less in [Duration::from_millis(100), Duration::from_secs(1), TTL] {
        without_change(&guard, async || guard.extend(less).await)
            .await
            .expect("it is ours");
        pass_all(&dlm, &masters).await;
        for server in &masters {
            let left = server.pttl(guard.resource());
            assert!(left > 40_000, "shortened to {left} ms by {less:?}");
        }
    }
    extend_fully(&guard, 2 * LONGER).await;
}

#[tokio::test]
async fn a_key_set_again_counts_from_the_next_extension_on() {
    let mut masters = Masters::start(3);
    let dlm = masters.client();
    lock_everywhere(&dlm, &masters, TTL).await.leak();
    let resource = unique("lock");
    masters[2].set(&resource, "somebody else");
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    masters[..2].eventually_hold(&guard).await;
    // A bare quorum of keys that were there before is enough.
    extend_fully(&guard, TTL).await;

    masters[2].kill();
    assert!(masters[1].del(&resource));
    let error = without_change(&guard, async || guard.extend(LONGER).await)
        .await
        .unwrap_err();
    assert_unconfirmed(&error);
    let heard = votes(&error);
    assert!(matches!(heard[1], Vote::Recreated), "{heard:?}");
    assert!(guard.is_valid());
    assert!(masters[1].holds(&guard));
    extend_fully(&guard, LONGER).await;

    // The same the other way round.
    assert!(masters[0].del(&resource));
    let error = without_change(&guard, async || guard.extend(2 * LONGER).await)
        .await
        .unwrap_err();
    assert_unconfirmed(&error);
    let heard = votes(&error);
    assert!(matches!(heard[0], Vote::Recreated), "{heard:?}");
    extend_fully(&guard, 2 * LONGER).await;
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_master_restarted_empty_votes_again_after_one_extension() {
    let mut masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    masters[1].restart();
    assert!(!masters[1].holds(&guard));
    eventually_async("it gets its key back", LONG, async || {
        extend_fully(&guard, TTL).await;
        masters[1].holds(&guard)
    })
    .await;
    // Only counts if the one that was empty does.
    masters[0].kill();
    eventually_extends(&guard, LONGER).await;
    assert!(guard.validity() > net(TTL));
}

#[tokio::test]
async fn keys_that_all_masters_lost_are_set_again_but_extend_nothing() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    for server in &masters {
        assert!(server.del(guard.resource()));
    }
    let error = guard.extend(LONGER).await.unwrap_err();
    assert!(matches!(error, ExtendError::Lost { .. }), "{error:?}");
    assert!(!guard.is_valid());
    pass_all(&dlm, &masters).await;
    assert!(masters.all_hold(&guard));
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_lock_that_somebody_else_has_taken_over_is_neither_extended_nor_taken_back() {
    let masters = Masters::start(3);
    let (dlm, rival) = (masters.client(), masters.client());
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    assert_taken(&rival, &guard).await;
    for server in &masters {
        assert!(server.del(guard.resource()));
    }
    let other = rival.lock(guard.resource(), TTL).await.unwrap();
    masters.eventually_hold(&other).await;
    let error = guard.extend(LONGER).await.unwrap_err();
    assert!(matches!(error, ExtendError::Lost { .. }), "{error:?}");
    assert!(!guard.is_valid());
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters {
        assert!(server.holds(&other));
        assert!(server.pttl(other.resource()) <= 40_000);
    }
    extend_fully(&other, LONGER).await;
}

/// Extends while two of three masters answer only after `late`.
async fn extend_with_late_answers(
    late: Duration,
    ttl: Duration,
) -> (Redlock, Masters, LockGuard, bool) {
    let masters = Masters::behind_proxies(3);
    let builder = masters.builder().request_timeout(Duration::from_secs(10));
    let dlm = builder.build().unwrap();
    pass_all(&dlm, &masters).await;
    let guard = dlm.lock(unique("lock"), ttl).await.unwrap();
    for proxy in masters.proxies().skip(1) {
        proxy.delay_answers(late);
    }
    let extended = match guard.extend(TTL).await {
        Ok(()) => true,
        Err(ExtendError::Lost {
            reason: LossReason::Expired,
            ..
        }) => false,
        Err(other) => panic!("{other:?}"),
    };
    (dlm, masters, guard, extended)
}

#[tokio::test]
async fn a_confirmation_after_the_old_validity_does_not_count() {
    let ttl = Duration::from_secs(1);
    let (dlm, masters, guard, extended) = extend_with_late_answers(2 * ttl, ttl).await;
    assert!(!extended);
    assert!(!guard.is_valid());
    // The masters have all said yes; we just heard it too late.
    for server in &masters {
        assert!(server.pttl(guard.resource()) > 20_000);
    }
    // Needs an answer that comes behind the late ones.
    let behind = dlm.lock(unique("behind"), TTL).await.unwrap();
    assert!(!guard.is_valid());
    for proxy in masters.proxies() {
        proxy.resume();
    }
    drop((guard, behind));
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_slow_confirmation_within_the_old_validity_counts() {
    let late = Duration::from_millis(400);
    let (_dlm, _masters, guard, extended) = extend_with_late_answers(late, 20 * late).await;
    assert!(extended);
    assert!(guard.validity() > 20 * late);
}

#[tokio::test]
async fn an_answer_after_the_request_timeout_does_not_count_and_the_next_one_does() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.client();
    let guard = lock_everywhere(&dlm, &masters, TTL).await;
    for proxy in masters.proxies().skip(1) {
        proxy.delay_answers(Duration::from_millis(600));
    }
    let error = without_change(&guard, async || {
        let result = guard.extend(LONGER).await;
        // The answers to this come behind the late ones.
        for proxy in masters.proxies().skip(1) {
            proxy.delay_answers(Duration::ZERO);
        }
        pass_all(&dlm, &masters).await;
        result
    })
    .await
    .unwrap_err();
    assert_unconfirmed(&error);
    eventually_extends(&guard, LONGER).await;
    assert!(guard.validity() > net(TTL));
}

/// The refusal of the SET is under way while the extension sets the key: it must not be taken for the last word.
#[tokio::test]
async fn a_key_set_again_before_an_earlier_refusal_was_heard_is_released() {
    let masters = Masters::start(3).with_proxies([2]);
    let dlm = masters.client();
    pass_all(&dlm, &masters).await;
    let resource = unique("lock");
    masters[2].set(&resource, "somebody else");
    // Within the request timeout, after which nobody listens.
    let late = Duration::from_millis(100);
    masters.proxy(2).delay_answers(late);
    let refusals = masters[2].calls("set");
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    eventually_async("the SET is refused", LONG, async || {
        masters[2].calls("set") > refusals
    })
    .await;
    assert!(masters[2].del(&resource));
    guard.extend(TTL).await.unwrap();
    eventually_async("the key is set again", LONG, async || {
        masters[2].holds(&guard)
    })
    .await;
    // Both answers come in.
    sleep(4 * late).await;
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    pass_all(&dlm, &masters).await;
    for server in &masters {
        assert_eq!(server.get(&resource), None, "left on {}", server.addr());
    }
}

/// Tries to get the lock all the time, and counts how often it was refused.
fn rival(dlm: Redlock, resource: &[u8], refused: Arc<AtomicU32>) -> JoinHandle<()> {
    let resource = resource.to_vec();
    tokio::spawn(async move {
        let soon = Duration::from_millis(5);
        let policy = RetryPolicy::once().delay(soon, soon);
        loop {
            let attempt = dlm.lock(&resource, TTL).retry(policy.clone()).await;
            assert!(attempt.is_err(), "the rival got it: {attempt:?}");
            refused.fetch_add(1, Ordering::Relaxed);
            sleep(soon).await;
        }
    })
}

/// Extends all the time; panics when the lock was lost.
fn keep(guard: Arc<LockGuard>, ttl: Duration, done: Arc<AtomicBool>) -> JoinHandle<u32> {
    tokio::spawn(async move {
        let mut ticks = interval(ttl / 6);
        let mut extensions = 0;
        while !done.load(Ordering::Relaxed) {
            ticks.tick().await;
            assert!(guard.is_valid(), "lost after {extensions} extensions");
            extensions += u32::from(guard.extend(ttl).await.is_ok());
        }
        extensions
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_extended_in_time_outlives_all_its_masters() {
    let ttl = Duration::from_millis(900);
    let mut masters = Masters::start(5);
    let dlm = masters.client();
    let guard = Arc::new(lock_everywhere(&dlm, &masters, ttl).await);
    let (refused, done) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let keeper = keep(Arc::clone(&guard), ttl, Arc::clone(&done));
    let rival = rival(masters.client(), guard.resource(), Arc::clone(&refused));

    for server in &mut masters {
        server.kill();
        sleep(ttl + ttl / 10).await;
        server.restart();
        eventually_async("the key is there again", LONG, async || {
            server.holds(&guard)
        })
        .await;
        assert!(!rival.is_finished() && !keeper.is_finished());
    }
    done.store(true, Ordering::Relaxed);
    assert!(keeper.await.expect("the lock was kept") > 10);
    assert!(refused.load(Ordering::Relaxed) > 10);
    assert!(!rival.is_finished());
    rival.abort();
    let _ = rival.await;
    assert!(guard.is_valid());

    // Nobody extends it any more: it is for the taking.
    let next = masters.client().lock(guard.resource(), TTL).await.unwrap();
    assert!(!guard.is_valid());
    next.release().await.unwrap();
}
