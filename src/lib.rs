//! The Redis distributed lock (Redlock) for async Rust.

mod builder;
mod claim;
mod clock;
mod error;
mod farewell;
mod guard;
mod master;
mod masters;
mod quorum;
mod redlock;
mod release;
mod retry;
mod shared;
mod trail;
mod validity;
mod value;

pub use redis;

pub use crate::builder::RedlockBuilder;
pub use crate::error::{
    Address, Attempts, Ballot, Ballots, BuildError, ExtendError, LockError, MasterError,
    ReleaseError, TtlError, Vote,
};
pub use crate::guard::LockGuard;
pub use crate::redlock::{LockRequest, Redlock};
pub use crate::retry::{Delays, RetryPolicy};
