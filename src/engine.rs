//! The engine: where connections and background jobs run. That is the thread of this process, or a runtime that the
//! caller named. The engine knows no master.
//!
//! A caller submits a job and awaits its output on any executor. So it does not matter which of the caller's runtimes
//! ends, is idle or is blocked. One task per client, the dispatcher, polls all jobs of the client. It starts every job
//! that has arrived before a connection gets its turn to write, so the commands of many jobs share one write.

mod linger;

use std::future::{pending, poll_fn, ready};
use std::mem::{self, forget};
use std::net::{Ipv4Addr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{self, Context, Poll, Waker};
use std::time::Duration;
use std::{io, process, thread};

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use thiserror::Error;
use tokio::runtime::{self, Handle, Runtime, RuntimeFlavor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, coop::unconstrained, id, try_id, yield_now};
use tokio::time::{Instant, sleep, timeout_at};

use self::linger::Grace;
use crate::per_process::PerProcess;

/// The name of the thread, as the system shows it.
const NAME: &str = "redlock";

/// How many jobs the dispatcher starts, and how many it ends, before connections and timers get their turn. Without a
/// limit, callers whose jobs end at once could keep the dispatcher busy for ever. 64 is also the most that a connection
/// writes at once, so a larger number would not save writes.
const JOBS_PER_TURN: usize = 64;

/// The runtime that an engine uses.
#[derive(Clone, Debug, Default)]
pub(crate) enum Home {
    /// The runtime of the thread `redlock`, which all clients of this process share.
    #[default]
    Thread,
    /// A runtime that the caller named.
    Runtime(Named),
    /// The current runtime at the time of the first job. For masters in memory, which use the clock of that runtime.
    #[cfg(any(test, feature = "test-util"))]
    Current,
}

/// A runtime that the caller named.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    handle: Handle,
    /// The process that has the threads of the runtime.
    process: u32,
    /// Whether sockets and timers work on the runtime. Checked once, because the check may print a panic message.
    has_drivers: OnceLock<bool>,
}

/// Why a job has no output.
#[derive(Clone, Debug, Error)]
pub(crate) enum Stopped {
    #[error("the runtime of this client has shut down")]
    RuntimeEnded,
    #[error(
        "the runtime given to this client lacks an I/O or a time driver: build it with enable_all"
    )]
    NoDrivers,
    #[error("the thread of the client cannot be started: {0}")]
    NoThread(Arc<io::Error>),
    #[cfg(any(test, feature = "test-util"))]
    #[error("masters in memory need a Tokio runtime around every call")]
    NotOnTokio,
    #[error("this process was forked from the one that the call or the lock belongs to")]
    Forked,
}

/// While jobs arrive, the dispatcher keeps a timer set at most this far ahead. Tokio makes a system call for each new
/// timer that is earlier than all others. With this timer set, the timers of jobs are not the earliest, so they make
/// none: most of them end after the request timeout, 250 ms by default, or later. 50 ms is well below that default, and
/// costs at most 20 wake-ups a second.
const TIMER_AHEAD: Duration = Duration::from_millis(50);

type Job = BoxFuture<'static, ()>;

/// Makes a job on the thread of the dispatcher. So the memory of a job is allocated and freed on one thread, and fewer
/// bytes move between threads.
type MakeJob = Box<dyn FnOnce() -> Job + Send>;

/// Runs the background jobs of one client.
pub(crate) struct Engine {
    home: Home,
    /// The process that made the engine. In a child of a `fork` the engine must not be used.
    process: u32,
    /// `None` before the first job. No code outside this file runs while the mutex is held, so callers may hold any
    /// other mutex.
    dispatcher: Mutex<Option<Dispatcher>>,
}

/// The queue to the task that polls the jobs.
struct Dispatcher {
    queue: mpsc::UnboundedSender<MakeJob>,
    /// Set by the first poll of the task.
    task: Arc<OnceLock<Id>>,
}

impl Engine {
    /// Makes an engine. Nothing starts before the first job.
    pub(crate) fn new(home: Home) -> Self {
        Self {
            home,
            process: process::id(),
            dispatcher: Mutex::new(None),
        }
    }

    /// Whether this process is a child of the process that made the engine. The tasks of the engine do not exist here,
    /// and one of their threads may have held a mutex at the moment of the fork. So check this before any mutex.
    pub(crate) fn is_forked(&self) -> bool {
        self.process != process::id()
    }

    /// Whether the engine has had a job.
    pub(crate) fn has_started(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the runtime that the caller named has shut down.
    pub(crate) fn has_ended(&self) -> bool {
        // The thread never ends, and the check of the queue would cost a mutex. Masters in memory get another
        // dispatcher.
        let may_end = matches!(self.home, Home::Runtime(_));
        may_end && self.lock().as_ref().is_some_and(|it| it.queue.is_closed())
    }

    /// Whether the caller is a job of this engine.
    pub(crate) fn is_current(&self) -> bool {
        // Tokio never uses a task id twice, so the id of an earlier dispatcher matches no later task.
        let Some(task) = try_id() else {
            return false;
        };
        let dispatcher = self.lock();
        let dispatcher = dispatcher.as_ref();
        dispatcher.is_some_and(|dispatcher| dispatcher.task.get() == Some(&task))
    }

    /// Runs a job to its end, whether or not somebody waits for it. If the runtime has shut down, the job is dropped.
    pub(crate) fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let _ = self.submit(Box::new(move || guarded(job)));
    }

    /// [Spawns](Self::spawn) a job whose commands precede those of every job that is submitted later.
    ///
    /// The order of the queue ensures this, unless the caller is itself a job: the calling job may send more commands
    /// before the dispatcher reads the queue. In that case the new job is polled once before this returns.
    pub(crate) fn begin(&self, job: impl Future<Output = ()> + Send + 'static) {
        if !self.is_current() {
            return self.spawn(job);
        }
        let mut job = guarded(job);
        // The no-op waker is harmless: the dispatcher polls the job again, and that poll registers a real waker.
        let now = job.poll_unpin(&mut Context::from_waker(Waker::noop()));
        if now.is_pending() {
            let _ = self.submit(Box::new(move || job));
        }
    }

    /// Runs a job for a caller. When the caller drops the returned future, the job is dropped.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl Future<Output = T> + Send + 'static,
    ) -> Running<T> {
        self.run_with_rest(move || job.map(|output| (output, ready(()))))
    }

    /// Makes a job and [runs](Self::run) it. When the caller has the output, runs the second future that the job
    /// returned.
    pub(crate) fn run_with_rest<T, J, R>(
        &self,
        make: impl FnOnce() -> J + Send + 'static,
    ) -> Running<T>
    where
        T: Send + 'static,
        J: Future<Output = (T, R)> + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let (output, received) = oneshot::channel();
        // `make` is called inside the guarded future, so a panic in `make` also ends this job only.
        let job = move || guarded(async move { while_wanted(make().boxed(), output).await });
        let refused = self.submit(Box::new(job));
        Running {
            received: Some(received),
            refused: refused.err(),
            process: self.process,
            was_polled: false,
        }
    }

    /// Keeps the caller's runtime from ending before the connections have written all commands that were submitted so
    /// far. Outside a runtime, blocks until then.
    pub(crate) fn linger(&self) {
        // On a named runtime the jobs end with that runtime, so waiting could not help. A job of this engine need not
        // wait, because its runtime does not end.
        let outlives_caller = matches!(self.home, Home::Thread) && !self.is_forked();
        if outlives_caller && self.has_started() && !self.is_current() {
            // One for all clients: they share the thread, and so also the time for which drops may block.
            static GRACE: PerProcess<Grace> = PerProcess::new();
            let grace = GRACE.get_or_init(Grace::default);
            let (renewed, (done, is_written)) = (grace.clone(), oneshot::channel());
            // Spawned, so the job is not dropped with the one who waits. Only a job that has ended shows that the
            // engine makes progress.
            self.spawn(async move {
                others_have_run().await;
                // Before the answer, so that the next drop of the same thread finds a full allowance.
                renewed.renew();
                let _ = done.send(());
            });
            grace.wait_for(is_written, self.process);
        }
    }

    /// Submits a job, and starts the dispatcher if there is none.
    fn submit(&self, job: MakeJob) -> Result<(), Stopped> {
        if self.is_forked() {
            // The job owns senders and tasks of the parent. Dropping them could take a mutex that nobody unlocks.
            forget(job);
            return Err(Stopped::Forked);
        }
        let Some(job) = self.enqueue(job) else {
            return Ok(());
        };
        // There was no job yet, or the runtime of the dispatcher has shut down. Asked for without the mutex, because
        // this may start a thread.
        let runtime = self.home.runtime()?;
        let (queue, jobs) = mpsc::unbounded_channel();
        let task = Arc::new(OnceLock::new());
        let dispatcher = Dispatcher {
            queue,
            task: Arc::clone(&task),
        };
        // Only a dispatcher that is in place gets a task. Another thread may submit a job before the task runs: the job
        // then waits in the queue.
        let unused = self.replace_closed(dispatcher);
        if unused.is_none() {
            // If the runtime has shut down, this drops the receiver, and the send below fails. Unconstrained, because
            // all jobs share this task: Tokio's budget for one task would stop all of them. `JOBS_PER_TURN` is the
            // limit instead.
            runtime.spawn(unconstrained(dispatch(task, jobs)));
        }
        match self.enqueue(job) {
            None => Ok(()),
            Some(_) => Err(Stopped::RuntimeEnded),
        }
    }

    /// Sends a job to the dispatcher. Returns the job if there is no dispatcher.
    fn enqueue(&self, job: MakeJob) -> Option<MakeJob> {
        let mut dispatcher = self.lock();
        let queue = match &*dispatcher {
            Some(dispatcher) => &dispatcher.queue,
            None => return Some(job),
        };
        // The mutex is held from here to the `take`: without it, the `take` could remove a new dispatcher that another
        // thread has put in place in between.
        if let Err(refused) = queue.send(job) {
            return Some(refused.0);
        }
        if queue.is_closed() {
            // The dispatcher may have ended and emptied its queue just before the send. Nobody would read this job, and
            // its caller would wait for ever. Dropping the last sender drops the queue with the job. Without the mutex,
            // because a dropped job may submit another one.
            let closed = dispatcher.take();
            drop(dispatcher);
            drop(closed);
        }
        None
    }

    /// Puts a dispatcher in place, unless another thread did so first. Returns the dispatcher that is not used.
    fn replace_closed(&self, new: Dispatcher) -> Option<Dispatcher> {
        let mut current = self.lock();
        if let Some(alive) = &*current
            && !alive.queue.is_closed()
        {
            return Some(new);
        }
        let closed = current.replace(new);
        // The mutex is released first: a job in the old queue may submit another job when it is dropped.
        drop(current);
        drop(closed);
        None
    }

    fn lock(&self) -> MutexGuard<'_, Option<Dispatcher>> {
        let dispatcher = self.dispatcher.lock();
        dispatcher.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The future of a job's output. Dropping it drops the job.
#[must_use = "the job is dropped with this"]
pub(crate) struct Running<T> {
    /// `None` once the output was received.
    received: Option<oneshot::Receiver<T>>,
    /// Why the job was not submitted, until a poll has returned the reason.
    refused: Option<Stopped>,
    process: u32,
    was_polled: bool,
}

impl<T> Running<T> {
    /// Whether the job is one of a parent of this process.
    fn is_forked(&self) -> bool {
        self.process != process::id()
    }
}

impl<T> Future for Running<T> {
    type Output = Result<T, Stopped>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let is_first = !mem::replace(&mut self.was_polled, true);
        // Not at the first poll: a caller that retries without a delay would never give its executor a turn.
        if self.refused.is_some() && is_first {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(refused) = self.refused.take() {
            return Poll::Ready(Err(refused));
        }
        // The first poll follows the submission at once, in the same process. Later polls may be in a child. The check
        // is a system call, so the first poll saves it.
        if !is_first && self.is_forked() {
            return Poll::Ready(Err(Stopped::Forked));
        }
        let Some(received) = &mut self.received else {
            return Poll::Ready(Err(Stopped::RuntimeEnded));
        };
        let output = task::ready!(received.poll_unpin(cx));
        self.received = None;
        Poll::Ready(output.map_err(|_| Stopped::RuntimeEnded))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        // The job runs in the parent. Dropping the receiver would wake a task of the parent, and for that take a mutex
        // that a thread of the parent may have held at the fork.
        if self.received.is_some() && self.is_forked() {
            forget(self.received.take());
        }
    }
}

impl Named {
    pub(crate) fn new(handle: Handle) -> Self {
        Self {
            handle,
            process: process::id(),
            has_drivers: OnceLock::new(),
        }
    }

    fn runtime(&self) -> Result<Handle, Stopped> {
        // The child has a copy of the runtime, but not its threads, so nothing would ever run there.
        if self.process != process::id() {
            return Err(Stopped::Forked);
        }
        if *self.has_drivers.get_or_init(|| has_drivers(&self.handle)) {
            Ok(self.handle.clone())
        } else {
            Err(Stopped::NoDrivers)
        }
    }
}

/// Whether sockets and timers work on a runtime. Tokio only shows this by a panic where they do not.
fn has_drivers(runtime: &Handle) -> bool {
    // Bound before the check. If that fails, for want of descriptors, the I/O driver is taken to work: the first
    // connect will then fail with an error that says why.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let _entered = runtime.enter();
    let timers = catch_unwind(|| drop(sleep(Duration::ZERO)));
    let socket = AssertUnwindSafe(|| drop(socket.and_then(tokio::net::UdpSocket::from_std)));
    let sockets = catch_unwind(socket);
    timers.is_ok() && sockets.is_ok()
}

impl Home {
    fn runtime(&self) -> Result<Handle, Stopped> {
        match self {
            Self::Thread => thread().map_err(|error| Stopped::NoThread(Arc::new(error))),
            Self::Runtime(named) => named.runtime(),
            #[cfg(any(test, feature = "test-util"))]
            Self::Current => Handle::try_current().map_err(|_| Stopped::NotOnTokio),
        }
    }
}

/// The runtime of the thread `redlock`, which lives as long as the process.
fn thread() -> io::Result<Handle> {
    static THREAD: PerProcess<Thread> = PerProcess::new();

    // Made first and started second: of two threads that make a runtime at once, only the one whose runtime is kept
    // starts a thread.
    THREAD.get_or_try_init(Thread::new)?.start()
}

/// The thread `redlock` and its runtime.
struct Thread {
    handle: Handle,
    /// `None` once the thread has been started.
    runtime: Mutex<Option<Runtime>>,
}

impl Thread {
    fn new() -> io::Result<Self> {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().thread_name(NAME);
        // Tokio panics if there are no descriptors left for the signals that it also handles. A panic in the caller's
        // `lock` would be worse than an error.
        let runtime = catch_unwind(AssertUnwindSafe(|| runtime.build()));
        let runtime = runtime.map_err(|_| io::Error::other("its runtime cannot be built"))??;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
        })
    }

    /// Starts the thread, unless it runs already.
    fn start(&self) -> io::Result<Handle> {
        let mut waiting = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = waiting.take() {
            // Shared with the closure, so that the runtime is still here if the thread cannot be started. This handle
            // is never the last one otherwise, as the thread never ends: a runtime must not be dropped within another.
            let runtime = Arc::new(runtime);
            let run = Arc::clone(&runtime);
            let run = move || run.block_on(pending::<()>());
            let started = thread::Builder::new().name(NAME.into()).spawn(run);
            if let Err(error) = started {
                // The failed spawn has dropped the closure, so this is the only handle. The next job tries again.
                *waiting = Arc::into_inner(runtime);
                return Err(error);
            }
        }
        Ok(self.handle.clone())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Another thread made its runtime first, so this one was never started. The caller may be inside a runtime,
        // where the drop of a runtime panics. A shutdown in the background does not.
        let runtime = self
            .runtime
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Polls all jobs. Ends when there are no jobs left and all senders of the queue are gone.
async fn dispatch(task: Arc<OnceLock<Id>>, mut queue: mpsc::UnboundedReceiver<MakeJob>) {
    let _ = task.set(id());
    let mut jobs = FuturesUnordered::new();
    let mut arrived = Vec::with_capacity(JOBS_PER_TURN);
    let mut timer_ahead = pin!(sleep(Duration::ZERO));
    poll_fn(|cx| {
        let mut begun = 0;
        while begun < JOBS_PER_TURN {
            // All jobs that have arrived start before this task returns to the scheduler, and only then do connections
            // write. So their commands share a write.
            let taken = queue.poll_recv_many(cx, &mut arrived, JOBS_PER_TURN);
            // Reset only after it has elapsed: a reset per job would be a system call per job.
            if matches!(taken, Poll::Ready(1..)) && timer_ahead.is_elapsed() {
                timer_ahead.as_mut().reset(Instant::now() + TIMER_AHEAD);
            }
            let _ = timer_ahead.as_mut().poll(cx);
            begun += arrived.len();
            // In the order of the queue, behind jobs that were woken before. `begin` and `shutdown` rely on this order.
            jobs.extend(arrived.drain(..).map(|make| make()));
            let mut ended = 0;
            while let Poll::Ready(Some(())) = jobs.poll_next_unpin(cx) {
                ended += 1;
                // Every ended job may have woken a caller, and that caller may submit the next job: give the others a
                // turn.
                if ended == JOBS_PER_TURN {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            match taken {
                Poll::Ready(0) if jobs.is_empty() => return Poll::Ready(()),
                Poll::Ready(0) | Poll::Pending => return Poll::Pending,
                // More jobs may have arrived.
                Poll::Ready(_) => {}
            }
        }
        // The limit was reached while jobs still arrived. The last `poll_recv_many` was ready, so it has registered no
        // waker: this task must wake itself.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Ends when every other task of this runtime has had several turns, with what has arrived from the network by now.
///
/// On the thread, which runs one task at a time, the connections have then written all commands that jobs have sent so
/// far.
async fn others_have_run() {
    // A task that yields is woken when no other task can run, or after some dozens of turns of other tasks. By then
    // each connection has had a turn, in which it writes all commands that were sent before, up to some dozens of
    // pipelines. The commands of one turn of the dispatcher need at most two turns of a connection. The other two
    // yields are a margin for a busy thread.
    for _ in 0..4 {
        yield_now().await;
    }
}

/// A task that is woken so much later than it asked for shows that this process, or its runtime, was stalled.
pub(crate) const STALL: Duration = Duration::from_millis(20);

/// How many stalls in a row do not count. A process that is stalled all the time must notice a peer that hangs, too.
pub(crate) const MAX_STALLS: u32 = 4;

/// Like Tokio's `timeout`, for a peer whose answer is waited for: when this process was stalled, the time begins anew.
pub(crate) async fn timeout_without_stalls<T>(
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..=MAX_STALLS {
        let deadline = Instant::now() + limit;
        if let Ok(output) = timeout_at(deadline, &mut future).await {
            return Some(output);
        }
        if Instant::now() <= deadline + STALL {
            break;
        }
    }
    None
}

/// Ends when what had arrived from the network has been read. So a stall of this process is not taken for a silence of its
/// peer.
pub(crate) async fn arrived_is_read() {
    others_have_run().await;
    if Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread {
        // The task that reads may wait for a thread that runs the caller's code.
        sleep(Duration::from_millis(10)).await;
    }
}

/// Makes a job whose panic ends this job and no other.
fn guarded(job: impl Future<Output = ()> + Send + 'static) -> Job {
    AssertUnwindSafe(job).catch_unwind().map(drop).boxed()
}

/// Polls a job until it has its output, or until the receiver is dropped. Then polls the rest to its end.
async fn while_wanted<T, R: Future<Output = ()>>(
    mut job: BoxFuture<'static, (T, R)>,
    mut wanted: oneshot::Sender<T>,
) {
    let ended = poll_fn(|cx| {
        // Checked before the job is polled, so a job whose caller has gone before its start sends nothing.
        if wanted.poll_closed(cx).is_ready() {
            return Poll::Ready(None);
        }
        job.poll_unpin(cx).map(Some)
    });
    let ended = ended.await;
    // Before the caller continues: the caller may rely on the job's claims and handles being dropped by then.
    drop(job);
    if let Some((output, rest)) = ended {
        // If the receiver was dropped just now, this drops the output. A guard in it is then released.
        drop(wanted.send(output));
        rest.await;
    }
}
