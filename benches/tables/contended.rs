//! Many tasks want the same resource.

use std::time::Duration;

use crate::harness::Harness;
use crate::stats::percentile;
use crate::table::{Table, per_second, time};

/// Tasks, locks of each, and how often that is repeated. Those that come back at once for another lock are ahead of
/// those who wait, so once each and many times each are two different things.
const CONTESTS: [(u32, u32, u32); 4] = [(8, 1, 30), (64, 1, 8), (8, 100, 1), (64, 20, 1)];

pub(crate) fn print(harness: &Harness) {
    let header = [
        "tasks",
        "locks each",
        "locks",
        "hand-over p50",
        "hand-over p99",
        "commands per lock",
        "keys left",
    ];
    let title = "contended: all tasks at once, one resource, default delays, five masters";
    let mut table = Table::new(title, header);
    // Opens the connections.
    harness.contest(&harness.dlm, 1, 1);
    for (tasks, each, times) in CONTESTS {
        harness.settle(&harness.dlm);
        let commands = harness.commands();
        let mut elapsed = Duration::ZERO;
        let mut hand_overs = Vec::new();
        for _ in 0..times {
            let contest = harness.contest(&harness.dlm, tasks, each);
            elapsed += contest.elapsed;
            hand_overs.extend(contest.hand_overs);
        }
        harness.settle(&harness.dlm);
        let commands = u32::try_from(harness.commands() - commands).expect("far fewer");
        let locks = f64::from(tasks * each * times);
        table.row([
            tasks.to_string(),
            each.to_string(),
            per_second(locks / elapsed.as_secs_f64()),
            time(percentile(&hand_overs, 50)),
            time(percentile(&hand_overs, 99)),
            format!("{:.1}", f64::from(commands) / locks),
            harness.clear().to_string(),
        ]);
    }
    table.print(
        "hand-over: from the begin of a release to the next grant; 10 commands are the least",
    );
}
