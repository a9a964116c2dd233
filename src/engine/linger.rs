//! How the end of a runtime or of a process waits for what was handed to the engine just before.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::{Running, Stopped};

/// The longest that all who block wait together: enough for a busy machine, and no noticeable pause.
const LONGEST: Duration = Duration::from_millis(250);

/// Until when those who block may do so; `None` while nobody blocks. However many guards are dropped while the engine
/// gets nothing done, they wait for `LONGEST` in all.
#[derive(Clone, Default)]
pub(super) struct Grace(Arc<Mutex<Option<Instant>>>);

impl Grace {
    /// Waits until the output is there. On a runtime a task waits, and the caller goes on; elsewhere the caller waits.
    pub(super) fn wait_for(&self, written: Running<()>) {
        let lingering = Lingering {
            written,
            grace: self.clone(),
            is_over: false,
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(lingering)),
            Err(_) => drop(lingering),
        }
    }

    fn deadline(&self) -> Instant {
        let mut deadline = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *deadline.get_or_insert_with(|| Instant::now() + LONGEST)
    }

    fn renew(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A wait that cannot be cut short: dropped before it is over, as a runtime does with its tasks when it shuts down, it
/// blocks the thread for the rest.
struct Lingering {
    written: Running<()>,
    grace: Grace,
    is_over: bool,
}

impl Future for Lingering {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let written: Result<(), Stopped> = ready!(pin!(&mut self.written).poll(cx));
        self.is_over = true;
        if written.is_ok() {
            self.grace.renew();
        }
        Poll::Ready(())
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.is_over || self.written.is_forked() {
            return;
        }
        let deadline = self.grace.deadline();
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        while pin!(&mut *self).poll(&mut cx).is_pending() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }
}

/// Wakes a thread that blocks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
