//! Masters behind TLS.

use std::time::Duration;

use redis::{Client, TlsCertificates};
use support::{LONG, Server, TlsServer, eventually_async, passes, test_process};
use tokio_redlock::{LockError, MasterError, Redlock, Vote};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// A client that trusts nobody but that authority.
fn trusting(ca_pem: Vec<u8>, url: String) -> Client {
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: Some(ca_pem),
    };
    Client::build_with_tls(url, certificates).expect("a valid URL and certificate")
}

fn only(client: Client) -> Redlock {
    let builder = Redlock::builder().client(client).request_timeout(LONG);
    builder.build().expect("a valid master")
}

/// Nobody but the crate installs a crypto provider. In a process of its own, where no other test has made the crate
/// install one.
#[test]
fn a_master_behind_tls_is_locked_extended_and_released() {
    passes(test_process(
        module_path!(),
        "child_that_uses_masters_behind_tls",
    ));
}

#[tokio::test]
#[ignore = "run by another test"]
async fn child_that_uses_masters_behind_tls() {
    let servers = [TlsServer::start(), TlsServer::start()];
    let plain = Server::start();
    let builder = Redlock::builder().request_timeout(LONG);
    let builder = servers.iter().fold(builder, |builder, server| {
        builder.client(trusting(server.ca_pem(), server.url()))
    });
    let dlm = builder.master(plain.url()).build().unwrap();

    let all = [servers[0].server(), servers[1].server(), &plain];
    let connected = async || {
        drop(dlm.lock("resource", TTL).await.unwrap());
        all.iter().all(|server| server.calls("set") > 0)
    };
    eventually_async("all connections are open", LONG, connected).await;

    let guard = dlm.lock("resource", TTL).await.unwrap();
    guard.extend(2 * TTL).await.unwrap();
    for server in all {
        let value = Some(guard.value().as_bytes().to_vec());
        let held = async || server.get("resource") == value;
        eventually_async("every master holds it", LONG, held).await;
    }
    let again = dlm.try_lock("resource", TTL).await;
    assert!(matches!(again, Err(LockError::Taken(_))), "{again:?}");
    guard.release().await.unwrap();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in all {
        assert!(server.keys().is_empty());
    }
}

#[tokio::test]
async fn a_name_in_the_certificate_is_as_good_as_an_address() {
    let server = TlsServer::start();
    let url = server.url().replace("127.0.0.1", "localhost");
    let dlm = only(trusting(server.ca_pem(), url));
    let guard = dlm.lock("resource", TTL).await.unwrap();
    assert_eq!(server.server().keys(), ["resource"]);
    guard.release().await.unwrap();
}

async fn assert_not_connected(dlm: Redlock, server: &TlsServer, cause: &str) {
    let attempt = dlm.try_lock("resource", TTL).await;
    let Err(LockError::Unreachable(attempts)) = &attempt else {
        panic!("not unreachable: {attempt:?}");
    };
    for ballot in &attempts.ballots {
        assert_eq!(ballot.master.as_str(), server.addr());
        assert!(
            matches!(ballot.vote, Vote::Failed(MasterError::Connect(_))),
            "{attempts}"
        );
    }
    let text = attempt.unwrap_err().to_string();
    assert!(text.contains(&server.addr()), "{text}");
    assert!(text.contains(cause), "{text}");
    assert!(server.server().keys().is_empty());
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_an_error_that_names_the_master() {
    let [server, other] = [TlsServer::start(), TlsServer::start()];
    let dlm = only(trusting(other.ca_pem(), server.url()));
    assert_not_connected(dlm, &server, "certificate").await;
}

#[tokio::test]
async fn a_url_alone_trusts_what_the_system_trusts() {
    let server = TlsServer::start();
    let builder = Redlock::builder().request_timeout(LONG);
    let dlm = builder.master(server.url()).build().unwrap();
    assert_not_connected(dlm, &server, "certificate").await;
}

#[tokio::test]
async fn a_master_that_does_not_speak_tls_is_an_error_that_names_it() {
    let tls = TlsServer::start();
    let plain = Server::start();
    let url = plain.url().replace("redis://", "rediss://");
    let dlm = only(trusting(tls.ca_pem(), url));
    let attempt = dlm.try_lock("resource", TTL).await;
    assert!(
        matches!(attempt, Err(LockError::Unreachable(_))),
        "{attempt:?}"
    );
    let text = attempt.unwrap_err().to_string();
    assert!(text.contains(&plain.addr()), "{text}");
}
