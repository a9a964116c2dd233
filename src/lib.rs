//! Redlock.
