//! The parent starts one process for each measurement, and keeps every number in a file.

use crate::row::{ALL, Row, Unit};
use crate::{compare, evidence, growth, memory, picture, rows, table};
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const HELP: &str = "\
smol-bench quick|full [<row>...] [--runtimes a,b] [--passes n] [--write]
    measures all rows, or those whose names contain one of the words, and prints the table. The quick mode takes a minute.
    With --write, the table goes to benches/RESULTS.md, and what README.md shows of it there.
smol-bench table quick|full [--write]
    prints the table of the last such run again.
smol-bench evidence [<row>...] [--runtimes a,b] [--write]
    counts instructions and system calls per operation; with --write, benches/EVIDENCE.md has them.
smol-bench growth [<line>...] [--runtimes a,b] [--passes n] [--write]
    the cost per operation as the number of tasks, timers, connections and workers grows; benches/GROWTH.md has it.
smol-bench picture
    writes README's table and draws the pictures again, from RESULTS.md and GROWTH.md as they are.
smol-bench compare <old program> [<row>...] [--rounds n] [--quick]
    runs the rows of this runtime alternately in an older build of this program and in this one
    (in the sizes of the full mode, five times each), and says which have become worse.
smol-bench list
    says what the rows are.";

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Longer than any row should take: a process that hangs ends itself.
const LIMIT: Duration = Duration::from_secs(300);

/// One number that one process reported.
pub struct Sample {
    pub row: &'static Row,
    /// Empty for the row's own value.
    pub value: String,
    pub runtime: &'static str,
    pub number: f64,
}

pub fn parent(args: &[&str]) {
    if let Err(err) = copies().and_then(|_guard| run(args)) {
        eprintln!("smol-bench: {err}");
        std::process::exit(1);
    }
}

/// The processes run copies of the programs, so that the next build does not disturb this run.
fn copies() -> Result<tempfile::TempDir> {
    let copies = tempfile::tempdir_in(directory()?)?;
    let name = PROGRAM.get_or_init(|| copies.path().join("smol-bench"));
    fs::copy(std::env::current_exe()?, name)?;
    Ok(copies)
}

/// The copy of this program.
pub static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

fn run(args: &[&str]) -> Result<()> {
    let mut words = Vec::new();
    let mut runtimes = ALL.to_vec();
    let mut passes = None;
    let (mut write, mut full) = (false, true);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--runtimes" => {
                let list: Vec<&str> = args.next().ok_or(HELP)?.split(',').collect();
                runtimes.retain(|name| list.contains(name));
            }
            "--passes" | "--rounds" => passes = Some(args.next().ok_or(HELP)?.parse()?),
            "--write" => write = true,
            "--quick" => full = false,
            option if option.starts_with('-') => return Err(HELP.into()),
            word => words.push(word),
        }
    }
    let Some((mode, words)) = words.split_first() else {
        return Err(HELP.into());
    };
    match (*mode, words) {
        ("quick" | "full", words) => {
            let samples = measure(*mode == "full", words, &runtimes, passes)?;
            table::print(&header(mode)?, &samples, write)
        }
        ("table", ["quick"] | ["full"]) => {
            let (header, samples) = load(words[0])?;
            table::print(&header, &samples, write)
        }
        ("evidence", words) => {
            keep(&evidence::report(&header(mode)?, words, &runtimes)?, "EVIDENCE.md", write)
        }
        ("growth", words) => {
            let passes = passes.unwrap_or(3);
            keep(&growth::report(&header(mode)?, words, &runtimes, passes)?, "GROWTH.md", write)?;
            if write { picture::growth() } else { Ok(()) }
        }
        ("picture", []) => picture::update(),
        ("compare", [old, words @ ..]) => {
            compare::report(Path::new(old), words, passes.unwrap_or(5), full)
        }
        ("list", []) => {
            rows().for_each(|row| println!("{:22}{}", row.name, row.what));
            Ok(())
        }
        _ => Err(HELP.into()),
    }
}

/// Prints a report, and writes it beside the other ones.
fn keep(report: &str, file: &str, write: bool) -> Result<()> {
    println!("{report}");
    if write {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), report)?;
    }
    Ok(())
}

/// What is measured in this process.
pub fn child(name: &str, runtime: &str, n: u64) {
    watchdog();
    let row = find(name).expect("a row of this name");
    if row.one_cpu {
        let mut first = rustix::thread::CpuSet::new();
        first.set(0);
        rustix::thread::sched_setaffinity(None, &first).unwrap();
    }
    for (value, number) in (row.run)(runtime, n).0 {
        println!("{number} {value}");
    }
}

pub fn watchdog() {
    std::thread::spawn(|| {
        std::thread::sleep(LIMIT);
        eprintln!("smol-bench: stopped after {LIMIT:?}");
        std::process::exit(2);
    });
}

pub fn find(name: &str) -> Option<&'static Row> {
    rows().chain(growth::ROWS).find(|row| row.name == name)
}

/// Starts a process for this row, and returns what it reported.
pub fn measure_one(row: &Row, runtime: &str, n: u64, workers: usize) -> Result<Vec<(String, f64)>> {
    measure_with(program(row)?, row, runtime, n, workers)
}

/// The same with another build of the program.
pub fn measure_with(
    program: &Path,
    row: &Row,
    runtime: &str,
    n: u64,
    workers: usize,
) -> Result<Vec<(String, f64)>> {
    let mut command = command(program, row, runtime, n, workers);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{} {runtime} {n}: {}", row.name, output.status).into());
    }
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| {
            let (number, value) = line.split_once(' ').ok_or("not a report")?;
            Ok((value.to_string(), number.parse()?))
        })
        .collect()
}

/// Rows that do not measure time have an allocator that counts.
pub fn program(row: &Row) -> Result<&'static PathBuf> {
    match row.unit {
        Unit::Nanos => PROGRAM.get().ok_or("no copy of the program".into()),
        Unit::Bytes | Unit::Count => memory::program(),
    }
}

/// The command line of such a process.
pub fn command(program: &Path, row: &Row, runtime: &str, n: u64, workers: usize) -> Command {
    let workers = workers.max(1).to_string();
    let mut command = Command::new(program);
    if row.unit == Unit::Nanos {
        // glibc gives the top of the heap back to the system and faults it in again: 70 ns of a local spawn, or
        // none, as chance will have it with who allocated last. Not so for anybody.
        command
            .env("MALLOC_TRIM_THRESHOLD_", "2000000000")
            .env("MALLOC_MMAP_THRESHOLD_", "1000000000");
    }
    command
        .args(["child", row.name, runtime, &n.to_string()])
        .env("SMOL_THREADS", &workers)
        .env("ASYNC_STD_THREAD_COUNT", &workers)
        .env("BENCH_WORKERS", &workers);
    command
}

/// Where the numbers are kept: beside the programs.
pub fn directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let directory = program.ancestors().nth(2).ok_or("no target directory")?.join("smol-bench");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Passes over all rows; in each, the runtimes take turns. Stops when the time is up.
fn measure(
    full: bool,
    words: &[&str],
    runtimes: &[&'static str],
    passes: Option<u32>,
) -> Result<Vec<Sample>> {
    let size = |row: &Row| if full { row.full } else { row.quick };
    let chosen = |row: &&Row| match words {
        [] => !row.name.starts_with("grow_"),
        words => words.iter().any(|word| row.name.contains(word)),
    };
    let rows: Vec<_> = rows().filter(chosen).filter(|row| size(row) > 0).collect();
    let (least, most, budget) = match (passes, full) {
        (Some(passes), _) => (passes, passes, 0),
        (None, false) => (1, 5, 50),
        (None, true) => (5, 9, 1_100),
    };
    let budget = Duration::from_secs(budget);
    if rows.iter().any(|row| row.unit != Unit::Nanos) {
        // Not while the clock runs. If it cannot be built, its rows will say so.
        let _ = memory::program();
    }
    let mode = if full { "full" } else { "quick" };
    let mut file = fs::File::create(directory()?.join(mode).with_extension("jsonl"))?;
    writeln!(file, "{}", json!(header(mode)?))?;
    let mut samples = Vec::new();
    let start = Instant::now();
    for pass in 1..=most {
        for row in &rows {
            for runtime in runtimes.iter().filter(|runtime| row.runtimes.contains(runtime)) {
                if pass > 1 && row.once() {
                    continue;
                }
                let values = match measure_one(row, runtime, size(row), row.workers) {
                    Ok(values) => values,
                    Err(err) => {
                        eprintln!("smol-bench: {err}");
                        continue;
                    }
                };
                for (value, number) in values {
                    let line = json!({"row": row.name, "value": value, "runtime": runtime, "pass": pass, "number": number});
                    writeln!(file, "{line}")?;
                    samples.push(Sample { row, value, runtime, number });
                }
            }
        }
        let spent = start.elapsed();
        eprintln!("pass {pass} of at most {most}: {spent:.0?}");
        if pass >= least && spent * (pass + 1) / pass > budget {
            break;
        }
    }
    Ok(samples)
}

fn load(mode: &str) -> Result<(String, Vec<Sample>)> {
    let text = fs::read_to_string(directory()?.join(mode).with_extension("jsonl"))?;
    let mut lines = text.lines();
    let header = serde_json::from_str(lines.next().ok_or("no samples")?)?;
    let mut samples = Vec::new();
    for line in lines {
        let line: Value = serde_json::from_str(line)?;
        let text = |key: &str| line[key].as_str().ok_or("a sample without its names");
        let (name, runtime) = (text("row")?, text("runtime")?);
        // A row may have gone since then.
        if let (Some(row), Some(runtime)) = (find(name), ALL.iter().find(|one| **one == runtime)) {
            let number = line["number"].as_f64().ok_or("a sample without its number")?;
            samples.push(Sample { row, value: text("value")?.into(), runtime, number });
        }
    }
    Ok((header, samples))
}

/// When, where and how.
pub fn header(mode: &str) -> Result<String> {
    let date = String::from_utf8(Command::new("date").arg("+%F").output()?.stdout)?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "{}, {model} with {cores} cores, Linux {}: `cargo run --release -p smol-bench -- {mode}`",
        date.trim(),
        kernel.trim(),
    ))
}
