//! A way to a server on which one request is held back while its connection ends.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::server::Server;

/// A way to a server that holds back the first request that contains a pattern, and closes the client's side of its
/// connection at that moment. The server does not notice.
///
/// It lives in the runtime in which it was started.
#[derive(Debug)]
pub struct Detour {
    url: String,
    held: oneshot::Receiver<Held>,
}

impl Detour {
    /// Starts one that leads to the server's port.
    pub async fn over_tcp(server: &Server, pattern: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("redis://{}", listener.local_addr()?);
        let (hold, held) = Hold::new(pattern);
        tokio::spawn(accept_tcp(listener, server.addr(), hold));
        Ok(Self { url, held })
    }

    /// Starts one that leads to the server's Unix socket.
    pub fn over_socket(server: &Server, pattern: &str) -> io::Result<Self> {
        let target = server.socket_path();
        let path = target.with_file_name("detour");
        let listener = UnixListener::bind(&path)?;
        let url = format!("unix://{}", path.display());
        let (hold, held) = Hold::new(pattern);
        tokio::spawn(accept_socket(listener, target, hold));
        Ok(Self { url, held })
    }

    /// What a client has to be given.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Waits for the request.
    pub async fn held(self) -> Held {
        self.held.await.expect("the request was sent")
    }
}

async fn accept_tcp(listener: TcpListener, target: String, hold: Hold) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let server = TcpStream::connect(&target).await?;
        tokio::spawn(relay(client, server, hold.clone()));
    }
}

async fn accept_socket(listener: UnixListener, target: PathBuf, hold: Hold) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        let server = UnixStream::connect(&target).await?;
        tokio::spawn(relay(client, server, hold.clone()));
    }
}

/// Which request is held back, and who waits for it until it was.
#[derive(Clone)]
struct Hold {
    pattern: Arc<[u8]>,
    waiting: Arc<Mutex<Option<oneshot::Sender<Held>>>>,
}

impl Hold {
    fn new(pattern: &str) -> (Self, oneshot::Receiver<Held>) {
        let (waiting, held) = oneshot::channel();
        let hold = Self {
            pattern: pattern.as_bytes().into(),
            waiting: Arc::new(Mutex::new(Some(waiting))),
        };
        (hold, held)
    }

    /// Who waits for that request, if it is the one. That happens once.
    fn takes(&self, request: &[u8]) -> Option<oneshot::Sender<Held>> {
        let mut windows = request.windows(self.pattern.len());
        let found = windows.any(|window| window == &*self.pattern);
        let mut waiting = self.waiting.lock().expect("nobody panics");
        waiting.take_if(|_| found)
    }
}

async fn relay<S>(mut client: S, mut server: S, hold: Hold) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut requests, mut answers) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            length = client.read(&mut requests) => {
                let request = &requests[..length?];
                if request.is_empty() {
                    return Ok(());
                }
                if let Some(waiting) = hold.takes(request) {
                    let _ = waiting.send(Held {
                        server: Box::new(server),
                        request: request.to_vec(),
                    });
                    return Ok(());
                }
                server.write_all(request).await?;
            }
            length = server.read(&mut answers) => {
                let answer = &answers[..length?];
                if answer.is_empty() {
                    return Ok(());
                }
                client.write_all(answer).await?;
            }
        }
    }
}

/// A request that is still under way to the server, on a connection that has ended for the client.
pub struct Held {
    server: Box<dyn Stream>,
    request: Vec<u8>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Held {
    /// Lets the request arrive, and waits until the server has done with the connection.
    pub async fn deliver(mut self) {
        // Fails where the server has closed the connection, which then is what was to be shown.
        let _ = self.server.write_all(&self.request).await;
        let _ = self.server.shutdown().await;
        let _ = self.server.read_to_end(&mut Vec::new()).await;
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}
