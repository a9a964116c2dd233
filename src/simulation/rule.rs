//! The rules of the protocol that a simulation can break, one at a time, to show that it would notice.
//!
//! Where the crate keeps a rule, a statement under `cfg(test)` asks whether it is broken: no build but that of the
//! unit tests contains any of it.

use std::cell::Cell;

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The validity counts from before the first byte is sent; broken: from the last vote.
    ValidityCountsFromBeforeSending,
    /// A quorum is N/2 + 1; broken: N/2.
    QuorumIsMoreThanHalf,
    /// An extension counts only while the old validity lasts; broken: whenever it is confirmed.
    LateExtensionsDoNotCount,
    /// An extension never shortens the life of a key; broken: it sets it.
    ExtensionsNeverShorten,
    /// A compare-and-delete comes after the SET that it undoes; broken: it overtakes.
    DeletesNeverOvertake,
    /// A failed extension releases nothing; broken: it releases everywhere.
    FailedExtensionsReleaseNothing,
    /// Each attempt has a value of its own; broken: all attempts of a request share one.
    ValuesAreNeverReused,
}

thread_local! {
    static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
}

impl Rule {
    pub(super) const ALL: [Self; 7] = [
        Self::ValidityCountsFromBeforeSending,
        Self::QuorumIsMoreThanHalf,
        Self::LateExtensionsDoNotCount,
        Self::ExtensionsNeverShorten,
        Self::DeletesNeverOvertake,
        Self::FailedExtensionsReleaseNothing,
        Self::ValuesAreNeverReused,
    ];

    /// Whether the simulation on this thread breaks the rule.
    pub(crate) fn is_broken(self) -> bool {
        BROKEN.get() == Some(self)
    }

    /// Breaks a rule, or none, on this thread from now on.
    pub(super) fn break_only(rule: Option<Self>) {
        BROKEN.set(rule);
    }
}
