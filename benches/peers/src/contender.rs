//! What every rival goes through.

use crate::bed::{Bed, Contest, Rival};
use crate::frozen::Ordeal;
use crate::leftovers::{Ending, Leftovers};
use crate::turn::Turn;

/// A rival of any type: what [`Rival`] asks for differs in its types from one to the next, which keeps it out of a list.
pub(crate) trait Contender {
    fn name(&self) -> &'static str;

    fn turn(&self, bed: &Bed, tasks: u32, each: u64) -> Turn;

    fn ordeal(&self, bed: &Bed) -> Ordeal;

    fn contest(&self, bed: &Bed, tasks: u32) -> Contest;

    fn leftovers(&self, bed: &Bed, ending: Ending) -> Leftovers;

    fn settle(&self, bed: &Bed);
}

impl<R: Rival> Contender for R {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn turn(&self, bed: &Bed, tasks: u32, each: u64) -> Turn {
        Turn::new(bed, self, tasks, each)
    }

    fn ordeal(&self, bed: &Bed) -> Ordeal {
        Ordeal::new(bed, self)
    }

    fn contest(&self, bed: &Bed, tasks: u32) -> Contest {
        bed.contest(self, tasks, 1)
    }

    fn leftovers(&self, bed: &Bed, ending: Ending) -> Leftovers {
        Leftovers::new(bed, self, ending)
    }

    fn settle(&self, bed: &Bed) {
        bed.settle(self);
    }
}

/// All places, beginning with another one each round.
pub(crate) fn places<const N: usize>(round: usize) -> impl Iterator<Item = usize> {
    (0..N).map(move |place| (place + round) % N)
}
