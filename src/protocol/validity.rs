//! How long a lock may be trusted: the ttl, the drift, and the moment the validity ends. Pure: it is told the time.
//!
//! The rule is that of the Redlock page: `validity = ttl - elapsed - drift`, as one absolute moment that is fixed
//! before the first byte is sent.

use std::time::Duration;

use crate::clock::Moment;
use crate::error::TtlError;

/// Redis counts time to live in whole milliseconds, and so may be off by one of them at either end.
const ROUNDING: Duration = Duration::from_millis(2);

const MILLION: u128 = 1_000_000;

/// Redis adds the ttl to its clock in a signed 64-bit number of milliseconds; half of that leaves room for both.
pub(crate) const MAX_TTL: Duration = Duration::from_millis(1 << 62);

/// How far the clocks of masters and client may run apart, as a share of the time that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    parts_per_million: u32,
}

impl Drift {
    /// One part in a hundred: twenty times what a clock disciplined by NTP may do (500 ppm).
    pub(crate) const DEFAULT: Self = Self {
        parts_per_million: 10_000,
    };

    /// `None` unless the factor is at least 0 and at most 0.5.
    pub(crate) fn from_factor(factor: f64) -> Option<Self> {
        // A Duration does the conversion: it refuses what is not a number, and rounds without a cast.
        let factor = Duration::try_from_secs_f64(factor).ok()?;
        let parts_per_million = u32::try_from(factor.as_micros()).ok()?;
        (parts_per_million <= 500_000).then_some(Self { parts_per_million })
    }

    /// By how much they may differ at the end of a span.
    pub(crate) fn over(self, span: Duration) -> Duration {
        let nanos = span.as_nanos() * u128::from(self.parts_per_million) / MILLION;
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos) + ROUNDING
    }
}

/// A time to live that Redis takes and that leaves some validity once the drift is taken off.
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
        // Redis never sees a fraction of a millisecond, so it must not count here either.
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let whole = Duration::from_millis(millis);
        let drift = drift.over(whole);
        match whole.checked_sub(drift) {
            Some(validity) if !validity.is_zero() => Ok(Self { millis, validity }),
            _ => Err(TtlError::TooShort { ttl, drift }),
        }
    }

    /// What the masters are told.
    pub(crate) fn millis(self) -> u64 {
        self.millis
    }

    /// When a lock asked for at `start` can no longer be trusted.
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
    fn a_ttl_that_the_drift_eats_is_refused() {
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
    fn only_factors_that_leave_a_validity_are_taken() {
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
        fn a_longer_ttl_is_never_good_for_less(one in 0..1u64 << 40, more in 0..1u64 << 40) {
            let valid_until = |millis| ttl(Duration::from_millis(millis)).map(|ttl| ttl.valid_until(START));
            if let (Ok(shorter), Ok(longer)) = (valid_until(one), valid_until(one + more)) {
                assert!(shorter <= longer);
            }
        }

        #[test]
        fn any_factor_is_taken_or_refused(factor: f64) {
            let taken = Drift::from_factor(factor).is_some();
            // Within a millionth, which is what is kept of it.
            assert!(!taken || (0.0..0.500_001).contains(&factor) || factor == 0.0);
        }
    }
}
