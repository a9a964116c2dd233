//! Where connections and background tasks run: the thread of this process, or a runtime that the caller named. Knows
//! no master.
//!
//! A caller hands a job over and awaits its output on whatever executor it runs on, so it does not matter whose
//! runtime ends, idles or is blocked. One task, the dispatcher, polls all jobs of a client. It begins every job that
//! has arrived before a connection gets its turn to write, so the commands of many jobs share one write.

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
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, coop::unconstrained, id, try_id, yield_now};
use tokio::time::{Instant, sleep};

use self::linger::Grace;
use crate::per_process::PerProcess;

/// Of the thread, and of those that look up names for it.
const NAME: &str = "redlock";

/// How many jobs the dispatcher begins, and ends, before connections and timers get their turn. Without a limit,
/// callers whose jobs end at once could keep it busy for ever.
const JOBS_PER_TURN: usize = 64;

/// Which runtime an engine uses.
#[derive(Clone, Debug, Default)]
pub(crate) enum Home {
    /// That of the thread `redlock`, which all clients of this process share.
    #[default]
    Thread,
    /// The one that the caller named.
    Runtime(Named),
    /// Whichever is the current one when there is something to run: for masters in memory, which go by its clock.
    #[cfg(any(test, feature = "test-util"))]
    Current,
}

/// A runtime that the caller named.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    handle: Handle,
    /// The process that has it.
    process: u32,
    /// Whether sockets and timers work there; looked at once.
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

/// While jobs arrive, a timer of the dispatcher is set for at most so long ahead. Tokio makes a system call for each new
/// timer that is earlier than all others. The timers of jobs are later than this one, so they make none.
const BEAT: Duration = Duration::from_millis(50);

type Job = BoxFuture<'static, ()>;

/// A job that is made by the dispatcher. So its memory is taken and given back on one thread, and less of it crosses.
type MakeJob = Box<dyn FnOnce() -> Job + Send>;

/// The background of one client.
pub(crate) struct Engine {
    home: Home,
    process: u32,
    dispatcher: Mutex<Option<Dispatcher>>,
}

/// The way to the task that polls the jobs.
struct Dispatcher {
    queue: mpsc::UnboundedSender<MakeJob>,
    task: Arc<OnceLock<Id>>,
}

impl Engine {
    /// Starts nothing before the first job.
    pub(crate) fn new(home: Home) -> Self {
        Self {
            home,
            process: process::id(),
            dispatcher: Mutex::new(None),
        }
    }

    /// Whether this process is a child of the one that the engine belongs to. Its tasks are not here, and one of them
    /// may have had a lock at the moment of the fork.
    pub(crate) fn is_forked(&self) -> bool {
        self.process != process::id()
    }

    /// Whether there has been a job.
    pub(crate) fn has_started(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the runtime that the caller named has shut down.
    pub(crate) fn has_ended(&self) -> bool {
        let may_end = matches!(self.home, Home::Runtime(_));
        may_end && self.lock().as_ref().is_some_and(|it| it.queue.is_closed())
    }

    /// Whether the caller is a job of this engine.
    pub(crate) fn is_current(&self) -> bool {
        let Some(task) = try_id() else {
            return false;
        };
        let dispatcher = self.lock();
        let dispatcher = dispatcher.as_ref();
        dispatcher.is_some_and(|dispatcher| dispatcher.task.get() == Some(&task))
    }

    /// Runs a job to its end, whether or not somebody waits. Where there is no engine any more, the job is dropped.
    pub(crate) fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        let _ = self.submit(Box::new(move || guarded(job)));
    }

    /// [Spawns](Self::spawn) a job whose commands come before those of every job that is submitted later.
    ///
    /// That is so by the order of the queue, except for a job that another job begins: that one is polled once here and
    /// now, since the queue may hold others already.
    pub(crate) fn begin(&self, job: impl Future<Output = ()> + Send + 'static) {
        if !self.is_current() {
            return self.spawn(job);
        }
        let mut job = guarded(job);
        // The dispatcher polls it again, with a waker that counts.
        let now = job.poll_unpin(&mut Context::from_waker(Waker::noop()));
        if now.is_pending() {
            let _ = self.submit(Box::new(move || job));
        }
    }

    /// Runs a job for a caller. When the caller drops the future, the job is dropped.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl Future<Output = T> + Send + 'static,
    ) -> Running<T> {
        self.run_with_rest(move || job.map(|output| (output, ready(()))))
    }

    /// Makes a job and [runs](Self::run) it, and then what the job leaves to do when its caller has the output.
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
        let job = move || guarded(async move { while_wanted(make().boxed(), output).await });
        let refused = self.submit(Box::new(job));
        Running {
            received: Some(received),
            refused: refused.err(),
            process: self.process,
            was_polled: false,
        }
    }

    /// Keeps the runtime of the caller from ending before all that was handed to this engine is written to the
    /// connections there are. Where there is no runtime, waits for that.
    pub(crate) fn linger(&self) {
        let outlives_caller = matches!(self.home, Home::Thread) && !self.is_forked();
        if outlives_caller && self.has_started() && !self.is_current() {
            static GRACE: PerProcess<Grace> = PerProcess::new();
            let grace = GRACE.get_or_init(Grace::default);
            let (renewed, (done, is_written)) = (grace.clone(), oneshot::channel());
            // Not dropped with the one who waits: only a job that has ended shows that the engine gets things done.
            self.spawn(async move {
                written().await;
                renewed.renew();
                let _ = done.send(());
            });
            grace.wait_for(is_written, self.process);
        }
    }

    fn submit(&self, job: MakeJob) -> Result<(), Stopped> {
        if self.is_forked() {
            // What it owns is the parent's.
            forget(job);
            return Err(Stopped::Forked);
        }
        let Some(job) = self.enqueue(job) else {
            return Ok(());
        };
        // No job yet, or the runtime of the dispatcher has shut down.
        let runtime = self.home.runtime()?;
        let (queue, jobs) = mpsc::unbounded_channel();
        let task = Arc::new(OnceLock::new());
        let dispatcher = Dispatcher {
            queue,
            task: Arc::clone(&task),
        };
        let unused = self.replace_closed(dispatcher);
        if unused.is_none() {
            // Drops the queue at once if the runtime has shut down.
            runtime.spawn(unconstrained(dispatch(task, jobs)));
        }
        match self.enqueue(job) {
            None => Ok(()),
            Some(_) => Err(Stopped::RuntimeEnded),
        }
    }

    /// Hands a job to the dispatcher; returns the job if there is none.
    fn enqueue(&self, job: MakeJob) -> Option<MakeJob> {
        let mut dispatcher = self.lock();
        let queue = match &*dispatcher {
            Some(dispatcher) => &dispatcher.queue,
            None => return Some(job),
        };
        if let Err(refused) = queue.send(job) {
            return Some(refused.0);
        }
        if queue.is_closed() {
            // The dispatcher may have emptied its queue just before. Then the job is dropped with the queue.
            let closed = dispatcher.take();
            drop(dispatcher);
            drop(closed);
        }
        None
    }

    /// Puts a dispatcher in place, unless another thread was quicker; returns the one that is not used.
    ///
    /// A replaced one is dropped here, without the lock: the jobs in its queue own what may submit jobs when dropped.
    fn replace_closed(&self, new: Dispatcher) -> Option<Dispatcher> {
        let mut current = self.lock();
        if let Some(alive) = &*current
            && !alive.queue.is_closed()
        {
            return Some(new);
        }
        let closed = current.replace(new);
        drop(current);
        drop(closed);
        None
    }

    fn lock(&self) -> MutexGuard<'_, Option<Dispatcher>> {
        let dispatcher = self.dispatcher.lock();
        dispatcher.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The output of a job, for the one who waits.
#[must_use = "the job is dropped with this"]
pub(crate) struct Running<T> {
    /// `None` once the output was received.
    received: Option<oneshot::Receiver<T>>,
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
        if self.refused.is_some() && is_first {
            // Not at once: a caller that tries again and again would keep its executor from all else.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(refused) = self.refused.take() {
            return Poll::Ready(Err(refused));
        }
        // The job was submitted just before the first poll. A look costs a system call.
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
        // The job is the parent's. Its thread is not here, and may have left a lock taken.
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
        // A child of a fork has the runtime, but not its threads.
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

/// Whether sockets and timers work on a runtime. Tokio has no other way to tell than to panic where they do not.
fn has_drivers(runtime: &Handle) -> bool {
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

    THREAD.get_or_try_init(Thread::new)?.start()
}

struct Thread {
    handle: Handle,
    /// `None` once the thread has been started.
    runtime: Mutex<Option<Runtime>>,
}

impl Thread {
    fn new() -> io::Result<Self> {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().thread_name(NAME);
        // Tokio panics where there are not enough descriptors for the signals that it also sees to.
        let runtime = catch_unwind(AssertUnwindSafe(|| runtime.build()));
        let runtime = runtime.map_err(|_| io::Error::other("its runtime cannot be built"))??;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
        })
    }

    /// Starts the thread, if that has not been done.
    fn start(&self) -> io::Result<Handle> {
        let mut waiting = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = waiting.take() {
            let runtime = Arc::new(runtime);
            let run = Arc::clone(&runtime);
            let run = move || run.block_on(pending::<()>());
            let started = thread::Builder::new().name(NAME.into()).spawn(run);
            if let Err(error) = started {
                // The next job tries again.
                *waiting = Arc::into_inner(runtime);
                return Err(error);
            }
        }
        Ok(self.handle.clone())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Another thread was quicker to make one. This may be within a runtime, where none may be dropped.
        let runtime = self
            .runtime
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Polls all jobs until there are none and no more can come.
async fn dispatch(task: Arc<OnceLock<Id>>, mut queue: mpsc::UnboundedReceiver<MakeJob>) {
    let _ = task.set(id());
    let mut jobs = FuturesUnordered::new();
    let mut arrived = Vec::with_capacity(JOBS_PER_TURN);
    let mut beat = pin!(sleep(Duration::ZERO));
    poll_fn(|cx| {
        let mut begun = 0;
        while begun < JOBS_PER_TURN {
            // Begun together, so that their commands are written together.
            let taken = queue.poll_recv_many(cx, &mut arrived, JOBS_PER_TURN);
            if matches!(taken, Poll::Ready(1..)) && beat.is_elapsed() {
                beat.as_mut().reset(Instant::now() + BEAT);
            }
            let _ = beat.as_mut().poll(cx);
            begun += arrived.len();
            jobs.extend(arrived.drain(..).map(|make| make()));
            let mut ended = 0;
            while let Poll::Ready(Some(())) = jobs.poll_next_unpin(cx) {
                ended += 1;
                if ended == JOBS_PER_TURN {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            match taken {
                Poll::Ready(0) if jobs.is_empty() => return Poll::Ready(()),
                Poll::Ready(0) | Poll::Pending => return Poll::Pending,
                // There may be more.
                Poll::Ready(_) => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Ends once the connections have written what jobs have sent so far. Only for the thread, which runs one task at a time.
///
/// A task that yields is woken when no other task can run, or after some dozens of turns of others. By then a connection
/// has had its turn, in which it writes all that was sent before, up to some dozens of pipelines. What one turn of the
/// dispatcher has sent takes two turns of a connection at most; the others are for a busy thread.
async fn written() {
    for _ in 0..4 {
        yield_now().await;
    }
}

/// A job whose panic ends this job and no other.
fn guarded(job: impl Future<Output = ()> + Send + 'static) -> Job {
    AssertUnwindSafe(job).catch_unwind().map(drop).boxed()
}

/// Polls a job until it has its output, or the receiver is dropped; then the rest, in any case.
async fn while_wanted<T, R: Future<Output = ()>>(
    mut job: BoxFuture<'static, (T, R)>,
    mut wanted: oneshot::Sender<T>,
) {
    let ended = poll_fn(|cx| {
        // First, so that a job whose caller has gone before it was begun does nothing.
        if wanted.poll_closed(cx).is_ready() {
            return Poll::Ready(None);
        }
        job.poll_unpin(cx).map(Some)
    });
    let ended = ended.await;
    // Before its caller goes on: what the job owns is gone by then.
    drop(job);
    if let Some((output, rest)) = ended {
        // Where the receiver was dropped meanwhile, the output is dropped here.
        drop(wanted.send(output));
        rest.await;
    }
}
