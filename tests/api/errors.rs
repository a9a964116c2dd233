//! Every error that there is, caused by real masters, and what its text says.

use std::error::Error;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use redis::{Client, RedisError, Value, cmd};
use support::{
    AnsweredBy, LONG, Logs, Masters, Proxy, Server, Servers, Upstream, eventually,
    eventually_async, free_port, unique,
};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio_redlock::{
    Ballots, ExtendError, LockError, LockFailure, LockGuard, LossReason, MasterError, Redlock,
    RedlockBuilder, ReleaseError, RetryPolicy, TtlError, Vote,
};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// For what is to time out.
const SHORT: Duration = Duration::from_millis(150);

fn master(url: impl AsRef<str>) -> RedlockBuilder {
    Redlock::builder().master(url)
}

/// A client of one master, which a busy machine does not make impatient.
fn client(url: impl AsRef<str>) -> Redlock {
    build(master(url).request_timeout(LONG))
}

fn impatient(url: impl AsRef<str>) -> Redlock {
    build(master(url).request_timeout(SHORT))
}

fn build(builder: RedlockBuilder) -> Redlock {
    builder.build().expect("a valid master")
}

/// The causes of an error, from itself down.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source()).collect()
}

fn assert_says(error: &dyn Display, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
}

/// Why the only master gave no vote.
fn cause(ballots: &Ballots) -> MasterError {
    let mut ballots = ballots.iter();
    let ballot = ballots.next().expect("a ballot");
    assert!(ballots.next().is_none());
    match &ballot.vote {
        Vote::Failed(error) => error.clone(),
        vote => panic!("{}: {vote}", ballot.master),
    }
}

/// Tries to lock where that fails, and tells why; the text names the resource, the master and the cause, and the
/// sources go down to it.
async fn lock_fails(dlm: &Redlock, address: &str, says: &str) -> MasterError {
    let resource = unique("resource");
    let attempt = dlm.try_lock(&resource, TTL).await;
    let Err(error @ LockError::Unreachable(_)) = attempt else {
        panic!("not unreachable: {attempt:?}");
    };
    assert_says(&error, &["too few masters", &resource, address, says]);
    let sources = chain(&error);
    assert!(sources[1].is::<LockFailure>(), "{sources:?}");
    assert!(sources[2].is::<MasterError>(), "{sources:?}");
    assert!(sources[2].to_string().contains(says), "{sources:?}");
    let LockError::Unreachable(attempts) = error else {
        unreachable!("matched above");
    };
    assert_eq!(attempts.resource, resource.as_bytes());
    assert_eq!(attempts.attempts, 1);
    cause(&attempts.ballots)
}

async fn extend_fails(guard: &LockGuard, says: &[&str]) -> MasterError {
    let extended = guard.extend(2 * TTL).await;
    let Err(error @ ExtendError::Unconfirmed { .. }) = extended else {
        panic!("not unconfirmed: {extended:?}");
    };
    let resource = String::from_utf8_lossy(guard.resource());
    assert_says(&error, &["too few masters", &resource]);
    assert_says(&error, says);
    let ExtendError::Unconfirmed { ballots, .. } = error else {
        unreachable!("matched above");
    };
    cause(&ballots)
}

async fn release_fails(guard: LockGuard, says: &[&str]) -> MasterError {
    let resource = String::from_utf8_lossy(guard.resource()).into_owned();
    let released = guard.release().await;
    let Err(error @ ReleaseError::Unconfirmed { .. }) = released else {
        panic!("not unconfirmed: {released:?}");
    };
    assert_says(&error, &["too few masters", &resource]);
    assert_says(&error, says);
    let ReleaseError::Unconfirmed { ballots, .. } = error else {
        unreachable!("matched above");
    };
    cause(&ballots)
}

/// Bottom of the sources: what the connection to Redis, or the operating system, said.
fn redis_error(error: &MasterError) -> &RedisError {
    let source = error.source().expect("a source");
    source.downcast_ref().expect("an error of redis")
}

#[tokio::test]
async fn a_master_that_refuses_connections_is_a_connect_error() {
    let address = format!("127.0.0.1:{}", free_port());
    let dlm = client(format!("redis://{address}"));
    let error = lock_fails(&dlm, &address, "cannot connect: Connection refused").await;
    assert!(matches!(error, MasterError::Connect(_)), "{error:?}");
    assert!(redis_error(&error).is_connection_refusal());
    assert!(redis_error(&error).source().is_some());
}

#[tokio::test]
async fn a_host_that_cannot_be_resolved_is_a_connect_error() {
    // No name server is asked about a label of more than 63 letters.
    let host = "a".repeat(64);
    let dlm = client(format!("redis://{host}:6379"));
    let error = lock_fails(&dlm, &format!("{host}:6379"), "cannot connect").await;
    assert!(matches!(error, MasterError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_socket_that_does_not_exist_is_a_connect_error() {
    let dlm = client("unix:///nonexistent/redis.sock");
    let error = lock_fails(&dlm, "/nonexistent/redis.sock", "No such file").await;
    assert!(matches!(error, MasterError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_unreachable() {
    let server = Server::start();
    let dlm = client(format!("{}/9999", server.url()));
    lock_fails(&dlm, &server.addr(), "out of range").await;
}

#[tokio::test]
async fn a_frozen_master_times_out_and_then_is_known_to_hang() {
    let server = Server::start();
    let dlm = impatient(server.url());
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    server.freeze();

    let error = lock_fails(&dlm, &server.addr(), "no answer within 150ms").await;
    assert!(matches!(error, MasterError::TimedOut(SHORT)), "{error:?}");
    let hung = async || {
        let attempt = dlm.try_lock("resource", TTL).await;
        let Err(LockError::Unreachable(attempts)) = &attempt else {
            panic!("not unreachable: {attempt:?}");
        };
        matches!(cause(&attempts.ballots), MasterError::Hung(_))
    };
    eventually_async("it is known to hang", LONG, hung).await;
    let error = lock_fails(&dlm, &server.addr(), "hangs: it has not answered for").await;
    assert!(matches!(error, MasterError::Hung(_)), "{error:?}");
    extend_fails(&guard, &[&server.addr(), "hangs"]).await;
    // A release is sent to a master that hangs too: it comes behind the SET that it undoes.
    release_fails(guard, &[&server.addr(), "no answer within 150ms"]).await;

    server.thaw();
    let back = async || dlm.try_lock("resource", TTL).await.is_ok();
    eventually_async("it is back", LONG, back).await;
}

#[tokio::test]
async fn a_master_that_hangs_from_the_beginning_times_out_and_then_is_a_connect_error() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    proxy.hang();
    let dlm = impatient(proxy.url());
    let error = lock_fails(&dlm, &proxy.addr(), "no answer within 150ms").await;
    assert!(matches!(error, MasterError::TimedOut(SHORT)), "{error:?}");
    // The wait for the connection itself ends at some time, too.
    let dlm = client(proxy.url());
    let error = lock_fails(&dlm, &proxy.addr(), "cannot connect: timed out").await;
    assert!(matches!(error, MasterError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_ends_before_the_answer_is_a_disconnected_error() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let dlm = client(proxy.url());
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();

    proxy.cut_after_request(b"\r\nSET\r\n", Upstream::Closed);
    let error = lock_fails(&dlm, &proxy.addr(), "connection lost: ").await;
    assert!(matches!(error, MasterError::Disconnected(_)), "{error:?}");
    let one = async || server.keys().len() == 1;
    eventually_async("what it left is undone", LONG, one).await;

    proxy.cut_after_request(guard.resource(), Upstream::Closed);
    let error = extend_fails(&guard, &[&proxy.addr(), "connection lost: "]).await;
    assert!(matches!(error, MasterError::Disconnected(_)), "{error:?}");
    let extended = async || guard.extend(2 * TTL).await.is_ok();
    eventually_async("there is another connection", LONG, extended).await;

    proxy.cut_after_request(guard.resource(), Upstream::Closed);
    let error = release_fails(guard, &[&proxy.addr(), "connection lost: "]).await;
    assert!(matches!(error, MasterError::Disconnected(_)), "{error:?}");
}

#[tokio::test]
async fn a_password_that_is_missing_or_wrong_is_an_auth_error() {
    let server = Server::start();
    server.query::<()>(cmd("ACL").arg(&["SETUSER", "alice", "on", ">right", "~*", "+@all"]));
    server.query::<()>(cmd("CONFIG").arg(&["SET", "requirepass", "right"]));
    let with = |user: &str| server.url().replace("//", &format!("//{user}@"));
    for (url, says) in [
        (server.url(), "NOAUTH"),
        (with(":wrong"), "authentication failed"),
        (with("alice:wrong"), "authentication failed"),
        (with("bob:right"), "authentication failed"),
    ] {
        let error = lock_fails(&client(url), &server.addr(), says).await;
        assert!(matches!(error, MasterError::Auth(_)), "{error:?}");
        assert!(error.to_string().starts_with("authentication failed: "));
        redis_error(&error);
    }
    for url in [with(":right"), with("alice:right")] {
        assert!(client(url).try_lock("resource", TTL).await.is_ok());
    }
}

#[tokio::test]
async fn a_user_that_may_not_do_what_it_takes_is_a_forbidden_error() {
    let server = Server::start();
    let users = [
        ["looker", "~*", "+@read"],
        ["elsewhere", "~elsewhere:*", "+@all"],
        ["setter", "~*", "+set"],
    ];
    for [user, keys, commands] in users {
        let rules = ["SETUSER", user, "on", ">password", keys, commands];
        server.query::<()>(cmd("ACL").arg(&rules));
    }
    let as_user = |user: &str| {
        let with = format!("//{user}:password@");
        client(server.url().replace("//", &with))
    };
    for user in ["looker", "elsewhere"] {
        let error = lock_fails(&as_user(user), &server.addr(), "forbidden: ").await;
        assert!(matches!(error, MasterError::Forbidden(_)), "{error:?}");
        redis_error(&error);
    }

    let dlm = as_user("setter");
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    let says = [&server.addr()[..], "forbidden: ", "permissions"];
    let error = extend_fails(&guard, &says).await;
    assert!(matches!(error, MasterError::Forbidden(_)), "{error:?}");
    assert!(guard.is_valid());
    let error = release_fails(guard, &says).await;
    assert!(matches!(error, MasterError::Forbidden(_)), "{error:?}");
}

#[tokio::test]
async fn a_key_of_another_type_is_taken_and_then_a_wrong_type_error() {
    let server = Server::start();
    let dlm = client(server.url());
    let push = |resource: &str| {
        server.del(resource);
        server.query::<()>(cmd("RPUSH").arg(resource).arg("item"));
    };
    let is_list = |resource: &str| {
        let length: usize = server.query(cmd("LLEN").arg(resource));
        length == 1
    };

    // To a SET NX any key is one.
    let resource = unique("resource");
    push(&resource);
    let attempt = dlm.try_lock(&resource, TTL).await;
    assert!(matches!(attempt, Err(LockError::Taken(_))), "{attempt:?}");
    assert!(is_list(&resource));

    let says = [&server.addr()[..], "in use for something", "WRONGTYPE"];
    let resource = unique("resource");
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    push(&resource);
    let error = extend_fails(&guard, &says).await;
    assert!(matches!(error, MasterError::WrongType(_)), "{error:?}");
    let error = release_fails(guard, &says).await;
    assert!(matches!(error, MasterError::WrongType(_)), "{error:?}");
    redis_error(&error);
    // There is nothing of ours, so this is the end of it.
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(is_list(&resource));
}

#[tokio::test]
async fn a_master_that_is_out_of_memory_is_a_server_error() {
    let server = Server::start();
    let dlm = client(server.url());
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    server.query::<()>(cmd("CONFIG").arg(&["SET", "maxmemory", "1"]));
    let error = lock_fails(&dlm, &server.addr(), "OOM").await;
    assert!(matches!(error, MasterError::Server(_)), "{error:?}");
    redis_error(&error);
    // It takes no memory to let go.
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_master_that_is_a_replica_is_a_server_error() {
    let server = Server::start();
    let dlm = client(server.url());
    server.query::<()>(cmd("REPLICAOF").arg(&["127.0.0.1", "1"]));
    let error = lock_fails(&dlm, &server.addr(), "read only replica").await;
    assert!(matches!(error, MasterError::Server(_)), "{error:?}");
}

#[tokio::test]
async fn a_master_that_is_loading_is_a_server_error_until_it_has_loaded() {
    let server = Arc::new(Server::start_with(&["--enable-debug-command", "yes"]));
    server.query::<()>(cmd("DEBUG").arg(&["POPULATE", "2000", "key", "2000"]));
    for (name, value) in [
        // Microseconds per key, and how often it looks whether somebody asks.
        ("key-load-delay", "1000"),
        ("loading-process-events-interval-bytes", "1024"),
        ("rdbcompression", "no"),
    ] {
        server.query::<()>(cmd("CONFIG").arg(&["SET", name, value]));
    }
    let dlm = client(server.url());
    assert!(dlm.lock(unique("resource"), TTL).await.is_ok());

    let loading = Arc::clone(&server);
    let loaded = spawn_blocking(move || drop(loading.try_query::<()>(cmd("DEBUG").arg("RELOAD"))));
    let loads = async || {
        let answer = server.try_query::<()>(&cmd("PING"));
        answer.is_err_and(|error| error.code() == Some("LOADING"))
    };
    eventually_async("it loads", LONG, loads).await;
    let error = lock_fails(&dlm, &server.addr(), "loading").await;
    assert!(matches!(error, MasterError::Server(_)), "{error:?}");
    loaded.await.unwrap();
    let patient = RetryPolicy::new().max_wait(LONG);
    let guard = dlm.lock(unique("resource"), TTL).retry(patient).await;
    guard.unwrap().release().await.unwrap();
}

/// A master that answers whatever it is asked with the same.
fn parrot(answer: Value) -> Redlock {
    let connection = AnsweredBy(move |_| std::future::ready(Ok(answer.clone())));
    build(Redlock::builder().connection(connection))
}

#[tokio::test]
async fn a_reply_that_makes_no_sense_is_a_protocol_error() {
    let dlm = parrot(Value::SimpleString("QUEUED".into()));
    let error = lock_fails(&dlm, "connection 1", "unexpected reply").await;
    assert!(matches!(error, MasterError::Protocol(_)), "{error:?}");
    assert_says(&error, &["QUEUED"]);

    // This one says yes to a SET, and nothing of use to a script.
    let dlm = parrot(Value::Okay);
    let guard = dlm.lock("resource", TTL).await.unwrap();
    let says = ["connection 1", "unexpected reply"];
    let error = extend_fails(&guard, &says).await;
    assert!(matches!(error, MasterError::Protocol(_)), "{error:?}");
    let error = release_fails(guard, &says).await;
    assert!(matches!(error, MasterError::Protocol(_)), "{error:?}");
}

#[tokio::test]
async fn a_lock_that_is_taken_is_an_error_that_names_all_masters() {
    let masters = Masters::start(3);
    let dlm = masters.client();
    let resource = unique("resource");
    let _guard = dlm.lock(&resource, TTL).await.unwrap();
    let attempt = dlm.try_lock(&resource, TTL).await;
    let Err(error @ LockError::Taken(_)) = attempt else {
        panic!("not taken: {attempt:?}");
    };
    assert_says(&error, &[&resource, "is taken", "1 attempt ", "refused"]);
    for server in &masters {
        assert_says(&error, &[&server.addr()]);
    }
    // That is no failure of anything.
    assert!(error.source().is_none());
}

#[tokio::test]
async fn a_resource_that_is_no_text_is_named_as_well_as_can_be() {
    let server = Server::start();
    let dlm = client(server.url());
    let resource = b"caf\xe9\n";
    let _guard = dlm.lock(resource, TTL).await.unwrap();
    let error = dlm.try_lock(resource, TTL).await.unwrap_err();
    assert_says(&error, &[r#""caf"#, r#"\n""#]);
}

/// The masters grant it, but the program does not come to hear of that before the lock has expired.
#[tokio::test]
async fn a_lock_that_is_won_too_late_is_an_error_that_says_so() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let connected = async || {
        drop(dlm.lock(unique("resource"), TTL).await.unwrap());
        masters.iter().all(|server| server.calls("set") > 0)
    };
    eventually_async("all connections are open", LONG, connected).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);

    let resource = unique("resource");
    let ttl = Duration::from_secs(1);
    masters.iter().for_each(Server::freeze);
    let attempt = tokio::spawn(dlm.try_lock(&resource, ttl).into_future());
    // Long enough to send the requests, which cannot be answered yet.
    tokio::time::sleep(ttl / 4).await;
    masters.iter().for_each(Server::thaw);
    // The whole program stands still from here on.
    eventually("the lock is granted", LONG, || masters.all_have(&resource));
    eventually("the lock is expired", LONG, || {
        masters.iter().all(|server| server.get(&resource).is_none())
    });
    let attempt = attempt.await.unwrap();
    let Err(error @ LockError::TooLate(_)) = attempt else {
        panic!("not too late: {attempt:?}");
    };
    assert_says(&error, &[&resource, "too late", "granted"]);
    assert_says(&error, &[&masters[0].addr(), &masters[1].addr()]);
}

/// An answer that comes after the validity would be of no use, so it is not waited for.
#[tokio::test]
async fn a_master_that_is_slower_than_the_ttl_is_not_waited_for_longer_than_that() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let dlm = client(proxy.url());
    drop(dlm.lock("the connection is open", TTL).await.unwrap());
    assert_eq!(dlm.shutdown(LONG).await, 0);

    let resource = unique("resource");
    let ttl = Duration::from_secs(1);
    proxy.delay_answers(2 * ttl);
    let attempt = dlm.try_lock(&resource, ttl).await;
    let Err(error @ LockError::Unreachable(_)) = attempt else {
        panic!("not unreachable: {attempt:?}");
    };
    assert_says(&error, &[&resource, &proxy.addr(), "no answer within"]);
    proxy.resume();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(server.keys().is_empty());

    // Less than the ttl, but more than is left of it.
    proxy.delay_answers(ttl / 2);
    let guard = dlm.try_lock(&resource, ttl).await.unwrap();
    assert!(guard.validity() < ttl / 2);
}

#[tokio::test]
async fn a_ttl_that_cannot_be_used_is_refused_before_anything_is_sent() {
    let server = Server::start();
    let dlm = client(server.url());
    for millis in 0..=2 {
        let ttl = Duration::from_millis(millis);
        let error = dlm.lock("resource", ttl).await.unwrap_err();
        let LockError::Ttl(TtlError::TooShort { ttl: shown, drift }) = error else {
            panic!("{ttl:?}: {error:?}");
        };
        assert_eq!(shown, ttl);
        assert!(drift >= Duration::from_millis(2));
        assert_says(&error, &[&format!("{ttl:?}"), "too short", "drift"]);
    }
    let error = dlm.lock("resource", Duration::MAX).await.unwrap_err();
    let LockError::Ttl(TtlError::TooLong { ttl, max }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(ttl, Duration::MAX);
    assert_says(&error, &["too long"]);
    assert_eq!(server.calls("set"), 0);

    // The next to these can be used.
    let shortest = dlm.lock("short", Duration::from_millis(3)).await;
    assert!(!matches!(shortest, Err(LockError::Ttl(_))), "{shortest:?}");
    drop(shortest);
    let guard = dlm.lock("long", max).await.unwrap();
    assert!(guard.is_valid());
    guard.extend(max).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(server.keys().is_empty());
}

#[tokio::test]
async fn a_lock_that_is_lost_is_an_error_of_extend_and_release() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resources = ["extended", "released"];
    let [extended, released] = resources.map(|resource| dlm.lock(resource, TTL));
    let [extended, released] = [extended.await.unwrap(), released.await.unwrap()];
    for server in &masters {
        for resource in resources {
            server.set(resource, "foreign");
        }
    }
    let says = ["refused", &masters[0].addr()];
    let error = extended.extend(TTL).await.unwrap_err();
    assert!(matches!(error, ExtendError::Lost { .. }), "{error:?}");
    assert_says(&error, &["\"extended\" is lost"]);
    assert_says(&error, &says);
    let error = released.release().await.unwrap_err();
    assert!(matches!(error, ReleaseError::NotHeld { .. }), "{error:?}");
    assert_says(&error, &["\"released\" was not ours"]);
    assert_says(&error, &says);

    let guard = dlm.lock("short", Duration::from_millis(50)).await.unwrap();
    eventually("it expires", LONG, || !guard.is_valid());
    let error = guard.extend(TTL).await.unwrap_err();
    let expired =
        matches!(error, ExtendError::Lost { reason, .. } if reason == LossReason::Expired);
    assert!(expired, "{error:?}");
    assert_says(&error, &["short", "lost", "validity"]);
}

/// Everything that was shown of something.
#[derive(Default)]
struct Shown(Vec<String>);

impl Shown {
    fn debug(&mut self, it: &impl Debug) {
        self.0.extend([format!("{it:?}"), format!("{it:#?}")]);
    }

    fn error(&mut self, error: &(dyn Error + 'static)) {
        for error in chain(error) {
            self.0.push(error.to_string());
            self.debug(&error);
        }
    }

    fn assert_without(&self, secrets: &[&str]) {
        for text in &self.0 {
            let secret = secrets.iter().find(|&&secret| text.contains(secret));
            assert!(secret.is_none(), "{secret:?} is in: {text}");
        }
    }
}

#[tokio::test]
async fn no_password_is_ever_shown() {
    // As it stands in a URL, and as it is.
    const SECRETS: [&str; 4] = ["Hunter2%40corp", "Hunter2", "corp", "wr0ng"];
    let server = Server::start();
    let rules = ["SETUSER", "alice", "on", ">Hunter2@corp", "~*", "+@all"];
    server.query::<()>(cmd("ACL").arg(&rules));
    let logs = Logs::capture();
    let mut shown = Shown::default();

    let with = |user: &str| server.url().replace("//", &format!("//{user}@"));
    let socket = server.unix_url();
    let right = [
        with("alice:Hunter2%40corp"),
        with("alice:Hunter2%40corp") + "/1",
        format!("{socket}?db=2&user=alice&pass=Hunter2%40corp"),
    ];
    let wrong = [
        with("alice:wr0ng"),
        with("bob:Hunter2%40corp"),
        with("alice:Hunter2%40corp").replace(&server.addr(), "127.0.0.1:1"),
        format!("{socket}?user=alice&pass=wr0ng"),
    ];
    for url in right.iter().chain(&wrong) {
        let by_client = Redlock::builder().client(Client::open(&url[..]).unwrap());
        for builder in [master(url), by_client] {
            // Where the logs are captured.
            let builder = builder.runtime(Handle::current());
            shown.debug(&builder);
            let dlm = build(builder);
            shown.debug(&dlm);
            let request = dlm.try_lock("resource", TTL);
            shown.debug(&request);
            let attempt = request.await;
            assert_eq!(attempt.is_ok(), right.contains(url), "{attempt:?}");
            match attempt {
                Ok(guard) => {
                    shown.debug(&guard);
                    guard.extend(TTL).await.unwrap();
                    guard.release().await.unwrap();
                }
                Err(error) => shown.error(&error),
            }
        }
    }
    shown.0.push(logs.text());
    shown.assert_without(&SECRETS);
    assert!(logs.text().contains(&server.addr()), "{}", logs.text());
}

#[test]
fn no_password_is_shown_of_urls_that_cannot_be_used() {
    const SECRETS: [&str; 2] = ["Hunter2", "corp"];
    let logs = Logs::capture();
    for password in [
        "Hunter2corp",
        "Hunter2@corp",
        "Hunter2/corp",
        "Hunter2%40corp",
        "Hunter2#corp",
    ] {
        for url in [
            format!("http://alice:{password}@10.0.0.1"),
            format!("redis://alice:{password}@"),
            format!("redis://:{password}@10.0.0.1:port"),
            format!("redis://:{password}@10.0.0.1/database"),
            format!("redis://:{password}@0.0.0.0"),
            format!("alice:{password}@10.0.0.1"),
            format!("unix:///run/redis.sock?db=x&pass={password}"),
            format!("redis+sock:///run/redis.sock?pass={password}"),
        ] {
            let mut shown = Shown::default();
            let builder = master(&url);
            shown.debug(&builder);
            let error = builder.build().unwrap_err();
            shown.error(&error);
            shown.assert_without(&SECRETS);
        }
    }
    assert_eq!(logs.text(), "");
}
