//! Opens the connections to one master, and sets them up.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, RedisResult, Value as Reply,
};
use tokio::sync::Semaphore;

use super::connection::{Command, Connection, External, Terms};
use super::request::{DeleteBy, scripts};
use super::resolver::Resolver;
use super::unclosed::{ClientId, Unclosed};
use crate::address::Address;
use crate::engine::Engine;

/// The operating system probes a connection after it was idle for this long. Common firewalls forget an idle connection
/// after five minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The operating system ends a connection when bytes stay unacknowledged for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections to one master.
#[derive(Clone)]
pub(crate) enum Connector {
    /// Opens connections of our own.
    Client(Box<Client>),
    /// Hands out the connection that the user has handed in.
    External(Arc<dyn External>),
}

impl Connector {
    /// Opens connections by a client. Adds socket options that notice a dead peer, unless the client has its own.
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

    /// Whether a new connection can replace one that hangs or broke.
    pub(crate) fn reconnects(&self) -> bool {
        matches!(self, Self::Client(_))
    }

    /// Opens a connection. [`set_up`](Self::set_up) must follow before the connection is used.
    pub(crate) async fn open(
        &self,
        terms: Terms,
        resolver: &Resolver,
        engine: &Weak<Engine>,
    ) -> RedisResult<Connection> {
        let client = match self {
            Self::Client(client) => client,
            Self::External(connection) => {
                let connection = Arc::clone(connection);
                return Ok(Connection::external(connection, terms, engine));
            }
        };
        install_crypto_provider(client);
        let config = AsyncConnectionConfig::new()
            // The caller limits how long connecting takes, and the job that serves the connection notices silence. The
            // connection waits for every reply, however late: with a timeout of its own it would report a request as
            // failed that may still be executed.
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_dns_resolver(resolver.clone())
            // No limit: where the buffer of the connection is full, a later request could pass an earlier one.
            .set_pipeline_buffer_size(Semaphore::MAX_PERMITS);
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Connection::own(connection, terms, engine))
    }

    /// Sends what a new connection needs before its first request. Returns what the master replies about itself.
    pub(crate) async fn set_up(&self, connection: &Connection) -> Greeting {
        match self {
            Self::Client(_) => {
                let (greeting, ()) = futures::join!(greet(connection), load_scripts(connection));
                greeting
            }
            Self::External(_) => {
                // The first poll queues the commands, ahead of every request. Nobody needs the replies.
                let _ = load_scripts(connection).now_or_never();
                Greeting {
                    client_id: None,
                    delete_by: DeleteBy::Script,
                }
            }
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

/// What a master replies about itself and a new connection, as far as the user may ask.
pub(crate) struct Greeting {
    pub(crate) client_id: Option<ClientId>,
    pub(crate) delete_by: DeleteBy,
}

async fn greet(connection: &Connection) -> Greeting {
    let (mut client, mut server) = (redis::cmd("CLIENT"), redis::cmd("INFO"));
    client.arg("INFO");
    server.arg("server");
    let (client, server) = futures::join!(text(connection, client), text(connection, server));
    Greeting {
        delete_by: DeleteBy::of_server(server.as_deref().unwrap_or_default()),
        client_id: client_id(client, server),
    }
}

/// The id of the connection, with that of the master's run.
fn client_id(client: Option<String>, server: Option<String>) -> Option<ClientId> {
    let (client, server) = (client?, server?);
    let id = client
        .split(' ')
        .find_map(|field| field.strip_prefix("id="));
    let run = server.lines().find_map(|line| line.strip_prefix("run_id:"));
    Some(ClientId {
        id: id?.parse().ok()?,
        run: run?.trim_end().to_owned(),
    })
}

/// Sends a command. Returns the reply if it is a text.
async fn text(connection: &Connection, cmd: Cmd) -> Option<String> {
    let command = Command::plain(cmd);
    let reply = connection.send_plain(command).await.ok()?;
    String::from_redis_value(reply).ok()
}

/// Closes earlier connections at the master's end, over a new connection.
///
/// A closed connection executes nothing more. So no request that is still under way on an earlier connection is
/// executed after a request on the new one. What the master has not confirmed as closed stays in `unclosed`, also where
/// this future is dropped before the replies.
pub(crate) async fn close_earlier(
    connection: &Connection,
    unclosed: &mut Unclosed,
    new: &ClientId,
) {
    unclosed.forget_earlier_runs(&new.run);
    let closed = join_all(unclosed.client_ids().map(async |client_id| {
        let Some(ClientId { id, .. }) = client_id else {
            return false;
        };
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("ID").arg(*id);
        // The reply is 1 if the connection was open, and 0 if it was closed before.
        let killed = connection.send_plain(Command::plain(kill));
        matches!(killed.await, Ok(Reply::Int(_)))
    }));
    let closed = closed.await;
    unclosed.forget(&closed);
}

/// Loads the scripts into the master.
///
/// Without them the first release would take a second round trip, and other requests could be executed in between.
/// Where the user may not load scripts, the first request that needs a script sends its text.
async fn load_scripts(connection: &Connection) {
    let load = |script| {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script);
        connection.send_plain(Command::plain(load))
    };
    join_all(scripts().map(load)).await;
}

/// With rustls: installs a crypto provider if the application has not installed one.
#[cfg(feature = "tls-rustls")]
fn install_crypto_provider(client: &Client) {
    use rustls::crypto::{CryptoProvider, ring};

    let tls = matches!(
        client.get_connection_info().addr(),
        ConnectionAddr::TcpTls { .. }
    );
    if tls && CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just installed one.
        let _ = ring::default_provider().install_default();
    }
}

#[cfg(not(feature = "tls-rustls"))]
fn install_crypto_provider(_: &Client) {}
