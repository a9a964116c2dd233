//! A web service that bills each invoice in one request at a time, however many instances of the service run.
//!
//! ```sh
//! docker compose up --wait        # five masters on 127.0.0.1:7101 to 7105
//! cargo run --example web
//! curl -i -X POST 127.0.0.1:3000/invoices/42/bill & curl -i -X POST 127.0.0.1:3000/invoices/42/bill
//! ```
//!
//! One answer is 200, the other is 409. With too few masters up, the answer is 503. Ctrl-C waits for the requests under
//! way and for the releases. For other masters set `REDLOCK_MASTERS` to their URLs, separated by commas.

use std::time::Duration;
use std::{env, error::Error};

use axum::extract::{Path, State};
use axum::{Router, http::StatusCode, routing::post};
use tokio_redlock::{LockError, Redlock, RetryPolicy};

const COMPOSE: &str = "redis://127.0.0.1:7101,redis://127.0.0.1:7102,redis://127.0.0.1:7103,\
                       redis://127.0.0.1:7104,redis://127.0.0.1:7105";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let masters = env::var("REDLOCK_MASTERS").unwrap_or_else(|_| COMPOSE.to_owned());
    let dlm = Redlock::new(masters.split(','))?;
    let service = Router::new()
        .route("/invoices/{id}/bill", post(bill))
        .with_state(dlm.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, service)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    // Every handler has ended and dropped its guard. Now wait until the masters have confirmed the releases.
    let unconfirmed = dlm.shutdown(Duration::from_secs(2)).await;
    println!("stopped; {unconfirmed} releases not confirmed");
    Ok(())
}

async fn bill(State(dlm): State<Redlock>, Path(id): Path<String>) -> (StatusCode, &'static str) {
    // Short, so that no request waits long. A client that gets a 409 can try again later.
    let retry = RetryPolicy::new().max_wait(Duration::from_millis(500));
    let lock = dlm.lock(format!("invoice:{id}"), Duration::from_secs(30));
    let guard = match lock.retry(retry).await {
        Ok(guard) => guard,
        Err(LockError::Taken(_)) => return (StatusCode::CONFLICT, "being billed already\n"),
        Err(error) => {
            eprintln!("{error}");
            return (StatusCode::SERVICE_UNAVAILABLE, "try again later\n");
        }
    };
    // The work. If the HTTP client disconnects, this future is dropped, and with it the guard.
    tokio::time::sleep(Duration::from_secs(2)).await;
    if let Err(error) = guard.release().await {
        eprintln!("{error}");
    }
    (StatusCode::OK, "billed\n")
}
