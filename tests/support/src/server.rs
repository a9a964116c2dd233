//! A real Redis or Valkey process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use redis::{Client, Cmd, FromRedisValue, RedisResult, ToSingleRedisArg, cmd};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio_redlock::LockGuard;

use crate::port::free_port;
use crate::scratch::Scratch;

/// Generous, since many servers may be starting on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// How long a look at a server may take, so that a look at a frozen one panics instead of hanging.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// The name of the clients that look.
const LOOK: &str = "look";

/// A server of the test's own, killed when dropped.
///
/// It is looked at over its Unix socket, by a connection per look. So looks work whatever the test does to its port.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    args: Vec<String>,
    directory: Scratch,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more configuration, which overrides ours; `{port}` in it stands for the server's port.
    pub fn start_with(args: &[&str]) -> Self {
        Self::try_start_with(args).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// The same, but returns the log of a server that refuses to start.
    pub fn try_start_with(args: &[&str]) -> Result<Self, String> {
        Self::spawn(args).ready()
    }

    /// Starts `n` servers at the same time.
    pub fn many(n: usize) -> Vec<Self> {
        let starting: Vec<Self> = (0..n).map(|_| Self::spawn(&[])).collect();
        let ready = starting.into_iter().map(Self::ready);
        ready.collect::<Result<_, _>>().expect("all servers start")
    }

    /// The same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `redis://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// The Unix socket on which it listens beside its port.
    pub fn socket_path(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// `redis+unix:///.../socket`
    pub fn unix_url(&self) -> String {
        format!("redis+unix://{}", self.socket_path().display())
    }

    /// The id of the process, another after a restart.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process exists, be it frozen or not.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the process and waits for its end; from then on its port refuses connections.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be awaited");
    }

    /// Kills the process if it still runs and starts another on the same port, which is empty.
    pub fn restart(&mut self) {
        self.kill();
        self.child = launch(self.port, &self.args, &self.directory);
        self.wait_until_ready()
            .unwrap_or_else(|log| panic!("the server did not start again:\n{log}"));
    }

    /// Stops the process where it is: it keeps its connections, and the system still accepts new ones for it, but
    /// it answers nothing until [`thaw`](Self::thaw). It has stopped when this returns.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        waitid(
            WaitId::Pid(self.process()),
            // Left unreaped, so that freezing twice does not wait for a second stop.
            WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT,
        )
        .expect("our own child can be awaited");
    }

    /// Lets a frozen process go on, first of all with what it was sent meanwhile.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it holds the key of a lock with the lock's value.
    pub fn holds(&self, guard: &LockGuard) -> bool {
        self.get(guard.resource()).as_deref() == Some(guard.value().as_bytes())
    }

    /// The value of a key.
    pub fn get(&self, key: impl ToSingleRedisArg) -> Option<Vec<u8>> {
        self.query(cmd("GET").arg(key))
    }

    /// Sets a key that does not expire.
    pub fn set(&self, key: impl ToSingleRedisArg, value: impl ToSingleRedisArg) {
        self.query(cmd("SET").arg(key).arg(value))
    }

    /// Sets a key that expires.
    pub fn set_px(
        &self,
        key: impl ToSingleRedisArg,
        value: impl ToSingleRedisArg,
        milliseconds: u64,
    ) {
        self.query(cmd("SET").arg(key).arg(value).arg("PX").arg(milliseconds))
    }

    /// Whether there was such a key.
    pub fn del(&self, key: impl ToSingleRedisArg) -> bool {
        self.query(cmd("DEL").arg(key))
    }

    /// Milliseconds to live; -1 for a key that does not expire, -2 for no such key.
    pub fn pttl(&self, key: impl ToSingleRedisArg) -> i64 {
        self.query(cmd("PTTL").arg(key))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<String> {
        let keys: Vec<Vec<u8>> = self.query(cmd("KEYS").arg("*"));
        let mut keys: Vec<String> = keys
            .iter()
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect();
        keys.sort();
        keys
    }

    /// How many clients are connected, looks left out.
    ///
    /// A connection that the test dropped may count for a while: a process that another test is just starting has a
    /// copy of its socket until its exec.
    pub fn connected_clients(&self) -> usize {
        let clients: String = self.query(cmd("CLIENT").arg("LIST"));
        let looks = format!(" name={LOOK} ");
        clients
            .lines()
            .filter(|line| !line.contains(&looks))
            .count()
    }

    /// Closes the connections of all clients, from the server's side.
    pub fn kill_clients(&self) {
        self.query(cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]))
    }

    /// How often a command ran since the start, also inside of scripts and by looks: `calls("set")`, and for a
    /// subcommand `calls("client|kill")`.
    pub fn calls(&self, command: &str) -> u64 {
        let statistics: String = self.query(cmd("INFO").arg("commandstats"));
        let prefix = format!("cmdstat_{command}:calls=");
        statistics
            .lines()
            .find_map(|line| line.strip_prefix(&prefix)?.split(',').next())
            .map_or(0, |calls| calls.parse().expect("calls are a number"))
    }

    /// How often a key was deleted: by `DEL`, also inside of a script, or by a plain compare-and-delete. The latter counts
    /// where it found nothing, too.
    pub fn deletes(&self) -> u64 {
        let names = ["del", "delifeq", "delex"].iter();
        names.map(|name| self.calls(name)).sum()
    }

    /// Runs any command over a connection of its own.
    pub fn query<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.try_query(command)
            .unwrap_or_else(|error| panic!("no look at {}: {error}", self.addr()))
    }

    /// The same, but returns the error, be it the server's answer or that there was none.
    pub fn try_query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let client = Client::open(self.unix_url())?;
        let mut connection = client.get_connection_with_timeout(LOOK_WITHIN)?;
        connection.set_read_timeout(Some(LOOK_WITHIN))?;
        cmd("CLIENT")
            .arg("SETNAME")
            .arg(LOOK)
            .exec(&mut connection)?;
        command.query(&mut connection)
    }

    fn spawn(args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let (port, directory) = (free_port(), Scratch::new());
        Self {
            child: launch(port, &args, &directory),
            port,
            args,
            directory,
        }
    }

    /// Waits until the server answers, on another port if somebody was faster to take this one.
    fn ready(mut self) -> Result<Self, String> {
        while let Err(log) = self.wait_until_ready() {
            if !log.contains("Address already in use") {
                return Err(log);
            }
            self.port = free_port();
            self.child = launch(self.port, &self.args, &self.directory);
        }
        Ok(self)
    }

    /// Returns the log if the process ends instead. The socket is in a directory of our own, so whoever answers
    /// there is this server; and a server answers only after it has opened all that it listens on.
    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_WITHIN;
        while self.try_query::<()>(&cmd("PING")).is_err() {
            if !self.is_running() {
                return Err(self.log());
            }
            assert!(
                Instant::now() < deadline,
                "the server on port {} was not ready within {READY_WITHIN:?}:\n{}",
                self.port,
                self.log()
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        // The id of a child that was awaited may be a stranger's by now.
        let still_ours = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.process()), still_ours).expect("the server was not killed");
        kill_process(self.process(), signal).expect("our own child takes signals");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(port: u16, args: &[String], directory: &Scratch) -> Child {
    let port = port.to_string();
    let log = File::create(directory.join("log")).expect("our own directory is writable");
    let mut command = Command::new(binary());
    command
        .args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no"])
        .args(["--save", "", "--appendonly", "no"])
        .args(["--loglevel", "warning", "--logfile", ""])
        .arg("--dir")
        .arg(directory.path())
        .arg("--unixsocket")
        .arg(directory.join("socket"))
        .args(args.iter().map(|arg| arg.replace("{port}", &port)))
        .stdin(Stdio::null())
        .stderr(log.try_clone().expect("a file can be shared"))
        .stdout(log);
    command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// A test without a server fails; were it skipped, nobody would notice that nothing was tested.
fn binary() -> OsString {
    if let Some(path) = env::var_os("REDIS_SERVER").filter(|path| !path.is_empty()) {
        return path;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    ["redis-server", "valkey-server"]
        .into_iter()
        .find(|name| env::split_paths(&path).any(|directory| directory.join(name).is_file()))
        .expect(
            "these tests need a server: install redis-server or valkey-server, \
             or set REDIS_SERVER to the path of one (see scripts/server)",
        )
        .into()
}
