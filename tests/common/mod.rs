//! What the tests share: watchdogs, fresh processes, foreign wakers, and meters for what a runtime may not waste.
//!
//! A test file says `mod common;` and takes what it needs:
//!
//! - **never hang**: [`within`] runs a piece of code under a watchdog, [`eventually`] waits for a condition;
//! - **a process of one's own**, for tests of environment variables, threads, idleness, memory or exit: [`fresh_process`] runs the
//!   calling test again, alone, in a new process, [`fresh_processes`] in several, one after the other; [`fresh_process_output`] shows
//!   how that process ended;
//! - **foreign machinery**: [`foreign_block_on`] knows nothing of smol; [`counting_waker`] counts wakes; [`hook_waker`] runs any code
//!   when it is woken, cloned or dropped; [`Flag`] is an event that tasks and threads can wait for; [`OnDrop`] runs code on drop,
//!   [`set_on_drop`] sets a flag; [`sleep`] is a timer without its result, [`socket_pair`] two connected sockets;
//! - **meters**: [`cpu_time`], [`live_bytes`] and, on Linux, [`threads`], [`voluntary_switches`], [`idle_cost`], [`open_fds`].

#![allow(dead_code)] // each test program uses its own part of this file

use smol::{Async, Timer};
use std::{
    env,
    fs::{self, File},
    future::Future,
    io::{Read, Seek, Write},
    net::{TcpListener, TcpStream},
    pin::pin,
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

// ---------- never hang ----------

/// Runs `body` here, and ends the whole process with a message if that takes longer than `seconds`.
///
/// The bound is against hangs: make it generous. A panic passes through. There is one more thread while `body` runs.
#[track_caller]
pub(crate) fn within<T>(seconds: u64, body: impl FnOnce() -> T) -> T {
    let caller = std::panic::Location::caller();
    let (done, alarm) = mpsc::channel::<()>();
    let (awake, is_awake) = mpsc::channel::<()>();
    let watchdog = thread::Builder::new()
        .name("watchdog".into())
        .stack_size(128 * 1024) // explicit: starts even where RUST_MIN_STACK forbids others
        .spawn(move || {
            drop(awake);
            let outcome = alarm.recv_timeout(Duration::from_secs(seconds));
            if outcome == Err(mpsc::RecvTimeoutError::Timeout) {
                // Not `eprintln!`: the test harness would swallow it.
                let _ = writeln!(
                    std::io::stderr(),
                    "\nWATCHDOG: {caller} still runs after {seconds} s"
                );
                std::process::abort();
            }
        })
        .expect("cannot start the watchdog");
    let _ = is_awake.recv(); // it has its name and its memory now; what `body` takes away cannot hurt it
    let result = body(); // a panic drops `done`, which ends the watchdog
    drop(done);
    watchdog.join().expect("the watchdog failed");
    result
}

/// Waits until `condition` holds: for facts that nothing announces, such as the end of another thread. Use under [`within`].
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

// ---------- a process of one's own ----------

const CHILD: &str = "SMOL_TEST_CHILD";

/// How a process started by [`fresh_process_output`] ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Standard output and standard error, as they came.
    pub(crate) output: String,
    /// From start to end, exit included.
    pub(crate) took: Duration,
}

/// Runs the calling test again in a process of its own, with `env` added to its environment, and there `body`, under a watchdog.
///
/// Must be called directly in a `#[test]` function, as its only statement: the test's name is taken from the type of the closure.
/// The process has to succeed and to be gone within `seconds`, or the test fails and shows its output.
#[track_caller]
pub(crate) fn fresh_process<F: FnOnce()>(seconds: u64, env: &[(&str, &str)], body: F) {
    fresh_processes(seconds, &[env], body);
}

/// Like [`fresh_process`], once for each of `envs`.
#[track_caller]
pub(crate) fn fresh_processes<F: FnOnce()>(seconds: u64, envs: &[&[(&str, &str)]], body: F) {
    if env::var_os(CHILD).is_some() {
        return within(seconds, body);
    }
    for env in envs {
        let ended = run_again::<F>(seconds, env);
        assert!(ended.status.success(), "{} with {env:?}\n{}", ended.status, ended.output);
        assert!(ended.output.contains("1 passed"), "the test did not run:\n{}", ended.output);
    }
}

/// Like [`fresh_process`], but lets the caller judge the end: `Some` in the parent, `None` in the child, after `body`.
#[track_caller]
pub(crate) fn fresh_process_output<F: FnOnce()>(
    seconds: u64,
    env: &[(&str, &str)],
    body: F,
) -> Option<Ended> {
    if env::var_os(CHILD).is_some() {
        within(seconds, body);
        return None;
    }
    Some(run_again::<F>(seconds, env))
}

#[track_caller]
fn run_again<F>(seconds: u64, env: &[(&str, &str)]) -> Ended {
    let path = std::any::type_name::<F>(); // file::test::{{closure}}
    let name = path
        .split_once("::")
        .and_then(|(_, rest)| rest.rsplit_once("::"))
        .expect("a closure in a test")
        .0;
    let start = Instant::now();
    let mut capture: File = tempfile::tempfile().unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(capture.try_clone().unwrap())
        .stderr(capture.try_clone().unwrap())
        .spawn()
        .unwrap();
    // The child's own watchdog speaks first; this one is for a process that does not even exit.
    let deadline = start + Duration::from_secs(seconds + 2);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let took = start.elapsed();
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut output = Vec::new();
    capture.rewind().unwrap();
    capture.read_to_end(&mut output).unwrap();
    let output = String::from_utf8_lossy(&output).into_owned();
    let Some(status) = status else { panic!("`{name}` did not end within {seconds} s:\n{output}") };
    Ended { status, output, took }
}

// ---------- foreign machinery ----------

/// The ten-line `block_on` of somebody else: it parks its thread and knows nothing of smol.
pub(crate) fn foreign_block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => thread::park(),
        }
    }
}

/// A number that a waker counts up.
#[derive(Debug, Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that only counts how often it was woken.
pub(crate) fn counting_waker() -> (Waker, Arc<Wakes>) {
    let wakes = Arc::new(Wakes::default());
    (Waker::from(wakes.clone()), wakes)
}

/// Polls a future once, waits until it is woken, and drops it.
pub(crate) fn give_up(future: impl Future) {
    let (waker, wakes) = counting_waker();
    let mut future = std::pin::pin!(future);
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    eventually(|| wakes.count() > 0);
}

/// Waits until all tasks are done.
pub(crate) fn wait_for_all<T>(tasks: impl IntoIterator<Item = smol::Task<T>>) {
    smol::block_on(async {
        for task in tasks {
            task.await;
        }
    });
}

/// A waker that runs `hook` when it is woken and when its last copy is dropped: code of a user in the worst of places.
///
/// std's safe `Wake` cannot see a clone; but whoever clones a waker while it holds a lock also drops one under it.
pub(crate) fn hook_waker(hook: impl Fn() + Send + Sync + 'static) -> Waker {
    struct Hook<F: Fn() + Send + Sync>(F);
    impl<F: Fn() + Send + Sync> Wake for Hook<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }
    impl<F: Fn() + Send + Sync> Drop for Hook<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Waker::from(Arc::new(Hook(hook)))
}

/// An event that happens once; tasks and threads can wait for it.
#[derive(Debug, Default)]
pub(crate) struct Flag {
    state: Mutex<(bool, Vec<Waker>)>,
    changed: Condvar,
}

impl Flag {
    pub(crate) fn new() -> Arc<Flag> {
        Arc::new(Flag::default())
    }

    pub(crate) fn set(&self) {
        let wakers = {
            let mut state = self.state.lock().unwrap();
            state.0 = true;
            self.changed.notify_all();
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.state.lock().unwrap().0
    }

    /// Waits in a task.
    pub(crate) async fn wait(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().unwrap();
            if state.0 {
                return Poll::Ready(());
            }
            if !state.1.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.1.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Waits in a thread, blocking it.
    pub(crate) fn wait_blocking(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !state.0).unwrap());
    }
}

/// What it returns sets `flag` when it is dropped.
pub(crate) fn set_on_drop(flag: &Arc<Flag>) -> OnDrop<impl FnMut() + Send + 'static> {
    let flag = flag.clone();
    OnDrop(move || flag.set())
}

/// Runs its closure when it is dropped.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A [`Timer`] without its result.
pub(crate) async fn sleep(duration: Duration) {
    Timer::after(duration).await;
}

/// Waits in one way of five, by turns, for a time of less than three milliseconds.
pub(crate) fn wait_in_some_way(n: u64, round: u64) {
    let time = Duration::from_micros((n * 37 + round * 101) % 3000);
    match (n + round) % 5 {
        0 => drop(smol::block_on(Timer::after(time))),
        1 => drop(foreign_block_on(Timer::after(time))),
        2 => drop(smol::block_on(smol::spawn(Timer::after(time)))),
        3 => {
            let inner = smol::spawn(async move {
                smol::spawn(Timer::after(time)).await;
                smol::future::yield_now().await;
            });
            smol::block_on(inner);
        }
        _ => drop(smol::block_on(smol::unblock(|| 3))),
    }
}

/// Two connected sockets, on every platform.
pub(crate) fn socket_pair() -> (Async<TcpStream>, Async<TcpStream>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let two = listener.accept().unwrap().0;
    (Async::new(one).unwrap(), Async::new(two).unwrap())
}

// ---------- meters ----------

/// The processor time that this process has used so far.
#[cfg(unix)]
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The heap bytes in use, in a test program that says
/// `#[global_allocator] static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;`
pub(crate) fn live_bytes() -> isize {
    let stats = stats_alloc::INSTRUMENTED_SYSTEM.stats();
    // `bytes_reallocated` is part of the other two already: growth counts as allocated, shrinking as deallocated.
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// The names of the threads of this process (the kernel cuts them to 15 bytes).
#[cfg(target_os = "linux")]
pub(crate) fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // A thread that ends meanwhile is none.
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// How many threads of this process bear a name that starts with `prefix`.
#[cfg(target_os = "linux")]
pub(crate) fn threads_named(prefix: &str) -> usize {
    threads().iter().filter(|name| name.starts_with(prefix)).count()
}

/// How often the threads of this process that are alive now went to sleep on their own accord, that is: how often something woke them.
#[cfg(target_os = "linux")]
pub(crate) fn voluntary_switches() -> u64 {
    let of_task = |status: String| -> Option<u64> {
        status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?
            .trim()
            .parse()
            .ok()
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| of_task(fs::read_to_string(task.ok()?.path().join("status")).ok()?))
        .sum()
}

/// Sleeps until the process is quiet (5 s at most), then sleeps for `duration`, and says what the process used meanwhile: processor
/// time, and wake-ups of its threads other than this one. For [`fresh_process`]: other tests would be counted too.
#[cfg(target_os = "linux")]
pub(crate) fn idle_cost(duration: Duration) -> (Duration, u64) {
    let measure = |duration| {
        let (cpu, switches) = (cpu_time(), voluntary_switches());
        thread::sleep(duration);
        // This thread's own sleep is one switch.
        (cpu_time() - cpu, voluntary_switches().saturating_sub(switches + 1))
    };
    let patience = Instant::now() + Duration::from_secs(5);
    while measure(Duration::from_millis(100)).1 > 0 && Instant::now() < patience {}
    measure(duration)
}

/// The number of open file descriptors of this process.
#[cfg(target_os = "linux")]
pub(crate) fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count() - 1 // one is the listing's own
}
