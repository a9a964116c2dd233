//! What the parent waits for.

use thiserror::Error;

use crate::report::Report;

#[derive(Debug)]
pub(crate) enum Event {
    /// A worker, by its place, has something to tell.
    Report(usize, Report),
    /// A worker will tell nothing any more.
    Ended(usize),
    Interrupted(Interrupted),
}

/// By a signal.
#[derive(Clone, Copy, Debug, Error)]
#[error("interrupted")]
pub(crate) struct Interrupted {
    /// As shells have it: 128 and the number of the signal.
    pub(crate) exit_code: u8,
}
