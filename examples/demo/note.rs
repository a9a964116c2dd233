//! Something worth telling that happened.

use std::fmt;
use std::time::Duration;

pub(crate) struct Note {
    /// Since the beginning.
    pub(crate) at: Duration,
    /// One of ours, injected.
    pub(crate) is_fault: bool,
    pub(crate) text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5.1} s  {}", self.at.as_secs_f64(), self.text)
    }
}
