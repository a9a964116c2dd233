//! Mutexes that no panic poisons, and a value that tasks wait for to change.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Takes a mutex, also after a panic of its last holder. No code of this crate leaves a half-changed value behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that tasks wait for to change. Wakes the tasks in the order in which they came.
///
/// `tokio::sync::watch` wakes them in a random order. Requests that waited for a connection would then be sent out of
/// turn, and a simulation would not take the same course twice.
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

    /// Sets another value, if it says so by `true`, and tells those who wait.
    pub(crate) fn modify(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = modify(&mut self.borrow());
        if modified {
            self.changed.notify_waiters();
        }
        modified
    }

    pub(crate) fn set(&self, value: T) {
        self.modify(|old| {
            *old = value;
            true
        });
    }

    /// Waits until a look, now or after any change, gives a result. `before` comes before every look, which sees
    /// what that has changed: it wakes others, but not this one.
    pub(crate) async fn wait_for<R>(&self, before: impl Fn(), look: impl Fn(&T) -> Option<R>) -> R {
        let _watcher = Watcher::new(&self.watchers);
        loop {
            before();
            // From here on no change is missed.
            let changed = self.changed.notified();
            let seen = look(&self.borrow());
            if let Some(result) = seen {
                return result;
            }
            changed.await;
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use futures::FutureExt;

    use super::*;

    /// Else it would never rest where what it begins ends at once, as tasks do on a runtime that shuts down.
    #[test]
    fn nobody_wakes_himself() {
        let (watched, looks) = (FairWatch::new(0), Cell::new(0));
        let look = |_: &i32| {
            looks.set(looks.get() + 1);
            None::<()>
        };
        let waits = watched.wait_for(|| watched.set(1), look);
        assert_eq!(waits.now_or_never(), None);
        assert_eq!(looks.get(), 1);
        assert!(!watched.is_watched());
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
        let (watched, woken) = (FairWatch::new(false), RefCell::new(Vec::new()));
        let waits = (0..20).map(async |place| {
            let set = |set: &bool| set.then_some(());
            watched.wait_for(|| (), set).await;
            woken.borrow_mut().push(place);
        });
        let set = async {
            assert!(watched.is_watched());
            watched.set(true);
        };
        futures::join!(futures::future::join_all(waits), set);
        assert!(woken.into_inner().into_iter().eq(0..20));
    }
}
