//! Which masters may hold a key with a value, and whether more requests with that value may be sent to them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::lock;

/// The masters on which one value may have left a key.
///
/// It is closed before the first compare-and-delete is queued. A request asks for permission when it is taken out of
/// the queue to be sent. So no request is sent after the compare-and-delete that deletes its key.
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
    /// The number of requests that may have left a key.
    requests: u32,
    /// The number of requests that may still be executed.
    unanswered: u32,
    /// The connection over which the first of the unanswered requests was sent.
    first_connection: u64,
}

/// A master that may hold a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// The connection over which the first unanswered request was sent; `None` if all requests are answered. An
    /// unanswered request may still be executed.
    pub(crate) unanswered_on: Option<u64>,
    /// Whether more than one request may have left a key.
    pub(crate) several: bool,
}

/// What a request has done on its master, as far as its answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The request has left nothing, and is not executed later.
    Nothing,
    /// The request may have set or lengthened a key. It is not executed later.
    MayHaveSetKey,
    /// There is no answer: the request may have been executed, or may be executed later.
    MayBeExecutedLater,
}

impl DirtyMasters {
    pub(crate) fn new(masters: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            is_closed: false,
            is_owner: true,
            masters: vec![Sent::default(); masters].into_boxed_slice(),
        })))
    }

    /// For a value whose keys belong to another process. They are not to be deleted until they are
    /// [adopted](Self::adopted).
    pub(crate) fn of_another(masters: usize) -> Arc<Self> {
        let dirty = Self::new(masters);
        dirty.lock().is_owner = false;
        dirty
    }

    /// Makes the keys ours. From now on each master may hold one.
    pub(crate) fn adopted(&self) {
        let mut state = self.lock();
        state.is_owner = true;
        for sent in &mut state.masters {
            // The other process has not said which masters it reached, so each one gets a delete.
            // Counted as one more request, which no answer takes away.
            sent.requests += 1;
        }
    }

    /// Permits no further request. Returns what is to be deleted.
    ///
    /// Returns `None` if it was closed before, or if the keys are not ours to delete.
    pub(crate) fn close(self: &Arc<Self>) -> Option<Deletes> {
        // Under the same lock under which requests are sent: each request is sent before this, and then is counted
        // here; or it is not sent at all.
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        // Closed in any case: nothing more is sent for a value that was left to its ttl.
        state.is_closed = true;
        state
            .is_owner
            .then(|| Deletes::new(self, state.masters.len()))
    }

    fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// What a master may hold; `None` if nothing.
    fn dirty(&self, master: usize) -> Option<Dirty> {
        let sent = &self.lock().masters[master];
        (sent.requests > 0).then_some(Dirty {
            unanswered_on: (sent.unanswered > 0).then_some(sent.first_connection),
            several: sent.requests > 1,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// What a compare-and-delete has to delete on each master, and whether a key may still come after it.
#[derive(Debug)]
pub(crate) struct Deletes {
    masters: Arc<DirtyMasters>,
    /// For each master: whether an unanswered request may be executed after the last delete that was sent.
    may_be_late: Box<[AtomicBool]>,
}

impl Deletes {
    fn new(masters: &Arc<DirtyMasters>, count: usize) -> Self {
        Self {
            masters: Arc::clone(masters),
            may_be_late: (0..count).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Whether no master holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        (0..self.may_be_late.len()).all(|master| self.dirty(master).is_none())
    }

    /// What a master may hold; `None` if nothing. An answer to a request that was under way may change this.
    pub(crate) fn dirty(&self, master: usize) -> Option<Dirty> {
        self.masters.dirty(master)
    }

    /// Whether an unanswered request may be executed after the last delete that was sent. `has_found` says that this
    /// delete has deleted a key.
    pub(crate) fn may_be_late(&self, master: usize, has_found: bool) -> bool {
        // The key came from the only request, so this request has been executed.
        let is_over = || has_found && self.dirty(master).is_some_and(|dirty| !dirty.several);
        // Relaxed: read after the answer to a delete. The answer came through a channel from the job that has stored
        // this, and the channel orders the memory. The deletes of a master are sent one after the other.
        self.may_be_late[master].load(Ordering::Relaxed) && !is_over()
    }
}

/// The permission to send a request to one master.
#[derive(Clone, Debug)]
pub(crate) enum SendPermit {
    /// Always: the request sets no key, so nothing needs to be deleted after it.
    SetsNoKey,
    /// Always, also over a connection that hangs: the request deletes.
    Delete(Arc<Deletes>, usize),
    /// Until the masters are closed. Each request is counted there.
    Write(Arc<DirtyMasters>, usize),
}

impl SendPermit {
    /// Whether the request is still permitted. If so, it counts as sent.
    ///
    /// `connection` is the serial number of the connection that sends it. `latest_unclosed` is that of the latest
    /// earlier connection that the master may still have open: requests on it, and on those before, may still be
    /// executed.
    #[must_use]
    pub(crate) fn send(&self, connection: u64, latest_unclosed: u64) -> bool {
        match self {
            Self::SetsNoKey => {}
            Self::Delete(deletes, master) => {
                let unanswered_on = deletes.dirty(*master).and_then(|dirty| dirty.unanswered_on);
                // On the same connection the delete is executed after the request. On an earlier one that is still open
                // the request may be executed after the delete.
                let may_be_late = unanswered_on
                    .is_some_and(|before| before != connection && before <= latest_unclosed);
                // Stored before the delete is sent, so it is read only after that.
                deletes.may_be_late[*master].store(may_be_late, Ordering::Relaxed);
            }
            Self::Write(dirty, master) => {
                let mut state = dirty.lock();
                if state.is_closed {
                    return false;
                }
                let sent = &mut state.masters[*master];
                // The earliest of several connections counts for all: if this one cannot bring a late request, no other
                // one can.
                if sent.unanswered == 0 || connection < sent.first_connection {
                    sent.first_connection = connection;
                }
                // Counted before the request is handed to the connection. If the job is dropped in between, there is
                // only a delete too many.
                sent.requests += 1;
                sent.unanswered += 1;
            }
        }
        true
    }

    /// Whether the request would be permitted now.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Self::SetsNoKey | Self::Delete(..) => true,
            Self::Write(dirty, _) => !dirty.is_closed(),
        }
    }

    /// Whether the request would be the first one of its value for this master.
    pub(crate) fn is_first(&self) -> bool {
        match self {
            Self::SetsNoKey | Self::Delete(..) => false,
            Self::Write(dirty, master) => dirty.dirty(*master).is_none(),
        }
    }

    pub(crate) fn is_for_same_key(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Write(one, _), Self::Write(other, _)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Records what a request that was sent has done. Another request may have done more.
    pub(crate) fn record(&self, effect: Effect) {
        let Self::Write(dirty, master) = self else {
            return;
        };
        let mut state = dirty.lock();
        let sent = &mut state.masters[*master];
        // The numbers count requests, and not keys: one refused request says nothing of another that is unanswered.
        match effect {
            Effect::Nothing => {
                sent.unanswered = sent.unanswered.saturating_sub(1);
                sent.requests = sent.requests.saturating_sub(1);
            }
            Effect::MayHaveSetKey => sent.unanswered = sent.unanswered.saturating_sub(1),
            Effect::MayBeExecutedLater => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends on a connection that is the only one.
    fn send(permit: &SendPermit, connection: u64) -> bool {
        permit.send(connection, connection - 1)
    }

    fn write(dirty: &Arc<DirtyMasters>, master: usize) -> SendPermit {
        SendPermit::Write(Arc::clone(dirty), master)
    }

    /// Closes, and returns what each master may hold.
    fn close(dirty: &Arc<DirtyMasters>) -> Option<Vec<Option<Dirty>>> {
        let deletes = dirty.close()?;
        let masters = 0..deletes.may_be_late.len();
        Some(masters.map(|master| deletes.dirty(master)).collect())
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
        assert!(send(&write(&dirty, 1), 4));
        assert_eq!(close(&dirty), Some(vec![None, on(4), None]));
        let late = write(&dirty, 2);
        assert!(!send(&late, 4));
        assert_eq!(close(&dirty), None);
        late.record(Effect::Nothing);
    }

    #[test]
    fn a_refusal_leaves_nothing_to_delete() {
        let dirty = DirtyMasters::new(2);
        let permits = [0, 1].map(|master| write(&dirty, master));
        for permit in &permits {
            assert!(send(permit, 1));
        }
        permits[0].record(Effect::Nothing);
        assert_eq!(close(&dirty), Some(vec![None, on(1)]));
    }

    #[test]
    fn one_refusal_does_not_speak_for_two_requests() {
        let dirty = DirtyMasters::new(1);
        let permit = write(&dirty, 0);
        assert!(send(&permit, 1));
        assert!(send(&permit, 2));
        permit.record(Effect::Nothing);
        assert_eq!(close(&dirty), Some(vec![on(1)]));
    }

    #[test]
    fn what_is_answered_does_not_come_late() {
        let dirty = DirtyMasters::new(1);
        let permit = write(&dirty, 0);
        assert!(send(&permit, 1));
        permit.record(Effect::MayHaveSetKey);
        assert!(send(&permit, 2));
        let dirty = close(&dirty).expect("it was open");
        assert_eq!(dirty[0].and_then(|dirty| dirty.unanswered_on), Some(2));
    }

    #[test]
    fn a_delete_on_another_connection_may_be_overtaken_unless_the_first_is_closed() {
        for (connection, latest_unclosed, may_be_late) in
            [(1, 0, false), (2, 1, true), (2, 0, false), (3, 2, true)]
        {
            let dirty = DirtyMasters::new(1);
            assert!(send(&write(&dirty, 0), 1));
            let deletes = Arc::new(dirty.close().expect("it was open"));
            assert_eq!(deletes.dirty(0), on(1));
            let permit = SendPermit::Delete(Arc::clone(&deletes), 0);
            assert!(permit.send(connection, latest_unclosed));
            assert_eq!(deletes.may_be_late(0, false), may_be_late);
            assert!(!deletes.may_be_late(0, true));
        }
    }

    #[test]
    fn what_a_request_has_done_decides_what_is_to_be_deleted_also_after_the_close() {
        let answered = Dirty {
            unanswered_on: None,
            several: false,
        };
        for (effect, expected) in [
            (Effect::Nothing, None),
            (Effect::MayHaveSetKey, Some(answered)),
            (Effect::MayBeExecutedLater, on(1)),
        ] {
            // Before the close.
            let dirty = DirtyMasters::new(1);
            let permit = write(&dirty, 0);
            assert!(send(&permit, 1));
            permit.record(effect);
            assert_eq!(close(&dirty), Some(vec![expected]));
            // After it.
            let dirty = DirtyMasters::new(1);
            let permit = write(&dirty, 0);
            assert!(send(&permit, 1));
            let deletes = dirty.close().expect("it was open");
            assert_eq!(deletes.dirty(0), on(1));
            permit.record(effect);
            assert_eq!(deletes.dirty(0), expected);
            assert_eq!(deletes.is_empty(), expected.is_none());
        }
    }

    #[test]
    fn the_earliest_of_several_connections_counts() {
        let dirty = DirtyMasters::new(1);
        for connection in [2, 1, 3] {
            assert!(send(&write(&dirty, 0), connection));
        }
        let several = Dirty {
            unanswered_on: Some(1),
            several: true,
        };
        assert_eq!(close(&dirty), Some(vec![Some(several)]));
    }

    #[test]
    fn a_key_that_is_found_does_not_speak_for_two_requests() {
        let dirty = DirtyMasters::new(1);
        let permit = write(&dirty, 0);
        assert!(send(&permit, 1));
        permit.record(Effect::MayHaveSetKey);
        assert!(send(&permit, 1));
        let deletes = Arc::new(dirty.close().expect("it was open"));
        let delete = SendPermit::Delete(Arc::clone(&deletes), 0);
        assert!(send(&delete, 2));
        assert!(deletes.may_be_late(0, true));
    }

    #[test]
    fn what_is_of_another_is_not_deleted_until_adopted() {
        let left = DirtyMasters::of_another(2);
        assert!(send(&write(&left, 0), 1));
        assert_eq!(close(&left), None);
        let adopted = DirtyMasters::of_another(2);
        adopted.adopted();
        let clean = Dirty {
            unanswered_on: None,
            several: false,
        };
        assert_eq!(close(&adopted), Some(vec![Some(clean); 2]));
    }
}
