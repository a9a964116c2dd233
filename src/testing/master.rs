//! One master in memory: its clock, its network, and the faults it is told to have.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::{RedisError, RedisResult, Value as Reply};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connection::Connection;
use super::fault::Fault;
use super::store::{Store, error};

/// A master in memory, out of [`Masters`](super::Masters). Clones are the same master.
///
/// It is told its faults by `&self` at any moment; see the table of the [module](super). A client keeps out of the
/// way of a master that hangs, so after [`resume`](Self::resume) it may take a second until that one votes again.
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
    /// One for each connection.
    lanes: Vec<Lane>,
    /// Requests on their way, by the moment of their arrival; those of the same moment in the order of sending.
    inbox: BTreeMap<(Instant, u64), Envelope>,
    sent: u64,
    /// Up to when everything has happened.
    now: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Up,
    Hung,
    Stopped,
}

/// What keeps the order on a connection: nothing arrives before this.
#[derive(Clone, Copy)]
struct Lane {
    last_request: Instant,
    last_answer: Instant,
}

struct Envelope {
    lane: usize,
    command: Vec<Vec<u8>>,
    answer: oneshot::Sender<Answer>,
}

/// What a master said, and when that arrives.
struct Answer {
    reply: RedisResult<Reply>,
    arrives: Instant,
}

/// A clock that may run too fast or too slow.
struct Clock {
    /// When the rate was set, on Tokio's clock and on this one.
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

    /// Opens a connection of its own.
    ///
    /// It takes the commands that this crate sends, and those that help a test to look or to meddle: `GET`, `SET`
    /// with `NX` and `PX`, `DEL`, `PTTL`, `PEXPIRE` and `PING`.
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

    /// How long a request is on its way, at random within the range. Defaults to no time.
    ///
    /// Requests on the same connection never overtake each other. Holds for requests sent from now on.
    pub fn delay_requests(&self, range: RangeInclusive<Duration>) {
        self.lock().request_delay = range;
    }

    /// How long an answer is on its way back, at random within the range. Defaults to no time.
    pub fn delay_answers(&self, range: RangeInclusive<Duration>) {
        self.lock().answer_delay = range;
    }

    /// Lets the next request for a key that arrives meet a fault. Called again, the one after that, and so on.
    ///
    /// What opens a connection or asks for a sign of life (`SCRIPT`, `PING`) is spared, so that a fault meets the
    /// request that a test is about, on a new connection too.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Takes back all faults that were still to be met, and all delays.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.request_delay = Duration::ZERO..=Duration::ZERO;
        state.answer_delay = Duration::ZERO..=Duration::ZERO;
    }

    /// Executes and answers nothing until [`resume`](Self::resume). What is sent meanwhile is kept.
    pub fn hang(&self) {
        let mut state = self.lock();
        if state.condition == Condition::Up {
            state.condition = Condition::Hung;
        }
    }

    /// Ends a [`hang`](Self::hang): what was sent meanwhile is executed now.
    pub fn resume(&self) {
        let mut state = self.lock();
        if state.condition == Condition::Hung {
            state.condition = Condition::Up;
            state.catch_up(Instant::now());
        }
    }

    /// Breaks all connections, and refuses new ones until [`restart`](Self::restart). What is on its way is lost.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.condition = Condition::Stopped;
        state.inbox.clear();
    }

    /// Starts again after a [`stop`](Self::stop), empty; stops first if need be.
    ///
    /// The Redlock algorithm is safe only if a master stays away for longer than the longest ttl, or keeps its
    /// keys: restarted empty within a ttl, it votes twice.
    pub fn restart(&self) {
        self.stop();
        let mut state = self.lock();
        state.store.clear();
        state.condition = Condition::Up;
    }

    /// Lets the clock of this master run faster or slower from now on: at 2.0 its keys live half as long. Defaults
    /// to 1.0.
    ///
    /// The Redlock algorithm is safe only as long as clocks differ by less than the
    /// [drift factor](crate::RedlockBuilder::drift_factor).
    ///
    /// # Panics
    ///
    /// Unless the rate is a number between 0 and 1000.
    pub fn set_clock_rate(&self, rate: f64) {
        assert!((0.0..=1000.0).contains(&rate), "no clock runs at {rate}");
        let mut state = self.lock();
        let now = Instant::now();
        state.clock = Clock {
            since: (now, state.clock.at(now)),
            rate,
        };
    }

    /// Loses a key before its time. Tells whether there was one.
    pub fn lose_key(&self, key: impl AsRef<[u8]>) -> bool {
        self.lock().store.delete(key.as_ref())
    }

    /// The keys there are, in order; on a master that is down, those that there were.
    #[must_use]
    pub fn keys(&self) -> Vec<Vec<u8>> {
        self.lock().store.keys()
    }

    /// The value of a key, if there is such a key; on a master that is down, the last value it had.
    #[must_use]
    pub fn value(&self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        self.lock().store.get(key.as_ref()).map(<[u8]>::to_vec)
    }

    /// When a key expires, by the clock of this master; `None` without such a key, or if the key never expires.
    #[must_use]
    pub fn expires_in(&self, key: impl AsRef<[u8]>) -> Option<Duration> {
        self.lock().store.expires_in(key.as_ref())
    }

    /// Sends a command, here and now; the future is the wait for the answer.
    pub(super) fn send(
        &self,
        lane: usize,
        command: Vec<Vec<u8>>,
    ) -> impl Future<Output = RedisResult<Reply>> + Send + use<> {
        let (answer, mut received) = oneshot::channel();
        let arrives = self.lock().post(lane, command, answer);
        let master = self.clone();
        async move {
            let answer = match timeout_at(arrives, &mut received).await {
                Ok(answer) => answer,
                Err(_) => {
                    // Due by now, so it is executed by the next look, unless the master hangs.
                    drop(master.lock());
                    received.await
                }
            };
            let Answer { reply, arrives } = answer.map_err(|_| broken())?;
            if arrives > Instant::now() {
                sleep_until(arrives).await;
            }
            reply.and_then(Reply::extract_error)
        }
    }

    /// The state as it is by now.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.catch_up(Instant::now());
        state
    }
}

impl State {
    /// Puts a request on its way, and tells when it arrives. To a master that is down it is not sent.
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
            let envelope = Envelope {
                lane,
                command,
                answer,
            };
            self.inbox.insert((arrives, self.sent), envelope);
            // Without a delay it has arrived.
            self.catch_up(self.now);
        }
        arrives
    }

    /// Lets all happen that was due by now. Nothing runs in between: whoever looks at a master does this first.
    fn catch_up(&mut self, now: Instant) {
        while self.condition == Condition::Up
            && let Some(next) = self.inbox.first_entry()
            && next.key().0 <= now
        {
            let ((arrives, _), envelope) = next.remove_entry();
            self.now = self.now.max(arrives);
            self.execute(envelope);
        }
        self.now = self.now.max(now);
        self.store.at(self.clock.at(self.now));
    }

    fn execute(&mut self, envelope: Envelope) {
        let Envelope {
            lane,
            command,
            answer,
        } = envelope;
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
        // Whoever sent it may have gone.
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
