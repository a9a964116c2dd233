//! The command line.

use std::time::Duration;

use crate::scenario::Scenario;

pub(crate) struct Options {
    /// In the order of [`Scenario::ALL`].
    pub(crate) scenarios: Vec<Scenario>,
    /// Exit with an error if a target is missed.
    pub(crate) check: bool,
    /// How long each measurement takes, instead of the default of the scenario.
    pub(crate) seconds: Option<Duration>,
    /// How often each library is measured where several are compared.
    pub(crate) rounds: usize,
}

/// Odd, so that the median is one of the values.
const ROUNDS: usize = 5;

/// An hour is more than anybody waits for one measurement.
const SECONDS: std::ops::RangeInclusive<u64> = 1..=3_600;

pub(crate) const USAGE: &str =
    "overload [scenario...] [--check] [--seconds N] [--rounds N]\nscenarios, all by default:";

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            scenarios: Vec::new(),
            check: false,
            seconds: None,
            rounds: ROUNDS,
        };
        let mut named = Vec::new();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--check" => options.check = true,
                "--seconds" => {
                    let seconds = number(&arg, args.next())?;
                    if !SECONDS.contains(&seconds) {
                        return Err(format!("--seconds {seconds} is not within {SECONDS:?}"));
                    }
                    options.seconds = Some(Duration::from_secs(seconds));
                }
                "--rounds" => {
                    let rounds = usize::try_from(number(&arg, args.next())?).unwrap_or(usize::MAX);
                    options.rounds = rounds.clamp(1, 99);
                }
                name => named.push(
                    Scenario::named(name)
                        .ok_or_else(|| format!("there is no scenario {name:?}"))?,
                ),
            }
        }
        let chosen = |scenario: &Scenario| named.is_empty() || named.contains(scenario);
        options.scenarios = Scenario::ALL.into_iter().filter(chosen).collect();
        Ok(options)
    }

    pub(crate) fn seconds_or(&self, default: u64) -> Duration {
        self.seconds.unwrap_or(Duration::from_secs(default))
    }
}

fn number(option: &str, value: Option<String>) -> Result<u64, String> {
    let number = value.as_deref().and_then(|value| value.parse().ok());
    number.ok_or_else(|| format!("{option} needs a number"))
}
