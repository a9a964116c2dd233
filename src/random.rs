//! The source of randomness: for values, retry delays and jitter.

use rand::Rng;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;

/// The operating system's generator: a parent and its forked child then never draw the same value. Tests use a
/// generator with a seed.
#[derive(Debug, Default)]
pub(crate) enum Random {
    #[default]
    System,
    #[cfg(any(test, feature = "test-util"))]
    Seeded(Box<std::sync::Mutex<rand::rngs::StdRng>>),
}

impl Random {
    /// The same seed gives the same numbers.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn seeded(seed: u64) -> Self {
        use rand::{SeedableRng, rngs::StdRng};
        Self::Seeded(Box::new(StdRng::seed_from_u64(seed).into()))
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        match self {
            // A value must be unpredictable and unique, so without randomness there is nothing to do but panic.
            Self::System => draw(&mut UnwrapErr(SysRng)),
            #[cfg(any(test, feature = "test-util"))]
            Self::Seeded(rng) => {
                let mut rng = rng
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                draw(&mut *rng)
            }
        }
    }
}
