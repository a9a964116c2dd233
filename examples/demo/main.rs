//! Shows the lock at work while masters and a holder die: five real masters, four processes that all want one
//! lock, and a parent that kills and freezes masters and kills a holder, and counts.
//!
//! ```sh
//! scripts/demo                        # finds a server, or installs one
//! cargo run --release --example demo  # takes redis-server from PATH, or $REDIS_SERVER
//! ```
//!
//! It takes 15 seconds, and a Unix. The exit code is 0 if there never were two holders, the dead holder's lock was
//! taken over and nothing was left on the masters, 1 otherwise. Ctrl-C ends it at any time, and leaves nothing behind.
//!
//! What an application would write is in `contender.rs`.

mod child;
mod clock;
mod contender;
mod demo;
mod event;
mod fault;
mod master;
mod note;
mod picture;
mod report;
mod scratch;
mod screen;
mod summary;
mod tally;
mod witness;
mod worker;

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::demo::Demo;
use crate::event::{Event, Interrupted};
use crate::witness::Witness;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    // The parent starts this program again in the other roles.
    let result = match args.next().as_deref() {
        Some(worker::ROLE) => worker(args).map(|()| ExitCode::SUCCESS),
        Some(master::ROLE) => Err(master::become_server(args).into()),
        _ => lead(),
    };
    result.unwrap_or_else(|error| match error.downcast_ref() {
        Some(Interrupted { exit_code }) => ExitCode::from(*exit_code),
        None => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    })
}

fn worker(mut args: impl Iterator<Item = String>) -> Result<()> {
    let witness = args.next().ok_or("a worker is started by the demo")?;
    contender::run(Witness::new(witness.into()), args.collect())
}

fn lead() -> Result<ExitCode> {
    let (sender, events) = channel();
    watch_for_signals(sender.clone())?;
    let summary = Demo::start(&sender, events)?.run()?;
    println!("{summary}");
    Ok(if summary.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// From here on a signal is an event like others, so that everything is cleaned up as at any other end.
fn watch_for_signals(events: Sender<Event>) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let context = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    drop(context);
    thread::spawn(move || {
        let exit_code = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
                _ = hang_up.recv() => 129,
            }
        });
        events.send(Event::Interrupted(Interrupted { exit_code }))
    });
    Ok(())
}
