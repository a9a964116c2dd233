//! Takes a lock, works under it, and releases it.
//!
//! ```sh
//! docker compose up --wait        # five masters on 127.0.0.1:7101 to 7105
//! cargo run --example basic
//! ```
//!
//! For other masters: `REDLOCK_MASTERS=redis://10.0.0.1,redis://10.0.0.2,redis://10.0.0.3`.

use std::env;
use std::error::Error;
use std::time::Duration;

use tokio_redlock::{LockError, Redlock};

const COMPOSE: &str = "redis://127.0.0.1:7101,redis://127.0.0.1:7102,redis://127.0.0.1:7103,\
                       redis://127.0.0.1:7104,redis://127.0.0.1:7105";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let masters = env::var("REDLOCK_MASTERS").unwrap_or_else(|_| COMPOSE.to_owned());
    let dlm = Redlock::new(masters.split(','))?;

    let guard = match dlm.lock("invoice:42", Duration::from_secs(30)).await {
        Ok(guard) => guard,
        Err(LockError::Taken(failure)) => {
            println!("somebody else holds invoice 42: {failure}");
            return Ok(());
        }
        Err(other) => return Err(other.into()),
    };
    println!("locked for another {:.1?}", guard.validity());

    // While the guard is valid, nobody else gets the lock.
    let second = dlm.try_lock("invoice:42", Duration::from_secs(30)).await;
    println!("a second attempt: {}", second.unwrap_err());

    // Waits until a quorum confirms. Dropping the guard also releases the lock, in the background.
    guard.release().await?;
    println!("released");
    Ok(())
}
