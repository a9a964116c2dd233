//! One holder at a time: among clients, tasks, processes, and with any other Redlock client.

use std::env;
use std::io::{Read, stdin};
use std::process::{Child, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use redis::{Client, Commands, cmd};
use support::{LONG, Masters, Server, Servers, test_process, unique};
use tokio::task::{JoinSet, spawn_blocking, yield_now};
use tokio::time::sleep;
use tokio_redlock::{LockError, LockGuard, Redlock, RetryPolicy, Vote};

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

/// A value that another client may well use, and that is no text.
const FOREIGN: &[u8] = b"\xff\xfe\x00\r\n";

fn eager() -> RetryPolicy {
    let (shortest, longest) = (Duration::from_millis(1), Duration::from_millis(8));
    RetryPolicy::new().delay(shortest, longest).forever()
}

fn assert_taken(attempt: Result<LockGuard, LockError>) {
    let Err(LockError::Taken(attempts)) = attempt else {
        panic!("not taken: {attempt:?}");
    };
    let ballots = attempts.ballots.iter();
    let refused = ballots.filter(|ballot| matches!(ballot.vote, Vote::Refused));
    assert!(refused.count() >= 2, "{attempts}");
}

#[tokio::test]
async fn a_client_is_refused_what_another_holds() {
    let masters = Masters::start(3);
    let [one, other] = [masters.patient_client(), masters.patient_client()];
    let resource = unique("resource");

    let guard = one.lock(&resource, TTL).await.unwrap();
    assert_taken(other.try_lock(&resource, TTL).await);
    masters.eventually_hold(&guard).await;
    guard.release().await.unwrap();

    let guard = other.lock(&resource, TTL).await.unwrap();
    assert_taken(one.try_lock(&resource, TTL).await);
    drop(guard);
}

#[tokio::test]
async fn a_task_is_refused_what_another_of_the_same_client_holds() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");

    let guard = dlm.lock(&resource, TTL).await.unwrap();
    let again = tokio::spawn(dlm.clone().try_lock(&resource, TTL).into_future());
    assert_taken(again.await.unwrap());
    guard.release().await.unwrap();
    let again = tokio::spawn(dlm.lock(&resource, TTL).into_future());
    assert!(again.await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_compete_are_never_inside_together() {
    const ROUNDS: usize = 5;
    let masters = Masters::start(3);
    let clients = [masters.patient_client(), masters.patient_client()];
    let resource = unique("resource");
    let inside = Arc::new(AtomicBool::new(false));
    let entered = Arc::new(AtomicUsize::new(0));

    let mut tasks = JoinSet::new();
    for dlm in clients.iter().cycle().take(8) {
        let (dlm, resource) = (dlm.clone(), resource.clone());
        let (inside, entered) = (Arc::clone(&inside), Arc::clone(&entered));
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let guard = dlm.lock(&resource, TTL).retry(eager()).await.unwrap();
                assert!(!inside.swap(true, Ordering::SeqCst), "two are inside");
                yield_now().await;
                entered.fetch_add(1, Ordering::SeqCst);
                inside.store(false, Ordering::SeqCst);
                drop(guard);
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(entered.load(Ordering::SeqCst), 8 * ROUNDS);
}

#[tokio::test]
async fn other_resources_are_not_affected() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let name = unique("resource");
    let resources = [
        name.as_bytes().to_vec(),
        format!("{name}:").into_bytes(),
        name.to_uppercase().into_bytes(),
        name.as_bytes()[1..].to_vec(),
        [name.as_bytes(), b"\xff"].concat(),
        [name.as_bytes(), b"\xfe"].concat(),
        [name.as_bytes(), b"\0"].concat(),
        Vec::new(),
    ];
    let mut guards = Vec::new();
    for resource in &resources {
        guards.push(dlm.lock(resource, TTL).await.unwrap());
    }
    for (resource, guard) in resources.iter().zip(&guards) {
        assert_eq!(guard.resource(), resource);
        assert_taken(dlm.try_lock(resource, TTL).await);
        masters.eventually_hold(guard).await;
    }
}

/// `SET NX PX` on every master, as any Redlock client does it. Tells how many agreed.
fn set_foreign(masters: &[Server], resource: &str) -> usize {
    let mut set = cmd("SET");
    set.arg(resource).arg(FOREIGN).arg(&["NX", "PX", "120000"]);
    let set = |server: &&Server| server.query::<Option<String>>(&set).is_some();
    masters.iter().filter(set).count()
}

fn is_foreign(server: &Server, resource: &str) -> bool {
    server.get(resource).as_deref() == Some(FOREIGN)
}

#[tokio::test]
async fn a_foreign_lock_on_a_quorum_excludes_us_and_is_not_touched() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    for held in [2, 3] {
        let resource = unique("resource");
        let (theirs, ours) = masters.split_at(held);
        assert_eq!(set_foreign(theirs, &resource), held);

        assert_taken(dlm.try_lock(&resource, TTL).await);
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert!(theirs.iter().all(|server| is_foreign(server, &resource)));
        assert!(ours.iter().all(|server| server.get(&resource).is_none()));

        assert!(theirs.iter().all(|server| server.del(&resource)));
        assert!(dlm.lock(&resource, TTL).await.is_ok());
    }
}

#[tokio::test]
async fn a_foreign_key_on_a_minority_does_not_hinder_us_and_is_not_touched() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    let (theirs, ours) = masters.split_at(1);
    assert_eq!(set_foreign(theirs, &resource), 1);

    let guard = dlm.lock(&resource, TTL).await.unwrap();
    guard.extend(2 * TTL).await.unwrap();
    assert!(is_foreign(&theirs[0], &resource));
    guard.release().await.unwrap();
    ours.eventually_empty().await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(is_foreign(&theirs[0], &resource));
}

#[tokio::test]
async fn our_lock_excludes_a_foreign_client() {
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");
    // Taken and given back, so that all connections are open.
    drop(dlm.lock(&resource, TTL).await.unwrap());
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    masters.eventually_hold(&guard).await;

    assert_eq!(set_foreign(&masters, &resource), 0);
    assert!(masters.all_hold(&guard));
    for server in &masters {
        let kind: String = server.query(cmd("TYPE").arg(&resource));
        assert_eq!(kind, "string");
    }
    guard.release().await.unwrap();
    masters.eventually_empty().await;
    assert_eq!(set_foreign(&masters, &resource), 3);
}

/// What a process that a test started is to do. It runs the same test, and finds this in its environment.
struct Role {
    task: String,
    dlm: Redlock,
    urls: Vec<String>,
    resource: String,
    ttl: Duration,
}

const ROLE: &str = "REDLOCK_TEST_ROLE";

/// The exit code of a process that played its role to the end.
const PLAYED: i32 = 42;

const ROUNDS: u32 = 15;

impl Role {
    /// Plays the role of this process, if it has one, and ends it.
    async fn play_if_any() {
        let Ok(role) = env::var(ROLE) else { return };
        let [task, resource, ttl, urls] = role.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not a role: {role}");
        };
        let urls: Vec<String> = urls.split(',').map(str::to_owned).collect();
        let builder = Redlock::builder().masters(&urls).request_timeout(LONG);
        let role = Self {
            task: task.to_owned(),
            dlm: builder.build().expect("valid masters"),
            urls,
            resource: resource.to_owned(),
            ttl: Duration::from_millis(ttl.parse().expect("a number")),
        };
        role.play().await;
        exit(PLAYED);
    }

    async fn play(self) {
        let Self { dlm, resource, .. } = &self;
        match &self.task[..] {
            "hold" => {
                let guard = dlm.lock(resource, self.ttl).await.unwrap();
                let ended = spawn_blocking(|| stdin().read_to_end(&mut Vec::new()));
                ended.await.unwrap().unwrap();
                guard.release().await.unwrap();
            }
            "try" => assert_taken(dlm.try_lock(resource, self.ttl).await),
            "count" => count(dlm, &self.urls[0], resource).await,
            unknown => panic!("no such task: {unknown}"),
        }
    }
}

/// Adds to a counter, in a way that loses what others add meanwhile.
async fn count(dlm: &Redlock, counter: &str, resource: &str) {
    let mut connection = Client::open(counter).unwrap().get_connection().unwrap();
    for _ in 0..ROUNDS {
        let guard = dlm.lock(resource, TTL).retry(eager()).await.unwrap();
        let value: Option<u32> = connection.get("counter").unwrap();
        sleep(Duration::from_millis(1)).await;
        let value = value.unwrap_or(0) + 1;
        connection.set::<_, _, ()>("counter", value).unwrap();
        guard.release().await.unwrap();
    }
}

/// A process that plays a role in a test; killed when dropped.
struct Process(Child);

impl Process {
    fn start(test: &str, task: &str, masters: &Masters, resource: &str, ttl: Duration) -> Self {
        let (ttl, urls) = (ttl.as_millis(), masters.urls().join(","));
        let mut command = test_process(module_path!(), test);
        command
            .env(ROLE, format!("{task} {resource} {ttl} {urls}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        Self(command.spawn().expect("a process can be started"))
    }

    /// Ends its input, and waits until it has played its role.
    fn end(mut self) {
        let status = self.0.wait().expect("our own child can be awaited");
        assert_eq!(status.code(), Some(PLAYED));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_process_excludes_another_and_is_excluded_by_it() {
    Role::play_if_any().await;
    let test = "a_process_excludes_another_and_is_excluded_by_it";
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");

    let other = Process::start(test, "hold", &masters, &resource, TTL);
    masters.eventually_have(&resource).await;
    assert_taken(dlm.try_lock(&resource, TTL).await);
    other.end();

    let guard = dlm.lock(&resource, TTL).await.unwrap();
    Process::start(test, "try", &masters, &resource, TTL).end();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn processes_that_compete_lose_no_update() {
    Role::play_if_any().await;
    let test = "processes_that_compete_lose_no_update";
    let masters = Masters::start(3);
    let resource = unique("resource");

    let others = [(); 2].map(|()| Process::start(test, "count", &masters, &resource, TTL));
    count(&masters.patient_client(), &masters[0].url(), &resource).await;
    others.into_iter().for_each(Process::end);
    let total = masters[0].get("counter").unwrap();
    assert_eq!(total, (3 * ROUNDS).to_string().as_bytes());
}

#[tokio::test]
async fn a_killed_process_holds_its_lock_until_the_ttl_and_no_longer() {
    Role::play_if_any().await;
    let test = "a_killed_process_holds_its_lock_until_the_ttl_and_no_longer";
    let masters = Masters::start(3);
    let dlm = masters.patient_client();
    let resource = unique("resource");

    let ttl = Duration::from_secs(4);
    let other = Process::start(test, "hold", &masters, &resource, ttl);
    masters.eventually_have(&resource).await;
    drop(other);
    assert_taken(dlm.try_lock(&resource, TTL).await);
    let patient = RetryPolicy::new().max_wait(LONG);
    let guard = dlm.lock(&resource, TTL).retry(patient).await.unwrap();
    masters.eventually_hold(&guard).await;
}
