//! The keys of a master, and the commands on them. Pure: the caller passes the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::Value as Reply;

use super::script::{Script, bulk};

/// The memory of a master.
#[derive(Debug, Default)]
pub(super) struct Store {
    keys: BTreeMap<Vec<u8>, Entry>,
    scripts: BTreeSet<String>,
    /// The time on the master's clock.
    now: Duration,
}

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    /// When the key expires, on the master's clock.
    expires: Option<Duration>,
}

impl Store {
    /// Sets the clock, and deletes the keys that have expired by then.
    pub(super) fn at(&mut self, now: Duration) -> &mut Self {
        self.now = now;
        self.keys
            .retain(|_, entry| entry.expires.is_none_or(|expires| now < expires));
        self
    }

    /// Deletes all keys and scripts, as a restart without persistence does.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.scripts.clear();
    }

    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.keys.keys().cloned().collect()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.keys.get(key).map(|entry| &*entry.value)
    }

    /// How long until a key expires, on the master's clock. `None` if there is no such key, or if the key never
    /// expires.
    pub(super) fn expires_in(&self, key: &[u8]) -> Option<Duration> {
        let expires = self.keys.get(key)?.expires?;
        Some(expires - self.now)
    }

    /// The reply of `PTTL`: milliseconds, -1 for a key that never expires, -2 if there is no such key.
    pub(super) fn time_left(&self, key: &[u8]) -> i64 {
        let Some(entry) = self.keys.get(key) else {
            return -2;
        };
        entry.expires.map_or(-1, |expires| {
            i64::try_from((expires - self.now).as_millis()).unwrap_or(i64::MAX)
        })
    }

    pub(super) fn set(&mut self, key: &[u8], value: &[u8], ttl: Option<i64>) {
        let entry = Entry {
            value: value.to_vec(),
            expires: ttl.map(|millis| self.after(millis)),
        };
        self.keys.insert(key.to_vec(), entry);
    }

    /// Sets when a key expires. Returns whether the key existed.
    pub(super) fn expire(&mut self, key: &[u8], millis: i64) -> bool {
        let expires = self.after(millis);
        let entry = self.keys.get_mut(key);
        entry.map(|entry| entry.expires = Some(expires)).is_some()
    }

    /// Deletes a key. Returns whether the key existed.
    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        self.keys.remove(key).is_some()
    }

    fn after(&self, millis: i64) -> Duration {
        let span = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
        self.now.saturating_add(span)
    }

    /// Executes a command.
    pub(super) fn execute(&mut self, command: &[Vec<u8>]) -> Reply {
        let command: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        let Some((name, args)) = command.split_first() else {
            return error("ERR empty command");
        };
        match (&*name.to_ascii_uppercase(), args) {
            (b"PING", []) => Reply::SimpleString("PONG".into()),
            (b"GET", [key]) => self.get(key).map_or(Reply::Nil, bulk),
            (b"PTTL", [key]) => Reply::Int(self.time_left(key)),
            (b"DEL", keys) => {
                let deleted = keys.iter().map(|key| i64::from(self.delete(key)));
                Reply::Int(deleted.sum())
            }
            (b"PEXPIRE", [key, millis]) => match integer(millis) {
                Some(millis) => Reply::Int(i64::from(self.expire(key, millis))),
                None => error("ERR value is not an integer or out of range"),
            },
            (b"SET", [key, value, options @ ..]) => self.execute_set(key, value, options),
            (b"SCRIPT", [load, text]) if load.eq_ignore_ascii_case(b"LOAD") => {
                let hash = Script::hash(text);
                self.scripts.insert(hash.clone());
                bulk(hash.as_bytes())
            }
            (b"EVAL", [text, call @ ..]) => {
                let hash = Script::hash(text);
                self.scripts.insert(hash.clone());
                self.evaluate(&hash, call)
            }
            (b"EVALSHA", [hash, call @ ..]) => {
                let hash = String::from_utf8_lossy(hash).to_ascii_lowercase();
                if self.scripts.contains(&hash) {
                    self.evaluate(&hash, call)
                } else {
                    error("NOSCRIPT No matching script. Please use EVAL.")
                }
            }
            _ => error("ERR a master in memory does not know this command"),
        }
    }

    fn execute_set(&mut self, key: &[u8], value: &[u8], options: &[&[u8]]) -> Reply {
        let (mut ttl, mut only_new) = (None, false);
        let mut options = options.iter();
        while let Some(option) = options.next() {
            match &*option.to_ascii_uppercase() {
                b"NX" => only_new = true,
                b"PX" => match options.next().and_then(|millis| integer(millis)) {
                    Some(millis) if millis > 0 => ttl = Some(millis),
                    Some(_) => return error("ERR invalid expire time in 'set' command"),
                    None => return error("ERR value is not an integer or out of range"),
                },
                _ => return error("ERR syntax error"),
            }
        }
        if only_new && self.keys.contains_key(key) {
            return Reply::Nil;
        }
        self.set(key, value, ttl);
        Reply::Okay
    }

    fn evaluate(&mut self, hash: &str, call: &[&[u8]]) -> Reply {
        let Some(script) = Script::by_hash(hash.as_bytes()) else {
            return error("ERR a master in memory runs the scripts of this crate only");
        };
        let split = call.split_first().and_then(|(count, rest)| {
            let count = usize::try_from(integer(count)?).ok()?;
            rest.split_at_checked(count)
        });
        let Some((keys, args)) = split else {
            return error("ERR Number of keys can't be greater than number of args");
        };
        script.run(self, keys, args)
    }
}

/// Parses a number as Redis does.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// An error as a client reads it: a code, a space, a text.
pub(super) fn error(line: &str) -> Reply {
    let line = line.replace(['\r', '\n'], " ");
    let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
    parsed.unwrap_or(Reply::Nil)
}
