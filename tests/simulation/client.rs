//! A client that does what comes to its mind.

use std::future::{IntoFuture, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use crate::history::History;
use tokio_redlock::{ExtendError, Handover, KeepAlive, LockGuard, Redlock, RetryPolicy};

/// A random program over one client of the locks.
pub(crate) struct Client {
    pub(crate) name: usize,
    pub(crate) dlm: Redlock,
    pub(crate) history: History,
    pub(crate) rng: StdRng,
    pub(crate) longest_ttl: Duration,
}

impl Client {
    pub(crate) fn new(
        name: usize,
        dlm: Redlock,
        history: &History,
        seed: u64,
        longest_ttl: Duration,
    ) -> Self {
        Self {
            name,
            dlm,
            history: history.clone(),
            rng: StdRng::seed_from_u64(seed),
            longest_ttl,
        }
    }

    /// Locks, works, lets go, a few times.
    pub(crate) async fn run(mut self) {
        for _ in 0..self.rng.random_range(2..6) {
            self.pause(80).await;
            if self.rng.random_bool(0.02) {
                self.crowd().await;
            }
            if let Some((guard, kept_alive)) = self.lock().await {
                self.hold(guard, kept_alive).await;
            }
        }
    }

    /// Asks for more locks at once than the masters have room for, each on a resource of its own. Whoever gets a lock drops
    /// it. Some attempts are cancelled, also while they wait in line.
    async fn crowd(&mut self) {
        let (name, ttl) = (self.name, self.longest_ttl);
        let count = self.rng.random_range(60..150);
        self.history
            .note(|_| {}, || format!("{name} asks for {count} locks at once"));
        let mut attempts = Vec::new();
        for number in 0..count {
            let request = self.dlm.lock(format!("{name}:{number}"), ttl);
            let request = request.retry(RetryPolicy::new().max_wait(self.millis(0..2_000)));
            let patience = self.millis(0..4_000);
            attempts.push(timeout(patience, request.into_future()));
        }
        let ended = join_all(attempts).await;
        let granted = ended.iter().filter(|it| matches!(it, Ok(Ok(_)))).count();
        self.history
            .note(|_| {}, || format!("{name} got {granted} locks of {count}"));
    }

    /// A guard, and whether it is kept alive.
    async fn lock(&mut self) -> Option<(Arc<LockGuard>, bool)> {
        let name = self.name;
        let resource = if self.rng.random_bool(0.8) { "r" } else { "s" };
        let ttl = self.ttl();
        let mut request = self.dlm.lock(resource, ttl).retry(self.retry());
        let kept_alive = self.rng.random_bool(0.3);
        if kept_alive {
            let mut keep_alive = KeepAlive::new();
            if self.rng.random_bool(0.3) {
                keep_alive = keep_alive.max_lifetime(self.millis(1..2_000));
            }
            request = request.keep_alive(keep_alive);
        }
        self.history
            .note(|_| {}, || format!("{name} asks for {resource} for {ttl:?}"));
        match self.perhaps_cancelled(request.into_future()).await {
            Some(Ok(guard)) => {
                let guard = Arc::new(guard);
                self.history.granted(name, &guard);
                Some((guard, kept_alive))
            }
            Some(Err(error)) => {
                let denied = || format!("{name} denied: {error}");
                self.history.note(|counts| counts.denied += 1, denied);
                None
            }
            None => {
                let cancelled = || format!("{name} cancelled its request");
                self.history.note(|counts| counts.cancelled += 1, cancelled);
                None
            }
        }
    }

    /// Works and extends until it is enough, or the lock is lost.
    async fn hold(&mut self, guard: Arc<LockGuard>, kept_alive: bool) {
        for _ in 0..self.rng.random_range(0..4) {
            let work = sleep(self.millis(0..400));
            let lost = tokio::select! {
                biased;
                loss = guard.lost() => Some(loss),
                () = work => None,
            };
            if lost.is_some()
                || (self.rng.random_bool(0.6) && !self.extend(&guard, kept_alive).await)
            {
                self.history.note(|counts| counts.lost += 1, String::new);
                self.history.ended(self.name, &guard, "lost");
                if self.rng.random_bool(0.5) {
                    // It may take a while until it notices.
                    self.pause(1_000).await;
                }
                return;
            }
        }
        let let_go = |how| {
            self.history.ended(self.name, &guard, how);
            Arc::into_inner(guard).expect("the history keeps none")
        };
        match self.rng.random_range(0..9) {
            0..4 => {
                let release = let_go("releases").release();
                let outcome = self.perhaps_cancelled(release).await;
                let name = self.name;
                self.history
                    .note(|_| {}, || format!("{name} released: {outcome:?}"));
            }
            4..8 => drop(let_go("drops")),
            _ => {
                let handover = let_go("leaks").leak();
                self.take_over(handover).await;
            }
        }
    }

    /// Takes a lock over that was leaked, after a while, and holds it for another.
    async fn take_over(&mut self, mut handover: Handover) {
        let name = self.name;
        let (valid_until, ttl) = (Instant::now() + handover.validity, self.ttl());
        self.pause(100).await;
        handover.validity = valid_until.saturating_duration_since(Instant::now());
        let adoption = self.dlm.adopt(handover, ttl);
        let adopted = self.perhaps_cancelled(adoption).await;
        self.history.note(
            |counts| counts.leaked += 1,
            || format!("{name} adopts for {ttl:?}: {adopted:?}"),
        );
        if let Some(Ok(guard)) = adopted {
            let guard = Arc::new(guard);
            self.history.granted(name, &guard);
            self.pause(400).await;
            self.history.ended(name, &guard, "drops");
        }
    }

    /// Whether the lock is still to be trusted.
    async fn extend(&mut self, guard: &Arc<LockGuard>, kept_alive: bool) -> bool {
        let name = self.name;
        let ttl = self.ttl();
        let valid_until = (!kept_alive).then(|| Instant::now() + guard.validity());
        self.history
            .note(|_| {}, || format!("{name} extends to {ttl:?}: {guard:?}"));
        match self.perhaps_cancelled(guard.extend(ttl)).await {
            Some(Ok(())) => {
                self.history.extended(name, guard, valid_until);
                true
            }
            Some(Err(error)) => {
                let failed = || format!("{name} not extended: {error}");
                self.history.note(|_| {}, failed);
                !matches!(error, ExtendError::Lost { .. })
            }
            None => {
                let cancelled = || format!("{name} cancelled its extension");
                self.history.note(|counts| counts.cancelled += 1, cancelled);
                true
            }
        }
    }

    /// Drives a future to its end, or drops it at one of its awaits or at some time.
    async fn perhaps_cancelled<F: Future>(&mut self, future: F) -> Option<F::Output> {
        match self.rng.random_range(0..8) {
            0 => polled(self.rng.random_range(1..12), future).await,
            1 => {
                let patience = self.millis(0..200);
                timeout(patience, future).await.ok()
            }
            _ => Some(future.await),
        }
    }

    fn ttl(&mut self) -> Duration {
        let longest = u64::try_from(self.longest_ttl.as_millis()).unwrap_or(u64::MAX);
        match self.rng.random_range(0..4) {
            0 => self.longest_ttl,
            1 => self.millis(50..300),
            _ => self.millis(50..longest),
        }
    }

    fn retry(&mut self) -> RetryPolicy {
        let policy = RetryPolicy::new().delay(self.millis(0..50), self.millis(50..400));
        match self.rng.random_range(0..4) {
            0 => RetryPolicy::once(),
            1 => policy.max_attempts(self.rng.random_range(2..6)),
            2 => policy.max_wait(self.millis(100..5_000)),
            _ => policy.forever(),
        }
    }

    async fn pause(&mut self, millis: u64) {
        let pause = self.millis(0..millis);
        sleep(pause).await;
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }
}

/// Polls a future so many times, and drops it if it is not ready by then.
async fn polled<F: Future>(mut times: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        times -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if times == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
