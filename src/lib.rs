//! The Redis distributed lock (Redlock) for async Rust: a quorum of independent Redis or Valkey masters holds a lock on
//! a resource for a limited time, the ttl.
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
//! guard.release().await?; // or drop the guard: the client then releases the lock in the background
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//!
//! - [`Redlock`] is the client. [`lock`](Redlock::lock) waits for a lock as a [`RetryPolicy`] says,
//!   [`try_lock`](Redlock::try_lock) makes one attempt, and [`shutdown`](Redlock::shutdown) waits for the releases
//!   under way. [`RedlockBuilder`] has the options.
//! - [`LockGuard`] is a lock that is held. Its methods are [`validity`](LockGuard::validity),
//!   [`extend`](LockGuard::extend), [`release`](LockGuard::release) and [`leak`](LockGuard::leak).
//!   [`lost`](LockGuard::lost) returns when the lock is lost. [`run`](LockGuard::run) polls a future only while the
//!   lock is valid. Dropping the guard releases the lock.
//! - [`KeepAlive`] extends a lock again and again while its guard exists. [`with_lock`](Redlock::with_lock) takes a
//!   lock, keeps it alive while a future runs, and releases it. [`inspect`](Redlock::inspect) asks who holds a lock.
//!   [`adopt`](Redlock::adopt) takes over a lock of another process.
//! - [`LockError`], [`ExtendError`] and [`ReleaseError`] say what happened, with the [`Ballots`] of all masters.
//!
//! # What it guarantees
//!
//! - Two holders of one resource are never valid at the same time. This needs two things: each master keeps a confirmed
//!   key until its ttl is over, and clocks differ by no more than the [drift](RedlockBuilder::drift_factor).
//! - The validity counts from before the first byte is sent. It is the ttl, less the elapsed time, less the drift. On
//!   Linux and Android the clock also counts the time that the machine was suspended.
//! - All masters are asked at once. An operation ends when its outcome is certain. It waits for a dead or hung master
//!   only while the outcome depends on that master, and only until the master has been silent for the [request
//!   timeout](RedlockBuilder::request_timeout).
//! - More requests than the masters answer make calls wait, and not fail: attempts wait [in
//!   line](RetryPolicy#waiting-in-line), for as long as the retry policy allows. Their validity counts from the end of
//!   that wait. Releases and extensions are sent first.
//! - The client deletes the keys of a failed attempt and of a dropped future. A key can stay only on a master that
//!   cannot be reached or does not allow the delete, and no longer than its ttl.
//! - The key is set by `SET key value NX PX ttl`, and deleted only if it has our value. So this crate and other Redlock
//!   clients on the same masters and keys exclude each other.
//!
//! # Where it runs
//!
//! Connections, renewals, releases and timers run on one thread of the process, named `redlock`, which all clients
//! share, or on the runtime that [`RedlockBuilder::runtime`] names. Calls can be awaited on any executor. With the
//! thread, it does not matter which of your runtimes ends, is idle or is blocked. [`LockGuard`] says how long a drop
//! can block, and which keys the end of a process leaves.
//!
//! # Limits, and when not to use it
//!
//! Redlock is a lease: it ends with the ttl, whatever its holder is doing. Two processes can act at once when a holder
//! is paused beyond the validity and acts before it checks the validity again, when a write is still under way as the
//! validity ends, when a master's clock jumps forward, or when a master restarts without the keys that it had
//! confirmed. Where that must do no harm, let the protected resource refuse late writes as well, by a version column or
//! by a growing number from its own database.
//!
//! Masters are independent of each other: no replicas, no Sentinel, no Cluster. Each master writes a key to disk before
//! it confirms the key (`appendfsync always`), or stays down for the longest ttl before it starts again. No master
//! evicts keys (`noeviction`). The README has the rest, with the rights that a user needs on a master.
//!
//! The tests of this crate simulate random clients and faults with ten thousand seeds. Within the assumptions above
//! they find no two holders at once. With a master that restarts empty within a ttl, or whose clock runs twice as fast,
//! they do.
//!
//! Not implemented yet: waking up clients that wait, fencing tokens, and keeping out a master that restarted empty.
//!
//! # Testing your service
//!
//! With the feature `test-util`, the module `testing` has masters that live in memory. A test can make them hang, lose
//! keys or return errors. They also work under Tokio's paused clock.
//!
//! # Cargo features
//!
//! - `tls-rustls`: `rediss://` masters over rustls. Includes a crypto provider.
//! - `tls-native-tls`: `rediss://` masters over the TLS library of the operating system.
//! - `test-util`: the module `testing`. Belongs in `[dev-dependencies]`. The feature alone changes nothing.
//!
//! No feature is on by default.

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
mod queue;
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

/// Compiles the examples of the README as doctests. One of them uses `testing`, hence the feature.
#[cfg(all(doctest, feature = "test-util"))]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
