//! A master that was away votes again soon after its return, and meanwhile it is left in peace.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use futures::join;
use redis::{Client, cmd};
use support::{Proxy, Server, Upstream, eventually_async, unique};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tokio_redlock::{LockError, LockGuard, Redlock, RetryPolicy};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// Only reached by a test that fails.
const LONG: Duration = Duration::from_secs(20);

/// How soon after its return a master has a vote again.
const SOON: Duration = Duration::from_millis(500);

/// Patient with masters that are well on a machine that is not.
fn client(urls: impl IntoIterator<Item = String>) -> Redlock {
    let builder = Redlock::builder().request_timeout(LONG / 10);
    let builder = urls
        .into_iter()
        .fold(builder, |builder, url| builder.master(url));
    builder.build().expect("different masters")
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

/// Three masters, the last of which goes away and comes back.
struct Masters {
    servers: [Server; 3],
    proxy: Proxy,
    fault: Fault,
    dlm: Redlock,
}

impl Masters {
    fn start(fault: Fault) -> Self {
        let servers = Server::many();
        let proxy = Proxy::start(&servers[2]);
        let mut urls = servers.each_ref().map(Server::url);
        if fault.is_in_the_network() {
            urls[2] = proxy.url();
        }
        let dlm = client(urls);
        Self {
            servers,
            proxy,
            fault,
            dlm,
        }
    }

    fn leave(&mut self) {
        match self.fault {
            Fault::Killed => self.servers[2].kill(),
            Fault::Frozen => self.servers[2].freeze(),
            Fault::Hung => self.proxy.hang(),
            // Whatever is sent from now on would come in an hour, and whatever is sent after it on the same
            // connection as well.
            Fault::Lost => self.proxy.delay(Duration::from_secs(3600)),
            Fault::Refused => self.proxy.refuse(),
        }
    }

    fn come_back(&mut self) {
        match self.fault {
            Fault::Killed => self.servers[2].restart(),
            Fault::Frozen => self.servers[2].thaw(),
            Fault::Hung | Fault::Lost | Fault::Refused => self.proxy.resume(),
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
        self.servers[2].get(&resource).as_deref() == Some(guard.value().as_bytes())
    }

    async fn third_votes_within(&self, within: Duration) {
        eventually_async("it votes", within, async || self.third_votes().await).await;
    }

    async fn nothing_is_left(&self) {
        assert_eq!(self.dlm.shutdown(LONG).await, 0);
        for server in &self.servers {
            assert_eq!(server.keys(), [""; 0]);
        }
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
    let mut masters = Masters::start(fault);
    for traffic in [true, false, true] {
        masters.third_votes_within(LONG).await;
        masters.leave();
        if traffic {
            masters.traffic().await;
        }
        if fault.is_in_the_network() {
            assert!(!masters.third_votes().await, "it is away");
        }
        masters.come_back();
        masters.third_votes_within(SOON).await;
    }
    masters.nothing_is_left().await;
}

#[tokio::test]
async fn a_master_votes_again_soon_after_a_long_partition_that_lost_everything() {
    let mut masters = Masters::start(Fault::Lost);
    masters.third_votes_within(LONG).await;
    masters.leave();
    // So many that they have become rare.
    let attempts = masters.proxy.connects() + 7;
    let tried = async || !masters.third_votes().await && masters.proxy.connects() == attempts;
    eventually_async("a new attempt to connect", LONG, tried).await;
    // What the attempt begins with is lost, so only the next one can succeed.
    sleep(Duration::from_millis(20)).await;
    masters.come_back();
    masters.third_votes_within(SOON).await;
}

#[tokio::test]
async fn a_master_that_is_down_at_the_start_joins_when_it_comes_up() {
    let mut masters = Masters::start(Fault::Killed);
    masters.leave();
    masters.traffic().await;
    masters.come_back();
    masters.third_votes_within(SOON).await;
    masters.nothing_is_left().await;
}

#[tokio::test]
async fn a_lost_master_is_forgotten_when_nobody_asks_and_back_at_the_first_request() {
    let mut server = Server::start();
    let proxy = Proxy::start(&server);
    let dlm = client([proxy.url()]);
    server.kill();
    let result = dlm.try_lock(unique("resource"), TTL).await;
    assert!(matches!(result, Err(LockError::Unreachable(_))));

    let mut last = (0, Instant::now());
    let quiet = async || {
        if last.0 != proxy.connects() {
            last = (proxy.connects(), Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(2)
    };
    eventually_async("nothing is tried any more", LONG, quiet).await;
    server.restart();
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
    let mut server = Server::start();
    let dlm = client([server.url()]);
    all_work(&dlm).await;
    server.restart();
    work_soon(&dlm).await;

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
    let servers = Server::many::<5>();
    let dlm = client(servers.each_ref().map(Server::url));
    drop(locked_on_all(&dlm, &servers).await);
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for server in &servers {
        server.query::<()>(cmd("CONFIG").arg(&["SET", "timeout", "1"]));
    }
    let all_cut = async || servers.iter().all(|server| server.connected_clients() == 0);
    eventually_async("all are cut", LONG, all_cut).await;
    // The client sees that when its runtime next looks at the sockets.
    sleep(Duration::from_millis(10)).await;
    locked_on_all(&dlm, &servers).await.release().await.unwrap();
}

/// Locks at the first attempt, and waits until every master holds the key.
async fn locked_on_all(dlm: &Redlock, servers: &[Server]) -> LockGuard {
    let resource = unique("resource");
    let guard = dlm.try_lock(&resource, TTL).await.expect("granted");
    let held = async || servers.iter().all(|server| server.get(&resource).is_some());
    eventually_async("held by all", LONG, held).await;
    guard
}

#[tokio::test]
async fn connections_that_are_killed_under_a_request_cost_a_few_retries_at_most() {
    let servers = Server::many::<5>();
    let dlm = client(servers.each_ref().map(Server::url));
    for _ in 0..10 {
        drop(locked_on_all(&dlm, &servers).await);
        // From here on nothing runs before the requests are on their way, so the client cannot know yet.
        servers.iter().for_each(Server::kill_clients);
        let request = dlm.lock(unique("resource"), TTL);
        let guard = request.retry(RetryPolicy::new().max_attempts(5)).await;
        guard.expect("granted").release().await.expect("ours");
        assert_eq!(dlm.shutdown(LONG).await, 0);
    }
    for server in &servers {
        assert_eq!(server.keys(), [""; 0]);
        one_is_connected(server).await;
    }
}

async fn one_is_connected(server: &Server) {
    let one = async || server.connected_clients() == 1;
    eventually_async("one is connected", LONG, one).await;
}

#[tokio::test]
async fn a_port_that_accepts_and_closes_is_not_hammered() {
    let mut masters = Proxied::start();
    masters.servers[2].kill();
    masters.count_connects(4..=100).await;
}

#[tokio::test]
async fn a_port_that_accepts_and_hangs_is_not_hammered() {
    let masters = Proxied::start();
    masters.proxies[2].hang();
    masters.count_connects(2..=100).await;
}

#[tokio::test]
async fn a_master_that_works_is_connected_to_once() {
    let masters = Proxied::start();
    masters.count_connects(1..=1).await;
}

/// Three masters whose connections are counted.
struct Proxied {
    servers: [Server; 3],
    proxies: [Proxy; 3],
}

impl Proxied {
    fn start() -> Self {
        let servers = Server::many();
        let proxies = servers.each_ref().map(Proxy::start);
        Self { servers, proxies }
    }

    /// The third is connected to so often in two seconds of locking by several tasks, and the others once.
    async fn count_connects(&self, third: RangeInclusive<usize>) {
        let dlm = client(self.proxies.each_ref().map(Proxy::url));
        let start = Instant::now();
        let lock = async || {
            while start.elapsed() < Duration::from_secs(2) {
                let guard = dlm.try_lock(unique("resource"), TTL).await;
                drop(guard.expect("two masters are well"));
            }
        };
        join!(lock(), lock(), lock(), lock());
        let [first, second, last] = self.proxies.each_ref().map(Proxy::connects);
        assert_eq!((first, second), (1, 1));
        assert!(third.contains(&last), "{last} connects");
    }
}

#[tokio::test]
async fn a_new_connection_ends_its_predecessor_at_the_master() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let dlm = client([proxy.url()]);
    lose_an_answer(&dlm, &server, &proxy).await;
    one_is_connected(&server).await;
    assert_eq!(server.calls("client|kill"), 1);
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
    let mut connection = Client::open(&*url).unwrap().get_connection().unwrap();
    assert!(cmd("CLIENT").arg("INFO").exec(&mut connection).is_err());
    drop(connection);

    let dlm = client([url]);
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
        let mut masters = Masters::start(fault);
        masters.third_votes_within(LONG).await;
        masters.leave();
        masters.traffic().await;
        masters.come_back();
        masters.third_votes_within(SOON).await;
        one_is_connected(&masters.servers[2]).await;
        masters.nothing_is_left().await;
        assert_eq!(masters.servers[2].connected_clients(), 1);
    }
}

/// Were it executed, nobody would delete the key: that has been seen to before, over the new connection.
#[tokio::test]
async fn a_request_that_arrives_after_a_new_connection_is_refused() {
    const LATE: Duration = Duration::from_secs(3);
    let masters = Masters::start(Fault::Hung);
    masters.third_votes_within(LONG).await;
    masters.proxy.delay(LATE);
    let start = Instant::now();
    let resource = unique("resource");
    let guard = masters.dlm.try_lock(&resource, TTL).await;
    let guard = guard.expect("two masters are well");
    masters.proxy.resume();
    masters.third_votes_within(LONG).await;
    assert!(start.elapsed() < LATE, "the connection is a new one");
    drop(guard);
    assert_eq!(masters.dlm.shutdown(LONG).await, 0);
    let passed = async || {
        assert_eq!(masters.servers[2].get(&resource), None);
        start.elapsed() > LATE + SOON
    };
    eventually_async("it would have arrived", LONG, passed).await;
}

#[test]
fn a_client_outlives_the_runtime_that_its_connections_lived_on() {
    let servers = Server::many::<5>();
    let dlm = client(servers.each_ref().map(Server::url));
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
    let masters = Masters::start(Fault::Hung);
    // So that it takes a while to connect.
    masters.proxy.delay(Duration::from_millis(20));
    let mut guards = Vec::new();
    for _ in 0..20 {
        let guard = masters.dlm.try_lock(unique("resource"), TTL).await;
        let guard = guard.expect("two masters are well");
        guard.extend(2 * TTL).await.expect("two masters are well");
        guards.push(guard);
    }
    masters.proxy.resume();
    masters.third_votes_within(LONG).await;
    // Answers come in order, so with those to the last release all have come.
    assert_eq!(masters.dlm.shutdown(LONG).await, 0);
    drop(guards);
    masters.nothing_is_left().await;
}

/// Reconnecting takes a round trip more than connecting, since the connection before is closed at the master.
#[tokio::test]
async fn a_master_far_away_that_broke_once_comes_back() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    proxy.delay(Duration::from_millis(70));
    let dlm = client([proxy.url()]);
    let locks = async || dlm.lock(unique("resource"), TTL).await.is_ok();
    assert!(locks().await, "it connects");
    proxy.cut();
    eventually_async("it is back", LONG, locks).await;
}
