//! One of five masters answers with errors, or holds back writes: paced locks.

use std::thread::sleep;
use std::time::Duration;

use redis::cmd;

use crate::child::{Child, Collapse};
use crate::fake::{Errors, Fake, LOCKING};
use crate::library::Library;
use crate::masters::Masters;
use crate::options::Options;
use crate::order::{Counts, Order, SETTLE_LIMIT, STOP_LIMIT, float};
use crate::table::{Table, time};
use crate::verdicts::Verdicts;

/// Locks per second.
const RATE: u32 = 2_000;

/// By default, in seconds.
const SPAN: u64 = 60;

/// Before the fault.
const WARM_UP: Duration = Duration::from_secs(2);

/// How long the master is watched after the load, beginning a moment later.
const IDLE: Duration = Duration::from_secs(5);
const MOMENT: Duration = Duration::from_secs(1);

/// Lines of level INFO and above, less than that.
const LOG_LINES: f64 = 20.0;

/// Per second, without load.
const LISTS: f64 = 1.0;

#[derive(Clone, Copy)]
enum Kind {
    Answers(&'static str, Errors),
    /// `CLIENT PAUSE WRITE`.
    Paused,
}

const KINDS: [Kind; 5] = [
    Kind::Answers(
        "MOVED",
        Errors {
            commands: LOCKING,
            answer: "-MOVED 1 127.0.0.1:1\r\n",
        },
    ),
    Kind::Answers(
        "CLUSTERDOWN",
        Errors {
            commands: LOCKING,
            answer: "-CLUSTERDOWN The cluster is down\r\n",
        },
    ),
    Kind::Answers(
        "unknown EVALSHA",
        Errors {
            commands: &["EVALSHA", "SCRIPT"],
            answer: "-ERR unknown command 'evalsha'\r\n",
        },
    ),
    Kind::Answers(
        "upstream failure",
        Errors {
            commands: LOCKING,
            answer: "-ERR upstream failure\r\n",
        },
    ),
    Kind::Paused,
];

struct Measured {
    before: Counts,
    /// At the end of all.
    after: Counts,
    stuck: u64,
    /// Per second, without load.
    commands: f64,
    lists: f64,
    /// In MiB.
    growth: f64,
    settled_after: Duration,
    keys_left: Option<u64>,
}

pub(crate) fn print(options: &Options, verdicts: &mut Verdicts) {
    let span = options.seconds_or(SPAN);
    let header = [
        "the master",
        "locked",
        "failed locks",
        "failed releases",
        "stuck",
        "log lines",
        "commands/s when idle",
        "lists/s when idle",
        "memory growth, MiB",
        "shutdown",
        "unconfirmed",
        "keys left",
    ];
    let title = format!("errors: one of five masters, {RATE} locks a second");
    let mut table = Table::new(title, header);
    let mut collapses = Vec::new();
    for kind in KINDS {
        match measure(kind, span) {
            Ok(measured) => table.row(measured.row(kind.name(), verdicts)),
            Err(collapse) => {
                verdicts.miss(&format!("errors, {}", kind.name()), &collapse.to_string());
                collapses.push(format!("{}: {collapse}", kind.name()));
            }
        }
    }
    table.print(&format!(
        "{span:?} of load with the fault, after {WARM_UP:?} without. Log lines: INFO and above. Idle: {IDLE:?} without load, \
         in which the master is still faulty; what comes within 100 ms is a list. Shutdown: with the fault, after that. \
         Keys left: {MOMENT:?} after the fault, on all masters."
    ));
    for collapse in collapses {
        println!("- {collapse}");
    }
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Answers(name, _) => name,
            Self::Paused => "CLIENT PAUSE WRITE",
        }
    }
}

fn measure(kind: Kind, span: Duration) -> Result<Measured, Collapse> {
    let masters = Masters::start();
    let server = &masters.0[0];
    let passes = Errors {
        commands: &[],
        answer: "",
    };
    let fake = match kind {
        Kind::Answers(_, errors) => Fake::start(server, errors),
        Kind::Paused => Fake::start(server, passes),
    };
    let mut urls = masters.urls();
    urls[0] = fake.url();
    let mut child = Child::start(Library::Crate, &urls)?;
    child.order(Order::Pace(RATE))?;
    sleep(WARM_UP);
    let (before, usage_before) = (child.look()?, child.usage());

    match kind {
        Kind::Answers(..) => fake.fail(),
        Kind::Paused => {
            // Until it is ended.
            let pause = 2 * (span + STOP_LIMIT + MOMENT + IDLE + SETTLE_LIMIT);
            let pause = u64::try_from(pause.as_millis()).expect("some minutes");
            server.query::<()>(cmd("CLIENT").arg("PAUSE").arg(pause).arg("WRITE"));
        }
    }
    sleep(span);
    let stopped = child.order(Order::Stop)?;
    sleep(MOMENT);
    let (commands_before, lists_before) = fake.counts();
    sleep(IDLE);
    let (commands, lists) = fake.counts();
    let growth = child.usage().growth_since(&usage_before);
    let settling = child.look()?;
    let after = child.order(Order::Settle)?;

    match kind {
        Kind::Answers(..) => fake.pass(),
        Kind::Paused => server.query::<()>(cmd("CLIENT").arg("UNPAUSE")),
    }
    sleep(MOMENT);
    let per_second = |count: u64| float(count) / IDLE.as_secs_f64();
    Ok(Measured {
        before,
        after,
        stuck: stopped.running,
        commands: per_second(commands - commands_before),
        lists: per_second(lists - lists_before),
        growth,
        settled_after: after.at - settling.at,
        keys_left: masters.keys(),
    })
}

impl Measured {
    fn row(&self, kind: &str, verdicts: &mut Verdicts) -> [String; 12] {
        let (before, after) = (&self.before, &self.after);
        let what = |figure: &str| format!("errors, {kind}: {figure}");
        let failed = float(after.not_locked - before.not_locked);
        let log_lines = float(after.log_lines - before.log_lines);
        [
            kind.to_owned(),
            (after.locked - before.locked).to_string(),
            verdicts.at_most(&what("failed locks"), failed, 0.0),
            (after.not_released - before.not_released).to_string(),
            self.stuck.to_string(),
            verdicts.below(&what("log lines"), log_lines, LOG_LINES),
            format!("{:.1}", self.commands),
            verdicts.at_most(&what("lists per second when idle"), self.lists, LISTS),
            format!("{:.1}", self.growth),
            time(self.settled_after.as_secs_f64()),
            after.unconfirmed.to_string(),
            self.keys_left
                .map_or("-".to_owned(), |keys| keys.to_string()),
        ]
    }
}
