//! The inside of a worker process: tasks that want the lock, again and again.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_redlock::{Redlock, ReleaseError, RetryPolicy};

use crate::report::Report;
use crate::witness::{Found, Witness};
use crate::{Result, clock};

pub(crate) const TASKS: usize = 2;
pub(crate) const RESOURCE: &str = "invoice:42";
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// How long a task holds the lock, and how long it then does something else, in milliseconds.
const HOLD: Range<u64> = 10..50;
const PAUSE: Range<u64> = 5..50;

/// Competes until the parent closes the pipe, or is no more.
#[tokio::main]
pub(crate) async fn run(witness: Witness, masters: Vec<String>) -> Result<()> {
    // Impatient, for a lock that is held for some milliseconds only.
    let retry = RetryPolicy::new()
        .delay(Duration::from_millis(2), Duration::from_millis(40))
        .forever();
    let dlm = masters
        .iter()
        .fold(Redlock::builder(), |builder, url| builder.master(url))
        .retry(retry)
        .build()?;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(compete(dlm.clone(), witness.clone()));
    }
    tokio::select! {
        _ = pipe_closed() => {}
        Some(failed) = tasks.join_next() => match failed?? {},
    }
    // Wherever they are, with a lock or half way to one: it is undone in the background, and waited for.
    tasks.shutdown().await;
    let unconfirmed = dlm.shutdown(2 * TTL).await;
    say(&Report::Done { unconfirmed })
}

async fn compete(dlm: Redlock, witness: Witness) -> Result<Infallible> {
    loop {
        let asked = Instant::now();
        let guard = dlm.lock(RESOURCE, TTL).await?;
        let (at, waited) = (clock::now(), asked.elapsed());

        let (found, mark) = witness.enter(guard.validity())?;
        match found {
            Found::Nobody => {}
            Found::Dead => say(&Report::TakenOver)?,
            Found::Another => say(&Report::TwoHolders)?,
        }
        let value = guard.value().to_owned();
        say(&Report::Granted { at, waited, value })?;
        sleep(random(HOLD)).await;
        drop(mark);

        say(&Report::Released { at: clock::now() })?;
        // That the masters which are down do not confirm it is no surprise.
        if let Err(ReleaseError::NotHeld { .. }) = guard.release().await {
            say(&Report::Lost)?;
        }
        sleep(random(PAUSE)).await;
    }
}

fn random(milliseconds: Range<u64>) -> Duration {
    Duration::from_millis(rand::rng().random_range(milliseconds))
}

fn say(report: &Report) -> Result<()> {
    Ok(writeln!(io::stdout(), "{report}")?)
}

/// On a thread of its own, since one of the runtime's would keep the process from ending.
fn pipe_closed() -> oneshot::Receiver<()> {
    let (closed, receiver) = oneshot::channel();
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        closed.send(())
    });
    receiver
}
