//! What a row of the table is, and what a workload reports.

use std::time::Duration;

/// The columns of the table.
pub const ALL: &[&str] = &["raw", "ours", "tokio", "tokio-ct", "smol2", "async-std"];
/// All but `raw`.
pub const RUNTIMES: &[&str] = &["ours", "tokio", "tokio-ct", "smol2", "async-std"];

/// The runtimes whose best is the one to beat.
pub const PEERS: &[&str] = &["tokio", "smol2", "async-std"];

/// One row of the table: a workload that each runtime runs in a process of its own.
pub struct Row {
    /// A short name without spaces, such as `spawn_join_worker`.
    pub name: &'static str,
    /// One line for the reader: what one operation is.
    pub what: &'static str,
    pub unit: Unit,
    /// Operations in quick mode and in full mode: some 50 ms and some 300 ms of work for an ordinary runtime.
    pub quick: u64,
    pub full: u64,
    /// Worker threads; zero for workloads that use none.
    pub workers: usize,
    /// Pins the process (and the client beside it) to the first processor: `taskset` of the row.
    pub one_cpu: bool,
    /// Which runtimes can run it, by `Runtime::NAME`, `raw` among them.
    pub runtimes: &'static [&'static str],
    /// Runs `n` operations under the runtime of this name, checks the result, and reports.
    pub run: fn(runtime: &str, n: u64) -> Report,
}

impl Row {
    /// A row in nanoseconds with two workers.
    pub const fn new(
        name: &'static str,
        what: &'static str,
        (quick, full): (u64, u64),
        runtimes: &'static [&'static str],
        run: fn(&str, u64) -> Report,
    ) -> Row {
        Row {
            name,
            what,
            unit: Unit::Nanos,
            quick,
            full,
            workers: 2,
            one_cpu: false,
            runtimes,
            run,
        }
    }

    pub const fn unit(self, unit: Unit) -> Row {
        Row { unit, ..self }
    }

    pub const fn workers(self, workers: usize) -> Row {
        Row { workers, ..self }
    }

    /// Whether one measurement is enough, because a run is a single operation that takes its time.
    pub fn once(&self) -> bool {
        self.full == 1
    }

    pub const fn one_cpu(self) -> Row {
        Row { one_cpu: true, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// Nanoseconds per operation.
    Nanos,
    Bytes,
    Count,
}

/// The quickest of five batches, which do `n` operations together.
pub fn best_of_five(n: u64, batch: impl FnMut(u64) -> Duration) -> Report {
    best(n, (n / 5).max(1), batch)
}

/// The quickest of several batches of this size, which do `n` operations together (at least one batch).
pub fn best(n: u64, size: u64, mut batch: impl FnMut(u64) -> Duration) -> Report {
    let times = (0..(n / size).max(1)).map(|_| batch(size));
    Report::time(times.min().unwrap(), size)
}

/// What one run measured. The first value is the row's own, others are shown as rows of their own (`row late_p99`).
pub struct Report(pub Vec<(&'static str, f64)>);

impl Report {
    /// `n` operations took this long.
    pub fn time(elapsed: Duration, n: u64) -> Report {
        Report(vec![("", elapsed.as_nanos() as f64 / n as f64)])
    }
}
