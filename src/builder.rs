//! The builder of a client: the options, their defaults with reasons, and the validation. No I/O.

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

/// Long enough for several round trips between data centres and for a fork pause of Redis. Short against the ttl of any
/// lock that is held for seconds. A call waits this long only while a quorum depends on silent masters.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(250);

/// The options of a [`Redlock`], and its masters.
///
/// | option | default | why |
/// | --- | --- | --- |
/// | [`key_prefix`](Self::key_prefix) | none | the key is the resource, as in other Redlock clients |
/// | [`retry`](Self::retry) | [`RetryPolicy::new`] | waits up to 5 s, which suits a web service |
/// | [`request_timeout`](Self::request_timeout) | 250 ms | several round trips, and short against the ttl |
/// | [`drift_factor`](Self::drift_factor) | 0.01 | the value of the Redlock page |
/// | [`runtime`](Self::runtime) | a thread of this process | no runtime that ends or is blocked stops the client |
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
    /// Checked by `build`, so that no setter panics.
    drift_factor: Option<f64>,
    home: Home,
    clock: Clock,
    random: Random,
}

/// A master as the caller gave it. `build` checks it.
enum Candidate {
    Url(String),
    Client(Box<Client>),
    External(Arc<dyn External>),
}

impl Redlock {
    /// Makes a client with the default options for masters given as URLs.
    ///
    /// Opens no connection and needs no runtime. See [`RedlockBuilder::master`] for the URLs.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the master: no master was given, the same master was given twice, or a URL cannot be
    /// used.
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

    /// Returns a builder, for options and for masters that are not URLs.
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
    /// A URL is `redis://[user][:password@]host[:port][/db]`. `rediss://` uses TLS. `valkey://` and `valkeys://` mean
    /// the same as `redis://` and `rediss://`. `unix:///path[?db=n&user=...&pass=...]` is a socket.
    pub fn master(mut self, url: impl AsRef<str>) -> Self {
        self.masters.push(Candidate::Url(url.as_ref().to_owned()));
        self
    }

    /// Adds several masters by their URLs.
    pub fn masters<I>(self, urls: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        urls.into_iter().fold(self, Self::master)
    }

    /// Adds a master by a client, for settings that a URL cannot hold, such as certificates.
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

    /// Adds a master by a connection that is open already.
    ///
    /// The connection must send requests in the order in which it receives them, and each request at most once, as
    /// [`MultiplexedConnection`](redis::aio::MultiplexedConnection) does. The crate neither reopens the connection nor
    /// changes its timeouts. Messages name the connection by its place among the masters.
    ///
    /// A connection that reopens itself has a risk: a `SET` that it sent before may arrive after the delete for that
    /// `SET`. The key then stays until its ttl is over, although the release counts as confirmed.
    ///
    /// The code of the connection runs on the thread of this client, which all clients share, so it must not block. The
    /// connection ends with the runtime that opened it. Requests that it had not sent by then are lost, so keys may
    /// stay until their ttl is over. The connection cannot be used in a child of a `fork`.
    ///
    /// The client sends requests for one value over the connection one after the other, because a connection without
    /// room for more requests may let a later request pass an earlier one. Over such a connection it always deletes by
    /// a script.
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
        self.masters.push(Candidate::External(Arc::new(connection)));
        self
    }

    /// Adds masters that live in memory, for tests; see [`testing`](crate::testing).
    ///
    /// The client then uses Tokio's clock, which may be paused, and the seed of the masters. A warning is logged, in
    /// case this runs in a service.
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
        tracing::warn!("Redlock over masters in memory: for tests only, excludes no other process");
        self.home = Home::Current;
        self.clock = Clock::tokio();
        self.random = Random::seeded(masters.draw_seed());
        masters
            .iter()
            .fold(self, |builder, master| builder.connection(master.connect()))
    }

    /// Runs the connections and the background work of this client on your runtime. Defaults to the thread `redlock`,
    /// which all clients of the process share.
    ///
    /// This saves each call two hops between threads, about 30 µs. That is much when the masters are on the same
    /// machine, and little with a network between. Only the names of masters are looked up elsewhere: on a thread of
    /// its own for each look-up, at most one for each master at a time.
    ///
    /// The client then ends with the runtime: later calls fail, held locks count as lost, and keys that are not deleted
    /// yet stay until their ttl is over. So await [`shutdown`](Redlock::shutdown) before the runtime ends. While the
    /// runtime is not run, or its threads are blocked, the client does nothing: no lock is kept alive, and neither a
    /// `max_wait` nor the timeout of a shutdown ends a call.
    ///
    /// The runtime needs its I/O and time drivers ([`enable_all`](tokio::runtime::Builder::enable_all)). A child of a
    /// `fork` does not have the runtime's threads, so the child needs a client of its own. Masters in memory always use
    /// the current runtime.
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
        // Masters in memory keep `Home::Current`: they use the clock of the runtime that the test runs on.
        if matches!(self.home, Home::Thread | Home::Runtime(_)) {
            self.home = Home::Runtime(Named::new(runtime));
        }
        self
    }

    /// Sets the bytes that precede every resource in its key. Defaults to none.
    pub fn key_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.key_prefix = prefix.as_ref().to_vec();
        self
    }

    /// Sets how a call waits for a lock that is not granted at once. Defaults to [`RetryPolicy::new`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Sets how long a master may be silent before requests to it fail. Defaults to 250 ms. Must be between 1 ms and 60
    /// s.
    ///
    /// A request fails when it has waited for this long, and the master has sent no reply to any request meanwhile. So
    /// a master that answers slowly fails no request by its age. A request that finds no connection waits for one for
    /// at most this long. An attempt to connect has a limit of its own, which is this timeout too, but at least 400 ms
    /// and at most 2 s.
    ///
    /// A call waits this long only while a quorum depends on silent masters. While masters send replies, a call waits
    /// for as long as their replies are of use:
    ///
    /// - An attempt to lock waits until its validity would be over, or [`RetryPolicy::max_wait`] ends. An attempt that
    ///   begins shortly before the end of `max_wait` still gets one request timeout.
    /// - An extension waits until the old validity ends.
    /// - A release waits until the key has expired.
    ///
    /// The timeout should be several round trips, and short against the ttl: the time from the start of an attempt to
    /// its outcome is taken off the validity. The time that an attempt waits in line before its start is not.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the share of the ttl by which the clocks of masters and client may differ. Defaults to 0.01, as on the
    /// Redlock page. Must be between 0 and 0.5.
    ///
    /// This share of the ttl and 2 ms are taken off every validity. NTP corrects a clock by at most 0.0005. chrony may
    /// slew a clock by 0.08, so use that value where chrony is allowed to.
    pub fn drift_factor(mut self, factor: f64) -> Self {
        self.drift_factor = Some(factor);
        self
    }

    /// Checks the options and makes the client. Opens no connection and needs no runtime.
    ///
    /// One master is allowed, and so is an even number, but a warning is logged. One master is a single point of
    /// failure. An even number survives no more failures than one master less.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the master or the option: no master, the same master twice, a URL that cannot be
    /// used, TLS without its cargo feature, or a drift factor or request timeout out of range.
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
        let connectors = resolve(masters)?;
        warn_of_number(connectors.len());
        // Here and not at the first use: a fork by another thread could come in the middle of that.
        hash_scripts();
        Ok(Redlock::from_inner(Inner {
            connectors,
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

/// Turns every master into its address and what opens its connections.
fn resolve(candidates: Vec<Candidate>) -> Result<Vec<(Address, Connector)>, BuildError> {
    if candidates.is_empty() {
        return Err(BuildError::NoMaster);
    }
    let mut connectors: Vec<(Address, Connector)> = Vec::with_capacity(candidates.len());
    for (place, candidate) in candidates.into_iter().enumerate() {
        let (address, connector) = match candidate {
            Candidate::Url(url) => {
                let client = Client::open(url.as_str()).map_err(|error| refuse(&url, error))?;
                by_client(&client, &url)?
            }
            Candidate::Client(client) => by_client(&client, address(&client).as_str())?,
            Candidate::External(connection) => {
                let address = Address::new(format!("connection {}", place + 1));
                (address, Connector::External(connection))
            }
        };
        if connectors.iter().any(|(other, _)| is_same(other, &address)) {
            return Err(BuildError::DuplicateMaster { master: address });
        }
        connectors.push((address, connector));
    }
    Ok(connectors)
}

/// Whether two addresses name the same master, as far as that can be seen without a name look-up.
fn is_same(one: &Address, other: &Address) -> bool {
    // Only names that mean the same host on every machine. Any other pair of names needs a look-up, and `build` does no
    // I/O.
    let plain = |address: &Address| match address.as_str().rsplit_once(':') {
        Some(("localhost" | "[::1]", port)) => format!("127.0.0.1:{port}"),
        _ => address.to_string(),
    };
    plain(one) == plain(other)
}

fn by_client(client: &Client, given: &str) -> Result<(Address, Connector), BuildError> {
    let connector = Connector::client(client).map_err(|error| refuse(given, error))?;
    Ok((address(client), connector))
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

/// A URL without its user, password and query, because each of them may be secret. The text may be no URL at all.
fn redact(url: &str) -> String {
    let is_scheme = |text: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        !text.is_empty() && text.bytes().all(fits)
    };
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (format!("{scheme}://"), rest),
        _ => (String::new(), url),
    };
    // A password may hold any character. So all text before the last @ may belong to the password. If the last @ comes
    // after the start of a query, the text after that @ may belong to the query. Then nothing is shown.
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
            Self::External(_) => f.write_str("connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn a_redacted_url_has_no_user_password_or_query() {
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
        /// Capitals stand for text that may be secret: the password, the query, and what looks like either.
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
