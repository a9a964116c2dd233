//! What a reply means.

use std::fmt::{self, Write};
use std::time::Duration;

use redis::Value as Reply;

use super::request::Kind;
use crate::vote::{KeyState, MasterError, Vote};

/// What a reply means to a vote.
pub(crate) fn read(kind: Kind, reply: &Reply) -> Vote {
    match (kind, reply) {
        (Kind::Acquire(_), Reply::Okay) => Vote::Granted,
        (Kind::Acquire(_), Reply::Nil) => Vote::Refused,
        (Kind::Extend(_) | Kind::Adopt(_) | Kind::Release, Reply::Int(1)) => Vote::Granted,
        (Kind::Extend(_) | Kind::Adopt(_) | Kind::Release, Reply::Int(0)) => Vote::Refused,
        (Kind::Extend(_) | Kind::Adopt(_), Reply::Int(2)) => Vote::Recreated,
        (_, unexpected) => Vote::Failed(protocol(unexpected)),
    }
}

/// What the reply to an inspection means.
pub(crate) fn read_state(reply: &Reply) -> KeyState {
    let Reply::Array(fields) = reply else {
        return KeyState::Unreachable(protocol(reply));
    };
    match &fields[..] {
        [Reply::Nil, _] => KeyState::Free,
        [Reply::BulkString(value), Reply::Int(left)] => KeyState::Held {
            value: value.clone(),
            // Negative: it never expires.
            expires_in: u64::try_from(*left).ok().map(Duration::from_millis),
        },
        _ => KeyState::Unreachable(protocol(reply)),
    }
}

/// The error for a reply that makes no sense: enough of it to recognise it, however much a broken master sent.
fn protocol(reply: &Reply) -> MasterError {
    let mut beginning = Beginning(String::new());
    // Fails when it has enough.
    let _ = write!(beginning, "{reply:?}");
    MasterError::Protocol(beginning.0)
}

struct Beginning(String);

impl Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend(text.chars().take(64));
        if self.0.len() < 64 {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
