//! What a ratio should be.

use std::fmt;

#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// The target and whether it is met, for a table; nothing where there is none.
pub(crate) fn judge(target: Option<Target>, ratio: f64) -> String {
    let Some(target) = target else {
        return String::new();
    };
    let met = match target {
        Target::AtMost(most) => ratio <= most,
        Target::AtLeast(least) => ratio >= least,
    };
    format!("{target} {}", if met { "met   " } else { "missed" })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most:.2}"),
            Self::AtLeast(least) => write!(f, "≥ {least:.2}"),
        }
    }
}
