//! Masters that live in memory, with faults that a test controls. They need no Redis and no sockets, and work with a
//! paused Tokio clock.
//!
//! A [`Redlock`](crate::Redlock) over masters in memory behaves as over real masters, because only the connection
//! differs. The masters execute the same commands and scripts, and the tests of this crate compare them with a real
//! server. The seed of [`Masters`] and the order of calls determine everything. So on a current-thread runtime with a
//! paused clock, a test runs the same way every time.
//!
//! # Faults
//!
//! | fault | method |
//! | --- | --- |
//! | slow network | [`Master::delay_requests`], [`Master::delay_answers`] |
//! | a request or its answer is lost | [`Master::inject`] with [`Fault::LoseRequest`], [`Fault::LoseAnswer`] |
//! | an error, or an unexpected reply | [`Master::inject`] with [`Fault::Error`], [`Fault::Answer`] |
//! | hangs | [`Master::hang`], until [`Master::resume`] |
//! | is down, restarts empty | [`Master::stop`], [`Master::restart`] |
//! | its clock is wrong | [`Master::set_clock_rate`] |
//! | a key is lost | [`Master::lose_key`] |
//!
//! # In production
//!
//! The module exists only with the feature `test-util`, which is off by default and belongs in `[dev-dependencies]`.
//! There the feature is on in tests only, and nothing of the module is compiled into a release. If the feature is on in
//! a service after all, it changes nothing: a client has masters in memory only by
//! [`RedlockBuilder::testing`](crate::RedlockBuilder::testing), which logs a warning.
//!
//! # Limits
//!
//! - Redlock excludes other holders only if masters keep their keys until the ttl is over, and if clocks differ by no
//!   more than the [drift](crate::RedlockBuilder::drift_factor). Masters in memory can break both assumptions. After a
//!   [`restart`](Master::restart) within the ttl, or with [`set_clock_rate(2.0)`](Master::set_clock_rate), there can be
//!   two holders. The simulation in the tests of this crate finds two holders in these two cases, and has found none
//!   otherwise.
//! - Their connections open themselves again. So these masters do not test how the crate opens and closes its own
//!   connections over TCP or TLS.
//! - They execute the commands and scripts of this crate, and the other commands that [`connect`](Master::connect)
//!   lists. They have no `DELIFEQ` and no `DELEX`, so the client deletes by its script.
//!
//! # Examples
//!
//! A service that must stop when it loses its lock:
//!
//! ```
//! use std::time::Duration;
//! use tokio_redlock::testing::Masters;
//! use tokio_redlock::{KeepAlive, Redlock};
//!
//! /// Works under a lock, and returns why it had to stop.
//! async fn serve(dlm: Redlock) -> String {
//!     let ttl = Duration::from_secs(10);
//!     let lock = dlm.lock("leader", ttl).keep_alive(KeepAlive::new());
//!     let leads = lock.run(async |_guard| std::future::pending::<()>().await);
//!     leads.await.unwrap_err().to_string()
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() {
//!     tokio::time::pause();
//!     let masters = Masters::new(3);
//!     let client = || Redlock::builder().testing(&masters).build().unwrap();
//!     let service = tokio::spawn(serve(client()));
//!
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//!     assert!(!service.is_finished());
//!
//!     masters[0].hang();
//!     masters[1].hang();
//!     assert_eq!(service.await.unwrap(), "lock on \"leader\" is lost: its validity is over");
//!
//!     masters[0].resume();
//!     masters[1].resume();
//!     let next = client().lock("leader", Duration::from_secs(10)).await.unwrap();
//!     assert!(next.is_valid());
//! }
//! ```

mod connection;
mod fault;
mod master;
mod script;
mod store;

use std::ops::{Deref, RangeInclusive};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use self::connection::Connection;
pub use self::fault::Fault;
pub use self::master::Master;
use crate::sync::lock;

/// Masters in memory for one test: a slice of [`Master`], and a seed for everything random.
///
/// Clones are the same masters.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::{Redlock, testing::Masters};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let masters = Masters::new(3);
/// let dlm = Redlock::builder().testing(&masters).build()?;
/// let guard = dlm.try_lock("invoice:42", Duration::from_secs(30)).await?;
/// assert_eq!(masters[0].keys(), [b"invoice:42"]);
/// guard.release().await?;
/// assert!(masters[0].keys().is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Masters {
    masters: Arc<[Master]>,
    seeds: Arc<Mutex<StdRng>>,
}

impl Masters {
    /// Makes `count` masters without keys, with the seed 0.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self::with_seed(count, 0)
    }

    /// Makes `count` masters without keys. Another seed gives other values, other retry delays and other network
    /// delays.
    #[must_use]
    pub fn with_seed(count: usize, seed: u64) -> Self {
        let mut seeds = StdRng::seed_from_u64(seed);
        Self {
            masters: (0..count).map(|_| Master::new(seeds.next_u64())).collect(),
            seeds: Arc::new(Mutex::new(seeds)),
        }
    }

    /// Sets the delays of all masters; see [`Master::delay_requests`] and [`Master::delay_answers`].
    pub fn delay(&self, each_way: RangeInclusive<Duration>) {
        for master in self.iter() {
            master.delay_requests(each_way.clone());
            master.delay_answers(each_way.clone());
        }
    }

    /// The seed of the next client.
    pub(crate) fn draw_seed(&self) -> u64 {
        let mut seeds = lock(&self.seeds);
        seeds.next_u64()
    }
}

impl Deref for Masters {
    type Target = [Master];

    fn deref(&self) -> &[Master] {
        &self.masters
    }
}
