//! Guards dropped wherever a program may drop them: the key is gone from every master that can be reached, nothing
//! panics, and nobody is kept waiting.

use std::cell::RefCell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use futures::future::join_all;
use support::{
    CAME_TO_ITS_END, LONG, Masters, Server, Servers, comes_to_its_end, current_thread, eventually,
    eventually_async, multi_thread, test_process, unique,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;
use tokio_redlock::{LockGuard, Redlock};

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(60);

/// As long as a key may stay after a drop.
const SOON: Duration = Duration::from_secs(1);

/// After so long a key that is not there will not come.
const SETTLED: Duration = Duration::from_millis(400);

/// Far less than 100 ms for each of many guards, and far more than a busy machine needs.
const BOUND: Duration = Duration::from_secs(5);

async fn lock_everywhere(dlm: &Redlock, masters: &[Server], resource: &str) -> LockGuard {
    masters.lock_everywhere(dlm, resource, TTL).await
}

/// Locks many resources, some at a time.
async fn lock_many(dlm: &Redlock, masters: &[Server], count: usize) -> Vec<LockGuard> {
    drop(lock_everywhere(dlm, masters, &unique("lock")).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let mut guards = Vec::new();
    while guards.len() < count {
        let some = join_all((0..50).map(|_| dlm.lock(unique("lock"), TTL).into_future())).await;
        guards.extend(some.into_iter().map(|guard| guard.expect("it is free")));
    }
    eventually_async("all keys are everywhere", LONG, async || {
        masters.iter().all(|server| server.keys().len() == count)
    })
    .await;
    guards
}

/// Freezes the last one, if so wished, and returns those that still answer.
fn freeze_last(masters: &[Server], frozen: bool) -> &[Server] {
    if !frozen {
        return masters;
    }
    let (last, others) = masters.split_last().expect("there are some");
    last.freeze();
    others
}

/// Gets rid of what a frozen master could not be told to delete.
fn thaw_last(masters: &[Server], frozen: bool) {
    if frozen {
        let last = masters.last().expect("there are some");
        last.thaw();
        last.query::<()>(&redis::cmd("FLUSHALL"));
    }
}

/// Drops a guard in some way on either kind of runtime, with and without a frozen master: it must be gone soon.
/// The runtime, if the situation does not end it, goes on.
fn is_gone_after(situation: impl Fn(Runtime, LockGuard) -> Option<Runtime>) {
    let masters = Masters::start(3);
    for frozen in [false, true] {
        for runtime in [current_thread(), multi_thread()] {
            let dlm = masters.client();
            let resource = unique("lock");
            let guard = runtime.block_on(lock_everywhere(&dlm, &masters, &resource));
            let reachable = freeze_last(&masters, frozen);
            let start = Instant::now();
            let runtime = situation(runtime, guard);
            assert!(start.elapsed() < BOUND);
            let gone = || {
                let is_gone = |server: &Server| server.get(&resource).is_none();
                reachable.iter().all(is_gone)
            };
            match runtime {
                None => eventually("gone without a runtime", SOON, gone),
                Some(runtime) => {
                    runtime.block_on(eventually_async("gone", SOON, async || gone()));
                }
            }
            thaw_last(&masters, frozen);
        }
    }
}

#[test]
fn a_guard_dropped_at_the_end_of_block_on_is_released_as_the_runtime_goes() {
    is_gone_after(|runtime, guard| {
        runtime.block_on(async move { drop(guard) });
        drop(runtime);
        None
    });
}

#[test]
fn a_guard_dropped_within_a_living_runtime_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.block_on(async move { drop(guard) });
        Some(runtime)
    });
}

#[test]
fn a_guard_dropped_after_block_on_is_released() {
    let masters = Masters::start(3);
    for frozen in [false, true] {
        for runtime in [current_thread(), multi_thread()] {
            let dlm = masters.client();
            let resource = unique("lock");
            let guard = runtime.block_on(lock_everywhere(&dlm, &masters, &resource));
            let reachable = freeze_last(&masters, frozen);
            drop(guard);
            // The runtime exists all the time, but need not run for that.
            eventually("gone", SOON, || reachable.are_empty());
            drop(runtime);
            thaw_last(&masters, frozen);
        }
    }
}

#[test]
fn a_guard_dropped_on_another_thread_is_released() {
    is_gone_after(|runtime, guard| {
        thread::spawn(|| drop(guard)).join().expect("no panic");
        Some(runtime)
    });
}

#[test]
fn a_guard_dropped_on_another_thread_while_the_runtime_is_busy_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.block_on(async {
            let thread = thread::spawn(|| drop(guard));
            eventually_async("dropped", BOUND, async || thread.is_finished()).await;
            thread.join().expect("no panic");
        });
        Some(runtime)
    });
}

#[test]
fn a_guard_dropped_on_the_blocking_pool_is_released() {
    is_gone_after(|runtime, guard| {
        let dropped = runtime.spawn_blocking(|| drop(guard));
        runtime.block_on(dropped).expect("no panic");
        Some(runtime)
    });
}

#[test]
fn a_guard_that_outlives_its_runtime_is_released() {
    is_gone_after(|runtime, guard| {
        drop(runtime);
        drop(guard);
        None
    });
}

#[test]
fn a_guard_that_outlives_a_runtime_shut_down_in_the_background_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.shutdown_background();
        drop(guard);
        None
    });
}

#[test]
fn a_guard_that_outlives_a_runtime_shut_down_with_a_timeout_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.shutdown_timeout(Duration::from_millis(50));
        drop(guard);
        None
    });
}

#[test]
fn a_guard_that_outlives_its_runtime_is_released_within_another_one() {
    is_gone_after(|runtime, guard| {
        drop(runtime);
        let next = multi_thread();
        next.block_on(async move { drop(guard) });
        Some(next)
    });
}

#[test]
fn a_guard_dropped_within_another_runtime_is_released() {
    is_gone_after(|runtime, guard| {
        let other = current_thread();
        other.block_on(async move { drop(guard) });
        drop(other);
        Some(runtime)
    });
}

#[test]
fn a_guard_in_an_aborted_task_is_released() {
    is_gone_after(|runtime, guard| {
        let task = runtime.spawn(async move {
            let _guard = guard;
            pending::<()>().await;
        });
        runtime.block_on(async {
            tokio::task::yield_now().await;
            task.abort();
            assert!(task.await.is_err_and(|error| error.is_cancelled()));
        });
        Some(runtime)
    });
}

#[test]
fn a_guard_in_a_task_that_panics_is_released() {
    is_gone_after(|runtime, guard| {
        let task = runtime.spawn(async move {
            let _guard = guard;
            panic!("on purpose");
        });
        let outcome = runtime.block_on(task);
        assert!(outcome.is_err_and(|error| error.is_panic()));
        Some(runtime)
    });
}

#[test]
fn a_guard_dropped_by_a_panic_that_ends_the_runtime_is_released() {
    is_gone_after(|runtime, guard| {
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            runtime.block_on(async move {
                let _guard = guard;
                panic!("on purpose");
            })
        }));
        assert!(panicked.is_err());
        None
    });
}

#[test]
fn a_guard_dropped_by_a_panic_without_a_runtime_is_released() {
    is_gone_after(|runtime, guard| {
        drop(runtime);
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _guard = guard;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        None
    });
}

/// Holds the guard for as long as the runtime lets it.
async fn hold(guard: LockGuard) {
    let _guard = guard;
    pending::<()>().await;
}

#[test]
fn a_guard_in_a_task_that_a_shutdown_drops_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.spawn(hold(guard));
        drop(runtime);
        None
    });
}

#[test]
fn a_guard_in_a_task_that_a_shutdown_in_the_background_drops_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.spawn(hold(guard));
        runtime.shutdown_background();
        None
    });
}

#[test]
fn a_guard_in_a_task_that_a_shutdown_with_a_timeout_drops_is_released() {
    is_gone_after(|runtime, guard| {
        runtime.spawn(hold(guard));
        runtime.shutdown_timeout(LONG);
        None
    });
}

/// Ends a runtime with many guards in its tasks in some way, which must not take a time for each.
fn many_are_gone_after(end: impl Fn(Runtime, Vec<LockGuard>)) {
    let masters = Masters::start(3);
    for frozen in [false, true] {
        for runtime in [current_thread(), multi_thread()] {
            let dlm = masters.client();
            let guards = runtime.block_on(lock_many(&dlm, &masters, 500));
            let reachable = freeze_last(&masters, frozen);
            let start = Instant::now();
            end(runtime, guards);
            let took = start.elapsed();
            assert!(took < BOUND, "{took:?} with frozen: {frozen}");
            eventually("all gone", SOON, || reachable.are_empty());
            thaw_last(&masters, frozen);
        }
    }
}

#[test]
fn many_guards_in_tasks_are_released_as_the_runtime_goes() {
    many_are_gone_after(|runtime, guards| {
        for guard in guards {
            runtime.spawn(hold(guard));
        }
        drop(runtime);
    });
}

#[test]
fn many_guards_that_outlive_their_runtime_are_released() {
    many_are_gone_after(|runtime, guards| {
        drop(runtime);
        drop(guards);
    });
}

#[test]
fn many_guards_dropped_at_the_end_of_block_on_are_released_as_the_runtime_goes() {
    many_are_gone_after(|runtime, guards| {
        runtime.block_on(async move { drop(guards) });
        drop(runtime);
    });
}

#[tokio::test]
async fn dropping_many_guards_never_blocks_a_living_runtime() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guards = lock_many(&dlm, &masters, 1_000).await;
    let reachable = freeze_last(&masters, true);
    let ticks = Arc::new(AtomicU32::new(0));
    let ticking = tokio::spawn(tick(Arc::clone(&ticks)));

    let start = Instant::now();
    drop(guards);
    let took = start.elapsed();
    assert!(took < BOUND, "{took:?}");
    eventually_async("all gone", SOON, async || reachable.are_empty()).await;

    // The releases wait for the frozen one; nobody else does.
    assert_eq!(dlm.shutdown(Duration::ZERO).await, 1_000);
    let before = ticks.load(Ordering::Relaxed);
    eventually_async("it ticks", BOUND, async || {
        ticks.load(Ordering::Relaxed) > before + 100
    })
    .await;
    assert!(!ticking.is_finished());
    masters[2].thaw();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

async fn tick(ticks: Arc<AtomicU32>) {
    loop {
        sleep(Duration::from_millis(1)).await;
        ticks.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_lock_under_way_as_the_runtime_goes_leaves_nothing() {
    let masters = Masters::start(3);
    for runtime in [current_thread(), multi_thread()] {
        let dlm = masters.client();
        let (resource, warm) = (unique("lock"), unique("lock"));
        runtime.block_on(async {
            drop(lock_everywhere(&dlm, &masters, &warm).await);
            assert_eq!(dlm.shutdown(LONG).await, 0);
            // It gets one vote, and waits for a second one.
            masters[1..].iter().for_each(Server::freeze);
            let request = dlm.lock(&resource, TTL).into_future();
            tokio::spawn(async move { request.await.map(LockGuard::leak) });
            eventually_async("one vote", LONG, async || {
                masters[0].get(&resource).is_some()
            })
            .await;
        });
        drop(runtime);
        eventually("gone", SOON, || masters[0].keys().is_empty());
        masters[1..].iter().for_each(Server::thaw);
    }
}

#[test]
fn a_guard_dropped_beside_a_running_runtime_is_released_on_a_master_that_hangs_for_a_while() {
    for _ in 0..3 {
        let (masters, runtime) = (Masters::start(3), current_thread());
        let dlm = masters.client();
        runtime.block_on(async {
            drop(lock_everywhere(&dlm, &masters, "warm").await);
            assert_eq!(dlm.shutdown(LONG).await, 0);
            masters[0].freeze();
            let guard = dlm.lock("lock", TTL).await.expect("it is free");
            let dropping = tokio::task::spawn_blocking(move || {
                // Not within the runtime.
                thread::spawn(move || drop(guard)).join()
            });
            dropping.await.expect("no panic").expect("no panic");
            masters[0].thaw();
            assert_eq!(dlm.shutdown(LONG).await, 0);
            sleep(SETTLED).await;
        });
        assert!(masters.are_empty());
    }
}

/// Unlike our own connections, those cannot be found to hang by opening others.
#[test]
fn a_runtime_ends_soon_though_many_releases_over_given_connections_wait_for_a_master_that_hangs() {
    let masters = Masters::start(3);
    let [home, runtime] = [multi_thread(), current_thread()];
    let given = home.block_on(async {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let mut given = Redlock::builder();
        for server in &masters {
            let client = redis::Client::open(server.url()).expect("a valid URL");
            let connection = client.get_multiplexed_async_connection_with_config(&config);
            given = given.connection(connection.await.expect("it accepts connections"));
        }
        given
    });
    let dlm = runtime.block_on(async {
        let dlm = given.build().expect("valid masters");
        drop(dlm.lock("warm", TTL).await.expect("it is free"));
        assert_eq!(dlm.shutdown(LONG).await, 0);
        masters[0].freeze();
        for _ in 0..100 {
            drop(dlm.lock(unique("lock"), TTL).await.expect("it is free"));
        }
        let clean = async || masters[1..].are_empty();
        eventually_async("the others are clean", LONG, clean).await;
        dlm
    });
    let start = Instant::now();
    drop(runtime);
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    drop(dlm);
}

/// How long a SET is under way in the tests below.
const LATE: Duration = Duration::from_millis(600);

/// Ends a runtime in some way while the SET to one of three masters is still under way, and tells what came of it.
fn late_set_is_left(runtime: Runtime, end: impl Fn(Runtime, LockGuard) -> Option<Runtime>) -> bool {
    let masters = Masters::start(3).with_proxies([2]);
    let proxy = masters.proxy(2);
    let dlm = masters.client();
    let resource = unique("lock");
    let guard = runtime.block_on(async {
        drop(lock_everywhere(&dlm, &masters, &resource).await);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        proxy.delay(LATE);
        let guard = dlm.lock(&resource, TTL).await.expect("two are a quorum");
        // It has left, and what comes later is faster.
        sleep(LATE / 6).await;
        proxy.delay(Duration::ZERO);
        guard
    });
    assert_eq!(masters[2].get(&resource), None, "too late to show anything");
    let start = Instant::now();
    let runtime = end(runtime, guard);
    eventually("gone where it was", SOON, || masters[..2].are_empty());
    if let Some(runtime) = runtime {
        assert_eq!(runtime.block_on(dlm.shutdown(LONG)), 0);
    }
    // By then it has arrived, if it ever does.
    thread::sleep((2 * LATE).saturating_sub(start.elapsed()));
    masters[2].get(&resource).is_some()
}

#[test]
fn a_set_under_way_as_the_runtime_goes_is_not_left_by_the_next_runtime() {
    for runtime in [current_thread(), multi_thread()] {
        let left = late_set_is_left(runtime, |runtime, guard| {
            drop(runtime);
            let next = multi_thread();
            next.block_on(async move { drop(guard) });
            Some(next)
        });
        assert!(!left);
    }
}

#[test]
fn a_set_under_way_as_the_runtime_goes_is_not_left_without_a_runtime() {
    for runtime in [current_thread(), multi_thread()] {
        let left = late_set_is_left(runtime, |runtime, guard| {
            runtime.spawn(hold(guard));
            drop(runtime);
            None
        });
        assert!(!left);
    }
}

#[test]
fn a_guard_dropped_beside_an_idle_runtime_is_released_as_that_goes() {
    is_gone_after(|runtime, guard| {
        let entered = runtime.enter();
        drop(guard);
        drop(entered);
        drop(runtime);
        None
    });
}

/// What a child finds in its environment.
const URLS: &str = "DROPPING_URLS";
const RESOURCE: &str = "DROPPING_RESOURCE";
const FLAVOR: &str = "DROPPING_FLAVOR";

/// Runs a test below, ignored otherwise, as a process of its own; it must neither fail nor tell of a panic.
fn run(child: &str, masters: &Masters, resource: &str, flavor: &str) {
    let mut command = test_process(module_path!(), child);
    command
        .env(URLS, masters.urls().join(" "))
        .env(RESOURCE, resource)
        .env(FLAVOR, flavor);
    comes_to_its_end(command);
}

/// Runs a child in every setting, and tells for each whether it left its key on a master that answers.
fn leaves(child: &str) -> Vec<bool> {
    let masters = Masters::start(3);
    let mut left = Vec::new();
    for frozen in [false, true] {
        let reachable = freeze_last(&masters, frozen);
        for flavor in ["current_thread", "multi_thread"] {
            let resource = unique("lock");
            let before = reachable.calls("set");
            run(child, &masters, &resource, flavor);
            let remains = reachable
                .iter()
                .any(|server| server.get(&resource).is_some());
            assert!(
                reachable.calls("set") >= before + 2,
                "it was not locked at all"
            );
            left.push(remains);
        }
        thaw_last(&masters, frozen);
    }
    left
}

/// The other side: what the child was told to do, if this is a child.
struct Job {
    dlm: Redlock,
    resource: String,
    runtime: Runtime,
}

impl Job {
    fn from_env() -> Option<Self> {
        let urls = env::var(URLS).ok()?;
        Some(Self {
            dlm: Redlock::new(urls.split(' ')).ok()?,
            resource: env::var(RESOURCE).ok()?,
            runtime: match env::var(FLAVOR).ok()?.as_str() {
                "current_thread" => current_thread(),
                _ => multi_thread(),
            },
        })
    }
}

/// Does the work of a child, if this process is one, and ends it. The client exists to the end.
fn as_child(work: impl FnOnce(Runtime, &Redlock, &str)) {
    let Some(job) = Job::from_env() else { return };
    work(job.runtime, &job.dlm, &job.resource);
    process::exit(CAME_TO_ITS_END);
}

async fn lock(dlm: &Redlock, resource: &str) -> LockGuard {
    dlm.lock(resource, TTL).await.expect("it is free")
}

#[test]
fn a_main_that_ends_leaves_nothing() {
    assert_eq!(leaves("child_that_holds_to_the_end_of_main"), [false; 4]);
}

#[test]
#[ignore = "run by another test"]
fn child_that_holds_to_the_end_of_main() {
    as_child(|runtime, dlm, resource| {
        runtime.block_on(async {
            let _guard = lock(dlm, resource).await;
        });
        drop(runtime);
    });
}

#[test]
fn a_main_that_ends_while_a_task_holds_the_lock_leaves_nothing() {
    assert_eq!(
        leaves("child_whose_task_holds_to_the_end_of_main"),
        [false; 4]
    );
}

#[test]
#[ignore = "run by another test"]
fn child_whose_task_holds_to_the_end_of_main() {
    as_child(|runtime, dlm, resource| {
        runtime.block_on(async {
            tokio::spawn(hold(lock(dlm, resource).await));
        });
        drop(runtime);
    });
}

#[test]
fn a_main_that_holds_the_lock_longer_than_its_runtime_leaves_nothing() {
    assert_eq!(
        leaves("child_that_holds_longer_than_its_runtime"),
        [false; 4]
    );
}

#[test]
#[ignore = "run by another test"]
fn child_that_holds_longer_than_its_runtime() {
    as_child(|runtime, dlm, resource| {
        let guard = runtime.block_on(lock(dlm, resource));
        drop(runtime);
        drop(guard);
    });
}

/// What no drop can prevent, and what the tests above would see.
#[test]
fn a_process_that_exits_without_dropping_leaves_its_key_until_the_ttl() {
    assert_eq!(leaves("child_that_exits_while_it_holds"), [true; 4]);
}

#[test]
#[ignore = "run by another test"]
fn child_that_exits_while_it_holds() {
    as_child(|runtime, dlm, resource| {
        runtime.block_on(async {
            let _guard = lock(dlm, resource).await;
            process::exit(CAME_TO_ITS_END);
        });
    });
}

thread_local! {
    static KEPT: RefCell<Option<LockGuard>> = const { RefCell::new(None) };
}

#[test]
fn a_guard_in_a_thread_local_is_released_with_the_thread() {
    assert_eq!(
        leaves("child_that_keeps_a_guard_in_a_thread_local"),
        [false; 4]
    );
}

#[test]
#[ignore = "run by another test"]
fn child_that_keeps_a_guard_in_a_thread_local() {
    let Some(Job {
        dlm,
        resource,
        runtime,
    }) = Job::from_env()
    else {
        return;
    };
    let thread = thread::spawn(move || {
        // Used before anything of Tokio, it is dropped after that.
        KEPT.with(|_| {});
        let guard = runtime.block_on(lock(&dlm, &resource));
        KEPT.set(Some(guard));
        runtime
    });
    let runtime = thread.join().expect("no panic");
    drop(runtime);
    process::exit(CAME_TO_ITS_END);
}

/// One in which neither sockets nor timers work.
fn drop_in_a_bare_runtime(guard: LockGuard) {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async move {
        drop(guard);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_guard_dropped_in_a_runtime_without_drivers_is_released() {
    assert_eq!(leaves("child_with_a_runtime_without_drivers"), [false; 4]);
}

#[test]
#[ignore = "run by another test"]
fn child_with_a_runtime_without_drivers() {
    as_child(|runtime, dlm, resource| {
        let guard = runtime.block_on(lock(dlm, resource));
        drop_in_a_bare_runtime(guard);
        drop(runtime);
    });
}

#[test]
fn a_guard_that_outlives_its_runtime_is_released_in_one_without_drivers() {
    assert_eq!(
        leaves("child_with_nothing_but_a_runtime_without_drivers"),
        [false; 4]
    );
}

#[test]
#[ignore = "run by another test"]
fn child_with_nothing_but_a_runtime_without_drivers() {
    as_child(|runtime, dlm, resource| {
        let guard = runtime.block_on(lock(dlm, resource));
        drop(runtime);
        drop_in_a_bare_runtime(guard);
    });
}
