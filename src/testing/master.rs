//! One master in memory: its clock, its network and its faults.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::{RedisError, RedisResult, Value as Reply};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connection::Connection;
use super::fault::Fault;
use super::store::{Store, error};
use crate::sync::lock;

/// A master in memory, from [`Masters`](super::Masters). Clones are the same master.
///
/// All methods take `&self`, so a test can change a master at any moment; see the table of the [module](super). A
/// client sends no locks to a master that hangs. So it can take up to a second after [`resume`](Self::resume) until the
/// master votes again.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::{LockError, Redlock, testing::Masters};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # tokio::time::pause();
/// let masters = Masters::new(3);
/// let dlm = Redlock::builder().testing(&masters).build().unwrap();
///
/// masters[0].stop();
/// let ttl = Duration::from_secs(10);
/// assert!(dlm.try_lock("a", ttl).await.is_ok());
///
/// masters[1].hang();
/// assert!(matches!(dlm.try_lock("b", ttl).await, Err(LockError::Unreachable(_))));
/// # }
/// ```
#[derive(Clone)]
pub struct Master(Arc<Mutex<State>>);

struct State {
    store: Store,
    clock: Clock,
    rng: StdRng,
    condition: Condition,
    request_delay: RangeInclusive<Duration>,
    answer_delay: RangeInclusive<Duration>,
    faults: VecDeque<Fault>,
    /// One per connection.
    lanes: Vec<Lane>,
    /// The requests under way, ordered by the moment of their arrival. The sending order decides between equal moments.
    inbox: BTreeMap<(Instant, u64), Queued>,
    /// The number of requests so far. Makes the keys of `inbox` unique.
    sent: u64,
    /// All events up to this moment have happened.
    now: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Up,
    Hung,
    Stopped,
}

/// Keeps the order of one connection: nothing arrives before these moments.
#[derive(Clone, Copy)]
struct Lane {
    last_request: Instant,
    last_answer: Instant,
}

/// A request under way.
struct Queued {
    lane: usize,
    command: Vec<Vec<u8>>,
    answer: oneshot::Sender<Answer>,
}

/// The reply of a master, and the moment of its arrival.
struct Answer {
    reply: RedisResult<Reply>,
    arrives: Instant,
}

/// A clock that may run too fast or too slow.
struct Clock {
    /// The moment at which the rate was set, on Tokio's clock and on this clock.
    since: (Instant, Duration),
    rate: f64,
}

impl Clock {
    fn at(&self, moment: Instant) -> Duration {
        let (since, shown) = self.since;
        shown.saturating_add(moment.duration_since(since).mul_f64(self.rate))
    }
}

impl Master {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            store: Store::default(),
            clock: Clock {
                since: (Instant::now(), Duration::ZERO),
                rate: 1.0,
            },
            rng: StdRng::seed_from_u64(seed),
            condition: Condition::Up,
            request_delay: Duration::ZERO..=Duration::ZERO,
            answer_delay: Duration::ZERO..=Duration::ZERO,
            faults: VecDeque::new(),
            lanes: Vec::new(),
            inbox: BTreeMap::new(),
            sent: 0,
            now: Instant::now(),
        })))
    }

    /// Opens a new connection.
    ///
    /// The master executes the commands that this crate sends. For tests that inspect or change keys it also executes
    /// `GET`, `SET` with `NX` and `PX`, `DEL`, `PTTL`, `PEXPIRE` and `PING`.
    #[must_use]
    pub fn connect(&self) -> Connection {
        let mut state = self.lock();
        let now = Instant::now();
        state.lanes.push(Lane {
            last_request: now,
            last_answer: now,
        });
        Connection::new(self.clone(), state.lanes.len() - 1)
    }

    /// Sets how long a request is under way: a random time within the range. Defaults to no time.
    ///
    /// Requests on the same connection never overtake each other. The range applies to requests that are sent from now
    /// on.
    pub fn delay_requests(&self, range: RangeInclusive<Duration>) {
        self.lock().request_delay = range;
    }

    /// Sets how long an answer is under way: a random time within the range. Defaults to no time.
    pub fn delay_answers(&self, range: RangeInclusive<Duration>) {
        self.lock().answer_delay = range;
    }

    /// Applies a fault to the next request for a key. A second call applies to the request after that, and so on.
    ///
    /// `SCRIPT` and `PING` meet no faults: these commands open a connection or check it. So a fault always meets the
    /// request that a test is about, also on a new connection.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Removes all faults that no request has met yet, and all delays.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.request_delay = Duration::ZERO..=Duration::ZERO;
        state.answer_delay = Duration::ZERO..=Duration::ZERO;
    }

    /// Stops executing and answering requests until [`resume`](Self::resume). Requests that are sent meanwhile are
    /// kept.
    pub fn hang(&self) {
        let mut state = self.lock();
        if state.condition == Condition::Up {
            state.condition = Condition::Hung;
        }
    }

    /// Ends a [`hang`](Self::hang), and executes the requests that were sent meanwhile.
    pub fn resume(&self) {
        let mut state = self.lock();
        if state.condition == Condition::Hung {
            state.condition = Condition::Up;
            state.catch_up(Instant::now());
        }
    }

    /// Breaks all connections, and refuses new ones until [`restart`](Self::restart). Requests under way are lost.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.condition = Condition::Stopped;
        state.inbox.clear();
    }

    /// Starts the master again without its keys. Stops the master first if it is up.
    ///
    /// The Redlock algorithm is safe only if a master keeps its keys, or stays down for longer than the longest ttl. A
    /// master that restarts empty within a ttl votes twice.
    pub fn restart(&self) {
        self.stop();
        let mut state = self.lock();
        state.store.clear();
        state.condition = Condition::Up;
    }

    /// Sets the rate of this master's clock from now on. At 2.0 keys live half as long. Defaults to 1.0.
    ///
    /// The Redlock algorithm is safe only if clocks differ by less than the [drift
    /// factor](crate::RedlockBuilder::drift_factor).
    ///
    /// # Panics
    ///
    /// If the rate is not a number between 0 and 1000.
    pub fn set_clock_rate(&self, rate: f64) {
        assert!(
            (0.0..=1000.0).contains(&rate),
            "clock rate {rate} is not between 0 and 1000"
        );
        let mut state = self.lock();
        let now = Instant::now();
        state.clock = Clock {
            since: (now, state.clock.at(now)),
            rate,
        };
    }

    /// Deletes a key before it expires. Returns whether the key existed.
    pub fn lose_key(&self, key: impl AsRef<[u8]>) -> bool {
        self.lock().store.delete(key.as_ref())
    }

    /// Returns all keys, in order. On a master that is down, the keys that existed before.
    #[must_use]
    pub fn keys(&self) -> Vec<Vec<u8>> {
        self.lock().store.keys()
    }

    /// Returns the value of a key, or `None` if there is no such key. On a master that is down, the last value.
    #[must_use]
    pub fn value(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        self.lock().store.get(key.as_ref()).map(<[u8]>::to_vec)
    }

    /// Returns when a key expires, by the clock of this master. `None` if there is no such key, or if the key never
    /// expires.
    #[must_use]
    pub fn expires_in(&self, key: impl AsRef<[u8]>) -> Option<Duration> {
        self.lock().store.expires_in(key.as_ref())
    }

    /// Sends a command at the time of the call. The returned future waits for the answer.
    pub(super) fn send(
        &self,
        lane: usize,
        command: Vec<Vec<u8>>,
    ) -> impl Future<Output = RedisResult<Reply>> + Send + use<> {
        let (answer, mut received) = oneshot::channel();
        // Now and not in the future: the order of the calls is the order on the connection.
        let arrives = self.lock().post(lane, command, answer);
        let master = self.clone();
        async move {
            let answer = match timeout_at(arrives, &mut received).await {
                Ok(answer) => answer,
                Err(_) => {
                    // The request has arrived by now, so this look at the master executes it, unless the master hangs.
                    drop(master.lock());
                    received.await
                }
            };
            // Without a sender the request was lost: `stop` has cleared it.
            let Answer { reply, arrives } = answer.map_err(|_| broken())?;
            if arrives > Instant::now() {
                sleep_until(arrives).await;
            }
            reply.and_then(Reply::extract_error)
        }
    }

    /// Locks the state, after all events up to now have happened.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.0);
        state.catch_up(Instant::now());
        state
    }
}

impl State {
    /// Sends a request, and returns when it arrives. A master that is down does not get the request.
    fn post(
        &mut self,
        lane: usize,
        command: Vec<Vec<u8>>,
        answer: oneshot::Sender<Answer>,
    ) -> Instant {
        let delay = draw(&mut self.rng, &self.request_delay);
        let last = &mut self.lanes[lane].last_request;
        *last = (self.now + delay).max(*last);
        let arrives = *last;
        if self.condition != Condition::Stopped {
            self.sent += 1;
            let queued = Queued {
                lane,
                command,
                answer,
            };
            self.inbox.insert((arrives, self.sent), queued);
            // A request without a delay has arrived already.
            self.catch_up(self.now);
        }
        arrives
    }

    /// Lets all events up to `now` happen. No task does this: whoever looks at a master does it first. So a run depends
    /// on the order of calls only, and not on a scheduler.
    fn catch_up(&mut self, now: Instant) {
        while self.condition == Condition::Up
            && let Some(next) = self.inbox.first_entry()
            && next.key().0 <= now
        {
            let ((arrives, _), queued) = next.remove_entry();
            self.now = self.now.max(arrives);
            self.execute(queued);
        }
        self.now = self.now.max(now);
        self.store.at(self.clock.at(self.now));
    }

    fn execute(&mut self, queued: Queued) {
        let Queued {
            lane,
            command,
            answer,
        } = queued;
        let store = self.store.at(self.clock.at(self.now));
        let fault = is_for_a_key(&command).then(|| self.faults.pop_front());
        let reply = match fault.flatten() {
            None => Ok(store.execute(&command)),
            Some(Fault::LoseRequest) => Err(broken()),
            Some(Fault::LoseAnswer) => {
                store.execute(&command);
                Err(broken())
            }
            Some(Fault::Error(line)) => Ok(error(&line)),
            Some(Fault::Answer(reply)) => Ok(reply),
        };
        let delay = draw(&mut self.rng, &self.answer_delay);
        let last = &mut self.lanes[lane].last_answer;
        *last = (self.now + delay).max(*last);
        // The sender may have gone.
        let _ = answer.send(Answer {
            reply,
            arrives: *last,
        });
    }
}

fn is_for_a_key(command: &[Vec<u8>]) -> bool {
    let is = |name: &[u8]| {
        command
            .first()
            .is_some_and(|first| first.eq_ignore_ascii_case(name))
    };
    !is(b"SCRIPT") && !is(b"PING")
}

fn draw(rng: &mut StdRng, range: &RangeInclusive<Duration>) -> Duration {
    let (start, end) = (*range.start(), *range.end());
    rng.random_range(start..=end.max(start))
}

fn broken() -> RedisError {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke").into()
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Master")
            .field("condition", &state.condition)
            .field("store", &state.store)
            .finish_non_exhaustive()
    }
}
