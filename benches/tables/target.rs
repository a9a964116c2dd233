//! What a ratio should be.

use std::fmt;

#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// Compares ratios with their targets, and counts the targets that are missed.
#[derive(Default)]
pub(crate) struct Judge {
    missed: usize,
}

impl Judge {
    /// The target and whether the ratio meets it, for a table; nothing where there is no target.
    pub(crate) fn judge(&mut self, target: Option<Target>, ratio: f64) -> String {
        let Some(target) = target else {
            return String::new();
        };
        // Nothing measured is a ratio that is not a number. It meets no target.
        let met = match target {
            Target::AtMost(most) => ratio <= most,
            Target::AtLeast(least) => ratio >= least,
        };
        if !met {
            self.missed += 1;
        }
        format!("{target} {}", if met { "met   " } else { "missed" })
    }

    pub(crate) fn missed(&self) -> usize {
        self.missed
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most:.2}"),
            Self::AtLeast(least) => write!(f, "≥ {least:.2}"),
        }
    }
}
