//! Runs scenarios: a process for each seed, so that each begins with fresh statics, and the
//! verdicts they send back.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use real::time::{Duration, Instant};
use sim::scheduler::{self, Config, Outcome, Policy, Verdict};

use crate::scenarios::{Scenario, all};

/// What the command line asks for.
pub struct Options {
    pub scenario: String,
    pub schedules: u64,
    pub seed: u64,
    pub jobs: usize,
    pub first: bool,
    pub verbose: bool,
    /// Where to write the first failure: its schedule and its scenario. For the planted bugs.
    pub record: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        let jobs = real::thread::available_parallelism().map_or(1, usize::from);
        Options {
            scenario: String::new(),
            schedules: 2000,
            seed: 1,
            jobs,
            first: false,
            verbose: false,
            record: None,
        }
    }
}

/// What came of one scenario.
#[derive(Default)]
struct Sum {
    schedules: u64,
    failures: u64,
    crashes: u64,
    by_outcome: [u64; Outcome::ALL.len()],
    steps: u64,
    late: Duration,
    first_failure: Option<u64>,
}

/// Runs all scenarios that were asked for, prints a table, and says whether all passed.
pub fn run(options: &Options) -> bool {
    let chosen = chosen(options);
    if chosen.is_empty() {
        eprintln!("no scenario has {:?} in its name; --list prints them all", options.scenario);
        return false;
    }
    scheduler::prepare();
    let (mut passed, mut failed, mut schedules) = (0, 0, 0);
    let began = Instant::now();
    for scenario in &chosen {
        let sum = run_scenario(scenario, options);
        schedules += sum.schedules;
        if sum.failures == 0 {
            passed += 1;
        } else {
            failed += 1;
            if let (Some(path), Some(seed)) = (&options.record, sum.first_failure) {
                let text = format!("{} {}\n", seed - options.seed + 1, scenario.name);
                fs::write(path, text).expect("the record can be written");
                return false;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{schedules} schedules in {seconds:.1} s, {:.0}/s", schedules as f64 / seconds);
    println!("{passed} passed, {failed} failed");
    failed == 0
}

/// The scenarios that were asked for: the one of that name, else those whose name contains it.
fn chosen(options: &Options) -> Vec<Scenario> {
    let is_name = all().iter().any(|scenario| scenario.name == options.scenario);
    let mut chosen = all();
    chosen.retain(|scenario| match is_name {
        true => scenario.name == options.scenario,
        false => scenario.name.contains(&options.scenario),
    });
    chosen
}

/// The seeds to be run of a scenario.
fn seeds(scenario: &Scenario, options: &Options) -> std::ops::Range<u64> {
    let count = options.schedules.div_ceil(scenario.one_in);
    options.seed..options.seed.saturating_add(count)
}

/// Whether any schedule fails; says nothing.
pub fn fails(options: &Options) -> bool {
    scheduler::prepare();
    chosen(options).iter().any(|scenario| {
        let mut sum = Sum::default();
        run_seeds(scenario, options, seeds(scenario, options), false, &mut sum);
        sum.failures > 0
    })
}

fn run_scenario(scenario: &Scenario, options: &Options) -> Sum {
    let mut sum = Sum::default();
    let began = Instant::now();
    run_seeds(scenario, options, seeds(scenario, options), false, &mut sum);
    let speed = sum.schedules as f64 / began.elapsed().as_secs_f64();
    println!(
        "{:<66} {:>6} schedules, {:>4} failed, {:>6.1} ms late, {:>5} steps, {speed:>5.0}/s",
        scenario.name,
        sum.schedules,
        sum.failures,
        sum.late.as_secs_f64() * 1e3,
        sum.steps / sum.schedules.max(1),
    );
    if let Some(seed) = sum.first_failure {
        let kinds = Outcome::ALL.iter().zip(sum.by_outcome).skip(1).filter(|(_, n)| *n > 0);
        let mut kinds: Vec<String> = kinds.map(|(kind, n)| format!("{kind:?} {n}")).collect();
        if sum.crashes > 0 {
            kinds.push(format!("crashed or hung {}", sum.crashes));
        }
        println!(
            "    {}; the first after {} schedules: --scenario {} --seed {seed} --schedules 1",
            kinds.join(", "),
            seed - options.seed + 1,
            scenario.name,
        );
        if options.record.is_none() {
            // Once more, this time with its last steps.
            let mut again = Sum::default();
            run_seeds(scenario, options, seed..=seed, true, &mut again);
            assert!(again.failures > 0, "seed {seed} does not replay: something real has decided");
        }
    }
    sum
}

/// What a child writes: the seed and the verdict.
const RECORD: usize = 32;

/// Keeps as many children running as there shall be.
fn run_seeds(
    scenario: &Scenario,
    options: &Options,
    seeds: impl Iterator<Item = u64>,
    report: bool,
    sum: &mut Sum,
) {
    let (reader, writer) = rustix::pipe::pipe().expect("there are descriptors for a pipe");
    let mut reader = fs::File::from(reader);
    let mut running = HashMap::new();
    let mut seeds = seeds;
    loop {
        while running.len() < options.jobs && !(options.first && sum.failures > 0) {
            let Some(seed) = seeds.next() else { break };
            let config = config(scenario, seed, report, options.verbose);
            running.insert(start(scenario, config, &writer), seed);
        }
        let Some((pid, good_end)) = wait_for_one(&running) else {
            return;
        };
        let Some(seed) = running.remove(&pid) else {
            continue;
        };
        sum.schedules += 1;
        let mut failed = false;
        if good_end {
            // It may be the record of another one that ends at the same time: all are counted
            // alike.
            let mut record = [0; RECORD];
            reader.read_exact(&mut record).expect("whoever ends has told its verdict");
            let number = |at: usize| {
                let bytes = record[at..at + 8].try_into().unwrap_or_default();
                u64::from_ne_bytes(bytes)
            };
            let (steps, late, outcome) = (number(8), number(16), number(24) as usize);
            sum.steps += steps;
            if !config(scenario, number(0), false, false).is_timeless() {
                sum.late = sum.late.max(Duration::from_nanos(late));
            }
            sum.by_outcome[outcome] += 1;
            if outcome > 0 {
                failed = true;
                note_failure(sum, number(0));
            }
        } else {
            sum.crashes += 1;
            failed = true;
            note_failure(sum, seed);
        }
        sum.failures += failed as u64;
    }
}

fn note_failure(sum: &mut Sum, seed: u64) {
    sum.first_failure = Some(sum.first_failure.map_or(seed, |first| first.min(seed)));
}

/// Waits until one of the children has ended. Says whether it ended as it should.
fn wait_for_one(running: &HashMap<i32, u64>) -> Option<(i32, bool)> {
    if running.is_empty() {
        return None;
    }
    // Without the shim, which knows simulated children only.
    let mut status = 0;
    #[allow(unsafe_code)]
    // SAFETY: `status` is a valid place for the status.
    let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
    (pid > 0).then(|| (pid, libc::WIFEXITED(status) && libc::WEXITSTATUS(status) <= 1))
}

/// Starts the process that runs one schedule.
#[allow(unsafe_code)]
fn start(scenario: &Scenario, config: Config, writer: &OwnedFd) -> i32 {
    // SAFETY: this process has one thread, so that the child may do whatever the parent may.
    match unsafe { libc::fork() } {
        0 => {
            // Whoever loops without a point, or waits for something real, is ended by a signal.
            // SAFETY: it sets a timer and nothing else.
            unsafe { libc::alarm(20) };
            VERDICTS.with_borrow_mut(|verdicts| {
                let writer = writer.try_clone().expect("there are descriptors");
                *verdicts = Some((fs::File::from(writer), config.seed));
            });
            scheduler::simulate(config, tell, scenario.run)
        }
        pid if pid > 0 => pid,
        _ => panic!("fork(2) failed: {}", std::io::Error::last_os_error()),
    }
}

real::thread_local! {
    /// Where the process of one schedule tells its verdict, and its seed.
    static VERDICTS: std::cell::RefCell<Option<(fs::File, u64)>> =
        const { std::cell::RefCell::new(None) };
}

fn tell(verdict: Verdict) {
    VERDICTS.with_borrow_mut(|verdicts| {
        let Some((writer, seed)) = verdicts else {
            return;
        };
        let place = Outcome::ALL.iter().position(|outcome| *outcome == verdict.outcome);
        let late = verdict.late.as_nanos() as u64;
        let mut record = [0; RECORD];
        let numbers = [*seed, verdict.steps, late, place.unwrap_or_default() as u64];
        for (place, number) in record.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        // One write of so few bytes is not torn apart (pipe(7)).
        let _ = writer.write_all(&record);
    });
}

/// Whether time means nothing in this schedule.
trait Timeless {
    fn is_timeless(&self) -> bool;
}

impl Timeless for Config {
    fn is_timeless(&self) -> bool {
        self.clock_jumps || !self.slack.is_zero()
    }
}

/// What a seed means. All of it depends on the seed and the scenario alone.
fn config(scenario: &Scenario, seed: u64, report: bool, verbose: bool) -> Config {
    let mut state = seed.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut random = |limit: u64| {
        // splitmix64 (Steele, Lea and Flood 2014).
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    };
    let policy = match random(8) {
        0 => Policy::Uniform,
        1 => Policy::Sticky(50),
        2 => Policy::Sticky(78),
        3 | 4 => Policy::Sticky(94),
        _ => Policy::Pct(2 + random(9)),
    };
    let (low, high) = scenario.processors;
    let processors = low + random((high - low + 1) as u64) as usize;
    let points_in_copies = random(3) == 0;
    let clock_jumps = random(8) == 0 && scenario.time_may_jump;
    let slack = if random(8) == 0 { Duration::from_micros(500) } else { Duration::ZERO };
    let spurious = random(4) == 0;
    let starts = scenario.starts.map(|(good, bad)| {
        let good = random(good as u64 + 1) as usize;
        (good, 1 + random(bad as u64) as usize)
    });
    let mut config = Config {
        seed,
        policy,
        processors,
        points_in_copies,
        clock_jumps,
        slack,
        spurious,
        starts,
        step_limit: scenario.step_limit,
        late_limit: Some(scenario.may_be_late),
        must_rest: !clock_jumps,
        report,
        verbose,
    };
    if config.is_timeless() {
        config.late_limit = None;
    }
    config
}
