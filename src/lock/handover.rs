//! A lock on its way to another process.

use std::time::Duration;

/// A lock on its way to another process, without a guard. Returned by [`LockGuard::leak`](crate::LockGuard::leak), and
/// taken over by [`Redlock::adopt`](crate::Redlock::adopt).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::Handover;
///
/// // The three parts, as received from the other process.
/// let handover = Handover::new("import", "9f0c1b", Duration::from_secs(8));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handover {
    /// The resource, without the key prefix.
    pub resource: Vec<u8>,
    /// The random value that marks the lock on the masters.
    pub value: String,
    /// How long the lock can be trusted. Subtract the time that the transfer to the other process takes.
    pub validity: Duration,
}

impl Handover {
    /// Makes a handover from what the other process has sent.
    pub fn new(resource: impl Into<Vec<u8>>, value: impl Into<String>, validity: Duration) -> Self {
        Self {
            resource: resource.into(),
            value: value.into(),
            validity,
        }
    }
}
