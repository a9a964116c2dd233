//! Locks that are kept alive beside many tasks.

use std::thread::sleep;
use std::time::Duration;

use crate::child::{Child, Collapse};
use crate::library::{Library, TTL};
use crate::masters::Masters;
use crate::options::Options;
use crate::order::{Counts, Order, float};
use crate::table::{Table, per_second};
use crate::verdicts::Verdicts;

const LOCKS: u32 = 1_000;

const TASKS: u32 = 20_000;

/// By default, in seconds.
const SPAN: u64 = 60;

pub(crate) fn print(options: &Options, verdicts: &mut Verdicts) {
    let span = options.seconds_or(SPAN);
    let title = format!("held: {LOCKS} locks kept alive beside {TASKS} tasks, {span:?}");
    let (before, after) = match measure(span) {
        Ok(counts) => counts,
        Err(collapse) => {
            println!("\n### {title}\n\n{collapse}");
            return verdicts.miss("held", &collapse.to_string());
        }
    };
    let lost = u64::from(LOCKS) - before.held + after.lost;
    let lost = verdicts.at_most("held: locks lost, or not granted", float(lost), 0.0);
    let mut table = Table::new(title, ["", "figure"]);
    let mut row = |what: &str, figure: String| table.row([what.to_owned(), figure]);
    row("locks lost, or not granted", lost);
    row("cycles", per_second(after.rate_since(&before)));
    row("failed locks and releases", after.failures().to_string());
    table.print(&format!(
        "The ttl is {TTL:?}. Lost locks are counted at the end; a lost lock stays lost."
    ));
}

fn measure(span: Duration) -> Result<(Counts, Counts), Collapse> {
    let masters = Masters::start();
    let mut child = Child::start(Library::Crate, &masters.urls())?;
    let ttl = u32::try_from(TTL.as_secs()).expect("some seconds");
    let before = child.order(Order::Hold(LOCKS, ttl))?;
    child.order(Order::Tasks(TASKS))?;
    sleep(span);
    Ok((before, child.look()?))
}
