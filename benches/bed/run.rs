//! Many tasks that lock and release, each a fresh resource at a time.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::fresh;
use super::rival::Rival;

/// How long everything took.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    pub(crate) locks: Vec<Duration>,
    pub(crate) releases: Vec<Duration>,
}

impl Run {
    pub(crate) async fn new(rival: &impl Rival, tasks: u32, each: u64) -> Self {
        let start = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            running.spawn(Self::alone(rival.clone(), each));
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

    async fn alone(rival: impl Rival, cycles: u64) -> Self {
        let mut run = Self::default();
        for _ in 0..cycles {
            let resource = fresh();
            let start = Instant::now();
            let Some(held) = rival.lock(&resource).await else {
                continue;
            };
            let locked = Instant::now();
            run.locks.push(locked - start);
            if rival.release(held).await {
                run.releases.push(locked.elapsed());
            }
        }
        run
    }
}
