//! A quarter of a core for one process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The period of the scheduler, and how much of it the process gets, in microseconds.
const PERIOD: u32 = 100_000;
const QUOTA: u32 = 25_000;

/// The same for a process that is stopped and continued.
const RUNS: Duration = Duration::from_millis(25);
const STOPS: Duration = Duration::from_millis(75);

/// Where the groups of the scheduler are: version 1 with a hierarchy for the processor, and version 2.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"];

/// Ends with this. Must be [lifted](Self::lift) before the process is awaited.
pub(crate) enum CpuLimit {
    /// A group of the scheduler, of its own.
    Group(PathBuf),
    /// A thread that stops the process and lets it go on.
    DutyCycle {
        over: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    },
}

impl CpuLimit {
    /// By a group where those can be made, otherwise by signals.
    pub(crate) fn new(process: Pid) -> Self {
        let group = HIERARCHIES
            .into_iter()
            .find_map(|hierarchy| group(hierarchy, process));
        group.map_or_else(|| duty_cycle(process), Self::Group)
    }

    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Group(_) => "by a cgroup",
            Self::DutyCycle { .. } => "by stopping it for 75 of 100 ms",
        }
    }

    /// Sends no signal any more.
    pub(crate) fn lift(&mut self) {
        if let Self::DutyCycle { over, thread } = self {
            over.store(true, Ordering::Relaxed);
            let _ = thread.take().map(JoinHandle::join);
        }
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        self.lift();
        if let Self::Group(directory) = self {
            // A process leaves its group only some moments after it was awaited.
            let removed = || fs::remove_dir(&*directory).is_ok();
            let _ = (0..50).any(|_| {
                let removed = removed();
                if !removed {
                    sleep(Duration::from_millis(20));
                }
                removed
            });
        }
    }
}

/// Puts the process into a new group; `None` where that is not possible.
fn group(hierarchy: &str, process: Pid) -> Option<PathBuf> {
    let number = process.as_raw_nonzero();
    let directory = Path::new(hierarchy).join(format!("overload-{number}"));
    fs::create_dir(&directory).ok()?;
    let limited = fs::write(directory.join("cpu.cfs_period_us"), PERIOD.to_string())
        .and_then(|()| fs::write(directory.join("cpu.cfs_quota_us"), QUOTA.to_string()))
        .or_else(|_| fs::write(directory.join("cpu.max"), format!("{QUOTA} {PERIOD}")))
        .and_then(|()| fs::write(directory.join("cgroup.procs"), number.to_string()));
    if limited.is_err() {
        let _ = fs::remove_dir(&directory);
    }
    limited.is_ok().then_some(directory)
}

fn duty_cycle(process: Pid) -> CpuLimit {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let thread = thread::spawn(move || {
        // The child is not awaited before this ends, so its id is nobody else's.
        while !seen.load(Ordering::Relaxed) {
            let _ = kill_process(process, Signal::STOP);
            sleep(STOPS);
            let _ = kill_process(process, Signal::CONT);
            sleep(RUNS);
        }
    });
    CpuLimit::DutyCycle {
        over,
        thread: Some(thread),
    }
}
