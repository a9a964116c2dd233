//! A directory that is removed with its owner.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// A new, empty directory. Its path is short, because that of a Unix socket has to be.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// Creates one among the temporary files.
    pub fn new() -> Self {
        let path = env::temp_dir().join(format!("redlock-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot create {path:?}: {error}"));
        Self(path)
    }

    /// The path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Its own path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
