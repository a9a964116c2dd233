//! A quorum that is known to be down: a loop of attempts starves no other task, sends nothing, and succeeds soon after
//! the masters are back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{LONG, Masters, Proxy, Servers, eventually_async, unique};
use tokio::time::sleep;
use tokio_redlock::{ExtendError, LockError, LockGuard, MasterError, Redlock, Vote};

/// So long that no key and no lock ends by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// How long each loop goes on while the quorum is down.
const LOOPING: Duration = Duration::from_millis(500);

/// Ten times as long as a client may take to notice that a master is back.
const SOON: Duration = Duration::from_secs(3);

/// After so long without a new request, all requests that were sent have arrived.
const QUIET: Duration = Duration::from_millis(150);

/// How the two masters behind proxies go away. Both keep their keys.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Refused,
    Hung,
}

const FAULTS: [Fault; 2] = [Fault::Refused, Fault::Hung];

/// What a task does again and again.
#[derive(Clone, Copy, Debug)]
enum Operation {
    TryLock,
    Extend,
}

/// A client of three masters, two of which are away.
struct Client {
    masters: Masters,
    dlm: Redlock,
    /// A lock that every master holds.
    guard: LockGuard,
    /// The resource that `try_lock` asks for.
    resource: String,
}

impl Client {
    /// Makes two masters unreachable, and waits until the client knows.
    async fn that_knows_of(fault: Fault) -> Self {
        let masters = Masters::start(3).with_proxies([1, 2]);
        let dlm = masters.client();
        let guard = dlm.lock(unique("held"), TTL).await.expect("it is free");
        masters.eventually_hold(&guard).await;
        for proxy in masters.proxies() {
            match fault {
                Fault::Refused => proxy.refuse(),
                Fault::Hung => proxy.hang(),
            }
        }
        let client = Self {
            masters,
            dlm,
            guard,
            resource: unique("lock"),
        };
        let knows = async || client.knows().await;
        eventually_async("the client knows", LONG, knows).await;
        client
    }

    async fn knows(&self) -> bool {
        let attempt = self.dlm.try_lock(&self.resource, TTL).await;
        let Err(LockError::Unreachable(attempts)) = attempt else {
            panic!("{attempt:?}");
        };
        let down = attempts.ballots.iter().filter(|ballot| {
            let error = match &ballot.vote {
                Vote::Failed(error) => error,
                _ => return false,
            };
            matches!(error, MasterError::Connect(_) | MasterError::Hung(_))
        });
        down.count() == 2
    }

    /// Returns whether it succeeded. The masters that are down are the only reason for a failure.
    async fn attempt(&self, operation: Operation) -> bool {
        match operation {
            Operation::TryLock => match self.dlm.try_lock(&self.resource, TTL).await {
                Ok(_guard) => true,
                Err(LockError::Unreachable(_)) => false,
                Err(other) => panic!("{other:?}"),
            },
            Operation::Extend => match self.guard.extend(TTL).await {
                Ok(()) => true,
                Err(ExtendError::Unconfirmed { .. }) => false,
                Err(other) => panic!("{other:?}"),
            },
        }
    }

    /// Attempts it for a while without a pause. Every attempt fails.
    async fn attempt_in_a_loop(&self, operation: Operation) {
        let start = Instant::now();
        let mut attempts = 0;
        while start.elapsed() < LOOPING {
            assert!(!self.attempt(operation).await);
            attempts += 1;
        }
        assert!(attempts > 10, "{attempts} attempts are no loop");
    }

    /// How many requests the healthy master has executed. Waits until no more arrive.
    async fn requests(&self) -> u64 {
        let mut last = (0, Instant::now());
        eventually_async("no more requests come", LONG, async || {
            let commands = ["set", "evalsha", "eval"].iter();
            let requests = commands.map(|command| self.masters[0].calls(command)).sum();
            if last.0 != requests {
                last = (requests, Instant::now());
            }
            last.1.elapsed() > QUIET
        })
        .await;
        last.0
    }
}

async fn other_tasks_get_turns(operation: Operation) {
    for fault in FAULTS {
        let client = Client::that_knows_of(fault).await;
        let ticks = Arc::new(AtomicU64::new(0));
        let ticking = tokio::spawn(tick(Arc::clone(&ticks)));
        client.attempt_in_a_loop(operation).await;
        let ticks = ticks.load(Ordering::Relaxed);
        ticking.abort();
        assert!(ticks >= 20, "{ticks} ticks in {LOOPING:?}, {fault:?}");
    }
}

async fn tick(ticks: Arc<AtomicU64>) {
    loop {
        sleep(Duration::from_millis(1)).await;
        ticks.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn other_tasks_get_turns_beside_a_loop_of_try_lock() {
    other_tasks_get_turns(Operation::TryLock).await;
}

#[tokio::test]
async fn other_tasks_get_turns_beside_a_loop_of_extend() {
    other_tasks_get_turns(Operation::Extend).await;
}

async fn masters_that_are_back_are_noticed(operation: Operation) {
    for fault in FAULTS {
        let client = Client::that_knows_of(fault).await;
        client.attempt_in_a_loop(operation).await;
        client.masters.proxies().for_each(Proxy::resume);
        let back = Instant::now();
        while !client.attempt(operation).await {
            assert!(back.elapsed() < SOON, "not noticed, {fault:?}");
        }
        // The lock that was held all the time is not lost, and nothing else is left.
        client.guard.release().await.expect("still ours");
        assert_eq!(client.dlm.shutdown(LONG).await, 0);
        assert!(client.masters.are_empty());
    }
}

#[tokio::test]
async fn masters_that_are_back_are_noticed_by_a_loop_of_try_lock() {
    masters_that_are_back_are_noticed(Operation::TryLock).await;
}

#[tokio::test]
async fn masters_that_are_back_are_noticed_by_a_loop_of_extend() {
    masters_that_are_back_are_noticed(Operation::Extend).await;
}

/// A request that cannot win a quorum would have to be undone, in each turn of the loop.
async fn nothing_is_sent(operation: Operation) {
    for fault in FAULTS {
        let client = Client::that_knows_of(fault).await;
        let before = client.requests().await;
        client.attempt_in_a_loop(operation).await;
        let sent = client.requests().await - before;
        assert_eq!(sent, 0, "requests to the healthy master, {fault:?}");
    }
}

#[tokio::test]
async fn a_loop_of_try_lock_sends_nothing_to_the_healthy_master() {
    nothing_is_sent(Operation::TryLock).await;
}

#[tokio::test]
async fn a_loop_of_extend_sends_nothing_to_the_healthy_master() {
    nothing_is_sent(Operation::Extend).await;
}

#[cfg(target_os = "linux")]
mod memory {
    use super::*;

    use std::fs;

    use support::{passes, test_process};

    /// Far more than a loop needs that leaves nothing, and far less than one whose requests are never sent.
    const LITTLE: u64 = 30 << 20;

    async fn does_not_grow(operation: Operation) {
        for fault in FAULTS {
            let client = Client::that_knows_of(fault).await;
            let before = resident();
            client.attempt_in_a_loop(operation).await;
            let grown = resident().saturating_sub(before);
            assert!(grown < LITTLE, "{} MB more, {fault:?}", grown >> 20);
        }
    }

    /// The memory of this process, in bytes.
    fn resident() -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
        let mut words = status.split_whitespace();
        let kilobytes = words
            .find(|word| *word == "VmRSS:")
            .and_then(|_| words.next());
        let kilobytes: Option<u64> = kilobytes.and_then(|number| number.parse().ok());
        kilobytes.expect("a number of kilobytes") << 10
    }

    /// Runs a test below, ignored otherwise, as a process of its own. In this process a loop could use the memory that
    /// other tests have freed, and the process would not grow.
    fn run(child: &str) {
        passes(test_process(module_path!(), child));
    }

    #[test]
    fn does_not_grow_with_a_loop_of_try_lock() {
        run("of_a_loop_of_try_lock");
    }

    #[test]
    fn does_not_grow_with_a_loop_of_extend() {
        run("of_a_loop_of_extend");
    }

    #[tokio::test]
    #[ignore = "run by another test"]
    async fn of_a_loop_of_try_lock() {
        does_not_grow(Operation::TryLock).await;
    }

    #[tokio::test]
    #[ignore = "run by another test"]
    async fn of_a_loop_of_extend() {
        does_not_grow(Operation::Extend).await;
    }
}
