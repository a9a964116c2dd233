//! Ttls of a few milliseconds, of none, and of ages: an error or a lock that is worth something, and never a spin.

use std::thread;
use std::time::{Duration, Instant};

use futures::join;
use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio_redlock::{
    ExtendError, LockError, LockFailure, LockGuard, Redlock, RetryPolicy, TtlError, Vote,
};

const MS: Duration = Duration::from_millis(1);

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// The longest ttl there is: half of what Redis can count.
const MAX_TTL: Duration = Duration::from_millis(1 << 62);

/// What a lock is good for at most: the drift is 1 % of the ttl in whole milliseconds, and 2 ms.
fn without_drift(ttl: Duration) -> Duration {
    let whole = u64::try_from(ttl.as_millis()).expect("a short ttl");
    let whole = Duration::from_millis(whole);
    whole.saturating_sub(whole / 100 + 2 * MS)
}

/// A client that has a connection to each of three masters.
async fn connected(masters: &Masters) -> Redlock {
    let dlm = masters.patient_client();
    drop(dlm.try_lock(unique("first"), TTL).await.unwrap());
    let all = async || masters.iter().all(|server| server.connected_clients() == 1);
    eventually_async("all are connected", LONG, all).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    dlm
}

/// What a lock asked for at `start` says that it is good for: what is left of the ttl, and not a bit else.
fn check_validity(guard: &LockGuard, ttl: Duration, start: Instant) -> Duration {
    let validity = guard.validity();
    let elapsed = start.elapsed();
    let most = without_drift(ttl);
    assert!(validity <= most, "{ttl:?}: {validity:?}");
    // So it is over only if so much time has passed.
    assert!(validity + elapsed >= most, "{ttl:?}: {validity:?}");
    validity
}

#[tokio::test]
async fn a_short_ttl_makes_a_valid_lock_or_an_error() {
    const ROUNDS: u64 = 25;
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    let before = commands(&masters);
    let mut valid = 0;
    for millis in 1..=20 {
        let ttl = millis * MS;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            match dlm.try_lock(unique("resource"), ttl).await {
                Ok(guard) => {
                    let validity = check_validity(&guard, ttl, start);
                    valid += u64::from(!validity.is_zero());
                }
                Err(LockError::Ttl(TtlError::TooShort { .. })) => assert!(millis < 3, "{ttl:?}"),
                // On a machine that had more important things to do.
                Err(LockError::TooLate(_) | LockError::Unreachable(_)) => {
                    assert!(
                        millis >= 3 && start.elapsed() >= without_drift(ttl),
                        "{ttl:?}"
                    );
                }
                Err(other) => panic!("{ttl:?}: {other}"),
            }
        }
    }
    assert!(valid > ROUNDS, "only {valid} were valid");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    commands_within(&masters, before, 18 * ROUNDS);
}

#[tokio::test]
async fn a_short_ttl_does_not_make_a_spin_of_waiting() {
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    let resource = unique("resource");
    for server in &masters {
        server.set(&resource, "somebody else");
    }
    let before = commands(&masters);
    for millis in 3..=20 {
        let policy = RetryPolicy::new().delay(MS, 2 * MS).max_attempts(5);
        let request = dlm.lock(&resource, millis * MS).retry(policy);
        let attempts = match request.await {
            Err(LockError::Taken(attempts) | LockError::Unreachable(attempts)) => attempts,
            other => panic!("{other:?}"),
        };
        assert_eq!(attempts.attempts, 5);
        assert!(attempts.waited >= 4 * MS, "{:?}", attempts.waited);
    }
    assert_eq!(dlm.shutdown(LONG).await, 0);
    commands_within(&masters, before, 18 * 5);
}

/// How many SETs and scripts each master has executed.
fn commands(masters: &[Server]) -> Vec<[u64; 2]> {
    let scripts = |server: &Server| server.calls("evalsha") + server.calls("eval");
    let commands = |server: &Server| [server.calls("set"), scripts(server)];
    masters.iter().map(commands).collect()
}

/// At most one SET and two compare-and-deletes for each attempt: the second is for when it has no answer.
fn commands_within(masters: &[Server], before: Vec<[u64; 2]>, attempts: u64) {
    for (before, after) in before.into_iter().zip(commands(masters)) {
        let [sets, scripts] = [0, 1].map(|kind| after[kind] - before[kind]);
        assert!(sets <= attempts, "{sets} for {attempts}");
        assert!(scripts <= 2 * attempts, "{scripts} for {attempts}");
    }
}

#[tokio::test]
async fn a_ttl_below_the_round_trip_ends_within_the_retry_policy() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.patient_client();
    drop(dlm.try_lock(unique("first"), TTL).await.unwrap());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let before = commands(&masters);
    for proxy in masters.proxies() {
        proxy.delay(50 * MS);
    }

    let delays = RetryPolicy::new().delay(5 * MS, 10 * MS);
    let by_number = too_late(&dlm, delays.clone().max_attempts(5)).await;
    assert_eq!(by_number.attempts, 5);
    assert!(by_number.waited >= 5 * without_drift(20 * MS) + 4 * 5 * MS);
    let by_time = too_late(&dlm, delays.max_wait(300 * MS)).await;
    // Each takes the validity and a delay.
    assert!((2..=15).contains(&by_time.attempts), "{by_time}");
    for attempts in [&by_number, &by_time] {
        assert!(attempts.waited < Duration::from_secs(2), "{attempts}");
    }

    assert_eq!(dlm.shutdown(LONG).await, 0);
    let attempts = u64::from(by_number.attempts + by_time.attempts);
    commands_within(&masters, before, attempts);
    assert!(masters.are_empty());
}

/// Asks for a lock that is over before any answer can come.
async fn too_late(dlm: &Redlock, policy: RetryPolicy) -> LockFailure {
    let request = dlm.lock(unique("resource"), 20 * MS).retry(policy);
    match request.await {
        // The second, should this thread have slept until after the answers.
        Err(LockError::Unreachable(attempts) | LockError::TooLate(attempts)) => attempts,
        other => panic!("{other:?}"),
    }
}

/// The answers come in time, to a task that is kept from reading them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_that_is_noticed_too_late_is_no_lock() {
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    let blocked = async |ttl| {
        masters.iter().for_each(Server::freeze);
        let start = Instant::now();
        let lock = dlm.try_lock(unique("resource"), ttl).into_future();
        let block = async {
            masters.iter().for_each(Server::thaw);
            // Longer than the ttl below: the attempt begins on another thread, which may get its turn a moment later.
            thread::sleep(200 * MS);
        };
        (join!(lock, block).0, start)
    };
    let (result, start) = blocked(TTL).await;
    let validity = check_validity(&result.expect("in time"), TTL, start);
    assert!(validity <= without_drift(TTL) - 100 * MS, "{validity:?}");

    let (result, _) = blocked(100 * MS).await;
    let Err(LockError::TooLate(attempts)) = result else {
        panic!("{result:?}");
    };
    let ballots = attempts.ballots.iter();
    let granted = ballots.filter(|ballot| matches!(ballot.vote, Vote::Granted));
    assert!(granted.count() >= 2, "{attempts}");
}

#[tokio::test]
async fn a_ttl_that_makes_no_sense_is_refused_before_anything_is_sent() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for short in [0, 1, 999_999, 1_000_000, 2_000_000, 2_999_999].map(Duration::from_nanos) {
        for request in [dlm.lock("resource", short), dlm.try_lock("resource", short)] {
            let refused = matches!(
                request.await,
                Err(LockError::Ttl(TtlError::TooShort { ttl, .. })) if ttl == short
            );
            assert!(refused, "{short:?}");
        }
    }
    for long in ABSURD {
        for request in [dlm.lock("resource", long), dlm.try_lock("resource", long)] {
            let refused = matches!(
                request.await,
                Err(LockError::Ttl(TtlError::TooLong { ttl, max })) if ttl == long && max == MAX_TTL
            );
            assert!(refused, "{long:?}");
        }
    }
    for server in &masters {
        assert_eq!(server.connected_clients(), 0);
        assert_eq!(server.calls("client|info"), 0);
    }
}

const ABSURD: [Duration; 4] = [
    MAX_TTL.saturating_add(MS),
    Duration::from_millis(u64::MAX),
    Duration::from_secs(u64::MAX),
    Duration::MAX,
];

#[tokio::test]
async fn an_extension_that_makes_no_sense_is_refused_before_anything_is_sent() {
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    let scripts = || masters.calls("evalsha") + masters.calls("eval");
    let before = scripts();
    let start = Instant::now();
    let guard = dlm.try_lock(unique("resource"), TTL).await.unwrap();
    for senseless in [Duration::ZERO, MS, 2 * MS].into_iter().chain(ABSURD) {
        let refused = guard.extend(senseless).await;
        assert!(matches!(refused, Err(ExtendError::Ttl(_))), "{refused:?}");
    }
    assert_eq!(scripts(), before);
    check_validity(&guard, TTL, start);
    guard.release().await.expect("still ours");
}

#[tokio::test]
async fn the_longest_ttl_works() {
    const AGES: Duration = Duration::from_secs(500 * 365 * 24 * 3600);
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    let resource = unique("resource");
    let guard = dlm.try_lock(&resource, MAX_TTL).await.expect("granted");
    assert!(guard.validity() > AGES, "{:?}", guard.validity());
    guard.extend(MAX_TTL).await.expect("extended");
    assert!(guard.validity() > AGES, "{:?}", guard.validity());
    let long = masters
        .iter()
        .filter(|server| server.pttl(&resource) > 1 << 61);
    assert!(long.count() >= 2);
    guard.release().await.expect("released");
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

#[tokio::test]
async fn fractions_of_a_millisecond_are_not_relied_on() {
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    for ttl in [
        Duration::from_nanos(5_000_999_999),
        Duration::from_micros(5_000_001),
    ] {
        let start = Instant::now();
        let guard = dlm.try_lock(unique("resource"), ttl).await.unwrap();
        let validity = check_validity(&guard, ttl, start);
        assert!(validity <= Duration::from_millis(4_948), "{validity:?}");
    }
}
