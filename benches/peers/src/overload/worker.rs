//! The inside of a worker process: one library under load.

use std::io::{self, BufRead, Write};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rslock::LockManager;
use tokio::runtime::{self, Runtime};
use tokio::time::{interval, timeout};
use tokio_redlock::Redlock;

use crate::child::end_with_parent;
use crate::harness::Floor;
use crate::library::{Library, Locker};
use crate::logs;
use crate::order::{Counts, HOLD_LIMIT, Order, SETTLE_LIMIT, STOP_LIMIT};
use crate::process::cpu_time;

pub(crate) const ROLE: &str = "worker";

/// As many cycles come before all orders, so that connections and scripts are there.
const WARM_UP: u32 = 100;

/// How often paced locks are started.
const TICKS_PER_SECOND: u32 = 100;

/// As many tasks take the locks that are held.
const HOLDERS: u32 = 64;

const POLL: Duration = Duration::from_millis(5);

pub(crate) fn run(library: &str, urls: &[String]) -> ExitCode {
    end_with_parent();
    logs::start();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    match Library::named(library) {
        Some(Library::Crate) => serve(&runtime, Redlock::new(urls).expect("valid masters")),
        Some(Library::Floor) => serve(&runtime, runtime.block_on(Floor::connect(urls))),
        Some(Library::Rslock) => serve(&runtime, LockManager::new(urls.to_vec())),
        None => {
            eprintln!("no such library: {library}");
            return ExitCode::FAILURE;
        }
    }
    for line in logs::summary() {
        eprintln!("{library} logged {line}");
    }
    // Whatever is under way is not waited for.
    process::exit(0)
}

/// Executes orders until no more come. Runs on a thread outside of the runtime, so it replies also when the runtime
/// hangs.
fn serve<L: Locker>(runtime: &Runtime, locker: L) {
    let mut worker = Worker {
        runtime,
        began: Instant::now(),
        load: Arc::new(Load::new(locker)),
        unconfirmed: 0,
    };
    worker.warm_up();
    println!("{}", worker.counts());
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        worker.carry_out(Order::parse(&line).expect("a valid order"));
        let answered = writeln!(io::stdout(), "{}", worker.counts());
        if answered.is_err() {
            break;
        }
    }
}

struct Worker<'a, L: Locker> {
    runtime: &'a Runtime,
    began: Instant,
    load: Arc<Load<L>>,
    unconfirmed: usize,
}

impl<L: Locker> Worker<'_, L> {
    fn warm_up(&self) {
        let load = Arc::clone(&self.load);
        self.runtime.block_on(async {
            for _ in 0..WARM_UP {
                load.cycle().await;
            }
        });
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Look => {}
            Order::Tasks(tasks) => {
                self.load.stopped.store(false, Ordering::Relaxed);
                for _ in 0..tasks {
                    self.spawn(|load| async move { load.repeat().await });
                }
            }
            Order::Pace(rate) => {
                self.load.stopped.store(false, Ordering::Relaxed);
                self.spawn(move |load| async move { load.pace(rate).await });
            }
            Order::Hold(locks, ttl) => self.hold(locks, Duration::from_secs(ttl.into())),
            Order::Stop => {
                self.load.stopped.store(true, Ordering::Relaxed);
                self.wait_for_tasks(STOP_LIMIT);
            }
            Order::Settle => {
                let settled = self.load.locker.settle(SETTLE_LIMIT);
                // The limit of the library may not work under load, so this is one more.
                let settled = async { timeout(SETTLE_LIMIT + SETTLE_LIMIT / 2, settled).await };
                self.unconfirmed = self.runtime.block_on(settled).unwrap_or(usize::MAX);
            }
        }
    }

    fn hold(&self, locks: u32, ttl: Duration) {
        let left = Arc::new(AtomicU64::new(locks.into()));
        for _ in 0..HOLDERS {
            let left = Arc::clone(&left);
            self.spawn(move |load| async move { load.hold(&left, ttl).await });
        }
        self.wait_for_tasks(HOLD_LIMIT);
    }

    fn spawn<F>(&self, task: impl FnOnce(Arc<Load<L>>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running::new(&self.load);
        let task = task(Arc::clone(&self.load));
        self.runtime.spawn(async move {
            task.await;
            drop(running);
        });
    }

    fn wait_for_tasks(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.load.running.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            sleep(POLL);
        }
    }

    fn counts(&self) -> Counts {
        let load = &self.load;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let held = load.held.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = held.iter().filter(|held| !L::is_valid(held)).count();
        let (warnings, log_lines) = logs::counts();
        Counts {
            at: self.began.elapsed(),
            cpu: cpu_time(),
            locked: count(&load.locked),
            not_locked: count(&load.not_locked),
            released: count(&load.released),
            not_released: count(&load.not_released),
            running: count(&load.running),
            held: widen(held.len()),
            lost: widen(lost),
            unconfirmed: widen(self.unconfirmed),
            warnings,
            log_lines,
        }
    }
}

fn widen(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// What the tasks share.
struct Load<L: Locker> {
    locker: L,
    stopped: AtomicBool,
    locked: AtomicU64,
    not_locked: AtomicU64,
    released: AtomicU64,
    not_released: AtomicU64,
    running: AtomicU64,
    held: Mutex<Vec<L::Held>>,
    resources: AtomicU64,
}

impl<L: Locker> Load<L> {
    fn new(locker: L) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            locker,
            stopped: AtomicBool::new(false),
            locked: zero(),
            not_locked: zero(),
            released: zero(),
            not_released: zero(),
            running: zero(),
            held: Mutex::default(),
            resources: zero(),
        }
    }

    /// A resource that nobody has locked before, no other worker either. All are equally long.
    fn fresh(&self) -> String {
        let number = self.resources.fetch_add(1, Ordering::Relaxed);
        format!("resource:{:010}:{number:012}", process::id())
    }

    async fn cycle(&self) {
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let Some(held) = self.locker.lock(&self.fresh()).await else {
            return count(&self.not_locked);
        };
        count(&self.locked);
        if self.locker.release(held).await {
            count(&self.released);
        } else {
            count(&self.not_released);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    async fn repeat(&self) {
        while !self.is_stopped() {
            self.cycle().await;
        }
    }

    /// Starts so many cycles per second. Ticks that come too late are made up for.
    async fn pace(self: &Arc<Self>, rate: u32) {
        let per_tick = rate / TICKS_PER_SECOND;
        let mut ticks = interval(Duration::from_secs(1) / TICKS_PER_SECOND);
        while !self.is_stopped() {
            ticks.tick().await;
            for _ in 0..per_tick {
                let running = Running::new(self);
                tokio::spawn(async move {
                    running.0.cycle().await;
                    drop(running);
                });
            }
        }
    }

    /// Takes locks that are kept alive while there are some left to take.
    async fn hold(&self, left: &AtomicU64, ttl: Duration) {
        let take = |left: u64| left.checked_sub(1);
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
        {
            let Some(held) = self.locker.keep(&self.fresh(), ttl).await else {
                self.not_locked.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(held);
        }
    }
}

/// Counts a task while it exists.
struct Running<L: Locker>(Arc<Load<L>>);

impl<L: Locker> Running<L> {
    fn new(load: &Arc<Load<L>>) -> Self {
        load.running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl<L: Locker> Drop for Running<L> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Release);
    }
}
