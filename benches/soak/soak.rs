//! The parent: starts masters and workers, lets things go wrong, and counts.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rustix::process::Signal;
use support::Server;
use tokio::runtime;

use crate::child::Worker;
use crate::fault::Fault;
use crate::history::History;
use crate::report::Report;
use crate::summary::Summary;
use crate::usage::Usage;
use crate::worker;

const MASTERS: usize = 5;
const WORKERS: usize = 4;

/// Every answer is on disk first, or a master that is back at once would have forgotten it.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Between two faults, at most.
const LONGEST_CALM: Duration = Duration::from_millis(600);

/// Until all connections are open, and all that is allocated once is there.
const WARM_UP: Duration = Duration::from_secs(10);

/// After the last fault, until all is as it was and the locks of those who were killed are over.
const RECOVERY: Duration = worker::LONGEST_TTL.saturating_mul(2);

/// How long a worker may take to end: its longest wait, and its shutdown.
const END_WITHIN: Duration = Duration::from_secs(30);

const PROGRESS_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Soak {
    began: Instant,
    /// Faults that last, by the moment when they end.
    lasting: BTreeMap<Instant, Fault>,
    faults: BTreeMap<String, usize>,
    history: History,
    sender: Sender<Event>,
    events: Receiver<Event>,
    // Dropped in this order, so that nobody misses what it works with.
    workers: Vec<Worker>,
    masters: Vec<Server>,
}

/// What the parent listens to.
pub(crate) enum Event {
    /// A worker has something to tell.
    Report(Report),
    Interrupted,
}

/// Ctrl-C.
pub(crate) struct Interrupted;

impl Soak {
    pub(crate) fn start() -> Self {
        let masters: Vec<_> = (0..MASTERS).map(|_| Server::start_with(&DURABLE)).collect();
        let (sender, events) = channel();
        watch_for_interrupt(sender.clone());
        let workers = (0..WORKERS).map(|place| start_worker(place, &masters, &sender));
        Self {
            began: Instant::now(),
            lasting: BTreeMap::new(),
            faults: BTreeMap::new(),
            history: History::default(),
            workers: workers.collect(),
            sender,
            events,
            masters,
        }
    }

    pub(crate) fn run(mut self, time: Duration) -> Result<Summary, Interrupted> {
        self.attend(WARM_UP)?;
        let before = self.workers[0].usage();
        let mut next_progress = PROGRESS_EVERY;
        while self.began.elapsed() < time {
            let calm = rand::rng().random_range(Duration::ZERO..LONGEST_CALM);
            self.attend(calm)?;
            self.inject();
            if self.began.elapsed() > next_progress {
                self.print_progress();
                next_progress += PROGRESS_EVERY;
            }
        }
        for fault in std::mem::take(&mut self.lasting).into_values() {
            self.mend(fault);
        }
        self.attend(RECOVERY)?;
        Ok(self.end(before))
    }

    /// Listens to the workers for a while, and ends those faults whose time has come.
    fn attend(&mut self, time: Duration) -> Result<(), Interrupted> {
        let until = Instant::now() + time;
        loop {
            let now = Instant::now();
            while let Some(next) = self.lasting.first_entry()
                && *next.key() <= now
            {
                let fault = next.remove();
                self.mend(fault);
            }
            if now >= until {
                return Ok(());
            }
            let wake = self
                .lasting
                .keys()
                .next()
                .map_or(until, |end| until.min(*end));
            match self
                .events
                .recv_timeout(wake.saturating_duration_since(now))
            {
                Ok(Event::Report(report)) => self.history.note(report),
                Ok(Event::Interrupted) => return Err(Interrupted),
                // There is always a sender: ours.
                Err(_) => {}
            }
        }
    }

    /// Lets something go wrong, unless whom it befalls is in trouble already.
    fn inject(&mut self) {
        let fault = Fault::random(MASTERS, WORKERS);
        if self
            .lasting
            .values()
            .any(|other| other.victim() == fault.victim())
        {
            return;
        }
        match fault {
            Fault::MasterKilled(place) => self.masters[place].kill(),
            Fault::MasterFrozen(place) => self.masters[place].freeze(),
            Fault::ConnectionsCut(place) => self.masters[place].kill_clients(),
            Fault::WorkerKilled(place) => {
                self.workers[place] = start_worker(place, &self.masters, &self.sender);
            }
            Fault::WorkerFrozen(place) => self.workers[place].signal(Signal::STOP),
        }
        *self.faults.entry(fault.to_string()).or_default() += 1;
        if let Some(span) = fault.span() {
            self.lasting.insert(Instant::now() + span, fault);
        }
    }

    fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::MasterKilled(place) => self.masters[place].restart(),
            Fault::MasterFrozen(place) => self.masters[place].thaw(),
            Fault::WorkerFrozen(place) => self.workers[place].signal(Signal::CONT),
            Fault::ConnectionsCut(_) | Fault::WorkerKilled(_) => {}
        }
    }

    fn print_progress(&self) {
        let seconds = self.began.elapsed().as_secs();
        let faults: usize = self.faults.values().sum();
        let History { locks, lost, .. } = self.history;
        println!("{seconds:>5} s  {locks} locks, {lost} lost, {faults} faults");
    }

    /// Lets the workers end, and looks what they left.
    fn end(mut self, before: Option<Usage>) -> Summary {
        let usage = before.zip(self.workers[0].usage());
        let connections = self.masters.iter().map(Server::connected_clients).collect();
        self.workers.iter_mut().for_each(Worker::stop);
        let deadline = Instant::now() + END_WITHIN;
        let ended = self
            .workers
            .iter_mut()
            .map(|worker| worker.has_ended_by(deadline));
        let stuck = ended.filter(|ended| !ended).count();
        for event in self.events.try_iter() {
            if let Event::Report(report) = event {
                self.history.note(report);
            }
        }
        Summary {
            lasted: self.began.elapsed(),
            two_holders: self.history.two_holders(),
            history: self.history,
            faults: self.faults,
            keys_left: self.masters.iter().map(|master| master.keys().len()).sum(),
            connections,
            usage,
            stuck,
        }
    }
}

/// The first one is never killed.
fn start_worker(place: usize, masters: &[Server], sender: &Sender<Event>) -> Worker {
    Worker::start(masters, place == 0, sender.clone())
}

/// From here on Ctrl-C is an event like others, so that everything is cleaned up as at any other end.
fn watch_for_interrupt(events: Sender<Event>) {
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.expect("a runtime can be built");
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            let _ = events.send(Event::Interrupted);
        }
    });
}
