//! The majority: how many masters must agree, and when the outcome is certain. Pure.

/// The votes counted so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    masters: usize,
    ayes: usize,
    noes: usize,
}

/// Whether the vote can still go either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Open,
    Carried,
    Defeated,
}

/// More than half of the masters: any two quorums have one in common.
pub(crate) fn quorum(masters: usize) -> usize {
    #[cfg(test)]
    if crate::simulation::Rule::QuorumIsMoreThanHalf.is_broken() {
        return masters / 2;
    }
    masters / 2 + 1
}

impl Tally {
    pub(crate) const fn new(masters: usize) -> Self {
        Self {
            masters,
            ayes: 0,
            noes: 0,
        }
    }

    pub(crate) fn count(&mut self, aye: bool) {
        if aye {
            self.ayes += 1;
        } else {
            self.noes += 1;
        }
    }

    pub(crate) fn verdict(self) -> Verdict {
        let quorum = quorum(self.masters);
        if self.ayes >= quorum {
            Verdict::Carried
        } else if self.masters - self.noes < quorum {
            Verdict::Defeated
        } else {
            Verdict::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every sequence of votes of up to seven masters, against a count made in the plainest way.
    #[test]
    fn the_verdict_comes_with_the_vote_that_makes_it_certain() {
        for masters in 1..=7 {
            for votes in 0..1u32 << masters {
                let mut tally = Tally::new(masters);
                let (mut ayes, mut noes) = (0, 0);
                for master in 0..masters {
                    let aye = votes >> master & 1 == 1;
                    tally.count(aye);
                    if aye {
                        ayes += 1
                    } else {
                        noes += 1
                    }
                    let expected = if 2 * ayes > masters {
                        Verdict::Carried
                    } else if 2 * (masters - noes) <= masters {
                        Verdict::Defeated
                    } else {
                        Verdict::Open
                    };
                    assert_eq!(tally.verdict(), expected, "{masters} masters, {votes:b}");
                }
                assert_ne!(tally.verdict(), Verdict::Open);
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
            for &aye in &votes {
                tally.count(aye);
                match (certain, tally.verdict()) {
                    (None, Verdict::Open) => {}
                    (None, verdict) => certain = Some(verdict),
                    (Some(verdict), now) => assert_eq!(verdict, now),
                }
            }
            let ayes = votes.iter().filter(|aye| **aye).count();
            let carried = 2 * ayes > votes.len();
            assert!(votes.is_empty() || certain == Some(if carried { Verdict::Carried } else { Verdict::Defeated }));
        }
    }
}
