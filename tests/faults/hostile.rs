//! Masters that answer nonsense, nothing or too much: the client neither panics nor hangs, and counts no such answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use redis::aio::ConnectionLike;
use redis::{Arg, Cmd, RedisResult, Value as Reply};
use support::{AnsweredBy, LONG};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use tokio_redlock::testing::{Connection, Fault, Masters};
use tokio_redlock::{
    Ballots, ExtendError, LockError, Redlock, RedlockBuilder, ReleaseError, RetryPolicy, Vote,
    redis,
};

const TTL: Duration = Duration::from_secs(10);

/// Long enough for honest answers on a machine that reads megabytes of others meanwhile.
const TIMEOUT: Duration = Duration::from_secs(2);

/// So many cases are tried at a time.
const AT_ONCE: usize = 8;

/// What a master that mixes up the order answers to one request, meant for another.
const MEANT_FOR_A_SET: [&[u8]; 2] = [b"+OK\r\n", b"$-1\r\n"];
const MEANT_FOR_A_SCRIPT: [&[u8]; 3] = [b":0\r\n", b":1\r\n", b":2\r\n"];

/// Answers that are neither a yes nor a no to any request. A negative length is not among them: the client reads any
/// as nil, which is a no.
fn nonsense() -> Vec<Vec<u8>> {
    let mut nonsense: Vec<Vec<u8>> = [
        // Of the wrong type, or nearly right.
        "$2\r\nOK\r\n",
        "$1\r\n1\r\n",
        "+1\r\n",
        "+ok\r\n",
        "+QUEUED\r\n",
        "+\r\n",
        ":3\r\n",
        ":-1\r\n",
        ":3\r\n:3\r\n",
        "*0\r\n",
        "*1\r\n+OK\r\n",
        "*2\r\n:1\r\n:1\r\n",
        "%1\r\n+OK\r\n:1\r\n",
        "#t\r\n",
        ",1\r\n",
        "(1\r\n",
        "=6\r\ntxt:OK\r\n",
        // An error in place of a value, or within one.
        "-ERR no\r\n",
        "-\r\n",
        "-OK\r\n",
        "*1\r\n-ERR no\r\n",
        "!2\r\nOK\r\n",
        // No answer to the request at all.
        "",
        ">2\r\n+message\r\n+OK\r\n",
        // Cut off.
        "+O",
        "$5\r\nab",
        "*2\r\n:1\r\n",
        "$536870912\r\nab",
        "*1000000000\r\n:1\r\n",
        // No protocol of ours.
        "OK\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        ":99999999999999999999\r\n",
        "\r\n\r\n\r\n",
    ]
    .map(Vec::from)
    .into();
    nonsense.push(b"\x00\xff\xfe\r\n".repeat(3));
    nonsense.push(b"*1\r\n".repeat(100_000));
    nonsense.push([&b"$8388608\r\n"[..], &[b'O'; 8 << 20], b"\r\n"].concat());
    nonsense
}

/// A server that takes part in the opening of a connection, and then answers some requests with the same bytes. Counts
/// the requests to set a key.
async fn serve(
    names: &'static [&'static str],
    answer: Vec<u8>,
    sets: Arc<Semaphore>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(talk(client, names, answer.clone(), Arc::clone(&sets)));
        }
    });
    address
}

async fn talk(
    client: TcpStream,
    names: &[&str],
    answer: Vec<u8>,
    sets: Arc<Semaphore>,
) -> Option<()> {
    let mut client = BufReader::new(client);
    loop {
        let name = read_command(&mut client).await?;
        if name == "SET" {
            sets.add_permits(1);
        }
        let answer = if names.contains(&&*name) {
            &answer
        } else {
            &b"+OK\r\n"[..]
        };
        client.write_all(answer).await.ok()?;
    }
}

/// The name of the next command.
async fn read_command(client: &mut BufReader<TcpStream>) -> Option<String> {
    let words = read_length(client).await?;
    let mut name = None;
    for _ in 0..words {
        let mut word = vec![0; read_length(client).await? + 2];
        client.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        name.get_or_insert(String::from_utf8_lossy(&word).into_owned());
    }
    name
}

async fn read_length(client: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    client.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim_end().parse().ok()
}

/// A client of so many hostile masters, which it is told first; and how many requests to set a key they have seen.
async fn hostile(
    masters: usize,
    names: &'static [&'static str],
    answer: &[u8],
) -> (RedlockBuilder, Arc<Semaphore>) {
    let sets = Arc::new(Semaphore::new(0));
    let mut builder = Redlock::builder()
        .request_timeout(TIMEOUT)
        .retry(RetryPolicy::once());
    for _ in 0..masters {
        let address = serve(names, answer.to_vec(), Arc::clone(&sets)).await;
        builder = builder.master(format!("redis://{address}"));
    }
    (builder, sets)
}

async fn try_all<F: Future<Output = ()>>(
    answers: impl IntoIterator<Item = Vec<u8>>,
    case: impl Fn(Vec<u8>) -> F,
) {
    let cases = stream::iter(answers).map(case);
    cases.buffer_unordered(AT_ONCE).collect::<()>().await;
}

fn counted(ballots: &Ballots) -> usize {
    let counts = |vote: &Vote| matches!(vote, Vote::Granted | Vote::Refused | Vote::Recreated);
    ballots.iter().filter(|ballot| counts(&ballot.vote)).count()
}

fn show(answer: &[u8]) -> String {
    String::from_utf8_lossy(&answer[..answer.len().min(40)]).into_owned()
}

#[tokio::test]
async fn nonsense_for_a_set_is_no_vote() {
    let mixed_up = MEANT_FOR_A_SCRIPT.map(Vec::from);
    let answers = nonsense().into_iter().chain(mixed_up);
    let case = async |answer: Vec<u8>| {
        let (dlm, _) = hostile(3, &["SET"], &answer).await;
        let dlm = dlm.build().unwrap();
        let start = Instant::now();
        let denied = timeout(LONG, dlm.lock("r", TTL)).await.expect("it ends");
        let Err(LockError::Unreachable(attempts)) = denied else {
            panic!("{:?}: {denied:?}", show(&answer));
        };
        assert_eq!(
            counted(&attempts.ballots),
            0,
            "{:?}: {attempts}",
            show(&answer)
        );
        assert!(start.elapsed() < LONG / 3, "{:?}", show(&answer));
        assert!(attempts.to_string().len() < 2_000);
    };
    try_all(answers, case).await;
}

#[tokio::test]
async fn nonsense_for_a_script_is_no_vote() {
    let mixed_up = MEANT_FOR_A_SET.map(Vec::from);
    let answers = nonsense().into_iter().chain(mixed_up);
    let case = async |answer: Vec<u8>| {
        let (dlm, sets) = hostile(3, &["EVALSHA", "EVAL"], &answer).await;
        let dlm = dlm.build().unwrap();
        let guard = dlm.lock("r", TTL).await.unwrap();
        // Where there was no request to set the key, there will be none to delete it.
        let all = timeout(LONG, sets.acquire_many(3)).await;
        all.expect("the slowest is asked too").unwrap().forget();
        match timeout(LONG, guard.extend(TTL)).await.expect("it ends") {
            Err(ExtendError::Unconfirmed { ballots, .. }) => {
                assert_eq!(counted(&ballots), 0, "{:?}: {ballots}", show(&answer));
            }
            other => panic!("{:?}: {other:?}", show(&answer)),
        }
        match timeout(LONG, guard.release()).await.expect("it ends") {
            Err(ReleaseError::Unconfirmed { ballots, .. }) => {
                assert_eq!(counted(&ballots), 0, "{:?}: {ballots}", show(&answer));
            }
            other => panic!("{:?}: {other:?}", show(&answer)),
        }
        timeout(LONG, dlm.inspect("r")).await.expect("it ends");
    };
    try_all(answers, case).await;
}

#[tokio::test]
async fn one_hostile_master_does_not_disturb_two_honest_ones() {
    let case = async |answer: Vec<u8>| {
        let masters = Masters::new(2);
        let names = &["SET", "EVALSHA", "EVAL"];
        let (dlm, _) = hostile(1, names, &answer).await;
        let dlm = dlm.testing(&masters).build().unwrap();
        let start = Instant::now();
        let guard = dlm.lock("r", TTL).await.unwrap();
        guard.extend(TTL).await.unwrap();
        guard.release().await.unwrap();
        assert!(start.elapsed() < LONG / 3, "{:?}", show(&answer));
        assert!(masters.iter().all(|master| master.keys().is_empty()));
    };
    try_all(nonsense(), case).await;
}

#[tokio::test(start_paused = true)]
async fn nonsense_from_a_connection_that_was_given_is_no_vote() {
    for answer in [
        Reply::Int(3),
        Reply::BulkString(b"OK".to_vec()),
        Reply::Array(vec![Reply::Okay; 3]),
        Reply::Map(vec![(Reply::Okay, Reply::Int(1))]),
        Reply::Boolean(true),
    ] {
        let masters = Masters::new(3);
        let dlm = Redlock::builder().testing(&masters).build().unwrap();
        for master in &masters[..2] {
            master.inject(Fault::Answer(answer.clone()));
        }
        let denied = dlm.try_lock("r", TTL).await;
        let Err(LockError::Unreachable(attempts)) = denied else {
            panic!("{answer:?}: {denied:?}");
        };
        let mut votes = attempts.ballots.iter().map(|ballot| &ballot.vote);
        assert!(
            votes
                .by_ref()
                .take(2)
                .all(|vote| matches!(vote, Vote::Failed(_)))
        );
    }
}

/// Has no room for a SET at first, and for everything else.
async fn send_crowded(mut connection: Connection, command: Cmd) -> RedisResult<Reply> {
    if command.args_iter().next() == Some(Arg::Simple(b"SET")) {
        for _ in 0..10 {
            yield_now().await;
        }
    }
    connection.req_packed_command(&command).await
}

#[tokio::test]
async fn a_connection_that_lets_requests_pass_each_other_leaves_nothing() {
    let masters = Masters::new(3);
    // Here, so that the client takes its steps when this test yields.
    let mut builder = Redlock::builder().runtime(Handle::current());
    for master in &masters[..] {
        let connection = master.connect();
        let crowded = AnsweredBy(move |command| send_crowded(connection.clone(), command));
        builder = builder.connection(crowded);
    }
    let dlm = builder.build().expect("three masters");
    drop(dlm.lock("warm", TTL).await.expect("granted"));
    assert_eq!(dlm.shutdown(TTL).await, 0);
    for polls in 1..30 {
        let mut lock = dlm.lock("r", TTL).into_future();
        for _ in 0..polls {
            if (&mut lock).now_or_never().is_some() {
                break;
            }
            yield_now().await;
        }
        drop(lock);
        assert_eq!(dlm.shutdown(TTL).await, 0);
        // A SET that was passed by its delete would come now.
        for _ in 0..30 {
            yield_now().await;
        }
        assert!(
            masters.iter().all(|master| master.keys().is_empty()),
            "{polls}"
        );
    }
}

/// Says that it is a server with a plain command for compare-and-delete. Counts the commands by their names.
async fn boasts(client: TcpStream, commands: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let info = "# Server\r\nredis_version:7.2.4\r\nvalkey_version:9.0.0\r\nrun_id:1\r\n";
    let info = format!("${}\r\n{info}\r\n", info.len());
    let mut client = BufReader::new(client);
    loop {
        let name = read_command(&mut client).await?;
        let answer = match &*name {
            "INFO" => &*info,
            "DELIFEQ" => "-ERR unknown command 'DELIFEQ', with args beginning with: 'r'\r\n",
            "EVALSHA" => ":1\r\n",
            _ => "+OK\r\n",
        };
        commands.lock().unwrap().push(name);
        client.write_all(answer.as_bytes()).await.ok()?;
    }
}

#[tokio::test]
async fn a_master_without_the_plain_delete_that_it_should_have_is_sent_the_script() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let commands = Arc::new(Mutex::new(Vec::new()));
    let served = Arc::clone(&commands);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(boasts(client, Arc::clone(&served)));
        }
    });
    let builder = Redlock::builder().master(url).request_timeout(LONG);
    let dlm = builder.build().unwrap();
    for _ in 0..3 {
        let guard = dlm.lock("r", TTL).await.expect("granted");
        guard.release().await.expect("deleted by the script");
    }
    assert_eq!(dlm.shutdown(LONG).await, 0);
    let commands = commands.lock().unwrap();
    let count = |name: &str| commands.iter().filter(|it| *it == name).count();
    assert_eq!(count("DELIFEQ"), 1, "it is asked for that once");
    assert_eq!(count("EVALSHA"), 3);
}
