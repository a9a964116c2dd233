//! How long a lock can be trusted: the ttl, the drift, and the end of the validity. Pure: the caller passes the time.
//!
//! The rule is that of the Redlock page: `validity = ttl - elapsed - drift`. Here the validity has one absolute end,
//! which is fixed before the first byte is sent.

use std::time::Duration;

use crate::clock::Moment;
use crate::error::TtlError;

/// Redis counts a ttl in whole milliseconds, so each end of the ttl may be off by one of them. The reference
/// implementation redlock-rb adds the same 2 ms.
const ROUNDING: Duration = Duration::from_millis(2);

const MILLION: u128 = 1_000_000;

/// Redis adds the ttl to its clock in a signed 64-bit number of milliseconds. Half of that range leaves room for both.
pub(crate) const MAX_TTL: Duration = Duration::from_millis(1 << 62);

/// How far the clocks of masters and client may differ, as a share of the elapsed time. An integer, so that no rounding
/// of floating-point numbers enters the validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    parts_per_million: u32,
}

impl Drift {
    /// 1 %: twenty times the correction that NTP makes to a clock at most (500 ppm).
    pub(crate) const DEFAULT: Self = Self {
        parts_per_million: 10_000,
    };

    /// `None` unless the factor is between 0 and 0.5.
    pub(crate) fn from_factor(factor: f64) -> Option<Self> {
        // `Duration` converts: it refuses NaN, infinity and negative numbers, and rounds without a lossy cast.
        let factor = Duration::try_from_secs_f64(factor).ok()?;
        let parts_per_million = u32::try_from(factor.as_micros()).ok()?;
        (parts_per_million <= 500_000).then_some(Self { parts_per_million })
    }

    /// The most by which two clocks may differ at the end of `span`.
    pub(crate) fn over(self, span: Duration) -> Duration {
        let nanos = span.as_nanos() * u128::from(self.parts_per_million) / MILLION;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos) + ROUNDING
    }
}

/// A ttl that Redis accepts, and that leaves some validity after the drift is taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl {
    millis: u64,
    validity: Duration,
}

impl Ttl {
    pub(crate) fn new(ttl: Duration, drift: Drift) -> Result<Self, TtlError> {
        if ttl > MAX_TTL {
            return Err(TtlError::TooLong { ttl, max: MAX_TTL });
        }
        // Redis receives whole milliseconds, so the validity must not count the fraction either.
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let whole = Duration::from_millis(millis);
        let drift = drift.over(whole);
        match whole.checked_sub(drift) {
            Some(validity) if !validity.is_zero() => Ok(Self { millis, validity }),
            _ => Err(TtlError::TooShort { ttl, drift }),
        }
    }

    /// The ttl as masters receive it, in milliseconds.
    pub(crate) fn millis(self) -> u64 {
        self.millis
    }

    /// The ttl as masters receive it.
    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }

    /// The end of the validity of a lock whose request began at `start`.
    pub(crate) fn valid_until(self, start: Moment) -> Moment {
        start.after(self.validity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::from_nanos(1_000_000_000);

    fn ttl(ttl: Duration) -> Result<Ttl, TtlError> {
        Ttl::new(ttl, Drift::DEFAULT)
    }

    #[test]
    fn validity_is_the_ttl_less_one_percent_and_two_milliseconds() {
        let valid_until = ttl(Duration::from_secs(30)).unwrap().valid_until(START);
        assert_eq!(START.until(valid_until), Duration::from_millis(29_698));
    }

    #[test]
    fn fractions_of_a_millisecond_do_not_count() {
        let whole = ttl(Duration::from_millis(50)).unwrap();
        assert_eq!(ttl(Duration::from_micros(50_999)).unwrap(), whole);
        assert_eq!(whole.millis(), 50);
    }

    #[test]
    fn a_ttl_that_is_no_longer_than_the_drift_is_refused() {
        for millis in 0..=2 {
            let refused = ttl(Duration::from_millis(millis));
            assert!(
                matches!(refused, Err(TtlError::TooShort { .. })),
                "{millis} ms"
            );
        }
        assert!(ttl(Duration::from_millis(3)).is_ok());
    }

    #[test]
    fn a_ttl_that_redis_cannot_hold_is_refused() {
        assert!(ttl(MAX_TTL).is_ok());
        for absurd in [MAX_TTL + Duration::from_millis(1), Duration::MAX] {
            assert!(matches!(ttl(absurd), Err(TtlError::TooLong { .. })));
        }
    }

    #[test]
    fn only_factors_that_leave_a_validity_are_accepted() {
        for factor in [-0.1, 0.51, 1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Drift::from_factor(factor), None, "{factor}");
        }
        assert_eq!(Drift::from_factor(0.01), Some(Drift::DEFAULT));
        assert!(Drift::from_factor(0.0).is_some());
        assert!(Drift::from_factor(0.5).is_some());
    }

    #[test]
    fn no_ttl_and_no_drift_ends_before_it_begins() {
        for factor in [0.0, 0.01, 0.5] {
            let drift = Drift::from_factor(factor).unwrap();
            for millis in 0..200 {
                if let Ok(ttl) = Ttl::new(Duration::from_millis(millis), drift) {
                    assert!(ttl.valid_until(START) > START);
                    assert!(ttl.valid_until(START) <= START.after(Duration::from_millis(millis)));
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_validity_is_never_more_than_the_ttl_less_the_drift(
            seconds: u64,
            nanos in 0..1_000_000_000u32,
            factor in 0.0..=0.5,
            start: u64,
        ) {
            let (ttl, drift) = (Duration::new(seconds, nanos), Drift::from_factor(factor).unwrap());
            let start = Moment::from_nanos(start);
            if let Ok(lasting) = Ttl::new(ttl, drift) {
                let validity = start.until(lasting.valid_until(start));
                let whole = Duration::from_millis(lasting.millis());
                assert!(whole <= ttl && ttl - whole < Duration::from_millis(1));
                assert!(validity <= whole.saturating_sub(drift.over(whole)));
            }
        }

        #[test]
        fn a_longer_ttl_never_has_a_shorter_validity(one in 0..1u64 << 40, more in 0..1u64 << 40) {
            let valid_until = |millis| ttl(Duration::from_millis(millis)).map(|ttl| ttl.valid_until(START));
            if let (Ok(shorter), Ok(longer)) = (valid_until(one), valid_until(one + more)) {
                assert!(shorter <= longer);
            }
        }

        #[test]
        fn no_factor_panics_and_only_the_range_is_accepted(factor: f64) {
            let taken = Drift::from_factor(factor).is_some();
            // A factor is kept in millionths, so one that is less than a millionth too large is accepted.
            assert!(!taken || (0.0..0.500_001).contains(&factor) || factor == 0.0);
        }
    }
}
