//! The inside of a worker process: tasks that lock, work and let go, in every way there is.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_redlock::{KeepAlive, LockGuard, Redlock, RetryPolicy};

use crate::clock;
use crate::report::Report;

pub(crate) const ROLE: &str = "worker";

/// A worker that is never killed. It also takes locks that nobody else wants and that do not end by themselves, so that
/// whatever is left of them is found at the end.
pub(crate) const STEADY: &str = "steady";

/// No lock that several want lasts for longer.
pub(crate) const LONGEST_TTL: Duration = Duration::from_secs(3);

const TASKS: usize = 6;
const RESOURCES: u32 = 3;

/// Longer than any soak.
const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Locks until the parent closes the pipe, or is no more.
#[tokio::main]
pub(crate) async fn run(options: &[String]) {
    let (steady, masters): (Vec<_>, Vec<_>) = options.iter().partition(|option| *option == STEADY);
    let dlm = Redlock::new(masters.iter().map(|url| url.as_str())).expect("valid masters");
    let stopped = Arc::new(AtomicBool::new(false));
    stop_with_pipe(Arc::clone(&stopped));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(
            Task {
                dlm: dlm.clone(),
                steady: !steady.is_empty(),
                stopped: Arc::clone(&stopped),
            }
            .run(),
        );
    }
    tasks.join_all().await;
    // Longer than it takes until all masters answer again.
    let unconfirmed = dlm.shutdown(4 * LONGEST_TTL).await;
    say(&Report::Done { unconfirmed });
}

struct Task {
    dlm: Redlock,
    steady: bool,
    stopped: Arc<AtomicBool>,
}

impl Task {
    async fn run(self) {
        while !self.stopped.load(Ordering::Relaxed) {
            if let Some((guard, from)) = self.lock().await {
                hold(guard, from).await;
            }
            sleep(random(0, 10)).await;
        }
    }

    async fn lock(&self) -> Option<(LockGuard, Duration)> {
        let (resource, ttl) = if self.steady && one_in(2) {
            (fresh(), FOR_EVER)
        } else {
            let resource = format!("r{}", rand::rng().random_range(0..RESOURCES));
            (resource, random(100, 3_000).min(LONGEST_TTL))
        };
        let retry = RetryPolicy::new().max_wait(Duration::from_secs(1));
        let mut request = self.dlm.lock(resource, ttl).retry(retry);
        if one_in(3) {
            request = request.keep_alive(KeepAlive::new());
        }
        let patience = if one_in(5) { random(0, 8) } else { FOR_EVER };
        match timeout(patience, request.into_future()).await {
            Ok(Ok(guard)) => return Some((guard, clock::now())),
            Ok(Err(_)) => say(&Report::Denied),
            Err(_) => say(&Report::Cancelled),
        }
        None
    }
}

/// Works, extends now and then, and lets go.
async fn hold(guard: LockGuard, from: Duration) {
    let mut trusted_until = trust(&guard);
    let steps = rand::rng().random_range(0..5);
    for _ in 0..steps {
        tokio::select! {
            _ = guard.lost() => break,
            () = sleep(random(0, 150)) => {}
        }
        if one_in(2) {
            let extension = guard.extend(random(100, 3_000).min(LONGEST_TTL));
            let patience = if one_in(4) { random(0, 3) } else { FOR_EVER };
            // In time or not, confirmed or not: that is what the validity says.
            let _ = timeout(patience, extension).await;
        }
        trusted_until = trusted_until.max(trust(&guard));
    }
    let Some(trusted_until) = trusted_until else {
        // Over before it got here: this process was frozen.
        return say(&Report::Lost);
    };
    let now = clock::now();
    let until = if guard.is_valid() {
        now
    } else {
        say(&Report::Lost);
        trusted_until.min(now)
    };
    say(&Report::Held {
        resource: String::from_utf8_lossy(guard.resource()).into_owned(),
        from,
        until,
    });
    let way = rand::rng().random_range(0..3);
    match way {
        0 => drop(guard),
        1 => drop(timeout(random(0, 3), guard.release()).await),
        _ => drop(guard.release().await),
    }
}

/// Until when the holder may trust the lock, or a little less; `None` if it may not any more.
fn trust(guard: &LockGuard) -> Option<Duration> {
    // The time first: what is valid after it was so then.
    let now = clock::now();
    let validity = guard.validity();
    (!validity.is_zero()).then_some(now + validity)
}

fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("fresh{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn random(from_millis: u64, to_millis: u64) -> Duration {
    let micros = rand::rng().random_range(from_millis * 1_000..=to_millis * 1_000);
    Duration::from_micros(micros)
}

fn one_in(times: u32) -> bool {
    rand::rng().random_ratio(1, times)
}

fn say(report: &Report) {
    // A parent that is gone hears nothing, and closes the pipe that ends this process.
    let _ = writeln!(io::stdout(), "{report}");
}

/// On a thread of its own, since one of the runtime's would keep the process from ending.
fn stop_with_pipe(stopped: Arc<AtomicBool>) {
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        stopped.store(true, Ordering::Relaxed);
    });
}
