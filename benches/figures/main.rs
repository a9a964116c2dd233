//! What locking costs, as tables: each figure of the crate beside that of the floor, which is the same commands on
//! bare connections of redis-rs, on the multi-thread runtime of the callers; or beside its own when all is well.
//!
//! ```sh
//! cargo bench --bench figures                 # all tables
//! cargo bench --bench figures -- cycle        # one of: cycle, distance, frozen, memory, contended, drop,
//!                                             # lost, kept-alive
//! ```
//!
//! A busy machine slows both sides of a comparison. So they take turns, many short ones, and what counts is the median
//! of the ratios of neighbouring turns.

#[path = "../bed/mod.rs"]
mod bed;
mod comparison;
mod contended;
mod cycle;
mod distance;
mod drop;
mod frozen;
mod kept_alive;
mod lost;
mod memory;
mod process;
mod proxy;
mod stats;
mod table;
mod target;
mod turn;

use std::env;
use std::process::{Command, ExitCode};

use bed::Bed;

/// Measures on the masters and prints.
type Print = fn(&Bed);

const TABLES: [(&str, Print); 8] = [
    ("cycle", cycle::print),
    ("distance", distance::print),
    ("frozen", frozen::print),
    ("memory", memory::print),
    ("contended", contended::print),
    ("drop", drop::print),
    ("lost", lost::print),
    ("kept-alive", kept_alive::print),
];

fn main() -> ExitCode {
    let (options, names): (Vec<_>, Vec<_>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    if !options.iter().any(|option| option == "--bench") {
        println!("only measures under `cargo bench`");
        return ExitCode::SUCCESS;
    }
    let tables = TABLES.map(|(name, _)| name);
    if let Some(unknown) = names.iter().find(|name| !tables.contains(&name.as_str())) {
        eprintln!("no table {unknown:?}; there are: {}", tables.join(", "));
        return ExitCode::FAILURE;
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    let chosen: Vec<_> = TABLES
        .into_iter()
        .filter(|(name, _)| chosen(name))
        .collect();
    if let [(_, print)] = chosen[..] {
        print(&Bed::new());
        return ExitCode::SUCCESS;
    }
    let all = chosen.into_iter().all(|(name, _)| print_apart(name));
    if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints a table in a process of its own, where no other has left memory for it to use again. Whether that went well.
fn print_apart(table: &str) -> bool {
    let this = env::current_exe().expect("a program has a path");
    let status = Command::new(this).args(["--bench", table]).status();
    status.expect("what runs can be run").success()
}
