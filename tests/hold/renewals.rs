//! How often a lock that is kept alive is renewed: by masters in memory and a paused clock, so that minutes pass in no
//! time and no busy machine blurs the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd};
use support::AnsweredBy;
use tokio::time::{Instant, sleep};
use tokio_redlock::testing::Masters;
use tokio_redlock::{KeepAlive, LockGuard, Redlock};

/// The scripts that a master was sent.
#[derive(Default)]
struct Scripts {
    requests: AtomicU32,
    /// The locks that they were for, counted once for each script.
    locks: AtomicU32,
    /// The most locks of one script.
    most_locks: AtomicU32,
}

impl Scripts {
    fn count(&self, command: &Cmd) {
        let words: Vec<_> = command.args_iter().take(3).collect();
        if let [Arg::Simple(b"EVALSHA"), _, Arg::Simple(locks)] = words[..] {
            let locks = str::from_utf8(locks).expect("digits");
            let locks = locks.parse().expect("a number");
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.locks.fetch_add(locks, Ordering::Relaxed);
            self.most_locks.fetch_max(locks, Ordering::Relaxed);
        }
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    fn locks(&self) -> u32 {
        self.locks.load(Ordering::Relaxed)
    }

    fn most_locks(&self) -> u32 {
        self.most_locks.load(Ordering::Relaxed)
    }
}

/// Two masters, and a third one that counts the scripts that it is sent.
fn counted() -> (Redlock, Arc<Scripts>) {
    let (two, third) = (Masters::new(2), Masters::new(1));
    let scripts = Arc::new(Scripts::default());
    let (connection, counter) = (third[0].connect(), Arc::clone(&scripts));
    let counting = AnsweredBy(move |command: Cmd| {
        counter.count(&command);
        let mut connection = connection.clone();
        async move { connection.req_packed_command(&command).await }
    });
    let builder = Redlock::builder().testing(&two).connection(counting);
    (builder.build().expect("three masters"), scripts)
}

async fn keep_alive(dlm: &Redlock, ttl: Duration) -> LockGuard {
    let request = dlm.lock("r", ttl).keep_alive(KeepAlive::new());
    request.await.expect("nobody else wants it")
}

/// Takes locks with different resources at once.
async fn keep_many(
    dlm: &Redlock,
    count: u32,
    ttl: Duration,
    options: &KeepAlive,
) -> Vec<LockGuard> {
    let locks = (0..count).map(|number| {
        let request = dlm.lock(number.to_string(), ttl);
        request.keep_alive(options.clone()).into_future()
    });
    let guards = join_all(locks).await.into_iter();
    guards.map(|it| it.expect("nobody else wants it")).collect()
}

fn losses(guards: &[LockGuard]) -> usize {
    let lost = guards
        .iter()
        .filter(|it| it.lost().now_or_never().is_some());
    lost.count()
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_every_third_of_its_ttl() {
    for millis in [20, 1_000, 60_000] {
        let (dlm, scripts) = counted();
        let ttl = Duration::from_millis(millis);
        let guard = keep_alive(&dlm, ttl).await;
        sleep(100 * ttl).await;
        assert_eq!(guard.lost().now_or_never(), None);
        let renewals = scripts.locks();
        assert!((285..=315).contains(&renewals), "{ttl:?}: {renewals}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_nobody_keeps_alive_is_not_renewed() {
    let (dlm, scripts) = counted();
    let guard = dlm.lock("r", Duration::from_secs(60)).await.unwrap();
    guard.lost().await;
    assert_eq!(scripts.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_of_many_locks_is_renewed_every_third_of_its_ttl_by_shared_requests() {
    const LOCKS: u32 = 500;
    let (dlm, scripts) = counted();
    let ttl = Duration::from_secs(1);
    let guards = keep_many(&dlm, LOCKS, ttl, &KeepAlive::new()).await;
    sleep(10 * ttl).await;
    assert_eq!(losses(&guards), 0);
    let renewals = f64::from(scripts.locks()) / f64::from(LOCKS);
    assert!((28.5..=31.5).contains(&renewals), "{renewals} for each");
    let share = scripts.locks() / scripts.requests();
    assert!(share > 10, "{share} by one request");
    assert!(scripts.most_locks() <= 128, "{}", scripts.most_locks());

    let before = scripts.locks();
    drop(guards);
    assert_eq!(dlm.shutdown(ttl).await, 0);
    let deletes = scripts.locks() - before;
    sleep(10 * ttl).await;
    assert_eq!(scripts.locks(), before + deletes, "nothing is renewed");
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_a_short_ttl_is_renewed_in_time_among_locks_of_a_long_one() {
    let (dlm, scripts) = counted();
    let long = Duration::from_secs(60);
    let long = keep_many(&dlm, 100, long, &KeepAlive::new()).await;
    let ttl = Duration::from_millis(20);
    let short = keep_alive(&dlm, ttl).await;
    sleep(100 * ttl).await;
    assert_eq!(short.lost().now_or_never(), None);
    assert_eq!(losses(&long), 0);
    assert!(
        (285..=315).contains(&scripts.locks()),
        "{}",
        scripts.locks()
    );
}

#[tokio::test(start_paused = true)]
async fn no_renewal_waits_for_masters_that_hang_or_are_down() {
    let (masters, ttl) = (Masters::new(5), Duration::from_secs(6));
    let dlm = Redlock::builder().testing(&masters).build().unwrap();
    let guards = keep_many(&dlm, 200, ttl, &KeepAlive::new()).await;
    masters[0].hang();
    masters[3].stop();
    for _ in 0..1_000 {
        sleep(ttl / 200).await;
        let shortest = guards.iter().map(LockGuard::validity).min();
        let drift = ttl / 100 + Duration::from_millis(2);
        // A tenth later than after a third of the ttl, and some time for the timers.
        let longest_pause = ttl * 11 / 30 + Duration::from_millis(5);
        assert!(
            shortest >= Some(ttl - drift - longest_pause),
            "{shortest:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_that_fail_on_a_quorum_are_tried_again_until_it_is_back() {
    let (masters, ttl) = (Masters::new(5), Duration::from_secs(6));
    let dlm = Redlock::builder().testing(&masters).build().unwrap();
    let guards = keep_many(&dlm, 200, ttl, &KeepAlive::new()).await;
    for master in &masters[..3] {
        master.hang();
    }
    sleep(ttl / 2).await;
    assert_eq!(losses(&guards), 0);
    for master in &masters[..3] {
        master.resume();
    }
    // A master that hung votes again after a second at the latest.
    sleep(ttl).await;
    assert_eq!(losses(&guards), 0);
}

#[tokio::test(start_paused = true)]
async fn each_of_many_locks_ends_with_its_longest_lifetime() {
    let (dlm, scripts) = counted();
    let (ttl, lifetime) = (Duration::from_secs(3), Duration::from_secs(10));
    let start = Instant::now();
    let options = KeepAlive::new().max_lifetime(lifetime);
    let guards = keep_many(&dlm, 200, ttl, &options).await;
    sleep((start + lifetime - Duration::from_millis(1)) - Instant::now()).await;
    assert_eq!(losses(&guards), 0);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(losses(&guards), guards.len());
    let requests = scripts.requests();
    sleep(ttl).await;
    assert_eq!(scripts.requests(), requests, "nothing is renewed");
}
