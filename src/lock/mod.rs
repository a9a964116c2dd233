//! One lock: the request for it, the attempts to get it, the claim that they make, and the guard that holds it.

pub(crate) mod attempts;
pub(crate) mod claim;
pub(crate) mod guard;
pub(crate) mod handover;
pub(crate) mod keep_alive;
pub(crate) mod request;
