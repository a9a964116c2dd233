//! A master that was away votes again soon after its return. Until then the client seldom tries to connect to it.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use futures::join;
use redis::cmd;
use support::{LONG, Masters, Proxy, Server, Servers, Upstream, eventually_async, unique};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tokio_redlock::{LockError, LockGuard, Redlock, RetryPolicy};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// How soon after its return a master has a vote again.
const SOON: Duration = Duration::from_millis(500);

/// For masters that are well on a machine that is not.
const PATIENCE: Duration = Duration::from_secs(2);

fn client(masters: &Masters) -> Redlock {
    let builder = masters.builder().request_timeout(PATIENCE);
    builder.build().expect("valid masters")
}

/// How a master goes away and comes back.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Frozen,
    /// The network to it swallows everything, and delivers it later.
    Hung,
    /// The network to it loses everything.
    Lost,
    /// The network to it refuses everything.
    Refused,
}

impl Fault {
    fn is_in_the_network(self) -> bool {
        matches!(self, Self::Hung | Self::Lost | Self::Refused)
    }
}

/// A client of three masters, the last of which goes away and comes back.
struct Client {
    masters: Masters,
    fault: Fault,
    dlm: Redlock,
}

impl Client {
    fn start(fault: Fault) -> Self {
        let mut masters = Masters::start(3);
        if fault.is_in_the_network() {
            masters = masters.with_proxies([2]);
        }
        Self {
            dlm: client(&masters),
            masters,
            fault,
        }
    }

    /// The network to the third.
    fn network(&self) -> &Proxy {
        self.masters.proxy(2)
    }

    fn third_leaves(&mut self) {
        match self.fault {
            Fault::Killed => self.masters[2].kill(),
            Fault::Frozen => self.masters[2].freeze(),
            Fault::Hung => self.network().hang(),
            // Whatever is sent from now on would come in an hour, and whatever is sent after it on the same
            // connection as well.
            Fault::Lost => self.network().delay(Duration::from_secs(3600)),
            Fault::Refused => self.network().refuse(),
        }
    }

    fn third_comes_back(&mut self) {
        match self.fault {
            Fault::Killed => self.masters[2].restart(),
            Fault::Frozen => self.masters[2].thaw(),
            Fault::Hung | Fault::Lost | Fault::Refused => self.network().resume(),
        }
    }

    /// Locks and releases for so long that attempts to reach the third have become rare.
    async fn traffic(&self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1500) {
            let guard = self.dlm.try_lock(unique("traffic"), TTL).await;
            let guard = guard.expect("two masters are well");
            guard.release().await.expect("two masters are well");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether a lock is set on the third master too, whose vote it does not need.
    async fn third_votes(&self) -> bool {
        let resource = unique("vote");
        let guard = self.dlm.try_lock(&resource, TTL).await;
        let guard = guard.expect("two masters are well");
        self.masters[2].get(&resource).as_deref() == Some(guard.value().as_bytes())
    }

    async fn third_votes_within(&self, within: Duration) {
        eventually_async("it votes", within, async || self.third_votes().await).await;
    }

    async fn nothing_is_left(&self) {
        assert_eq!(self.dlm.shutdown(LONG).await, 0);
        assert!(self.masters.are_empty());
    }
}

#[tokio::test]
async fn a_restarted_master_votes_again_soon() {
    votes_again_soon(Fault::Killed).await;
}

#[tokio::test]
async fn a_thawed_master_votes_again_soon() {
    votes_again_soon(Fault::Frozen).await;
}

#[tokio::test]
async fn a_master_votes_again_soon_after_a_partition_that_swallowed_everything() {
    votes_again_soon(Fault::Hung).await;
}

#[tokio::test]
async fn a_master_votes_again_soon_after_a_partition_that_refused_everything() {
    votes_again_soon(Fault::Refused).await;
}

async fn votes_again_soon(fault: Fault) {
    let mut client = Client::start(fault);
    for traffic in [true, false, true] {
        client.third_votes_within(LONG).await;
        client.third_leaves();
        if traffic {
            client.traffic().await;
        }
        if fault.is_in_the_network() {
            assert!(!client.third_votes().await, "it is away");
        }
        client.third_comes_back();
        client.third_votes_within(SOON).await;
    }
    client.nothing_is_left().await;
}

#[tokio::test]
async fn a_master_votes_again_soon_after_a_long_partition_that_lost_everything() {
    let mut client = Client::start(Fault::Lost);
    client.third_votes_within(LONG).await;
    client.third_leaves();
    // So many that they have become rare.
    let attempts = client.network().connects() + 7;
    let tried = async || !client.third_votes().await && client.network().connects() == attempts;
    eventually_async("a new attempt to connect", LONG, tried).await;
    // What the attempt begins with is lost, so only the next one can succeed.
    sleep(Duration::from_millis(20)).await;
    client.third_comes_back();
    client.third_votes_within(SOON).await;
}

#[tokio::test]
async fn a_master_that_is_down_at_the_start_joins_when_it_comes_up() {
    let mut client = Client::start(Fault::Killed);
    client.third_leaves();
    client.traffic().await;
    client.third_comes_back();
    client.third_votes_within(SOON).await;
    client.nothing_is_left().await;
}

#[tokio::test]
async fn a_lost_master_is_forgotten_when_nobody_asks_and_back_at_the_first_request() {
    let mut masters = Masters::behind_proxies(1);
    let dlm = client(&masters);
    masters[0].kill();
    let result = dlm.try_lock(unique("resource"), TTL).await;
    assert!(matches!(result, Err(LockError::Unreachable(_))));

    let mut last = (0, Instant::now());
    let quiet = async || {
        let connects = masters.proxy(0).connects();
        if last.0 != connects {
            last = (connects, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(2)
    };
    eventually_async("nothing is tried any more", LONG, quiet).await;
    masters[0].restart();
    let guard = dlm.try_lock(unique("resource"), TTL).await;
    guard.expect("the first attempt").release().await.unwrap();
}

/// Locks, extends and releases, each at the first attempt, over a single master, so its vote decides.
async fn all_work(dlm: &Redlock) {
    let resource = unique("resource");
    let guard = dlm.try_lock(&resource, TTL).await.expect("a vote");
    guard.extend(2 * TTL).await.expect("a vote");
    guard.release().await.expect("a vote");
    drop(dlm.try_lock(&resource, TTL).await.expect("released"));
    assert_eq!(dlm.shutdown(LONG).await, 0);
}

async fn work_soon(dlm: &Redlock) {
    let works = async || dlm.try_lock(unique("resource"), TTL).await.is_ok();
    eventually_async("it votes", SOON, works).await;
    all_work(dlm).await;
}

#[tokio::test]
async fn scripts_survive_a_restart_and_a_flush() {
    let mut masters = Masters::start(1);
    let dlm = client(&masters);
    all_work(&dlm).await;
    masters[0].restart();
    work_soon(&dlm).await;
    let server = &masters[0];

    let flush = || server.query::<()>(cmd("SCRIPT").arg("FLUSH"));
    let resource = unique("resource");
    for _ in 0..2 {
        let guard = dlm.try_lock(&resource, TTL).await.expect("free");
        flush();
        guard.extend(2 * TTL).await.expect("ours");
        assert!(server.pttl(&resource) > 60_000);
        flush();
        guard.release().await.expect("ours");
        assert_eq!(server.get(&resource), None);
    }
    let guard = dlm.try_lock(&resource, TTL).await.expect("free");
    flush();
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert_eq!(server.get(&resource), None);
}

#[tokio::test]
async fn connections_that_the_masters_cut_while_idle_cost_no_attempt() {
    let masters = Masters::start(5);
    let dlm = client(&masters);
    drop(locked_on_all(&dlm, &masters).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &masters {
        server.query::<()>(cmd("CONFIG").arg(&["SET", "timeout", "1"]));
    }
    let all_cut = async || masters.iter().all(|server| server.connected_clients() == 0);
    eventually_async("all are cut", LONG, all_cut).await;
    // The client sees that when its runtime next looks at the sockets.
    sleep(Duration::from_millis(10)).await;
    locked_on_all(&dlm, &masters).await.release().await.unwrap();
}

/// Locks at the first attempt, and waits until every master holds the key.
async fn locked_on_all(dlm: &Redlock, masters: &[Server]) -> LockGuard {
    let resource = unique("resource");
    let guard = dlm.try_lock(&resource, TTL).await.expect("granted");
    masters.eventually_hold(&guard).await;
    guard
}

#[tokio::test]
async fn connections_that_are_killed_under_a_request_cost_a_few_retries_at_most() {
    let masters = Masters::start(5);
    let dlm = client(&masters);
    for _ in 0..10 {
        drop(locked_on_all(&dlm, &masters).await);
        // From here on nothing runs before the requests are on their way, so the client cannot know yet.
        masters.iter().for_each(Server::kill_clients);
        let request = dlm.lock(unique("resource"), TTL);
        let guard = request.retry(RetryPolicy::new().max_attempts(5)).await;
        guard.expect("granted").release().await.expect("ours");
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
    assert!(masters.are_empty());
    for server in &masters {
        one_is_connected(server).await;
    }
}

async fn one_is_connected(server: &Server) {
    let one = async || server.connected_clients() == 1;
    eventually_async("one is connected", LONG, one).await;
}

#[tokio::test]
async fn a_port_that_accepts_and_closes_is_not_hammered() {
    let mut masters = Masters::behind_proxies(3);
    masters[2].kill();
    count_connects(&masters, 4..=100).await;
}

#[tokio::test]
async fn a_port_that_accepts_and_hangs_is_not_hammered() {
    let masters = Masters::behind_proxies(3);
    masters.proxy(2).hang();
    count_connects(&masters, 2..=100).await;
}

#[tokio::test]
async fn a_master_that_works_is_connected_to_once() {
    count_connects(&Masters::behind_proxies(3), 1..=1).await;
}

/// The third of three masters is connected to so often in two seconds of locking by several tasks, and the others once.
async fn count_connects(masters: &Masters, third: RangeInclusive<usize>) {
    let dlm = client(masters);
    let start = Instant::now();
    let lock = async || {
        while start.elapsed() < Duration::from_secs(2) {
            let guard = dlm.try_lock(unique("resource"), TTL).await;
            drop(guard.expect("two masters are well"));
        }
    };
    join!(lock(), lock(), lock(), lock());
    let [first, second, last] = [0, 1, 2].map(|place| masters.proxy(place).connects());
    assert_eq!((first, second), (1, 1));
    assert!(third.contains(&last), "{last} connects");
}

#[tokio::test]
async fn a_new_connection_ends_its_predecessor_at_the_master() {
    let masters = Masters::behind_proxies(1);
    let dlm = client(&masters);
    lose_an_answer(&dlm, &masters[0], masters.proxy(0)).await;
    one_is_connected(&masters[0]).await;
    assert_eq!(masters.calls("client|kill"), 1);
    all_work(&dlm).await;
}

#[tokio::test]
async fn masters_that_forbid_to_kill_connections_are_used_all_the_same() {
    let user = [
        "--user", "locker", "on", ">secret", "~*", "+@all", "-client",
    ];
    let mut server = Server::start_with(&user);
    let proxy = Proxy::start(&server);
    let url = format!("redis://locker:secret@{}", proxy.addr());
    let mut connection = redis::Client::open(&*url)
        .unwrap()
        .get_connection()
        .unwrap();
    assert!(cmd("CLIENT").arg("INFO").exec(&mut connection).is_err());
    drop(connection);

    let builder = Redlock::builder().master(url).request_timeout(PATIENCE);
    let dlm = builder.build().expect("a valid URL");
    all_work(&dlm).await;
    lose_an_answer(&dlm, &server, &proxy).await;
    all_work(&dlm).await;
    // The one that went silent, and the new one.
    assert_eq!(server.connected_clients(), 2);
    server.restart();
    work_soon(&dlm).await;
}

/// Cuts a connection after a SET in such a way that the server does not notice, and waits until the SET is undone.
async fn lose_an_answer(dlm: &Redlock, server: &Server, proxy: &Proxy) {
    all_work(dlm).await;
    one_is_connected(server).await;
    let (resource, deletes) = (unique("resource"), server.calls("evalsha"));
    proxy.cut_after_request(&resource, Upstream::Kept);
    let result = dlm.try_lock(&resource, TTL).await;
    assert!(matches!(result, Err(LockError::Unreachable(_))));
    eventually_async("it is undone", LONG, async || {
        server.calls("evalsha") > deletes && server.get(&resource).is_none()
    })
    .await;
}

#[tokio::test]
async fn one_connection_is_left_after_a_hang() {
    for fault in [Fault::Frozen, Fault::Hung] {
        let mut client = Client::start(fault);
        client.third_votes_within(LONG).await;
        client.third_leaves();
        client.traffic().await;
        client.third_comes_back();
        client.third_votes_within(SOON).await;
        one_is_connected(&client.masters[2]).await;
        client.nothing_is_left().await;
        assert_eq!(client.masters[2].connected_clients(), 1);
    }
}

/// Were it executed, nobody would delete the key: that has been seen to before, over the new connection.
#[tokio::test]
async fn a_request_that_arrives_after_a_new_connection_is_refused() {
    const LATE: Duration = Duration::from_secs(8);
    let client = Client::start(Fault::Hung);
    client.third_votes_within(LONG).await;
    client.network().delay(LATE);
    let start = Instant::now();
    let resource = unique("resource");
    let guard = client.dlm.try_lock(&resource, TTL).await;
    let guard = guard.expect("two masters are well");
    client.network().resume();
    client.third_votes_within(LONG).await;
    assert!(start.elapsed() < LATE, "the connection is a new one");
    drop(guard);
    assert_eq!(client.dlm.shutdown(LONG).await, 0);
    let passed = async || {
        assert_eq!(client.masters[2].get(&resource), None);
        start.elapsed() > LATE + SOON
    };
    eventually_async("it would have arrived", LONG, passed).await;
}

#[test]
fn a_client_outlives_the_runtime_that_its_connections_lived_on() {
    let masters = Masters::start(5);
    let dlm = client(&masters);
    for _ in 0..5 {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let guard = dlm.lock(unique("resource"), TTL).await.expect("granted");
            guard.extend(2 * TTL).await.expect("ours");
            guard.release().await.expect("ours");
        });
    }
}

/// A SET and an extension that wait for the same connection may be sent in either order.
#[tokio::test]
async fn what_a_master_is_told_late_is_released_there_too() {
    let client = Client::start(Fault::Hung);
    // So that it takes a while to connect.
    client.network().delay(Duration::from_millis(20));
    let mut guards = Vec::new();
    for _ in 0..20 {
        let guard = client.dlm.try_lock(unique("resource"), TTL).await;
        let guard = guard.expect("two masters are well");
        guard.extend(2 * TTL).await.expect("two masters are well");
        guards.push(guard);
    }
    client.network().resume();
    client.third_votes_within(LONG).await;
    // Answers come in order, so with those to the last release all have come.
    assert_eq!(client.dlm.shutdown(LONG).await, 0);
    drop(guards);
    client.nothing_is_left().await;
}

/// Reconnecting takes a round trip more than connecting, since the connection before is closed at the master.
#[tokio::test]
async fn a_master_far_away_that_broke_once_comes_back() {
    let masters = Masters::behind_proxies(1);
    let proxy = masters.proxy(0);
    proxy.delay(Duration::from_millis(70));
    let dlm = client(&masters);
    let locks = async || dlm.lock(unique("resource"), TTL).await.is_ok();
    assert!(locks().await, "it connects");
    proxy.cut();
    eventually_async("it is back", LONG, locks).await;
}

#[tokio::test]
async fn a_connection_that_broke_before_it_was_used_leaves_no_doubt() {
    let masters = Masters::behind_proxies(3);
    let dlm = masters.client();
    drop(masters.lock_everywhere(&dlm, "warm", TTL).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let proxy = masters.proxy(2);
    // A SET without an answer, whose connection ends.
    proxy.hang();
    let guard = dlm.lock("resource", TTL).await.expect("a quorum is well");
    let connects = proxy.connects();
    proxy.refuse();
    // The next connection is cut while it introduces itself.
    proxy.resume();
    proxy.cut_after_request("\r\nINFO\r\n", Upstream::Closed);
    eventually_async("another connection follows", LONG, async || {
        proxy.connects() >= connects + 2
    })
    .await;
    drop(guard);
    assert_eq!(dlm.shutdown(LONG).await, 0, "all is known to be deleted");
    assert!(masters.are_empty());
}
