//! A value that each process has for itself: a forked child makes its own instead of using that of its parent, whose
//! threads it does not have, and whose locks those threads may have left taken.

use std::mem::forget;
use std::process;
use std::sync::OnceLock;

/// The values of this process and of those that it was forked from, oldest first.
///
/// What makes a value runs outside of any lock, so that hardly any can be taken at the moment of a fork: only for the
/// nanoseconds in which the value is put in its place.
pub(crate) struct PerProcess<T> {
    /// The value and the process that it belongs to.
    value: OnceLock<(u32, T)>,
    child: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self {
            value: OnceLock::new(),
            child: OnceLock::new(),
        }
    }

    /// The value of this process; made now if there is none. Where two threads make one at once, one is dropped.
    pub(crate) fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let process = process::id();
        let mut entry = self;
        loop {
            match entry.value.get() {
                Some((owner, value)) if *owner == process => return Ok(value),
                Some(_) => entry = entry.child.get_or_init(|| Box::new(Self::new())),
                None => break,
            }
        }
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
