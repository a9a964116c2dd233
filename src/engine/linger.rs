//! How the end of a runtime or of a process waits for what was handed to the engine just before.

use std::mem::forget;
use std::pin::{Pin, pin};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::coop::unconstrained;

/// The longest that all who block wait together: enough for a busy machine, and no noticeable pause.
const LONGEST: Duration = Duration::from_millis(250);

/// More tasks than this do not wait at a time: a runtime that is not run would collect them for ever.
const MOST_TASKS: usize = 1 << 16;

/// What all waits for one engine share.
#[derive(Clone, Default)]
pub(super) struct Grace(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Until when those who block may do so; `None` while nobody blocks. However many guards are dropped while the
    /// engine gets nothing done, they wait for `LONGEST` in all.
    deadline: Mutex<Option<Instant>>,
    waiting: AtomicUsize,
}

impl Grace {
    /// Waits until it is written, or never will be. On a runtime a task waits, and the caller goes on; elsewhere the
    /// caller waits.
    pub(super) fn wait_for(&self, written: oneshot::Receiver<()>, process: u32) {
        let waiting = self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let lingering = Lingering {
            written: Some(written),
            process,
            grace: self.clone(),
        };
        match Handle::try_current() {
            Ok(runtime) if waiting < MOST_TASKS => drop(runtime.spawn(lingering)),
            _ => drop(lingering),
        }
    }

    fn until(&self) -> Instant {
        *self
            .deadline()
            .get_or_insert_with(|| Instant::now() + LONGEST)
    }

    pub(super) fn renew(&self) {
        *self.deadline() = None;
    }

    fn deadline(&self) -> MutexGuard<'_, Option<Instant>> {
        let deadline = self.0.deadline.lock();
        deadline.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that cannot be cut short: dropped before it is over, as a runtime does with its tasks when it shuts down, it
/// blocks the thread for the rest.
struct Lingering {
    /// `None` when it is over.
    written: Option<oneshot::Receiver<()>>,
    process: u32,
    grace: Grace,
}

impl Future for Lingering {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(written) = &mut self.written {
            // An error if the engine has ended.
            let _ = ready!(written.poll_unpin(cx));
        }
        self.written = None;
        Poll::Ready(())
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.written.is_some() && self.process != process::id() {
            // The engine is that of a parent, and its thread may have left a lock taken.
            forget(self.written.take());
            return;
        }
        if self.written.is_some() {
            self.block();
        }
        self.grace.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lingering {
    fn block(&mut self) {
        let deadline = self.grace.until();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        // Unconstrained, or a task that has used up its budget would wait for nothing.
        while pin!(unconstrained(&mut *self)).poll(&mut cx).is_pending() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            woken.wait(left);
        }
    }
}

/// Wakes a thread that blocks. Not by unparking it: a thread that ends has no handle any more, and another executor on
/// this thread may rely on its own unparking.
#[derive(Default)]
struct Woken {
    is_woken: Mutex<bool>,
    changed: Condvar,
}

impl Woken {
    fn wait(&self, timeout: Duration) {
        let is_woken = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(is_woken, timeout, |is_woken| !*is_woken);
        let (mut is_woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *is_woken = false;
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        *self.lock() = true;
        self.changed.notify_one();
    }
}
