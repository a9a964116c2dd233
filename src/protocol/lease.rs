//! How long a lock is valid, and whether it is lost. Pure: the caller passes the time.

use std::time::Duration;

use crate::clock::Moment;
use crate::error::LossReason;

/// The end of a validity. A lease that is lost stays lost, whatever masters answer later.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The end that the last successful request gave. Zero before the first grant: a moment that has always passed.
    valid_until: Moment,
    /// The end of the longest lifetime.
    ends: Option<Moment>,
    /// Never cleared: once a lock is lost, another client may have held it.
    loss: Option<LossReason>,
}

impl Lease {
    /// A lease that is not granted yet.
    pub(crate) const fn new() -> Self {
        Self {
            valid_until: Moment::from_nanos(0),
            ends: None,
            loss: None,
        }
    }

    pub(crate) fn grant(&mut self, valid_until: Moment) {
        self.valid_until = valid_until;
    }

    /// Sets the end of the longest lifetime.
    pub(crate) fn end_at(&mut self, ends: Moment) {
        self.ends = Some(ends);
    }

    /// The time for which the lock is still valid, or the reason of its loss.
    pub(crate) fn remaining(&mut self, now: Moment) -> Result<Duration, LossReason> {
        if let Some(loss) = self.loss {
            return Err(loss);
        }
        // The earlier of the two ends, which also gives the reason.
        let ends = self.ends.filter(|ends| *ends <= self.valid_until);
        let left = now.until(ends.unwrap_or(self.valid_until));
        if !left.is_zero() {
            return Ok(left);
        }
        let loss = if ends.is_some() {
            LossReason::LifetimeReached
        } else {
            LossReason::Expired
        };
        self.loss = Some(loss);
        Err(loss)
    }

    /// Moves the end of the validity, but never to an earlier moment. Fails if the lease is lost.
    pub(crate) fn extend(&mut self, now: Moment, valid_until: Moment) -> Result<(), LossReason> {
        // Before the change: after the old validity another client may have had the lock, so a late extension must not
        // count.
        self.remaining(now)?;
        self.valid_until = self.valid_until.max(valid_until);
        Ok(())
    }

    /// Sets the end of the validity to what the masters have just confirmed. That may be earlier than the validity that
    /// was handed over, which this process cannot check. Fails if the lease is lost.
    pub(crate) fn adopt(&mut self, now: Moment, valid_until: Moment) -> Result<(), LossReason> {
        self.remaining(now)?;
        self.valid_until = valid_until;
        // The confirmed end may have passed already.
        self.remaining(now).map(drop)
    }

    /// Marks the lease as lost, unless it is lost already: the first reason is kept.
    pub(crate) fn lose(&mut self, now: Moment, reason: LossReason) {
        if self.remaining(now).is_ok() {
            self.loss = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    fn granted(valid_until: u64) -> Lease {
        let mut lease = Lease::new();
        lease.grant(at(valid_until));
        lease
    }

    #[test]
    fn a_lease_is_valid_until_its_end_and_never_again() {
        let mut lease = granted(100);
        assert_eq!(lease.remaining(at(99)), Ok(Duration::from_nanos(1)));
        assert_eq!(lease.remaining(at(100)), Err(LossReason::Expired));
        assert_eq!(lease.extend(at(50), at(500)), Err(LossReason::Expired));
        assert_eq!(lease.remaining(at(50)), Err(LossReason::Expired));
    }

    #[test]
    fn a_lease_that_was_not_granted_is_not_valid() {
        assert_eq!(Lease::new().remaining(at(0)), Err(LossReason::Expired));
    }

    #[test]
    fn an_extension_lengthens_and_never_shortens() {
        let mut lease = granted(100);
        assert_eq!(lease.extend(at(10), at(50)), Ok(()));
        assert_eq!(lease.remaining(at(10)), Ok(Duration::from_nanos(90)));
        assert_eq!(lease.extend(at(99), at(200)), Ok(()));
        assert_eq!(lease.remaining(at(150)), Ok(Duration::from_nanos(50)));
    }

    #[test]
    fn a_late_extension_does_not_count() {
        assert_eq!(
            granted(100).extend(at(100), at(200)),
            Err(LossReason::Expired)
        );
    }

    #[test]
    fn an_adoption_sets_the_end_that_the_masters_confirmed() {
        let mut lease = granted(100);
        assert_eq!(lease.adopt(at(10), at(50)), Ok(()));
        assert_eq!(lease.remaining(at(10)), Ok(Duration::from_nanos(40)));
        for (now, confirmed) in [(60, 50), (100, 200)] {
            let adopted = granted(100).adopt(at(now), at(confirmed));
            assert_eq!(adopted, Err(LossReason::Expired), "at {now}");
        }
    }

    #[test]
    fn the_first_loss_reason_is_kept() {
        let mut lease = granted(100);
        lease.lose(at(10), LossReason::Taken);
        assert_eq!(lease.remaining(at(10)), Err(LossReason::Taken));
        assert_eq!(lease.remaining(at(1_000)), Err(LossReason::Taken));
        let mut expired = granted(100);
        expired.lose(at(200), LossReason::Taken);
        assert_eq!(expired.remaining(at(200)), Err(LossReason::Expired));
    }

    #[test]
    fn the_longest_lifetime_ends_a_longer_validity() {
        let mut lease = granted(100);
        lease.end_at(at(150));
        assert_eq!(lease.remaining(at(99)), Ok(Duration::from_nanos(1)));
        assert_eq!(lease.extend(at(99), at(400)), Ok(()));
        assert_eq!(lease.remaining(at(149)), Ok(Duration::from_nanos(1)));
        assert_eq!(lease.remaining(at(150)), Err(LossReason::LifetimeReached));
        let mut short = granted(100);
        short.end_at(at(150));
        assert_eq!(short.remaining(at(160)), Err(LossReason::Expired));
    }
}
