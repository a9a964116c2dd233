//! What a program can ask of the crate, and what the program is told.

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
