//! Mutexes that no panic poisons, and a value whose changes tasks wait for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Locks a mutex, also after a panic of its last holder. No code of this crate leaves a half-changed value behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value whose changes tasks wait for. Wakes the tasks in the order in which they began to wait.
///
/// `tokio::sync::watch` wakes them in a random order. Then requests that wait for a connection would be sent out of turn,
/// and a simulation would not repeat itself.
pub(crate) struct FairWatch<T> {
    value: Mutex<T>,
    changed: Notify,
    watchers: AtomicUsize,
}

impl<T> FairWatch<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Notify::new(),
            watchers: AtomicUsize::new(0),
        }
    }

    pub(crate) fn borrow(&self) -> MutexGuard<'_, T> {
        lock(&self.value)
    }

    /// Changes the value, and wakes the tasks that wait if `modify` returns `true`.
    pub(crate) fn modify(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let is_modified = modify(&mut self.borrow());
        // After the lock is released, so that the tasks on other threads do not wait for it as soon as they are woken.
        if is_modified {
            self.changed.notify_waiters();
        }
        is_modified
    }

    /// Waits until `inspect` returns a result, now or after a change.
    ///
    /// `before` is called ahead of each `inspect` and may change the value. Such a change wakes other tasks, but not this
    /// one, because `inspect` sees it.
    pub(crate) async fn wait_for<R>(
        &self,
        before: impl Fn(),
        inspect: impl Fn(&T) -> Option<R>,
    ) -> R {
        let _watcher = Watcher::new(&self.watchers);
        loop {
            before();
            // `Notified` receives every `notify_waiters` from its creation on, even before its first poll. It is made
            // after `before`, or this task would wake itself, and before `inspect`, or a change in between would be missed.
            let changed = self.changed.notified();
            let seen = inspect(&self.borrow());
            if let Some(result) = seen {
                return result;
            }
            changed.await;
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        // Relaxed: the number guards no other memory. A task that begins to wait just after this starts again what has
        // been stopped.
        self.watchers.load(Ordering::Relaxed) > 0
    }
}

/// A task that waits. It is counted for as long as this exists.
struct Watcher<'a>(&'a AtomicUsize);

impl<'a> Watcher<'a> {
    fn new(watchers: &'a AtomicUsize) -> Self {
        // Relaxed: see `is_watched`.
        watchers.fetch_add(1, Ordering::Relaxed);
        Self(watchers)
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use futures::FutureExt;

    use super::*;

    fn set<T>(watched: &FairWatch<T>, value: T) {
        watched.modify(|old| {
            *old = value;
            true
        });
    }

    /// Otherwise it would loop for ever on a runtime that shuts down, where each task that it spawns ends at once.
    #[test]
    fn a_task_that_waits_does_not_wake_itself() {
        let (watched, calls) = (FairWatch::new(0), Cell::new(0));
        let inspect = |_: &i32| {
            calls.set(calls.get() + 1);
            None::<()>
        };
        let waits = watched.wait_for(|| set(&watched, 1), inspect);
        assert_eq!(waits.now_or_never(), None);
        assert_eq!(calls.get(), 1);
        assert!(!watched.is_watched());
    }

    #[tokio::test]
    async fn tasks_are_woken_in_the_order_in_which_they_began_to_wait() {
        let (watched, woken) = (FairWatch::new(false), RefCell::new(Vec::new()));
        let waits = (0..20).map(async |place| {
            watched.wait_for(|| (), |set| set.then_some(())).await;
            woken.borrow_mut().push(place);
        });
        let change = async {
            assert!(watched.is_watched());
            set(&watched, true);
        };
        futures::join!(futures::future::join_all(waits), change);
        assert!(woken.into_inner().into_iter().eq(0..20));
    }
}
