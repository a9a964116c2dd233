//! A master is slow when it is silent, not when a request is old: replies that are late but keep coming fail no request,
//! and a silence fails them all.

use std::future::IntoFuture;
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use futures::poll;
use support::{Masters as RealMasters, Servers, unique};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep};
use tokio_redlock::testing::Masters;
use tokio_redlock::{ExtendError, LockError, MasterError, Redlock, Vote};

const MS: Duration = Duration::from_millis(1);

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);

/// How late each reply is.
const LATE: Duration = Duration::from_millis(600);

/// How often a master is asked something, and so also how often it replies. More often would fill a window that was
/// measured while the replies were not late.
const PACE: Duration = Duration::from_millis(100);

/// Masters that are late with every reply, and a task that keeps them replying.
struct Late {
    masters: Masters,
    dlm: Redlock,
    traffic: JoinHandle<()>,
}

impl Late {
    /// Makes the replies later step by step: were the first late reply the next one, the master would be silent until
    /// then.
    async fn start() -> Self {
        let masters = Masters::new(3);
        let builder = Redlock::builder().testing(&masters);
        let dlm = builder.request_timeout(REQUEST_TIMEOUT).build().unwrap();
        let asked = dlm.clone();
        let traffic = tokio::spawn(async move {
            loop {
                drop(tokio::spawn(ask(asked.clone())));
                sleep(PACE).await;
            }
        });
        let mut delay = Duration::ZERO;
        while delay < LATE {
            delay += PACE / 2;
            masters
                .iter()
                .for_each(|it| it.delay_answers(delay..=delay));
            sleep(PACE).await;
        }
        Self {
            masters,
            dlm,
            traffic,
        }
    }

    async fn end(self) {
        self.traffic.abort();
        assert_eq!(self.dlm.shutdown(TTL).await, 0);
    }
}

async fn ask(dlm: Redlock) {
    dlm.inspect("traffic").await;
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_late_but_keep_coming_fail_no_request() {
    let late = Late::start().await;
    for _ in 0..3 {
        let start = Instant::now();
        let guard = late.dlm.try_lock("r", TTL).await.expect("late, not silent");
        assert!(start.elapsed() >= LATE, "later than the timeout");
        guard.extend(2 * TTL).await.expect("late, not silent");
        guard.release().await.expect("late, not silent");
        assert!(start.elapsed() < 4 * LATE);
    }
    late.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_silence_for_longer_than_the_timeout_fails_every_request() {
    let late = Late::start().await;
    let guard = late.dlm.try_lock("r", TTL).await.expect("late, not silent");
    late.masters.iter().for_each(|master| master.hang());
    // The replies that are under way come in until then.
    sleep(LATE).await;
    let (extended, locked) =
        futures::join!(guard.extend(TTL), late.dlm.try_lock("s", TTL).into_future());
    let Err(ExtendError::Unconfirmed { ballots, .. }) = extended else {
        panic!("{extended:?}");
    };
    let is_silent = |vote: &Vote| matches!(vote, Vote::Failed(MasterError::TimedOut(after)) if *after == REQUEST_TIMEOUT);
    let silent = ballots.iter().filter(|ballot| is_silent(&ballot.vote));
    assert!(silent.count() >= 2, "{ballots}");
    assert!(
        matches!(locked, Err(LockError::Unreachable(_))),
        "{locked:?}"
    );
    late.masters.iter().for_each(|master| {
        master.clear_faults();
        master.resume();
    });
    guard.release().await.expect("still ours");
    late.end().await;
}

/// A quorum that pauses for 2.5 s, with requests that may take a minute.
#[tokio::test(start_paused = true)]
async fn a_request_with_a_long_timeout_outlasts_a_pause_of_a_quorum() {
    let pause = Duration::from_millis(2_500);
    let masters = Masters::new(3);
    let builder = Redlock::builder().testing(&masters);
    let dlm = builder.request_timeout(TTL).build().unwrap();
    let guard = dlm.try_lock("held", 10 * TTL).await.unwrap();
    masters[..2].iter().for_each(|master| master.hang());
    let start = Instant::now();
    let locked = tokio::spawn(dlm.try_lock("r", 10 * TTL).into_future());
    let extended = tokio::spawn(async move { guard.extend(20 * TTL).await.map(|()| guard) });
    sleep(pause).await;
    assert!(!locked.is_finished() && !extended.is_finished());
    masters[..2].iter().for_each(|master| master.resume());
    drop(locked.await.unwrap().expect("granted after the pause"));
    let guard = extended.await.unwrap().expect("extended after the pause");
    assert!(start.elapsed() < pause + 10 * MS);
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(TTL).await, 0);
}

/// The same with the timeout that is the default: the masters are not waited for.
#[tokio::test(start_paused = true)]
async fn a_request_with_a_short_timeout_does_not() {
    let masters = Masters::new(3);
    let dlm = Redlock::builder().testing(&masters).build().unwrap();
    drop(dlm.try_lock("r", TTL).await.unwrap());
    masters[..2].iter().for_each(|master| master.hang());
    let start = Instant::now();
    let locked = dlm.try_lock("s", TTL).await;
    assert!(
        matches!(locked, Err(LockError::Unreachable(_))),
        "{locked:?}"
    );
    assert!(start.elapsed() < 500 * MS);
    masters[..2].iter().for_each(|master| master.resume());
    assert_eq!(dlm.shutdown(TTL).await, 0);
}

/// A hundred requests a second on a way of 300 ms: 30 are under way, which is little.
#[tokio::test(start_paused = true)]
async fn a_way_that_becomes_longer_keeps_no_attempt_waiting() {
    let longer = 300 * MS;
    let masters = Masters::new(3);
    let builder = Redlock::builder().testing(&masters);
    let dlm = builder.request_timeout(4 * longer).build().unwrap();
    let asked = dlm.clone();
    let traffic = tokio::spawn(async move {
        loop {
            drop(tokio::spawn(ask(asked.clone())));
            sleep(10 * MS).await;
        }
    });
    sleep(10 * longer).await;
    masters
        .iter()
        .for_each(|it| it.delay_answers(longer..=longer));
    for _ in 0..3 {
        let start = Instant::now();
        let guard = dlm.lock("r", TTL).await.expect("the masters are well");
        guard.release().await.expect("the masters are well");
        assert!(start.elapsed() < 3 * longer, "{:?}", start.elapsed());
    }
    traffic.abort();
}

/// The process gets no turn for longer than the timeout. The replies have arrived by then, and nobody has read them.
#[tokio::test]
async fn a_stall_of_this_process_fails_no_request() {
    let masters = RealMasters::start(3);
    let builder = masters.builder().runtime(Handle::current());
    let dlm = builder.request_timeout(REQUEST_TIMEOUT).build().unwrap();
    let guard = masters.lock_everywhere(&dlm, &unique("r"), TTL).await;
    for turn in 0..6 {
        let mut extended = pin!(guard.extend(2 * TTL));
        // As far as the requests are on their way, and at most as far as the replies have come.
        let mut outcome = None;
        for _ in 0..turn {
            if let Poll::Ready(early) = poll!(&mut extended) {
                outcome = Some(early);
                break;
            }
            yield_now().await;
        }
        thread::sleep(REQUEST_TIMEOUT + 50 * MS);
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => extended.await,
        };
        outcome.expect("the masters have answered in time");
    }
    guard.release().await.expect("still ours");
}
