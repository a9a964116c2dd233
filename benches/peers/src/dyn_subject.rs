//! Subjects of different types in one list.

use crate::frozen::FrozenRun;
use crate::harness::{Contest, Harness, Subject};
use crate::leftovers::{Ending, Leftovers};
use crate::sample::Sample;

/// A [`Subject`] of any type. `Subject` itself has an associated type, so its implementors cannot be in one list.
pub(crate) trait DynSubject {
    fn name(&self) -> &'static str;

    fn sample(&self, harness: &Harness, tasks: u32, each: u64) -> Sample;

    fn frozen_run(&self, harness: &Harness) -> FrozenRun;

    fn contest(&self, harness: &Harness, tasks: u32) -> Contest;

    fn leftovers(&self, harness: &Harness, ending: Ending) -> Leftovers;

    fn settle(&self, harness: &Harness);
}

impl<R: Subject> DynSubject for R {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn sample(&self, harness: &Harness, tasks: u32, each: u64) -> Sample {
        Sample::new(harness, self, tasks, each)
    }

    fn frozen_run(&self, harness: &Harness) -> FrozenRun {
        FrozenRun::new(harness, self)
    }

    fn contest(&self, harness: &Harness, tasks: u32) -> Contest {
        harness.contest(self, tasks, 1)
    }

    fn leftovers(&self, harness: &Harness, ending: Ending) -> Leftovers {
        Leftovers::new(harness, self, ending)
    }

    fn settle(&self, harness: &Harness) {
        harness.settle(self);
    }
}

/// All places, beginning with another one each round.
pub(crate) fn places<const N: usize>(round: usize) -> impl Iterator<Item = usize> {
    (0..N).map(move |place| (place + round) % N)
}
