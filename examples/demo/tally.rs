//! Who held the lock when, and what else there is to count. Times are those of our [`clock`](crate::clock).

use std::time::Duration;

use crate::report::Report;

#[derive(Default)]
pub(crate) struct Tally {
    holds: Vec<Hold>,
    pub(crate) two_holders: usize,
    pub(crate) taken_over: usize,
    pub(crate) lost: usize,
    pub(crate) unconfirmed: usize,
}

struct Hold {
    worker: usize,
    granted: Duration,
    end: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Released(Duration),
    Killed(Duration),
}

/// The time between one holder and the next.
pub(crate) struct Gap {
    pub(crate) length: Duration,
    pub(crate) until: Duration,
    /// The one released the lock for the other; it was not killed.
    pub(crate) is_hand_over: bool,
}

impl Tally {
    pub(crate) fn count(&mut self, worker: usize, report: &Report) {
        match *report {
            Report::TwoHolders => self.two_holders += 1,
            Report::TakenOver => self.taken_over += 1,
            Report::Granted { at, .. } => self.holds.push(Hold {
                worker,
                granted: at,
                end: None,
            }),
            Report::Released { at } => self.end(worker, End::Released(at)),
            Report::Lost => self.lost += 1,
            Report::Done { unconfirmed } => self.unconfirmed += unconfirmed,
        }
    }

    pub(crate) fn holder_was_killed(&mut self, worker: usize, at: Duration) {
        self.end(worker, End::Killed(at));
    }

    pub(crate) fn locks(&self) -> usize {
        self.holds.len()
    }

    /// How many locks were granted in the time before a moment.
    pub(crate) fn locks_within(&self, time: Duration, before: Duration) -> usize {
        let times = before.saturating_sub(time)..before;
        let granted = self.holds.iter().map(|hold| hold.granted);
        granted.filter(|at| times.contains(at)).count()
    }

    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let mut holds: Vec<_> = self.holds.iter().collect();
        // Reports of different workers may overtake each other.
        holds.sort_by_key(|hold| hold.granted);
        let gap = |pair: &[&Hold]| {
            let (from, is_hand_over) = match pair[0].end? {
                End::Released(at) => (at, true),
                End::Killed(at) => (at, false),
            };
            let until = pair[1].granted;
            Some(Gap {
                length: until.saturating_sub(from),
                until,
                is_hand_over,
            })
        };
        holds.windows(2).filter_map(gap).collect()
    }

    fn end(&mut self, worker: usize, end: End) {
        let mut latest_first = self.holds.iter_mut().rev();
        if let Some(hold) = latest_first.find(|hold| hold.worker == worker) {
            hold.end = Some(end);
        }
    }
}
