//! How the random program is run: rounds, the settling between them, what may be left at the end,
//! and the ways in which the system is made to fail.

use super::bytes::DIRECTORY;
use super::ledger::LEDGER;
use super::program::{drive, micros, on_a_thread};
use crate::common::{Ended, sleep};
use fastrand::Rng;
use smol::{Async, Timer, block_on, spawn, unblock};
use std::{
    env,
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// How deep drives are in drives.
const DEPTH: u32 = 3;
/// Memory may grow by this much in the second half of the rounds: tables keep the size that they
/// once had.
const SLACK: isize = 1 << 20;

/// What is made to fail.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// The errors that this leads to, by number.
    pub(crate) errors: &'static [i32],
    /// So many more descriptors may be opened than are open at the start.
    pub(crate) descriptors: Option<u64>,
    /// Not all rounds, since each takes longer.
    pub(crate) slow: u64,
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let text = text.trim();
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// The seed of this run, for the child's environment: given, or another each time.
pub(crate) fn seed() -> String {
    number("SMOL_STRESS_SEED").unwrap_or_else(|| fastrand::u64(..)).to_string()
}

fn rounds(faults: Faults) -> u64 {
    number("SMOL_STRESS_ROUNDS").unwrap_or(12).div_ceil(faults.slow.max(1))
}

/// Seconds for a run, as a bound against hangs that the watchdog of the books does not see.
pub(crate) fn seconds() -> u64 {
    120 + number("SMOL_STRESS_ROUNDS").unwrap_or(0) * 2
}

/// Shows what a process said, which has its seed and its summary, and that it was content. In that
/// process itself there is nothing to judge.
pub(crate) fn judge(ended: Option<Ended>) {
    if let Some(Ended { status, output, took }) = ended {
        println!("{output}\n{took:?}");
        assert!(status.success() && output.contains("1 passed"), "{status}\n{output}");
    }
}

/// Runs the program in this process, which must be a fresh one.
pub(crate) fn run(faults: Faults) {
    let (seed, rounds) = (number("SMOL_STRESS_SEED").unwrap_or(1), rounds(faults));
    let title = format!("SMOL_STRESS_SEED={seed} SMOL_STRESS_ROUNDS={rounds}");
    println!("{title}");
    LEDGER.open(title, faults.errors);
    let directory = tempfile::tempdir().unwrap();
    DIRECTORY.set(directory.path().to_owned()).unwrap();
    warm_up();
    let before = Left::now();
    let mut random = Rng::with_seed(seed);
    let (mut half, mut operations) = (None, 0);
    let limit = faults.descriptors.map(limit_descriptors);
    for number in 1..=rounds {
        LEDGER.round.store(number, Relaxed);
        round(random.u64(..));
        settle();
        if number == rounds / 2 {
            half = Some(crate::common::live_bytes());
            operations = LEDGER.operations();
        }
    }
    drop(limit);
    let grown = half.map_or(0, |half| crate::common::live_bytes() - half);
    let operations = LEDGER.operations() - operations;
    if grown > SLACK {
        LEDGER.fail(&format!("{grown} bytes more after {operations} operations"));
    }
    if !faults.errors.is_empty() {
        // When the fault is over, all goes on.
        round(random.u64(..));
        settle();
    }
    before.compare();
    drop(directory);
    println!("{}; grown by {grown} bytes in the second half", LEDGER.summary());
}

/// What is built when it is first needed is there after that: it is no leak.
fn warm_up() {
    block_on(async {
        spawn(async {}).await;
        unblock(|| ()).await;
        Timer::after(Duration::from_millis(1)).await;
        let (one, two) = crate::common::socket_pair();
        drop(one);
        two.readable().await.unwrap();
    });
}

/// Some threads, each with a program of its own, while this one is in `block_on`.
fn round(seed: u64) {
    let mut random = Rng::with_seed(seed);
    let life = LEDGER.begin("round", seed);
    block_on(async {
        let threads: Vec<_> = (0..random.u32(1..4))
            .map(|_| {
                let seed = random.u64(..);
                on_a_thread(seed, move || drop(block_on(drive(seed, DEPTH))))
            })
            .collect();
        if random.bool() {
            sleep(micros(&mut random, 1_000)).await;
        }
        drop(drive(random.u64(..), DEPTH).await);
        for thread in threads {
            thread.await;
        }
    });
    drop(life);
}

/// What was cancelled and left alone ends now, too. This thread is in `block_on` meanwhile.
fn settle() {
    let start = Instant::now();
    block_on(async {
        while !LEDGER.is_settled() {
            if start.elapsed() > Duration::from_secs(60) {
                LEDGER.fail("it does not settle");
            }
            sleep(Duration::from_micros(200)).await;
        }
    });
}

/// What is left of a run.
struct Left {
    descriptors: usize,
}

impl Left {
    fn now() -> Left {
        Left {
            #[cfg(target_os = "linux")]
            descriptors: entries("/proc/self/fd").len() - 1, // one is the listing's own
            #[cfg(not(target_os = "linux"))]
            descriptors: 0,
        }
    }

    /// No descriptor more than before, no thread of the program, no child that nobody waits for.
    fn compare(self) {
        let patience = Instant::now() + Duration::from_secs(20);
        while let Some(what) = self.what_is_left() {
            if Instant::now() > patience {
                LEDGER.fail(&format!("left at the end: {what}"));
            }
            // Where no thread can be started, children that were abandoned are looked at by the
            // next `spawn`.
            #[cfg(unix)]
            if what == "children" && std::thread::Builder::new().spawn(|| ()).is_err() {
                let _ = block_on(Async::run(&mut std::process::Command::new("true")));
            }
            // Work that was left alone may need this thread.
            block_on(sleep(Duration::from_millis(5)));
            LEDGER.did(1);
        }
    }

    fn what_is_left(&self) -> Option<String> {
        let now = Left::now().descriptors;
        // The watcher's alarm is made once, when somebody first tries to start it.
        if now > self.descriptors + 1 {
            return Some(format!("{now} descriptors instead of {}", self.descriptors));
        }
        #[cfg(target_os = "linux")]
        {
            let name = |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).ok();
            let threads = entries("/proc/self/task").iter().filter_map(name).collect::<Vec<_>>();
            let threads: Vec<_> = threads.iter().map(|name| name.trim()).collect();
            let is_left = |name: &&&str| name.starts_with("smol-pool") || **name == "stress";
            let left: Vec<_> = threads.iter().filter(is_left).collect();
            if !left.is_empty() {
                return Some(format!("threads {left:?}"));
            }
        }
        #[cfg(unix)]
        {
            use rustix::process::{WaitId, WaitIdOptions, waitid};
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if !matches!(waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD)) {
                return Some("children".into());
            }
        }
        None
    }
}

/// What is in a directory of the kernel's, whether or not `open` is interrupted.
#[cfg(target_os = "linux")]
fn entries(directory: &str) -> Vec<PathBuf> {
    loop {
        match std::fs::read_dir(directory) {
            Ok(entries) => return entries.map(|entry| entry.unwrap().path()).collect(),
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            Err(err) => panic!("{directory}: {err}"),
        }
    }
}

/// While it exists, only so many descriptors more can be opened.
#[cfg(target_os = "linux")]
fn limit_descriptors(more: u64) -> impl Drop {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let current = Some(crate::common::open_fds() as u64 + more);
    setrlimit(Resource::Nofile, Rlimit { current, maximum: before.maximum }).unwrap();
    crate::common::OnDrop(move || setrlimit(Resource::Nofile, before).unwrap())
}

#[cfg(not(target_os = "linux"))]
fn limit_descriptors(_: u64) -> impl Drop {
    crate::common::OnDrop(|| ())
}

// ---------- under strace ----------

/// Runs the calling test again under `strace`, which lets system calls fail, once for each of
/// `injections`; says so and does nothing where there is no `strace` that works. Called as
/// `fresh_process` is.
#[cfg(target_os = "linux")]
pub(crate) fn under_strace<F: FnOnce()>(name: &str, injections: &[&str], body: F) {
    use std::process::{Command, Stdio};
    const CHILD: &str = "SMOL_STRESS_CHILD";
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let strace = |args: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qqq", "-o", "/dev/null"]).args(args).stdin(Stdio::null());
        strace
    };
    let works = strace(&["true"]).output().is_ok_and(|output| output.status.success());
    if !works {
        println!("skipped: there is no strace that works here");
        return;
    }
    let seed = seed();
    for injection in injections {
        let calls = injection.split(':').next().unwrap_or_default();
        let mut strace = strace(&["--seccomp-bpf", "-e"]);
        strace.arg(format!("trace={calls}")).args(["-e", &format!("inject={injection}")]);
        strace.arg(env::current_exe().unwrap());
        strace.args([name, "--exact", "--nocapture", "--test-threads=1"]);
        strace.env(CHILD, "1").env("SMOL_STRESS_SEED", &seed);
        let start = Instant::now();
        let output = strace.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        println!("{injection}\n{text}\n{:?}", start.elapsed());
        assert!(output.status.success() && text.contains("1 passed"), "{injection}\n{text}");
    }
}
