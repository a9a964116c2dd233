use std::io;

use redis::RedisError;

use super::*;
use crate::protocol::validity::{Drift, Ttl};

fn ttl() -> Ttl {
    Ttl::new(Duration::from_secs(1), Drift::DEFAULT).unwrap()
}

fn acquire() -> Kind {
    Kind::Acquire(ttl())
}

fn extend() -> Kind {
    Kind::Extend(ttl())
}

/// The error that a client reads off the wire.
fn server_error(line: &str) -> RedisError {
    let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
    reply.and_then(Reply::extract_error).unwrap_err()
}

fn replied(line: &str) -> Result<Reply, SendError> {
    Err(SendError::Replied(server_error(line)))
}

fn io_error() -> RedisError {
    io::Error::new(io::ErrorKind::ConnectionReset, "reset").into()
}

fn unsent(is_certain: bool) -> Result<Reply, SendError> {
    let error = io_error();
    Err(SendError::Unsent { error, is_certain })
}

fn parse_error() -> RedisError {
    redis::parse_redis_value(b"?\r\n").unwrap_err()
}

/// What follows, as one word.
fn word(next: &Next) -> &'static str {
    match next {
        Next::SendText => "send text",
        Next::Reconnect(_) => "reconnect",
        Next::Answer(Answer::Granted(_)) => "granted",
        Next::Answer(Answer::Refused) => "refused",
        Next::Answer(Answer::Recreated) => "recreated",
        Next::Answer(Answer::HoldsNothing | Answer::NotNeeded) => "not asked",
        Next::Answer(Answer::Failed(error)) => match error {
            MasterError::Connect(_) => "connect",
            MasterError::Disconnected(_) => "disconnected",
            MasterError::Auth(_) => "auth",
            MasterError::Forbidden(_) => "forbidden",
            MasterError::WrongType(_) => "wrong type",
            MasterError::Server(_) => "server",
            MasterError::Protocol(_) => "protocol",
            MasterError::TimedOut(_) => "timed out",
            MasterError::Hung(_) | MasterError::Behind(_) | MasterError::NotAsked(_) => "other",
        },
    }
}

/// What a deletion does after an answer.
fn deletion(next: &Next) -> &'static str {
    match next {
        Next::Answer(answer) => match (answer.is_settled(), answer.may_pass()) {
            (true, false) => "settled",
            (false, true) => "repeats",
            (false, false) => "gives up",
            (true, true) => "contradiction",
        },
        Next::SendText | Next::Reconnect(_) => "sends again",
    }
}

#[test]
fn every_reply_and_error_means_what_the_table_says() {
    use Effect::{MayBeExecutedLater as Later, MayHaveSetKey as Key, Nothing};
    use Sign::{Alive, Broken, Unknown};

    let (set, ext, del) = (acquire(), extend(), Kind::Release);
    let (adopt, renew) = (Kind::Adopt(ttl()), Kind::Renew(3));
    let digits = |digits: &str| Ok(Reply::BulkString(digits.into()));
    let external = |error| Err(SendError::Replied(error));
    let broke = |error| Err(SendError::Broken(error));
    let forbidden = "ERR The user executing the script can't run this command or subcommand";
    let other = "ERR Error running script: user_script:1: oops";
    #[rustfmt::skip]
    let rows = [
        (set, Ok(Reply::Okay), "granted", Alive, Key, "settled"),
        (set, Ok(Reply::Nil), "refused", Alive, Nothing, "settled"),
        (set, Ok(Reply::Int(1)), "protocol", Alive, Key, "gives up"),
        (ext, Ok(Reply::Int(1)), "granted", Alive, Key, "settled"),
        (ext, Ok(Reply::Int(0)), "refused", Alive, Nothing, "settled"),
        (ext, Ok(Reply::Int(2)), "recreated", Alive, Key, "gives up"),
        (ext, Ok(Reply::Okay), "protocol", Alive, Key, "gives up"),
        (adopt, Ok(Reply::Int(1)), "granted", Alive, Key, "settled"),
        (adopt, Ok(Reply::Int(0)), "refused", Alive, Nothing, "settled"),
        (renew, digits("120"), "granted", Alive, Key, "settled"),
        (renew, digits("111"), "granted", Alive, Key, "settled"),
        (renew, digits("12"), "protocol", Alive, Key, "gives up"),
        (renew, digits("1201"), "protocol", Alive, Key, "gives up"),
        (renew, digits("123"), "protocol", Alive, Key, "gives up"),
        (renew, digits("1 0"), "protocol", Alive, Key, "gives up"),
        (renew, Ok(Reply::Int(111)), "protocol", Alive, Key, "gives up"),
        (renew, Ok(Reply::Nil), "protocol", Alive, Key, "gives up"),
        (renew, replied("CROSSSLOT Keys in request don't hash"), "server", Alive, Nothing, "repeats"),
        (del, Ok(Reply::Int(1)), "granted", Alive, Key, "settled"),
        (del, Ok(Reply::Int(0)), "refused", Alive, Nothing, "settled"),
        (del, Ok(Reply::Int(2)), "protocol", Alive, Key, "gives up"),
        (set, replied("WRONGTYPE Operation against a key"), "wrong type", Alive, Nothing, "settled"),
        (set, replied("NOPERM No permissions to access a key"), "forbidden", Alive, Nothing, "gives up"),
        (del, replied(forbidden), "forbidden", Alive, Nothing, "gives up"),
        (set, replied("NOAUTH Authentication required."), "auth", Alive, Nothing, "repeats"),
        (set, replied("WRONGPASS invalid username"), "auth", Alive, Nothing, "repeats"),
        (set, replied("LOADING Redis is loading"), "server", Alive, Nothing, "repeats"),
        (set, replied("READONLY You can't write"), "server", Alive, Nothing, "repeats"),
        (set, replied("OOM command not allowed"), "server", Alive, Nothing, "repeats"),
        (set, replied("MISCONF Redis is configured"), "server", Alive, Nothing, "repeats"),
        (set, replied("NOREPLICAS Not enough good replicas"), "server", Alive, Nothing, "repeats"),
        (set, replied("MASTERDOWN Link with MASTER is down"), "server", Alive, Nothing, "repeats"),
        (set, replied("BUSY Redis is busy"), "server", Alive, Nothing, "repeats"),
        (set, replied("MOVED 1 127.0.0.1:1"), "server", Alive, Nothing, "repeats"),
        (set, replied("CLUSTERDOWN Hash slot not served"), "server", Alive, Nothing, "repeats"),
        (set, replied("ERR unknown command 'set'"), "server", Alive, Nothing, "repeats"),
        (set, replied("ERR upstream failure"), "server", Alive, Key, "repeats"),
        (del, replied("NOSCRIPT No matching script."), "send text", Alive, Nothing, "sends again"),
        (del, replied(other), "server", Alive, Key, "repeats"),
        (set, replied("NONSENSE"), "server", Alive, Key, "repeats"),
        (set, external(io_error()), "disconnected", Unknown, Later, "repeats"),
        (set, external(parse_error()), "protocol", Alive, Key, "gives up"),
        (set, broke(io_error()), "disconnected", Broken, Later, "repeats"),
        (set, broke(parse_error()), "protocol", Broken, Later, "gives up"),
        (set, Err(SendError::NotPermitted), "not asked", Unknown, Nothing, "gives up"),
        (set, Err(SendError::Silent(Duration::ZERO)), "timed out", Unknown, Later, "repeats"),
        (set, unsent(true), "reconnect", Broken, Nothing, "sends again"),
        (set, unsent(false), "reconnect", Broken, Later, "sends again"),
    ];
    for (place, (kind, reply, next, sign, effect, deletes)) in rows.into_iter().enumerate() {
        assert_eq!(Sign::of(&reply), sign, "row {place}");
        assert_eq!(super::effect(kind, &reply), effect, "row {place}");
        let after = Next::after(kind, reply);
        assert_eq!(word(&after), next, "row {place}");
        assert_eq!(deletion(&after), deletes, "row {place}");
    }
}

#[test]
fn an_attempt_to_connect_fails_by_the_network_or_by_what_the_master_replied() {
    assert!(matches!(connect_error(io_error()), MasterError::Connect(_)));
    let denied = connect_error(server_error("WRONGPASS invalid username"));
    assert!(matches!(denied, MasterError::Auth(_)));
}

#[test]
fn a_strange_reply_is_quoted_in_part_and_never_counts() {
    let strange = [
        Reply::Int(3),
        Reply::Int(-1),
        Reply::SimpleString("QUEUED".into()),
        Reply::BulkString(vec![0xff; 10_000_000]),
        Reply::Array(vec![Reply::Okay; 1_000]),
        Reply::Boolean(true),
    ];
    for kind in [
        acquire(),
        extend(),
        Kind::Renew(2),
        Kind::Release,
        Kind::Inspect,
    ] {
        for reply in &strange {
            let Answer::Failed(MasterError::Protocol(text)) = Answer::to(kind, reply) else {
                panic!("{reply:?} counted");
            };
            assert!(text.len() < 300);
        }
    }
}

#[test]
fn a_short_strange_reply_is_quoted_in_full() {
    let MasterError::Protocol(text) = unexpected(&Reply::Array(vec![Reply::Int(3)])) else {
        panic!("not a protocol error");
    };
    assert_eq!(text, format!("{:?}", Reply::Array(vec![Reply::Int(3)])));
}

#[test]
fn the_answer_to_an_inspection_is_a_value_and_its_time_to_live() {
    let inspect = |fields| match Answer::to(Kind::Inspect, &Reply::Array(fields)) {
        Answer::Granted(Payload::Key(key)) => Some(key),
        _ => None,
    };
    let value = |bytes: &[u8]| Reply::BulkString(bytes.to_vec());
    let held = |value: &[u8], expires_in| {
        let value = value.to_vec();
        Some(Some(HeldKey { value, expires_in }))
    };
    let in_70_ms = Some(Duration::from_millis(70));
    assert_eq!(
        inspect(vec![value(b"\xff"), Reply::Int(70)]),
        held(b"\xff", in_70_ms)
    );
    assert_eq!(inspect(vec![value(b""), Reply::Int(-1)]), held(b"", None));
    assert_eq!(inspect(vec![Reply::Nil, Reply::Int(-2)]), Some(None));
    assert_eq!(inspect(vec![]), None);
    assert_eq!(inspect(vec![Reply::Okay; 2]), None);
}

#[test]
fn the_answer_to_a_renewal_says_for_each_lock_what_was_found() {
    let answer = Answer::to(Kind::Renew(3), &Reply::BulkString(b"021".to_vec()));
    let Answer::Granted(Payload::Renewed(renewed)) = answer else {
        panic!("{answer:?}");
    };
    let expected = [Renewed::NotOurs, Renewed::Missing, Renewed::Lengthened];
    assert_eq!(*renewed, expected);
}

proptest::proptest! {
    /// Of all that can be read off a wire, only the one right reply to a request is a yes.
    #[test]
    fn no_bytes_make_a_vote_by_chance(
        kind in "[-+:$*_#,(=%~>|!]",
        line in "(OK|[012]|-1|[ -~]{0,9})",
        rest: Vec<u8>,
    ) {
        let mut bytes = format!("{kind}{line}\r\n").into_bytes();
        bytes.extend(rest);
        let Ok(reply) = redis::parse_redis_value(&bytes) else { return Ok(()) };
        let _ = Answer::to(Kind::Inspect, &reply);
        let right = [
            (acquire(), Reply::Okay),
            (extend(), Reply::Int(1)),
            (Kind::Release, Reply::Int(1)),
        ];
        for (kind, right) in right {
            let is_granted = matches!(Answer::to(kind, &reply), Answer::Granted(_));
            assert_eq!(is_granted, reply == right, "{reply:?}");
        }
    }
}
