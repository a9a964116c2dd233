//! The scenarios by name.

use crate::options::Options;
use crate::verdicts::Verdicts;
use crate::{errors, fault, held, load, renewals};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Tasks,
    Busy,
    Quarter,
    Frozen,
    Throttled500,
    Throttled100,
    Held,
    Errors,
    Renewals,
}

impl Scenario {
    pub(crate) const ALL: [Self; 9] = [
        Self::Tasks,
        Self::Busy,
        Self::Quarter,
        Self::Frozen,
        Self::Throttled500,
        Self::Throttled100,
        Self::Held,
        Self::Errors,
        Self::Renewals,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Busy => "busy",
            Self::Quarter => "quarter",
            Self::Frozen => "frozen",
            Self::Throttled500 => "throttled-500",
            Self::Throttled100 => "throttled-100",
            Self::Held => "held",
            Self::Errors => "errors",
            Self::Renewals => "renewals",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.name() == name)
    }

    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Tasks => "1,000 to 50,000 tasks lock and release, beside the floor and rslock",
            Self::Busy => "the same for 5,000 and 20,000 tasks, beside two busy loops",
            Self::Quarter => "the same for 5,000 tasks with a quarter of a core",
            Self::Frozen => "one of five masters frozen",
            Self::Throttled500 => "one of five masters behind 500 kB/s",
            Self::Throttled100 => "one of five masters behind 100 kB/s",
            Self::Held => "1,000 locks kept alive beside 20,000 tasks",
            Self::Errors => "one of five masters answers with errors, or pauses writes",
            Self::Renewals => "100,000 locks kept alive",
        }
    }

    pub(crate) fn print(self, options: &Options, verdicts: &mut Verdicts) {
        match self {
            Self::Tasks => load::print(&load::TASKS, options, verdicts),
            Self::Busy => load::print(&load::BUSY, options, verdicts),
            Self::Quarter => load::print(&load::QUARTER, options, verdicts),
            Self::Frozen => fault::print(fault::Fault::Frozen, options, verdicts),
            Self::Throttled500 => {
                fault::print(fault::Fault::Throttled(500_000), options, verdicts);
            }
            Self::Throttled100 => {
                fault::print(fault::Fault::Throttled(100_000), options, verdicts);
            }
            Self::Held => held::print(options, verdicts),
            Self::Errors => errors::print(options, verdicts),
            Self::Renewals => renewals::print(options, verdicts),
        }
    }
}
