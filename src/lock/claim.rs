//! A claim to a resource: one random value, the keys that it may have left on masters, and the lease that the masters
//! gave. A claim exists before the first request is sent. Every way to give a claim up is a release or a leak; a
//! dropped claim is released.

use std::pin::pin;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock::Moment;
use crate::engine::{Engine, Stopped};
use crate::error::{ExtendError, LossReason, name};
use crate::inner::{Core, Inner};
use crate::master::Request;
use crate::masters::{Round, is_quorum};
use crate::permit::DirtyMasters;
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::Outcome;
use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;
use crate::random::Random;
use crate::release::{Deletion, Release};
use crate::sync::lock;
use crate::vote::{Ballots, MasterError, Vote};

/// Timers stop while the machine is suspended, but the clock does not. So a task that waits for a deadline reads the
/// clock at least this often. After a resume it then notices a loss within 1 s, at the cost of one wake-up a second.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Shared by the guard, its renewals and the requests under way. All of its methods take `&self`.
pub(crate) struct Claim {
    inner: Arc<Inner>,
    core: Arc<Core>,
    key: Key,
    value: Value,
    /// The masters that may hold the key. Closed by a release or a leak: after that no request with this value is sent.
    dirty: Arc<DirtyMasters>,
    /// Never locked across an await.
    lease: Mutex<Lease>,
    /// Notified when the claim is lost before its deadline.
    lost_early: Notify,
    /// The longest ttl that was requested, in milliseconds: no key of this claim can live longer.
    longest_ttl: AtomicU64,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The attempt was not made: it waited in line for too long.
    #[default]
    NotAdmitted,
    Taken,
    Unreachable,
    TooLate,
}

/// An extension that a quorum has confirmed. It counts only when the caller [confirms](Claim::confirm) it. If the
/// caller has gone by then, the claim keeps its old validity.
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

    /// A claim that another process made, valid until the given moment. If it is dropped before it is
    /// [adopted](Self::confirm_adoption), it deletes nothing.
    pub(crate) fn of_another(
        inner: &Arc<Inner>,
        key: &Key,
        value: Value,
        valid_until: Moment,
    ) -> Self {
        let mut claim = Self::new(inner, inner.core(), key, value);
        claim.dirty = DirtyMasters::of_another(claim.core.masters.count());
        claim.lease().grant(valid_until);
        // The keys live at least as long as the validity that was handed over. This process does not know their ttl.
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

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.core.engine
    }

    /// Whether this process is a child of the process that made the claim.
    pub(crate) fn is_forked(&self) -> bool {
        self.core.engine.is_forked()
    }

    /// How long the claim is valid from now on, or why it is lost.
    pub(crate) fn remaining(&self) -> Result<Duration, LossReason> {
        // Before the mutex, which a thread of the parent may have held at the fork. The lock stays with the parent.
        if self.is_forked() {
            return Err(LossReason::ClientEnded);
        }
        let mut lease = self.lease();
        // Nobody can extend the claim any more, and nobody can announce its loss. No task could notice the end of its
        // own runtime, so every look asks. The engine's mutex is taken inside the lease's, never the other way round.
        if self.core.engine.has_ended() {
            lease.lose(self.now(), LossReason::ClientEnded);
        }
        lease.remaining(self.now())
    }

    /// Marks the claim as lost, unless it is lost already. Returns why it is lost.
    pub(crate) fn lose(&self, reason: LossReason) -> LossReason {
        if self.is_forked() {
            // Neither the mutex nor the waiters of the parent may be touched.
            return LossReason::ClientEnded;
        }
        self.lease().lose(self.now(), reason);
        // After the mutex is released, so that a woken task finds the mutex free and the loss set.
        self.lost_early.notify_waiters();
        // The lease may have been lost earlier for another reason, and keeps that reason.
        self.remaining().err().unwrap_or(reason)
    }

    /// Waits until the claim is lost. Returns at once if it is lost already.
    pub(crate) async fn lost(&self) -> LossReason {
        loop {
            // Enabled before the look: a loss in between would otherwise notify nobody.
            let mut early = pin!(self.lost_early.notified());
            early.as_mut().enable();
            match self.remaining() {
                Err(reason) => return reason,
                // Whatever ends the wait, the clock decides in the next round of the loop.
                Ok(left) => drop(timeout(left.min(LONGEST_SLEEP), early).await),
            }
        }
    }

    /// Makes one attempt: asks all masters to set the key, and waits for the outcome for at most `wait`.
    pub(crate) async fn acquire(
        &self,
        ttl: Ttl,
        max_lifetime: Option<Duration>,
        wait: Duration,
    ) -> Result<Round, (Failure, Round)> {
        // Read before anything is sent: each master starts its ttl after this moment, so no key expires before the ttl
        // has passed since then.
        let start = self.now();
        let valid_until = ttl.valid_until(start);
        let request = Request::acquire(&self.key, &self.value, ttl);
        // Waiting beyond the validity is useless: the lock would be granted too late.
        let useful_for = start.until(valid_until).min(wait);
        let mut round = self.ask(&request, ttl);
        let outcome = round.decided(useful_for).await;
        // The clock, not the timer of the wait: the machine may have been suspended in between.
        if outcome == Outcome::Quorum && self.now() < valid_until {
            let mut lease = self.lease();
            lease.grant(valid_until);
            if let Some(lifetime) = max_lifetime {
                lease.end_at(start.after(lifetime));
            }
            return Ok(round);
        }
        let ballots = round.ballots();
        // A master that was not needed counts as one that could be reached: with it, too, a quorum might have been
        // possible.
        let failure = if outcome == Outcome::Quorum {
            Failure::TooLate
        } else if is_quorum(&ballots, |vote| !matches!(vote, Vote::Failed(_))) {
            Failure::Taken
        } else {
            Failure::Unreachable
        };
        Err((failure, round))
    }

    /// Asks all masters to extend the key, or to set the key again where it is missing.
    pub(crate) async fn extend(&self, ttl: Duration) -> Result<Extended, ExtendError> {
        self.extend_by(Ttl::new(ttl, self.inner.drift)?).await
    }

    /// [Extends](Self::extend) the key to a ttl that was checked before.
    pub(crate) async fn extend_by(&self, ttl: Ttl) -> Result<Extended, ExtendError> {
        let request = Request::extend(slice::from_ref(&self.key), &self.value, ttl);
        self.renew(ttl, request).await
    }

    /// What a request names that extends several claims. The ttl is counted as requested from now on.
    pub(crate) fn to_renew(&self, ttl: Ttl) -> (Key, Value, Ttl) {
        self.count_ttl(ttl);
        (self.key.clone(), self.value.clone(), ttl)
    }

    /// Asks all masters to extend a key of another claim. The key does not become ours by this alone.
    pub(crate) async fn adopt(&self, ttl: Duration) -> Result<Extended, ExtendError> {
        let ttl = Ttl::new(ttl, self.inner.drift)?;
        let request = Request::adopt(slice::from_ref(&self.key), &self.value, ttl);
        self.renew(ttl, request).await
    }

    async fn renew(&self, ttl: Ttl, request: Request) -> Result<Extended, ExtendError> {
        // Read before the request is sent, as in `acquire`.
        let start = self.now();
        let left = self
            .remaining()
            .map_err(|reason| self.lost_error(reason, Ballots::default()))?;
        let mut round = self.ask(&request, ttl);
        let outcome = round.decided(left).await;
        if outcome == Outcome::Quorum {
            // The slower masters get the extension too, but the caller does not wait for them.
            self.finish_in_background(round);
            return Ok(Extended {
                valid_until: ttl.valid_until(start),
            });
        }
        // A key that was missing is not ours either: another client may have got the vote of this master while the key
        // was missing.
        let not_ours = |vote: &Vote| matches!(vote, Vote::Refused | Vote::Recreated);
        // That there is no quorum is certain, but not why. The caller needs to know whether a retry is of use.
        let ballots = round
            .reason_known(not_ours, left.min(self.inner.request_timeout))
            .await;
        self.finish_in_background(round);
        if is_quorum(&ballots, not_ours) {
            // A quorum without our key: another client can have the lock, although the validity has not ended.
            self.lose(LossReason::Taken);
        }
        Err(self.extend_error(ballots))
    }

    /// Counts an extension, unless the old validity has ended by now.
    pub(crate) fn confirm(&self, extended: &Extended) -> Result<(), ExtendError> {
        self.count(extended, Lease::extend)
    }

    /// Counts the extension by a renewal that began at `start`, unless the old validity has ended by now.
    pub(crate) fn confirm_renewal(&self, start: Moment, ttl: Ttl) -> Result<(), LossReason> {
        // As in `count`: the clock decides, whatever the masters answered.
        self.lease().extend(self.now(), ttl.valid_until(start))
    }

    /// Makes the claim of another process our own.
    pub(crate) fn confirm_adoption(&self, extended: &Extended) -> Result<(), ExtendError> {
        self.count(extended, Lease::adopt)?;
        // Only now: until the quorum counts, a drop of this claim must not delete keys that the other process may rely
        // on.
        self.dirty.adopted();
        Ok(())
    }

    fn count(
        &self,
        extended: &Extended,
        confirm: fn(&mut Lease, Moment, Moment) -> Result<(), LossReason>,
    ) -> Result<(), ExtendError> {
        // By the caller at the time of the call, whatever the masters answered: after the old validity another client
        // may have had the lock.
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

    /// The error for an extension that failed. It depends on whether the lock is still valid.
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

    /// Gives the claim up: deletes the key on every master that may hold it. `None` if the claim was given up before,
    /// or if there is nothing to delete.
    pub(crate) fn release(&self) -> Option<Release> {
        if self.is_forked() {
            return None;
        }
        // From here on no request with this value is sent, so none can follow its own delete. Of several callers only
        // the first gets the list.
        let deletes = self.dirty.close()?;
        if deletes.is_empty() {
            return None;
        }
        let Inner {
            request_timeout,
            drift,
            ..
        } = &*self.inner;
        // Relaxed: `ask` sets the ttl before it sends, and both the sending and the `close` above take the mutex of
        // `dirty`. So every request that was sent has its ttl counted here.
        let ttl = Duration::from_millis(self.longest_ttl.load(Ordering::Relaxed));
        let deletion = Deletion {
            key: self.key.clone(),
            value: self.value.clone(),
            deletes: Arc::new(deletes),
            // With the drift, because the master's clock may be slower than ours.
            lifetime: ttl + drift.over(ttl),
            patience: *request_timeout,
        };
        let Core {
            engine,
            masters,
            releases,
            ..
        } = &*self.core;
        Some(Release::begin(deletion, releases, masters, engine))
    }

    /// Gives the claim up, and leaves the keys until their ttl is over.
    pub(crate) fn leak(&self) {
        if !self.is_forked() {
            self.dirty.close();
        }
    }

    /// Sends a request to all masters.
    fn ask(&self, request: &Request, ttl: Ttl) -> Round {
        let patience = self.inner.request_timeout;
        self.count_ttl(ttl);
        self.core.masters.ask(request, &self.dirty, patience)
    }

    /// Counts a ttl as requested. Call this before the request is sent.
    fn count_ttl(&self, ttl: Ttl) {
        // Relaxed, because the mutex of `dirty` orders this before the load in `release`. A request that extends several
        // claims does not take that mutex, but its ttl is the one of the attempt, which was counted before.
        self.longest_ttl.fetch_max(ttl.millis(), Ordering::Relaxed);
    }

    /// Lets the engine wait for the masters that have not answered yet, so that they get the request too.
    fn finish_in_background(&self, round: Round) {
        if !round.has_ended() {
            let validity = self.remaining().unwrap_or_default();
            self.engine().spawn(round.finish(validity));
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.inner.clock.now()
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        lock(&self.lease)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Nobody waits for this release, so it continues in the background. After a `release` or a `leak` it is `None`.
        drop(self.release());
    }
}
