//! Serves the queue of a connection: sends as much as the window allows, deletes and extensions first, passes the replies
//! on, and gives up on requests when the master is silent.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::Value as Reply;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{Queued, SendError, Urgency};
use crate::clock::Moment;
use crate::master::link::Activity;
use crate::master::load::Load;
use crate::master::reply::Sign;
use crate::master::window::{FIRST, Window};

/// How long the job waits for replies after every handle to the connection is gone. A master that hangs would keep the
/// connection open for ever.
const LAST_REPLIES: Duration = Duration::from_secs(10);

/// What carries commands to a master.
pub(super) trait Transport: Send + 'static {
    /// How many commands are written together at most.
    const MAX_BATCH: usize;

    /// Sends commands in their order. The first poll hands them over. Returns a reply for each.
    fn exchange(
        &self,
        batch: &[Queued],
    ) -> impl Future<Output = Vec<Result<Reply, SendError>>> + Send + use<Self>;

    /// Takes a command out of the line, and returns it if it may be sent now.
    fn next(&mut self, queued: Queued) -> Option<Queued>;

    /// A command was answered. Returns a command that had to wait for this.
    fn after(&mut self, queued: &Queued) -> Option<Queued>;
}

/// What a connection is served with.
pub(crate) struct Terms {
    pub(crate) serial: u64,
    /// The serial number of the latest earlier connection that the master may still have open.
    pub(crate) latest_unclosed: Arc<AtomicU64>,
    pub(crate) load: Arc<Load>,
    pub(crate) activity: Arc<Activity>,
    /// A request fails when the master has been silent for this long.
    pub(crate) silence: Duration,
}

#[cfg(test)]
impl Terms {
    /// For a connection that sends nothing.
    pub(crate) fn unused(serial: u64) -> Self {
        let line = Arc::new(crate::queue::Line::default());
        Self {
            serial,
            latest_unclosed: Arc::default(),
            load: Load::new(line),
            activity: Arc::new(Activity::new()),
            silence: Duration::ZERO,
        }
    }
}

/// Sends the queued commands and passes the replies on.
///
/// Returns when the connection has broken, or at most [`LAST_REPLIES`] after every handle to the connection is gone.
pub(super) async fn serve<T: Transport>(
    transport: T,
    terms: Terms,
    mut queue: mpsc::UnboundedReceiver<Queued>,
) {
    let now = Instant::now();
    terms.load.set_window(FIRST);
    let mut line = Line {
        transport,
        window: Window::new(Moment::from_nanos(0)),
        started: now,
        last_reply: now,
        urgent: VecDeque::new(),
        others: VecDeque::new(),
        batches: VecDeque::new(),
        first_batch: 0,
        terms,
    };
    let mut in_flight = FuturesUnordered::new();
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    let mut arrived = Vec::new();
    let serving = poll_fn(|cx| {
        loop {
            let received = queue.poll_recv_many(cx, &mut arrived, usize::MAX);
            for queued in arrived.drain(..) {
                line.arrive(queued);
            }
            // The first poll of an exchange hands its commands to the connection, so the order of the exchanges is the
            // order on the wire: `FuturesUnordered` polls new futures in the order in which they were pushed.
            while let Some(exchange) = line.send_next() {
                in_flight.push(exchange);
            }
            let mut has_changed = false;
            while let Poll::Ready(Some((batch, replies))) = in_flight.poll_next_unpin(cx) {
                has_changed = true;
                if line.answered(batch, replies) {
                    // From here on `send` fails at once, and its caller knows that nothing was sent.
                    queue.close();
                    line.fail_unsent();
                }
            }
            has_changed |= line.check_silence(&mut timer, cx).is_ready();
            match received {
                Poll::Ready(0) if line.is_empty() => return Poll::Ready(()),
                _ if has_changed => {}
                Poll::Ready(0) | Poll::Pending => return Poll::Pending,
                // There may be more.
                Poll::Ready(_) => {}
            }
        }
    });
    serving.await;
    let rest = async {
        while let Some((batch, replies)) = in_flight.next().await {
            line.answered(batch, replies);
        }
    };
    let _ = timeout(LAST_REPLIES, rest).await;
}

/// The commands that wait, and those that are under way.
struct Line<T> {
    transport: T,
    terms: Terms,
    window: Window,
    started: Instant,
    /// When the master last replied.
    last_reply: Instant,
    /// Deletes, extensions and questions: what keeps a lock, or lets one go.
    urgent: VecDeque<Queued>,
    /// New attempts.
    others: VecDeque<Queued>,
    /// What is under way, in the order of sending.
    batches: VecDeque<Batch>,
    /// The number of the first of `batches`.
    first_batch: u64,
}

/// Commands that were sent together.
struct Batch {
    sent: Instant,
    commands: Vec<Queued>,
    /// Whether their callers have been told that the master is silent.
    is_given_up: bool,
}

impl<T: Transport> Line<T> {
    fn arrive(&mut self, queued: Queued) {
        if queued.urgency == Urgency::Attempt {
            self.others.push_back(queued);
        } else {
            self.urgent.push_back(queued);
        }
    }

    /// Whether nothing waits to be sent.
    fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.others.is_empty()
    }

    /// Begins to send what may be sent now; `None` if there is nothing.
    #[allow(clippy::type_complexity)]
    fn send_next(
        &mut self,
    ) -> Option<impl Future<Output = (u64, Vec<Result<Reply, SendError>>)> + Send + use<T>> {
        let mut commands = Vec::new();
        while commands.len() < T::MAX_BATCH {
            let sent = self.window.under_way() + commands.len();
            let Some(next) = self.take(sent) else { break };
            commands.push(next);
        }
        if commands.is_empty() {
            return None;
        }
        self.window.sent(commands.len());
        let number = self.first_batch + u64::try_from(self.batches.len()).unwrap_or(u64::MAX);
        let exchange = self.transport.exchange(&commands);
        self.batches.push_back(Batch {
            sent: Instant::now(),
            commands,
            is_given_up: false,
        });
        Some(exchange.map(move |replies| (number, replies)))
    }

    /// The next command that there is room for, and that is still permitted. Those that nobody needs any more leave the
    /// line here, at no cost.
    fn take(&mut self, sent: usize) -> Option<Queued> {
        loop {
            let (urgent, others) = (&mut self.urgent, &mut self.others);
            let next = match urgent.front().map(|next| next.urgency) {
                Some(Urgency::Ping) => urgent.pop_front(),
                // Twice the room, so that everything in a full window can be deleted: a master that is silent executes
                // these deletes behind what they delete, also after this process has ended.
                Some(_) if sent < 2 * self.window.limit() => urgent.pop_front(),
                None if sent < self.window.limit() => others.pop_front(),
                _ => None,
            }?;
            if next.is_skipped() {
                continue;
            }
            let Some(mut next) = self.transport.next(next) else {
                continue;
            };
            // Relaxed: set before this connection was offered to requests, and passed on with the first of them.
            let latest_unclosed = self.terms.latest_unclosed.load(Ordering::Relaxed);
            if next.permit.send(self.terms.serial, latest_unclosed) {
                next.is_sent = true;
                return Some(next);
            }
            self.give_turn(&next);
            next.answer(Err(SendError::NotPermitted));
        }
    }

    /// Passes the replies to a batch on. Returns whether the connection has broken.
    fn answered(&mut self, number: u64, replies: Vec<Result<Reply, SendError>>) -> bool {
        let place = usize::try_from(number - self.first_batch).unwrap_or(usize::MAX);
        let Some(batch) = self.batches.get_mut(place) else {
            return false;
        };
        let (sent, commands) = (batch.sent, std::mem::take(&mut batch.commands));
        while self
            .batches
            .front()
            .is_some_and(|batch| batch.commands.is_empty())
        {
            self.batches.pop_front();
            self.first_batch += 1;
        }
        let mut is_broken = false;
        let mut is_alive = false;
        let count = commands.len();
        for (queued, reply) in commands.into_iter().zip(replies) {
            let sign = Sign::of(&reply);
            is_broken |= sign == Sign::Broken;
            is_alive |= sign == Sign::Alive;
            self.give_turn(&queued);
            queued.answer(reply);
        }
        let now = Instant::now();
        if is_alive {
            self.last_reply = now;
            self.terms.activity.mark_alive();
            let at = now.duration_since(self.started).as_nanos();
            let at = Moment::from_nanos(u64::try_from(at).unwrap_or(u64::MAX));
            self.window.answered(count, now.duration_since(sent), at);
            self.terms.load.set_window(self.window.limit());
        } else {
            self.window.forgotten(count);
        }
        is_broken
    }

    /// Lets the command that waits for this one take its turn.
    fn give_turn(&mut self, queued: &Queued) {
        if let Some(next) = self.transport.after(queued) {
            self.urgent.push_front(next);
        }
    }

    /// The connection has broken before these were sent.
    fn fail_unsent(&mut self) {
        for queued in self.urgent.drain(..).chain(self.others.drain(..)) {
            queued.answer(Err(SendError::unsent()));
        }
    }

    /// Since when the oldest request waits for a reply, or behind others for its turn.
    fn waits_since(&self) -> Option<Instant> {
        let mut under_way = self.batches.iter().filter(|batch| !batch.is_given_up);
        if let Some(oldest) = under_way.next() {
            return Some(oldest.sent);
        }
        let lines = [&self.urgent, &self.others];
        let heads = lines.into_iter().filter_map(|line| line.front());
        heads.map(|head| head.queued).min()
    }

    /// Gives up on what waits since then.
    fn give_up(&mut self, since: Instant) {
        let silence = self.terms.silence;
        let mut under_way = self.batches.iter_mut().filter(|batch| !batch.is_given_up);
        if let Some(oldest) = under_way.next() {
            oldest.is_given_up = true;
            for queued in &mut oldest.commands {
                queued.give_up(silence);
            }
            return;
        }
        for line in [&mut self.urgent, &mut self.others] {
            while line.front().is_some_and(|head| head.queued <= since)
                && let Some(head) = line.pop_front()
            {
                head.answer(Err(SendError::Silent(silence)));
            }
        }
    }

    /// Gives up on the requests that a silent master has not answered. Replies that come later still count for what is to
    /// be deleted. Ready when some were given up.
    fn check_silence(
        &mut self,
        timer: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let Some(since) = self.waits_since() else {
                return Poll::Pending;
            };
            // While replies keep coming, the age of a request says nothing of the master.
            let deadline = since.max(self.last_reply) + self.terms.silence;
            if Instant::now() >= deadline {
                self.give_up(since);
                return Poll::Ready(());
            }
            // A timer that is set is left, also where the deadline has moved on: to set one costs more than to look.
            let sleep = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            match sleep.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => *timer = None,
            }
        }
    }
}
