//! Many tasks that want the same resource.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_redlock::{Redlock, RetryPolicy};

use super::{TTL, fresh};

/// How long it took until all were served.
pub(crate) struct Contest {
    pub(crate) elapsed: Duration,
    /// From the begin of each release to the next grant.
    pub(crate) hand_overs: Vec<Duration>,
}

/// Has so many tasks come at once, lock the same resource so many times each, and release it at once.
pub(crate) async fn contest(dlm: &Redlock, tasks: u32, each: u32) -> Contest {
    let start = Instant::now();
    let resource: Arc<str> = fresh().into();
    let free_since = Arc::new(Mutex::new(Some(start)));
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (dlm, resource, free_since) = (dlm.clone(), resource.clone(), free_since.clone());
        running.spawn(async move {
            let mut hand_overs = Vec::new();
            for _ in 0..each {
                let request = dlm.lock(&*resource, TTL);
                let patient = request.retry(RetryPolicy::new().forever());
                let guard = patient.await.expect("granted in the end");
                let freed = free_since.lock().expect("no task panics").take();
                hand_overs.push(freed.expect("one holder at a time").elapsed());
                *free_since.lock().expect("no task panics") = Some(Instant::now());
                if let Err(error) = guard.release().await {
                    eprintln!("{error}");
                }
            }
            hand_overs
        });
    }
    let hand_overs = running.join_all().await.concat();
    Contest {
        elapsed: start.elapsed(),
        hand_overs,
    }
}
