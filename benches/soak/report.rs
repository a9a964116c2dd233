//! What a worker tells: a line on its standard output.

use std::fmt;
use std::time::Duration;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A lock was held, and trusted, from the one time to the other by our [`clock`](crate::clock).
    Held {
        resource: String,
        from: Duration,
        until: Duration,
    },
    /// That one had been lost before it was released.
    Lost,
    Denied,
    /// A request was dropped half way.
    Cancelled,
    /// The last report: how many releases were not confirmed by all masters.
    Done {
        unconfirmed: usize,
    },
}

impl Report {
    /// `None` for the beginning of a line that a killed worker did not get to end.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let nanos = |word: &str| word.parse().ok().map(Duration::from_nanos);
        let words: Vec<_> = line.split(' ').collect();
        Some(match words[..] {
            ["held", resource, from, until, "."] => Self::Held {
                resource: resource.to_owned(),
                from: nanos(from)?,
                until: nanos(until)?,
            },
            ["lost"] => Self::Lost,
            ["denied"] => Self::Denied,
            ["cancelled"] => Self::Cancelled,
            ["done", unconfirmed, "."] => Self::Done {
                unconfirmed: unconfirmed.parse().ok()?,
            },
            _ => return None,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held {
                resource,
                from,
                until,
            } => {
                let (from, until) = (from.as_nanos(), until.as_nanos());
                write!(f, "held {resource} {from} {until} .")
            }
            Self::Lost => f.write_str("lost"),
            Self::Denied => f.write_str("denied"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Done { unconfirmed } => write!(f, "done {unconfirmed} ."),
        }
    }
}
