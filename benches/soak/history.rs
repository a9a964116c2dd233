//! Who held what when, and whether two held the same at once.

use std::collections::HashMap;
use std::time::Duration;

use crate::report::Report;

#[derive(Default)]
pub(crate) struct History {
    /// For each resource, from when until when.
    holds: HashMap<String, Vec<(Duration, Duration)>>,
    pub(crate) locks: usize,
    pub(crate) lost: usize,
    pub(crate) denied: usize,
    pub(crate) cancelled: usize,
    pub(crate) unconfirmed: usize,
}

impl History {
    pub(crate) fn note(&mut self, report: Report) {
        match report {
            Report::Held {
                resource,
                from,
                until,
            } => {
                self.locks += 1;
                self.holds.entry(resource).or_default().push((from, until));
            }
            Report::Lost => self.lost += 1,
            Report::Denied => self.denied += 1,
            Report::Cancelled => self.cancelled += 1,
            Report::Done { unconfirmed } => self.unconfirmed += unconfirmed,
        }
    }

    /// How often somebody was granted what another still held.
    pub(crate) fn two_holders(&mut self) -> usize {
        self.holds.values_mut().map(|holds| overlaps(holds)).sum()
    }
}

fn overlaps(holds: &mut [(Duration, Duration)]) -> usize {
    // Workers tell of a lock when it is over, so out of order.
    holds.sort_unstable();
    let mut held_until = Duration::ZERO;
    let mut count = 0;
    for &(from, until) in holds.iter() {
        count += usize::from(from < held_until);
        held_until = held_until.max(until);
    }
    count
}
