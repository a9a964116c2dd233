//! How the end of a runtime or of a process waits until the commands that were just submitted to the engine are
//! written.

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

/// The longest time for which all drops together block their threads. Enough for a busy machine to run the engine once,
/// and too short for a person to notice.
const DROP_TIMEOUT: Duration = Duration::from_millis(250);

/// The most tasks that may wait at a time. A runtime that nobody drives would otherwise collect tasks for ever.
const MAX_TASKS: usize = 1 << 16;

/// The state that all waits for the engine's thread share.
#[derive(Clone, Default)]
pub(super) struct Grace(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The end of the time for which drops may block. `None` while no drop blocks. However many guards are dropped
    /// while the engine makes no progress, they block for `DROP_TIMEOUT` in all.
    deadline: Mutex<Option<Instant>>,
    /// The number of waits that are not over.
    waiting: AtomicUsize,
}

impl Grace {
    /// Waits until the commands are written, or never will be. On a runtime a task waits and the caller continues.
    /// Elsewhere the caller blocks.
    pub(super) fn wait_for(&self, written: oneshot::Receiver<()>, process: u32) {
        // Relaxed: the number only limits how many tasks there are, and no other memory depends on it. The drop of
        // `Lingering` subtracts the 1 that is added here.
        let waiting = self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let lingering = Lingering {
            written: Some(written),
            process,
            grace: self.clone(),
        };
        match Handle::try_current() {
            // The task keeps the runtime from ending: a runtime that shuts down drops its tasks, and the drop of this
            // one blocks. A runtime that has shut down already drops the task here, with the same effect.
            Ok(runtime) if waiting < MAX_TASKS => drop(runtime.spawn(lingering)),
            // The drop blocks.
            _ => drop(lingering),
        }
    }

    /// The deadline for all drops that block now. The first of them sets it.
    fn until(&self) -> Instant {
        *self
            .deadline()
            .get_or_insert_with(|| Instant::now() + DROP_TIMEOUT)
    }

    /// Grants drops the full time again: the engine has made progress.
    pub(super) fn renew(&self) {
        *self.deadline() = None;
    }

    fn deadline(&self) -> MutexGuard<'_, Option<Instant>> {
        let deadline = self.0.deadline.lock();
        deadline.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that cannot be cut short: when it is dropped before its end, it blocks the thread for the rest of the time. A
/// runtime that shuts down drops its tasks, and so waits for the rest.
struct Lingering {
    /// `None` when the wait is over.
    written: Option<oneshot::Receiver<()>>,
    process: u32,
    grace: Grace,
}

impl Future for Lingering {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(written) = &mut self.written {
            // An error means that the engine has dropped the job: nothing will be written any more.
            let _ = ready!(written.poll_unpin(cx));
        }
        self.written = None;
        Poll::Ready(())
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.written.is_some() && self.process != process::id() {
            // The engine is that of the parent. The drop of the receiver would wake the parent's task, and for that
            // take a mutex that a thread of the parent may have held at the fork. The counter is the parent's as well,
            // so it is left as it is.
            forget(self.written.take());
            return;
        }
        if self.written.is_some() {
            self.block();
        }
        // After the block, so that a thread that blocks counts as a wait. Relaxed, as for the addition.
        self.grace.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lingering {
    /// Blocks the thread until the commands are written, or until the common deadline.
    fn block(&mut self) {
        // Fixed before the first wait: a renewal meanwhile is for later drops, and must not prolong this one.
        let deadline = self.grace.until();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        // Polled before the look at the deadline, so an answer that is already here is seen even after the deadline.
        // Unconstrained: the drop may happen in a task without budget left. Tokio would then report "pending" although
        // the answer is here, and wake this thread only when that task has returned.
        while pin!(unconstrained(&mut *self)).poll(&mut cx).is_pending() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            woken.wait(left);
        }
    }
}

/// Wakes a thread that blocks.
///
/// Parking and unparking would not do. A thread that is ending has no handle to unpark any more, and another executor
/// on this thread may rely on the unpark token that a wait here would consume.
#[derive(Default)]
struct Woken {
    is_woken: Mutex<bool>,
    changed: Condvar,
}

impl Woken {
    fn wait(&self, timeout: Duration) {
        let is_woken = self.lock();
        // With the flag under the mutex, a wake between the poll and this wait is not lost.
        let waited = self
            .changed
            .wait_timeout_while(is_woken, timeout, |is_woken| !*is_woken);
        let (mut is_woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        // Reset for the next wait. A wake that comes later sets it again.
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
