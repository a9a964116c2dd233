//! The faults that befall the masters of a simulation.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::history::{FASTEST, History};
use tokio_redlock::testing::{Fault, Master, Masters};

/// No master hangs for longer at a time.
pub(crate) const LONGEST_HANG: Duration = Duration::from_millis(1_500);

/// The slowest that a master's clock runs within the assumptions.
pub(crate) const SLOWEST: f64 = 0.99;

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultModel {
    /// Those under which Redlock promises exclusion: clocks within the drift factor, and whoever forgets its keys
    /// stays away for longer than the longest ttl.
    Assumed,
    /// Masters restart empty at once.
    Amnesia,
    /// One master's clock may run twice as fast.
    FastClock,
}

/// A random schedule of faults.
pub(crate) struct Nemesis {
    model: FaultModel,
    masters: Masters,
    history: History,
    rng: StdRng,
    longest_ttl: Duration,
    /// When each master may be started again, if it is down.
    away_until: Vec<Option<Instant>>,
    hung_until: Vec<Option<Instant>>,
}

impl Nemesis {
    pub(crate) fn new(
        model: FaultModel,
        masters: &Masters,
        history: &History,
        seed: u64,
        longest_ttl: Duration,
    ) -> Self {
        Self {
            model,
            masters: masters.clone(),
            history: history.clone(),
            rng: StdRng::seed_from_u64(seed),
            longest_ttl,
            away_until: vec![None; masters.len()],
            hung_until: vec![None; masters.len()],
        }
    }

    /// Rages for a while, then all is well again.
    pub(crate) async fn run(mut self) {
        let fair_from = Instant::now() + self.millis(500..4_000);
        while Instant::now() < fair_from {
            self.inject_one();
            let pause = self.millis(0..250);
            sleep(pause).await;
            self.bring_back();
        }
        for master in self.masters.iter() {
            master.clear_faults();
            master.resume();
        }
        for (master, away_until) in self.masters.iter().zip(self.away_until) {
            if let Some(away_until) = away_until {
                sleep_until(away_until).await;
                master.restart();
            }
        }
        self.history.note(|_| {}, || "all is well".to_owned());
    }

    /// One master meets one fault.
    fn inject_one(&mut self) {
        let place = self.rng.random_range(0..self.masters.len());
        let master = self.masters[place].clone();
        let what = match self.rng.random_range(0..9) {
            0 | 1 => self.slow(&master),
            8 => self.slow_and_steady(&master),
            2 => self.hang(place, &master),
            3 => self.stop(place, &master),
            4 => self.set_clock_rate(&master),
            5 => {
                master.clear_faults();
                "is well".to_owned()
            }
            _ => self.fault(&master),
        };
        let noted = || format!("master {place} {what}");
        self.history.note(|counts| counts.faults += 1, noted);
    }

    fn slow(&mut self, master: &Master) -> String {
        let limit = *self.pick(&[5, 60, 200, 600]);
        let mut range = || -> RangeInclusive<Duration> {
            let most = self.rng.random_range(0..=limit);
            Duration::from_millis(self.rng.random_range(0..=most))..=Duration::from_millis(most)
        };
        let (requests, answers) = (range(), range());
        let what = format!("delays requests by {requests:?}, answers by {answers:?}");
        master.delay_requests(requests);
        master.delay_answers(answers);
        what
    }

    /// Each answer is as late as every other, so they keep coming, and each may be later than a request may take.
    fn slow_and_steady(&mut self, master: &Master) -> String {
        let late = self.millis(100..900);
        master.delay_answers(late..=late);
        format!("is {late:?} late with every answer")
    }

    fn hang(&mut self, place: usize, master: &Master) -> String {
        let span = self.millis(10..1_000);
        master.hang();
        self.hung_until[place].get_or_insert(Instant::now() + span);
        format!("hangs for {span:?}")
    }

    fn stop(&mut self, place: usize, master: &Master) -> String {
        if self.model == FaultModel::Amnesia {
            master.restart();
            return "restarts empty".to_owned();
        }
        // Its last key is gone a drift later than the ttl.
        let span = self.longest_ttl.mul_f64(FASTEST) + self.millis(5..100);
        master.stop();
        self.away_until[place] = Some(Instant::now() + span);
        format!("is down for {span:?}")
    }

    fn set_clock_rate(&mut self, master: &Master) -> String {
        let rates = match self.model {
            FaultModel::FastClock => [2.0, 1.5, 1.0],
            _ => [FASTEST, 1.0, SLOWEST],
        };
        let rate = *self.pick(&rates);
        master.set_clock_rate(rate);
        format!("runs its clock at {rate}")
    }

    fn fault(&mut self, master: &Master) -> String {
        let faults = [
            Fault::LoseRequest,
            Fault::LoseAnswer,
            Fault::Error("LOADING Redis is loading the dataset in memory".into()),
            Fault::Error("ERR something went wrong".into()),
        ];
        let fault = self.pick(&faults).clone();
        let times = self.rng.random_range(1..4);
        let what = format!("is to meet {times} times {fault:?}");
        for _ in 0..times {
            master.inject(fault.clone());
        }
        what
    }

    /// Those whose time has come are back.
    fn bring_back(&mut self) {
        let now = Instant::now();
        let past = |until: &mut Option<Instant>| until.take_if(|until| *until <= now).is_some();
        for (place, master) in self.masters.iter().enumerate() {
            if past(&mut self.hung_until[place]) {
                master.resume();
                self.history
                    .note(|_| {}, || format!("master {place} goes on"));
            }
            if past(&mut self.away_until[place]) {
                master.restart();
                self.history
                    .note(|_| {}, || format!("master {place} is back"));
            }
        }
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.rng.random_range(0..choices.len())]
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }
}
