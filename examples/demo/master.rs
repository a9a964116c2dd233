//! A master: a server process without persistence, on a port of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, io, net, thread};

use rustix::process::Signal;
use tokio_redlock::redis::{Client, Connection, FromRedisValue, RedisResult, cmd};

use crate::Result;
use crate::child::Child;
use crate::contender::RESOURCE;

pub(crate) const ROLE: &str = "master";

/// On how many ports a start is tried.
const ATTEMPTS: usize = 5;

/// Starting takes some 10 ms, and a look a fraction of one; a busy machine may need much more.
const START_WITHIN: Duration = Duration::from_secs(5);
const LOOK_WITHIN: Duration = Duration::from_secs(1);

pub(crate) struct Master {
    process: Child,
    port: u16,
    directory: PathBuf,
    state: State,
    connection: Option<Connection>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Up,
    Killed,
    Frozen,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Killed => "killed",
            Self::Frozen => "frozen",
        })
    }
}

impl Master {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let port = free_port();
            let mut master = Self {
                process: launch(port, directory)?,
                port,
                directory: directory.to_owned(),
                state: State::Up,
                connection: None,
            };
            // Where somebody else was faster to take the port, it ends at once.
            if master.wait_until_ready()? {
                return Ok(master);
            }
        }
        Err("no server starts: is REDIS_SERVER, or redis-server on PATH, one?".into())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Gets it from up into another state, or up again: then thawed, or started anew, on the same port and empty.
    pub(crate) fn enter(&mut self, state: State) -> Result<()> {
        match (self.state, state) {
            (_, State::Killed) => {
                self.connection = None;
                self.process.kill()?;
            }
            (_, State::Frozen) => self.process.signal(Signal::STOP)?,
            (State::Killed, State::Up) => {
                self.process = launch(self.port, &self.directory)?;
                if !self.wait_until_ready()? {
                    return Err(format!("no server starts again on port {}", self.port).into());
                }
            }
            (_, State::Up) => self.process.signal(Signal::CONT)?,
        }
        self.state = state;
        Ok(())
    }

    /// What stands there for the lock.
    pub(crate) fn value(&mut self) -> Result<Option<String>> {
        if self.state != State::Up {
            return Err(self.state.to_string().into());
        }
        Ok(self.query(&["GET", RESOURCE])?)
    }

    /// How many keys there are.
    pub(crate) fn keys(&mut self) -> Result<usize> {
        // Unlike DBSIZE it leaves out what has expired.
        Ok(self.query::<Vec<Vec<u8>>>(&["KEYS", "*"])?.len())
    }

    fn query<T: FromRedisValue>(&mut self, words: &[&str]) -> RedisResult<T> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let client = Client::open(self.url())?;
                let connection = client.get_connection_with_timeout(LOOK_WITHIN)?;
                connection.set_read_timeout(Some(LOOK_WITHIN))?;
                connection
            }
        };
        let answer = cmd(words[0]).arg(&words[1..]).query(&mut connection)?;
        // After an error it is not kept: a late answer would be taken for that to the next question.
        self.connection = Some(connection);
        Ok(answer)
    }

    /// `false` if the process ends instead.
    fn wait_until_ready(&mut self) -> Result<bool> {
        let deadline = Instant::now() + START_WITHIN;
        while !self.process.has_ended() {
            // Whoever answers on that port may be somebody else's.
            let ours = format!("process_id:{}\r\n", self.process.id());
            let info = self.query::<String>(&["INFO", "server"]);
            if info.is_ok_and(|info| info.contains(&ours)) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Err(format!("no answer from the master on port {}", self.port).into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(false)
    }
}

fn launch(port: u16, directory: &Path) -> io::Result<Child> {
    Child::spawn(ROLE, [port.to_string().as_ref(), directory.as_os_str()])
}

/// Turns this process into a server.
pub(crate) fn become_server(mut args: impl Iterator<Item = String>) -> io::Error {
    // The parent kills it when dropping it; this is for a parent that is itself killed.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    let server = env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
    let (port, directory) = (args.next(), args.next());
    Command::new(server)
        .arg("--port")
        .args(port)
        .arg("--dir")
        .args(directory)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .exec()
}

/// Below the ports of outgoing connections, one of which could take it while the master is down.
fn free_port() -> u16 {
    loop {
        let port = 15_000 + rand::random::<u16>() % 17_000;
        if net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
