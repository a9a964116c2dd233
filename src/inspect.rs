//! Looking at a resource without locking it: the views of all masters, and what a quorum of them says.

use std::collections::HashMap;
use std::time::Duration;

use crate::protocol::quorum::quorum;
pub use crate::vote::{KeyState, MasterView};

/// Who holds a resource, as the masters see it. Returned by [`Redlock::inspect`](crate::Redlock::inspect).
///
/// An inspection is out of date when it arrives. Use it for dashboards and messages, not for decisions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The answer of a quorum.
    pub verdict: Verdict,
    /// The view of each master, in the order of the masters.
    pub views: Vec<MasterView>,
}

/// What the masters say together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// A quorum has no key: the lock is free.
    Free,
    /// A quorum has the key with the same value.
    Held {
        /// The value of the holder.
        value: Vec<u8>,
        /// The time until fewer than a quorum hold the key, unless the lock is extended. `None` if that never happens.
        expires_in: Option<Duration>,
    },
    /// A quorum answered, but no quorum agrees: several clients compete, or a lock is just being taken or released.
    Contested,
    /// Fewer than a quorum answered.
    Unknown,
}

impl Inspection {
    pub(crate) fn new(views: Vec<MasterView>) -> Self {
        let verdict = verdict(&views);
        Self { verdict, views }
    }
}

fn verdict(views: &[MasterView]) -> Verdict {
    let quorum = quorum(views.len());
    let mut free = 0;
    let mut unreachable = 0;
    let mut held: HashMap<&[u8], Vec<Option<Duration>>> = HashMap::new();
    for view in views {
        match &view.state {
            KeyState::Free => free += 1,
            KeyState::Unreachable(_) => unreachable += 1,
            KeyState::Held { value, expires_in } => {
                held.entry(value).or_default().push(*expires_in)
            }
        }
    }
    if views.len() - unreachable < quorum {
        return Verdict::Unknown;
    }
    if free >= quorum {
        return Verdict::Free;
    }
    match held.into_iter().find(|(_, times)| times.len() >= quorum) {
        Some((value, mut times)) => {
            // Longest first. The quorum ends when the quorum-th longest key expires: fewer than a quorum are left from
            // then on.
            times.sort_by_key(|expires_in| std::cmp::Reverse(expires_in.unwrap_or(Duration::MAX)));
            Verdict::Held {
                value: value.to_vec(),
                expires_in: times[quorum - 1],
            }
        }
        None => Verdict::Contested,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::vote::MasterError;

    fn look(states: impl IntoIterator<Item = KeyState>) -> Verdict {
        let master = Address::new("m");
        let view = |state| MasterView {
            master: master.clone(),
            state,
        };
        verdict(&states.into_iter().map(view).collect::<Vec<_>>())
    }

    fn held(value: &str, millis: u64) -> KeyState {
        KeyState::Held {
            value: value.into(),
            expires_in: Some(Duration::from_millis(millis)),
        }
    }

    fn down() -> KeyState {
        KeyState::Unreachable(MasterError::Protocol(String::new()))
    }

    #[test]
    fn a_quorum_decides_whatever_the_minority_says() {
        assert_eq!(
            look([KeyState::Free, KeyState::Free, held("a", 1)]),
            Verdict::Free
        );
        assert_eq!(
            look([KeyState::Free, KeyState::Free, down()]),
            Verdict::Free
        );
        let holder = Verdict::Held {
            value: "a".into(),
            expires_in: Some(Duration::from_millis(20)),
        };
        assert_eq!(look([held("a", 20), held("b", 50), held("a", 30)]), holder);
        assert_eq!(look([held("a", 20), down(), held("a", 30)]), holder);
    }

    #[test]
    fn answers_without_a_common_quorum_are_contested() {
        assert_eq!(
            look([held("a", 1), held("b", 1), held("c", 1)]),
            Verdict::Contested
        );
        assert_eq!(
            look([held("a", 1), KeyState::Free, down()]),
            Verdict::Contested
        );
    }

    #[test]
    fn fewer_answers_than_a_quorum_are_unknown() {
        assert_eq!(look([KeyState::Free, down(), down()]), Verdict::Unknown);
    }

    #[test]
    fn the_quorum_ends_when_the_quorum_th_longest_key_expires() {
        let forever = KeyState::Held {
            value: "a".into(),
            expires_in: None,
        };
        let times = [10, 40, 30, 20].map(|millis| held("a", millis));
        let Verdict::Held { expires_in, .. } = look(times.into_iter().chain([forever.clone()]))
        else {
            panic!("not held");
        };
        assert_eq!(expires_in, Some(Duration::from_millis(30)));
        let Verdict::Held { expires_in, .. } = look([forever.clone(), forever, held("a", 1)])
        else {
            panic!("not held");
        };
        assert_eq!(expires_in, None);
    }
}
