//! The classes of errors, which mean different things.

use std::fmt::{self, Write};

use redis::{ErrorKind, RedisError, ServerErrorKind, Value as Reply};

use crate::permit::Effect;
use crate::vote::MasterError;

/// The codes of errors that a master replies instead of beginning with a request.
const REFUSES_TO_BEGIN: [&str; 12] = [
    "LOADING",
    "READONLY",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "BUSY",
    // Of a Redis Cluster, which serves no lock.
    "MOVED",
    "ASK",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "CROSSSLOT",
];

/// What kind of error a master replied, or a connection returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    WrongType,
    /// The user may not do that.
    Forbidden,
    Auth,
    /// The master does not know the hash of a script.
    NoScript,
    /// The master refused to begin with the request.
    Unavailable,
    /// The connection failed.
    Io,
    /// Something that is no reply.
    Nonsense,
    /// Any other error. A script may have failed half way.
    Other,
}

impl ErrorClass {
    pub(super) fn of(error: &RedisError) -> Self {
        match (error.code(), error.kind()) {
            (Some("WRONGTYPE"), _) => Self::WrongType,
            (_, ErrorKind::Server(ServerErrorKind::NoPerm)) => Self::Forbidden,
            (Some("ERR"), _) if is_forbidden_in_script(error) => Self::Forbidden,
            (Some("NOAUTH" | "WRONGPASS"), _) | (_, ErrorKind::AuthenticationFailed) => Self::Auth,
            (_, ErrorKind::Io) => Self::Io,
            (_, ErrorKind::Parse | ErrorKind::UnexpectedReturnType) => Self::Nonsense,
            (_, ErrorKind::Server(ServerErrorKind::NoScript)) => Self::NoScript,
            (Some(code), _) if REFUSES_TO_BEGIN.contains(&code) => Self::Unavailable,
            (Some("ERR"), _) if is_unknown_command(error) => Self::Unavailable,
            _ => Self::Other,
        }
    }

    /// What the request has left on the master when it replied this.
    pub(super) fn effect(self) -> Effect {
        match self {
            Self::WrongType | Self::Forbidden | Self::Auth | Self::NoScript | Self::Unavailable => {
                Effect::Nothing
            }
            Self::Nonsense | Self::Other => Effect::MayHaveSetKey,
            Self::Io => Effect::MayBeExecutedLater,
        }
    }

    /// The error as the user sees it.
    pub(super) fn error(self, error: RedisError) -> MasterError {
        match self {
            Self::WrongType => MasterError::WrongType(error),
            Self::Forbidden => MasterError::Forbidden(error),
            Self::Auth => MasterError::Auth(error),
            Self::Io => MasterError::Disconnected(error),
            Self::Nonsense => MasterError::Protocol(error.to_string()),
            Self::NoScript | Self::Unavailable | Self::Other => MasterError::Server(error),
        }
    }
}

/// Whether a script failed because the user may not use a command or a key in it.
///
/// Redis 7.0 replies this with the code `ERR`; later versions reply `NOPERM`. These scripts write last, so they have
/// written nothing when they fail.
fn is_forbidden_in_script(error: &RedisError) -> bool {
    let detail = error.detail();
    detail.is_some_and(|detail| detail.contains("executing the script can't"))
}

/// Whether the master does not know the command. Other errors with the code `ERR` may come from a proxy, after the
/// master has executed the command.
fn is_unknown_command(error: &RedisError) -> bool {
    let detail = error.detail();
    detail.is_some_and(|detail| detail.starts_with("unknown command"))
}

/// Whether the master does not know a command, or this user may not use it. Another command with the same effect may
/// work.
pub(crate) fn is_unsupported(error: &MasterError) -> bool {
    match error {
        MasterError::Forbidden(_) => true,
        MasterError::Server(error) => is_unknown_command(error),
        _ => false,
    }
}

/// The error of an attempt to connect.
pub(crate) fn connect_error(error: RedisError) -> MasterError {
    match ErrorClass::of(&error) {
        ErrorClass::Io => MasterError::Connect(error),
        class => class.error(error),
    }
}

/// The error for a reply that makes no sense. Quotes the beginning of the reply, which may be of any size.
pub(super) fn unexpected(reply: &Reply) -> MasterError {
    let mut beginning = Beginning(String::new());
    // Fails as soon as there is enough.
    let _ = write!(beginning, "{reply:?}");
    MasterError::Protocol(beginning.0)
}

/// Takes the first characters of a text, and then stops the one who writes.
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
