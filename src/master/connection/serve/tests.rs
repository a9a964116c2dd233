use std::iter;
use std::sync::Mutex;

use tokio::sync::oneshot;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{advance, sleep};

use super::*;
use crate::master::connection::Command;
use crate::master::window::{FIRST, MOST};
use crate::permit::{DirtyMasters, SendPermit};
use crate::sync::lock;

const SILENCE: Duration = Duration::from_millis(100);

type Answer = oneshot::Receiver<Result<Reply, SendError>>;

/// A connection whose master answers when the test says so. Clones are the same connection.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Sent>>);

#[derive(Default)]
struct Sent {
    /// The names of all commands, in the order of sending.
    names: Vec<String>,
    /// The batches without an answer, and how many commands each has.
    batches: VecDeque<(usize, oneshot::Sender<()>)>,
}

impl Transport for Fake {
    const MAX_BATCH: usize = 64;

    fn exchange(
        &self,
        batch: &[Queued],
    ) -> impl Future<Output = Vec<Result<Reply, SendError>>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let count = batch.len();
        let mut sent = lock(&self.0);
        let names = batch.iter().map(|queued| name(&queued.command));
        sent.names.extend(names);
        sent.batches.push_back((count, answer));
        async move {
            // A master that is gone never answers.
            if answered.await.is_err() {
                std::future::pending::<()>().await;
            }
            iter::repeat_with(|| Ok(Reply::Okay)).take(count).collect()
        }
    }

    fn next(&mut self, queued: Queued) -> Option<Queued> {
        Some(queued)
    }

    fn after(&mut self, _: &Queued) -> Option<Queued> {
        None
    }

    fn waiting(&mut self) -> impl Iterator<Item = &mut Queued> {
        iter::empty()
    }
}

fn name(command: &Command) -> String {
    let Some(redis::Arg::Simple(name)) = command.cmd.args_iter().next() else {
        panic!("a command has a name");
    };
    String::from_utf8_lossy(name).into_owned()
}

/// A queue that is served, and the master at its end.
struct Served {
    master: Fake,
    queue: mpsc::UnboundedSender<Queued>,
    load: Arc<Load>,
    _job: JoinHandle<()>,
}

impl Served {
    fn new() -> Self {
        let (master, load) = (Fake::default(), Load::new(Arc::default()));
        load.reset_window(1);
        let terms = Terms {
            load: Arc::clone(&load),
            silence: SILENCE,
            ..Terms::unused(1)
        };
        let (queue, received) = mpsc::unbounded_channel();
        let job = tokio::spawn(serve(master.clone(), terms, received));
        Self {
            master,
            queue,
            load,
            _job: job,
        }
    }

    fn send(&self, name: &str, urgency: Urgency) -> Answer {
        self.send_if(name, urgency, SendPermit::SetsNoKey)
    }

    fn send_if(&self, name: &str, urgency: Urgency, permit: SendPermit) -> Answer {
        let (reply, answer) = oneshot::channel();
        let queued = Queued {
            command: Command::plain(redis::cmd(name)),
            kind: None,
            permit,
            urgency,
            queued: Instant::now(),
            is_sent: false,
            reply: Some(reply),
            ticket: Some(self.load.enter()),
        };
        assert!(self.queue.send(queued).is_ok(), "the queue is served");
        answer
    }

    fn send_many(&self, name: &str, urgency: Urgency, count: usize) -> Vec<Answer> {
        (0..count).map(|_| self.send(name, urgency)).collect()
    }

    /// Fills the window with attempts that have no answer.
    async fn fill(&self) -> Vec<Answer> {
        let attempts = self.send_many("attempt", Urgency::Attempt, FIRST);
        assert_eq!(self.sent_after(0).await, ["attempt"; FIRST]);
        attempts
    }

    /// What was sent since the last call, the first commands left out.
    async fn sent_after(&self, first: usize) -> Vec<String> {
        settle().await;
        std::mem::take(&mut lock(&self.master.0).names).split_off(first)
    }

    /// How many batches have no answer.
    fn under_way(&self) -> usize {
        lock(&self.master.0).batches.len()
    }

    /// Answers the oldest commands that were sent together. Returns how many.
    async fn answer(&self) -> usize {
        settle().await;
        let oldest = lock(&self.master.0).batches.pop_front();
        let (count, answer) = oldest.expect("commands are under way");
        let _ = answer.send(());
        settle().await;
        count
    }
}

/// Lets the job do what it can do now.
async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

fn is_silent(answer: &mut Answer) -> bool {
    matches!(answer.try_recv(), Ok(Err(SendError::Silent(after))) if after == SILENCE)
}

fn is_pending(answer: &mut Answer) -> bool {
    matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

#[tokio::test(start_paused = true)]
async fn pings_go_first_then_deletes_then_extensions_then_attempts() {
    let served = Served::new();
    let _full = served.fill().await;
    let _late = [
        ("late", Urgency::Attempt),
        ("extend", Urgency::Held),
        ("delete", Urgency::Delete),
        ("ping", Urgency::Ping),
    ]
    .map(|(name, urgency)| served.send(name, urgency));
    assert_eq!(served.sent_after(0).await, ["ping", "delete", "extend"]);
    while served.under_way() > 1 {
        served.answer().await;
    }
    let sent = served.sent_after(0).await;
    assert_eq!(sent, ["late"], "sent as soon as there is room");
}

#[tokio::test(start_paused = true)]
async fn an_extension_passes_attempts_but_not_its_own() {
    let served = Served::new();
    let _full = served.fill().await;
    let [own, other] = [1, 1].map(DirtyMasters::new);
    let _attempts = [("other", &other), ("own", &own)].map(|(name, dirty)| {
        served.send_if(
            name,
            Urgency::Attempt,
            SendPermit::Write(Arc::clone(dirty), 0),
        )
    });
    let _extend = served.send_if("extend", Urgency::Held, SendPermit::Write(own, 0));
    assert_eq!(served.sent_after(0).await, ["own", "extend"]);
}

#[tokio::test(start_paused = true)]
async fn deletes_need_no_room() {
    let served = Served::new();
    let _attempts = served.send_many("attempt", Urgency::Attempt, 2 * FIRST);
    let _deletes = served.send_many("delete", Urgency::Delete, 2 * FIRST);
    let sent = served.sent_after(0).await;
    let count = |wanted: &str| sent.iter().filter(|name| *name == wanted).count();
    assert_eq!(count("delete"), 2 * FIRST, "they come before the attempts");
    assert_eq!(count("attempt"), 0);

    let served = Served::new();
    let _full = served.fill().await;
    let _attempts = served.send_many("attempt", Urgency::Attempt, FIRST);
    assert_eq!(served.sent_after(0).await, [""; 0]);
    let _deletes = served.send_many("delete", Urgency::Delete, MOST);
    assert_eq!(served.sent_after(0).await.len(), MOST - FIRST);
}

#[tokio::test(start_paused = true)]
async fn nobody_sends_for_a_caller_that_has_gone_except_deletes() {
    let served = Served::new();
    let _full = served.fill().await;
    drop(served.send_many("gone", Urgency::Attempt, 3));
    let _last = served.send("last", Urgency::Attempt);
    drop(served.send("extend", Urgency::Held));
    drop(served.send("delete", Urgency::Delete));
    drop(served.send("ping", Urgency::Ping));
    assert_eq!(served.sent_after(0).await, ["ping", "delete"]);
    while served.under_way() > 0 {
        served.answer().await;
    }
    assert_eq!(served.sent_after(0).await, ["last"]);
    assert_eq!(served.load.requests(), 0, "each of them is counted out");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_given_up_leaves_the_line_without_room() {
    let served = Served::new();
    let _full = served.fill().await;
    let dirty = DirtyMasters::new(1);
    let permit = SendPermit::Write(Arc::clone(&dirty), 0);
    let mut given_up = served.send_if("given up", Urgency::Attempt, permit);
    assert_eq!(served.sent_after(0).await, [""; 0]);
    assert!(is_pending(&mut given_up));
    assert!(dirty.close().is_some_and(|deletes| deletes.is_empty()));
    // Any event makes the job look.
    let _ping = served.send("ping", Urgency::Ping);
    settle().await;
    assert!(matches!(
        given_up.try_recv(),
        Ok(Err(SendError::NotPermitted))
    ));
}

/// Each request waits for three times the limit, and the master is never silent for longer than half of the limit.
#[tokio::test(start_paused = true)]
async fn while_replies_keep_coming_no_request_is_too_old() {
    let served = Served::new();
    let mut answers = VecDeque::new();
    for turn in 0..40 {
        answers.push_back(served.send("extend", Urgency::Held));
        settle().await;
        sleep(SILENCE / 4).await;
        // So the line grows by one in three turns.
        if turn % 3 != 2 {
            served.answer().await;
            let mut answered = answers.pop_front().expect("it was sent");
            assert!(matches!(answered.try_recv(), Ok(Ok(Reply::Okay))));
        }
        assert!(answers.iter_mut().all(is_pending), "turn {turn}");
    }
    assert!(answers.len() > 12, "the oldest is older than three limits");
    sleep(SILENCE - Duration::from_millis(1)).await;
    assert!(answers.iter_mut().all(is_pending));
    sleep(Duration::from_millis(2)).await;
    assert!(answers.iter_mut().all(is_silent));
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_line_fails_when_the_master_is_silent_and_nothing_else_does() {
    let served = Served::new();
    let mut attempts = served.send_many("attempt", Urgency::Attempt, FIRST + 1);
    let mut ping = served.send("ping", Urgency::Ping);
    settle().await;
    sleep(SILENCE / 2).await;
    let mut later = served.send("extend", Urgency::Held);
    sleep(SILENCE / 2 + Duration::from_millis(1)).await;
    assert!(attempts.iter_mut().all(is_silent));
    assert!(is_pending(&mut ping), "it waits for any sign of life");
    assert!(is_pending(&mut later), "it has not waited for so long");
    sleep(SILENCE).await;
    assert!(is_silent(&mut later));
    let sent = served.sent_after(FIRST).await;
    assert_eq!(
        sent,
        ["extend"],
        "the attempts that were given up are not sent"
    );
    // The master comes back, and everybody who asks from now on gets an answer.
    while served.under_way() > 0 {
        served.answer().await;
    }
    assert!(matches!(ping.try_recv(), Ok(Ok(Reply::Okay))));
    let mut new = served.send("extend", Urgency::Held);
    served.answer().await;
    assert!(matches!(new.try_recv(), Ok(Ok(Reply::Okay))));
}

/// A command may be written only after a stall, so its reply comes later still.
#[tokio::test(start_paused = true)]
async fn after_a_stall_of_this_process_the_master_has_the_whole_time_again() {
    let served = Served::new();
    let mut answer = served.send("extend", Urgency::Held);
    settle().await;
    advance(3 * SILENCE).await;
    settle().await;
    sleep(SILENCE / 2).await;
    assert!(is_pending(&mut answer));
    sleep(SILENCE).await;
    assert!(is_silent(&mut answer), "the silence after the stall counts");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_stalled_all_the_time_notices_a_silent_master_too() {
    let served = Served::new();
    let mut answer = served.send("extend", Urgency::Held);
    settle().await;
    for _ in 0..MAX_STALLS {
        assert!(is_pending(&mut answer));
        advance(3 * SILENCE).await;
        settle().await;
    }
    advance(3 * SILENCE).await;
    settle().await;
    assert!(is_silent(&mut answer));
}

/// The process gets no turn for a while. The reply has arrived meanwhile, and another task has still to read it.
#[tokio::test(start_paused = true)]
async fn a_stall_of_this_process_is_no_silence() {
    let served = Served::new();
    let mut answer = served.send("extend", Urgency::Held);
    settle().await;
    let (_, reply) = lock(&served.master.0)
        .batches
        .pop_front()
        .expect("it was sent");
    // Due after the timer of the silence, so it has its turn after the job.
    tokio::spawn(async move {
        sleep(SILENCE + SILENCE / 2).await;
        let _ = reply.send(());
    });
    settle().await;
    advance(3 * SILENCE).await;
    settle().await;
    assert!(matches!(answer.try_recv(), Ok(Ok(Reply::Okay))));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_is_counted_no_more_and_its_window_stays_full() {
    let served = Served::new();
    let mut attempts = served.fill().await;
    assert!(!served.load.has_room());
    sleep(2 * SILENCE).await;
    assert!(attempts.iter_mut().all(is_silent));
    assert_eq!(served.load.requests(), 0);
    let _next = served.send("next", Urgency::Attempt);
    let sent = served.sent_after(0).await;
    assert_eq!(sent, [""; 0], "the master has not answered the others yet");
}
