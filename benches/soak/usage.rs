//! What a process uses, as the system tells.

use std::fs;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident, in bytes.
    pub(crate) memory: usize,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

impl Usage {
    /// `None` where there is no /proc.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<usize>().ok()
        };
        Some(Self {
            memory: field("VmRSS:")? * 1024,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            threads: field("Threads:")?,
        })
    }
}
