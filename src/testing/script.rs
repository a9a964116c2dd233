//! The scripts of this crate, executed without Lua.

use std::sync::LazyLock;

use redis::{Script as Lua, Value as Reply};

use super::store::{Store, integer};

/// A script that this crate sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Extend,
    ExtendMany,
    Release,
    Inspect,
}

/// Every script with its hash. The texts are the files that the crate sends, so the hashes always match. Whoever
/// changes a script must change `run` as well.
static SCRIPTS: LazyLock<[(String, Script); 4]> = LazyLock::new(|| {
    [
        (include_str!("../master/scripts/extend.lua"), Script::Extend),
        (
            include_str!("../master/scripts/extend_many.lua"),
            Script::ExtendMany,
        ),
        (
            include_str!("../master/scripts/release.lua"),
            Script::Release,
        ),
        (
            include_str!("../master/scripts/inspect.lua"),
            Script::Inspect,
        ),
    ]
    .map(|(text, script)| (Lua::new(text).get_hash().to_owned(), script))
});

impl Script {
    pub(super) fn by_hash(hash: &[u8]) -> Option<Self> {
        let known = SCRIPTS.iter().find(|(known, _)| known.as_bytes() == hash)?;
        Some(known.1)
    }

    /// The hash of a script's text, whether or not this crate has such a script.
    pub(super) fn hash(text: &[u8]) -> String {
        Lua::new(&String::from_utf8_lossy(text))
            .get_hash()
            .to_owned()
    }

    /// Executes a script with `KEYS` and `ARGV`.
    pub(super) fn run(self, store: &mut Store, keys: &[&[u8]], args: &[&[u8]]) -> Reply {
        match (self, keys, args) {
            (Self::Inspect, &[key], []) => Reply::Array(vec![
                store.get(key).map_or(Reply::Nil, bulk),
                Reply::Int(store.time_left(key)),
            ]),
            (Self::Release, &[key], &[value]) => {
                let is_ours = store.get(key) == Some(value);
                Reply::Int(i64::from(is_ours && store.delete(key)))
            }
            (Self::Extend, &[key], &[value, ttl, ref only_ours @ ..]) => {
                match lengthen(store, key, value, ttl) {
                    b'2' if *only_ours != [b"XX"] => {
                        store.set(key, value, Some(integer(ttl).unwrap_or_default()));
                        Reply::Int(2)
                    }
                    b'1' => Reply::Int(1),
                    _ => Reply::Int(0),
                }
            }
            (Self::ExtendMany, keys, args) if args.len() == 2 * keys.len() => {
                let locks = keys.iter().zip(args.chunks_exact(2));
                let digits = locks.map(|(key, lock)| lengthen(store, key, lock[0], lock[1]));
                Reply::BulkString(digits.collect())
            }
            // The crate sends no other arguments.
            _ => Reply::Nil,
        }
    }
}

/// Lengthens a key if it has our value. Returns the digit of `extend_many.lua`.
fn lengthen(store: &mut Store, key: &[u8], value: &[u8], ttl: &[u8]) -> u8 {
    let millis = integer(ttl).unwrap_or_default();
    match store.get(key) {
        Some(found) if found == value => {
            if millis > store.time_left(key) {
                store.expire(key, millis);
            }
            b'1'
        }
        Some(_) => b'0',
        None => b'2',
    }
}

pub(super) fn bulk(bytes: &[u8]) -> Reply {
    Reply::BulkString(bytes.to_vec())
}
