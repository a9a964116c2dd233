//! The servers and proxies of the tests, and their faults, do what they promise.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use redis::{Client, Connection, FromRedisValue, RedisResult, cmd};
use support::{
    LONG, Logs, Proxy, Server, TlsServer, Upstream, eventually, eventually_async, unique,
};

fn connect(url: String) -> Connection {
    let client = Client::open(url).expect("a valid URL");
    let connection = client.get_connection_with_timeout(LONG);
    let connection = connection.expect("a connection");
    connection
        .set_read_timeout(Some(LONG))
        .expect("a valid timeout");
    connection
}

fn ping(connection: &mut Connection) -> RedisResult<String> {
    cmd("PING").query(connection)
}

fn times_out<T: FromRedisValue>(connection: &mut Connection) -> bool {
    let short = Some(Duration::from_millis(100));
    connection.set_read_timeout(short).expect("a valid timeout");
    let answer = cmd("PING").query::<T>(connection);
    connection
        .set_read_timeout(Some(LONG))
        .expect("a valid timeout");
    answer.is_err_and(|error| error.is_timeout())
}

#[test]
fn servers_are_separate_and_answer_on_both_ports_and_sockets() {
    let servers = Server::many(3);
    let key = unique("key");
    servers[0].set(&key, "value");
    assert_eq!(servers[0].keys(), [key]);
    for server in &servers[1..] {
        assert!(server.keys().is_empty());
    }
    for server in Server::many(2).iter().chain(&servers) {
        assert_eq!(ping(&mut connect(server.url())).unwrap(), "PONG");
        assert_eq!(ping(&mut connect(server.unix_url())).unwrap(), "PONG");
    }
}

#[test]
fn looks_show_what_clients_did() {
    let server = Server::start();
    assert_eq!(server.calls("set"), 0);
    let key = unique("key").into_bytes();
    server.set_px(&key, &[0xff_u8, 0x00], 60_000);
    assert_eq!(server.calls("set"), 1);
    assert_eq!(server.get(&key), Some(vec![0xff, 0x00]));
    assert!((1..=60_000).contains(&server.pttl(&key)));
    assert!(server.del(&key));
    assert!(!server.del(&key));
    assert_eq!(server.get(&key), None);
    assert_eq!(server.pttl(&key), -2);
}

#[test]
fn clients_are_counted_without_the_look_and_can_be_killed() {
    let server = Server::start();
    assert_eq!(server.connected_clients(), 0);
    let mut clients = [connect(server.url()), connect(server.unix_url())];
    assert_eq!(server.connected_clients(), 2);
    server.kill_clients();
    assert_eq!(server.connected_clients(), 0);
    assert!(clients.iter_mut().all(|client| ping(client).is_err()));
}

#[test]
fn a_configuration_may_name_the_port() {
    let server = Server::start_with(&["--dbfilename", "{port}.rdb"]);
    let answer: [String; 2] = server.query(cmd("CONFIG").arg(&["GET", "dbfilename"]));
    assert_eq!(answer[1], format!("{}.rdb", server.port()));
}

#[test]
fn a_killed_server_refuses_connections_until_restarted_empty_on_the_same_port() {
    let mut server = Server::start();
    let (port, pid) = (server.port(), server.pid());
    server.set("key", "value");
    server.kill();
    assert!(!server.is_running());
    assert!(TcpStream::connect(server.addr()).is_err());
    assert!(server.try_query::<()>(&cmd("PING")).is_err());

    server.restart();
    assert!(server.is_running());
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert!(server.keys().is_empty());
    assert_eq!(ping(&mut connect(server.url())).unwrap(), "PONG");
}

#[test]
fn a_frozen_server_accepts_but_answers_only_when_thawed() {
    let mut server = Server::start();
    let mut client = connect(server.url());
    server.freeze();
    server.freeze();
    assert!(server.is_running());
    assert!(TcpStream::connect(server.addr()).is_ok());
    assert!(times_out::<String>(&mut client));
    server.thaw();
    assert_eq!(ping(&mut connect(server.url())).unwrap(), "PONG");
    server.freeze();
    server.restart();
    assert_eq!(ping(&mut connect(server.url())).unwrap(), "PONG");
}

#[test]
fn a_proxy_forwards_and_counts() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let mut clients = [connect(proxy.url()), connect(proxy.url())];
    for client in &mut clients {
        assert_eq!(ping(client).unwrap(), "PONG");
    }
    assert_eq!((proxy.connects(), proxy.connections()), (2, 2));
    drop(clients);
    eventually("both closed", LONG, || proxy.connections() == 0);
    eventually("both gone", LONG, || server.connected_clients() == 0);
    assert_eq!(proxy.connects(), 2);
}

#[test]
fn a_delay_is_added_to_every_way_without_limiting_throughput() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let mut client = connect(proxy.url());
    let delay = Duration::from_millis(150);
    const PIECES: u32 = 200;

    proxy.delay(delay);
    let start = Instant::now();
    ping(&mut client).unwrap();
    assert!(start.elapsed() >= 2 * delay);

    proxy.delay_answers(delay);
    let start = Instant::now();
    let ping = cmd("PING").get_packed_command();
    for _ in 0..PIECES {
        client.send_packed_command(&ping).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..PIECES {
        client.recv_response().unwrap();
    }
    assert!(start.elapsed() >= delay);
    assert!(start.elapsed() < delay * PIECES / 2);
}

#[test]
fn a_hung_proxy_keeps_what_is_sent_and_delivers_it_later() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let mut client = connect(proxy.url());
    proxy.hang();
    assert!(TcpStream::connect(proxy.addr()).is_ok());
    client
        .send_packed_command(&cmd("SET").arg("key").arg("value").get_packed_command())
        .unwrap();
    assert!(times_out::<()>(&mut client));
    assert_eq!(server.get("key"), None);
    drop(client);
    eventually("its end is noticed", LONG, || proxy.connections() == 0);
    assert_eq!(server.get("key"), None);
    proxy.resume();
    eventually("the late request", LONG, || server.get("key").is_some());
}

#[test]
fn a_refusing_proxy_closes_everything_until_resumed() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let mut client = connect(proxy.url());
    proxy.refuse();
    assert_eq!(proxy.connections(), 0);
    assert!(TcpStream::connect(proxy.addr()).is_err());
    assert!(ping(&mut client).is_err());
    proxy.resume();
    assert_eq!(ping(&mut connect(proxy.url())).unwrap(), "PONG");
}

#[test]
fn a_cut_closes_connections_and_lets_new_ones_in() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let mut client = connect(proxy.url());
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
    assert!(ping(&mut client).is_err());
    assert_eq!(ping(&mut connect(proxy.url())).unwrap(), "PONG");
}

#[test]
fn a_cut_after_a_request_executes_it_and_loses_the_answer_once() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    for (upstream, left) in [(Upstream::Closed, 0), (Upstream::Kept, 1)] {
        let key = unique("key");
        let mut client = connect(proxy.url());
        proxy.cut_after_request(&key, upstream);
        assert_eq!(ping(&mut client).unwrap(), "PONG");
        let set = cmd("SET").arg(&key).arg("value").query::<()>(&mut client);
        assert!(set.is_err_and(|error| error.is_connection_dropped()));
        eventually("executed", LONG, || server.get(&key).is_some());
        eventually("cut", LONG, || server.connected_clients() == left);
        assert_eq!(proxy.connections(), 0);

        let mut again = connect(proxy.url());
        cmd("SET").arg(&key).arg("v").exec(&mut again).unwrap();
    }
    proxy.cut();
    eventually("none kept", LONG, || server.connected_clients() == 0);
}

#[tokio::test]
async fn a_proxy_works_under_a_runtime_and_is_dropped_there() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let client = Client::open(proxy.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    proxy.cut_after_request("key", Upstream::Closed);
    let answer: RedisResult<()> = cmd("SET")
        .arg("key")
        .arg("value")
        .query_async(&mut connection)
        .await;
    assert!(answer.is_err());
    eventually_async("executed", LONG, async || server.get("key").is_some()).await;
}

#[test]
fn tls_servers_have_authorities_of_their_own() {
    let [one, other] = [TlsServer::start(), TlsServer::start()];
    assert_ne!(one.ca_pem(), other.ca_pem());
    assert_eq!(std::fs::read(one.ca_path()).unwrap(), one.ca_pem());
    assert!(one.server().keys().is_empty());
    assert!(connects_in_plain(&one).is_err());
}

fn connects_in_plain(server: &TlsServer) -> RedisResult<Connection> {
    Client::open(format!("redis://{}", server.addr()))?.get_connection_with_timeout(LONG)
}

#[cfg(feature = "tls-rustls")]
#[test]
fn a_tls_server_answers_whoever_trusts_its_authority() {
    use redis::TlsCertificates;
    use tokio_rustls::rustls::crypto::ring;

    let _ = ring::default_provider().install_default();
    let connect = |server: &TlsServer, ca_pem| {
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: Some(ca_pem),
        };
        Client::build_with_tls(server.url(), certificates)?.get_connection_with_timeout(LONG)
    };
    let [server, other] = [TlsServer::start(), TlsServer::start()];
    let mut connection = connect(&server, server.ca_pem()).expect("a connection");
    cmd("SET")
        .arg("key")
        .arg("v")
        .exec(&mut connection)
        .unwrap();
    assert_eq!(server.server().keys(), ["key"]);
    assert!(connect(&server, other.ca_pem()).is_err());
}

#[test]
fn logs_are_captured_until_dropped() {
    let logs = Logs::capture();
    tracing::debug!(resource = "r", "seen");
    assert!(logs.text().contains("DEBUG"));
    assert!(logs.text().contains("seen resource=\"r\""));
    drop(logs);
    let logs = Logs::capture();
    assert_eq!(logs.text(), "");
}
