//! The crate by default, the floor below it and other Rust libraries for the same, on the same five masters in the same
//! run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- picture.svg
//! ```
//!
//! Prints tables in Markdown, and draws some of it into the file. A busy machine slows all; so they take turns, in
//! another order each round, and what counts is the median.

mod contended;
mod dyn_subject;
mod frozen;
#[path = "../../harness/mod.rs"]
mod harness;
mod healthy;
mod leftovers;
mod picture;
// Of what is shared with the other tables, a part is used here.
#[allow(dead_code)]
#[path = "../../tables/process.rs"]
mod process;
#[path = "../../tables/sample.rs"]
mod sample;
#[allow(dead_code)]
#[path = "../../tables/stats.rs"]
mod stats;
mod subjects;
#[allow(dead_code)]
#[path = "../../tables/table.rs"]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use dyn_subject::DynSubject;
use harness::Harness;
use picture::Picture;
use subjects::{DistributedLock, rslock};

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("say where to draw: peers picture.svg");
        return ExitCode::FAILURE;
    };
    let harness = Harness::new();
    let rslock = rslock(&harness.servers);
    let distributed_lock = harness
        .runtime
        .block_on(DistributedLock::connect(&harness.servers));
    let subjects: [&dyn DynSubject; 4] = [&harness.dlm, &harness.floor, &rslock, &distributed_lock];

    let mut picture = Picture::new(subjects.map(DynSubject::name));
    healthy::print(&harness, subjects, &mut picture);
    frozen::print(&harness, subjects, &mut picture);
    contended::print(&harness, subjects);
    leftovers::print(&harness, subjects, &mut picture);

    if let Err(error) = fs::write(&path, picture.to_string()) {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
