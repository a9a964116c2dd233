//! The Redis distributed lock (Redlock) for async Rust.

mod builder;
mod claim;
mod clock;
mod error;
mod farewell;
mod guard;
pub mod inspect;
mod keep_alive;
mod lease;
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
    Address, AdoptError, Attempts, Ballot, Ballots, BuildError, ExtendError, LockError, Loss, Lost,
    MasterError, ReleaseError, RunError, TtlError, Vote,
};
pub use crate::guard::{Handover, LockGuard};
pub use crate::keep_alive::KeepAlive;
pub use crate::redlock::{LockRequest, Redlock};
pub use crate::retry::{Delays, RetryPolicy};
