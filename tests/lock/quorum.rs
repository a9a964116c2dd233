//! How many masters a lock takes while some are down, hang, or hold the key for somebody else.

use std::time::Duration;

use futures::future::join_all;
use support::{LONG, Masters, Proxy, Server, Servers, unique};
use tokio_redlock::{ExtendError, LockError, LockGuard, MasterError, Redlock, ReleaseError, Vote};

use crate::outcomes::State;

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

const FOREIGN: &[u8] = b"\xff\xfe\x00";

fn kill(masters: &mut [Server]) {
    masters.iter_mut().for_each(Server::kill);
}

fn assert_unreachable(attempt: Result<LockGuard, LockError>, down: &[Server]) {
    let Err(LockError::Unreachable(attempts)) = attempt else {
        panic!("not unreachable: {attempt:?}");
    };
    for ballot in &attempts.ballots {
        let is_down = down.iter().any(|it| it.addr() == ballot.master.as_str());
        match &ballot.vote {
            Vote::Failed(MasterError::Connect(_) | MasterError::Disconnected(_)) => {
                assert!(is_down, "{attempts}");
            }
            Vote::Granted | Vote::NotNeeded => {}
            other => panic!("{}: {other}", ballot.master),
        }
    }
}

/// A whole life of a lock with as many masters down as a quorum can spare, and its failure with one more: down from
/// the beginning, and going down while it is held.
async fn assert_tolerates(number: usize, failures: usize) {
    let mut masters = Masters::start(number);
    let dlm = masters.patient_client();
    let (held, lost) = (unique("held"), unique("lost"));
    let guard = dlm.lock(&held, TTL).await.unwrap();
    let losing = dlm.lock(&lost, TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    masters.eventually_hold(&losing).await;

    kill(&mut masters[..failures]);
    guard.extend(2 * TTL).await.unwrap();
    assert!(guard.validity() > TTL);
    guard.release().await.unwrap();
    for dlm in [&dlm, &masters.patient_client()] {
        let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
        guard.extend(2 * TTL).await.unwrap();
        guard.release().await.unwrap();
    }

    kill(&mut masters[failures..=failures]);
    let (down, up) = masters.split_at(failures + 1);
    let extended = losing.extend(2 * TTL).await;
    assert!(
        matches!(extended, Err(ExtendError::Unconfirmed { .. })),
        "{extended:?}"
    );
    assert!(losing.is_valid() && losing.validity() < TTL);
    let released = losing.release().await;
    assert!(
        matches!(released, Err(ReleaseError::Unconfirmed { .. })),
        "{released:?}"
    );
    for dlm in [&dlm, &masters.patient_client()] {
        assert_unreachable(dlm.try_lock(unique("resource"), TTL).await, down);
    }
    up.eventually_empty().await;
}

#[tokio::test]
async fn one_master_tolerates_no_failure() {
    assert_tolerates(1, 0).await;
}

#[tokio::test]
async fn two_masters_tolerate_no_failure() {
    assert_tolerates(2, 0).await;
}

#[tokio::test]
async fn three_masters_tolerate_one_failure() {
    assert_tolerates(3, 1).await;
}

#[tokio::test]
async fn four_masters_tolerate_one_failure() {
    assert_tolerates(4, 1).await;
}

#[tokio::test]
async fn five_masters_tolerate_one_failure() {
    let mut masters = Masters::start(5);
    kill(&mut masters[..1]);
    let guard = masters
        .patient_client()
        .lock("resource", TTL)
        .await
        .unwrap();
    guard.extend(2 * TTL).await.unwrap();
    guard.release().await.unwrap();
    masters[1..].eventually_empty().await;
}

#[tokio::test]
async fn five_masters_tolerate_two_failures() {
    assert_tolerates(5, 2).await;
}

/// Every set of masters whose key somebody else holds.
async fn assert_majority_decides(number: usize) {
    let masters = Masters::start(number);
    let dlm = masters.patient_client();
    drop(dlm.lock("all connections are open", TTL).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for taken in 0..1_usize << number {
        let resource = format!("{taken:05b}");
        let is_taken = |place: usize| taken >> place & 1 == 1;
        for (place, server) in masters.iter().enumerate() {
            if is_taken(place) {
                server.set_px(&resource, FOREIGN, 120_000);
            }
        }
        let attempt = dlm.try_lock(&resource, TTL).await;
        let free = number - (0..number).filter(|&place| is_taken(place)).count();
        match attempt {
            Ok(guard) => {
                assert!(2 * free > number, "granted: {resource}");
                guard.release().await.unwrap();
            }
            Err(LockError::Taken(attempts)) => {
                assert!(2 * free <= number, "taken: {resource}: {attempts}");
            }
            Err(other) => panic!("{resource}: {other}"),
        }
        assert_eq!(dlm.shutdown(LONG).await, 0);
        for (place, server) in masters.iter().enumerate() {
            let left = is_taken(place).then_some(FOREIGN);
            assert_eq!(server.get(&resource).as_deref(), left, "{resource}");
        }
    }
}

#[tokio::test]
async fn the_majority_of_three_decides_whoever_it_is() {
    assert_majority_decides(3).await;
}

#[tokio::test]
async fn the_majority_of_four_decides_whoever_it_is() {
    assert_majority_decides(4).await;
}

#[tokio::test]
async fn the_majority_of_five_decides_whoever_it_is() {
    assert_majority_decides(5).await;
}

/// A master, and ways to it that lead nowhere.
struct Place {
    server: Server,
    down: Proxy,
    hung: Proxy,
}

impl Place {
    fn start(server: Server) -> Self {
        let [down, hung] = [(); 2].map(|()| Proxy::start(&server));
        down.refuse();
        hung.hang();
        Self { server, down, hung }
    }

    fn url(&self, state: State) -> String {
        match state {
            State::Free | State::Taken => self.server.url(),
            State::Down => self.down.url(),
            State::Hung => self.hung.url(),
        }
    }
}

/// One way for three masters to be, and a client that finds them so.
struct Case {
    states: [State; 3],
    resource: String,
    dlm: Redlock,
}

impl Case {
    fn all(places: &[Place]) -> Vec<Self> {
        let all = [State::Free, State::Taken, State::Down, State::Hung];
        let state = |case: usize, place: usize| all[case >> (2 * place) & 3];
        let new = |case| Self::new(places, [0, 1, 2].map(|place| state(case, place)));
        (0..64).map(new).collect()
    }

    fn new(places: &[Place], states: [State; 3]) -> Self {
        let resource = format!("{states:?}");
        for (place, state) in places.iter().zip(states) {
            if state == State::Taken {
                place.server.set_px(&resource, FOREIGN, 120_000);
            }
        }
        let urls = [0, 1, 2].map(|place| places[place].url(states[place]));
        let builder = Redlock::builder().masters(&urls);
        let dlm = builder.request_timeout(Duration::from_secs(1)).build();
        Self {
            states,
            resource,
            dlm: dlm.expect("valid masters"),
        }
    }

    fn count(&self, state: State) -> usize {
        self.states.iter().filter(|&&it| it == state).count()
    }

    fn check(&self, attempt: &Result<LockGuard, LockError>) {
        let Self { resource, .. } = self;
        let (free, taken) = (self.count(State::Free), self.count(State::Taken));
        let attempts = match attempt {
            Ok(_) => {
                assert!(free >= 2, "granted: {resource}");
                return;
            }
            Err(LockError::Taken(attempts)) => {
                assert!(taken >= 1, "taken: {resource}: {attempts}");
                attempts
            }
            Err(LockError::Unreachable(attempts)) => {
                assert!(free + taken < 2, "unreachable: {resource}: {attempts}");
                attempts
            }
            Err(other) => panic!("{resource}: {other}"),
        };
        assert!(free < 2, "not granted: {resource}: {attempts}");
        for (ballot, state) in attempts.ballots.iter().zip(self.states) {
            let fits = match &ballot.vote {
                Vote::Granted => state == State::Free,
                Vote::Refused => state == State::Taken,
                Vote::Failed(MasterError::Connect(error)) if error.is_connection_refusal() => {
                    state == State::Down
                }
                Vote::Failed(MasterError::Connect(_) | MasterError::TimedOut(_)) => {
                    state == State::Hung
                }
                Vote::NotNeeded => true,
                _ => false,
            };
            assert!(fits, "{resource}: {attempts}");
        }
    }
}

#[tokio::test]
async fn any_two_of_three_masters_decide_whatever_the_third_does() {
    let places: Vec<_> = Server::many(3).into_iter().map(Place::start).collect();
    let cases = Case::all(&places);
    let attempt = async |case: &Case| {
        let attempt = case.dlm.try_lock(&case.resource, TTL).await;
        case.check(&attempt);
        drop(attempt);
        assert_eq!(case.dlm.shutdown(LONG).await, 0, "{}", case.resource);
    };
    // Some take the request timeout, so several are tried at the same time.
    for cases in cases.chunks(16) {
        join_all(cases.iter().map(&attempt)).await;
    }
    for case in &cases {
        for (place, state) in places.iter().zip(case.states) {
            let left = (state == State::Taken).then_some(FOREIGN);
            let key = place.server.get(&case.resource);
            assert_eq!(key.as_deref(), left, "{}", case.resource);
        }
    }
}

#[tokio::test]
async fn a_lock_that_is_taken_where_the_others_are_known_to_be_down_is_unreachable() {
    let mut masters = Masters::start(3);
    kill(&mut masters[1..]);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    assert_unreachable(dlm.try_lock(&resource, TTL).await, &masters[1..]);
    masters[0].set_px(&resource, FOREIGN, 120_000);
    let attempt = dlm.try_lock(&resource, TTL).await;
    assert!(
        matches!(attempt, Err(LockError::Unreachable(_))),
        "{attempt:?}"
    );
}

#[tokio::test]
async fn a_hung_master_costs_no_time_while_the_others_decide() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters[0].freeze();
    // Otherwise each would take the request timeout, which is longer than the whole of this may take.
    let whole = async {
        guard.extend(2 * TTL).await.unwrap();
        guard.release().await.unwrap();
        for _ in 0..20 {
            let guard = dlm.lock("resource", TTL).await.unwrap();
            let refused = dlm.try_lock("resource", TTL).await;
            assert!(matches!(refused, Err(LockError::Taken(_))), "{refused:?}");
            guard.release().await.unwrap();
        }
    };
    tokio::time::timeout(LONG * 2 / 3, whole).await.unwrap();
}
