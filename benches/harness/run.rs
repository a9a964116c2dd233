//! Many tasks that lock and release, each a fresh resource at a time.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::fresh;
use super::subject::Subject;

/// How long everything took.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    pub(crate) locks: Vec<Duration>,
    pub(crate) releases: Vec<Duration>,
}

impl Run {
    pub(crate) async fn new(subject: &impl Subject, tasks: u32, each: u64) -> Self {
        let start = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            running.spawn(Self::alone(subject.clone(), each));
        }
        let mut all = Self::default();
        while let Some(one) = running.join_next().await {
            let one = one.expect("no task panics");
            all.locks.extend(one.locks);
            all.releases.extend(one.releases);
        }
        all.elapsed = start.elapsed();
        all
    }

    async fn alone(subject: impl Subject, cycles: u64) -> Self {
        let mut run = Self::default();
        for _ in 0..cycles {
            let resource = fresh();
            let start = Instant::now();
            let Some(held) = subject.lock(&resource).await else {
                continue;
            };
            let locked = Instant::now();
            run.locks.push(locked - start);
            if subject.release(held).await {
                run.releases.push(locked.elapsed());
            }
        }
        run
    }
}
