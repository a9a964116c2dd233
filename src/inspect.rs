//! Looking at a resource without locking it.

use std::collections::HashMap;
use std::time::Duration;

use crate::error::{Address, MasterError};
use crate::quorum::quorum;

/// Who holds a resource, as the masters see it. Made by [`Redlock::inspect`](crate::Redlock::inspect).
///
/// It is out of date when it arrives: for dashboards and messages, not for decisions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// What a quorum says.
    pub verdict: Verdict,
    /// What each master says, in the order of the masters.
    pub sightings: Vec<Sighting>,
}

/// What the masters say together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// A quorum has no key: the lock can be had.
    Free,
    /// A quorum holds the key for one value.
    Held {
        /// The value of the holder.
        value: Vec<u8>,
        /// When less than a quorum will hold it, unless it is extended; `None` if it never expires.
        left: Option<Duration>,
    },
    /// A quorum answered, and is not of one mind: several clients compete, or a lock just comes or goes.
    Contested,
    /// Fewer than a quorum answered.
    Unknown,
}

/// What one master says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sighting {
    /// Which master.
    pub master: Address,
    /// What it says.
    pub state: State,
}

/// The key on one master.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// There is none.
    Free,
    /// There is one.
    Held {
        /// The value of the holder.
        value: Vec<u8>,
        /// The time to live that is left; `None` if it never expires.
        left: Option<Duration>,
    },
    /// The master did not answer, or not in a way that counts.
    Unreachable(MasterError),
}

impl Inspection {
    pub(crate) fn new(sightings: Vec<Sighting>) -> Self {
        let verdict = verdict(&sightings);
        Self { verdict, sightings }
    }
}

fn verdict(sightings: &[Sighting]) -> Verdict {
    let quorum = quorum(sightings.len());
    let mut free = 0;
    let mut unreachable = 0;
    let mut held: HashMap<&[u8], Vec<Option<Duration>>> = HashMap::new();
    for sighting in sightings {
        match &sighting.state {
            State::Free => free += 1,
            State::Unreachable(_) => unreachable += 1,
            State::Held { value, left } => held.entry(value).or_default().push(*left),
        }
    }
    if sightings.len() - unreachable < quorum {
        return Verdict::Unknown;
    }
    if free >= quorum {
        return Verdict::Free;
    }
    match held.into_iter().find(|(_, times)| times.len() >= quorum) {
        Some((value, mut times)) => {
            // Longest first: with the quorum-th of them the quorum is gone.
            times.sort_by_key(|left| std::cmp::Reverse(left.unwrap_or(Duration::MAX)));
            Verdict::Held {
                value: value.to_vec(),
                left: times[quorum - 1],
            }
        }
        None => Verdict::Contested,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(states: impl IntoIterator<Item = State>) -> Verdict {
        let master = Address::new("m");
        let sighting = |state| Sighting {
            master: master.clone(),
            state,
        };
        verdict(&states.into_iter().map(sighting).collect::<Vec<_>>())
    }

    fn held(value: &str, millis: u64) -> State {
        State::Held {
            value: value.into(),
            left: Some(Duration::from_millis(millis)),
        }
    }

    fn down() -> State {
        State::Unreachable(MasterError::Protocol(String::new()))
    }

    #[test]
    fn a_quorum_decides_whatever_the_minority_says() {
        assert_eq!(
            look([State::Free, State::Free, held("a", 1)]),
            Verdict::Free
        );
        assert_eq!(look([State::Free, State::Free, down()]), Verdict::Free);
        let holder = Verdict::Held {
            value: "a".into(),
            left: Some(Duration::from_millis(20)),
        };
        assert_eq!(look([held("a", 20), held("b", 50), held("a", 30)]), holder);
        assert_eq!(look([held("a", 20), down(), held("a", 30)]), holder);
    }

    #[test]
    fn without_one_mind_it_is_contested() {
        assert_eq!(
            look([held("a", 1), held("b", 1), held("c", 1)]),
            Verdict::Contested
        );
        assert_eq!(
            look([held("a", 1), State::Free, down()]),
            Verdict::Contested
        );
    }

    #[test]
    fn too_few_answers_say_nothing() {
        assert_eq!(look([State::Free, down(), down()]), Verdict::Unknown);
    }

    #[test]
    fn the_quorum_is_gone_with_the_first_key_that_breaks_it() {
        let forever = State::Held {
            value: "a".into(),
            left: None,
        };
        let times = [10, 40, 30, 20].map(|millis| held("a", millis));
        let Verdict::Held { left, .. } = look(times.into_iter().chain([forever.clone()])) else {
            panic!("not held");
        };
        assert_eq!(left, Some(Duration::from_millis(30)));
        let Verdict::Held { left, .. } = look([forever.clone(), forever, held("a", 1)]) else {
            panic!("not held");
        };
        assert_eq!(left, None);
    }
}
