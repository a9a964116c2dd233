//! What all clones, guards and jobs of one `Redlock` share.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::engine::{Engine, Home};
use crate::error::Address;
use crate::key::Key;
use crate::master::{Master, Source};
use crate::masters::Masters;
use crate::per_process::PerProcess;
use crate::random::Random;
use crate::release::Releases;
use crate::retry::RetryPolicy;
use crate::validity::Drift;

pub(crate) struct Inner {
    /// Where each master is, and what connections to it are made of.
    pub(crate) sources: Vec<(Address, Source)>,
    pub(crate) home: Home,
    pub(crate) retry: RetryPolicy,
    pub(crate) key_prefix: Vec<u8>,
    pub(crate) request_timeout: Duration,
    pub(crate) drift: Drift,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    /// A forked child has connections of its own.
    pub(crate) core: PerProcess<Arc<Core>>,
}

/// What runs in one process.
pub(crate) struct Core {
    pub(crate) engine: Arc<Engine>,
    pub(crate) masters: Masters,
    pub(crate) releases: Releases,
}

impl Inner {
    pub(crate) fn key(&self, resource: &[u8]) -> Key {
        Key::new(&self.key_prefix, resource)
    }

    pub(crate) fn addresses(&self) -> Vec<&Address> {
        self.sources.iter().map(|(address, _)| address).collect()
    }

    /// What runs in this process. Nothing does before the first job.
    pub(crate) fn core(&self) -> &Arc<Core> {
        self.core.get_or_init(|| {
            let engine = Arc::new(Engine::new(self.home.clone()));
            let sources = self.sources.iter().cloned();
            let masters = sources.map(|(address, source)| {
                let engine = Arc::downgrade(&engine);
                Master::new(address, source, engine, self.request_timeout)
            });
            Arc::new(Core {
                masters: Masters::new(masters.collect()),
                releases: Releases::default(),
                engine,
            })
        })
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
            let key = dlm.inner().key(&resource);
            assert_eq!(key.resource(), resource);
            let key = key.as_bytes();
            assert_eq!(key.strip_prefix(&prefix[..]), Some(&resource[..]));
            let command = Request::inspect(key).command();
            assert!(command.args_iter().any(|arg| matches!(arg, Arg::Simple(arg) if arg == key)));
            let _ = crate::error::name(&resource);
        }
    }
}
