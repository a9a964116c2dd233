//! `inspect`: what each master answers, the verdict of all of them together, and that nothing is changed.

use std::time::Duration;

use redis::cmd;
use support::{Masters, Server, unique};
use tokio_redlock::inspect::{Inspection, KeyState, Verdict};
use tokio_redlock::{MasterError, Redlock};

const TTL: Duration = Duration::from_secs(60);

/// Not text in any encoding that is common.
const BYTES: &[u8] = &[0xff, 0x00, 0xfe, b'\r', b'\n'];

/// Patient, so that a master that answers late on a busy machine does not pass for one that hangs.
fn redlock(masters: &Masters) -> Redlock {
    let builder = masters.builder().request_timeout(Duration::from_secs(1));
    builder.build().expect("valid URLs")
}

fn held(inspection: &Inspection) -> (&[u8], Option<Duration>) {
    match &inspection.verdict {
        Verdict::Held { value, expires_in } => (value, *expires_in),
        other => panic!("{other:?}"),
    }
}

/// One letter for each master: free, held, unreachable.
fn views(inspection: &Inspection) -> String {
    let letter = |state: &KeyState| match state {
        KeyState::Free => 'f',
        KeyState::Held { .. } => 'h',
        KeyState::Unreachable(_) => 'u',
        other => panic!("{other:?}"),
    };
    let states = inspection.views.iter().map(|s| &s.state);
    states.map(letter).collect()
}

#[tokio::test]
async fn a_resource_that_nobody_holds_is_free() {
    let masters = Masters::start(5);
    let inspection = redlock(&masters).inspect(unique("r")).await;
    assert_eq!(inspection.verdict, Verdict::Free);
    assert_eq!(views(&inspection), "fffff");
    let addresses = inspection.views.iter().map(|s| s.master.as_str());
    assert!(addresses.eq(masters.iter().map(Server::addr)), "in order");
}

#[tokio::test]
async fn a_lock_is_seen_with_its_value_and_the_time_it_has_left() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let guard = redlock(&masters).lock(&resource, TTL).await.unwrap();
    let onlooker = redlock(&masters);
    let inspection = onlooker.inspect(&resource).await;
    let (value, left) = held(&inspection);
    assert_eq!(value, guard.value().as_bytes());
    assert!(left.is_some_and(|left| guard.validity() < left && left <= TTL));
    guard.release().await.unwrap();
    assert_eq!(onlooker.inspect(&resource).await.verdict, Verdict::Free);
}

#[tokio::test]
async fn a_key_prefix_counts() {
    let (masters, resource) = (Masters::start(1), unique("r"));
    let dlm = masters.builder().key_prefix("p:");
    masters[0].set(format!("p:{resource}"), "another");
    let inspection = dlm.build().unwrap().inspect(&resource).await;
    assert_eq!(held(&inspection), (&b"another"[..], None));
    let unprefixed = redlock(&masters).inspect(&resource).await;
    assert_eq!(unprefixed.verdict, Verdict::Free);
}

#[tokio::test]
async fn a_foreign_value_may_be_any_bytes() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    for server in &masters[..2] {
        server.set_px(&resource, BYTES, 60_000);
    }
    masters[2].set_px(&resource, "", 60_000);
    let inspection = redlock(&masters).inspect(&resource).await;
    assert_eq!(held(&inspection).0, BYTES);
    let KeyState::Held { value, .. } = &inspection.views[2].state else {
        panic!("{inspection:?}");
    };
    assert!(value.is_empty());
}

#[tokio::test]
async fn a_resource_may_be_any_bytes() {
    let masters = Masters::start(1);
    masters[0].set(BYTES, "another");
    let inspection = redlock(&masters).inspect(BYTES).await;
    assert_eq!(held(&inspection).0, b"another");
}

#[tokio::test]
async fn a_key_without_expiry_has_no_time_left_to_tell() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    masters[0].set_px(&resource, "another", 60_000);
    for server in &masters[1..] {
        server.set(&resource, "another");
    }
    let inspection = redlock(&masters).inspect(&resource).await;
    assert_eq!(held(&inspection), (&b"another"[..], None));
    masters[1].query::<()>(cmd("PEXPIRE").arg(&resource).arg(30_000));
    let inspection = redlock(&masters).inspect(&resource).await;
    let left = held(&inspection)
        .1
        .expect("the quorum ends with the second");
    assert!(left > Duration::from_secs(30) && left <= Duration::from_secs(60));
}

#[tokio::test]
async fn a_key_of_another_type_is_told_and_does_not_count() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    masters[0].query::<()>(cmd("LPUSH").arg(&resource).arg("x"));
    let dlm = redlock(&masters);
    let inspection = dlm.inspect(&resource).await;
    assert_eq!(inspection.verdict, Verdict::Free);
    assert_eq!(views(&inspection), "uff");
    let KeyState::Unreachable(error) = &inspection.views[0].state else {
        panic!("{inspection:?}");
    };
    assert!(matches!(error, MasterError::WrongType(_)), "{error:?}");
    masters[1].query::<()>(cmd("LPUSH").arg(&resource).arg("x"));
    let inspection = dlm.inspect(&resource).await;
    assert_eq!(inspection.verdict, Verdict::Unknown);
}

#[tokio::test]
async fn a_quorum_decides_and_without_one_mind_it_is_contested() {
    let (masters, resource) = (Masters::start(3), unique("r"));
    let dlm = redlock(&masters);
    masters[0].set(&resource, "one");
    assert_eq!(dlm.inspect(&resource).await.verdict, Verdict::Free);
    masters[1].set(&resource, "two");
    let inspection = dlm.inspect(&resource).await;
    assert_eq!(inspection.verdict, Verdict::Contested);
    assert_eq!(views(&inspection), "hhf");
    masters[2].set(&resource, "two");
    assert_eq!(held(&dlm.inspect(&resource).await).0, b"two");
    masters[2].set(&resource, "three");
    assert_eq!(dlm.inspect(&resource).await.verdict, Verdict::Contested);
}

/// Looks at a resource that is held and at one that is free, and expects the same verdicts as of all masters.
async fn a_minority_does_not_matter(dlm: &Redlock, resource: &str) {
    let inspection = dlm.inspect(resource).await;
    assert_eq!(views(&inspection), "uuhhh");
    assert_eq!(held(&inspection).0, b"another");
    let inspection = dlm.inspect(unique("r")).await;
    assert_eq!(views(&inspection), "uufff");
    assert_eq!(inspection.verdict, Verdict::Free);
}

#[tokio::test]
async fn masters_that_are_down_matter_only_as_a_majority() {
    let (mut masters, resource) = (Masters::start(5), unique("r"));
    masters.iter().for_each(|s| s.set(&resource, "another"));
    let dlm = redlock(&masters);
    masters[..2].iter_mut().for_each(Server::kill);
    a_minority_does_not_matter(&dlm, &resource).await;
    masters[2].kill();
    let inspection = dlm.inspect(&resource).await;
    assert_eq!(views(&inspection), "uuuhh");
    assert_eq!(inspection.verdict, Verdict::Unknown);
    let KeyState::Unreachable(error) = &inspection.views[0].state else {
        panic!("{inspection:?}");
    };
    assert!(matches!(error, MasterError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn masters_that_hang_matter_only_as_a_majority() {
    let (masters, resource) = (Masters::start(5), unique("r"));
    masters.iter().for_each(|s| s.set(&resource, "another"));
    let dlm = redlock(&masters);
    assert_eq!(views(&dlm.inspect(&resource).await), "hhhhh");
    masters[..2].iter().for_each(Server::freeze);
    a_minority_does_not_matter(&dlm, &resource).await;
    masters[2].freeze();
    let inspection = dlm.inspect(&resource).await;
    assert_eq!(views(&inspection), "uuuhh");
    assert_eq!(inspection.verdict, Verdict::Unknown);
}

#[tokio::test]
async fn looking_locks_nothing_and_writes_nothing() {
    let masters = Masters::start(3);
    let (free, taken) = (unique("free"), unique("taken"));
    masters
        .iter()
        .for_each(|s| s.set_px(&taken, "another", 60_000));
    let writes = || {
        let writes = |server: &Server| {
            let calls = ["set", "del", "pexpire"].map(|command| server.calls(command));
            calls.iter().sum::<u64>()
        };
        masters.iter().map(writes).sum::<u64>()
    };
    let dlm = redlock(&masters);
    let before = writes();
    for _ in 0..10 {
        dlm.inspect(&free).await;
        dlm.inspect(&taken).await;
    }
    assert_eq!(writes(), before);
    for server in &masters {
        assert!(
            server.calls("evalsha") + server.calls("eval") >= 20,
            "looked"
        );
        assert_eq!(server.keys(), [&*taken]);
        assert_eq!(server.get(&taken).as_deref(), Some(&b"another"[..]));
    }
    let guard = dlm.try_lock(&free, TTL).await.expect("still free");
    assert!(guard.is_valid());
}
