//! Works through chunks under one lock, and extends the lock between chunks.
//!
//! ```sh
//! docker compose up --wait        # five masters on 127.0.0.1:7101 to 7105
//! cargo run --example extend
//! ```
//!
//! If you stop two of the five masters, the work continues. If you stop three, the work ends before the lock expires.
//! For other masters set `REDLOCK_MASTERS` to their URLs, separated by commas.

use std::env;
use std::error::Error;
use std::time::Duration;

use tokio::time::sleep;
use tokio_redlock::{ExtendError, LockGuard, Redlock};

const COMPOSE: &str = "redis://127.0.0.1:7101,redis://127.0.0.1:7102,redis://127.0.0.1:7103,\
                       redis://127.0.0.1:7104,redis://127.0.0.1:7105";

/// As long as three chunks may take, so that there is time to try again when masters fail.
const TTL: Duration = Duration::from_secs(6);

/// The time that the longest chunk may take. After an extension that failed, no chunk is started with less validity.
const CHUNK: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let masters = env::var("REDLOCK_MASTERS").unwrap_or_else(|_| COMPOSE.to_owned());
    let dlm = Redlock::new(masters.split(','))?;

    let guard = dlm.lock("shard:7", TTL).await?;
    for chunk in 1..=10 {
        extend(&guard).await?;
        println!("chunk {chunk}, with {:.1?} left", guard.validity());
        sleep(Duration::from_secs(1)).await;
    }
    guard.release().await?;
    Ok(())
}

/// Extends the lock. Tries again after a failure, as long as the validity is enough for another chunk.
async fn extend(guard: &LockGuard) -> Result<(), ExtendError> {
    loop {
        match guard.extend(TTL).await {
            // Too few masters answered: the old validity is unchanged.
            Err(ExtendError::Unconfirmed { .. }) if guard.validity() > CHUNK => {
                sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}
