//! What the code under test logs.

use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex};

use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing_subscriber::filter::LevelFilter;

/// Collects, until dropped, what the current thread logs at any level. That is everything in a test on a
/// current-thread runtime, except what other threads log.
#[derive(Debug)]
pub struct Logs {
    buffer: Buffer,
    _subscribed: DefaultGuard,
}

impl Logs {
    /// Begins to collect.
    pub fn capture() -> Self {
        Self::capture_up_to(LevelFilter::TRACE)
    }

    /// Begins to collect, and leaves out what is only for developers.
    pub fn capture_for_operators() -> Self {
        Self::capture_up_to(LevelFilter::INFO)
    }

    fn capture_up_to(level: LevelFilter) -> Self {
        ask_every_thread();
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            buffer,
            _subscribed: tracing::subscriber::set_default(subscriber),
        }
    }

    /// All so far, one line per event.
    pub fn text(&self) -> String {
        let bytes = self.buffer.0.lock().expect("no writer panicked");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Makes tracing ask each thread about every event, whether it has a subscriber for it.
///
/// It does so from the second subscriber on. With a single one, the thread that comes first to an event decides for all
/// threads, and that may be the thread of another test, which has none.
pub fn ask_every_thread() {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
}

#[derive(Debug, Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panicked").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
