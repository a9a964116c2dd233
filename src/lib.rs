//! The Redis distributed lock (Redlock) for async Rust: a lock on a resource, held by a quorum of independent Redis
//! or Valkey masters for a limited time.
//!
//! ```no_run
//! use std::time::Duration;
//! use tokio_redlock::Redlock;
//!
//! # async fn charge() {}
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let dlm = Redlock::new(["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"])?;
//! let guard = dlm.lock("invoice:42", Duration::from_secs(30)).await?;
//! charge().await;
//! guard.release().await?; // or drop it: released in the background
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//!
//! - [`Redlock`] is the client: [`lock`](Redlock::lock) waits as a [`RetryPolicy`] says, [`try_lock`](Redlock::try_lock)
//!   asks once, and [`shutdown`](Redlock::shutdown) waits for the releases under way. [`RedlockBuilder`] has the options.
//! - [`LockGuard`] is the lock: its [`validity`](LockGuard::validity), [`extend`](LockGuard::extend),
//!   [`release`](LockGuard::release), and [`leak`](LockGuard::leak). Dropped, it is released. It tells when it is
//!   [`lost`](LockGuard::lost), and can [`run`](LockGuard::run) work for as long as it is good.
//! - [`KeepAlive`] extends a lock for as long as its guard exists; [`with_lock`](Redlock::with_lock) does that around
//!   some work. [`inspect`](Redlock::inspect) asks who holds a lock, [`adopt`](Redlock::adopt) takes one over.
//! - [`LockError`], [`ExtendError`] and [`ReleaseError`] tell what happened, with the [`Ballots`] of all masters.
//!
//! # What it guarantees
//!
//! - Two holders of a resource are never valid at the same time, as long as masters keep what they confirmed until its
//!   ttl is over, and clocks run apart by no more than the [drift](RedlockBuilder::drift_factor).
//! - The validity counts from before the first byte is sent: ttl, less elapsed time, less drift. The clock counts the
//!   time that the machine was suspended, on Linux and Android.
//! - All masters are asked at once. An operation ends when its outcome is certain; a dead or hung master is waited for
//!   only when the quorum depends on it, and no longer than the [request timeout](RedlockBuilder::request_timeout).
//! - What a failed attempt or a dropped future had asked for is undone. A key can stay behind only on a master that
//!   cannot be reached, or is not allowed to delete it, and there no longer than the ttl.
//! - The key is set by `SET key value NX PX ttl` and deleted only if it has our value. Other Redlock clients on the
//!   same masters and keys are excluded by it, and exclude it.
//!
//! # Where it runs
//!
//! Connections, renewals, releases and timers live on one thread of the process, named `redlock`, which all clients share;
//! or on the runtime that [`RedlockBuilder::runtime`] names. Calls can be awaited on any executor. It does not matter
//! whose runtime ends, idles or is blocked. [`LockGuard`] says what a drop waits for, and what the end of a process leaves.
//!
//! # Limits, and when not to use it
//!
//! Redlock is a lease: it ends with the ttl, whatever its holder is doing. Two processes can act at once when a holder
//! is paused beyond the validity and acts before it looks, when a write is still under way at its end, when a master's
//! clock jumps forward, or when a master restarts without the keys it had confirmed. Where that must not do harm, let
//! the protected resource refuse the late as well, by a version column or a growing number from its own database.
//!
//! Masters are independent of each other: no replicas, no Sentinel, no Cluster. Each writes a key to disk before it
//! confirms it (`appendfsync always`), or stays away for the longest ttl before it comes back, and none evicts keys
//! (`noeviction`). The README has the rest, with the rights that a user needs on a master.
//!
//! The tests of this crate simulate random clients and faults by the ten thousand. Within these assumptions they find no
//! two holders; with a master that restarts empty within a ttl, or whose clock runs twice as fast, they do.
//!
//! There is nothing yet that wakes up those who wait, gives fencing tokens, or keeps a master out that restarted
//! empty.
//!
//! # Testing your service
//!
//! With the feature `test-util` the module `testing` has masters that live in memory and hang, forget or err when a test
//! tells them to, also under Tokio's paused clock.
//!
//! # Cargo features
//!
//! - `tls-rustls`: `rediss://` masters over rustls. Brings a crypto provider.
//! - `tls-native-tls`: `rediss://` masters over the TLS library of the operating system.
//! - `test-util`: the module `testing`. Belongs in `[dev-dependencies]`; changes nothing by itself.
//!
//! None is on by default.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod builder;
mod clock;
mod engine;
mod error;
mod inner;
pub mod inspect;
mod lock;
mod master;
mod masters;
mod observe;
mod per_process;
mod permit;
mod protocol;
mod random;
mod redlock;
mod release;
mod retry;
mod sync;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod vote;

pub use redis;

pub use crate::address::Address;
pub use crate::builder::RedlockBuilder;
pub use crate::error::{
    AdoptError, BuildError, ExtendError, LockError, LockFailure, LossReason, LostError,
    ReleaseError, RunError, TtlError,
};
pub use crate::lock::guard::LockGuard;
pub use crate::lock::handover::Handover;
pub use crate::lock::keep_alive::KeepAlive;
pub use crate::lock::request::LockRequest;
pub use crate::redlock::Redlock;
pub use crate::retry::{Delays, RetryPolicy};
pub use crate::vote::{Ballot, Ballots, MasterError, Vote};

/// Compiles the examples of the README, one of which is a test of a service.
#[cfg(all(doctest, feature = "test-util"))]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
