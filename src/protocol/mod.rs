//! The rules of Redlock that need neither a network nor a clock of their own.

pub(crate) mod key;
pub(crate) mod lease;
pub(crate) mod quorum;
pub(crate) mod validity;
pub(crate) mod value;
