//! How late `lost()` tells that a lock is over while every master hangs; beside a bare timer for the same moment.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_redlock::{LockGuard, Redlock};

use crate::harness::{Harness, fresh};
use crate::stats::percentile;
use crate::table::{Table, time};

const LOCKS: u64 = 500;

/// The first of them ends after this, each of the others a little later, so that no two end at once.
const TTL: Duration = Duration::from_millis(1_000);
const APART: Duration = Duration::from_millis(3);

/// Between the deadline and its notice: late, or early.
#[derive(Default)]
struct Notices {
    late: Vec<Duration>,
    early: usize,
}

pub(crate) fn print(harness: &Harness) {
    let [lost, timer] = harness.runtime.block_on(measure(harness));
    harness.servers.iter().for_each(|server| server.thaw());
    harness.settle(&harness.dlm);
    harness.clear();

    let title = format!("lost: {LOCKS} locks end while all five masters are frozen");
    let mut table = Table::new(title, ["late by", "p50", "p99", "max", "early"]);
    for (name, notices) in [("lost()", lost), ("a bare timer", timer)] {
        let [p50, p99, max] = [50, 99, 100].map(|percent| time(percentile(&notices.late, percent)));
        table.row([name.to_owned(), p50, p99, max, notices.early.to_string()]);
    }
    table.print("after the deadline that validity() gave; a timer of Tokio is up to 1 ms late");
}

async fn measure(harness: &Harness) -> [Notices; 2] {
    let mut guards = Vec::new();
    for place in 0..LOCKS {
        let ttl = TTL + APART * u32::try_from(place).expect("a few");
        guards.push(lock(&harness.dlm, ttl).await);
    }
    harness.servers.iter().for_each(|server| server.freeze());
    let mut waiting = JoinSet::new();
    for guard in guards {
        waiting.spawn(notice(guard));
    }
    let mut notices = [Notices::default(), Notices::default()];
    for pair in waiting.join_all().await {
        for (notices, late) in notices.iter_mut().zip(pair) {
            match late {
                Some(late) => notices.late.push(late),
                None => notices.early += 1,
            }
        }
    }
    notices
}

async fn lock(dlm: &Redlock, ttl: Duration) -> LockGuard {
    dlm.lock(fresh(), ttl).await.expect("granted")
}

/// How late the loss of a lock was told, and how late a timer; `None`: before its time.
async fn notice(guard: LockGuard) -> [Option<Duration>; 2] {
    // In this order, the deadline is never later than the real one.
    let deadline = Instant::now() + guard.validity();
    let late = || Instant::now().checked_duration_since(deadline);
    tokio::join!(
        async {
            guard.lost().await;
            late()
        },
        async {
            sleep_until(deadline.into()).await;
            late()
        }
    )
    .into()
}
