//! Where the connections to one master come from.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, RedisResult, Value as Reply,
};
use tokio::sync::Semaphore;

use super::connection::{Given, Unwanted, Wire};
use super::request::scripts;
use super::unclosed::{Identity, Unclosed};
use crate::address::Address;
use crate::engine::Engine;

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
    pub(crate) async fn open(&self, engine: &Weak<Engine>) -> RedisResult<Wire> {
        let client = match self {
            Self::Client(client) => client,
            Self::Given(connection) => return Ok(Wire::given(Arc::clone(connection), engine)),
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
        Ok(Wire::own(connection, engine))
    }
}

/// Makes a connection ready for use, and returns what its master calls it.
pub(crate) async fn prepare(source: &Source, wire: &Wire) -> Option<Identity> {
    match source {
        Source::Client(_) => {
            let (identity, ()) = futures::join!(identify(wire), load_scripts(wire));
            identity
        }
        Source::Given(_) => {
            // Queued by the first poll, before any other request; nobody needs the reply.
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
    let (mut client, mut server) = (redis::cmd("CLIENT"), redis::cmd("INFO"));
    client.arg("INFO");
    server.arg("server");
    let (client, server) = futures::join!(text(wire, client), text(wire, server));
    let (client, server) = (client?, server?);
    let id = client
        .split(' ')
        .find_map(|field| field.strip_prefix("id="));
    let run = server.lines().find_map(|line| line.strip_prefix("run_id:"));
    Some(Identity {
        id: id?.parse().ok()?,
        run: run?.trim_end().to_owned(),
    })
}

async fn text(wire: &Wire, command: Cmd) -> Option<String> {
    let reply = wire
        .clone()
        .send(Arc::new(command), Unwanted::Dropped)
        .await
        .ok()?;
    String::from_redis_value(reply).ok()
}

/// Closes earlier connections at the master's end, by a new one.
///
/// What was still under way on them is refused from then on, so no request on the new connection is overtaken by one of
/// them. Those for which that is not certain are left, also if this is dropped half way.
pub(crate) async fn close(wire: &Wire, unclosed: &mut Unclosed, new: &Identity) {
    unclosed.forget_earlier_runs(&new.run);
    let closed = join_all(unclosed.identities().map(async |identity| {
        let Some(Identity { id, .. }) = identity else {
            return false;
        };
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(*id);
        // 1 if it was open, 0 if not.
        let killed = wire.send(Arc::new(kill), Unwanted::Dropped).await;
        matches!(killed, Ok(Reply::Int(_)))
    }));
    let closed = closed.await;
    unclosed.forget(&closed);
}

/// Without the scripts at hand, the first release would cost a second round trip, and come after whatever is sent
/// in between. A master that does not allow it gets them with the first request that needs one.
async fn load_scripts(wire: &Wire) {
    let load = |script| {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script);
        wire.send(Arc::new(load), Unwanted::Dropped)
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
