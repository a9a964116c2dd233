//! Where randomness comes from: values, retry delays, jitter.

use rand::Rng;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;

/// The operating system's, so that no process draws what another one that was forked from it draws; in tests a seed's.
#[derive(Debug, Default)]
pub(crate) enum Random {
    #[default]
    System,
    #[cfg(any(test, feature = "test-util"))]
    Seeded(Box<std::sync::Mutex<rand::rngs::StdRng>>),
}

impl Random {
    /// Always the same from the same seed.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn seeded(seed: u64) -> Self {
        use rand::{SeedableRng, rngs::StdRng};
        Self::Seeded(Box::new(StdRng::seed_from_u64(seed).into()))
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut dyn Rng) -> T) -> T {
        match self {
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
