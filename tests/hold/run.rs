//! Work under a lock: its output or its panic reaches the caller, it stops with the lock, and leaves no key.

use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio::sync::Notify;
use tokio_redlock::{KeepAlive, LockError, LockGuard, LossReason, Redlock, RetryPolicy, RunError};

/// For locks that must not end before the test says so.
const TTL: Duration = Duration::from_secs(60);

/// Asserts that nothing is left, once all releases in the background are done.
async fn is_free(dlm: &Redlock, masters: &[Server]) {
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

fn quorum_holds(masters: &[Server], guard: &LockGuard) -> bool {
    2 * masters.holders(guard) > masters.len()
}

/// Tells whether it was dropped.
#[derive(Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn raise_when_dropped(&self) -> RaiseWhenDropped {
        RaiseWhenDropped(self.clone())
    }
}

struct RaiseWhenDropped(Flag);

impl Drop for RaiseWhenDropped {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}

/// Work without an end, which shows when it was dropped.
async fn endless(dropped: &Flag) {
    let _dropped = dropped.raise_when_dropped();
    std::future::pending().await
}

#[tokio::test]
async fn a_guard_drives_work_and_returns_its_output() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let guard = masters.client().lock(&resource, TTL).await.unwrap();
    let own = String::from("borrowed");
    let output = guard.run(async { own.as_str() }).await;
    assert_eq!(output, Ok("borrowed"));
    let failed: Result<(), &str> = Err("the work's own");
    assert_eq!(guard.run(async { failed }).await, Ok(failed));
    assert!(quorum_holds(&masters, &guard), "held until the guard goes");
}

#[tokio::test]
async fn a_guard_drops_work_with_the_loss_and_says_which_lock_it_was() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let dlm = masters.client();
    let guard = dlm.lock(&resource, Duration::from_millis(300)).await;
    let guard = guard.unwrap();
    let dropped = Flag::default();
    let lost = guard.run(endless(&dropped)).await.unwrap_err();
    assert!(dropped.is_raised());
    assert_eq!(lost.reason, LossReason::Expired);
    assert_eq!(lost.resource, resource);
    assert!(lost.to_string().contains(&resource), "{lost}");
    assert!(!guard.is_valid());
}

#[tokio::test]
async fn a_guard_that_is_lost_does_not_begin_any_work() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = dlm.lock(unique("r"), Duration::from_millis(50)).await;
    let guard = guard.unwrap();
    guard.lost().await;
    let begun = Flag::default();
    let ran = guard.run(async { drop(begun.raise_when_dropped()) }).await;
    assert!(ran.is_err());
    assert!(!begun.is_raised());
}

#[tokio::test]
async fn a_guard_drops_work_when_its_keys_are_taken_over() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let request = masters.client().lock(&resource, Duration::from_secs(2));
    let guard = request.keep_alive(KeepAlive::new()).await.unwrap();
    let dropped = Flag::default();
    for server in &masters[1..] {
        server.set(&resource, "another");
    }
    let lost = guard.run(endless(&dropped)).await.unwrap_err();
    assert!(dropped.is_raised());
    assert_eq!(lost.reason, LossReason::Taken);
}

#[tokio::test]
async fn several_futures_run_under_one_guard_and_one_that_is_given_up_leaves_it_held() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let guard = masters.client().lock(&resource, TTL).await.unwrap();
    let sum = tokio::join!(guard.run(async { 1 }), guard.run(async { 2 }));
    assert_eq!(sum, (Ok(1), Ok(2)));
    let dropped = Flag::default();
    let given_up = tokio::time::timeout(Duration::ZERO, guard.run(endless(&dropped)));
    assert!(given_up.await.is_err());
    assert!(dropped.is_raised());
    assert!(guard.is_valid());
    assert!(quorum_holds(&masters, &guard));
}

#[tokio::test]
async fn work_is_done_under_the_lock_which_is_gone_when_the_caller_gets_the_output() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let dlm = masters.client();
    let output = dlm
        .with_lock(&resource, TTL, async |guard| {
            assert_eq!(guard.resource(), resource.as_bytes());
            assert!(quorum_holds(&masters, guard));
            let rival = masters.client().try_lock(&resource, TTL).await;
            assert!(matches!(rival, Err(LockError::Taken(_))), "{rival:?}");
            "output"
        })
        .await;
    assert_eq!(output.unwrap(), "output");
    let next = masters.client().try_lock(&resource, TTL).await;
    drop(next.expect("released before the output was returned"));
}

#[tokio::test]
async fn work_that_is_longer_than_the_ttl_is_kept_under_the_lock() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let ttl = Duration::from_secs(1);
    let work = async |guard: &LockGuard| {
        tokio::time::sleep(2 * ttl).await;
        guard.is_valid()
    };
    assert!(dlm.with_lock(unique("r"), ttl, work).await.unwrap());
    assert!(dlm.lock(unique("r"), ttl).run(work).await.unwrap());
    let guard = dlm.lock(unique("r"), ttl).await.unwrap();
    let lost = guard.run(work(&guard)).await;
    let lost = lost.expect_err("nothing keeps this one alive");
    assert_eq!(lost.reason, LossReason::Expired);
    drop(guard);
    is_free(&dlm, &masters).await;
}

#[tokio::test]
async fn an_error_of_the_work_reaches_the_caller() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let work = async |_: &LockGuard| Err::<(), _>("the work's own");
    let failed = dlm.with_lock(unique("r"), TTL, work).await;
    assert_eq!(failed.unwrap(), Err("the work's own"));
    is_free(&dlm, &masters).await;
}

#[derive(Debug, PartialEq)]
struct Oops(u32);

#[tokio::test]
async fn a_panic_of_the_work_reaches_the_caller_and_the_key_is_gone() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let panicking = tokio::spawn({
        let dlm = dlm.clone();
        async move {
            let work = async |_: &LockGuard| {
                tokio::task::yield_now().await;
                panic_any(Oops(7))
            };
            dlm.with_lock(unique("r"), TTL, work).await
        }
    });
    let panic = panicking.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref(), Some(&Oops(7)));
    is_free(&dlm, &masters).await;
}

#[tokio::test]
async fn a_panic_before_the_first_step_of_the_work_leaves_no_key_either() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let panicking = tokio::spawn({
        let dlm = dlm.clone();
        async move {
            let begin = |_: &LockGuard| -> std::future::Ready<()> { panic_any(Oops(8)) };
            dlm.with_lock(unique("r"), TTL, begin).await
        }
    });
    let panic = panicking.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref(), Some(&Oops(8)));
    is_free(&dlm, &masters).await;
}

#[tokio::test]
async fn work_that_is_cancelled_is_dropped_and_the_key_is_gone() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let (begun, dropped) = (Notify::new(), Flag::default());
    let work = async |_: &LockGuard| {
        begun.notify_one();
        endless(&dropped).await;
    };
    tokio::select! {
        ended = dlm.with_lock(unique("r"), TTL, work) => panic!("{ended:?}"),
        () = begun.notified() => {}
    }
    assert!(dropped.is_raised());
    is_free(&dlm, &masters).await;
}

#[tokio::test]
async fn work_that_is_aborted_with_its_task_leaves_no_key() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let (begun, dropped) = (Arc::new(Notify::new()), Flag::default());
    let task = tokio::spawn({
        let (dlm, begun, dropped) = (dlm.clone(), Arc::clone(&begun), dropped.clone());
        async move {
            let work = async |_: &LockGuard| {
                begun.notify_one();
                endless(&dropped).await;
            };
            dlm.with_lock(unique("r"), TTL, work).await
        }
    });
    begun.notified().await;
    assert!(!dropped.is_raised());
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(dropped.is_raised());
    is_free(&dlm, &masters).await;
}

#[tokio::test]
async fn work_that_outlives_the_longest_lifetime_is_dropped_and_the_key_is_gone() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let dropped = Flag::default();
    let lifetime = Duration::from_millis(800);
    let start = Instant::now();
    let lost = dlm
        .lock(unique("r"), TTL)
        .keep_alive(KeepAlive::new().max_lifetime(lifetime))
        .run(async |_| endless(&dropped).await)
        .await;
    let Err(RunError::Lost(lost)) = lost else {
        panic!("{lost:?}");
    };
    assert_eq!(lost.reason, LossReason::LifetimeReached);
    assert!(start.elapsed() >= lifetime);
    assert!(dropped.is_raised());
    is_free(&dlm, &masters).await;
}

/// Breaks the masters while the work is done.
async fn the_output_reaches_the_caller_though(breaks: impl Fn(&mut Server)) {
    let mut masters = Masters::start(3);
    let dlm = masters.client();
    let start = Instant::now();
    let output = dlm
        .with_lock(unique("r"), TTL, async |_| {
            masters.iter_mut().for_each(breaks);
            "output"
        })
        .await;
    assert_eq!(output.unwrap(), "output");
    assert!(start.elapsed() < TTL / 10, "not kept waiting for long");
}

#[tokio::test]
async fn the_output_reaches_the_caller_though_the_release_fails() {
    the_output_reaches_the_caller_though(Server::kill).await;
}

#[tokio::test]
async fn the_output_reaches_the_caller_though_the_release_is_not_answered() {
    the_output_reaches_the_caller_though(|server| server.freeze()).await;
}

#[tokio::test]
async fn the_output_reaches_the_caller_though_the_keys_are_gone() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let output = masters
        .client()
        .with_lock(&resource, TTL, async |_| {
            for server in &masters {
                server.del(&resource);
            }
            "output"
        })
        .await;
    assert_eq!(output.unwrap(), "output");
}

#[tokio::test]
async fn work_without_the_lock_is_not_begun() {
    let (mut masters, resource) = (Masters::start(3), unique("r"));
    let held = masters.client().lock(&resource, TTL).await.unwrap();
    let twice = RetryPolicy::new().max_attempts(2);
    let dlm = masters.builder().retry(twice).build().unwrap();
    let begun = Flag::default();
    let work = |_: &LockGuard| {
        drop(begun.raise_when_dropped());
        std::future::ready(())
    };

    let taken = dlm.with_lock(&resource, TTL, work).await;
    assert!(
        matches!(&taken, Err(RunError::Lock(LockError::Taken(a))) if a.attempts == 2),
        "{taken:?}"
    );
    let taken = dlm.try_lock(&resource, TTL).run(work).await;
    assert!(
        matches!(&taken, Err(RunError::Lock(LockError::Taken(a))) if a.attempts == 1),
        "{taken:?}"
    );
    let too_short = dlm.with_lock(&resource, Duration::ZERO, work).await;
    assert!(
        matches!(too_short, Err(RunError::Lock(LockError::Ttl(_)))),
        "{too_short:?}"
    );
    assert!(held.is_valid());
    masters.iter_mut().for_each(Server::kill);
    let unreachable = dlm.with_lock(&resource, TTL, work).await;
    assert!(
        matches!(unreachable, Err(RunError::Lock(LockError::Unreachable(_)))),
        "{unreachable:?}"
    );
    assert!(!begun.is_raised());
}

#[tokio::test(flavor = "multi_thread")]
async fn work_under_a_lock_can_be_spawned() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let state = Arc::new(AtomicBool::new(false));

    let borrows_nothing = tokio::spawn({
        let dlm = dlm.clone();
        async move {
            dlm.with_lock(unique("r"), TTL, async |guard| {
                tokio::task::yield_now().await;
                guard.is_valid()
            })
            .await
        }
    });
    let moves_its_state = tokio::spawn({
        let (dlm, state) = (dlm.clone(), Arc::clone(&state));
        async move {
            let work = async move |guard: &LockGuard| {
                tokio::task::yield_now().await;
                state.store(guard.is_valid(), Ordering::SeqCst);
                state
            };
            dlm.with_lock(unique("r"), TTL, work).await
        }
    });
    let request = dlm.lock(unique("r"), TTL).keep_alive(KeepAlive::new());
    let of_a_request = tokio::spawn(request.run(async |guard| {
        tokio::task::yield_now().await;
        guard.value().to_owned()
    }));
    let drives = tokio::spawn({
        let guard = dlm.lock(unique("r"), TTL).await.unwrap();
        async move { guard.run(tokio::task::yield_now()).await }
    });

    assert!(borrows_nothing.await.unwrap().unwrap());
    let moved = moves_its_state.await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&moved, &state) && state.load(Ordering::SeqCst));
    assert_eq!(of_a_request.await.unwrap().unwrap().len(), 27);
    drives.await.unwrap().unwrap();
    is_free(&dlm, &masters).await;
}

#[tokio::test]
async fn work_waits_for_the_lock_until_it_is_released() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let dlm = masters.client();
    let held = dlm.lock(&resource, TTL).await.unwrap();
    let begun = Flag::default();
    let waiting = async {
        let work = async |_: &LockGuard| drop(begun.raise_when_dropped());
        dlm.with_lock(&resource, TTL, work).await
    };
    let releasing = async {
        let calls = masters[0].calls("set");
        eventually_async("tried in vain", LONG, async || {
            masters[0].calls("set") >= calls + 2
        })
        .await;
        assert!(!begun.is_raised());
        held.release().await
    };
    let (waited, released) = tokio::join!(waiting, releasing);
    released.unwrap();
    waited.unwrap();
    assert!(begun.is_raised());
}
