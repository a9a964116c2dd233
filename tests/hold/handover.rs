//! A lock that is leaked is left as it is, and whoever adopts it in time holds it as if they had taken it.

use std::env;
use std::time::Duration;

use support::{
    LONG, Masters, Proxy, Server, Servers, eventually_async, passes, test_process, unique,
};
use tokio::time::timeout;
use tokio_redlock::{AdoptError, ExtendError, Handover, LockError, LossReason, Redlock};

const TTL: Duration = Duration::from_secs(60);

/// Locks and leaks, with the key on every master.
async fn leaked(masters: &Masters, resource: &str, ttl: Duration) -> Handover {
    let guard = masters.client().lock(resource, ttl).await.unwrap();
    masters.eventually_have(resource).await;
    guard.leak()
}

/// How many masters hold the key for that value.
fn holding(masters: &[Server], handover: &Handover) -> usize {
    let ours =
        |s: &&Server| s.get(&handover.resource).as_deref() == Some(handover.value.as_bytes());
    masters.iter().filter(ours).count()
}

/// How a lock was lost according to the refusal to adopt it.
fn loss<T: std::fmt::Debug>(adopted: Result<T, AdoptError>) -> LossReason {
    match adopted {
        Err(AdoptError::Extend(ExtendError::Lost { reason, .. })) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_leaked_lock_stays_until_its_ttl_is_over() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let ttl = Duration::from_millis(700);
    let handover = leaked(&masters, &resource, ttl).await;
    assert_eq!(handover.resource, resource.as_bytes());
    assert!(!handover.validity.is_zero() && handover.validity < ttl);
    assert_eq!(holding(&masters, &handover), 3);
    let rival = masters.client();
    let taken = rival.try_lock(&resource, TTL).await;
    assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
    let free = rival.lock(&resource, TTL).await;
    free.expect("its ttl is over").release().await.unwrap();
    assert!(masters[..1].deletes() >= 1, "the rival's");
    assert!(masters[..1].calls("del") <= 1, "only the rival's");
}

#[tokio::test]
async fn an_adopted_lock_is_held_by_the_same_value_and_released_on_drop_on_all_masters() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let handover = leaked(&masters, &resource, Duration::from_secs(5)).await;
    let adopter = masters.client();
    let guard = adopter.adopt(handover.clone(), TTL).await.unwrap();
    assert_eq!(guard.resource(), handover.resource);
    assert_eq!(guard.value(), handover.value);
    assert!(guard.validity() > TTL / 2, "extended");
    assert_eq!(holding(&masters, &handover), 5);
    let rival = masters.client().try_lock(&resource, TTL).await;
    assert!(matches!(rival, Err(LockError::Taken(_))), "{rival:?}");
    drop(guard);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 0);
    assert!(masters.deletes() >= 5);
}

#[tokio::test]
async fn an_adopted_lock_is_released_also_where_the_adoption_was_not_waited_for() {
    let masters = Masters::start(5).with_proxies([0, 1]);
    let resource = unique("r");
    let handover = leaked(&masters, &resource, TTL).await;
    let adopter = masters.client();
    masters.proxy(0).hang();
    masters.proxy(1).refuse();
    let guard = adopter.adopt(handover.clone(), TTL).await.unwrap();
    drop(guard);
    assert_eq!(adopter.shutdown(Duration::from_millis(500)).await, 1);
    assert_eq!(holding(&masters, &handover), 2);
    masters.proxies().for_each(Proxy::resume);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 0);
}

/// Set for the process that leaks a lock: the masters, separated by spaces.
const MASTERS: &str = "LEAKING_PROCESS_MASTERS";

#[tokio::test]
async fn a_lock_goes_from_one_process_to_another() {
    if let Ok(masters) = env::var(MASTERS) {
        let dlm = Redlock::new(masters.split(' ')).expect("valid URLs");
        let guard = dlm.lock("handed over", TTL).await.unwrap();
        let Handover {
            value, validity, ..
        } = guard.leak();
        println!("\nhandover {value} {}", validity.as_millis());
        return;
    }
    let masters = Masters::start(3);
    let test = "a_lock_goes_from_one_process_to_another";
    let mut other = test_process(module_path!(), test);
    other.env(MASTERS, masters.urls().join(" "));
    let text = passes(other);
    let line = text.lines().find_map(|line| line.strip_prefix("handover "));
    let (value, millis) = line.and_then(|l| l.split_once(' ')).expect("a handover");
    let validity = Duration::from_millis(millis.parse().expect("a number")) / 2;
    let handover = Handover::new("handed over", value, validity);
    assert!(holding(&masters, &handover) >= 2, "left there by its end");

    let adopter = masters.client();
    let guard = adopter.adopt(handover.clone(), TTL).await.unwrap();
    assert!(guard.validity() > TTL / 2);
    guard.release().await.expect("ours now");
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 0);
}

#[tokio::test]
async fn a_lock_whose_validity_is_over_is_not_adopted_and_left_as_it_is() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let mut handover = leaked(&masters, &resource, TTL).await;
    handover.validity = Duration::ZERO;
    let adopter = masters.client();
    let before = masters.calls("evalsha");
    let adopted = adopter.adopt(handover.clone(), 2 * TTL).await;
    assert_eq!(loss(adopted), LossReason::Expired);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(masters.calls("evalsha"), before, "nothing was sent");
    assert_eq!(holding(&masters, &handover), 3);
    assert!(masters[0].pttl(&resource) <= 60_000);
}

#[tokio::test]
async fn a_validity_that_ends_before_the_masters_confirm_is_over() {
    let (masters, resource) = (Masters::behind_proxies(3), unique("r"));
    let mut handover = leaked(&masters, &resource, TTL).await;
    let adopter = masters.client();
    adopter.inspect(&resource).await;
    for proxy in masters.proxies() {
        proxy.delay_answers(Duration::from_millis(150));
    }
    handover.validity = Duration::from_millis(50);
    let adopted = adopter.adopt(handover.clone(), TTL).await;
    assert_eq!(loss(adopted), LossReason::Expired);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 3);
    assert_eq!(masters.calls("del"), 0);
}

#[tokio::test]
async fn a_validity_counts_from_the_call_and_not_from_the_first_poll() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let mut handover = leaked(&masters, &resource, TTL).await;
    handover.validity = Duration::from_millis(100);
    let adopter = masters.client();
    let adoption = adopter.adopt(handover.clone(), TTL);
    tokio::time::sleep(2 * handover.validity).await;
    assert_eq!(loss(adoption.await), LossReason::Expired);
}

#[tokio::test]
async fn a_lock_that_is_gone_on_a_quorum_is_not_adopted_and_not_set_again() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    for server in &masters[..3] {
        assert!(server.del(&resource));
    }
    let adopter = masters.client();
    let adopted = adopter.adopt(handover.clone(), TTL).await;
    assert_eq!(loss(adopted), LossReason::Taken);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert!(
        holding(&masters[..3], &handover) == 0,
        "a lock that nobody holds keeps others out"
    );
    let next = masters.client().try_lock(&resource, TTL).await;
    assert!(next.is_ok(), "{next:?}");
}

#[tokio::test]
async fn a_lock_that_is_gone_on_a_minority_is_adopted() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    for server in &masters[..2] {
        assert!(server.del(&resource));
    }
    let adopter = masters.client();
    let guard = adopter.adopt(handover.clone(), TTL).await.unwrap();
    guard.extend(TTL).await.unwrap();
    eventually_async("set again", LONG, async || {
        holding(&masters, &handover) == 5
    })
    .await;
    drop(guard);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 0);
}

#[tokio::test]
async fn a_lock_of_another_is_not_adopted_and_left_to_its_owner() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    let mut forged = handover.clone();
    forged.value = "forged".to_owned();
    let adopter = masters.client();
    assert_eq!(loss(adopter.adopt(forged, TTL).await), LossReason::Taken);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 3);
    assert_eq!(masters.calls("del"), 0);
}

#[tokio::test]
async fn while_too_few_masters_answer_a_lock_waits_to_be_adopted() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    let adopter = masters.client();
    masters[..3].iter().for_each(Server::freeze);
    for _ in 0..2 {
        let adopted = adopter.adopt(handover.clone(), TTL).await;
        let Err(AdoptError::Extend(ExtendError::Unconfirmed { ballots, .. })) = adopted else {
            panic!("{adopted:?}");
        };
        assert_eq!(ballots.iter().count(), 5);
    }
    masters[..3].iter().for_each(Server::thaw);
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 5);
    assert_eq!(masters.calls("del"), 0);

    let mut adopted = None;
    eventually_async("adopted when they are back", LONG, async || {
        adopted = adopter.adopt(handover.clone(), TTL).await.ok();
        adopted.is_some()
    })
    .await;
    adopted.unwrap().release().await.expect("ours now");
    assert_eq!(adopter.shutdown(LONG).await, 0);
    assert_eq!(holding(&masters, &handover), 0);
}

#[tokio::test]
async fn an_adoption_that_failed_sets_no_key_later() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    let masters = masters.with_proxies(0..3);
    let late = masters.client();
    late.inspect(&resource).await;
    masters.proxies().for_each(Proxy::hang);
    let adopted = late.adopt(handover.clone(), TTL).await;
    assert!(
        matches!(
            adopted,
            Err(AdoptError::Extend(ExtendError::Unconfirmed { .. }))
        ),
        "{adopted:?}"
    );
    drop(late);

    let direct = Redlock::builder().masters(masters.iter().map(Server::url));
    let adopter = direct.build().expect("valid URLs");
    let guard = adopter.adopt(handover.clone(), TTL).await.unwrap();
    guard.release().await.expect("ours now");
    assert_eq!(adopter.shutdown(LONG).await, 0);
    let before = masters.calls("evalsha");
    masters.proxies().for_each(Proxy::resume);
    eventually_async("the late requests", LONG, async || {
        masters.calls("evalsha") >= before + 3
    })
    .await;
    assert_eq!(
        holding(&masters, &handover),
        0,
        "a lock that nobody holds keeps others out"
    );
}

#[tokio::test]
async fn an_adoption_that_is_given_up_at_any_moment_leaves_the_lock_as_it_is() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    let masters = masters.with_proxies(0..3);
    for (by, proxy) in (1..).zip(masters.proxies()) {
        proxy.delay(Duration::from_millis(5 * by));
    }
    let connected = masters.client();
    assert_eq!(connected.inspect(&resource).await.views.len(), 3);
    let mut given_up = 0;
    loop {
        let patience = Duration::from_millis(4 * given_up);
        let unconnected = masters.client();
        let new = timeout(patience, unconnected.adopt(handover.clone(), TTL)).await;
        let old = timeout(patience, connected.adopt(handover.clone(), TTL)).await;
        let done = new.is_ok() && old.is_ok();
        for adopted in [new, old].into_iter().flatten() {
            adopted.unwrap().leak();
        }
        assert_eq!(unconnected.shutdown(LONG).await, 0);
        assert_eq!(connected.shutdown(LONG).await, 0);
        assert_eq!(holding(&masters, &handover), 3);
        assert_eq!(masters.calls("del"), 0);
        if done {
            break;
        }
        given_up += 1;
    }
    assert!(given_up > 2, "never given up half way");
}

#[tokio::test]
async fn an_adoption_with_a_ttl_that_cannot_be_sends_nothing() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    let before = masters.calls("evalsha");
    let adopted = masters
        .client()
        .adopt(handover.clone(), Duration::ZERO)
        .await;
    assert!(
        matches!(adopted, Err(AdoptError::Extend(ExtendError::Ttl(_)))),
        "{adopted:?}"
    );
    assert_eq!(masters.calls("evalsha"), before);
    assert_eq!(holding(&masters, &handover), 3);
}

/// Somebody forgot to take off what the way took.
#[tokio::test]
async fn an_adopted_lock_is_good_for_as_long_as_the_masters_confirmed() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let mut handover = leaked(&masters, &resource, Duration::from_secs(2)).await;
    handover.validity = TTL;
    let adopter = masters.client();
    let guard = adopter.adopt(handover, Duration::from_secs(1)).await;
    let guard = guard.expect("it is still there");
    assert!(guard.validity() < Duration::from_secs(1));
    assert_eq!(guard.lost().await, LossReason::Expired);
}

#[tokio::test]
async fn an_adoption_never_shortens_a_key() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let handover = leaked(&masters, &resource, TTL).await;
    let adopter = masters.client();
    let guard = adopter.adopt(handover, Duration::from_secs(1)).await;
    let guard = guard.unwrap();
    assert!(guard.validity() < Duration::from_secs(1));
    assert!(masters.iter().all(|s| s.pttl(&resource) > 30_000));
}
