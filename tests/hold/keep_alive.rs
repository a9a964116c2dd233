//! Keeping a lock alive: through faults, as often as it says, for as long as the guard lives, and no longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use futures::{FutureExt, StreamExt, stream};
use support::{
    LONG, Masters, Proxy, Server, Servers, eventually, eventually_async, multi_thread, passes,
    test_process, unique,
};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_redlock::{KeepAlive, LockGuard, LossReason, Redlock, RetryPolicy};

async fn keep_alive(dlm: &Redlock, resource: &str, ttl: Duration) -> LockGuard {
    let request = dlm.lock(resource, ttl).keep_alive(KeepAlive::new());
    request.await.expect("a lock that nobody else wants")
}

fn is_lost(guard: &LockGuard) -> Option<LossReason> {
    guard.lost().now_or_never()
}

/// How late a busy machine may end what ends by itself.
const LATE: Duration = Duration::from_secs(1);

/// Set for a longer run of those tests that are the better the longer they run.
fn soak() -> Option<Duration> {
    let seconds = env::var("SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number")))
}

/// Watches, on a thread of its own, for how long this machine keeps a thread waiting at most.
struct Stalls {
    watching: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Stalls {
    /// A loss of a lock of half a second says something about the lock only if there was no longer stall.
    const HARMLESS: Duration = Duration::from_millis(100);

    fn watch() -> Self {
        let watching = Arc::new(AtomicBool::new(true));
        let watches = Arc::clone(&watching);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while watches.load(Ordering::Relaxed) {
                let start = Instant::now();
                thread::sleep(Duration::from_millis(5));
                longest = longest.max(start.elapsed());
            }
            longest
        });
        Self { watching, thread }
    }

    fn longest(self) -> Duration {
        self.watching.store(false, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

/// Waits until a master holds the lock again; `None` if it is lost.
fn regains(server: &Server, guard: &LockGuard) -> Option<()> {
    eventually("the key is back", LONG, || {
        server.holds(guard) || is_lost(guard).is_some()
    });
    is_lost(guard).is_none().then_some(())
}

/// Kills a master, lets it come back empty, freezes it, lets it go on; each time until it holds the lock again.
fn disturb(server: &mut Server, guard: &LockGuard) -> Option<()> {
    server.kill();
    thread::sleep(Duration::from_millis(200));
    server.restart();
    regains(server, guard)?;
    server.freeze();
    thread::sleep(Duration::from_millis(300));
    server.thaw();
    regains(server, guard)
}

/// Tries to get the lock all the time. Returns how often it tried in vain, once it has it.
async fn rival(dlm: Redlock, resource: String, granted: Arc<AtomicBool>) -> u64 {
    let mut vain = 0;
    while dlm.try_lock(&resource, LONG).await.is_err() {
        vain += 1;
        sleep(Duration::from_millis(10)).await;
    }
    granted.store(true, Ordering::SeqCst);
    vain
}

/// Works under a lock, longer by far than its ttl, while each master in turn is killed and hangs. `None` if it is lost.
async fn long_work(work: Duration) -> Option<()> {
    let (mut masters, resource) = (Masters::start(5), unique("r"));
    let guard = keep_alive(&masters.client(), &resource, Duration::from_millis(500)).await;
    let granted = Arc::new(AtomicBool::new(false));
    let rival = rival(masters.client(), resource, Arc::clone(&granted));
    let rival = tokio::spawn(rival);

    let start = Instant::now();
    let mut disturbed = 0;
    while start.elapsed() < work || disturbed < masters.len() {
        let place = disturbed % masters.len();
        let kept = disturb(&mut masters[place], &guard);
        let two_holders = granted.load(Ordering::SeqCst) && guard.is_valid();
        assert!(!two_holders);
        kept?;
        disturbed += 1;
    }
    guard.release().await.expect("still ours");
    let vain = rival.await.expect("no panic");
    assert!(vain > 100, "tried all the time: {vain}");
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_work_is_under_the_lock_whichever_master_is_killed_or_hangs_in_turn() {
    for _ in 0..5 {
        let stalls = Stalls::watch();
        let kept = long_work(soak().unwrap_or(Duration::from_secs(30))).await;
        let longest = stalls.longest();
        if kept.is_some() {
            return;
        }
        assert!(longest > Stalls::HARMLESS, "lost without a stall");
    }
    panic!("this machine is too busy for so short a lock");
}

/// Waits for the next renewal, as a master sees it that always can be reached.
async fn renewal(master: &Server) {
    let before = master.calls("evalsha");
    eventually_async("a renewal", LONG, async || master.calls("evalsha") > before).await;
}

/// Breaks a majority before the next renewal, until so long after that was sent, and expects that it does no harm.
async fn survives(ttl: Duration, fault: fn(&Proxy), long: Duration) {
    let masters = Masters::start(5).with_proxies(0..3);
    let guard = keep_alive(&masters.client(), &unique("r"), ttl).await;
    renewal(&masters[4]).await;
    masters.proxies().for_each(fault);
    renewal(&masters[4]).await;
    sleep(long).await;
    assert!(guard.validity() < ttl * 2 / 3, "not confirmed yet");
    masters.proxies().for_each(Proxy::resume);
    eventually_async("renewed", LONG, async || guard.validity() > ttl * 2 / 3).await;
    assert_eq!(is_lost(&guard), None);
    guard.release().await.expect("still ours");
}

#[tokio::test]
async fn a_renewal_that_fails_on_a_majority_for_70_ms_loses_nothing() {
    let (ttl, long) = (Duration::from_millis(1_500), Duration::from_millis(70));
    tokio::join!(
        survives(ttl, Proxy::hang, long),
        survives(ttl, Proxy::refuse, long)
    );
}

#[tokio::test]
async fn a_renewal_that_fails_on_a_majority_for_700_ms_loses_nothing() {
    let (ttl, long) = (Duration::from_secs(3), Duration::from_millis(700));
    tokio::join!(
        survives(ttl, Proxy::hang, long),
        survives(ttl, Proxy::refuse, long)
    );
}

#[tokio::test]
async fn renewals_that_fail_on_a_majority_for_5_s_of_30_lose_nothing() {
    let (ttl, long) = (Duration::from_secs(30), Duration::from_secs(5));
    survives(ttl, Proxy::hang, long).await;
}

/// How many renewals there are in so much time, by the third of the ttl.
fn due(ttl: Duration, within: Duration) -> f64 {
    within.as_secs_f64() / (ttl.as_secs_f64() / 3.0)
}

/// Counts the renewals of a lock while it is held, for about so long: how many there were, and how many were due.
/// `None` if it was lost.
async fn count_renewals(
    server: &Server,
    guard: &LockGuard,
    ttl: Duration,
    long: Duration,
) -> Option<[f64; 2]> {
    let before = server.calls("evalsha");
    let start = Instant::now();
    sleep(long).await;
    let renewals = server.calls("evalsha") - before;
    let due = due(ttl, start.elapsed());
    let renewals = u32::try_from(renewals).expect("a few");
    is_lost(guard)
        .is_none()
        .then_some([f64::from(renewals), due])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_of_a_second_is_renewed_every_third_of_it() {
    let (masters, ttl) = (Masters::start(3), Duration::from_secs(1));
    let guard = keep_alive(&masters.client(), &unique("r"), ttl).await;
    let counted = count_renewals(&masters[0], &guard, ttl, Duration::from_secs(6)).await;
    let [renewals, due] = counted.expect("not lost");
    assert!((renewals - due).abs() < due / 10.0, "{renewals} of {due}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_of_20_ms_is_renewed_every_third_of_it() {
    let (masters, ttl) = (Masters::start(3), Duration::from_millis(20));
    let dlm = masters.client();
    let (mut renewals, mut due, mut lost) = (0.0, 0.0, 0);
    // In short pieces, since a busy machine loses so short a lock now and then.
    while due < 300.0 {
        let guard = keep_alive(&dlm, &unique("r"), ttl).await;
        let piece = Duration::from_millis(200);
        match count_renewals(&masters[0], &guard, ttl, piece).await {
            Some(counted) => {
                renewals += counted[0];
                due += counted[1];
            }
            None => lost += 1,
        }
        assert!(lost < 100, "lost all the time");
        drop(guard);
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
    assert!(
        (renewals - due).abs() < due / 5.0,
        "{renewals} of {due}, {lost} lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shortest_ttls_never_spin() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let mut locks = JoinSet::new();
    let mut most = 0.0;
    let start = Instant::now();
    for millis in 3..=10 {
        let ttl = Duration::from_millis(millis);
        let attempts = RetryPolicy::new().max_attempts(10);
        let request = dlm.lock(unique("r"), ttl).retry(attempts);
        locks.spawn(request.keep_alive(KeepAlive::new()).into_future());
        // An attempt sets, and undoes that.
        most += 20.0 + 1.2 * due(ttl, Duration::from_secs(1));
    }
    // Granted or not, lost or not: held on to.
    let _guards = locks.join_all().await;
    sleep(Duration::from_secs(1).saturating_sub(start.elapsed())).await;
    let calls = masters[0].calls("set") + masters[0].calls("evalsha");
    let calls = f64::from(u32::try_from(calls).expect("a few"));
    assert!(calls >= 8.0, "each asked");
    assert!(
        calls <= most * start.elapsed().as_secs_f64().max(1.0),
        "{calls}"
    );
}

#[tokio::test]
async fn renewals_that_fail_at_once_do_not_spin() {
    let mut masters = Masters::start(3);
    let guard = keep_alive(&masters.client(), &unique("r"), Duration::from_secs(2)).await;
    masters.iter_mut().for_each(Server::kill);
    let metrics = Handle::current().metrics();
    let (start, before) = (Instant::now(), metrics.worker_total_busy_duration(0));
    assert_eq!(guard.lost().await, LossReason::Expired);
    let busy = metrics.worker_total_busy_duration(0) - before;
    assert!(busy < start.elapsed() / 3, "{busy:?}");
}

/// Asserts that nothing is renewed any more.
async fn renewals_have_stopped(masters: &[Server], ttl: Duration) {
    let before = masters.calls("evalsha");
    sleep(ttl).await;
    assert_eq!(masters.calls("evalsha"), before);
}

async fn renewals_go_on(masters: &[Server]) {
    let before = masters.calls("evalsha");
    let enough = u64::try_from(2 * masters.len()).expect("a few");
    eventually_async("renewals", LONG, async || {
        masters.calls("evalsha") > before + enough
    })
    .await;
}

#[tokio::test]
async fn a_guard_dropped_at_any_moment_of_a_renewal_leaves_neither_key_nor_task() {
    const GUARDS: u32 = 50;
    let ttl = Duration::from_millis(300);
    let masters = Masters::behind_proxies(3);
    let dlm = masters.client();
    drop(dlm.lock(unique("first"), LONG).await.expect("a lock"));
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let metrics = Handle::current().metrics();
    let (tasks, before) = (metrics.num_alive_tasks(), masters.calls("pexpire"));

    // Half of the time a renewal is under way.
    for proxy in masters.proxies() {
        proxy.delay(Duration::from_millis(25));
    }
    let mut held = JoinSet::new();
    for moment in 0..GUARDS {
        let request = dlm.lock(unique("r"), ttl).keep_alive(KeepAlive::new());
        held.spawn(async move {
            let guard = request.await.expect("a lock that nobody else wants");
            sleep(2 * ttl / 3 * moment / GUARDS).await;
            drop(guard);
        });
    }
    held.join_all().await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
    // Counted by key, since renewals share requests.
    assert!(masters.calls("pexpire") > before, "some were renewed");
    renewals_have_stopped(&masters, ttl).await;
    assert!(masters.are_empty());
    eventually_async("no task is left", LONG, async || {
        metrics.num_alive_tasks() <= tasks
    })
    .await;
}

#[tokio::test]
async fn a_renewal_that_arrives_when_the_lock_has_long_ended_leaves_no_key() {
    let ttl = Duration::from_secs(2);
    let masters = Masters::behind_proxies(3);
    let dlm = masters.client();
    let guard = keep_alive(&dlm, &unique("r"), ttl).await;
    masters.proxies().for_each(Proxy::hang);
    assert_eq!(guard.lost().await, LossReason::Expired);
    drop(guard);
    // Longer than it takes until every key must be gone by itself.
    sleep(ttl + ttl / 4).await;
    masters.proxies().for_each(Proxy::resume);
    dlm.shutdown(LONG).await;
    for server in &masters {
        eventually_async("gone before its ttl is", ttl / 2, async || {
            server.keys().is_empty()
        })
        .await;
    }
}

/// Keeps a lock alive, ends that, and expects that the keys are gone at the latest with their ttl.
async fn renewals_end_by(end: fn(LockGuard)) {
    let ttl = Duration::from_millis(1_500);
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = keep_alive(&dlm, &unique("r"), ttl).await;
    renewals_go_on(&masters).await;
    end(guard);
    tokio::task::yield_now().await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    renewals_have_stopped(&masters, ttl).await;
    // Released, or expired.
    masters.eventually_empty().await;
}

#[tokio::test]
async fn renewals_end_with_the_guard_however_it_goes() {
    tokio::join!(
        renewals_end_by(drop),
        renewals_end_by(|guard| drop(guard.leak())),
        renewals_end_by(|guard| drop(tokio::spawn(guard.release()))),
    );
}

#[test]
fn renewals_on_a_given_runtime_end_with_it_and_the_lock_is_lost() {
    let ttl = Duration::from_millis(1_500);
    let masters = Masters::start(3);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be built");
    let builder = masters.builder();
    let dlm = builder.runtime(runtime.handle().clone()).build();
    let dlm = dlm.expect("valid URLs");
    let lock = || runtime.block_on(keep_alive(&dlm, &unique("r"), ttl));
    let (outlives, dropped) = (lock(), lock());
    runtime.block_on(renewals_go_on(&masters));
    assert!(outlives.is_valid());
    drop(runtime);
    drop(dropped);
    let before = masters.calls("evalsha");
    assert!(!outlives.is_valid());
    assert_eq!(is_lost(&outlives), Some(LossReason::ClientEnded));
    eventually("its keys expire", LONG, || masters.are_empty());
    assert_eq!(masters.calls("evalsha"), before, "nothing renewed");
}

/// Keeps a lock alive for at most so long, and expects that it is lost then.
async fn ends_with_its_lifetime(ttl: Duration, lifetime: Duration) {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let start = Instant::now();
    let request = dlm.lock(unique("r"), ttl);
    let guard = request.keep_alive(KeepAlive::new().max_lifetime(lifetime));
    let guard = guard.await.unwrap();
    assert!(guard.validity() < lifetime.min(ttl));
    assert_eq!(guard.lost().await, LossReason::LifetimeReached);
    let held = start.elapsed();
    assert!(
        lifetime <= held && held < lifetime + LATE,
        "held for {held:?}"
    );
    assert!(!guard.is_valid());
    assert!(guard.extend(ttl).await.is_err());
    renewals_have_stopped(&masters, ttl).await;
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn the_longest_lifetime_ends_a_lock_and_not_before() {
    let ttl = Duration::from_millis(600);
    tokio::join!(
        ends_with_its_lifetime(ttl, ttl * 2),
        ends_with_its_lifetime(ttl, ttl / 2)
    );
}

/// Set for the process that holds many locks: the masters, separated by spaces.
const MASTERS: &str = "MANY_LOCKS_MASTERS";

const MANY: usize = 10_000;

#[test]
fn ten_thousand_locks_are_kept_alive_without_more_threads_or_tasks() {
    if let Ok(masters) = env::var(MASTERS) {
        return hold_many(&masters);
    }
    // In a process of its own, where no other test has threads.
    let masters = Masters::start(3);
    let test = "ten_thousand_locks_are_kept_alive_without_more_threads_or_tasks";
    let mut command = test_process(module_path!(), test);
    command.env(MASTERS, masters.urls().join(" "));
    passes(command);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn ten_thousand_guards_dropped_at_once_are_released_over_the_connections_there_are() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let locks = stream::iter(0..MANY).map(async |number| {
        let lock = dlm.lock(number.to_string(), 10 * LONG).await;
        lock.expect("a lock that nobody else wants")
    });
    let guards: Vec<LockGuard> = locks.buffer_unordered(20).collect().await;
    drop(guards);
    assert_eq!(dlm.shutdown(2 * LONG).await, 0);
    for server in &masters {
        assert_eq!(server.keys(), [""; 0]);
        let replaced = server.calls("client|kill");
        assert!(
            replaced <= 1,
            "answers all the time, replaced {replaced} times"
        );
    }
}

fn hold_many(masters: &str) {
    let runtime = multi_thread();
    let metrics = runtime.metrics();
    runtime.block_on(async {
        let builder = Redlock::builder()
            .masters(masters.split(' '))
            .request_timeout(Duration::from_secs(2))
            .retry(RetryPolicy::new().max_wait(LONG));
        let dlm = builder.build().expect("valid URLs");
        drop(dlm.lock("first", LONG).await.expect("a lock"));
        assert_eq!(dlm.shutdown(LONG).await, 0);
        let (threads, tasks) = (threads(), metrics.num_alive_tasks());

        let ttl = Duration::from_secs(24);
        let locks = stream::iter(0..MANY)
            .map(async |number| keep_alive(&dlm, &number.to_string(), ttl).await);
        let guards: Vec<LockGuard> = locks.buffer_unordered(100).collect().await;
        let locked = Instant::now();
        sleep(soak().unwrap_or_default()).await;
        eventually_async("renewed", ttl, async || {
            let unrenewed = ttl.saturating_sub(locked.elapsed());
            let renewed = |guard: &&LockGuard| guard.validity() > unrenewed;
            guards.iter().filter(renewed).count() > MANY / 10 * 9
        })
        .await;
        let lost = guards.iter().filter_map(is_lost).count();
        assert_eq!(lost, 0);
        assert_eq!(self::threads(), threads);
        assert!(metrics.num_alive_tasks() <= tasks);

        drop(guards);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        eventually_async("no task is left", LONG, async || {
            metrics.num_alive_tasks() <= tasks
        })
        .await;
    });
}

/// The number of threads of this process, where the system tells.
fn threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}
