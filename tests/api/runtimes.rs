//! A call works whichever runtime polls it: one without drivers, one that idles, is blocked or ends, and an executor
//! that is not Tokio's.

use std::cell::RefCell;
use std::future::{IntoFuture, pending};
use std::pin::pin;
use std::process;
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};
use std::{array, env, thread};

use futures::future::FutureExt;
use futures::poll;
use redis::cmd;
use support::{
    CAME_TO_ITS_END, LONG, Masters, Proxy, Server, Servers, comes_to_its_end, current_thread,
    eventually, eventually_async, multi_thread, test_process, unique,
};
use tokio::runtime::{Builder, Handle};
use tokio::time::sleep;
use tokio_redlock::inspect::Verdict;
use tokio_redlock::{
    ExtendError, Handover, KeepAlive, LockError, LockGuard, LossReason, Redlock, RedlockBuilder,
    ReleaseError, RetryPolicy, RunError,
};

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(60);

/// For locks that are kept alive: short, and long enough for renewals on a busy machine.
const KEPT: Duration = Duration::from_secs(1);

/// Far more than a busy machine needs for what takes a few round trips.
const SOON: Duration = Duration::from_secs(2);

/// Masters that answer have so long to do it that no call fails because the machine is busy.
fn patient(builder: RedlockBuilder) -> Redlock {
    builder.request_timeout(SOON).build().expect("valid URLs")
}

fn client(masters: &Masters) -> Redlock {
    patient(masters.builder())
}

fn quorum_holds(masters: &[Server], guard: &LockGuard) -> bool {
    2 * masters.holders(guard) > masters.len()
}

async fn is_taken(rival: &Redlock, resource: &str) -> bool {
    match rival.try_lock(resource, TTL).await {
        Ok(_) => false,
        Err(LockError::Taken(_)) => true,
        Err(other) => panic!("{other}"),
    }
}

/// Locks, extends and releases, each with a single attempt.
async fn cycle(dlm: &Redlock) -> Result<(), String> {
    let locked = dlm.try_lock(unique("lock"), TTL).await;
    let guard = locked.map_err(|error| error.to_string())?;
    let extended = guard.extend(2 * TTL).await;
    extended.map_err(|error| error.to_string())?;
    guard.release().await.map_err(|error| error.to_string())
}

/// Opens the connections to all masters, also to one that a busy machine made too slow for the first locks.
async fn connect(dlm: &Redlock, masters: &[Server]) {
    eventually_async("all are connected", LONG, async || {
        cycle(dlm).await.expect("healthy masters");
        assert_eq!(dlm.shutdown(LONG).await, 0);
        masters.iter().all(|server| server.calls("set") > 0)
    })
    .await;
}

/// Who polls a call.
#[derive(Clone, Copy, Debug)]
enum Executor {
    /// No runtime of Tokio is there.
    NotTokio,
    /// A runtime in which neither sockets nor timers work.
    Bare,
    OnlySockets,
    OnlyTimers,
}

const WITHOUT_DRIVERS: [Executor; 3] =
    [Executor::Bare, Executor::OnlySockets, Executor::OnlyTimers];

impl Executor {
    fn block_on<F: Future>(self, future: F) -> F::Output {
        let mut builder = Builder::new_current_thread();
        match self {
            Self::NotTokio => return futures::executor::block_on(future),
            Self::Bare => {}
            Self::OnlySockets => drop(builder.enable_io()),
            Self::OnlyTimers => drop(builder.enable_time()),
        }
        builder.build().expect("a runtime").block_on(future)
    }
}

/// Has every executor poll it, with a client that has no connections yet.
fn whoever_polls(call: impl AsyncFn(Redlock, &Masters)) {
    let masters = Masters::start(3);
    for executor in [Executor::NotTokio].into_iter().chain(WITHOUT_DRIVERS) {
        println!("polled by {executor:?}");
        executor.block_on(call(client(&masters), &masters));
    }
}

#[test]
fn lock_and_release_work_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        let (rival, resource) = (client(masters), unique("lock"));
        let guard = dlm.lock(&resource, TTL).await.expect("it is free");
        assert!(is_taken(&rival, &resource).await);
        guard.release().await.expect("still ours");
        assert!(!is_taken(&rival, &resource).await);

        let guard = dlm.lock(unique("lock"), TTL).await.expect("it is free");
        masters.iter().for_each(|server| {
            server.del(guard.resource());
        });
        let released = guard.release().await;
        assert!(matches!(released, Err(ReleaseError::NotHeld { .. })));
    });
}

#[test]
fn extend_works_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        let guard = dlm.lock(unique("lock"), TTL).await.expect("it is free");
        guard.extend(2 * TTL).await.expect("still ours");
        assert!(guard.validity() > TTL);
        masters.iter().for_each(|server| {
            server.set(guard.resource(), "another");
        });
        let extended = guard.extend(2 * TTL).await;
        assert!(matches!(extended, Err(ExtendError::Lost { .. })));
    });
}

#[test]
fn inspect_works_whoever_polls() {
    whoever_polls(async |dlm, _| {
        let resource = unique("lock");
        assert_eq!(dlm.inspect(&resource).await.verdict, Verdict::Free);
        let _guard = dlm.lock(&resource, TTL).await.expect("it is free");
        let verdict = dlm.inspect(&resource).await.verdict;
        assert!(matches!(verdict, Verdict::Held { .. }), "{verdict:?}");
    });
}

#[test]
fn lost_and_run_work_whoever_polls() {
    whoever_polls(async |dlm, _| {
        let guard = dlm.lock(unique("lock"), KEPT / 2).await;
        let guard = guard.expect("it is free");
        assert!(guard.lost().now_or_never().is_none(), "not lost yet");
        assert_eq!(guard.run(async { "output" }).await, Ok("output"));
        let ran = guard.run(pending::<()>()).await;
        assert!(ran.is_err(), "work without an end stops with the lock");
        guard.lost().await;
        assert!(!guard.is_valid());
    });
}

#[test]
fn with_lock_works_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        let resource = unique("lock");
        let impatient = masters.builder().retry(RetryPolicy::once()).build();
        let rival = impatient.expect("valid URLs");
        let output = dlm.with_lock(&resource, TTL, async |_| {
            let second = rival.with_lock(&resource, TTL, async |_| ()).await;
            matches!(second, Err(RunError::Lock(LockError::Taken(_))))
        });
        assert!(output.await.expect("it is free"));
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(masters.are_empty());
    });
}

#[test]
fn adopt_works_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        let guard = dlm.lock(unique("lock"), TTL).await.expect("it is free");
        let handover = guard.leak();
        let guard = client(masters).adopt(handover.clone(), TTL).await;
        guard.expect("still held").release().await.expect("ours");
        let stale = Handover::new(handover.resource, handover.value, TTL);
        assert!(dlm.adopt(stale, TTL).await.is_err());
    });
}

#[test]
fn a_lock_is_kept_alive_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        let request = dlm.lock(unique("lock"), KEPT).keep_alive(KeepAlive::new());
        let guard = request.await.expect("it is free");
        for _ in 0..2 {
            let (start, before) = (Instant::now(), guard.validity());
            // Nobody polls anything meanwhile.
            eventually("renewed", SOON, || {
                start.elapsed() + guard.validity() > before + KEPT / 10
            });
        }
        assert!(quorum_holds(masters, &guard));
        guard.release().await.expect("still ours");
    });
}

#[test]
fn a_lock_waits_for_its_turn_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        let (rival, resource) = (client(masters), unique("lock"));
        let holder = dlm.lock(&resource, KEPT / 2).await;
        let holder = holder.expect("it is free");
        let often = RetryPolicy::new().delay(KEPT / 100, KEPT / 50);
        let short = often.clone().max_wait(KEPT / 4);
        let impatient = rival.lock(&resource, TTL).retry(short).await;
        let Err(LockError::Taken(tried)) = impatient else {
            panic!("{impatient:?}");
        };
        assert!(tried.attempts > 1);
        let patient = rival.lock(&resource, TTL).retry(often.max_wait(LONG));
        let guard = patient.await.expect("free with the ttl");
        assert!(guard.is_valid() && !holder.is_valid());
    });
}

#[test]
fn hung_masters_are_given_up_whoever_polls() {
    whoever_polls(async |_, masters| {
        let quick = masters.builder().request_timeout(KEPT / 10);
        let dlm = quick.build().expect("valid URLs");
        let guard = dlm.lock(unique("lock"), TTL).await.expect("it is free");
        masters[1..].iter().for_each(Server::freeze);
        let start = Instant::now();
        let locked = dlm.try_lock(unique("lock"), TTL).await;
        assert!(matches!(locked, Err(LockError::Unreachable(_))));
        let extended = guard.extend(2 * TTL).await;
        assert!(matches!(extended, Err(ExtendError::Unconfirmed { .. })));
        let released = guard.release().await;
        assert!(matches!(released, Err(ReleaseError::Unconfirmed { .. })));
        assert!(dlm.shutdown(KEPT / 10).await > 0);
        assert!(start.elapsed() < 2 * SOON, "{:?}", start.elapsed());
        masters[1..].iter().for_each(Server::thaw);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(masters.are_empty());
    });
}

#[test]
fn what_is_dropped_is_released_whoever_polls() {
    whoever_polls(async |dlm, masters| {
        drop(dlm.lock(unique("lock"), TTL).await.expect("it is free"));
        for _ in 0..10 {
            let request = dlm.lock(unique("lock"), TTL).into_future();
            // Polled once, and dropped with its outcome open.
            if let Some(early) = request.now_or_never() {
                drop(early.expect("it is free"));
            }
        }
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(masters.are_empty());
    });
}

/// What a child finds in its environment.
const URLS: &str = "RUNTIMES_URLS";

#[test]
fn nothing_panics_in_a_runtime_without_drivers() {
    let masters = Masters::start(3);
    let mut command = test_process(module_path!(), "child_in_runtimes_without_drivers");
    command.env(URLS, masters.urls().join(" "));
    comes_to_its_end(command);
    assert!(masters.are_empty());
}

#[test]
#[ignore = "run by another test"]
fn child_in_runtimes_without_drivers() {
    let Ok(urls) = env::var(URLS) else {
        return;
    };
    let dlm = patient(Redlock::builder().masters(urls.split(' ')));
    for executor in WITHOUT_DRIVERS {
        executor.block_on(async {
            cycle(&dlm).await.expect("healthy masters");
            assert_eq!(dlm.inspect("r").await.verdict, Verdict::Free);
            let run = dlm.with_lock("r", KEPT, async |_| ()).await;
            run.expect("it is free");
            let guard = dlm.lock("r", KEPT / 4).await.expect("it is free");
            guard.lost().await;
            drop(guard);
            drop(dlm.lock("r", TTL).await.expect("it is free"));
            assert_eq!(dlm.shutdown(LONG).await, 0);
        });
    }
    process::exit(CAME_TO_ITS_END);
}

/// Polls a call in a runtime until it waits, ends that runtime, and returns the call.
fn begin<F: Future + Unpin>(mut call: F) -> F {
    let runtime = current_thread();
    runtime.block_on(async {
        assert!(poll!(&mut call).is_pending());
        // Whatever the first poll has woken gets its turn.
        sleep(Duration::from_millis(20)).await;
        assert!(poll!(&mut call).is_pending(), "over too soon");
    });
    call
}

#[test]
fn a_call_is_finished_elsewhere_than_where_it_was_begun() {
    let masters = Masters::behind_proxies(3);
    let dlm = client(&masters);
    let elsewhere = current_thread();
    elsewhere.block_on(connect(&dlm, &masters));
    // So that the answers come later than the runtime goes.
    let slow = Duration::from_millis(300);
    masters
        .proxies()
        .for_each(|proxy| proxy.delay_answers(slow));

    let resource = unique("lock");
    let call = begin(dlm.try_lock(&resource, TTL).into_future());
    let guard = elsewhere.block_on(call).expect("it is free");
    let policy = RetryPolicy::new().max_wait(LONG);
    let direct = Redlock::builder().masters(masters.iter().map(Server::url));
    let waits = patient(direct).lock(&resource, TTL).retry(policy);
    let waits = begin(waits.into_future());
    let extends = begin(guard.extend(2 * TTL).boxed());
    elsewhere.block_on(extends).expect("still ours");
    let releases = begin(guard.release().boxed());
    elsewhere.block_on(releases).expect("still ours");
    // It found the lock taken while its own runtime was there.
    drop(elsewhere.block_on(waits).expect("free by now"));
}

#[test]
fn a_runtime_that_idles_keeps_no_other_from_reconnecting() {
    let masters = Masters::behind_proxies(3);
    let dlm = client(&masters);
    let [service, job] = [multi_thread(), current_thread()];
    service.block_on(connect(&dlm, &masters));

    masters.proxies().skip(1).for_each(Proxy::refuse);
    let failed = job.block_on(dlm.try_lock(unique("lock"), TTL).into_future());
    assert!(matches!(failed, Err(LockError::Unreachable(_))));
    masters.proxies().skip(1).for_each(Proxy::resume);
    // From here on the job's runtime exists, and nobody runs it.
    service.block_on(eventually_async("back", 2 * SOON, async || {
        cycle(&dlm).await.is_ok()
    }));
    drop(job);
}

#[test]
fn a_guard_whose_runtime_has_ended_is_released_in_another_one() {
    let masters = Masters::start(3);
    for own in [current_thread, multi_thread] {
        let (dlm, runtime, resource) = (client(&masters), own(), unique("lock"));
        let request = async |resource: &str| dlm.lock(resource, TTL).await.expect("it is free");
        let guard = runtime.block_on(request(&resource));
        let deleted = runtime.block_on(request(&unique("lock")));
        masters.iter().for_each(|server| {
            server.del(deleted.resource());
        });
        drop(runtime);

        let next = current_thread();
        let start = Instant::now();
        next.block_on(guard.release()).expect("still ours");
        let not_held = next.block_on(deleted.release());
        assert!(matches!(not_held, Err(ReleaseError::NotHeld { .. })));
        // A release that hears nothing takes as long as a request may.
        assert!(start.elapsed() < SOON / 4, "{:?}", start.elapsed());
        assert!(!next.block_on(is_taken(&dlm, &resource)));
        assert_eq!(next.block_on(dlm.shutdown(LONG)), 0);
        assert!(masters.are_empty());
    }
}

/// How long a SET is under way in the tests below.
const LATE: Duration = Duration::from_millis(600);

/// Drops a guard in some way while its runtime idles and its SET is still under way to one of three masters.
fn late_set_is_undone(drop_guard: impl FnOnce(LockGuard)) {
    let masters = Masters::start(3).with_proxies([2]);
    let proxy = masters.proxy(2);
    let dlm = client(&masters);
    let runtime = current_thread();
    let guard = runtime.block_on(async {
        connect(&dlm, &masters).await;
        proxy.delay(LATE);
        let guard = dlm.lock("lock", TTL).await.expect("two are a quorum");
        // By then the SET has left, and what comes later is faster.
        sleep(LATE / 6).await;
        proxy.delay(Duration::ZERO);
        guard
    });
    let sets = masters[2].calls("set");
    assert!(masters[2..].are_empty(), "too late to show anything");

    let start = Instant::now();
    drop_guard(guard);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    eventually("gone where it was", SOON, || masters[..2].are_empty());
    // A client may also see to it that the SET is never executed.
    eventually("the SET has come, or never comes", LONG, || {
        masters[2].calls("set") > sets || start.elapsed() > 2 * LATE
    });
    eventually("gone where it came late", SOON, || masters[2..].are_empty());
    assert_eq!(multi_thread().block_on(dlm.shutdown(LONG)), 0);
    drop(runtime);
}

#[test]
fn a_late_set_is_undone_after_a_drop_on_a_thread_without_a_runtime() {
    late_set_is_undone(|guard| {
        thread::spawn(move || drop(guard)).join().expect("no panic");
    });
}

thread_local! {
    static KEPT_BY_THREAD: RefCell<Option<LockGuard>> = const { RefCell::new(None) };
}

#[test]
fn a_late_set_is_undone_after_a_drop_by_a_thread_that_ends() {
    late_set_is_undone(|guard| {
        let thread = thread::spawn(|| {
            // Used before anything of Tokio, it is dropped after that.
            KEPT_BY_THREAD.with(|_| {});
            assert!(Handle::try_current().is_err());
            KEPT_BY_THREAD.set(Some(guard));
        });
        thread.join().expect("no panic");
    });
}

#[test]
fn the_end_of_a_runtime_fails_no_call_in_another_one() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    // Each call has a runtime of its own, so whichever opens a connection ends soon.
    let threads: [_; 3] = array::from_fn(|_| {
        let dlm = dlm.clone();
        thread::spawn(move || {
            let runtimes = [current_thread, multi_thread].into_iter().cycle().take(30);
            let failed = runtimes.filter_map(|runtime| runtime().block_on(cycle(&dlm)).err());
            failed.collect::<Vec<_>>()
        })
    });
    let failed = threads
        .map(|thread| thread.join().expect("no panic"))
        .concat();
    assert!(failed.is_empty(), "{} fail: {}", failed.len(), failed[0]);
}

#[test]
fn guards_outlive_one_runtime_after_another() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    let mut guard = None::<LockGuard>;
    for runtime in [current_thread, multi_thread].into_iter().cycle().take(10) {
        runtime().block_on(async {
            if let Some(last) = guard.take() {
                last.extend(2 * TTL).await.expect("still ours");
                last.release().await.expect("still ours");
            }
            let next = dlm.try_lock(unique("lock"), TTL).await;
            guard = Some(next.expect("it is free"));
        });
    }
    drop(guard);
    eventually("all gone", SOON, || masters.are_empty());
}

#[test]
fn runtimes_that_are_run_in_turn_do_not_delay_each_other() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    let runtimes = [current_thread(), current_thread()];
    let turns: Vec<Duration> = (0..8)
        .map(|turn| {
            let start = Instant::now();
            let called = runtimes[turn % 2].block_on(async {
                let guard = dlm.lock(unique("lock"), TTL).await;
                guard.expect("it is free").release().await
            });
            called.expect("still ours");
            start.elapsed()
        })
        .collect();
    assert!(turns.iter().sum::<Duration>() < SOON / 2, "{turns:?}");
}

#[test]
fn a_worker_that_computes_neither_fails_nor_delays_the_others() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    let (own, (begun, begins), (over, ends)) = (dlm.clone(), mpsc::channel(), mpsc::channel());
    let worker = thread::spawn(move || {
        current_thread().block_on(async {
            let guard = own.lock(unique("lock"), TTL).await.expect("it is free");
            begun.send(()).expect("the test waits");
            // Computes for as long as the test goes on.
            let _: Result<(), _> = ends.recv();
            guard.extend(2 * TTL).await.expect("still ours");
            guard.release().await.expect("still ours");
        });
    });
    begins.recv().expect("the worker begins");
    let start = Instant::now();
    current_thread().block_on(async {
        for _ in 0..10 {
            cycle(&dlm).await.expect("healthy masters");
        }
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        // Longer than a master may be silent before it is taken for hung.
        while start.elapsed() < Duration::from_secs(1) {
            sleep(Duration::from_millis(20)).await;
            cycle(&dlm).await.expect("healthy masters");
        }
    });
    drop(over);
    worker
        .join()
        .expect("it goes on as if nothing had happened");
}

#[test]
fn a_request_is_granted_though_its_caller_computes_longer_than_it_may_take() {
    let masters = Masters::start(3);
    let allowed = Duration::from_millis(250);
    let dlm = masters.builder().request_timeout(allowed).build();
    let dlm = dlm.expect("valid URLs");
    current_thread().block_on(async {
        connect(&dlm, &masters).await;
        let (mut lock, mut inspect) = (
            dlm.try_lock(unique("lock"), TTL).into_future(),
            pin!(dlm.inspect("r")),
        );
        assert!(poll!(&mut lock).is_pending());
        assert!(poll!(&mut inspect).is_pending());
        thread::sleep(4 * allowed);
        let guard = lock.await.expect("the masters have answered in time");
        assert_eq!(inspect.await.verdict, Verdict::Free);
        let mut extend = pin!(guard.extend(2 * TTL));
        assert!(poll!(&mut extend).is_pending());
        thread::sleep(4 * allowed);
        extend.await.expect("the masters have answered in time");
    });
}

/// Blocks the thread for longer than an unattended lock lasts.
fn compute() {
    thread::sleep(2 * KEPT);
}

async fn keep_alive(dlm: &Redlock) -> LockGuard {
    let request = dlm.lock(unique("lock"), KEPT).keep_alive(KeepAlive::new());
    request.await.expect("it is free")
}

#[test]
fn a_lock_is_kept_alive_while_its_runtime_is_not_run() {
    let masters = Masters::start(3);
    let (dlm, runtime) = (client(&masters), current_thread());
    let guard = runtime.block_on(keep_alive(&dlm));
    compute();
    assert!(guard.is_valid() && quorum_holds(&masters, &guard));
    runtime.block_on(guard.release()).expect("still ours");
    assert!(runtime.block_on(dlm.shutdown(LONG)) == 0 && masters.are_empty());
}

#[test]
fn a_lock_is_kept_alive_while_all_threads_of_its_runtime_are_blocked() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    let worker_threads = 2;
    let runtime = multi_thread();
    runtime.block_on(async {
        let guard = keep_alive(&dlm).await;
        let all_blocked = Arc::new(Barrier::new(worker_threads + 1));
        for _ in 0..worker_threads {
            let all_blocked = Arc::clone(&all_blocked);
            tokio::spawn(async move {
                all_blocked.wait();
                compute();
            });
        }
        all_blocked.wait();
        compute();
        assert!(guard.is_valid() && quorum_holds(&masters, &guard));
        guard.release().await.expect("still ours");
    });
}

#[test]
fn a_lock_kept_alive_beside_work_that_hangs_ends_with_its_longest_lifetime() {
    let masters = Masters::start(3);
    let (dlm, rival) = (client(&masters), client(&masters));
    let [runtime, other] = [current_thread(), current_thread()];
    let lifetime = 2 * KEPT;
    let start = Instant::now();
    let guard = runtime.block_on(async {
        let bounded = KeepAlive::new().max_lifetime(lifetime);
        let request = dlm.lock("lock", KEPT).keep_alive(bounded);
        request.await.expect("it is free")
    });
    // Nobody runs its runtime from here on.
    let often = RetryPolicy::new().delay(KEPT / 50, KEPT / 20);
    let policy = often.max_wait(LONG);
    let request = rival.lock("lock", TTL).retry(policy).into_future();
    let _next = other.block_on(request).expect("it ends");
    let waited = start.elapsed();
    assert!(waited > lifetime - KEPT / 2, "not kept alive: {waited:?}");
    assert!(waited < lifetime + KEPT + SOON, "{waited:?}");
    assert!(!guard.is_valid());
}

/// The votes of masters that were not asked, as they stand in an error.
const NOT_ASKED: &str = "not asked: the runtime of this client has shut down";

#[test]
fn a_client_ends_with_the_runtime_that_it_was_given() {
    let masters = Masters::start(3);
    for own in [current_thread(), multi_thread()] {
        let dlm = patient(masters.builder().runtime(own.handle().clone()));
        let (held, waiting) = own.block_on(async {
            connect(&dlm, &masters).await;
            let held = dlm.lock(unique("lock"), TTL).await.expect("it is free");
            let mut waiting = dlm.lock(held.resource(), TTL).into_future();
            assert!(poll!(&mut waiting).is_pending());
            (held, waiting)
        });
        assert!(held.is_valid());
        drop(own);
        // Within another runtime, which is no help.
        multi_thread().block_on(async {
            let locked = dlm.lock("late", TTL).await;
            let waited = waiting.await;
            for error in [locked, waited].map(|locked| locked.expect_err("not locked")) {
                assert!(matches!(error, LockError::Unreachable(_)), "{error:?}");
                assert!(error.to_string().contains(NOT_ASKED), "{error}");
            }
            assert!(!held.is_valid());
            assert_eq!(held.lost().await, LossReason::ClientEnded);
            let extended = held.extend(TTL).await;
            assert!(
                matches!(extended, Err(ExtendError::Lost { .. })),
                "{extended:?}"
            );
            let view = dlm.inspect("late").await;
            assert!(matches!(view.verdict, Verdict::Unknown), "{view:?}");
            let released = held.release().await;
            let Err(error @ ReleaseError::Unconfirmed { .. }) = released else {
                panic!("{released:?}");
            };
            assert!(error.to_string().contains(NOT_ASKED), "{error}");
            // At least this one is counted, and once.
            assert!(dlm.shutdown(LONG).await > 0);
            assert_eq!(dlm.shutdown(LONG).await, 0);
        });
        masters
            .iter()
            .for_each(|server| server.query(&cmd("FLUSHALL")));
    }
}

#[test]
fn a_loop_of_calls_to_a_client_that_has_ended_leaves_others_their_turns() {
    let own = current_thread();
    let builder = Redlock::builder().master("redis://127.0.0.1:1");
    let dlm = patient(builder.runtime(own.handle().clone()));
    drop(own);
    current_thread().block_on(async {
        let calls = tokio::spawn(async move {
            loop {
                let locked = dlm.try_lock("lock", TTL).await;
                assert!(locked.is_err());
            }
        });
        for _ in 0..20 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!calls.is_finished());
        calls.abort();
    });
}

#[test]
fn a_runtime_without_drivers_is_an_error_for_a_client_that_is_put_on_it() {
    let masters = Masters::start(1);
    let mut bare = Builder::new_multi_thread();
    let bare = bare.worker_threads(1).build().expect("a runtime");
    let dlm = patient(masters.builder().runtime(bare.handle().clone()));
    for _ in 0..2 {
        let locked = current_thread().block_on(dlm.try_lock("lock", TTL).into_future());
        let error = locked.expect_err("neither sockets nor timers work");
        assert!(error.to_string().contains("enable_all"), "{error}");
    }
}
