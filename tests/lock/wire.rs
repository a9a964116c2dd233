//! The commands that the client sends to a master, and the few rights that they need.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures::future::join_all;
use redis::cmd;
use support::{LONG, Masters, Server, Servers, eventually_async, unique};
use tokio::task::yield_now;
use tokio_redlock::{
    ExtendError, LockError, LockFailure, LockGuard, MasterError, Redlock, ReleaseError,
    RetryPolicy, Vote,
};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// Stands for the hash of a script.
const HASH: &str = "<hash>";

/// A command that a server has executed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Executed {
    ForClient(Vec<String>),
    ForScript(Vec<String>),
}

use Executed::{ForClient, ForScript};

/// Everything that a server executes from here on.
struct Monitor<'a> {
    server: &'a Server,
    lines: BufReader<UnixStream>,
}

impl<'a> Monitor<'a> {
    fn start(server: &'a Server) -> Self {
        let mut socket = UnixStream::connect(server.socket_path()).expect("the server listens");
        socket
            .set_read_timeout(Some(LONG))
            .expect("a valid timeout");
        socket.write_all(b"MONITOR\r\n").expect("the server reads");
        let mut monitor = Self {
            server,
            lines: BufReader::new(socket),
        };
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    /// What it has executed since this was last asked, other than by looks and monitors, which use the Unix socket.
    fn executed(&mut self) -> Vec<Executed> {
        let end = unique("end");
        self.server.query::<()>(cmd("ECHO").arg(&end));
        let mut executed = Vec::new();
        loop {
            let line = self.line();
            // +1700000000.123456 [0 127.0.0.1:50000] "GET" "key"
            let (_, line) = line.split_once(" [").expect("a source");
            let (source, command) = line.split_once("] ").expect("a command");
            let (_, source) = source.split_once(' ').expect("a database and a source");
            if source == "lua" {
                executed.push(ForScript(words(command)));
            } else if !source.starts_with("unix:") {
                executed.push(ForClient(hash_replaced(words(command))));
            } else if words(command)[1..] == [&*end] {
                return executed;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the server writes");
        line.trim_end().to_owned()
    }
}

/// The words of a command, which stand there quoted and escaped.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut characters = command.chars();
    while characters.next() == Some('"') {
        let mut word = String::new();
        loop {
            match characters.next().expect("a quote at the end") {
                '"' => break,
                '\\' => word.extend(['\\', characters.next().expect("an escaped character")]),
                character => word.push(character),
            }
        }
        words.push(word);
        // The space between.
        characters.next();
    }
    words
}

fn hash_replaced(mut command: Vec<String>) -> Vec<String> {
    if command[0] == "EVALSHA" {
        assert!(is_hexadecimal(&command[1]), "{command:?}");
        command[1] = HASH.to_owned();
    }
    command
}

fn by_client(command: &[&str]) -> Executed {
    ForClient(command.iter().map(ToString::to_string).collect())
}

fn by_script(command: &[&str]) -> Executed {
    ForScript(command.iter().map(ToString::to_string).collect())
}

/// A compare-and-delete, as a server executes it: by a plain command if it has one, otherwise by a script.
fn compare_and_delete(server: &Server, key: &str, value: &str, is_ours: bool) -> Vec<Executed> {
    if has_command(server, "DELIFEQ") {
        vec![by_client(&["DELIFEQ", key, value])]
    } else if has_command(server, "DELEX") {
        vec![by_client(&["DELEX", key, "IFEQ", value])]
    } else {
        let mut script = vec![
            by_client(&["EVALSHA", HASH, "1", key, value]),
            by_script(&["GET", key]),
        ];
        script.extend(is_ours.then(|| by_script(&["DEL", key])));
        script
    }
}

fn has_command(server: &Server, name: &str) -> bool {
    let [info]: [redis::Value; 1] = server.query(cmd("COMMAND").arg("INFO").arg(name));
    info != redis::Value::Nil
}

/// What a connection begins with.
fn is_setup(executed: &Executed) -> bool {
    let ForClient(command) = executed else {
        return false;
    };
    ["AUTH", "CLIENT", "HELLO", "INFO", "SCRIPT", "SELECT"].contains(&&*command[0])
}

fn is_hexadecimal(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_value(text: &str) -> bool {
    text.len() == 27 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A client that a busy machine does not make impatient.
fn patient(urls: impl IntoIterator<Item = String>) -> Redlock {
    let builder = Redlock::builder().masters(urls).request_timeout(LONG);
    builder.build().expect("different masters")
}

/// One master with a client that is connected to it.
struct Watched<'a> {
    monitor: Monitor<'a>,
    dlm: Redlock,
}

impl<'a> Watched<'a> {
    async fn connect(server: &'a Server) -> Self {
        let dlm = patient([server.url()]);
        release(dlm.try_lock(unique("first"), TTL).await.unwrap()).await;
        let monitor = Monitor::start(server);
        Self { monitor, dlm }
    }

    fn executed(&mut self) -> Vec<Executed> {
        self.monitor.executed()
    }
}

async fn release(guard: LockGuard) {
    guard.release().await.expect("ours");
}

#[tokio::test]
async fn a_cycle_is_one_set_and_one_compare_and_delete_on_each_master() {
    let masters = Masters::start(3);
    let builder = masters.builder().key_prefix("lock:");
    let dlm = builder.request_timeout(LONG).build().unwrap();
    let mut monitors: Vec<_> = masters.iter().map(Monitor::start).collect();
    drop(dlm.try_lock(unique("first"), TTL).await.unwrap());
    let connected = async || masters.iter().all(|server| server.connected_clients() == 2);
    eventually_async("all are connected, and monitored", LONG, connected).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for monitor in &mut monitors {
        let executed = monitor.executed();
        let setup = executed
            .iter()
            .take_while(|executed| is_setup(executed))
            .count();
        assert!((1..=10).contains(&setup), "{executed:?}");
        assert!(!executed[setup..].iter().any(is_setup), "{executed:?}");
    }

    for _ in 0..20 {
        let resource = unique("resource");
        let key = &*format!("lock:{resource}");
        let ttl = Duration::from_micros(60_000_999);
        let guard = dlm.lock(&resource, ttl).await.unwrap();
        let value = guard.value().to_owned();
        assert!(is_value(&value), "{value}");
        release(guard).await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
        let mut expected = vec![by_client(&["SET", key, &value, "NX", "PX", "60000"])];
        expected.extend(compare_and_delete(&masters[0], key, &value, true));
        for monitor in &mut monitors {
            assert_eq!(monitor.executed(), expected);
        }
    }
}

#[tokio::test]
async fn an_extension_is_one_script_that_lengthens_only_what_is_shorter() {
    let server = Server::start();
    let mut watched = Watched::connect(&server).await;
    let key = &*unique("resource");
    let guard = watched.dlm.try_lock(key, TTL).await.unwrap();
    let value = guard.value();
    watched.executed();

    guard.extend(2 * TTL).await.unwrap();
    let longer = [
        by_client(&["EVALSHA", HASH, "1", key, value, "120000"]),
        by_script(&["GET", key]),
        by_script(&["PTTL", key]),
        by_script(&["PEXPIRE", key, "120000"]),
    ];
    assert_eq!(watched.executed(), longer);

    guard.extend(TTL).await.unwrap();
    let shorter = [
        by_client(&["EVALSHA", HASH, "1", key, value, "60000"]),
        by_script(&["GET", key]),
        by_script(&["PTTL", key]),
    ];
    assert_eq!(watched.executed(), shorter);

    server.del(key);
    assert!(matches!(
        guard.extend(TTL).await,
        Err(ExtendError::Lost { .. })
    ));
    let missing = [
        by_client(&["EVALSHA", HASH, "1", key, value, "60000"]),
        by_script(&["GET", key]),
        by_script(&["SET", key, value, "PX", "60000"]),
    ];
    assert_eq!(watched.executed(), missing);
}

/// No text.
const FOREIGN: &[u8] = &[0xff, 0xfe, 0x00];

#[tokio::test]
async fn what_belongs_to_others_is_only_looked_at() {
    let server = Server::start();
    let mut watched = Watched::connect(&server).await;
    let key = &*unique("resource");
    let overtaken = async |watched: &mut Watched<'_>| {
        let guard = watched.dlm.try_lock(key, TTL).await.unwrap();
        server.set(key, FOREIGN);
        watched.executed();
        guard
    };

    let guard = overtaken(&mut watched).await;
    let value = guard.value().to_owned();
    let extended = guard.extend(TTL).await;
    assert!(
        matches!(extended, Err(ExtendError::Lost { .. })),
        "{extended:?}"
    );
    let look = [
        by_client(&["EVALSHA", HASH, "1", key, &value, "60000"]),
        by_script(&["GET", key]),
    ];
    assert_eq!(watched.executed(), look);
    drop(guard);
    server.del(key);

    let guard = overtaken(&mut watched).await;
    let value = guard.value().to_owned();
    let released = guard.release().await;
    assert!(
        matches!(released, Err(ReleaseError::NotHeld { .. })),
        "{released:?}"
    );
    let look = compare_and_delete(&server, key, &value, false);
    assert_eq!(watched.executed(), look);

    let taken = watched.dlm.try_lock(key, TTL).await;
    assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
    assert_eq!(watched.dlm.shutdown(LONG).await, 0);
    // A refused SET leaves nothing that would have to be undone.
    let executed = watched.executed();
    let [ForClient(set)] = &executed[..] else {
        panic!("{executed:?}");
    };
    assert_eq!(set[..2], ["SET", key]);
    assert_eq!(set[3..], ["NX", "PX", "60000"]);
    assert_eq!(server.get(key).as_deref(), Some(FOREIGN));
    assert_eq!(server.pttl(key), -1);
}

#[tokio::test]
async fn a_release_after_a_refused_extension_still_says_that_the_lock_was_lost() {
    let server = Server::start();
    let dlm = patient([server.url()]);
    let key = unique("resource");
    let guard = dlm.try_lock(&key, TTL).await.unwrap();
    server.set(&key, FOREIGN);
    let extended = guard.extend(TTL).await;
    assert!(
        matches!(extended, Err(ExtendError::Lost { .. })),
        "{extended:?}"
    );
    let released = guard.release().await;
    assert!(
        matches!(released, Err(ReleaseError::NotHeld { .. })),
        "{released:?}"
    );
}

#[tokio::test]
async fn a_script_is_sent_as_text_where_it_is_not_known() {
    let server = Server::start();
    let mut watched = Watched::connect(&server).await;
    let key = &*unique("resource");
    let guard = watched.dlm.try_lock(key, TTL).await.unwrap();
    let value = guard.value().to_owned();
    server.query::<()>(cmd("SCRIPT").arg("FLUSH"));
    watched.executed();

    guard.extend(2 * TTL).await.unwrap();
    let mut executed = watched.executed();
    let ForClient(eval) = executed.remove(1) else {
        panic!("{executed:?}");
    };
    assert_eq!(eval[0], "EVAL");
    assert_eq!(eval[2..], ["1", key, &value, "120000"]);
    let others = [
        by_client(&["EVALSHA", HASH, "1", key, &value, "120000"]),
        by_script(&["GET", key]),
        by_script(&["PTTL", key]),
        by_script(&["PEXPIRE", key, "120000"]),
    ];
    assert_eq!(executed, others);
}

#[tokio::test]
async fn no_value_is_sent_twice() {
    let masters = Masters::start(3);
    let mut monitors: Vec<_> = masters.iter().map(Monitor::start).collect();
    let resource = unique("resource");
    let policy = RetryPolicy::new()
        .delay(Duration::ZERO, Duration::from_millis(10))
        .max_wait(LONG);
    let compete = async || {
        let dlm = masters.patient_client();
        for _ in 0..10 {
            let guard = dlm.lock(&resource, TTL).retry(policy.clone()).await;
            yield_now().await;
            release(guard.expect("sooner or later")).await;
        }
    };
    join_all((0..6).map(|_| compete())).await;
    for monitor in &mut monitors {
        let executed = monitor.executed();
        let values = executed.iter().filter_map(|executed| match executed {
            ForClient(command) if command[0] == "SET" => Some(&command[2]),
            _ => None,
        });
        let values: Vec<_> = values.collect();
        let different: HashSet<_> = values.iter().collect();
        assert_eq!(different.len(), values.len());
        assert!(values.len() > 60, "there was no retry: {}", values.len());
    }
}

/// What a user has to be allowed at least.
const LEAST: &str = "on >secret ~lock:* -@all +set +get +del +pttl +pexpire +eval +evalsha +ping";

/// Three masters that let a user do no more than that.
fn strict() -> (Vec<Server>, Redlock) {
    let args: Vec<_> = ["--user", "locker"]
        .into_iter()
        .chain(LEAST.split(' '))
        .collect();
    let masters: Vec<_> = (0..3).map(|_| Server::start_with(&args)).collect();
    let dlm = patient(masters.iter().map(url_of_locker));
    (masters, dlm)
}

fn url_of_locker(server: &Server) -> String {
    format!("redis://locker:secret@{}", server.addr())
}

#[tokio::test]
async fn a_user_who_is_allowed_the_least_can_do_everything() {
    let (mut masters, dlm) = strict();
    for restarted in [false, true] {
        if restarted {
            masters.iter_mut().for_each(Server::restart);
        }
        for _ in 0..3 {
            let resource = unique("lock:resource");
            let guard = dlm.lock(&resource, TTL).await.expect("granted");
            let taken = dlm.try_lock(&resource, TTL).await;
            assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
            guard.extend(2 * TTL).await.expect("extended");
            release(guard).await;
            drop(dlm.try_lock(&resource, TTL).await.expect("released"));
            assert_eq!(dlm.shutdown(LONG).await, 0);
        }
    }
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_key_that_the_user_may_not_use_is_an_error_that_says_so() {
    let (masters, dlm) = strict();
    let result = dlm.try_lock(unique("resource"), TTL).await;
    let Err(LockError::Unreachable(LockFailure { ballots, .. })) = result else {
        panic!("{result:?}");
    };
    let votes = || ballots.iter().map(|ballot| &ballot.vote);
    let forbids = |vote: &&Vote| matches!(vote, Vote::Failed(MasterError::Forbidden(_)));
    assert!(votes().filter(forbids).count() >= 2, "{ballots}");
    assert!(
        votes().all(|vote| forbids(&vote) || matches!(vote, Vote::NotNeeded)),
        "{ballots}"
    );
    assert!(masters.are_empty());
}

#[tokio::test]
async fn a_set_that_was_forbidden_leaves_no_release_to_confirm() {
    let (masters, _) = strict();
    let dlm = patient([url_of_locker(&masters[0])]);
    assert!(dlm.try_lock(unique("resource"), TTL).await.is_err());
    assert_eq!(dlm.shutdown(LONG).await, 0);
}
