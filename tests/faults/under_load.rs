//! Faults while many tasks use the client: what a master that cannot answer costs, and how soon it is back.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use redis::cmd;
use support::{LONG, Logs, Masters, Servers, eventually_async, unique};
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_redlock::{LockError, MasterError, Redlock, Vote};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

const TASKS: usize = 64;

/// A client whose tasks this runtime counts, and whose log lines this thread captures.
fn client_here(masters: &Masters) -> Redlock {
    let builder = masters.builder().runtime(Handle::current());
    builder.build().expect("valid masters")
}

/// Locks and releases resources of its own by many tasks, until told to stop. Every second lock is dropped.
async fn load(dlm: &Redlock, ttl: Duration, stop: &Cell<bool>) {
    let task = async |task: usize| {
        let mut turn = 0;
        while !stop.get() {
            // Either may fail on a busy machine, and a lock of which the frozen master was half of the quorum is not
            // confirmed.
            if let Ok(guard) = dlm.try_lock(format!("{task}:{turn}"), ttl).await
                && turn % 2 == 0
            {
                let _ = guard.release().await;
            }
            turn += 1;
        }
    };
    join_all((0..TASKS).map(task)).await;
}

/// The master executes all that it was sent when it goes on.
#[tokio::test]
async fn a_master_frozen_under_load_costs_little_and_keeps_no_key() {
    let ttl = Duration::from_millis(2_500);
    let masters = Masters::start(3);
    let dlm = client_here(&masters);
    let logs = Logs::capture_for_operators();
    let (stop, tasks) = (Cell::new(false), Cell::new(0));
    let freeze = async {
        let is_busy = async || masters[2].calls("set") > 500;
        eventually_async("there is load", LONG, is_busy).await;
        masters[2].freeze();
        let frozen = Instant::now();
        while frozen.elapsed() < ttl + Duration::from_millis(100) {
            sleep(Duration::from_millis(20)).await;
            let alive = Handle::current().metrics().num_alive_tasks();
            tasks.set(tasks.get().max(alive));
        }
        stop.set(true);
    };
    join(load(&dlm, ttl, &stop), freeze).await;
    let owed = dlm.shutdown(Duration::ZERO).await;
    assert!((1..10 * TASKS).contains(&owed), "{owed} deletes are owed");
    masters[2].thaw();
    let thawed = Instant::now();
    masters.eventually_empty().await;
    assert!(thawed.elapsed() < ttl, "the keys have only expired");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(tasks.get() < TASKS / 2, "{} tasks", tasks.get());
    let text = logs.text();
    assert!(text.lines().count() < 20, "{text}");
    assert!(text.contains("master fails"), "{text}");
}

/// The vote of the third master on a lock that is taken.
async fn third_vote(dlm: &Redlock, taken: &str) -> Vote {
    match dlm.try_lock(taken, TTL).await {
        Err(LockError::Taken(failure)) => {
            let third = failure.ballots.iter().nth(2);
            third.expect("three votes").vote.clone()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_master_that_holds_back_writes_counts_as_failing_until_it_executes_them() {
    let masters = Masters::start(3);
    let dlm = client_here(&masters);
    let taken = unique("taken");
    let guard = masters.lock_everywhere(&dlm, &taken, TTL).await;
    masters[2].query::<()>(cmd("CLIENT").arg("PAUSE").arg(60_000).arg("WRITE"));
    let is_known = |vote: &Vote| matches!(vote, Vote::Failed(MasterError::Connect(_)));
    eventually_async("it is known to fail", LONG, async || {
        drop(dlm.try_lock(unique("r"), TTL).await.expect("two are well"));
        is_known(&third_vote(&dlm, &taken).await)
    })
    .await;
    // It answers a PING, and still does not come back to life. Longer than the pause between two tries.
    let known = Instant::now();
    while known.elapsed() < Duration::from_millis(1_500) {
        let start = Instant::now();
        let guard = dlm.try_lock(unique("r"), TTL).await;
        let guard = guard.expect("two are well");
        guard.release().await.expect("two are well");
        assert!(start.elapsed() < Duration::from_secs(1));
        let vote = third_vote(&dlm, &taken).await;
        assert!(is_known(&vote), "{vote}");
        sleep(Duration::from_millis(5)).await;
    }
    masters[2].query::<()>(cmd("CLIENT").arg("UNPAUSE"));
    let unpaused = Instant::now();
    eventually_async("it votes again", LONG, async || {
        let resource = unique("back");
        let guard = dlm.try_lock(&resource, TTL).await.expect("two are well");
        guard.extend(TTL).await.expect("two are well");
        masters[2].get(&resource).is_some()
    })
    .await;
    let took = unpaused.elapsed();
    assert!(took < Duration::from_millis(2_500), "{took:?}");
    guard.release().await.expect("still ours");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    masters.eventually_empty().await;
}

/// A thousand tasks that lock for a second. Returns how many connections to the third master there were at most at a time.
async fn crowd(masters: &Masters) -> usize {
    let dlm = masters.client();
    let (start, most) = (Instant::now(), Cell::new(0));
    let is_over = || start.elapsed() > Duration::from_secs(1);
    let task = async || {
        while !is_over() {
            drop(dlm.lock(unique("resource"), TTL).await);
        }
    };
    let watch = async {
        while !is_over() {
            most.set(most.get().max(masters.proxy(2).connections()));
            sleep(Duration::from_millis(1)).await;
        }
    };
    join(join_all((0..1_000).map(|_| task())), watch).await;
    most.get()
}

#[tokio::test]
async fn a_port_that_hangs_is_connected_to_once_at_a_time_by_a_thousand_tasks() {
    let masters = Masters::behind_proxies(3);
    masters.proxy(2).hang();
    let most = crowd(&masters).await;
    // One that has just been given up, and the next one.
    assert!((1..=2).contains(&most), "{most} connections at a time");
    let connects = masters.proxy(2).connects();
    assert!(connects < 10, "{connects} connects in a second");
    assert_eq!(masters.proxy(1).connects(), 1);
}

#[tokio::test]
async fn a_port_that_closes_is_connected_to_once_at_a_time_by_a_thousand_tasks() {
    let mut masters = Masters::behind_proxies(3);
    masters[2].kill();
    let most = crowd(&masters).await;
    assert!(most <= 2, "{most} connections at a time");
    let connects = masters.proxy(2).connects();
    assert!(
        (2..20).contains(&connects),
        "{connects} connects in a second"
    );
    assert_eq!(masters.proxy(1).connects(), 1);
}
