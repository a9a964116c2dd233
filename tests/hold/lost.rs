//! The loss of a lock is noticed on time and never early, and it is final.

use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, io, io::BufRead, io::Read, thread};

use futures::FutureExt;
use redis::cmd;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use support::{LONG, Masters, Server, Servers, eventually, eventually_async, test_process, unique};
use tokio::task::JoinSet;
use tokio_redlock::{ExtendError, KeepAlive, LockGuard, LossReason, Redlock};

/// How late a busy machine may wake up whoever waits for a moment.
const LATE: Duration = Duration::from_millis(700);

async fn keep_alive(dlm: &Redlock, resource: &str, ttl: Duration) -> LockGuard {
    let request = dlm.lock(resource, ttl).keep_alive(KeepAlive::new());
    request.await.expect("a lock that nobody else wants")
}

fn value(server: &Server, resource: &str) -> Option<String> {
    let value = server.get(resource)?;
    Some(String::from_utf8(value).expect("our values are text"))
}

/// The same, with the key on every master.
async fn keep_alive_everywhere(masters: &Masters, resource: &str, ttl: Duration) -> LockGuard {
    let guard = keep_alive(&masters.client(), resource, ttl).await;
    masters.eventually_hold(&guard).await;
    guard
}

fn is_lost(guard: &LockGuard) -> Option<LossReason> {
    guard.lost().now_or_never()
}

/// Waits for the loss, and asserts that it comes with the end of the validity that is left now.
async fn is_lost_with_its_validity(guard: &LockGuard) -> LossReason {
    let start = Instant::now();
    let left = guard.validity();
    assert!(!left.is_zero(), "still good at the start");
    let loss = guard.lost().await;
    let waited = start.elapsed();
    assert!(!guard.is_valid());
    assert!(waited >= left, "{:?} early", left - waited);
    assert!(waited < left + LATE, "{:?} late", waited - left);
    loss
}

#[tokio::test]
async fn a_lock_that_is_not_extended_is_lost_when_its_validity_ends() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let guard = dlm.lock(unique("r"), Duration::from_millis(300)).await;
    let loss = is_lost_with_its_validity(&guard.unwrap()).await;
    assert_eq!(loss, LossReason::Expired);
}

#[tokio::test]
async fn when_all_masters_hang_a_lock_is_lost_when_its_validity_ends() {
    let ttl = Duration::from_millis(1_500);
    let masters = Masters::start(5);
    let guard = keep_alive(&masters.client(), &unique("r"), ttl).await;
    for server in &masters {
        server.freeze();
    }
    // Once this has failed, no answer from before can prolong the lock any more.
    let extended = guard.extend(ttl).await;
    assert!(
        matches!(extended, Err(ExtendError::Unconfirmed { .. })),
        "{extended:?}"
    );
    assert_eq!(is_lost(&guard), None);
    let loss = is_lost_with_its_validity(&guard).await;
    assert_eq!(loss, LossReason::Expired);
}

#[tokio::test]
async fn when_all_masters_are_dead_a_lock_is_lost_when_its_validity_ends() {
    let mut masters = Masters::start(3);
    let guard = keep_alive(&masters.client(), &unique("r"), Duration::from_secs(1)).await;
    masters.iter_mut().for_each(Server::kill);
    let loss = is_lost_with_its_validity(&guard).await;
    assert_eq!(loss, LossReason::Expired);
}

/// Waits for so many renewals on a master.
async fn renewals(server: &Server, count: u64) {
    let before = server.calls("evalsha");
    eventually_async("renewals", LONG, async || {
        server.calls("evalsha") >= before + count
    })
    .await;
}

/// Waits for the loss, and asserts that the first renewal from now on found it.
async fn is_taken_by_the_next_renewal(masters: &[Server], guard: &LockGuard) {
    let calls: Vec<u64> = masters.iter().map(|s| s.calls("evalsha")).collect();
    assert_eq!(guard.lost().await, LossReason::Taken);
    assert!(!guard.is_valid());
    eventually_async("one renewal", LONG, async || {
        let renewals = masters
            .iter()
            .zip(&calls)
            .map(|(server, before)| server.calls("evalsha") - before);
        renewals.eq(masters.iter().map(|_| 1))
    })
    .await;
}

#[tokio::test]
async fn keys_deleted_from_a_majority_are_a_loss_within_one_renewal() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let guard = keep_alive_everywhere(&masters, &resource, Duration::from_secs(3)).await;
    for server in &masters[..3] {
        assert!(server.del(&resource));
    }
    let deleted = Instant::now();
    is_taken_by_the_next_renewal(&masters, &guard).await;
    assert!(
        deleted.elapsed() < Duration::from_secs(1) + LATE,
        "told by the renewal, not by the deadline"
    );
}

#[tokio::test]
async fn keys_deleted_from_a_majority_are_a_loss_also_while_a_master_is_down_and_one_is_slow() {
    let mut masters = Masters::start(5).with_proxies([0]);
    let resource = unique("r");
    masters.proxy(0).delay_answers(Duration::from_millis(30));
    let dlm = masters.client();
    let guard = keep_alive(&dlm, &resource, Duration::from_secs(2)).await;
    masters[4].kill();
    renewals(&masters[0], 2).await;
    // A renewal that finds the key missing sets it again, so none may be under way.
    let count = masters[0].calls("evalsha");
    eventually_async("the renewal is everywhere", LONG, async || {
        let mut others = masters[1..4].iter();
        others.all(|server| server.calls("evalsha") >= count)
    })
    .await;
    for server in &masters[..3] {
        assert!(server.del(&resource));
    }
    let loss = tokio::time::timeout(Duration::from_secs(5), guard.lost()).await;
    assert_eq!(loss, Ok(LossReason::Taken));
}

#[tokio::test]
async fn keys_deleted_from_a_minority_come_back() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let guard = keep_alive_everywhere(&masters, &resource, Duration::from_secs(2)).await;
    for server in &masters[..2] {
        assert!(server.del(&resource));
    }
    masters.eventually_hold(&guard).await;
    assert_eq!(is_lost(&guard), None);
    assert!(guard.is_valid());
    guard.release().await.expect("still ours");
    masters.eventually_empty().await;
}

#[tokio::test]
async fn keys_taken_over_on_a_majority_are_a_loss_and_left_to_their_owner() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let dlm = masters.client();
    let guard = keep_alive(&dlm, &resource, Duration::from_secs(3)).await;
    for server in &masters[..3] {
        server.set(&resource, "another");
    }
    is_taken_by_the_next_renewal(&masters, &guard).await;
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters[..3] {
        assert_eq!(value(server, &resource).as_deref(), Some("another"));
    }
    for server in &masters[3..] {
        assert_eq!(value(server, &resource), None);
    }
}

#[tokio::test]
async fn keys_taken_over_on_a_minority_are_no_loss() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    let guard = keep_alive_everywhere(&masters, &resource, Duration::from_secs(2)).await;
    for server in &masters[..2] {
        server.set(&resource, "another");
    }
    renewals(&masters[4], 2).await;
    assert_eq!(is_lost(&guard), None);
    assert!(guard.is_valid());
    assert_eq!(value(&masters[0], &resource).as_deref(), Some("another"));
}

#[tokio::test]
async fn an_extension_by_hand_that_finds_the_loss_wakes_those_who_wait() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let dlm = masters.client();
    let guard = dlm.lock(&resource, Duration::from_secs(60)).await.unwrap();
    let guard = Arc::new(guard);
    let mut waiting = tokio::spawn({
        let guard = Arc::clone(&guard);
        async move { guard.lost().await }
    });
    tokio::task::yield_now().await;
    assert!((&mut waiting).now_or_never().is_none());
    for server in &masters[..2] {
        server.set(&resource, "another");
    }
    let extended = guard.extend(Duration::from_secs(60)).await;
    let Err(ExtendError::Lost {
        reason: loss,
        ballots,
        ..
    }) = extended
    else {
        panic!("{extended:?}");
    };
    assert_eq!(loss, LossReason::Taken);
    assert_eq!(ballots.iter().count(), 3);
    assert_eq!(waiting.await.unwrap(), LossReason::Taken);
}

#[tokio::test]
async fn any_number_of_tasks_may_wait_any_number_of_times() {
    let masters = Masters::start(3);
    let ttl = Duration::from_millis(500);
    let guard = Arc::new(masters.client().lock(unique("r"), ttl).await.unwrap());
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let guard = Arc::clone(&guard);
        tasks.spawn(async move {
            let impatient = tokio::time::timeout(Duration::from_millis(1), guard.lost());
            assert!(impatient.await.is_err() || !guard.is_valid());
            [guard.lost().await, guard.lost().await]
        });
    }
    for losses in tasks.join_all().await {
        assert_eq!(losses, [LossReason::Expired; 2]);
    }
    assert_eq!(is_lost(&guard), Some(LossReason::Expired));
}

/// Asserts that neither an extension nor the keys bring a lost lock back.
async fn stays_lost(masters: &[Server], guard: &LockGuard, loss: LossReason) {
    for _ in 0..3 {
        let extended = guard.extend(Duration::from_secs(60)).await;
        assert!(
            matches!(&extended, Err(ExtendError::Lost { reason, .. }) if *reason == loss),
            "{extended:?}"
        );
        assert!(!guard.is_valid());
        assert_eq!(is_lost(guard), Some(loss));
    }
    assert!(masters.all_hold(guard));
}

#[tokio::test]
async fn an_expired_lock_stays_lost_though_the_masters_still_hold_it() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let guard = masters.client().lock(&resource, Duration::from_secs(1));
    let guard = guard.await.unwrap();
    for server in &masters {
        eventually_async("made to stay", LONG, async || {
            server.query(cmd("PERSIST").arg(&resource))
        })
        .await;
    }
    assert_eq!(guard.lost().await, LossReason::Expired);
    stays_lost(&masters, &guard, LossReason::Expired).await;
}

#[tokio::test]
async fn a_taken_lock_stays_lost_though_the_masters_hold_it_again() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let guard = keep_alive_everywhere(&masters, &resource, Duration::from_secs(2)).await;
    for server in &masters {
        server.set(&resource, "another");
    }
    assert_eq!(guard.lost().await, LossReason::Taken);
    for server in &masters {
        server.set(&resource, guard.value());
    }
    stays_lost(&masters, &guard, LossReason::Taken).await;
}

/// Set for the process that is stopped: the masters, separated by spaces.
const MASTERS: &str = "STOPPED_PROCESS_MASTERS";

const STOPPED_TTL: Duration = Duration::from_millis(1_500);
const STOPPED_FOR: Duration = Duration::from_secs(2);

#[test]
fn a_process_that_was_stopped_past_its_validity_knows_it_when_it_goes_on() {
    match env::var(MASTERS) {
        Ok(masters) => hold_until_stopped(&masters),
        Err(_) => stop_a_holder(),
    }
}

fn stop_a_holder() {
    let masters = Masters::start(3);
    let mut holder = Holder::start(&masters.urls().join(" "));
    holder.stop();
    let stopped = Instant::now();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be built");
    let rival = masters.client();
    let taken_over = runtime
        .block_on(rival.lock("driven", LONG).into_future())
        .expect("the holder's validity is over, so is the key's ttl");
    thread::sleep(STOPPED_FOR.saturating_sub(stopped.elapsed()));
    holder.go_on();
    holder.succeeds();
    assert!(taken_over.is_valid());
    assert!(
        masters.all_hold(&taken_over),
        "the late holder left it alone"
    );
}

/// The part of the process that is stopped.
fn hold_until_stopped(masters: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be built");
    let _within = runtime.enter();
    let dlm = Redlock::new(masters.split(' ')).expect("valid URLs");
    let lock = |resource: &str| runtime.block_on(keep_alive(&dlm, resource, STOPPED_TTL));
    let [looked_at, waited_for, driven] = ["looked at", "waited for", "driven"].map(lock);
    let gaps = Arc::new(Mutex::new(Gaps::new()));
    let driving = runtime.spawn({
        let gaps = Arc::clone(&gaps);
        async move {
            let lost = driven.run(work(gaps)).await.map(|never| match never {});
            lost.expect_err("there is no other way out")
        }
    });
    eventually("the work has begun", LONG, || {
        !gaps.lock().expect("no panic").longest.is_zero()
    });
    assert!(looked_at.is_valid() && is_lost(&waited_for).is_none());
    let mut own = Gaps::new();
    println!("holding");
    while own.longest < STOPPED_FOR {
        thread::sleep(Duration::from_millis(5));
        own.note();
    }
    assert!(!looked_at.is_valid(), "no longer valid");
    assert_eq!(
        is_lost(&waited_for),
        Some(LossReason::Expired),
        "lost at once"
    );
    let lost = runtime.block_on(driving).expect("no panic");
    assert_eq!(lost.reason, LossReason::Expired);
    let longest = gaps.lock().expect("no panic").longest;
    assert!(longest < STOPPED_FOR, "polled after the loss: {longest:?}");
    drop((looked_at, waited_for));
    runtime.block_on(dlm.shutdown(LONG));
}

enum Never {}

/// Works for ever, and notes when.
async fn work(gaps: Arc<Mutex<Gaps>>) -> Never {
    loop {
        gaps.lock().expect("no panic").note();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The longest time between two moments that were noted: a stop shows if something was noted after it.
struct Gaps {
    last: Instant,
    longest: Duration,
}

impl Gaps {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn note(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

/// A process that holds locks, killed when dropped.
struct Holder {
    child: Child,
    output: io::BufReader<ChildStdout>,
}

impl Holder {
    /// Starts it, and waits until it holds its locks.
    fn start(masters: &str) -> Self {
        let test = "a_process_that_was_stopped_past_its_validity_knows_it_when_it_goes_on";
        let mut child = test_process(module_path!(), test)
            .env(MASTERS, masters)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be run");
        let output = child.stdout.take().expect("piped");
        let output = io::BufReader::new(output);
        let mut holder = Self { child, output };
        let mut line = String::new();
        while !line.contains("holding") {
            line.clear();
            let length = holder.output.read_line(&mut line).expect("text");
            assert_ne!(length, 0, "ended without holding anything");
        }
        holder
    }

    fn stop(&self) {
        self.signal(Signal::STOP);
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), stopped).expect("our own child");
    }

    fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child takes signals");
    }

    fn succeeds(&mut self) {
        eventually("the end", LONG, || {
            self.child.try_wait().expect("our own child").is_some()
        });
        let mut output = String::new();
        self.output.read_to_string(&mut output).expect("text");
        let status = self.child.wait().expect("our own child");
        assert!(status.success(), "{status}\n{output}");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
