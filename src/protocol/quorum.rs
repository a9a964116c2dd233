//! The quorum: how many masters must agree, and when the outcome is certain. Pure.

/// The number of votes so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    masters: usize,
    granted: usize,
    denied: usize,
}

/// Whether the votes so far decide the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The votes that are still missing may decide either way.
    Undecided,
    Quorum,
    NoQuorum,
}

/// The size of a quorum: more than half of the masters. So any two quorums have a master in common, and that master
/// grants one key to one value only.
pub(crate) fn quorum(masters: usize) -> usize {
    masters / 2 + 1
}

/// Whether `count` of the masters are a quorum.
pub(crate) fn reaches_quorum(count: usize, masters: usize) -> bool {
    count >= quorum(masters)
}

impl Tally {
    pub(crate) const fn new(masters: usize) -> Self {
        Self {
            masters,
            granted: 0,
            denied: 0,
        }
    }

    pub(crate) fn count(&mut self, is_granted: bool) {
        if is_granted {
            self.granted += 1;
        } else {
            self.denied += 1;
        }
    }

    /// The outcome, as soon as it is certain: a quorum has granted, or too many have denied for a quorum to be
    /// possible.
    pub(crate) fn outcome(self) -> Outcome {
        let quorum = quorum(self.masters);
        if self.granted >= quorum {
            Outcome::Quorum
        } else if self.masters - self.denied < quorum {
            Outcome::NoQuorum
        } else {
            Outcome::Undecided
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries every sequence of votes of up to seven masters, and compares with a plain count.
    #[test]
    fn the_outcome_comes_with_the_vote_that_makes_it_certain() {
        for masters in 1..=7 {
            for votes in 0..1u32 << masters {
                let mut tally = Tally::new(masters);
                let (mut granted, mut denied) = (0, 0);
                for master in 0..masters {
                    let is_granted = votes >> master & 1 == 1;
                    tally.count(is_granted);
                    if is_granted {
                        granted += 1
                    } else {
                        denied += 1
                    }
                    let expected = if 2 * granted > masters {
                        Outcome::Quorum
                    } else if 2 * (masters - denied) <= masters {
                        Outcome::NoQuorum
                    } else {
                        Outcome::Undecided
                    };
                    assert_eq!(tally.outcome(), expected, "{masters} masters, {votes:b}");
                }
                assert_ne!(tally.outcome(), Outcome::Undecided);
            }
        }
    }

    #[test]
    fn any_two_quorums_have_a_master_in_common() {
        for masters in 1..100 {
            assert!(2 * quorum(masters) > masters);
        }
    }

    #[test]
    fn more_than_half_reach_a_quorum() {
        for masters in 1..10 {
            for count in 0..=masters {
                assert_eq!(reaches_quorum(count, masters), 2 * count > masters);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_later_vote_changes_a_certain_outcome(votes: Vec<bool>) {
            let mut tally = Tally::new(votes.len());
            let mut certain = None;
            for &is_granted in &votes {
                tally.count(is_granted);
                match (certain, tally.outcome()) {
                    (None, Outcome::Undecided) => {}
                    (None, outcome) => certain = Some(outcome),
                    (Some(outcome), now) => assert_eq!(outcome, now),
                }
            }
            let granted = votes.iter().filter(|is_granted| **is_granted).count();
            let expected = 2 * granted > votes.len();
            assert!(votes.is_empty() || certain == Some(if expected { Outcome::Quorum } else { Outcome::NoQuorum }));
        }
    }
}
