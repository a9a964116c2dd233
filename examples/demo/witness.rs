//! Who catches two holders at once, without the help of any Redis: a file that is there while somebody holds the
//! lock.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};

use crate::clock;

#[derive(Clone)]
pub(crate) struct Witness(PathBuf);

/// What a new holder found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nobody,
    /// A holder that is dead, and its lock over.
    Dead,
    /// Another holder.
    Another,
}

/// The file, removed when this is dropped.
pub(crate) struct Mark<'a>(&'a Witness);

impl Witness {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Notes that this process holds the lock, which is good for `validity`.
    pub(crate) fn enter(&self, validity: Duration) -> io::Result<(Found, Mark<'_>)> {
        // Only one can create it, whatever the others do.
        let (found, mut file) = match File::create_new(&self.0) {
            Ok(file) => (Found::Nobody, file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let found = match self.holder() {
                    Some(holder) if holder.is_over() => Found::Dead,
                    _ => Found::Another,
                };
                (found, File::create(&self.0)?)
            }
            Err(error) => return Err(error),
        };
        let valid_until = clock::now() + validity;
        write!(file, "{} {}", process::id(), valid_until.as_micros())?;
        Ok((found, Mark(self)))
    }

    /// Whether the file was left by this process.
    pub(crate) fn is_held_by(&self, pid: u32) -> bool {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        self.holder().is_some_and(|holder| Some(holder.pid) == pid)
    }

    fn holder(&self) -> Option<Holder> {
        let text = fs::read_to_string(&self.0).ok()?;
        let (pid, valid_until) = text.split_once(' ')?;
        Some(Holder {
            pid: Pid::from_raw(pid.parse().ok()?)?,
            valid_until: Duration::from_micros(valid_until.parse().ok()?),
        })
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0.0);
    }
}

struct Holder {
    pid: Pid,
    valid_until: Duration,
}

impl Holder {
    /// A dead holder still has its lock: it ends with its ttl, and nobody may have it before that.
    fn is_over(&self) -> bool {
        test_kill_process(self.pid).is_err() && clock::now() >= self.valid_until
    }
}
