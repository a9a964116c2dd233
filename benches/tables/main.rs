//! What locking costs, as tables: each metric of the crate beside that of the floor, which is the same commands on
//! bare connections of redis-rs, on the multi-thread runtime of the callers; or beside its own when all is well.
//!
//! ```sh
//! cargo bench --bench tables                  # all tables
//! cargo bench --bench tables -- cycle         # one of: cycle, distance, frozen, memory, contended, drop,
//!                                             # lost, kept-alive
//! cargo bench --bench tables -- --check       # fails if a target is missed
//! ```
//!
//! A busy machine slows both sides of a comparison. So the sides take turns. Each turn is a short sample, there are many
//! of them, and what counts is the median of the ratios of neighbouring samples.

mod comparison;
mod contended;
mod cycle;
mod distance;
mod drop;
mod frozen;
#[path = "../harness/mod.rs"]
mod harness;
mod kept_alive;
mod lost;
mod memory;
mod process;
mod proxy;
mod sample;
mod stats;
mod table;
mod target;

use std::env;
use std::process::{Command, ExitCode};

use harness::Harness;
use target::Judge;

/// Measures on the masters and prints.
type Print = fn(&Harness, &mut Judge);

const TABLES: [(&str, Print); 8] = [
    ("cycle", cycle::print),
    ("distance", distance::print),
    ("frozen", frozen::print),
    ("memory", |harness, _| memory::print(harness)),
    ("contended", |harness, _| contended::print(harness)),
    ("drop", |harness, _| drop::print(harness)),
    ("lost", |harness, _| lost::print(harness)),
    ("kept-alive", |harness, _| kept_alive::print(harness)),
];

/// The first one is from Cargo.
const OPTIONS: [&str; 2] = ["--bench", "--check"];

/// The exit code of a run that printed all tables, where `--check` was given and a target is missed.
const MISSED: u8 = 2;

fn main() -> ExitCode {
    let (options, names): (Vec<_>, Vec<_>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let given = |name: &str| options.iter().any(|option| option == name);
    if !given("--bench") {
        println!("only measures under `cargo bench`");
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = options
        .iter()
        .find(|option| !OPTIONS.contains(&option.as_str()))
    {
        eprintln!("no option {unknown}; there is: --check");
        return ExitCode::FAILURE;
    }
    let tables = TABLES.map(|(name, _)| name);
    if let Some(unknown) = names.iter().find(|name| !tables.contains(&name.as_str())) {
        eprintln!("no table {unknown:?}; there are: {}", tables.join(", "));
        return ExitCode::FAILURE;
    }
    let check = given("--check");
    let chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    let chosen: Vec<_> = TABLES
        .into_iter()
        .filter(|(name, _)| chosen(name))
        .collect();
    if let [(name, print)] = chosen[..] {
        let mut judge = Judge::default();
        print(&Harness::new(), &mut judge);
        return match judge.missed() {
            missed if check && missed > 0 => {
                eprintln!("{name}: {missed} targets missed");
                ExitCode::from(MISSED)
            }
            _ => ExitCode::SUCCESS,
        };
    }
    // All are printed, also after one that failed. An error is worse than a target that is missed.
    let codes: Vec<_> = chosen
        .into_iter()
        .map(|(name, _)| print_apart(name, check))
        .collect();
    if codes.iter().all(|code| *code == Some(0)) {
        ExitCode::SUCCESS
    } else if codes
        .iter()
        .all(|code| [Some(0), Some(MISSED.into())].contains(code))
    {
        ExitCode::from(MISSED)
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a table in a process of its own, where no other table has left memory for it to use again. Returns the exit
/// code; `None` if a signal ended the process.
fn print_apart(table: &str, check: bool) -> Option<i32> {
    let this = env::current_exe().expect("a program has a path");
    let check = check.then_some("--check");
    let status = Command::new(this)
        .args(["--bench", table])
        .args(check)
        .status();
    status.expect("what runs can be run").code()
}
