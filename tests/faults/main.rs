//! Masters that are slow, hang, die, come back, refuse or answer nonsense.

mod closing;
#[cfg(feature = "test-util")]
mod hostile;
mod known_down;
mod reconnect;
#[cfg(feature = "test-util")]
mod refusals;
#[cfg(feature = "test-util")]
mod silence;
mod slow_masters;
mod under_load;
