//! A value that tasks wait for to change, woken in the order in which they came.
//!
//! `tokio::sync::watch` wakes them in a random order. Requests that waited for a connection would then be handed
//! over out of turn, and no simulation would take the same course twice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub(super) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
    watchers: AtomicUsize,
}

impl<T> Watched<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Notify::new(),
            watchers: AtomicUsize::new(0),
        }
    }

    pub(super) fn borrow(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets another value, if it says so by `true`, and tells those who wait.
    pub(super) fn modify(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = modify(&mut self.borrow());
        if modified {
            self.changed.notify_waiters();
        }
        modified
    }

    pub(super) fn set(&self, value: T) {
        self.modify(|old| {
            *old = value;
            true
        });
    }

    /// Waits for the next change from here on.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + use<'_, T> {
        let watcher = Watcher::new(&self.watchers);
        let changed = self.changed.notified();
        async move {
            let _watcher = watcher;
            changed.await;
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }
}

/// One who waits, counted as long as this exists.
struct Watcher<'a>(&'a AtomicUsize);

impl<'a> Watcher<'a> {
    fn new(watchers: &'a AtomicUsize) -> Self {
        watchers.fetch_add(1, Ordering::Relaxed);
        Self(watchers)
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
