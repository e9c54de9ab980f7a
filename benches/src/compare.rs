//! This runtime now and before: the same rows, alternately in two builds of this program.

use crate::driver::{PROGRAM, Result, measure_with};
use crate::row::{Row, Unit};
use crate::rows;
use crate::table::{low_and_middle, ratio, show, show_ratio, unit};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Worse by more than this, by minima and by medians, is worse.
const WORSE: f64 = 1.03;

/// What an older and this program reported of a value, round by round.
struct Line {
    name: String,
    unit: Unit,
    numbers: [Vec<f64>; 2],
}

/// Runs the rows whose names contain one of the words, in both programs where both have them, and
/// prints each row when it is done; at the end, those that have become worse.
pub fn report(old: &Path, words: &[&str], rounds: u32, full: bool) -> Result<()> {
    let new = PROGRAM.get().ok_or("no copy of the program")?;
    // A copy of that one as well: it may be built anew meanwhile.
    let copy = new.with_file_name("smol-bench-old");
    fs::copy(old, &copy)?;
    let list = String::from_utf8(Command::new(&copy).arg("list").output()?.stdout)?;
    let had: Vec<_> = list.lines().filter_map(|line| line.split(' ').next()).collect();
    let wanted = |name: &str| match words {
        [] => !name.starts_with("grow_"),
        words => words.iter().any(|word| name.contains(word)),
    };
    // Rows of one operation build programs; those about memory need another program.
    let can = |row: &&Row| row.unit == Unit::Nanos && !row.once() && row.runtimes.contains(&"ours");
    println!("| row | old, minimum (median) | new | by minima | by medians |");
    println!("|---|---:|---:|---:|---:|");
    let mut worse = Vec::new();
    for row in rows().filter(|row| wanted(row.name)).filter(can) {
        let n = if full || row.quick == 0 { row.full } else { row.quick };
        let mut lines: Vec<Line> = Vec::new();
        for round in 0..rounds {
            // Whoever comes second finds a machine that the first has left.
            for at in [round % 2, 1 - round % 2] {
                if at == 0 && !had.contains(&row.name) {
                    continue;
                }
                let program = [&copy, new][at as usize];
                let values = match measure_with(program, row, "ours", n, row.workers) {
                    Ok(values) => values,
                    Err(err) => {
                        eprintln!("smol-bench: {}: {err}", ["old", "new"][at as usize]);
                        continue;
                    }
                };
                for (value, number) in values {
                    let name = format!("{} {value}", row.name).trim_end().to_string();
                    let place = lines.iter().position(|line| line.name == name);
                    let place = place.unwrap_or_else(|| {
                        let unit = unit(row, &value);
                        lines.push(Line { name, unit, numbers: [Vec::new(), Vec::new()] });
                        lines.len() - 1
                    });
                    lines[place].numbers[at as usize].push(number);
                }
            }
        }
        for line in lines {
            let [old, new] = line.numbers.map(|numbers| low_and_middle(numbers.into_iter()));
            let cell = |numbers: Option<(f64, f64)>| {
                let (low, middle) = numbers?;
                Some(format!("{} ({})", show(low, line.unit), show(middle, line.unit)))
            };
            let by = |of: fn((f64, f64)) -> f64| ratio(of(new?), of(old?));
            let [low, middle] = [by(|numbers| numbers.0), by(|numbers| numbers.1)];
            let [old, new] = [old, new].map(|numbers| cell(numbers).unwrap_or_default());
            let [by_low, by_middle] = [low, middle].map(show_ratio);
            println!("| {} | {old} | {new} | {by_low} | {by_middle} |", line.name);
            if low > Some(WORSE) && middle > Some(WORSE) {
                worse.push(format!("{} {by_low} {by_middle}", line.name));
            }
        }
    }
    let gone: Vec<_> = had
        .into_iter()
        .filter(|name| wanted(name) && rows().all(|row| row.name != *name))
        .collect();
    if !gone.is_empty() {
        println!("\nOnly the old program has {}.", gone.join(", "));
    }
    let worse = if worse.is_empty() { "none".to_string() } else { worse.join(", ") };
    println!("\nWorse than {WORSE} times by minima and by medians: {worse}.");
    Ok(())
}
