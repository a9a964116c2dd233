//! The spans and events of the crate.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::cmd;
use support::{LONG, Logs, Masters, Server, Servers, ask_every_thread, eventually_async, unique};
use tokio::runtime::Handle;
use tokio_redlock::{KeepAlive, LockError, Redlock, RedlockBuilder, ReleaseError, RetryPolicy};
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, set_default};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Longer than any test runs.
const TTL: Duration = Duration::from_secs(120);

const MS: Duration = Duration::from_millis(1);

const FOREIGN: &str = "foreign";

/// Options of a client that runs where the test captures what is logged.
fn builder(masters: &Masters) -> RedlockBuilder {
    masters.builder().runtime(Handle::current())
}

/// A client that a busy machine does not make impatient.
fn client(masters: &Masters) -> Redlock {
    let builder = builder(masters).request_timeout(LONG);
    builder.build().expect("valid masters")
}

/// One that soon knows of a master that it hangs.
fn hasty_client(masters: &Masters) -> Redlock {
    let builder = builder(masters).request_timeout(1_000 * MS);
    builder.build().expect("valid masters")
}

/// The events of a level whose line contains that.
fn lines(logs: &Logs, level: &str, part: &str) -> Vec<String> {
    let text = logs.text();
    let lines = text.lines().filter(|line| {
        let level = line.split_whitespace().nth(1) == Some(level);
        level && line.contains(part)
    });
    lines.map(str::to_owned).collect()
}

fn of_level(logs: &Logs, level: &str) -> Vec<String> {
    lines(logs, level, "")
}

/// What the crate's spans had to say, each when it was closed.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

#[derive(Clone, Default)]
struct Span {
    name: &'static str,
    fields: BTreeMap<&'static str, String>,
}

impl Spans {
    fn capture() -> (Self, DefaultGuard) {
        ask_every_thread();
        let spans = Self::default();
        let subscriber = tracing_subscriber::registry().with(spans.clone());
        (spans, set_default(subscriber))
    }

    /// The only one since the last look.
    fn only(&self) -> Span {
        let spans = std::mem::take(&mut *self.0.lock().unwrap());
        let names: Vec<_> = spans.iter().map(|span| span.name).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        spans[0].clone()
    }
}

impl Span {
    fn assert(&self, name: &str, resource: &str, outcome: &str) {
        assert_eq!(self.name, name);
        assert_eq!(self.fields["resource"], resource);
        assert_eq!(self.fields["outcome"], outcome);
        let elapsed = &self.fields["elapsed"];
        assert!(elapsed.ends_with('s'), "{elapsed}");
        assert!(
            elapsed.starts_with(|it: char| it.is_ascii_digit()),
            "{elapsed}"
        );
    }
}

impl Visit for Span {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let metadata = attributes.metadata();
        if metadata.target().starts_with("tokio_redlock") {
            let name = metadata.name();
            let fields = BTreeMap::new();
            let mut span = Span { name, fields };
            attributes.record(&mut span);
            let entry = context.span(id).expect("a new span");
            entry.extensions_mut().insert(span);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let entry = context.span(id).expect("an open span");
        if let Some(span) = entry.extensions_mut().get_mut::<Span>() {
            values.record(span);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let entry = context.span(&id).expect("a span about to go");
        let span = entry.extensions_mut().remove::<Span>();
        self.0.lock().unwrap().extend(span);
    }
}

#[tokio::test]
async fn a_lock_is_one_span_that_tells_how_it_went() {
    let mut masters = Masters::start(3);
    let dlm = client(&masters);
    let resource = unique("resource");
    let (spans, _subscribed) = Spans::capture();

    let guard = dlm.lock(&resource, TTL).await.unwrap();
    let span = spans.only();
    span.assert("lock", &resource, "granted");
    assert_eq!(span.fields["attempts"], "1");
    assert_eq!(span.fields["ttl"], "120s");

    let three = RetryPolicy::new().delay(MS, MS).max_attempts(3);
    let taken = dlm.lock(&resource, TTL).retry(three).await;
    assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
    let span = spans.only();
    span.assert("lock", &resource, "taken");
    assert_eq!(span.fields["attempts"], "3");

    drop(dlm.lock(&resource, Duration::ZERO).await.unwrap_err());
    spans.only().assert("lock", &resource, "bad ttl");

    masters[1..].iter_mut().for_each(Server::kill);
    let other = unique("resource");
    drop(dlm.try_lock(&other, TTL).await.unwrap_err());
    spans.only().assert("lock", &other, "unreachable");
    drop(guard);
}

#[tokio::test]
async fn an_extension_is_one_span_that_tells_how_it_went() {
    let mut masters = Masters::start(3);
    let dlm = builder(&masters).request_timeout(LONG).drift_factor(0.5);
    let dlm = dlm.build().unwrap();
    let resource = unique("resource");
    let (spans, _subscribed) = Spans::capture();
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    spans.only().assert("lock", &resource, "granted");

    guard.extend(2 * TTL).await.unwrap();
    let span = spans.only();
    span.assert("extend", &resource, "extended");
    assert_eq!(span.fields["ttl"], "240s");
    guard.extend(Duration::ZERO).await.unwrap_err();
    spans.only().assert("extend", &resource, "bad ttl");

    assert_eq!(dlm.shutdown(LONG).await, 0);
    masters
        .iter()
        .for_each(|server| server.set(&resource, FOREIGN));
    guard.extend(2 * TTL).await.unwrap_err();
    spans.only().assert("extend", &resource, "lost");

    let other = unique("resource");
    let expiring = dlm.lock(&other, Duration::from_secs(1)).await.unwrap();
    spans.only().assert("lock", &other, "granted");
    let expired = async || !expiring.is_valid();
    eventually_async("it expires", LONG, expired).await;
    expiring.extend(TTL).await.unwrap_err();
    spans.only().assert("extend", &other, "expired");

    let third = unique("resource");
    let guard = dlm.lock(&third, TTL).await.unwrap();
    spans.only().assert("lock", &third, "granted");
    masters[1..].iter_mut().for_each(Server::kill);
    guard.extend(2 * TTL).await.unwrap_err();
    spans.only().assert("extend", &third, "unconfirmed");
}

#[tokio::test]
async fn a_release_is_one_span_that_tells_how_it_went() {
    let mut masters = Masters::start(3);
    let dlm = client(&masters);
    let (spans, _subscribed) = Spans::capture();
    for outcome in ["released", "not held", "unconfirmed"] {
        let resource = unique("resource");
        let guard = dlm.lock(&resource, TTL).await.unwrap();
        spans.only().assert("lock", &resource, "granted");
        match outcome {
            "released" => {}
            "not held" => masters
                .iter()
                .for_each(|server| server.set(&resource, FOREIGN)),
            _ => masters[1..].iter_mut().for_each(Server::kill),
        }
        let released = guard.release().await;
        assert_eq!(released.is_ok(), outcome == "released", "{released:?}");
        spans.only().assert("release", &resource, outcome);
    }
}

#[tokio::test]
async fn contention_is_a_debug_event_per_attempt_within_the_span() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    let resource = unique("resource");
    let logs = Logs::capture();
    let guard = dlm.lock(&resource, TTL).await.unwrap();
    assert!(!logs.text().contains("not granted"), "{}", logs.text());

    let four = RetryPolicy::new().delay(MS, MS).max_attempts(4);
    let taken = dlm.lock(&resource, TTL).retry(four).await;
    assert!(matches!(taken, Err(LockError::Taken(_))), "{taken:?}");
    // After the last one there is nothing to wait for; the error says the rest.
    let events = lines(&logs, "DEBUG", "not granted");
    assert_eq!(events.len(), 3, "{}", logs.text());
    for event in events {
        assert!(event.contains(&resource), "{event}");
        assert!(event.contains("Taken"), "{event}");
        assert!(event.contains(&masters[0].addr()), "{event}");
        assert!(event.contains("refused"), "{event}");
    }
    assert!(of_level(&logs, "WARN").is_empty(), "{}", logs.text());
    drop(guard);
}

#[tokio::test]
async fn a_lock_that_goes_well_says_nothing_louder_than_debug() {
    let masters = Masters::start(3);
    let logs = Logs::capture();
    let dlm = client(&masters);
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    guard.extend(2 * TTL).await.unwrap();
    guard.release().await.unwrap();
    drop(dlm.lock(unique("resource"), TTL).await.unwrap());
    assert_eq!(dlm.shutdown(LONG).await, 0);
    for level in ["INFO", "WARN", "ERROR"] {
        assert!(of_level(&logs, level).is_empty(), "{}", logs.text());
    }
}

/// Locks and releases many times, with two of three masters well.
async fn use_often(dlm: &Redlock) {
    for _ in 0..20 {
        let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
        guard.extend(2 * TTL).await.unwrap();
        guard.release().await.unwrap();
    }
}

async fn answers_again(dlm: &Redlock, logs: &Logs) {
    let again = async || {
        use_often(dlm).await;
        !of_level(logs, "INFO").is_empty()
    };
    eventually_async("the master is back", LONG, again).await;
}

/// What is logged of one failure and its end, however many requests there were.
fn assert_failed_once(logs: &Logs, master: &Server) {
    let [warnings, infos] = ["WARN", "INFO"].map(|level| of_level(logs, level));
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("master fails"), "{warnings:?}");
    assert!(warnings[0].contains(&master.addr()), "{warnings:?}");
    assert_eq!(infos.len(), 1, "{infos:#?}");
    assert!(infos[0].contains("answers again"), "{infos:?}");
    assert!(infos[0].contains(&master.addr()), "{infos:?}");
}

#[tokio::test]
async fn a_master_that_dies_is_warned_of_once_and_told_when_it_is_back() {
    let mut masters = Masters::start(3);
    let dlm = client(&masters);
    use_often(&dlm).await;
    let logs = Logs::capture();
    masters[0].kill();
    use_often(&dlm).await;
    let warned = async || !of_level(&logs, "WARN").is_empty();
    eventually_async("it is warned of", LONG, warned).await;
    use_often(&dlm).await;
    assert!(of_level(&logs, "INFO").is_empty());
    masters[0].restart();
    answers_again(&dlm, &logs).await;
    use_often(&dlm).await;
    assert_failed_once(&logs, &masters[0]);
}

#[tokio::test]
async fn a_master_that_hangs_is_warned_of_once_and_told_when_it_is_back() {
    let masters = Masters::start(3);
    let dlm = hasty_client(&masters);
    use_often(&dlm).await;
    let logs = Logs::capture();
    masters[0].freeze();
    let warned = async || {
        use_often(&dlm).await;
        !of_level(&logs, "WARN").is_empty()
    };
    eventually_async("it is warned of", LONG, warned).await;
    use_often(&dlm).await;
    assert!(of_level(&logs, "INFO").is_empty());
    masters[0].thaw();
    answers_again(&dlm, &logs).await;
    use_often(&dlm).await;
    assert_failed_once(&logs, &masters[0]);
}

#[tokio::test]
async fn a_master_that_hangs_until_its_connection_is_given_up_is_warned_of_once() {
    let masters = Masters::start(3);
    let dlm = hasty_client(&masters);
    use_often(&dlm).await;
    // The old connection comes back to life while the new one is being opened: another race each time.
    for _ in 0..4 {
        let logs = Logs::capture();
        masters[0].freeze();
        // Longer than it is waited for a sign of life.
        let start = Instant::now();
        while start.elapsed() < 1_500 * MS {
            use_often(&dlm).await;
        }
        masters[0].thaw();
        answers_again(&dlm, &logs).await;
        use_often(&dlm).await;
        assert_eq!(dlm.shutdown(LONG).await, 0);
        assert_failed_once(&logs, &masters[0]);
    }
}

#[tokio::test]
async fn a_master_that_is_always_late_is_warned_of_a_few_times() {
    let masters = Masters::start(3).with_proxies([0]);
    let proxy = masters.proxy(0);
    let dlm = builder(&masters).request_timeout(100 * MS).build().unwrap();
    use_often(&dlm).await;
    let logs = Logs::capture();
    proxy.delay_answers(150 * MS);
    let start = Instant::now();
    while start.elapsed() < 1_000 * MS {
        use_often(&dlm).await;
    }
    // While replies keep coming it is not silent, and between two bursts it is.
    let warnings = of_level(&logs, "WARN");
    assert!((1..=5).contains(&warnings.len()), "{warnings:#?}");
    proxy.resume();
    answers_again(&dlm, &logs).await;
}

#[tokio::test]
async fn a_master_whose_given_connection_fails_is_warned_of_once() {
    let mut masters = Masters::start(3);
    let mut given = Redlock::builder()
        .runtime(Handle::current())
        .request_timeout(LONG);
    for server in &masters {
        let client = redis::Client::open(server.url()).unwrap();
        let connection = client.get_multiplexed_async_connection().await;
        given = given.connection(connection.unwrap());
    }
    let dlm = given.build().unwrap();
    use_often(&dlm).await;
    let logs = Logs::capture();
    masters[0].kill();
    let warned = async || {
        use_often(&dlm).await;
        !of_level(&logs, "WARN").is_empty()
    };
    eventually_async("it is warned of", LONG, warned).await;
    use_often(&dlm).await;
    let warnings = of_level(&logs, "WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(of_level(&logs, "INFO").is_empty(), "{}", logs.text());
}

#[tokio::test]
async fn a_lock_that_was_kept_alive_and_is_lost_is_a_warning() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    let resource = unique("resource");
    let request = dlm.lock(&resource, 1_000 * MS).keep_alive(KeepAlive::new());
    let guard = request.await.unwrap();
    masters.eventually_hold(&guard).await;
    let logs = Logs::capture();
    assert!(masters.iter().all(|server| server.del(&resource)));
    guard.lost().await;
    let warned = async || !lines(&logs, "WARN", "kept alive is lost").is_empty();
    eventually_async("it is warned of", LONG, warned).await;
    assert!(
        lines(&logs, "WARN", &resource).len() == 1,
        "{}",
        logs.text()
    );
}

#[tokio::test]
async fn every_failure_of_a_master_is_warned_of() {
    let mut masters = Masters::start(3);
    let dlm = client(&masters);
    use_often(&dlm).await;
    for _ in 0..2 {
        let logs = Logs::capture();
        masters[2].kill();
        let warned = async || {
            use_often(&dlm).await;
            !of_level(&logs, "WARN").is_empty()
        };
        eventually_async("it is warned of", LONG, warned).await;
        masters[2].restart();
        answers_again(&dlm, &logs).await;
        assert_failed_once(&logs, &masters[2]);
    }
}

/// Such a master refuses to set keys, and answers everything else.
#[tokio::test]
async fn a_master_that_only_reads_is_warned_of_once() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    use_often(&dlm).await;
    let logs = Logs::capture();
    masters[0].query::<()>(cmd("REPLICAOF").arg(&["127.0.0.1", "1"]));
    use_often(&dlm).await;
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let warnings = of_level(&logs, "WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("read only replica"), "{warnings:?}");
    assert!(of_level(&logs, "INFO").is_empty(), "{}", logs.text());
}

/// A user that may set keys and run no script, so that releases fail.
#[tokio::test]
async fn a_master_that_forbids_scripts_is_warned_of_once() {
    let masters = Masters::start(3);
    let dlm = client(&masters);
    use_often(&dlm).await;
    let logs = Logs::capture();
    masters[0].query::<()>(cmd("ACL").arg(&["SETUSER", "default", "-evalsha", "-eval"]));
    use_often(&dlm).await;
    let warnings = lines(&logs, "WARN", "master fails");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(of_level(&logs, "INFO").is_empty(), "{}", logs.text());
}

#[tokio::test]
async fn background_releases_that_a_master_did_not_confirm_in_time_are_warned_of_once_with_their_number()
 {
    let mut masters = Masters::start(3);
    let dlm = client(&masters);
    let mut guards = Vec::new();
    for _ in 0..5 {
        let guard = dlm.lock(unique("resource"), Duration::from_secs(2)).await;
        guards.push(guard.unwrap());
    }
    for guard in &guards {
        masters.eventually_hold(guard).await;
    }
    let logs = Logs::capture();
    masters[0].kill();
    drop(guards);
    let unconfirmed = || lines(&logs, "WARN", "did not confirm");
    let warned = async || !unconfirmed().is_empty();
    eventually_async("it is warned of", LONG, warned).await;
    let warnings = unconfirmed();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains(&masters[0].addr()), "{warnings:?}");
    assert!(warnings[0].contains("keys=5"), "{warnings:?}");
    assert!(warnings[0].contains("ttl"), "{warnings:?}");
}

#[tokio::test]
async fn a_background_release_that_a_master_confirmed_late_is_not_warned_of() {
    let masters = Masters::start(3);
    let dlm = builder(&masters).build().unwrap();
    let guard = dlm.lock(unique("resource"), TTL).await.unwrap();
    masters.eventually_hold(&guard).await;
    let logs = Logs::capture();
    masters[0].freeze();
    drop(guard);
    assert_eq!(dlm.shutdown(600 * MS).await, 1);
    masters[0].thaw();
    assert_eq!(dlm.shutdown(LONG).await, 0);
    assert!(masters[0].keys().is_empty());
    let text = logs.text();
    assert!(!text.contains("did not confirm"), "{text}");
}

#[tokio::test]
async fn a_release_that_was_waited_for_goes_on_in_the_background_and_warns_too() {
    let mut masters = Masters::start(3);
    let dlm = client(&masters);
    let guard = dlm.lock("resource", Duration::from_secs(2)).await.unwrap();
    masters.eventually_hold(&guard).await;
    let logs = Logs::capture();
    masters[1..].iter_mut().for_each(Server::kill);
    let released = guard.release().await;
    assert!(
        matches!(released, Err(ReleaseError::Unconfirmed { .. })),
        "{released:?}"
    );
    let warned = async || !lines(&logs, "WARN", "did not confirm").is_empty();
    eventually_async("it is warned of", LONG, warned).await;
}
