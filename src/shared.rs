//! What all clones, guards and background tasks of one `Redlock` share.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::masters::Masters;
use crate::random::Random;
use crate::release::Releases;
use crate::retry::RetryPolicy;
use crate::validity::Drift;

pub(crate) struct Shared {
    pub(crate) masters: Masters,
    pub(crate) releases: Releases,
    pub(crate) retry: RetryPolicy,
    pub(crate) key_prefix: Vec<u8>,
    pub(crate) request_timeout: Duration,
    pub(crate) drift: Drift,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
}

impl Shared {
    pub(crate) fn key(&self, resource: &[u8]) -> Arc<[u8]> {
        [&self.key_prefix[..], resource].concat().into()
    }
}
