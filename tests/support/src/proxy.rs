//! A network between a client and a server that the test can break.

use std::net::{self, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{collections::VecDeque, future, io};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

use crate::port::free_port;
use crate::server::Server;

/// A TCP proxy in front of a server.
///
/// It lives on a thread of its own, so it works in a test with any runtime or none, and also while the test's thread
/// is blocked. What a control promises holds when the control returns.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    /// `None` only while dropping.
    orders: Option<mpsc::UnboundedSender<(Order, blocking::Sender<()>)>>,
    thread: Option<JoinHandle<()>>,
}

/// What becomes of the server's side of a connection whose client's side was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// The server sees the end of the connection, after the request.
    Closed,
    /// The server sees nothing; the connection stays until the server closes it, [`Proxy::cut`] or
    /// [`Proxy::refuse`].
    Kept,
}

#[derive(Debug, Default)]
struct Shared {
    faults: watch::Sender<Faults>,
    open: AtomicUsize,
    accepted: AtomicUsize,
}

#[derive(Debug, Default)]
struct Faults {
    request_delay: Duration,
    answer_delay: Duration,
    hung: bool,
    tripwire: Option<Tripwire>,
}

#[derive(Debug)]
struct Tripwire {
    pattern: Vec<u8>,
    upstream: Upstream,
}

#[derive(Debug)]
enum Order {
    Listen,
    Refuse,
    Cut,
}

impl Proxy {
    /// Starts a proxy that forwards everything at once.
    pub fn start(server: &Server) -> Self {
        Self::launch(server, None)
    }

    /// Starts a proxy that speaks TLS to the client and plain TCP to the server.
    pub fn start_with_tls(server: &Server, acceptor: TlsAcceptor) -> Self {
        Self::launch(server, Some(acceptor))
    }

    /// `127.0.0.1:port`
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `redis://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// Makes the way longer by `each_way` in both directions, so an answer arrives twice that later. Order is kept
    /// and throughput is not limited. A new delay applies to bytes that arrive from now on.
    pub fn delay(&self, each_way: Duration) {
        self.shared.faults.send_modify(|faults| {
            faults.request_delay = each_way;
            faults.answer_delay = each_way;
        });
    }

    /// Makes only the way back longer: requests are executed at once, their answers are late.
    pub fn delay_answers(&self, by: Duration) {
        self.shared.faults.send_modify(|faults| {
            faults.request_delay = Duration::ZERO;
            faults.answer_delay = by;
        });
    }

    /// Accepts and keeps connections, but forwards nothing. What is sent meanwhile is forwarded after
    /// [`resume`](Self::resume), even if its sender has gone by then.
    pub fn hang(&self) {
        self.shared.faults.send_modify(|faults| faults.hung = true);
    }

    /// Closes all connections and refuses new ones.
    pub fn refuse(&self) {
        self.order(Order::Refuse);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.order(Order::Cut);
    }

    /// Waits for a request that contains `pattern`, forwards it to the server, and closes the client's side of its
    /// connection without passing on the answer. Happens once, then the proxy is as before.
    ///
    /// The pattern is sought in what arrives at once, as short commands do. Clients introduce themselves by
    /// `CLIENT SETINFO`, so `b"\r\nSET\r\n"` or the name of the resource is a pattern, and `b"SET"` is none.
    pub fn cut_after_request(&self, pattern: impl AsRef<[u8]>, upstream: Upstream) {
        let pattern = pattern.as_ref().to_vec();
        assert!(!pattern.is_empty(), "an empty pattern is in no request");
        self.shared
            .faults
            .send_modify(|faults| faults.tripwire = Some(Tripwire { pattern, upstream }));
    }

    /// Ends all of the above: accepts again, forwards what was kept, delays nothing, cuts nothing.
    pub fn resume(&self) {
        self.shared.faults.send_replace(Faults::default());
        self.order(Order::Listen);
    }

    /// How many connections are open on the client's side.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many connections were accepted so far.
    pub fn connects(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    fn launch(server: &Server, acceptor: Option<TlsAcceptor>) -> Self {
        let (port, listener) = loop {
            let port = free_port();
            if let Ok(listener) = net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                break (port, listener);
            }
        };
        listener
            .set_nonblocking(true)
            .expect("a new socket can be configured");
        let shared = Arc::new(Shared::default());
        let (orders, received) = mpsc::unbounded_channel();
        let serving = serve(
            listener,
            received,
            server.port(),
            acceptor,
            Arc::clone(&shared),
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        Self {
            port,
            shared,
            orders: Some(orders),
            thread: Some(thread::spawn(move || {
                runtime.block_on(serving).expect("the proxy can listen");
            })),
        }
    }

    fn order(&self, order: Order) {
        let (done, awaited) = blocking::channel();
        let orders = self.orders.as_ref().expect("not dropping");
        orders.send((order, done)).expect("the proxy serves");
        awaited.recv().expect("the proxy obeys");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(
    listener: net::TcpListener,
    mut orders: mpsc::UnboundedReceiver<(Order, blocking::Sender<()>)>,
    target: u16,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let mut listener = Some(TcpListener::from_std(listener)?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((order, done)) = order else { return Ok(()) };
                match order {
                    Order::Listen if listener.is_some() => {}
                    Order::Listen => listener = Some(TcpListener::bind(address).await?),
                    Order::Refuse => {
                        listener = None;
                        connections.shutdown().await;
                        // A process that another test is just starting has a copy of the socket until its exec.
                        while TcpStream::connect(address).await.is_ok() {
                            sleep(Duration::from_millis(1)).await;
                        }
                    }
                    Order::Cut => connections.shutdown().await,
                }
                let _ = done.send(());
            }
            client = accept(listener.as_ref()) => {
                let open = Open::count(&shared);
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    match acceptor {
                        None => relay(client, target, open).await,
                        Some(acceptor) => relay(acceptor.accept(client).await?, target, open).await,
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The next client, past those that have gone before they were accepted; none while there is no listener.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return future::pending().await;
    };
    loop {
        if let Ok((client, _)) = listener.accept().await {
            let _ = client.set_nodelay(true);
            return client;
        }
    }
}

/// One connection. An error on one side needs no care: reading from that side then tells the end.
async fn relay(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    target: u16,
    open: Open,
) -> io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
    server.set_nodelay(true)?;
    let shared = Arc::clone(&open.0);
    let mut open = Some(open);
    let mut faults = shared.faults.subscribe();
    let mut requests = DelayLine::default();
    let mut answers = DelayLine::default();
    let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (request_delay, answer_delay, forwards) = {
            let faults = faults.borrow_and_update();
            (faults.request_delay, faults.answer_delay, !faults.hung)
        };
        tokio::select! {
            // First of all, or what was due before a fault was set would slip through after it.
            biased;
            Ok(()) = faults.changed() => {}
            bytes = requests.next(), if forwards => {
                if bytes.is_empty() {
                    let _ = server.shutdown().await;
                    continue;
                }
                let tripped = shared.tripped(&bytes);
                let _ = server.write_all(&bytes).await;
                if let Some(upstream) = tripped {
                    // Uncounted first, so that a client that sees the end is not counted any more.
                    drop((open, client));
                    return outlive(server, upstream).await;
                }
            }
            bytes = answers.next(), if forwards => {
                if bytes.is_empty() {
                    drop(open);
                    return client.shutdown().await;
                }
                let _ = client.write_all(&bytes).await;
            }
            length = client.read(&mut request), if !requests.ended => {
                let length = length.unwrap_or(0);
                requests.push(request_delay, &request[..length]);
                if length == 0 {
                    open = None;
                }
            }
            length = server.read(&mut answer), if !answers.ended => {
                answers.push(answer_delay, &answer[..length.unwrap_or(0)]);
            }
        }
    }
}

/// Reads the server's side to its end. Closing it with an answer unread would reset it, and the request might then
/// go unread as well.
async fn outlive(mut server: TcpStream, upstream: Upstream) -> io::Result<()> {
    if upstream == Upstream::Closed {
        server.shutdown().await?;
    }
    tokio::io::copy(&mut server, &mut tokio::io::sink()).await?;
    Ok(())
}

impl Shared {
    /// What to do with the server's side, if the request is the one to cut after. Takes the wire away.
    fn tripped(&self, request: &[u8]) -> Option<Upstream> {
        let mut tripped = None;
        self.faults.send_if_modified(|faults| {
            tripped = faults.tripwire.take_if(|wire| {
                request
                    .windows(wire.pattern.len())
                    .any(|window| window == wire.pattern)
            });
            tripped.is_some()
        });
        tripped.map(|wire| wire.upstream)
    }
}

/// Bytes under way in one direction, each piece with the time at which it arrives. An empty piece is the end.
#[derive(Debug, Default)]
struct DelayLine {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    ended: bool,
}

impl DelayLine {
    fn push(&mut self, delay: Duration, piece: &[u8]) {
        self.ended = piece.is_empty();
        self.pieces
            .push_back((Instant::now() + delay, piece.to_vec()));
    }

    /// The next piece when it is due; loses nothing when cancelled.
    async fn next(&mut self) -> Vec<u8> {
        let Some((due, _)) = self.pieces.front() else {
            return future::pending().await;
        };
        // A timer takes up to a millisecond even for what is due.
        if *due > Instant::now() {
            sleep_until(*due).await;
        }
        self.pieces
            .pop_front()
            .map_or_else(Vec::new, |(_, piece)| piece)
    }
}

/// Counts a connection while its client's side is open.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Open {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
