//! Cost per operation as the work grows: flat, logarithmic or linear.

use crate::driver::{Result, find, measure_one};
use crate::each;
use crate::picture::link;
use crate::row::{RUNTIMES, Report, Row, best};
use crate::runtimes::Runtime;
use crate::table::show;
use crate::tasks::{spawn_join, yields};
use crate::timers::pending;
use std::fmt::Write;

/// For this mode alone.
pub const ROWS: &[Row] = &[
    spawning::<100>("grow_spawn_100"),
    spawning::<1_000>("grow_spawn_1000"),
    spawning::<10_000>("grow_spawn_10000"),
    spawning::<100_000>("grow_spawn_100000"),
    spawning::<1_000_000>("grow_spawn_1000000"),
    yielding::<100>("grow_yield_100"),
    yielding::<1_000>("grow_yield_1000"),
    yielding::<10_000>("grow_yield_10000"),
    yielding::<100_000>("grow_yield_100000"),
    yielding::<1_000_000>("grow_yield_1000000"),
    timing::<100>("grow_timer_100"),
    timing::<1_000>("grow_timer_1000"),
    timing::<10_000>("grow_timer_10000"),
    timing::<100_000>("grow_timer_100000"),
    timing::<1_000_000>("grow_timer_1000000"),
];

const fn spawning<const TASKS: u64>(name: &'static str) -> Row {
    const WHAT: &str = "spawn + join, so many at once";
    Row::new(name, WHAT, (0, 400_000), RUNTIMES, |runtime, n| {
        repeat(n, TASKS, || each!(runtime, R => R::run(spawn_join::<R>(TASKS, TASKS))))
    })
}

const fn yielding<const TASKS: u64>(name: &'static str) -> Row {
    const WHAT: &str = "a yield (and a twentieth of spawn + join), so many tasks";
    Row::new(name, WHAT, (0, 2_000_000), RUNTIMES, |runtime, n| {
        repeat(n, 20 * TASKS, || each!(runtime, R => R::run(yields::<R>(20 * TASKS, TASKS))))
    })
}

const fn timing<const TIMERS: u64>(name: &'static str) -> Row {
    const WHAT: &str = "a timer is created, polled once and dropped, so many pending";
    Row::new(name, WHAT, (0, 400_000), RUNTIMES, |runtime, n| {
        repeat(n, TIMERS, || each!(runtime, R => R::run(pending::<R>(TIMERS))))
    })
}

fn repeat(n: u64, size: u64, mut batch: impl FnMut() -> std::time::Duration) -> Report {
    best(n, size, |_| batch())
}

/// What grows, by which rows, and how far.
const LINES: &[(&str, &[u64])] = &[
    ("grow_spawn", &[100, 1_000, 10_000, 100_000, 1_000_000]),
    ("grow_yield", &[100, 1_000, 10_000, 100_000, 1_000_000]),
    ("grow_timer", &[100, 1_000, 10_000, 100_000, 1_000_000]),
    ("grow_conn", &[10, 100, 1_000, 10_000]),
    ("scale_spawn", &[1, 2, 4, 8]),
    ("scale_yield", &[1, 2, 4, 8]),
];

/// Measures all lines whose names contain one of the words, and returns them as a table each.
pub fn report(header: &str, words: &[&str], runtimes: &[&str], passes: u32) -> Result<String> {
    let mut out = format!(
        "# Growth\n\n{header}\n\nNanoseconds per operation against the number of tasks, timers, connections and workers: the minimum of {passes} \
        runs. A line is flat if its last number is less than {FLAT} times its first one, linear if the last step grew like n to the power of \
        {LINEAR} or more, and else logarithmic (which includes caches that are too small).\n\n{}",
        link("", "growth", "The tables below as lines")
    );
    for (prefix, sizes) in LINES {
        if !words.is_empty() && !words.iter().any(|word| prefix.contains(word)) {
            continue;
        }
        let rows =
            sizes.iter().map(|size| find(&format!("{prefix}_{size}")).ok_or("a row is missing"));
        let rows = rows.collect::<std::result::Result<Vec<_>, _>>()?;
        let heads: Vec<_> = sizes.iter().map(|size| size.to_string()).collect();
        writeln!(
            out,
            "\n## {prefix}: {}\n\n| runtime | {} | growth |",
            rows[0].what,
            heads.join(" | ")
        )?;
        writeln!(out, "|---|{}---|", "---:|".repeat(sizes.len()))?;
        let runtimes: Vec<_> =
            runtimes.iter().filter(|name| rows[0].runtimes.contains(name)).collect();
        let mut costs = vec![vec![f64::INFINITY; sizes.len()]; runtimes.len()];
        for _ in 0..passes {
            for (i, row) in rows.iter().enumerate() {
                for (runtime, costs) in runtimes.iter().zip(&mut costs) {
                    let values = measure_one(row, runtime, row.full, row.workers)?;
                    costs[i] = values[0].1.min(costs[i]);
                }
            }
        }
        for (runtime, costs) in runtimes.iter().zip(&costs) {
            let cells: Vec<_> = costs.iter().map(|cost| show(*cost, rows[0].unit)).collect();
            writeln!(out, "| {runtime} | {} | {} |", cells.join(" | "), verdict(sizes, costs))?;
        }
        eprintln!("{prefix} is done");
    }
    Ok(out)
}

const FLAT: f64 = 1.5;
const LINEAR: f64 = 0.7;

fn verdict(sizes: &[u64], costs: &[f64]) -> &'static str {
    let last = costs.len() - 1;
    let step =
        (costs[last] / costs[last - 1]).ln() / (sizes[last] as f64 / sizes[last - 1] as f64).ln();
    match () {
        () if costs[last] < costs[0] * FLAT => "flat",
        () if step < LINEAR => "logarithmic",
        () => "linear",
    }
}
