//! Tests that run in a process of their own.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, thread};

use crate::LONG;
use crate::scratch::Scratch;
use crate::wait::POLL_EVERY;

/// The exit status of a process that did all it had to do. A process that ran no test at all ends with another.
pub const CAME_TO_ITS_END: i32 = 17;

/// The command that runs a test of this program, which may be an ignored one, in a process of its own.
///
/// `module` is the `module_path!()` of the test.
pub fn test_process(module: &str, test: &str) -> Command {
    let name = match module.split_once("::") {
        Some((_program, module)) => format!("{module}::{test}"),
        None => test.to_owned(),
    };
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.args(["--exact", "--include-ignored", "--nocapture", &name]);
    command
}

/// Runs a [`test_process`] and asserts that its test has passed. Returns what it printed.
pub fn passes(mut command: Command) -> String {
    let output = command.output().expect("this program runs");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "no such test: {stdout}");
    stdout
}

/// Runs a [`test_process`] and asserts that it ends with [`CAME_TO_ITS_END`], in time and without a panic.
pub fn comes_to_its_end(mut command: Command) {
    // A file: a pipe would stay open for as long as any process that this one started.
    let directory = Scratch::new();
    let path = directory.join("stderr");
    let stderr = File::create(&path).expect("our own directory is writable");
    let mut child = command
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("this program runs");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child can be awaited") {
            break status;
        }
        if start.elapsed() > LONG {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be awaited");
            panic!("it does not end: {command:?}");
        }
        thread::sleep(POLL_EVERY);
    };
    let stderr = fs::read_to_string(&path).expect("it is text");
    assert_eq!(
        status.code(),
        Some(CAME_TO_ITS_END),
        "{command:?}\n{stderr}"
    );
    // A panic in a task or a thread need not end the process.
    assert!(!stderr.contains("panicked"), "{command:?}\n{stderr}");
}
