//! What a process uses, as /proc shows.

use std::fs;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// The most memory that was resident so far, in KiB.
    pub(crate) peak_memory: u32,
    pub(crate) threads: u32,
    pub(crate) descriptors: u32,
}

impl Usage {
    /// `None` where there is no /proc, or no such process any more.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self {
            peak_memory: field("VmHWM:")?,
            threads: field("Threads:")?,
            descriptors: u32::try_from(descriptors).ok()?,
        })
    }

    pub(crate) fn peak_mebibytes(&self) -> f64 {
        f64::from(self.peak_memory) / 1024.0
    }

    /// In MiB.
    pub(crate) fn growth_since(&self, earlier: &Self) -> f64 {
        self.peak_mebibytes() - earlier.peak_mebibytes()
    }
}
