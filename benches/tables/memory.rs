//! How much memory a lock takes while it is held.

use std::mem::size_of;

use tokio::task::JoinSet;
use tokio_redlock::LockGuard;

use crate::harness::{Harness, Subject, fresh};
use crate::process::resident;
use crate::table::Table;

const LOCKS: usize = 50_000;

/// Held before the measuring begins, so that what is allocated once is there.
const WARM_UP: usize = 10_000;

/// As many tasks lock at the same time.
const TASKS: usize = 50;

pub(crate) fn print(harness: &Harness) {
    let warm_up = hold(harness, WARM_UP);
    let before = resident();
    let held = hold(harness, LOCKS);
    let after = resident();
    let (Some(before), Some(after)) = (before, after) else {
        println!("\nmemory: this system does not tell how much is resident");
        return;
    };
    let guard = &held[0][0];
    let value = guard.value().len();
    let resource = guard.resource().len();
    let per_lock = after.saturating_sub(before) / LOCKS;
    drop((warm_up, held));
    harness.settle(&harness.dlm);
    let keys_left = harness.clear();

    let title = format!("memory: {LOCKS} locks held, five masters");
    let mut table = Table::new(title, ["", "bytes per lock"]);
    let mut row = |name: &str, bytes: String| table.row([name.to_owned(), bytes]);
    row("resident", per_lock.to_string());
    row("value", value.to_string());
    row("resource", resource.to_string());
    row(
        "beyond these",
        per_lock.saturating_sub(value + resource).to_string(),
    );
    row(
        "of that LockGuard itself",
        size_of::<LockGuard>().to_string(),
    );
    table.print(&format!("keys left after dropping all: {keys_left}"));
}

fn hold(harness: &Harness, locks: usize) -> Vec<Vec<LockGuard>> {
    harness.runtime.block_on(async {
        let mut running = JoinSet::new();
        for _ in 0..TASKS {
            let dlm = harness.dlm.clone();
            running.spawn(async move {
                // Allocated once, so that no smaller one stays resident.
                let mut held = Vec::with_capacity(locks / TASKS);
                while held.len() < locks / TASKS {
                    held.push(Subject::lock(&dlm, &fresh()).await.expect("granted"));
                }
                held
            });
        }
        running.join_all().await
    })
}
