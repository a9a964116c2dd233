//! How long a lock is good, and when it is lost for good. Pure: it is told the time.

use std::time::Duration;

use crate::clock::Moment;
use crate::error::LossReason;

/// What is granted until when. Once lost it stays lost, whatever is said later.
#[derive(Debug)]
pub(crate) struct Lease {
    /// As the last successful request has it; before the first, the beginning of time.
    valid_until: Moment,
    /// When the longest lifetime is over.
    ends: Option<Moment>,
    loss: Option<LossReason>,
}

impl Lease {
    /// Not granted yet.
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

    /// How long it is still good, or how it was lost.
    pub(crate) fn remaining(&mut self, now: Moment) -> Result<Duration, LossReason> {
        if let Some(loss) = self.loss {
            return Err(loss);
        }
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

    /// Moves the end of the validity, never back; only while it is still good.
    pub(crate) fn extend(&mut self, now: Moment, valid_until: Moment) -> Result<(), LossReason> {
        self.remaining(now)?;
        self.valid_until = self.valid_until.max(valid_until);
        Ok(())
    }

    /// Sets the end of the validity to what the masters have just confirmed, whatever was said of it before; only
    /// while it is still good.
    pub(crate) fn adopt(&mut self, now: Moment, valid_until: Moment) -> Result<(), LossReason> {
        self.remaining(now)?;
        self.valid_until = valid_until;
        self.remaining(now).map(drop)
    }

    /// A quorum says that the lock is not ours any more.
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
    fn good_until_the_very_moment_and_never_again() {
        let mut lease = granted(100);
        assert_eq!(lease.remaining(at(99)), Ok(Duration::from_nanos(1)));
        assert_eq!(lease.remaining(at(100)), Err(LossReason::Expired));
        assert_eq!(lease.extend(at(50), at(500)), Err(LossReason::Expired));
        assert_eq!(lease.remaining(at(50)), Err(LossReason::Expired));
    }

    #[test]
    fn what_was_not_granted_is_not_good() {
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
    fn the_first_reason_stands() {
        let mut lease = granted(100);
        lease.lose(at(10), LossReason::Taken);
        assert_eq!(lease.remaining(at(10)), Err(LossReason::Taken));
        assert_eq!(lease.remaining(at(1_000)), Err(LossReason::Taken));
        let mut expired = granted(100);
        expired.lose(at(200), LossReason::Taken);
        assert_eq!(expired.remaining(at(200)), Err(LossReason::Expired));
    }

    #[test]
    fn a_lifetime_ends_it_however_long_the_validity() {
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
