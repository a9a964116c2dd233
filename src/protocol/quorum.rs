//! The majority: how many masters must agree, and when the outcome is certain. Pure.

/// The votes counted so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    masters: usize,
    granted: usize,
    denied: usize,
}

/// Whether the vote can still go either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The votes to come may still decide either way.
    Undecided,
    Quorum,
    NoQuorum,
}

/// More than half of the masters: any two quorums have one in common.
pub(crate) fn quorum(masters: usize) -> usize {
    masters / 2 + 1
}

/// Whether so many of the masters are a quorum.
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

    /// Every sequence of votes of up to seven masters, against a count made in the plainest way.
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
    fn two_quorums_always_meet() {
        for masters in 1..100 {
            assert!(2 * quorum(masters) > masters);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_later_vote_changes_what_is_certain(votes: Vec<bool>) {
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
            let carried = 2 * granted > votes.len();
            assert!(votes.is_empty() || certain == Some(if carried { Outcome::Quorum } else { Outcome::NoQuorum }));
        }
    }
}
