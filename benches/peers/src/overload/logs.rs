//! What the crate logs, counted.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// How often each message was logged, with its level.
static MESSAGES: Mutex<BTreeMap<(Level, String), u64>> = Mutex::new(BTreeMap::new());

/// Counts from now on what this process logs at INFO and above, as services do by default.
pub(crate) fn start() {
    tracing::subscriber::set_global_default(Lines).expect("the only subscriber");
}

/// How many events there were of level WARN and above, and in all.
pub(crate) fn counts() -> (u64, u64) {
    let messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let warnings = messages
        .iter()
        .filter(|((level, _), _)| *level <= Level::WARN);
    (
        warnings.map(|(_, count)| count).sum(),
        messages.values().sum(),
    )
}

/// One line per message.
pub(crate) fn summary() -> Vec<String> {
    let messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let line = |((level, message), count): (&(Level, String), &u64)| {
        format!("{count} x {level} {message}")
    };
    messages.iter().map(line).collect()
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message::default();
        event.record(&mut message);
        let mut messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (*event.metadata().level(), message.0);
        *messages.entry(key).or_default() += 1;
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// The text of an event, without its fields.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
