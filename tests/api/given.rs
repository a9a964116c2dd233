//! Connections that the caller has made: requests for one resource do not wait for each other, requests with one
//! value keep their order, and a request that nobody waits for any more is not sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Arg, AsyncConnectionConfig, Client, Cmd, RedisResult, Value};
use support::{AnsweredBy, LONG, Masters, Server, eventually_async, unique};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_redlock::{KeepAlive, LockGuard, Redlock, RedlockBuilder, RetryPolicy};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// How many tasks want one resource.
const TASKS: usize = 64;

async fn connection(url: String) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url).expect("a valid URL");
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    connection.await.expect("it accepts connections")
}

/// Three masters some way off, and a client that was given connections to them.
struct Distant {
    dlm: Redlock,
    _masters: Masters,
}

impl Distant {
    async fn start() -> Self {
        let masters = Masters::behind_proxies(3);
        let mut builder = Redlock::builder();
        for proxy in masters.proxies() {
            proxy.delay(Duration::from_millis(2));
            builder = builder.connection(connection(proxy.url()).await);
        }
        Self {
            dlm: builder.build().expect("three masters"),
            _masters: masters,
        }
    }

    /// Tasks that lock a resource and release it again and again until they are dropped. Counts the locks.
    fn rivals(&self, resource: &str) -> (JoinSet<()>, Arc<AtomicUsize>) {
        let locks = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let (dlm, resource, locks) = (self.dlm.clone(), resource.to_owned(), locks.clone());
            tasks.spawn(async move {
                loop {
                    let request = dlm.lock(&resource, TTL).retry(eager());
                    let guard = request.await.expect("it never gives up");
                    locks.fetch_add(1, Ordering::Relaxed);
                    // A busy machine may take too long for the answer; what counts is the next lock.
                    let _ = guard.release().await;
                }
            });
        }
        (tasks, locks)
    }
}

fn eager() -> RetryPolicy {
    let (min, max) = (Duration::from_millis(10), Duration::from_millis(100));
    RetryPolicy::new().delay(min, max).forever()
}

#[tokio::test]
async fn many_tasks_that_want_one_resource_make_progress() {
    const SPAN: Duration = Duration::from_secs(3);
    let masters = Distant::start().await;
    let (_tasks, locks) = masters.rivals(&unique("wanted"));
    sleep(SPAN).await;
    let locks = locks.load(Ordering::Relaxed);
    assert!(locks >= 15, "{locks} locks in {SPAN:?}");
}

#[tokio::test]
async fn a_lock_that_is_kept_alive_is_not_lost_because_many_tasks_want_it() {
    const SHORT: Duration = Duration::from_millis(1500);
    let masters = Distant::start().await;
    let resource = unique("wanted");
    let request = masters.dlm.lock(&resource, SHORT);
    let guard = request.keep_alive(KeepAlive::new()).await.expect("free");
    let (_tasks, locks) = masters.rivals(&resource);
    // Several times as long as the lock lasts without renewals.
    let lost = timeout(3 * SHORT, guard.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    assert_eq!(locks.load(Ordering::Relaxed), 0, "held by two");
}

/// A connection that records the requests for one resource, and holds them back while it is closed.
#[derive(Clone)]
struct Gate {
    connection: MultiplexedConnection,
    resource: String,
    /// The arguments of the requests for the resource, in the order in which they were given.
    given: Arc<Mutex<Vec<Vec<String>>>>,
    closed: watch::Sender<bool>,
}

impl Gate {
    async fn start(server: &Server) -> Self {
        Self {
            connection: connection(server.url()).await,
            resource: unique("gated"),
            given: Arc::default(),
            closed: watch::Sender::new(false),
        }
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }

    fn open(&self) {
        self.closed.send_replace(false);
    }

    fn given(&self) -> Vec<Vec<String>> {
        self.given.lock().expect("nobody panics").clone()
    }

    fn send(self, command: Cmd) -> impl Future<Output = RedisResult<Value>> + Send {
        let words: Vec<String> = command
            .args_iter()
            .filter_map(|word| match word {
                Arg::Simple(word) => Some(String::from_utf8_lossy(word).into_owned()),
                _ => None,
            })
            .collect();
        let is_gated = words.contains(&self.resource);
        if is_gated {
            self.given.lock().expect("nobody panics").push(words);
        }
        let (mut connection, mut closed) = (self.connection, self.closed.subscribe());
        async move {
            if is_gated {
                let opened = closed.wait_for(|closed| !closed).await;
                drop(opened.expect("the gate exists"));
            }
            connection.req_packed_command(&command).await
        }
    }

    async fn was_given(&self, requests: usize) {
        let given = async || self.given().len() == requests;
        eventually_async(&format!("{requests} requests"), LONG, given).await;
    }
}

/// A client of one master, whose vote decides.
fn client(builder: RedlockBuilder, gate: &Gate) -> Redlock {
    let gate = gate.clone();
    let connection = AnsweredBy(move |command| gate.clone().send(command));
    let builder = builder.connection(connection);
    builder.build().expect("one master")
}

/// A client that waits for a closed gate as long as the test does.
fn patient_client(gate: &Gate) -> Redlock {
    client(Redlock::builder().request_timeout(LONG), gate)
}

/// Locks and releases another resource. All that the callers did before has reached the queue by then.
async fn pass(dlm: &Redlock) {
    let guard = dlm.try_lock(unique("other"), TTL).await.expect("granted");
    guard.release().await.expect("ours");
}

#[tokio::test]
async fn requests_of_one_value_keep_their_order_and_wait_for_no_other_value() {
    let server = Server::start();
    let gate = Gate::start(&server).await;
    let dlm = patient_client(&gate);
    gate.close();
    let first = tokio::spawn(dlm.try_lock(&gate.resource, TTL).into_future());
    gate.was_given(1).await;
    let second = tokio::spawn(dlm.try_lock(&gate.resource, TTL).into_future());
    gate.was_given(2).await;
    for task in [first, second] {
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }
    // The deletes wait for the SETs that they undo.
    let under_way = async || dlm.shutdown(Duration::ZERO).await == 2;
    eventually_async("both are undone", LONG, under_way).await;
    pass(&dlm).await;
    let sets = gate.given();
    assert!(sets.len() == 2 && sets.iter().all(|words| words[0] == "SET"));
    gate.open();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let given = gate.given();
    for set in sets {
        let value = &set[2];
        let same = given.iter().filter(|words| words.contains(value));
        let names: Vec<_> = same.map(|words| &words[0][..]).collect();
        assert_eq!(names, ["SET", "EVALSHA"], "{given:?}");
    }
    assert_eq!(server.get(&gate.resource), None);
}

/// The ttls that were asked for, in milliseconds. A SET and an extension have theirs in the same place.
fn ttls(gate: &Gate) -> Vec<String> {
    let given = gate.given().into_iter();
    given.filter_map(|words| words.get(5).cloned()).collect()
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_sent_when_its_turn_comes() {
    let server = Server::start();
    let gate = Gate::start(&server).await;
    let dlm = patient_client(&gate);
    let guard = dlm.lock(&gate.resource, TTL).await.expect("free");
    let guard = Arc::new(guard);
    gate.close();
    let first = tokio::spawn(extend(Arc::clone(&guard), 2 * TTL));
    gate.was_given(2).await;
    let mut tasks = [3, 4, 5, 6].map(|times| {
        let extension = extend(Arc::clone(&guard), times * TTL);
        Some(tokio::spawn(extension))
    });
    pass(&dlm).await;
    // Every other caller gives up.
    for task in tasks.iter_mut().step_by(2).filter_map(Option::take) {
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }
    pass(&dlm).await;
    assert_eq!(gate.given().len(), 2, "they wait for the first");
    gate.open();
    first.await.expect("no panic");
    for task in tasks.into_iter().flatten() {
        task.await.expect("no panic");
    }
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_eq!(ttls(&gate), ["60000", "120000", "240000", "360000"]);
    assert_eq!(server.get(&gate.resource), None);
}

async fn extend(guard: Arc<LockGuard>, ttl: Duration) {
    guard.extend(ttl).await.expect("ours");
}

#[tokio::test]
async fn a_delete_that_is_repeated_while_a_connection_hangs_does_not_fill_its_queue() {
    let server = Server::start();
    let gate = Gate::start(&server).await;
    let dlm = client(Redlock::builder(), &gate);
    let guard = dlm.lock(&gate.resource, TTL).await.expect("free");
    gate.close();
    drop(guard);
    // It is repeated several times meanwhile.
    assert_eq!(dlm.shutdown(Duration::from_secs(4)).await, 1);
    assert_eq!(gate.given().len(), 2, "one after the other");
    gate.open();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_eq!(server.get(&gate.resource), None);
    // The one that hung, one that replaces all others behind it, and one that follows when the connection is back.
    let deletes = gate.given().len() - 1;
    assert!(deletes <= 3, "{deletes} deletes");
}
