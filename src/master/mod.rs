//! One master: its address, its connection, and the requests it is sent. Knows nothing of quorums.

mod asked;
mod connection;
mod connector;
mod debts;
mod link;
mod load;
mod reply;
mod request;
mod resolver;
mod unclosed;
mod window;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(crate) use self::asked::Asked;
pub(crate) use self::connection::External;
pub(crate) use self::connector::{Connector, address};
use self::debts::Debts;
pub(crate) use self::debts::{Debt, End, Follower};
use self::link::Link;
use self::load::Load;
pub(crate) use self::reply::{Answer, HeldKey, Payload, Renewed};
pub(crate) use self::request::{Request, hash_scripts};
use crate::address::Address;
use crate::engine::Engine;
use crate::queue::Line;
use crate::vote::MasterError;

/// A master that can be sent requests. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Master {
    link: Arc<Link>,
    debts: Arc<Debts>,
}

impl Master {
    /// `silence` is how long the master may send nothing before requests fail. The head of the `line` is woken when the
    /// master has room for more requests.
    pub(crate) fn new(
        address: Address,
        connector: Connector,
        engine: Weak<Engine>,
        silence: Duration,
        line: &Arc<Line>,
    ) -> Self {
        let load = Load::new(Arc::clone(line));
        let link = Arc::new(Link::new(address, connector, engine, silence, load));
        Self {
            link,
            debts: Arc::new(Debts::default()),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        self.link.address()
    }

    /// The error with which a request would fail at once.
    pub(crate) fn known_failure(&self, patience: Duration) -> Option<MasterError> {
        self.link.known_failure(patience)
    }

    /// Starts to connect, if need be, for a request that is not sent because it would fail.
    pub(crate) fn keep_connecting(&self) {
        self.link.keep_connecting();
    }

    /// Whether a request would be sent at once.
    pub(crate) fn has_room(&self) -> bool {
        self.link.load().has_room()
    }

    /// The error for a new attempt, if the master cannot keep up with the attempts that it has.
    pub(crate) fn behind(&self) -> Option<MasterError> {
        let load = self.link.load();
        load.is_behind().then(|| {
            let error = MasterError::Behind(load.requests());
            self.link.report(&error);
            error
        })
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.address(), f)
    }
}
