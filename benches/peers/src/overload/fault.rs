//! One of five masters is frozen, or behind a slow network: the crate, beside the same time with five good masters.

use std::thread::sleep;
use std::time::Duration;

use crate::child::{Child, Collapse};
use crate::library::Library;
use crate::masters::Masters;
use crate::options::Options;
use crate::order::{Counts, Order, float};
use crate::proxy::Proxy;
use crate::table::{Table, per_second, time};
use crate::usage::Usage;
use crate::verdicts::Verdicts;

const TASKS: u32 = 64;

/// By default, in seconds.
const SPAN: u64 = 60;

/// How long after the end keys are counted.
const GRACE: Duration = Duration::from_secs(1);

/// Of the rate with five good masters.
const LEAST_RATE: f64 = 0.8;

/// In MiB.
const MOST_GROWTH: f64 = 32.0;

/// Lines of level WARN and above, less than that.
const WARNINGS: f64 = 20.0;

#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Frozen,
    /// So many bytes per second in each direction.
    Throttled(u32),
}

struct Measured {
    good: f64,
    bad: f64,
    /// In MiB.
    growth: f64,
    warnings: u64,
    failures: u64,
    stuck: u64,
    keys_left: Option<u64>,
    /// Before the fault, and after it.
    usage: [Usage; 2],
    settled_after: Duration,
    unconfirmed: u64,
}

pub(crate) fn print(fault: Fault, options: &Options, verdicts: &mut Verdicts) {
    let span = options.seconds_or(SPAN);
    let name = fault.name();
    let measured = match measure(fault, span) {
        Ok(measured) => measured,
        Err(collapse) => {
            println!("\n### {name}\n\n{collapse}");
            return verdicts.miss(&name, &collapse.to_string());
        }
    };
    let [before, after] = measured.usage;
    let header = ["", "figure"];
    let mut table = Table::new(
        format!("{name}: one of five masters, {TASKS} tasks"),
        header,
    );
    let mut row = |what: &str, figure: String| table.row([what.to_owned(), figure]);
    let what = |figure: &str| format!("{name}: {figure}");
    row("cycles, five good masters", per_second(measured.good));
    row("cycles with the fault", per_second(measured.bad));
    let ratio = measured.bad / measured.good;
    row(
        "ratio",
        verdicts.at_least(&what("ratio"), ratio, LEAST_RATE),
    );
    let growth = measured.growth;
    let growth = verdicts.at_most(&what("growth of peak memory, MiB"), growth, MOST_GROWTH);
    row("growth of peak memory, MiB", growth);
    let warnings = verdicts.below(&what("WARN lines"), float(measured.warnings), WARNINGS);
    row("WARN lines", warnings);
    let keys_left = measured.keys_left.map_or(f64::NAN, float);
    row(
        "keys left",
        verdicts.at_most(&what("keys left"), keys_left, 0.0),
    );
    row("failed locks and releases", measured.failures.to_string());
    row("stuck tasks", measured.stuck.to_string());
    row(
        "threads",
        format!("{}, then {}", before.threads, after.threads),
    );
    let descriptors = format!("{}, then {}", before.descriptors, after.descriptors);
    row("descriptors", descriptors);
    row("shutdown", time(measured.settled_after.as_secs_f64()));
    row("unconfirmed", measured.unconfirmed.to_string());
    table.print(&format!(
        "{span:?} with five good masters, then {span:?} with the fault, by the same process. Then the tasks are stopped and \
         the fault ends; keys, threads and descriptors are counted {GRACE:?} later, and only then is the client shut down."
    ));
}

fn measure(fault: Fault, span: Duration) -> Result<Measured, Collapse> {
    let masters = Masters::start();
    let server = &masters.0[0];
    let proxy = Proxy::start(server);
    let mut urls = masters.urls();
    if matches!(fault, Fault::Throttled(_)) {
        urls[0] = proxy.url();
    }
    let mut child = Child::start(Library::Crate, &urls)?;
    child.order(Order::Tasks(TASKS))?;
    let began = child.look()?;
    sleep(span);
    let good = child.look()?;
    let before = child.usage();

    match fault {
        Fault::Frozen => server.freeze(),
        Fault::Throttled(rate) => proxy.limit(rate),
    }
    let bad = faulty(&mut child, span);
    // A frozen master would not notice that it is asked to end.
    match fault {
        Fault::Frozen => server.thaw(),
        Fault::Throttled(_) => proxy.limit(0),
    }
    let (bad_from, bad, stopped) = bad?;
    sleep(GRACE);
    let keys_left = masters.keys();
    let after = child.usage();
    let settling = child.look()?;
    let settled = child.order(Order::Settle)?;
    Ok(Measured {
        good: good.rate_since(&began),
        bad: bad.rate_since(&bad_from),
        growth: after.growth_since(&before),
        warnings: settled.warnings - good.warnings,
        failures: settled.failures(),
        stuck: stopped.running,
        keys_left,
        usage: [before, after],
        settled_after: settled.at - settling.at,
        unconfirmed: settled.unconfirmed,
    })
}

/// The counts when the fault begins, when it has lasted for the span, and when the tasks have stopped.
fn faulty(child: &mut Child, span: Duration) -> Result<(Counts, Counts, Counts), Collapse> {
    let from = child.look()?;
    sleep(span);
    Ok((from, child.look()?, child.order(Order::Stop)?))
}

impl Fault {
    fn name(self) -> String {
        match self {
            Self::Frozen => "frozen".to_owned(),
            Self::Throttled(rate) => format!("throttled to {} kB/s", rate / 1_000),
        }
    }
}
