//! The line in which attempts wait until the masters have room for them, in the order in which they came. There is one
//! for each client and process.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use crate::sync::lock;

/// The line. Only its head looks whether there is room; the others cost nothing until they are the head.
#[derive(Default)]
pub(crate) struct Line {
    waiting: Mutex<Waiting>,
    length: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    /// By the order of arrival.
    wakers: BTreeMap<u64, Waker>,
    arrived: u64,
}

impl Line {
    /// Waits until the caller is the head of the line and `has_room` returns `true`. `has_room` is called with the
    /// mutex of the line held.
    ///
    /// Dropping the future leaves the line.
    pub(crate) fn wait<F: Fn() -> bool + Unpin>(&self, has_room: F) -> InLine<'_, F> {
        InLine {
            line: self,
            has_room,
            place: None,
        }
    }

    /// How many wait.
    pub(crate) fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// There may be room now: the head looks again.
    pub(crate) fn wake_head(&self) {
        // Nearly always 0, so that replies take no lock. The head sets the length before it looks, both under the lock
        // and with SeqCst: either it sees the room, or this sees the head.
        if self.length.load(Ordering::SeqCst) == 0 {
            return;
        }
        let head = lock(&self.waiting)
            .wakers
            .first_key_value()
            .map(|(_, head)| head.clone());
        if let Some(head) = head {
            head.wake();
        }
    }
}

/// A place in the line.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct InLine<'a, F> {
    line: &'a Line,
    has_room: F,
    /// `None` before the first poll and after the wait has ended.
    place: Option<u64>,
}

impl<F: Fn() -> bool + Unpin> Future for InLine<'_, F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let line = self.line;
        let mut waiting = lock(&line.waiting);
        let place = match self.place {
            Some(place) => place,
            None if waiting.wakers.is_empty() && (self.has_room)() => return Poll::Ready(()),
            None => {
                let place = waiting.arrived;
                waiting.arrived += 1;
                waiting.wakers.insert(place, cx.waker().clone());
                line.length.store(waiting.wakers.len(), Ordering::SeqCst);
                self.place = Some(place);
                place
            }
        };
        let is_head = waiting
            .wakers
            .first_key_value()
            .is_some_and(|(head, _)| *head == place);
        if is_head && (self.has_room)() {
            drop(waiting);
            self.leave();
            return Poll::Ready(());
        }
        let old = waiting.wakers.insert(place, cx.waker().clone());
        drop(waiting);
        // Not with the mutex held: this may drop the last handle to a task, and with it anything else.
        drop(old);
        Poll::Pending
    }
}

impl<F> InLine<'_, F> {
    /// Leaves the line, and has the next one look whether there is room for it as well.
    fn leave(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        let mut waiting = lock(&self.line.waiting);
        let was_head = waiting
            .wakers
            .first_key_value()
            .is_some_and(|(head, _)| *head == place);
        let own = waiting.wakers.remove(&place);
        self.line
            .length
            .store(waiting.wakers.len(), Ordering::SeqCst);
        let next = waiting
            .wakers
            .first_key_value()
            .map(|(_, next)| next.clone());
        drop(waiting);
        drop(own);
        if let (true, Some(next)) = (was_head, next) {
            next.wake();
        }
    }
}

impl<F> Drop for InLine<'_, F> {
    fn drop(&mut self) {
        // A wake-up that came meanwhile was for whoever is the head, so the next head gets one.
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_go_on_in_the_order_in_which_they_came() {
        let (line, room, order) = (Line::default(), Cell::new(0), RefCell::new(Vec::new()));
        let waits = (0..20).map(async |place| {
            line.wait(|| room.get() > 0).await;
            room.set(room.get() - 1);
            order.borrow_mut().push(place);
        });
        let makes_room = async {
            while order.borrow().len() < 20 {
                assert_eq!(line.length(), 20 - order.borrow().len());
                room.set(3);
                line.wake_head();
                tokio::task::yield_now().await;
            }
        };
        futures::join!(join_all(waits), makes_room);
        assert!(order.into_inner().into_iter().eq(0..20));
        assert_eq!(line.length(), 0);
    }

    #[test]
    fn nobody_passes_those_who_wait() {
        let (line, room) = (Line::default(), Cell::new(false));
        let mut first = line.wait(|| room.get());
        assert!((&mut first).now_or_never().is_none());
        room.set(true);
        assert!(line.wait(|| room.get()).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_some());
        assert!(line.wait(|| room.get()).now_or_never().is_some());
    }

    #[test]
    fn one_who_leaves_wakes_the_next() {
        let (line, room) = (Line::default(), Cell::new(false));
        let woken = std::sync::Arc::new(Woken::default());
        let mut first = line.wait(|| room.get());
        assert!((&mut first).now_or_never().is_none());
        let mut second = line.wait(|| room.get());
        let waker = Waker::from(std::sync::Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(second.poll_unpin(&mut cx).is_pending());
        drop(first);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        room.set(true);
        assert!(second.poll_unpin(&mut cx).is_ready());
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
