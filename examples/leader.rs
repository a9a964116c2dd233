//! One of several processes leads. When the leader dies, another process leads.
//!
//! Run this in several terminals, then kill the leader:
//!
//! ```sh
//! docker compose up --wait    # five masters
//! cargo run --example leader
//! ```
//!
//! For other masters: `REDLOCK_MASTERS="redis://10.0.0.1 redis://10.0.0.2 redis://10.0.0.3"`.

use std::error::Error;
use std::time::Duration;

use tokio::time::sleep;
use tokio_redlock::{KeepAlive, Redlock, RetryPolicy};

/// When the leader is killed, another process leads after at most this time plus the delay between two attempts.
const TTL: Duration = Duration::from_secs(3);

const MASTERS: &str = "redis://127.0.0.1:7101 redis://127.0.0.1:7102 redis://127.0.0.1:7103 \
                       redis://127.0.0.1:7104 redis://127.0.0.1:7105";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let masters = std::env::var("REDLOCK_MASTERS").unwrap_or_else(|_| MASTERS.to_owned());
    let dlm = Redlock::new(masters.split_whitespace())?;
    let me = std::process::id();
    loop {
        println!("{me} follows");
        let leadership = dlm
            .lock("leader", TTL)
            .retry(RetryPolicy::new().forever())
            .keep_alive(KeepAlive::new())
            .await?;
        println!("{me} leads");
        // `run` stops polling the work when the lock is lost, whatever the network does.
        if let Err(lost) = leadership.run(lead(me)).await {
            println!("{me} does not lead any more: {lost}");
        }
    }
}

/// The work of the leader.
async fn lead(me: u32) {
    for step in 1..=20 {
        println!("{me} works, step {step}");
        sleep(Duration::from_secs(1)).await;
    }
}
