//! The three requests that a master is sent, and what their replies mean.
//!
//! | request | command | yes | no |
//! | --- | --- | --- | --- |
//! | acquire | `SET key value NX PX ttl` | `OK` | nil: the key exists |
//! | extend | `extend.lua` | 1: ours, and lengthened | 2: was missing, set again; 0: not ours |
//! | release | `release.lua` | 1: ours, and deleted | 0: missing or not ours |
//!
//! Nothing here is newer than Redis 6.2, and the key is the plain string of every other Redlock client: they
//! exclude us and we them.

use std::sync::{Arc, LazyLock};

use redis::{Cmd, Script, Value as Reply};

use crate::error::{MasterError, Vote};
use crate::validity::Ttl;
use crate::value::Value;

/// The texts of the scripts.
pub(crate) const SCRIPTS: [&str; 2] = [EXTEND, RELEASE];

const EXTEND: &str = include_str!("extend.lua");
const RELEASE: &str = include_str!("release.lua");

static EXTEND_HASH: LazyLock<Script> = LazyLock::new(|| Script::new(EXTEND));
static RELEASE_HASH: LazyLock<Script> = LazyLock::new(|| Script::new(RELEASE));

/// A request, made once and sent to every master.
#[derive(Clone)]
pub(crate) struct Request(Arc<Inner>);

struct Inner {
    kind: Kind,
    key: Arc<[u8]>,
    value: Value,
    command: Arc<Cmd>,
}

#[derive(Clone, Copy)]
enum Kind {
    Acquire,
    Extend(Ttl),
    Release,
}

impl Request {
    pub(crate) fn acquire(key: &Arc<[u8]>, value: Value, ttl: Ttl) -> Self {
        let mut set = redis::cmd("SET");
        set.arg(&**key)
            .arg(value.as_str())
            .arg("NX")
            .arg("PX")
            .arg(ttl.millis());
        Self::new(Kind::Acquire, key, value, set)
    }

    pub(crate) fn extend(key: &Arc<[u8]>, value: Value, ttl: Ttl) -> Self {
        let kind = Kind::Extend(ttl);
        let by_hash = kind.script_call("EVALSHA", EXTEND_HASH.get_hash(), key, value);
        Self::new(kind, key, value, by_hash)
    }

    pub(crate) fn release(key: &Arc<[u8]>, value: Value) -> Self {
        let by_hash = Kind::Release.script_call("EVALSHA", RELEASE_HASH.get_hash(), key, value);
        Self::new(Kind::Release, key, value, by_hash)
    }

    fn new(kind: Kind, key: &Arc<[u8]>, value: Value, command: Cmd) -> Self {
        Self(Arc::new(Inner {
            kind,
            key: Arc::clone(key),
            value,
            command: Arc::new(command),
        }))
    }

    /// What is sent: a plain command, or a script by its hash.
    pub(crate) fn command(&self) -> Arc<Cmd> {
        Arc::clone(&self.0.command)
    }

    /// The script with its text, for a master that does not have it; it keeps it from then on.
    pub(crate) fn command_with_text(&self) -> Arc<Cmd> {
        let Inner {
            kind,
            key,
            value,
            command,
        } = &*self.0;
        let text = match kind {
            Kind::Acquire => return Arc::clone(command),
            Kind::Extend(_) => EXTEND,
            Kind::Release => RELEASE,
        };
        Arc::new(kind.script_call("EVAL", text, key, *value))
    }

    /// What a reply means.
    pub(crate) fn read(&self, reply: &Reply) -> Vote {
        match (self.0.kind, reply) {
            (Kind::Acquire, Reply::Okay) => Vote::Granted,
            (Kind::Acquire, Reply::Nil) => Vote::Refused,
            (Kind::Extend(_) | Kind::Release, Reply::Int(1)) => Vote::Granted,
            (Kind::Extend(_) | Kind::Release, Reply::Int(0)) => Vote::Refused,
            (Kind::Extend(_), Reply::Int(2)) => Vote::Recreated,
            (_, unexpected) => Vote::Failed(MasterError::Protocol(shorten(unexpected))),
        }
    }
}

impl Kind {
    fn script_call(self, how: &str, script: &str, key: &[u8], value: Value) -> Cmd {
        let mut call = redis::cmd(how);
        call.arg(script).arg(1).arg(key).arg(value.as_str());
        if let Self::Extend(ttl) = self {
            call.arg(ttl.millis());
        }
        call
    }
}

/// A reply as it stands in an error: enough to recognise it, however much a broken master sent.
fn shorten(reply: &Reply) -> String {
    let mut text = match reply {
        Reply::BulkString(bytes) => {
            String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned()
        }
        Reply::Array(items) => format!("an array of {}", items.len()),
        other => format!("{other:?}"),
    };
    if let Some((end, _)) = text.char_indices().nth(64) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::validity::Drift;

    fn requests() -> [Request; 3] {
        let key: Arc<[u8]> = Arc::from(&b"key"[..]);
        let value = Value::random(&mut rand::rng());
        let ttl = Ttl::new(Duration::from_secs(1), Drift::DEFAULT).unwrap();
        [
            Request::acquire(&key, value, ttl),
            Request::extend(&key, value, ttl),
            Request::release(&key, value),
        ]
    }

    #[test]
    fn only_the_expected_replies_count_as_votes() {
        let [acquire, extend, release] = requests();
        assert!(matches!(acquire.read(&Reply::Okay), Vote::Granted));
        assert!(matches!(acquire.read(&Reply::Nil), Vote::Refused));
        assert!(matches!(extend.read(&Reply::Int(1)), Vote::Granted));
        assert!(matches!(extend.read(&Reply::Int(2)), Vote::Recreated));
        assert!(matches!(release.read(&Reply::Int(1)), Vote::Granted));
        assert!(matches!(release.read(&Reply::Int(0)), Vote::Refused));

        let strange = [
            Reply::Int(3),
            Reply::Int(-1),
            Reply::SimpleString("QUEUED".into()),
            Reply::BulkString(vec![0xff; 10_000_000]),
            Reply::Array(vec![Reply::Okay; 1_000]),
            Reply::Boolean(true),
        ];
        for request in requests() {
            for reply in &strange {
                let Vote::Failed(MasterError::Protocol(text)) = request.read(reply) else {
                    panic!("{reply:?} counted");
                };
                assert!(text.len() < 300);
            }
        }
        assert!(matches!(release.read(&Reply::Int(2)), Vote::Failed(_)));
        assert!(matches!(acquire.read(&Reply::Int(1)), Vote::Failed(_)));
    }
}
