//! A slow way to a master.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use support::Server;

/// The most that is read at once.
const PIECE: usize = 4_096;

/// A TCP proxy that passes a limited number of bytes per second in each direction, over all connections together. It
/// lives as long as this process. What the proxy does not read yet waits in the buffers of the system, and then at the
/// sender, as on a slow network.
pub(crate) struct Proxy {
    port: u16,
    ways: [Arc<Way>; 2],
}

/// One direction.
struct Way {
    /// 0: no limit.
    bytes_per_second: AtomicU32,
    /// When all that was passed so far is through.
    free: Mutex<Instant>,
}

impl Proxy {
    /// Without a limit at first.
    pub(crate) fn start(server: &Server) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let ways = [(); 2].map(|()| Arc::new(Way::new()));
        let (target, requests_answers) = (server.port(), ways.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Where the master is gone, the client sees its connection closed.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) {
                    connect(client, server, &requests_answers);
                }
            }
        });
        Self { port, ways }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Passes so many bytes per second from now on; 0: no limit.
    pub(crate) fn limit(&self, bytes_per_second: u32) {
        for way in &self.ways {
            way.bytes_per_second
                .store(bytes_per_second, Ordering::Relaxed);
        }
    }
}

/// Relays between two sockets, on two threads.
fn connect(client: TcpStream, server: TcpStream, [requests, answers]: &[Arc<Way>; 2]) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let (requests, answers) = (Arc::clone(requests), Arc::clone(answers));
    thread::spawn(move || requests.relay(from_client, server));
    thread::spawn(move || answers.relay(from_server, client));
}

impl Way {
    fn new() -> Self {
        Self {
            bytes_per_second: AtomicU32::new(0),
            free: Mutex::new(Instant::now()),
        }
    }

    /// Until an end or an error, which ends the other direction as well.
    fn relay(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = [0; PIECE];
        while let Ok(length) = from.read(&mut piece)
            && length > 0
        {
            self.wait_for(length);
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }

    /// Waits until so many bytes are through.
    fn wait_for(&self, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        let Ok(bytes) = u32::try_from(bytes) else {
            return;
        };
        if rate == 0 {
            return;
        }
        let takes = Duration::from_secs(1) * bytes / rate;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (*free).max(Instant::now()) + takes;
        *free = due;
        drop(free);
        sleep(due.saturating_duration_since(Instant::now()));
    }
}
