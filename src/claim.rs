//! A claim to a resource: one random value, the keys that it may have left on masters, and the moment until which
//! it is good. Armed before the first request leaves; dropped, it is released. There is no other way to let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock::Moment;
use crate::error::{Ballots, ExtendError, Vote, name};
use crate::master::Request;
use crate::masters::Round;
use crate::quorum::Verdict;
use crate::release::{Release, Task};
use crate::shared::Shared;
use crate::trail::Trail;
use crate::validity::Ttl;
use crate::value::Value;

pub(crate) struct Claim {
    shared: Arc<Shared>,
    key: Arc<[u8]>,
    value: Value,
    trail: Arc<Trail>,
    /// A [`Moment`], in nanoseconds; 0 as long as nothing is granted.
    valid_until: AtomicU64,
    /// The longest ttl that was asked for, in milliseconds.
    longest_ttl: AtomicU64,
    runtime: Handle,
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Taken,
    Unreachable,
    TooLate,
}

impl Claim {
    pub(crate) fn new(shared: &Arc<Shared>, key: &Arc<[u8]>, runtime: Handle) -> Self {
        Self {
            shared: Arc::clone(shared),
            key: Arc::clone(key),
            value: Value::random(&mut rand::rng()),
            trail: Trail::new(shared.masters.count()),
            valid_until: AtomicU64::new(0),
            longest_ttl: AtomicU64::new(0),
            runtime,
        }
    }

    pub(crate) fn resource(&self) -> &[u8] {
        &self.key[self.shared.key_prefix.len()..]
    }

    pub(crate) fn value(&self) -> &str {
        self.value.as_str()
    }

    /// How long the claim is good from now on.
    pub(crate) fn validity(&self) -> Duration {
        let valid_until = Moment::from_nanos(self.valid_until.load(Ordering::Acquire));
        self.shared.clock.now().until(valid_until)
    }

    /// One attempt: asks all masters to set the key.
    pub(crate) async fn acquire(&self, ttl: Ttl) -> Result<(), (Failure, Ballots)> {
        let clock = self.shared.clock;
        let start = clock.now();
        let valid_until = ttl.valid_until(start);
        let request = Request::acquire(&self.key, self.value, ttl);
        let (verdict, round) = self.ask(&request, ttl, start.until(valid_until)).await;
        if verdict == Verdict::Carried && clock.now() < valid_until {
            self.valid_until
                .store(valid_until.as_nanos(), Ordering::Release);
            self.leave(round);
            return Ok(());
        }
        let ballots = round.ballots();
        let failure = if verdict == Verdict::Carried {
            Failure::TooLate
        } else if ballots.is_quorum(|vote| !matches!(vote, Vote::Failed(_))) {
            Failure::Taken
        } else {
            Failure::Unreachable
        };
        Err((failure, ballots))
    }

    /// Asks all masters to lengthen the key, or to set it again where it is missing.
    pub(crate) async fn extend(&self, ttl: Duration) -> Result<(), ExtendError> {
        let Shared { clock, drift, .. } = &*self.shared;
        let ttl = Ttl::new(ttl, *drift)?;
        let start = clock.now();
        let left = self.validity();
        if left.is_zero() {
            return Err(self.expired());
        }
        let request = Request::extend(&self.key, self.value, ttl);
        let (verdict, round) = self.ask(&request, ttl, left).await;
        // What is left of the old validity decides, whatever the masters say.
        if self.validity().is_zero() {
            return Err(self.expired());
        }
        if verdict == Verdict::Carried {
            self.valid_until
                .fetch_max(ttl.valid_until(start).as_nanos(), Ordering::AcqRel);
            self.leave(round);
            return Ok(());
        }
        let ballots = round.ballots();
        self.leave(round);
        let resource = name(self.resource());
        if ballots.is_quorum(|vote| matches!(vote, Vote::Refused | Vote::Recreated)) {
            Err(ExtendError::Lost { resource, ballots })
        } else {
            Err(ExtendError::Unconfirmed { resource, ballots })
        }
    }

    /// Lets go of the claim: hands a compare-and-delete to every master that may hold the key. `None` if that
    /// has been done before, or there is nothing to undo.
    pub(crate) fn release(&self) -> Option<Release> {
        let held = self.trail.shut()?;
        if !held.contains(&true) {
            return None;
        }
        let Shared {
            masters,
            releases,
            request_timeout,
            drift,
            clock,
            ..
        } = &*self.shared;
        let ttl = Duration::from_millis(self.longest_ttl.load(Ordering::Relaxed));
        let task = Task {
            masters: masters.clone(),
            request: Request::release(&self.key, self.value),
            held,
            gone: clock.now().after(ttl).after(drift.over(ttl)),
            clock: *clock,
            patience: *request_timeout,
            runtime: self.runtime.clone(),
            resource: self.resource().into(),
        };
        Some(Release::begin(task, releases))
    }

    /// Lets go of the claim, and leaves the keys where they are.
    pub(crate) fn leak(&self) {
        self.trail.shut();
    }

    /// Asks all masters, and waits until the outcome is certain; at most for the request timeout, and no longer
    /// than it is of use.
    async fn ask(&self, request: &Request, ttl: Ttl, of_use: Duration) -> (Verdict, Round) {
        let Shared {
            masters,
            request_timeout,
            ..
        } = &*self.shared;
        self.longest_ttl.fetch_max(ttl.millis(), Ordering::Relaxed);
        let mut round = masters.ask(request, &self.trail, *request_timeout);
        let verdict = round.decided(of_use.min(*request_timeout)).await;
        (verdict, round)
    }

    /// Sees to the end of a round whose outcome is known, so that the slower masters get the request too.
    fn leave(&self, mut round: Round) {
        if !round.has_ended() {
            let request_timeout = self.shared.request_timeout;
            self.runtime
                .spawn(async move { round.ended(request_timeout).await });
        }
    }

    fn expired(&self) -> ExtendError {
        let resource = name(self.resource());
        ExtendError::Expired { resource }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A release that nobody waits for goes on in the background.
        drop(self.release());
    }
}
