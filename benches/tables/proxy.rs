//! TCP proxies that make the way to the masters longer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use support::Server;

/// The most that is read at once: room for dozens of commands.
const PIECE: usize = 1 << 12;

/// Starts a proxy in front of each server and returns the URLs of the proxies, which live as long as the process.
///
/// All proxies share one thread, which sleeps until bytes arrive or are due. A thread for each would contend for the
/// cores with the clients and the masters. On an idle Linux one proxy with 250 µs each way adds 0.53 ms to the round trip
/// of a PING, give or take 20 µs, and costs some 40 µs of CPU. Bytes that are due at once are passed on one after
/// another, about 10 µs each. On systems without ppoll(2) the delay is a whole number of milliseconds.
pub(crate) fn start(servers: &[Server], each_way: Duration) -> Vec<String> {
    let listen = |server: &Server| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        (listener, server.port())
    };
    let listeners: Vec<_> = servers.iter().map(listen).collect();
    let url = |(listener, _): &(TcpListener, u16)| {
        let address = listener.local_addr().expect("it is bound");
        format!("redis://{address}")
    };
    let urls = listeners.iter().map(url).collect();
    let proxies = Proxies {
        each_way,
        listeners,
        ways: Vec::new(),
        under_way: VecDeque::new(),
    };
    thread::spawn(move || proxies.serve());
    urls
}

struct Proxies {
    each_way: Duration,
    /// Each with the port of its server.
    listeners: Vec<(TcpListener, u16)>,
    /// From which socket to which. A connection has two ways.
    ways: Vec<(Arc<TcpStream>, Arc<TcpStream>)>,
    /// What is due when and for which socket, in this order. An empty piece is the end of a way.
    under_way: VecDeque<(Instant, Arc<TcpStream>, Vec<u8>)>,
}

impl Proxies {
    fn serve(mut self) {
        be_punctual();
        loop {
            self.deliver();
            self.receive().expect("our own sockets can be polled");
        }
    }

    /// Passes on what is due. An error needs no care: the next read from that socket returns the end.
    fn deliver(&mut self) {
        while let Some((due, ..)) = self.under_way.front()
            && *due <= Instant::now()
            && let Some((_, to, piece)) = self.under_way.pop_front()
        {
            let _ = if piece.is_empty() {
                to.shutdown(Shutdown::Write)
            } else {
                (&*to).write_all(&piece)
            };
        }
    }

    /// Waits until something arrives or is due, and takes what has arrived.
    fn receive(&mut self) -> io::Result<()> {
        let due = self.under_way.front().map(|(due, ..)| *due);
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|left| Timespec::try_from(left).expect("a short time"));
        let ways = self.ways.iter().map(|(from, _)| from.as_fd());
        let listeners = self.listeners.iter().map(|(listener, _)| listener.as_fd());
        let mut polled: Vec<_> = ways
            .chain(listeners)
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        retry_on_intr(|| poll(&mut polled, timeout.as_ref()))?;
        // The same for all that has arrived: the time that the reads take is part of the delay.
        let due = Instant::now() + self.each_way;
        let ready: Vec<_> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();

        self.ways.retain(|(from, to)| {
            if !ready.next().expect("one each") {
                return true;
            }
            let mut piece = vec![0; PIECE];
            let length = (&**from).read(&mut piece).unwrap_or(0);
            piece.truncate(length);
            self.under_way.push_back((due, Arc::clone(to), piece));
            length > 0
        });
        for ((listener, port), _) in self.listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            let client = Arc::new(listener.accept()?.0);
            let server = Arc::new(TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?);
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            self.ways.push((Arc::clone(&client), Arc::clone(&server)));
            self.ways.push((server, client));
        }
        Ok(())
    }
}

/// Makes the sleeps of this thread precise. By default Linux may lengthen each of them by 50 µs.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn be_punctual() {
    // Where that is refused, the floor is slower as well.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn be_punctual() {}
