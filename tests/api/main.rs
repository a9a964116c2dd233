//! The public interface: how a client is built and called, and what it returns, logs and shows.

mod bounds;
mod errors;
mod fork;
mod given;
mod inspect;
mod masters;
mod retry;
mod runtimes;
#[cfg(feature = "tls-rustls")]
mod tls;
mod tracing_output;
