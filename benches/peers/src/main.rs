//! The crate by default, the floor below it and other Rust libraries for the same, on the same five masters in the same
//! run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- picture.svg
//! ```
//!
//! Prints tables in Markdown, and draws some of it into the file. A busy machine slows all; so they take turns, in
//! another order each round, and what counts is the median.

#[path = "../../bed/mod.rs"]
mod bed;
mod contended;
mod contender;
mod frozen;
mod healthy;
mod leftovers;
mod picture;
// Of what is shared with the other figures, a part is used here.
#[allow(dead_code)]
#[path = "../../figures/process.rs"]
mod process;
mod rivals;
#[allow(dead_code)]
#[path = "../../figures/stats.rs"]
mod stats;
#[allow(dead_code)]
#[path = "../../figures/table.rs"]
mod table;
#[path = "../../figures/turn.rs"]
mod turn;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use bed::Bed;
use contender::Contender;
use picture::Picture;
use rivals::{DistributedLock, rslock};

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("say where to draw: peers picture.svg");
        return ExitCode::FAILURE;
    };
    let bed = Bed::new();
    let rslock = rslock(&bed.servers);
    let distributed_lock = bed.runtime.block_on(DistributedLock::connect(&bed.servers));
    let rivals: [&dyn Contender; 4] = [&bed.dlm, &bed.floor, &rslock, &distributed_lock];

    let mut picture = Picture::new(rivals.map(Contender::name));
    healthy::print(&bed, rivals, &mut picture);
    frozen::print(&bed, rivals, &mut picture);
    contended::print(&bed, rivals);
    leftovers::print(&bed, rivals, &mut picture);

    if let Err(error) = fs::write(&path, picture.to_string()) {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
