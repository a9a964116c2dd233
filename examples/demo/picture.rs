//! The picture of a moment.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::Result;
use crate::contender::TASKS;
use crate::demo::Demo;
use crate::fault::{REST, SCHEDULE};
use crate::note::Note;
use crate::{master, worker};

const BOLD: u8 = 1;
const DIM: u8 = 2;
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;

const BARS: u32 = 60;
const BAR: Duration = Duration::from_millis(250);

/// How many notes are shown, the latest.
const NOTES: usize = 4;

/// What is seen on a master when looking: what stands there for the lock, if anything.
pub(crate) type Sight = Result<Option<String>>;

pub(crate) fn draw(demo: &Demo, sights: &[Sight]) -> Result<String> {
    let mut picture = String::new();
    head(&mut picture, demo)?;
    masters(&mut picture, demo, sights)?;
    workers(&mut picture, demo)?;
    bars(&mut picture, demo)?;
    notes(&mut picture, demo)?;
    Ok(picture)
}

fn head(out: &mut String, demo: &Demo) -> fmt::Result {
    let name = paint(BOLD, "tokio-redlock");
    let (masters, workers) = (demo.masters.len(), demo.workers.len());
    let elapsed = demo.elapsed().as_secs_f64();
    let pauses: Duration = SCHEDULE.iter().map(|(pause, _)| pause).sum();
    let total = (pauses + REST).as_secs();
    write!(out, "{name}  one lock, {masters} masters, ")?;
    write!(out, "{workers} processes of {TASKS} tasks")?;
    writeln!(out, "  {elapsed:>6.1} s of {total}\n")
}

fn masters(out: &mut String, demo: &Demo, sights: &[Sight]) -> fmt::Result {
    for (number, (master, sight)) in (1..).zip(demo.masters.iter().zip(sights)) {
        let port = master.port();
        let state = match master.state() {
            master::State::Up => paint(GREEN, "up    "),
            master::State::Killed => paint(RED, "KILLED"),
            master::State::Frozen => paint(YELLOW, "FROZEN"),
        };
        let key = match sight {
            Err(_) => "does not answer".to_owned(),
            Ok(None) => "no key".to_owned(),
            Ok(Some(value)) => match demo.holder_with(value) {
                Some(number) => format!("held by worker {number}"),
                // It is just changing hands; or somebody asks in vain.
                None => "asked for".to_owned(),
            },
        };
        writeln!(out, "  master {number}  port {port}  {state}  {key}")?;
    }
    writeln!(out)
}

fn workers(out: &mut String, demo: &Demo) -> fmt::Result {
    for (number, worker) in (1..).zip(&demo.workers) {
        let (pid, locks, wait) = (worker.pid(), worker.locks, worker.last_wait.as_millis());
        let state = match worker.state {
            worker::State::Waiting => paint(DIM, "waiting"),
            worker::State::Holding => paint(GREEN, "HOLDING"),
            worker::State::Killed => paint(RED, "DEAD   "),
            worker::State::Done => paint(DIM, "done   "),
        };
        writeln!(
            out,
            "  worker {number}  pid {pid:<8}  {state}  {locks:>4} locks  last wait {wait:>4} ms"
        )?;
    }
    writeln!(out)
}

/// The locks over time, and below them where something happened.
fn bars(out: &mut String, demo: &Demo) -> fmt::Result {
    let Demo { tally, notes, .. } = demo;
    let now = demo.elapsed();
    let ends = (1..=BARS)
        .map(|bar| bar * BAR)
        .take_while(|end| *end <= now);
    let counts = ends
        .clone()
        .map(|end| tally.locks_within(BAR, demo.began + end));
    let most = counts.clone().max().unwrap_or_default().max(1);
    let bars: String = counts
        .map(|count| [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][(count * 8).div_ceil(most)])
        .collect();
    let marks: String = ends
        .map(|end| {
            let within = |note: &&Note| (end - BAR..end).contains(&note.at);
            match notes.iter().find(within) {
                Some(note) if note.is_fault => '!',
                Some(_) => '+',
                None => ' ',
            }
        })
        .collect();
    writeln!(out, "  {bars}\n  {}", paint(RED, &marks))?;
    let last_second = tally.locks_within(Duration::from_secs(1), demo.began + now);
    let (locks, two_holders) = (tally.locks(), tally.two_holders);
    writeln!(
        out,
        "  {last_second} locks in the last second, {locks} in all; two holders at once: {two_holders}\n"
    )
}

fn notes(out: &mut String, demo: &Demo) -> fmt::Result {
    let skipped = demo.notes.len().saturating_sub(NOTES);
    for note in &demo.notes[skipped..] {
        writeln!(out, "{note}")?;
    }
    Ok(())
}

fn paint(colour: u8, text: &str) -> String {
    format!("\x1b[{colour}m{text}\x1b[0m")
}
