//! What the code under test logs.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;

/// Collects, until dropped, what the current thread logs at any level. That is everything in a test on a
/// current-thread runtime, except what other threads log.
#[derive(Debug)]
pub struct Logs {
    buffer: Buffer,
    _subscribed: DefaultGuard,
}

impl Logs {
    pub fn capture() -> Self {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::TRACE)
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
