//! Where a master is.

use std::fmt;
use std::sync::Arc;

/// Where a master is: `host:port`, a socket's path, or for a connection that was handed in, its place in the
/// list. Never a user or a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address(Arc<str>);

impl Address {
    pub(crate) fn new(address: impl Into<Arc<str>>) -> Self {
        Self(address.into())
    }

    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
