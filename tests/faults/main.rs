//! Masters that are slow, hang, die, come back, refuse or answer nonsense.

mod closing;
#[cfg(feature = "test-util")]
mod hostile;
mod known_down;
mod reconnect;
mod slow_masters;
