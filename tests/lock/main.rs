//! Taking a lock: who gets it, who does not, and what an attempt leaves behind.

mod cancel;
mod interop;
#[cfg(feature = "test-util")]
mod line;
mod mutual_exclusion;
mod outcomes;
mod quorum;
mod short_ttl;
mod wire;
