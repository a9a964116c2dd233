//! What it costs to keep many locks alive at once.

use std::thread;
use std::time::{Duration, Instant};

use tokio_redlock::{KeepAlive, LockGuard};

use crate::harness::{Harness, fresh};
use crate::process::{cpu_time, resident, threads};
use crate::table::Table;

const LOCKS: usize = 10_000;

/// They are renewed every ten seconds.
const TTL: Duration = Duration::from_secs(30);

/// How long is looked at: two renewals of each.
const TIME: Duration = Duration::from_secs(20);

pub(crate) fn print(harness: &Harness) {
    // What is allocated once is there.
    drop(hold(harness, LOCKS / 10));
    harness.settle(&harness.dlm);
    let before = resident();
    let guards = hold(harness, LOCKS);
    let memory = resident()
        .zip(before)
        .map(|(now, before)| now.saturating_sub(before));

    let (start, cpu, commands) = (Instant::now(), cpu_time(), harness.commands());
    thread::sleep(TIME);
    let (time, cpu) = (start.elapsed().as_secs_f64(), cpu_time() - cpu);
    let rounds = u32::try_from((harness.commands() - commands) / 5).expect("far fewer");
    let valid = guards.iter().filter(|guard| guard.is_valid()).count();
    let held = guards.len();
    drop(guards);
    harness.settle(&harness.dlm);

    let title = format!("kept alive: {held} locks at once, ttl 30 s, five masters");
    let mut table = Table::new(title, ["", "per lock", "in all"]);
    let locks = f64::from(u32::try_from(held).expect("a few"));
    let mut row = |name: &str, per_lock: String, all: String| {
        table.row([name.to_owned(), per_lock, all]);
    };
    let per_second = f64::from(rounds) / time;
    row(
        "renewals a second",
        format!("{:.3}", per_second / locks),
        format!("{per_second:.0}"),
    );
    let share = cpu.as_secs_f64() / time;
    let micros = share * 1e6 / locks;
    row(
        "CPU",
        format!("{micros:.1} us/s"),
        format!("{:.1} % of a core", share * 100.0),
    );
    let per_renewal = cpu.as_secs_f64() * 1e6 / f64::from(rounds);
    row(
        "CPU per renewal",
        format!("{per_renewal:.0} us"),
        String::new(),
    );
    if let Some(memory) = memory {
        let bytes = memory / held;
        row(
            "memory",
            format!("{bytes} B"),
            format!(
                "{:.1} MB",
                locks * f64::from(u32::try_from(bytes).expect("little")) / 1e6
            ),
        );
    }
    if let Some(threads) = threads() {
        row("threads", String::new(), threads.to_string());
    }
    table.print(&format!(
        "still valid at the end: {valid}; keys left: {}",
        harness.clear()
    ));
}

fn hold(harness: &Harness, locks: usize) -> Vec<LockGuard> {
    harness.runtime.block_on(async {
        let mut guards = Vec::with_capacity(locks);
        for _ in 0..locks {
            let request = harness.dlm.lock(fresh(), TTL).keep_alive(KeepAlive::new());
            guards.push(request.await.expect("granted"));
        }
        guards
    })
}
