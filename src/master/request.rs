//! The requests that a master is sent, and what their replies mean.
//!
//! | request | command | yes | no |
//! | --- | --- | --- | --- |
//! | acquire | `SET key value NX PX ttl` | `OK` | nil: the key exists |
//! | extend | `extend.lua` | 1: ours, and lengthened | 2: was missing, set again; 0: not ours |
//! | adopt | `extend.lua` | 1: ours, and lengthened | 0: missing or not ours |
//! | release | `release.lua` | 1: ours, and deleted | 0: missing or not ours |
//! | inspect | `inspect.lua` | value and time to live | |
//!
//! Nothing here is newer than Redis 6.2, and the key is the plain string of every other Redlock client: they
//! exclude us and we them.

use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::{Arg, Cmd, Script, Value as Reply};

use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;
use crate::vote::{KeyState, MasterError, Vote};

static EXTEND: Lua = Lua::new(include_str!("scripts/extend.lua"));
static RELEASE: Lua = Lua::new(include_str!("scripts/release.lua"));
static INSPECT: Lua = Lua::new(include_str!("scripts/inspect.lua"));

/// The texts of the scripts that every lock needs.
pub(crate) fn scripts() -> [&'static str; 2] {
    [EXTEND.text, RELEASE.text]
}

/// Makes the names of all scripts. Not at the first use: a fork might come in the middle of it.
pub(crate) fn hash_scripts() {
    for script in [&EXTEND, &RELEASE, &INSPECT] {
        script.hash();
    }
}

/// A script, and its name on a master that has it.
struct Lua {
    text: &'static str,
    hash: OnceLock<String>,
}

impl Lua {
    const fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: OnceLock::new(),
        }
    }

    fn hash(&self) -> &str {
        let hash = || Script::new(self.text).get_hash().to_owned();
        self.hash.get_or_init(hash)
    }

    fn call(&self, key: &[u8]) -> Cmd {
        let mut call = with_room(key);
        call.arg("EVALSHA").arg(self.hash()).arg(1).arg(key);
        call
    }
}

/// A command with room for all arguments of any request, so that it never grows.
fn with_room(key: &[u8]) -> Cmd {
    Cmd::with_capacity(7, key.len() + 128)
}

/// A request, made once and sent to every master.
#[derive(Clone)]
pub(crate) struct Request {
    kind: Kind,
    command: Arc<Cmd>,
}

#[derive(Clone, Copy)]
enum Kind {
    Acquire,
    Extend,
    Release,
    Inspect,
}

impl Request {
    pub(crate) fn acquire(key: &[u8], value: &Value, ttl: Ttl) -> Self {
        let mut set = with_room(key);
        set.arg("SET")
            .arg(key)
            .arg(value.as_str())
            .arg("NX")
            .arg("PX")
            .arg(ttl.millis());
        Self::new(Kind::Acquire, set)
    }

    pub(crate) fn extend(key: &[u8], value: &Value, ttl: Ttl) -> Self {
        let mut call = EXTEND.call(key);
        call.arg(value.as_str()).arg(ttl.millis());
        Self::new(Kind::Extend, call)
    }

    /// An extension that sets nothing where the key is missing: whoever adopts may be mistaken.
    pub(crate) fn adopt(key: &[u8], value: &Value, ttl: Ttl) -> Self {
        let mut call = EXTEND.call(key);
        call.arg(value.as_str()).arg(ttl.millis()).arg("XX");
        Self::new(Kind::Extend, call)
    }

    pub(crate) fn release(key: &[u8], value: &Value) -> Self {
        let mut call = RELEASE.call(key);
        call.arg(value.as_str());
        Self::new(Kind::Release, call)
    }

    pub(crate) fn inspect(key: &[u8]) -> Self {
        Self::new(Kind::Inspect, INSPECT.call(key))
    }

    fn new(kind: Kind, command: Cmd) -> Self {
        let command = Arc::new(command);
        Self { kind, command }
    }

    /// What is sent: a plain command, or a script by its hash.
    pub(crate) fn command(&self) -> Arc<Cmd> {
        Arc::clone(&self.command)
    }

    /// The script with its text, for a master that does not have it; it keeps it from then on.
    pub(crate) fn command_with_text(&self) -> Arc<Cmd> {
        let script = match self.kind {
            Kind::Acquire => return self.command(),
            Kind::Extend => &EXTEND,
            Kind::Release => &RELEASE,
            Kind::Inspect => &INSPECT,
        };
        let mut call = redis::cmd("EVAL");
        call.arg(script.text);
        for arg in self.command.args_iter().skip(2) {
            if let Arg::Simple(arg) = arg {
                call.arg(arg);
            }
        }
        Arc::new(call)
    }

    /// What a reply means to a vote.
    pub(crate) fn read(&self, reply: &Reply) -> Vote {
        match (self.kind, reply) {
            (Kind::Acquire, Reply::Okay) => Vote::Granted,
            (Kind::Acquire, Reply::Nil) => Vote::Refused,
            (Kind::Extend | Kind::Release, Reply::Int(1)) => Vote::Granted,
            (Kind::Extend | Kind::Release, Reply::Int(0)) => Vote::Refused,
            (Kind::Extend, Reply::Int(2)) => Vote::Recreated,
            (_, unexpected) => Vote::Failed(protocol(unexpected)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::validity::Drift;

    fn requests() -> [Request; 3] {
        let key = b"key";
        let value = &Value::random(&mut rand::rng());
        let ttl = Ttl::new(Duration::from_secs(1), Drift::DEFAULT).unwrap();
        [
            Request::acquire(key, value, ttl),
            Request::extend(key, value, ttl),
            Request::release(key, value),
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

    #[test]
    fn a_script_with_its_text_has_the_same_arguments() {
        for request in &requests()[1..] {
            let by_hash: Vec<_> = request.command.args_iter().skip(2).collect();
            let with_text = request.command_with_text();
            let with_text: Vec<_> = with_text.args_iter().skip(2).collect();
            assert_eq!(by_hash, with_text);
        }
    }

    #[test]
    fn a_sighting_is_a_value_and_its_time() {
        let held = Reply::Array(vec![Reply::BulkString(vec![0xff]), Reply::Int(70)]);
        let KeyState::Held { value, expires_in } = read_state(&held) else {
            panic!("{held:?}")
        };
        assert_eq!(
            (value, expires_in),
            (vec![0xff], Some(Duration::from_millis(70)))
        );
        let free = Reply::Array(vec![Reply::Nil, Reply::Int(-2)]);
        assert!(matches!(read_state(&free), KeyState::Free));
        let forever = Reply::Array(vec![Reply::BulkString(vec![]), Reply::Int(-1)]);
        assert!(matches!(
            read_state(&forever),
            KeyState::Held {
                expires_in: None,
                ..
            }
        ));
        for strange in [
            Reply::Okay,
            Reply::Array(vec![]),
            Reply::Array(vec![Reply::Okay; 2]),
        ] {
            assert!(
                matches!(read_state(&strange), KeyState::Unreachable(_)),
                "{strange:?}"
            );
        }
    }

    proptest::proptest! {
        /// Of all that can be read off a wire, only the one right answer to a request is a yes.
        #[test]
        fn no_bytes_make_a_vote_by_chance(
            kind in "[-+:$*_#,(=%~>|!]",
            line in "(OK|[012]|-1|[ -~]{0,9})",
            rest: Vec<u8>,
        ) {
            let mut bytes = format!("{kind}{line}\r\n").into_bytes();
            bytes.extend(rest);
            let Ok(reply) = redis::parse_redis_value(&bytes) else { return Ok(()) };
            let _ = read_state(&reply);
            let right = [Reply::Okay, Reply::Int(1), Reply::Int(1)];
            for (request, right) in requests().iter().zip(right) {
                let granted = matches!(request.read(&reply), Vote::Granted);
                assert_eq!(granted, reply == right, "{reply:?}");
            }
        }
    }
}
