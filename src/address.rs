//! The address of a master.

use std::fmt;
use std::sync::Arc;

/// The address of a master: `host:port`, or the path of a socket. A connection that was handed in has its place among
/// the masters instead, as in `connection 3`. Never contains a user or a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address(Arc<str>);

impl Address {
    pub(crate) fn new(address: impl Into<Arc<str>>) -> Self {
        Self(address.into())
    }

    /// Returns the address as text.
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
