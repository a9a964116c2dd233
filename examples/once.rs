//! A job that is started on every machine of a fleet at the same hour, and that exactly one machine must do.
//!
//! ```sh
//! docker compose up --wait        # five masters on 127.0.0.1:7101 to 7105
//! cargo run --example once & cargo run --example once
//! ```
//!
//! The ttl of the lock is the whole period. When the job is done, the lock is leaked on purpose: the next run may begin
//! when the ttl is over. A job that fails drops its guard, so that another machine can do the job. For other masters
//! set `REDLOCK_MASTERS` to their URLs, separated by commas.

use std::env;
use std::error::Error;
use std::time::Duration;

use tokio_redlock::{LockError, Redlock, RetryPolicy};

const COMPOSE: &str = "redis://127.0.0.1:7101,redis://127.0.0.1:7102,redis://127.0.0.1:7103,\
                       redis://127.0.0.1:7104,redis://127.0.0.1:7105";

/// A little less than the minute between two runs, because the clocks that start the runs differ a little.
const PERIOD: Duration = Duration::from_secs(55);

/// Machines that ask at the same moment can split the votes so that no machine gets a quorum. With a single attempt no
/// machine would then do the job, so each machine tries again for a while.
const RETRY: RetryPolicy = RetryPolicy::new().max_wait(Duration::from_secs(2));

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let masters = env::var("REDLOCK_MASTERS").unwrap_or_else(|_| COMPOSE.to_owned());
    let dlm = Redlock::new(masters.split(','))?;

    let guard = match dlm.lock("job:minutely-report", PERIOD).retry(RETRY).await {
        Ok(guard) => guard,
        Err(LockError::Taken(_)) => {
            println!("another machine does the job, or has done it");
            return Ok(());
        }
        Err(other) => return Err(other.into()),
    };
    // On an error the guard is dropped here, which releases the lock.
    report().await?;
    println!("done; the next run can begin in {:.0?}", guard.validity());
    guard.leak();
    Ok(())
}

async fn report() -> Result<(), Box<dyn Error>> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}
