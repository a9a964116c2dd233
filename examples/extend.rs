//! Works through chunks under one lock, and extends it between them.
//!
//! ```sh
//! docker compose up --wait        # five masters on 127.0.0.1:7101 to 7105
//! cargo run --example extend
//! ```
//!
//! Stop two of the five masters while it runs, and it goes on. Stop three, and it ends before the lock does. For
//! other masters set `REDLOCK_MASTERS` to their URLs, with commas between.

use std::env;
use std::error::Error;
use std::time::Duration;

use tokio::time::sleep;
use tokio_redlock::{ExtendError, LockGuard, Redlock};

const COMPOSE: &str = "redis://127.0.0.1:7101,redis://127.0.0.1:7102,redis://127.0.0.1:7103,\
                       redis://127.0.0.1:7104,redis://127.0.0.1:7105";

/// Some chunks' worth, so that there is time to try again when masters fail.
const TTL: Duration = Duration::from_secs(6);

/// What the longest chunk may take. No chunk is begun with less validity than this.
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

/// Tries until it works or there is no time left for another chunk.
async fn extend(guard: &LockGuard) -> Result<(), ExtendError> {
    loop {
        match guard.extend(TTL).await {
            // Too few masters answered: the old validity stands.
            Err(ExtendError::Unconfirmed { .. }) if guard.validity() > CHUNK => {
                sleep(Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}
