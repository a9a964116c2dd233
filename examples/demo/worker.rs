//! A worker process, as the parent sees it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::iter;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use crate::Result;
use crate::child::Child;
use crate::event::Event;
use crate::master::Master;
use crate::witness::Witness;

pub(crate) const ROLE: &str = "worker";

pub(crate) struct Worker {
    process: Child,
    pub(crate) state: State,
    /// What stands on the masters for its latest lock.
    pub(crate) value: String,
    pub(crate) locks: u32,
    pub(crate) last_wait: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    Holding,
    Killed,
    Done,
}

impl Worker {
    /// Starts a worker; its reports become events that bear its place.
    pub(crate) fn start(
        place: usize,
        witness: &Witness,
        masters: &[Master],
        events: Sender<Event>,
    ) -> Result<Self> {
        let masters = masters.iter().map(|master| master.url().into());
        let args = iter::once(witness.path().into()).chain(masters);
        let mut process = Child::spawn(ROLE, args.collect::<Vec<OsString>>())?;
        if let Some(stdout) = process.take_stdout() {
            thread::spawn(move || {
                let lines = BufReader::new(stdout).lines().map_while(|line| line.ok());
                for report in lines.map_while(|line| line.parse().ok()) {
                    let _ = events.send(Event::Report(place, report));
                }
                let _ = events.send(Event::Ended(place));
            });
        }
        Ok(Self {
            process,
            state: State::Waiting,
            value: String::new(),
            locks: 0,
            last_wait: Duration::ZERO,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.state = State::Killed;
        Ok(self.process.kill()?)
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Killed | State::Done)
    }

    /// Asks it to end; it says so when it has.
    pub(crate) fn stop(&mut self) {
        drop(self.process.take_stdin());
    }
}
