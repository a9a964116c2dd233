//! One lock: the request, the attempts, the claim that an attempt makes, and the guard that holds the claim.

pub(crate) mod attempts;
pub(crate) mod claim;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod keep_alive;
pub(crate) mod renewals;
pub(crate) mod request;
