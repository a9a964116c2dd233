//! What goes wrong.

use std::fmt;
use std::time::Duration;

use rand::RngExt;

/// Something that befalls a master or a worker, by its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is killed, and started again with what it has on disk.
    MasterKilled(usize),
    /// It is stopped where it is, and goes on.
    MasterFrozen(usize),
    /// It closes all its connections.
    ConnectionsCut(usize),
    /// It is killed, and another takes its place.
    WorkerKilled(usize),
    /// It is stopped where it is, and goes on, with locks that may be over.
    WorkerFrozen(usize),
}

impl Fault {
    /// Any one of them; workers from the second on are killed.
    pub(crate) fn random(masters: usize, workers: usize) -> Self {
        let mut rng = rand::rng();
        let master = rng.random_range(0..masters);
        match rng.random_range(0..10) {
            0..3 => Self::MasterKilled(master),
            3..6 => Self::MasterFrozen(master),
            6..8 => Self::ConnectionsCut(master),
            8 => Self::WorkerKilled(rng.random_range(1..workers)),
            _ => Self::WorkerFrozen(rng.random_range(0..workers)),
        }
    }

    /// Whom it befalls: a master, or a worker.
    pub(crate) fn victim(self) -> (bool, usize) {
        match self {
            Self::MasterKilled(place) | Self::MasterFrozen(place) | Self::ConnectionsCut(place) => {
                (true, place)
            }
            Self::WorkerKilled(place) | Self::WorkerFrozen(place) => (false, place),
        }
    }

    /// How long it lasts, if it does.
    pub(crate) fn span(self) -> Option<Duration> {
        let longest = match self {
            Self::ConnectionsCut(_) | Self::WorkerKilled(_) => return None,
            Self::MasterKilled(_) => 1_500,
            Self::MasterFrozen(_) => 2_500,
            Self::WorkerFrozen(_) => 2_000,
        };
        let millis = rand::rng().random_range(20..longest);
        Some(Duration::from_millis(millis))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MasterKilled(_) => "master killed",
            Self::MasterFrozen(_) => "master frozen",
            Self::ConnectionsCut(_) => "connections cut",
            Self::WorkerKilled(_) => "worker killed",
            Self::WorkerFrozen(_) => "worker frozen",
        })
    }
}
