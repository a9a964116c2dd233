//! A claim to a resource: one random value, the keys that it may have left on masters, and the lease that they
//! make. Armed before the first request leaves; dropped, it is released. There is no other way to let go.

use std::pin::pin;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock::Moment;
use crate::engine::{Engine, Stopped};
use crate::error::{ExtendError, LossReason, name};
use crate::inner::{Core, Inner};
use crate::master::Request;
use crate::masters::{Round, is_quorum};
use crate::permit::{Deletes, DirtyMasters};
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::Outcome;
use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;
use crate::random::Random;
use crate::release::{Deletion, Release};
use crate::vote::{Ballots, MasterError, Vote};

/// Timers stop while the machine is suspended, the clock does not: whoever waits for a deadline looks at least
/// this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

pub(crate) struct Claim {
    inner: Arc<Inner>,
    core: Arc<Core>,
    key: Key,
    value: Value,
    dirty: Arc<DirtyMasters>,
    lease: Mutex<Lease>,
    /// Wakes those who wait for the loss when it comes before the deadline.
    lost_early: Notify,
    /// The longest ttl that was asked for, in milliseconds.
    longest_ttl: AtomicU64,
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Taken,
    Unreachable,
    TooLate,
}

/// A quorum has confirmed an extension. It counts once the one who asked for it [confirms](Claim::confirm) it: when the
/// caller is gone by then, the claim stays as it was.
pub(crate) struct Extended {
    valid_until: Moment,
}

impl Claim {
    pub(crate) fn new(inner: &Arc<Inner>, core: &Arc<Core>, key: &Key, value: Value) -> Self {
        Self {
            dirty: DirtyMasters::new(core.masters.count()),
            inner: Arc::clone(inner),
            core: Arc::clone(core),
            key: key.clone(),
            value,
            lease: Mutex::new(Lease::new()),
            lost_early: Notify::new(),
            longest_ttl: AtomicU64::new(0),
        }
    }

    /// A claim that another process made, good until then. Dropped before it is [adopted](Self::adopt), it
    /// stays as it was.
    pub(crate) fn of_another(
        inner: &Arc<Inner>,
        key: &Key,
        value: Value,
        valid_until: Moment,
    ) -> Self {
        let mut claim = Self::new(inner, inner.core(), key, value);
        claim.dirty = DirtyMasters::of_another(claim.core.masters.count());
        claim.lease().grant(valid_until);
        let left = claim.now().until(valid_until).as_millis();
        claim.longest_ttl = AtomicU64::new(u64::try_from(left).unwrap_or(u64::MAX));
        claim
    }

    pub(crate) fn resource(&self) -> &[u8] {
        self.key.resource()
    }

    pub(crate) fn value(&self) -> &str {
        self.value.as_str()
    }

    pub(crate) fn random(&self) -> &Random {
        &self.inner.random
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.core.engine
    }

    /// Whether this process is a child of the one that the claim belongs to.
    pub(crate) fn is_forked(&self) -> bool {
        self.core.engine.is_forked()
    }

    /// How long the claim is good from now on, or how it was lost.
    pub(crate) fn remaining(&self) -> Result<Duration, LossReason> {
        // Before the lock, which a thread of the parent may have taken.
        if self.is_forked() {
            return Err(LossReason::ClientEnded);
        }
        let mut lease = self.lease();
        if self.core.engine.has_ended() {
            lease.lose(self.now(), LossReason::ClientEnded);
        }
        lease.remaining(self.now())
    }

    /// Gives the claim up for lost, unless it is lost already; returns how it was lost.
    pub(crate) fn lose(&self, reason: LossReason) -> LossReason {
        if self.is_forked() {
            return LossReason::ClientEnded;
        }
        self.lease().lose(self.now(), reason);
        self.lost_early.notify_waiters();
        self.remaining().err().unwrap_or(reason)
    }

    /// Waits until the claim is lost; at once if it is.
    pub(crate) async fn lost(&self) -> LossReason {
        loop {
            let mut early = pin!(self.lost_early.notified());
            early.as_mut().enable();
            match self.remaining() {
                Err(reason) => return reason,
                // Woken or not, the clock is asked again.
                Ok(left) => drop(timeout(left.min(LONGEST_SLEEP), early).await),
            }
        }
    }

    /// One attempt: asks all masters to set the key.
    pub(crate) async fn acquire(
        &self,
        ttl: Ttl,
        max_lifetime: Option<Duration>,
    ) -> Result<Round, (Failure, Ballots)> {
        let start = self.now();
        let valid_until = ttl.valid_until(start);
        let request = Request::acquire(&self.key, &self.value, ttl);
        let (outcome, round) = self.ask(&request, ttl, start.until(valid_until)).await;
        if outcome == Outcome::Quorum && self.now() < valid_until {
            let mut lease = self.lease();
            lease.grant(valid_until);
            if let Some(lifetime) = max_lifetime {
                lease.end_at(start.after(lifetime));
            }
            return Ok(round);
        }
        let ballots = round.ballots();
        let failure = if outcome == Outcome::Quorum {
            Failure::TooLate
        } else if is_quorum(&ballots, |vote| !matches!(vote, Vote::Failed(_))) {
            Failure::Taken
        } else {
            Failure::Unreachable
        };
        Err((failure, ballots))
    }

    /// Asks all masters to lengthen the key, or to set it again where it is missing.
    pub(crate) async fn extend(&self, ttl: Duration) -> Result<Extended, ExtendError> {
        let ttl = Ttl::new(ttl, self.inner.drift)?;
        let request = Request::extend(slice::from_ref(&self.key), &self.value, ttl);
        self.renew(ttl, request).await
    }

    /// Asks all masters to lengthen a key of another claim, which does not become ours by that alone.
    pub(crate) async fn adopt(&self, ttl: Duration) -> Result<Extended, ExtendError> {
        let ttl = Ttl::new(ttl, self.inner.drift)?;
        let request = Request::adopt(slice::from_ref(&self.key), &self.value, ttl);
        self.renew(ttl, request).await
    }

    async fn renew(&self, ttl: Ttl, request: Request) -> Result<Extended, ExtendError> {
        let start = self.now();
        let left = self
            .remaining()
            .map_err(|reason| self.lost_error(reason, Ballots::default()))?;
        let (outcome, mut round) = self.ask(&request, ttl, left).await;
        if outcome == Outcome::Quorum {
            self.finish_in_background(round);
            return Ok(Extended {
                valid_until: ttl.valid_until(start),
            });
        }
        let not_ours = |vote: &Vote| matches!(vote, Vote::Refused | Vote::Recreated);
        let ballots = round
            .reason_known(not_ours, left.min(self.inner.request_timeout))
            .await;
        self.finish_in_background(round);
        if is_quorum(&ballots, not_ours) {
            self.lose(LossReason::Taken);
        }
        Err(self.extend_error(ballots))
    }

    /// Counts an extension, unless the old validity has ended in the meantime, whatever the masters say.
    pub(crate) fn confirm(&self, extended: &Extended) -> Result<(), ExtendError> {
        self.count(extended, Lease::extend)
    }

    /// Makes the claim of another our own.
    pub(crate) fn confirm_adoption(&self, extended: &Extended) -> Result<(), ExtendError> {
        self.count(extended, Lease::adopt)?;
        self.dirty.adopted();
        Ok(())
    }

    fn count(
        &self,
        extended: &Extended,
        confirm: fn(&mut Lease, Moment, Moment) -> Result<(), LossReason>,
    ) -> Result<(), ExtendError> {
        let confirmed = confirm(&mut self.lease(), self.now(), extended.valid_until);
        confirmed.map_err(|reason| self.lost_error(reason, Ballots::default()))
    }

    fn lost_error(&self, reason: LossReason, ballots: Ballots) -> ExtendError {
        ExtendError::Lost {
            resource: name(self.resource()),
            reason,
            ballots,
        }
    }

    /// The error for an extension that failed, by whether the lock is still good.
    fn extend_error(&self, ballots: Ballots) -> ExtendError {
        match self.remaining() {
            Err(reason) => self.lost_error(reason, ballots),
            Ok(_) => ExtendError::Unconfirmed {
                resource: name(self.resource()),
                ballots,
            },
        }
    }

    /// The error for an extension that was not sent.
    pub(crate) fn not_extended(&self, stopped: &Stopped) -> ExtendError {
        let error = MasterError::NotAsked(stopped.to_string());
        self.extend_error(self.core.masters.all_failed(&error))
    }

    /// Lets go of the claim: deletes the key on every master that may hold it. `None` if that has been done before,
    /// or there is nothing to delete.
    pub(crate) fn release(&self) -> Option<Release> {
        if self.is_forked() {
            return None;
        }
        let dirty = self.dirty.close()?;
        if dirty.iter().all(Option::is_none) {
            return None;
        }
        let Inner {
            request_timeout,
            drift,
            clock,
            ..
        } = &*self.inner;
        let ttl = Duration::from_millis(self.longest_ttl.load(Ordering::Relaxed));
        let deletion = Deletion {
            request: Request::release(slice::from_ref(&self.key), &self.value),
            deletes: Deletes::new(dirty),
            gone: clock.now().after(ttl).after(drift.over(ttl)),
            clock: *clock,
            patience: *request_timeout,
            key: self.key.clone(),
        };
        let Core {
            engine,
            masters,
            releases,
        } = &*self.core;
        Some(Release::begin(deletion, releases, masters, engine))
    }

    /// Lets go of the claim, and leaves the keys where they are.
    pub(crate) fn leak(&self) {
        if !self.is_forked() {
            self.dirty.close();
        }
    }

    /// Asks all masters, and waits until the outcome is certain; at most for the request timeout, and no longer
    /// than it is of use.
    async fn ask(&self, request: &Request, ttl: Ttl, useful_for: Duration) -> (Outcome, Round) {
        let patience = self.inner.request_timeout;
        self.longest_ttl.fetch_max(ttl.millis(), Ordering::Relaxed);
        let mut round = self.core.masters.ask(request, &self.dirty, patience);
        let outcome = round.decided(useful_for.min(patience)).await;
        (outcome, round)
    }

    /// Sees to the end of a round whose outcome is known.
    fn finish_in_background(&self, round: Round) {
        if !round.has_ended() {
            self.engine()
                .spawn(round.finish(self.inner.request_timeout));
        }
    }

    fn now(&self) -> Moment {
        self.inner.clock.now()
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A release that nobody waits for goes on in the background.
        drop(self.release());
    }
}
