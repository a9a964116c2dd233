//! What a reply or an error means, in one table: what the master votes, whether its connection still works, and what
//! the request may have left on the master.
//!
//! | reply or error | vote | connection | the request |
//! | --- | --- | --- | --- |
//! | yes | granted | alive | may have set a key |
//! | no | refused | alive | left nothing |
//! | set again, to an extension | recreated | alive | may have set a key |
//! | a digit for each lock, to a renewal | granted: each digit votes for its own lock | alive | set no key |
//! | `NOSCRIPT` | none: the text of the script is sent | alive | left nothing |
//! | `WRONGTYPE` | failed: wrong type | alive | left nothing |
//! | `NOPERM`, a script that may not call a command | failed: forbidden | alive | left nothing |
//! | `NOAUTH`, `WRONGPASS` | failed: authentication | alive | left nothing |
//! | `LOADING`, `READONLY`, `OOM`, `MOVED`, an unknown command, and others by which a master refuses to begin | failed: server | alive | left nothing |
//! | any other error of the master | failed: server | alive | may have set a key |
//! | a reply or an error that makes no sense | failed: protocol | alive | may have set a key |
//! | none: the master was silent for the request timeout | failed: timed out | unknown | may be executed later |
//! | none: it was not sent, since its lock was given up | not needed | unknown | left nothing |
//! | an I/O error that an external connection returns | failed: disconnected | unknown | may be executed later |
//! | the connection broke after the request was sent | failed: disconnected, or protocol if it broke by nonsense | broken | may be executed later |
//! | the connection had ended before | none: another connection is tried | broken | left nothing, if that is certain |
//!
//! A delete is done when its answer is [settled](Answer::is_settled). It is [repeated](Answer::may_pass) after every
//! error, except wrong type, forbidden and protocol: another delete would get the same answer.

mod error;

use std::time::Duration;

use redis::Value as Reply;

use self::error::{ErrorClass, unexpected};
pub(crate) use self::error::{connect_error, is_unsupported};
use super::connection::SendError;
use super::request::Kind;
use crate::permit::Effect;
use crate::vote::{MasterError, Vote};

/// What one master answered to one request. A [`Vote`] is what the user sees of it.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Yes, with the data that was asked for.
    Granted(Payload),
    /// No: the key belongs to another value. Or, to a delete: there is no key.
    Refused,
    /// Only to an extension: the key was missing and is set again.
    Recreated,
    /// The master was not asked: no request of this lock has left a key there.
    HoldsNothing,
    /// The outcome was certain before the request could be sent.
    NotNeeded,
    /// No answer, or not one that counts.
    Failed(MasterError),
}

/// The data that an answer brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// None: the request asks for a yes or a no.
    None,
    /// To an inspection: the key, or `None` if there is none.
    Key(Option<HeldKey>),
    /// To a renewal: what it found for each lock, in the order of the locks.
    Renewed(Box<[Renewed]>),
}

/// What a renewal found for one of its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// The key is ours, and lives at least as long as was asked for.
    Lengthened,
    Missing,
    NotOurs,
}

/// A key as one master has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldKey {
    pub(crate) value: Vec<u8>,
    /// The time to live that is left; `None` if the key never expires.
    pub(crate) expires_in: Option<Duration>,
}

/// What follows a reply or an error.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing: this is the answer.
    Answer(Answer),
    /// The text of the script is sent, because the master does not know its hash.
    SendText,
    /// The request is sent over another connection. This is why it was not sent over the first one.
    Reconnect(MasterError),
}

/// What a reply or an error says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The master has replied over the connection, in time or not.
    Alive,
    /// The connection cannot be used any more.
    Broken,
    /// Nothing: an external connection returned an error of its own. It may reconnect by itself.
    Unknown,
}

impl Sign {
    pub(crate) fn of(reply: &Result<Reply, SendError>) -> Self {
        match reply {
            Ok(_) => Self::Alive,
            Err(SendError::Replied(error)) if error.is_io_error() => Self::Unknown,
            Err(SendError::Replied(_)) => Self::Alive,
            Err(SendError::Unsent { .. } | SendError::Broken(_)) => Self::Broken,
            Err(SendError::NotPermitted | SendError::Silent(_)) => Self::Unknown,
        }
    }
}

/// What a request has done on its master.
pub(crate) fn effect(kind: Kind, reply: &Result<Reply, SendError>) -> Effect {
    match reply {
        Ok(reply) => match Answer::to(kind, reply) {
            Answer::Refused => Effect::Nothing,
            _ => Effect::MayHaveSetKey,
        },
        Err(SendError::Replied(error)) => ErrorClass::of(error).effect(),
        Err(
            SendError::NotPermitted
            | SendError::Unsent {
                is_certain: true, ..
            },
        ) => Effect::Nothing,
        Err(SendError::Broken(_) | SendError::Silent(_) | SendError::Unsent { .. }) => {
            Effect::MayBeExecutedLater
        }
    }
}

impl Next {
    /// What follows a reply to a request.
    pub(crate) fn after(kind: Kind, reply: Result<Reply, SendError>) -> Self {
        let error = match reply {
            Ok(reply) => return Self::Answer(Answer::to(kind, &reply)),
            Err(error) => error,
        };
        match error {
            SendError::Replied(error) => match ErrorClass::of(&error) {
                ErrorClass::NoScript => Self::SendText,
                class => Self::Answer(Answer::Failed(class.error(error))),
            },
            SendError::NotPermitted => Self::Answer(Answer::NotNeeded),
            SendError::Silent(silence) => {
                Self::Answer(Answer::Failed(MasterError::TimedOut(silence)))
            }
            SendError::Broken(error) => {
                Self::Answer(Answer::Failed(ErrorClass::of(&error).error(error)))
            }
            SendError::Unsent { error, .. } => Self::Reconnect(ErrorClass::of(&error).error(error)),
        }
    }
}

impl Renewed {
    fn of(digit: u8) -> Option<Self> {
        match digit {
            b'1' => Some(Self::Lengthened),
            b'2' => Some(Self::Missing),
            b'0' => Some(Self::NotOurs),
            _ => None,
        }
    }
}

impl Answer {
    /// What a reply that is no error means. Only the one right reply to a request is a yes.
    fn to(kind: Kind, reply: &Reply) -> Self {
        match (kind, reply) {
            (Kind::Acquire(_), Reply::Okay) => Self::Granted(Payload::None),
            (Kind::Acquire(_), Reply::Nil) => Self::Refused,
            (Kind::Extend(_) | Kind::Adopt(_) | Kind::Release, Reply::Int(1)) => {
                Self::Granted(Payload::None)
            }
            (Kind::Extend(_) | Kind::Adopt(_) | Kind::Release, Reply::Int(0)) => Self::Refused,
            (Kind::Extend(_) | Kind::Adopt(_), Reply::Int(2)) => Self::Recreated,
            (Kind::Renew(locks), Reply::BulkString(digits)) if digits.len() == locks => {
                let renewed = digits.iter().map(|digit| Renewed::of(*digit));
                let renewed: Option<Box<[_]>> = renewed.collect();
                renewed.map_or_else(
                    || Self::Failed(unexpected(reply)),
                    |renewed| Self::Granted(Payload::Renewed(renewed)),
                )
            }
            (Kind::Inspect, Reply::Array(fields)) => match &fields[..] {
                [Reply::Nil, _] => Self::Granted(Payload::Key(None)),
                [Reply::BulkString(value), Reply::Int(millis)] => {
                    Self::Granted(Payload::Key(Some(HeldKey {
                        value: value.clone(),
                        // A negative number says that the key never expires.
                        expires_in: u64::try_from(*millis).ok().map(Duration::from_millis),
                    })))
                }
                _ => Self::Failed(unexpected(reply)),
            },
            (_, reply) => Self::Failed(unexpected(reply)),
        }
    }

    /// Whether the master surely holds no key of ours after this answer to a delete.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::Granted(_) | Self::Refused | Self::HoldsNothing => true,
            // The key holds what no lock of ours has ever set.
            Self::Failed(error) => matches!(error, MasterError::WrongType(_)),
            Self::Recreated | Self::NotNeeded => false,
        }
    }

    /// Whether this is a failure, and the master may well answer when it is asked again.
    pub(crate) fn may_pass(&self) -> bool {
        let Self::Failed(error) = self else {
            return false;
        };
        !matches!(
            error,
            MasterError::WrongType(_) | MasterError::Forbidden(_) | MasterError::Protocol(_)
        )
    }
}

impl From<Answer> for Vote {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Granted(_) => Self::Granted,
            Answer::Refused => Self::Refused,
            Answer::Recreated => Self::Recreated,
            Answer::HoldsNothing => Self::HoldsNothing,
            Answer::NotNeeded => Self::NotNeeded,
            Answer::Failed(error) => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests;
