//! Dead, hung or distant masters: a minority of them does not slow a call down, and with a majority of them a call
//! fails in time.

use std::time::{Duration, Instant};

use futures::future::join_all;
use support::{LONG, Masters, Proxy, Server, Servers, eventually_async, unique};
use tokio::time::sleep;
use tokio_redlock::{LockError, LockFailure, MasterError, Redlock, Vote};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// What it costs to wait for a master that does not answer. Long enough for the others on a busy machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// How far away a distant master is.
const DISTANCE: Duration = Duration::from_millis(50);

/// Enough for a median, and at this pace, for a hung master to be found out on the way.
const CYCLES: usize = 80;
const PACE: Duration = Duration::from_millis(10);

/// What a busy machine may add to the time of one call.
const SLACK: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    /// Frozen anew for each cycle, so that no client can have found out.
    JustFrozen,
    Distant,
}

impl Fault {
    fn inflict(self, server: &mut Server, proxy: &Proxy) {
        match self {
            Self::Killed => server.kill(),
            Self::Frozen | Self::JustFrozen => server.freeze(),
            Self::Distant => proxy.delay(DISTANCE),
        }
    }

    fn url(self, server: &Server, proxy: &Proxy) -> String {
        match self {
            Self::Killed | Self::Frozen | Self::JustFrozen => server.url(),
            Self::Distant => proxy.url(),
        }
    }

    /// What it would take to wait for such a master.
    fn cost(self) -> Duration {
        match self {
            Self::Killed | Self::Frozen | Self::JustFrozen => REQUEST_TIMEOUT,
            Self::Distant => 2 * DISTANCE,
        }
    }
}

#[tokio::test]
async fn one_killed_master_of_five_costs_nothing() {
    costs_nothing::<1>(Fault::Killed).await;
}

#[tokio::test]
async fn one_frozen_master_of_five_costs_nothing() {
    costs_nothing::<1>(Fault::Frozen).await;
}

#[tokio::test]
async fn one_master_of_five_that_has_just_been_frozen_costs_nothing() {
    costs_nothing::<1>(Fault::JustFrozen).await;
}

#[tokio::test]
async fn one_distant_master_of_five_costs_nothing() {
    costs_nothing::<1>(Fault::Distant).await;
}

#[tokio::test]
async fn two_killed_masters_of_five_cost_nothing() {
    costs_nothing::<2>(Fault::Killed).await;
}

#[tokio::test]
async fn two_frozen_masters_of_five_cost_nothing() {
    costs_nothing::<2>(Fault::Frozen).await;
}

#[tokio::test]
async fn two_masters_of_five_that_have_just_been_frozen_cost_nothing() {
    costs_nothing::<2>(Fault::JustFrozen).await;
}

#[tokio::test]
async fn two_distant_masters_of_five_cost_nothing() {
    costs_nothing::<2>(Fault::Distant).await;
}

fn client(urls: &[String]) -> Redlock {
    let builder = Redlock::builder().masters(urls);
    let dlm = builder.request_timeout(REQUEST_TIMEOUT).build();
    dlm.expect("different masters")
}

/// Three clients take turns: one whose masters are well, and two with `N` faulty ones, of which one was connected to
/// them before and one was not.
async fn costs_nothing<const N: usize>(fault: Fault) {
    let well = Masters::start(5);
    let mut faulty = Server::many(N);
    let proxies: Vec<_> = faulty.iter().map(Proxy::start).collect();
    let mut urls = well.urls();
    let healthy = client(&urls);
    for (place, (server, proxy)) in faulty.iter().zip(&proxies).enumerate() {
        urls[place] = fault.url(server, proxy);
    }
    let (connected, new) = (client(&urls), client(&urls));
    cycle(&healthy).await;
    cycle(&connected).await;
    let connects = async || faulty.iter().all(|server| server.connected_clients() == 1);
    eventually_async("one is connected", LONG, connects).await;
    for (server, proxy) in faulty.iter_mut().zip(&proxies) {
        fault.inflict(server, proxy);
    }

    let clients = [healthy, connected, new];
    let mut times: [Vec<Times>; 3] = Default::default();
    for turn in 0..CYCLES {
        for place in 0..3 {
            let client = (turn + place) % 3;
            times[client].push(cycle(&clients[client]).await);
        }
        if fault == Fault::JustFrozen {
            faulty.iter().for_each(Server::thaw);
        }
        sleep(PACE).await;
        if fault == Fault::JustFrozen {
            faulty.iter().for_each(Server::freeze);
        }
    }
    for operation in 0..3 {
        let [health, connected, new] = times.each_ref().map(|of_client| {
            let times = of_client.iter().map(|times| times[operation]);
            times.collect::<Vec<_>>()
        });
        for times in [connected, new] {
            assert_as_in_health(fault, &health, &times);
        }
    }
}

fn assert_as_in_health(fault: Fault, health: &[Duration], times: &[Duration]) {
    let waited = |time: &&Duration| **time > fault.cost() / 2;
    let waits = times.iter().filter(waited).count();
    assert!(waits < CYCLES / 10, "{waits} of {CYCLES} waited");
    let (time, health) = (median(times), median(health));
    let most = 2 * health + fault.cost() / 20;
    assert!(time < most, "{time:?} instead of {health:?}");
}

/// How long it took to lock, extend and release.
type Times = [Duration; 3];

async fn cycle(dlm: &Redlock) -> Times {
    let start = Instant::now();
    let guard = dlm.try_lock(unique("resource"), TTL).await;
    let guard = guard.expect("a quorum is well");
    let locked = Instant::now();
    guard.extend(2 * TTL).await.expect("a quorum is well");
    let extended = Instant::now();
    guard.release().await.expect("a quorum is well");
    [locked - start, extended - locked, extended.elapsed()]
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn a_killed_majority_is_an_error_in_time_that_says_so_and_leaves_nothing() {
    let mut masters = Masters::start(5);
    let clients = connected_and_new(&masters).await;
    masters[..3].iter_mut().for_each(Server::kill);
    for dlm in &clients {
        let (time, errors) = failure(dlm, &masters).await;
        assert!(time < REQUEST_TIMEOUT + SLACK, "{time:?}");
        let is_dead = |e: &_| matches!(e, MasterError::Connect(_) | MasterError::Disconnected(_));
        assert!(errors.iter().all(is_dead), "{errors:?}");
    }
    masters[3..].eventually_empty().await;
}

#[tokio::test]
async fn a_frozen_majority_is_an_error_in_time_that_says_so_and_leaves_nothing() {
    let masters = Masters::start(5);
    let clients = connected_and_new(&masters).await;
    masters[..3].iter().for_each(Server::freeze);
    for dlm in &clients {
        let (time, errors) = failure(dlm, &masters).await;
        assert!(time < REQUEST_TIMEOUT + SLACK, "{time:?}");
        let is_silent = |e: &_| matches!(e, MasterError::Connect(_) | MasterError::TimedOut(_));
        assert!(errors.iter().all(is_silent), "{errors:?}");
    }
    masters[3..].eventually_empty().await;
}

#[tokio::test]
async fn a_majority_that_is_known_to_hang_fails_at_once() {
    let masters = Masters::start(5);
    let [connected, new] = connected_and_new(&masters).await;
    masters[..3].iter().for_each(Server::freeze);
    let hangs = |e: &_| matches!(e, MasterError::Hung(_));
    let cannot_connect = |e: &_| matches!(e, MasterError::Connect(_));
    fails_at_once(&connected, &masters, hangs).await;
    fails_at_once(&new, &masters, cannot_connect).await;
    masters[3..].eventually_empty().await;
}

async fn fails_at_once(dlm: &Redlock, masters: &[Server], known: impl Fn(&MasterError) -> bool) {
    let is_known = async || failure(dlm, masters).await.1.iter().all(&known);
    eventually_async("known", LONG, is_known).await;
    let mut times = Vec::new();
    for _ in 0..20 {
        let (time, errors) = failure(dlm, masters).await;
        assert!(errors.iter().all(&known), "{errors:?}");
        times.push(time);
    }
    let median = median(&times);
    assert!(median < REQUEST_TIMEOUT / 10, "{median:?}");
}

/// A client that has a connection to each master, and one that has none.
async fn connected_and_new(masters: &Masters) -> [Redlock; 2] {
    let urls = masters.urls();
    let clients = [client(&urls), client(&urls)];
    cycle(&clients[0]).await;
    let connected = async || masters.iter().all(|server| server.connected_clients() == 1);
    eventually_async("one is connected", LONG, connected).await;
    clients
}

/// How long it took to fail, and what was wrong with each of the first three masters.
async fn failure(dlm: &Redlock, masters: &[Server]) -> (Duration, Vec<MasterError>) {
    let start = Instant::now();
    let result = dlm.try_lock(unique("resource"), TTL).await;
    let time = start.elapsed();
    let error = result.expect_err("three of five cannot vote");
    let message = error.to_string();
    assert!(
        message.starts_with("too few masters could vote"),
        "{message}"
    );
    let LockError::Unreachable(LockFailure { ballots, .. }) = error else {
        panic!("{message}");
    };
    let mut errors = Vec::new();
    for (place, (ballot, server)) in ballots.iter().zip(masters).enumerate() {
        assert!(message.contains(&server.addr()), "{message}");
        match &ballot.vote {
            Vote::Failed(error) if place < 3 => errors.push(error.clone()),
            Vote::Granted | Vote::NotNeeded if place >= 3 => {}
            vote => panic!("{}: {vote}", ballot.master),
        }
    }
    (time, errors)
}

/// Their answers take 400 ms, and they must not be thought to hang.
#[tokio::test]
async fn masters_far_away_work_with_a_request_timeout_to_match() {
    let masters = Masters::behind_proxies(3);
    for proxy in masters.proxies() {
        proxy.delay(4 * DISTANCE);
    }
    let dlm = masters.patient_client();
    for _ in 0..2 {
        cycle(&dlm).await;
    }
    // The second has sent its request long after the first, the third long after that, and neither has an answer.
    let lock = async |after| {
        sleep(Duration::from_millis(after)).await;
        let guard = dlm.try_lock(unique("resource"), TTL).await;
        drop(guard.expect("granted"));
    };
    join_all([0, 350, 650].map(lock)).await;
}
