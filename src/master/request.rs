//! The requests that a master is sent.
//!
//! | request | command | yes | no |
//! | --- | --- | --- | --- |
//! | acquire | `SET key value NX PX ttl` | `OK` | nil: the key exists |
//! | extend | `extend.lua` | 1: ours, and lengthened | 2: was missing, set again; 0: not ours |
//! | renew | `extend_many.lua` | a digit for each of several locks: 1, 2 or 0 | |
//! | adopt | `extend.lua` | 1: ours, and lengthened | 0: missing or not ours |
//! | release | `release.lua`; `DELIFEQ key value` on Valkey 9; `DELEX key IFEQ value` on Redis 8.4 | 1: ours, and deleted | 0: missing or not ours |
//! | inspect | `inspect.lua` | value and time to live | |
//!
//! A renewal is an extension of several locks at once. It never sets a missing key, and its digits mean 1: ours, and
//! lengthened; 2: missing; 0: not ours.
//!
//! No other command is newer than Redis 6.2. The key is the plain string that every other Redlock client uses, so this
//! crate and other clients exclude each other.

use std::slice;
use std::sync::{Arc, OnceLock};

use redis::{Cmd, Script};

use super::connection::Command;
use crate::protocol::key::Key;
use crate::protocol::validity::Ttl;
use crate::protocol::value::Value;

static EXTEND: Lua = Lua::new(include_str!("scripts/extend.lua"));
static EXTEND_MANY: Lua = Lua::new(include_str!("scripts/extend_many.lua"));
static RELEASE: Lua = Lua::new(include_str!("scripts/release.lua"));
static INSPECT: Lua = Lua::new(include_str!("scripts/inspect.lua"));

/// The texts of the scripts that locks need.
pub(crate) fn scripts() -> [&'static str; 3] {
    [EXTEND.text, EXTEND_MANY.text, RELEASE.text]
}

/// Computes the hashes of all scripts.
///
/// The builder calls this. A hash that is computed at the first use could be interrupted by a fork, and the child would
/// wait for the `OnceLock` for ever.
pub(crate) fn hash_scripts() {
    for script in [&EXTEND, &EXTEND_MANY, &RELEASE, &INSPECT] {
        script.hash();
    }
}

/// A script, and its hash, which a master that has the script knows it by.
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
}

/// A request, made once and sent to every master. Clones share it.
#[derive(Clone)]
pub(crate) struct Request(Arc<Parts>);

struct Parts {
    content: Content,
    /// What is sent first: a plain command, or a script by its hash.
    command: Arc<Command>,
    /// The same delete as a plain command, for masters that have one. Made when a master first needs it.
    plain_deletes: [OnceLock<Arc<Command>>; 2],
}

/// What is asked for.
struct Content {
    kind: Kind,
    /// The keys that the request names. Only a renewal reads more than the first one.
    keys: Box<[Key]>,
    /// The value of the lock; `None` if the request only reads, or is a renewal.
    value: Option<Value>,
    /// The value and the ttl for each key of a renewal.
    renewed: Box<[(Value, Ttl)]>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Acquire(Ttl),
    Extend(Ttl),
    /// Like `Extend`, but a missing key is not set again: it may be missing because the lock was released.
    Adopt(Ttl),
    /// Extends so many locks, and sets no missing key.
    Renew(usize),
    Release,
    Inspect,
}

/// How a master deletes a key only if it has our value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteBy {
    /// By a script, which every master knows.
    Script,
    /// By `DELIFEQ key value` of Valkey 9.
    DelIfEq,
    /// By `DELEX key IFEQ value` of Redis 8.4.
    DelEx,
}

impl DeleteBy {
    /// What a server with this reply to `INFO server` can do. A plain command costs the server a seventh of the script.
    pub(crate) fn of_server(info: &str) -> Self {
        let version = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            let mut numbers = line
                .split('.')
                .map(|number| number.trim().parse::<u32>().ok());
            Some((numbers.next()??, numbers.next()??))
        };
        if version("valkey_version:").is_some_and(|version| version >= (9, 0)) {
            Self::DelIfEq
        // Valkey shows the version of Redis that it is compatible with, too.
        } else if version("redis_version:").is_some_and(|version| version >= (8, 4)) {
            Self::DelEx
        } else {
            Self::Script
        }
    }
}

/// How a script is named in a command.
#[derive(Clone, Copy)]
enum ScriptBy {
    Hash,
    Text,
}

impl Kind {
    /// Whether the request is a new attempt to get a lock.
    pub(crate) fn is_attempt(self) -> bool {
        matches!(self, Self::Acquire(_))
    }

    /// The script of a request; `None` for a plain command.
    fn script(self) -> Option<&'static Lua> {
        match self {
            Self::Acquire(_) => None,
            Self::Extend(_) | Self::Adopt(_) => Some(&EXTEND),
            Self::Renew(_) => Some(&EXTEND_MANY),
            Self::Release => Some(&RELEASE),
            Self::Inspect => Some(&INSPECT),
        }
    }
}

impl Request {
    pub(crate) fn acquire(key: &Key, value: &Value, ttl: Ttl) -> Self {
        Self::new(Kind::Acquire(ttl), slice::from_ref(key), Some(value))
    }

    pub(crate) fn extend(keys: &[Key], value: &Value, ttl: Ttl) -> Self {
        Self::new(Kind::Extend(ttl), keys, Some(value))
    }

    pub(crate) fn adopt(keys: &[Key], value: &Value, ttl: Ttl) -> Self {
        Self::new(Kind::Adopt(ttl), keys, Some(value))
    }

    pub(crate) fn release(keys: &[Key], value: &Value) -> Self {
        Self::new(Kind::Release, keys, Some(value))
    }

    pub(crate) fn inspect(key: &Key) -> Self {
        Self::new(Kind::Inspect, slice::from_ref(key), None)
    }

    /// Extends several locks. Each has a value and a ttl of its own.
    pub(crate) fn renew(locks: impl IntoIterator<Item = (Key, Value, Ttl)>) -> Self {
        let locks = locks
            .into_iter()
            .map(|(key, value, ttl)| (key, (value, ttl)));
        let (keys, renewed): (Vec<_>, Vec<_>) = locks.unzip();
        Self::of(Content {
            kind: Kind::Renew(keys.len()),
            keys: keys.into(),
            value: None,
            renewed: renewed.into(),
        })
    }

    fn new(kind: Kind, keys: &[Key], value: Option<&Value>) -> Self {
        Self::of(Content {
            kind,
            keys: keys.into(),
            value: value.cloned(),
            renewed: Box::default(),
        })
    }

    fn of(content: Content) -> Self {
        let command = content.command(ScriptBy::Hash);
        Self(Arc::new(Parts {
            content,
            command,
            plain_deletes: Default::default(),
        }))
    }

    pub(crate) fn kind(&self) -> Kind {
        self.0.content.kind
    }

    /// What is sent first: a plain command, or a script by its hash.
    pub(crate) fn command(&self) -> Arc<Command> {
        Arc::clone(&self.0.command)
    }

    /// A delete of one key as a plain command; `None` for another request, or for a master that deletes by the script.
    pub(crate) fn plain_delete(&self, delete_by: DeleteBy) -> Option<Arc<Command>> {
        let place = match (self.kind(), delete_by) {
            (Kind::Release, DeleteBy::DelIfEq) => 0,
            (Kind::Release, DeleteBy::DelEx) => 1,
            _ => return None,
        };
        let content = &self.0.content;
        let [key] = &*content.keys else { return None };
        let value = content.value.as_ref()?;
        let command = self.0.plain_deletes[place].get_or_init(|| {
            let mut cmd = Cmd::with_capacity(4, key.as_bytes().len() + 64);
            match delete_by {
                DeleteBy::DelEx => cmd.arg("DELEX").arg(key.as_bytes()).arg("IFEQ"),
                _ => cmd.arg("DELIFEQ").arg(key.as_bytes()),
            };
            cmd.arg(value.as_str());
            let value = content.value.clone();
            Arc::new(Command { cmd, value })
        });
        Some(Arc::clone(command))
    }

    /// The script with its text, for a master that does not know the hash. The master keeps the script from then on.
    pub(crate) fn command_with_text(&self) -> Arc<Command> {
        self.0.content.command(ScriptBy::Text)
    }
}

impl Content {
    fn command(&self, script_by: ScriptBy) -> Arc<Command> {
        // With room for all arguments except the text of a script, so that the command does not grow.
        let key_bytes = self.keys.iter().map(|key| key.as_bytes().len());
        let value_bytes = self
            .renewed
            .iter()
            .map(|(value, _)| value.as_str().len() + 20);
        let bytes = key_bytes.sum::<usize>() + value_bytes.sum::<usize>() + 128;
        let arguments = 6 + self.keys.len() + 2 * self.renewed.len();
        let mut cmd = Cmd::with_capacity(arguments, bytes);
        match (self.kind.script(), script_by) {
            (None, _) => cmd.arg("SET"),
            (Some(script), ScriptBy::Hash) => cmd.arg("EVALSHA").arg(script.hash()),
            (Some(script), ScriptBy::Text) => cmd.arg("EVAL").arg(script.text),
        };
        if self.kind.script().is_some() {
            cmd.arg(self.keys.len());
        }
        for key in &self.keys {
            cmd.arg(key.as_bytes());
        }
        if let Some(value) = &self.value {
            cmd.arg(value.as_str());
        }
        for (value, ttl) in &self.renewed {
            cmd.arg(value.as_str()).arg(ttl.millis());
        }
        match self.kind {
            Kind::Acquire(ttl) => cmd.arg("NX").arg("PX").arg(ttl.millis()),
            Kind::Extend(ttl) => cmd.arg(ttl.millis()),
            Kind::Adopt(ttl) => cmd.arg(ttl.millis()).arg("XX"),
            Kind::Renew(_) | Kind::Release | Kind::Inspect => &mut cmd,
        };
        let value = self.value.clone();
        Arc::new(Command { cmd, value })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redis::Arg;

    use super::*;
    use crate::protocol::validity::Drift;

    fn words(command: &Command) -> Vec<String> {
        let words = command.cmd.args_iter().map(|word| match word {
            Arg::Simple(word) => String::from_utf8(word.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        });
        words.collect()
    }

    fn requests(keys: &[Key]) -> [(Request, Option<&'static Lua>, &'static [&'static str]); 5] {
        let value = &Value::handed_over("v".into());
        let ttl = Ttl::new(Duration::from_secs(1), Drift::DEFAULT).unwrap();
        let (extend, adopt) = (
            Request::extend(keys, value, ttl),
            Request::adopt(keys, value, ttl),
        );
        [
            (
                Request::acquire(&keys[0], value, ttl),
                None,
                &["v", "NX", "PX", "1000"],
            ),
            (extend, Some(&EXTEND), &["v", "1000"]),
            (adopt, Some(&EXTEND), &["v", "1000", "XX"]),
            (Request::release(keys, value), Some(&RELEASE), &["v"]),
            (Request::inspect(&keys[0]), Some(&INSPECT), &[]),
        ]
    }

    #[test]
    fn a_command_is_its_name_its_keys_the_value_and_options() {
        let key = [Key::new(b"p:", b"k")];
        for (request, script, rest) in requests(&key) {
            let beginnings = match script {
                None => [vec!["SET"], vec!["SET"]],
                Some(script) => [
                    vec!["EVALSHA", script.hash(), "1"],
                    vec!["EVAL", script.text, "1"],
                ],
            };
            let commands = [request.command(), request.command_with_text()];
            for (command, beginning) in commands.iter().zip(beginnings) {
                let expected = [&beginning, &["p:k"][..], rest].concat();
                assert_eq!(words(command), expected);
                let is_read = matches!(request.kind(), Kind::Inspect);
                assert_eq!(command.value.is_none(), is_read);
            }
        }
    }

    #[test]
    fn a_renewal_names_all_locks_and_then_the_value_and_ttl_of_each() {
        let lock = |key: &str, value: &str, millis| {
            let ttl = Ttl::new(Duration::from_millis(millis), Drift::DEFAULT).unwrap();
            let value = Value::handed_over(value.into());
            (Key::new(b"p:", key.as_bytes()), value, ttl)
        };
        let renewal = Request::renew([lock("a", "v", 1_000), lock("b", "w", 60_000)]);
        let rest = ["2", "p:a", "p:b", "v", "1000", "w", "60000"];
        for (command, name, script) in [
            (renewal.command(), "EVALSHA", EXTEND_MANY.hash()),
            (renewal.command_with_text(), "EVAL", EXTEND_MANY.text),
        ] {
            assert_eq!(words(&command), [&[name, script][..], &rest].concat());
            assert!(command.value.is_none());
        }
        assert!(matches!(renewal.kind(), Kind::Renew(2)));
    }

    #[test]
    fn a_script_may_be_given_several_keys() {
        let keys = [Key::new(b"", b"one"), Key::new(b"", b"two")];
        let release = Request::release(&keys, &Value::handed_over("v".into()));
        let words = words(&release.command());
        assert_eq!(words[2..], ["2", "one", "two", "v"]);
    }
    #[test]
    fn a_server_gets_the_plain_delete_that_it_has() {
        for (info, expected) in [
            (
                "redis_version:7.2.4\r\nvalkey_version:9.0.0\r\n",
                DeleteBy::DelIfEq,
            ),
            (
                "redis_version:7.2.4\r\nvalkey_version:10.1.0\r\n",
                DeleteBy::DelIfEq,
            ),
            (
                "redis_version:7.2.4\r\nvalkey_version:8.1.3\r\n",
                DeleteBy::Script,
            ),
            ("redis_version:8.4.0\r\n", DeleteBy::DelEx),
            ("redis_version:9.0.0\r\n", DeleteBy::DelEx),
            ("redis_version:8.3.9\r\n", DeleteBy::Script),
            ("redis_version:7.0.15\r\n", DeleteBy::Script),
            ("redis_version:many\r\n", DeleteBy::Script),
            ("", DeleteBy::Script),
        ] {
            assert_eq!(DeleteBy::of_server(info), expected, "{info:?}");
        }
    }

    #[test]
    fn a_plain_delete_names_the_key_and_the_value() {
        let key = [Key::new(b"p:", b"k")];
        let plain = |request: &Request, delete_by| {
            let command = request.plain_delete(delete_by);
            command.map(|command| words(&command))
        };
        for (request, _, _) in requests(&key) {
            assert!(plain(&request, DeleteBy::Script).is_none());
            let plain = [DeleteBy::DelIfEq, DeleteBy::DelEx].map(|by| plain(&request, by));
            if matches!(request.kind(), Kind::Release) {
                let [del_if_eq, del_ex] = plain.map(Option::unwrap);
                assert_eq!(del_if_eq, ["DELIFEQ", "p:k", "v"]);
                assert_eq!(del_ex, ["DELEX", "p:k", "IFEQ", "v"]);
            } else {
                assert_eq!(plain, [None, None]);
            }
        }
        let keys = [Key::new(b"", b"one"), Key::new(b"", b"two")];
        let of_two = Request::release(&keys, &Value::handed_over("v".into()));
        assert!(
            plain(&of_two, DeleteBy::DelIfEq).is_none(),
            "for one key only"
        );
    }
}
