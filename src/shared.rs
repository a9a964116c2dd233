//! What all clones, guards and background tasks of one `Redlock` share.

use std::time::Duration;

use crate::clock::Clock;
use crate::key::Key;
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
    pub(crate) fn key(&self, resource: &[u8]) -> Key {
        Key::new(&self.key_prefix, resource)
    }
}

#[cfg(test)]
mod tests {
    use redis::Arg;

    use crate::Redlock;
    use crate::master::Request;
    use crate::testing::Masters;

    proptest::proptest! {
        /// Any bytes are a resource: they reach the masters as they are, and come back as they were.
        #[test]
        fn resources_are_bytes(prefix: Vec<u8>, resource: Vec<u8>) {
            let builder = Redlock::builder().testing(&Masters::new(1));
            let dlm = builder.key_prefix(&prefix).build().unwrap();
            let key = dlm.shared().key(&resource);
            assert_eq!(key.resource(), resource);
            let key = key.as_bytes();
            assert_eq!(key.strip_prefix(&prefix[..]), Some(&resource[..]));
            let command = Request::inspect(key).command();
            assert!(command.args_iter().any(|arg| matches!(arg, Arg::Simple(arg) if arg == key)));
            let _ = crate::error::name(&resource);
        }
    }
}
