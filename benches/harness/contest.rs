//! Many tasks that want the same resource.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::fresh;
use super::subject::Subject;

/// Who has not been served by then will not be.
const LIMIT: Duration = Duration::from_secs(10);

/// How long it took until all were served, or until nobody is served any more.
pub(crate) struct Contest {
    pub(crate) elapsed: Duration,
    /// From the begin of each release to the next grant: as many as there were grants.
    pub(crate) hand_overs: Vec<Duration>,
}

/// The contest so far.
struct Course {
    /// `None` while somebody has the resource.
    free_since: Option<Instant>,
    hand_overs: Vec<Duration>,
}

impl Contest {
    /// Has so many tasks come at once, lock the same resource so many times each, and release it at once.
    pub(crate) async fn new(subject: &impl Subject, tasks: u32, each: u32) -> Self {
        let start = Instant::now();
        let resource: Arc<str> = fresh().into();
        let course = Arc::new(Mutex::new(Course {
            free_since: Some(start),
            hand_overs: Vec::new(),
        }));
        let mut running = JoinSet::new();
        for _ in 0..tasks {
            let (subject, resource, course) = (subject.clone(), resource.clone(), course.clone());
            running.spawn(async move {
                for _ in 0..each {
                    let held = subject.contend(&resource).await;
                    course.lock().expect("no task panics").grant();
                    course.lock().expect("no task panics").free_since = Some(Instant::now());
                    subject.release(held).await;
                }
            });
        }
        let served = async {
            while let Some(one) = running.join_next().await {
                one.expect("no task panics");
            }
        };
        let _ = timeout(LIMIT, served).await;
        let elapsed = start.elapsed();
        running.shutdown().await;
        let mut course = course.lock().expect("no task panics");
        Self {
            elapsed,
            hand_overs: std::mem::take(&mut course.hand_overs),
        }
    }
}

impl Course {
    fn grant(&mut self) {
        let freed = self.free_since.take().expect("one holder at a time");
        self.hand_overs.push(freed.elapsed());
    }
}
