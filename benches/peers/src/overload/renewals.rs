//! What it costs to keep many locks alive.

use std::thread::sleep;
use std::time::Duration;

use crate::child::{Child, Collapse};
use crate::library::Library;
use crate::masters::Masters;
use crate::options::Options;
use crate::order::{Counts, Order, float};
use crate::table::Table;
use crate::usage::Usage;
use crate::verdicts::Verdicts;

const LOCKS: u32 = 100_000;

/// In seconds.
const TTL: u32 = 30;

/// By default, in seconds: each lock is renewed three times.
const SPAN: u64 = 30;

/// Of one core, less than that.
const CPU: f64 = 0.33;

pub(crate) fn print(options: &Options, verdicts: &mut Verdicts) {
    let span = options.seconds_or(SPAN);
    let title = format!("renewals: {LOCKS} locks kept alive, ttl {TTL} s, {span:?}");
    let (before, after, usage) = match measure(span) {
        Ok(measured) => measured,
        Err(collapse) => {
            println!("\n### {title}\n\n{collapse}");
            return verdicts.miss("renewals", &collapse.to_string());
        }
    };
    let cpu = (after.cpu - before.cpu).as_secs_f64() / (after.at - before.at).as_secs_f64();
    let lost = u64::from(LOCKS) - before.held + after.lost;
    let mut table = Table::new(title, ["", "figure"]);
    let mut row = |what: &str, figure: String| table.row([what.to_owned(), figure]);
    let cpu = verdicts.below("renewals: share of a core", cpu, CPU);
    row("client CPU, share of a core", cpu);
    let lost = verdicts.at_most("renewals: locks lost, or not granted", float(lost), 0.0);
    row("locks lost, or not granted", lost);
    row("peak memory, MiB", format!("{:.0}", usage.peak_mebibytes()));
    table.print("Measured once all locks are taken.");
}

fn measure(span: Duration) -> Result<(Counts, Counts, Usage), Collapse> {
    let masters = Masters::start();
    let mut child = Child::start(Library::Crate, &masters.urls())?;
    let before = child.order(Order::Hold(LOCKS, TTL))?;
    sleep(span);
    Ok((before, child.look()?, child.usage()))
}
