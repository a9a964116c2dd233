//! The builder: defaults with their reasons, and validation. No I/O.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Client, ErrorKind, RedisError};
use tokio::runtime::Handle;

use crate::address::Address;
use crate::clock::Clock;
use crate::engine::{Home, Named};
use crate::error::BuildError;
use crate::inner::Inner;
use crate::master::{Connector, External, address, hash_scripts};
use crate::per_process::PerProcess;
use crate::protocol::validity::Drift;
use crate::random::Random;
use crate::redlock::Redlock;
use crate::retry::RetryPolicy;

/// Some round trips between data centres and a fork pause of Redis, and little against the ttl of any lock that is
/// held for seconds. Only ever waited for when a quorum depends on it.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(250);

/// Options for a [`Redlock`], and its masters.
///
/// | option | default | why |
/// | --- | --- | --- |
/// | [`key_prefix`](Self::key_prefix) | none | the key is the resource, as in other Redlock clients |
/// | [`retry`](Self::retry) | [`RetryPolicy::new`] | up to 5 s, which suits a web service |
/// | [`request_timeout`](Self::request_timeout) | 250 ms | see there |
/// | [`drift_factor`](Self::drift_factor) | 0.01 | that of the Redlock page |
/// | [`runtime`](Self::runtime) | a thread of this process | it does not matter whose runtime ends or is blocked |
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tokio_redlock::{Redlock, RetryPolicy};
///
/// let dlm = Redlock::builder()
///     .master("redis://10.0.0.1")
///     .master("redis://10.0.0.2")
///     .master("redis://10.0.0.3")
///     .key_prefix("billing:lock:")
///     .retry(RetryPolicy::new().max_wait(Duration::from_secs(2)))
///     .build()?;
/// # Ok::<(), tokio_redlock::BuildError>(())
/// ```
#[must_use = "a builder does nothing until it is built"]
pub struct RedlockBuilder {
    masters: Vec<Candidate>,
    key_prefix: Vec<u8>,
    retry: RetryPolicy,
    request_timeout: Duration,
    drift_factor: Option<f64>,
    home: Home,
    clock: Clock,
    random: Random,
}

/// A master as it was given.
enum Candidate {
    Url(String),
    Client(Box<Client>),
    Given(Arc<dyn External>),
}

impl Redlock {
    /// A client with the default options for masters given as URLs.
    ///
    /// No connection is opened, and no runtime needed. See [`RedlockBuilder::master`] for the URLs.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the master: none given, one given twice, a URL that cannot be used.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::Redlock;
    ///
    /// let dlm = Redlock::new(["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"])?;
    /// # Ok::<(), tokio_redlock::BuildError>(())
    /// ```
    pub fn new<I>(urls: I) -> Result<Self, BuildError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        Self::builder().masters(urls).build()
    }

    /// A client with options, or with masters that are not URLs.
    pub fn builder() -> RedlockBuilder {
        RedlockBuilder::new()
    }
}

impl RedlockBuilder {
    pub(crate) fn new() -> Self {
        Self {
            masters: Vec::new(),
            key_prefix: Vec::new(),
            retry: RetryPolicy::new(),
            request_timeout: REQUEST_TIMEOUT,
            drift_factor: None,
            home: Home::default(),
            clock: Clock::default(),
            random: Random::default(),
        }
    }

    /// Adds a master by its URL.
    ///
    /// `redis://[user][:password@]host[:port][/db]`, `rediss://` for TLS, `valkey://` and `valkeys://` for the
    /// same; `unix:///path[?db=n&user=...&pass=...]` for a socket.
    pub fn master(mut self, url: impl AsRef<str>) -> Self {
        self.masters.push(Candidate::Url(url.as_ref().to_owned()));
        self
    }

    /// Adds masters by their URLs.
    pub fn masters<I>(self, urls: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        urls.into_iter().fold(self, Self::master)
    }

    /// Adds a master by a client, for whatever a URL cannot say, such as certificates.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::{Redlock, redis};
    ///
    /// let client = redis::Client::open("redis://10.0.0.1").unwrap();
    /// let dlm = Redlock::builder().client(client).build();
    /// ```
    pub fn client(mut self, client: Client) -> Self {
        self.masters.push(Candidate::Client(Box::new(client)));
        self
    }

    /// Adds a master by a connection that you have already.
    ///
    /// It must send requests in the order in which it is given them, each at most once, as
    /// [`MultiplexedConnection`](redis::aio::MultiplexedConnection) does. Opening it again when it breaks is its
    /// own business, and its timeouts are as you set them. In messages it goes by its place among the masters. When it
    /// does open itself again, what it had sent before may still come after what undoes it, and leave a key until the
    /// ttl is over.
    ///
    /// Its code runs on the thread of this client, which all clients share: it must not block. It ends with the runtime that it was opened on, and cannot be used in a child of a `fork`. What it still had to
    /// send then is lost, so keys may stay until their ttl is over. Requests for one value go one after the other over
    /// it, since a connection without room for more may let a later one pass.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(client: tokio_redlock::redis::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio_redlock::Redlock;
    ///
    /// let connection = client.get_multiplexed_async_connection().await?;
    /// let dlm = Redlock::builder().connection(connection).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connection<C>(mut self, connection: C) -> Self
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.masters.push(Candidate::Given(Arc::new(connection)));
        self
    }

    /// Adds masters that live in memory, and makes the client go by Tokio's clock, which may be paused, and by
    /// their seed; see [`testing`](crate::testing).
    ///
    /// For tests. A warning is logged, should this ever run in a service.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::{Redlock, testing::Masters};
    ///
    /// let masters = Masters::new(3);
    /// let dlm = Redlock::builder().testing(&masters).build().unwrap();
    /// ```
    #[cfg(any(test, feature = "test-util"))]
    pub fn testing(mut self, masters: &crate::testing::Masters) -> Self {
        tracing::warn!("Redlock over masters in memory, which is for tests: it excludes nobody");
        self.home = Home::Current;
        self.clock = Clock::tokio();
        self.random = Random::seeded(masters.draw_seed());
        masters
            .iter()
            .fold(self, |builder, master| builder.connection(master.connect()))
    }

    /// Runs the connections and the background work of this client on a runtime of yours, instead of the thread
    /// `redlock` that all clients of the process share by default.
    ///
    /// It saves the two hops between threads that a call takes, about 30 µs: much on one machine, little beside a
    /// network. In exchange the client ends with that runtime: from then on calls fail, held locks count as lost, and
    /// keys that were not deleted yet stay until their ttl is over. So [`shutdown`](Redlock::shutdown) belongs before
    /// the end of the runtime. While the runtime does not run, or its threads are blocked, nothing goes on: no lock is
    /// kept alive, and neither a `max_wait` nor the timeout of a shutdown ends a call.
    ///
    /// The runtime needs its I/O and time drivers
    /// ([`enable_all`](tokio::runtime::Builder::enable_all)). A child of a `fork` does not have its threads, and needs a
    /// client of its own. Masters in memory always use the current runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::Redlock;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tokio_redlock::BuildError> {
    /// let here = tokio::runtime::Handle::current();
    /// let dlm = Redlock::builder().master("redis://10.0.0.1").runtime(here).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn runtime(mut self, runtime: Handle) -> Self {
        if matches!(self.home, Home::Thread | Home::Runtime(_)) {
            self.home = Home::Runtime(Named::new(runtime));
        }
        self
    }

    /// Puts something in front of every resource to make its key. Defaults to nothing.
    pub fn key_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.key_prefix = prefix.as_ref().to_vec();
        self
    }

    /// How to wait for a lock that is not granted at once. Defaults to [`RetryPolicy::new`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How long to wait for masters that do not answer, when a quorum depends on them. Between 1 ms and 60 s;
    /// defaults to 250 ms.
    ///
    /// It covers connecting too. Make it several round trips, and small against the ttl: a lock is worth what
    /// the waiting leaves of it.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// By which share of the ttl the clocks of masters and client may run apart. Between 0 and 0.5; defaults to
    /// 0.01, as on the Redlock page.
    ///
    /// That share and 2 ms are taken off every validity. A clock disciplined by NTP is corrected by at most
    /// 0.0005; chrony may slew by 0.08, so set that where it is allowed to.
    pub fn drift_factor(mut self, factor: f64) -> Self {
        self.drift_factor = Some(factor);
        self
    }

    /// Checks the options and makes the client. Opens no connection and needs no runtime.
    ///
    /// One master works, and so does an even number, but the log is warned: one is a single point of failure,
    /// and an even number survives no more failures than one master less.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the master or the option: no master, the same twice, a URL that cannot be
    /// used, TLS without its feature, a drift factor or a request timeout out of range.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_redlock::{BuildError, Redlock};
    ///
    /// let nothing = Redlock::builder().build();
    /// assert!(matches!(nothing, Err(BuildError::NoMaster)));
    /// ```
    pub fn build(self) -> Result<Redlock, BuildError> {
        let Self {
            masters,
            key_prefix,
            retry,
            request_timeout,
            drift_factor,
            home,
            clock,
            random,
        } = self;
        let drift = match drift_factor {
            None => Drift::DEFAULT,
            Some(factor) => Drift::from_factor(factor).ok_or(BuildError::DriftFactor { factor })?,
        };
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&request_timeout) {
            return Err(BuildError::RequestTimeout {
                timeout: request_timeout,
            });
        }
        let sources = resolve(masters)?;
        warn_of_number(sources.len());
        hash_scripts();
        Ok(Redlock::from_inner(Inner {
            sources,
            home,
            retry,
            key_prefix,
            request_timeout,
            drift,
            clock,
            random,
            core: PerProcess::new(),
        }))
    }
}

fn resolve(candidates: Vec<Candidate>) -> Result<Vec<(Address, Connector)>, BuildError> {
    if candidates.is_empty() {
        return Err(BuildError::NoMaster);
    }
    let mut sources: Vec<(Address, Connector)> = Vec::with_capacity(candidates.len());
    for (place, candidate) in candidates.into_iter().enumerate() {
        let (address, source) = match candidate {
            Candidate::Url(url) => {
                let client = Client::open(url.as_str()).map_err(|error| refuse(&url, error))?;
                by_client(&client, &url)?
            }
            Candidate::Client(client) => by_client(&client, address(&client).as_str())?,
            Candidate::Given(connection) => {
                let address = Address::new(format!("connection {}", place + 1));
                (address, Connector::External(connection))
            }
        };
        if sources.iter().any(|(other, _)| is_same(other, &address)) {
            return Err(BuildError::DuplicateMaster { master: address });
        }
        sources.push((address, source));
    }
    Ok(sources)
}

/// Whether two addresses are one, as far as can be told without asking the network.
fn is_same(one: &Address, other: &Address) -> bool {
    let plain = |address: &Address| match address.as_str().rsplit_once(':') {
        Some(("localhost" | "[::1]", port)) => format!("127.0.0.1:{port}"),
        _ => address.to_string(),
    };
    plain(one) == plain(other)
}

fn by_client(client: &Client, given: &str) -> Result<(Address, Connector), BuildError> {
    let source = Connector::client(client).map_err(|error| refuse(given, error))?;
    Ok((address(client), source))
}

fn refuse(url: &str, source: RedisError) -> BuildError {
    let master = redact(url);
    let tls = ["rediss:", "valkeys:"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    let has_tls = cfg!(any(feature = "tls-rustls", feature = "tls-native-tls"));
    if tls && !has_tls && source.kind() == ErrorKind::InvalidClientConfig {
        return BuildError::TlsDisabled { master };
    }
    BuildError::Url { master, source }
}

/// A URL without user, password and query, all of which may be secret. It may be no URL at all.
fn redact(url: &str) -> String {
    let is_scheme = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        !text.is_empty() && text.bytes().all(fits)
    };
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (format!("{scheme}://"), rest),
        _ => (String::new(), url),
    };
    // A password may itself hold any character: what stands before the last @ may be part of it, and where that
    // comes after the beginning of a query, so may what stands after it.
    let query = rest.find(['?', '#']).unwrap_or(rest.len());
    let rest = match rest.rfind('@') {
        Some(at) if at > query => "...",
        Some(at) => &rest[at + 1..query],
        None => &rest[..query],
    };
    format!("{scheme}{rest}")
}

fn warn_of_number(masters: usize) {
    if masters == 1 {
        tracing::warn!(
            "Redlock over one master: when it fails, no lock can be taken, and those held may be lost"
        );
    } else if masters.is_multiple_of(2) {
        tracing::warn!(
            masters,
            "Redlock over an even number of masters: it survives no more failures than with one less"
        );
    }
}

impl fmt::Debug for RedlockBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedlockBuilder")
            .field("masters", &self.masters)
            .field("key_prefix", &String::from_utf8_lossy(&self.key_prefix))
            .field("retry", &self.retry)
            .field("request_timeout", &self.request_timeout)
            .field("drift_factor", &self.drift_factor)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(&redact(url)),
            Self::Client(client) => fmt::Display::fmt(&address(client), f),
            Self::Given(_) => f.write_str("connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn what_may_be_secret_is_left_out() {
        for (url, shown) in [
            ("redis://10.0.0.1:6379/2", "redis://10.0.0.1:6379/2"),
            ("redis://:secret@10.0.0.1", "redis://10.0.0.1"),
            (
                "rediss://user:secret@host:1/0#insecure",
                "rediss://host:1/0",
            ),
            ("redis://user:sec@ret/%@host", "redis://host"),
            (
                "unix:///run/redis.sock?user=u&pass=secret",
                "unix:///run/redis.sock",
            ),
            ("http//user:secret@host", "host"),
            ("user:sec://ret@host", "host"),
            ("redis://user:sec?ret@host", "redis://..."),
            (
                "redis+sock:///run/redis.sock?pass=sec@ret",
                "redis+sock://...",
            ),
            ("", ""),
            ("://", "://"),
        ] {
            assert_eq!(redact(url), shown, "{url}");
        }
    }

    proptest::proptest! {
        /// Capitals stand for what may be secret: a password, a query, and what looks like either.
        #[test]
        fn nothing_that_may_be_secret_is_shown(
            scheme in "((redis|rediss|valkey|unix)://)?",
            password in "[A-Z?#@/:%&=+]{0,30}",
            host in "[a-z0-9.:]{1,20}",
            query in "([?#][A-Z?#@/:%&=+]{0,30})?",
        ) {
            let shown = redact(&format!("{scheme}:{password}@{host}{query}"));
            assert!(!shown.contains(|letter: char| letter.is_ascii_uppercase()), "{shown}");
            let plain = !format!("{password}{query}").contains(['?', '#', '@']);
            assert!(!plain || shown == format!("{scheme}{host}"), "{shown}");
        }

        #[test]
        fn no_text_is_too_strange_to_be_a_url(text: String) {
            let _ = redact(&text);
            let _ = crate::Redlock::new([text]);
        }
    }
}
