//! What happened in a simulation, and whether it may.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use tokio_redlock::LockGuard;
use tokio_redlock::testing::{Master, Masters};

/// The fastest that a master's clock runs within the assumptions: the default drift factor.
pub(crate) const FASTEST: f64 = 1.01;

/// What all clients and the faults write into.
#[derive(Clone)]
pub(crate) struct History(Arc<Mutex<Inner>>);

struct Inner {
    start: Instant,
    masters: Masters,
    events: Vec<(Duration, String)>,
    detailed: bool,
    holders: Vec<Holder>,
    counts: Counts,
    violation: Option<String>,
}

/// A guard that somebody has.
struct Holder {
    guard: Weak<LockGuard>,
    client: usize,
}

/// How much has happened, so that a simulation in which nothing does is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) granted: u64,
    pub(crate) denied: u64,
    pub(crate) extended: u64,
    pub(crate) lost: u64,
    pub(crate) leaked: u64,
    pub(crate) cancelled: u64,
    pub(crate) faults: u64,
}

impl History {
    /// Begins now. Only a detailed one keeps what it will print.
    pub(crate) fn new(masters: &Masters, detailed: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            start: Instant::now(),
            masters: masters.clone(),
            events: Vec::new(),
            detailed,
            holders: Vec::new(),
            counts: Counts::default(),
            violation: None,
        })))
    }

    pub(crate) fn note(&self, count: impl FnOnce(&mut Counts), event: impl FnOnce() -> String) {
        let mut inner = self.lock();
        count(&mut inner.counts);
        inner.note(event);
    }

    /// A lock is granted: nobody else may hold it, and the masters must give as much.
    pub(crate) fn granted(&self, client: usize, guard: &Arc<LockGuard>) {
        let mut inner = self.lock();
        inner.counts.granted += 1;
        inner.note(|| format!("{client} granted {guard:?}"));
        inner.check_exclusion(client, guard);
        inner.check_validity(guard);
        let guard = Arc::downgrade(guard);
        inner.holders.push(Holder { guard, client });
    }

    /// A lock is extended that had been good until then, if only this extends it.
    pub(crate) fn extended(
        &self,
        client: usize,
        guard: &Arc<LockGuard>,
        valid_until: Option<Instant>,
    ) {
        let mut inner = self.lock();
        inner.counts.extended += 1;
        inner.note(|| format!("{client} extended {guard:?}"));
        if valid_until.is_some_and(|end| end < Instant::now()) {
            inner.violate("a lock that was over came back");
        }
        inner.check_exclusion(client, guard);
        inner.check_validity(guard);
    }

    /// A client gives its lock up, or has found it lost.
    pub(crate) fn ended(&self, client: usize, guard: &Arc<LockGuard>, how: &str) {
        let mut inner = self.lock();
        inner.note(|| format!("{client} {how} {guard:?}"));
        let ended = Arc::downgrade(guard);
        inner.holders.retain(|holder| !holder.guard.ptr_eq(&ended));
    }

    pub(crate) fn violate(&self, what: &str) {
        self.lock().violate(what);
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// All that happened, one event a line.
    pub(crate) fn text(&self) -> String {
        let inner = self.lock();
        inner.events.iter().fold(String::new(), |mut text, event| {
            let (at, event) = event;
            let _ = writeln!(text, "{:>10.3} ms  {event}", at.as_secs_f64() * 1000.0);
            text
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note(&mut self, event: impl FnOnce() -> String) {
        if self.detailed {
            self.events.push((self.start.elapsed(), event()));
        }
    }

    /// The first one counts.
    fn violate(&mut self, what: &str) {
        self.note(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert_with(|| what.to_owned());
    }

    /// No two holders overlap, unless one is valid when the other is granted.
    fn check_exclusion(&mut self, client: usize, guard: &Arc<LockGuard>) {
        let this = Arc::downgrade(guard);
        let others = self.holders.iter();
        let other = others
            .filter(|holder| !holder.guard.ptr_eq(&this))
            .find(|holder| {
                let other = holder.guard.upgrade();
                other.is_some_and(|other| other.resource() == guard.resource() && other.is_valid())
            });
        if let Some(other) = other {
            let what = format!("two holders: {} and {client}", other.client);
            self.violate(&what);
        }
    }

    /// On a quorum the key lives for at least as long as the holder may trust it.
    fn check_validity(&mut self, guard: &LockGuard) {
        let (resource, value) = (guard.resource(), guard.value().as_bytes());
        let masters = self.masters.iter();
        let mut given: Vec<_> = masters
            .map(|master| lifetime(master, resource, value))
            .collect();
        given.sort_unstable();
        // The quorum-th from above.
        let given = given[given.len() - (given.len() / 2 + 1)];
        let validity = guard.validity();
        if validity > given {
            self.violate(&format!(
                "valid for {validity:?}, the masters give {given:?}"
            ));
        }
    }
}

/// How long a key lives at least from now on, if it has that value: no clock runs faster than the fastest.
fn lifetime(master: &Master, key: &[u8], value: &[u8]) -> Duration {
    if master.value(key).as_deref() != Some(value) {
        return Duration::ZERO;
    }
    let left = master.expires_in(key).unwrap_or_default();
    left.div_f64(FASTEST)
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.granted += other.granted;
        self.denied += other.denied;
        self.extended += other.extended;
        self.lost += other.lost;
        self.leaked += other.leaked;
        self.cancelled += other.cancelled;
        self.faults += other.faults;
    }
}
