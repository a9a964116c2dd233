//! What tests stand on: masters in memory, which the crate has for its users, and the real servers of its own tests.

#[cfg(feature = "test-util")]
mod memory;
mod servers;
