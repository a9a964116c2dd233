//! How masters are given to the builder: by URL, by client or by connection.

use std::net::{Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Client, Cmd, FromRedisValue, cmd};
use support::{
    AnsweredBy, LONG, Logs, Masters, Server, Servers, current_thread, eventually_async, free_port,
    multi_thread, unique,
};
use tokio_redlock::{BuildError, LockError, Redlock, RedlockBuilder};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// Options that a busy machine does not make impatient.
fn options() -> RedlockBuilder {
    Redlock::builder().request_timeout(LONG)
}

fn client(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Redlock {
    let builder = options().masters(urls);
    builder.build().expect("valid masters")
}

async fn connection(server: &Server) -> MultiplexedConnection {
    let client = Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// A client that was given a connection to each.
async fn connected(masters: &[Server]) -> Redlock {
    let mut builder = options();
    for server in masters {
        builder = builder.connection(connection(server).await);
    }
    builder.build().expect("valid masters")
}

/// Asks one database of a server.
fn query_db<T: FromRedisValue>(server: &Server, db: u8, command: &Cmd) -> T {
    let client = Client::open(format!("{}?db={db}", server.unix_url())).unwrap();
    command
        .query(&mut client.get_connection().unwrap())
        .unwrap()
}

/// Locks, extends and releases with one master; tells under which keys of which database the lock was held.
async fn use_master(dlm: &Redlock, server: &Server, db: u8, resource: &str) -> Vec<String> {
    let guard = dlm.lock(resource, TTL).await.unwrap();
    let keys: Vec<String> = query_db(server, db, cmd("KEYS").arg("*"));
    for key in &keys {
        let value: String = query_db(server, db, cmd("GET").arg(key));
        assert_eq!(value, guard.value());
    }
    let again = dlm.try_lock(resource, TTL).await;
    assert!(matches!(again, Err(LockError::Taken(_))), "{again:?}");
    guard.extend(2 * TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_eq!(query_db::<usize>(server, db, &cmd("DBSIZE")), 0);
    keys
}

/// The only key in use is the resource itself.
async fn assert_usable(dlm: &Redlock, server: &Server, db: u8) {
    let resource = unique("resource");
    assert_eq!(use_master(dlm, server, db, &resource).await, [resource]);
}

#[tokio::test]
async fn urls_of_every_kind_can_be_used() {
    let server = Server::start();
    let (addr, socket) = (server.addr(), server.socket_path());
    let socket = socket.display();
    for (url, db) in [
        (format!("redis://{addr}"), 0),
        (format!("redis://{addr}/"), 0),
        (format!("redis://{addr}/0"), 0),
        (format!("redis://{addr}/3"), 3),
        (format!("valkey://{addr}"), 0),
        (format!("valkey://{addr}/5"), 5),
        (format!("redis://localhost:{}", server.port()), 0),
        (format!("unix://{socket}"), 0),
        (format!("unix://{socket}?db=7"), 7),
        (format!("redis+unix://{socket}"), 0),
        (format!("valkey+unix://{socket}?db=2"), 2),
        (format!("redis://{addr}/4?protocol=resp3"), 4),
    ] {
        assert_usable(&client([&url]), &server, db).await;
        let by_client = Client::open(&url[..]).unwrap();
        let by_client = options().client(by_client).build().unwrap();
        assert_usable(&by_client, &server, db).await;
    }
}

#[tokio::test]
async fn users_and_passwords_can_be_given() {
    let server = Server::start();
    let rules = ["SETUSER", "alice", "on", ">p@ss/w:rd?#", "~*", "+@all"];
    server.query::<()>(cmd("ACL").arg(&rules));
    let rules = ["SETUSER", "bob", "on", "nopass", "~*", "-@all"];
    server.query::<()>(cmd("ACL").arg(&rules));

    let (addr, socket) = (server.addr(), server.socket_path());
    let socket = socket.display();
    let password = "p%40ss%2Fw%3Ard%3F%23";
    for (url, db) in [
        (format!("redis://alice:{password}@{addr}"), 0),
        (format!("valkey://alice:{password}@{addr}/3"), 3),
        (
            format!("unix://{socket}?db=3&user=alice&pass={password}"),
            3,
        ),
    ] {
        assert_usable(&client([url]), &server, db).await;
    }
    // And that user it is.
    let attempt = client([format!("redis://bob:any@{addr}")]);
    let attempt = attempt.try_lock("resource", TTL).await;
    let text = attempt.unwrap_err().to_string();
    assert!(text.contains("no permissions"), "{text}");
}

#[tokio::test]
async fn a_password_alone_is_that_of_the_default_user() {
    let server = Server::start();
    server.query::<()>(cmd("CONFIG").arg(&["SET", "requirepass", "secret"]));
    let url = server.url().replace("//", "//:secret@");
    let dlm = client([url]);
    let guard = dlm.lock("resource", TTL).await.unwrap();
    guard.extend(2 * TTL).await.unwrap();
    guard.release().await.unwrap();
}

/// No more than the three requests take.
#[tokio::test]
async fn a_user_needs_few_rights() {
    let server = Server::start();
    let mut rules = cmd("ACL");
    rules.arg(&["SETUSER", "alice", "on", ">secret", "~lock:*", "-@all"]);
    rules.arg(&[
        "+set", "+get", "+del", "+pttl", "+pexpire", "+eval", "+evalsha",
    ]);
    server.query::<()>(&rules);
    let url = server.url().replace("//", "//alice:secret@");
    let dlm = client([url]);
    let key = unique("lock:");
    assert_eq!(use_master(&dlm, &server, 0, &key).await, [key]);
    let elsewhere = dlm.try_lock(unique("elsewhere"), TTL).await;
    assert!(
        matches!(elsewhere, Err(LockError::Unreachable(_))),
        "{elsewhere:?}"
    );
}

#[tokio::test]
async fn an_ipv6_address_can_be_given() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        // Shown as such all the same.
        let dlm = client(["redis://[::1]:7000"]);
        assert!(format!("{dlm:?}").contains("[::1]:7000"));
        return;
    }
    let mut server = Server::start_with(&["--bind", "127.0.0.1", "::1"]);
    let address = format!("[::1]:{}", server.port());
    let dlm = client([format!("redis://{address}")]);
    assert_usable(&dlm, &server, 0).await;
    server.kill();
    let text = dlm.try_lock("resource", TTL).await.unwrap_err().to_string();
    assert!(text.contains(&address), "{text}");
}

#[tokio::test]
async fn masters_given_in_different_ways_make_one_lock() {
    let mut masters = Masters::start(3);
    let [by_url, by_client, by_connection] = &*masters else {
        panic!("there are three");
    };
    let mixed = options()
        .master(by_url.url())
        .client(Client::open(by_client.unix_url()).unwrap())
        .connection(connection(by_connection).await)
        .build()
        .unwrap();
    let plain = masters.patient_client();
    let resource = unique("resource");

    let guard = mixed.lock(&resource, TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    let attempt = plain.try_lock(&resource, TTL).await;
    assert!(matches!(attempt, Err(LockError::Taken(_))), "{attempt:?}");
    guard.extend(2 * TTL).await.unwrap();
    guard.release().await.unwrap();
    let guard = plain.lock(&resource, TTL).await.unwrap();
    let attempt = mixed.try_lock(&resource, TTL).await;
    let text = attempt.unwrap_err().to_string();
    let [by_url, by_client] = [by_url.addr(), by_client.socket_path().display().to_string()];
    for address in [&by_url[..], &by_client, "connection 3"] {
        assert!(text.contains(address), "{text}");
    }
    drop(guard);
    assert_eq!(plain.shutdown(LONG).await, 0);

    masters[2].kill();
    let guard = mixed.lock(&resource, TTL).await.unwrap();
    guard.extend(2 * TTL).await.unwrap();
    guard.release().await.unwrap();
    masters[1].kill();
    let attempt = mixed.try_lock(&resource, TTL).await;
    assert!(
        matches!(attempt, Err(LockError::Unreachable(_))),
        "{attempt:?}"
    );
}

#[tokio::test]
async fn connections_are_as_good_as_urls() {
    let masters = Masters::start(3);
    let dlm = connected(&masters).await;
    let resource = unique("resource");
    for _ in 0..20 {
        let guard = dlm.lock(&resource, TTL).await.unwrap();
        let attempt = dlm.try_lock(&resource, TTL).await;
        assert!(matches!(attempt, Err(LockError::Taken(_))), "{attempt:?}");
        guard.extend(2 * TTL).await.unwrap();
        guard.release().await.unwrap();
    }
    // More at a time than fit into the buffer of such a connection.
    let guards = (0..500).map(|place| dlm.lock(format!("{resource}:{place}"), TTL).into_future());
    drop(futures::future::try_join_all(guards).await.unwrap());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_lock_dropped_on_connections_is_free_for_the_very_next_try() {
    for _ in 0..5 {
        let masters = Masters::start(3);
        let dlm = connected(&masters).await;
        for time in 0..10 {
            drop(dlm.lock("resource", TTL).await.unwrap());
            let next = dlm.try_lock("resource", TTL).await;
            assert!(next.is_ok(), "time {time}: {next:?}");
        }
    }
}

#[tokio::test]
async fn any_connection_like_can_be_given() {
    let server = Server::start();
    let commands = Arc::new(AtomicUsize::new(0));
    let (connection, counter) = (connection(&server).await, Arc::clone(&commands));
    // As a user may wrap one.
    let counted = AnsweredBy(move |command: Cmd| {
        counter.fetch_add(1, Ordering::SeqCst);
        let mut connection = connection.clone();
        async move { connection.req_packed_command(&command).await }
    });
    let dlm = options().connection(counted).build().unwrap();
    assert_eq!(commands.load(Ordering::SeqCst), 0);
    assert_usable(&dlm, &server, 0).await;
    assert!(commands.load(Ordering::SeqCst) >= 3);
    // The one given, and none besides.
    let one = async || server.connected_clients() == 1;
    eventually_async("there is one connection", LONG, one).await;
}

#[tokio::test]
async fn a_key_is_the_prefix_and_the_resource() {
    let server = Server::start();
    let prefixed = |prefix: &[u8]| {
        let builder = options().master(server.url()).key_prefix(prefix);
        builder.build().unwrap()
    };
    let dlm = prefixed(b"billing:lock:");
    let keys = use_master(&dlm, &server, 0, "invoice:42").await;
    assert_eq!(keys, ["billing:lock:invoice:42"]);

    let guard = dlm.lock("invoice:42", TTL).await.unwrap();
    assert_eq!(guard.resource(), b"invoice:42");
    let error = dlm.try_lock("invoice:42", TTL).await.unwrap_err();
    let LockError::Taken(attempts) = error else {
        panic!("not taken: {error:?}");
    };
    assert_eq!(attempts.resource, b"invoice:42");
    // The key is what counts, however it is made.
    for (prefix, resource, free) in [
        (&b""[..], "invoice:42", true),
        (b"billing:lock:2:", "invoice:42", true),
        (b"", "billing:lock:invoice:42", false),
        (b"billing:", "lock:invoice:42", false),
    ] {
        let attempt = prefixed(prefix).try_lock(resource, TTL).await;
        assert_eq!(attempt.is_ok(), free, "{attempt:?}");
    }

    let binary = b"\xff\x00:";
    let guard = prefixed(binary).lock("resource", TTL).await.unwrap();
    let value = server.get(&b"\xff\x00:resource"[..]).unwrap();
    assert_eq!(value, guard.value().as_bytes());
}

#[test]
fn at_least_one_master_is_needed() {
    let none: [&str; 0] = [];
    for error in [Redlock::new(none), Redlock::builder().build()] {
        let error = error.unwrap_err();
        assert!(matches!(error, BuildError::NoMaster), "{error:?}");
        assert!(error.to_string().contains("no master"), "{error}");
    }
}

#[test]
fn no_master_can_be_given_twice() {
    for (one, other, address) in [
        ("redis://10.0.0.1", "redis://10.0.0.1", "10.0.0.1:6379"),
        ("redis://10.0.0.1", "redis://10.0.0.1:6379", "10.0.0.1:6379"),
        ("redis://10.0.0.1", "redis://10.0.0.1/", "10.0.0.1:6379"),
        ("redis://10.0.0.1", "valkey://10.0.0.1", "10.0.0.1:6379"),
        ("redis://10.0.0.1/0", "redis://10.0.0.1/1", "10.0.0.1:6379"),
        (
            "redis://10.0.0.1",
            "redis://user:pass@10.0.0.1",
            "10.0.0.1:6379",
        ),
        ("redis://one.test:1", "redis://ONE.test:1", "one.test:1"),
        ("redis://one.test:1", "REDIS://one.test:1", "one.test:1"),
        (
            "redis://[::1]",
            "redis://[0:0:0:0:0:0:0:1]:6379",
            "[::1]:6379",
        ),
        (
            "unix:///run/redis.sock",
            "unix:///run/redis.sock?db=1",
            "/run/redis.sock",
        ),
        (
            "unix:///run/redis.sock",
            "redis+unix:///run/redis.sock",
            "/run/redis.sock",
        ),
    ] {
        let third = "redis://10.0.0.9";
        let urls = || Redlock::new([one, third, other]);
        let clients = || {
            let [one, other] = [one, other].map(|url| Client::open(url).unwrap());
            Redlock::builder()
                .client(one)
                .master(third)
                .client(other)
                .build()
        };
        let mixed = || {
            let other = Client::open(other).unwrap();
            Redlock::builder().master(one).client(other).build()
        };
        for error in [urls(), clients(), mixed()] {
            let error = error.unwrap_err();
            let BuildError::DuplicateMaster { master, .. } = &error else {
                panic!("{one} and {other}: {error:?}");
            };
            assert_eq!(master.as_str(), address);
            assert!(error.to_string().contains(address), "{error}");
        }
    }
}

#[cfg(any(feature = "tls-rustls", feature = "tls-native-tls"))]
#[test]
fn with_and_without_tls_is_the_same_master() {
    for other in ["rediss://10.0.0.1:7000", "valkeys://10.0.0.1:7000/1"] {
        let error = Redlock::new(["redis://10.0.0.1:7000", other]).unwrap_err();
        assert!(
            matches!(error, BuildError::DuplicateMaster { .. }),
            "{error:?}"
        );
        assert!(Redlock::new(["redis://10.0.0.1", other]).is_ok());
    }
}

#[cfg(not(any(feature = "tls-rustls", feature = "tls-native-tls")))]
#[test]
fn tls_needs_its_feature() {
    for url in [
        "rediss://user:pass@10.0.0.1:7000",
        "valkeys://10.0.0.1:7000",
    ] {
        let error = Redlock::new([url]).unwrap_err();
        assert!(matches!(error, BuildError::TlsDisabled { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("10.0.0.1:7000"), "{text}");
        assert!(text.contains("tls-rustls"), "{text}");
        assert!(!text.contains("pass"), "{text}");
    }
}

#[test]
fn different_masters_can_be_given() {
    for urls in [
        [
            "redis://10.0.0.1:1",
            "redis://10.0.0.1:2",
            "redis://10.0.0.1:3",
        ],
        ["redis://one.test", "redis://two.test", "redis://three.test"],
        ["redis://[::1]", "redis://[::2]", "redis://10.0.0.1"],
        [
            "unix:///run/1.sock",
            "unix:///run/2.sock",
            "unix:///run/3.sock",
        ],
        [
            "redis://user:pass@10.0.0.1",
            "redis://user:pass@10.0.0.2",
            "redis://user:pass@10.0.0.3",
        ],
    ] {
        assert!(Redlock::new(urls).is_ok(), "{urls:?}");
    }
}

#[test]
fn a_url_that_cannot_be_used_is_named() {
    for url in [
        "",
        "redis",
        "10.0.0.1",
        "10.0.0.1:6379",
        "localhost:6379",
        "http://10.0.0.1",
        "redis+sentinel://10.0.0.1",
        "redis://",
        "redis:///0",
        "redis://0.0.0.0",
        "redis://[::]:6379",
        "redis://10.0.0.1:port",
        "redis://10.0.0.1:65536",
        "redis://10.0.0.1/database",
        "redis://10.0.0.1/0/1",
        "redis://[::1",
        "unix:",
    ] {
        let good = ["redis://10.0.0.8", "redis://10.0.0.9"];
        let error = Redlock::new([good[0], url, good[1]]).unwrap_err();
        let BuildError::Url { master, .. } = &error else {
            panic!("{url}: {error:?}");
        };
        assert_eq!(master, url);
        let text = error.to_string();
        assert!(text.contains(&format!("{url:?}")), "{text}");
        assert!(text.contains("expected redis://"), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let builder = || Redlock::builder().master("redis://10.0.0.1");
    for factor in [-0.01, 0.51, 1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = builder().drift_factor(factor).build().unwrap_err();
        assert!(matches!(error, BuildError::DriftFactor { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&factor.to_string()), "{text}");
        assert!(text.contains("between 0 and 0.5"), "{text}");
    }
    for factor in [0.0, 0.01, 0.08, 0.5] {
        assert!(builder().drift_factor(factor).build().is_ok(), "{factor}");
    }
    let ms = Duration::from_millis(1);
    for timeout in [Duration::ZERO, ms / 2, 60_001 * ms, Duration::MAX] {
        let error = builder().request_timeout(timeout).build().unwrap_err();
        assert!(
            matches!(error, BuildError::RequestTimeout { .. }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains(&format!("{timeout:?}")), "{text}");
        assert!(text.contains("between 1 ms and 60 s"), "{text}");
    }
    for timeout in [ms, 60_000 * ms] {
        assert!(builder().request_timeout(timeout).build().is_ok());
    }
}

#[tokio::test]
async fn the_drift_factor_shortens_the_validity() {
    let server = Server::start();
    let with = |factor| {
        let builder = options().master(server.url()).drift_factor(factor);
        builder.build().unwrap()
    };
    let [none, most] = [with(0.0), with(0.5)];
    let least = none.lock("none", TTL).await.unwrap();
    assert!(least.validity() > TTL / 2);
    let most = most.lock("most", TTL).await.unwrap();
    assert!(most.validity() < TTL / 2);
}

static NOWHERE: LazyLock<Redlock> = LazyLock::new(|| {
    let urls = [free_port(), free_port(), free_port()];
    client(urls.map(|port| format!("redis://127.0.0.1:{port}")))
});

#[test]
fn a_client_can_be_a_static_that_is_built_without_a_runtime() {
    let before = format!("{:?}", *NOWHERE);
    assert!(before.contains("127.0.0.1:"), "{before}");
    let attempt = current_thread().block_on(NOWHERE.try_lock("resource", TTL).into_future());
    assert!(
        matches!(attempt, Err(LockError::Unreachable(_))),
        "{attempt:?}"
    );
}

#[tokio::test]
async fn a_client_connects_when_it_is_first_used_and_then_once() {
    let masters = Masters::behind_proxies(3);
    let [dlm, unused] = [masters.patient_client(), masters.patient_client()];
    let request = dlm.lock("resource", TTL);
    // Time enough to connect, had anybody begun to.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let connects = || [0, 1, 2].map(|place| masters.proxy(place).connects());
    assert_eq!(connects(), [0; 3]);
    drop(request.await.unwrap());
    let connected = async || connects() == [1; 3];
    eventually_async("it connects to each", LONG, connected).await;

    let clones = [(); 50].map(|()| dlm.clone().lock(unique("resource"), TTL).into_future());
    for guard in futures::future::join_all(clones).await {
        guard.unwrap().release().await.unwrap();
    }
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_eq!(connects(), [1; 3]);
    drop(unused);
}

#[tokio::test]
async fn a_client_that_is_dropped_closes_its_connections() {
    let masters = Masters::start(3).with_proxies([2]);
    let hangs = masters.proxy(2);
    let dlm = masters.patient_client();
    drop(dlm.lock("resource", TTL).await.unwrap());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let closed = async || {
        let mut clients = masters.iter().map(Server::connected_clients);
        clients.all(|clients| clients == 0)
    };
    assert!(!closed().await);
    drop(dlm);
    eventually_async("it closes them", LONG, closed).await;

    // One that is still trying to connect gives that up.
    hangs.hang();
    let dlm = masters.patient_client();
    drop(dlm.lock("resource", TTL).await.unwrap());
    let tries = async || hangs.connects() >= 3;
    eventually_async("it tries again and again", LONG, tries).await;
    drop(dlm);
    let gave_up = async || hangs.connections() == 0;
    eventually_async("it gives up", LONG, gave_up).await;
    let before = hangs.connects();
    // Twice as long as an attempt and the pause before the next take.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert_eq!(hangs.connects(), before);
}

#[test]
fn a_number_of_masters_that_helps_little_is_warned_of_once() {
    for (number, says) in [
        (1, Some("one master")),
        (2, Some("even number")),
        (3, None),
        (4, Some("even number")),
        (5, None),
    ] {
        let logs = Logs::capture();
        let dlm = client((0..number).map(|place| format!("redis://10.0.0.1:{}", 7000 + place)));
        let _clone = dlm.clone();
        let text = logs.text();
        assert_eq!(text.lines().count(), usize::from(says.is_some()), "{text}");
        if let Some(says) = says {
            assert!(text.contains("WARN") && text.contains(says), "{text}");
        }
    }
}

#[test]
fn a_client_outlives_the_runtime_it_was_first_used_in() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for runtime in [
        current_thread(),
        current_thread(),
        multi_thread(),
        multi_thread(),
        current_thread(),
    ] {
        runtime.block_on(async {
            let guard = dlm.try_lock("resource", TTL).await.unwrap();
            guard.extend(2 * TTL).await.unwrap();
            let again = dlm.try_lock("resource", TTL).await;
            assert!(matches!(again, Err(LockError::Taken(_))), "{again:?}");
            guard.release().await.unwrap();
            assert_eq!(dlm.shutdown(LONG).await, 0);
        });
    }
    assert!(masters.are_empty());
}

#[test]
fn a_guard_outlives_the_runtime_it_was_taken_in() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let runtime = current_thread();
    let guard = runtime.block_on(dlm.lock("resource", TTL).into_future());
    let guard = guard.unwrap();
    drop(runtime);
    assert!(guard.is_valid());
    let runtime = current_thread();
    runtime.block_on(async {
        guard.extend(2 * TTL).await.unwrap();
        assert!(guard.validity() > TTL);
        guard.release().await.unwrap();
        assert_eq!(dlm.shutdown(LONG).await, 0);
    });
    assert!(masters.are_empty());
}
