//! The state that all clones, guards and jobs of one `Redlock` share.

use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::clock::Clock;
use crate::engine::{Engine, Home};
use crate::lock::renewals::Renewals;
use crate::master::{Connector, Master};
use crate::masters::Masters;
use crate::per_process::PerProcess;
use crate::protocol::key::Key;
use crate::protocol::validity::Drift;
use crate::queue::Line;
use crate::random::Random;
use crate::release::Releases;
use crate::retry::RetryPolicy;

pub(crate) struct Inner {
    /// The address of each master, and what opens its connections.
    pub(crate) connectors: Vec<(Address, Connector)>,
    pub(crate) home: Home,
    pub(crate) retry: RetryPolicy,
    pub(crate) key_prefix: Vec<u8>,
    pub(crate) request_timeout: Duration,
    pub(crate) drift: Drift,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    /// One per process: a forked child cannot use its parent's connections, so it opens connections of its own.
    pub(crate) core: PerProcess<Arc<Core>>,
}

/// The part that runs in one process.
pub(crate) struct Core {
    pub(crate) engine: Arc<Engine>,
    pub(crate) masters: Masters,
    pub(crate) releases: Releases,
    /// The locks that are kept alive.
    pub(crate) renewals: Renewals,
}

impl Inner {
    pub(crate) fn key(&self, resource: &[u8]) -> Key {
        Key::new(&self.key_prefix, resource)
    }

    pub(crate) fn addresses(&self) -> Vec<&Address> {
        self.connectors.iter().map(|(address, _)| address).collect()
    }

    /// Returns what runs in this process. Starts neither a thread nor a connection: the first job does.
    pub(crate) fn core(&self) -> &Arc<Core> {
        self.core.get_or_init(|| {
            let engine = Arc::new(Engine::new(self.home.clone()));
            let line = Arc::new(Line::default());
            let connectors = self.connectors.iter().cloned();
            let masters = connectors.map(|(address, connector)| {
                // Weak, so that a task that still opens a connection does not keep the engine alive when the client is
                // dropped.
                let engine = Arc::downgrade(&engine);
                Master::new(address, connector, engine, self.request_timeout, &line)
            });
            Arc::new(Core {
                masters: Masters::new(masters.collect(), line),
                releases: Releases::default(),
                renewals: Renewals::new(self.clock, self.request_timeout),
                engine,
            })
        })
    }
}
