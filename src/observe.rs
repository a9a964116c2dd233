//! One span for each operation. The span records the outcome and the elapsed time.

use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;
use tracing::field::{Empty, debug};

use crate::error::{ExtendError, LockError, LossReason, ReleaseError, name};

/// An operation under way.
pub(crate) struct Operation {
    span: Span,
    /// Tokio's clock, so that tests with a paused clock log the same times in every run.
    started: Instant,
}

impl Operation {
    pub(crate) fn lock(resource: &[u8], ttl: Duration) -> Self {
        Self::begin(tracing::debug_span!(
            "lock",
            resource = name(resource),
            ?ttl,
            attempts = Empty,
            elapsed = Empty,
            outcome = Empty
        ))
    }

    pub(crate) fn extend(resource: &[u8], ttl: Duration) -> Self {
        Self::begin(tracing::debug_span!(
            "extend",
            resource = name(resource),
            ?ttl,
            elapsed = Empty,
            outcome = Empty
        ))
    }

    pub(crate) fn release(resource: &[u8]) -> Self {
        Self::begin(tracing::debug_span!(
            "release",
            resource = name(resource),
            elapsed = Empty,
            outcome = Empty
        ))
    }

    fn begin(span: Span) -> Self {
        Self {
            span,
            started: Instant::now(),
        }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Records the outcome and the elapsed time.
    pub(crate) fn ended<T, E: Outcome>(self, result: &Result<T, E>) {
        let outcome = match result {
            Ok(_) => E::SUCCESS,
            Err(error) => error.outcome(),
        };
        self.span.record("elapsed", debug(self.started.elapsed()));
        self.span.record("outcome", outcome);
    }
}

/// An error that has one word for the log.
pub(crate) trait Outcome {
    /// The word for success.
    const SUCCESS: &'static str;

    fn outcome(&self) -> &'static str;
}

impl Outcome for LockError {
    const SUCCESS: &'static str = "granted";

    fn outcome(&self) -> &'static str {
        match self {
            Self::Taken(_) => "taken",
            Self::Unreachable(_) => "unreachable",
            Self::TooLate(_) => "too late",
            Self::Overloaded(_) => "overloaded",
            Self::Ttl(_) => "bad ttl",
        }
    }
}

impl Outcome for ExtendError {
    const SUCCESS: &'static str = "extended";

    fn outcome(&self) -> &'static str {
        match self {
            Self::Ttl(_) => "bad ttl",
            Self::Lost {
                reason: LossReason::Expired,
                ..
            } => "expired",
            Self::Lost { .. } => "lost",
            Self::Unconfirmed { .. } => "unconfirmed",
        }
    }
}

impl Outcome for ReleaseError {
    const SUCCESS: &'static str = "released";

    fn outcome(&self) -> &'static str {
        match self {
            Self::NotHeld { .. } => "not held",
            Self::Unconfirmed { .. } => "unconfirmed",
        }
    }
}
