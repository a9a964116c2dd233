//! What is due when. Pure: the caller passes the time.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::clock::Moment;

/// How much before its time an item is taken at most. 100,000 locks with a ttl of 30 s make 10,000 renewals a second, so
/// 100 of them share a request.
const MOST_EARLY: Duration = Duration::from_millis(10);

/// Items that are due again and again. An item that was taken waits for nothing until it gets its next time.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    items: HashMap<u64, Scheduled<T>>,
    /// The items that wait, in the order in which they are due.
    waiting: BTreeSet<(Moment, u64)>,
    last_id: u64,
}

/// An item that was taken.
#[derive(Clone, Debug)]
pub(super) struct Due<T> {
    pub(super) id: u64,
    pub(super) at: Moment,
    pub(super) item: T,
}

#[derive(Debug)]
struct Scheduled<T> {
    item: T,
    /// When it is due, or was due when it was taken.
    due: Moment,
    /// How much before its time it may be taken together with others.
    early: Duration,
}

impl<T> Default for Schedule<T> {
    fn default() -> Self {
        Self {
            items: HashMap::new(),
            waiting: BTreeSet::new(),
            last_id: 0,
        }
    }
}

impl<T> Schedule<T> {
    /// Adds an item that waits, and returns its id. No two items have the same id.
    pub(super) fn add(&mut self, item: T, due: Moment, early: Duration) -> u64 {
        self.last_id += 1;
        let early = early.min(MOST_EARLY);
        let scheduled = Scheduled { item, due, early };
        self.items.insert(self.last_id, scheduled);
        self.waiting.insert((due, self.last_id));
        self.last_id
    }

    /// Makes an item wait until a new time. Does nothing if the item was removed.
    pub(super) fn wait_until(&mut self, id: u64, due: Moment) {
        let Some(scheduled) = self.items.get_mut(&id) else {
            return;
        };
        self.waiting.remove(&(scheduled.due, id));
        scheduled.due = due;
        self.waiting.insert((due, id));
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        self.items.get(&id).map(|scheduled| &scheduled.item)
    }

    /// Removes an item, whether or not it waits.
    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let Scheduled { item, due, .. } = self.items.remove(&id)?;
        self.waiting.remove(&(due, id));
        if self.items.is_empty() {
            // The memory of many items that are gone.
            self.items = HashMap::new();
        }
        Some(item)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// When the first of the items that wait is due.
    pub(super) fn first(&self) -> Option<Moment> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Takes up to `most` items that are due, or are due so soon that they may be taken early; the first ones first.
    pub(super) fn take_due(&mut self, now: Moment, most: usize) -> Vec<Due<T>>
    where
        T: Clone,
    {
        let soon = (now.after(MOST_EARLY), u64::MAX);
        let due = self.waiting.range(..=soon).filter_map(|&(at, id)| {
            let Scheduled { item, early, .. } = self.items.get(&id)?;
            let is_due = at <= now.after(*early);
            is_due.then(|| Due {
                id,
                at,
                item: item.clone(),
            })
        });
        let due: Vec<_> = due.take(most).collect();
        for Due { id, at, .. } in &due {
            self.waiting.remove(&(*at, *id));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Duration = Duration::from_millis(10);

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn taken(schedule: &mut Schedule<char>, now: u64) -> String {
        let due = schedule.take_due(at(now), 100);
        due.iter().map(|due| due.item).collect()
    }

    #[test]
    fn items_are_taken_in_the_order_in_which_they_are_due_and_wait_no_more() {
        let mut schedule = Schedule::default();
        for (item, due) in [('c', 300), ('a', 100), ('b', 200), ('A', 100)] {
            schedule.add(item, at(due), Duration::ZERO);
        }
        assert_eq!(schedule.first(), Some(at(100)));
        assert_eq!(taken(&mut schedule, 99), "");
        assert_eq!(taken(&mut schedule, 200), "aAb");
        assert_eq!(taken(&mut schedule, 200), "");
        assert_eq!(schedule.first(), Some(at(300)));
        assert!(!schedule.is_empty());
    }

    #[test]
    fn no_more_than_asked_for_are_taken_at_once() {
        let mut schedule = Schedule::default();
        for item in ['a', 'b', 'c'] {
            schedule.add(item, at(100), Duration::ZERO);
        }
        let counts = [2, 2, 2].map(|most| schedule.take_due(at(100), most).len());
        assert_eq!(counts, [2, 1, 0]);
    }

    #[test]
    fn an_item_is_taken_early_as_far_as_it_may() {
        let mut schedule = Schedule::default();
        let longer_than_allowed = Duration::from_secs(1);
        schedule.add('s', at(100), longer_than_allowed);
        schedule.add('e', at(100), EARLY / 2);
        schedule.add('o', at(100), Duration::ZERO);
        assert_eq!(taken(&mut schedule, 89), "");
        assert_eq!(taken(&mut schedule, 90), "s");
        assert_eq!(taken(&mut schedule, 95), "e");
        assert_eq!(taken(&mut schedule, 99), "");
        assert_eq!(taken(&mut schedule, 100), "o");
    }

    #[test]
    fn an_item_waits_again_until_its_last_time() {
        let mut schedule = Schedule::default();
        let id = schedule.add('a', at(100), Duration::ZERO);
        assert_eq!(taken(&mut schedule, 100), "a");
        schedule.wait_until(id, at(200));
        schedule.wait_until(id, at(300));
        assert_eq!(taken(&mut schedule, 299), "");
        let due = schedule.take_due(at(350), 1);
        assert_eq!((due[0].id, due[0].at), (id, at(300)));
    }

    #[test]
    fn an_item_is_removed_at_any_time() {
        let mut schedule = Schedule::default();
        let [waits, taken_before, again] = ['w', 't', 'a'].map(|item| {
            let id = schedule.add(item, at(100), Duration::ZERO);
            (item, id)
        });
        assert_eq!(schedule.remove(waits.1), Some('w'));
        assert_eq!(taken(&mut schedule, 100), "ta");
        assert_eq!(schedule.remove(taken_before.1), Some('t'));
        schedule.wait_until(taken_before.1, at(150));
        schedule.wait_until(again.1, at(200));
        assert_eq!(schedule.first(), Some(at(200)));
        assert_eq!(schedule.remove(again.1), Some('a'));
        assert_eq!(schedule.remove(again.1), None);
        assert!(schedule.is_empty());
        assert_eq!(schedule.first(), None);
        assert_ne!(schedule.add('n', at(1), Duration::ZERO), again.1);
    }

    proptest::proptest! {
        /// Whatever is added, removed and taken: each item is taken once for each time, never too early, in order.
        #[test]
        fn every_item_is_taken_once(dues: Vec<u16>, removed: Vec<bool>, step in 1..5_000u64) {
            let mut schedule = Schedule::default();
            let mut left: HashMap<u64, u64> = HashMap::new();
            for (place, due) in dues.iter().enumerate() {
                let id = schedule.add((), at(u64::from(*due)), EARLY);
                if removed.get(place) == Some(&true) {
                    schedule.remove(id);
                } else {
                    left.insert(id, u64::from(*due));
                }
            }
            for now in (0..).step_by(usize::try_from(step).unwrap()) {
                let taken = schedule.take_due(at(now), usize::MAX);
                assert!(taken.is_sorted_by_key(|due| due.at));
                for due in taken {
                    let expected = left.remove(&due.id).expect("taken once");
                    assert_eq!(due.at, at(expected));
                    assert!(due.at <= at(now).after(EARLY));
                }
                assert!(left.values().all(|due| *due > now));
                if left.is_empty() {
                    break;
                }
            }
            assert_eq!(schedule.first(), None);
        }
    }
}
