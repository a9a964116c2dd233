//! The scripts of this crate, executed without Lua.

use std::sync::LazyLock;

use redis::{Script as Lua, Value as Reply};

use super::store::{Store, integer};

/// A script that this crate sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Extend,
    Release,
    Inspect,
}

/// Every script with its hash. The texts are the files that the crate sends, so the hashes always match. Whoever
/// changes a script must change `run` as well.
static SCRIPTS: LazyLock<[(String, Script); 3]> = LazyLock::new(|| {
    [
        (include_str!("../master/scripts/extend.lua"), Script::Extend),
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

    /// Executes a script with `KEYS[1]` and `ARGV`.
    pub(super) fn run(self, store: &mut Store, key: &[u8], args: &[&[u8]]) -> Reply {
        let is_ours = |store: &Store| store.get(key) == args.first().copied();
        match self {
            Self::Release => Reply::Int(i64::from(is_ours(store) && store.delete(key))),
            Self::Inspect => Reply::Array(vec![
                store.get(key).map_or(Reply::Nil, bulk),
                Reply::Int(store.time_left(key)),
            ]),
            Self::Extend => {
                let &[value, ttl, ref only_ours @ ..] = args else {
                    return Reply::Nil;
                };
                let millis = integer(ttl).unwrap_or_default();
                if is_ours(store) {
                    if millis > store.time_left(key) {
                        store.expire(key, millis);
                    }
                    Reply::Int(1)
                } else if store.get(key).is_none() && *only_ours != [b"XX"] {
                    store.set(key, value, Some(millis));
                    Reply::Int(2)
                } else {
                    Reply::Int(0)
                }
            }
        }
    }
}

pub(super) fn bulk(bytes: &[u8]) -> Reply {
    Reply::BulkString(bytes.to_vec())
}
