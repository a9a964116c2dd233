//! Looks up the address of a master by its name: one look-up at a time, on a thread of its own.
//!
//! The resolver of the operating system blocks its thread, for minutes where a name server is silent. Tokio would give each
//! attempt to connect a thread of its pool, and wait for all of them when the runtime ends. Here all attempts wait for
//! the same look-up, and nobody waits for its thread.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::thread;

use futures::FutureExt;
use redis::io::AsyncDNSResolver;
use redis::{RedisFuture, RedisResult};

use crate::sync::{FairWatch, lock};

/// The name of the thread, as the system shows it.
const NAME: &str = "redlock-resolver";

/// Looks up the name of one master.
#[derive(Clone, Default)]
pub(crate) struct Resolver {
    under_way: Arc<Mutex<Option<Arc<Lookup>>>>,
}

/// A look-up, and what it found; `None` until it ends.
type Lookup = FairWatch<Option<Result<Vec<SocketAddr>, Failure>>>;

/// Why a name was not found. Cloned for all who wait.
#[derive(Clone)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Resolver {
    async fn look_up(&self, host: &str, port: u16) -> RedisResult<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let lookup = self.join_or_start(host, port)?;
        let found = lookup.wait_for(|| (), Option::clone).await;
        found.map_err(|failure| io::Error::new(failure.kind, failure.text).into())
    }

    /// The look-up that is under way, or a new one.
    fn join_or_start(&self, host: &str, port: u16) -> io::Result<Arc<Lookup>> {
        let mut under_way = lock(&self.under_way);
        if let Some(lookup) = &*under_way {
            return Ok(Arc::clone(lookup));
        }
        let lookup = Arc::new(Lookup::new(None));
        let (this, own, host) = (self.clone(), Arc::clone(&lookup), host.to_owned());
        // The mutex is held: a thread that ends at once waits here before it removes the look-up, which is then in place.
        thread::Builder::new().name(NAME.into()).spawn(move || {
            let found = find(&host, port);
            // Removed first, so that an attempt which comes after the result starts anew.
            *lock(&this.under_way) = None;
            own.modify(|ended| {
                *ended = Some(found);
                true
            });
        })?;
        *under_way = Some(Arc::clone(&lookup));
        Ok(lookup)
    }
}

fn find(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let found = (host, port).to_socket_addrs().map(Vec::from_iter);
    found.map_err(|error| Failure {
        kind: error.kind(),
        text: error.to_string(),
    })
}

impl AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        async move {
            let found = self.look_up(host, port).await?;
            Ok(Box::new(found.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_and_an_address_are_found() {
        let resolver = Resolver::default();
        let found = resolver
            .look_up("localhost", 6379)
            .await
            .expect("the system knows it");
        assert!(
            found
                .iter()
                .all(|it| it.ip().is_loopback() && it.port() == 6379)
        );
        for (ip, address) in [("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1")] {
            let found = resolver.look_up(ip, 1).await.expect("an address");
            assert_eq!(found, [address.parse().expect("an address")]);
        }
        assert!(lock(&resolver.under_way).is_none(), "nothing is remembered");
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_an_error_for_all_who_wait() {
        let resolver = Resolver::default();
        let (one, two) = futures::join!(
            resolver.look_up("no such name", 1),
            resolver.look_up("no such name", 1)
        );
        assert!(one.is_err() && two.is_err());
    }

    #[test]
    fn those_who_wait_share_one_look_up() {
        let resolver = Resolver::default();
        let under_way = Arc::new(Lookup::new(None));
        *lock(&resolver.under_way) = Some(Arc::clone(&under_way));
        let joined = resolver
            .join_or_start("localhost", 1)
            .expect("no thread is needed");
        assert!(Arc::ptr_eq(&joined, &under_way));
        // A future that is dropped leaves the look-up to the others.
        assert!(resolver.look_up("localhost", 1).now_or_never().is_none());
        assert!(lock(&resolver.under_way).is_some());
    }
}
