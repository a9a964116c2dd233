//! The rules of Redlock that need no network and no clock of their own.

pub(crate) mod key;
pub(crate) mod lease;
pub(crate) mod quorum;
pub(crate) mod validity;
pub(crate) mod value;
