//! One attempt, for every combination of states of three masters: who gets the lock, and what the error says.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use redis::cmd;
use support::{LONG, Server, eventually_async, unique};
use tokio::time::sleep;
use tokio_redlock::{Ballots, LockError, LockGuard, MasterError, Redlock, Vote};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// Long enough for a master that works to answer on a busy machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

const FOREIGN: &str = "somebody else";

/// What a master is when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Taken,
    Down,
    Hung,
}

use State::{Down, Free, Hung, Taken};

/// What the client knows about the masters when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// It has never connected to any.
    Nothing,
    /// It was connected to all when some went down and some began to hang.
    Connections,
    /// It has met those that are down or hang before.
    Faults,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Granted,
    Taken,
    Unreachable,
    /// Whichever of the two errors the first answers make it.
    FirstAnswersDecide,
}

/// The outcome among three masters, where two are a quorum.
fn expected(states: [State; 3], knowledge: Knowledge) -> Outcome {
    let count = |wanted| states.iter().filter(|&&state| state == wanted).count();
    let (free, taken, hung) = (count(Free), count(Taken), count(Hung));
    if free >= 2 {
        // Nothing that the third does can change that.
        Outcome::Granted
    } else if free + taken >= 2 {
        // At most one is down or hangs, so whichever answers come first, a quorum is within reach.
        Outcome::Taken
    } else if taken == 0 || knowledge == Knowledge::Faults {
        // Only what fails can decide; or it fails before anything is sent, and so before a refusal comes.
        Outcome::Unreachable
    } else {
        match (hung, knowledge) {
            // The refusal and one failure decide, or both failures do.
            (0, _) => Outcome::FirstAnswersDecide,
            // The refusal and the failure decide; that the third hangs is not found out by waiting for it.
            (1, _) => Outcome::Taken,
            // The same two, or both failures, when the two attempts to connect are given up, one after the other.
            (_, Knowledge::Nothing) => Outcome::FirstAnswersDecide,
            // One refusal decides nothing, so both are waited for in vain until the time is up for both.
            _ => Outcome::Unreachable,
        }
    }
}

#[tokio::test]
async fn all_64_cases_for_a_client_that_has_never_connected() {
    every_case(Knowledge::Nothing).await;
}

#[tokio::test]
async fn all_64_cases_for_a_client_that_was_connected_before_the_faults() {
    every_case(Knowledge::Connections).await;
}

#[tokio::test]
async fn all_64_cases_for_a_client_that_knows_the_faults() {
    every_case(Knowledge::Faults).await;
}

async fn every_case(knowledge: Knowledge) {
    let mut servers = Choice::start();
    let cases = servers.cases();
    if knowledge != Knowledge::Nothing {
        servers.connect(&cases).await;
    }
    servers.inflict();
    if knowledge == Knowledge::Faults {
        join_all(cases.iter().map(Case::learn)).await;
    }

    let results = join_all(cases.iter().map(Case::attempt)).await;
    let mut held = Vec::new();
    for (case, result) in cases.iter().zip(results) {
        case.check(&servers, expected(case.states, knowledge), &result);
        held.extend(result.ok().map(|guard| (case, guard)));
    }
    servers.hold_exactly(&cases, &held).await;

    drop(held);
    servers.hold_exactly(&cases, &[]).await;
    servers.mend();
    for case in &cases {
        assert_eq!(case.dlm.shutdown(LONG).await, 0, "{:?}", case.states);
    }
    servers.hold_exactly(&cases, &[]).await;
    for server in servers.down.iter().chain(&servers.hung) {
        assert_eq!(contents(server), BTreeMap::new());
    }
}

/// Three of each. Each case has a client of its own, whose masters are picked from these.
struct Choice {
    up: Vec<Server>,
    down: Vec<Server>,
    hung: Vec<Server>,
}

struct Case {
    states: [State; 3],
    resource: String,
    dlm: Redlock,
}

impl Choice {
    fn start() -> Self {
        let mut servers = Server::many(9);
        Self {
            hung: servers.split_off(6),
            down: servers.split_off(3),
            up: servers,
        }
    }

    fn master(&self, place: usize, state: State) -> &Server {
        match state {
            Free | Taken => &self.up[place],
            Down => &self.down[place],
            Hung => &self.hung[place],
        }
    }

    fn masters(&self, states: [State; 3]) -> impl Iterator<Item = &Server> {
        let places = states.into_iter().enumerate();
        places.map(|(place, state)| self.master(place, state))
    }

    /// All cases, with the keys of somebody else in place.
    fn cases(&self) -> Vec<Case> {
        let cases: Vec<_> = (0..64).map(|number| self.case(number)).collect();
        for (place, server) in self.up.iter().enumerate() {
            let mut set = cmd("MSET");
            for case in cases.iter().filter(|case| case.states[place] == Taken) {
                set.arg(&case.resource).arg(FOREIGN);
            }
            server.query::<()>(&set);
        }
        cases
    }

    fn case(&self, number: usize) -> Case {
        let states = [number / 16, number / 4, number].map(|n| [Free, Taken, Down, Hung][n % 4]);
        Case {
            states,
            resource: unique("resource"),
            dlm: client(self.masters(states)),
        }
    }

    /// Returns when every client has a connection to each of its masters.
    async fn connect(&self, cases: &[Case]) {
        for case in cases {
            let guard = case.dlm.try_lock(unique("first"), TTL).await;
            guard
                .expect("all masters are well")
                .release()
                .await
                .unwrap();
            assert_eq!(case.dlm.shutdown(LONG).await, 0);
        }
        let connected = async || {
            self.up.iter().all(|up| up.connected_clients() == 32)
                && [&self.down, &self.hung]
                    .into_iter()
                    .flatten()
                    .all(|server| server.connected_clients() == 16)
        };
        eventually_async("all are connected", LONG, connected).await;
    }

    fn inflict(&mut self) {
        self.down.iter_mut().for_each(Server::kill);
        self.hung.iter().for_each(Server::freeze);
    }

    fn mend(&mut self) {
        self.down.iter_mut().for_each(Server::restart);
        self.hung.iter().for_each(Server::thaw);
    }

    /// Waits until those that are up hold what somebody else put there, the locks that are held, and nothing else.
    async fn hold_exactly(&self, cases: &[Case], held: &[(&Case, LockGuard)]) {
        for (place, server) in self.up.iter().enumerate() {
            let mut wanted = BTreeMap::new();
            for case in cases.iter().filter(|case| case.states[place] == Taken) {
                wanted.insert(case.resource.clone(), FOREIGN.to_owned());
            }
            for (case, guard) in held.iter().filter(|(case, _)| case.states[place] == Free) {
                wanted.insert(case.resource.clone(), guard.value().to_owned());
            }
            let as_wanted = async || contents(server) == wanted;
            eventually_async("these keys and no others", LONG, as_wanted).await;
        }
    }
}

impl Case {
    async fn attempt(&self) -> Result<LockGuard, LockError> {
        self.dlm.try_lock(&self.resource, TTL).await
    }

    /// Asks until every fault has been met, unless it does not matter.
    async fn learn(&self) {
        if expected(self.states, Knowledge::Faults) == Outcome::Granted {
            return;
        }
        let met = async || {
            // A slow pace: all cases are at it at once.
            sleep(Duration::from_millis(50)).await;
            let error = self.attempt().await.expect_err("no quorum is free");
            let votes = ballots(&error).iter().map(|ballot| &ballot.vote);
            self.states.iter().zip(votes).all(|states| match states {
                (Down, vote) => matches!(vote, Vote::Failed(MasterError::Connect(_))),
                (Hung, vote) => matches!(vote, Vote::Failed(MasterError::Hung(_))),
                (Free | Taken, _) => true,
            })
        };
        eventually_async("all faults are known", LONG, met).await;
    }

    fn check(&self, servers: &Choice, expected: Outcome, result: &Result<LockGuard, LockError>) {
        let states = self.states;
        let as_expected = match result {
            Ok(_) => expected == Outcome::Granted,
            Err(LockError::Taken(_)) => {
                matches!(expected, Outcome::Taken | Outcome::FirstAnswersDecide)
            }
            Err(LockError::Unreachable(_)) => {
                matches!(expected, Outcome::Unreachable | Outcome::FirstAnswersDecide)
            }
            Err(_) => false,
        };
        assert!(as_expected, "{states:?}: {result:?} is not {expected:?}");
        if let Err(error) = result {
            self.check_ballots(servers, ballots(error));
        }
    }

    /// Each master is told by its address, in order, and what it said fits what it is.
    fn check_ballots(&self, servers: &Choice, ballots: &Ballots) {
        let masters = self.states.iter().zip(servers.masters(self.states));
        let mut heard = 0;
        assert_eq!(ballots.iter().count(), 3);
        for (ballot, (state, server)) in ballots.iter().zip(masters) {
            assert_eq!(ballot.master.as_str(), server.addr());
            assert!(fits(*state, &ballot.vote), "{:?}: {ballots}", self.states);
            heard += usize::from(!matches!(ballot.vote, Vote::NotNeeded));
        }
        assert!(heard >= 2, "one master decides nothing: {ballots}");
    }
}

fn client<'a>(masters: impl IntoIterator<Item = &'a Server>) -> Redlock {
    let builder = Redlock::builder().masters(masters.into_iter().map(Server::url));
    let dlm = builder.request_timeout(REQUEST_TIMEOUT).build();
    dlm.expect("different masters")
}

fn fits(state: State, vote: &Vote) -> bool {
    use MasterError::{Connect, Disconnected, Hung as Hangs, TimedOut};
    match (state, vote) {
        (_, Vote::NotNeeded) | (Free, Vote::Granted) | (Taken, Vote::Refused) => true,
        (Down, Vote::Failed(error)) => matches!(error, Connect(_) | Disconnected(_)),
        (Hung, Vote::Failed(error)) => matches!(error, Connect(_) | TimedOut(_) | Hangs(_)),
        _ => false,
    }
}

fn ballots(error: &LockError) -> &Ballots {
    match error {
        LockError::Taken(attempts) | LockError::Unreachable(attempts) => &attempts.ballots,
        other => panic!("no ballots in {other}"),
    }
}

fn contents(server: &Server) -> BTreeMap<String, String> {
    let keys = server.keys();
    let pairs = keys.into_iter().filter_map(|key| {
        let value = server.get(&key)?;
        Some((key, String::from_utf8(value).expect("text")))
    });
    pairs.collect()
}

#[tokio::test]
async fn five_masters_grant_what_at_most_two_of_them_have_given_away() {
    let servers = Server::many(5);
    let dlm = client(&servers);
    for mask in 0..32_u32 {
        let resource = unique("resource");
        let foreign = |place: usize| (mask >> place & 1 == 1).then(|| FOREIGN.as_bytes().to_vec());
        let taken = |place: &usize| foreign(*place).is_some();
        for place in (0..5).filter(taken) {
            servers[place].set(&resource, FOREIGN);
        }
        match dlm.try_lock(&resource, TTL).await {
            Ok(guard) => {
                assert!(mask.count_ones() <= 2, "{mask:05b}");
                let ours = Some(guard.value().as_bytes().to_vec());
                let everywhere = async || {
                    let mut free = (0..5).filter(|place| !taken(place));
                    free.all(|place| servers[place].get(&resource) == ours)
                };
                eventually_async("ours wherever it was free", LONG, everywhere).await;
            }
            Err(LockError::Taken(_)) => assert!(mask.count_ones() > 2, "{mask:05b}"),
            Err(other) => panic!("{mask:05b}: {other}"),
        }
        assert_eq!(dlm.shutdown(LONG).await, 0);
        for (place, server) in servers.iter().enumerate() {
            assert_eq!(server.get(&resource), foreign(place), "{mask:05b}");
        }
    }
}
