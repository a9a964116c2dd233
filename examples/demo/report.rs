//! What a worker tells the parent: a line on its standard output.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// There was another holder.
    TwoHolders,
    /// The holder before is dead, and its lock had ended.
    TakenOver,
    Granted {
        /// When, by our [`clock`](crate::clock).
        at: Duration,
        /// How long it was waited for.
        waited: Duration,
        /// What stands for this lock on the masters.
        value: String,
    },
    /// About to release.
    Released { at: Duration },
    /// A release came too late: the lock had been lost.
    Lost,
    /// The last report.
    Done {
        /// How many releases were not confirmed by all masters.
        unconfirmed: usize,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoHolders => f.write_str("two-holders"),
            Self::TakenOver => f.write_str("taken-over"),
            Self::Granted { at, waited, value } => {
                write!(
                    f,
                    "granted {} {} {value}",
                    at.as_micros(),
                    waited.as_micros()
                )
            }
            Self::Released { at } => write!(f, "released {}", at.as_micros()),
            Self::Lost => f.write_str("lost"),
            Self::Done { unconfirmed } => write!(f, "done {unconfirmed}"),
        }
    }
}

impl FromStr for Report {
    type Err = Box<dyn std::error::Error + Send + Sync>;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let micros = |word: &str| word.parse().map(Duration::from_micros);
        let words: Vec<_> = line.split(' ').collect();
        Ok(match words[..] {
            ["two-holders"] => Self::TwoHolders,
            ["taken-over"] => Self::TakenOver,
            ["granted", at, waited, value] => Self::Granted {
                at: micros(at)?,
                waited: micros(waited)?,
                value: value.to_owned(),
            },
            ["released", at] => Self::Released { at: micros(at)? },
            ["lost"] => Self::Lost,
            ["done", unconfirmed] => Self::Done {
                unconfirmed: unconfirmed.parse()?,
            },
            _ => return Err(format!("not a report: {line:?}").into()),
        })
    }
}
