//! A small and fast async runtime, in one file that explains itself.
//!
//! ```
//! use smol::{Async, io, prelude::*};
//! use std::net::{TcpListener, TcpStream};
//!
//! # fn main() -> io::Result<()> {
//! smol::block_on(async {
//!     let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
//!     let addr = listener.get_ref().local_addr()?;
//!     // A task of its own, on another thread.
//!     let server = smol::spawn(async move {
//!         let (stream, _) = listener.accept().await?;
//!         io::copy(stream.clone(), stream).await
//!     });
//!     let mut client = Async::<TcpStream>::connect(addr).await?;
//!     client.write_all(b"hello").await?;
//!     client.close().await?;
//!     let mut echo = String::new();
//!     client.read_to_string(&mut echo).await?;
//!     assert_eq!((echo.as_str(), server.await?), ("hello", 5));
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # What is inside
//!
//! - [`block_on`] runs a future on this thread. [`spawn`] starts a [`Task`] on the worker threads,
//!   [`spawn_local`] one that is not `Send` on this thread, and [`scope`] children that may borrow.
//! - [`Async<T>`](Async) makes std's sockets, files, pipes and processes asynchronous, and any
//!   other handle that the system's poller knows. [`resolve`] looks up names.
//! - [`Timer`] is a deadline or an interval, and [`timeout`] a limit for any future.
//! - [`unblock`] runs a closure where it may block, [`Unblock`] a reader, writer or iterator.
//! - [`Executor`] and [`LocalExecutor`] are for those who want one of their own.
//! - [`on_stall`], or `SMOL_STALLS=20` in the environment, tells which task keeps its thread, and
//!   where it was spawned; [`tasks`] lists all of them.
//! - [`future`], [`stream`], [`io`] and [`prelude`] are futures-lite's. The features `channel` and
//!   `lock` re-export async-channel and async-lock, which work with any runtime, and nothing more.
//!
//! [The guide](crate::guide) answers questions, each with a program that runs, and has tables for
//! those who come from smol 1 or 2, or from tokio.
//!
//! Everything works under any executor, and any future, also one made for another runtime's traits,
//! can be run by this one. The number of workers is `SMOL_THREADS`, else that of the processors;
//! the blocking pool has up to `BLOCKING_MAX_THREADS`, else 500. (Of either a thousand at most.)
//!
//! Linux and Android, macOS, iOS and the BSDs, Windows, illumos and Solaris, by the `polling`
//! crate. On Windows only sockets can be polled; connects, files and pipes go through the pool
//! there.
//!
//! Not to be had: a process that used the runtime and then forks cannot use it in the child, where
//! it panics and says so. An output with a destructor that panics, of a detached task, aborts the
//! process, and so does a waker that panics while it awaits a [`Task`] (both in async-task). And a
//! waker may not wait for what is woken together with it: timers of one deadline, events of one
//! moment.
//!
//! # How it works
//!
//! This file is the whole runtime. Read it from top to bottom: each section uses only the sections
//! above it. §2-§4 run tasks, §5 listens to the kernel; they never mention each other. They meet in
//! [`Waker`] and in §6, the loop. Who stops reading after §6 has understood an async runtime;
//! what follows is its face. `grep -n '^// §' src/lib.rs` prints the table of contents:
//!
//! - §1  Ground: what everything stands on
//! - §2  Task: a future in a box, with a handle outside and a ticket inside
//! - §3  Executor: tickets in queues, workers that take them
//! - §4  Local executor: the same, for futures that cannot move
//! - §5  Reactor: turns kernel news and deadlines into wake-ups
//! - §6  The loop: the only place that knows both halves
//! - §7  Scopes: tasks that may borrow
//! - §8  Timer: a deadline you can await
//! - §9  Blocking pool: a place where waiting is allowed
//! - §10  `Async<T>`: whatever the operating system gives, without blocking
//! - §11  Sockets: TCP, UDP and Unix on `Async<T>`
//! - §12  Files and processes: what the kernel cannot poll, and what it can
//! - §13  The README and the guide
//!
//! ## The life of a task
//!
//! 1. `spawn(future)` (§6) boxes the future once (§2) and yields two ends: a `Runnable`, the ticket
//!    that allows one poll, and a [`Task`], the handle that receives the output.
//! 2. The ticket goes into a queue: that of the worker we are on, or else the injector (§3).
//! 3. A worker takes it, or steals it, and runs it: one `poll`, on that thread.
//! 4. `Pending`: the ticket is used up. Nothing refers to the task now but the wakers that its
//!    future has left with others. If it has left none, nobody will ever poll it again: the
//!    commonest bug in futures written by hand.
//! 5. A waker fires: there is a ticket again, go to 2. Firing twice before 3 is the same as firing
//!    once.
//! 6. `Ready`: the output moves to the handle, and whoever awaits it is woken. A panic travels the
//!    same way. Dropping the handle cancels: the ticket is issued one last time, and the future
//!    dies on a worker.
//!
//! ## The life of a wake-up
//!
//! Waker → ticket into a queue → does a worker search already? → if not, call one that sleeps → it
//! searches. The danger is the gap between "I found nothing" and "I sleep". Both sides close it in
//! the same way, and this is the first proof:
//!
//! | the waker: `push`, `notify`           | the sleeper: `fall_asleep` (§6), `sleep` (§3) |
//! |---------------------------------------|-----------------------------------------------|
//! | W1 put the ticket into a queue        | S1 announce "I sleep", in a word              |
//! | W2 look at the word: who sleeps?      | S2 look at all queues again                   |
//! | W3 if somebody does, call one         | S3 if there is still nothing, sleep           |
//!
//! All four accesses of W1, W2, S1 and S2 are sequentially consistent, so there is one order of
//! them all: either W1 comes before S2, and the sleeper sees the ticket; or S2 comes before W1,
//! then S1 before W2, and the waker sees the sleeper. Never neither. `tests/wake.rs` and
//! `tests/stress.rs` would hang.
//!
//! Two kinds of tickets call nobody. One that a worker keeps for itself: the alarm is set for it
//! (I6.2). And one that is pushed while a worker searches: the last one to stop searching says so
//! in the word, looks at all queues as in S2, and calls the next (I6.4).
//!
//! The same word tells whether somebody sits in the kernel's poller (the seat, §6), and whether the
//! alarm is set that makes the watcher look. A seat must not stay empty while something is waited
//! for, and this is the second proof:
//!
//! | who begins to wait: `attend`          | who sleeps, or leaves the seat: `finish`      |
//! |---------------------------------------|-----------------------------------------------|
//! | A1 note the source or the timer       | S1 change the word: the seat, the alarm       |
//! | A2 look at the word: seat or alarm?   | S2' look whether anything is waited for       |
//! | A3 if neither, set the alarm          | S3' if so, sit down, or set the alarm         |
//!
//! By the same argument one of them sees the other. Three may pass by an empty seat. A thread in
//! `block_on` while a worker is awake: that one comes, or the watcher sees that it does not. Who
//! waits in one of our loops: it sits down before it sleeps. And who waits under a foreign executor
//! inside of such a loop: the watcher comes, after a tick. Under a foreign executor elsewhere, A3
//! fills the seat at once. Where no watcher can be started, whoever leaves the seat calls the next.
//!
//! These two pairs are all there are between threads that sleep and threads that do not; everything
//! else about sleeping lies under one lock, or in one word of one thread.
//!
//! What a waker does depends on whose it is: a task's queues its ticket (§3), a local task's as
//! well, or puts it into a letter box (§4); that of a main future or of a thread wakes the thread
//! (§6); that of a scope's child notes the child, and wakes the scope (§7).
//!
//! ## The life of a byte
//!
//! A byte never passes through the runtime, only the news of it does. `read` says WouldBlock → the
//! task leaves its waker with the source, which is registered with the kernel the first time (§10,
//! §5) → the kernel buffers the byte → the thread in the poller collects the source's wakers, lets
//! go of every lock, and wakes them (§6) → the task is polled and calls `read` again, straight from
//! the kernel's memory into the caller's.
//!
//! ## When everything is idle
//!
//! If anything is waited for, one thread sleeps in the kernel's poller until the earliest deadline.
//! The others are parked, and the watcher's alarm is stopped. Nothing ticks, no processor is used.
//!
//! | news                                        | reaches                                        |
//! |---------------------------------------------|------------------------------------------------|
//! | a task is woken or spawned                  | one sleeping worker (the first table)          |
//! | a main future is woken                      | its thread, wherever that sleeps               |
//! | a handle becomes ready, a deadline passes   | the thread in the poller                       |
//! | an earlier timer is set                     | the thread in the poller, which it interrupts  |
//! | the thread in the poller leaves with work   | nobody; the alarm is set, should it not return |
//! | a blocking job ends                         | like any other wake-up                         |
//!
//! ## Locks
//!
//! No lock is held while anybody else's code runs: no poll, no wake, and no clone or drop of a
//! waker or future. So most locks are leaves, under which nothing else is locked. The others, from
//! left to right:
//!
//! - `asked` (the kernel's answer, owned by the seat) < `waiters` (of a source) < `sources` (§5)
//! - a lane's `state` < a handle's desk (§9)
//! - `MINDED` < `state` of a process (§12)
//! - `active` (§3) < `KNOWN` (§2); `STARTING` < the state of `IDLE` (§6)
//! - leaves: `drivers`, `locals` (§3), `mail` (§4), `timers` (§5), the state of `IDLE` (§6), the
//!   list of a scope (§7), the pool's `state` (§9), `pipes` (§12)
//!
//! ## Where to change what
//!
//! Fairness: the constants in §1. Who sleeps and who is woken: `Idle` in §6, and `Crew` in §3. Who
//! asks the kernel: §6. A new kind of event: §5, and a type after §10. A socket's method: §11. The
//! size of the pool: `allowed` in §9. Platforms: `Kernel` in §5, and the `cfg`s of §10-§12.

#![cfg_attr(
    all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend)),
    forbid(unsafe_code)
)]

// ============================================================================================
// §1  Ground: what everything stands on
// ============================================================================================
//
// uses nothing · used by all
//
// NEVER     runs anybody else's code with a lock held, and never trusts it not to panic.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::iter;
use std::marker::PhantomData;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::ops::Bound;
#[cfg(unix)]
use std::os::fd::{AsFd as AsHandle, AsRawFd, BorrowedFd, OwnedFd, RawFd};
#[cfg(unix)]
use std::os::fd::{BorrowedFd as Borrowed, OwnedFd as Owned};
#[cfg(unix)]
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, AsSocket as AsHandle, BorrowedSocket, RawSocket};
#[cfg(windows)]
use std::os::windows::io::{BorrowedSocket as Borrowed, OwnedSocket as Owned};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, panic_any, resume_unwind};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use async_task::{Builder, Runnable};
use concurrent_queue::ConcurrentQueue;
use futures_lite::stream::Stream;
use futures_lite::{AsyncRead, AsyncSeek, AsyncWrite};
use once_cell::sync::OnceCell;
use parking::{Parker, Unparker};
use pin_project_lite::pin_project;
use polling::{Event, Poller};
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::Timespec;
#[cfg(all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend)))]
use rustix::event::epoll;
use waker_fn::waker_fn;

pub use async_task::{FallibleTask, Task};
pub use futures_lite::{future, io, pin, prelude, ready, stream};

#[cfg(feature = "channel")]
pub use async_channel as channel;
#[cfg(feature = "lock")]
pub use async_lock as lock;

/// I/O operations a task may complete in one poll before it must let others run (tokio's budget is
/// the same): a yield for 128 system calls is cheap, and 128 of them last less than a millisecond.
const OPS_PER_POLL: u32 = 128;
/// Tasks a worker runs between two looks at the injector; a prime, so that it does not beat with
/// the user's own periods (Go and tokio use the same number). Bench: `spawn_remote_busy2`.
const TASKS_PER_LOOK: u32 = 61;
/// Tasks a thread runs between two looks at the kernel while it is never idle: such a look costs
/// some 200 ns on Linux and 850 with `polling`, so that it adds 3 or 14 ns to each task.
const TASKS_PER_GLANCE: u32 = 61;
/// Of so many calls of `run` whose future is ready at once, one runs a task.
const READY_RUNS: u32 = 8;
/// A worker's queue: what does not fit goes to its overflow.
const LOCAL_QUEUE: usize = 256;
/// Where nobody tells the time, a ticket of a full queue changes places with one of an overflow
/// each time that so many tasks have run. (Two workers at one queue cost each other: at every 61st
/// task, `yield_1000x1000` takes a fifth longer.)
const TASKS_PER_EXCHANGE: u32 = 16 * TASKS_PER_LOOK;
/// How often the watcher looks while threads are busy. Twice this is how long a blocked task can
/// hold up others; 250 wake-ups a second are 0.1 % of a processor.
const TICK: Duration = Duration::from_millis(4);
/// Ticks without anything happening after which the watcher stops its alarm although workers are
/// awake.
const QUIET_TICKS: u32 = 2;
/// How long a `block_on` inside of a local task leaves that task's siblings alone, see
/// [`block_on`]: longer than most things last that it may wait for, and short enough for whoever
/// waits for a sibling.
const SIBLINGS_WAIT: Duration = Duration::from_millis(100);
/// And how many of them may run on top of each other, each in a `block_on` of the one below.
const SIBLINGS_DEEP: u32 = 32;
/// From this size on, in bytes, a future gets an allocation of its own (async-task would do the
/// same).
const LARGE_FUTURE: usize = 2048;
/// The longest sleep where the kernel's poller cannot be had (no descriptors left, or closed by
/// somebody): then a deadline or a wake-up can be this late.
const NAP: Duration = Duration::from_millis(10);
/// How long an idle pool thread waits for a job before it ends.
const POOL_IDLE: Duration = Duration::from_secs(2);
/// Pool threads that may be starting at the same time; more only contend for the same processors.
const POOL_STARTING: usize = 4;
/// Idle pool threads that may be on their way at the same time; each calls the next if jobs are
/// left, so that jobs that end at once do not wake one thread each (`unblock_100k`: 2.8 µs with a
/// call per job, 0.1 with this).
const POOL_CALLED: usize = 2;
/// How long a thread beyond the limit looks on before it takes a job.
const POOL_PATIENCE: Duration = Duration::from_millis(10);
/// Pool threads at most, unless `BLOCKING_MAX_THREADS` says otherwise.
const POOL_LIMIT: usize = 500;
/// The most that one read or write of a pool-driven handle moves, and thus what it may buffer.
const POOL_CHUNK: usize = 1 << 20;
/// The most that a read of a file takes from the page cache at once: some 50 µs of copying.
const READ_STEP: usize = 256 << 10;
/// So many bytes cost a task as much of its budget as an operation does: some 6 MiB per poll, which
/// take 5 to 20 ms where the memory they go to is touched for the first time.
const BYTES_PER_OP: usize = 64 << 10;
/// Operations in the queue of a lane; whoever comes then waits for its end.
const LANE_OPS: usize = 1024;
/// From this size on, a desk forgets answers that nobody has come for in so long a time.
const DESK_LIMIT: usize = 4096;
const DESK_AGE: Duration = Duration::from_secs(60);
/// RFC 8305 section 5, "Connection Attempt Delay".
const CONNECT_STAGGER: Duration = Duration::from_millis(250);
/// How long `accept` holds back an error that only time can cure, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// One of the ten stops of the tour: prints itself under `--cfg tour`, is nothing otherwise.
macro_rules! tour {
    ($stop:literal, $($text:tt)*) => {
        #[cfg(tour)]
        eprintln!("[tour {}] {:?}: {}", $stop, thread::current().id(), format_args!($($text)*));
    };
}

/// Locks a mutex. Nobody else's code runs under our locks, so that a panic cannot leave the data
/// half changed, and a poisoned lock is as good as any.
#[inline]
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(err)) => err.into_inner(),
        Err(TryLockError::WouldBlock) => wait_for_lock(mutex),
    }
}

/// What another thread had locked at the moment of a fork stays locked in the child.
#[cold]
fn wait_for_lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    if !thread::panicking() {
        check_for_fork();
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs somebody else's code whose panic must not take this thread along: a waker, a destructor.
fn shielded(code: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // The panic has been reported by the hook. What it carried may panic in its turn.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            mem::forget(second);
        }
    }
}

/// Wakes what was collected under a lock, after the lock was let go.
fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        shielded(|| waker.wake());
    }
}

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A table with small keys that are used again.
struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// The first of the free entries, which are linked to one another.
    free: usize,
    len: usize,
}

enum Entry<T> {
    Full(T),
    Free(usize),
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab::new()
    }
}

impl<T> Slab<T> {
    const fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: usize::MAX, len: 0 }
    }

    fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        match self.entries.get_mut(self.free) {
            None => {
                self.entries.push(Entry::Full(value));
                self.entries.len() - 1
            }
            Some(entry) => {
                let key = self.free;
                if let Entry::Free(next) = mem::replace(entry, Entry::Full(value)) {
                    self.free = next;
                }
                key
            }
        }
    }

    fn get(&self, key: usize) -> Option<&T> {
        match self.entries.get(key) {
            Some(Entry::Full(value)) => Some(value),
            _ => None,
        }
    }

    fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        match self.entries.get_mut(key) {
            Some(Entry::Full(value)) => Some(value),
            _ => None,
        }
    }

    fn remove(&mut self, key: usize) -> Option<T> {
        let entry = self.entries.get_mut(key)?;
        if let Entry::Free(_) = entry {
            return None;
        }
        let Entry::Full(value) = mem::replace(entry, Entry::Free(self.free)) else {
            return None;
        };
        self.free = key;
        self.len -= 1;
        // An empty table gives a burst's memory back.
        if self.len == 0 && self.entries.capacity() > 1024 {
            *self = Slab::new();
        }
        Some(value)
    }

    fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().filter_map(|entry| match entry {
            Entry::Full(value) => Some(value),
            Entry::Free(_) => None,
        })
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Full(value) => Some(value),
            Entry::Free(_) => None,
        })
    }
}

/// A number or a flag of each thread's own. Where a system takes these away before the thread's
/// last destructor has run, there is only the default then, and nothing can be noted.
trait PerThread<T> {
    fn now(&'static self) -> T;

    /// Returns what was noted before.
    fn note(&'static self, value: T) -> T;
}

impl<T: Copy + Default> PerThread<T> for thread::LocalKey<Cell<T>> {
    #[inline]
    fn now(&'static self) -> T {
        self.try_with(Cell::get).unwrap_or_default()
    }

    #[inline]
    fn note(&'static self, value: T) -> T {
        self.try_with(|cell| cell.replace(value)).unwrap_or_default()
    }
}

/// Puts something else into a thread's own place, until the guard is dropped.
fn set_for_now<T>(place: &'static thread::LocalKey<RefCell<T>>, value: T) -> impl Drop {
    let mut outer = place.try_with(|place| place.replace(value)).ok();
    OnDrop(move || {
        if let Some(outer) = outer.take() {
            let _ = place.try_with(|place| drop(place.replace(outer)));
        }
    })
}

thread_local! {
    /// What is left of the [`OPS_PER_POLL`] of the task that this thread is polling.
    static BUDGET: Cell<u32> = const { Cell::new(OPS_PER_POLL) };
    /// That task was told to let others run, and went on.
    static OVERDRAWN: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// Who waits with this waker need not care for the reactor, since this thread will sit down in
    /// the poller by itself: the waker (the address of its data) of the future that a loop of ours
    /// is polling on this thread. Zero if a foreign executor is between the loop and that future.
    static OURS: Cell<usize> = const { Cell::new(0) };
    /// Whether the tasks that this thread polls right now are run by such a loop.
    static OUR_TASKS: Cell<bool> = const { Cell::new(false) };
}

/// Whether one of our loops polls the future with this waker.
#[inline]
fn is_ours(waker: &Waker) -> bool {
    OURS.now() == waker.data().addr() && OURS.now() != 0
}

/// What is run until the guard is dropped is run by one of our loops, or is not.
fn run_as(ours: bool) -> impl Drop + use<> {
    let (tasks, waker) = (OUR_TASKS.note(ours), OURS.now());
    OnDrop(move || {
        OUR_TASKS.note(tasks);
        OURS.note(waker);
    })
}

/// Whether this process is the child of one that used the runtime. The child has none of the
/// threads, and shares the kernel's poller with its parent.
fn is_forked() -> bool {
    static HOME: OnceLock<u32> = OnceLock::new();
    let here = std::process::id();
    *HOME.get_or_init(|| here) != here
}

const FORKED: &str =
    "smol was used before fork() and cannot be used in the child: its threads did not come along";

/// To be called before waiting for something that another thread does. Destructors must not.
fn check_for_fork() {
    if is_forked() {
        panic_any(FORKED);
    }
}

thread_local! {
    /// How many calls of `block_on` and loops of workers this thread is inside of, in multiples of
    /// [`DEEPER`]; and two flags of the innermost, so that each call saves one number, not three.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

const DEEPER: usize = 4;
/// The main future that is being polled has begun to wait for the reactor.
const ATTENDED: usize = 1;
/// It has found out whose kind of waker leads to it (`leads_home`, §6).
const LEARNT: usize = 2;

/// Whether this thread is in `block_on`, or in the loop of a worker.
fn is_in_loop() -> bool {
    DEPTH.now() >= DEEPER
}

/// The same where `block_on` has not looked already: it is a system call.
fn check_for_fork_outside() {
    if !is_in_loop() {
        check_for_fork();
    }
}

/// Gives the task that is about to be polled a full budget.
#[inline]
fn refill_budget() {
    BUDGET.note(OPS_PER_POLL);
    OVERDRAWN.note(false);
}

/// Sees to it that the tasks which are run until the guard is dropped leave the budget of the
/// surrounding one as it is.
fn keep_budget() -> impl Drop {
    let left = BUDGET.now();
    OnDrop(move || _ = BUDGET.note(left))
}

/// Pays for one I/O operation. A task that has spent all it had is woken and told `Pending`, so
/// that its executor gets a chance to run others: an always-ready socket starves nobody.
/// Under an executor that does not refill the budget, every 128th operation yields instead.
#[inline]
fn spend(cx: &mut Context<'_>) -> Poll<()> {
    let left = BUDGET.try_with(|left| left.replace(left.get().wrapping_sub(1))).unwrap_or(1);
    if left == 0 {
        refill_budget();
        OVERDRAWN.note(true);
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

/// Pays for what an operation has moved, once that is known.
fn spend_bytes(len: usize) {
    let cost = (len / BYTES_PER_OP) as u32;
    BUDGET.note(BUDGET.now().saturating_sub(cost));
}

/// Counts the watcher's ticks (§6), which come while threads are busy: a clock for those who cannot
/// afford to look at a real one after each task (20 ns; this is less than one).
static CLOCK: AtomicU32 = AtomicU32::new(0);

#[inline]
fn clock() -> u32 {
    // Ordering: Relaxed. Nothing is read because of its value.
    CLOCK.load(Ordering::Relaxed)
}

/// When time began, for those who count it.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// The time of a clock that costs little and moves only every few milliseconds (clock_gettime(2)),
/// where there is one.
#[inline]
fn coarse_time() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    epoch().elapsed()
}

/// Tells somebody who polls tasks and is never idle when it is time to look at something else:
/// after so many polls, or at a tick of the watcher, or after a millisecond.
struct Pace {
    polls: Cell<u32>,
    clock: Cell<u32>,
    /// When it counted the first of these polls.
    since: Cell<Duration>,
}

impl Pace {
    fn new() -> Pace {
        Pace { polls: Cell::new(0), clock: Cell::new(clock()), since: Cell::default() }
    }

    /// Counts a poll; says whether it is time.
    #[inline]
    fn is_due(&self) -> bool {
        let polls = self.polls.get() + 1;
        self.polls.set(polls);
        // Even the coarse clock costs a tenth of a poll; so only at the first, second, fourth and
        // each eighth poll.
        let is_turn = matches!(polls, 1 | 2 | 4) || polls % 8 == 0 || polls >= TASKS_PER_GLANCE;
        (is_turn || self.clock.get() != clock()) && self.is_late(polls)
    }

    #[cold]
    fn is_late(&self, polls: u32) -> bool {
        let has_ticked = self.clock.replace(clock()) != clock();
        let now = coarse_time();
        if polls == 1 {
            self.since.set(now);
        }
        let took = now.saturating_sub(self.since.get());
        let is_late = has_ticked || took > Duration::from_millis(1) || polls >= TASKS_PER_GLANCE;
        if is_late {
            self.polls.set(0);
        }
        is_late
    }
}

// ============================================================================================
// §2  Task: a future in a box, with a handle outside and a ticket inside
// ============================================================================================
//
// uses §1 · used by §3 §4 §6 §9 · locks: KNOWN (leaf)
//
// PROBLEM   A future is inert. Someone must own it, poll it when it was woken, and pass its output
//           on.
// IDEA      async-task puts future, state and output into one allocation with two ends: [`Task`],
//           the handle of whoever wants the output, and `Runnable`, the ticket that allows one
//           poll. There is never more than one ticket for a task; waking a task means to issue it.
// I2.1      A panic of the future travels to whoever awaits the handle; the thread that polls
//           survives.
// I2.2      A panic of the future's destructor is reported by the panic hook and ends there.
//           (async-task aborts the process instead, for want of a place to raise it; see
//           `Guarded`.)
// NEVER     knows an executor: who queues tickets is the schedule function's business.

pin_project! {
    /// A future whose destructor may panic, and something to do when the future is gone.
    struct Guarded<F, D: FnMut()> {
        // `None` only while it is being dropped.
        #[pin]
        future: Option<F>,
        // Runs after the future's own destructor.
        after: D,
    }

    impl<F, D: FnMut()> PinnedDrop for Guarded<F, D> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            tour!(10, "a future is dropped");
            shielded(|| this.future.set(None));
            (this.after)();
        }
    }
}

impl<F: Future, D: FnMut()> Future for Guarded<F, D> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let ours = OUR_TASKS.now();
        OURS.note(if ours { cx.waker().data().addr() } else { 0 });
        match self.project().future.as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Where a task comes from: the caller of `spawn`, and whether it is a closure on the pool.
#[derive(Clone, Copy)]
struct Origin {
    place: &'static Location<'static>,
    may_block: bool,
    is_watched: bool,
}

impl Origin {
    #[track_caller]
    fn here(may_block: bool) -> Origin {
        Origin { place: Location::caller(), may_block, is_watched: is_watching() }
    }
}

/// Boxes a future together with the function that queues its tickets.
fn new_task<F, S>(
    future: F,
    origin: Origin,
    after: impl FnMut() + Send + 'static,
    schedule: S,
) -> (Runnable, Task<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    S: Fn(Runnable) + Send + Sync + 'static,
{
    tour!(1, "a future of {} bytes is boxed: one ticket, one handle", mem::size_of::<F>());
    // The fewer moves of a large future, the smaller the stack that suffices for them.
    if mem::size_of::<F>() >= LARGE_FUTURE || origin.is_watched {
        let future = Box::pin(future);
        if origin.is_watched {
            let future: future::Boxed<F::Output> = future;
            return box_task(Watched::new(future, origin), after, schedule);
        }
        return box_task(future, after, schedule);
    }
    box_task(future, after, schedule)
}

/// The same for a future of moderate size.
fn box_task<F, S>(
    future: F,
    after: impl FnMut() + Send + 'static,
    schedule: S,
) -> (Runnable, Task<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    S: Fn(Runnable) + Send + Sync + 'static,
{
    let future = Guarded { future: Some(future), after };
    Builder::new().propagate_panic(true).spawn(move |()| future, schedule)
}

// ---------- Which task is stuck ----------

/// A task that has kept its thread for long, as [`on_stall`] tells it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// Where the task was spawned.
    pub place: &'static Location<'static>,
    /// How long the poll has lasted that is under way.
    pub time: Duration,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, millis) = (self.place, self.time.as_millis());
        write!(f, "a task spawned at {place} has kept its thread for {millis} ms")
    }
}

/// Calls `report` when a task has kept its thread for longer than `limit`: it computes, or it
/// blocks, in a lock, a system call or a nested [`block_on`]. Nobody else can say where.
///
/// `SMOL_STALLS=20` in the environment prints such tasks to standard error, here with a limit of 20
/// milliseconds. A place is told once, and not more than one in a second. Tasks are known that were
/// spawned after this call, by [`spawn`], [`spawn_local`] and the executors; closures of
/// [`unblock`] may block. While it is on, each task costs an allocation and each poll two locks,
/// and a thread (`smol-stalls`) looks several times in each `limit`. A second call takes the place
/// of the first.
///
/// # Errors
///
/// If the thread cannot be started.
///
/// ```
/// use std::sync::mpsc;
/// use std::time::Duration;
///
/// let (sender, stalls) = mpsc::channel();
/// smol::on_stall(Duration::from_millis(10), move |stall| sender.send(stall).unwrap())?;
/// smol::spawn(async { std::thread::sleep(Duration::from_millis(100)) }).detach();
/// assert_eq!(stalls.recv().unwrap().place.file(), file!());
/// # std::io::Result::Ok(())
/// ```
pub fn on_stall(limit: Duration, report: impl FnMut(Stall) + Send + 'static) -> io::Result<()> {
    check_for_fork();
    begin_to_watch(limit, Box::new(report), true)
}

type Report = Box<dyn FnMut(Stall) + Send>;

fn begin_to_watch(limit: Duration, report: Report, replaces: bool) -> io::Result<()> {
    let mut known = lock(&KNOWN);
    if !known.has_thread {
        // It waits for the lock.
        thread::Builder::new().name("smol-stalls".into()).spawn(look_for_stalls)?;
        known.has_thread = true;
    } else if !replaces {
        return Ok(());
    }
    (known.limit, known.told) = (limit, BTreeSet::new());
    let old = known.report.replace(report);
    // Ordering: Relaxed. A switch; what it switches on is under a lock.
    WATCHING.store(ON, Ordering::Relaxed);
    drop(known);
    shielded(|| drop(old));
    Ok(())
}

/// The tasks and closures that exist, as a value to be printed with `{:#?}`: where each was
/// spawned, how often it was polled, whether it runs or waits, and since when. Known are those that
/// [`on_stall`] knows, and the closures of [`unblock`].
pub fn tasks() -> impl fmt::Debug + Send + use<> {
    struct Tasks(Vec<KnownTask>);
    impl fmt::Debug for Tasks {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_list().entries(&self.0).finish()
        }
    }
    Tasks(lock(&KNOWN).tasks.values().copied().collect())
}

/// A task of which [`tasks`] knows.
#[derive(Clone, Copy)]
struct KnownTask {
    origin: Origin,
    polls: u64,
    runs: bool,
    /// When it began to run, or to wait.
    since: Instant,
}

impl fmt::Debug for KnownTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.origin.may_block { "closure" } else { "task" };
        let doing = if self.runs { "running" } else { "waiting" };
        let (place, polls, time) = (self.origin.place, self.polls, self.since.elapsed());
        write!(f, "{what} spawned at {place}: polled {polls} times, {doing} for {time:?}")
    }
}

struct KnownTasks {
    tasks: Slab<KnownTask>,
    /// The keys of those that run.
    running: Vec<usize>,
    limit: Duration,
    /// The places that were told.
    told: BTreeSet<&'static Location<'static>>,
    /// Taken out while it is called.
    report: Option<Report>,
    has_thread: bool,
}

static KNOWN: Mutex<KnownTasks> = Mutex::new(KnownTasks {
    tasks: Slab::new(),
    running: Vec::new(),
    limit: Duration::ZERO,
    told: BTreeSet::new(),
    report: None,
    has_thread: false,
});

/// Atomic: whether tasks that are spawned are noted.
static WATCHING: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

#[inline]
fn is_watching() -> bool {
    // Ordering: Relaxed, as in `on_stall`.
    match WATCHING.load(Ordering::Relaxed) {
        UNKNOWN => ask_environment(),
        state => state == ON,
    }
}

#[cold]
fn ask_environment() -> bool {
    // Ordering: Relaxed, as above. Who comes first decides.
    let asked = WATCHING.compare_exchange(UNKNOWN, OFF, Ordering::Relaxed, Ordering::Relaxed);
    let millis = std::env::var("SMOL_STALLS").ok().and_then(|text| text.trim().parse().ok());
    if let (Ok(_), Some(millis @ 1..)) = (asked, millis) {
        let print = |stall| drop(writeln!(std::io::stderr(), "smol: {stall}"));
        let _ = begin_to_watch(Duration::from_millis(millis), Box::new(print), false);
    }
    // Ordering: Relaxed, as above.
    WATCHING.load(Ordering::Relaxed) == ON
}

/// A future that is noted among the known tasks. It is boxed, so that where nobody watches, tasks
/// are not a byte larger for it.
struct Watched<P> {
    /// `None` only while it is being dropped.
    future: Option<P>,
    key: usize,
}

/// Notes that a task runs, until the guard is dropped.
fn note_run(key: usize) -> impl Drop {
    let note = move |runs: bool| {
        let mut known = lock(&KNOWN);
        let KnownTasks { tasks, running, .. } = &mut *known;
        if let Some(task) = tasks.get_mut(key) {
            (task.runs, task.since) = (runs, Instant::now());
            task.polls += u64::from(runs);
        }
        match runs {
            true => running.push(key),
            false => running.retain(|other| *other != key),
        }
    };
    note(true);
    OnDrop(move || note(false))
}

impl<P> Watched<P> {
    fn new(future: P, origin: Origin) -> Watched<P> {
        let known = KnownTask { origin, polls: 0, runs: false, since: Instant::now() };
        Watched { future: Some(future), key: lock(&KNOWN).tasks.insert(known) }
    }
}

impl<P: Future + Unpin> Future for Watched<P> {
    type Output = P::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<P::Output> {
        let _running = note_run(self.key);
        match &mut self.future {
            Some(future) => Pin::new(future).poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<P> Drop for Watched<P> {
    fn drop(&mut self) {
        let key = self.key;
        let _after = OnDrop(|| _ = lock(&KNOWN).tasks.remove(key));
        // A destructor may take its time as well.
        let _running = note_run(key);
        self.future = None;
    }
}

/// The life of the thread that looks for stalls.
fn look_for_stalls() {
    let mut pause = Duration::ZERO;
    loop {
        thread::sleep(pause);
        let (stall, report) = {
            let mut known = lock(&KNOWN);
            pause = (known.limit / 4).clamp(Duration::from_millis(1), Duration::from_millis(100));
            // The last one is inside of the others.
            let running = known.running.iter().rev().filter_map(|key| known.tasks.get(*key));
            let stall =
                |task: &KnownTask| Stall { place: task.origin.place, time: task.since.elapsed() };
            let is_new =
                |stall: &Stall| stall.time >= known.limit && !known.told.contains(stall.place);
            let mut stalls = running.filter(|task| !task.origin.may_block).map(stall);
            let Some(stall) = stalls.find(is_new) else { continue };
            known.told.insert(stall.place);
            (stall, known.report.take())
        };
        if let Some(mut report) = report {
            shielded(|| report(stall));
            let mut known = lock(&KNOWN);
            let is_newest = known.report.is_none();
            let old = if is_newest { known.report.replace(report) } else { Some(report) };
            drop(known);
            shielded(|| drop(old));
        }
        // Not more than one in a second.
        thread::sleep(Duration::from_secs(1));
    }
}

// ============================================================================================
// §3  Executor: tickets in queues, workers that take them
// ============================================================================================
//
// uses §1-§2 · used by §4 §6 · locks: active < KNOWN; drivers, locals (leaves)
//
// PROBLEM   Tasks become ready on any thread; some thread must poll each of them soon, and a thread
//           that finds nothing must sleep without missing what comes next.
// IDEA      Each worker has a queue of its own, which costs no contention. What comes from
//           elsewhere goes to the injector. A worker without work takes a share of the injector,
//           else steals half of another's queue (Blumofe and Leiserson, "Scheduling Multithreaded
//           Computations by Work Stealing", 1999). Who finds nothing at all announces that it
//           sleeps, looks once more, and sleeps: the drivers of an [`Executor`] here, the threads
//           of our own in §6.
// I3.1      A ticket is in a queue that every worker can reach.
// I3.2      A worker that is never idle looks elsewhere as well: at the injector and the overflows
//           (a driver also at another's queue) after 61 tasks, and after each one while the clock
//           of §1 goes on between two tasks.
// I3.3      The drivers of an `Executor` may do something else before they search. So each push
//           there wakes one more of them, and who was woken passes it on before it polls anything
//           else.
// MOVES     Tickets change queues: from the injector and anybody's overflow to who has nothing, or
//           has run 61 tasks (`take_shares`); between an overflow and a queue that is full, by the
//           clock (`exchange`); from anybody to who has nothing (`steal`); from a driver that may
//           be blocked, one at a time (`look_elsewhere`); from who ends to another (`drop`); and
//           from a worker that is stuck, by the watcher (`help_out`, §6).
// NEVER     wakes a thread or asks the reactor: it knows wakers.
// REJECTED  A table of all tasks for the global executor (two locks per task, a third of the price
//           of a spawn); one global queue (yields cost double as soon as two workers contend); a
//           slot for the task that was woken last, as Go and tokio have it (`fan_out_in` takes
//           twice as long, and no row gains 5 %); to judge by the last tasks whether a batch is
//           worth calling somebody, and to even out the queues of workers that are never idle (no
//           row shows either); one overflow for all (`scale_spawn_2` takes half as long again), and
//           queues without a limit instead (yields take a sixth longer).

/// The queues of one worker. The owner pushes and pops, thieves pop.
struct Local {
    queue: ConcurrentQueue<Runnable>,
    /// What did not fit into the queue, and what the watcher has taken from it: for all workers
    /// alike. It is not in the injector so that few tasks from outside need not wait for many that
    /// yield.
    overflow: ConcurrentQueue<Runnable>,
    /// How many tasks its owner has run, for the watcher: a number that stands still means "stuck".
    polls: AtomicU32,
}

impl Local {
    fn new() -> Local {
        Local {
            queue: ConcurrentQueue::bounded(LOCAL_QUEUE),
            overflow: ConcurrentQueue::unbounded(),
            polls: AtomicU32::new(0),
        }
    }

    fn push(&self, runnable: Runnable) {
        if let Err(full) = self.queue.push(runnable) {
            let _ = self.overflow.push(full.into_inner());
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.overflow.is_empty()
    }

    /// All its tickets.
    fn drain(&self) -> impl Iterator<Item = Runnable> {
        self.queue.try_iter().chain(self.overflow.try_iter())
    }
}

/// Where the tickets of an executor are.
struct Queues {
    /// Tickets from outside, and those of workers that cannot get at them.
    injector: ConcurrentQueue<Runnable>,
    /// The workers' own queues, for thieves, and their overflows, for all.
    locals: RwLock<Vec<Arc<Local>>>,
}

/// What a thread that polls tasks for an executor knows about itself.
struct Here {
    /// The address of the executor's queues, to tell executors apart.
    queues: usize,
    local: Arc<Local>,
    /// It delivers the kernel's news, and looks at its queue afterwards, once for all.
    is_collecting: Cell<bool>,
}

thread_local! {
    /// The worker whose tasks this thread is polling. With nested executors, the innermost.
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
    /// The executors whose tasks this thread polls, one inside of the other.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Notes that this thread polls tasks of an executor, until the guard is dropped.
fn go_inside(queues: usize) -> impl Drop {
    let _ = INSIDE.try_with(|inside| inside.borrow_mut().push(queues));
    OnDrop(|| _ = INSIDE.try_with(|inside| inside.borrow_mut().pop()))
}

impl Here {
    /// Queues a ticket on the worker that runs on this thread. Says whether somebody else should be
    /// called: not for a single ticket, which this worker takes next, nor while it delivers news.
    fn push(&self, runnable: Runnable) -> bool {
        self.local.push(runnable);
        !self.is_collecting.get() && self.local.queue.len() > 1
    }
}

impl Queues {
    const fn new() -> Queues {
        Queues { injector: ConcurrentQueue::unbounded(), locals: RwLock::new(Vec::new()) }
    }

    fn id(&self) -> usize {
        self as *const Queues as usize
    }

    fn locals(&self) -> RwLockReadGuard<'_, Vec<Arc<Local>>> {
        self.locals.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn locals_mut(&self) -> RwLockWriteGuard<'_, Vec<Arc<Local>>> {
        self.locals.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a ticket: this is what every waker of a task ends in, and W1 of the first proof. Says
    /// whether somebody should be called.
    fn push(&self, runnable: Runnable) -> bool {
        tour!(2, "a ticket is queued");
        let mut ticket = Some(runnable);
        let pushed = HERE.try_with(|here| {
            let here = here.borrow();
            let here = here.as_ref().filter(|here| here.queues == self.id())?;
            Some(here.push(ticket.take()?))
        });
        if let Some(runnable) = ticket {
            // From outside. The injector is never closed, so that this cannot fail.
            let _ = self.injector.push(runnable);
        }
        pushed.ok().flatten().unwrap_or(true)
    }

    /// Puts tickets into the injector, where every worker looks.
    fn inject(&self, tickets: impl Iterator<Item = Runnable>) {
        for runnable in tickets {
            let _ = self.injector.push(runnable);
        }
    }

    /// Whether a ticket is anywhere. This is S2 of the first proof: in concurrent-queue, as it is,
    /// `is_empty` loads with SeqCst what a push exchanges with SeqCst.
    fn has_tickets(&self) -> bool {
        !self.injector.is_empty() || self.locals().iter().any(|local| !local.is_empty())
    }

    /// How many tickets there are.
    fn len(&self) -> usize {
        let queues: usize = self.locals().iter().map(|local| local.queue.len()).sum();
        queues + self.common_len()
    }

    /// How many tickets are in no worker's queue.
    fn common_len(&self) -> usize {
        let overflow = |local: &Arc<Local>| local.overflow.len();
        self.injector.len() + self.locals().iter().map(overflow).sum::<usize>()
    }
}

/// Somebody who takes tickets out of queues: a worker thread, or a call of `run` or `tick`.
struct Worker<'a> {
    queues: &'a Queues,
    /// `tick` takes one ticket at a time and has no queue of its own.
    local: Option<Arc<Local>>,
    /// The watcher takes from whoever is blocked.
    is_watched: bool,
    /// How many tickets it has looked for.
    found: Cell<u32>,
    /// The clock of §1 when this worker last looked elsewhere, and `found` when that had ticked.
    clock: Cell<u32>,
    found_at_tick: Cell<u32>,
    /// The last ticket was taken out of turn.
    was_out_of_turn: Cell<bool>,
    random: Cell<u32>,
    /// Tickets went from one queue to another, and in between nobody could see them. `Drive::next`
    /// calls somebody then. In §6, who searched does so in `stop_searching`; for who did not, the
    /// alarm is set (I6.2).
    moved: Cell<bool>,
}

impl<'a> Worker<'a> {
    /// A worker with queues of its own, or a mere `tick` without. `seed` is for its random numbers.
    fn new(queues: &'a Queues, with_queue: bool, is_watched: bool, seed: u32) -> Worker<'a> {
        let local = with_queue.then(|| Arc::new(Local::new()));
        queues.locals_mut().extend(local.clone());
        Worker {
            queues,
            local,
            is_watched,
            found: Cell::new(0),
            clock: Cell::new(clock()),
            found_at_tick: Cell::new(0),
            was_out_of_turn: Cell::new(false),
            random: Cell::new(seed.wrapping_mul(0x9E37_79B9) | 1),
            moved: Cell::new(false),
        }
    }

    /// Makes this worker the one whose queue the thread's wake-ups go to, until the guard is
    /// dropped.
    fn enter(&self) -> impl Sized + use<> {
        let queues = self.queues.id();
        let here =
            self.local.clone().map(|local| Here { queues, local, is_collecting: Cell::new(false) });
        (set_for_now(&HERE, here), go_inside(queues))
    }

    /// Whether the clock has gone on since this worker looked elsewhere.
    #[inline]
    fn has_ticked(&self) -> bool {
        clock() != self.clock.get()
    }

    /// The next ticket of this worker's own; now and then from elsewhere.
    #[inline]
    fn find(&self) -> Option<Runnable> {
        let local = self.local.as_deref()?;
        let found = self.found.get().wrapping_add(1);
        self.found.set(found);
        let ticked = self.has_ticked();
        if ticked || found % TASKS_PER_LOOK == 0 {
            let first = self.look_elsewhere(local, ticked);
            if first.is_some() {
                return first;
            }
        }
        local.queue.pop().ok()
    }

    /// A worker that is never idle looks at what others have (I3.2). If tasks take long, one that
    /// is in nobody's queue is run at once, by turns with the worker's own, and not put behind
    /// those: the watcher might take it from there again and again (`help_out`).
    fn look_elsewhere(&self, local: &Local, ticked: bool) -> Option<Runnable> {
        self.clock.set(clock());
        let is_next = ticked && !self.was_out_of_turn.get();
        let mut first = if is_next { self.pop_common() } else { None };
        if ticked {
            let ran = self.found.get().wrapping_sub(self.found_at_tick.replace(self.found.get()));
            self.exchange(local, ran as usize);
        } else {
            self.take_shares(local);
            let is_turn = self.found.get() % TASKS_PER_EXCHANGE == 0;
            self.exchange(local, is_turn as usize);
        }
        if !self.is_watched && first.is_none() {
            // Somebody may be blocked, and this ticket one of a few.
            let other = self.ask_others(Some(local), |other| other.queue.pop().ok());
            if is_next {
                first = other;
            } else if let Some(other) = other {
                self.keep(other, local);
            }
        }
        self.was_out_of_turn.set(first.is_some());
        first
    }

    /// Looks at what others have, since this worker has nothing.
    fn search(&self) -> Option<Runnable> {
        let local = self.local.as_deref();
        let Some(runnable) = self.pop_common() else { return self.steal(local) };
        if let Some(local) = local {
            self.take_shares(local);
        }
        Some(runnable)
    }

    /// A ticket that is in nobody's queue.
    fn pop_common(&self) -> Option<Runnable> {
        self.queues.injector.pop().ok().or_else(|| self.pop_overflow())
    }

    fn pop_overflow(&self) -> Option<Runnable> {
        self.ask_others(None, |any| any.overflow.pop().ok())
    }

    /// Puts a ticket into the worker's own queue.
    fn keep(&self, runnable: Runnable, local: &Local) {
        self.moved.set(true);
        local.push(runnable);
    }

    /// Takes a fair share of the tickets that are in nobody's queue into the worker's own, not more
    /// than half of it.
    fn take_shares(&self, local: &Local) {
        let locals = self.queues.locals();
        let overflows = self.in_turn(&locals).map(|any| &any.overflow);
        for common in iter::once(&self.queues.injector).chain(overflows) {
            let len = common.len();
            if len > 0 {
                let share = (len / locals.len() + 1).min(LOCAL_QUEUE / 2);
                let room = LOCAL_QUEUE - local.queue.len();
                common.try_iter().take(share.min(room)).for_each(|ticket| self.keep(ticket, local));
            }
        }
    }

    /// So many tickets of a full queue change places with some that did not fit, or with a crowd
    /// from outside: as many as have run since the last time, so that tasks that yield take turns.
    fn exchange(&self, local: &Local, tickets: usize) {
        let injector = &self.queues.injector;
        let is_crowd = injector.len() > TASKS_PER_LOOK as usize && self.random() % 2 == 0;
        let exchange = |others: &ConcurrentQueue<Runnable>| {
            let tickets = tickets.min(LOCAL_QUEUE / 2).min(others.len());
            let room = LOCAL_QUEUE - local.queue.len();
            for runnable in local.queue.try_iter().take(tickets.saturating_sub(room)) {
                self.moved.set(true);
                let _ = local.overflow.push(runnable);
            }
            others.try_iter().take(tickets).for_each(|ticket| self.keep(ticket, local));
            (tickets > 0).then_some(())
        };
        if is_crowd {
            exchange(injector);
        } else {
            self.ask_others(None, |any| exchange(&any.overflow));
        }
    }

    /// A random number (xorshift, Marsaglia 2003).
    fn random(&self) -> usize {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random.set(random);
        random as usize
    }

    /// Looks at the queues of the others, beginning with a random one, until there is a result.
    fn ask_others<T>(
        &self,
        own: Option<&Local>,
        ask: impl FnMut(&Arc<Local>) -> Option<T>,
    ) -> Option<T> {
        let is_other = |other: &&Arc<Local>| !own.is_some_and(|own| std::ptr::eq(own, &***other));
        self.in_turn(&self.queues.locals()).filter(is_other).find_map(ask)
    }

    /// All workers in turn, beginning with a random one.
    fn in_turn<'b>(&self, all: &'b [Arc<Local>]) -> impl Iterator<Item = &'b Arc<Local>> {
        let start = self.random() % all.len().max(1);
        all[start..].iter().chain(&all[..start])
    }

    /// Takes half of somebody's queue, and the first ticket of it to be run.
    fn steal(&self, own: Option<&Local>) -> Option<Runnable> {
        self.ask_others(own, |victim| {
            let first = victim.queue.pop().ok()?;
            if let Some(own) = own {
                let half = victim.queue.len() / 2;
                victim.queue.try_iter().take(half).for_each(|ticket| self.keep(ticket, own));
            }
            tour!(3, "a worker stole from another");
            Some(first)
        })
    }

    /// Runs one task.
    #[inline]
    fn run(&self, runnable: Runnable) {
        tour!(4, "a worker polls a task");
        if let Some(local) = &self.local {
            // Ordering: Relaxed. A statistic for the watcher.
            local.polls.store(self.found.get(), Ordering::Relaxed);
        }
        refill_budget();
        runnable.run();
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let Some(local) = self.local.take() else { return };
        self.queues.locals_mut().retain(|other| !Arc::ptr_eq(other, &local));
        // To another worker if there is one: in the injector they would be in the way of newcomers.
        for runnable in local.drain() {
            let mut ticket = Some(runnable);
            self.ask_others(None, |other| ticket.take().map(|ticket| other.push(ticket)));
            self.queues.inject(ticket.into_iter());
        }
    }
}

/// An [`Executor`]'s inside, which its tasks share.
struct Crew {
    queues: Queues,
    /// Drivers that sleep, by name; the last to come is the first to be woken, its cache is warm.
    drivers: Mutex<Vec<(usize, Waker)>>,
    /// Atomics: how many of them there are; how many there have ever been.
    sleeping: AtomicUsize,
    drives: AtomicUsize,
    /// The tasks that are not finished, to be cancelled with their executor. The global executor
    /// lives for ever and has no such table.
    active: Mutex<Active>,
}

/// How each task can be reached, by the key that it knows.
type Active = Slab<Option<Waker>>;

impl Active {
    /// Builds a task that has a place in the table.
    fn enlist<T>(
        &mut self,
        build: impl FnOnce(usize) -> (Runnable, Task<T>),
    ) -> (Runnable, Task<T>) {
        let key = self.insert(None);
        let (runnable, task) = build(key);
        if let Some(entry) = self.get_mut(key) {
            *entry = Some(runnable.waker());
        }
        (runnable, task)
    }

    /// The wakers of all. The youngest go first, as locals of a function do, so that a destructor
    /// that waits for a task which its own has spawned finds that one gone.
    fn drain(&mut self) -> Vec<Waker> {
        let keys = (0..self.entries.len()).rev();
        keys.filter_map(|key| self.get_mut(key).and_then(Option::take)).collect()
    }
}

impl Crew {
    fn new() -> Arc<Crew> {
        Arc::new(Crew {
            queues: Queues::new(),
            drivers: Mutex::new(Vec::new()),
            sleeping: AtomicUsize::new(0),
            drives: AtomicUsize::new(1),
            active: Mutex::new(Slab::new()),
        })
    }

    fn schedule(&self, runnable: Runnable) {
        self.queues.push(runnable);
        self.notify();
    }

    /// Wakes a driver, if one sleeps.
    fn notify(&self) {
        // W2. Ordering: SeqCst, with S1 in `sleep`.
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            // W3.
            let driver = {
                let mut drivers = lock(&self.drivers);
                let driver = drivers.pop();
                // Ordering: SeqCst, as in `sleep`.
                self.sleeping.fetch_sub(driver.is_some() as usize, Ordering::SeqCst);
                driver
            };
            if let Some((_, waker)) = driver {
                shielded(|| waker.wake());
            }
        }
    }

    /// Boxes a future into a task that is dropped with this crew, and queues its first ticket.
    fn spawn<F>(self: &Arc<Self>, future: F, origin: Origin) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let crew = self.clone();
        let schedule = move |runnable| crew.schedule(runnable);
        let (runnable, task) = {
            let mut active = lock(&self.active);
            // Moves the future, and runs nothing of it.
            active.enlist(|key| new_task(future, origin, self.forget(key), schedule))
        };
        self.schedule(runnable);
        task
    }

    /// To be called when the future behind `key` is gone.
    fn forget(self: &Arc<Self>, key: usize) -> impl FnMut() + Send + Sync + 'static {
        let crew = self.clone();
        move || {
            let entry = lock(&crew.active).remove(key);
            drop(entry);
        }
    }

    /// Cancels all tasks: wakes each so that it has a ticket, and drops the tickets. Called when no
    /// driver is left. A ticket can still be on its way in another thread between the moment that a
    /// waker issued it and its push, which is why this looks until all tasks are gone.
    fn dissolve(&self) {
        loop {
            let wakers = lock(&self.active).drain();
            wake_all(wakers);
            // A call of `run` that was leaked has left its queues behind.
            let locals = self.queues.locals().clone();
            locals.iter().for_each(|local| local.drain().for_each(drop));
            self.queues.injector.try_iter().for_each(drop);
            // A task that ends the program is on this thread's stack, and will not go away.
            let id = self.queues.id();
            let is_own = |inside: &RefCell<Vec<usize>>| inside.borrow().contains(&id);
            let is_inside = INSIDE.try_with(is_own).unwrap_or(true);
            if lock(&self.active).len == 0 || is_inside {
                return;
            }
            thread::yield_now();
        }
    }
}

/// A call of `run`, `tick` or `try_tick`.
struct Drive<'a> {
    crew: &'a Crew,
    worker: Worker<'a>,
    /// Which call it is, of all that drive: its name among those who sleep.
    nth: usize,
    has_looked: bool,
    is_asleep: bool,
    pace: Pace,
}

impl<'a> Drive<'a> {
    fn new(crew: &'a Crew, with_queue: bool) -> Drive<'a> {
        // Ordering: Relaxed. Only has to be unique.
        let nth = crew.drives.fetch_add(1, Ordering::Relaxed);
        let worker = Worker::new(&crew.queues, with_queue, false, nth as u32);
        Drive { crew, worker, nth, has_looked: false, is_asleep: false, pace: Pace::new() }
    }

    /// The next ticket. Whoever has moved some tells others that these can be seen again.
    fn next(&mut self) -> Option<Runnable> {
        let first = if mem::replace(&mut self.has_looked, true) { None } else { self.first() };
        let runnable = first.or_else(|| self.worker.find()).or_else(|| self.worker.search());
        if self.worker.moved.take() && self.crew.queues.has_tickets() {
            self.crew.notify();
        }
        runnable
    }

    /// The first look of a call begins in a place chosen at random, since each may never be empty,
    /// and a short call never comes to its 61st task (I3.2). Others may be blocked.
    fn first(&self) -> Option<Runnable> {
        let own = self.worker.local.as_deref();
        match self.worker.random() % 8 {
            0 | 1 => self.worker.steal(own).or_else(|| self.worker.pop_overflow()),
            2 | 3 => self.worker.pop_overflow().or_else(|| self.worker.steal(own)),
            _ => None,
        }
    }

    /// Announces that this driver sleeps. `false`: there is something to do after all.
    fn sleep(&mut self, waker: &Waker) -> bool {
        let driver = (self.nth, waker.clone());
        {
            let mut drivers = lock(&self.crew.drivers);
            drivers.push(driver);
            // S1. Ordering: SeqCst, with W2 in `notify`: either the push comes before S2, or its W2
            // comes after S1, or both; never neither.
            self.crew.sleeping.fetch_add(1, Ordering::SeqCst);
        }
        self.is_asleep = true;
        // S2.
        if self.crew.queues.has_tickets() {
            if self.wake_up() {
                // Whoever called somebody meant one more than are awake (I3.3).
                self.crew.notify();
            }
            return false;
        }
        true
    }

    /// The end of a sleep: either somebody took us off the list, or we do it ourselves. Says
    /// whether somebody did, and thus expects us to search.
    fn wake_up(&mut self) -> bool {
        if !mem::take(&mut self.is_asleep) {
            return false;
        }
        let own = {
            let mut drivers = lock(&self.crew.drivers);
            let place = drivers.iter().position(|(nth, _)| *nth == self.nth);
            place.map(|place| {
                // Ordering: SeqCst, as in `sleep`.
                self.crew.sleeping.fetch_sub(1, Ordering::SeqCst);
                drivers.swap_remove(place)
            })
        };
        let notified = own.is_none();
        shielded(|| drop(own));
        notified
    }

    /// One poll of `run`: the main future once, then tasks.
    fn poll_run<T>(
        &mut self,
        main: Pin<&mut impl Future<Output = T>>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        // I3.3: somebody relies on us, and the main future may take its time: pass it on first.
        if self.wake_up() && self.crew.queues.has_tickets() {
            self.crew.notify();
        }
        let _here = self.worker.enter();
        if let Poll::Ready(output) = main.poll(cx) {
            // Whoever drives with futures that are ready at once shall drive all the same.
            if self.nth % READY_RUNS as usize == 0 && self.worker.found.get() == 0 {
                let next = self.next();
                next.into_iter().for_each(|runnable| self.run_one(runnable, false));
            }
            return Poll::Ready(output);
        }
        let _tasks = run_as(is_ours(cx.waker()));
        loop {
            match self.next() {
                Some(runnable) => self.worker.run(runnable),
                None if self.sleep(cx.waker()) => return Poll::Pending,
                None => {}
            }
            if self.pace.is_due() {
                break;
            }
        }
        // Enough for once: whoever polls us may have other futures. The next look is a look
        // elsewhere.
        self.worker.clock.set(clock().wrapping_sub(1));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Runs one task for somebody who polls another one, perhaps.
    fn run_one(&self, runnable: Runnable, ours: bool) {
        let _tasks = run_as(ours);
        let _budget = keep_budget();
        let _inside = go_inside(self.crew.queues.id());
        self.worker.run(runnable);
    }

    /// One poll of `tick`: one task, if there is one.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // (First: whoever was called and does nothing passes it on when it is dropped.)
        ready!(spend(cx));
        let notified = self.wake_up();
        loop {
            match self.next() {
                Some(runnable) => {
                    // I3.3: this is called for all that there are, and takes one.
                    if notified && self.crew.queues.has_tickets() {
                        self.crew.notify();
                    }
                    self.run_one(runnable, is_ours(cx.waker()));
                    return Poll::Ready(());
                }
                None if self.sleep(cx.waker()) => return Poll::Pending,
                None => {}
            }
        }
    }
}

impl Drop for Drive<'_> {
    fn drop(&mut self) {
        let notified = self.wake_up();
        let left_work = self.worker.local.take().is_some_and(|local| {
            self.crew.queues.locals_mut().retain(|other| !Arc::ptr_eq(other, &local));
            let had_tickets = !local.is_empty();
            // Not to another driver, who may be blocked.
            self.crew.queues.inject(local.drain());
            had_tickets
        });
        if (notified || left_work) && self.crew.queues.has_tickets() {
            self.crew.notify();
        }
    }
}

/// An executor of your own, driven by whoever calls [`run`](Executor::run).
///
/// Most programs need none: [`spawn`] has an executor, with threads. One's own is good for tasks
/// that must end with something else, for priorities, and for a number of threads of one's choice.
/// When an `Executor` is dropped, its tasks are dropped too; awaiting one of them panics then.
///
/// The futures are `'static`; tasks that borrow from their surroundings are what [`scope`] is for.
/// A task that holds its own executor (in an `Arc`) keeps it, and itself, alive: use a `Weak`.
///
/// ```
/// use smol::{Executor, Timer, future};
/// use std::time::Duration;
///
/// static EX: Executor<'_> = Executor::new();
///
/// // A second thread to drive it, for ever. This one drives it until the task is finished.
/// std::thread::spawn(|| smol::block_on(EX.run(future::pending::<()>())));
/// let task = EX.spawn(async {
///     Timer::after(Duration::from_millis(1)).await;
///     1 + 2
/// });
/// assert_eq!(smol::block_on(EX.run(task)), 3);
/// ```
pub struct Executor<'a> {
    crew: OnceLock<Arc<Crew>>,
    marker: PhantomData<&'a ()>,
}

impl<'a> Executor<'a> {
    /// An executor without tasks and drivers.
    pub const fn new() -> Executor<'a> {
        Executor { crew: OnceLock::new(), marker: PhantomData }
    }

    fn crew(&self) -> &Arc<Crew> {
        self.crew.get_or_init(Crew::new)
    }

    /// Spawns a task, which runs while somebody drives this executor.
    #[track_caller]
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        self.crew().spawn(future, Origin::here(false))
    }

    /// Runs tasks until the future is ready, and returns its output.
    ///
    /// Any number of threads may run the same executor. The future is polled before the tasks, and
    /// again whenever it was woken or after some tasks: 61 of them, or fewer if they take a
    /// millisecond. Dropping what `run` returned, half way, loses nothing; but who keeps it must
    /// poll it again when it was woken, as with `tick`.
    pub async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut driver = Drive::new(self.crew(), true);
        poll_fn(|cx| driver.poll_run(future.as_mut(), cx)).await
    }

    /// Waits until there is a task to poll, and polls it once. Cancel-safe; but a future that was
    /// polled is called when a task is queued, and must then be polled again, or dropped.
    pub async fn tick(&self) {
        let mut driver = Drive::new(self.crew(), false);
        poll_fn(|cx| driver.poll_tick(cx)).await
    }

    /// Polls one task, if one is ready. Says whether there was one.
    pub fn try_tick(&self) -> bool {
        let mut driver = Drive::new(self.crew(), false);
        let found = driver.next();
        found.map(|runnable| driver.run_one(runnable, false)).is_some()
    }

    /// Whether all tasks are finished.
    pub fn is_empty(&self) -> bool {
        self.tasks() == 0
    }

    fn tasks(&self) -> usize {
        self.crew.get().map_or(0, |crew| lock(&crew.active).len)
    }
}

impl Drop for Executor<'_> {
    fn drop(&mut self) {
        if let Some(crew) = self.crew.get() {
            crew.dissolve();
        }
    }
}

impl Default for Executor<'_> {
    fn default() -> Self {
        Executor::new()
    }
}

impl fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let injected = self.crew.get().map_or(0, |crew| crew.queues.common_len());
        f.debug_struct("Executor")
            .field("tasks", &self.tasks())
            .field("injected", &injected)
            .finish_non_exhaustive()
    }
}

// ============================================================================================
// §4  Local executor: the same, for futures that cannot move
// ============================================================================================
//
// uses §1-§3 · used by §6 · locks: mail (leaf)
//
// PROBLEM   A future that is not `Send` must be polled and dropped on the thread that made it.
// IDEA      A plain queue for what is woken while this thread drives the executor, and a letter box
//           under a lock for what is woken otherwise: tickets are `Send`. async-task checks the
//           thread at each poll and drop. The queue needs neither lock nor atomic. Who sleeps
//           leaves a waker in the letter box.
// I4.1      Tickets are taken out on the owner's thread only: `LocalExecutor` is not `Send`, and
//           neither what it runs nor its destructor can get away from there.
// I4.2      The letter box is emptied at the beginning of every round, however short, so that a
//           task that was woken from elsewhere runs also under the shortest of drives.
// I4.3      A ticket knows how many local tasks were being polled on this thread, one inside of the
//           other, when its task was spawned. A nested `block_on` runs those tasks only that were
//           spawned at least as deep as itself: by the surrounding task, or another as deep as
//           that, and none from further out.
// NEVER     drops a ticket elsewhere: that would drop the future.

/// The tasks of one thread.
struct LocalTasks {
    mail: Arc<Mutex<Mail>>,
    /// Tickets, each with its depth (I4.3).
    queue: RefCell<VecDeque<(u32, Runnable)>>,
    /// How many of these are deeper than zero.
    deep: Cell<usize>,
    active: RefCell<Active>,
    /// How many calls have ever driven this.
    ever: Cell<u64>,
    /// How many calls are driving this, one inside of the other; and how many have announced that
    /// they sleep.
    drives: Cell<u32>,
    asleep: Cell<u32>,
}

/// What others have put there, and who wants to hear of it.
#[derive(Default)]
struct Mail {
    tickets: Vec<(u32, Runnable)>,
    sleepers: Vec<(u64, Waker)>,
}

thread_local! {
    /// The tasks that this thread is driving. With nested executors, the innermost.
    static DRIVEN: RefCell<Option<Rc<LocalTasks>>> = const { RefCell::new(None) };
    /// How many tasks of `spawn_local` are being polled on this thread, one inside of the other:
    /// the depth of what is spawned now (I4.3).
    static LEVEL: Cell<u32> = const { Cell::new(0) };
}

/// Queues a ticket of a local task, from any thread.
fn schedule_local(mail: &Arc<Mutex<Mail>>, level: u32, runnable: Runnable) {
    let mut ticket = Some((level, runnable));
    let is_heard = DRIVEN.try_with(|driven| {
        let driven = driven.borrow();
        let tasks = driven.as_ref().filter(|tasks| Arc::ptr_eq(&tasks.mail, mail))?;
        let (level, runnable) = ticket.take()?;
        tasks.push_one(level, runnable);
        // Whoever drives may be blocked, and somebody who drives inside of it asleep.
        Some(tasks.asleep.get() == 0)
    });
    if is_heard.ok().flatten() != Some(true) {
        post(mail, ticket);
    }
}

/// Puts a ticket into the letter box, unless it is in the queue already, and wakes all who sleep.
/// So nobody who drives needs to pass on what is left.
fn post(mail: &Mutex<Mail>, ticket: Option<(u32, Runnable)>) {
    let sleepers = {
        let mut mail = lock(mail);
        mail.tickets.extend(ticket);
        mem::take(&mut mail.sleepers)
    };
    wake_all(sleepers.into_iter().map(|(_, waker)| waker));
}

impl LocalTasks {
    fn new() -> Rc<LocalTasks> {
        Rc::new(LocalTasks {
            mail: Arc::default(),
            queue: RefCell::default(),
            deep: Cell::new(0),
            active: RefCell::default(),
            ever: Cell::new(0),
            drives: Cell::new(0),
            asleep: Cell::new(0),
        })
    }

    /// The same as [`Crew::spawn`], for a future that stays on this thread.
    fn spawn<F>(self: &Rc<Self>, future: F, origin: Origin) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // As in `new_task`.
        if mem::size_of::<F>() >= LARGE_FUTURE || origin.is_watched {
            let future = Box::pin(future);
            if origin.is_watched {
                let future: future::BoxedLocal<F::Output> = future;
                return self.box_task(Watched::new(future, origin));
            }
            return self.box_task(future);
        }
        self.box_task(future)
    }

    fn box_task<F>(self: &Rc<Self>, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let (mail, level) = (self.mail.clone(), LEVEL.now());
        let schedule = move |runnable| schedule_local(&mail, level, runnable);
        let build = |key| {
            let tasks = self.clone();
            let after = move || {
                let entry = tasks.active.borrow_mut().remove(key);
                drop(entry);
            };
            let future = Guarded { future: Some(future), after };
            let builder = Builder::new().propagate_panic(true);
            builder.spawn_local(move |()| future, schedule)
        };
        let (runnable, task) = self.active.borrow_mut().enlist(build);
        self.push_one(level, runnable);
        if self.asleep.get() > 0 {
            // Whoever drives this, if anybody does, may be blocked, as in `schedule_local`.
            post(&self.mail, None);
        }
        task
    }

    /// Makes this the one whose queue the thread's wake-ups go to, until the guard is dropped.
    fn enter(self: &Rc<Self>) -> impl Sized + use<> {
        let tasks = self.clone();
        tasks.drives.set(tasks.drives.get() + 1);
        let drives = OnDrop(move || tasks.drives.set(tasks.drives.get() - 1));
        (drives, set_for_now(&DRIVEN, Some(self.clone())))
    }

    /// Puts what has come from elsewhere behind the rest (I4.2).
    fn collect(&self) {
        let tickets = mem::take(&mut lock(&self.mail).tickets);
        for (level, runnable) in tickets {
            self.push_one(level, runnable);
        }
    }

    fn push_one(&self, level: u32, runnable: Runnable) {
        self.deep.set(self.deep.get() + level.min(1) as usize);
        self.queue.borrow_mut().push_back((level, runnable));
    }

    /// The next ticket that is at least so deep.
    fn next(&self, level: u32) -> Option<Runnable> {
        let mut queue = self.queue.borrow_mut();
        let ticket = match level {
            0 => queue.pop_front(),
            _ => {
                let place = queue.iter().position(|(depth, _)| *depth >= level)?;
                queue.remove(place)
            }
        };
        let (depth, runnable) = ticket?;
        self.deep.set(self.deep.get() - depth.min(1) as usize);
        Some(runnable)
    }

    /// Whether there is such a ticket. What has come from elsewhere is collected.
    fn has_tickets(&self, level: u32) -> bool {
        self.collect();
        let is_worth_a_look = level == 0 || self.deep.get() > 0;
        is_worth_a_look && self.queue.borrow().iter().any(|(depth, _)| *depth >= level)
    }

    /// One more call drives this; says which it is.
    fn begin_drive(&self) -> u64 {
        self.ever.set(self.ever.get() + 1);
        self.ever.get()
    }

    /// Leaves a waker for when a ticket comes. `false`: one has come already. The lock orders the
    /// two: whoever brings a ticket finds the waker, or the ticket is found here.
    fn sleep(&self, nth: u64, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut mail = lock(&self.mail);
        if mail.tickets.is_empty() {
            mail.sleepers.push((nth, waker));
            self.asleep.set(self.asleep.get() + 1);
            return true;
        }
        drop(mail);
        false
    }

    /// Takes the waker back, if nobody has used it.
    fn wake_up(&self, nth: u64) {
        self.asleep.set(self.asleep.get() - 1);
        let own = {
            let mut mail = lock(&self.mail);
            let place = mail.sleepers.iter().position(|(other, _)| *other == nth);
            place.map(|place| mail.sleepers.swap_remove(place))
        };
        shielded(|| drop(own)); // without the lock
    }

    /// The same as [`Crew::dissolve`].
    fn dissolve(&self) {
        loop {
            let wakers = self.active.borrow_mut().drain();
            wake_all(wakers);
            self.collect();
            while let Some(runnable) = self.next(0) {
                drop(runnable);
            }
            // A task that ends the program is on this thread's stack, and will not go away.
            if self.active.borrow().len == 0 || self.drives.get() > 0 {
                return;
            }
            thread::yield_now();
        }
    }
}

/// An executor for futures that are not `Send`. It stays on the thread that made it.
///
/// [`spawn_local`] has one for each thread; see [`Executor`] for why one may want one's own.
///
/// ```
/// use std::rc::Rc;
///
/// let ex = smol::LocalExecutor::new();
/// let text = Rc::new("not Send");
/// let task = ex.spawn({ let text = text.clone(); async move { text.len() } });
/// assert_eq!(smol::block_on(ex.run(task)), 8);
/// ```
pub struct LocalExecutor<'a> {
    // Neither `Send` nor `Sync`.
    tasks: std::cell::OnceCell<Rc<LocalTasks>>,
    marker: PhantomData<&'a ()>,
}

impl<'a> LocalExecutor<'a> {
    /// An executor without tasks.
    pub const fn new() -> LocalExecutor<'a> {
        LocalExecutor { tasks: std::cell::OnceCell::new(), marker: PhantomData }
    }

    fn tasks(&self) -> &Rc<LocalTasks> {
        self.tasks.get_or_init(LocalTasks::new)
    }

    /// Spawns a task, which runs while this executor is driven.
    #[track_caller]
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.tasks().spawn(future, Origin::here(false))
    }

    /// Runs tasks until the future is ready, and returns its output. See [`Executor::run`].
    pub async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut driver = LocalDrive::new(self.tasks());
        poll_fn(|cx| driver.poll_run(future.as_mut(), cx)).await
    }

    /// Waits until there is a task to poll, and polls it once. Cancel-safe.
    pub async fn tick(&self) {
        let mut driver = LocalDrive::new(self.tasks());
        poll_fn(|cx| driver.poll_tick(cx)).await
    }

    /// Polls one task, if one is ready. Says whether there was one.
    pub fn try_tick(&self) -> bool {
        LocalDrive::new(self.tasks()).run_one(false)
    }

    /// Whether all tasks are finished.
    pub fn is_empty(&self) -> bool {
        self.tasks.get().is_none_or(|tasks| tasks.active.borrow().len == 0)
    }
}

/// A call of `run`, `tick` or `try_tick`.
struct LocalDrive {
    tasks: Rc<LocalTasks>,
    nth: u64,
    is_asleep: bool,
    pace: Pace,
}

impl LocalDrive {
    fn new(tasks: &Rc<LocalTasks>) -> LocalDrive {
        let (tasks, nth) = (tasks.clone(), tasks.begin_drive());
        LocalDrive { tasks, nth, is_asleep: false, pace: Pace::new() }
    }

    /// Announces that this driver sleeps. `false`: there is something to do after all.
    fn sleep(&mut self, waker: &Waker, level: u32) -> bool {
        while !self.tasks.sleep(self.nth, waker) {
            // What has come may be for an outer loop only (I4.3).
            if self.tasks.has_tickets(level) {
                return false;
            }
        }
        self.is_asleep = true;
        true
    }

    fn wake_up(&mut self) {
        if mem::take(&mut self.is_asleep) {
            self.tasks.wake_up(self.nth);
        }
    }

    /// Polls one task, if one is ready.
    fn run_one(&mut self, ours: bool) -> bool {
        let (_tasks, _budget) = (run_as(ours), keep_budget());
        let _here = self.tasks.enter();
        self.tasks.collect();
        let found = self.tasks.next(0);
        found.map(run_local).is_some()
    }

    /// One poll of `run`: the main future once, then tasks.
    fn poll_run<T>(
        &mut self,
        main: Pin<&mut impl Future<Output = T>>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        self.wake_up();
        let _here = self.tasks.enter();
        if let Poll::Ready(output) = main.poll(cx) {
            if self.nth % u64::from(READY_RUNS) == 0 {
                self.run_one(false);
            }
            return Poll::Ready(output);
        }
        let _tasks = run_as(is_ours(cx.waker()));
        self.tasks.collect();
        loop {
            match self.tasks.next(0) {
                Some(runnable) => run_local(runnable),
                None if self.sleep(cx.waker(), 0) => return Poll::Pending,
                None => {}
            }
            if self.pace.is_due() {
                // Enough for once: whoever polls us may have other futures.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// One poll of `tick`: one task, if there is one.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(spend(cx));
        self.wake_up();
        loop {
            if self.run_one(is_ours(cx.waker())) {
                return Poll::Ready(());
            }
            if self.sleep(cx.waker(), 0) {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for LocalDrive {
    fn drop(&mut self) {
        self.wake_up();
    }
}

/// Runs one local task.
#[inline]
fn run_local(runnable: Runnable) {
    refill_budget();
    runnable.run();
}

impl Drop for LocalExecutor<'_> {
    fn drop(&mut self) {
        if let Some(tasks) = self.tasks.get() {
            tasks.dissolve();
        }
    }
}

impl Default for LocalExecutor<'_> {
    fn default() -> Self {
        LocalExecutor::new()
    }
}

impl fmt::Debug for LocalExecutor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = self.tasks.get().map_or(0, |tasks| tasks.active.borrow().len);
        f.debug_struct("LocalExecutor").field("tasks", &tasks).finish_non_exhaustive()
    }
}

// ============================================================================================
// §5  Reactor: turns kernel news and deadlines into wake-ups
// ============================================================================================
//
// uses §1 · used by §6 §8-§12 · locks: waiters < sources; timers; asked (held by the seat)
//
// PROBLEM   A task that got WouldBlock must be polled again when, and only when, the kernel has
//           news; and a task that waits for a deadline, when the clock has passed it.
// IDEA      A source for each handle: who waits in which direction. A wheel of deadlines. One
//           thread at a time has the seat: it asks the kernel, until the earliest deadline at most,
//           and wakes.
// STATE     of a direction:  ready --WouldBlock--> blocked --event--> ready. A new handle counts as
//           ready, and is registered with the kernel only when an operation first says WouldBlock.
// I5.1      Whoever holds the seat is the only thread inside the poller.
// I5.2      Readiness is taken back only by somebody who saw WouldBlock after the last event: the
//           word of a source counts its events, and taking back is a compare-exchange on that
//           count. So an event that comes between a failing read and its consequences is never
//           lost. The count is the source's own; a count shared by all sources makes fresh news
//           look stale (async-io issue 78).
// I5.3      A waiter looks for an event and is noted under one lock; the reactor notes the event
//           first, then takes the waiters under that lock. So the look sees the event, or the
//           reactor the waiter.
// I5.4      `until` says when the thread in the poller means to wake up. It changes under the
//           timers' lock only, so that a new timer either is seen by that thread or sees that it
//           must interrupt it.
// I5.5      In edge mode the kernel tells each change once, for both directions, and reading goes
//           on until WouldBlock, or on TCP until less comes than was asked for, if the end is not
//           near (`fell_short`). Else (oneshot) an event disarms the handle, and it is armed again
//           with the union of what is still waited for.
// NEVER     mentions the executor · runs user code with a lock held · blocks except in `turn`.
// REJECTED  One waker per handle (two readers fight for it, async-io issue 3); level mode (spins on
//           unread data); a number instead of a borrowed handle (`unsafe`, and nobody knows who
//           closed it).

/// The kernel's poller, by way of `polling`. On Linux its descriptor is that of epoll(7), of which
/// two things are asked directly: to tell the end of a stream (`RDHUP`), without which each message
/// costs a read that fails; and to wait with one system call, where `polling` makes five. Bench:
/// `tcp_echo_64`.
struct Kernel {
    poller: Poller,
    /// Atomic: a handle could not be deleted, and `polling` may remember its number.
    has_stale: AtomicBool,
    /// epoll_wait(2) counts milliseconds, this one nanoseconds. It is registered for edges and
    /// never read: each time that it is set, it rings as one event.
    #[allow(dead_code)] // elsewhere
    timer: Option<TimerFd>,
}

/// The kernel's answer.
struct Asked {
    events: polling::Events,
    news: Vec<News>,
    /// What is registered under some of their keys, while that is told.
    known: Vec<(Arc<Source>, usize)>,
    /// The moment the timer was last set for.
    #[allow(dead_code)] // elsewhere
    set_for: Option<Instant>,
}

impl Asked {
    fn new() -> Asked {
        Asked { events: polling::Events::new(), news: Vec::new(), known: Vec::new(), set_for: None }
    }

    /// Asks `polling`.
    fn wait(&mut self, poller: &Poller, deadline: Option<Instant>) -> io::Result<()> {
        self.events.clear();
        let answer = match deadline {
            Some(deadline) => poller.wait_deadline(&mut self.events, deadline),
            None => poller.wait(&mut self.events, None),
        };
        match answer {
            // The poll(2) version says so when it was interrupted by a registration. Once more, or
            // it goes on taking itself for notified.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                poller.wait(&mut self.events, Some(Duration::ZERO))?;
            }
            answer => drop(answer?),
        }
        // It does not tell whether a stream has ended.
        let news = |event: Event| News::new(event.key, event.readable, event.writable, true);
        self.news.extend(self.events.iter().map(news));
        Ok(())
    }
}

impl Kernel {
    fn new() -> io::Result<Kernel> {
        let poller = Poller::new()?;
        let timer = Kernel::new_timer(&poller);
        Ok(Kernel { poller, has_stale: AtomicBool::new(false), timer })
    }

    /// Whether the kernel tells each change once, to whoever is registered.
    #[inline]
    fn is_edge(&self) -> bool {
        cfg!(all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend)))
            || self.poller.supports_edge()
    }

    /// Arms a handle again; in edge mode that is never needed.
    fn modify(&self, handle: Borrowed<'_>, key: usize, sides: [bool; 2]) -> io::Result<()> {
        match self.is_edge() {
            true => Ok(()),
            false => self.poller.modify(handle, Event::new(key, sides[0], sides[1])),
        }
    }

    fn delete(&self, handle: Borrowed<'_>) {
        // It can fail only if somebody closed the descriptor, and then the kernel forgot it too.
        if self.poller.delete(handle).is_err() {
            // Ordering: Relaxed. Pairs with the load in `add`.
            self.has_stale.store(true, Ordering::Relaxed);
        }
    }

    /// Ends the wait under way, or the next one.
    fn interrupt(&self) {
        // An error means that the poller is broken, and then its thread only naps.
        let _ = self.poller.notify();
    }
}

#[cfg(all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend)))]
impl Kernel {
    /// The keys of `polling`'s notifications and of [`Kernel::timer`].
    const NOTIFY: usize = usize::MAX;
    const TIMER: usize = usize::MAX - 1;

    /// Without one (some sandboxes) deadlines are kept in milliseconds.
    fn new_timer(poller: &Poller) -> Option<TimerFd> {
        let timer = TimerFd::new(false)?;
        let data = epoll::EventData::new_u64(Kernel::TIMER as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(poller, &timer.0, data, flags).ok()?;
        Some(timer)
    }

    /// Registers a handle, for both directions whatever is asked.
    fn add(&self, handle: Borrowed<'_>, key: usize, _sides: [bool; 2]) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::PRI | Flags::ET;
        Ok(epoll::add(&self.poller, handle, epoll::EventData::new_u64(key as u64), flags)?)
    }

    fn translate(event: &epoll::Event) -> News {
        use epoll::EventFlags as Flags;
        let end = Flags::HUP | Flags::ERR;
        // Urgent data cuts reads short, too (tcp(7)).
        let wary = end | Flags::RDHUP | Flags::PRI;
        let flags = event.flags;
        let readable = flags.intersects(wary | Flags::IN);
        let writable = flags.intersects(end | Flags::OUT);
        News::new(event.data.u64() as usize, readable, writable, flags.intersects(wary))
    }

    /// How long epoll_wait(2) may wait; if our timer measures that, for ever.
    fn timeout(
        &self,
        asked: &mut Asked,
        block: bool,
        deadline: Option<Instant>,
    ) -> Option<Timespec> {
        let (true, deadline) = (block, deadline) else { return Some(Timespec::default()) };
        let deadline = deadline?;
        let now = Instant::now();
        if deadline <= now {
            return Some(Timespec::default());
        }
        // Not longer than a year, for the sake of kernels' arithmetic.
        let time = (deadline - now).min(Duration::from_secs(365 * 24 * 60 * 60));
        let Some(timer) = &self.timer else {
            // Whole milliseconds, and never early.
            let millis = time.as_micros().div_ceil(1000).min(i32::MAX as u128) as u64;
            return Timespec::try_from(Duration::from_millis(millis)).ok();
        };
        // To be woken too early is cheaper, since it happens once, than to set the timer each time.
        if !asked.set_for.is_some_and(|at| now < at && at <= deadline) {
            timer.set(Some(time));
            asked.set_for = Some(now + time);
        }
        None
    }

    /// Asks for news, and if it may block, waits for them until the deadline, an interrupt or a
    /// signal.
    fn wait(&self, asked: &mut Asked, block: bool, deadline: Option<Instant>) -> io::Result<()> {
        asked.news.clear();
        let timeout = self.timeout(asked, block, deadline);
        // Few enough that their data are in the cache when the last of them is served
        // (`http_wrk_1000`).
        let mut events = [const { mem::MaybeUninit::uninit() }; 128];
        let (events, _) = match epoll::wait(&self.poller, &mut events[..], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            answer => answer?,
        };
        let news = events.iter().map(Kernel::translate);
        asked.news.extend(news.filter(|news| news.key < Kernel::TIMER));
        if events.iter().any(|event| event.data.u64() as usize == Kernel::NOTIFY) {
            // `polling` takes its notification back, and is ready for the next one.
            asked.wait(&self.poller, Some(Instant::now()))?;
        }
        Ok(())
    }
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend))))]
impl Kernel {
    fn new_timer(_: &Poller) -> Option<TimerFd> {
        None
    }

    /// Registers a handle, in edge mode for both directions and else for what is waited for.
    ///
    /// `polling` must be told of a handle before it is closed. It holds because an [`Async`] owns
    /// its handle, lends it out as `&T` only, and its `Drop` deletes the handle from the poller
    /// before it is closed (`tests/io.rs`,
    /// `the_same_number_can_be_registered_again_after_its_handle_was_closed`). A `T` that closes
    /// its descriptor through `&T` breaks the contract of [`AsFd`](std::os::fd::AsFd); even then
    /// the worst is a missing event.
    #[allow(unsafe_code)]
    fn add(&self, handle: Borrowed<'_>, key: usize, sides: [bool; 2]) -> io::Result<()> {
        use polling::PollMode::{Edge, Oneshot};
        let mode = if self.is_edge() { Edge } else { Oneshot };
        #[cfg(unix)]
        let raw = handle.as_raw_fd();
        #[cfg(windows)]
        let raw = handle.as_raw_socket();
        let event = Event::new(key, sides[0], sides[1]);
        // SAFETY: the handle is deleted from the poller before it is closed, see above.
        let add = || unsafe { self.poller.add_with_mode(raw, event, mode) };
        match add() {
            // Somebody closed a handle of this number behind our back, and `polling` remembers it.
            // Ordering: Relaxed. Set by whoever dropped that handle, before this one was made.
            Err(err)
                if err.kind() == io::ErrorKind::AlreadyExists
                    && self.has_stale.load(Ordering::Relaxed) =>
            {
                self.delete(handle);
                add()
            }
            result => result,
        }
    }

    /// Asks for news, and if it may block, waits for them until the deadline, an interrupt or a
    /// signal.
    fn wait(&self, asked: &mut Asked, block: bool, deadline: Option<Instant>) -> io::Result<()> {
        asked.news.clear();
        asked.wait(&self.poller, if block { deadline } else { Some(Instant::now()) })
    }
}

/// A timer descriptor (timerfd_create(2)): it can be set and stopped without waking the thread that
/// sleeps on it.
#[cfg(any(target_os = "linux", target_os = "android"))]
struct TimerFd(OwnedFd);

#[cfg(any(target_os = "linux", target_os = "android"))]
impl TimerFd {
    fn new(is_blocking: bool) -> Option<TimerFd> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = if is_blocking { TimerfdFlags::empty() } else { TimerfdFlags::NONBLOCK };
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags | TimerfdFlags::CLOEXEC);
        timer.ok().map(TimerFd)
    }

    /// Sets it to ring once, or stops it.
    fn set(&self, after: Option<Duration>) {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, timerfd_settime};
        // Zero would mean to stop it.
        let time = after.map_or(Duration::ZERO, |after| after.max(Duration::from_nanos(1)));
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos() as _ },
        };
        // It can fail only if somebody closed the descriptor; then the poller is broken as well.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value);
    }

    /// Sleeps until it rings, or a signal comes.
    fn wait(&self) {
        match rustix::io::read(&self.0, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Somebody has closed it.
            Err(_) => thread::sleep(NAP),
        }
    }
}

/// There is none elsewhere.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
enum TimerFd {}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl TimerFd {
    fn new(_is_blocking: bool) -> Option<TimerFd> {
        None
    }

    fn set(&self, _after: Option<Duration>) {
        match *self {}
    }

    fn wait(&self) {
        match *self {}
    }
}

/// Whether an operation would not block right now.
enum Readiness {
    Yes,
    No,
    /// There is an error, and neither bytes nor an end: perhaps one that stays (`IP_RECVERR`,
    /// ip(7)).
    #[cfg_attr(windows, allow(dead_code))]
    OnlyAnError,
}

/// Asks the system: poll(2) with a timeout of zero.
#[cfg(unix)]
fn ask_system(handle: Borrowed<'_>, direction: Direction, _seen: usize) -> io::Result<Readiness> {
    use rustix::event::{PollFd, PollFlags, poll};
    let is_read = direction == Direction::Read;
    let flags = if is_read { PollFlags::IN | PollFlags::PRI } else { PollFlags::OUT };
    let mut handle = [PollFd::from_borrowed_fd(handle, flags)];
    while let Err(err) = poll(&mut handle, Some(&rustix::event::Timespec::default())) {
        // A signal may be pending.
        if err != rustix::io::Errno::INTR {
            return Err(err.into());
        }
    }
    let answer = handle[0].revents();
    Ok(match () {
        _ if answer.is_empty() => Readiness::No,
        _ if is_read && answer == PollFlags::ERR => Readiness::OnlyAnError,
        _ => Readiness::Yes,
    })
}

/// Where the system cannot be asked: whether there was an event that nobody has used up yet.
#[cfg(windows)]
fn ask_system(_handle: Borrowed<'_>, direction: Direction, seen: usize) -> io::Result<Readiness> {
    let is_news = seen >= News::EVENT && seen & direction.bit() != 0;
    Ok(if is_news { Readiness::Yes } else { Readiness::No })
}

/// Whether it is a TCP socket, as far as the system can tell.
fn is_tcp(handle: Borrowed<'_>) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::net::{ipproto, sockopt::socket_protocol};
        socket_protocol(handle) == Ok(Some(ipproto::TCP))
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = handle;
        false
    }
}

/// Shuts down the writing half of a socket.
fn shut_down_writing(handle: Borrowed<'_>) {
    #[cfg(unix)]
    let _ = rustix::net::shutdown(handle, rustix::net::Shutdown::Write);
    #[cfg(windows)]
    if let Ok(socket) = handle.try_clone_to_owned() {
        let _ = TcpStream::from(socket).shutdown(std::net::Shutdown::Write);
    }
}

/// What the kernel has to say of a source.
#[derive(Clone, Copy)]
struct News {
    key: usize,
    /// Which bits of [`Source::word`] it sets.
    bits: usize,
}

impl News {
    /// The handle is readable or writable, as [`Direction::bit`] says.
    const READ: usize = 1;
    const WRITE: usize = 2;
    /// A short read does not mean that there is no more to read: the end may have come with the
    /// last bytes, or something else that makes no edge of its own. True of the last event: each
    /// says all that holds.
    const WARY: usize = 4;
    /// Nothing is known.
    const ANYTHING: usize = News::READ | News::WRITE | News::WARY;
    /// One event in [`Source::word`].
    const EVENT: usize = 8;

    fn new(key: usize, readable: bool, writable: bool, wary: bool) -> News {
        let bit = |yes, bit| if yes { bit } else { 0 };
        let bits = bit(readable, News::READ) | bit(writable, News::WRITE) | bit(wary, News::WARY);
        News { key, bits }
    }
}

/// The listener to the kernel, one for the process.
struct Reactor {
    /// Made when the first handle is registered or the first thread waits.
    poller: OnceCell<Kernel>,
    /// Guarded by the seat, which is why it is never contended: the kernel's answer.
    asked: Mutex<Option<Asked>>,
    /// What is registered, by the key that the kernel sends back.
    sources: Mutex<Slab<Arc<Source>>>,
    timers: Mutex<Timers>,
    /// Atomics: how many sources are registered, and whether timers are set.
    registered: AtomicUsize,
    has_timers: AtomicBool,
    /// Atomic: counts the turns, for the watcher.
    turns: AtomicUsize,
    /// Atomic: the last turn failed.
    broken: AtomicBool,
}

static REACTOR: Reactor = Reactor {
    poller: OnceCell::new(),
    asked: Mutex::new(None),
    sources: Mutex::new(Slab::new()),
    timers: Mutex::new(Timers::new()),
    registered: AtomicUsize::new(0),
    has_timers: AtomicBool::new(false),
    turns: AtomicUsize::new(0),
    broken: AtomicBool::new(false),
};

/// The right to be inside the poller, which the loop (§6) gives out and takes back.
struct Seat(());

impl Reactor {
    fn poller(&self) -> io::Result<&Kernel> {
        self.poller.get_or_try_init(|| {
            // Notes which process the poller belongs to.
            check_for_fork();
            Kernel::new()
        })
    }

    /// Whether anything at all is waited for.
    fn has_interest(&self) -> bool {
        // Ordering: SeqCst. Pairs with the addition in `Source::arm` and the store in
        // `Timers::insert` (A1): this is S2' of the second proof.
        self.registered.load(Ordering::SeqCst) > 0 || self.has_timers.load(Ordering::SeqCst)
    }

    /// Says whether there is something to wait for, and if so, makes the poller: before anybody can
    /// be thought to be inside of it, or `interrupt` would find nothing to interrupt. Without one
    /// (no descriptors), `turn` naps.
    fn prepare(&self) -> bool {
        let has_interest = self.has_interest();
        if has_interest {
            let _ = self.poller();
        }
        has_interest
    }

    /// Interrupts the thread in the poller.
    fn interrupt(&self) {
        if let Some(poller) = self.poller.get() {
            poller.interrupt();
        }
    }

    /// Asks the kernel once, until the earliest deadline or the limit if it may block, and collects
    /// who is to be woken. Only with the seat.
    fn turn(&self, _seat: &Seat, block: bool, limit: Option<Duration>, woken: &mut Vec<Waker>) {
        // Ordering: Relaxed. A statistic for the watcher.
        self.turns.fetch_add(1, Ordering::Relaxed);
        let mut deadline = if block { lock(&self.timers).begin_sleep() } else { None };
        if let Some(limit) = limit.map(|limit| Instant::now() + limit) {
            deadline = Some(deadline.map_or(limit, |deadline| deadline.min(limit)));
        }
        let mut asked = lock(&self.asked);
        let asked = asked.get_or_insert_with(Asked::new);
        let answer = self.poller().and_then(|poller| poller.wait(asked, block, deadline));
        // Ordering: Relaxed. A flag that the waiters find sooner or later. Without a poller there
        // may be one the next time.
        let broken = answer.is_err() && self.poller.get().is_some();
        self.broken.store(broken, Ordering::Relaxed);
        if answer.is_err() {
            // No descriptors left to make a poller of, or somebody closed it. Timers still work, if
            // less precisely, and the sources' waiters find the error when they are polled.
            if block {
                let now = Instant::now();
                thread::sleep(
                    deadline.map_or(NAP, |at| at.saturating_duration_since(now).min(NAP)),
                );
            }
            self.wake_sources(woken);
        }
        lock(&self.timers).end_sleep(woken);
        // A few at a time, so that neither lock is held for long.
        for news in asked.news.chunks(64) {
            {
                let sources = lock(&self.sources);
                // News of a source that is gone find nothing, or a successor, which then tries in
                // vain.
                let known = |news: &News| Some((sources.get(news.key)?.clone(), news.bits));
                asked.known.extend(news.iter().filter_map(known));
            }
            for (source, bits) in asked.known.drain(..) {
                tour!(7, "the kernel has news of a handle");
                source.happen(bits, woken);
            }
        }
    }

    /// Notes a timer. Interrupts the thread in the poller if it would sleep too long.
    fn set_timer(&self, deadline: Instant, waker: Waker) -> TimerKey {
        let deadline = Timers::count(deadline);
        let (key, late) = lock(&self.timers).insert(deadline, waker);
        if late {
            self.interrupt();
        }
        key
    }

    /// Gives a timer another waker, unless it would wake the same task. `false` if it has fired.
    fn update_timer(&self, key: TimerKey, waker: &Waker) -> bool {
        match lock(&self.timers).waker(key) {
            Some(known) if known.will_wake(waker) => return true,
            Some(_) => {}
            None => return false,
        }
        // Cloned and dropped without the lock.
        let waker = waker.clone();
        let old = match lock(&self.timers).waker(key) {
            Some(place) => mem::replace(place, waker),
            None => return false,
        };
        shielded(|| drop(old));
        true
    }

    /// Gives a timer another deadline. `false` if it has fired.
    fn move_timer(&self, key: TimerKey, deadline: Instant) -> bool {
        let deadline = Timers::count(deadline);
        let late = lock(&self.timers).change(key, deadline);
        if late == Some(true) {
            self.interrupt();
        }
        late.is_some()
    }

    /// Wakes all who wait for a source.
    fn wake_sources(&self, woken: &mut Vec<Waker>) {
        let sources: Vec<_> = lock(&self.sources).values().cloned().collect();
        for source in sources {
            source.happen(News::ANYTHING, woken);
        }
    }

    /// Forgets a timer, at once, and gives its waker back. `None` if it has fired.
    fn take_timer(&self, key: TimerKey) -> Option<Waker> {
        lock(&self.timers).remove(key)
    }

    /// Forgets a timer, at once.
    fn clear_timer(&self, key: TimerKey) {
        let waker = self.take_timer(key);
        shielded(|| drop(waker));
    }
}

/// The deadlines that are waited for, in a hierarchical timing wheel: Varghese and Lauck, "Hashed
/// and hierarchical timing wheels", 1987, scheme 7. Adding and removing are a few steps however
/// many there are (bench: `timer_pending_1m`; a BTreeMap took five times as long).
///
/// Time is counted in nanoseconds since the first use. A tick is 2^20 of them, a millisecond. On
/// level 0 a slot is a tick, on the next one 64 ticks, and so on; a timer is on the highest level
/// on which its slot is not the one that the wheel is in. So all of a level's timers come before
/// those of the next level, and a slot's timers before those of its next slot. When the wheel comes
/// to a slot of an upper level, its timers go further down. The levels hold all the nanoseconds
/// that 64 bits count, 584 years: the wheel never goes around.
///
/// The exact deadlines are kept, so that nothing fires early or with the next tick: a slot knows
/// (at least) its earliest one, and that is how long the thread in the poller sleeps.
struct Timers {
    entries: Vec<TimerEntry>,
    /// The first of the free entries, which are linked by `next`.
    free: u32,
    len: usize,
    levels: [Level; Timers::LEVELS],
    /// The tick that the wheel has come to.
    tick: u64,
    next_id: u64,
    /// Until when the thread in the poller means to sleep (I5.4): zero if nobody does, `u64::MAX`
    /// for ever.
    until: u64,
}

/// One level of the wheel.
struct Level {
    /// A bit for each slot that is not empty.
    occupied: u64,
    slots: [Slot; 64],
}

/// A list of timers.
#[derive(Clone, Copy)]
struct Slot {
    first: u32,
    /// No deadline in it is earlier. (The timer that was the earliest may have been taken off.)
    earliest: u64,
}

struct TimerEntry {
    deadline: u64,
    /// `None`: this entry is free.
    waker: Option<Waker>,
    /// Which timer it is; the next one in the same place has another number.
    id: u64,
    previous: u32,
    next: u32,
    level: u8,
    slot: u8,
}

/// Where a timer is found, and which one it is.
#[derive(Clone, Copy, Debug)]
struct TimerKey {
    place: u32,
    /// For the timer's own use: its deadline was ahead when it was set, and it was not polled
    /// since.
    is_ahead: bool,
    id: u64,
}

impl Timers {
    const TICK_BITS: u32 = 20;
    /// Six bits each, and together all that are left of a deadline.
    const LEVELS: usize = (64 - Timers::TICK_BITS).div_ceil(6) as usize;
    const NONE: u32 = u32::MAX;

    const fn new() -> Timers {
        const SLOT: Slot = Slot { first: Timers::NONE, earliest: u64::MAX };
        Timers {
            entries: Vec::new(),
            free: Timers::NONE,
            len: 0,
            levels: [const { Level { occupied: 0, slots: [SLOT; 64] } }; Timers::LEVELS],
            tick: 0,
            next_id: 0,
            until: 0,
        }
    }

    /// A moment as a number. Five hundred years from now are as good as never.
    fn count(at: Instant) -> u64 {
        let time = at.saturating_duration_since(epoch());
        let nanos = time.as_secs().saturating_mul(1_000_000_000);
        nanos.saturating_add(u64::from(time.subsec_nanos()))
    }

    /// Whether the thread in the poller sleeps too long for a new deadline and must be interrupted:
    /// once is enough.
    fn must_interrupt(&mut self, deadline: u64) -> bool {
        let is_late = deadline < self.until;
        self.until = self.until.min(deadline);
        is_late
    }

    /// Adds a timer; says also whether the thread in the poller sleeps too long for it.
    fn insert(&mut self, deadline: u64, waker: Waker) -> (TimerKey, bool) {
        self.next_id += 1;
        let entry = TimerEntry {
            deadline,
            waker: Some(waker),
            id: self.next_id,
            previous: Timers::NONE,
            next: Timers::NONE,
            level: 0,
            slot: 0,
        };
        let place = self.free;
        let place = match self.entries.get_mut(place as usize) {
            Some(free) => {
                self.free = free.next;
                *free = entry;
                place
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        if self.len == 0 {
            // Ordering: SeqCst. Pairs with the load in `has_interest`.
            REACTOR.has_timers.store(true, Ordering::SeqCst);
        }
        self.len += 1;
        self.link(place);
        let key = TimerKey { place, is_ahead: false, id: self.next_id };
        (key, self.must_interrupt(deadline))
    }

    /// The waker of a timer, unless it is gone.
    fn waker(&mut self, key: TimerKey) -> Option<&mut Waker> {
        let entry = self.entries.get_mut(key.place as usize)?;
        entry.waker.as_mut().filter(|_| entry.id == key.id)
    }

    /// Changes the deadline, unless the timer is gone; says whether the thread in the poller sleeps
    /// too long.
    fn change(&mut self, key: TimerKey, deadline: u64) -> Option<bool> {
        self.waker(key)?;
        let (level, slot) = self.slot_of(deadline);
        let entry = &mut self.entries[key.place as usize];
        entry.deadline = deadline;
        if (entry.level as usize, entry.slot as usize) == (level, slot) {
            // It stays where it is: so do most timers that limit how long a peer is silent (bench:
            // `timer_reset`).
            let is_alone = entry.previous == Timers::NONE && entry.next == Timers::NONE;
            let earliest = &mut self.levels[level].slots[slot].earliest;
            *earliest = if is_alone { deadline } else { deadline.min(*earliest) };
        } else {
            self.unlink(key.place);
            self.link(key.place);
        }
        Some(self.must_interrupt(deadline))
    }

    /// Takes a timer off, unless it is gone.
    fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.waker(key)?;
        self.unlink(key.place);
        self.release(key.place)
    }

    /// Gives the entry of a timer back that is in no slot.
    fn release(&mut self, place: u32) -> Option<Waker> {
        let entry = &mut self.entries[place as usize];
        let waker = entry.waker.take();
        entry.next = mem::replace(&mut self.free, place);
        self.len -= 1;
        if self.len == 0 {
            // Ordering: Release. Who sees it late looks after the timers once too often.
            REACTOR.has_timers.store(false, Ordering::Release);
            // A burst's memory goes back. Numbers are not used again, so that old keys find
            // nothing.
            if self.entries.len() > 1024 {
                self.entries = Vec::new();
                self.free = Timers::NONE;
            }
        }
        waker
    }

    /// The level and the slot of a deadline.
    fn slot_of(&self, deadline: u64) -> (usize, usize) {
        // What is overdue belongs to where the wheel is.
        let tick = (deadline >> Timers::TICK_BITS).max(self.tick);
        // The highest digit, of six bits each, in which the tick differs from the wheel's.
        let level = ((tick ^ self.tick) | 1).ilog2() / 6;
        (level as usize, (tick >> (6 * level) & 63) as usize)
    }

    /// Puts a timer into the slot where it belongs.
    fn link(&mut self, place: u32) {
        let deadline = self.entries[place as usize].deadline;
        let (level, slot) = self.slot_of(deadline);
        let Level { occupied, slots } = &mut self.levels[level];
        *occupied |= 1 << slot;
        let Slot { first, earliest } = &mut slots[slot];
        *earliest = deadline.min(*earliest);
        let next = mem::replace(first, place);
        if let Some(next) = self.entries.get_mut(next as usize) {
            next.previous = place;
        }
        let entry = &mut self.entries[place as usize];
        (entry.previous, entry.next) = (Timers::NONE, next);
        (entry.level, entry.slot) = (level as u8, slot as u8);
    }

    /// Takes a timer out of its slot.
    fn unlink(&mut self, place: u32) {
        let entry = &self.entries[place as usize];
        let (previous, next) = (entry.previous, entry.next);
        let (level, slot) = (entry.level as usize, entry.slot as usize);
        if let Some(next) = self.entries.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.entries.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => {
                self.levels[level].slots[slot].first = next;
                if next == Timers::NONE {
                    self.empty(level, slot);
                }
            }
        }
    }

    /// Takes all timers out of a slot, as a list.
    fn empty(&mut self, level: usize, slot: usize) -> u32 {
        let Level { occupied, slots } = &mut self.levels[level];
        *occupied &= !(1 << slot);
        slots[slot].earliest = u64::MAX;
        mem::replace(&mut slots[slot].first, Timers::NONE)
    }

    /// The first slot that is not empty.
    fn first(&self) -> Option<(usize, usize)> {
        let level = self.levels.iter().position(|level| level.occupied != 0)?;
        let slot = self.levels[level].occupied.trailing_zeros();
        Some((level, slot as usize))
    }

    /// The thread with the seat is about to ask the kernel: how long may it sleep?
    fn begin_sleep(&mut self) -> Option<Instant> {
        let earliest = self.first().map(|(level, slot)| self.levels[level].slots[slot].earliest);
        self.until = earliest.unwrap_or(u64::MAX);
        epoch().checked_add(Duration::from_nanos(earliest?))
    }

    /// It is back: takes the timers that are due, in the order of their deadlines; of equal ones,
    /// in the order in which they were first waited for.
    fn end_sleep(&mut self, woken: &mut Vec<Waker>) {
        self.until = 0;
        if self.len == 0 {
            return;
        }
        let now = Timers::count(Instant::now());
        let now_tick = now >> Timers::TICK_BITS;
        let mut due = Vec::new();
        while let Some((level, slot)) = self.first() {
            let width = 6 * level as u32;
            let start = (self.tick >> width & !63 | slot as u64) << width;
            if start > now_tick {
                break;
            }
            self.tick = start;
            let mut next = self.empty(level, slot);
            while next != Timers::NONE {
                let place = next;
                let entry = &self.entries[place as usize];
                next = entry.next;
                let order = (entry.deadline, entry.id);
                if entry.deadline <= now {
                    due.extend(self.release(place).map(|waker| (order, waker)));
                } else {
                    self.link(place);
                }
            }
            if start == now_tick {
                // What is left of this very tick is still to come.
                break;
            }
        }
        self.tick = self.tick.max(now_tick);
        due.sort_unstable_by_key(|(order, _)| *order);
        woken.extend(due.into_iter().map(|(_, waker)| waker));
    }
}

/// One of the two things to wait for.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Read = 0,
    Write = 1,
}

impl Direction {
    /// Its bit in [`Source::word`].
    fn bit(self) -> usize {
        1 << self as usize
    }
}

/// A handle the kernel tells us about.
struct Source {
    /// A short read means that the kernel has no more bytes for now (epoll(7)).
    /// Not so for Unix sockets, where a read also ends at a message that carries descriptors.
    is_tcp: bool,
    /// Atomic: the bits of [`News`], above them the number of events (I5.2).
    word: AtomicUsize,
    /// Atomic: the word at which an error that stays was told last.
    error_told: AtomicUsize,
    waiters: Mutex<Waiters>,
}

/// Who waits for a source.
struct Waiters {
    /// Its key in [`Reactor::sources`], once it is registered.
    key: Option<usize>,
    /// By [`Direction`].
    sides: [Side; 2],
    next_token: u64,
}

/// Who waits for one direction of a source.
struct Side {
    /// Nearly always there is one waiter at most.
    first: Option<Waiter>,
    more: Vec<Waiter>,
    /// The length of `more` at which the nameless are woken, to see who is still there.
    limit: usize,
}

struct Waiter {
    /// The future that waits and takes itself off when it is dropped; 0 for a call of `poll_read`
    /// and its like, which has nothing that could be dropped.
    token: u64,
    waker: Waker,
}

/// Where a waiter that can be taken off is noted. Zero: not yet.
type Token = u64;

impl Side {
    const fn new() -> Side {
        Side { first: None, more: Vec::new(), limit: 64 }
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.first.iter_mut().chain(&mut self.more)
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    /// Notes a waiter, in its old place if it has one. What is returned must be dropped without the
    /// lock.
    fn put(&mut self, waiter: Waiter, woken: &mut Vec<Waker>) -> Option<Waker> {
        let same = self.iter_mut().find(|other| match waiter.token {
            0 => other.token == 0 && other.waker.will_wake(&waiter.waker),
            token => other.token == token,
        });
        if let Some(place) = same {
            return Some(mem::replace(&mut place.waker, waiter.waker));
        }
        if self.first.is_none() {
            self.first = Some(waiter);
            return None;
        }
        if self.more.len() >= self.limit {
            // Futures that were dropped may have left wakers behind. Who is still there comes back;
            // the limit grows so that this ends when all are, and not beyond what one event takes
            // back.
            let (nameless, named) =
                mem::take(&mut self.more).into_iter().partition(|w| w.token == 0);
            self.more = named;
            woken.extend(Vec::into_iter(nameless).map(|waiter| waiter.waker));
            self.limit = (self.limit * 2).min(1024);
        }
        self.more.push(waiter);
        None
    }

    fn take(&mut self, woken: &mut Vec<Waker>) {
        woken.extend(self.first.take().map(|waiter| waiter.waker));
        if !self.more.is_empty() {
            woken.extend(mem::take(&mut self.more).into_iter().map(|waiter| waiter.waker));
            self.limit = 64;
        }
    }

    fn remove(&mut self, token: Token) -> Option<Waiter> {
        if self.first.as_ref().is_some_and(|waiter| waiter.token == token) {
            return self.first.take();
        }
        let place = self.more.iter().position(|waiter| waiter.token == token)?;
        Some(self.more.swap_remove(place))
    }
}

impl Source {
    fn new(is_tcp: bool) -> Arc<Source> {
        Arc::new(Source {
            is_tcp,
            word: AtomicUsize::new(News::READ | News::WRITE),
            error_told: AtomicUsize::new(usize::MAX),
            waiters: Mutex::new(Waiters {
                key: None,
                sides: [const { Side::new() }; 2],
                next_token: 0,
            }),
        })
    }

    /// The word as it is, to be compared when an operation has said WouldBlock.
    #[inline]
    fn look(&self) -> usize {
        // Ordering: Acquire. Pairs with the update in `happen`; what matters besides is in the
        // kernel.
        self.word.load(Ordering::Acquire)
    }

    /// An operation said WouldBlock, and `seen` is the word from before it: takes readiness back,
    /// unless there was an event since (I5.2).
    fn blocked(&self, direction: Direction, seen: usize) {
        // Ordering: AcqRel, with the update in `happen`. It fails if that came first.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (word / News::EVENT == seen / News::EVENT).then_some(word & !direction.bit())
        });
    }

    /// An error that stays is told once for each event: says whether this is the first time.
    fn tell_error(&self, seen: usize) -> bool {
        // Ordering: Relaxed. Of two who ask at the same time, one may wait for the next event.
        self.error_told.swap(seen / News::EVENT, Ordering::Relaxed) != seen / News::EVENT
    }

    /// A read moved some bytes, but fewer than it could have: on TCP that is as good as
    /// WouldBlock, which then need not be asked for; unless the end may be near, see [`News::WARY`]
    /// (`tests/tcp.rs`, `the_last_bytes_and_the_end_that_arrive_together_are_both_read`).
    fn fell_short(&self, seen: usize) {
        if self.is_tcp && seen & News::WARY == 0 {
            self.blocked(Direction::Read, seen);
        }
    }

    /// Waits until an event makes the direction ready: `Ready` if it is, an error if the kernel
    /// cannot tell. A token makes the waiter one that [`Source::forget`] can take off.
    fn wait(
        self: &Arc<Self>,
        handle: Borrowed<'_>,
        direction: Direction,
        token: Option<&mut Token>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let waker = cx.waker().clone();
        let mut woken = Vec::new();
        let (old, result);
        {
            let mut waiters = lock(&self.waiters);
            // I5.3: an event after this look waits for the lock, and finds the waiter.
            if self.look() & direction.bit() != 0 {
                drop(waiters);
                drop(waker);
                return Poll::Ready(Ok(()));
            }
            let token = match token {
                None => 0,
                Some(token) => {
                    if *token == 0 {
                        waiters.next_token += 1;
                        *token = waiters.next_token;
                    }
                    *token
                }
            };
            old = waiters.sides[direction as usize].put(Waiter { token, waker }, &mut woken);
            result = self.arm(handle, &mut waiters);
        }
        tour!(6, "a task left its waker with a source");
        if let Some(old) = old {
            shielded(|| drop(old));
        }
        if result.is_err() {
            self.happen(News::ANYTHING, &mut woken);
        }
        wake_all(woken);
        match result {
            Ok(()) => Poll::Pending,
            Err(err) => Poll::Ready(Err(err)),
        }
    }

    /// Whether a waiter has not been woken yet.
    fn is_waiting(&self, direction: Direction, token: Token) -> bool {
        let mut waiters = lock(&self.waiters);
        waiters.sides[direction as usize].iter_mut().any(|waiter| waiter.token == token)
    }

    /// Takes a waiter off, if it is still there.
    fn forget(&self, direction: Direction, token: Token) {
        let waiter = lock(&self.waiters).sides[direction as usize].remove(token);
        shielded(|| drop(waiter));
    }

    /// Registers the handle with the kernel, or arms it again (I5.5).
    fn arm(self: &Arc<Self>, handle: Borrowed<'_>, waiters: &mut Waiters) -> io::Result<()> {
        let poller = REACTOR.poller()?;
        // Ordering: Relaxed, see `turn`.
        if REACTOR.broken.load(Ordering::Relaxed) {
            let what = "the kernel's poller was closed or cannot be used";
            return Err(io::Error::other(what));
        }
        let sides = [0, 1].map(|side| poller.is_edge() || !waiters.sides[side].is_empty());
        if let Some(key) = waiters.key {
            return poller.modify(handle, key, sides);
        }
        if is_forked() {
            return Err(io::Error::other(FORKED));
        }
        let key = lock(&REACTOR.sources).insert(self.clone());
        if let Err(err) = poller.add(handle, key, sides) {
            let source = lock(&REACTOR.sources).remove(key);
            drop(source);
            return Err(err);
        }
        waiters.key = Some(key);
        // A1. Ordering: SeqCst. Pairs with the load in `has_interest`.
        REACTOR.registered.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// The kernel has news. Collects who is to be woken.
    fn happen(&self, bits: usize, woken: &mut Vec<Waker>) {
        // Ordering: AcqRel. Pairs with `look` and `blocked`; before the lock, see I5.3.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            Some((word & !News::WARY).wrapping_add(News::EVENT) | bits)
        });
        let is_edge = REACTOR.poller.get().is_none_or(Kernel::is_edge);
        let mut waiters = lock(&self.waiters);
        for (side, bit) in waiters.sides.iter_mut().zip([News::READ, News::WRITE]) {
            // In oneshot mode the event has disarmed the handle for the other direction as well;
            // who waits there arms it again.
            if bits & bit != 0 || !is_edge {
                side.take(woken);
            }
        }
    }

    /// Registers the handle before anybody waits, to see whether the kernel can.
    fn register(self: &Arc<Self>, handle: Borrowed<'_>) -> io::Result<()> {
        self.arm(handle, &mut lock(&self.waiters))
    }

    /// Takes the handle out of the kernel's poller. To be called before the handle is closed.
    fn deregister(&self, handle: Borrowed<'_>) {
        // The wakers go with it: where the last reference is dropped is no place for somebody
        // else's code.
        let (key, sides) = {
            let mut waiters = lock(&self.waiters);
            let none = [const { Side::new() }; 2];
            (waiters.key.take(), mem::replace(&mut waiters.sides, none))
        };
        shielded(|| drop(sides));
        if let Some(key) = key {
            if let (Ok(poller), false) = (REACTOR.poller(), is_forked()) {
                poller.delete(handle);
            }
            let source = lock(&REACTOR.sources).remove(key);
            drop(source);
            // Ordering: SeqCst, as in `arm`.
            REACTOR.registered.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

// ============================================================================================
// §6  The loop: the only place that knows both halves
// ============================================================================================
//
// uses §1-§5 · used by §8-§12 · locks: the state of `IDLE` (leaf)
//
// PROBLEM   Threads must run tasks, ask the kernel, and sleep, and whichever of these a thread
//           does, the other two must not suffer. No thread may be needed that is not there.
// IDEA      Whoever is idle and finds the seat free sits down in the poller; who finds it taken
//           parks. Workers are preferred, since most news is for tasks. Who sleeps where, who sits
//           and how many there are lies under one lock; whoever queues a ticket looks at one word.
//           A watcher (Go's `sysmon` is the model) comes when somebody is late: leaving the poller
//           sets its alarm, going back to sleep stops it, so that it does not even wake up while
//           all is well.
// STATE     of a thread's signal:  EMPTY --sleep--> PARKED or POLLING --wake--> NOTIFIED --> EMPTY
//           of a worker:  running --no ticket--> searching --none--> asleep, in the seat or parked
//                         searching --a ticket--> running;  asleep --called--> searching
//                         asleep or running --one too many--> gone
//           of the seat:  free --sit--> taken by a worker, a thread in `block_on`, one that is
//                         busy and only has a look, or the watcher --leave--> free
//           of the watcher's alarm:  stopped --a worker is called, the seat left, or somebody
//                         waits while it is empty--> set --no worker awake, or nothing happened for
//                         two ticks; and the seat taken, or nothing waited for--> stopped
// I6.1      While anything is waited for, somebody is in the poller; or the alarm is set, and the
//           watcher fills a seat that is empty for a whole tick; or there is no watcher, and
//           whoever waits sits down itself before it sleeps.
// I6.2      A worker that is awake means that the alarm is set, unless nothing has happened for two
//           ticks and no ticket is queued: should the worker block, the watcher finds what it has
//           in its queue, and starts one more worker if none gets on.
// I6.3      `block_on` polls its own future and its thread's local tasks, nothing else, so that a
//           task which blocks holds up no main future. (The one exception: no thread can be
//           started, or as many as there may be are blocked.)
// I6.4      Nobody is counted as searching who does anything else: a local task, somebody's waker.
//           One who searches is enough; the last one to stop calls the next if it leaves work
//           behind.
// I6.5      Of workers that are not blocked, as far as we know, there are as many as processors;
//           the watcher adds one when no worker gets on although tickets are queued. Who is too
//           many and idle, ends.
// NEVER     starts a thread for a program that only calls `block_on` from one thread.
// REJECTED  A thread for the reactor (two context switches for each message); handing the seat over
//           before each task (a futex call for each event); waking the watcher whenever the seat is
//           left (five wake-ups for a message, bench `message_20ms`); tasks on `block_on`'s thread
//           (async-std 644).

/// How a thread is woken, wherever it sleeps.
struct Signal {
    /// Atomic: see STATE.
    state: AtomicU8,
    unparker: Unparker,
    /// Atomic: the main future must be polled.
    woken: AtomicBool,
}

const EMPTY: u8 = 0;
const NOTIFIED: u8 = 1;
const PARKED: u8 = 2;
const POLLING: u8 = 3;

impl Signal {
    /// Makes the thread look around, now if it sleeps, else before it sleeps the next time.
    fn wake(&self) {
        // Ordering: AcqRel. Pairs with the exchanges in `Sleeper::park` and `Sleeper::turn`: what
        // the caller wrote before is seen by the thread that finds NOTIFIED.
        match self.state.swap(NOTIFIED, Ordering::AcqRel) {
            PARKED => drop(self.unparker.unpark()),
            POLLING => REACTOR.interrupt(),
            _ => {}
        }
    }
}

/// What a thread needs in order to sleep. Made once for each thread and kept for the next
/// `block_on`.
struct Sleeper {
    signal: Arc<Signal>,
    parker: Parker,
    /// Wakes the main future.
    main: Waker,
    main_wake: Arc<MainWake>,
    /// Wakes the thread, for its local tasks.
    thread: Waker,
    /// Goes on from one `block_on` to the next, which may all be short.
    pace: Rc<Pace>,
}

thread_local! {
    static SLEEPER: Rc<Sleeper> = Rc::new(Sleeper::new(Rc::new(Pace::new())));
    /// An outer `block_on` uses it.
    static IN_USE: Cell<bool> = const { Cell::new(false) };
    /// What a worker or pool thread does when `block_on` blocks its task or job (`true`), and
    /// afterwards.
    static WHEN_BLOCKED: Cell<Option<fn(bool)>> = const { Cell::new(None) };
    /// The tasks of `spawn_local`.
    static LOCAL: LocalExecutor<'static> = const { LocalExecutor::new() };
    /// How many wakes of main futures this thread has made, see `leads_home`.
    static MAIN_WAKES: Cell<u32> = const { Cell::new(0) };
    /// The kinds of wakers that were seen to lead to the main future, see `leads_home`.
    static HOMES: Cell<[usize; 4]> = const { Cell::new([0; 4]) };
}

/// What wakes a main future.
struct MainWake(Arc<Signal>);

impl Wake for MainWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        MAIN_WAKES.note(MAIN_WAKES.now().wrapping_add(1));
        // Ordering: AcqRel. Pairs with the swap in `block_on`. A swap even if it was set already:
        // then that swap reads from this one and sees what we wrote (tokio issue 7622).
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            self.0.wake();
        }
    }
}

impl Sleeper {
    fn new(pace: Rc<Pace>) -> Sleeper {
        let parker = Parker::new();
        let signal = Arc::new(Signal {
            state: AtomicU8::new(EMPTY),
            unparker: parker.unparker(),
            woken: AtomicBool::new(false),
        });
        let main_wake = Arc::new(MainWake(signal.clone()));
        let main = Waker::from(main_wake.clone());
        let thread = waker_fn({
            let signal = signal.clone();
            move || signal.wake()
        });
        Sleeper { signal, parker, main, main_wake, thread, pace }
    }

    /// This thread's, or a new one if an outer `block_on` is using it or the thread ends; and a
    /// guard.
    #[inline]
    fn get() -> (Rc<Sleeper>, impl Drop + use<>) {
        let is_free = !IN_USE.try_with(|yes| yes.replace(true)).unwrap_or(true);
        let kept = SLEEPER.try_with(Rc::clone).ok();
        let another = |kept: Option<Rc<Sleeper>>| {
            let pace = kept.map_or_else(|| Rc::new(Pace::new()), |kept| kept.pace.clone());
            Rc::new(Sleeper::new(pace))
        };
        let sleeper = match kept {
            Some(kept) if is_free => kept,
            kept => another(kept),
        };
        let restore = move || {
            let _ = IN_USE.try_with(|yes| yes.set(!is_free));
        };
        (sleeper, OnDrop(restore))
    }

    /// Begins to sleep in this way. `false`: the thread was notified and may not sleep.
    fn begin(&self, how: u8) -> bool {
        // Ordering: AcqRel, with the swap in `Signal::wake`.
        let state = &self.signal.state;
        state.compare_exchange(EMPTY, how, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The end of a sleep. Takes the notification.
    fn end(&self) {
        // Ordering: AcqRel, with the swap in `Signal::wake`.
        self.signal.state.swap(EMPTY, Ordering::AcqRel);
    }

    /// Whether the thread was notified and may not sleep. Takes the notification.
    fn is_notified(&self) -> bool {
        // Ordering: AcqRel, with the swap in `Signal::wake`.
        let state = &self.signal.state;
        state.compare_exchange(NOTIFIED, EMPTY, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Sleeps until notified.
    fn park(&self, until: Option<Instant>) {
        if self.begin(PARKED) {
            // Ordering: Acquire, with the swap in `Signal::wake`.
            while self.signal.state.load(Ordering::Acquire) == PARKED {
                match until {
                    None => self.parker.park(),
                    Some(until) if self.parker.park_deadline(until) => {}
                    Some(_) => break,
                }
            }
        }
        self.end();
    }

    /// Sleeps in the poller until it has news or we are notified; returns whom it concerns.
    fn turn(&self, seat: &Seat, until: Option<Instant>) -> Vec<Waker> {
        tour!(8, "a thread sits down in the poller");
        let mut woken = Vec::new();
        if self.begin(POLLING) {
            let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
            REACTOR.turn(seat, true, limit, &mut woken);
        }
        self.end();
        woken
    }
}

// ---------- Who sleeps, who sits, who is called ----------

/// The one place where threads wait for each other.
struct Idle {
    /// Atomic: what those look at who queue tickets or begin to wait. The workers themselves count
    /// the searching ones in it; the rest is what the state under the lock says.
    word: AtomicUsize,
    state: Mutex<IdleState>,
}

/// One worker that searches; one that sleeps and was not called. At most a thousand of each.
const SEARCHING: usize = 1;
const ASLEEP: usize = 1 << 10;
const COUNT: usize = ASLEEP - 1;
/// How many workers sleep.
fn asleep(word: usize) -> usize {
    (word / ASLEEP) & COUNT
}

/// Threads in `block_on` sleep outside of the poller.
const OTHERS: usize = 1 << 20;
/// Whether there is somebody who could be called to the seat.
fn has_sleepers(word: usize) -> bool {
    word & OTHERS != 0 || asleep(word) > 0
}

/// Somebody has the seat.
const SEATED: usize = 1 << 21;
/// The watcher exists; its alarm is set.
const WATCHED: usize = 1 << 22;
const ARMED: usize = 1 << 23;
/// There are as many workers as there should be.
const FULL: usize = 1 << 24;
/// All workers are blocked, and no more can be started, or there are too many already.
const STRANDED: usize = 1 << 25;

struct IdleState {
    /// What the word says of the rest.
    published: usize,
    /// Of a change under way: how many workers more search, and who is called because of it.
    searching: isize,
    called: Option<Arc<Signal>>,
    /// Workers that sleep outside of the poller and were not called; the last one is called first,
    /// its cache is warm.
    workers: Vec<Arc<Signal>>,
    /// The worker that sleeps in the poller, until it is called.
    seated: Option<Arc<Signal>>,
    /// Threads in `block_on` that sleep outside of the poller and were not called.
    others: Vec<Arc<Signal>>,
    seat: Sitter,
    /// Workers that exist or are about to; of these, those whose task waits in a nested `block_on`.
    present: usize,
    blocked: usize,
    /// Workers neither blocked nor asleep that began no task between the watcher's last two looks.
    stuck: usize,
    /// No thread could be started; not tried again within a second.
    failed: Option<Instant>,
    /// The watcher exists. If it could not be started, whoever leaves the seat hands it over.
    is_watched: bool,
    /// A foreign executor waits for the reactor, and nobody has the seat.
    is_urgent: bool,
    is_armed: bool,
    /// All was calm for a tick before the alarm was set: it is stopped as soon as all is calm
    /// again. Else it is left to ring once more, and the watcher stops it (`mind_alarm`).
    stops_at_once: bool,
    /// When all became calm.
    calm: Option<Instant>,
    /// Somebody is awake, but nothing has happened for two ticks, and no ticket is queued: until
    /// something does, that is as good as calm.
    is_quiet: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Sitter {
    Nobody,
    /// A worker or a thread in `block_on` that sleeps there, or one that is busy and has a look.
    Thread,
    Watcher,
}

static IDLE: Idle = Idle {
    word: AtomicUsize::new(0),
    state: Mutex::new(IdleState {
        published: 0,
        searching: 0,
        called: None,
        workers: Vec::new(),
        seated: None,
        others: Vec::new(),
        seat: Sitter::Nobody,
        present: 0,
        blocked: 0,
        stuck: 0,
        failed: None,
        is_watched: false,
        is_urgent: false,
        is_armed: false,
        stops_at_once: false,
        calm: None,
        is_quiet: false,
    }),
};

/// The queues of the global executor.
static QUEUES: Queues = Queues::new();

/// More workers get on than there should be; the first to see it ends.
static CROWDED: AtomicBool = AtomicBool::new(false);

/// How many workers there should be: `SMOL_THREADS`, else as many as processors.
fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let asked = number_from_env("SMOL_THREADS");
        let processors = || thread::available_parallelism().map(usize::from).ok();
        asked.or_else(processors).unwrap_or(1)
    })
}

/// More threads than this are not even tried.
const MAX_WORKERS: usize = 1000;

/// Reads a positive number from the environment; nonsense is ignored, zero is one.
fn number_from_env(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    let number: usize = text.trim().parse().ok()?;
    Some(number.clamp(1, MAX_WORKERS))
}

impl IdleState {
    /// How many workers there should be.
    fn wanted(&self) -> usize {
        (limit() + self.blocked).min(MAX_WORKERS)
    }

    fn asleep(&self) -> usize {
        self.workers.len() + self.seated.is_some() as usize
    }

    /// Workers that are awake and not blocked as far as we know, and will look at everything before
    /// they sleep.
    fn active(&self) -> usize {
        self.present.saturating_sub(self.blocked + self.asleep())
    }

    /// Whether there are more workers than there should be, and than those who stand in for others
    /// that are stuck.
    fn is_excess(&self) -> bool {
        self.present > self.wanted() + self.stuck.min(self.active())
    }

    /// Nobody relies on anybody who is awake.
    fn is_calm(&self) -> bool {
        let is_attended = self.seat != Sitter::Nobody || !REACTOR.has_interest();
        is_attended && (self.active() == 0 || self.is_quiet)
    }

    /// Whether all workers are blocked, and there will be no more.
    fn is_stranded(&self) -> bool {
        let no_more = self.failed.is_some() || self.present >= MAX_WORKERS;
        no_more && self.present <= self.blocked
    }

    fn may_start(&self) -> bool {
        self.failed.is_none_or(|at| at.elapsed() > Duration::from_secs(1))
    }

    /// Sets the alarm if somebody may be late, and stops it if not. If messages come so fast that
    /// the alarm would hardly ever ring, it is left alone: that is two system calls less for each.
    fn mind_alarm(&mut self) {
        let is_calm = self.is_calm();
        if !is_calm && !self.is_armed && self.is_watched {
            self.stops_at_once = self.calm.is_none_or(|since| since.elapsed() >= TICK);
            self.is_armed = true;
            match self.seat {
                // It sits in the poller without a limit.
                Sitter::Watcher => REACTOR.interrupt(),
                _ => self.set_alarm(),
            }
        } else if is_calm && self.is_armed && self.stops_at_once {
            self.is_armed = false;
            self.calm = Some(Instant::now());
            ALARM.set(None);
        }
    }

    /// Sets the alarm: for the next tick, or at once.
    fn set_alarm(&self) {
        ALARM.set(Some(if self.is_urgent { Duration::ZERO } else { TICK }));
    }

    /// Whether the seat is for workers: most news is for tasks. A worker that is awake comes in
    /// time, or the watcher sees that it does not; if that runs yet: on Windows no thread begins
    /// while a destructor of a thread-local runs.
    fn is_for_workers(&self) -> bool {
        self.active() > 0 && self.is_watched && ALARM.unparker.get().is_some()
    }

    fn sleepers(&mut self, workers: bool) -> &mut Vec<Arc<Signal>> {
        if workers { &mut self.workers } else { &mut self.others }
    }

    /// Takes somebody off its list. `false`: it was called, and is not there any more.
    fn take_off(&mut self, signal: &Arc<Signal>, is_worker: bool) -> bool {
        let sleepers = self.sleepers(is_worker);
        let place = sleepers.iter().rposition(|other| Arc::ptr_eq(other, signal));
        place.map(|place| sleepers.remove(place)).is_some()
    }

    /// For the watcher: says whether all is calm, and if so, counts the alarm as stopped. (It may
    /// ring once more, in vain.)
    fn stop_alarm(&mut self, is_quiet: bool) -> bool {
        self.is_quiet = is_quiet;
        let is_calm = self.is_calm();
        if is_calm {
            self.is_armed = false;
            self.calm = Some(Instant::now());
        }
        is_calm
    }

    /// Makes the word say what the state says, and how many more search.
    fn publish(&mut self) {
        let flag = |yes, flag| if yes { flag } else { 0 };
        let word = self.asleep() * ASLEEP
            + flag(!self.others.is_empty(), OTHERS)
            + flag(self.seat != Sitter::Nobody, SEATED)
            + flag(self.is_watched, WATCHED)
            + flag(self.is_armed, ARMED)
            + flag(self.present >= self.wanted() && !self.is_stranded(), FULL)
            + flag(self.is_stranded(), STRANDED);
        let searching = mem::take(&mut self.searching);
        let change = word.wrapping_sub(self.published).wrapping_add_signed(searching);
        self.published = word;
        if change != 0 {
            // Ordering: SeqCst. Where somebody has just gone to sleep, this is S1 of both proofs.
            IDLE.word.fetch_add(change, Ordering::SeqCst);
        }
    }

    /// Counts a worker whose thread is about to be started: it searches already.
    fn add_worker(&mut self) {
        self.present += 1;
        self.searching += 1;
    }

    /// Calls a worker that was taken off its list: it counts as searching.
    fn call_worker(&mut self, worker: Arc<Signal>) {
        self.searching += 1;
        self.called = Some(worker);
    }

    /// Calls somebody who sleeps to the seat, if there is one who can have it: a worker, since most
    /// news is for tasks, or else a thread in `block_on`.
    fn call_sitter(&mut self) -> bool {
        if let Some(worker) = self.workers.pop() {
            self.call_worker(worker);
        } else if !self.is_for_workers() {
            self.called = self.others.pop();
        }
        self.called.is_some()
    }

    /// Where somebody sleeps who is on the list: in the seat, or else perhaps a worker is called
    /// who should have it.
    fn choose(&mut self, signal: &Arc<Signal>, is_worker: bool) -> Option<Seat> {
        if self.seat != Sitter::Nobody {
            return None;
        }
        if is_worker {
            self.workers.pop();
            self.seated = Some(signal.clone());
            self.seat = Sitter::Thread;
            return Some(Seat(()));
        }
        if let Some(worker) = self.workers.pop() {
            self.call_worker(worker);
            return None;
        }
        if self.is_for_workers() {
            return None;
        }
        self.others.pop();
        self.seat = Sitter::Thread;
        Some(Seat(()))
    }
}

/// The end of a change of the state: publishes it, lets go of the lock, and only then calls.
fn finish(mut state: MutexGuard<'static, IdleState>) {
    state.mind_alarm();
    state.publish();
    // S2': whoever has begun to wait in between saw the old word.
    if !state.is_armed && !state.is_calm() {
        state.mind_alarm();
        state.publish();
    }
    let called = state.called.take();
    drop(state);
    if let Some(signal) = called {
        signal.wake();
    }
}

impl Idle {
    /// The word. Ordering: SeqCst, this is W2 of the first proof, and A2 of the second.
    #[inline]
    fn look(&self) -> usize {
        self.word.load(Ordering::SeqCst)
    }

    /// Whether the alarm is stopped, so that nobody would see it if this thread blocked.
    #[inline]
    fn is_unguarded(&self) -> bool {
        self.look() & (ARMED | WATCHED) == WATCHED
    }

    /// For everybody but the watcher: what happens next ends the quiet. Whoever changes something
    /// calls `finish`; who does not may let go, and the next `finish` minds the alarm.
    fn change(&'static self) -> MutexGuard<'static, IdleState> {
        let mut change = lock(&self.state);
        change.is_quiet = false;
        change
    }

    /// Changes the state under the lock, and finishes.
    fn update<R>(&'static self, update: impl FnOnce(&mut IdleState) -> R) -> R {
        let mut change = self.change();
        let result = update(&mut change);
        finish(change);
        result
    }

    /// A thread goes to sleep, and says so. What it must look at after this: tickets (S2); this
    /// looks at what is waited for (S2'). Says where it sleeps, in the seat or parked, and whether
    /// it is a worker of which there are too many.
    fn fall_asleep(
        &'static self,
        signal: &Arc<Signal>,
        is_worker: bool,
        searching: bool,
    ) -> (Option<Seat>, bool) {
        // (First, without the lock if it can be: it may have to open the poller.)
        let had_interest = REACTOR.prepare();
        let mut change = self.change();
        change.sleepers(is_worker).push(signal.clone());
        change.searching -= searching as isize;
        let mut seat = None;
        if had_interest {
            seat = change.choose(signal, is_worker);
        }
        change.publish();
        if !had_interest && REACTOR.prepare() {
            seat = change.choose(signal, is_worker);
        }
        let is_excess = is_worker && change.is_excess();
        finish(change);
        (seat, is_excess)
    }

    /// A thread that parked is awake again. Says whether it was called; a worker counts as
    /// searching then.
    fn withdraw(&'static self, signal: &Arc<Signal>, is_worker: bool) -> bool {
        self.update(|change| !change.take_off(signal, is_worker))
    }

    /// Takes the seat for a look.
    fn sit(&'static self) -> Option<Seat> {
        if self.look() & SEATED != 0 || !REACTOR.prepare() {
            return None;
        }
        let mut change = self.change();
        if change.seat != Sitter::Nobody {
            return None;
        }
        change.seat = Sitter::Thread;
        change.publish();
        Some(Seat(()))
    }

    /// Gives the seat back. Says whether a worker that slept in it was called, and thus counts as
    /// searching.
    fn leave(&'static self, _seat: Seat, is_worker: bool) -> bool {
        self.update(|change| {
            change.seat = Sitter::Nobody;
            let was_called = is_worker && change.seated.take().is_none();
            // Where there is no watcher, whoever leaves calls the next. (Who begins to wait now has
            // tried to start one, under this lock, and thereafter looks again.)
            if !change.is_watched && REACTOR.has_interest() {
                change.call_sitter();
            }
            was_called
        })
    }

    /// The seat may be empty although something is waited for: somebody who sleeps sits down, or
    /// else the watcher; which need not be told if a worker is awake, unless it is `urgent`.
    fn fill_seat(&'static self, urgent: bool) {
        if self.look() & SEATED != 0 || is_forked() {
            return;
        }
        let mut change = self.change();
        if change.seat != Sitter::Nobody || !REACTOR.has_interest() {
            return;
        }
        let is_late = urgent || change.active() == 0;
        if !change.call_sitter() && change.is_watched && is_late {
            change.is_urgent = true;
            ALARM.set(Some(Duration::ZERO));
        }
        finish(change);
    }

    /// Somebody begins to wait while nobody sits: the watcher sees to it, should this thread block.
    #[cold]
    fn mind(&'static self) {
        if !is_forked() {
            self.update(|_| {});
        }
    }

    /// W3: calls a worker that sleeps. `true`: a thread must be started, which counts as present
    /// and searching already; only if that may be tried. `anyhow`: even if another searches, since
    /// that has not helped.
    fn call_worker(&'static self, anyhow: bool, may_try: bool) -> bool {
        if is_forked() {
            return false;
        }
        let mut change = self.change();
        if self.look() & COUNT > 0 && !anyhow {
            return false;
        }
        // The first worker is tried for each time, since without it nothing goes on.
        let may_start = change.may_start() || change.present <= change.blocked;
        let worker = change.workers.pop().or_else(|| change.seated.take());
        let starts = worker.is_none() && may_try && may_start && change.present < change.wanted();
        match worker {
            Some(worker) => change.call_worker(worker),
            None if starts => change.add_worker(),
            None if change.is_stranded() => {
                // A thread in `block_on` stands in: one that sleeps, or the one in the poller, or
                // who is awake and looks before it sleeps. If there is none, `spawn` does.
                change.called = change.others.pop();
                if change.called.is_none() && change.seat == Sitter::Thread {
                    REACTOR.interrupt();
                }
            }
            None => {}
        }
        finish(change);
        starts
    }

    /// Counts one worker more than there should be, if that is not too many.
    fn add_spare(&'static self) -> bool {
        self.update(|change| {
            let may_start = change.present < MAX_WORKERS && change.may_start();
            if may_start {
                change.add_worker();
            }
            may_start
        })
    }

    /// The thread of a worker was started or not.
    fn started(&'static self, success: bool) {
        self.update(|change| {
            if success {
                change.failed = None;
            } else {
                change.present -= 1;
                change.searching -= 1;
                change.failed = Some(Instant::now());
            }
        });
    }

    /// A worker that sleeps and was not called ends, if there are too many.
    fn retire(&'static self, signal: &Arc<Signal>) -> bool {
        let mut change = self.change();
        let is_excess = change.is_excess();
        let is_seated = change.seated.as_ref().is_some_and(|other| Arc::ptr_eq(other, signal));
        if !is_excess || !(is_seated || change.take_off(signal, true)) {
            return false;
        }
        change.present -= 1;
        if is_seated {
            // Who ends looks after the seat last (`enter_loop`).
            change.seated = None;
            change.seat = Sitter::Nobody;
        }
        finish(change);
        true
    }

    /// A worker that is awake and does not search ends, if there are too many.
    fn retire_awake(&'static self) -> bool {
        self.update(|change| {
            let is_excess = change.present > change.wanted();
            change.present -= is_excess as usize;
            is_excess
        })
    }

    /// A worker's task waits in a nested `block_on`, or no longer.
    fn set_blocked(&'static self, blocked: bool) {
        self.update(|change| {
            change.blocked = if blocked { change.blocked + 1 } else { change.blocked - 1 };
        });
    }

    /// Whether there are tickets, and nobody else to run them.
    fn is_stranded(&self) -> bool {
        self.look() & STRANDED != 0 && QUEUES.has_tickets()
    }
}

/// What wakes the watcher: a timer descriptor. Where there is none, setting the alarm wakes the
/// watcher, which then waits for a tick.
struct Alarm {
    timer: OnceLock<Option<TimerFd>>,
    unparker: OnceLock<Unparker>,
}

static ALARM: Alarm = Alarm { timer: OnceLock::new(), unparker: OnceLock::new() };

impl Alarm {
    fn timer(&self) -> &Option<TimerFd> {
        self.timer.get_or_init(|| TimerFd::new(true))
    }

    /// Sets the alarm, or stops it.
    fn set(&self, after: Option<Duration>) {
        if let Some(timer) = self.timer() {
            timer.set(after);
        } else if let (Some(unparker), Some(_)) = (self.unparker.get(), after) {
            unparker.unpark();
        }
    }

    /// Sleeps until the alarm rings.
    fn wait(&self, parker: &Parker) {
        if let Some(timer) = self.timer() {
            return timer.wait();
        }
        parker.park();
        if !lock(&IDLE.state).is_urgent {
            parker.park_timeout(TICK);
        }
    }
}

/// A ticket was queued (W1): calls a worker, if one sleeps and none searches, or starts one.
fn notify() {
    let word = IDLE.look();
    // I6.4, and I6.2: those who are awake find the ticket before they sleep, or the watcher does.
    let is_full = asleep(word) == 0 && word & FULL != 0;
    let is_seen = word & ARMED != 0 && (word & COUNT > 0 || is_full);
    if !is_seen && IDLE.call_worker(false, true) {
        start_worker();
    }
}

/// Queues a ticket of the global executor.
fn schedule(runnable: Runnable) {
    if QUEUES.push(runnable) {
        notify();
    } else if IDLE.is_unguarded() {
        // The worker looks at its own queue next; the alarm is for when it blocks before (I6.2).
        IDLE.mind();
    }
}

/// Starts a thread; says whether it could be.
fn start_thread(name: String, main: impl FnOnce() + Send + 'static) -> bool {
    check_for_fork();
    thread::Builder::new().name(name).spawn(main).is_ok()
}

/// Whether enough time has passed since a thread could not be started.
fn may_start_thread() -> bool {
    lock(&IDLE.state).may_start()
}

/// Starts the thread of a worker that is counted already.
fn start_worker() {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    // Ordering: Relaxed. A name.
    let name = NAMES.fetch_add(1, Ordering::Relaxed);
    let success = start_thread(format!("smol-{name}"), move || work(name));
    IDLE.started(success);
    if success {
        start_watcher();
    } else if QUEUES.has_tickets() {
        // Somebody may have relied on the worker that did not come.
        IDLE.call_worker(false, false);
    }
}

/// Starts the watcher, unless it is there. `false` if it cannot be.
fn start_watcher() -> bool {
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = lock(&STARTING);
    {
        let state = lock(&IDLE.state);
        if state.is_watched || !state.may_start() {
            return state.is_watched;
        }
    }
    ALARM.timer();
    // Nobody relies on it before it is certain that it comes.
    let success = start_thread("smol-watch".into(), watch);
    let mut change = lock(&IDLE.state);
    change.is_watched = success;
    if !success {
        change.failed = Some(Instant::now());
    }
    finish(change);
    success
}

/// One look at the kernel by a thread that is never idle. Returns whom the news concern.
fn glance() -> Vec<Waker> {
    let mut woken = Vec::new();
    if let Some(seat) = IDLE.sit() {
        REACTOR.turn(&seat, false, None, &mut woken);
        IDLE.leave(seat, false);
    }
    woken
}

/// Whether somebody waits with a waker that wakes the main future of this thread in its turn, so
/// that our loop will poll it, and no watcher is needed (`block_on(zip(..))` would start a thread
/// for each program): a combinator gives its futures wakers of its own. It is tried out, by waking,
/// which costs a poll too many, once for each kind of waker in a `block_on`. (In a task it cannot
/// be tried: the task runs, and to wake it shows nothing.)
fn leads_home(waker: &Waker) -> bool {
    // Two are the sleeper's own. Where there is no other, the combinator is in a foreign
    // `block_on`.
    let clones = SLEEPER.try_with(|kept| Arc::strong_count(&kept.main_wake)).unwrap_or(0);
    if clones <= 2 {
        return false;
    }
    let kind = std::ptr::from_ref(waker.vtable()).addr();
    let mut homes = HOMES.now();
    if homes.contains(&kind) {
        return true;
    }
    let Some(free) = homes.iter_mut().find(|home| **home == 0) else { return false };
    let before = MAIN_WAKES.now();
    shielded(|| waker.wake_by_ref());
    let leads_home = MAIN_WAKES.now() != before;
    if leads_home {
        *free = kind;
        HOMES.note(homes);
        DEPTH.note(DEPTH.now() | LEARNT);
    }
    leads_home
}

/// Somebody has begun to wait for the reactor (A1): sees to it that there is one who asks the
/// kernel. Inside of one of our loops this thread will, when it has nothing else to do. Elsewhere
/// somebody sits down at once; if nobody can, this thread asks for a moment, now and again.
fn attend(waker: &Waker) {
    DEPTH.note(DEPTH.now() | ATTENDED);
    // A2.
    let word = IDLE.look();
    let is_watched = word & WATCHED != 0;
    let is_ours = is_ours(waker);
    if !is_ours {
        check_for_fork();
    }
    if is_in_loop() && (is_watched || is_ours || leads_home(waker)) {
        // This thread will sit down itself. If it does not (it blocks, or a foreign `block_on` runs
        // on it), the watcher fills the seat.
        if is_watched && word & (SEATED | ARMED) == 0 {
            IDLE.mind();
        } else if !is_watched && has_sleepers(word) && !start_watcher() {
            // Nor can there be one soon: one of those who sleep elsewhere sits down.
            IDLE.fill_seat(false);
        }
        // A task that polls in a circle without ever yielding would wait for itself.
        if OVERDRAWN.note(false) {
            wake_all(glance());
        }
        return;
    }
    // A foreign executor knows nothing of our poller.
    if is_watched || start_watcher() {
        return IDLE.fill_seat(true);
    }
    // No thread can be started: this one asks the kernel, for a moment, and its task comes back.
    if let Some(seat) = IDLE.sit() {
        let mut woken = Vec::new();
        REACTOR.turn(&seat, true, Some(NAP), &mut woken);
        IDLE.leave(seat, false);
        wake_all(woken);
    } else {
        thread::sleep(NAP / 10);
    }
    waker.wake_by_ref();
}

/// Waits until the system says that an operation on a source would not block.
fn poll_source(
    source: &Arc<Source>,
    handle: Borrowed<'_>,
    direction: Direction,
    mut token: Option<&mut Token>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    ready!(spend(cx));
    loop {
        let seen = source.look();
        let is_ready = match ask_system(handle, direction, seen)? {
            Readiness::Yes => true,
            // An error that stays is news once for each event, or whoever waits after a WouldBlock
            // would not wait at all (`tests/io.rs`).
            Readiness::OnlyAnError => match token.as_deref() {
                // Woken, that is news; else it is as with the others.
                Some(&token) if token != 0 && !source.is_waiting(direction, token) => true,
                _ => source.tell_error(seen),
            },
            Readiness::No => false,
        };
        if !is_ready || cfg!(windows) {
            source.blocked(direction, seen);
        }
        if is_ready {
            return Poll::Ready(Ok(()));
        }
        match source.wait(handle, direction, token.as_deref_mut(), cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
            Poll::Pending => {
                attend(cx.waker());
                return Poll::Pending;
            }
        }
    }
}

/// Runs tasks although this is no worker, because there is none. Says whether there were any.
fn stand_in(pace: &Pace) -> bool {
    let is_stranded = IDLE.is_stranded();
    if is_stranded {
        run_stranded(pace);
    }
    is_stranded
}

/// Runs some of the tasks for which there is no worker that is not blocked.
fn run_stranded(pace: &Pace) {
    // In `block_on`, whoever stands in asks the kernel next; in `spawn`, nobody does.
    let _tasks = run_as(is_in_loop());
    // What these tasks wake goes to the injector, and is not among those that are taken from there.
    let injected = QUEUES.injector.try_iter().take(QUEUES.injector.len());
    let locals = QUEUES.locals().clone();
    for runnable in locals.iter().flat_map(|local| local.drain()).chain(injected) {
        refill_budget();
        runnable.run();
        if pace.is_due() {
            return;
        }
    }
}

/// The same for `spawn` outside of our loops, when perhaps nobody else would run the tasks: each
/// that is ready runs, and goes on for some rounds if it yields. Not in wakers, which may be called
/// with somebody's lock held. And not inside of each other: the outermost finds what the tasks
/// spawn.
fn stand_in_at_once() {
    thread_local! { static INSIDE: Cell<bool> = const { Cell::new(false) }; }
    if !INSIDE.try_with(|inside| inside.replace(true)).unwrap_or(true) {
        let pace = Pace::new();
        for _ in 0..=QUEUES.len() {
            stand_in(&pace);
        }
        INSIDE.note(false);
    }
}

/// Says what a `block_on` on this thread does when it blocks, until the guard is dropped: what runs
/// after the end of a thread, destructors of thread-locals, is nobody's task or job.
fn set_when_blocked(what: fn(bool)) -> impl Drop {
    let outer = WHEN_BLOCKED.note(Some(what));
    OnDrop(move || _ = WHEN_BLOCKED.note(outer))
}

/// The worker on this thread waits for something in a nested `block_on`: its queue is for others.
fn when_worker_blocked(blocked: bool) {
    IDLE.set_blocked(blocked);
    if blocked && QUEUES.has_tickets() {
        notify();
    }
}

// ---------- The loops ----------

/// A loop of ours that drives this thread's tasks from `spawn_local`, once there are some.
struct LocalLoop {
    drive: Option<LocalDrive>,
    /// Which tasks it may run (I4.3).
    level: u32,
}

impl LocalLoop {
    fn new() -> LocalLoop {
        LocalLoop { drive: None, level: LEVEL.now() }
    }

    fn drive(&mut self) -> Option<&mut LocalDrive> {
        if self.drive.is_none() {
            let tasks = LOCAL.try_with(|local| local.tasks.get().map(LocalDrive::new));
            self.drive = tasks.ok().flatten();
        }
        self.drive.as_mut()
    }

    /// Whether there is a task to run.
    fn has_work(&mut self) -> bool {
        let level = self.level;
        self.drive().is_some_and(|drive| drive.tasks.has_tickets(level))
    }

    /// Runs some of the tasks that are ready. `true`: there may be more.
    fn run(&mut self, pace: &Pace) -> bool {
        let level = self.level;
        let Some(LocalDrive { tasks, .. }) = self.drive() else { return false };
        if !tasks.has_tickets(level) {
            return false;
        }
        let (_here, _tasks) = (tasks.enter(), run_as(true));
        let outer = LEVEL.note(LEVEL.now() + 1);
        let _restore = OnDrop(|| _ = LEVEL.note(outer));
        while let Some(runnable) = tasks.next(level) {
            run_local(runnable);
            if pace.is_due() {
                return true;
            }
        }
        false
    }

    /// Announces that this thread sleeps. `false`: there is something to do after all.
    fn sleep(&mut self, waker: &Waker) -> bool {
        let level = self.level;
        self.drive().is_none_or(|drive| drive.sleep(waker, level))
    }

    fn wake_up(&mut self) {
        if let Some(drive) = &mut self.drive {
            drive.wake_up();
        }
    }

    /// Whether the thread can end without dropping a task.
    fn is_empty(&self) -> bool {
        self.drive.as_ref().is_none_or(|drive| drive.tasks.active.borrow().len == 0)
    }
}

/// Counts a thread as one that looks after the reactor, until the guard is dropped.
#[inline]
fn enter_loop(main: &Waker) -> impl Drop + use<> {
    let (depth, outer) = (DEPTH.now(), OURS.note(main.data().addr()));
    DEPTH.note((depth & !(ATTENDED | LEARNT)) + DEEPER);
    OnDrop(move || {
        OURS.note(outer);
        if DEPTH.note(depth) & LEARNT != 0 {
            HOMES.note([0; 4]);
        }
        // We may have been the one who asked the kernel for others (A2).
        let word = IDLE.look();
        if (word & WATCHED != 0 || has_sleepers(word))
            && word & SEATED == 0
            && REACTOR.has_interest()
        {
            IDLE.fill_seat(false);
        }
        // Or who was called to stand in.
        if word & STRANDED != 0 && QUEUES.has_tickets() {
            IDLE.call_worker(false, false);
        }
    })
}

/// A worker thread.
struct Hand<'a> {
    worker: Worker<'static>,
    sleeper: &'a Sleeper,
    local_tasks: LocalLoop,
    /// It is counted as searching: others rely on it.
    is_searching: bool,
}

/// The life of a worker thread.
fn work(name: u32) {
    let sleeper = &Sleeper::new(Rc::new(Pace::new()));
    let _blocks = set_when_blocked(when_worker_blocked);
    let _inside = enter_loop(&sleeper.main);
    OUR_TASKS.set(true);
    let worker = Worker::new(&QUEUES, true, true, name);
    // `add_worker` has counted it as searching.
    let mut hand = Hand { worker, sleeper, local_tasks: LocalLoop::new(), is_searching: true };
    {
        let _here = hand.worker.enter();
        while hand.round() {}
    }
    drop(hand);
    // What came at the last moment is in the injector now, or another worker's.
    if QUEUES.has_tickets() {
        notify();
    }
}

impl Hand<'_> {
    /// Some tasks, some local tasks, and a look at the kernel, or sleep if there is nothing to do.
    /// `false`: this worker is one too many.
    fn round(&mut self) -> bool {
        let ran = self.run_tasks();
        // They may block, and then nobody may rely on our search (I6.4).
        let has_local_work = self.local_tasks.has_work();
        if has_local_work {
            self.stop_searching();
        }
        let more = has_local_work && self.local_tasks.run(&self.sleeper.pace);
        let has_ticked = ran > 0 && self.worker.has_ticked();
        if ran < TASKS_PER_GLANCE && !more && !has_ticked {
            return self.sleep();
        }
        // A spare worker that is never idle would keep its few tasks to itself for ever.
        // Ordering: Relaxed. A hint of the watcher's.
        if CROWDED.load(Ordering::Relaxed) && !self.is_searching && self.local_tasks.is_empty() {
            CROWDED.store(false, Ordering::Relaxed);
            if IDLE.retire_awake() {
                return false;
            }
        }
        self.stop_searching(); // wakers are somebody else's code (I6.4)
        let woken = glance();
        if has_ticked {
            // The news go to the injector, where they are seen first.
            let _outside = set_for_now(&HERE, None);
            wake_all(woken);
        } else {
            self.deliver(woken);
        }
        true
    }

    /// Runs tasks; says how many.
    fn run_tasks(&mut self) -> u32 {
        let mut ran = 0;
        while ran < TASKS_PER_GLANCE {
            let Some(runnable) = self.next() else { break };
            self.worker.run(runnable);
            ran += 1;
            if self.worker.has_ticked() {
                break;
            }
        }
        ran
    }

    /// The next ticket.
    fn next(&mut self) -> Option<Runnable> {
        let mut runnable = self.worker.find();
        if runnable.is_none() {
            if !mem::replace(&mut self.is_searching, true) {
                // Ordering: SeqCst. Pairs with W2: from here on a push may rely on this worker.
                IDLE.word.fetch_add(SEARCHING, Ordering::SeqCst);
            }
            runnable = self.worker.search();
        }
        if runnable.is_some() {
            self.stop_searching();
        }
        runnable
    }

    /// Nobody may rely on this worker any longer. If it was the last one to search, calls the next.
    fn stop_searching(&mut self) {
        if mem::take(&mut self.is_searching) {
            // Ordering: SeqCst. Pairs with W2: whoever pushed and saw us searching did so before
            // this, so that `has_tickets` sees the push (I6.4).
            let before = IDLE.word.fetch_sub(SEARCHING, Ordering::SeqCst);
            if before & COUNT == 1 && QUEUES.has_tickets() {
                notify();
            }
        }
    }

    /// Wakes whom the kernel's news concern, and calls others once for all.
    fn deliver(&self, woken: Vec<Waker>) {
        if woken.is_empty() {
            return;
        }
        let collect = |collects| {
            let set = |here: &Here| here.is_collecting.set(collects);
            let _ = HERE.try_with(|here| here.borrow().as_ref().map(set));
        };
        collect(true);
        wake_all(woken);
        collect(false);
        if self.worker.local.as_ref().is_some_and(|local| local.queue.len() > 1) {
            notify();
        }
    }

    /// Sleeps until there may be something to do. `false`: this worker is one too many.
    fn sleep(&mut self) -> bool {
        let signal = &self.sleeper.signal;
        if self.sleeper.is_notified() || !self.local_tasks.sleep(&self.sleeper.thread) {
            return true;
        }
        // S1.
        let (seat, is_excess) = IDLE.fall_asleep(signal, true, self.is_searching);
        self.is_searching = false;
        tour!(5, "a worker found nothing, announced sleep (S1), and searches once more (S2)");
        // S2.
        let has_work = QUEUES.has_tickets();
        if !has_work && is_excess && self.local_tasks.is_empty() && IDLE.retire(signal) {
            return false;
        }
        let (was_called, woken) = lie_down(self.sleeper, seat, true, has_work, None);
        self.is_searching = was_called;
        if !woken.is_empty() {
            // Wakers are somebody else's code, which may block (I6.4).
            self.stop_searching();
        }
        self.deliver(woken);
        self.local_tasks.wake_up();
        true
    }
}

/// Runs a future on this thread, and sleeps while there is nothing to do.
///
/// The thread's own tasks ([`spawn_local`]) run in between; other tasks run on other threads. It
/// may be called anywhere, also inside of a task: then that task's thread is blocked, and others
/// take over its other tasks. Inside of a local task, it runs at once those local tasks that this
/// one has spawned, or another that is polled as deep (inside of as many calls); and others only if
/// its future was not woken for a tenth of a second, and looked at no timer and no I/O that was not
/// ready when it was polled last; and not more than 32 deep. So a local task that blocks in this
/// way is not held up by those that were spawned outside of local tasks.
///
/// ```
/// let five = smol::block_on(async { 2 + 3 });
/// assert_eq!(five, 5);
/// ```
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let (sleeper, _in_use) = Sleeper::get();
    block_on_with(&sleeper, future)
}

/// A call of `block_on` begins. One after the other, short ones look around now and then.
#[inline]
fn begin_block_on(sleeper: &Sleeper) {
    if sleeper.pace.is_due() {
        wake_all(glance());
        LocalLoop::new().run(&sleeper.pace);
    }
    // Ordering: Relaxed. The main future is polled first in any case, by this very thread.
    sleeper.signal.woken.store(false, Ordering::Relaxed);
}

fn block_on_with<T>(sleeper: &Sleeper, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let _inside = enter_loop(&sleeper.main);
    begin_block_on(sleeper);
    let mut poll = || {
        refill_budget();
        DEPTH.note(DEPTH.now() & !ATTENDED);
        future.as_mut().poll(&mut Context::from_waker(&sleeper.main))
    };
    if let Poll::Ready(output) = poll() {
        return output;
    }
    // What is woken from now on does not go to the queue of a worker that is blocked.
    let _outside = set_for_now(&HERE, None);
    let mut local = LocalLoop::new();
    let mut patience = Patience::new(local.level);
    patience.note();
    loop {
        patience.begin();
        let more = local.run(&sleeper.pace) | stand_in(&sleeper.pace);
        // Ordering: Acquire, as below.
        if more || sleeper.signal.woken.load(Ordering::Acquire) {
            // A future that is always ready must not keep this thread from asking the kernel.
            if more || sleeper.pace.is_due() {
                wake_all(glance());
            }
        } else if patience.is_over() {
            (local.level, patience) = (0, Patience::new(0));
        } else {
            check_for_fork();
            sleep_in_block_on(sleeper, &mut local, patience.deadline);
        }
        // Ordering: AcqRel. Pairs with the swap in `MainWake`: we see what was written before the
        // wake.
        if sleeper.signal.woken.swap(false, Ordering::AcqRel) {
            if let Poll::Ready(output) = poll() {
                return output;
            }
            patience.note();
        }
    }
}

/// How long a `block_on` inside of a local task leaves the task's siblings alone: the deadline, and
/// the timer that wakes it. See [`block_on`].
struct Patience {
    /// Some levels deep only, for the sake of the stack.
    is_needed: bool,
    /// The main future waits for the reactor, as far as it was polled last. (To poll it again and
    /// see is no answer: a combinator polls only those of its futures that were woken.)
    attends: bool,
    deadline: Option<Instant>,
}

impl Patience {
    fn new(level: u32) -> Patience {
        Patience { is_needed: (1..=SIBLINGS_DEEP).contains(&level), attends: false, deadline: None }
    }

    /// The main future was polled: something has happened.
    fn note(&mut self) {
        self.attends = DEPTH.now() & ATTENDED != 0;
        self.deadline = None;
    }

    /// The main future is not ready: it may wait for a sibling, unless it waits for the reactor.
    fn begin(&mut self) {
        if self.is_needed && !self.attends {
            self.deadline.get_or_insert_with(|| Instant::now() + SIBLINGS_WAIT);
        }
    }

    /// Nothing has happened for so long that a sibling must be run.
    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// Sleeps in `block_on`. If a task or a job called that, others take over the rest of its thread's
/// work.
fn sleep_in_block_on(sleeper: &Sleeper, local: &mut LocalLoop, until: Option<Instant>) {
    if sleeper.is_notified() || !local.sleep(&sleeper.thread) {
        return;
    }
    let when_blocked = WHEN_BLOCKED.now().unwrap_or(|_| {});
    when_blocked(true);
    // Now that this worker counts as blocked, there may be none who is not.
    let is_stranded = sleep(sleeper, until);
    when_blocked(false);
    local.wake_up();
    if is_stranded {
        run_stranded(&sleeper.pace);
        wake_all(glance());
    }
}

/// Sleeps where it is best to, in the poller or outside, until there is something to do. `true`: it
/// did not, since there are tickets, and nobody else to run them.
fn sleep(sleeper: &Sleeper, until: Option<Instant>) -> bool {
    // S1.
    let (seat, _) = IDLE.fall_asleep(&sleeper.signal, false, false);
    if seat.is_none() && IDLE.look() & WATCHED == 0 && REACTOR.has_interest() {
        // Another thread has the seat, and may leave it and block with us asleep.
        start_watcher();
    }
    // S2.
    let is_stranded = IDLE.is_stranded();
    let (_, woken) = lie_down(sleeper, seat, false, is_stranded, until);
    // While this worker counts as blocked, so that others are called: its own future is polled
    // next, and may block. (One of these wakers, too, and then it counts twice.)
    wake_all(woken);
    is_stranded
}

/// Sleeps in the seat or parks, unless there is work, and gets up again. Says whether somebody has
/// called this thread (a worker counts as searching then), and whom the news concern.
fn lie_down(
    sleeper: &Sleeper,
    seat: Option<Seat>,
    is_worker: bool,
    has_work: bool,
    until: Option<Instant>,
) -> (bool, Vec<Waker>) {
    let Some(seat) = seat else {
        if !has_work {
            sleeper.park(until);
        }
        return (IDLE.withdraw(&sleeper.signal, is_worker), Vec::new());
    };
    let woken = if has_work { Vec::new() } else { sleeper.turn(&seat, until) };
    (IDLE.leave(seat, is_worker), woken)
}

/// Spawns a task onto the threads of the global executor, which are started as they are needed.
///
/// There are as many as processors, or `SMOL_THREADS`. A task that blocks its thread holds up
/// others for some milliseconds at most, but for work that blocks [`unblock`] is the better place.
///
/// Dropping the [`Task`] cancels it; [`detach`](Task::detach) lets it run on its own. A panic of
/// the task comes out where the `Task` is awaited.
///
/// If no thread can be started at all, or a thousand wait in [`block_on`] already, tasks run on
/// threads that are in `block_on`, and here, in `spawn`; one that is woken while nobody is in
/// either waits for the next who is. A task that blocks there holds up that thread's own future as
/// well.
///
/// ```
/// let task = smol::spawn(async { 1 + 2 });
/// assert_eq!(smol::block_on(task), 3);
/// ```
#[track_caller]
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    check_for_fork_outside();
    let (runnable, task) = new_task(future, Origin::here(false), || {}, schedule);
    schedule(runnable);
    if IDLE.look() & STRANDED != 0 && !is_in_loop() {
        stand_in_at_once();
    }
    task
}

/// Spawns a task that stays on this thread, so that its future need not be `Send`.
///
/// It runs while this thread is in [`block_on`]. When the thread ends, the task is dropped.
///
/// # Panics
///
/// If the thread is ending and its tasks were dropped already.
///
/// ```
/// use std::rc::Rc;
///
/// smol::block_on(async {
///     let shared = Rc::new(7);
///     let task = smol::spawn_local({ let shared = shared.clone(); async move { *shared } });
///     assert_eq!(task.await, 7);
/// });
/// ```
#[track_caller]
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    match LOCAL.try_with(|local| local.tasks().clone()) {
        Ok(tasks) => tasks.spawn(future, Origin::here(false)),
        Err(_) => panic!("smol::spawn_local was called on a thread whose local tasks are gone"),
    }
}

// ---------- The watcher ----------

/// The life of the watcher: the thread that helps when others are late (I6.1, I6.2).
fn watch() {
    let parker = Parker::new();
    let _ = ALARM.unparker.set(parker.unparker());
    // It may have been set before it could be heard.
    parker.unpark();
    let mut seen = Seen::look(None);
    let mut stuck = 0u32;
    let mut quiet = 0u32;
    let mut is_sitting = false;
    loop {
        if !is_sitting {
            ALARM.wait(&parker);
        }
        let mut is_empty_for_long = false;
        if seen.at.elapsed() >= TICK {
            // Ordering: Relaxed, as in `clock`.
            CLOCK.fetch_add(1, Ordering::Relaxed);
            let now = Seen::look(Some(&seen));
            is_empty_for_long = now.turns == seen.turns;
            let is_same = now.getting_on() == 0 && now.workers.len() == seen.workers.len();
            quiet = if is_same && !QUEUES.has_tickets() { quiet.saturating_add(1) } else { 0 };
            stuck = if now.is_stuck() { stuck.saturating_add(1) } else { 0 };
            {
                let mut state = lock(&IDLE.state);
                state.stuck = state.active().saturating_sub(now.getting_on());
            }
            if stuck > 0 {
                help_out(&now, &mut stuck);
            }
            if now.getting_on() > limit() {
                // Ordering: Relaxed, see `Hand::round`.
                CROWDED.store(true, Ordering::Relaxed);
            }
            seen = now;
        }
        let is_quiet = quiet >= QUIET_TICKS && !QUEUES.has_tickets();
        is_sitting = watch_seat(is_sitting || is_empty_for_long, is_quiet);
        if !is_sitting {
            rest(is_quiet);
        }
    }
}

/// Sets the alarm once more, or stops it if all is calm, or quiet.
fn rest(is_quiet: bool) {
    let mut change = lock(&IDLE.state);
    if !change.stop_alarm(is_quiet) {
        change.is_armed = true;
        change.set_alarm();
    }
    finish(change);
    look_after_tickets(is_quiet);
}

/// A ticket that was queued while all was thought to be quiet: its pusher saw the old word, or we
/// see the ticket now (S2).
fn look_after_tickets(was_quiet: bool) {
    if was_quiet && QUEUES.has_tickets() {
        IDLE.mind();
    }
}

/// If the seat was empty for too long, somebody who sleeps elsewhere takes it, or else we do, one
/// turn at a time. `true`: once more.
fn watch_seat(is_empty_for_long: bool, is_quiet: bool) -> bool {
    let has_interest = REACTOR.prepare();
    let mut change = lock(&IDLE.state);
    if !has_interest && REACTOR.has_interest() {
        // It came in between: once more, at once if it is urgent.
        return false;
    }
    let is_due = mem::take(&mut change.is_urgent) || is_empty_for_long;
    if !is_due || change.seat != Sitter::Nobody || !has_interest {
        return false;
    }
    if change.call_sitter() {
        finish(change);
        return false;
    }
    let seat = Seat(());
    change.seat = Sitter::Watcher;
    // Workers may be blocked, and then we are needed elsewhere.
    let limit = (!change.stop_alarm(is_quiet)).then_some(TICK);
    finish(change);
    look_after_tickets(is_quiet);
    let mut woken = Vec::new();
    REACTOR.turn(&seat, true, limit, &mut woken);
    IDLE.leave(seat, false);
    wake_all(woken);
    REACTOR.has_interest()
}

/// What the watcher compares from tick to tick.
struct Seen {
    at: Instant,
    turns: usize,
    workers: Vec<SeenWorker>,
}

struct SeenWorker {
    local: Arc<Local>,
    /// How many tasks it has run.
    polls: u32,
    /// It has run the same one since the last tick, with tickets in its queue.
    stuck: bool,
    /// It has run some since the last tick.
    gets_on: bool,
}

impl Seen {
    fn look(before: Option<&Seen>) -> Seen {
        let look = |local: &Arc<Local>| {
            // Ordering: Relaxed. A statistic.
            let polls = local.polls.load(Ordering::Relaxed);
            let same = |other: &&SeenWorker| Arc::ptr_eq(&other.local, local);
            let before = before.and_then(|before| before.workers.iter().find(same));
            let is_same = before.is_some_and(|before| before.polls == polls);
            let stuck = is_same && !local.queue.is_empty();
            let gets_on = before.is_some() && !is_same;
            SeenWorker { local: local.clone(), polls, stuck, gets_on }
        };
        Seen {
            at: Instant::now(),
            // Ordering: Relaxed. A statistic.
            turns: REACTOR.turns.load(Ordering::Relaxed),
            workers: QUEUES.locals().iter().map(look).collect(),
        }
    }

    /// How many workers get on.
    fn getting_on(&self) -> usize {
        self.workers.iter().filter(|worker| worker.gets_on).count()
    }

    /// Whether tickets lie where nobody has taken any for a whole tick.
    fn is_stuck(&self) -> bool {
        let is_left = QUEUES.common_len() > 0 && self.getting_on() == 0;
        is_left || self.workers.iter().any(|worker| worker.stuck)
    }
}

/// Tickets are stuck, for so many ticks now: lets others help themselves, calls a worker that
/// sleeps, or starts one more if none gets on. What a worker has in its queue that is merely busy
/// for long goes to its overflow, half of it at each tick.
fn help_out(seen: &Seen, stuck: &mut u32) {
    // The lock is held, since nobody comes to the overflow of a worker that has left.
    for local in QUEUES.locals().iter() {
        let is_this = |worker: &&SeenWorker| Arc::ptr_eq(&worker.local, local);
        if seen.workers.iter().find(is_this).is_some_and(|worker| worker.stuck) {
            let half = local.queue.len().div_ceil(2);
            local.queue.try_iter().take(half).for_each(|ticket| _ = local.overflow.push(ticket));
        }
    }
    let word = IDLE.look();
    // One who searches is believed once.
    if (word & COUNT > 0 && *stuck < 2) || word & STRANDED != 0 {
        return;
    }
    let is_asleep = asleep(word) > 0;
    if is_asleep || word & FULL == 0 {
        if IDLE.call_worker(true, true) {
            start_worker();
        }
        return;
    }
    if seen.getting_on() > 0 {
        // Others get on, and look at the injector and the overflows at each tick.
        return;
    }
    // Workers that compute for long look the same as workers that are blocked. The first few spare
    // ones come at once, more and more slowly after that: 2, 4, 8 … ticks apart.
    let spare = seen.workers.len().saturating_sub(limit() + lock(&IDLE.state).blocked);
    let patience = 1u32.checked_shl((spare / limit()) as u32).unwrap_or(u32::MAX);
    if *stuck >= patience && IDLE.add_spare() {
        *stuck = 0;
        start_worker();
    }
}

// ############################################################################################
// Here the machine ends. What follows is its face.
// ############################################################################################

// ============================================================================================
// §7  Scopes: tasks that may borrow
// ============================================================================================
//
// uses §1 · used by nobody · locks: woken (leaf)
//
// PROBLEM   A spawned task may not borrow from its spawner, which could be gone before it.
// IDEA      The future of the scope owns the futures of its children and polls them itself. So they
//           may borrow whatever outlives that future, and dropping it drops them: nothing to prove.
//           Their wakers know only a number and a list, and may live as long as they like.
// I7.1      A child is in the table, or it is being polled, or it is gone.
// NEVER     runs two children at the same time: they take turns on the thread of the scope. Work
//           for several threads is spawned with `spawn` and awaited in the scope.
// REJECTED  Tasks on the executor with their lifetime transmuted: sound only if the scope's future
//           cannot be leaked (Leakpocalypse, rust-lang/rust issue 24292), and it can.

/// Runs `body`, which may spawn children that borrow, and waits for all of them.
///
/// A child's panic cancels its siblings and the body, and comes out of `scope`. When the future of
/// `scope` is dropped, the children are dropped first, then the body. The children need not be
/// `Send` and run on the thread that polls the scope.
///
/// ```
/// smol::block_on(async {
///     let words = vec!["structured", "concurrency"];
///     let total = smol::scope(async |s| {
///         let tasks: Vec<_> = words.iter().map(|word| s.spawn(async { word.len() })).collect();
///         let mut total = 0;
///         for task in tasks {
///             total += task.await;
///         }
///         total
///     }).await;
///     assert_eq!(total, 21);
/// });
/// ```
pub async fn scope<'env, T>(body: impl AsyncFnOnce(Scope<'env>) -> T) -> T {
    let children = Rc::new(Children::default());
    children.wake_new(BODY);
    let mut body = std::pin::pin!(Some(body(Scope { children: children.clone() })));
    let mut output = None;
    // Dropped before `body`, and before whatever the children borrow from.
    let _children = OnDrop(|| {
        children.close();
        let end = Woken { is_over: true, ..Woken::default() };
        let left = mem::replace(&mut *lock(&children.woken), end);
        shielded(|| drop(left));
    });
    poll_fn(|cx| {
        let polled = children.poll_woken(cx, |cx| {
            if let Some(future) = body.as_mut().as_pin_mut() {
                if let Poll::Ready(value) = future.poll(cx) {
                    output = Some(value);
                    body.set(None);
                }
            }
        });
        if let Err(payload) = polled {
            children.close();
            body.set(None);
            resume_unwind(payload);
        }
        if children.futures.borrow().len > 0 {
            return Poll::Pending;
        }
        output.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Spawns children into a [`scope`]. Can be cloned, and given to children.
#[derive(Clone)]
pub struct Scope<'env> {
    children: Rc<Children<'env>>,
}

/// The children of a scope.
#[derive(Default)]
struct Children<'env> {
    /// All that are not finished; `None` is the one that is being polled.
    futures: RefCell<Slab<Option<ChildFuture<'env>>>>,
    /// Cancelled or at its end: who is spawned now is dropped at once.
    is_closed: Cell<bool>,
    /// Spawned during this poll of the scope: woken at its end, under one lock.
    spawned: RefCell<Vec<Arc<ChildWaker>>>,
    is_polled: Cell<bool>,
    woken: Arc<Mutex<Woken>>,
}

type ChildFuture<'env> = Pin<Box<dyn Future<Output = ()> + 'env>>;

/// The children that must be polled, and the body.
#[derive(Default)]
struct Woken {
    wakers: Vec<Arc<ChildWaker>>,
    /// Wakes the scope's own future; taken by the first child that is woken.
    scope: Option<Waker>,
    /// The scope has ended: a waker that came now would hold this list, and the list the waker.
    is_over: bool,
}

/// The waker of a child, or of the body.
struct ChildWaker {
    key: usize,
    /// Atomic: it is on the list already.
    is_queued: AtomicBool,
    woken: Arc<Mutex<Woken>>,
}

/// The body of a scope among the keys of its children.
const BODY: usize = usize::MAX;

impl Wake for ChildWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Ordering: AcqRel. Pairs with the swap in `poll_woken`, also if it was set already: the
        // poll that follows sees what was written before this.
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            change_list(&self.woken, |list| list.push(self.clone()));
        }
    }
}

/// Puts somebody on the list, unless the scope is over, and wakes the scope.
fn change_list(woken: &Mutex<Woken>, put: impl FnOnce(&mut Vec<Arc<ChildWaker>>)) {
    let scope = {
        let mut woken = lock(woken);
        if woken.is_over {
            return;
        }
        put(&mut woken.wakers);
        woken.scope.take()
    };
    if let Some(scope) = scope {
        scope.wake();
    }
}

impl<'env> Children<'env> {
    /// Polls those that were woken. Whoever is woken after this has begun wakes the scope again. An
    /// error is the panic of a child.
    fn poll_woken(
        &self,
        cx: &Context<'_>,
        mut poll_body: impl FnMut(&mut Context<'_>),
    ) -> thread::Result<()> {
        let scope = cx.waker().clone();
        let (wakers, old) = {
            let mut woken = lock(&self.woken);
            (mem::take(&mut woken.wakers), woken.scope.replace(scope))
        };
        shielded(|| drop(old));
        let is_ours = is_ours(cx.waker());
        let _restore = run_as(is_ours);
        self.is_polled.set(true);
        let _end = OnDrop(|| {
            self.is_polled.set(false);
            self.wake_spawned();
        });
        for waker in wakers {
            let key = waker.key;
            // Ordering: AcqRel. Pairs with the swap in `wake_by_ref`.
            waker.is_queued.swap(false, Ordering::AcqRel);
            let waker = Waker::from(waker);
            OURS.note(if is_ours { waker.data().addr() } else { 0 });
            let mut cx = Context::from_waker(&waker);
            match key {
                BODY => poll_body(&mut cx),
                _ => self.poll_child(key, &mut cx)?,
            }
        }
        Ok(())
    }

    /// Has a new child, or the body, polled for the first time.
    fn wake_new(&self, key: usize) {
        let (is_queued, woken) = (AtomicBool::new(true), self.woken.clone());
        self.spawned.borrow_mut().push(Arc::new(ChildWaker { key, is_queued, woken }));
        if !self.is_polled.get() {
            self.wake_spawned();
        }
    }

    /// What was spawned comes before those that were woken in the same poll.
    fn wake_spawned(&self) {
        let spawned = self.spawned.take();
        if !spawned.is_empty() {
            let put = |list: &mut Vec<_>| drop(list.splice(..0, spawned));
            shielded(|| change_list(&self.woken, put));
        }
    }

    /// Polls a child, if it is still there.
    fn poll_child(&self, key: usize, cx: &mut Context<'_>) -> thread::Result<()> {
        let taken = self.futures.borrow_mut().get_mut(key).and_then(Option::take);
        let Some(mut future) = taken else { return Ok(()) };
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        if let (Ok(Poll::Pending), false) = (&polled, self.is_closed.get()) {
            if let Some(place) = self.futures.borrow_mut().get_mut(key) {
                *place = Some(future);
            }
            return Ok(());
        }
        self.futures.borrow_mut().remove(key);
        shielded(|| drop(future));
        polled.map(|_| ())
    }

    /// Drops all children but the one that is being polled, which goes when its poll returns.
    fn close(&self) {
        self.is_closed.set(true);
        let futures = self.futures.take();
        for future in futures.into_values().flatten() {
            shielded(|| drop(future));
        }
    }
}

impl<'env> Scope<'env> {
    /// Spawns a child, which may borrow whatever outlives the scope.
    pub fn spawn<T: 'env>(&self, future: impl Future<Output = T> + 'env) -> ScopedTask<T> {
        let slot = Rc::new(OutputSlot {
            output: Cell::new(None),
            is_gone: Cell::new(false),
            waiter: Cell::new(None),
        });
        let task = ScopedTask { slot: slot.clone() };
        let child_end = ChildEnd(slot);
        let child = Box::pin(async move {
            let output = future.await;
            child_end.0.output.set(Some(output));
        });
        if self.children.is_closed.get() {
            shielded(|| drop(child));
        } else {
            let key = self.children.futures.borrow_mut().insert(Some(child));
            self.children.wake_new(key);
        }
        task
    }

    /// Drops all children that are not finished, and those that are spawned afterwards. The body
    /// goes on; awaiting a [`ScopedTask`] that was cancelled panics.
    pub fn cancel(&self) {
        self.children.close();
        // The scope may have nothing left to wait for.
        let scope = lock(&self.children.woken).scope.take();
        scope.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let children = self.children.futures.borrow().len;
        f.debug_struct("Scope").field("children", &children).finish_non_exhaustive()
    }
}

/// Where a child leaves its output.
struct OutputSlot<T> {
    output: Cell<Option<T>>,
    /// The child is finished, or was cancelled.
    is_gone: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

/// The child has this while it lives.
struct ChildEnd<T>(Rc<OutputSlot<T>>);

impl<T> Drop for ChildEnd<T> {
    fn drop(&mut self) {
        self.0.is_gone.set(true);
        wake_all(self.0.waiter.take());
    }
}

/// A child of a [`scope`]. Awaiting it gives its output; dropping it leaves the child to the scope,
/// which waits for it all the same.
///
/// # Panics
///
/// Awaiting a child that was cancelled panics, as it does for a [`Task`].
#[must_use = "the scope waits for its children anyhow; await the task for its output, or drop it"]
pub struct ScopedTask<T> {
    slot: Rc<OutputSlot<T>>,
}

impl<T> ScopedTask<T> {
    /// Whether the child is finished, or was cancelled.
    pub fn is_finished(&self) -> bool {
        self.slot.is_gone.get()
    }
}

impl<T> Future for ScopedTask<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(output) = self.slot.output.take() {
            return Poll::Ready(output);
        }
        assert!(!self.is_finished(), "a scoped task was awaited after it was cancelled, or twice");
        self.slot.waiter.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl<T> fmt::Debug for ScopedTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedTask").field("finished", &self.is_finished()).finish()
    }
}

// ============================================================================================
// §8  Timer: a deadline you can await
// ============================================================================================
//
// uses §1 §5 §6 · used by §11-§12 · locks: none of its own
//
// PROBLEM   Code wants to go on at a certain time, repeatedly perhaps, and to change its mind.
// IDEA      The reactor keeps deadline and waker; the timer itself decides by the clock whether it
//           fires, so that it is never early, whoever polls it and why.
// I8.1      Whoever polled last is noted until the timer fires: with the reactor while there is a
//           deadline (`Set` has a key exactly then), else here. Dropping takes it back.
// NEVER     overflows: a deadline that an `Instant` cannot hold is no deadline.

/// A future that is ready at a deadline, and a stream of such moments.
///
/// It yields the deadline, not the moment it was noticed. A timer is never early; it is late by
/// what the operating system and busy threads add, typically some 50 µs. After it has fired, a
/// timer without a period stays pending until it is set again. Cancel-safe.
///
/// Whoever polled a timer last waits for it, whatever it is set to meanwhile. Of timers with one
/// deadline, who was polled first is woken first.
///
/// ```
/// use smol::{Timer, stream::StreamExt};
/// use std::time::{Duration, Instant};
///
/// smol::block_on(async {
///     let start = Instant::now();
///     Timer::after(Duration::from_millis(5)).await;
///     assert!(start.elapsed() >= Duration::from_millis(5));
///
///     let ticks = Timer::interval(Duration::from_millis(1)).take(3).count().await;
///     assert_eq!(ticks, 3);
/// });
/// ```
#[derive(Debug)]
pub struct Timer {
    state: TimerState,
    period: Option<Duration>,
}

/// What a timer is set to, and where its waiter is noted (I8.1).
#[derive(Debug)]
enum TimerState {
    Set(Instant, Option<TimerKey>),
    Never(Option<Waker>),
}

impl TimerState {
    #[inline]
    fn new(deadline: Option<Instant>) -> TimerState {
        deadline.map_or(TimerState::Never(None), |deadline| TimerState::Set(deadline, None))
    }
}

impl Timer {
    #[inline]
    fn new(deadline: Option<Instant>, period: Option<Duration>) -> Timer {
        Timer { state: TimerState::new(deadline), period }
    }

    /// A timer that never fires, until it is set.
    pub fn never() -> Timer {
        Timer::new(None, None)
    }

    /// Fires once, after the given time. A time too long for the clock means never.
    #[inline]
    pub fn after(duration: Duration) -> Timer {
        Timer::new(Instant::now().checked_add(duration), None)
    }

    /// Fires once, at the given time.
    #[inline]
    pub fn at(instant: Instant) -> Timer {
        Timer::new(Some(instant), None)
    }

    /// Fires again and again, for the first time after one period.
    ///
    /// If it is polled so late that several periods have passed, it fires once for all of them and
    /// keeps its phase: the next deadline is a whole number of periods after the first. A period of
    /// zero is always ready, and yields to other tasks now and then.
    pub fn interval(period: Duration) -> Timer {
        Timer::new(Instant::now().checked_add(period), Some(period))
    }

    /// The same, for the first time at the given moment.
    pub fn interval_at(start: Instant, period: Duration) -> Timer {
        Timer::new(Some(start), Some(period))
    }

    /// Sets the timer to fire once, after the given time from now on.
    pub fn set_after(&mut self, duration: Duration) {
        let deadline = Instant::now().checked_add(duration);
        self.set(deadline, None, !duration.is_zero());
    }

    /// Sets the timer to fire once, at the given moment.
    pub fn set_at(&mut self, instant: Instant) {
        self.set(Some(instant), None, false);
    }

    /// Sets the timer to fire again and again, for the first time after one period from now on.
    pub fn set_interval(&mut self, period: Duration) {
        let deadline = Instant::now().checked_add(period);
        self.set(deadline, Some(period), !period.is_zero());
    }

    /// Sets the timer to fire again and again, for the first time at the given moment.
    pub fn set_interval_at(&mut self, start: Instant, period: Duration) {
        self.set(Some(start), Some(period), false);
    }

    /// Whether the timer will fire, provided it is polled.
    pub fn will_fire(&self) -> bool {
        matches!(self.state, TimerState::Set(..))
    }

    /// Changes the deadline. Whoever waits for the timer goes on waiting, also if there is none.
    fn set(&mut self, deadline: Option<Instant>, period: Option<Duration>, is_ahead: bool) {
        self.period = period;
        if let (TimerState::Set(old, key), Some(deadline)) = (&mut self.state, deadline) {
            *old = deadline;
            // If it has fired, its waiter was woken and comes back.
            *key = key.filter(|key| REACTOR.move_timer(*key, deadline));
            key.iter_mut().for_each(|key| key.is_ahead = is_ahead);
            return;
        }
        let waiter = match mem::replace(&mut self.state, TimerState::new(deadline)) {
            TimerState::Set(_, key) => key.and_then(|key| REACTOR.take_timer(key)),
            TimerState::Never(waiter) => waiter,
        };
        match (&mut self.state, waiter) {
            (TimerState::Never(place), waiter) => *place = waiter,
            (TimerState::Set(deadline, key), Some(waiter)) => {
                let new = REACTOR.set_timer(*deadline, waiter.clone());
                *key = Some(TimerKey { is_ahead, ..new });
                attend(&waiter);
            }
            (TimerState::Set(..), None) => {}
        }
    }

    /// The deadline after one that fired at `now`.
    fn next(&self, deadline: Instant, now: Instant) -> Option<Instant> {
        let period = self.period?;
        if period.is_zero() {
            return Some(now);
        }
        // Whole periods after the deadline, and after `now`.
        let late = now.saturating_duration_since(deadline).as_nanos() % period.as_nanos();
        let (secs, nanos) = (late / 1_000_000_000, late % 1_000_000_000);
        let into = Duration::new(u64::try_from(secs).ok()?, nanos as u32);
        now.checked_add(period.checked_sub(into)?)
    }

    fn poll_fire(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        let (deadline, key) = match &mut self.state {
            TimerState::Set(deadline, key) => (*deadline, key),
            TimerState::Never(waiter) => {
                waiter.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
                return Poll::Pending;
            }
        };
        ready!(spend(cx));
        let still_waits = |key: &TimerKey| REACTOR.update_timer(*key, cx.waker());
        // When it was set the clock was asked, and need not be asked twice (bench: `timer_reset`).
        let is_ahead = key.as_mut().is_some_and(|key| mem::take(&mut key.is_ahead));
        if !(is_ahead && key.as_ref().is_some_and(still_waits)) {
            let now = Instant::now();
            if now >= deadline {
                let key = key.take();
                self.state = TimerState::new(self.next(deadline, now));
                key.into_iter().for_each(|key| REACTOR.clear_timer(key));
                return Poll::Ready(deadline);
            }
            if !key.as_ref().is_some_and(still_waits) {
                *key = Some(REACTOR.set_timer(deadline, cx.waker().clone()));
            }
        }
        attend(cx.waker());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        match &mut self.state {
            TimerState::Set(_, Some(key)) => REACTOR.clear_timer(*key),
            TimerState::Set(_, None) => {}
            TimerState::Never(waiter) => shielded(|| drop(waiter.take())),
        }
    }
}

impl Future for Timer {
    type Output = Instant;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Instant> {
        self.poll_fire(cx)
    }
}

impl Stream for Timer {
    type Item = Instant;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Instant>> {
        self.poll_fire(cx).map(Some)
    }
}

/// Gives a future so much time from the call on; a time too long for the clock means for ever.
///
/// The future is polled first, so that one that is ready at the same moment wins. On `Err` it has
/// been dropped; whether that loses something is a matter of the future. Cancel-safe if it is.
///
/// ```
/// use std::time::Duration;
///
/// smol::block_on(async {
///     let slow = smol::timeout(Duration::from_millis(1), smol::future::pending::<()>()).await;
///     assert!(slow.is_err());
///     let fast = smol::timeout(Duration::MAX, async { 1 }).await;
///     assert_eq!(fast, Ok(1));
/// });
/// ```
pub fn timeout<T>(
    duration: Duration,
    future: impl Future<Output = T>,
) -> impl Future<Output = Result<T, TimedOut>> {
    until(Timer::after(duration), future)
}

/// Gives a future time until a moment, and not more. Otherwise it is as [`timeout`] is.
///
/// ```
/// use smol::Timer;
/// use std::time::{Duration, Instant};
///
/// smol::block_on(async {
///     // One deadline for several steps.
///     let deadline = Instant::now() + Duration::from_millis(10);
///     let mut steps = 0;
///     while smol::timeout_at(deadline, Timer::after(Duration::from_millis(3))).await.is_ok() {
///         steps += 1;
///     }
///     assert!(steps <= 3);
/// });
/// ```
pub fn timeout_at<T>(
    deadline: Instant,
    future: impl Future<Output = T>,
) -> impl Future<Output = Result<T, TimedOut>> {
    until(Timer::at(deadline), future)
}

async fn until<T>(mut timer: Timer, future: impl Future<Output = T>) -> Result<T, TimedOut> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        timer.poll_fire(cx).map(|_| Err(TimedOut))
    })
    .await
}

/// The future given to [`timeout`] or [`timeout_at`] took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the operation took too long")
    }
}

impl std::error::Error for TimedOut {}

impl From<TimedOut> for io::Error {
    fn from(error: TimedOut) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, error)
    }
}

// ============================================================================================
// §9  Blocking pool: a place where waiting is allowed
// ============================================================================================
//
// uses §1 §2 §5 §6 · used by §10-§12 · locks: pool (leaf), lane < desk
//
// PROBLEM   Some work can only be done by blocking: files, name look-ups, other people's code.
// IDEA      A queue of jobs and threads that come and go. A job is a task (§2) that is polled once.
// I9.1      While a job is queued and a thread is idle, another has been called and is on its way;
//           and if none is idle and the limit allows, one is on its way or starting. The first act
//           of whoever comes is to call or start the next if jobs are left: a job may block, so
//           that none waits behind another.
// I9.2      No job runs inside of another one: it might want what that one holds. Whose job waits
//           in `block_on` makes room for one more thread meanwhile. A job that has handed in what
//           nobody was free for (a host) may wait for just that in some other way: it makes room
//           until it ends, but only if nothing moves any more.
// I9.3      A lane does one operation at a time, in the order in which they were asked for. The
//           answer goes to the desk of the handle that asked, and stays there until the one who
//           asked comes for it, or is known to be gone (`Desk::claim`). Bytes that were read lie in
//           the lane, for whoever reads next.
// NEVER     wakes an idle thread from time to time: it waits once, and ends.

/// The threads for blocking work.
struct Pool {
    state: Mutex<PoolState>,
    call: Condvar,
    limit: usize,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Runnable>,
    /// Threads that wait and have not been called.
    idle: usize,
    /// Calls that no thread has answered yet, to a job, and to leave.
    called: usize,
    sent_away: usize,
    threads: usize,
    /// Of these, those whose job waits in `block_on`.
    blocked: usize,
    /// Those whose job has handed in what nobody was free for.
    hosts: usize,
    /// Threads that have been started and do not do jobs yet.
    starting: usize,
    /// Whether one of them stands by for the jobs of hosts.
    stands_by: bool,
    /// How often a thread came for a job.
    taken: usize,
}

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool {
    state: Mutex::default(),
    call: Condvar::new(),
    limit: number_from_env("BLOCKING_MAX_THREADS").unwrap_or(POOL_LIMIT),
});

thread_local! {
    /// On a thread that does jobs: whether this one's counts among the hosts.
    static IS_HOST: Cell<Option<bool>> = const { Cell::new(None) };
}

impl PoolState {
    /// How many threads there may be, and how many more if nothing moves (I9.2).
    fn allowed(&self) -> (usize, usize) {
        (POOL.limit + self.blocked, self.hosts.min(POOL_LIMIT))
    }

    /// Threads but for the one that stands by.
    fn running(&self) -> usize {
        self.threads - usize::from(self.stands_by)
    }

    fn take_job(&mut self) -> Option<Runnable> {
        let job = self.queue.pop_front();
        self.taken = self.taken.wrapping_add(1);
        let capacity = self.queue.capacity();
        if capacity > 1024 && self.queue.len() < capacity / 8 {
            self.queue.shrink_to(capacity / 4);
        }
        job
    }

    /// The job of this thread is over, and makes no room any more.
    fn end_job(&mut self) {
        if IS_HOST.replace(Some(false)) == Some(true) {
            self.hosts -= 1;
        }
    }
}

impl Pool {
    /// Queues a job and sees to it that a thread comes.
    fn submit(&'static self, runnable: Runnable) {
        check_for_fork_outside();
        let mut state = lock(&self.state);
        // Threads that are idle have perhaps not been called yet for the jobs that are queued.
        let is_taken = state.idle + state.called <= state.queue.len();
        if is_taken && state.running() >= state.allowed().0 {
            let is_new = IS_HOST.now() == Some(false);
            if is_new {
                IS_HOST.set(Some(true));
                state.hosts += 1;
            }
        }
        state.queue.push_back(runnable);
        if !self.reinforce(state) && IS_HOST.now().is_none() {
            self.stand_in();
        }
    }

    /// Calls an idle thread, or starts one if that is allowed. `false` if it could not be started.
    fn reinforce(&'static self, mut state: MutexGuard<'_, PoolState>) -> bool {
        if state.idle > 0 {
            // Enough of them may be on their way: those go on with it.
            if state.called < POOL_CALLED {
                state.idle -= 1;
                state.called += 1;
                drop(state);
                self.call.notify_one();
            }
            return true;
        }
        let (allowed, more) = state.allowed();
        let stands_by = state.running() >= allowed;
        if state.running() >= allowed + more || state.starting >= POOL_STARTING {
            return true;
        }
        if stands_by && mem::replace(&mut state.stands_by, true) {
            return true;
        }
        state.threads += 1;
        state.starting += 1;
        let name = format!("smol-pool-{}", state.threads);
        drop(state);
        let started = start_thread(name, move || {
            if !stands_by || self.stand_by() {
                self.work();
            }
        });
        if !started {
            let mut state = lock(&self.state);
            state.threads -= 1;
            state.starting -= 1;
            state.stands_by &= !stands_by;
        }
        started
    }

    /// A thread beyond the limit waits until no job was taken for a while although there are some.
    /// `false` if it is not needed.
    fn stand_by(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            let taken = state.taken;
            drop(state);
            thread::sleep(POOL_PATIENCE);
            state = lock(&self.state);
            let (allowed, more) = state.allowed();
            let is_needed = !state.queue.is_empty() && state.threads <= allowed + more;
            if is_needed && state.taken != taken {
                continue;
            }
            state.stands_by = false;
            if !is_needed {
                state.threads -= 1;
                state.starting -= 1;
            }
            return is_needed;
        }
    }

    /// No thread could be started. If there is none, or if this is the only one that is not blocked
    /// for certain, the work is done on the thread that wants it done.
    fn stand_in(&'static self) {
        // What these jobs hand in is queued, and they may wait for it.
        let is_host = IS_HOST.now();
        let _blocks = set_when_blocked(|blocked| POOL.block(blocked));
        loop {
            let job = {
                let mut state = lock(&self.state);
                let alone = state.threads == 0 || is_host.is_some();
                if alone { state.queue.pop_back() } else { None }
            };
            let Some(job) = job else { break };
            IS_HOST.set(Some(false));
            job.run();
            lock(&self.state).end_job();
            IS_HOST.set(is_host);
        }
    }

    /// The job on this thread waits for something in `block_on`, perhaps for another job: the
    /// thread does not count until that is over.
    fn block(&'static self, blocked: bool) {
        let mut state = lock(&self.state);
        if !blocked {
            state.blocked -= 1;
            let (allowed, more) = state.allowed();
            if state.threads > allowed + more && state.idle > 0 {
                // Whoever was let in for this one does not count as somebody who could do a job.
                state.idle -= 1;
                state.threads -= 1;
                state.sent_away += 1;
                drop(state);
                self.call.notify_one();
            }
            return;
        }
        state.blocked += 1;
        if !state.queue.is_empty() && !self.reinforce(state) {
            self.stand_in();
        }
    }

    /// The life of a pool thread.
    fn work(&'static self) {
        IS_HOST.set(Some(false));
        let _blocks = set_when_blocked(|blocked| POOL.block(blocked));
        let mut state = lock(&self.state);
        state.starting -= 1;
        let mut came = true;
        loop {
            let (allowed, more) = state.allowed();
            if state.running() > allowed + more {
                // Whoever this one was let in for does not wait any more.
                state.threads -= 1;
                if !state.queue.is_empty() && state.idle > 0 {
                    self.reinforce(state);
                }
                return;
            }
            if let Some(job) = state.take_job() {
                // I9.1: the next one, if there is still something to do.
                if mem::take(&mut came) && !state.queue.is_empty() {
                    self.reinforce(state);
                } else {
                    drop(state);
                }
                tour!(9, "a thread of the pool does a job");
                job.run();
                state = lock(&self.state);
                state.end_job();
                continue;
            }
            let Some(called) = self.idle(state) else { return };
            (state, came) = (called, true);
        }
    }

    /// Waits until somebody calls this thread. `None`: it ends.
    fn idle<'a>(&self, mut state: MutexGuard<'a, PoolState>) -> Option<MutexGuard<'a, PoolState>> {
        state.idle += 1;
        let idle = |state: &mut PoolState| state.called + state.sent_away == 0;
        let waited = self.call.wait_timeout_while(state, POOL_IDLE, idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        // Whoever called or sent us away has taken us off `idle`.
        if state.called > 0 {
            state.called -= 1;
            return Some(state);
        }
        if state.sent_away > 0 {
            state.sent_away -= 1;
        } else {
            state.idle -= 1;
            state.threads -= 1;
        }
        None
    }
}

/// Runs a closure on a thread where it may block, and returns its result as a [`Task`].
///
/// There are up to `BLOCKING_MAX_THREADS` such threads, by default 500; more jobs than that wait
/// for their turn in a queue without a limit. A thread that has been idle for two seconds ends. A
/// panic comes out where the task is awaited. Dropping the task cancels a closure that has not
/// begun (it is dropped) and does not stop one that has; use [`detach`](Task::detach) if it must
/// run in any case. At the end of `main`, running closures are not waited for.
///
/// A closure may wait for others that run here. If it does so in [`block_on`], its thread does not
/// count meanwhile, and another may start. If it waits in other ways, by a channel or by somebody
/// else's `block_on`, it counts, and those whom it waits for must fit under the limit. But for
/// those that it has handed in itself while all threads were busy, one more comes after some
/// milliseconds in which nothing moved.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// smol::block_on(async {
///     let text = smol::unblock(|| std::fs::read_to_string("Cargo.toml")).await?;
///     assert!(text.contains("smol"));
///     Ok(())
/// })
/// # }
/// ```
#[track_caller]
pub fn unblock<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let schedule = |runnable| POOL.submit(runnable);
    let (runnable, task) = new_task(async move { f() }, Origin::here(true), || {}, schedule);
    runnable.schedule();
    task
}

/// Something whose operations block, done one at a time on the pool (I9.3). Its handles share it.
struct Lane<S> {
    state: Mutex<LaneState<S>>,
    /// Whether a read need not move the position: then one that is dropped has not happened.
    goes_back: bool,
}

struct LaneState<S> {
    /// `None` while an operation has it.
    io: Option<S>,
    queue: VecDeque<Order<S>>,
    /// The bytes of the writes in the queue.
    queued: usize,
    /// Whether a job is at the queue, or on its way.
    is_served: bool,
    ahead: Option<Ahead>,
    /// Those who wait for room in the queue, or for its end; each once, by its waker's address.
    waiters: BTreeMap<(usize, usize), Arc<Waker>>,
    /// Who was woken last: each operation that ends wakes the next in turn.
    last_woken: (usize, usize),
    /// How often the position was moved by other things than writes.
    moves: u64,
}

/// Bytes that were read and not seen by anybody.
struct Ahead {
    /// Where they lie in the file, which still stands there. `None` if it cannot go back: then they
    /// are nowhere else.
    at: Option<u64>,
    bytes: Vec<u8>,
    seen: usize,
}

/// An operation in the queue, and the slip of a desk that its answer belongs to.
struct Order<S> {
    op: Op<S>,
    desk: Arc<Mutex<Desk>>,
    name: u64,
    len: usize,
}

type Op<S> = Box<dyn FnOnce(&mut S, &mut Option<Ahead>) -> Answer + Send>;

enum Answer {
    /// How many bytes, or which place.
    Number(io::Result<u64>),
    /// An item of an iterator, or what a closure returned.
    Any(Box<dyn Any + Send>),
    Panic(Box<dyn Any + Send>),
}

impl Answer {
    fn number(self) -> io::Result<u64> {
        match self {
            Answer::Number(result) => result,
            Answer::Any(_) => Ok(0),
            Answer::Panic(payload) => resume_unwind(payload),
        }
    }

    fn is_failure(&self) -> bool {
        matches!(self, Answer::Number(Err(_)) | Answer::Panic(_))
    }
}

/// What the users of one handle have asked for, and the answers that lie ready for them.
#[derive(Default)]
struct Desk {
    slips: Vec<Slip>,
    clock: u64,
}

struct Slip {
    /// By the desk's clock: when it was asked, which is its name, and when it was answered.
    started: u64,
    answered: u64,
    asked: Request,
    access: Access,
    /// What the lane's `moves` were.
    moves: u64,
    wakers: Vec<Arc<Waker>>,
    answer: Option<Answer>,
    /// When the answer came.
    since: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    Read,
    /// How many bytes, and what they hash to.
    Write(usize, u64),
    Flush,
    Seek(SeekFrom),
    Item,
    /// A closure.
    Call(u64),
    /// By somebody who is gone for certain.
    Gone,
}

impl Request {
    fn takes(self) -> bool {
        matches!(self, Request::Read | Request::Item)
    }

    /// Whether only one user by `&mut` at a time asks for these two. (Halves do not seek.)
    fn is_of_one_with(self, other: Request) -> bool {
        matches!(self, Request::Gone | Request::Seek(_)) || self.takes() == other.takes()
    }
}

/// How a handle is used: by `&mut`, so that at a time there is one living user who reads and one
/// who does everything else (`io::split` has both); or by `&`.
#[derive(Clone, Copy, PartialEq)]
enum Access {
    Own,
    Shared,
}

type Who<'a> = (&'a Arc<Mutex<Desk>>, Access);

/// Who asks for what; `data` is what is to be written.
struct Wish<'a> {
    request: Request,
    data: &'a [u8],
    access: Access,
    moves: u64,
    waker: Arc<Waker>,
}

/// Other people's things, dropped when no lock is held: to be declared before the guards.
type Trash = (Vec<Slip>, Vec<Arc<Waker>>);

impl Slip {
    fn is_of(&self, waker: &Waker) -> bool {
        self.wakers.iter().any(|known| known.will_wake(waker))
    }

    /// Whether it can be the answer to a wish: by what was asked, and if the position has moved,
    /// also by the waker that asked. A buffer may have grown since its owner asked first.
    fn fits(&self, wish: &Wish<'_>) -> bool {
        let is_own = wish.access == Access::Own || self.is_of(&wish.waker);
        let is_it = match (self.asked, wish.request) {
            (Request::Gone, _) => false,
            (Request::Write(len, hash), Request::Write(..)) if is_own && len < wish.data.len() => {
                hash == fingerprint(&wish.data[..len])
            }
            (asked, wished) => asked == wished,
        };
        is_it && (is_own || self.moves == wish.moves)
    }

    fn wait<T>(&mut self, wish: &Wish<'_>, trash: &mut Trash) -> Poll<T> {
        if wish.access == Access::Own && self.asked != Request::Gone {
            trash.1.append(&mut self.wakers);
        }
        if !self.is_of(&wish.waker) {
            self.wakers.push(wish.waker.clone());
        }
        Poll::Pending
    }
}

impl Desk {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whose is an answer? A poll does not say which future it is for. By `&mut` there is one that
    /// reads and one that does not: what does not fit comes from futures that are gone. (The other
    /// of the two is waited for as well, and if it failed, that is told, by the same task before it
    /// asks for something new, or takes what was read.) By `&` there may be many; equal ones may
    /// have each other's, but the waker that asked comes first. What lay ready for a waker before
    /// it asked for something else that it now comes for was probably asked by a future that is
    /// gone. Of those that are gone, failures are told and successes forgotten; but that of a write
    /// by `&` only when the position is moved, since its future may be alive and not polled in
    /// between, and would write once more.
    ///
    /// `None` if this was not asked for yet.
    fn claim(&mut self, wish: &Wish<'_>, trash: &mut Trash) -> Poll<Option<Answer>> {
        let fitting = |slip: &&Slip| slip.fits(wish);
        let own = |slip: &&Slip| slip.fits(wish) && slip.is_of(&wish.waker);
        let found = self.slips.iter().find(own).or_else(|| self.slips.iter().find(fitting));
        let name = found.map(|slip| slip.started);
        let lies_ready = found.is_some_and(|slip| slip.answer.is_some());
        let mut at = 0;
        while let Some(slip) = self.slips.get_mut(at) {
            let is_gone = match (wish.access, name) {
                (Access::Own, _) => {
                    let is_done = slip.answer.as_ref().is_some_and(|answer| !answer.is_failure());
                    let is_new = name.is_none() || wish.request.takes();
                    let is_mine = is_new && !is_done && slip.is_of(&wish.waker);
                    Some(slip.started) != name
                        && (slip.asked.is_of_one_with(wish.request) || is_mine)
                }
                (Access::Shared, Some(name)) if lies_ready && slip.is_of(&wish.waker) => {
                    let is_write = matches!(slip.asked, Request::Write(..));
                    match &slip.answer {
                        Some(answer) if is_write && !answer.is_failure() => {
                            let tells = Request::Seek(SeekFrom::Current(0));
                            let moves = matches!(wish.request, Request::Seek(_));
                            moves && wish.request != tells && slip.started < name
                        }
                        answer => answer.is_some() && slip.answered < name,
                    }
                }
                _ => false,
            };
            let tells = !matches!(wish.request, Request::Item | Request::Call(_));
            match &slip.answer {
                _ if !is_gone => at += 1,
                None => return slip.wait(wish, trash),
                Some(answer) if answer.is_failure() && !tells => at += 1,
                Some(answer) if answer.is_failure() => return Poll::Ready(self.remove(at, trash)),
                Some(_) => trash.0.push(self.slips.remove(at)),
            }
        }
        match self.slips.iter().position(|slip| Some(slip.started) == name) {
            None => Poll::Ready(None),
            Some(at) if !lies_ready => self.slips[at].wait(wish, trash),
            Some(at) => Poll::Ready(self.remove(at, trash)),
        }
    }

    fn remove(&mut self, at: usize, trash: &mut Trash) -> Option<Answer> {
        let mut slip = self.slips.remove(at);
        let answer = slip.answer.take();
        trash.0.push(slip);
        if self.slips.is_empty() && self.slips.capacity() > 16 {
            self.slips = Vec::new();
        }
        answer
    }

    fn open(&mut self, wish: &Wish<'_>, trash: &mut Trash) -> u64 {
        // Answers can pile up if tasks that share a handle are cancelled and never use it again.
        // When there are very many, those go that nobody has come for in a minute.
        if self.slips.len() >= DESK_LIMIT && self.slips.len().is_power_of_two() {
            let is_old = |slip: &Slip| slip.answer.is_some() && slip.since.elapsed() > DESK_AGE;
            let (old, kept): (Vec<_>, _) = mem::take(&mut self.slips).into_iter().partition(is_old);
            trash.0.extend(old);
            self.slips = kept;
        }
        let started = self.tick();
        self.slips.push(Slip {
            started,
            answered: 0,
            asked: wish.request,
            access: wish.access,
            moves: wish.moves,
            wakers: vec![wish.waker.clone()],
            answer: None,
            since: Instant::now(),
        });
        started
    }

    /// Takes an answer in, and says who waits for it.
    fn deliver(&mut self, name: u64, answer: &mut Option<Answer>) -> Vec<Arc<Waker>> {
        let answered = self.tick();
        let slip = self.slips.iter_mut().find(|slip| slip.started == name);
        slip.map_or(Vec::new(), |slip| {
            slip.answer = answer.take();
            (slip.answered, slip.since) = (answered, Instant::now());
            slip.wakers.clone()
        })
    }
}

/// A hash of 64 bits that nobody outside can foresee. Four lanes of 16 bytes do not wait for one
/// another: some 15 GB/s, so that it costs no more than the copy that is made of the bytes anyway.
fn fingerprint(data: &[u8]) -> u64 {
    static KEYS: OnceLock<[u64; 5]> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let random = RandomState::new();
        [1, 2, 3, 4, 5].map(|number| random.hash_one(number))
    });
    let mix = |hash: u64, low: u64, high: u64| {
        let product = u128::from(low ^ hash) * u128::from(high ^ keys[4]);
        (product as u64 ^ (product >> 64) as u64).wrapping_add(hash.rotate_left(23))
    };
    let mut lanes = [keys[0], keys[1], keys[2], keys[3]];
    let mut take_in = |block: &[u8]| {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(16)) {
            let bytes = u128::from_le_bytes(bytes.try_into().unwrap_or_default());
            *lane = mix(*lane, bytes as u64, (bytes >> 64) as u64);
        }
    };
    let mut blocks = data.chunks_exact(64);
    (&mut blocks).for_each(&mut take_in);
    let mut last = [0; 64];
    last[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
    take_in(&last);
    mix(mix(0, lanes[0], lanes[1]), lanes[2], lanes[3])
}

impl<S: Send + 'static> Lane<S> {
    fn new(io: S, goes_back: bool) -> Arc<Lane<S>> {
        let state = LaneState {
            io: Some(io),
            queue: VecDeque::new(),
            queued: 0,
            is_served: false,
            ahead: None,
            waiters: BTreeMap::new(),
            last_woken: (0, 0),
            moves: 0,
        };
        Arc::new(Lane { state: Mutex::new(state), goes_back })
    }

    /// The job: does what is in the queue.
    fn serve(self: Arc<Self>) {
        let mut is_over = false;
        while !is_over {
            let mut state = lock(&self.state);
            let Some(order) = state.queue.pop_front() else { return };
            let Some(mut io) = state.io.take() else { return };
            let mut ahead = state.ahead.take();
            drop(state);
            let Order { op, desk, name, len } = order;
            let had_read = ahead.is_some();
            let answer = catch_unwind(AssertUnwindSafe(|| op(&mut io, &mut ahead)));
            let mut answer = Some(answer.unwrap_or_else(Answer::Panic));
            let has_read = !had_read && ahead.is_some();

            let mut state = lock(&self.state);
            state.io = Some(io);
            state.ahead = ahead;
            state.queued -= len;
            // First: who has waited for room, or whoever is in already would take it again.
            let mut wakers: Vec<_> = state.next_waiter().into_iter().collect();
            wakers.extend(lock(&desk).deliver(name, &mut answer));
            is_over = state.queue.is_empty();
            if is_over {
                state.is_served = false;
                state.queue.shrink_to(16);
                wakers.extend(mem::take(&mut state.waiters).into_values());
            }
            drop(state);
            for waker in wakers {
                shielded(|| waker.wake_by_ref());
                shielded(|| drop(waker));
            }
            // If the handle is gone, so is nearly everything else.
            shielded(|| drop((answer, desk)));
            if has_read && !is_over {
                // The reader has a chance to take its bytes before a write moves the position.
                return unblock(move || self.serve()).detach();
            }
        }
    }

    /// Comes for the answer to a request, or puts an operation at the end of the queue. `take` may
    /// find at once what is to be read.
    fn poll_op(
        self: &Arc<Self>,
        (desk, access): Who<'_>,
        cx: &Context<'_>,
        (request, data): (Request, &[u8]),
        take: impl FnOnce(&mut LaneState<S>) -> Option<Answer>,
        op: impl FnOnce() -> Op<S>,
    ) -> Poll<Answer> {
        let waker = Arc::new(cx.waker().clone());
        let mut wish = Wish { request, data, access, moves: 0, waker };
        let mut trash = Trash::default();
        let mut state = lock(&self.state);
        wish.moves = state.moves;
        let mut at_desk = lock(desk);
        match (request, ready!(at_desk.claim(&wish, &mut trash))) {
            (Request::Read, None | Some(Answer::Number(Ok(_)))) => {
                if let Some(answer) = take(&mut state) {
                    return Poll::Ready(answer);
                }
            }
            (_, Some(answer)) => return Poll::Ready(answer),
            (_, None) => {}
        }
        // Each asker has one operation in the queue; those of dropped futures could fill it.
        if state.queue.len() >= LANE_OPS || state.queued >= POOL_CHUNK {
            trash.1.extend(state.add_waiter(wish.waker));
            return Poll::Pending;
        }
        state.moves += u64::from(matches!(request, Request::Seek(_)));
        wish.moves = state.moves;
        let name = at_desk.open(&wish, &mut trash);
        drop(at_desk);
        state.queued += data.len();
        state.queue.push_back(Order { op: op(), desk: desk.clone(), name, len: data.len() });
        let is_served = mem::replace(&mut state.is_served, true);
        drop(state);
        if !is_served {
            let lane = self.clone();
            unblock(move || lane.serve()).detach();
        }
        Poll::Pending
    }

    /// The same for what is neither read nor written.
    fn poll_other(
        self: &Arc<Self>,
        who: Who<'_>,
        cx: &Context<'_>,
        request: Request,
        op: impl FnOnce(&mut S, &mut Option<Ahead>) -> Answer + Send + 'static,
    ) -> Poll<Answer> {
        self.poll_op(who, cx, (request, &[]), |_| None, || Box::new(op))
    }

    /// Waits until nothing is under way, and takes the thing out.
    fn poll_take(&self, cx: &Context<'_>) -> Poll<S> {
        let waker = Arc::new(cx.waker().clone());
        let mut trash = Trash::default();
        let mut state = lock(&self.state);
        if !state.is_served {
            if let Some(io) = state.io.take() {
                return Poll::Ready(io);
            }
        }
        trash.1.extend(state.add_waiter(waker));
        Poll::Pending
    }

    /// `now` finds bytes that are there at once. `read` is run on the pool, and says how many, and
    /// where in the file they are if it has not moved the position. `pass` moves that over what the
    /// user takes, and says `false` if it was not there any more.
    fn poll_read(
        self: &Arc<Self>,
        who: Who<'_>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        now: impl FnOnce(&S, &mut [u8]) -> Option<usize>,
        read: impl FnOnce(&mut S, &mut [u8]) -> io::Result<(usize, Option<u64>)> + Send + 'static,
        pass: impl FnOnce(&mut S, u64, usize) -> bool,
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(spend(cx));
        let goes_back = self.goes_back;
        let mut state = lock(&self.state);
        if let (true, Some(io)) = (goes_back || state.ahead.is_none(), &state.io) {
            let found = lock(who.0).slips.is_empty().then(|| now(io, buf)).flatten();
            if let Some(len) = found {
                state.ahead = None;
                state.moves += u64::from(goes_back);
                drop(state);
                spend_bytes(len);
                return Poll::Ready(Ok(len));
            }
        }
        drop(state);
        let len = buf.len().min(POOL_CHUNK);
        let take = |state: &mut LaneState<S>| state.take_ahead(buf, goes_back, pass);
        let op = || read_ahead(len, read);
        let answer = ready!(self.poll_op(who, cx, (Request::Read, &[]), take, op));
        Poll::Ready(answer.number().map(|len| {
            spend_bytes(len as usize);
            len as usize
        }))
    }

    fn poll_write(
        self: &Arc<Self>,
        who: Who<'_>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>>
    where
        S: Write,
    {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(spend(cx));
        let data = &data[..data.len().min(POOL_CHUNK)];
        let request = Request::Write(data.len(), fingerprint(data));
        let op = || {
            let data = data.to_vec();
            Box::new(move |io: &mut S, ahead: &mut Option<Ahead>| {
                Ahead::forget_seen(ahead);
                let written = patiently(io, true, |io| io.write(&data));
                Answer::Number(written.map(|len| len as u64))
            }) as Op<S>
        };
        let answer = self.poll_op(who, cx, (request, data), |_| None, op);
        answer.map(|answer| Ok(answer.number()? as usize))
    }

    fn poll_flush(self: &Arc<Self>, who: Who<'_>, cx: &Context<'_>) -> Poll<io::Result<()>>
    where
        S: Write,
    {
        let answer = self.poll_other(who, cx, Request::Flush, |io, _| {
            Answer::Number(patiently(io, true, |io| io.flush()).map(|()| 0))
        });
        answer.map(|answer| answer.number().map(drop))
    }

    fn poll_seek(
        self: &Arc<Self>,
        who: Who<'_>,
        cx: &Context<'_>,
        to: SeekFrom,
    ) -> Poll<io::Result<u64>>
    where
        S: Seek,
    {
        let answer = self.poll_other(who, cx, Request::Seek(to), move |io, ahead| {
            // From where the user is, not from where the reading has got to.
            let unseen = ahead.as_ref().map_or(0, Ahead::unseen) as i64;
            let place = match to {
                SeekFrom::Current(by) => match by.checked_sub(unseen) {
                    Some(by) => io.seek(SeekFrom::Current(by)),
                    None => Err(io::ErrorKind::InvalidInput.into()),
                },
                other => io.seek(other),
            };
            *ahead = ahead.take().filter(|_| place.is_err());
            Answer::Number(place)
        });
        answer.map(Answer::number)
    }

    /// The user is about to move the position by other means, perhaps, or to change what was read:
    /// some of those who asked are gone then, and what they asked for is not what it was.
    fn disturb(&self, desk: &Mutex<Desk>, is_gone: impl Fn(&Slip) -> bool) {
        let mut state = lock(&self.state);
        state.moves += 1;
        Ahead::forget_seen(&mut state.ahead);
        for slip in lock(desk).slips.iter_mut().filter(|slip| is_gone(slip)) {
            slip.asked = Request::Gone;
        }
    }
}

/// The operation that reads.
fn read_ahead<S>(
    len: usize,
    read: impl FnOnce(&mut S, &mut [u8]) -> io::Result<(usize, Option<u64>)> + Send + 'static,
) -> Op<S> {
    Box::new(move |io, ahead| {
        // Bytes that are nowhere else are first seen by somebody.
        if let Some(ahead) = ahead.as_ref().filter(|ahead| ahead.at.is_none()) {
            return Answer::Number(Ok(ahead.unseen() as u64));
        }
        let mut bytes = vec![0; len];
        let read = read(io, &mut bytes);
        *ahead = None;
        Answer::Number(read.map(|(len, at)| {
            bytes.truncate(len);
            // (Also if there are none: that was the end, if the position is still there.)
            let bytes = if len > 0 { bytes } else { Vec::new() };
            *ahead = Some(Ahead { at, bytes, seen: 0 });
            len as u64
        }))
    })
}

impl<S> LaneState<S> {
    /// Gives bytes that were read to somebody, and moves the position by so many (`pass`), if that
    /// was not moved when they were read.
    fn take_ahead(
        &mut self,
        buf: &mut [u8],
        goes_back: bool,
        pass: impl FnOnce(&mut S, u64, usize) -> bool,
    ) -> Option<Answer> {
        let (io, mut ahead) = (self.io.as_mut()?, self.ahead.take()?);
        let rest = &ahead.bytes[ahead.seen..];
        let len = buf.len().min(rest.len());
        if ahead.at.is_some_and(|at| !pass(io, at, len)) {
            return None;
        }
        buf[..len].copy_from_slice(&rest[..len]);
        ahead.seen += len;
        self.moves += u64::from(goes_back);
        self.ahead = Some(ahead).filter(|ahead| ahead.unseen() > 0);
        Some(Answer::Number(Ok(len as u64)))
    }

    fn add_waiter(&mut self, waker: Arc<Waker>) -> Option<Arc<Waker>> {
        let vtable: *const _ = waker.vtable();
        self.waiters.insert((waker.data() as usize, vtable as usize), waker)
    }

    fn next_waiter(&mut self) -> Option<Arc<Waker>> {
        let after = (Bound::Excluded(self.last_woken), Bound::Unbounded);
        let next = self.waiters.range(after).next().or_else(|| self.waiters.iter().next());
        self.last_woken = *next?.0;
        self.waiters.remove(&self.last_woken)
    }

    /// Whether no operation is under way, and no bytes lie here that are nowhere else.
    fn is_quiet(&self) -> bool {
        !self.is_served && self.ahead.as_ref().is_none_or(|ahead| ahead.unseen() == 0)
    }
}

impl Ahead {
    /// What is somewhere else as well, or was the end, is forgotten: it may not be true any more.
    fn forget_seen(ahead: &mut Option<Ahead>) {
        ahead.take_if(|ahead| ahead.unseen() == 0);
    }

    /// How many bytes are nowhere else.
    fn unseen(&self) -> usize {
        if self.at.is_none() { self.bytes.len() - self.seen } else { 0 }
    }
}

/// Does an operation again when a signal interrupted it, and when it says that it would block:
/// somebody else has made the descriptor non-blocking, and its mode is not ours to change.
fn patiently<S: 'static, R>(
    io: &mut S,
    writes: bool,
    mut op: impl FnMut(&mut S) -> io::Result<R>,
) -> io::Result<R> {
    let mut asks = false;
    loop {
        match retry(|| op(io)) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                // Each second time it sleeps: poll(2) does not know all devices of all systems.
                asks = !asks;
                wait_for(io, writes, asks);
            }
            result => return result,
        }
    }
}

/// Blocks until something may be ready, or for a moment if it is not known how to ask.
fn wait_for(io: &dyn Any, writes: bool, asks: bool) {
    #[cfg(unix)]
    if asks {
        use rustix::event::{PollFd, PollFlags, poll};
        let flags = if writes { PollFlags::OUT } else { PollFlags::IN };
        let ask = |fd: BorrowedFd<'_>| poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None);
        let asked = if io.is::<std::io::Stdout>() {
            Some(ask(std::io::stdout().as_fd()))
        } else if io.is::<std::io::Stderr>() {
            Some(ask(std::io::stderr().as_fd()))
        } else if let Some(file) = io.downcast_ref::<Arc<File>>() {
            Some(ask(file.as_fd()))
        } else {
            io.downcast_ref::<File>().map(|file| ask(file.as_fd()))
        };
        if asked.is_some_and(|asked| asked.is_ok()) {
            return;
        }
    }
    #[cfg(not(unix))]
    let _ = (io, writes, asks);
    thread::sleep(Duration::from_millis(1));
}

/// Does it again when a signal interrupted it.
fn retry<R>(mut op: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    loop {
        match op() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
    }
}

/// Uses something that blocks without blocking the caller: each operation is run by the thread
/// pool.
///
/// A reader becomes an [`AsyncRead`], a writer an [`AsyncWrite`], a seeker an [`AsyncSeek`], and an
/// iterator a [`Stream`]. For files, [`Async<File>`](Async) is faster.
///
/// Nothing is read ahead and nothing is written behind: when `write` says `Ok(n)`, the thing has
/// accepted n bytes, and an error is the operation's own. Dropping a future of `read` half way
/// loses no bytes, the next read gets them (and a write goes behind them). Dropping one of `write`
/// leaves open whether its bytes were written: the same write, tried again, is that write and not
/// another one; any other operation comes after it, and tells its error if it failed. Dropping an
/// `Unblock` does not wait for an operation that is under way.
///
/// `WouldBlock` is never told: some other program may have made a terminal or pipe that it shares
/// with us non-blocking. On Unix, a standard output or a file is then waited for until it is ready;
/// others are tried again every millisecond. (So a socket's own time limit, which says the same, is
/// never told either.)
///
/// A read from [`Stdin`](std::io::Stdin) first waits until there is input, without a thread, so
/// that a reader that is dropped takes nothing away from the next one. (On Unix. It reads the
/// descriptor itself and does not see what std's own buffer has taken already.)
///
/// ```
/// use smol::{io, stream::StreamExt, Unblock};
///
/// # fn main() -> io::Result<()> {
/// smol::block_on(async {
///     let mut entries = Unblock::new(std::fs::read_dir("src")?);
///     while let Some(entry) = entries.next().await {
///         println!("{}", entry?.file_name().to_string_lossy());
///     }
///     Ok(())
/// })
/// # }
/// ```
pub struct Unblock<T> {
    lane: Arc<Lane<T>>,
    desk: Arc<Mutex<Desk>>,
    /// Lent to the user by `get_mut`.
    lent: Option<T>,
    /// Standard input, of which nothing may be taken that nobody waits for.
    #[cfg(unix)]
    input: Option<Input>,
}

/// A descriptor of standard input of its own, and what the reactor knows of it. Its mode stays as
/// it is.
#[cfg(unix)]
struct Input {
    file: Arc<File>,
    source: Arc<Source>,
}

#[cfg(unix)]
impl Input {
    /// Standard input, if that is what `io` is.
    fn detect(io: &dyn Any) -> Option<Input> {
        let stdin = io.downcast_ref::<std::io::Stdin>()?;
        let file = File::from(AsHandle::as_fd(stdin).try_clone_to_owned().ok()?);
        Some(Input { file: Arc::new(file), source: Source::new(false) })
    }
}

#[cfg(unix)]
impl Drop for Input {
    fn drop(&mut self) {
        self.source.deregister(self.file.as_fd());
    }
}

impl<T: Send + 'static> Unblock<T> {
    /// Wraps something whose operations may block.
    pub fn new(io: T) -> Unblock<T> {
        Unblock {
            #[cfg(unix)]
            input: Input::detect(&io),
            lane: Lane::new(io, false),
            desk: Arc::default(),
            lent: None,
        }
    }

    /// The lane, with what was lent put back, and who asks.
    fn lane(&mut self) -> (&Arc<Lane<T>>, Who<'_>) {
        if let Some(io) = self.lent.take() {
            lock(&self.lane.state).io = Some(io);
        }
        (&self.lane, (&self.desk, Access::Own))
    }

    /// Waits until no operation is under way, and gives access to the thing itself. A read that was
    /// dropped may have taken bytes out of it, which are kept for the next read.
    ///
    /// Using it may block the calling thread. Cancel-safe.
    pub async fn get_mut(&mut self) -> &mut T {
        let (lane, (desk, _)) = self.lane();
        let io = poll_fn(|cx| lane.poll_take(cx)).await;
        lane.disturb(desk, |slip| matches!(slip.asked, Request::Seek(_)));
        self.lent.insert(io)
    }

    /// Runs a closure with the thing on the pool. If the future is dropped half way, the closure
    /// still runs to its end. As with [`get_mut`](Unblock::get_mut), bytes of a read that was
    /// dropped are out of it already.
    pub async fn with_mut<R: Send + 'static>(
        &mut self,
        f: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> R {
        let (lane, who) = self.lane();
        let request = Request::Call(lock(who.0).tick());
        let mut f = Some(f);
        let answer = poll_fn(|cx| {
            lane.poll_op(
                who,
                cx,
                (request, &[]),
                |_| None,
                || {
                    let f = f.take();
                    Box::new(|io, ahead| {
                        Ahead::forget_seen(ahead);
                        Answer::Any(Box::new(f.map(|f| f(io))))
                    })
                },
            )
        });
        let output = match answer.await {
            Answer::Any(output) => output.downcast().ok().and_then(|output| *output),
            Answer::Panic(payload) => resume_unwind(payload),
            Answer::Number(_) => None,
        };
        output.expect("a lane answers what it was asked")
    }

    /// Waits until no operation is under way, and gives the thing back. What a read that was
    /// dropped has taken out of it is lost.
    pub async fn into_inner(mut self) -> T {
        if let Some(io) = self.lent.take() {
            return io;
        }
        poll_fn(|cx| self.lane.poll_take(cx)).await
    }
}

impl<T> fmt::Debug for Unblock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unblock").finish_non_exhaustive()
    }
}

impl<T> Unpin for Unblock<T> {}

impl<T: Read + Send + 'static> AsyncRead for Unblock<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.lane();
        let who = (&self.desk, Access::Own);
        let (now, pass) = (|_: &T, _: &mut [u8]| None, |_: &mut T, _, _| true);
        #[cfg(unix)]
        if let Some(Input { file, source }) = &self.input {
            let has_asked = !lock(&self.desk).slips.is_empty();
            let is_quiet = {
                let state = lock(&self.lane.state);
                !state.is_served && state.ahead.is_none()
            };
            if is_quiet && !has_asked {
                ready!(poll_source(source, file.as_fd(), Direction::Read, None, cx))?;
            }
            let mut file = file.clone();
            let read = move |_: &mut T, buf: &mut [u8]| {
                let len = patiently(&mut file, false, |file| file.read(buf));
                Ok((len?, None))
            };
            return self.lane.poll_read(who, cx, buf, now, read, pass);
        }
        let read = |io: &mut T, buf: &mut [u8]| {
            let len = patiently(io, false, |io| io.read(buf));
            Ok((len?, None))
        };
        self.lane.poll_read(who, cx, buf, now, read, pass)
    }
}

impl<T: Write + Send + 'static> AsyncWrite for Unblock<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (lane, who) = self.lane();
        lane.poll_write(who, cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (lane, who) = self.lane();
        lane.poll_flush(who, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl<T: Seek + Send + 'static> AsyncSeek for Unblock<T> {
    fn poll_seek(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        let (lane, who) = self.lane();
        lane.poll_seek(who, cx, to)
    }
}

impl<T> Stream for Unblock<T>
where
    T: Iterator + Send + 'static,
    T::Item: Send + 'static,
{
    type Item = T::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        let (lane, who) = self.lane();
        let next = |io: &mut T, _: &mut _| Answer::Any(Box::new(io.next()));
        match ready!(lane.poll_other(who, cx, Request::Item, next)) {
            Answer::Any(item) => Poll::Ready(item.downcast().map_or(None, |item| *item)),
            answer => Poll::Ready(answer.number().map_or(None, |_| None)),
        }
    }
}

// ============================================================================================
// §10  `Async<T>`: whatever the operating system gives, without blocking
// ============================================================================================
//
// uses §1 §5 §6 §9 · used by §11-§12 · locks: none of its own
//
// PROBLEM   std's types for sockets, files and processes have a good interface, and block.
// IDEA      One type around any of them. Sockets, pipes and devices are polled: try the operation,
//           and when it says WouldBlock, wait for the reactor's news and try again. Regular files,
//           which the kernel always calls ready, go through a lane of the pool.
// I10.1     The thing is owned, and lent out as `&T` only, and taken out of the poller before it is
//           dropped: so a registered handle is never closed (§5, `Kernel::add`).
// I10.2     A future of ours that waits takes its waker back when it is dropped. `poll_read` and
//           its like cannot know; what they leave behind is bounded (`Side::put`).
// NEVER     says WouldBlock or Interrupted to the user.

/// A socket, pipe, file, process or other thing of the operating system, made asynchronous.
///
/// `T` is std's type, and its name tells what there is: `Async::<TcpStream>::connect`,
/// `Async::<UdpSocket>::bind`, `Async::<File>::open`, `Async::<Child>::spawn`. Whatever else std
/// has is reached through [`get_ref`](Async::get_ref). Any other handle that the system's poller
/// knows, such as an inotify or timer descriptor, is wrapped with [`Async::new`] and used with
/// [`read_with`](Async::read_with) and [`readable`](Async::readable).
///
/// A clone is another handle to the same thing: this is how a socket is split. Any number of tasks
/// may wait for it, on any thread and under any executor. All methods are cancel-safe: a future
/// that is dropped has either done nothing, or finished. Not so on files, where a write goes on;
/// see `Async::<File>::from`, also for what holds if many use one handle.
///
/// Closing (`AsyncWriteExt::close`) shuts down the writing half of a socket. The descriptor is
/// closed when the last handle is dropped.
///
/// ```
/// use smol::{io, prelude::*, Async};
/// use std::net::{TcpListener, TcpStream};
///
/// # fn main() -> io::Result<()> {
/// smol::block_on(async {
///     let listener = Async::<TcpListener>::bind("127.0.0.1:0")?;
///     let addr = listener.get_ref().local_addr()?;
///     let server = smol::spawn(async move {
///         let (mut stream, _) = listener.accept().await?;
///         stream.write_all(b"hello").await
///     });
///     let mut client = Async::<TcpStream>::connect(addr).await?;
///     let mut text = String::new();
///     client.read_to_string(&mut text).await?;
///     assert_eq!(text, "hello");
///     server.await
/// })
/// # }
/// ```
pub struct Async<T> {
    shared: Arc<Waited<T>>,
    /// Where a lane leaves the answers for this handle.
    desk: Option<Arc<Mutex<Desk>>>,
}

/// A thing, and by which means it is waited for.
enum Waited<T> {
    /// The reactor tells when to try. How to borrow the handle from the thing; and the thing
    /// itself, until it is taken out.
    Polled(Arc<Source>, fn(&T) -> Borrowed<'_>, Option<T>),
    /// Each operation goes to the pool, by a lane, which shares the thing.
    Pooled(Arc<Lane<Arc<File>>>, Option<Arc<T>>),
    /// The system tells when it has ended (§12). std wants to change a child when it looks at it,
    /// so that it cannot be lent out.
    Process(Parent),
}

/// What the handles to a child share. The pipes are closed with the last handle, whoever waits.
struct Parent {
    process: Arc<Process>,
    pipes: Mutex<[Option<Async<File>>; 3]>,
}

/// A child process. It may outlive the handles to it: somebody has to take its status in the end.
struct Process {
    /// Readable when the child has ended, where there is such a thing.
    pidfd: Option<Async<File>>,
    state: Mutex<ProcessState>,
}

struct ProcessState {
    child: Child,
    /// How it ended, or the system's error: then somebody else took the status.
    end: Option<Result<ExitStatus, i32>>,
    kill_on_drop: bool,
    /// Who waits without a pidfd. Those that gave up have dropped their wakers.
    waiters: Vec<Weak<Waker>>,
}

impl<T> Drop for Waited<T> {
    fn drop(&mut self) {
        // Before the handle is closed (I10.1).
        if let Waited::Polled(source, borrow, Some(io)) = self {
            source.deregister(borrow(io));
        }
    }
}

/// What the poller knows a handle by.
fn borrow<T: AsHandle>(io: &T) -> Borrowed<'_> {
    #[cfg(unix)]
    return io.as_fd();
    #[cfg(windows)]
    return io.as_socket();
}

impl<T: AsHandle + 'static> Async<T> {
    /// Makes a handle asynchronous: sets it to non-blocking mode and registers it with the poller.
    /// On Windows only sockets can be wrapped.
    ///
    /// Fails if the poller does not take it, as for regular files and directories: for files there
    /// is `Async::<File>::from`. Do not wrap standard input and output, whose mode is shared with
    /// other processes; [`Unblock`] is for them.
    ///
    /// What is wrapped must be owned, not borrowed: it could be closed while it is registered.
    ///
    /// ```compile_fail
    /// let stream = std::net::TcpStream::connect("127.0.0.1:80").unwrap();
    /// let borrowed = smol::Async::new(&stream);
    /// ```
    pub fn new(io: T) -> io::Result<Async<T>> {
        set_nonblocking(&io, true)?;
        Async::new_nonblocking(io)
    }

    /// The same for a handle that is in non-blocking mode already, or never blocks.
    pub fn new_nonblocking(io: T) -> io::Result<Async<T>> {
        let is_tcp = is_tcp(borrow(&io));
        let this = Async::polled(io, is_tcp);
        if let Waited::Polled(source, borrow, _) = &*this.shared {
            REACTOR.poller()?;
            source.register(borrow(this.get_ref())).map_err(|err| match err.kind() {
                kind @ io::ErrorKind::PermissionDenied => {
                    let why = "the system cannot poll this handle; \
                        for a regular file, use Async::<File>::from";
                    io::Error::new(kind, why)
                }
                _ => err,
            })?;
        }
        Ok(this)
    }

    /// A handle that is registered when it blocks for the first time.
    fn polled(io: T, is_tcp: bool) -> Async<T> {
        let shared = Waited::Polled(Source::new(is_tcp), borrow, Some(io));
        Async { shared: Arc::new(shared), desk: None }
    }
}

/// Sets a handle to non-blocking mode, or back.
#[cfg(unix)]
fn set_nonblocking(io: &impl AsHandle, on: bool) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    rustix::io::ioctl_fionbio(io.as_fd(), on)?;
    // Not everything that has a mode knows that call elsewhere (as std, for illumos).
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        let mut flags = fcntl_getfl(io.as_fd())?;
        flags.set(OFlags::NONBLOCK, on);
        fcntl_setfl(io.as_fd(), flags)?;
    }
    Ok(())
}

/// The same: the mode is a property of the socket and not of the handle.
#[cfg(windows)]
fn set_nonblocking(io: &impl AsHandle, on: bool) -> io::Result<()> {
    TcpStream::from(io.as_socket().try_clone_to_owned()?).set_nonblocking(on)
}

/// What systems read or write at once, whatever is asked for; Linux a little less than 2 GiB
/// (read(2)).
const IO_LIMIT: usize = 1 << 30;

/// A waiter of ours, which takes itself off when it is dropped (I10.2).
struct Waiting<'a, T> {
    waited: &'a Waited<T>,
    direction: Direction,
    token: Token,
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        if let (Waited::Polled(source, ..), true) = (self.waited, self.token != 0) {
            source.forget(self.direction, self.token);
        }
    }
}

impl<T> Async<T> {
    /// The thing itself. A polled handle is in non-blocking mode, so that its own operations do not
    /// block but may say `WouldBlock`.
    ///
    /// # Panics
    ///
    /// For a `Child`, which is behind a lock. `Async<Child>` has all that could be done with it.
    pub fn get_ref(&self) -> &T {
        self.thing().expect("get_ref cannot be used on Async<Child>")
    }

    fn thing(&self) -> Option<&T> {
        match &*self.shared {
            Waited::Polled(_, _, io) => io.as_ref(),
            Waited::Pooled(_, io) => io.as_deref(),
            Waited::Process(_) => None,
        }
    }

    /// Takes the thing out and deregisters it. It stays in non-blocking mode; on Unix,
    /// `OwnedFd::try_from` gives one that blocks.
    ///
    /// Fails, and drops the handle, if there are clones of it, or a file operation is under way, or
    /// bytes lie here that a dropped read took from something that cannot seek; and always for a
    /// `Child`.
    pub fn into_inner(self) -> io::Result<T> {
        let busy = |why: &str| io::Error::new(io::ErrorKind::ResourceBusy, why.to_string());
        let shared = Arc::try_unwrap(self.shared);
        let mut shared = shared.map_err(|_| busy("there are clones of this handle"))?;
        let io = match &mut shared {
            Waited::Polled(source, borrow, io) => {
                io.take().inspect(|io| source.deregister(borrow(io)))
            }
            Waited::Pooled(lane, io) => {
                let mut state = lock(&lane.state);
                if state.is_quiet() {
                    state.io = None;
                }
                // If it is not, the lane has it still.
                drop(state);
                io.take().and_then(Arc::into_inner)
            }
            Waited::Process(_) => return Err(busy("a process cannot be taken out")),
        };
        io.ok_or_else(|| busy("an operation is under way, or bytes that it read would be lost"))
    }

    /// Waits until the handle is readable: there are bytes, a connection, an event, or its end.
    ///
    /// It asks the system, not its own memory, so that it can be followed by an operation of one's
    /// own on [`get_ref`](Async::get_ref). Somebody else may be faster: be prepared for
    /// `WouldBlock`. A regular file is always readable.
    pub async fn readable(&self) -> io::Result<()> {
        self.wait_ready(Direction::Read).await
    }

    /// Waits until the handle is writable.
    pub async fn writable(&self) -> io::Result<()> {
        self.wait_ready(Direction::Write).await
    }

    async fn wait_ready(&self, direction: Direction) -> io::Result<()> {
        let mut waiting = Waiting { waited: &self.shared, direction, token: 0 };
        poll_fn(|cx| self.poll_ready(direction, Some(&mut waiting.token), cx)).await
    }

    /// [`readable`](Async::readable) for those who write `poll` functions.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(Direction::Read, None, cx)
    }

    /// [`writable`](Async::writable) for those who write `poll` functions.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(Direction::Write, None, cx)
    }

    /// Performs an operation that may say `WouldBlock`, again and again until it says something
    /// else, waiting until the handle is readable in between.
    pub async fn read_with<R>(&self, op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.do_io(Direction::Read, op).await
    }

    /// The same, waiting until the handle is writable.
    pub async fn write_with<R>(&self, op: impl FnMut(&T) -> io::Result<R>) -> io::Result<R> {
        self.do_io(Direction::Write, op).await
    }

    async fn do_io<R>(
        &self,
        direction: Direction,
        mut op: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut waiting = Waiting { waited: &self.shared, direction, token: 0 };
        poll_fn(|cx| self.poll_io(direction, Some(&mut waiting.token), cx, &mut op, |_| false))
            .await
    }

    /// Tries an operation; when it says WouldBlock, leaves the waker with the source. `fell_short`
    /// says whether it would say so the next time.
    fn poll_io<R>(
        &self,
        direction: Direction,
        mut token: Option<&mut Token>,
        cx: &mut Context<'_>,
        mut op: impl FnMut(&T) -> io::Result<R>,
        fell_short: impl Fn(&R) -> bool,
    ) -> Poll<io::Result<R>> {
        ready!(spend(cx));
        let Waited::Polled(source, borrow, _) = &*self.shared else {
            let result = retry(|| op(self.get_ref()));
            if result.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock) {
                // A file that somebody has made non-blocking: nothing tells when to try again.
                let next = Instant::now() + Duration::from_millis(1);
                REACTOR.set_timer(next, cx.waker().clone());
                attend(cx.waker());
                return Poll::Pending;
            }
            return Poll::Ready(result);
        };
        loop {
            let seen = source.look();
            if seen & direction.bit() != 0 {
                match retry(|| op(self.get_ref())) {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                        source.blocked(direction, seen)
                    }
                    result => {
                        if result.as_ref().is_ok_and(fell_short) {
                            source.fell_short(seen);
                        }
                        return Poll::Ready(result);
                    }
                }
            }
            let handle = borrow(self.get_ref());
            if source.wait(handle, direction, token.as_deref_mut(), cx)?.is_pending() {
                attend(cx.waker());
                return Poll::Pending;
            }
        }
    }

    /// The same where the operation is to ask the system.
    fn poll_ready(
        &self,
        direction: Direction,
        token: Option<&mut Token>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match &*self.shared {
            Waited::Polled(source, borrow, _) => {
                poll_source(source, borrow(self.get_ref()), direction, token, cx)
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl<T> Clone for Async<T> {
    /// Another handle to the same thing and the same registration.
    fn clone(&self) -> Async<T> {
        let desk = self.desk.as_ref().map(|_| Arc::default());
        Async { shared: self.shared.clone(), desk }
    }
}

impl<T: fmt::Debug> fmt::Debug for Async<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.thing() {
            Some(io) => f.debug_tuple("Async").field(io).finish(),
            None => write!(f, "Async({})", std::any::type_name::<T>()),
        }
    }
}

impl<T> AsRef<T> for Async<T> {
    /// The same as [`get_ref`](Async::get_ref).
    fn as_ref(&self) -> &T {
        self.get_ref()
    }
}

macro_rules! lend_handle {
    ($($system:ident: $trait:ident :: $method:ident -> $handle:ty;)*) => {$(
        #[cfg($system)]
        impl<T: $trait> $trait for Async<T> {
            fn $method(&self) -> $handle {
                self.get_ref().$method()
            }
        }
    )*};
}

lend_handle! {
    unix: AsRawFd::as_raw_fd -> RawFd;
    unix: AsHandle::as_fd -> BorrowedFd<'_>;
    windows: AsRawSocket::as_raw_socket -> RawSocket;
    windows: AsHandle::as_socket -> BorrowedSocket<'_>;
}

/// Reads from a file: what the page cache has at once, the rest on the pool.
fn poll_read_file(
    lane: &Arc<Lane<Arc<File>>>,
    who: Who<'_>,
    cx: &mut Context<'_>,
    buf: &mut [u8],
) -> Poll<io::Result<usize>> {
    let goes_back = lane.goes_back;
    let read = move |file: &mut Arc<File>, buf: &mut [u8]| {
        let at = goes_back.then(|| file.stream_position()).transpose()?;
        let len = patiently(file, false, |file| match at {
            Some(at) => read_at(file, buf, at),
            None => file.read(buf),
        });
        Ok((len?, at))
    };
    let pass = |file: &mut Arc<File>, at: u64, len: usize| {
        let is_there = file.stream_position().is_ok_and(|place| place == at);
        is_there && file.seek(SeekFrom::Start(at + len as u64)).is_ok()
    };
    lane.poll_read(who, cx, buf, |file, buf| read_now(file, buf), read, pass)
}

/// Takes from the page cache what is there at once, and moves the position.
#[cfg(target_os = "linux")]
fn read_now(file: &File, buf: &mut [u8]) -> Option<usize> {
    use rustix::io::{ReadWriteFlags, preadv2};
    let len = buf.len().min(READ_STEP);
    // An offset of -1 means the file's own position (preadv2(2)). Any error, EAGAIN for one, and
    // EOPNOTSUPP where the file system cannot do it, is left to the pool to tell.
    let mut bufs = [IoSliceMut::new(&mut buf[..len])];
    let len = preadv2(file, &mut bufs, u64::MAX, ReadWriteFlags::NOWAIT).ok()?;
    // Linux 5.9 and 5.10 say 0 where later ones say EAGAIN (preadv2(2), "BUGS"). A block device
    // does not say how long it is.
    let is_end = || {
        let data = file.metadata().ok()?;
        Some(data.is_file() && { file }.stream_position().ok()? >= data.len())
    };
    (len > 0 || is_end()?).then_some(len)
}

#[cfg(not(target_os = "linux"))]
fn read_now(_: &File, _: &mut [u8]) -> Option<usize> {
    None
}

/// Reads, and leaves the position where it is.
#[cfg(unix)]
fn read_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, at)
}

/// Reads, and moves the position back to where it was.
#[cfg(windows)]
fn read_at(mut file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let result = std::os::windows::fs::FileExt::seek_read(file, buf, at);
    file.seek(SeekFrom::Start(at))?;
    result
}

/// As many bytes of all slices as one write may have.
fn concatenate(bufs: &[IoSlice<'_>]) -> Vec<u8> {
    let mut data = Vec::new();
    for buf in bufs {
        let room = POOL_CHUNK - data.len();
        data.extend_from_slice(&buf[..buf.len().min(room)]);
    }
    data
}

impl<T> Async<T> {
    /// The lane, if it is driven by the pool, and who asks.
    fn lane(&self, access: Access) -> Option<(&Arc<Lane<Arc<File>>>, Who<'_>)> {
        match (&*self.shared, &self.desk) {
            (Waited::Pooled(lane, _), Some(desk)) => Some((lane, (desk, access))),
            _ => None,
        }
    }
}

/// Reading, writing and seeking by `&` and by `&mut`: only a lane wants to know which it is.
macro_rules! streams {
    ($access:expr $(, $by:tt)?) => {
        impl<T> AsyncRead for $($by)? Async<T>
        where
            for<'a> &'a T: Read,
        {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                if let Some((lane, who)) = self.lane($access) {
                    return poll_read_file(lane, who, cx, buf);
                }
                // A read of nothing is done at once, and does not mean the end.
                if buf.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                let limit = buf.len().min(IO_LIMIT);
                let fell_short = |n: &usize| (1..limit).contains(n);
                self.poll_io(Direction::Read, None, cx, |mut io| io.read(buf), fell_short)
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                if let Some((lane, who)) = self.lane($access) {
                    let buf = bufs.iter_mut().find(|buf| !buf.is_empty());
                    return poll_read_file(lane, who, cx, buf.map_or(&mut [], |buf| &mut **buf));
                }
                if bufs.iter().all(|buf| buf.is_empty()) {
                    return Poll::Ready(Ok(0));
                }
                // No word on what falls short: the system takes so many pieces only (IOV_MAX).
                self.poll_io(Direction::Read, None, cx, |mut io| io.read_vectored(bufs), |_| false)
            }
        }

        impl<T> AsyncWrite for $($by)? Async<T>
        where
            for<'a> &'a T: Write,
        {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                if let Some((lane, who)) = self.lane($access) {
                    return lane.poll_write(who, cx, buf);
                }
                if buf.is_empty() {
                    return Poll::Ready(Ok(0));
                }
                self.poll_io(Direction::Write, None, cx, |mut io| io.write(buf), |_| false)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                if let Some((lane, who)) = self.lane($access) {
                    return lane.poll_write(who, cx, &concatenate(bufs));
                }
                if bufs.iter().all(|buf| buf.is_empty()) {
                    return Poll::Ready(Ok(0));
                }
                let write = |mut io: &T| io.write_vectored(bufs);
                self.poll_io(Direction::Write, None, cx, write, |_| false)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                if let Some((lane, who)) = self.lane($access) {
                    return lane.poll_flush(who, cx);
                }
                // Tried first, whether there is room or not: most have nothing that would need it.
                ready!(spend(cx));
                match retry(|| self.get_ref().flush()) {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                        self.poll_io(Direction::Write, None, cx, |mut io| io.flush(), |()| false)
                    }
                    result => Poll::Ready(result),
                }
            }

            fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                ready!(self.as_mut().poll_flush(cx))?;
                if let Waited::Polled(_, borrow, _) = &*self.shared {
                    // What is no socket, or no longer connected, has nothing to be shut down.
                    shut_down_writing(borrow(self.get_ref()));
                }
                Poll::Ready(Ok(()))
            }
        }

        impl AsyncSeek for $($by)? Async<File> {
            fn poll_seek(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                to: SeekFrom,
            ) -> Poll<io::Result<u64>> {
                match self.lane($access) {
                    Some((lane, who)) => lane.poll_seek(who, cx, to),
                    None => Poll::Ready(self.get_ref().seek(to)),
                }
            }
        }
    };
}

streams!(Access::Shared, &);
streams!(Access::Own);

// ============================================================================================
// §11  Sockets: TCP, UDP and Unix on `Async<T>`
// ============================================================================================
//
// uses §1 §5 §6 §8-§10 · used by §12 · locks: none
//
// PROBLEM   Names have several addresses, some of which do not work; listeners meet errors that
//           pass.
// IDEA      Thin methods over std's; what two kinds of sockets have in common is a macro. `connect`
//           races addresses as RFC 8305 says, with a delay between the starts; `accept` holds back
//           errors that only time can cure, so that a loop does not spin.
// NEVER     resolves a numeric address on the pool, which may be full of other work, nor waits
//           there for a connection.

mod sealed {
    /// What an address turns out to be.
    #[derive(Debug)]
    pub enum Target {
        Known(std::io::Result<Vec<std::net::SocketAddr>>),
        Named(String, u16),
    }

    pub trait ToTarget {
        fn to_target(self) -> Target;
    }
}

use sealed::{Target, ToTarget};

/// What can be given as an address: `"example.com:80"`, `("localhost", 80)`,
/// `([127, 0, 0, 1], 80)`, a [`SocketAddr`] or its parts, and slices and vectors of them.
///
/// Names are resolved by the operating system, on the pool; numeric addresses are not looked up.
pub trait ToAddrs: ToTarget {}

impl<T: ToTarget> ToAddrs for T {}

macro_rules! to_target {
    ($($($from:ty)|+: $value:pat => $target:expr;)*) => {$($(
        impl ToTarget for $from {
            fn to_target(self) -> Target {
                let $value = self;
                $target
            }
        }
    )+)*};
}

to_target! {
    Vec<SocketAddr>: addrs => Target::Known(Ok(addrs));
    &[SocketAddr]: addrs => addrs.to_vec().to_target();
    SocketAddr: addr => vec![addr].to_target();
    SocketAddrV4 | SocketAddrV6: addr => SocketAddr::from(addr).to_target();
    (IpAddr, u16) | (Ipv4Addr, u16) | (Ipv6Addr, u16) | ([u8; 4], u16) | ([u16; 8], u16):
        addr => SocketAddr::from(addr).to_target();
    (&str, u16): (host, port) => match host.parse::<IpAddr>() {
        Ok(ip) => (ip, port).to_target(),
        Err(_) => Target::Named(host.to_string(), port),
    };
    (String, u16): (host, port) => (host.as_str(), port).to_target();
    &str: text => {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return addr.to_target();
        }
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(port))) if !host.is_empty() => (host, port).to_target(),
            _ => Target::Known(Err(invalid(format!("{text:?} is not of the form host:port")))),
        }
    };
    String: text => text.as_str().to_target();
}

impl<const N: usize> ToTarget for [SocketAddr; N] {
    fn to_target(self) -> Target {
        self.to_vec().to_target()
    }
}

impl<T: ToTarget + Clone> ToTarget for &T {
    fn to_target(self) -> Target {
        self.clone().to_target()
    }
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}

/// Finds the addresses of a name: the operating system does, on a thread of the pool, which goes on
/// if the future is dropped. Numeric addresses are returned as they are.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let addrs = smol::block_on(smol::resolve(("127.0.0.1", 80)))?;
/// assert_eq!(addrs, ["127.0.0.1:80".parse().unwrap()]);
/// # Ok(()) }
/// ```
pub async fn resolve(addr: impl ToAddrs) -> io::Result<Vec<SocketAddr>> {
    // In a loop, others get a turn.
    poll_fn(spend).await;
    match addr.to_target() {
        Target::Known(addrs) => addrs,
        name => unblock(move || look_up(name)).await,
    }
}

/// The same on this thread, which a name blocks: for methods that are not `async`.
fn look_up(target: Target) -> io::Result<Vec<SocketAddr>> {
    match target {
        Target::Known(addrs) => addrs,
        Target::Named(host, port) => match (&*host, port).to_socket_addrs() {
            Ok(addrs) => Ok(addrs.collect()),
            Err(err) => Err(io::Error::new(err.kind(), format!("cannot resolve {host:?}: {err}"))),
        },
    }
}

/// Whether an error of `accept` is for want of something that others may soon give back.
fn is_exhaustion(err: &io::Error) -> bool {
    #[cfg(unix)]
    use rustix::io::Errno;
    #[cfg(unix)]
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].map(Errno::raw_os_error);
    #[cfg(windows)]
    let codes = [10024, 10055]; // WSAEMFILE, WSAENOBUFS
    err.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// A listener with a queue as long as the system allows. std asks for 128 connections, and whoever
/// finds no room tries again after a second. All systems take a larger number for their own limit,
/// and if one did not, the queue would stay as it is. (On Windows std cannot ask.)
fn listener<L: AsHandle + 'static>(socket: L) -> io::Result<Async<L>> {
    #[cfg(unix)]
    let _ = rustix::net::listen(&socket, i32::MAX);
    Async::new(socket)
}

/// What TCP's listeners and Unix's have in common.
macro_rules! accept {
    ($listener:ty, $stream:ty, $addr:ty, is_tcp: $is_tcp:literal) => {
        impl Async<$listener> {
            /// Waits for the next connection. Cancel-safe: no connection is lost.
            ///
            /// # Errors
            ///
            /// Most are about one connection, and the next call may succeed. When descriptors or
            /// memory are short, the error comes some milliseconds later, so that a loop around
            /// `accept` lets others go on.
            pub async fn accept(&self) -> io::Result<(Async<$stream>, $addr)> {
                let result = self.read_with(Self::accept_now).await;
                if result.as_ref().is_err_and(is_exhaustion) {
                    Timer::after(ACCEPT_PAUSE).await;
                }
                result
            }

            /// [`accept`](Async::accept) for those who write `poll` functions; errors come at once.
            pub fn poll_accept(
                &self,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<(Async<$stream>, $addr)>> {
                self.poll_io(Direction::Read, None, cx, Self::accept_now, |_| false)
            }

            /// The connections, one after the other. The stream never ends; see
            /// [`accept`](Async::accept) for errors.
            pub fn incoming(
                &self,
            ) -> impl Stream<Item = io::Result<Async<$stream>>> + Send + Unpin + '_ {
                Box::pin(stream::unfold(self, |this| async move {
                    Some((this.accept().await.map(|(stream, _)| stream), this))
                }))
            }

            fn accept_now(listener: &$listener) -> io::Result<(Async<$stream>, $addr)> {
                let (stream, addr) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Async::polled(stream, $is_tcp), addr))
            }
        }
    };
}

/// What UDP's sockets and Unix's for datagrams have in common.
macro_rules! datagrams {
    ($socket:ty, $addr:ty) => {
        impl Async<$socket> {
            /// Receives one datagram and the address of its sender. What does not fit into the
            /// buffer is lost (on Windows, that is an error). Cancel-safe: no datagram is lost.
            pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, $addr)> {
                self.read_with(|socket| socket.recv_from(buf)).await
            }

            /// [`recv_from`](Async::recv_from) for those who write `poll` functions.
            pub fn poll_recv_from(
                &self,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<(usize, $addr)>> {
                self.poll_io(Direction::Read, None, cx, |socket| socket.recv_from(buf), |_| false)
            }

            /// Receives one datagram from the peer it is connected to.
            pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
                self.read_with(|socket| socket.recv(buf)).await
            }

            /// Sends one datagram to the peer it is connected to.
            pub async fn send(&self, buf: &[u8]) -> io::Result<usize> {
                self.write_with(|socket| socket.send(buf)).await
            }
        }
    };
}

/// std's sockets become asynchronous with `try_from`.
macro_rules! try_from_std {
    ($($socket:ty),*) => {$(
        impl TryFrom<$socket> for Async<$socket> {
            type Error = io::Error;

            fn try_from(socket: $socket) -> io::Result<Self> {
                Async::new(socket)
            }
        }
    )*};
}

accept!(TcpListener, TcpStream, SocketAddr, is_tcp: true);
datagrams!(UdpSocket, SocketAddr);
try_from_std!(TcpListener, TcpStream, UdpSocket);
#[cfg(unix)]
accept!(UnixListener, UnixStream, UnixAddr, is_tcp: false);
#[cfg(unix)]
datagrams!(UnixDatagram, UnixAddr);
#[cfg(unix)]
try_from_std!(UnixListener, UnixStream, UnixDatagram);

impl Async<TcpListener> {
    /// Listens on an address; port 0 lets the system choose one. Of several addresses the first
    /// that works is taken. A name (not: a numeric address) is looked up on the calling thread.
    /// The queue of connections that wait to be accepted is as long as the system allows.
    pub fn bind(addr: impl ToAddrs) -> io::Result<Async<TcpListener>> {
        listener(TcpListener::bind(&*look_up(addr.to_target())?)?)
    }
}

impl Async<TcpStream> {
    /// Connects to an address. If there are several, the families take turns, beginning with that
    /// of the first; the next one is tried when one has failed, or after 250 ms. The first that
    /// answers wins, and the others are closed (RFC 8305).
    ///
    /// The error names each address that was tried, and is of the kind of the last that failed.
    pub async fn connect(addr: impl ToAddrs) -> io::Result<Async<TcpStream>> {
        let mut waiting = take_turns(resolve(addr).await?).into_iter();
        let mut attempts: Vec<(SocketAddr, future::Boxed<io::Result<_>>)> = Vec::new();
        let mut failed = Vec::new();
        let mut kind = io::ErrorKind::InvalidInput;
        let mut stagger = Timer::at(Instant::now());
        poll_fn(|cx| {
            loop {
                let mut i = 0;
                while let Some((addr, attempt)) = attempts.get_mut(i) {
                    match attempt.as_mut().poll(cx) {
                        Poll::Pending => i += 1,
                        Poll::Ready(Ok(stream)) => return Poll::Ready(Ok(stream)),
                        Poll::Ready(Err(err)) => {
                            kind = err.kind();
                            failed.push(format!("{addr}: {err}"));
                            drop(attempts.swap_remove(i));
                            stagger.set_at(Instant::now());
                        }
                    }
                }
                if waiting.len() > 0 {
                    ready!(stagger.poll_fire(cx));
                    stagger.set_after(CONNECT_STAGGER);
                    let next = waiting.next();
                    attempts.extend(next.map(|addr| (addr, Box::pin(connect_to(addr)) as _)));
                } else if attempts.is_empty() {
                    return Poll::Ready(Err(cannot_connect(kind, &failed)));
                } else {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Looks at what there is to read without taking it. Zero is the end of the stream.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|stream| stream.peek(buf)).await
    }
}

/// Orders addresses so that the two families take turns (RFC 8305 section 4).
fn take_turns(addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addrs.first().is_some_and(SocketAddr::is_ipv6);
    let (mut turns, other): (Vec<_>, Vec<_>) =
        addrs.into_iter().partition(|addr| addr.is_ipv6() == first_is_v6);
    for (i, addr) in other.into_iter().enumerate() {
        turns.insert((2 * i + 1).min(turns.len()), addr);
    }
    turns
}

fn cannot_connect(kind: io::ErrorKind, failed: &[String]) -> io::Error {
    let why = if failed.is_empty() { "no address given".into() } else { failed.join("; ") };
    io::Error::new(kind, format!("cannot connect: {why}"))
}

/// Connects to one address.
#[cfg(unix)]
async fn connect_to(addr: SocketAddr) -> io::Result<Async<TcpStream>> {
    use rustix::{io::Errno, net::AddressFamily};
    let family = if addr.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = new_socket(family)?;
    let result = rustix::net::connect(&socket, &addr);
    let stream = Async::polled(TcpStream::from(socket), true);
    match result {
        Ok(()) => Ok(stream),
        Err(Errno::INPROGRESS | Errno::INTR) => connected(stream).await,
        Err(err) => Err(err.into()),
    }
}

/// Waits until a connect has come to its end, and says how it went.
#[cfg(unix)]
async fn connected<S: AsHandle>(stream: Async<S>) -> io::Result<Async<S>> {
    stream.writable().await?;
    rustix::net::sockopt::socket_error(stream.get_ref())??;
    // Some systems wake the writer early: then this is the error.
    rustix::net::getpeername(stream.get_ref())?;
    Ok(stream)
}

/// Connects to one address. std has no non-blocking connect, so a thread waits, one of its own
/// since the pool may be full. It goes on waiting if this is dropped.
#[cfg(windows)]
async fn connect_to(addr: SocketAddr) -> io::Result<Async<TcpStream>> {
    // It is polled once, and never woken.
    let (ticket, task) = async_task::spawn(async move { TcpStream::connect(addr) }, drop);
    let started = start_thread("smol-connect".into(), move || _ = ticket.run());
    let task = if started { task } else { unblock(move || TcpStream::connect(addr)) };
    let stream = task.await?;
    stream.set_nonblocking(true)?;
    Ok(Async::polled(stream, true))
}

/// A stream's socket that does not block, is not inherited by children, and raises no signals.
#[cfg(unix)]
fn new_socket(family: rustix::net::AddressFamily) -> io::Result<OwnedFd> {
    use rustix::net::SocketType;
    #[cfg(not(any(target_vendor = "apple", target_os = "aix", target_os = "haiku")))]
    {
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
    }
    #[cfg(any(target_vendor = "apple", target_os = "aix", target_os = "haiku"))]
    {
        let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        set_nonblocking(&socket, true)?;
        #[cfg(target_vendor = "apple")]
        rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
        Ok(socket)
    }
}

impl Async<UdpSocket> {
    /// Makes a socket that receives at an address; port 0 lets the system choose one. A name (not:
    /// a numeric address) is looked up on the calling thread. To talk to one peer only, use
    /// `get_ref().connect(addr)`, [`send`](Async::send) and [`recv`](Async::recv).
    pub fn bind(addr: impl ToAddrs) -> io::Result<Async<UdpSocket>> {
        Async::new(UdpSocket::bind(&*look_up(addr.to_target())?)?)
    }

    /// Sends one datagram to an address, the first one if there are several.
    pub async fn send_to(&self, buf: &[u8], addr: impl ToAddrs) -> io::Result<usize> {
        let addr = resolve(addr).await?.into_iter().next();
        let addr = addr.ok_or_else(|| invalid("no address given"))?;
        self.write_with(|socket| socket.send_to(buf, addr)).await
    }

    /// [`send_to`](Async::send_to) for those who write `poll` functions.
    pub fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        addr: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.poll_io(Direction::Write, None, cx, |socket| socket.send_to(buf, addr), |_| false)
    }

    /// [`recv_from`](Async::recv_from) that leaves the datagram where it is.
    pub async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.read_with(|socket| socket.peek_from(buf)).await
    }

    /// [`recv`](Async::recv) that leaves the datagram where it is.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|socket| socket.peek(buf)).await
    }
}

#[cfg(target_os = "android")]
use std::os::android::net::SocketAddrExt;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;

/// A path as the address of a Unix socket. One that begins with a NUL is an abstract name, on
/// Linux.
#[cfg(unix)]
fn unix_addr(path: impl AsRef<Path>) -> io::Result<UnixAddr> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(name) = path.as_ref().as_os_str().as_encoded_bytes().strip_prefix(b"\0") {
        return UnixAddr::from_abstract_name(name);
    }
    UnixAddr::from_pathname(path)
}

/// Whether somebody else's queue is full. macOS and the BSDs say so in another way (send(2) there).
#[cfg(unix)]
fn is_queue_full(err: &io::Error) -> bool {
    let is_no_room = err.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error());
    let is_linux = cfg!(any(target_os = "linux", target_os = "android"));
    err.kind() == io::ErrorKind::WouldBlock || is_no_room && !is_linux
}

/// Performs an operation on a Unix socket until somebody else's queue is not full, again and again,
/// since nothing tells when (connect(2); and a socket without a peer always counts as writable).
#[cfg(unix)]
async fn try_until_taken<R>(mut op: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    // In a loop, others get a turn.
    poll_fn(spend).await;
    let mut pause = Duration::from_millis(1);
    loop {
        match retry(&mut op) {
            Err(err) if is_queue_full(&err) => Timer::after(pause).await,
            result => return result,
        };
        pause = (pause * 2).min(Duration::from_millis(32));
    }
}

#[cfg(unix)]
impl Async<UnixListener> {
    /// Listens on a path, which must not exist yet. On Linux, a path that begins with a NUL byte is
    /// a name in the abstract namespace (unix(7)).
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Async<UnixListener>> {
        Self::bind_addr(&unix_addr(path)?)
    }

    /// Listens on an address of std's.
    pub fn bind_addr(addr: &UnixAddr) -> io::Result<Async<UnixListener>> {
        listener(UnixListener::bind_addr(addr)?)
    }
}

#[cfg(unix)]
impl Async<UnixStream> {
    /// Connects to the listener at a path, or an abstract name. Waits while its queue is full.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Async<UnixStream>> {
        Self::connect_addr(&unix_addr(path)?).await
    }

    /// Connects to the listener at an address of std's. Waits while its queue is full.
    pub async fn connect_addr(addr: &UnixAddr) -> io::Result<Async<UnixStream>> {
        use rustix::io::Errno;
        use rustix::net::{AddressFamily, SocketAddrUnix};
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let name = addr.as_abstract_name().map(SocketAddrUnix::new_abstract_name);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let name = None;
        let name = name.or_else(|| addr.as_pathname().map(SocketAddrUnix::new));
        let addr = name.ok_or_else(|| invalid("the address has no name"))??;
        let stream = Async::polled(UnixStream::from(new_socket(AddressFamily::UNIX)?), false);
        let connect = || match rustix::net::connect(stream.get_ref(), &addr) {
            Ok(()) | Err(Errno::ISCONN) => Ok(true),
            Err(Errno::INPROGRESS | Errno::INTR) => Ok(false),
            Err(err) => Err(io::Error::from(err)),
        };
        match try_until_taken(connect).await? {
            // The peer may have closed it already, and then some systems say "not connected".
            true => Ok(stream),
            false => connected(stream).await,
        }
    }

    /// Two sockets that are connected to each other.
    pub fn pair() -> io::Result<(Async<UnixStream>, Async<UnixStream>)> {
        let (one, two) = UnixStream::pair()?;
        Ok((Async::new(one)?, Async::new(two)?))
    }
}

#[cfg(unix)]
impl Async<UnixDatagram> {
    /// Makes a socket that receives at a path, which must not exist yet, or an abstract name.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Async<UnixDatagram>> {
        Self::bind_addr(&unix_addr(path)?)
    }

    /// Makes a socket that receives at an address of std's.
    pub fn bind_addr(addr: &UnixAddr) -> io::Result<Async<UnixDatagram>> {
        Async::new(UnixDatagram::bind_addr(addr)?)
    }

    /// Makes a socket without an address.
    pub fn unbound() -> io::Result<Async<UnixDatagram>> {
        Async::new(UnixDatagram::unbound()?)
    }

    /// Two sockets that are connected to each other.
    pub fn pair() -> io::Result<(Async<UnixDatagram>, Async<UnixDatagram>)> {
        let (one, two) = UnixDatagram::pair()?;
        Ok((Async::new(one)?, Async::new(two)?))
    }

    /// Sends one datagram to a path or an abstract name. Waits while the receiver's queue is full.
    pub async fn send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        self.send_to_addr(buf, &unix_addr(path)?).await
    }

    /// Sends one datagram to an address of std's, such as [`recv_from`](Async::recv_from) tells.
    pub async fn send_to_addr(&self, buf: &[u8], addr: &UnixAddr) -> io::Result<usize> {
        try_until_taken(|| self.get_ref().send_to_addr(buf, addr)).await
    }
}

// ============================================================================================
// §12  Files and processes: what the kernel cannot poll, and what it can
// ============================================================================================
//
// uses §1 §5 §6 §8-§11 · used by nobody · locks: MINDED < state (of a process); pipes (leaf)
//
// PROBLEM   A read from a disk blocks and a child's end is no bytes.
// IDEA      Files: whole operations on the pool; on Linux, a read first asks for what the page
//           cache has (preadv2(2) with RWF_NOWAIT), which needs no other thread. Children: a pidfd
//           (pidfd_open(2)) is a handle like any other; where there is none, and for those whose
//           handles are gone, one thread waits, for all of them together.
// I12.1     A process is reaped once, under its lock, and never signalled after that: its number
//           may belong to somebody else then. Whoever reaps it tells those who wait.
// NEVER     kills a child unasked, leaves a zombie, or takes the status of anybody else's child.
// REJECTED  A thread of the pool for each child: twenty of them end all of `unblock` where the
//           limit is small. A handler for SIGCHLD: it is the program's, not ours.

impl Async<File> {
    /// Opens a file for reading.
    pub async fn open(path: impl AsRef<Path>) -> io::Result<Async<File>> {
        let path = path.as_ref().to_owned();
        Ok(Async::from(unblock(move || File::open(path)).await?))
    }

    /// Creates a file for writing, and empties it if it exists.
    pub async fn create(path: impl AsRef<Path>) -> io::Result<Async<File>> {
        let path = path.as_ref().to_owned();
        Ok(Async::from(unblock(move || File::create(path)).await?))
    }

    /// Runs a closure with the file on the pool: for all that std's [`File`] has and this has not.
    ///
    /// It may run beside a read or write of another user. It sees the user's position, since
    /// nothing is read ahead; only what cannot seek, a pipe for one, may have given bytes to a read
    /// that was dropped, which the next read gets. A closure that has begun runs to its end, also
    /// if the future is dropped.
    ///
    /// ```
    /// use smol::Async;
    /// use std::fs::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// smol::block_on(async {
    ///     let file = Async::<File>::open("Cargo.toml").await?;
    ///     let len = file.with(|file| file.metadata()).await?.len();
    ///     assert!(len > 0);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub async fn with<R: Send + 'static>(&self, f: impl FnOnce(&File) -> R + Send + 'static) -> R {
        let this = self.clone();
        self.disturb();
        unblock(move || {
            let _after = OnDrop(|| this.disturb());
            f(this.get_ref())
        })
        .await
    }

    /// Reads all that is left, and returns how much that was. If the future is dropped, `buf` has
    /// what was read so far.
    ///
    /// The method of the same name in [`AsyncReadExt`](io::AsyncReadExt) fills all of the free
    /// buffer with zeros whenever it is polled, which for a large file holds up others.
    pub fn read_to_end<'a>(
        &'a mut self,
        buf: &'a mut Vec<u8>,
    ) -> impl Future<Output = io::Result<usize>> + Unpin + 'a {
        let start = buf.len();
        let mut is_new = true;
        poll_fn(move |cx| {
            if mem::take(&mut is_new) && self.desk.is_some() {
                // What it will be, if that is known at once. (Files in /proc say 0.)
                let position = self.get_ref().stream_position().unwrap_or(0);
                let len = self.get_ref().metadata().map_or(0, |data| data.len());
                buf.reserve(len.saturating_sub(position).min(1 << 26) as usize + 32);
            }
            loop {
                let len = buf.len();
                if buf.capacity() - len < 32 {
                    buf.reserve(1024);
                }
                buf.resize(len + (buf.capacity() - len).min(READ_STEP), 0);
                let read = Pin::new(&mut *self).poll_read(cx, &mut buf[len..]);
                buf.truncate(len + if let Poll::Ready(Ok(more)) = read { more } else { 0 });
                if ready!(read)? == 0 {
                    return Poll::Ready(Ok(len - start));
                }
            }
        })
    }

    fn disturb(&self) {
        if let Some((lane, (desk, _))) = self.lane(Access::Shared) {
            // By `&`, so that no user by `&mut` is left.
            lane.disturb(desk, |slip| slip.access == Access::Own);
        }
    }
}

#[cfg(unix)]
fn is_block_device(data: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&data.file_type())
}

#[cfg(windows)]
fn is_block_device(_: &std::fs::Metadata) -> bool {
    false
}

impl From<File> for Async<File> {
    /// Makes a regular file asynchronous, which never fails: nothing is registered. Each operation
    /// is done whole, on the pool unless it need not wait. For a FIFO or a device use
    /// [`Async::new`].
    ///
    /// # Who shares what
    ///
    /// Any number of tasks and futures may use one file at the same time, by clones, by
    /// `&Async<File>` or by an `Arc`: each write is done once and whole, one after the other, and
    /// each asker gets its own result. The position is the file's: all share it.
    ///
    /// A future of `read` that is dropped has not happened: the position does not move for bytes
    /// that nobody took. (What cannot seek keeps such bytes for the next read. And if the position
    /// is still the same, the next read may get bytes, or the end, as they were at the time of the
    /// dropped one.)
    /// One of `write` or `seek` that is dropped leaves open whether it was done:
    ///
    /// - By `&mut`, there is one user of this handle at a time, or one who reads and one who
    ///   writes (`io::split`). The same write, tried again, is the one that was dropped, so that
    ///   nothing is written twice. Any other operation, but for [`with`](Async::with) and
    ///   `into_inner`, comes after it, and tells its error if it failed.
    /// - By `&`, a poll does not say which future it is for. An answer is known by what was asked
    ///   and by the waker that asked; equal writes of different tasks may have each other's. One
    ///   that goes from task to task half way, after somebody else has moved the position, is a new
    ///   one. An error of a dropped future is told by a later operation of the same task. A task
    ///   that drops a write or seek and goes on by `&` with others may get its answer for a
    ///   later one of the very same bytes, or to the same place; and a write may be done twice
    ///   beside another future of its task that moves the position. Tasks that cancel these, hand
    ///   them on, or move the position in between, should have a clone each. What cancelled tasks
    ///   leave behind takes some hundred bytes each until the handle is dropped or written to by
    ///   `&mut`, or, if it is thousands, for a minute.
    fn from(file: File) -> Async<File> {
        // Elsewhere the position means nothing, or there is none.
        let goes_back = file.metadata().is_ok_and(|data| data.is_file() || is_block_device(&data));
        let file = Arc::new(file);
        let shared = Waited::Pooled(Lane::new(file.clone(), goes_back), Some(file));
        Async { shared: Arc::new(shared), desk: Some(Arc::default()) }
    }
}

impl<T: Into<Owned>> TryFrom<Async<T>> for Owned {
    type Error = io::Error;

    /// The descriptor or socket, out of the poller and blocking again. Fails as
    /// [`into_inner`](Async::into_inner) does: if there are clones of the handle, for one.
    fn try_from(handle: Async<T>) -> io::Result<Owned> {
        let handle = handle.into_inner()?.into();
        set_nonblocking(&handle, false)?;
        Ok(handle)
    }
}

impl TryFrom<Async<File>> for Stdio {
    type Error = io::Error;

    /// A file or pipe for a child that is about to be started: the output of one child can be the
    /// input of the next. Fails as [`into_inner`](Async::into_inner) does.
    fn try_from(handle: Async<File>) -> io::Result<Stdio> {
        #[cfg(unix)]
        return Ok(Stdio::from(OwnedFd::try_from(handle)?));
        #[cfg(windows)]
        return Ok(Stdio::from(handle.into_inner()?));
    }
}

impl ProcessState {
    /// Takes the status from the system if the child has ended. Returns whom to tell once the lock
    /// is let go.
    fn reap(&mut self) -> Vec<Arc<Waker>> {
        if self.end.is_none() {
            let end = retry(|| self.child.try_wait()).transpose();
            self.end = end.map(|end| end.map_err(|err| err.raw_os_error().unwrap_or_default()));
        }
        match self.end {
            None => Vec::new(),
            Some(_) => mem::take(&mut self.waiters).iter().filter_map(Weak::upgrade).collect(),
        }
    }
}

/// Tells those who wait for a child.
fn tell(waiters: Vec<Arc<Waker>>) {
    for waiter in waiters {
        shielded(move || waiter.wake_by_ref());
    }
}

/// The number of a child, as the system's calls want it.
#[cfg(unix)]
fn pid_of(child: &Child) -> Option<rustix::process::Pid> {
    i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw)
}

/// A handle that is readable when the child has ended.
#[cfg(target_os = "linux")]
fn pidfd_of(child: &Child) -> Option<Async<File>> {
    use rustix::process::{PidfdFlags, pidfd_open};
    let fd = pidfd_open(pid_of(child)?, PidfdFlags::empty()).ok()?;
    Some(Async::polled(File::from(fd), false))
}

#[cfg(not(target_os = "linux"))]
fn pidfd_of(_: &Child) -> Option<Async<File>> {
    None
}

impl Process {
    fn new(child: Child) -> Process {
        let pidfd = pidfd_of(&child);
        let state = ProcessState { child, end: None, kill_on_drop: false, waiters: Vec::new() };
        Process { pidfd, state: Mutex::new(state) }
    }

    /// Does something with the child under the lock, where nobody else can reap it, after a look
    /// whether it has ended. The second argument says whether that was known before.
    fn look_and<R>(&self, act: impl FnOnce(&mut ProcessState, bool) -> R) -> R {
        let mut state = lock(&self.state);
        let known = state.end.is_some();
        let waiters = state.reap();
        let result = act(&mut state, known);
        drop(state);
        tell(waiters);
        result
    }

    /// How the child ended, if it has.
    fn look(&self) -> Option<io::Result<ExitStatus>> {
        self.look_and(|state, _| state.end).map(|end| end.map_err(io::Error::from_raw_os_error))
    }

    /// Sends something to the child, unless it was waited for (I12.1).
    fn signal(&self, send: impl FnOnce(&mut Child) -> io::Result<()>) -> io::Result<()> {
        self.look_and(|state, known| match state.end {
            None => send(&mut state.child),
            // It has just ended by itself, and who sent this could not know.
            Some(Ok(_)) if !known => Ok(()),
            Some(_) => Err(invalid("the process has ended and was waited for")),
        })
    }

    /// Waits until the child has ended. Cancel-safe: nothing is taken until it says so.
    async fn wait(self: &Arc<Self>) -> io::Result<ExitStatus> {
        if let (Some(pidfd), None) = (&self.pidfd, self.look()) {
            // It may be ready too early, if a debugger has the child; and the poller may be
            // impossible.
            let _ = pidfd.readable().await;
        }
        let mut pause = LOOK_FIRST;
        loop {
            if let Some(end) = self.look() {
                return end;
            }
            let limit = if mind(self) { LOOK_BESIDE } else { pause };
            let _ = timeout(limit, self.told()).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// Waits until somebody has seen that the child ended.
    async fn told(&self) {
        let mut told = None;
        poll_fn(|cx| {
            let waker = told.insert(Arc::new(cx.waker().clone()));
            let mut state = lock(&self.state);
            if state.end.is_some() {
                return Poll::Ready(());
            }
            state.waiters.retain(|waiter| waiter.strong_count() > 0);
            state.waiters.push(Arc::downgrade(waker));
            Poll::Pending
        })
        .await
    }
}

/// The first and the longest pause between two looks at children of whose end nothing else tells.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_LAST: Duration = Duration::from_millis(16);
/// How often one who waits looks although a thread does, and somebody where there can be none. The
/// system wakes the thread for each child that ends, but not for one whose status was taken by
/// somebody else, or by nobody because `SIGCHLD` is ignored.
const LOOK_BESIDE: Duration = Duration::from_millis(500);

/// The children that were abandoned before they ended, and those without a pidfd that somebody
/// waits for.
static MINDED: Mutex<Minded> = Mutex::new(Minded { children: Vec::new(), thread: false });

struct Minded {
    children: Vec<Arc<Process>>,
    /// Whether a thread waits for them. There is one as long as there are any, if there can be one;
    /// else the next `spawn` looks at them, and a timer every half a second, whose waker is the
    /// process itself (`abandon`).
    thread: bool,
}

/// Has a thread wait for this child with the others; says whether there is one.
fn mind(process: &Arc<Process>) -> bool {
    let mut minded = lock(&MINDED);
    if !minded.children.iter().any(|other| Arc::ptr_eq(other, process)) {
        minded.children.push(process.clone());
    }
    if !minded.thread && may_start_thread() {
        minded.thread = start_thread("smol-children".into(), mind_children);
    }
    minded.thread
}

/// Nobody waits for this child any more: has a thread look after it, or a timer if there is none.
fn abandon(process: &Arc<Process>) {
    if !mind(process) {
        REACTOR.set_timer(Instant::now() + LOOK_BESIDE, Waker::from(process.clone()));
        // (Not `attend`, which wakes at once where no thread can be started.)
        IDLE.fill_seat(true);
    }
}

impl Wake for Process {
    fn wake(self: Arc<Self>) {
        let is_running = self.look().is_none();
        look_at_all(false);
        if is_running {
            abandon(&self);
        }
    }
}

/// Looks at all of them, if that is one's part. Says whether any has ended, and whether any is
/// left.
fn look_at_all(is_thread: bool) -> (bool, bool) {
    let mut waiters = Vec::new();
    let mut minded = lock(&MINDED);
    if minded.thread != is_thread {
        return (false, true);
    }
    let all = mem::take(&mut minded.children).into_iter();
    let (running, ended): (Vec<_>, Vec<_>) = all.partition(|process| {
        let mut state = lock(&process.state);
        waiters.append(&mut state.reap());
        state.end.is_none()
    });
    let left = !running.is_empty();
    minded.children = running;
    minded.thread = is_thread && left;
    drop(minded);
    tell(waiters);
    (!ended.is_empty(), left)
}

/// The life of the thread that minds children.
fn mind_children() {
    let mut pause = LOOK_FIRST;
    loop {
        wait_for_any_end();
        match look_at_all(true) {
            (_, false) => return,
            (true, true) => pause = LOOK_FIRST,
            (false, true) => {
                // The system tells of a child that is not among them, again and again until
                // somebody reaps it.
                thread::sleep(pause);
                pause = (pause * 2).min(LOOK_LAST);
            }
        }
    }
}

/// Blocks while no child of this process, whosever it is, has a status to be taken, and takes none;
/// where the system cannot do that, not at all.
fn wait_for_any_end() {
    #[cfg(not(any(windows, target_os = "openbsd", target_os = "redox", target_os = "cygwin")))]
    {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let _ = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // The child of a fork has a copy of the handle, and none of the process.
        if is_forked() {
            return;
        }
        let kill = lock(&self.process.state).kill_on_drop;
        if kill {
            let _ = self.process.signal(Child::kill);
        }
        // Somebody must take its status when it ends. (Windows keeps it no longer than we do.)
        if self.process.look().is_none() && cfg!(unix) {
            abandon(&self.process);
        }
    }
}

impl Async<Child> {
    /// Starts a program, which blocks the calling thread for some hundred microseconds. What is to
    /// be piped is set on the command, as with std.
    ///
    /// Dropping all handles neither leaves a zombie nor kills the child, unless
    /// [`kill_on_drop`](Async::kill_on_drop) was called; it closes those pipes that were not taken.
    ///
    /// ```
    /// use smol::{io, prelude::*, Async};
    /// use std::process::{Child, Command, Stdio};
    ///
    /// # #[cfg(unix)]
    /// # fn main() -> io::Result<()> {
    /// smol::block_on(async {
    ///     let mut sort = Command::new("sort");
    ///     sort.stdin(Stdio::piped()).stdout(Stdio::piped());
    ///     let child = Async::<Child>::spawn(&mut sort)?;
    ///     child.kill_on_drop(true); // if something goes wrong below
    ///     let mut stdin = child.take_stdin().unwrap();
    ///     stdin.write_all(b"two\none\n").await?;
    ///     drop(stdin); // that is all
    ///     assert_eq!(child.output().await?.stdout, b"one\ntwo\n");
    ///     Ok(())
    /// })
    /// # }
    /// # #[cfg(windows)] fn main() {}
    /// ```
    pub fn spawn(command: &mut Command) -> io::Result<Async<Child>> {
        // Those that were abandoned when no thread could be started.
        look_at_all(false);
        let mut child = command.spawn()?;
        let mut take_pipes = || -> io::Result<_> {
            Ok([
                child.stdin.take().map(pipe_from).transpose()?,
                child.stdout.take().map(pipe_from).transpose()?,
                child.stderr.take().map(pipe_from).transpose()?,
            ])
        };
        let pipes = take_pipes().inspect_err(|_| {
            // Then it is as if it had never been.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let parent = Parent { process: Arc::new(Process::new(child)), pipes: Mutex::new(pipes) };
        Ok(Async { shared: Arc::new(Waited::Process(parent)), desk: None })
    }

    /// Runs a program to its end, with its streams as set on the command: ours, if nothing is.
    ///
    /// The program is started by this call, and goes on if the future is dropped. Blocks and fails
    /// as [`spawn`](Async::spawn) and [`status`](Async::status) do.
    ///
    /// ```
    /// use smol::Async;
    /// use std::process::{Child, Command};
    ///
    /// # #[cfg(unix)]
    /// # fn main() -> std::io::Result<()> {
    /// smol::block_on(async {
    ///     assert!(Async::<Child>::run(&mut Command::new("true")).await?.success());
    ///     let output = Async::<Child>::capture(Command::new("echo").arg("hi")).await?;
    ///     assert_eq!(output.stdout, b"hi\n");
    ///     Ok(())
    /// })
    /// # }
    /// # #[cfg(windows)] fn main() {}
    /// ```
    pub fn run(
        command: &mut Command,
    ) -> impl Future<Output = io::Result<ExitStatus>> + Send + use<> {
        let child = Async::<Child>::spawn(command);
        async move { child?.status().await }
    }

    /// [`run`](Async::run) that collects what the program writes to its standard output and error,
    /// which are made pipes whatever was set. They are closed if the future is dropped. Fails as
    /// [`spawn`](Async::spawn) and [`output`](Async::output) do.
    pub fn capture(
        command: &mut Command,
    ) -> impl Future<Output = io::Result<Output>> + Send + use<> {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = Async::<Child>::spawn(command);
        async move { child?.output().await }
    }

    fn parent(&self) -> &Parent {
        match &*self.shared {
            Waited::Process(parent) => parent,
            _ => unreachable!("an Async<Child> is made by `spawn` only"),
        }
    }

    /// The number of the process. Once it has ended and was waited for, the number may be
    /// another's.
    pub fn id(&self) -> u32 {
        lock(&self.parent().process.state).child.id()
    }

    /// Makes the process end (on Unix, by `SIGKILL`). Await [`status`](Async::status) to see it
    /// gone. `InvalidInput` if it has ended and was waited for.
    pub fn kill(&self) -> io::Result<()> {
        self.parent().process.signal(Child::kill)
    }

    /// Sends a signal to the process, by its number: 15 for `SIGTERM`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the process has ended and was waited for, or if there is no such signal or
    /// it is a real-time one. `PermissionDenied` if it runs as another user.
    #[cfg(unix)]
    pub fn signal(&self, number: i32) -> io::Result<()> {
        use rustix::process::{Signal, kill_process};
        let signal = Signal::from_named_raw(number);
        let signal = signal.ok_or_else(|| invalid("there is no signal of this number"))?;
        self.parent().process.signal(|child| {
            let pid = pid_of(child).ok_or(io::ErrorKind::InvalidData)?;
            Ok(kill_process(pid, signal)?)
        })
    }

    /// Whether the process is to be killed if it still runs when the last handle to it is dropped;
    /// not unless this was called. A future of [`output`](Async::output) holds a handle.
    pub fn kill_on_drop(&self, kill: bool) {
        lock(&self.parent().process.state).kill_on_drop = kill;
    }

    /// Waits until the process has ended, and gives its status; any number of times. Cancel-safe.
    ///
    /// The pipe to its standard input is closed first, unless it was taken: it may wait for that.
    ///
    /// # Errors
    ///
    /// If somebody else has waited for the process, or the program ignores `SIGCHLD`: the status is
    /// lost then.
    pub async fn status(&self) -> io::Result<ExitStatus> {
        drop(self.take_stdin());
        // In a loop, others get a turn.
        poll_fn(spend).await;
        self.parent().process.wait().await
    }

    /// The status if the process has ended, and `None` if it still runs. Never waits, and closes no
    /// pipe. Fails as [`status`](Async::status) does.
    pub fn try_status(&self) -> io::Result<Option<ExitStatus>> {
        self.parent().process.look().transpose()
    }

    /// Waits until the process has ended, and collects what it writes to those pipes that were not
    /// taken. Fails as [`status`](Async::status) does, or if a pipe cannot be read.
    ///
    /// Not cancel-safe: what was collected is lost if the future is dropped, and so is this handle.
    pub async fn output(self) -> io::Result<Output> {
        drop(self.take_stdin());
        let (out, err) =
            future::try_zip(drain(self.take_stdout()), drain(self.take_stderr())).await?;
        let status = self.status().await?;
        Ok(Output { status, stdout: out, stderr: err })
    }

    /// The pipe to the child's standard input, if there is one and it was not taken yet. Dropping
    /// it tells the child that there is no more.
    pub fn take_stdin(&self) -> Option<Async<File>> {
        lock(&self.parent().pipes)[0].take()
    }

    /// The pipe from the child's standard output, if there is one and it was not taken yet. For the
    /// input of another child there is `Stdio::try_from(pipe)`. (`into_inner` gives a pipe that is
    /// still non-blocking, at which most programs fail.)
    pub fn take_stdout(&self) -> Option<Async<File>> {
        lock(&self.parent().pipes)[1].take()
    }

    /// The pipe from the child's standard error, if there is one and it was not taken yet.
    pub fn take_stderr(&self) -> Option<Async<File>> {
        lock(&self.parent().pipes)[2].take()
    }
}

/// Reads a pipe to its end.
async fn drain(pipe: Option<Async<File>>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        io::AsyncReadExt::read_to_end(&mut pipe, &mut bytes).await?;
    }
    Ok(bytes)
}

/// Our end of a child's pipe. Only this end is made non-blocking; the child's is as it expects it.
#[cfg(unix)]
fn pipe_from(pipe: impl Into<OwnedFd>) -> io::Result<Async<File>> {
    let pipe = File::from(pipe.into());
    set_nonblocking(&pipe, true)?;
    Ok(Async::polled(pipe, false))
}

/// Our end of a child's pipe, which Windows cannot poll.
#[cfg(windows)]
fn pipe_from(pipe: impl Into<std::os::windows::io::OwnedHandle>) -> io::Result<Async<File>> {
    Ok(Async::from(File::from(pipe.into())))
}

// ============================================================================================
// §13  The README and the guide
// ============================================================================================
//
// uses all

/// The code in the README runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

// Pages for the documentation, and their programs for `cargo test`; nothing for the compiler.
#[cfg(any(doc, doctest))]
pub mod guide {
    #![doc = include_str!("guide/guide.md")]
    #![doc = include_str!("guide/life.svg")]
    #[doc = include_str!("guide/from_smol.md")]
    pub mod from_smol {}
    #[doc = include_str!("guide/from_tokio.md")]
    pub mod from_tokio {}
    #[doc = include_str!("guide/threads.md")]
    pub mod threads {}
    #[doc = include_str!("guide/cpu_bound.md")]
    pub mod cpu_bound {}
    #[doc = include_str!("guide/cancellation.md")]
    pub mod cancellation {}
    #[doc = include_str!("guide/shutdown.md")]
    pub mod shutdown {}
    #[doc = include_str!("guide/scopes.md")]
    pub mod scopes {}
    #[doc = include_str!("guide/processes.md")]
    pub mod processes {}
    #[doc = include_str!("guide/files.md")]
    pub mod files {}
    #[doc = include_str!("guide/handles.md")]
    pub mod handles {}
    #[doc = include_str!("guide/other_runtimes.md")]
    pub mod other_runtimes {}
    #[doc = include_str!("guide/other_loops.md")]
    pub mod other_loops {}
    #[doc = include_str!("guide/testing.md")]
    pub mod testing {}
}
