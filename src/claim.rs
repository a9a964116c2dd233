//! A claim to a resource: one random value, the keys that it may have left on masters, and the lease that they
//! make. Armed before the first request leaves; dropped, it is released. There is no other way to let go.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock::Moment;
use crate::error::{Ballots, ExtendError, Loss, Vote, name};
use crate::key::Key;
use crate::lease::Lease;
use crate::master::Request;
use crate::masters::Round;
use crate::quorum::Verdict;
use crate::random::Random;
use crate::release::{Release, Task};
use crate::shared::Shared;
#[cfg(test)]
use crate::simulation::Rule;
use crate::trail::Trail;
use crate::validity::Ttl;
use crate::value::Value;

/// Timers stop while the machine is suspended, the clock does not: whoever waits for a deadline looks at least
/// this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

pub(crate) struct Claim {
    shared: Arc<Shared>,
    key: Key,
    value: Value,
    trail: Arc<Trail>,
    lease: Mutex<Lease>,
    /// Wakes those who wait for the loss when it comes before the deadline.
    lost_early: Notify,
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
    pub(crate) fn new(shared: &Arc<Shared>, key: &Key, value: Value, runtime: Handle) -> Self {
        Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            value,
            trail: Trail::new(shared.masters.count()),
            lease: Mutex::new(Lease::new()),
            lost_early: Notify::new(),
            longest_ttl: AtomicU64::new(0),
            runtime,
        }
    }

    /// A claim that another process made, good until then. Dropped before it is [adopted](Self::adopt), it
    /// stays as it was.
    pub(crate) fn of_another(
        shared: &Arc<Shared>,
        key: &Key,
        value: Value,
        runtime: Handle,
        valid_until: Moment,
    ) -> Self {
        let mut claim = Self::new(shared, key, value, runtime);
        claim.trail = Trail::of_another(shared.masters.count());
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
        &self.shared.random
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How long the claim is good from now on, or how it was lost.
    pub(crate) fn standing(&self) -> Result<Duration, Loss> {
        self.lease().standing(self.now())
    }

    /// Waits until the claim is lost; at once if it is.
    pub(crate) async fn lost(&self) -> Loss {
        loop {
            let mut early = pin!(self.lost_early.notified());
            early.as_mut().enable();
            match self.standing() {
                Err(loss) => return loss,
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
    ) -> Result<(), (Failure, Ballots)> {
        let start = self.now();
        let valid_until = ttl.valid_until(start);
        let request = Request::acquire(self.key.as_bytes(), &self.value, ttl);
        let (verdict, round) = self.ask(&request, ttl, start.until(valid_until)).await;
        #[cfg(test)]
        let valid_until = if Rule::ValidityCountsFromBeforeSending.is_broken() {
            ttl.valid_until(self.now())
        } else {
            valid_until
        };
        if verdict == Verdict::Carried && self.now() < valid_until {
            let mut lease = self.lease();
            lease.grant(valid_until);
            if let Some(lifetime) = max_lifetime {
                lease.end_at(start.after(lifetime));
            }
            drop(lease);
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
        let ttl = Ttl::new(ttl, self.shared.drift)?;
        let request = Request::extend(self.key.as_bytes(), &self.value, ttl);
        self.prolong(ttl, request, Lease::extend).await
    }

    /// Makes a claim of another our own, by asking all masters to lengthen the key.
    pub(crate) async fn adopt(&self, ttl: Duration) -> Result<(), ExtendError> {
        let ttl = Ttl::new(ttl, self.shared.drift)?;
        let request = Request::adopt(self.key.as_bytes(), &self.value, ttl);
        self.prolong(ttl, request, Lease::adopt).await?;
        self.trail.adopted();
        Ok(())
    }

    async fn prolong(
        &self,
        ttl: Ttl,
        request: Request,
        confirm: fn(&mut Lease, Moment, Moment) -> Result<(), Loss>,
    ) -> Result<(), ExtendError> {
        let start = self.now();
        let lost = |loss, ballots| {
            let resource = name(self.resource());
            ExtendError::Lost {
                resource,
                loss,
                ballots,
            }
        };
        let left = self
            .standing()
            .map_err(|loss| lost(loss, Ballots::default()))?;
        #[cfg(test)]
        let left = if Rule::LateExtensionsDoNotCount.is_broken() {
            Duration::MAX
        } else {
            left
        };
        let (verdict, mut round) = self.ask(&request, ttl, left).await;
        if verdict == Verdict::Carried {
            self.leave(round);
            // Only if the old validity has not ended in the meantime, whatever the masters say.
            let confirmed = confirm(&mut self.lease(), self.now(), ttl.valid_until(start));
            return confirmed.map_err(|loss| lost(loss, Ballots::default()));
        }
        let not_ours = |vote: &Vote| matches!(vote, Vote::Refused | Vote::Recreated);
        let ballots = round
            .explained(not_ours, left.min(self.shared.request_timeout))
            .await;
        self.leave(round);
        #[cfg(test)]
        if Rule::FailedExtensionsReleaseNothing.is_broken() {
            drop(self.release());
        }
        if ballots.is_quorum(not_ours) {
            self.lease().lose(self.now(), Loss::Taken);
            self.lost_early.notify_waiters();
        }
        Err(match self.standing() {
            Err(loss) => lost(loss, ballots),
            Ok(_) => ExtendError::Unconfirmed {
                resource: name(self.resource()),
                ballots,
            },
        })
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
            request: Request::release(self.key.as_bytes(), &self.value),
            held,
            gone: clock.now().after(ttl).after(drift.over(ttl)),
            clock: *clock,
            patience: *request_timeout,
            runtime: self.runtime.clone(),
            key: self.key.clone(),
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

    fn now(&self) -> Moment {
        self.shared.clock.now()
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
