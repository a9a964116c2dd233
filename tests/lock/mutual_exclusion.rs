//! Never two holders: many tasks of two clients, each in a runtime of its own, want one resource, while masters are
//! killed, restarted, frozen and thawed. A witness that stands by is shown to catch a lock that is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures::future::join_all;
use support::{Masters, Server, unique};
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio_redlock::{LockError, Redlock, ReleaseError, RetryPolicy};

/// How long the clients compete.
const TIME: Duration = Duration::from_secs(6);

/// Long against every hold, however busy the machine: no holder ever outstays it.
const TTL: Duration = Duration::from_secs(60);

const TASKS: u64 = 8;

/// Sees who enters and leaves what the lock protects, at the moment it happens.
#[derive(Debug, Default)]
struct Witness {
    /// Who is inside; 0 for nobody.
    inside: AtomicU64,
    rounds: AtomicU64,
    /// How often somebody was inside beside another.
    collisions: AtomicU64,
}

impl Witness {
    fn enter(&self, who: u64) {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        let others = self.inside.swap(who, Ordering::SeqCst);
        self.collide_unless(others == 0);
    }

    fn leave(&self, who: u64) {
        let still = self
            .inside
            .compare_exchange(who, 0, Ordering::SeqCst, Ordering::SeqCst);
        self.collide_unless(still.is_ok());
    }

    fn collide_unless(&self, alone: bool) {
        if !alone {
            self.collisions.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What all who compete share.
#[derive(Debug)]
struct Race {
    resource: String,
    witness: Witness,
    /// How often each client held the lock.
    holds: [AtomicU32; 2],
    over: AtomicBool,
}

impl Race {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            resource: unique("lock"),
            witness: Witness::default(),
            holds: Default::default(),
            over: AtomicBool::new(false),
        })
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn collisions(&self) -> u64 {
        self.witness.collisions.load(Ordering::SeqCst)
    }

    /// Takes the lock again and again until the race is over.
    async fn run(&self, client: usize, dlm: Redlock, who: u64) {
        // Rare enough for so many tasks that attempts seldom take each other's votes.
        let (shortest, longest) = (Duration::from_millis(10), Duration::from_millis(100));
        let policy = RetryPolicy::new()
            .delay(shortest, longest)
            .max_wait(Duration::from_millis(500));
        let mut round = who;
        while !self.is_over() {
            let guard = match dlm.lock(&self.resource, TTL).retry(policy.clone()).await {
                Ok(guard) => guard,
                Err(LockError::Taken(_) | LockError::Unreachable(_)) => continue,
                Err(other) => panic!("{other:?}"),
            };
            assert!(guard.is_valid());
            self.witness.enter(who);
            for _ in 0..rand::random_range(1..20) {
                yield_now().await;
            }
            self.witness.leave(who);
            assert!(guard.is_valid(), "too slow a machine to show anything");
            self.holds[client].fetch_add(1, Ordering::Relaxed);
            round += 1;
            if round.is_multiple_of(2) {
                drop(guard);
            } else if let Err(ReleaseError::NotHeld { .. }) = guard.release().await {
                panic!("it was lost without a word");
            }
        }
    }
}

/// A client with many tasks, in a runtime of its own.
fn start_client(race: &Arc<Race>, client: usize, urls: Vec<String>) -> JoinHandle<()> {
    let race = Arc::clone(race);
    thread::spawn(move || {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(2).enable_all();
        let runtime = builder.build().expect("a runtime");
        runtime.block_on(async {
            let dlm = Redlock::new(urls).expect("valid URLs");
            let tasks = (0..TASKS).map(|task| {
                let (race, dlm) = (Arc::clone(&race), dlm.clone());
                let who = 1 + TASKS * client as u64 + task;
                tokio::spawn(async move { race.run(client, dlm, who).await })
            });
            for task in join_all(tasks.collect::<Vec<_>>()).await {
                task.expect("no task panics");
            }
        });
    })
}

/// Five masters, the first of which remembers its keys over a restart: a master that forgot them could grant the
/// lock again, which is no fault of the client's.
fn masters() -> Masters {
    let first = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut masters = vec![first];
    masters.extend(Server::many(4));
    Masters::from(masters)
}

/// Kills and restarts the first master, freezes and thaws the last, at times both at once; never a majority.
fn make_trouble(masters: &mut [Server], pause: impl Fn(u64) -> bool) -> u32 {
    let mut rounds = 0;
    while pause(150) {
        masters[4].freeze();
        pause(100);
        masters[0].kill();
        pause(150);
        masters[0].restart();
        // Long enough for the client to take it for hung.
        pause(500);
        masters[0].kill();
        pause(50);
        masters[4].thaw();
        pause(50);
        masters[0].restart();
        rounds += 1;
    }
    rounds
}

/// Two clients compete, each with the masters it is told, until one collision was seen or the time is up. Returns
/// how often there was trouble.
fn compete(race: &Arc<Race>, sets: [&[usize]; 2]) -> u32 {
    let mut masters = masters();
    let urls = masters.urls();
    let clients = [0, 1].map(|client| {
        let set = sets[client].iter().map(|&place| urls[place].clone());
        start_client(race, client, set.collect())
    });
    let start = Instant::now();
    let trouble = make_trouble(&mut masters, |millis| {
        let until = Instant::now() + Duration::from_millis(millis);
        let goes_on = || race.collisions() == 0 && start.elapsed() < TIME;
        while goes_on() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        goes_on()
    });
    race.over.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().expect("the client comes to its end");
    }
    trouble
}

#[test]
fn there_are_never_two_holders() {
    let race = Race::new();
    let all = [0, 1, 2, 3, 4];
    let trouble = compete(&race, [&all, &all]);
    let rounds = race.witness.rounds.load(Ordering::SeqCst);
    println!("{rounds} rounds, by client {:?}", race.holds);
    assert_eq!(race.collisions(), 0, "in {rounds} rounds");
    assert!(rounds > 200, "only {rounds} rounds");
    for holds in &race.holds {
        let holds = holds.load(Ordering::Relaxed);
        assert!(holds > 20, "a client held it {holds} times only");
    }
    assert!(trouble >= 2);
}

/// The same with clients that do not ask the same masters.
fn is_caught(sets: [&[usize]; 2]) {
    let race = Race::new();
    compete(&race, sets);
    assert!(race.collisions() > 0, "not caught");
}

#[test]
fn the_witness_catches_clients_that_ask_one_master_each() {
    is_caught([&[1], &[2]]);
}

#[test]
fn the_witness_catches_clients_whose_quorums_need_not_meet() {
    is_caught([&[0, 1, 2], &[2, 3, 4]]);
}
