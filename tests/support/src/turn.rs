//! How many tests have masters at the same time.

use std::cell::RefCell;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;

/// The clients of all tests in a process share one thread for their connections. With more tests than this at a time
/// that thread falls behind on a machine with many cores, and tests that measure time fail.
const MOST: usize = 4;

/// The right of a test to have masters. It is given back when the last copy is dropped.
///
/// A test has one for all its masters, or two tests that each want a second one could wait for each other for ever. That
/// is why all masters that a thread starts share it.
#[derive(Debug)]
pub(crate) struct Turn(());

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

thread_local! {
    static OF_THIS_TEST: RefCell<Weak<Turn>> = const { RefCell::new(Weak::new()) };
}

impl Turn {
    /// Blocks the thread until fewer other tests have masters.
    pub(crate) fn take() -> Arc<Self> {
        OF_THIS_TEST.with_borrow_mut(|turn| {
            turn.upgrade().unwrap_or_else(|| {
                let taken = Arc::new(Self::wait());
                *turn = Arc::downgrade(&taken);
                taken
            })
        })
    }

    fn wait() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let taken = TAKEN.lock().expect("nobody panics");
        let is_full = |taken: &mut usize| *taken >= cores.min(MOST);
        let mut taken = GIVEN_BACK
            .wait_while(taken, is_full)
            .expect("nobody panics");
        *taken += 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().expect("nobody panics") -= 1;
        GIVEN_BACK.notify_one();
    }
}
