//! How many instructions and allocations the crate needs to lock, extend, release and drop, counted by Valgrind over
//! five masters in memory.
//!
//! ```sh
//! scripts/instructions
//! ```
//!
//! Time depends on the machine and on what else it does; these counts do not. So each has a limit, and a run that
//! exceeds one fails. They include the masters in memory.

use std::hint::black_box;
use std::time::Duration;

use gungraun::prelude::*;
use gungraun::{Callgrind, Dhat, DhatMetric, EventKind};
use tokio::runtime::{Builder, Runtime};
use tokio_redlock::testing::Masters;
use tokio_redlock::{LockGuard, Redlock};

const TTL: Duration = Duration::from_secs(10);

/// Operations in a benchmark.
const TIMES: u64 = 100;

struct World {
    runtime: Runtime,
    dlm: Redlock,
    resources: Vec<String>,
    guards: Vec<LockGuard>,
}

impl World {
    /// All that is allocated only once is there: connections, and room in collections.
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be built");
        // Outside of the runtime the time is not paused, and every run would take other ways.
        let entered = runtime.enter();
        let masters = Masters::new(5);
        let dlm = Redlock::builder().testing(&masters).build();
        drop(entered);
        let mut world = Self {
            runtime,
            dlm: dlm.expect("valid masters"),
            resources: (0..TIMES).map(|n| format!("resource:{n:03}")).collect(),
            guards: Vec::new(),
        };
        world.lock();
        world.release();
        world
    }

    fn locked() -> Self {
        let mut world = Self::new();
        world.lock();
        world
    }

    fn lock(&mut self) {
        self.guards = self.runtime.block_on(async {
            let mut guards = Vec::with_capacity(self.resources.len());
            for resource in &self.resources {
                guards.push(self.dlm.lock(resource, TTL).await.expect("granted"));
            }
            guards
        });
    }

    fn extend(&mut self) {
        self.runtime.block_on(async {
            for guard in &mut self.guards {
                guard.extend(TTL).await.expect("confirmed");
            }
        });
    }

    fn release(&mut self) {
        self.runtime.block_on(async {
            for guard in self.guards.drain(..) {
                guard.release().await.expect("confirmed");
            }
        });
    }

    /// Until the masters have deleted the keys.
    fn drop_guards(&mut self) {
        self.runtime.block_on(async {
            self.guards.clear();
            assert_eq!(self.dlm.shutdown(TTL).await, 0);
        });
    }
}

/// At most so many for each operation.
///
/// Runs differ by less than a thousandth in their instructions, and not at all in their allocations. Another compiler
/// makes other code, so the limits of the instructions are 6 % above what Rust 1.95 needs on x86-64. Those of the
/// allocations are exceeded by one more in each operation.
fn limits(instructions: u64, allocations: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config
        .tool(Callgrind::default().hard_limits([(EventKind::Ir, instructions * TIMES)]))
        .tool(
            Dhat::with_args(["--num-callers=200"])
                .hard_limits([(DhatMetric::TotalBlocks, allocations * TIMES)]),
        );
    config
}

#[library_benchmark(config = limits(118_600, 127), setup = World::new)]
#[bench::five_masters()]
fn lock(mut world: World) -> World {
    world.lock();
    black_box(world)
}

#[library_benchmark(config = limits(129_100, 104), setup = World::locked)]
#[bench::five_masters()]
fn extend(mut world: World) -> World {
    world.extend();
    black_box(world)
}

#[library_benchmark(config = limits(105_700, 100), setup = World::locked)]
#[bench::five_masters()]
fn release(mut world: World) -> World {
    world.release();
    black_box(world)
}

#[library_benchmark(config = limits(106_700, 102), setup = World::locked)]
#[bench::five_masters()]
fn drop_guard(mut world: World) -> World {
    world.drop_guards();
    black_box(world)
}

library_benchmark_group!(name = all, benchmarks = [lock, extend, release, drop_guard]);
main!(library_benchmark_groups = all);
