//! Thousands of locks taken and given back in every way, over one connection per master: not one key is left.
//!
//! Each soak takes 2 s, or as many as `SOAK_SECONDS` says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use futures::future::join_all;
use redis::{AsyncConnectionConfig, Client};
use support::{LONG, Masters, Server, unique};
use tokio::time::{sleep, timeout};
use tokio_redlock::{LockError, LockGuard, Redlock, ReleaseError};

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(120);

fn soak_time() -> Duration {
    let seconds = env::var("SOAK_SECONDS").map(|seconds| seconds.parse());
    Duration::from_secs(seconds.map_or(2, |seconds| seconds.expect("a number of seconds")))
}

/// Connections as an application may have them: with room for 50 requests, as is the default, after which others
/// have to wait.
async fn given_connections(masters: &[Server]) -> Redlock {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let mut builder = Redlock::builder().request_timeout(LONG);
    for server in masters {
        let client = Client::open(server.url()).expect("a valid URL");
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        builder = builder.connection(connection.await.expect("a connection"));
    }
    builder.build().expect("three masters")
}

/// How the locks of a soak ended.
#[derive(Debug, Default)]
struct Ends {
    released: AtomicUsize,
    dropped: AtomicUsize,
    cancelled: AtomicUsize,
    /// The masters had too much to do to answer in time.
    failed: AtomicUsize,
}

impl Ends {
    async fn lock_and_end(&self, dlm: &Redlock, resource: &str, round: usize) {
        let request = dlm.try_lock(resource, TTL);
        if round.is_multiple_of(8) {
            let patience = Duration::from_micros(rand::random_range(0..20_000));
            match timeout(patience, request.into_future()).await {
                Err(_) => count(&self.cancelled),
                Ok(result) => self.drop_or_fail(result),
            }
        } else if round.is_multiple_of(2) {
            self.drop_or_fail(request.await);
        } else {
            self.release_or_fail(request.await).await;
        }
    }

    fn drop_or_fail(&self, result: Result<LockGuard, LockError>) {
        match result {
            Ok(guard) => {
                drop(guard);
                count(&self.dropped);
            }
            Err(LockError::Unreachable(_)) => count(&self.failed),
            Err(other) => panic!("a resource that nobody else wants: {other:?}"),
        }
    }

    async fn release_or_fail(&self, result: Result<LockGuard, LockError>) {
        let Ok(guard) = result else {
            return self.drop_or_fail(result);
        };
        match guard.release().await {
            Ok(()) => count(&self.released),
            Err(ReleaseError::Unconfirmed { .. }) => count(&self.failed),
            Err(other) => panic!("it was ours: {other:?}"),
        }
    }
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Takes and gives back fresh resources from many tasks for the time of a soak.
async fn soak(dlm: &Redlock, tasks: usize) -> Arc<Ends> {
    let ends = Arc::new(Ends::default());
    let until = Instant::now() + soak_time();
    let tasks = (0..tasks).map(|task| {
        let (dlm, ends) = (dlm.clone(), Arc::clone(&ends));
        tokio::spawn(async move {
            let prefix = unique("lock");
            for round in task.. {
                if Instant::now() >= until {
                    return;
                }
                let resource = format!("{prefix}:{round}");
                ends.lock_and_end(&dlm, &resource, round).await;
            }
        })
    });
    for task in join_all(tasks.collect::<Vec<_>>()).await {
        task.expect("no task panics");
    }
    ends
}

/// All masters are empty the moment the last release is confirmed, and 100 ms later.
async fn assert_nothing_left(dlm: &Redlock, masters: &[Server]) {
    assert_eq!(dlm.shutdown(LONG).await, 0, "not confirmed");
    assert_empty(masters);
    sleep(Duration::from_millis(100)).await;
    assert_empty(masters);
}

fn assert_empty(masters: &[Server]) {
    for server in masters {
        let left = server.keys();
        assert!(left.is_empty(), "{} keys left: {:?}", left.len(), left[0]);
    }
}

/// The most that was seen on any server while something went on.
#[derive(Debug, Default)]
struct Most {
    connections: usize,
    keys: usize,
}

/// Looks at the masters all the time while something goes on.
async fn watch<T>(masters: &Arc<Masters>, work: impl Future<Output = T>) -> (T, Most) {
    let done = Arc::new(AtomicBool::new(false));
    let watcher = thread::spawn({
        let (masters, done) = (Arc::clone(masters), Arc::clone(&done));
        move || {
            let mut most = Most::default();
            while !done.load(Ordering::Relaxed) {
                for server in masters.iter() {
                    most.connections = most.connections.max(server.connected_clients());
                    most.keys = most.keys.max(server.keys().len());
                }
                thread::sleep(Duration::from_millis(5));
            }
            most
        }
    });
    let output = work.await;
    done.store(true, Ordering::Relaxed);
    (output, watcher.join().expect("the watcher looks"))
}

async fn soak_leaves_nothing(dlm: Redlock, masters: Arc<Masters>, tasks: usize) {
    let (ends, most) = watch(&masters, soak(&dlm, tasks)).await;
    assert_nothing_left(&dlm, &masters).await;
    assert_eq!(most.connections, 1, "{most:?}");
    assert!(most.keys > 0, "nobody looked when there was something");
    for counter in [&ends.released, &ends.dropped, &ends.cancelled] {
        assert!(counter.load(Ordering::Relaxed) > 100, "{ends:?}");
    }
}

/// Takes many locks and drops them all at once.
async fn burst_leaves_nothing(dlm: Redlock, masters: &[Server]) {
    const GUARDS: usize = 10_000;
    let mut guards = Vec::with_capacity(GUARDS);
    while guards.len() < GUARDS {
        let some = (0..100).map(|_| dlm.lock(unique("lock"), TTL).into_future());
        let some = join_all(some).await.into_iter();
        guards.extend(some.map(|guard| guard.expect("nobody else wants it")));
    }
    assert!(masters.iter().all(|server| !server.keys().is_empty()));
    drop(guards);
    assert_nothing_left(&dlm, masters).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_leave_nothing_over_one_connection_to_each_master() {
    let masters = Arc::new(Masters::start(3));
    soak_leaves_nothing(masters.patient_client(), masters, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_leave_nothing_over_connections_that_were_given() {
    let masters = Arc::new(Masters::start(3));
    soak_leaves_nothing(given_connections(&masters).await, masters, 1_000).await;
}

#[tokio::test]
async fn many_tasks_on_one_thread_leave_nothing() {
    let masters = Arc::new(Masters::start(3));
    soak_leaves_nothing(masters.patient_client(), masters, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_drops_at_once_leave_nothing() {
    let masters = Masters::start(3);
    burst_leaves_nothing(masters.patient_client(), &masters).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_drops_at_once_leave_nothing_over_connections_that_were_given() {
    let masters = Masters::start(3);
    burst_leaves_nothing(given_connections(&masters).await, &masters).await;
}
