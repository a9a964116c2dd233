//! A worker process, as the parent sees it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use support::Server;

use crate::report::Report;
use crate::soak::Event;
use crate::usage::Usage;
use crate::worker;

/// A process that ends with its handle.
pub(crate) struct Worker {
    process: Child,
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start(masters: &[Server], is_steady: bool, events: Sender<Event>) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg(worker::ROLE)
            .args(is_steady.then_some(worker::STEADY))
            .args(masters.iter().map(Server::url))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the parent alone, which then ends the others.
            .process_group(0)
            .spawn()
            .expect("this program can be started again");
        let stdout = process.stdout.take().expect("piped");
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(report) = Report::parse(&line) {
                    let _ = events.send(Event::Report(report));
                }
            }
        });
        Self {
            process,
            reader: Some(reader),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("our own child takes signals");
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        Usage::of(self.process.id())
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Waits until it has ended and all that it told was heard. Tells whether it did that by itself and in time.
    pub(crate) fn has_ended_by(&mut self, deadline: Instant) -> bool {
        let ended = loop {
            match self.process.try_wait() {
                Ok(Some(status)) => break status.success(),
                Ok(None) if Instant::now() < deadline => {
                    thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => break false,
            }
        };
        self.end();
        ended
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
