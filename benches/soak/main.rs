//! A soak: processes that lock all the time, on real masters that write to disk, while both are killed, frozen and cut
//! off at random, for some minutes.
//!
//! ```sh
//! scripts/soak 10                 # finds a server, or installs one
//! cargo bench --bench soak -- 10  # takes redis-server from PATH, or $REDIS_SERVER
//! ```
//!
//! The exit code is 0 if there never were two holders and nothing was left behind, 1 otherwise. Ctrl-C ends it early.

mod child;
mod clock;
mod fault;
mod history;
mod report;
mod soak;
mod summary;
mod usage;
mod worker;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use soak::Soak;

/// Shorter, it would not find anything; longer, nobody would wait for it.
const MINUTES: std::ops::RangeInclusive<f64> = 0.5..=1_440.0;

fn main() -> ExitCode {
    // Cargo adds an option of its own.
    let args: Vec<_> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &args[..] {
        // This program starts itself again in that role.
        [role, options @ ..] if role == worker::ROLE => {
            worker::run(options);
            ExitCode::SUCCESS
        }
        [minutes] => match minutes.parse() {
            Ok(minutes) if MINUTES.contains(&minutes) => soak(minutes),
            _ => {
                eprintln!("for how many minutes? {minutes:?} is not between 0.5 and 1440");
                ExitCode::FAILURE
            }
        },
        _ => {
            println!("soaks for as many minutes as it is told: cargo bench --bench soak -- 10");
            ExitCode::SUCCESS
        }
    }
}

fn soak(minutes: f64) -> ExitCode {
    let Ok(summary) = Soak::start().run(Duration::from_secs_f64(60.0 * minutes)) else {
        return ExitCode::from(130);
    };
    println!("{summary}");
    if summary.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
