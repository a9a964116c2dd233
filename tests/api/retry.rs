//! How long the client waits for a lock that is taken, and when it gives up.

use std::time::{Duration, Instant};

use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_redlock::{LockError, LockFailure, LockGuard, Redlock, RetryPolicy, Vote};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

const MS: Duration = Duration::from_millis(1);

/// Tries often, for as long as a test may take.
fn patient() -> RetryPolicy {
    RetryPolicy::new().delay(MS, 5 * MS).max_wait(LONG)
}

fn taken(attempt: Result<LockGuard, LockError>) -> LockFailure {
    match attempt {
        Err(LockError::Taken(attempts)) => attempts,
        other => panic!("not taken: {other:?}"),
    }
}

fn wait(dlm: &Redlock, resource: &str) -> JoinHandle<Result<LockGuard, LockError>> {
    let request = dlm.lock(resource, TTL).retry(patient());
    tokio::spawn(request.into_future())
}

/// Waits until the server was asked for so many more locks.
async fn asked(server: &Server, times: u64) {
    let before = server.calls("set");
    let asked = async || server.calls("set") >= before + times;
    eventually_async("the lock is asked for", LONG, asked).await;
}

#[tokio::test]
async fn a_lock_is_waited_for_until_it_is_released() {
    let masters = Masters::start(3);
    let [one, other] = [masters.patient_client(), masters.patient_client()];
    let resource = unique("resource");
    let guard = one.lock(&resource, TTL).await.unwrap();
    let aborted = [wait(&other, &resource), wait(&one, &resource)];
    for waits in aborted {
        asked(&masters[0], 5).await;
        waits.abort();
        assert!(waits.await.unwrap_err().is_cancelled());
    }

    let waits = wait(&other, &resource);
    asked(&masters[0], 5).await;
    assert!(!waits.is_finished());
    guard.release().await.unwrap();
    let guard = waits.await.unwrap().unwrap();
    assert!(guard.validity() > TTL / 2);
}

#[tokio::test]
async fn a_lock_is_waited_for_until_it_expires() {
    let masters = Masters::start(3);
    let [one, other] = [masters.patient_client(), masters.patient_client()];
    let resource = unique("resource");
    let guard = one.lock(&resource, 300 * MS).await.unwrap();
    let next = other.lock(&resource, TTL).retry(patient()).await.unwrap();
    assert!(!guard.is_valid());
    assert!(next.is_valid());
}

#[tokio::test]
async fn the_default_policy_waits() {
    let masters = Masters::start(3);
    let [one, other] = [masters.patient_client(), masters.patient_client()];
    let resource = unique("resource");
    let guard = one.lock(&resource, TTL).await.unwrap();
    let waits = tokio::spawn(other.lock(&resource, TTL).into_future());
    asked(&masters[0], 2).await;
    guard.release().await.unwrap();
    assert!(waits.await.unwrap().is_ok());
}

#[tokio::test]
async fn it_gives_up_after_so_many_attempts() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    let all_asked = async || masters.calls("set") == 3;
    eventually_async("each is asked once", LONG, all_asked).await;
    for max in [1, 2, 5] {
        let policy = RetryPolicy::new().delay(20 * MS, 20 * MS).max_attempts(max);
        let (before, start) = (masters.calls("set"), Instant::now());
        let attempts = taken(dlm.lock(&resource, TTL).retry(policy).await);
        assert_eq!(attempts.attempts, max);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        // Each time two of three are certain to be asked, the third may not be waited for.
        let asked = masters.calls("set") - before;
        assert!(asked >= 2 * u64::from(max), "{asked}: {attempts}");
        assert!(asked <= 3 * u64::from(max), "{asked}: {attempts}");
        assert!(attempts.waited >= 20 * MS * (max - 1), "{attempts}");
        assert!(attempts.waited <= start.elapsed(), "{attempts}");
        assert_eq!(attempts.resource, resource.as_bytes());
        assert_eq!(attempts.ballots.iter().count(), 3);
        let plural = if max == 1 { "attempt " } else { "attempts " };
        let text = attempts.to_string();
        assert!(text.contains(&format!("after {max} {plural}")), "{text}");
    }
    drop(guard);
}

#[tokio::test]
async fn it_gives_up_rather_than_wait_longer_than_told() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    let delay = 20 * MS;
    let max = 400 * MS;
    let policy = RetryPolicy::new().delay(delay, delay).max_wait(max);
    let attempts = taken(dlm.lock(&resource, TTL).retry(policy).await);
    assert!(attempts.attempts > 1, "{attempts}");
    assert!(attempts.waited > max - delay, "{attempts}");
    assert!(attempts.waited < 10 * max, "{attempts}");

    // Not even one wait fits into this.
    let policy = RetryPolicy::new().delay(delay, delay).max_wait(MS);
    let attempts = taken(dlm.lock(&resource, TTL).retry(policy).await);
    assert_eq!(attempts.attempts, 1);
    drop(guard);
}

#[tokio::test]
async fn options_of_a_call_override_those_of_the_client() {
    let masters = Masters::start(3);
    let resource = unique("resource");
    let holder = masters.patient_client();
    let guard = holder.lock(&resource, TTL).await.unwrap();

    let impatient = masters
        .builder()
        .request_timeout(LONG)
        .retry(RetryPolicy::once());
    let impatient = impatient.build().unwrap();
    let attempts = taken(impatient.lock(&resource, TTL).await);
    assert_eq!(attempts.attempts, 1);
    let three = RetryPolicy::new().delay(MS, MS).max_attempts(3);
    let attempts = taken(impatient.lock(&resource, TTL).retry(three).await);
    assert_eq!(attempts.attempts, 3);
    let attempts = taken(impatient.lock(&resource, TTL).await);
    assert_eq!(attempts.attempts, 1);

    let eager = masters
        .builder()
        .request_timeout(LONG)
        .retry(patient().forever())
        .build();
    let once = eager
        .unwrap()
        .lock(&resource, TTL)
        .retry(RetryPolicy::once());
    assert_eq!(taken(once.await).attempts, 1);

    let waits = wait(&impatient, &resource);
    asked(&masters[0], 3).await;
    guard.release().await.unwrap();
    assert!(waits.await.unwrap().is_ok());
}

#[tokio::test]
async fn the_last_of_several_policies_counts() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let _guard = dlm.lock(&resource, TTL).await.unwrap();
    let two = RetryPolicy::new().delay(MS, MS).max_attempts(2);
    let request = dlm.try_lock(&resource, TTL).retry(two);
    assert_eq!(taken(request.await).attempts, 2);
}

#[tokio::test]
async fn a_try_asks_every_master_once() {
    let masters = Masters::start(3);
    let patient = masters
        .builder()
        .request_timeout(LONG)
        .retry(patient().forever());
    let dlm = patient.build().unwrap();
    let resource = unique("resource");
    let guard = dlm.try_lock(&resource, TTL).await.unwrap();
    let asked = async || masters.iter().all(|server| server.calls("set") == 1);
    eventually_async("each is asked once", LONG, asked).await;

    assert_eq!(taken(dlm.try_lock(&resource, TTL).await).attempts, 1);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    // The answer was certain without the third.
    let calls = masters.iter().map(|server| server.calls("set"));
    let mut calls: Vec<_> = calls.collect();
    calls.sort_unstable();
    assert!(calls == [2, 2, 2] || calls == [1, 2, 2], "{calls:?}");
    drop(guard);
}

#[tokio::test]
async fn a_request_that_is_never_awaited_asks_nobody() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    drop(dlm.lock("never", TTL).into_future());
    drop(dlm.lock("awaited", TTL).await.unwrap());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters {
        assert!(server.calls("set") <= 1);
    }
}

#[tokio::test]
async fn masters_that_are_down_are_waited_for() {
    let mut masters = Masters::start(3);
    let [dlm, fresh] = [masters.patient_client(), masters.patient_client()];
    let resource = unique("resource");
    drop(dlm.lock(&resource, TTL).await.unwrap());
    masters[1..].iter_mut().for_each(Server::kill);
    for dlm in [&dlm, &fresh] {
        let attempt = dlm.try_lock(&resource, TTL).await;
        let Err(LockError::Unreachable(attempts)) = attempt else {
            panic!("not unreachable: {attempt:?}");
        };
        let ballots = attempts.ballots.iter();
        let failed = ballots.filter(|ballot| matches!(ballot.vote, Vote::Failed(_)));
        assert_eq!(failed.count(), 2, "{attempts}");
    }

    let mut waits = [wait(&dlm, "one"), wait(&fresh, "other")];
    for waits in &mut waits {
        // Many times as long as it takes to find that out.
        let gave_up = timeout(200 * MS, waits).await;
        assert!(gave_up.is_err(), "{gave_up:?}");
    }
    masters[1].restart();
    for waits in waits {
        assert!(waits.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_wait_for_masters_that_stay_down_ends_as_unreachable() {
    let mut masters = Masters::start(3);
    masters[1..].iter_mut().for_each(Server::kill);
    let three = RetryPolicy::new().delay(MS, MS).max_attempts(3);
    let attempt = masters
        .patient_client()
        .lock("resource", TTL)
        .retry(three)
        .await;
    let Err(LockError::Unreachable(attempts)) = attempt else {
        panic!("not unreachable: {attempt:?}");
    };
    assert_eq!(attempts.attempts, 3);
    let empty = async || masters[0].keys().is_empty();
    eventually_async("nothing is left of the attempts", LONG, empty).await;
}
