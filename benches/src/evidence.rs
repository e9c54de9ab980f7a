//! What noise cannot fake: instructions, counted by callgrind, and system calls, counted by strace. Each row runs
//! with n operations and with 2n; the difference is what n operations take, without start and end.

use crate::driver::{Result, command, find, program};
use crate::row::{Row, Unit};
use crate::table::show;
use std::fmt::Write;
use std::fs;
use std::process::{Command, Stdio};

/// Rows, and numbers of operations that are bearable under a simulator.
const ROWS: &[(&str, u64)] = &[
    ("spawn_join_outside", 2_000),
    ("spawn_join_worker", 20_000),
    ("spawn_100k_outside", 100_000),
    ("spawn_100k_worker", 100_000),
    ("detach_100k_outside", 100_000),
    ("chain_100k", 100_000),
    ("fan_out_in", 19_200),
    ("yield_1task", 20_000),
    ("yield_1000x1000", 100_000),
    ("selfwake_1000x1000", 100_000),
    ("pingpong_chan", 10_000),
    ("pingpong_64pairs", 19_200),
    ("local_spawn_100k", 100_000),
    ("local_yield", 50_000),
    ("executor_spawn", 20_000),
    ("local_executor_spawn", 20_000),
    ("scope", 20_000),
    ("block_on_ready", 20_000),
    ("wake_remote", 2_000),
    ("timer_create_drop", 20_000),
    ("timer_pending_1m", 100_000),
    ("timer_reset", 20_000),
    ("sleep_1ms", 50),
    ("unblock_1", 2_000),
    ("tcp_pp_1", 1_000),
    ("tcp_echo_64", 10_000),
    ("tcp_echo_1000", 20_000),
    ("tcp_inproc", 10_000),
    ("tcp_churn", 1_000),
    ("tcp_recv_64k", 50),
    ("udp_pp", 2_000),
    ("unix_pp", 2_000),
    ("http_64", 6_400),
    ("fs_small", 1_000),
    ("fs_read_1g", 64),
    ("fs_read_1cpu", 64),
    ("proc_true", 16),
];

type Meter = fn(&Row, &str, u64) -> Result<f64>;

/// Counts for the rows whose names contain one of the words, as two tables.
pub fn report(header: &str, words: &[&str], runtimes: &[&str]) -> Result<String> {
    let mut out = format!(
        "# Evidence\n\n{header}\n\nThe difference between runs with n and with 2n operations, divided by n. \
        Clients and children that a row starts are not counted, once they run their program.\n"
    );
    let tables: [(&str, &str, Meter); 2] =
        [("Instructions", "valgrind", instructions), ("System calls", "strace", system_calls)];
    for (what, tool, meter) in tables {
        if Command::new(tool).arg("--version").output().is_err() {
            writeln!(out, "\n{what} per operation: skipped, {tool} is not installed.")?;
            continue;
        }
        writeln!(out, "\n## {what} per operation\n\n| row | {} |", runtimes.join(" | "))?;
        writeln!(out, "|---|{}", "---:|".repeat(runtimes.len()))?;
        for (name, n) in ROWS {
            let row = find(name)
                .filter(|_| words.is_empty() || words.iter().any(|word| name.contains(word)));
            let Some(row) = row else { continue };
            write!(out, "| {name} |")?;
            for runtime in runtimes {
                if !row.runtimes.contains(runtime) {
                    write!(out, " |")?;
                    continue;
                }
                let difference =
                    meter(row, runtime, *n).and_then(|once| Ok(meter(row, runtime, 2 * n)? - once));
                match difference {
                    Ok(difference) => {
                        write!(out, " {} |", show(difference / *n as f64, Unit::Count))?
                    }
                    Err(err) => {
                        eprintln!("smol-bench: {what} of {name} {runtime}: {err}");
                        write!(out, " ? |")?;
                    }
                }
            }
            writeln!(out)?;
            eprintln!("{what} of {name} are counted");
        }
    }
    Ok(out)
}

/// `tool` with the command line of a row behind it.
fn under(tool: &str, args: &[&str], row: &Row, runtime: &str, n: u64) -> Result<Command> {
    let measured = command(program(row)?, row, runtime, n, row.workers);
    let mut command = Command::new(tool);
    command.args(args).arg(measured.get_program()).args(measured.get_args()).stdout(Stdio::null());
    for (name, value) in measured.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    Ok(command)
}

fn instructions(row: &Row, runtime: &str, n: u64) -> Result<f64> {
    let args = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let output = under("valgrind", &args, row, runtime, n)?.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let count = text.lines().find_map(|line| line.split_once("Collected : "));
    match (output.status.success(), count) {
        (true, Some((_, count))) => Ok(count.trim().parse()?),
        _ => Err(format!("{}\n{text}", output.status).into()),
    }
}

fn system_calls(row: &Row, runtime: &str, n: u64) -> Result<f64> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().ok_or("a path")?;
    // Threads are followed, and other programs are not.
    let args = ["-f", "-c", "-b", "execve", "-U", "name,calls", "-o", path];
    let output = under("strace", &args, row, runtime, n)?.output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}\n{text}", output.status).into());
    }
    let table = fs::read_to_string(path)?;
    let total = table.lines().find_map(|line| line.trim().strip_prefix("total"));
    Ok(total.ok_or("no total")?.trim().parse()?)
}
