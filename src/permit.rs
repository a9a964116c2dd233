//! Which masters may hold a key of a value, and whether they may be sent more for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The masters where one value may have left a key.
///
/// Closed before the first compare-and-delete is sent. A request that waits for a connection asks here at the moment
/// it is sent, so no request comes after the compare-and-delete that undoes it.
#[derive(Debug)]
pub(crate) struct DirtyMasters(Mutex<State>);

#[derive(Debug)]
struct State {
    is_closed: bool,
    /// Whether the keys are ours to delete.
    is_owner: bool,
    masters: Box<[Sent]>,
}

/// What one master was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    /// How many requests may have left a key.
    requests: u32,
    unanswered: u32,
    /// The connection of the first of the unanswered ones.
    first_connection: u64,
}

/// A master that may hold a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// The connection on which a request is unanswered that may still be executed; the first of several.
    pub(crate) unanswered_on: Option<u64>,
    /// Whether more than one request may have left a key.
    pub(crate) several: bool,
}

impl DirtyMasters {
    pub(crate) fn new(masters: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            is_closed: false,
            is_owner: true,
            masters: vec![Sent::default(); masters].into_boxed_slice(),
        })))
    }

    /// The keys are somebody else's until [`adopted`](Self::adopted): they are not to be deleted.
    pub(crate) fn of_another(masters: usize) -> Arc<Self> {
        let dirty = Self::new(masters);
        dirty.lock().is_owner = false;
        dirty
    }

    /// The keys are ours now, and there may be one on every master.
    pub(crate) fn adopted(&self) {
        let mut state = self.lock();
        state.is_owner = true;
        for sent in &mut state.masters {
            sent.requests = sent.requests.max(1);
        }
    }

    /// Lets nothing more be sent. Returns the masters that may hold a key, in the order of all masters; `None` if it
    /// was closed before, or the keys are not ours to delete.
    pub(crate) fn close(&self) -> Option<Vec<Option<Dirty>>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.is_closed = true;
        let dirty = |sent: &Sent| {
            (sent.requests > 0).then_some(Dirty {
                unanswered_on: (sent.unanswered > 0).then_some(sent.first_connection),
                several: sent.requests > 1,
            })
        };
        state
            .is_owner
            .then(|| state.masters.iter().map(dirty).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a compare-and-delete undoes on each master, and whether that is certain.
///
/// Deletes are sent to one master one after the other, each when the one before was answered or given up. So what is noted
/// last belongs to the last vote, and needs no ordering of its own.
#[derive(Debug)]
pub(crate) struct Deletes {
    masters: Box<[Delete]>,
}

#[derive(Debug)]
struct Delete {
    dirty: Option<Dirty>,
    /// Whether what is undone may still come after the last one that was sent.
    may_be_late: AtomicBool,
}

impl Deletes {
    pub(crate) fn new(dirty: Vec<Option<Dirty>>) -> Arc<Self> {
        let masters = dirty.into_iter().map(|dirty| Delete {
            dirty,
            may_be_late: AtomicBool::new(false),
        });
        Arc::new(Self {
            masters: masters.collect(),
        })
    }

    /// What the master may hold, if anything.
    pub(crate) fn dirty(&self, master: usize) -> Option<Dirty> {
        self.masters[master].dirty
    }

    /// Whether something may still come after the last delete that was sent; `has_found` if that one deleted a key.
    pub(crate) fn may_be_late(&self, master: usize, has_found: bool) -> bool {
        let Delete { dirty, may_be_late } = &self.masters[master];
        // The key was that of the only request, so that one has come.
        let is_over = has_found && dirty.is_some_and(|dirty| !dirty.several);
        may_be_late.load(Ordering::Relaxed) && !is_over
    }
}

/// Leave to send a request to one master.
#[derive(Clone, Debug)]
pub(crate) enum SendPermit {
    /// Always: the request only reads.
    ReadOnly,
    /// Always, also to a master that hangs: the request deletes.
    Delete(Arc<Deletes>, usize),
    /// While the masters are not closed, where it is noted.
    Write(Arc<DirtyMasters>, usize),
}

impl SendPermit {
    /// Sends on a connection, if that is still allowed. On earlier connections something may still be under way, up to
    /// `latest_unclosed`.
    pub(crate) fn send<T>(
        &self,
        connection: u64,
        latest_unclosed: u64,
        send: impl FnOnce() -> T,
    ) -> Option<T> {
        match self {
            Self::ReadOnly => {}
            Self::Delete(deletes, master) => {
                let delete = &deletes.masters[*master];
                let unanswered_on = delete.dirty.and_then(|dirty| dirty.unanswered_on);
                // On the same connection the master keeps the order.
                let may_be_late = unanswered_on
                    .is_some_and(|before| before != connection && before <= latest_unclosed);
                delete.may_be_late.store(may_be_late, Ordering::Relaxed);
            }
            Self::Write(dirty, master) => {
                let mut state = dirty.lock();
                if state.is_closed {
                    return None;
                }
                let sent = &mut state.masters[*master];
                if sent.unanswered == 0 {
                    sent.first_connection = connection;
                }
                sent.requests += 1;
                sent.unanswered += 1;
                // Under the lock: a close that comes now waits until this is sent.
                return Some(send());
            }
        }
        Some(send())
    }

    /// The master has answered, so the request is not executed later.
    pub(crate) fn answered(&self) {
        self.update(|sent| sent.unanswered = sent.unanswered.saturating_sub(1));
    }

    /// The master has answered that the request left nothing. Another one may have.
    pub(crate) fn retract(&self) {
        self.update(|sent| sent.requests = sent.requests.saturating_sub(1));
    }

    fn update(&self, update: impl FnOnce(&mut Sent)) {
        if let Self::Write(dirty, master) = self {
            update(&mut dirty.lock().masters[*master]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends on a connection that is the only one.
    fn send<T>(permit: &SendPermit, connection: u64, send: impl FnOnce() -> T) -> Option<T> {
        permit.send(connection, connection - 1, send)
    }

    fn write(dirty: &Arc<DirtyMasters>, master: usize) -> SendPermit {
        SendPermit::Write(Arc::clone(dirty), master)
    }

    fn on(connection: u64) -> Option<Dirty> {
        Some(Dirty {
            unanswered_on: Some(connection),
            several: false,
        })
    }

    #[test]
    fn nothing_is_sent_once_it_is_closed() {
        let dirty = DirtyMasters::new(3);
        assert_eq!(send(&write(&dirty, 1), 4, || 7), Some(7));
        assert_eq!(dirty.close(), Some(vec![None, on(4), None]));
        let late = write(&dirty, 2);
        assert_eq!(send(&late, 4, || unreachable!("sent")), None::<()>);
        assert_eq!(dirty.close(), None);
        late.retract();
    }

    #[test]
    fn a_refusal_leaves_nothing_to_delete() {
        let dirty = DirtyMasters::new(2);
        let permits = [0, 1].map(|master| write(&dirty, master));
        for permit in &permits {
            send(permit, 1, || ());
        }
        permits[0].answered();
        permits[0].retract();
        assert_eq!(dirty.close(), Some(vec![None, on(1)]));
    }

    #[test]
    fn one_refusal_does_not_speak_for_two_requests() {
        let dirty = DirtyMasters::new(1);
        let permit = write(&dirty, 0);
        send(&permit, 1, || ());
        send(&permit, 2, || ());
        permit.answered();
        permit.retract();
        assert_eq!(dirty.close(), Some(vec![on(1)]));
    }

    #[test]
    fn what_is_answered_does_not_come_late() {
        let dirty = DirtyMasters::new(1);
        let permit = write(&dirty, 0);
        send(&permit, 1, || ());
        permit.answered();
        send(&permit, 2, || ());
        let dirty = dirty.close().expect("it was open");
        assert_eq!(dirty[0].and_then(|dirty| dirty.unanswered_on), Some(2));
    }

    #[test]
    fn a_delete_on_another_connection_may_be_overtaken_unless_the_first_is_closed() {
        for (connection, latest_unclosed, may_be_late) in
            [(1, 0, false), (2, 1, true), (2, 0, false), (3, 2, true)]
        {
            let deletes = Deletes::new(vec![on(1)]);
            let permit = SendPermit::Delete(Arc::clone(&deletes), 0);
            assert_eq!(permit.send(connection, latest_unclosed, || 1), Some(1));
            assert_eq!(deletes.may_be_late(0, false), may_be_late);
            assert!(!deletes.may_be_late(0, true));
        }
    }

    #[test]
    fn a_key_that_is_found_does_not_speak_for_two_requests() {
        let dirty = DirtyMasters::new(1);
        let permit = write(&dirty, 0);
        send(&permit, 1, || ());
        permit.answered();
        send(&permit, 1, || ());
        let deletes = Deletes::new(dirty.close().expect("it was open"));
        let delete = SendPermit::Delete(Arc::clone(&deletes), 0);
        assert_eq!(send(&delete, 2, || 1), Some(1));
        assert!(deletes.may_be_late(0, true));
    }

    #[test]
    fn what_is_of_another_is_not_deleted_until_adopted() {
        let foundling = DirtyMasters::of_another(2);
        send(&write(&foundling, 0), 1, || ());
        assert_eq!(foundling.close(), None);
        let adopted = DirtyMasters::of_another(2);
        adopted.adopted();
        let clean = Dirty {
            unanswered_on: None,
            several: false,
        };
        assert_eq!(adopted.close(), Some(vec![Some(clean); 2]));
    }
}
