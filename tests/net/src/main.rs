//! The net: the whole runtime under a controlled scheduler.
//!
//! `src/lib.rs` of the workspace is compiled here unmodified, above a standard library whose
//! threads, locks and clock are simulated (`sim`) and a kernel whose waits are (`shims/rustix`).
//! So one can run the same few lines in thousands of different interleavings, and replay the one
//! that goes wrong. README.md says how it works and how to use it.
//!
//! - `tools`: what scenarios are written with; `scenarios`: small programs that read like tests.
//! - `run`: a process for each seed, the oracles' verdicts, the table.
//! - `planted`: faults that are put into a copy of the runtime on purpose, to see that the net
//!   catches them.

extern crate sim as std;

// The std that is not simulated: for whoever runs the simulations.
extern crate std as real;

/// A textual macro goes before the prelude's: the runtime's thread-locals are those of simulated
/// threads.
macro_rules! thread_local {
    ($($tokens:tt)*) => { ::sim::thread_local! { $($tokens)* } };
}

include!(concat!(env!("OUT_DIR"), "/runtime.rs"));

mod planted;
mod run;
mod scenarios;
mod tools;

use real::process::ExitCode;

const USAGE: &str = "\
usage: smol-net [--scenario NAME] [--schedules N] [--seed S] [--jobs N] [--first] [--verbose]
       smol-net --ci | --list | --planted [NAME…]

  --scenario NAME   only scenarios whose name contains this
  --schedules N     so many schedules of each (2000)
  --seed S          the first seed (1); seeds are counted up from it
  --jobs N          so many at the same time (as many as processors)
  --first           go on to the next scenario after the first failure
  --verbose         print each step (with --schedules 1)
  --ci              2000 schedules of each scenario, from seed 1
  --planted         put each fault into a copy of the runtime, build it, run until it is found";

fn main() -> ExitCode {
    let mut options = run::Options::default();
    let mut args = std::env::args().skip(1);
    let mut planted = None;
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse::<u64>().ok());
        let understood = match arg.as_str() {
            "--schedules" => number().map(|number| options.schedules = number),
            "--seed" => number().map(|number| options.seed = number),
            "--jobs" => number().map(|number| options.jobs = number.max(1) as usize),
            "--first" => {
                options.first = true;
                Some(())
            }
            "--verbose" => {
                options.verbose = true;
                Some(())
            }
            "--ci" => Some(()),
            "--scenario" => args.next().map(|name| options.scenario = name),
            "--record" => args.next().map(|path| options.record = Some(path.into())),
            "--list" => {
                for scenario in scenarios::all() {
                    println!("{}", scenario.name);
                }
                return ExitCode::SUCCESS;
            }
            "--planted" => {
                planted = Some(Vec::new());
                Some(())
            }
            name if planted.is_some() && !name.starts_with('-') => {
                planted.as_mut().map(|names| names.push(name.to_string()))
            }
            _ => None,
        };
        if understood.is_none() {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    let passed = match planted {
        Some(names) => planted::run(&options, &names),
        None => run::run(&options),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
