//! What the parent orders a worker to do, and what the worker answers: one line each.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// How long the tasks of a worker may take to end when they are stopped.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long a worker waits for releases that are not confirmed.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(15);

/// How long a worker may take to lock what it shall hold.
pub(crate) const HOLD_LIMIT: Duration = Duration::from_secs(180);

/// How much longer than its own limit a worker may take to answer: it may have a quarter of a core.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Answer with the counts.
    Look,
    /// Start so many tasks, each of which locks and releases all the time.
    Tasks(u32),
    /// Start so many locks a second, each of which is released at once.
    Pace(u32),
    /// Lock so many resources and keep the locks alive, with a ttl of so many seconds.
    Hold(u32, u32),
    /// End what `Tasks` or `Pace` has started.
    Stop,
    /// Wait until all releases are confirmed.
    Settle,
}

impl Order {
    /// The longest time until the answer.
    pub(crate) fn limit(self) -> Duration {
        let own = match self {
            Self::Look | Self::Tasks(_) | Self::Pace(_) => Duration::ZERO,
            Self::Hold(..) => HOLD_LIMIT,
            Self::Stop => STOP_LIMIT,
            Self::Settle => SETTLE_LIMIT,
        };
        own + GRACE
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        Some(match words[..] {
            ["look"] => Self::Look,
            ["tasks", tasks] => Self::Tasks(tasks.parse().ok()?),
            ["pace", rate] => Self::Pace(rate.parse().ok()?),
            ["hold", locks, ttl] => Self::Hold(locks.parse().ok()?, ttl.parse().ok()?),
            ["stop"] => Self::Stop,
            ["settle"] => Self::Settle,
            _ => return None,
        })
    }
}

impl Display for Order {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Look => write!(f, "look"),
            Self::Tasks(tasks) => write!(f, "tasks {tasks}"),
            Self::Pace(rate) => write!(f, "pace {rate}"),
            Self::Hold(locks, ttl) => write!(f, "hold {locks} {ttl}"),
            Self::Stop => write!(f, "stop"),
            Self::Settle => write!(f, "settle"),
        }
    }
}

/// What a worker has done since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Since the start of the worker.
    pub(crate) at: Duration,
    /// Processor time of the worker.
    pub(crate) cpu: Duration,
    pub(crate) locked: u64,
    pub(crate) not_locked: u64,
    pub(crate) released: u64,
    pub(crate) not_released: u64,
    /// Tasks that have not ended.
    pub(crate) running: u64,
    /// Locks that are kept alive, the lost ones included.
    pub(crate) held: u64,
    pub(crate) lost: u64,
    /// What the last `Settle` did not see confirmed.
    pub(crate) unconfirmed: u64,
    /// Events of level WARN and ERROR.
    pub(crate) warnings: u64,
    /// Events of level INFO and above.
    pub(crate) log_lines: u64,
}

impl Counts {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split(' ').map(|word| word.parse::<u64>().ok());
        let mut next = || numbers.next()?;
        Some(Self {
            at: Duration::from_micros(next()?),
            cpu: Duration::from_micros(next()?),
            locked: next()?,
            not_locked: next()?,
            released: next()?,
            not_released: next()?,
            running: next()?,
            held: next()?,
            lost: next()?,
            unconfirmed: next()?,
            warnings: next()?,
            log_lines: next()?,
        })
    }

    /// Locks that were released or not, as half cycles; so a cycle under way counts by half.
    pub(crate) fn cycles(&self) -> f64 {
        float(self.locked + self.released) / 2.0
    }

    pub(crate) fn failures(&self) -> u64 {
        self.not_locked + self.not_released
    }

    /// Cycles per second since an earlier look.
    pub(crate) fn rate_since(&self, earlier: &Self) -> f64 {
        (self.cycles() - earlier.cycles()) / (self.at - earlier.at).as_secs_f64()
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            at,
            cpu,
            locked,
            not_locked,
            released,
            not_released,
            running,
            held,
            lost,
            unconfirmed,
            warnings,
            log_lines,
        } = self;
        let (at, cpu) = (at.as_micros(), cpu.as_micros());
        write!(
            f,
            "{at} {cpu} {locked} {not_locked} {released} {not_released} {running} {held} {lost} {unconfirmed} \
             {warnings} {log_lines}"
        )
    }
}

/// A count for arithmetic.
pub(crate) fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).expect("far fewer"))
}
