//! Old connections that the client closes at a master, and what it does where it must not or may not close them.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use redis::{Client, Connection, RedisResult, cmd};
use support::{Detour, Held, LONG, Server, eventually, eventually_async, unique};
use tokio_redlock::{LockError, Redlock};

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(60);

/// As long as a key that comes late may stay.
const FEW_SECONDS: Duration = Duration::from_secs(10);

fn client(url: &str) -> Redlock {
    // Patient with a master that is well on a machine that is not.
    let patience = Duration::from_secs(2);
    let builder = Redlock::builder().master(url).request_timeout(patience);
    builder.build().expect("a valid URL")
}

async fn lock_and_release(dlm: &Redlock) {
    eventually_async("it is locked", LONG, async || {
        let attempt = dlm.try_lock(unique("lock"), TTL).await;
        attempt.is_ok()
    })
    .await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

/// The id of the only connection to the server, looks left out.
fn only_id(server: &Server) -> u64 {
    let clients: String = server.query(cmd("CLIENT").arg("LIST"));
    let mut ids = clients
        .lines()
        .filter(|line| !line.contains(" name=look "))
        .map(id_of);
    let id = ids.next().expect("a connection");
    assert_eq!(ids.next(), None, "{clients}");
    id
}

fn id_of(line: &str) -> u64 {
    let id = line.split(' ').find_map(|field| field.strip_prefix("id="));
    id.and_then(|id| id.parse().ok()).expect("an id")
}

/// Opens connections until one of them has that id.
fn strangers(server: &Server, id: u64) -> Vec<Connection> {
    let client = Client::open(server.unix_url()).expect("a valid URL");
    let mut strangers = Vec::new();
    loop {
        let mut stranger = client.get_connection().expect("it accepts connections");
        let its: u64 = cmd("CLIENT").arg("ID").query(&mut stranger).expect("an id");
        strangers.push(stranger);
        if its >= id {
            assert_eq!(its, id, "somebody else has it");
            return strangers;
        }
    }
}

#[tokio::test]
async fn a_stranger_that_has_the_id_of_our_connection_after_a_restart_is_not_closed() {
    let mut server = Server::start();
    // All connections over the socket have the same address.
    for url in [server.url(), server.unix_url()] {
        // Each look takes an id. So the id of our connection is not taken as soon as the server is up again.
        for _ in 0..30 {
            server.query::<()>(&cmd("PING"));
        }
        let dlm = client(&url);
        lock_and_release(&dlm).await;
        let id = only_id(&server);
        server.restart();
        let mut strangers = strangers(&server, id);
        lock_and_release(&dlm).await;
        for stranger in &mut strangers {
            let alive: RedisResult<String> = cmd("PING").query(stranger);
            assert_eq!(alive.as_deref(), Ok("PONG"), "closed, {url}");
        }
    }
}

/// A resource, and a way to the server that loses the connection with the first request about it.
fn detour(server: &Server) -> (Detour, String) {
    let resource = unique("late");
    let detour = Detour::over_socket(server, &resource);
    (detour.expect("it can listen"), resource)
}

/// Asks for the lock, and loses the connection with the SET. The client undoes the SET over another connection.
async fn lose_a_set(detour: Detour, dlm: &Redlock, resource: &str) -> Held {
    let attempt = dlm.try_lock(resource, TTL).await;
    assert!(
        matches!(attempt, Err(LockError::Unreachable(_))),
        "{attempt:?}"
    );
    detour.held().await
}

#[tokio::test]
async fn a_predecessor_that_is_still_open_is_closed_over_a_socket_too() {
    let server = Server::start();
    let (detour, resource) = detour(&server);
    let dlm = client(&detour.url());
    lock_and_release(&dlm).await;
    let held = lose_a_set(detour, &dlm, &resource).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let sets = server.calls("set");
    held.deliver().await;
    assert_eq!(server.calls("set"), sets, "it was executed");
    assert_eq!(server.get(&resource), None);
}

/// Delivers a SET after its delete. The client must delete the key again, and `shutdown` must count that delete as
/// unconfirmed before.
async fn is_deleted_again(server: &Server, dlm: &Redlock, resource: &str, held: Held) {
    // Long enough for a delete that is answered.
    let unconfirmed = dlm.shutdown(Duration::from_secs(1)).await;
    let sets = server.calls("set");
    held.deliver().await;
    assert_eq!(server.calls("client|kill"), 0, "it was allowed");
    assert_eq!(server.calls("set"), sets + 1, "it did not arrive");
    let gone = async || server.get(resource).is_none();
    eventually_async("deleted again", FEW_SECONDS, gone).await;
    assert_eq!(unconfirmed, 1, "confirmed while the SET was under way");
}

#[tokio::test]
async fn a_late_set_is_deleted_again_where_the_client_may_not_close_connections() {
    let user = ["default", "on", "nopass", "~*", "&*", "+@all"];
    let server = Server::start_with(&[&["--user"], &user[..], &["-client|kill"]].concat());
    let (detour, resource) = detour(&server);
    let dlm = client(&detour.url());
    lock_and_release(&dlm).await;
    let held = lose_a_set(detour, &dlm, &resource).await;
    is_deleted_again(&server, &dlm, &resource, held).await;
}

/// A script that spins on a server, which answers BUSY to all others.
struct Spinning(JoinHandle<()>);

impl Spinning {
    fn start(server: &Server) -> Self {
        let client = Client::open(server.unix_url()).expect("a valid URL");
        let spinning = thread::spawn(move || {
            let mut connection = client.get_connection().expect("it accepts connections");
            let spin = cmd("EVAL").arg("while true do end").arg(0).clone();
            spin.exec(&mut connection).expect_err("it is killed");
        });
        eventually("it is busy", LONG, || {
            let look = server.try_query::<()>(&cmd("PING"));
            look.is_err_and(|error| error.code() == Some("BUSY"))
        });
        Self(spinning)
    }

    fn kill(self, server: &Server) {
        let client = Client::open(server.unix_url()).expect("a valid URL");
        let mut connection = client.get_connection().expect("it accepts connections");
        let kill = cmd("SCRIPT").arg("KILL").exec(&mut connection);
        kill.expect("it has written nothing");
        self.0.join().expect("it ends by an error");
    }
}

#[tokio::test]
async fn a_late_set_is_deleted_again_where_the_master_was_too_busy_to_close_connections() {
    let server = Server::start_with(&["--lua-time-limit", "5"]);
    let (detour, resource) = detour(&server);
    let dlm = client(&detour.url());
    lock_and_release(&dlm).await;
    let spinning = Spinning::start(&server);
    let held = lose_a_set(detour, &dlm, &resource).await;
    // The next connection is in use when it is answered BUSY. So the master has refused to close the old one.
    eventually_async("the next connection", LONG, async || {
        format!("{:?}", dlm.inspect(&resource).await).contains("BUSY")
    })
    .await;
    spinning.kill(&server);
    is_deleted_again(&server, &dlm, &resource, held).await;
}
