//! A worker process, as the parent sees it.

use std::env;
use std::fmt::{self, Display, Formatter};
use std::io::{BufRead, BufReader, Write};
use std::process::{self, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::cpu_limit::CpuLimit;
use crate::library::Library;
use crate::order::{Counts, Order};
use crate::usage::Usage;
use crate::worker;

/// How long a worker may take until it has connected and warmed up.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to end by itself, before it is killed.
const END_LIMIT: Duration = Duration::from_secs(3);

/// A process that ends with its handle.
pub(crate) struct Child {
    process: process::Child,
    /// `None` once it was asked to end.
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
    limit: Option<CpuLimit>,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Collapse {
    /// None came within so long.
    Silent(String, Duration),
    /// The process ended.
    Died(String),
}

impl Child {
    /// Starts a worker, and waits until it is ready.
    pub(crate) fn start(library: Library, urls: &[String]) -> Result<Self, Collapse> {
        let mut process = Command::new(env::current_exe().expect("this program has a path"))
            .args([worker::ROLE, library.name()])
            .args(urls)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let stdout = process.stdout.take().expect("piped");
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let child = Self {
            orders: process.stdin.take(),
            process,
            answers,
            limit: None,
        };
        child.answer("start", READY_LIMIT)?;
        Ok(child)
    }

    /// Gives the worker a quarter of a core from now on; returns by what means.
    pub(crate) fn limit_cpu(&mut self) -> &'static str {
        let limit = CpuLimit::new(Pid::from_child(&self.process));
        self.limit.insert(limit).kind()
    }

    /// Has an order carried out, and returns the counts after it.
    pub(crate) fn order(&mut self, order: Order) -> Result<Counts, Collapse> {
        if let Some(orders) = &mut self.orders {
            // A worker that has ended is noticed below.
            let _ = writeln!(orders, "{order}");
        }
        self.answer(&order.to_string(), order.limit())
    }

    pub(crate) fn look(&mut self) -> Result<Counts, Collapse> {
        self.order(Order::Look)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.process.id()).unwrap_or_default()
    }

    fn answer(&self, order: &str, limit: Duration) -> Result<Counts, Collapse> {
        let line = self
            .answers
            .recv_timeout(limit)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => Collapse::Silent(order.to_owned(), limit),
                RecvTimeoutError::Disconnected => Collapse::Died(order.to_owned()),
            })?;
        Ok(Counts::parse(&line).expect("workers answer with counts"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(limit) = &mut self.limit {
            limit.lift();
        }
        drop(self.orders.take());
        let deadline = Instant::now() + END_LIMIT;
        while let Ok(None) = self.process.try_wait()
            && Instant::now() < deadline
        {
            sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Display for Collapse {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(order, limit) => {
                write!(f, "collapsed: no answer to \"{order}\" within {limit:?}")
            }
            Self::Died(order) => write!(f, "died at \"{order}\""),
        }
    }
}

/// Has this process killed when its parent ends, in whatever way.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn end_with_parent() {
    use rustix::process::{Signal, set_parent_process_death_signal};

    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn end_with_parent() {}
