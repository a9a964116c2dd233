//! Processes that do nothing but keep the processor busy.

use std::env;
use std::process::{Child, Command, ExitCode, Stdio};

use crate::child::end_with_parent;

pub(crate) const ROLE: &str = "busy";

/// Two busy loops, which end with this.
pub(crate) struct BusyLoops([Child; 2]);

impl BusyLoops {
    pub(crate) fn start() -> Self {
        Self([(); 2].map(|()| {
            Command::new(env::current_exe().expect("this program has a path"))
                .arg(ROLE)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("this program can be started again")
        }))
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The inside of such a process.
pub(crate) fn run() -> ExitCode {
    end_with_parent();
    loop {
        std::hint::black_box(());
    }
}
