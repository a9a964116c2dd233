//! The crate under more load than it can serve, beside the floor and rslock, on five masters on this machine.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml --bin overload -- tasks --seconds 2 --rounds 1
//! cargo run --release --manifest-path benches/peers/Cargo.toml --bin overload -- --check
//! ```
//!
//! Prints tables in Markdown. Each figure with a target shows the target and whether it is met; with `--check` the exit
//! code is 1 if a target is missed. Every library works in a process of its own, which is this program again, so that
//! its memory, CPU, threads and descriptors can be read from /proc. Every wait has a limit: a library that does not
//! answer in time is reported as collapsed.

// The benches share files, and each uses a part of them.
mod busy;
mod child;
mod cpu_limit;
mod errors;
mod fake;
mod fault;
#[path = "../../../harness/mod.rs"]
mod harness;
mod held;
mod library;
mod load;
mod logs;
mod masters;
mod options;
mod order;
#[allow(dead_code)]
#[path = "../../../tables/process.rs"]
mod process;
mod proxy;
mod renewals;
mod resp;
mod scenario;
#[allow(dead_code)]
#[path = "../../../tables/stats.rs"]
mod stats;
#[allow(dead_code)]
#[path = "../../../tables/table.rs"]
mod table;
mod usage;
mod verdicts;
mod worker;

use std::env;
use std::process::ExitCode;

use options::Options;
use scenario::Scenario;
use verdicts::Verdicts;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match &args[..] {
        // This program starts itself again in these roles.
        [role, library, urls @ ..] if role == worker::ROLE => return worker::run(library, urls),
        [role] if role == busy::ROLE => return busy::run(),
        _ => {}
    }
    let options = match Options::parse(args.into_iter()) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{}", options::USAGE);
            for scenario in Scenario::ALL {
                eprintln!("    {:<14} {}", scenario.name(), scenario.what());
            }
            return ExitCode::FAILURE;
        }
    };
    let mut verdicts = Verdicts::default();
    for scenario in &options.scenarios {
        scenario.print(&options, &mut verdicts);
    }
    verdicts.print();
    if options.check && verdicts.has_missed() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
