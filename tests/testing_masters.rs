//! Masters in memory behave as real ones: one suite runs over both. And they do what they are told.
#![cfg(feature = "test-util")]

mod support;

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Client, RedisError, Value as Reply, cmd};
use support::{Server, unique};
use tokio_redlock::testing::Masters;
use tokio_redlock::{LockError, Redlock, redis};

const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(10);

const EXTEND: &str = include_str!("../src/master/extend.lua");
const RELEASE: &str = include_str!("../src/master/release.lua");
const INSPECT: &str = include_str!("../src/master/inspect.lua");

/// One command and the kind of answer to it.
async fn ask(connection: &mut impl ConnectionLike, words: &[&str]) -> String {
    let (name, args) = words.split_first().expect("a command has a name");
    let command = args.iter().fold(cmd(name), |mut command, arg| {
        command.arg(*arg);
        command
    });
    let answer = connection.req_packed_command(&command).await;
    show(answer.and_then(Reply::extract_error))
}

fn show(answer: Result<Reply, RedisError>) -> String {
    match answer {
        Err(error) => error.code().unwrap_or("no code").to_owned(),
        // A time to live is off by what has passed since.
        Ok(Reply::Int(time)) if time > 1_000 => "about a minute".to_owned(),
        Ok(Reply::Array(fields)) => fields
            .into_iter()
            .map(|field| show(Ok(field)))
            .collect::<Vec<_>>()
            .join(", "),
        Ok(Reply::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(answer) => format!("{answer:?}"),
    }
}

/// A conversation that uses all that this crate relies on.
async fn converse(mut connection: impl ConnectionLike) -> Vec<(String, String)> {
    let (hash, release) = (redis::Script::new(EXTEND), redis::Script::new(RELEASE));
    let (extend_hash, release_hash) = (hash.get_hash(), release.get_hash());
    let words: &[&[&str]] = &[
        &["PING"],
        &["GET", "k"],
        &["PTTL", "k"],
        &["SET", "k", "a", "NX", "PX", "60000"],
        &["SET", "k", "b", "NX", "PX", "60000"],
        &["set", "k", "b", "nx", "px", "60000"],
        &["GET", "k"],
        &["PTTL", "k"],
        &["EVALSHA", release_hash, "1", "k", "a"],
        &["EVAL", RELEASE, "1", "k", "b"],
        &["EVALSHA", release_hash, "1", "k", "b"],
        &["GET", "k"],
        &["EVALSHA", release_hash, "1", "k", "a"],
        &["EVALSHA", release_hash, "1", "k", "a"],
        &["GET", "k"],
        &["SCRIPT", "LOAD", EXTEND],
        &["EVALSHA", extend_hash, "1", "k", "a", "60000"],
        &["EVALSHA", extend_hash, "1", "k", "a", "10"],
        &["PTTL", "k"],
        &["EVALSHA", extend_hash, "1", "k", "b", "60000"],
        &["GET", "k"],
        &["PEXPIRE", "k", "10"],
        &["EVALSHA", extend_hash, "1", "k", "a", "60000"],
        &["PTTL", "k"],
        &["EVAL", INSPECT, "1", "k"],
        &["EVAL", INSPECT, "1", "other"],
        &["DEL", "k", "other"],
        &["DEL", "k"],
        &["PEXPIRE", "k", "1000"],
        &["SET", "k", "forever"],
        &["PTTL", "k"],
        &["EVAL", INSPECT, "1", "k"],
        &["EVALSHA", extend_hash, "1", "k", "forever", "60000"],
        &["PTTL", "k"],
        &["SET", "k", "a", "PX", "0"],
        &["SET", "k", "a", "PX", "many"],
        &["SET", "k", "a", "WRONG"],
        &["SET", "k", "short", "PX", "1"],
    ];
    let mut conversation = Vec::new();
    for words in words {
        let answer = ask(&mut connection, words).await;
        conversation.push((words.join(" "), answer));
    }
    tokio::time::sleep(20 * MS).await;
    for words in [&["GET", "k"], &["PTTL", "k"]] {
        conversation.push((words.join(" "), ask(&mut connection, words).await));
    }
    conversation
}

#[tokio::test]
async fn commands_and_scripts_answer_as_a_real_server_does() {
    let server = Server::start();
    let client = Client::open(server.url()).unwrap();
    let real = converse(client.get_multiplexed_async_connection().await.unwrap()).await;
    let simulated = converse(Masters::new(1)[0].connect()).await;
    for (real, simulated) in real.iter().zip(&simulated) {
        assert_eq!(real, simulated);
    }
    assert_eq!(real.len(), simulated.len());
}

/// Masters of either kind, and the faults that both can have.
trait Fleet {
    fn client(&self) -> Redlock;
    fn keys(&self, master: usize) -> usize;
    fn hang(&self, master: usize);
    fn resume(&self, master: usize);
    fn restart(&mut self, master: usize);
    fn lose_key(&self, master: usize, key: &str);
}

impl Fleet for Masters {
    fn client(&self) -> Redlock {
        Redlock::builder().testing(self).build().unwrap()
    }

    fn keys(&self, master: usize) -> usize {
        self[master].keys().len()
    }

    fn hang(&self, master: usize) {
        self[master].hang();
    }

    fn resume(&self, master: usize) {
        self[master].resume();
    }

    fn restart(&mut self, master: usize) {
        self[master].restart();
    }

    fn lose_key(&self, master: usize, key: &str) {
        assert!(self[master].lose_key(key));
    }
}

impl Fleet for Vec<Server> {
    fn client(&self) -> Redlock {
        Redlock::new(self.iter().map(Server::url)).unwrap()
    }

    fn keys(&self, master: usize) -> usize {
        self[master].keys().len()
    }

    fn hang(&self, master: usize) {
        self[master].freeze();
    }

    fn resume(&self, master: usize) {
        self[master].thaw();
    }

    fn restart(&mut self, master: usize) {
        self[master].restart();
    }

    fn lose_key(&self, master: usize, key: &str) {
        assert!(self[master].del(key));
    }
}

/// The life of some locks, over masters of either kind.
async fn live(mut fleet: impl Fleet) {
    let (one, two) = (fleet.client(), fleet.client());
    let name = unique("resource");

    // Exclusion and release.
    let guard = one.try_lock(&name, TTL).await.unwrap();
    assert!(matches!(
        two.try_lock(&name, TTL).await,
        Err(LockError::Taken(_))
    ));
    guard.extend(2 * TTL).await.unwrap();
    assert!(guard.validity() > TTL);
    guard.release().await.unwrap();
    assert_eq!(one.shutdown(TTL).await + two.shutdown(TTL).await, 0);
    assert!((0..3).all(|master| fleet.keys(master) == 0));

    // A quorum is enough, and the third comes along later.
    fleet.hang(2);
    let guard = one.try_lock(&name, TTL).await.unwrap();
    assert!(matches!(
        two.try_lock(&name, TTL).await,
        Err(LockError::Taken(_))
    ));
    fleet.hang(1);
    assert!(guard.extend(TTL).await.is_err());
    assert!(guard.is_valid());
    assert!(matches!(
        two.try_lock(unique("other"), TTL).await,
        Err(LockError::Unreachable(_))
    ));
    fleet.resume(1);
    fleet.resume(2);
    drop(guard);
    assert_eq!(one.shutdown(TTL).await + two.shutdown(TTL).await, 0);
    let free = async || (0..3).all(|master| fleet.keys(master) == 0);
    support::eventually_async("all keys are gone", TTL, free).await;

    // A lost key is set again and counts from the next extension on; two lost keys are a lost lock, though its keys
    // are back.
    let guard = one.lock(&name, TTL).await.unwrap();
    fleet.lose_key(0, &name);
    guard.extend(TTL).await.unwrap();
    support::eventually_async("the key is set again", TTL, async || fleet.keys(0) == 1).await;
    guard.extend(TTL).await.unwrap();
    fleet.lose_key(0, &name);
    fleet.lose_key(1, &name);
    assert!(guard.extend(TTL).await.is_err());
    guard.release().await.unwrap();
    assert_eq!(one.shutdown(TTL).await, 0);

    // A master that restarted has neither keys nor scripts, and is used again.
    let guard = one.lock(&name, TTL).await.unwrap();
    support::eventually_async("a key everywhere", TTL, async || {
        (0..3).all(|master| fleet.keys(master) == 1)
    })
    .await;
    fleet.restart(2);
    assert_eq!(fleet.keys(2), 0);
    guard.extend(TTL).await.unwrap();
    guard.release().await.unwrap();
    let guard = two.lock(&name, TTL).await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn locks_live_on_real_masters() {
    live(Server::start_n(3)).await;
}

#[tokio::test]
async fn locks_live_on_masters_in_memory() {
    live(Masters::new(3)).await;
}

/// A connection that hangs for longer than the ttl still has the SET in it, which is executed when it goes on.
#[tokio::test(start_paused = true)]
async fn what_a_hung_connection_keeps_is_undone_behind_it() {
    let masters = Masters::new(3);
    let dlm = masters.client();
    // From now on all masters know the scripts.
    let guard = dlm.lock("warm", TTL).await.unwrap();
    guard.extend(TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(TTL).await, 0);
    masters[0].hang();
    let guard = dlm.lock("r", TTL).await.unwrap();
    // It is asked again and does not answer: it hangs.
    for _ in 0..4 {
        tokio::time::sleep(400 * MS).await;
        guard.extend(TTL).await.unwrap();
    }
    guard.release().await.unwrap();
    tokio::time::sleep(2 * TTL).await;
    masters[0].resume();
    assert!(masters[0].keys().is_empty());
}
