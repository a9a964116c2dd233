//! Where the connections to one master come from.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, RedisResult};
use tokio::sync::Semaphore;

use super::request::scripts;
use super::wire::{Given, Wire};
use crate::error::Address;

/// An idle connection is probed after so long: below the five minutes after which common firewalls forget it.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Bytes that stay unacknowledged for so long end the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// What connections are made of.
#[derive(Clone)]
pub(crate) enum Source {
    Client(Box<Client>),
    Given(Arc<dyn Given>),
}

/// A connection as its master knows it.
#[derive(Clone)]
pub(crate) struct Identity {
    id: u64,
    /// The address that the master sees, so that no other connection is meant should ids have started again.
    address: String,
}

impl Source {
    /// Connections by a client, with the socket options that notice a dead peer.
    pub(crate) fn client(client: &Client) -> RedisResult<Self> {
        let info = client.get_connection_info().clone();
        let mut tcp = info.tcp_settings().clone().set_nodelay(true);
        if tcp.keepalive().is_none() {
            tcp = tcp.set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
        }
        #[cfg(any(target_os = "android", target_os = "linux"))]
        if tcp.user_timeout().is_none() {
            tcp = tcp.set_user_timeout(USER_TIMEOUT);
        }
        let client = Client::open(info.set_tcp_settings(tcp))?;
        Ok(Self::Client(Box::new(client)))
    }

    /// Whether a connection that hangs or broke can be replaced by a new one.
    pub(crate) fn reconnects(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// Opens a connection; to be prepared before use.
    pub(crate) async fn open(&self) -> RedisResult<Wire> {
        let client = match self {
            Self::Client(client) => client,
            Self::Given(connection) => return Ok(Wire::to(Arc::clone(connection))),
        };
        install_crypto_provider(client);
        let config = AsyncConnectionConfig::new()
            // Timeouts are ours; a request is followed to its end.
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(Semaphore::MAX_PERMITS);
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Wire::Own(connection))
    }
}

/// Makes a connection ready for use, and tells what it is called at the master's end.
///
/// Its predecessor is closed there. Whatever was still under way on that is refused from then on, so that no
/// request sent on the new connection is overtaken by one of the old. A master that does not allow it, or does not
/// know the command, is used all the same.
pub(crate) async fn prepare(wire: &Wire, predecessor: Option<Identity>) -> Option<Identity> {
    match wire {
        Wire::Own(_) => {
            let ((), identity, ()) =
                futures::join!(close(wire, predecessor), identify(wire), load_scripts(wire));
            identity
        }
        Wire::Given(_) => {
            // Handed over by the first poll, before any other request; nobody needs the reply.
            let _ = load_scripts(wire).now_or_never();
            None
        }
    }
}

/// The address of the master that a client connects to.
pub(crate) fn address(client: &Client) -> Address {
    let text = match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            let host = host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_ascii_lowercase();
            match host.parse() {
                Ok(ip) => std::net::SocketAddr::new(ip, *port).to_string(),
                Err(_) => format!("{host}:{port}"),
            }
        }
        other => other.to_string(),
    };
    Address::new(text)
}

async fn identify(wire: &Wire) -> Option<Identity> {
    let mut info = redis::cmd("CLIENT");
    info.arg("INFO");
    let reply = wire.clone().send(Arc::new(info)).await.ok()?;
    let line = String::from_redis_value(reply).ok()?;
    let field = |name| line.split(' ').find_map(|field| field.strip_prefix(name));
    Some(Identity {
        id: field("id=")?.parse().ok()?,
        address: field("addr=")?.to_owned(),
    })
}

/// Closes another connection at the master's end, if that is allowed.
pub(crate) async fn close(wire: &Wire, other: Option<Identity>) {
    let Some(Identity { id, address }) = other else {
        return;
    };
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("ID").arg(id).arg("ADDR").arg(address);
    // Whatever the reply: there is nothing more to be done about it.
    drop(wire.clone().send(Arc::new(kill)).await);
}

/// Without the scripts at hand, the first release would cost a second round trip, and come after whatever is sent
/// in between. A master that does not allow it gets them with the first request that needs one.
async fn load_scripts(wire: &Wire) {
    let load = |script| {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script);
        wire.clone().send(Arc::new(load))
    };
    join_all(scripts().map(load)).await;
}

/// With rustls, an application that has not chosen a crypto provider gets ours.
#[cfg(feature = "tls-rustls")]
fn install_crypto_provider(client: &Client) {
    use rustls::crypto::{CryptoProvider, ring};

    let tls = matches!(
        client.get_connection_info().addr(),
        ConnectionAddr::TcpTls { .. }
    );
    if tls && CryptoProvider::get_default().is_none() {
        // Fails only if another thread was quicker, and then there is one.
        let _ = ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "tls-rustls"))]
fn install_crypto_provider(_: &Client) {}
