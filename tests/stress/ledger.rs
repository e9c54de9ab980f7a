//! The books of the random program: what has begun and not ended, how much was done, what the
//! system refused, and how late the timers were; and the watchdog, which prints them when nothing
//! moves any more.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// Nothing at all was done for so long: it hangs. A bound against hangs only, for slow machines
/// too.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long the books are shown, and it goes on: somebody may have been waiting for what came
/// by chance.
const SUSPICIOUS: Duration = Duration::from_secs(3);
/// No timer may be later. As above: what is meant is "at some time", not "in time".
const LATEST: Duration = Duration::from_secs(20);

pub(crate) static LEDGER: Ledger = Ledger {
    open: Mutex::new(BTreeMap::new()),
    begun: AtomicU64::new(0),
    operations: AtomicU64::new(0),
    refused: AtomicU64::new(0),
    round: AtomicU64::new(0),
    latest: AtomicU64::new(0),
    allowed: OnceLock::new(),
    title: OnceLock::new(),
};

pub(crate) struct Ledger {
    open: Mutex<BTreeMap<u64, Entry>>,
    begun: AtomicU64,
    operations: AtomicU64,
    refused: AtomicU64,
    pub(crate) round: AtomicU64,
    /// In microseconds.
    latest: AtomicU64,
    /// The numbers of the errors that this run provokes.
    allowed: OnceLock<&'static [i32]>,
    title: OnceLock<String>,
}

/// What is known of something that has begun.
struct Entry {
    what: &'static str,
    seed: u64,
    stage: (&'static str, u64),
    since: Instant,
}

/// Something that has begun. It has ended when this is dropped, and is in the books until then.
#[derive(Debug)]
pub(crate) struct Life(u64);

impl Life {
    /// For the books: how far it has come.
    pub(crate) fn stage(&self, stage: &'static str, at: u64) {
        if let Some(entry) = LEDGER.open.lock().unwrap().get_mut(&self.0) {
            entry.stage = (stage, at);
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let entry = LEDGER.open.lock().unwrap().remove(&self.0);
        if entry.is_none() {
            LEDGER.fail("something has ended twice");
        }
        LEDGER.did(1);
    }
}

impl Ledger {
    /// Opens the books of this process. Any panic is a failure from now on, whoever swallows it;
    /// the panics of the program itself are raised without the hook.
    pub(crate) fn open(&self, title: String, allowed: &'static [i32]) {
        assert!(self.title.set(title).is_ok() && self.allowed.set(allowed).is_ok());
        std::panic::set_hook(Box::new(|info| LEDGER.fail(&info.to_string())));
        // Again if this run lets the start of threads fail now and then.
        let watchdog = || thread::Builder::new().name("stress-watch".into()).stack_size(256 * 1024);
        while self.judge("the watchdog", 0, watchdog().spawn(|| LEDGER.watch())).is_none() {}
    }

    fn watch(&self) {
        let (mut seen, mut since, mut shown) = (0, Instant::now(), false);
        loop {
            thread::sleep(Duration::from_millis(200));
            let operations = self.operations.load(Relaxed);
            if operations != seen {
                (seen, since, shown) = (operations, Instant::now(), false);
            } else if since.elapsed() > PATIENCE {
                self.fail("it hangs");
            } else if since.elapsed() > SUSPICIOUS && !shown {
                self.show("nothing has happened for a while");
                shown = true;
            }
        }
    }

    pub(crate) fn begin(&self, what: &'static str, seed: u64) -> Life {
        let number = self.begun.fetch_add(1, Relaxed);
        let entry = Entry { what, seed, stage: ("begins", 0), since: Instant::now() };
        self.open.lock().unwrap().insert(number, entry);
        Life(number)
    }

    /// So many small operations were done.
    pub(crate) fn did(&self, operations: u64) {
        self.operations.fetch_add(operations, Relaxed);
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.open.lock().unwrap().is_empty()
    }

    /// Whether what this run provokes may leave somebody without what he waits for.
    pub(crate) fn may_starve(&self) -> bool {
        let errors = self.allowed.get().copied().unwrap_or_default();
        !errors.is_empty() || self.has_no_threads()
    }

    /// Whether the library cannot start any.
    pub(crate) fn has_no_threads(&self) -> bool {
        std::env::var_os("RUST_MIN_STACK").is_some()
    }

    /// Whether this run provokes such errors. `connect` puts those of several addresses into one
    /// text.
    pub(crate) fn is_refusal(&self, error: &io::Error) -> bool {
        let text = error.to_string();
        let allowed = self.allowed.get().copied().unwrap_or_default();
        allowed.iter().any(|number| {
            error.raw_os_error() == Some(*number) || text.contains(&format!("os error {number})"))
        })
    }

    /// An error must be one that this run provokes.
    pub(crate) fn judge<T>(&self, what: &str, seed: u64, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if self.is_refusal(&error) => {
                self.refused.fetch_add(1, Relaxed);
                None
            }
            Err(error) => self.fail(&format!("{what} {seed}: {error} ({error:?})")),
        }
    }

    /// A timer has fired now.
    pub(crate) fn fired(&self, deadline: Instant) {
        match Instant::now().checked_duration_since(deadline) {
            None => self.fail("a timer is early"),
            Some(late) if late > LATEST => self.fail(&format!("a timer is late by {late:?}")),
            Some(late) => {
                self.latest.fetch_max(late.as_micros() as u64, Relaxed);
                self.did(1);
            }
        }
    }

    /// One line: what was done.
    pub(crate) fn summary(&self) -> String {
        let [begun, operations, refused, round, latest] =
            [&self.begun, &self.operations, &self.refused, &self.round, &self.latest]
                .map(|number| number.load(Relaxed));
        format!(
            "{}: {operations} operations of {begun} lives in {round} rounds, {refused} refused, \
            the latest timer by {latest} µs",
            self.title.get().map_or("", |title| title)
        )
    }

    /// Prints the books and ends the process: not by a panic, which somebody might swallow.
    pub(crate) fn fail(&self, message: &str) -> ! {
        static ONCE: Mutex<()> = Mutex::new(());
        // Whoever is second waits for the end.
        let _once = ONCE.lock();
        self.show(message);
        std::process::abort();
    }

    fn show(&self, message: &str) {
        let mut out = format!("\nSTRESS: {message}\n{}\n", self.summary());
        match self.open.try_lock() {
            Ok(open) => {
                let _ = writeln!(out, "{} are open, the oldest first:", open.len());
                for Entry { what, seed, stage, since } in open.values().take(60) {
                    let since = since.elapsed();
                    let _ = writeln!(out, "  {what} {seed:#x}: {stage:?} for {since:?}");
                }
            }
            Err(_) => out.push_str("the books are in use\n"),
        }
        out.push_str(&threads());
        // Not `eprintln!`: the test harness would swallow it.
        let _ = io::stderr().write_all(out.as_bytes());
    }
}

/// What the threads of this process are doing.
fn threads() -> String {
    let mut out = String::new();
    #[cfg(target_os = "linux")]
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let (stat, name, wchan) = (read("stat"), read("comm"), read("wchan"));
        // State, and processor time in user mode and in the kernel, in hundredths of a second.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next().unwrap_or_default();
        let ticks: u64 =
            fields.skip(10).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let name = name.trim();
        let _ = writeln!(out, "  thread {name}: {state} in {wchan}, has used {ticks}0 ms");
    }
    out
}
