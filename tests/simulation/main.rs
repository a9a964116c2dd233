//! Simulation: from a seed, several clients with random programs over masters in memory under random faults, and
//! checks of what comes of it.
//!
//! Within the assumptions of the Redlock page (clock rates within the drift factor; no restart within a ttl) it
//! checks of every seed that
//!
//! - no two holders of a resource are valid at once, and no lock comes back that was over;
//! - nobody trusts a lock for longer than a quorum of masters keeps its key;
//! - once all is well, everybody gets to an end, no key is left, and no task.
//!
//! A seed that fails is printed with its history, and `REDLOCK_SEED=n` runs it alone and again.
//! `REDLOCK_SEEDS=n` runs so many.

#![cfg(feature = "test-util")]

mod client;
mod history;
mod nemesis;

use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::runtime::{self, Handle};
use tokio::time::{sleep, timeout};

use self::client::Client;
use self::history::{Counts, History};
use self::nemesis::{FaultModel, Nemesis};
use tokio_redlock::Redlock;
use tokio_redlock::testing::Masters;

/// As many as CI can run in a minute, and then some.
const SEEDS: u64 = 10_000;

/// Nobody waits for as long as this once all is well.
const FOR_EVER: Duration = Duration::from_secs(600);

/// What came of a seed.
struct Outcome {
    violation: Option<String>,
    history: History,
}

/// Runs one seed. The same seed takes the same course.
fn simulate(seed: u64, model: FaultModel, detailed: bool) -> Outcome {
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    runtime.block_on(async {
        let mut rng = StdRng::seed_from_u64(seed);
        let masters = Masters::with_seed(
            *[3, 3, 5].get(rng.random_range(0..3)).expect("one of three"),
            rng.next_u64(),
        );
        let history = History::new(&masters, detailed);
        run(&mut rng, model, &masters, &history).await;
        let violation = history.violation();
        Outcome { violation, history }
    })
}

async fn run(rng: &mut StdRng, model: FaultModel, masters: &Masters, history: &History) {
    let longest_ttl = Duration::from_millis([500, 2_000, 10_000][rng.random_range(0..3)]);
    let request_timeout = Duration::from_millis(rng.random_range(20..300));
    let mut programs = Vec::new();
    let clients: Vec<Redlock> = (0..rng.random_range(2..=3))
        .map(|_| {
            let builder = Redlock::builder().testing(masters);
            let client = builder.request_timeout(request_timeout).build();
            client.expect("the options are in range")
        })
        .collect();
    for dlm in &clients {
        for _ in 0..rng.random_range(1..=2) {
            let (name, seed) = (programs.len(), rng.next_u64());
            let client = Client::new(name, dlm.clone(), history, seed, longest_ttl);
            programs.push(tokio::spawn(client.run()));
        }
    }
    let nemesis = Nemesis::new(model, masters, history, rng.next_u64(), longest_ttl);
    nemesis.run().await;
    match timeout(FOR_EVER, join_all(programs)).await {
        Ok(ends) if ends.iter().all(Result::is_ok) => {}
        Ok(_) => return history.violate("a client panicked"),
        Err(_) => return history.violate("somebody waits for ever"),
    }
    for client in clients {
        if client.shutdown(FOR_EVER).await > 0 {
            history.violate("a release was not confirmed");
        }
    }
    // A key is given up when its ttl is over, and on a master that hung for longer its SET may only come then.
    sleep(nemesis::LONGEST_HANG).await;
    if history.counts().leaked > 0 {
        // What was leaked and not taken over is there for its ttl.
        sleep(longest_ttl.div_f64(nemesis::SLOWEST)).await;
    }
    if masters.iter().any(|master| !master.keys().is_empty()) {
        history.violate("a key is left");
    }
    // As long as a connection is looked after that nobody wants.
    sleep(Duration::from_secs(30)).await;
    if Handle::current().metrics().num_alive_tasks() > 0 {
        history.violate("a task is left");
    }
}

/// Runs seeds on all processors until one of them violates something; the first such seed, and what there was.
fn search(model: FaultModel, seeds: u64) -> (Option<u64>, Counts) {
    let (next, found) = (AtomicU64::new(0), AtomicBool::new(false));
    let worst = Mutex::new((None, Counts::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !found.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let outcome = simulate(seed, model, false);
                    let mut worst = worst.lock().expect("no simulation panics");
                    worst.1 += outcome.history.counts();
                    if outcome.violation.is_some() {
                        found.store(true, Ordering::Relaxed);
                        worst.0 = Some(worst.0.map_or(seed, |worst: u64| worst.min(seed)));
                    }
                }
            });
        }
    });
    worst.into_inner().expect("no simulation panics")
}

/// Runs a seed with all its details, and tells what it violates.
fn replay(seed: u64, model: FaultModel) -> (Option<String>, String) {
    let outcome = simulate(seed, model, true);
    (outcome.violation, outcome.history.text())
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

#[test]
fn within_the_assumptions_nothing_is_violated() {
    let found = match number("REDLOCK_SEED") {
        Some(seed) => Some(seed),
        None => {
            let seeds = number("REDLOCK_SEEDS").unwrap_or(SEEDS);
            let (found, counts) = search(FaultModel::Assumed, seeds);
            println!("{seeds} seeds: {counts:?}");
            found
        }
    };
    let Some(seed) = found else { return };
    let (violation, history) = replay(seed, FaultModel::Assumed);
    println!("{history}");
    match violation {
        Some(violation) => panic!("REDLOCK_SEED={seed}: {violation}"),
        None if number("REDLOCK_SEED").is_none() => panic!("REDLOCK_SEED={seed} took two courses"),
        None => {}
    }
}

#[test]
fn a_seed_takes_the_same_course_every_time() {
    for seed in 0..500 {
        let course = || replay(seed, FaultModel::Assumed).1;
        let first = course();
        assert!(first.contains("all is well"));
        assert!(first == course(), "seed {seed} took two courses");
    }
}

#[test]
fn outside_the_assumptions_there_are_two_holders() {
    for model in [FaultModel::Amnesia, FaultModel::FastClock] {
        let two = (0..SEEDS).find_map(|seed| {
            let violation = simulate(seed, model, false).violation?;
            violation.starts_with("two holders").then_some(seed)
        });
        println!("{model:?}: seed {two:?}");
        assert!(two.is_some(), "{model:?} does no harm");
    }
}
