//! Serves the queue of a connection: sends as much as the window allows, deletes and extensions first, passes the
//! replies on, and gives up on requests when the master is silent.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use redis::Value as Reply;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{Queued, SendError, Urgency};
use crate::clock::Moment;
use crate::engine::{MAX_STALLS, STALL, arrived_is_read};
use crate::master::link::Activity;
use crate::master::load::Load;
use crate::master::reply::Sign;
use crate::master::request::Kind;
use crate::master::window::{MOST, Window};

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

    /// A command was answered, or is not sent after all. Returns a command that had to wait for this, and may be sent now.
    fn after(&mut self, queued: &Queued) -> Option<Queued>;

    /// The commands that were taken out of the line, and wait for others.
    fn waiting(&mut self) -> impl Iterator<Item = &mut Queued>;
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
    let mut line = Line {
        transport,
        window: Window::new(Moment::from_nanos(0)),
        started: now,
        silent_since: now,
        stalls: 0,
        turns: VecDeque::new(),
        pings: VecDeque::new(),
        deletes: VecDeque::new(),
        held: VecDeque::new(),
        attempts: VecDeque::new(),
        batches: BTreeMap::new(),
        next_batch: 0,
        terms,
    };
    let mut in_flight = FuturesUnordered::new();
    let mut silence = Silence::default();
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
            line.forget_useless();
            let mut has_changed = false;
            while let Poll::Ready(Some((batch, replies))) = in_flight.poll_next_unpin(cx) {
                has_changed = true;
                if line.answered(batch, replies) {
                    // From here on `send` fails at once, and its caller knows that nothing was sent.
                    queue.close();
                    line.fail_unsent();
                }
            }
            has_changed |= line.check_silence(&mut silence, cx).is_ready();
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
    /// When the master last replied, or this process last noticed that it had been stalled.
    silent_since: Instant,
    /// How often a stall was noticed since the last reply.
    stalls: u32,
    /// What [`Transport::next`] has let through already.
    turns: VecDeque<Queued>,
    pings: VecDeque<Queued>,
    deletes: VecDeque<Queued>,
    /// Extensions, renewals and inspections.
    held: VecDeque<Queued>,
    attempts: VecDeque<Queued>,
    /// What is under way, in the order of sending. A map, because an external connection may answer in another order.
    batches: BTreeMap<u64, Batch>,
    next_batch: u64,
}

/// Commands that were sent together.
struct Batch {
    sent: Instant,
    commands: Vec<Queued>,
    /// Whether their callers have the error that the master is silent.
    is_given_up: bool,
}

/// What wakes the job when the master may have been silent for too long.
#[derive(Default)]
struct Silence {
    timer: Option<Pin<Box<Sleep>>>,
    /// Reads the replies that have arrived meanwhile: a stall of this process is no silence of the master.
    last_look: Option<BoxFuture<'static, ()>>,
}

impl<T: Transport> Line<T> {
    fn arrive(&mut self, queued: Queued) {
        match queued.urgency {
            Urgency::Ping => self.pings.push_back(queued),
            Urgency::Delete => self.deletes.push_back(queued),
            Urgency::Held => {
                let attempt = self.attempt_before(&queued);
                self.held.extend(attempt.into_iter().chain([queued]));
            }
            Urgency::Attempt => self.attempts.push_back(queued),
        }
    }

    /// Takes the attempt of the same lock out of the line, if it still waits. An extension that passed it would find no key,
    /// and its vote would be lost.
    fn attempt_before(&mut self, extension: &Queued) -> Option<Queued> {
        // Nearly always the attempt was sent long ago, and nothing has to be searched.
        if !extension.permit.is_first() {
            return None;
        }
        let mut attempts = self.attempts.iter();
        let place =
            attempts.position(|attempt| attempt.permit.is_for_same_key(&extension.permit))?;
        self.attempts.remove(place)
    }

    /// Whether nothing waits to be sent.
    fn is_empty(&self) -> bool {
        let first = [&self.turns, &self.pings];
        let lines = [&self.deletes, &self.held, &self.attempts];
        first.into_iter().chain(lines).all(VecDeque::is_empty)
    }

    /// The time since the connection is served, as the window counts it.
    fn moment(&self, now: Instant) -> Moment {
        let nanos = now.duration_since(self.started).as_nanos();
        Moment::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Begins to send what may be sent now; `None` if there is nothing.
    #[allow(clippy::type_complexity)]
    fn send_next(
        &mut self,
    ) -> Option<impl Future<Output = (u64, Vec<Result<Reply, SendError>>)> + Send + use<T>> {
        let mut commands = Vec::new();
        let most = if self.deletes.is_empty() {
            self.window.batch(self.terms.silence)
        } else {
            self.window.batch_of_deletes(self.terms.silence)
        };
        while commands.len() < most.min(T::MAX_BATCH) {
            let sent = self.window.under_way() + commands.len();
            let Some(next) = self.take(sent) else { break };
            let is_large = matches!(next.kind, Some(Kind::Renew(_)));
            commands.push(next);
            if is_large {
                break;
            }
        }
        if commands.is_empty() {
            return None;
        }
        let sent = Instant::now();
        self.window.sent(commands.len(), self.moment(sent));
        let number = self.next_batch;
        self.next_batch += 1;
        let exchange = self.transport.exchange(&commands);
        let batch = Batch {
            sent,
            commands,
            is_given_up: false,
        };
        self.batches.insert(number, batch);
        Some(exchange.map(move |replies| (number, replies)))
    }

    /// Drops the attempts at the front of the line whose locks were given up: they need no room. Records since when the
    /// first of the rest waits.
    fn forget_useless(&mut self) {
        while self.attempts.front().is_some_and(Queued::is_useless)
            && let Some(useless) = self.attempts.pop_front()
        {
            useless.answer(Err(SendError::NotPermitted));
        }
        let Terms { load, serial, .. } = &self.terms;
        load.set_head(*serial, self.attempts.front().map(|head| head.queued));
    }

    /// The next command that there is room for, and that is still permitted. A command that nobody needs any more
    /// leaves the line here, and is not sent. `sent` is the number of commands under way.
    fn take(&mut self, sent: usize) -> Option<Queued> {
        loop {
            let mut next = match self.turns.pop_front() {
                Some(next) => next,
                None => {
                    let next = self.first_with_room(sent)?;
                    let next = (!next.is_skipped()).then_some(next);
                    let Some(next) = next.and_then(|next| self.transport.next(next)) else {
                        continue;
                    };
                    next
                }
            };
            // Relaxed: set before this connection was offered to requests, and passed on with the first of them.
            let latest_unclosed = self.terms.latest_unclosed.load(Ordering::Relaxed);
            if !next.is_skipped() && next.permit.send(self.terms.serial, latest_unclosed) {
                next.is_sent = true;
                return Some(next);
            }
            self.give_turn(&next);
            next.answer(Err(SendError::NotPermitted));
        }
    }

    fn first_with_room(&mut self, sent: usize) -> Option<Queued> {
        if let Some(ping) = self.pings.pop_front() {
            return Some(ping);
        }
        let limit = self.window.limit();
        // Deletes do not wait for the window: the locks of a process that ends are deleted at once, and on a master that is
        // silent now the deletes are then executed behind what they delete.
        let (line, room) = if !self.deletes.is_empty() {
            (&mut self.deletes, MOST)
        } else if !self.held.is_empty() {
            (&mut self.held, 2 * limit)
        } else {
            (&mut self.attempts, limit)
        };
        if sent < room { line.pop_front() } else { None }
    }

    /// Passes the replies to a batch on. Returns whether the connection has broken.
    fn answered(&mut self, number: u64, replies: Vec<Result<Reply, SendError>>) -> bool {
        let Some(Batch { sent, commands, .. }) = self.batches.remove(&number) else {
            return false;
        };
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
            self.silent_since = now;
            self.stalls = 0;
            self.terms.activity.mark_alive();
            let at = self.moment(now);
            self.window.answered(count, now.duration_since(sent), at);
            let Terms { load, serial, .. } = &self.terms;
            load.set_window(*serial, self.window.usual_limit());
        } else {
            self.window.forgotten(count);
        }
        is_broken
    }

    /// Lets the command that waits for this one take its turn.
    fn give_turn(&mut self, queued: &Queued) {
        if let Some(next) = self.transport.after(queued) {
            self.turns.push_back(next);
        }
    }

    /// The connection has broken before these were sent.
    fn fail_unsent(&mut self) {
        let Self {
            turns,
            pings,
            deletes,
            held,
            attempts,
            ..
        } = self;
        let lines = [turns, pings, deletes, held, attempts];
        for queued in lines.into_iter().flat_map(|line| line.drain(..)) {
            queued.answer(Err(SendError::unsent()));
        }
    }

    /// Since when the oldest request waits that was neither answered nor given up.
    fn waits_since(&mut self) -> Option<Instant> {
        let mut under_way = self.batches.values().filter(|batch| !batch.is_given_up);
        let under_way = under_way.next().map(|batch| batch.sent);
        let heads = [&self.deletes, &self.held, &self.attempts].map(VecDeque::front);
        let heads = heads.into_iter().flatten().map(|head| head.queued);
        if let Some(oldest) = heads.chain(under_way).min() {
            return Some(oldest);
        }
        let waiting = self.transport.waiting().filter(|it| it.reply.is_some());
        waiting.map(|queued| queued.queued).min()
    }

    /// Gives up on the requests that have waited since then, or for longer. A reply that comes later still counts for
    /// what is to be deleted.
    fn give_up(&mut self, since: Instant) {
        let silence = self.terms.silence;
        for batch in self.batches.values_mut().filter(|it| it.sent <= since) {
            batch.is_given_up = true;
            for queued in &mut batch.commands {
                queued.give_up(silence);
            }
        }
        for line in [&mut self.deletes, &mut self.held, &mut self.attempts] {
            while line.front().is_some_and(|head| head.queued <= since)
                && let Some(head) = line.pop_front()
            {
                head.answer(Err(SendError::Silent(silence)));
            }
        }
        let waiting = self.transport.waiting();
        for queued in waiting.filter(|queued| queued.queued <= since) {
            queued.give_up(silence);
        }
    }

    /// Gives up on the requests that a silent master has not answered. Ready when some were given up.
    fn check_silence(&mut self, check: &mut Silence, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(since) = self.waits_since() else {
                return Poll::Pending;
            };
            // While replies keep coming, the age of a request says nothing of the master.
            let deadline = since.max(self.silent_since) + self.terms.silence;
            let now = Instant::now();
            if now > deadline + STALL && self.stalls < MAX_STALLS {
                // Commands may not have been written before the stall, so the master gets the whole time again.
                self.stalls += 1;
                self.silent_since = now;
                continue;
            }
            if now >= deadline {
                let look = check
                    .last_look
                    .get_or_insert_with(|| arrived_is_read().boxed());
                ready!(look.poll_unpin(cx));
                check.last_look = None;
                self.give_up(now - self.terms.silence);
                return Poll::Ready(());
            }
            check.last_look = None;
            // A timer that is set is left, also where the deadline has moved on: to set one costs more than to look.
            let timer = check
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            ready!(timer.as_mut().poll(cx));
            check.timer = None;
        }
    }
}

#[cfg(test)]
mod tests;
