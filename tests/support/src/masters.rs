//! The masters of one test, and what their keys show.

use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::ToSingleRedisArg;
use tokio::time::sleep;
use tokio_redlock::{LockGuard, Redlock, RedlockBuilder};

use crate::LONG;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::turn::Turn;
use crate::wait::eventually_async;

/// After so long a key that is not there will not come.
const SETTLED: Duration = Duration::from_millis(400);

/// Masters that belong to one test. They are killed when this is dropped.
///
/// This is a slice of servers, in the order in which the clients know them. Any of them can have a proxy in front of it,
/// which is then what the clients connect to.
#[derive(Debug)]
pub struct Masters {
    // Before the servers, so that no proxy forwards anything to a port whose server is gone.
    proxies: Vec<Option<Proxy>>,
    servers: Vec<Server>,
    _turn: Arc<Turn>,
}

impl Masters {
    /// Starts so many at the same time. Waits before while many other tests have masters.
    pub fn start(n: usize) -> Self {
        let turn = Turn::take();
        Self::new(Server::many(n), turn)
    }

    /// Starts so many at the same time, each with a proxy in front of it.
    pub fn behind_proxies(n: usize) -> Self {
        Self::start(n).with_proxies(0..n)
    }

    /// Puts a proxy in front of each of these. Clients that are made from now on connect to the proxies.
    #[must_use]
    pub fn with_proxies(mut self, places: impl IntoIterator<Item = usize>) -> Self {
        for place in places {
            self.proxies[place] = Some(Proxy::start(&self.servers[place]));
        }
        self
    }

    fn new(servers: Vec<Server>, turn: Arc<Turn>) -> Self {
        Self {
            proxies: servers.iter().map(|_| None).collect(),
            servers,
            _turn: turn,
        }
    }

    /// The URL of each, which is that of its proxy if it has one.
    pub fn urls(&self) -> Vec<String> {
        let masters = self.servers.iter().zip(&self.proxies);
        let url = |(server, proxy): (&Server, &Option<Proxy>)| match proxy {
            Some(proxy) => proxy.url(),
            None => server.url(),
        };
        masters.map(url).collect()
    }

    /// Options of a client of all of them.
    pub fn builder(&self) -> RedlockBuilder {
        Redlock::builder().masters(self.urls())
    }

    /// A client of all of them with the default options.
    pub fn client(&self) -> Redlock {
        self.builder().build().expect("valid masters")
    }

    /// A client that waits [`LONG`] for each answer, so that a busy machine does not make it fail.
    pub fn patient_client(&self) -> Redlock {
        let builder = self.builder().request_timeout(LONG);
        builder.build().expect("valid masters")
    }

    /// The proxy in front of a master.
    pub fn proxy(&self, place: usize) -> &Proxy {
        self.proxies[place].as_ref().expect("it has a proxy")
    }

    /// All proxies that there are, in the order of the masters.
    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.proxies.iter().flatten()
    }
}

impl From<Vec<Server>> for Masters {
    fn from(servers: Vec<Server>) -> Self {
        Self::new(servers, Turn::take())
    }
}

impl Deref for Masters {
    type Target = [Server];

    fn deref(&self) -> &[Server] {
        &self.servers
    }
}

impl DerefMut for Masters {
    fn deref_mut(&mut self) -> &mut [Server] {
        &mut self.servers
    }
}

impl<'a> IntoIterator for &'a Masters {
    type Item = &'a Server;
    type IntoIter = slice::Iter<'a, Server>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Masters {
    type Item = &'a mut Server;
    type IntoIter = slice::IterMut<'a, Server>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// What several servers show together.
pub trait Servers {
    /// How many of them hold the key of a lock with its value.
    fn holders(&self, guard: &LockGuard) -> usize;

    /// Whether each of them holds the key of a lock with its value.
    fn all_hold(&self, guard: &LockGuard) -> bool;

    /// Whether each of them has a key of that name, whatever its value.
    fn all_have(&self, key: impl ToSingleRedisArg + Copy) -> bool;

    /// Whether none of them has any key.
    fn are_empty(&self) -> bool;

    /// How often all of them together ran a command, see [`Server::calls`].
    fn calls(&self, command: &str) -> u64;

    /// How often all of them together deleted a key, see [`Server::deletes`].
    fn deletes(&self) -> u64;

    /// Waits until each of them holds the key of a lock with its value.
    fn eventually_hold(&self, guard: &LockGuard) -> impl Future<Output = ()>;

    /// Waits until each of them has a key of that name, whatever its value.
    fn eventually_have(&self, key: impl ToSingleRedisArg + Copy) -> impl Future<Output = ()>;

    /// Waits until none of them has any key.
    fn eventually_empty(&self) -> impl Future<Output = ()>;

    /// Takes a lock whose key is on each of them, also on one that a busy machine made too slow for the first attempt.
    fn lock_everywhere(
        &self,
        dlm: &Redlock,
        resource: &str,
        ttl: Duration,
    ) -> impl Future<Output = LockGuard>;
}

impl Servers for [Server] {
    fn holders(&self, guard: &LockGuard) -> usize {
        self.iter().filter(|server| server.holds(guard)).count()
    }

    fn all_hold(&self, guard: &LockGuard) -> bool {
        self.iter().all(|server| server.holds(guard))
    }

    fn all_have(&self, key: impl ToSingleRedisArg + Copy) -> bool {
        self.iter().all(|server| server.get(key).is_some())
    }

    fn are_empty(&self) -> bool {
        self.iter().all(|server| server.keys().is_empty())
    }

    fn calls(&self, command: &str) -> u64 {
        self.iter().map(|server| server.calls(command)).sum()
    }

    fn deletes(&self) -> u64 {
        self.iter().map(Server::deletes).sum()
    }

    async fn eventually_hold(&self, guard: &LockGuard) {
        let hold = async || self.all_hold(guard);
        eventually_async("every master holds the lock", LONG, hold).await;
    }

    async fn eventually_have(&self, key: impl ToSingleRedisArg + Copy) {
        let have = async || self.all_have(key);
        eventually_async("every master has the key", LONG, have).await;
    }

    async fn eventually_empty(&self) {
        let empty = async || self.are_empty();
        eventually_async("no key is left on any master", LONG, empty).await;
    }

    async fn lock_everywhere(&self, dlm: &Redlock, resource: &str, ttl: Duration) -> LockGuard {
        let start = Instant::now();
        loop {
            let guard = dlm.lock(resource, ttl).await.expect("it is free");
            let latest = Instant::now() + SETTLED;
            while Instant::now() < latest {
                if self.all_hold(&guard) {
                    return guard;
                }
                sleep(Duration::from_millis(2)).await;
            }
            assert!(start.elapsed() < LONG, "never on all masters");
            drop(guard);
            assert_eq!(dlm.shutdown(LONG).await, 0);
        }
    }
}
