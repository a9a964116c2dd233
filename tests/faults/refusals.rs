//! Masters that reply an error to what they are asked: the others decide, and what such a master is asked again comes at a
//! pace.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, Value as Reply};
use support::AnsweredBy;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tokio_redlock::testing::Masters;
use tokio_redlock::{Redlock, redis};

/// So long that no key goes by itself while a test runs.
const TTL: Duration = Duration::from_secs(60);

/// Three masters in memory, of which the first replies an error to some commands, and what it was sent.
struct Refusing {
    masters: Masters,
    dlm: Redlock,
    refused: Arc<Mutex<Refused>>,
    deletes: Arc<AtomicUsize>,
}

/// The name of the commands that are refused, and the error.
type Refused = Option<(&'static str, &'static str)>;

impl Refusing {
    fn new() -> Self {
        let (masters, refused) = (Masters::new(3), Arc::<Mutex<Refused>>::default());
        let deletes = Arc::new(AtomicUsize::new(0));
        let mut builder = Redlock::builder().runtime(Handle::current());
        let (first, others) = masters.split_first().expect("three masters");
        let connection = first.connect();
        let (error, count) = (Arc::clone(&refused), Arc::clone(&deletes));
        builder = builder.connection(AnsweredBy(move |command: Cmd| {
            let is = |name: &str| command.args_iter().next() == Some(Arg::Simple(name.as_bytes()));
            if is("EVALSHA") || is("EVAL") {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let error = *error.lock().unwrap();
            let error = error.filter(|(name, _)| is(name));
            let mut connection = connection.clone();
            async move {
                match error {
                    Some((_, error)) => {
                        redis::parse_redis_value(error.as_bytes()).and_then(Reply::extract_error)
                    }
                    None => connection.req_packed_command(&command).await,
                }
            }
        }));
        for master in others {
            builder = builder.connection(master.connect());
        }
        Self {
            dlm: builder.build().unwrap(),
            masters,
            refused,
            deletes,
        }
    }

    /// Replies this to all commands of that name from now on.
    fn refuse(&self, name: &'static str, error: &'static str) {
        *self.refused.lock().unwrap() = Some((name, error));
    }

    fn accept(&self) {
        *self.refused.lock().unwrap() = None;
    }

    fn deletes(&self) -> usize {
        self.deletes.load(Ordering::Relaxed)
    }
}

/// It has set nothing, so nothing is deleted there.
#[tokio::test(start_paused = true)]
async fn a_master_that_refuses_to_set_a_key_is_owed_no_delete() {
    for error in [
        "-MOVED 3999 127.0.0.1:6381\r\n",
        "-ASK 3999 127.0.0.1:6381\r\n",
        "-CLUSTERDOWN The cluster is down\r\n",
        "-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        "-LOADING Redis is loading the dataset in memory\r\n",
        "-READONLY You can't write against a read only replica.\r\n",
    ] {
        let refusing = Refusing::new();
        let dlm = &refusing.dlm;
        refusing.refuse("SET", error);
        let start = Instant::now();
        for number in 0..20 {
            let guard = dlm.lock(number.to_string(), TTL).await.expect(error);
            match number % 2 {
                0 => guard.release().await.expect(error),
                _ => drop(guard),
            }
        }
        assert_eq!(dlm.shutdown(TTL).await, 0, "{error}");
        assert_eq!(start.elapsed(), Duration::ZERO, "{error}");
        assert_eq!(refusing.deletes(), 0, "{error}");
        assert!(refusing.masters.iter().all(|it| it.keys().is_empty()));
    }
}

/// An error that may come after the key was set is no such refusal.
#[tokio::test(start_paused = true)]
async fn a_master_that_may_have_set_the_key_is_sent_the_delete() {
    let refusing = Refusing::new();
    refusing.refuse("SET", "-ERR something went wrong\r\n");
    let guard = refusing.dlm.lock("r", TTL).await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(refusing.dlm.shutdown(TTL).await, 0);
    assert!(refusing.deletes() > 0);
}

#[tokio::test(start_paused = true)]
async fn deletes_that_a_master_refuses_are_sent_again_once_a_second_until_it_takes_them() {
    const OWED: usize = 100;
    let refusing = Refusing::new();
    let dlm = &refusing.dlm;
    let mut guards = Vec::new();
    for number in 0..OWED {
        guards.push(dlm.lock(number.to_string(), TTL).await.unwrap());
    }
    sleep(Duration::from_millis(1)).await;
    refusing.refuse(
        "EVALSHA",
        "-LOADING Redis is loading the dataset in memory\r\n",
    );
    drop(guards);
    assert_eq!(dlm.shutdown(Duration::ZERO).await, OWED);
    for second in 1..=10 {
        sleep(Duration::from_secs(1)).await;
        let deletes = refusing.deletes();
        // At first each release sends its own delete. A list of them ends with the first batch that is all refused.
        assert!(deletes <= OWED * (second + 2), "{deletes} after {second} s");
        assert!(deletes >= OWED + second, "{deletes} after {second} s");
    }
    assert_eq!(refusing.masters[0].keys().len(), OWED);
    refusing.accept();
    assert_eq!(dlm.shutdown(Duration::from_secs(2)).await, 0);
    assert!(refusing.masters.iter().all(|it| it.keys().is_empty()));
    // The losing case of the pace: nothing is sent any more.
    let before = refusing.deletes();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(refusing.deletes(), before);
}
