//! Attempts that wait until the masters have room: who is first, what is sent for those who leave the line, and what goes
//! ahead of them.

use std::future::IntoFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd};
use support::AnsweredBy;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_redlock::testing::Masters;
use tokio_redlock::{
    LockError, LockGuard, MasterError, Redlock, RedlockBuilder, RetryPolicy, Vote, redis,
};

const MS: Duration = Duration::from_millis(1);

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(3_600);

/// So long that no request of a test fails by it.
const PATIENT: Duration = Duration::from_secs(60);

/// More than are under way to a master of which nothing is known yet.
const MANY: usize = 300;

/// Masters in memory, and what each of them was sent.
struct Recorded {
    masters: Masters,
    sent: Vec<Arc<Mutex<Vec<Command>>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Set(String),
    Script(String),
}

use Command::{Script, Set};

impl Recorded {
    fn new(count: usize) -> Self {
        Self {
            masters: Masters::new(count),
            sent: (0..count).map(|_| Arc::default()).collect(),
        }
    }

    fn builder(&self) -> RedlockBuilder {
        let mut builder = Redlock::builder().runtime(Handle::current());
        for (master, sent) in self.masters.iter().zip(&self.sent) {
            let (connection, sent) = (master.connect(), Arc::clone(sent));
            builder = builder.connection(AnsweredBy(move |command: Cmd| {
                sent.lock().unwrap().extend(Command::of(&command));
                let mut connection = connection.clone();
                async move { connection.req_packed_command(&command).await }
            }));
        }
        builder
    }

    fn patient_client(&self) -> Redlock {
        self.builder().request_timeout(PATIENT).build().unwrap()
    }

    fn hang(&self) {
        self.masters.iter().for_each(|master| master.hang());
    }

    fn resume(&self) {
        self.masters.iter().for_each(|master| master.resume());
    }

    fn sent(&self, master: usize) -> Vec<Command> {
        self.sent[master].lock().unwrap().clone()
    }

    fn sets(&self, master: usize) -> usize {
        let sent = self.sent(master);
        sent.iter().filter(|it| matches!(it, Set(_))).count()
    }

    fn scripts(&self, master: usize) -> usize {
        self.sent(master).len() - self.sets(master)
    }

    fn are_empty(&self) -> bool {
        self.masters.iter().all(|master| master.keys().is_empty())
    }
}

impl Command {
    /// `None` for a command that names no key.
    fn of(command: &Cmd) -> Option<Self> {
        let words: Vec<_> = command.args_iter().collect();
        let word = |place: usize| match &words[place] {
            Arg::Simple(word) => String::from_utf8_lossy(word).into_owned(),
            other => panic!("{other:?}"),
        };
        match &*word(0) {
            "SET" => Some(Set(word(1))),
            "EVAL" | "EVALSHA" => Some(Script(word(3))),
            _ => None,
        }
    }
}

/// Waits until nobody can go on: only then a paused clock moves.
async fn settle() {
    sleep(MS).await;
}

fn name(number: usize) -> String {
    format!("resource {number}")
}

/// Begins so many attempts, each on a resource of its own.
fn begin(dlm: &Redlock, numbers: impl Iterator<Item = usize>) -> Vec<JoinHandle<Granted>> {
    let attempts = numbers.map(|number| {
        let request = dlm
            .lock(name(number), TTL)
            .retry(RetryPolicy::new().forever());
        tokio::spawn(request.into_future())
    });
    attempts.collect()
}

type Granted = Result<LockGuard, LockError>;

async fn all_granted(attempts: Vec<JoinHandle<Granted>>) -> Vec<LockGuard> {
    let ended = join_all(attempts).await.into_iter();
    ended.map(|granted| granted.unwrap().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn attempts_are_sent_in_the_order_in_which_they_came() {
    let recorded = Recorded::new(3);
    recorded.masters.delay(10 * MS..=10 * MS);
    let dlm = recorded.patient_client();
    let mut attempts = begin(&dlm, 0..MANY);
    settle().await;
    assert!(recorded.sets(0) < MANY, "some wait");
    // More come all the time, also when there is room again.
    for number in MANY..2 * MANY {
        sleep(MS / 5).await;
        attempts.extend(begin(&dlm, number..=number));
    }
    let guards = all_granted(attempts).await;
    let expected: Vec<_> = (0..2 * MANY).map(|number| Set(name(number))).collect();
    assert_eq!(recorded.sent(0), expected);
    drop(guards);
    assert_eq!(dlm.shutdown(PATIENT).await, 0);
    assert!(recorded.are_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_an_attempt_that_is_cancelled_in_line() {
    let recorded = Recorded::new(3);
    recorded.hang();
    let dlm = recorded.patient_client();
    let first = begin(&dlm, 0..MANY);
    settle().await;
    let sent = recorded.sets(0);
    assert!((1..MANY).contains(&sent), "{sent} were sent at once");
    let cancelled = begin(&dlm, MANY..2 * MANY);
    settle().await;
    for attempt in cancelled {
        attempt.abort();
    }
    settle().await;
    recorded.resume();
    let guards = all_granted(first).await;
    for master in 0..3 {
        let sent = recorded.sent(master);
        let expected: Vec<_> = (0..MANY).map(|number| Set(name(number))).collect();
        assert_eq!(sent, expected, "to {master}");
    }
    drop(guards);
    assert_eq!(dlm.shutdown(PATIENT).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_for_a_cancelled_attempt_is_deleted_and_nothing_else_is() {
    let recorded = Recorded::new(3);
    recorded.hang();
    let dlm = recorded.patient_client();
    let attempts = begin(&dlm, 0..MANY);
    settle().await;
    let sent = recorded.sets(0);
    for attempt in attempts {
        attempt.abort();
    }
    settle().await;
    recorded.resume();
    assert_eq!(dlm.shutdown(PATIENT).await, 0);
    assert!(recorded.are_empty());
    for master in 0..3 {
        assert_eq!(recorded.sets(master), sent);
        // Once more by its text, where a master does not know the script yet.
        let deletes = recorded.scripts(master);
        assert!((sent..=2 * sent).contains(&deletes), "{deletes} deletes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_wait_ends_in_line_says_so_and_sends_nothing() {
    let recorded = Recorded::new(3);
    recorded.hang();
    let dlm = recorded.patient_client();
    let first = begin(&dlm, 0..MANY);
    settle().await;
    let wait = 200 * MS;
    let start = Instant::now();
    let impatient = dlm.lock("impatient", TTL);
    let refused = impatient.retry(RetryPolicy::new().max_wait(wait)).await;
    let Err(LockError::Overloaded(failure)) = refused else {
        panic!("{refused:?}");
    };
    assert!(start.elapsed() >= wait && start.elapsed() < 2 * wait);
    assert_eq!(failure.attempts, 0);
    assert!(failure.waited >= wait);
    recorded.resume();
    let guards = all_granted(first).await;
    assert!((0..3).all(|master| !recorded.sent(master).contains(&Set("impatient".into()))));
    // The losing case: there is room now.
    let waits = RetryPolicy::new().max_wait(wait);
    assert!(dlm.lock("impatient", TTL).retry(waits).await.is_ok());
    drop(guards);
}

#[tokio::test(start_paused = true)]
async fn extensions_and_releases_go_ahead_of_attempts() {
    let recorded = Recorded::new(3);
    let dlm = recorded.patient_client();
    let [extended, released] = ["extended", "released"].map(|name| dlm.lock(name, TTL));
    let (extended, released) = (extended.await.unwrap(), released.await.unwrap());
    settle().await;
    recorded.masters[2].hang();
    // The two others grant them all, so the line to the third becomes long.
    let guards = all_granted(begin(&dlm, 0..100)).await;
    let sent = recorded.sent(2);
    assert!(recorded.sets(2) < 100, "some wait for room");
    assert_eq!(recorded.sets(0), 102);
    extended.extend(2 * TTL).await.unwrap();
    released.release().await.unwrap();
    settle().await;
    let expected = ["extended", "released"].map(|name| Script(name.into()));
    assert_eq!(recorded.sent(2)[sent.len()..], expected);
    recorded.masters[2].resume();
    settle().await;
    assert_eq!(recorded.masters[2].keys().len(), 101, "it gets the rest");
    drop((guards, extended));
    assert_eq!(dlm.shutdown(PATIENT).await, 0);
    assert!(recorded.are_empty());
}

/// Five requests to set the key for each attempt, and no delete: the replies under way say that there is nothing to
/// delete.
#[tokio::test(start_paused = true)]
async fn an_attempt_on_a_lock_that_every_master_holds_sends_five_commands() {
    const ATTEMPTS: u32 = 10;
    let recorded = Recorded::new(5);
    let dlm = recorded.patient_client();
    let holder = dlm.lock("r", TTL).await.unwrap();
    settle().await;
    for (master, millis) in recorded.masters.iter().zip(10..) {
        master.delay_answers(millis * MS..=millis * MS);
    }
    let policy = RetryPolicy::new().delay(20 * MS, 20 * MS);
    let waits = policy.max_attempts(ATTEMPTS);
    let refused = dlm.lock("r", TTL).retry(waits).await;
    assert!(matches!(refused, Err(LockError::Taken(_))), "{refused:?}");
    assert_eq!(dlm.shutdown(PATIENT).await, 0);
    let sets: usize = (0..5).map(|master| recorded.sets(master)).sum();
    assert_eq!(sets, 5 + 5 * ATTEMPTS as usize);
    // The last attempt does not wait: the caller learns of the failure at once. Two replies were under way then, and a
    // master that does not know the script is sent its text.
    let deletes: usize = (0..5).map(|master| recorded.scripts(master)).sum();
    assert!(deletes <= 2 * 2, "{deletes} deletes");
    holder.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_single_attempt_waits_for_no_reply_that_cannot_change_its_outcome() {
    let recorded = Recorded::new(5);
    let dlm = recorded.patient_client();
    let holder = dlm.lock("r", TTL).await.unwrap();
    settle().await;
    recorded.masters[3].delay_answers(PATIENT / 2..=PATIENT / 2);
    recorded.masters[4].delay_answers(PATIENT / 2..=PATIENT / 2);
    let start = Instant::now();
    let refused = dlm.try_lock("r", TTL).await;
    assert!(matches!(refused, Err(LockError::Taken(_))), "{refused:?}");
    assert!(start.elapsed() < PATIENT / 4);
    assert_eq!(dlm.shutdown(2 * PATIENT).await, 0);
    holder.release().await.unwrap();
}

/// With a ttl that is shorter than the wait in line.
#[tokio::test(start_paused = true)]
async fn the_validity_counts_from_the_end_of_the_wait_in_line() {
    let ttl = Duration::from_secs(1);
    let masters = Masters::new(3);
    let builder = Redlock::builder().testing(&masters);
    let dlm = builder.request_timeout(PATIENT).build().unwrap();
    masters.iter().for_each(|master| master.hang());
    let first = begin(&dlm, 0..MANY);
    settle().await;
    let late = tokio::spawn(dlm.lock("late", ttl).into_future());
    sleep(3 * ttl).await;
    assert!(!late.is_finished());
    masters.iter().for_each(|master| master.resume());
    let late = late.await.unwrap().expect("sent when there is room");
    assert!(late.validity() > ttl - 100 * MS, "{:?}", late.validity());
    drop((all_granted(first).await, late));
}

#[tokio::test(start_paused = true)]
async fn a_master_that_cannot_keep_up_gets_no_more_attempts_until_it_can() {
    let recorded = Recorded::new(3);
    let dlm = recorded.patient_client();
    let taken = dlm.lock("taken", TTL).await.unwrap();
    settle().await;
    recorded.masters[2].hang();
    let third_vote = async || {
        let refused = dlm.try_lock("taken", TTL).await;
        let Err(LockError::Taken(failure)) = refused else {
            panic!("{refused:?}");
        };
        failure
            .ballots
            .iter()
            .nth(2)
            .expect("three votes")
            .vote
            .clone()
    };
    let is_behind = |vote: &Vote| matches!(vote, Vote::Failed(MasterError::Behind(_)));
    let mut guards = all_granted(begin(&dlm, 0..MANY)).await;
    assert!(!is_behind(&third_vote().await), "a burst is no overload");
    // Longer than the window needs to grow with a burst.
    sleep(300 * MS).await;
    assert!(is_behind(&third_vote().await));
    guards.extend(all_granted(begin(&dlm, MANY..2 * MANY)).await);
    // What is held is kept and given back there all the same.
    taken.extend(2 * TTL).await.unwrap();
    settle().await;
    assert_eq!(recorded.sent(2).last(), Some(&Script("taken".into())));
    recorded.masters[2].resume();
    settle().await;
    assert!(!is_behind(&third_vote().await));
    assert!(recorded.masters[2].value(name(MANY - 1)).is_some());
    assert!(recorded.masters[2].value(name(MANY)).is_none(), "left out");
    let back = dlm.lock("back", TTL).await.unwrap();
    settle().await;
    assert!(recorded.masters[2].value("back").is_some());
    drop((guards, taken, back));
    assert_eq!(dlm.shutdown(PATIENT).await, 0);
    assert!(recorded.are_empty());
}
