//! What locking costs, as tables: each figure of the crate beside that of the floor, which is the same commands on
//! bare connections of redis-rs, or beside its own when all is well.
//!
//! ```sh
//! cargo bench --bench figures                 # all tables
//! cargo bench --bench figures -- cycle        # one of: cycle, frozen, memory, contended, drop
//! ```
//!
//! A busy machine slows both sides of a comparison. So they take turns, many short ones, and what counts is the median
//! of the ratios of neighbouring turns.

#[path = "../bed/mod.rs"]
mod bed;
mod contended;
mod cycle;
mod drop;
mod frozen;
mod memory;
mod process;
mod stats;
mod table;
mod target;

use std::env;
use std::process::ExitCode;

use bed::Bed;

/// Measures on the masters and prints.
type Print = fn(&Bed);

const TABLES: [(&str, Print); 5] = [
    ("cycle", cycle::print),
    ("frozen", frozen::print),
    ("memory", memory::print),
    ("contended", contended::print),
    ("drop", drop::print),
];

fn main() -> ExitCode {
    let (options, names): (Vec<_>, Vec<_>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    if !options.iter().any(|option| option == "--bench") {
        println!("only measures under `cargo bench`");
        return ExitCode::SUCCESS;
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    let tables = TABLES.map(|(name, _)| name);
    if let Some(unknown) = names.iter().find(|name| !tables.contains(&name.as_str())) {
        eprintln!("no table {unknown:?}; there are: {}", tables.join(", "));
        return ExitCode::FAILURE;
    }
    let bed = Bed::new();
    for (_, print) in TABLES.into_iter().filter(|(name, _)| chosen(name)) {
        print(&bed);
    }
    ExitCode::SUCCESS
}
