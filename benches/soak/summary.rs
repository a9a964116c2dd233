//! What came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::history::History;
use crate::usage::Usage;

pub(crate) struct Summary {
    pub(crate) lasted: Duration,
    pub(crate) history: History,
    pub(crate) two_holders: usize,
    pub(crate) faults: BTreeMap<String, usize>,
    /// On all masters.
    pub(crate) keys_left: usize,
    /// To each master, from all workers.
    pub(crate) connections: Vec<usize>,
    /// Of the worker that is never killed, at the beginning and at the end.
    pub(crate) usage: Option<(Usage, Usage)>,
    /// Workers that did not end by themselves.
    pub(crate) stuck: usize,
}

impl Summary {
    pub(crate) fn is_good(&self) -> bool {
        let bad = [
            self.two_holders,
            self.keys_left,
            self.stuck,
            self.history.unconfirmed,
        ];
        self.history.locks > 0 && bad == [0; 4]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let History {
            locks,
            lost,
            denied,
            cancelled,
            unconfirmed,
            ..
        } = self.history;
        let faults: usize = self.faults.values().sum();
        let each = self.faults.iter();
        let each: Vec<_> = each
            .map(|(fault, times)| format!("{times} {fault}"))
            .collect();
        writeln!(f, "lasted        {:.1?}", self.lasted)?;
        writeln!(
            f,
            "locks         {locks}, {lost} of them lost before they were released"
        )?;
        writeln!(
            f,
            "not granted   {denied} denied, {cancelled} cancelled half way"
        )?;
        writeln!(f, "faults        {faults}: {}", each.join(", "))?;
        writeln!(f, "two holders   {} times", self.two_holders)?;
        writeln!(f, "keys left     {}", self.keys_left)?;
        writeln!(
            f,
            "unconfirmed   {unconfirmed} releases, {} workers did not end",
            self.stuck
        )?;
        if let Some((before, after)) = self.usage {
            let mib = |usage: Usage| usage.memory / 1024 / 1024;
            writeln!(
                f,
                "memory        {} MiB, {} at the end",
                mib(before),
                mib(after)
            )?;
            let (from, to) = (before.descriptors, after.descriptors);
            writeln!(f, "descriptors   {from}, {to} at the end")?;
            let (from, to) = (before.threads, after.threads);
            writeln!(f, "threads       {from}, {to} at the end")?;
        }
        write!(
            f,
            "connections   {:?} to each master at the end",
            self.connections
        )
    }
}
