//! Masters in memory answer as real ones do: one suite runs over both. Their faults do what a test asks for.

use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Client, RedisError, Value as Reply, cmd};
use support::{Masters as RealMasters, Server, Upstream, eventually_async, unique};
use tokio::time::Instant;
use tokio_redlock::inspect::{KeyState, MasterView};
use tokio_redlock::testing::{Fault, Masters};
use tokio_redlock::{KeepAlive, LockError, LockGuard, MasterError, Redlock, Vote, redis};

const MS: Duration = Duration::from_millis(1);
const TTL: Duration = Duration::from_secs(10);

/// Long enough for servers on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(1);

const EXTEND: &str = include_str!("../../src/master/scripts/extend.lua");
const EXTEND_MANY: &str = include_str!("../../src/master/scripts/extend_many.lua");
const RELEASE: &str = include_str!("../../src/master/scripts/release.lua");
const INSPECT: &str = include_str!("../../src/master/scripts/inspect.lua");

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
        // To adopt lengthens what is ours, and sets nothing.
        &["EVALSHA", extend_hash, "1", "other", "a", "60000", "XX"],
        &["GET", "other"],
        &["EVALSHA", extend_hash, "1", "k", "a", "120000", "XX"],
        &["EVALSHA", extend_hash, "1", "k", "b", "60000", "XX"],
        &["PTTL", "k"],
        // To renew several lengthens what is ours, and sets nothing.
        &["SET", "theirs", "b"],
        &[
            "EVAL",
            EXTEND_MANY,
            "3",
            "other",
            "k",
            "theirs",
            "a",
            "60000",
            "a",
            "240000",
            "a",
            "60000",
        ],
        &["PTTL", "k"],
        &["PTTL", "theirs"],
        &["GET", "other"],
        &["EVAL", EXTEND_MANY, "1", "k", "a", "60000"],
        &["PTTL", "k"],
        &["DEL", "theirs"],
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
    fn delay(&self, master: usize, each_way: Duration);
    /// The next request with this in it is executed, and its answer lost.
    fn lose_answer(&self, master: usize, pattern: &str);
    /// Answers the next request to set a key with an error.
    fn refuse(&self, master: usize);
    /// Ends that.
    fn accept(&self, master: usize);
}

impl Fleet for Masters {
    fn client(&self) -> Redlock {
        let builder = Redlock::builder().testing(self);
        builder.request_timeout(TIMEOUT).build().unwrap()
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

    fn delay(&self, master: usize, each_way: Duration) {
        self[master].delay_requests(each_way..=each_way);
        self[master].delay_answers(each_way..=each_way);
    }

    fn lose_answer(&self, master: usize, _: &str) {
        self[master].inject(Fault::LoseAnswer);
    }

    fn refuse(&self, master: usize) {
        let text = "OOM command not allowed when used memory > 'maxmemory'.";
        self[master].inject(Fault::Error(text.into()));
    }

    fn accept(&self, _: usize) {}
}

fn limit_memory(server: &Server, bytes: u64) {
    let mut limit = cmd("CONFIG");
    limit.arg("SET").arg("maxmemory").arg(bytes);
    server.query::<()>(&limit);
}

/// Real servers, and the network to them.
impl Fleet for RealMasters {
    fn client(&self) -> Redlock {
        let builder = self.builder().request_timeout(TIMEOUT);
        builder.build().unwrap()
    }

    fn keys(&self, master: usize) -> usize {
        self[master].keys().len()
    }

    fn hang(&self, master: usize) {
        self.proxy(master).hang();
    }

    fn resume(&self, master: usize) {
        self.proxy(master).resume();
    }

    fn restart(&mut self, master: usize) {
        self[master].restart();
    }

    fn lose_key(&self, master: usize, key: &str) {
        assert!(self[master].del(key));
    }

    fn delay(&self, master: usize, each_way: Duration) {
        self.proxy(master).delay(each_way);
    }

    fn lose_answer(&self, master: usize, pattern: &str) {
        self.proxy(master)
            .cut_after_request(pattern, Upstream::Closed);
    }

    fn refuse(&self, master: usize) {
        limit_memory(&self[master], 1);
    }

    fn accept(&self, master: usize) {
        limit_memory(&self[master], 0);
    }
}

/// Waits until a lock has its key on every master, also on one that the client found hanging at first, and until all that
/// was asked about it is done: looks of the same client come behind that.
async fn held_everywhere(dlm: &Redlock, guard: &LockGuard) {
    eventually_async("a key everywhere", TTL, async || {
        let extended = guard.extend(TTL).await;
        let seen = dlm.inspect(guard.resource()).await;
        let held = |view: &MasterView| matches!(view.state, KeyState::Held { .. });
        extended.is_ok() && seen.views.iter().all(held)
    })
    .await;
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
    eventually_async("all keys are gone", TTL, free).await;

    // A lost key is set again and counts from the next extension on; two lost keys are a lost lock, though its keys
    // are back.
    let guard = one.lock(&name, TTL).await.unwrap();
    held_everywhere(&one, &guard).await;
    fleet.lose_key(0, &name);
    guard.extend(TTL).await.unwrap();
    held_everywhere(&one, &guard).await;
    fleet.lose_key(0, &name);
    fleet.lose_key(1, &name);
    assert!(guard.extend(TTL).await.is_err());
    guard.release().await.unwrap();
    assert_eq!(one.shutdown(TTL).await, 0);

    // A master that restarted has neither keys nor scripts, and is used again.
    let guard = one.lock(&name, TTL).await.unwrap();
    held_everywhere(&one, &guard).await;
    fleet.restart(2);
    assert_eq!(fleet.keys(2), 0);
    guard.extend(TTL).await.unwrap();
    guard.release().await.unwrap();
    let guard = two.lock(&name, TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(one.shutdown(TTL).await + two.shutdown(TTL).await, 0);

    // An answer that takes its time; a quorum without it does not.
    fleet.delay(0, 200 * MS);
    let start = Instant::now();
    drop(one.lock(&name, TTL).await.unwrap());
    assert!(start.elapsed() < 400 * MS);
    assert_eq!(one.shutdown(TTL).await, 0);
    fleet.delay(1, 200 * MS);
    let start = Instant::now();
    drop(one.lock(&name, TTL).await.unwrap());
    assert!(start.elapsed() >= 400 * MS);
    assert_eq!(one.shutdown(TTL).await, 0);
    fleet.delay(0, Duration::ZERO);
    fleet.delay(1, Duration::ZERO);

    // A lost answer is no vote, and what was executed is undone.
    let name = unique("resource");
    fleet.lose_answer(0, &name);
    fleet.lose_answer(1, &name);
    let Err(LockError::Unreachable(attempts)) = one.try_lock(&name, TTL).await else {
        panic!("two answers of three were lost");
    };
    let lost = |vote: &Vote| matches!(vote, Vote::Failed(MasterError::Disconnected(_)));
    let lost = attempts.ballots.iter().filter(|ballot| lost(&ballot.vote));
    assert_eq!(lost.count(), 2);
    assert_eq!(one.shutdown(TTL).await, 0);
    assert!((0..3).all(|master| fleet.keys(master) == 0));

    // Nor is an error.
    fleet.refuse(0);
    fleet.refuse(1);
    let Err(LockError::Unreachable(attempts)) = one.try_lock(&name, TTL).await else {
        panic!("two masters of three have no memory left");
    };
    let refused = |vote: &Vote| matches!(vote, Vote::Failed(MasterError::Server(error)) if error.code() == Some("OOM"));
    let refused = attempts
        .ballots
        .iter()
        .filter(|ballot| refused(&ballot.vote));
    assert_eq!(refused.count(), 2);
    fleet.accept(0);
    fleet.accept(1);
    one.lock(&name, TTL).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn locks_live_on_real_masters() {
    live(RealMasters::behind_proxies(3)).await;
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
    // Each request for a key waits for the answer to the one before.
    tokio::time::sleep(MS).await;
    assert!(masters[0].keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_lost_is_not_executed() {
    let masters = Masters::new(3);
    masters[0].inject(Fault::LoseRequest);
    let guard = masters.client().lock("r", TTL).await.unwrap();
    assert!(masters[0].keys().is_empty());
    assert_eq!(masters[1].keys(), [b"r"]);
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn keys_live_by_the_clock_of_their_master() {
    let masters = Masters::new(3);
    masters[0].set_clock_rate(2.0);
    masters[1].set_clock_rate(0.5);
    masters.client().lock("r", TTL).await.unwrap().leak();
    for (after, left) in [(4, 3), (2, 2), (5, 1), (10, 0)] {
        tokio::time::sleep(after * Duration::from_secs(1)).await;
        let holding = masters.iter().filter(|master| !master.keys().is_empty());
        assert_eq!(holding.count(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_master_that_is_down_refuses_and_comes_back_empty() {
    let masters = Masters::new(3);
    let dlm = masters.client();
    dlm.lock("r", TTL).await.unwrap().leak();
    masters[0].stop();
    masters[1].stop();
    let denied = dlm.try_lock("s", TTL).await;
    assert!(matches!(denied, Err(LockError::Unreachable(_))));
    masters[0].restart();
    masters[1].restart();
    // Within the ttl: this is the second holder.
    assert!(dlm.try_lock("r", TTL).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_values() {
    let value = async |seed| {
        let masters = Masters::with_seed(3, seed);
        let guard = masters.client().lock("r", TTL).await.unwrap();
        guard.value().to_owned()
    };
    assert_eq!(value(1).await, value(1).await);
    assert_ne!(value(1).await, value(2).await);
}

/// The test that a user writes: a service loses its lock and stops.
#[tokio::test(start_paused = true)]
async fn a_service_stops_when_its_lock_is_lost() {
    let masters = Masters::new(3);
    let request = masters.client().lock("leader", TTL);
    let service = request
        .keep_alive(KeepAlive::new())
        .run(async |_| std::future::pending::<()>().await);
    let service = tokio::spawn(service);
    tokio::time::sleep(10 * TTL).await;
    assert!(!service.is_finished());
    masters[0].hang();
    masters[1].hang();
    let hung = Instant::now();
    service.await.unwrap().unwrap_err();
    // And it has waited for the confirmation of its release.
    assert!(hung.elapsed() <= TTL + TIMEOUT);
}
