//! Futures dropped at any point: no key of ours is left on a master, except for a lock that was handed to the caller.

use std::future::{IntoFuture, poll_fn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Client, cmd};
use support::{
    Detour, LONG, Masters, Server, Servers, Upstream, current_thread, eventually_async,
    multi_thread, unique,
};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};
use tokio_redlock::{LockError, LockGuard, Redlock, RetryPolicy};

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(60);

/// As long as masters that answer may take to be clean.
const SOON: Duration = Duration::from_secs(1);

/// More steps than any operation here takes.
const MANY: usize = 50;

/// What is wrong with some of the masters while the future is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Slow,
    Frozen(usize),
}

/// Over which connections the masters are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connections {
    /// None yet.
    Fresh,
    /// Those that the masters have just closed.
    Closed,
    Warm,
    /// Those that the client was given.
    Given,
}

/// When a future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Between two of the steps that the client takes.
    AfterSteps(usize),
    /// When it would be polled again, because its outcome is there.
    OnceWoken,
}

/// Polls a future until a moment has come, and drops it then. Returns what it came to by then.
async fn poll_and_drop<F: IntoFuture>(future: F, moment: Moment) -> Option<F::Output> {
    let mut future = Box::pin(future.into_future());
    match moment {
        Moment::AfterSteps(steps) => {
            for step in 0..steps {
                if let Poll::Ready(output) = futures::poll!(&mut future) {
                    return Some(output);
                }
                take_step(step).await;
            }
            None
        }
        Moment::OnceWoken => {
            let mut is_first = true;
            let woken = poll_fn(|cx| {
                if !std::mem::take(&mut is_first) {
                    return Poll::Ready(None);
                }
                future.as_mut().poll(cx).map(Some)
            });
            woken.await
        }
    }
}

/// Lets others go on: at first each task once, as far as it comes, then for longer and longer.
async fn take_step(step: usize) {
    const SMALL: usize = 30;
    let Some(exponent) = step.checked_sub(SMALL) else {
        return tokio::task::yield_now().await;
    };
    sleep(Duration::from_micros(100 << exponent)).await;
}

/// Three masters, the last one behind a proxy.
fn start() -> Masters {
    Masters::start(3).with_proxies([2])
}

/// A client on the current runtime, which takes its steps when this one awaits.
fn client_here(masters: &Masters) -> Redlock {
    let builder = masters.builder().runtime(Handle::current());
    builder.build().expect("valid masters")
}

async fn client_with_given_connections(masters: &Masters) -> Redlock {
    let mut builder = Redlock::builder().runtime(Handle::current());
    for url in masters.urls() {
        let client = Client::open(url).expect("a valid URL");
        let connection = client.get_multiplexed_async_connection().await;
        builder = builder.connection(connection.expect("a connection"));
    }
    builder.build().expect("three masters")
}

impl Fault {
    fn begin(self, masters: &Masters) {
        match self {
            Self::None => {}
            Self::Slow => masters.proxy(2).delay(Duration::from_millis(4)),
            Self::Frozen(count) => masters[3 - count..].iter().for_each(Server::freeze),
        }
    }

    /// From then on all masters answer, the slow one too.
    fn end(self, masters: &Masters) {
        if let Self::Frozen(count) = self {
            masters[3 - count..].iter().for_each(Server::thaw);
        }
    }

    /// The masters that answer all the time.
    fn spares(self, masters: &Masters) -> &[Server] {
        match self {
            Self::None | Self::Slow => masters,
            Self::Frozen(count) => &masters[..3 - count],
        }
    }
}

/// Closes the connections, which the client finds out when it next needs them.
fn disconnect(masters: &Masters) {
    masters.iter().for_each(Server::kill_clients);
}

fn name(guard: &LockGuard) -> String {
    String::from_utf8(guard.resource().to_vec()).expect("ours are text")
}

async fn lock_everywhere(dlm: &Redlock, masters: &[Server]) -> LockGuard {
    masters.lock_everywhere(dlm, &unique("lock"), TTL).await
}

/// All that was begun is confirmed soon, no key that begins with `prefix` is left, and none comes later.
async fn assert_clean(dlm: &Redlock, masters: &[Server], prefix: &str) {
    assert_eq!(dlm.shutdown(SOON).await, 0, "not confirmed");
    assert_none_left(masters, prefix, "when confirmed");
    // Comes behind whatever else is under way to any of them.
    drop(lock_everywhere(dlm, masters).await);
    assert_none_left(masters, prefix, "after the next request");
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

fn assert_none_left(masters: &[Server], prefix: &str, when: &str) {
    for server in masters {
        let mut left = server.keys();
        left.retain(|key| key.starts_with(prefix));
        assert!(left.is_empty(), "left {when}: {left:?}");
    }
}

/// An operation that is dropped at a moment, and what must hold then. Tells whether it had completed.
trait Case: AsyncFn(&Redlock, Moment) -> bool {}

impl<F: AsyncFn(&Redlock, Moment) -> bool> Case for F {}

/// Where a client runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// On a thread of its own.
    Thread,
    /// On the runtime of the test.
    Here,
}

/// Runs a case with every number of steps until the operation completes, and where it is dropped with its outcome, on
/// either kind of runtime and with either kind of client.
fn at_every_step(masters: &Masters, connections: Connections, case: impl Case) {
    let mut most = 0;
    for home in [Home::Thread, Home::Here] {
        for runtime in [current_thread(), multi_thread()] {
            let steps = runtime.block_on(until_complete(masters, connections, home, &case));
            most = most.max(steps);
        }
    }
    assert!(most > 1, "never dropped between two steps");
}

async fn until_complete(
    masters: &Masters,
    connections: Connections,
    home: Home,
    case: &impl Case,
) -> usize {
    let client = || match home {
        Home::Thread => masters.client(),
        Home::Here => client_here(masters),
    };
    let mut dlm = match connections {
        Connections::Given => client_with_given_connections(masters).await,
        _ => client(),
    };
    lock_everywhere(&dlm, masters).await.leak();
    for steps in 0..MANY {
        if connections == Connections::Fresh {
            dlm = client();
        }
        if case(&dlm, Moment::AfterSteps(steps)).await {
            case(&dlm, Moment::OnceWoken).await;
            return steps;
        }
    }
    panic!("not complete after {MANY} steps");
}

fn locks(connections: Connections, fault: Fault) {
    let masters = start();
    let undone = AtomicU64::new(0);
    at_every_step(&masters, connections, async |dlm, moment| {
        let resource = unique("lock");
        let sets = masters.calls("set");
        if connections == Connections::Closed {
            disconnect(&masters);
        }
        fault.begin(&masters);
        let outcome = poll_and_drop(dlm.try_lock(&resource, TTL), moment).await;
        fault.end(&masters);
        let complete = outcome.is_some();
        match outcome {
            None => {}
            Some(Ok(guard)) => {
                assert!(guard.is_valid());
                let healthy = fault.spares(&masters);
                assert!(healthy.holders(&guard) >= 2, "handed over, and not there");
                if matches!(connections, Connections::Warm | Connections::Given) {
                    healthy.eventually_hold(&guard).await;
                }
                drop(guard);
            }
            Some(Err(LockError::Unreachable(_))) => assert!(fails(connections, fault)),
            Some(Err(other)) => panic!("{other:?}"),
        }
        assert_eq!(dlm.shutdown(SOON).await, 0, "not confirmed");
        if !complete {
            undone.fetch_add(masters.calls("set") - sets, Ordering::Relaxed);
        }
        assert_clean(dlm, &masters, &resource).await;
        complete
    });
    // On a connection that is closed already nothing is executed.
    let undone = undone.into_inner() > 0;
    assert!(
        undone || connections == Connections::Closed,
        "no SET was undone"
    );
}

/// Whether the operation may fail for want of masters.
fn fails(connections: Connections, fault: Fault) -> bool {
    connections == Connections::Closed || fault == Fault::Frozen(2)
}

fn extensions(connections: Connections, fault: Fault) {
    let masters = start();
    at_every_step(&masters, connections, async |dlm, moment| {
        let guard = lock_everywhere(dlm, &masters).await;
        if connections == Connections::Closed {
            disconnect(&masters);
        }
        fault.begin(&masters);
        let outcome = poll_and_drop(guard.extend(2 * TTL), moment).await;
        fault.end(&masters);
        let complete = outcome.is_some();
        match outcome {
            None => assert!(guard.validity() <= TTL, "extended by a dropped future"),
            Some(Ok(())) => assert!(guard.validity() > TTL),
            Some(Err(_)) => assert!(fails(connections, fault)),
        }
        // Whatever came of it, the lock is held as before.
        assert!(guard.is_valid());
        assert!(masters.all_hold(&guard), "released");
        let resource = name(&guard);
        drop(guard);
        assert_clean(dlm, &masters, &resource).await;
        complete
    });
}

fn releases(connections: Connections, fault: Fault) {
    let masters = start();
    at_every_step(&masters, connections, async |dlm, moment| {
        let guard = lock_everywhere(dlm, &masters).await;
        let resource = name(&guard);
        if connections == Connections::Closed {
            disconnect(&masters);
        }
        fault.begin(&masters);
        let outcome = poll_and_drop(guard.release(), moment).await;
        fault.end(&masters);
        match &outcome {
            None | Some(Ok(())) => {}
            Some(Err(_)) => assert!(fails(connections, fault)),
        }
        assert_clean(dlm, &masters, &resource).await;
        outcome.is_some()
    });
}

#[test]
fn a_lock_dropped_anywhere_leaves_nothing() {
    locks(Connections::Warm, Fault::None);
    locks(Connections::Closed, Fault::None);
    locks(Connections::Fresh, Fault::None);
}

#[test]
fn a_lock_dropped_anywhere_leaves_nothing_over_connections_that_were_given() {
    locks(Connections::Given, Fault::None);
    locks(Connections::Given, Fault::Slow);
    locks(Connections::Given, Fault::Frozen(1));
}

#[test]
fn a_lock_dropped_anywhere_leaves_nothing_on_a_slow_master() {
    locks(Connections::Warm, Fault::Slow);
    locks(Connections::Closed, Fault::Slow);
    locks(Connections::Fresh, Fault::Slow);
}

#[test]
fn a_lock_dropped_anywhere_leaves_nothing_on_a_frozen_master() {
    locks(Connections::Warm, Fault::Frozen(1));
    locks(Connections::Closed, Fault::Frozen(1));
    locks(Connections::Fresh, Fault::Frozen(1));
}

#[test]
fn a_lock_dropped_anywhere_leaves_nothing_on_a_frozen_majority() {
    locks(Connections::Warm, Fault::Frozen(2));
    locks(Connections::Closed, Fault::Frozen(2));
    locks(Connections::Fresh, Fault::Frozen(2));
}

#[test]
fn an_extension_dropped_anywhere_changes_nothing() {
    extensions(Connections::Warm, Fault::None);
    extensions(Connections::Closed, Fault::None);
}

#[test]
fn an_extension_dropped_anywhere_changes_nothing_with_a_slow_master() {
    extensions(Connections::Warm, Fault::Slow);
    extensions(Connections::Closed, Fault::Slow);
}

#[test]
fn an_extension_dropped_anywhere_changes_nothing_with_frozen_masters() {
    extensions(Connections::Warm, Fault::Frozen(1));
    extensions(Connections::Closed, Fault::Frozen(1));
    extensions(Connections::Warm, Fault::Frozen(2));
}

#[test]
fn a_release_dropped_anywhere_is_finished_in_the_background() {
    releases(Connections::Warm, Fault::None);
    releases(Connections::Closed, Fault::None);
}

#[test]
fn a_release_dropped_anywhere_is_finished_on_a_slow_master() {
    releases(Connections::Warm, Fault::Slow);
    releases(Connections::Closed, Fault::Slow);
}

#[test]
fn a_release_dropped_anywhere_is_finished_on_frozen_masters() {
    releases(Connections::Warm, Fault::Frozen(1));
    releases(Connections::Closed, Fault::Frozen(1));
    releases(Connections::Warm, Fault::Frozen(2));
}

/// What the tests above would find without a guard that is armed from the beginning.
#[tokio::test]
async fn a_bare_request_dropped_leaves_its_key() {
    let server = Server::start();
    let client = Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let resource = unique("lock");
    let mut set = cmd("SET");
    set.arg(&resource).arg("value");
    let request = connection.req_packed_command(&set);
    let outcome = poll_and_drop(request, Moment::OnceWoken).await;
    assert!(outcome.is_none());
    assert!(server.get(&resource).is_some());
}

/// So often and so briefly, that a few attempts take no time.
fn hasty() -> RetryPolicy {
    let soon = Duration::from_millis(2);
    RetryPolicy::new().delay(soon, soon).forever()
}

/// So that the first wait is not over before the test is.
fn lazy() -> RetryPolicy {
    RetryPolicy::new().delay(TTL, TTL).forever()
}

#[test]
fn a_lock_dropped_at_any_step_of_many_attempts_leaves_nothing() {
    let masters = start();
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            let (dlm, rival) = (client_here(&masters), masters.client());
            let taken = lock_everywhere(&rival, &masters).await;
            for steps in 0..40 {
                let request = dlm.lock(taken.resource(), TTL).retry(hasty());
                let outcome = poll_and_drop(request, Moment::AfterSteps(steps)).await;
                assert!(outcome.is_none());
            }
            assert_eq!(dlm.shutdown(SOON).await, 0);
            assert!(masters.all_hold(&taken));
            let resource = name(&taken);
            taken.release().await.unwrap();
            assert_clean(&dlm, &masters, &resource).await;
        });
    }
}

#[tokio::test]
async fn nothing_is_held_between_attempts_and_nothing_comes_of_a_wait_that_is_dropped() {
    let masters = start();
    let dlm = masters.client();
    lock_everywhere(&dlm, &masters).await.leak();
    let resource = unique("lock");
    let (taken, free) = masters.split_at(2);
    for server in taken {
        server.set(&resource, "somebody else");
    }
    let before = masters.calls("set");
    let mut request = dlm.lock(&resource, TTL).retry(lazy()).into_future();
    tokio::select! {
        outcome = &mut request => panic!("{outcome:?}"),
        () = eventually_async("all are asked", LONG, async || masters.calls("set") == before + 3) => {}
    }
    tokio::select! {
        outcome = &mut request => panic!("{outcome:?}"),
        () = eventually_async("undone", SOON, async || free[0].deletes() > 0) => {}
    }
    assert_eq!(free[0].get(&resource), None);
    drop(request);
    for server in taken {
        assert!(server.del(&resource));
    }
    assert_clean(&dlm, &masters, &resource).await;
}

/// Freezes a majority: whatever asks now has one vote, and gets no second one until they thaw.
fn freeze_majority(masters: &Masters) -> &[Server] {
    let frozen = &masters[1..];
    frozen.iter().for_each(Server::freeze);
    frozen
}

#[test]
fn a_lock_that_times_out_leaves_nothing() {
    let masters = start();
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            let dlm = masters.client();
            lock_everywhere(&dlm, &masters).await.leak();
            let prefix = unique("lock");
            let frozen = freeze_majority(&masters);
            for millis in 0..20 {
                let request = dlm.lock(format!("{prefix}:{millis}"), TTL).into_future();
                let outcome = timeout(Duration::from_millis(millis), request).await;
                assert!(outcome.is_err(), "{outcome:?}");
            }
            frozen.iter().for_each(Server::thaw);
            assert_clean(&dlm, &masters, &prefix).await;

            let in_time = timeout(LONG, dlm.lock(&prefix, TTL).into_future()).await;
            let guard = in_time.expect("time enough").expect("it is free");
            masters.eventually_hold(&guard).await;
            drop(guard);
            assert_clean(&dlm, &masters, &prefix).await;
        });
    }
}

#[test]
fn a_lock_in_an_aborted_task_leaves_nothing() {
    let masters = start();
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            let dlm = masters.client();
            lock_everywhere(&dlm, &masters).await.leak();
            let prefix = unique("lock");
            let frozen = freeze_majority(&masters);
            for millis in 0..10 {
                let request = dlm.lock(format!("{prefix}:{millis}"), TTL);
                let task = tokio::spawn(request.into_future());
                sleep(Duration::from_millis(millis)).await;
                task.abort();
                assert!(task.await.is_err_and(|error| error.is_cancelled()));
            }
            frozen.iter().for_each(Server::thaw);
            assert_clean(&dlm, &masters, &prefix).await;

            let guard = tokio::spawn(dlm.lock(&prefix, TTL).into_future()).await;
            let guard = guard.expect("not aborted").expect("it is free");
            masters.eventually_hold(&guard).await;
            drop(guard);
            assert_clean(&dlm, &masters, &prefix).await;
        });
    }
}

/// Locks over connections some of which end when the SET is executed and before that is known.
async fn lock_over_ending_connections(cut: usize, upstream: Upstream) {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.client();
    lock_everywhere(&dlm, &masters).await.leak();
    let resource = unique("lock");
    for proxy in masters.proxies().take(cut) {
        proxy.cut_after_request(&resource, upstream);
    }
    let outcome = dlm.try_lock(&resource, TTL).await;
    eventually_async("all execute it", LONG, async || {
        masters.iter().all(|server| server.calls("set") == 2)
    })
    .await;
    if cut < 2 {
        let guard = outcome.expect("the others are a quorum");
        assert!(masters[1..].all_hold(&guard));
    } else {
        assert!(
            matches!(outcome, Err(LockError::Unreachable(_))),
            "{outcome:?}"
        );
    }
    assert_eq!(dlm.shutdown(SOON).await, 0, "not confirmed");
    for server in &masters {
        assert!(server.deletes() > 0, "it had to be undone");
    }
    assert_clean(&dlm, &masters, &resource).await;
    for (place, proxy) in masters.proxies().enumerate() {
        assert_eq!(proxy.connects() > 1, place < cut, "{}", proxy.connects());
    }
    // An old connection that the server still has would carry what is under way there.
    eventually_async("one connection is left", SOON, async || {
        let connections = masters.iter().map(Server::connected_clients);
        connections.max() == Some(1)
    })
    .await;
}

#[tokio::test]
async fn a_connection_cut_before_the_answer_leaves_nothing() {
    for upstream in [Upstream::Closed, Upstream::Kept] {
        for cut in [1, 3] {
            lock_over_ending_connections(cut, upstream).await;
        }
    }
}

/// What became of a SET that came to the third server only after all had been undone.
struct Late {
    is_left: bool,
    /// What a shutdown said before it came.
    unconfirmed: usize,
    dlm: Redlock,
    resource: String,
}

/// Locks where one SET comes to the third server only after all has been undone.
async fn late_set(third: &Server, cancelled: bool) -> Late {
    let others = Server::many(2);
    let resource = unique("lock");
    let set = format!("\r\nSET\r\n${}\r\n{resource}\r\n", resource.len());
    let detour = Detour::over_tcp(third, &set).await.unwrap();
    let dlm = Redlock::new([others[0].url(), others[1].url(), detour.url()]).unwrap();
    let warm = dlm.lock(unique("warm"), TTL).await.unwrap();
    others.eventually_hold(&warm).await;
    eventually_async("the third too", LONG, async || third.holds(&warm)).await;
    warm.release().await.unwrap();

    let late = if cancelled {
        others.iter().for_each(Server::freeze);
        let mut request = dlm.lock(&resource, TTL).into_future();
        let late = tokio::select! {
            outcome = &mut request => panic!("{outcome:?}"),
            late = detour.held() => late,
        };
        drop(request);
        others.iter().for_each(Server::thaw);
        late
    } else {
        let guard = dlm.lock(&resource, TTL).await.expect("two are a quorum");
        let late = detour.held().await;
        drop(guard);
        late
    };
    let unconfirmed = dlm.shutdown(SOON).await;
    assert_eq!(third.get(&resource), None);
    late.deliver().await;
    assert_none_left(&others, &resource, "where all came in time");
    Late {
        is_left: third.get(&resource).is_some(),
        unconfirmed,
        dlm,
        resource,
    }
}

#[tokio::test]
async fn a_set_that_comes_after_its_undoing_is_refused() {
    let server = Server::start();
    for cancelled in [false, true] {
        let late = late_set(&server, cancelled).await;
        assert_eq!((late.is_left, late.unconfirmed), (false, 0), "{cancelled}");
    }
}

/// Shows that the test above would see such a key.
#[tokio::test]
async fn a_set_that_comes_after_its_undoing_is_deleted_again_where_the_client_may_not_close_connections()
 {
    let everything_else = [
        "default",
        "on",
        "nopass",
        "~*",
        "&*",
        "+@all",
        "-client|kill",
    ];
    let server = Server::start_with(&[&["--user"], &everything_else[..]].concat());
    for cancelled in [false, true] {
        let late = late_set(&server, cancelled).await;
        assert_eq!((late.is_left, late.unconfirmed), (true, 1), "{cancelled}");
        assert_eq!(late.dlm.shutdown(LONG).await, 0);
        assert_eq!(server.get(&late.resource), None);
    }
}
