//! Locking and releasing on five masters, beside the floor: the same commands on bare connections of redis-rs.
//!
//! ```sh
//! cargo bench --bench cycle
//! ```
//!
//! An iteration is one lock and release by every task. For medians of many alternations, and all else that is
//! measured, see `tables`.

mod harness;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group,
    criterion_main,
};

use harness::{Harness, Subject};
use tokio_redlock::Redlock;

/// How many tasks want the same resource in `contended`.
const CONTENDERS: u32 = 8;

criterion_group!(benches, all);
criterion_main!(benches);

fn all(criterion: &mut Criterion) {
    let harness = Harness::new();
    throughput(criterion, &harness, "one_task", 1);
    throughput(criterion, &harness, "64_tasks", 64);
    throughput(criterion, &harness, "1000_tasks", 1_000);
    one_frozen_master(criterion, &harness);
    contended(criterion, &harness);
}

fn throughput(criterion: &mut Criterion, harness: &Harness, name: &str, tasks: u32) {
    let mut group = group(criterion, name, tasks);
    cycles(&mut group, harness, &harness.dlm, "healthy", tasks);
    cycles(&mut group, harness, &harness.floor, "healthy", tasks);
}

fn one_frozen_master(criterion: &mut Criterion, harness: &Harness) {
    let mut group = group(criterion, "one_frozen_master", 1);
    cycles(&mut group, harness, &harness.dlm, "healthy", 1);
    cycles(&mut group, harness, &harness.floor, "healthy", 1);
    harness.servers[0].freeze();
    cycles(&mut group, harness, &harness.dlm, "frozen", 1);
    cycles(&mut group, harness, &harness.floor, "frozen", 1);
    harness.servers[0].thaw();
    harness.settle(&harness.dlm);
    harness.settle(&harness.floor);
}

/// Here an iteration begins with all tasks at once, and ends when each has had the lock.
fn contended(criterion: &mut Criterion, harness: &Harness) {
    let mut group = group(criterion, "contended", CONTENDERS);
    group.bench_function(Redlock::NAME, |bencher| {
        bencher.iter_custom(|iterations| {
            let contest = || harness.contest(&harness.dlm, CONTENDERS, 1);
            (0..iterations).map(|_| contest().elapsed).sum()
        });
    });
}

fn cycles<R: Subject>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    harness: &Harness,
    subject: &R,
    masters: &str,
    tasks: u32,
) {
    let id = BenchmarkId::new(R::NAME, masters);
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|iterations| harness.run(subject, tasks, iterations).elapsed);
    });
}

/// Few samples and short ones: each is made of many round trips already.
fn group<'a>(criterion: &'a mut Criterion, name: &str, tasks: u32) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .throughput(Throughput::Elements(tasks.into()));
    group
}
