//! Where the demo is watched: a terminal, where a picture is drawn over the one before, or a pipe or file, which
//! gets lines.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

pub(crate) enum Screen {
    Terminal {
        /// How many lines the last picture has.
        lines: usize,
    },
    Plain,
}

/// Without the cursor, and without wrapping: a wrapped line would be two, and the next picture in the wrong place.
const BEGIN: &str = "\x1b[?25l\x1b[?7l";
const END: &str = "\x1b[?7h\x1b[?25h";

impl Screen {
    pub(crate) fn new() -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if io::stdout().is_terminal() && !is_dumb {
            Self::Terminal { lines: 0 }
        } else {
            Self::Plain
        }
    }

    pub(crate) fn interval(&self) -> Duration {
        match self {
            Self::Terminal { .. } => Duration::from_millis(100),
            Self::Plain => Duration::from_secs(1),
        }
    }

    /// Draws a picture over the one before.
    pub(crate) fn draw(&mut self, picture: &str) -> io::Result<()> {
        let Self::Terminal { lines } = self else {
            return Ok(());
        };
        let mut out = BEGIN.to_owned();
        if *lines > 0 {
            out += &format!("\x1b[{lines}F");
        }
        *lines = 0;
        for line in picture.lines() {
            // What the line before was longer is erased.
            out += &format!("{line}\x1b[K\n");
            *lines += 1;
        }
        out += "\x1b[J";
        // In one go, so that no half picture is seen.
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    /// Adds a line where there is no picture.
    pub(crate) fn line(&self, line: &str) -> io::Result<()> {
        match self {
            Self::Terminal { .. } => Ok(()),
            Self::Plain => writeln!(io::stdout(), "{line}"),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Self::Terminal { .. } = self {
            let _ = write!(io::stdout(), "{END}").and_then(|()| io::stdout().flush());
        }
    }
}
