//! What this process uses, as the system tells.

use std::fs;
use std::time::Duration;

/// The processor time of all threads so far, user and system.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.try_into().expect("this clock begins at zero")
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn cpu_time() -> Duration {
    Duration::ZERO
}

/// The memory that is resident, in bytes; `None` where there is no /proc.
pub(crate) fn resident() -> Option<usize> {
    let kibibytes = status("VmRSS:")?;
    Some(kibibytes * 1024)
}

/// How many threads there are; `None` where there is no /proc.
pub(crate) fn threads() -> Option<usize> {
    status("Threads:")
}

fn status(field: &str) -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
