//! The numbers as Markdown.

use crate::driver::Sample;
use crate::row::{ALL, PEERS, Row, Unit};
use crate::{IO, SECTIONS, picture};
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Ahead of every peer, and close to `raw`: what the project promises.
const BEHIND: f64 = 1.05;
const FAR: f64 = 1.3;

/// A line of the table: minimum and median for each of `ALL`.
struct Line {
    section: &'static str,
    row: &'static Row,
    value: String,
    numbers: Vec<Option<(f64, f64)>>,
}

impl Line {
    fn name(&self) -> String {
        format!("{} {}", self.row.name, self.value).trim_end().to_string()
    }

    fn unit(&self) -> Unit {
        unit(self.row, &self.value)
    }

    fn of(&self, runtime: &str) -> Option<(f64, f64)> {
        self.numbers[ALL.iter().position(|name| *name == runtime)?]
    }

    /// The best peer by minima, and by medians.
    fn best_peer(&self, by: fn((f64, f64)) -> f64) -> Option<(&'static str, f64)> {
        let peers = PEERS.iter().filter_map(|name| Some((*name, by(self.of(name)?))));
        peers.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn against_peers(&self, by: fn((f64, f64)) -> f64) -> Option<f64> {
        ratio(by(self.of("ours")?), self.best_peer(by)?.1)
    }

    fn against(&self, runtime: &str, by: fn((f64, f64)) -> f64) -> Option<f64> {
        ratio(by(self.of("ours")?), by(self.of(runtime)?))
    }
}

/// The unit of an additional value is in its name.
pub fn unit(row: &Row, value: &str) -> Unit {
    let has = |words: &[&str]| words.iter().any(|word| value.contains(word));
    match () {
        () if has(&["bytes", "resident", "size", "heap"]) => Unit::Bytes,
        () if has(&["count", "allocations", "crates", "wakeups", "calls"]) => Unit::Count,
        () if has(&["late", "p50", "p99", "wall", "cpu"]) => Unit::Nanos,
        () => row.unit,
    }
}

fn minimum(numbers: (f64, f64)) -> f64 {
    numbers.0
}

fn median(numbers: (f64, f64)) -> f64 {
    numbers.1
}

/// The minimum and the median.
pub fn low_and_middle(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut all: Vec<f64> = numbers.collect();
    all.sort_by(f64::total_cmp);
    let (low, high) = (all.get(all.len().saturating_sub(1) / 2)?, all.get(all.len() / 2)?);
    Some((all[0], (low + high) / 2.0))
}

pub fn ratio(a: f64, b: f64) -> Option<f64> {
    match b > 0.0 {
        true => Some(a / b),
        false => (a == b).then_some(1.0),
    }
}

fn lines(samples: &[Sample]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (section, rows) in SECTIONS {
        for row in *rows {
            let mine: Vec<_> =
                samples.iter().filter(|sample| sample.row.name == row.name).collect();
            let mut values: Vec<&str> = Vec::new();
            for sample in &mine {
                if !values.contains(&&*sample.value) {
                    values.push(&sample.value);
                }
            }
            for value in values {
                let numbers = ALL.iter().map(|runtime| {
                    let of_runtime =
                        |sample: &&&Sample| sample.value == value && sample.runtime == *runtime;
                    low_and_middle(mine.iter().filter(of_runtime).map(|sample| sample.number))
                });
                lines.push(Line { section, row, value: value.into(), numbers: numbers.collect() });
            }
        }
    }
    lines
}

/// Prints the table; writes it, and what README shows of it.
pub fn print(header: &str, samples: &[Sample], write: bool) -> Result<(), Box<dyn Error>> {
    let full = long(header, &lines(samples))?;
    println!("{full}");
    if write {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("RESULTS.md"), full)?;
        picture::speed()?;
    }
    Ok(())
}

fn long(header: &str, lines: &[Line]) -> Result<String, Box<dyn Error>> {
    let mut out = format!(
        "# Results\n\n{header}\n\nNanoseconds per operation if there is no other unit (µ, m, s: micro- and milliseconds, seconds; B: bytes): \
        the minimum of all runs, and in parentheses the median. `tokio-ct` is its current-thread scheduler; `raw` is a hand-written loop. \
        The ratios are ours to the best of {}, by minima and by medians; and ours to `raw`.\n",
        PEERS.join(", "),
    );
    for (section, _) in SECTIONS {
        let lines: Vec<_> = lines.iter().filter(|line| line.section == *section).collect();
        if lines.is_empty() {
            continue;
        }
        writeln!(
            out,
            "\n## {section}\n\n| row | {} | best peer | ratio | by medians | to raw |",
            ALL.join(" | ")
        )?;
        writeln!(out, "|---|{}", "---:|".repeat(ALL.len() + 4))?;
        for line in lines {
            write!(out, "| {} |", line.name())?;
            for numbers in &line.numbers {
                match numbers {
                    Some((low, middle)) => write!(
                        out,
                        " {} ({}) |",
                        show(*low, line.unit()),
                        show(*middle, line.unit())
                    )?,
                    None => write!(out, " |")?,
                }
            }
            let best = line.best_peer(minimum).map_or("", |(name, _)| name);
            let ratios = [
                line.against_peers(minimum),
                line.against_peers(median),
                line.against("raw", minimum),
            ];
            writeln!(out, " {best} | {} |", ratios.map(show_ratio).join(" | "))?;
        }
    }
    writeln!(out, "\n## Summary\n\n{}", summary(lines)?)?;
    writeln!(out, "## What the rows are\n\n| row | one operation | workers |\n|---|---|---:|")?;
    let mut last = "";
    for line in lines {
        if line.row.name != last {
            last = line.row.name;
            writeln!(out, "| {last} | {} | {} |", line.row.what, line.row.workers)?;
        }
    }
    Ok(out)
}

fn summary(lines: &[Line]) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    for (name, by) in [("minima", minimum as fn(_) -> _), ("medians", median)] {
        let own = lines.iter().filter(|line| line.value.is_empty());
        let ratios: Vec<f64> =
            own.filter_map(|line| line.against("tokio", by)).filter(|ratio| *ratio > 0.0).collect();
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        writeln!(
            out,
            "- Geometric mean of ours to tokio, by {name}: {mean:.2} ({} rows).",
            ratios.len()
        )?;
        let list = |limit: f64, ratio: &dyn Fn(&Line) -> Option<f64>| {
            let over = lines.iter().filter_map(|line| Some((line, ratio(line)?)));
            let over = over.filter(|(_, ratio)| *ratio > limit);
            let names: Vec<_> =
                over.map(|(line, ratio)| format!("{} {ratio:.2}", line.name())).collect();
            if names.is_empty() { "none".to_string() } else { names.join(", ") }
        };
        let peers = list(BEHIND, &|line| line.against_peers(by));
        writeln!(out, "- Above {BEHIND} × the best peer, by {name}: {peers}.")?;
        let raw = list(FAR, &|line| IO.contains(&line.section).then(|| line.against("raw", by))?);
        writeln!(out, "- I/O above {FAR} × `raw`, by {name}: {raw}.")?;
    }
    Ok(out)
}

/// Three digits and a unit.
pub fn show(number: f64, unit: Unit) -> String {
    let (scale, suffix) = match unit {
        Unit::Nanos if number >= 999.5e6 => (1e9, "s"),
        Unit::Nanos if number >= 999.5e3 => (1e6, "m"),
        Unit::Nanos if number >= 999.5 => (1e3, "µ"),
        Unit::Nanos | Unit::Count => (1.0, ""),
        Unit::Bytes if number >= 10e3 => (1e3, "kB"),
        Unit::Bytes => (1.0, "B"),
    };
    // Without the sign of a zero.
    let number = if number.abs() < 0.005 { 0.0 } else { number / scale };
    let decimals = match number.abs() {
        number if number >= 99.95 || number == 0.0 => 0,
        number if number >= 9.995 => 1,
        _ => 2,
    };
    format!("{number:.decimals$}{suffix}")
}

pub fn show_ratio(ratio: Option<f64>) -> String {
    ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()
}
