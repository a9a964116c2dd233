//! A real server behind TLS.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::proxy::Proxy;
use crate::scratch::Scratch;
use crate::server::Server;

/// A server with a certificate for `127.0.0.1` and `localhost`, by an authority of its own.
///
/// The server speaks TLS itself if it was built with it, and has a proxy do so otherwise.
#[derive(Debug)]
pub struct TlsServer {
    server: Server,
    proxy: Option<Proxy>,
    directory: Scratch,
    ca_pem: String,
}

impl TlsServer {
    /// Starts it and waits until it answers.
    pub fn start() -> Self {
        let directory = Scratch::new();
        let (ca_pem, acceptor) = certify(&directory);
        let file = |name| directory.join(name).display().to_string();
        let started = Server::try_start_with(&[
            "--port",
            "0",
            "--tls-port",
            "{port}",
            "--tls-ca-cert-file",
            &file("ca.pem"),
            "--tls-cert-file",
            &file("server.pem"),
            "--tls-key-file",
            &file("server.key"),
            "--tls-auth-clients",
            "no",
        ]);
        let (server, proxy) = match started {
            Ok(server) => (server, None),
            Err(log) if lacks_tls(&log) => {
                let server = Server::start();
                let proxy = Proxy::start_with_tls(&server, acceptor);
                (server, Some(proxy))
            }
            Err(log) => panic!("the server did not start with TLS:\n{log}"),
        };
        Self {
            server,
            proxy,
            directory,
            ca_pem,
        }
    }

    /// `127.0.0.1:port`
    pub fn addr(&self) -> String {
        match &self.proxy {
            Some(proxy) => proxy.addr(),
            None => self.server.addr(),
        }
    }

    /// `rediss://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("rediss://{}", self.addr())
    }

    /// The certificate of the authority, which a client has to trust.
    pub fn ca_pem(&self) -> Vec<u8> {
        self.ca_pem.clone().into_bytes()
    }

    /// The same as a file.
    pub fn ca_path(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// To look at its keys and to freeze it.
    pub fn server(&self) -> &Server {
        &self.server
    }
}

/// What a server built without TLS says of the option: Redis 7.2, Valkey and later; all before.
fn lacks_tls(log: &str) -> bool {
    log.contains("Failed finding TLS support") || log.contains("Bad directive")
}

/// Makes the certificates, as files and for a proxy.
fn certify(directory: &Scratch) -> (String, TlsAcceptor) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key pair can be generated");
    let ca = authority
        .self_signed(&authority_key)
        .expect("the authority can sign itself");
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate().expect("a key pair can be generated");
    let certificate = CertificateParams::new(["127.0.0.1".into(), "localhost".into()])
        .and_then(|params| params.signed_by(&key, &issuer))
        .expect("the authority can sign the server's certificate");

    for (name, pem) in [
        ("ca.pem", ca.pem()),
        ("server.pem", certificate.pem()),
        ("server.key", key.serialize_pem()),
    ] {
        fs::write(directory.join(name), pem).expect("our own directory is writable");
    }

    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("the key fits the certificate");
    (ca.pem(), TlsAcceptor::from(Arc::new(config)))
}
