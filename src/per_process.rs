//! A value that each process has for itself. A forked child makes its own value and does not use that of its parent:
//! the threads of the parent do not exist in the child, and the mutexes that they held at the fork stay locked there.

use std::mem::forget;
use std::process;
use std::sync::OnceLock;

/// The values of this process and of its ancestors, oldest first.
///
/// A value is made outside of any lock. So a fork hardly ever happens while a lock here is held: only in the
/// nanoseconds in which a value is put in place.
pub(crate) struct PerProcess<T> {
    /// A value and the process that made it. Written once: a child leaves the entry of its parent untouched, because
    /// its drop could take a mutex that nobody unlocks.
    value: OnceLock<(u32, T)>,
    /// The entry of a process that was forked after the value was made.
    child: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self {
            value: OnceLock::new(),
            child: OnceLock::new(),
        }
    }

    /// Returns the value of this process, and makes the value if there is none. If two threads make a value at once,
    /// one of the two is dropped.
    pub(crate) fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        // Read on every call: nothing informs this process that it was forked.
        let process = process::id();
        let mut entry = self;
        loop {
            match entry.value.get() {
                // The common case takes no lock: a set `OnceLock` is one load.
                Some((owner, value)) if *owner == process => return Ok(value),
                // An ancestor's value. Only an empty box is made under the lock of the `OnceLock`, to keep that short.
                Some(_) => entry = entry.child.get_or_init(|| Box::new(Self::new())),
                None => break,
            }
        }
        // Outside the lock of the `OnceLock`. `make` may take long, and a fork meanwhile would leave a lock in the
        // child that nobody unlocks. An error leaves the entry empty, so the next call tries again.
        let made = make()?;
        Ok(&entry.value.get_or_init(|| (process, made)).1)
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        let made = self.get_or_try_init(|| Ok::<_, std::convert::Infallible>(make()));
        made.unwrap_or_else(|never| match never {})
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        // An ancestor's value is leaked: its drop could join threads or take mutexes that exist in the ancestor only.
        if let Some(value) = self.value.take()
            && value.0 != process::id()
        {
            forget(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_makes_its_value_once() {
        let value = PerProcess::new();
        assert_eq!(value.get_or_try_init(|| Err::<i32, _>("no")), Err("no"));
        assert_eq!(value.get_or_init(|| 1), &1);
        assert_eq!(value.get_or_init(|| 2), &1);
    }

    #[test]
    fn a_value_of_another_process_is_neither_used_nor_dropped() {
        struct Dropped;

        impl Drop for Dropped {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }

        let value = PerProcess::new();
        let _ = value.value.set((process::id() + 1, Some(Dropped)));
        assert!(value.get_or_init(|| None).is_none());
        drop(value);
    }
}
