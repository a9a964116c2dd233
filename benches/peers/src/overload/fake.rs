//! A master that answers with errors.

use std::io::{self, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::resp::{name, read_value};
use support::Server;

/// Commands that come within so long are one list.
const LIST: Duration = Duration::from_millis(100);

/// Which commands are answered with which error.
#[derive(Clone, Copy)]
pub(crate) struct Errors {
    pub(crate) commands: &'static [&'static str],
    pub(crate) answer: &'static str,
}

/// What a client sends to lock and release.
pub(crate) const LOCKING: &[&str] = &["SET", "EVALSHA", "EVAL"];

/// Stands in front of a real master, and passes on what it does not answer itself. It lives as long as this process.
pub(crate) struct Fake {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    errors: Errors,
    is_on: AtomicBool,
    /// [`LOCKING`] commands so far, and how many lists of them.
    commands: AtomicU64,
    lists: AtomicU64,
    list_began: Mutex<Option<Instant>>,
}

/// What a client is answered next.
enum Answer {
    Error(&'static str),
    /// The next reply of the real master.
    Passed,
}

impl Fake {
    /// Passes everything on at first.
    pub(crate) fn start(server: &Server, errors: Errors) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            errors,
            is_on: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            list_began: Mutex::new(None),
        });
        let (target, served) = (server.port(), Arc::clone(&shared));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Where the master is gone, the client sees its connection closed.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) {
                    connect(client, server, &served);
                }
            }
        });
        Self { port, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Answers with errors from now on.
    pub(crate) fn fail(&self) {
        self.shared.is_on.store(true, Ordering::Relaxed);
    }

    /// Passes everything on again.
    pub(crate) fn pass(&self) {
        self.shared.is_on.store(false, Ordering::Relaxed);
    }

    /// How many commands to lock and release have come, and how many lists of them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.shared.commands), count(&self.shared.lists))
    }
}

/// Serves a client, on two threads: answers come in the order of the commands, and a real master that holds back its
/// reply keeps no command from being read.
fn connect(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let (sender, receiver) = channel();
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        // Ends by an error in any case: that of the end.
        let _ = shared.read_commands(&from_client, &server, &sender);
        let _ = server.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let _ = answer(&client, &from_server, &receiver);
        let _ = client.shutdown(Shutdown::Both);
    });
}

impl Shared {
    fn read_commands(
        &self,
        client: &TcpStream,
        server: &TcpStream,
        answers: &Sender<Answer>,
    ) -> io::Result<()> {
        let mut commands = BufReader::new(client);
        let mut server = BufWriter::new(server);
        loop {
            let mut command = Vec::new();
            read_value(&mut commands, &mut command)?;
            let name = name(&command);
            self.count(&name);
            let answer = if self.fails(&name) {
                Answer::Error(self.errors.answer)
            } else {
                server.write_all(&command)?;
                Answer::Passed
            };
            if answers.send(answer).is_err() {
                return Ok(());
            }
            if commands.buffer().is_empty() {
                server.flush()?;
            }
        }
    }

    fn fails(&self, name: &str) -> bool {
        self.is_on.load(Ordering::Relaxed) && self.errors.commands.contains(&name)
    }

    fn count(&self, name: &str) {
        if !LOCKING.contains(&name) {
            return;
        }
        self.commands.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut began = self
            .list_began
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if began.is_none_or(|began| now - began > LIST) {
            *began = Some(now);
            self.lists.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn answer(client: &TcpStream, server: &TcpStream, answers: &Receiver<Answer>) -> io::Result<()> {
    let mut client = BufWriter::new(client);
    let mut server = BufReader::new(server);
    loop {
        let next = match answers.try_recv() {
            Ok(next) => next,
            Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => {
                client.flush()?;
                let Ok(next) = answers.recv() else {
                    return Ok(());
                };
                next
            }
        };
        match next {
            Answer::Error(error) => client.write_all(error.as_bytes())?,
            Answer::Passed => {
                if server.buffer().is_empty() {
                    client.flush()?;
                }
                let mut reply = Vec::new();
                read_value(&mut server, &mut reply)?;
                client.write_all(&reply)?;
            }
        }
    }
}
