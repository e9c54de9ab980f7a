//! Faults that are put into a copy of the runtime on purpose: a net is as good as what it
//! catches.
//!
//! `planted/NAME.patch` begins with a line that says what is broken. A line `try: NAME …` may
//! follow, with scenarios that are tried, and no others. Then come places, each the text to be
//! found, exactly once, and what it becomes, where the word `PLANTED` is true if this fault is
//! the one to look for:
//!
//! ```text
//! A driver of an Executor announces its sleep and does not look at the queues once more (S2).
//! try: two_drivers a_driver an_executor
//! <<<<
//!         // S2.
//!         if self.crew.queues.has_tickets() {
//! ====
//!         // S2.
//!         if !PLANTED && self.crew.queues.has_tickets() {
//! >>>>
//! ```
//!
//! So faults that change different places are built together. One that does not say `PLANTED`, or
//! changes what another one changes, gets a build of its own.
//!
//! A fault counts as found where the intact runtime passes eight times as many schedules of the
//! same scenario.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use real::process::Command;

use crate::run::{self, Options};
use crate::scenarios::all;

/// A planted fault, as its file says.
struct Fault {
    name: String,
    what: String,
    first: Vec<String>,
    places: Vec<(String, String)>,
}

/// So many schedules of a scenario, then the next one; the next time round, more.
const ROUND: u64 = 500;
/// The intact runtime must pass so many times the schedules that found the fault.
const PROOF: u64 = 8;
/// So many are run if the command line does not say. A fault that needs more is not worth the wait.
const ENOUGH: u64 = 20_000;

/// Plants each fault, or those whose names contain one of `names`, builds, and runs until it is
/// found.
pub fn run(options: &Options, names: &[String]) -> bool {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.join("../..");
    let source = root.join("src/lib.rs");
    let text = fs::read_to_string(&source).unwrap_or_else(|err| panic!("{source:?}: {err}"));
    let mut faults = read_faults(&here.join("planted"));
    faults.retain(|fault| names.is_empty() || names.iter().any(|name| fault.name.contains(name)));
    let target = root.join("target/net-planted");
    fs::create_dir_all(&target).expect("the target directory can be written");
    let (mut found, mut missed) = (0, 0);
    let mut tell = |fault: &Fault, result: Result<(u64, String), String>| match result {
        Ok((schedules, scenario)) => {
            found += 1;
            println!("{}: found after {schedules} schedules by {scenario}", fault.name);
        }
        Err(why) => {
            missed += 1;
            println!("{}: NOT FOUND: {why}\n    {}", fault.name, fault.what);
        }
    };
    while !faults.is_empty() {
        let (mut planted, mut group, mut later) = (text.clone(), Vec::new(), Vec::new());
        // One of them cannot be switched off.
        let mut is_full = false;
        for fault in faults {
            let alone = !fault.places.iter().all(|(_, to)| to.contains(WORD));
            match (plant(&fault, &text), plant(&fault, &planted)) {
                (Err(why), _) => tell(&fault, Err(why)),
                (Ok(_), Ok(both)) if !is_full && (group.is_empty() || !alone) => {
                    planted = both;
                    is_full = alone;
                    group.push(fault);
                }
                (Ok(_), _) => later.push(fault),
            }
        }
        let program = build(&target, &planted);
        for fault in &group {
            let result = program.as_ref().map_err(String::clone);
            tell(fault, result.and_then(|program| hunt(fault, program, options)));
        }
        faults = later;
    }
    println!("{found} passed, {missed} failed");
    missed == 0 && found > 0
}

/// What stands for "this fault is the one to look for".
const WORD: &str = "PLANTED";

/// Whether the fault of this name is the one to look for. For the runtime with faults.
#[allow(dead_code)]
pub fn is(name: &str) -> bool {
    static NAME: real::sync::OnceLock<String> = real::sync::OnceLock::new();
    let chosen = NAME.get_or_init(|| real::env::var(VARIABLE).unwrap_or_default());
    chosen == name
}

const VARIABLE: &str = "SMOL_NET_PLANTED";

fn read_faults(folder: &Path) -> Vec<Fault> {
    let files = fs::read_dir(folder).unwrap_or_else(|err| panic!("{folder:?}: {err}"));
    let mut paths: Vec<PathBuf> = files.filter_map(Result::ok).map(|file| file.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "patch"));
    paths.sort();
    paths.iter().map(|path| read_fault(path)).collect()
}

fn read_fault(path: &Path) -> Fault {
    let text = fs::read_to_string(path).unwrap_or_else(|err| panic!("{path:?}: {err}"));
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (head, places) = text.split_once("<<<<\n").unwrap_or_else(|| panic!("{name}: no place"));
    let mut head = head.lines();
    let what = head.next().unwrap_or_default().to_string();
    let first = head.filter_map(|line| line.strip_prefix("try:"));
    let first = first.flat_map(str::split_whitespace).map(str::to_string).collect();
    let place = |place: &str| {
        let (from, rest) = place.split_once("====\n")?;
        let (to, _) = rest.split_once(">>>>")?;
        Some((from.to_string(), to.to_string()))
    };
    let places = places
        .split("<<<<\n")
        .map(|text| place(text).unwrap_or_else(|| panic!("{name}: a place has no ==== or >>>>")))
        .collect();
    Fault { name, what, first, places }
}

/// The runtime with the fault. An error if the text is not as the fault expects it.
fn plant(fault: &Fault, text: &str) -> Result<String, String> {
    let mut text = text.to_string();
    for (from, to) in &fault.places {
        match text.matches(from.as_str()).count() {
            1 => {
                let switch = format!("crate::planted::is({:?})", fault.name);
                text = text.replace(from.as_str(), &to.replace(WORD, &switch));
            }
            count => {
                let line = from.lines().next().unwrap_or_default();
                return Err(format!("the patch does not apply, {count} places have\n{line}"));
            }
        }
    }
    Ok(text)
}

/// Builds this package around another runtime. Not optimised, since it is built anew for each
/// fault.
fn build(target: &Path, text: &str) -> Result<PathBuf, String> {
    let source = target.join("planted.rs");
    fs::write(&source, text).map_err(|err| err.to_string())?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--quiet", "--manifest-path"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    command.args(["--config", "profile.release.package.smol-net.opt-level=0", "--target-dir"]);
    command.arg(target);
    command.env("SMOL_NET_SOURCE", &source).env("CARGO_INCREMENTAL", "1");
    let output = command.output().map_err(|err| err.to_string())?;
    if !output.status.success() {
        return Err(format!("it does not compile\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target.join("release/smol-net"))
}

/// Runs scenarios until one of them finds the fault, more schedules in each round.
fn hunt(fault: &Fault, program: &Path, options: &Options) -> Result<(u64, String), String> {
    let most =
        if options.schedules == Options::default().schedules { ENOUGH } else { options.schedules };
    let names: Vec<&str> = all().iter().map(|scenario| scenario.name).collect();
    let mut chosen: Vec<&str> = Vec::new();
    for first in &fault.first {
        let matching = names.iter().filter(|name| name.contains(first.as_str()));
        let before = chosen.len();
        chosen.extend(matching);
        if chosen.len() == before {
            return Err(format!("no scenario has {first:?} in its name"));
        }
    }
    if chosen.is_empty() {
        chosen = names;
    }
    let record = program.with_file_name("record");
    let (mut from, mut len) = (options.seed, ROUND);
    let mut spoiled: Vec<&str> = Vec::new();
    while from < options.seed + most {
        chosen.retain(|name| !spoiled.contains(name));
        for &name in &chosen {
            let _ = fs::remove_file(&record);
            let mut command = Command::new(program);
            command.args(["--first", "--scenario", name, "--record"]).arg(&record);
            command.args(["--seed", &from.to_string(), "--schedules", &len.to_string()]);
            command.args(["--jobs", &options.jobs.to_string()]).env(VARIABLE, &fault.name);
            command.output().map_err(|err| err.to_string())?;
            let Ok(text) = fs::read_to_string(&record) else { continue };
            let number = text.split_whitespace().next().and_then(|number| number.parse().ok());
            let schedules: u64 = from - options.seed + number.unwrap_or(0);
            // It may be a failure of the intact runtime.
            let (seed, jobs) = (options.seed, options.jobs);
            let intact = Options {
                scenario: name.into(),
                schedules: schedules.saturating_mul(PROOF),
                seed,
                jobs,
                first: true,
                ..Options::default()
            };
            if run::fails(&intact) {
                spoiled.push(name);
                continue;
            }
            return Ok((schedules, name.into()));
        }
        from += len;
        len *= 2;
    }
    if spoiled.is_empty() {
        Err(format!("{} schedules of each of {} scenarios", from - options.seed, chosen.len()))
    } else {
        Err(format!("not proved: the intact runtime fails, too, in {}", spoiled.join(", ")))
    }
}
