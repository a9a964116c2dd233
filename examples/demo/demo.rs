//! The parent: starts masters and workers, makes things go wrong, and watches.

use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use crate::event::Event;
use crate::fault::{Fault, REST, SCHEDULE};
use crate::master::{self, Master};
use crate::note::Note;
use crate::report::Report;
use crate::scratch::Scratch;
use crate::screen::Screen;
use crate::summary::Summary;
use crate::tally::Tally;
use crate::witness::Witness;
use crate::worker::{State, Worker};
use crate::{Result, clock, contender, picture};

const MASTERS: usize = 5;
const WORKERS: usize = 4;

pub(crate) struct Demo {
    screen: Screen,
    /// When it began, by our [`clock`]. Other times here count from then.
    pub(crate) began: Duration,
    next_show: Duration,
    pub(crate) tally: Tally,
    pub(crate) notes: Vec<Note>,
    /// Whether the next holder is to be killed.
    is_holder_doomed: bool,
    events: Receiver<Event>,
    witness: Witness,
    // Dropped in this order, so that nobody misses what it works with.
    pub(crate) workers: Vec<Worker>,
    pub(crate) masters: Vec<Master>,
    _scratch: Scratch,
}

impl Demo {
    pub(crate) fn start(sender: &Sender<Event>, events: Receiver<Event>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let witness = Witness::new(scratch.path().join("holder"));
        let masters = (0..MASTERS)
            .map(|_| Master::start(scratch.path()))
            .collect::<Result<Vec<_>>>()?;
        let workers = (0..WORKERS)
            .map(|place| Worker::start(place, &witness, &masters, sender.clone()))
            .collect::<Result<_>>()?;
        Ok(Self {
            screen: Screen::new(),
            began: clock::now(),
            next_show: Duration::ZERO,
            tally: Tally::default(),
            notes: Vec::new(),
            is_holder_doomed: false,
            events,
            witness,
            workers,
            masters,
            _scratch: scratch,
        })
    }

    pub(crate) fn run(mut self) -> Result<Summary> {
        // Pauses, not moments: were this process stopped for a while, nothing must come too early after another.
        for (pause, fault) in SCHEDULE {
            self.attend(pause, |_| false)?;
            self.inject(fault)?;
        }
        self.attend(REST, |_| false)?;
        self.end()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        clock::now().saturating_sub(self.began)
    }

    /// The number of the worker whose latest lock this value stands for.
    pub(crate) fn holder_with(&self, value: &str) -> Option<usize> {
        let place = self.workers.iter().position(|worker| worker.value == value);
        Some(place? + 1)
    }

    /// Attends to whatever happens for a while, or until something is so.
    fn attend(&mut self, pause: Duration, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        let until = self.elapsed() + pause;
        loop {
            let now = self.elapsed();
            if now >= self.next_show {
                self.show()?;
                self.next_show = now + self.screen.interval();
            }
            if now >= until || is_so(self) {
                return Ok(());
            }
            let wait = until.min(self.next_show).saturating_sub(now);
            match self.events.recv_timeout(wait) {
                Ok(Event::Report(place, report)) => self.hear(place, report)?,
                Ok(Event::Ended(place)) => self.miss(place)?,
                Ok(Event::Interrupted(by)) => return Err(by.into()),
                Err(_) => {}
            }
        }
    }

    fn hear(&mut self, place: usize, report: Report) -> Result<()> {
        self.tally.count(place, &report);
        let number = place + 1;
        let worker = &mut self.workers[place];
        match report {
            // Said before it was killed, and not heard until now.
            _ if worker.state == State::Killed => {}
            Report::Granted { waited, value, .. } => {
                worker.state = State::Holding;
                worker.value = value;
                worker.locks += 1;
                worker.last_wait = waited;
                if self.is_holder_doomed {
                    self.kill_holder(place)?;
                }
            }
            Report::Released { .. } => worker.state = State::Waiting,
            Report::Done { .. } => worker.state = State::Done,
            Report::TakenOver => {
                self.note(
                    false,
                    format!("worker {number} takes over, the ttl is over"),
                )?;
            }
            Report::TwoHolders => {
                self.note(false, format!("TWO HOLDERS: worker {number} and another"))?;
            }
            Report::Lost => self.note(false, format!("worker {number} lost the lock early"))?,
        }
        Ok(())
    }

    fn miss(&self, place: usize) -> Result<()> {
        if self.workers[place].has_ended() {
            return Ok(());
        }
        Err(format!("worker {} failed", place + 1).into())
    }

    fn inject(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Master(number, state) => {
                self.masters[number - 1].enter(state)?;
                let is_fault = state != master::State::Up;
                self.note(is_fault, format!("master {number} {state}"))
            }
            Fault::HolderKilled => {
                self.is_holder_doomed = true;
                Ok(())
            }
        }
    }

    fn kill_holder(&mut self, place: usize) -> Result<()> {
        let worker = &mut self.workers[place];
        worker.kill()?;
        // It may have released the lock since it told us; then it is the turn of the next.
        self.is_holder_doomed = !self.witness.is_held_by(worker.pid());
        let when = if self.is_holder_doomed {
            "after holding"
        } else {
            self.tally.holder_was_killed(place, clock::now());
            "while holding"
        };
        self.note(true, format!("worker {} killed {when}", place + 1))
    }

    fn note(&mut self, is_fault: bool, text: String) -> Result<()> {
        let at = self.elapsed();
        let note = Note { at, is_fault, text };
        self.screen.line(&note.to_string())?;
        self.notes.push(note);
        Ok(())
    }

    fn show(&mut self) -> Result<()> {
        self.draw()?;
        let now = self.elapsed();
        let seconds = now.as_secs_f64();
        let last_second = Duration::from_secs(1);
        let locks = self.tally.locks_within(last_second, self.began + now);
        let up = |master: &&Master| master.state() == master::State::Up;
        let up = self.masters.iter().filter(up).count();
        let line = format!("{seconds:>5.1} s  {locks} locks in the last second, {up} masters up");
        Ok(self.screen.line(&line)?)
    }

    fn draw(&mut self) -> Result<()> {
        let sights: Vec<_> = self.masters.iter_mut().map(Master::value).collect();
        let picture = picture::draw(self, &sights)?;
        Ok(self.screen.draw(&picture)?)
    }

    /// Lets the workers end, and looks what they left.
    fn end(mut self) -> Result<Summary> {
        let lasted = self.elapsed();
        self.note(false, "workers told to end".to_owned())?;
        for worker in &mut self.workers {
            worker.stop();
        }
        let have_ended = |demo: &Self| demo.workers.iter().all(Worker::has_ended);
        self.attend(3 * contender::TTL, have_ended)?;
        if !have_ended(&self) {
            return Err("a worker does not end".into());
        }
        self.draw()?;
        let keys_left = self.masters.iter_mut().map(Master::keys);
        Ok(Summary {
            keys_left: keys_left.collect::<Result<_>>()?,
            began: self.began,
            lasted,
            tally: self.tally,
            notes: self.notes,
        })
    }
}
