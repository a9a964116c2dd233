//! What tests build on: masters in memory, which the crate offers to its users, and the real servers of our own
//! tests.

#[cfg(feature = "test-util")]
mod memory;
mod servers;
