//! How many requests may be under way to one master at a time. Pure: the time is handed in.
//!
//! The window is what the master answers in twice its round trip, and [`QUEUED_FOR`] more. So a request that was sent
//! is answered soon, however many wait, and the master is never idle while requests wait. Both the rate and the round
//! trip are measured: the right window is 16 for a master that is throttled, and thousands for a fast one that is far
//! away.

use std::time::Duration;

use crate::clock::Moment;

/// How long a request may queue at the master, beyond the round trip: long enough that pauses of the scheduler do not
/// leave the master idle, short against any request timeout.
const QUEUED_FOR: Duration = Duration::from_millis(20);

/// The first window. Enough for a lone client; a busy one is measured within some milliseconds.
pub(crate) const FIRST: usize = 64;

/// Fewer would make a slow master answer one request per round trip.
const LEAST: usize = 16;

/// With 300 bytes a request, at most 2.4 MB of attempts on their way to one master. Deletes and extensions may add as
/// much.
pub(crate) const MOST: usize = 8_192;

/// The rate is measured over at least this time: less would measure how the scheduler groups replies.
const SAMPLE: Duration = Duration::from_millis(10);

/// A round trip that was not seen again for so long is forgotten. The way to the master may have become longer.
const FORGET_AFTER: Duration = Duration::from_secs(5);

/// The window, and what it is computed from.
#[derive(Debug)]
pub(crate) struct Window {
    limit: usize,
    under_way: usize,
    round_trip: RoundTrip,
    /// Replies per second, as far as is known.
    rate: u64,
    /// Whether the master cannot answer more: the window was full when the rate was measured.
    is_limited: bool,
    sample: Sample,
}

/// The shortest round trip of late.
#[derive(Debug)]
struct RoundTrip {
    shortest: Option<Duration>,
    seen_at: Moment,
    /// Since when the window is small, so that the queue at the master drains and shows the round trip without it.
    draining_since: Option<Moment>,
}

/// The replies since some moment.
#[derive(Debug)]
struct Sample {
    since: Moment,
    replies: usize,
    /// Whether the window was full at some time.
    was_full: bool,
}

impl Window {
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            limit: FIRST,
            under_way: 0,
            round_trip: RoundTrip {
                shortest: None,
                seen_at: now,
                draining_since: None,
            },
            rate: 0,
            is_limited: false,
            sample: Sample::new(now),
        }
    }

    /// How many requests may be under way now.
    pub(crate) fn limit(&self) -> usize {
        if self.round_trip.draining_since.is_some() {
            (self.limit / 4).max(LEAST)
        } else {
            self.limit
        }
    }

    /// How many requests may be under way while the window is not made small to measure the round trip.
    pub(crate) fn usual_limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// How many requests may be sent together. Their replies come together, so a slow master must be able to answer
    /// them before it counts as silent.
    pub(crate) fn batch(&self, silence: Duration) -> usize {
        let in_time = in_time(self.rate, silence / 4);
        // A rate that nothing limited may be as low as the need was.
        in_time.max(if self.is_limited { 1 } else { LEAST })
    }

    /// How many deletes may be sent together. Nobody waits long for them, so there are many until the master shows that it
    /// is slow: a process that ends has little time to write them.
    pub(crate) fn batch_of_deletes(&self, silence: Duration) -> usize {
        if self.is_limited {
            self.batch(silence)
        } else {
            usize::MAX
        }
    }

    /// Requests were sent.
    pub(crate) fn sent(&mut self, requests: usize, now: Moment) {
        if self.under_way == 0 {
            // Otherwise an idle time would count as a time in which the master answered few requests.
            self.sample = Sample::new(now);
        }
        self.under_way += requests;
        self.sample.was_full |= self.under_way >= self.limit();
    }

    /// Requests that were sent together were answered together.
    pub(crate) fn answered(&mut self, requests: usize, round_trip: Duration, now: Moment) {
        self.under_way = self.under_way.saturating_sub(requests);
        self.round_trip.saw(round_trip, now);
        self.sample.replies += requests;
        let elapsed = self.sample.since.until(now);
        if elapsed >= SAMPLE.max(self.round_trip.shortest.unwrap_or_default()) {
            self.measure(elapsed);
            self.sample = Sample::new(now);
        }
    }

    /// Requests will not be answered any more: their connection is gone.
    pub(crate) fn forgotten(&mut self, requests: usize) {
        self.under_way = self.under_way.saturating_sub(requests);
    }

    fn measure(&mut self, elapsed: Duration) {
        let rate = per_second(self.sample.replies, elapsed);
        if rate > self.rate {
            self.rate = rate;
            self.is_limited = self.sample.was_full;
        } else if self.sample.was_full && self.round_trip.draining_since.is_none() {
            // Slowly, since one bad sample must not cost throughput. What did not fill the window says nothing.
            self.rate = (3 * self.rate + rate) / 4;
            self.is_limited = true;
        } else {
            return;
        }
        let round_trip = self.round_trip.shortest.unwrap_or_default();
        let wanted = in_time(self.rate, 2 * round_trip + QUEUED_FOR);
        let wanted = wanted.clamp(LEAST, MOST);
        // A rate that nothing limited is no reason to send less: when the way becomes longer, a small window would be full.
        self.limit = if self.sample.was_full {
            wanted
        } else {
            wanted.max(self.limit)
        };
    }
}

impl RoundTrip {
    fn saw(&mut self, round_trip: Duration, now: Moment) {
        let is_shortest = self.shortest.is_none_or(|shortest| round_trip <= shortest);
        match self.draining_since {
            None if is_shortest => {
                self.shortest = Some(round_trip);
                self.seen_at = now;
            }
            None if self.seen_at.until(now) >= FORGET_AFTER => {
                self.draining_since = Some(now);
                self.shortest = None;
            }
            None => {}
            Some(since) => {
                if is_shortest {
                    self.shortest = Some(round_trip);
                    self.seen_at = now;
                }
                // Long enough that what was sent before has been answered.
                let shortest = self.shortest.unwrap_or_default();
                if since.until(now) >= 2 * shortest + QUEUED_FOR {
                    self.draining_since = None;
                }
            }
        }
    }
}

impl Sample {
    fn new(since: Moment) -> Self {
        Self {
            since,
            replies: 0,
            was_full: false,
        }
    }
}

fn per_second(count: usize, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    let count = u128::try_from(count).unwrap_or(u128::MAX);
    u64::try_from(count.saturating_mul(1_000_000_000) / nanos).unwrap_or(u64::MAX)
}

fn in_time(rate: u64, time: Duration) -> usize {
    let count = u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000;
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A master with a round trip and a rate, and requests without end. Returns the limit, and the replies per second.
    fn saturate(
        window: &mut Window,
        from: Moment,
        round_trip: Duration,
        rate: u64,
        span: Duration,
    ) -> (usize, u64) {
        const STEP: Duration = Duration::from_millis(1);
        let mut under_way = std::collections::VecDeque::new();
        let (mut now, mut free_at, mut replies) = (from, from, 0);
        let service = Duration::from_nanos(1_000_000_000 / rate);
        while from.until(now) < span {
            for _ in 0..window.limit().saturating_sub(window.under_way) {
                window.sent(1, now);
                let begins = if free_at < now { now } else { free_at };
                free_at = begins.after(service);
                under_way.push_back((now, free_at.after(round_trip)));
            }
            while let Some((sent, answered)) = under_way.front().copied()
                && answered <= now
            {
                under_way.pop_front();
                window.answered(1, sent.until(answered), now);
                replies += 1;
            }
            now = now.after(STEP);
        }
        (window.limit, per_second(replies, span))
    }

    const START: Moment = Moment::from_nanos(1_000_000_000);

    #[test]
    fn a_master_far_away_is_used_to_its_rate() {
        let round_trip = Duration::from_millis(100);
        let mut window = Window::new(START);
        let span = Duration::from_secs(10);
        let (limit, rate) = saturate(&mut window, START, round_trip, 20_000, span);
        assert!(rate > 17_000, "{rate}/s by {limit}");
        assert!(limit <= MOST);
    }

    #[test]
    fn a_slow_master_has_few_requests_to_answer() {
        let mut window = Window::new(START);
        let span = Duration::from_secs(10);
        let (limit, rate) = saturate(&mut window, START, Duration::from_millis(1), 500, span);
        assert!(rate > 450, "{rate}/s by {limit}");
        assert!(limit <= 500 / 8, "a request waits {limit} / 500 s");
    }

    #[test]
    fn a_near_and_fast_master_answers_within_tens_of_milliseconds() {
        let mut window = Window::new(START);
        let span = Duration::from_secs(60);
        let (limit, rate) = saturate(&mut window, START, Duration::from_millis(1), 20_000, span);
        assert!(rate > 18_000, "{rate}/s by {limit}");
        assert!(limit < 20_000 / 10, "a request waits {limit} / {rate} s");
    }

    #[test]
    fn a_way_that_becomes_longer_is_noticed() {
        let mut window = Window::new(START);
        let near = Duration::from_secs(10);
        saturate(&mut window, START, Duration::from_millis(1), 10_000, near);
        window.forgotten(window.under_way);
        let later = START.after(near);
        saturate(
            &mut window,
            later,
            Duration::from_millis(100),
            10_000,
            Duration::from_secs(10),
        );
        window.forgotten(window.under_way);
        let later = later.after(Duration::from_secs(10));
        let (limit, rate) = saturate(&mut window, later, Duration::from_millis(100), 10_000, near);
        assert!(rate > 8_000, "{rate}/s by {limit}");
    }

    #[test]
    fn what_does_not_fill_the_window_does_not_shrink_it() {
        let mut window = Window::new(START);
        saturate(
            &mut window,
            START,
            Duration::from_millis(1),
            20_000,
            Duration::from_secs(2),
        );
        window.forgotten(window.under_way);
        let mut now = START.after(Duration::from_secs(2));
        let mut limit = 0;
        for request in 0..2_000 {
            // The sample that was under way belongs to the busy time.
            if request == 20 {
                limit = window.limit;
            }
            window.sent(1, now);
            now = now.after(Duration::from_millis(1));
            window.answered(1, Duration::from_millis(1), now);
        }
        assert_eq!(window.limit, limit);
    }
    /// One request follows another before the first is answered, so no sample begins anew.
    #[test]
    fn a_few_requests_at_a_time_do_not_shrink_it_either() {
        let round_trip = Duration::from_millis(1);
        let mut window = Window::new(START);
        let busy = Duration::from_secs(2);
        saturate(&mut window, START, round_trip, 20_000, busy);
        window.forgotten(window.under_way);
        let (mut now, usual) = (START.after(busy), window.limit);
        // The sample that was under way belongs to the busy time.
        window.sample = Sample::new(now);
        window.sent(1, now);
        for _ in 0..2_000 {
            window.sent(1, now);
            now = now.after(round_trip);
            window.answered(1, round_trip, now);
        }
        assert_eq!(window.limit, usual);
    }

    #[test]
    fn the_few_requests_of_a_lone_client_do_not_shrink_the_first_window() {
        let round_trip = Duration::from_millis(1);
        let (mut window, mut now) = (Window::new(START), START);
        window.sent(1, now);
        for _ in 0..100 {
            window.sent(1, now);
            now = now.after(10 * round_trip);
            window.answered(1, round_trip, now);
        }
        assert_eq!(window.limit, FIRST);
    }

    #[test]
    fn a_window_that_is_small_to_measure_the_way_is_as_wide_as_before_for_others() {
        let mut window = Window::new(START);
        let span = Duration::from_secs(4);
        saturate(&mut window, START, Duration::from_millis(1), 20_000, span);
        window.forgotten(window.under_way);
        let usual = window.limit();
        assert!(usual > 4 * LEAST && usual == window.usual_limit());
        // A longer way for so long that the shorter one is forgotten.
        let now = START.after(2 * FORGET_AFTER);
        window.sent(1, now);
        window.answered(1, Duration::from_millis(2), now);
        assert!(window.limit() <= usual / 4 + 1);
        assert_eq!(window.usual_limit(), usual);
        // The first reply after the queue has drained ends it.
        let now = now.after(Duration::from_millis(2) + 2 * QUEUED_FOR);
        window.sent(1, now);
        window.answered(1, Duration::from_millis(2), now);
        assert_eq!(window.limit(), usual);
    }
}
