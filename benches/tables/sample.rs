//! One subject at work for a short time, and what was measured meanwhile.

use crate::harness::{Harness, Run, Subject};
use crate::process::cpu_time;

pub(crate) struct Sample {
    pub(crate) run: Run,
    /// Processor time of this process, in seconds per cycle.
    pub(crate) cpu: f64,
    /// What all masters were sent, per cycle.
    pub(crate) commands: f64,
    pub(crate) keys_left: u64,
    pub(crate) failed: u64,
}

impl Sample {
    /// Has so many tasks lock and release a fresh resource so many times each.
    pub(crate) fn new(harness: &Harness, subject: &impl Subject, tasks: u32, each: u64) -> Self {
        let commands = harness.commands();
        let before = cpu_time();
        let run = harness.run(subject, tasks, each);
        // What goes on in the background counts as well.
        harness.settle(subject);
        let cpu = cpu_time() - before;
        let commands = u32::try_from(harness.commands() - commands).expect("far fewer");
        Self {
            cpu: cpu.as_secs_f64() / count(&run),
            commands: f64::from(commands) / count(&run),
            keys_left: harness.clear(),
            failed: u64::from(tasks) * each - u64::try_from(run.releases.len()).expect("a count"),
            run,
        }
    }

    pub(crate) fn per_second(&self) -> f64 {
        count(&self.run) / self.run.elapsed.as_secs_f64()
    }
}

fn count(run: &Run) -> f64 {
    f64::from(u32::try_from(run.locks.len()).expect("far fewer cycles"))
}
