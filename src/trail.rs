//! The trail that one value leaves: to which masters it was handed, and whether it may be handed to more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a value may have left a key.
///
/// Shut before the first compare-and-delete is sent. A request waiting for a connection looks here at the
/// moment it is handed over, so none can come after the compare-and-delete that undoes it.
#[derive(Debug)]
pub(crate) struct Trail(Mutex<Steps>);

#[derive(Debug)]
struct Steps {
    shut: bool,
    adopted: bool,
    /// How many requests each master was handed that may have left a key.
    taken: Box<[u32]>,
}

impl Trail {
    pub(crate) fn new(masters: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Steps {
            shut: false,
            adopted: true,
            taken: vec![0; masters].into_boxed_slice(),
        })))
    }

    /// Lets nothing more be handed over, and tells which masters may hold a key to delete; `None` if it was shut
    /// before, or the keys are not ours to delete.
    pub(crate) fn shut(&self) -> Option<Vec<bool>> {
        let mut steps = self.lock();
        if steps.shut {
            return None;
        }
        steps.shut = true;
        let adopted = steps.adopted;
        adopted.then(|| steps.taken.iter().map(|&times| times > 0).collect())
    }

    /// The keys are somebody else's until [`adopted`](Self::adopted): they are not to be deleted.
    pub(crate) fn of_another(masters: usize) -> Arc<Self> {
        let trail = Self::new(masters);
        trail.lock().adopted = false;
        trail
    }

    /// The keys are ours now, and there may be one on every master.
    pub(crate) fn adopted(&self) {
        let mut steps = self.lock();
        steps.adopted = true;
        steps.taken.fill(1);
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to hand a request to one master.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Always: what it sends only looks.
    Free,
    /// Always, also to a master that hangs: what it sends undoes something.
    Undo,
    /// While the trail is not shut; and it is noted there.
    On(Arc<Trail>, usize),
}

impl Step {
    /// Hands over, if that is still allowed.
    pub(crate) fn take<T>(&self, hand_over: impl FnOnce() -> T) -> Option<T> {
        match self {
            Self::Free | Self::Undo => Some(hand_over()),
            Self::On(trail, master) => {
                let mut steps = trail.lock();
                if steps.shut {
                    return None;
                }
                steps.taken[*master] += 1;
                Some(hand_over())
            }
        }
    }

    /// The master answered that the request has left nothing. Another one may have.
    pub(crate) fn undone(&self) {
        if let Self::On(trail, master) = self {
            let taken = &mut trail.lock().taken[*master];
            *taken = taken.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shut_trail_lets_nothing_pass() {
        let trail = Trail::new(3);
        assert_eq!(Step::On(Arc::clone(&trail), 1).take(|| 7), Some(7));
        assert_eq!(trail.shut().as_deref(), Some(&[false, true, false][..]));
        let late = Step::On(Arc::clone(&trail), 2);
        assert_eq!(late.take(|| unreachable!("handed over")), None::<()>);
        assert_eq!(trail.shut(), None);
        late.undone();
    }

    #[test]
    fn a_refusal_leaves_nothing_to_undo() {
        let trail = Trail::new(2);
        let steps = [0, 1].map(|master| Step::On(Arc::clone(&trail), master));
        for step in &steps {
            step.take(|| ());
        }
        steps[0].undone();
        assert_eq!(trail.shut().as_deref(), Some(&[false, true][..]));
    }

    #[test]
    fn one_refusal_does_not_speak_for_two_requests() {
        let trail = Trail::new(1);
        let step = Step::On(Arc::clone(&trail), 0);
        step.take(|| ());
        step.take(|| ());
        step.undone();
        assert_eq!(trail.shut().as_deref(), Some(&[true][..]));
    }

    #[test]
    fn what_is_of_another_is_not_deleted_until_adopted() {
        let foundling = Trail::of_another(2);
        Step::On(Arc::clone(&foundling), 0).take(|| ());
        assert_eq!(foundling.shut(), None);
        let adopted = Trail::of_another(2);
        adopted.adopted();
        assert_eq!(adopted.shut().as_deref(), Some(&[true, true][..]));
    }

    #[test]
    fn what_undoes_is_never_held_back() {
        assert_eq!(Step::Undo.take(|| 1), Some(1));
    }
}
