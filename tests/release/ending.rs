//! Guards dropped at the end of a runtime or of the process: every master that can be reached deletes the key, and the
//! end takes the time of one write, not a time for each guard.

use std::future::pending;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use futures::future::join_all;
use redis::Value as Reply;
use support::{
    AnsweredBy, CAME_TO_ITS_END, LONG, Masters, Proxy, Server, Servers, comes_to_its_end,
    current_thread, eventually, eventually_async, multi_thread, test_process, unique,
};
use tokio::runtime::Runtime;
use tokio_redlock::{LockError, LockGuard, MasterError, Redlock, Vote};

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(60);

/// How long an end may take that would take 20 s with a round trip for each guard, and how long a key may stay after
/// it on a master that answers.
const SOON: Duration = Duration::from_secs(2);

/// How long all drops together may wait for masters that hang: 250 ms, not 250 ms for each guard.
const IN_ALL: Duration = Duration::from_secs(1);

/// For the drop of some guards that waits for nothing. A drop that waits for a master that hangs takes 250 ms.
const AT_ONCE: Duration = Duration::from_millis(50);

/// In the same region.
const NEAR: Duration = Duration::from_millis(20);

/// On another continent: a drop may not wait as long as a new connection takes, though the TCP handshake with a proxy
/// takes no time.
const FAR: Duration = Duration::from_millis(90);

/// Three masters so far away.
fn start(round_trip: Duration) -> Masters {
    let masters = Masters::behind_proxies(3);
    for proxy in masters.proxies() {
        proxy.delay(round_trip / 2);
    }
    masters
}

/// Locks many resources on all masters.
async fn lock_many_everywhere(masters: &Masters, count: usize) -> Vec<LockGuard> {
    let guards = lock_many(&masters.client(), count).await;
    let everywhere = async || masters.iter().all(|server| server.keys().len() == count);
    eventually_async("all keys are on all masters", LONG, everywhere).await;
    guards
}

/// Makes the first masters accept connections and answer nothing, so that nothing can be written to them.
fn hang(masters: &Masters, count: usize) {
    for (server, proxy) in masters.iter().zip(masters.proxies()).take(count) {
        server.freeze();
        proxy.cut();
    }
}

fn recover(masters: &Masters, count: usize) {
    masters[..count].iter().for_each(Server::thaw);
}

/// Locks many resources, some at a time.
async fn lock_many(dlm: &Redlock, count: usize) -> Vec<LockGuard> {
    let warm = dlm.lock("warm", TTL).await.expect("it is free");
    warm.release().await.expect("it is ours");
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let mut guards = Vec::new();
    while guards.len() < count {
        let some = (0..100.min(count - guards.len())).map(|_| dlm.lock(unique("lock"), TTL));
        let some = join_all(some.map(IntoFuture::into_future)).await;
        guards.extend(some.into_iter().map(|guard| guard.expect("it is free")));
    }
    guards
}

/// Holds the guard for as long as the runtime lets it.
async fn hold(guard: LockGuard) {
    let _guard = guard;
    pending::<()>().await;
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Ends a runtime and drops a thousand of its guards in some way.
fn a_thousand_are_gone_soon_after(end: impl Fn(Runtime, Vec<LockGuard>)) {
    let masters = start(NEAR);
    for runtime in [current_thread(), multi_thread()] {
        let flavor = runtime.handle().runtime_flavor();
        let guards = runtime.block_on(lock_many_everywhere(&masters, 1_000));
        let took = time(|| end(runtime, guards));
        assert!(took < SOON, "{flavor:?}: {took:?}");
        eventually("all gone", SOON, || masters.are_empty());
    }
}

#[test]
fn a_runtime_whose_tasks_hold_many_guards_ends_soon() {
    a_thousand_are_gone_soon_after(|runtime, guards| {
        for guard in guards {
            runtime.spawn(hold(guard));
        }
        drop(runtime);
    });
}

#[test]
fn a_runtime_that_has_just_dropped_many_guards_ends_soon() {
    a_thousand_are_gone_soon_after(|runtime, guards| {
        runtime.block_on(async { drop(guards) });
        drop(runtime);
    });
}

#[test]
fn many_guards_that_outlive_their_runtime_are_dropped_soon() {
    a_thousand_are_gone_soon_after(|runtime, guards| {
        drop(runtime);
        drop(guards);
    });
}

#[test]
fn many_guards_that_outlive_their_runtime_are_dropped_soon_by_the_end_of_another() {
    a_thousand_are_gone_soon_after(|runtime, guards| {
        drop(runtime);
        let next = current_thread();
        for guard in guards {
            next.spawn(hold(guard));
        }
        drop(next);
    });
}

#[test]
fn many_guards_dropped_beside_their_idle_runtime_wait_for_no_answers() {
    let (masters, idle) = (start(NEAR), current_thread());
    let guards = idle.block_on(lock_many_everywhere(&masters, 500));
    let took = time(|| drop(guards));
    assert!(took < SOON, "{took:?}");
    eventually("all gone", SOON, || masters.are_empty());
    drop(idle);
}

#[test]
fn a_guard_dropped_beside_its_idle_runtime_does_not_wait_for_a_frozen_master() {
    let masters = start(Duration::ZERO);
    let (frozen, reachable) = masters.split_first().expect("three");
    // The quickest of a few, since a busy machine may slow any of them down.
    let took = (0..3).map(|_| {
        let idle = current_thread();
        let guards = idle.block_on(lock_many_everywhere(&masters, 1));
        frozen.freeze();
        let took = time(|| drop(guards));
        eventually("gone", SOON, || reachable.are_empty());
        frozen.thaw();
        eventually("gone from all", SOON, || masters.are_empty());
        took
    });
    let took = took.min().expect("some");
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn many_guards_dropped_without_a_runtime_wait_a_moment_in_all_for_masters_that_hang() {
    let masters = start(Duration::ZERO);
    for hanging in [1, 2] {
        let runtime = current_thread();
        let guards = runtime.block_on(lock_many_everywhere(&masters, 200));
        drop(runtime);
        hang(&masters, hanging);
        let took = time(|| drop(guards));
        assert!(took < IN_ALL, "{took:?} with {hanging} that hang");
        let reachable = &masters[hanging..];
        eventually("gone", SOON, || reachable.are_empty());
        recover(&masters, hanging);
        eventually("gone from all", LONG, || masters.are_empty());
    }
}

/// Drops many guards in a runtime while two of three masters hang, and ends the runtime.
fn return_at_once_and_end_soon(prepare: impl Fn(Runtime) -> Runtime) {
    let masters = start(Duration::ZERO);
    for flavor in [current_thread, multi_thread] {
        // The quickest of a few, since a busy machine may slow any of them down.
        let took = (0..3).map(|_| {
            let runtime = flavor();
            let guards = runtime.block_on(lock_many_everywhere(&masters, 200));
            let runtime = prepare(runtime);
            hang(&masters, 2);
            let took = runtime.block_on(async { time(|| drop(guards)) });
            let end = time(|| drop(runtime));
            assert!(end < IN_ALL, "{end:?}");
            eventually("gone", SOON, || masters[2..].are_empty());
            recover(&masters, 2);
            eventually("gone from all", LONG, || masters.are_empty());
            took
        });
        let took = took.min().expect("some");
        assert!(took < AT_ONCE, "{took:?}");
    }
}

#[test]
fn guards_dropped_in_their_runtime_return_at_once_and_it_ends_soon_though_masters_hang() {
    return_at_once_and_end_soon(|runtime| runtime);
}

#[test]
fn guards_that_outlive_their_runtime_return_at_once_in_another_that_ends_soon_though_masters_hang()
{
    return_at_once_and_end_soon(|runtime| {
        drop(runtime);
        current_thread()
    });
}

/// How a child comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    RuntimeRightAfterDrop,
    RuntimeWithGuardInTask,
    DropAfterRuntime,
    DropInAnotherRuntime,
    AnotherRuntimeWithGuardInTask,
    /// More deletes than a busy client has under way.
    AThousandDrops,
    /// Once, no drop could be waited for.
    DropsAfterAStall,
    /// Fails if drops start threads.
    CountThreads,
    /// The others would show nothing if this left nothing.
    ExitWithoutDrop,
}

impl End {
    const ALL: [Self; 9] = [
        Self::RuntimeRightAfterDrop,
        Self::RuntimeWithGuardInTask,
        Self::DropAfterRuntime,
        Self::DropInAnotherRuntime,
        Self::AnotherRuntimeWithGuardInTask,
        Self::AThousandDrops,
        Self::DropsAfterAStall,
        Self::CountThreads,
        Self::ExitWithoutDrop,
    ];
}

/// What a child finds in its environment.
const END: &str = "ENDING_END";
const URLS: &str = "ENDING_URLS";
const RESOURCE: &str = "ENDING_RESOURCE";
const FLAVOR: &str = "ENDING_FLAVOR";

/// Runs the child below as a process of its own. Returns the resource that the child had locked.
fn run(end: End, flavor: &str, masters: &Masters) -> String {
    let resource = unique(&format!("{end:?}:{flavor}"));
    let mut command = test_process(module_path!(), "child");
    command
        .env(END, format!("{end:?}"))
        .env(URLS, masters.urls().join(" "))
        .env(RESOURCE, &resource)
        .env(FLAVOR, flavor);
    comes_to_its_end(command);
    resource
}

#[test]
#[ignore = "run by other tests"]
fn child() {
    let Ok(end) = env::var(END) else { return };
    let variable = |name| env::var(name).expect("given by the parent");
    let (urls, resource, flavor) = (variable(URLS), variable(RESOURCE), variable(FLAVOR));
    let end = End::ALL.into_iter().find(|one| format!("{one:?}") == end);
    let dlm = Redlock::new(urls.split(' ')).expect("valid URLs");
    let [runtime, other] = match flavor.as_str() {
        "current_thread" => [current_thread(), current_thread()],
        _ => [multi_thread(), multi_thread()],
    };
    let guard = runtime.block_on(dlm.lock(&resource, TTL).into_future());
    let guard = guard.expect("it is free");
    match end.expect("one of all") {
        End::RuntimeRightAfterDrop => {
            runtime.block_on(async { drop(guard) });
            drop(runtime);
        }
        End::RuntimeWithGuardInTask => {
            runtime.spawn(hold(guard));
            drop(runtime);
        }
        End::DropAfterRuntime => {
            drop(runtime);
            drop(guard);
        }
        End::DropInAnotherRuntime => {
            other.block_on(async { drop(guard) });
            drop(other);
            process::exit(CAME_TO_ITS_END);
        }
        End::AnotherRuntimeWithGuardInTask => {
            drop(runtime);
            other.spawn(hold(guard));
            drop(other);
        }
        End::AThousandDrops => {
            let guards = runtime.block_on(lock_many(&dlm, 1_000));
            runtime.block_on(async { drop((guard, guards)) });
            drop(runtime);
        }
        End::CountThreads => {
            let guards = runtime.block_on(lock_many(&dlm, 500));
            let before = threads();
            let after = other.block_on(async {
                drop(guards);
                threads()
            });
            assert_eq!(after, before);
        }
        End::DropsAfterAStall => {
            let another = runtime.block_on(dlm.lock(unique("another"), TTL).into_future());
            let another = another.expect("it is free");
            let stall = stall();
            stall.recv().expect("it begins");
            // Nothing gets done for it, so that it waits in vain.
            let took = time(|| drop(another));
            assert!(took > AT_ONCE, "there was no stall: {took:?}");
            stall.recv().expect_err("it is over");
            let mut guards = runtime.block_on(lock_many(&dlm, 20));
            guards.push(guard);
            drop(runtime);
            drop(guards);
        }
        End::ExitWithoutDrop => process::exit(CAME_TO_ITS_END),
    }
    process::exit(CAME_TO_ITS_END);
}

/// Keeps the background of all clients from its work. Something is received when that begins, and nothing more when it
/// is over.
fn stall() -> mpsc::Receiver<()> {
    let (begins, received) = mpsc::channel();
    let begins = Arc::new(Mutex::new(Some(begins)));
    // Its code blocks the thread of all clients for a while, when it is first used.
    let connection = AnsweredBy(move |_| {
        let begins = Arc::clone(&begins);
        async move {
            let first = begins.lock().expect("nobody panics").take();
            if let Some(begins) = first {
                let _ = begins.send(());
                thread::sleep(Duration::from_millis(400));
            }
            Ok(Reply::Nil)
        }
    });
    let builder = Redlock::builder().connection(connection);
    let dlm = builder.build().expect("one master");
    thread::spawn(move || {
        let locked = futures::executor::block_on(dlm.try_lock("stall", TTL).into_future());
        assert!(locked.is_err());
    });
    received
}

/// How many threads this process has.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("Linux").count()
}

/// Only in a process of its own: elsewhere the other tests start threads.
#[cfg(target_os = "linux")]
#[test]
fn guards_of_an_idle_runtime_dropped_in_another_start_no_threads() {
    run(End::CountThreads, "current_thread", &start(NEAR));
}

/// Runs children at the same time, and returns the resources of which a key is left.
fn left_by(ends: &[End], masters: &Masters) -> Vec<String> {
    let locked: Vec<String> = thread::scope(|scope| {
        let run = |end, flavor| scope.spawn(move || run(end, flavor, masters));
        let children: Vec<_> = ["current_thread", "multi_thread"]
            .into_iter()
            .flat_map(|flavor| ends.iter().map(move |end| (*end, flavor)))
            .map(|(end, flavor)| run(end, flavor))
            .collect();
        let ended = children.into_iter().map(|child| child.join());
        ended.map(|locked| locked.expect("all came")).collect()
    });
    let sets = masters.calls("set");
    let all = u64::try_from(2 * locked.len()).expect("a few");
    assert!(sets >= all, "not all were locked at all");
    // What the children wrote is still under way.
    let start = Instant::now();
    loop {
        let is_left = |resource: &String| {
            let mut servers = masters.iter();
            servers.any(|server| server.get(resource).is_some())
        };
        let left: Vec<String> = locked.iter().filter(|key| is_left(key)).cloned().collect();
        if left.is_empty() || start.elapsed() > SOON {
            return left;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_process_that_ends_after_a_thousand_drops_leaves_nothing_on_distant_masters() {
    let masters = start(FAR);
    run(End::AThousandDrops, "multi_thread", &masters);
    assert!(masters.calls("set") >= 2_000, "not all were locked");
    eventually("all keys are gone", SOON, || masters.are_empty());
}

#[test]
fn a_process_that_ends_after_its_drops_leaves_nothing_on_distant_masters() {
    let ends = [
        End::RuntimeRightAfterDrop,
        End::RuntimeWithGuardInTask,
        End::DropAfterRuntime,
        End::DropInAnotherRuntime,
        End::AnotherRuntimeWithGuardInTask,
    ];
    let left = left_by(&ends, &start(FAR));
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_wait_that_was_in_vain_does_not_keep_later_drops_from_waiting() {
    let left = left_by(&[End::DropsAfterAStall; 3], &start(Duration::ZERO));
    assert_eq!(left, [""; 0]);
}

/// What no drop can prevent, and what the tests above would see.
#[test]
fn a_process_that_exits_without_a_drop_leaves_its_keys() {
    let left = left_by(&[End::ExitWithoutDrop], &start(FAR));
    assert_eq!(left.len(), 2);
}

#[test]
fn a_guard_of_an_ended_runtime_dropped_by_the_end_of_another_leaves_nothing() {
    let masters = start(Duration::ZERO);
    // Each of them is a race.
    let left = left_by(&[End::AnotherRuntimeWithGuardInTask; 12], &masters);
    assert_eq!(left, [""; 0]);
}

/// Otherwise the tests above would blame the client.
#[test]
fn a_proxy_forwards_what_a_client_sent_before_it_ended() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    proxy.delay(FAR);
    for key in ["closed", "reset"] {
        let mut client = TcpStream::connect(proxy.addr()).expect("it accepts");
        client.write_all(b"PING\r\n").expect("it is open");
        let mut answer = [0; 7];
        // What is left unread makes the system reset the connection.
        match key {
            "reset" => assert!(client.peek(&mut answer).expect("an answer") > 0),
            _ => client.read_exact(&mut answer).expect("an answer"),
        }
        let set = format!("SET {key} value\r\n");
        client.write_all(set.as_bytes()).expect("it is open");
        drop(client);
        eventually("it is set", SOON, || server.get(key).is_some());
    }
}

/// The frozen master has the request to set the key, and executes it when it goes on. The delete has to be with it by then.
#[test]
fn a_lock_released_while_a_master_hangs_leaves_no_key_there_though_its_client_has_ended() {
    let masters = Masters::start(3);
    let (runtime, here) = (multi_thread(), current_thread());
    let builder = masters.builder().runtime(runtime.handle().clone());
    let dlm = builder.build().expect("valid masters");
    here.block_on(async {
        let taken = masters.lock_everywhere(&dlm, "taken", TTL).await;
        masters[2].freeze();
        let guard = dlm.lock("late", TTL).await.expect("two are well");
        eventually_async("it is known to hang", LONG, async || {
            let Err(LockError::Taken(failure)) = dlm.try_lock("taken", TTL).await else {
                panic!("it is taken");
            };
            let mut votes = failure.ballots.iter().map(|ballot| &ballot.vote);
            matches!(votes.nth(2), Some(Vote::Failed(MasterError::Hung(_))))
        })
        .await;
        guard.release().await.expect("two are well");
        taken.release().await.expect("two are well");
        // Long enough for the deletes to be written, and too short for a shutdown.
        assert!(dlm.shutdown(IN_ALL / 4).await > 0, "it has not answered");
    });
    drop((dlm, runtime));
    masters[2].thaw();
    let executed = || masters[2].calls("set") >= 2 && masters[2].keys().is_empty();
    eventually("the keys were set, and are gone", SOON, executed);
}
