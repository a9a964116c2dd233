//! Holding a lock: how it is extended, kept alive, shared, handed over and lost.

mod extend;
mod extend_faults;
mod handover;
mod keep_alive;
mod lost;
mod many;
#[cfg(feature = "test-util")]
mod renewals;
mod run;
mod sharing;
