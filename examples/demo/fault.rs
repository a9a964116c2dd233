//! What goes wrong, and when.

use std::time::Duration;

use crate::master::State;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A master gets into a state.
    Master(usize, State),
    /// A worker is killed while it holds the lock.
    HolderKilled,
}

/// What happens, each after a pause.
///
/// At no time more than two of the five masters are away. A killed one comes back empty, and therefore not before
/// the ttl of every lock that it knew of is over: earlier, it could give away a lock that is held.
pub(crate) const SCHEDULE: [(Duration, Fault); 7] = [
    (pause(2_000), Fault::Master(2, State::Killed)),
    (pause(2_500), Fault::Master(2, State::Up)),
    (pause(1_000), Fault::Master(4, State::Frozen)),
    (pause(1_500), Fault::Master(1, State::Killed)),
    (pause(1_500), Fault::Master(4, State::Up)),
    (pause(1_000), Fault::Master(1, State::Up)),
    (pause(1_000), Fault::HolderKilled),
];

/// The pause after that, well over the ttl of the dead holder's lock.
pub(crate) const REST: Duration = pause(4_500);

const fn pause(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
