//! What came of it.

use std::fmt;
use std::time::Duration;

use crate::note::Note;
use crate::tally::Tally;

pub(crate) struct Summary {
    /// When it began, by our [`clock`](crate::clock).
    pub(crate) began: Duration,
    pub(crate) lasted: Duration,
    pub(crate) tally: Tally,
    pub(crate) notes: Vec<Note>,
    /// On each master.
    pub(crate) keys_left: Vec<usize>,
}

impl Summary {
    pub(crate) fn is_good(&self) -> bool {
        // Were the dead holder's lock not taken over, that death would have been the end for all.
        self.tally.taken_over > 0 && self.tally.two_holders == 0 && self.keys() == 0
    }

    fn keys(&self) -> usize {
        self.keys_left.iter().sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, lasted, .. } = self;
        let faults = self.notes.iter().filter(|note| note.is_fault);

        let locks = tally.locks();
        let rate = locks as u128 * 1000 / lasted.as_millis().max(1);
        writeln!(f, "locks        {locks} in {lasted:.1?}, {rate} a second")?;

        let gaps = tally.gaps();
        let hand_overs = gaps.iter().filter(|gap| gap.is_hand_over);
        let mut hand_overs: Vec<_> = hand_overs.map(|gap| gap.length).collect();
        hand_overs.sort();
        if let [.., max] = hand_overs[..] {
            let percentile =
                |percent: usize| hand_overs[(hand_overs.len() * percent).div_ceil(100) - 1];
            let (p50, p99) = (percentile(50), percentile(99));
            writeln!(
                f,
                "hand-over    p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}"
            )?;
        }
        if let Some(gap) = gaps.iter().max_by_key(|gap| gap.length) {
            let before = |note: &&Note| self.began + note.at <= gap.until;
            let cause = faults.clone().rfind(before);
            let cause = cause.map_or("no fault", |note| &note.text);
            writeln!(f, "longest gap  {:.3?}: {cause}", gap.length)?;
        }

        let (over, lost) = (tally.taken_over, tally.lost);
        writeln!(f, "taken over   {over} from a dead holder, after its ttl")?;
        writeln!(f, "lost         {lost} while held")?;
        writeln!(f, "unconfirmed  {} releases", tally.unconfirmed)?;
        writeln!(f, "two holders  {} times", tally.two_holders)?;
        let masters = self.keys_left.len();
        writeln!(f, "keys left    {} on {masters} masters", self.keys())?;
        let faults: Vec<_> = faults.map(ToString::to_string).collect();
        write!(f, "faults     {}", faults.join("\n           "))
    }
}
