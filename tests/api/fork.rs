//! A process that forks: parent and child draw no value twice, the client works in both, and a lock stays with the
//! process that took it.

use std::collections::HashSet;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use fork::Fork;
use futures::poll;
use redis::cmd;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use support::{CAME_TO_ITS_END, LONG, Masters, comes_to_its_end, eventually, test_process};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tokio_redlock::{KeepAlive, LockGuard, Redlock};

/// How long a child may take before it counts as one that hangs.
const CHILD_WITHIN: Duration = Duration::from_secs(6);

/// Long against anything that a test does: a key that is gone was deleted.
const TTL: Duration = Duration::from_secs(60);

/// Short against the life of a child: a lock that outlives it was kept alive.
const SHORT_TTL: Duration = Duration::from_millis(600);

/// What a program finds in its environment.
const URLS: &str = "FORK_URLS";

/// Runs a program below, ignored otherwise, as a process of its own, which has no other tests and may fork.
fn run(program: &str, masters: &Masters) {
    let mut command = test_process(module_path!(), program);
    command.env(URLS, masters.urls().join(" "));
    comes_to_its_end(command);
}

/// In a program: a new client. `None` if this is no program, but a test that somebody asked for.
fn client() -> Option<Redlock> {
    let urls = env::var(URLS).ok()?;
    Some(Redlock::new(urls.split(' ')).expect("valid URLs"))
}

/// A runtime, which goes on while its process waits for another. A child cannot use that of its parent.
fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(1).enable_all();
    builder.build().expect("a runtime")
}

/// A child of a program, killed when dropped.
struct Child {
    id: Pid,
    is_over: bool,
}

/// Returns the child in the parent, and nothing in the child, which has to [`finish`].
fn fork() -> Option<Child> {
    match fork::fork().expect("a process can be forked") {
        Fork::Child => None,
        Fork::Parent(id) => Some(Child {
            id: Pid::from_raw(id).expect("the id of a process"),
            is_over: false,
        }),
    }
}

/// Does the work of a child, and ends the child without anything that its parent has on the stack.
fn finish(work: impl FnOnce()) -> ! {
    let done = catch_unwind(AssertUnwindSafe(work));
    process::exit(i32::from(done.is_err()));
}

impl Child {
    /// Whether it goes on. Fails if its work failed.
    fn is_running(&mut self) -> bool {
        let ended = waitpid(Some(self.id), WaitOptions::NOHANG);
        let Some((_, status)) = ended.expect("our own child can be awaited") else {
            return true;
        };
        self.is_over = true;
        assert_eq!(status.exit_status(), Some(0), "the child failed");
        false
    }

    fn succeeds(mut self) {
        eventually("the child ends", CHILD_WITHIN, || !self.is_running());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = kill_process(self.id, Signal::KILL);
            let _ = waitpid(Some(self.id), WaitOptions::empty());
        }
    }
}

/// In a child: what ends without its parent.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    let ended = timeout(Duration::from_secs(2), future).await;
    ended.expect("a future that hangs in a child")
}

async fn lock(dlm: &Redlock, resource: &str) -> LockGuard {
    dlm.lock(resource, TTL).await.expect("it is free")
}

async fn lock_and_release(dlm: &Redlock, resource: &str) {
    let guard = lock(dlm, resource).await;
    guard.release().await.expect("it is ours");
}

/// How many values each process draws.
const VALUES: usize = 10;

#[test]
fn parent_and_child_draw_different_values() {
    let masters = Masters::start(3);
    run("program_that_draws_values_in_both", &masters);
    let drawn = |process: &str| -> HashSet<String> {
        let keys = (0..VALUES).map(|lock| format!("{process}:{lock}"));
        let value = |key| masters.iter().find_map(|server| server.get(&key));
        let values = keys.map(|key| String::from_utf8(value(key).expect("locked")));
        values.collect::<Result<_, _>>().expect("ours are text")
    };
    let (parent, child) = (drawn("parent"), drawn("child"));
    assert_eq!((parent.len(), child.len()), (VALUES, VALUES));
    assert!(parent.is_disjoint(&child), "{parent:?}\n{child:?}");
}

#[test]
#[ignore = "run by another test"]
fn program_that_draws_values_in_both() {
    let Some(dlm) = client() else { return };
    let runtime = runtime();
    runtime.block_on(lock_and_release(&dlm, "warm"));
    let draw = async |dlm: Redlock, process: &str| {
        for one in 0..VALUES {
            // For the test to read.
            lock(&dlm, &format!("{process}:{one}")).await.leak();
        }
    };
    let Some(child) = fork() else {
        finish(|| self::runtime().block_on(draw(client().expect("a program"), "child")));
    };
    runtime.block_on(draw(dlm, "parent"));
    child.succeeds();
    process::exit(CAME_TO_ITS_END);
}

#[test]
fn a_client_that_was_used_before_a_fork_works_in_both() {
    run("program_that_uses_a_client_in_both", &Masters::start(3));
}

#[test]
#[ignore = "run by another test"]
fn program_that_uses_a_client_in_both() {
    let Some(dlm) = client() else { return };
    let runtime = runtime();
    runtime.block_on(async {
        lock_and_release(&dlm, "warm").await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
    });
    let before = connections();
    let Some(mut child) = fork() else {
        finish(move || {
            self::runtime().block_on(async {
                lock_and_release(&dlm, "child").await;
                let kept = dlm
                    .lock("kept", SHORT_TTL)
                    .keep_alive(KeepAlive::new())
                    .await
                    .expect("it is free");
                sleep(3 * SHORT_TTL).await;
                assert!(kept.is_valid(), "not kept alive");
                kept.release().await.expect("it is ours");
                assert_eq!(dlm.shutdown(LONG).await, 0);
                drop(dlm);
            });
        });
    };
    let start = Instant::now();
    runtime.block_on(async {
        while child.is_running() {
            assert!(start.elapsed() < CHILD_WITHIN, "the child hangs");
            lock_and_release(&dlm, "parent").await;
        }
        lock_and_release(&dlm, "kept").await;
    });
    // The child had copies of them, and did nothing to them.
    assert!(connections().is_superset(&before), "the parent lost some");
    process::exit(CAME_TO_ITS_END);
}

/// All connections that the masters have, by master and id, without those that look.
fn connections() -> HashSet<String> {
    let urls = env::var(URLS).expect("a program");
    let of_master = |url: &str| {
        let client = redis::Client::open(url).expect("a valid URL");
        let mut looking = client.get_connection().expect("it accepts");
        let all: String = cmd("CLIENT")
            .arg("LIST")
            .query(&mut looking)
            .expect("it answers");
        let others = all.lines().filter(|line| !line.contains(" cmd=client"));
        let id = |line: &str| line.split(' ').next().map(str::to_owned);
        let ids = others.filter_map(id).map(|id| format!("{url} {id}"));
        ids.collect::<Vec<_>>()
    };
    urls.split(' ').flat_map(of_master).collect()
}

#[test]
fn a_cancelled_attempt_does_not_delete_the_lock_of_the_other_process() {
    let masters = Masters::behind_proxies(3);
    // So that an attempt can be cancelled after its requests were executed.
    for proxy in masters.proxies() {
        proxy.delay_answers(Duration::from_millis(40));
    }
    run("program_whose_child_cancels_attempts", &masters);
}

#[test]
#[ignore = "run by another test"]
fn program_whose_child_cancels_attempts() {
    let Some(dlm) = client() else { return };
    let runtime = runtime();
    runtime.block_on(lock_and_release(&dlm, "warm"));
    let Some(child) = fork() else {
        finish(|| {
            let dlm = client().expect("a program");
            self::runtime().block_on(async {
                lock_and_release(&dlm, "warm:child").await;
                wait_until_locked("lock");
                for _ in 0..5 {
                    let attempt = dlm.lock("lock", TTL).into_future();
                    let cancelled = timeout(Duration::from_millis(20), attempt).await;
                    assert!(cancelled.is_err(), "too late to show anything");
                }
                assert_eq!(dlm.shutdown(LONG).await, 0);
            });
        });
    };
    runtime.block_on(async {
        lock_and_release(&dlm, "warm:parent").await;
        let guard = lock(&dlm, "lock").await;
        child.succeeds();
        assert!(guard.is_valid());
        guard.release().await.expect("it is ours still");
    });
    process::exit(CAME_TO_ITS_END);
}

#[test]
fn a_request_begun_before_a_fork_ends_in_the_child_and_goes_on_in_the_parent() {
    let masters = Masters::behind_proxies(3);
    // So that the requests are under way at the fork.
    for proxy in masters.proxies() {
        proxy.delay_answers(Duration::from_millis(40));
    }
    run("program_that_forks_during_requests", &masters);
}

#[test]
#[ignore = "run by another test"]
fn program_that_forks_during_requests() {
    let Some(dlm) = client() else { return };
    let runtime = runtime();
    let [dropped, awaited] = runtime.block_on(async {
        lock_and_release(&dlm, "warm").await;
        let request = |resource| dlm.try_lock(resource, TTL).into_future();
        let mut begun = ["dropped", "awaited"].map(request);
        for request in &mut begun {
            assert!(poll!(request).is_pending());
        }
        begun
    });
    let Some(child) = fork() else {
        finish(move || {
            drop(dropped);
            self::runtime().block_on(async {
                soon(awaited).await.expect_err("it is the parent's");
            });
        });
    };
    let guards = runtime.block_on(async {
        let granted = [dropped.await, awaited.await];
        granted.map(|guard| guard.expect("it is free"))
    });
    child.succeeds();
    for guard in guards {
        let released = runtime.block_on(guard.release());
        released.expect("it is ours still");
    }
    process::exit(CAME_TO_ITS_END);
}

/// Waits until a resource is locked on all masters. Draws no value.
fn wait_until_locked(resource: &str) {
    let urls = env::var(URLS).expect("a program");
    let clients = urls.split(' ').map(redis::Client::open);
    let connections = clients.map(|client| client.and_then(|client| client.get_connection()));
    for connection in connections {
        let mut connection = connection.expect("it accepts");
        eventually("the other has it", LONG, || {
            let exists = cmd("EXISTS").arg(resource).query(&mut connection);
            exists.expect("it answers")
        });
    }
}

#[test]
fn a_guard_is_of_no_use_in_a_child_which_cannot_release_it() {
    run("program_with_guards", &Masters::start(3));
}

#[test]
#[ignore = "run by another test"]
fn program_with_guards() {
    let Some(dlm) = client() else { return };
    let runtime = runtime();
    let (guards, kept) = runtime.block_on(async {
        let kept = dlm
            .lock("kept", SHORT_TTL)
            .keep_alive(KeepAlive::new())
            .await
            .expect("it is free");
        let locked = [lock(&dlm, "1").await, lock(&dlm, "2").await];
        ((locked, lock(&dlm, "3").await), kept)
    });
    let ([one, two], three) = guards;
    let Some(child) = fork() else {
        finish(move || {
            for guard in [&one, &two, &three, &kept] {
                assert!(!guard.is_valid(), "{guard:?}");
                assert_eq!(guard.validity(), Duration::ZERO);
            }
            drop(one);
            self::runtime().block_on(async {
                soon(two.lost()).await;
                soon(two.run(pending::<()>()))
                    .await
                    .expect_err("it is not ours");
                soon(two.extend(TTL)).await.expect_err("it is not ours");
                drop(two);
                soon(three.release()).await.expect_err("it is not ours");
                drop(kept);
                // The parent has to renew it in the meantime.
                sleep(2 * SHORT_TTL).await;
            });
        });
    };
    child.succeeds();
    for guard in [one, two, three, kept] {
        assert!(guard.is_valid(), "{guard:?}");
        let released = runtime.block_on(guard.release());
        released.expect("it is ours still");
    }
    process::exit(CAME_TO_ITS_END);
}

/// The threads of the parent do not exist in the child, and may have held any mutex at the moment of the fork.
#[test]
fn a_child_never_hangs_though_other_threads_used_the_client_as_it_was_forked() {
    run("program_that_forks_under_load", &Masters::start(3));
}

#[test]
#[ignore = "run by another test"]
fn program_that_forks_under_load() {
    let Some(dlm) = client() else { return };
    let is_over = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|thread| {
            let (dlm, is_over) = (dlm.clone(), Arc::clone(&is_over));
            thread::spawn(move || {
                runtime().block_on(async {
                    while !is_over.load(Ordering::Relaxed) {
                        lock_and_release(&dlm, &format!("thread:{thread}")).await;
                    }
                });
            })
        })
        .collect();
    runtime().block_on(lock_and_release(&dlm, "warm"));
    for _ in 0..20 {
        let Some(child) = fork() else {
            finish(move || runtime().block_on(lock_and_release(&dlm, "child")));
        };
        child.succeeds();
    }
    is_over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("the parent is not disturbed");
    }
    process::exit(CAME_TO_ITS_END);
}

#[test]
fn a_client_on_a_named_runtime_is_an_error_in_a_child() {
    run("program_with_a_client_on_its_runtime", &Masters::start(3));
}

#[test]
#[ignore = "run by another test"]
fn program_with_a_client_on_its_runtime() {
    let Ok(urls) = env::var(URLS) else { return };
    let runtime = runtime();
    let builder = Redlock::builder().masters(urls.split(' '));
    let dlm = builder.runtime(runtime.handle().clone()).build();
    let dlm = dlm.expect("valid URLs");
    runtime.block_on(lock_and_release(&dlm, "warm"));
    let Some(child) = fork() else {
        finish(move || {
            self::runtime().block_on(async {
                let error = soon(dlm.lock("child", TTL).into_future()).await;
                let error = error.expect_err("the threads of the runtime are the parent's");
                assert!(error.to_string().contains("forked"), "{error}");
            });
        });
    };
    child.succeeds();
    runtime.block_on(lock_and_release(&dlm, "parent"));
    process::exit(CAME_TO_ITS_END);
}
