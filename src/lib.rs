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
//! - [`Async<T>`](Async) makes std's sockets, files, pipes and processes asynchronous, and any other handle that
//!   the system's poller knows. [`resolve`] looks up names.
//! - [`Timer`] is a deadline or an interval, and [`timeout`] a limit for any future.
//! - [`unblock`] runs a closure where it may block, [`Unblock`] a reader, writer or iterator.
//! - [`Executor`] and [`LocalExecutor`] are for those who want one of their own.
//! - [`future`], [`stream`], [`io`] and [`prelude`] are futures-lite's. The features `channel` and `lock`
//!   re-export async-channel and async-lock, which work with any runtime, and nothing more.
//!
//! Everything works under any executor, and any future, also one made for another runtime's traits, can be
//! run by this one. The number of workers is `SMOL_THREADS`, else that of the processors; the
//! blocking pool has up to `BLOCKING_MAX_THREADS`, else 500.
//!
//! Linux and Android by epoll; macOS, iOS and the BSDs, Windows, illumos and Solaris by the `polling` crate. On
//! Windows only sockets can be polled; connects, files and pipes go through the pool there.
//!
//! Not to be had: a process that used the runtime and then forks cannot use it in the child, where it panics and
//! says so. An output with a destructor that panics, of a detached task, aborts the process (in async-task).
//!
//! # How it works
//!
//! This file is the whole runtime. Read it from top to bottom: each section uses only the sections above it.
//! §2-§4 run tasks, §5 listens to the kernel; they never mention each other. They meet in
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
//! - §13  Promises the compiler keeps
//!
//! ## The life of a task
//!
//! 1. `spawn(future)` (§6) boxes the future once (§2) and yields two ends: a `Runnable`, the ticket that
//!    allows one poll, and a [`Task`], the handle that receives the output.
//! 2. The ticket goes into a queue: that of the worker we are on, or else the injector (§3).
//! 3. A worker takes it, or steals it, and runs it: one `poll`, on that thread.
//! 4. `Pending`: the ticket is used up. Nothing refers to the task now but the wakers that its future has left
//!    with others. If it has left none, nobody will ever poll it again: the commonest bug in futures
//!    written by hand.
//! 5. A waker fires: there is a ticket again, go to 2. Firing twice before 3 is the same as firing once.
//! 6. `Ready`: the output moves to the handle, and whoever awaits it is woken. A panic travels the same way.
//!    Dropping the handle cancels: the ticket is issued one last time, and the future dies on a worker.
//!
//! ## The life of a wake-up
//!
//! Waker → ticket into a queue → is somebody searching for work already? → if not, wake one sleeper → it searches.
//! The danger is the gap between "I found nothing" and "I sleep". Both sides close it in the same way:
//!
//! | the waker: `notify` (§3)              | the sleeper: `sleep` (§3)           |
//! |---------------------------------------|-------------------------------------|
//! | W1 put the ticket into a queue        | S1 announce "I sleep"               |
//! | W2 look for sleepers                  | S2 look at all queues again         |
//! | W3 if there is one, wake it           | S3 if there is still nothing, sleep |
//!
//! All four accesses of W1, W2, S1 and S2 are sequentially consistent, so there is one order of them all: either W1
//! comes before S2, and the sleeper sees the ticket; or S2 comes before W1, then S1 before W2, and the waker sees
//! the sleeper. Never neither. `tests/wake.rs` and `tests/stress.rs` would hang.
//!
//! ## The life of a byte
//!
//! A byte never passes through the runtime, only the news of it does. `read` says WouldBlock → the task leaves its
//! waker with the source, which is registered with the kernel the first time (§10, §5) → the kernel buffers the
//! byte → the thread in the poller collects the source's wakers, lets go of every lock, and wakes them (§6) →
//! the task is polled and calls `read` again, straight from the kernel's memory into the caller's.
//!
//! ## When everything is idle
//!
//! One thread sleeps in the kernel's poller until the earliest deadline, the others are parked, the watcher too.
//! Nothing ticks, no processor is used.
//!
//! | news                                        | reaches                                          |
//! |---------------------------------------------|--------------------------------------------------|
//! | a task is woken or spawned                  | one sleeping worker (the table above)            |
//! | a main future is woken                      | its thread, wherever that sleeps                 |
//! | a handle becomes ready, a deadline passes   | the thread in the poller                         |
//! | an earlier timer is set                     | the thread in the poller, which it interrupts    |
//! | the thread in the poller leaves with work   | the watcher, which sees to it that it comes back |
//! | a blocking job ends                         | like any other wake-up                           |
//!
//! ## Locks
//!
//! No lock is held while anybody else's code runs: no poll, no wake, and no clone or drop of a waker or future. So
//! most locks are leaves, under which nothing else is locked. The others, from left to right:
//!
//! - `asked` (the kernel's answer, owned by the seat) < `waiters` (of a source) < `sources` (§5)
//! - a lane's `state` < a handle's desk (§9)
//! - leaves: `sleepers`, `locals`, `active` (§3), `timers` (§5), `PARKED_THREADS`, `failed` (§6), the list of
//!   a scope (§7), the pool's `state` (§9), `reaped`, `pipes` (§12)
//!
//! ## Where to change what
//!
//! Fairness: the constants in §1. Who sleeps and who is woken: `notify` and `sleep` in §3, and `Sleeper::sleep` in
//! §6. Who asks the kernel: §6. A new kind of event: §5, and a type after §10. A socket's method: §11. The size of
//! the pool: `allowed` in §9. Platforms: `registration` in §5, and the `cfg`s of §10-§12.

// ============================================================================================
// §1  Ground: what everything stands on
// ============================================================================================
//
// uses nothing · used by all
//
// NEVER     runs anybody else's code with a lock held, and never trusts it not to panic.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
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
#[cfg(unix)]
use std::os::fd::{AsFd as AsHandle, AsRawFd, BorrowedFd, OwnedFd, RawFd};
#[cfg(unix)]
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, AsSocket as AsHandle, BorrowedSocket, RawSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use async_task::{Builder, Runnable, ScheduleInfo, WithInfo};
use concurrent_queue::ConcurrentQueue;
use futures_lite::stream::Stream;
use futures_lite::{AsyncRead, AsyncSeek, AsyncWrite};
use once_cell::sync::OnceCell;
use pin_project_lite::pin_project;
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
/// the user's own periods (Go and tokio use the same number). Bench: `spawns into a busy runtime`.
const TASKS_PER_LOOK: u32 = 61;
/// Tasks a thread runs between two looks at the kernel while it is never idle: such a look costs
/// some 200 ns on Linux and 850 with `polling`, so that it adds 3 or 14 ns to each task.
const TASKS_PER_GLANCE: u32 = 61;
/// How often in a row the slot for the next task is preferred to the queue.
const SLOT_RUNS: u32 = 3;
/// What it costs to call another thread: that much work a worker rather does itself. The row `block_on_wake`
/// shows 5 to 50 µs, and `http_wrk_64` was 12 % slower when every two tasks were shared.
const CALL: Duration = Duration::from_micros(50);
/// A worker's queue: what does not fit goes to the injector, half of the queue at a time.
const LOCAL_QUEUE: usize = 256;
/// So many tickets of a full queue change places with some of the injector at each look, so that tasks that yield
/// share their worker with those outside. Two workers at the injector cost each other: 1,000 tasks yield at 24 ns
/// each with 2, and 29 with 4. With an odd number, 61 + 1 and 256 have a common factor, and every other ticket stays.
const ROTATION: usize = 2;
/// How often the watcher looks while threads are busy. Twice this is how long a blocked task can
/// hold up others; 250 wake-ups a second are 0.1 % of a processor.
const TICK: Duration = Duration::from_millis(4);
/// Ticks without anything happening after which the watcher sleeps without a timeout.
const LINGER: u32 = 2;
/// From this size on, in bytes, a future gets an allocation of its own (async-task would do the same).
const LARGE_FUTURE: usize = 2048;
/// The longest sleep where the kernel's poller cannot be had (no descriptors left, or closed by
/// somebody): then a deadline or a wake-up can be this late.
const NAP: Duration = Duration::from_millis(10);
/// How long an idle pool thread waits for a job before it ends.
const POOL_IDLE: Duration = Duration::from_secs(2);
/// Pool threads that may be starting at the same time; more only contend for the same processors.
const POOL_STARTING: usize = 4;
/// Idle pool threads that may be on their way at the same time; each calls the next if jobs are left, so that
/// jobs that end at once do not wake one thread each (`unblock_100k`: 2.8 µs with a call per job, 0.1 with this).
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
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
fn wake_all(wakers: Vec<Waker>) {
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

    fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Full(value) => Some(value),
            Entry::Free(_) => None,
        })
    }
}

thread_local! {
    /// What is left of the [`OPS_PER_POLL`] of the task that this thread is polling.
    static BUDGET: Cell<u32> = const { Cell::new(OPS_PER_POLL) };
    /// That task was told to let others run, and went on.
    static OVERDRAWN: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// Which waker leads back to the loop of ours that runs on this thread (its data pointer): that of the
    /// future the loop is polling. Null if a foreign executor is between the loop and that future.
    static OURS: Cell<*const ()> = const { Cell::new(std::ptr::null()) };
    /// Whether the tasks that this thread polls right now are run by such a loop.
    static OUR_TASKS: Cell<bool> = const { Cell::new(false) };
}

/// Notes that one of our loops polls the future with this waker; returns what was noted before.
#[inline]
fn set_ours(waker: *const ()) -> *const () {
    OURS.try_with(|ours| ours.replace(waker)).unwrap_or(std::ptr::null())
}

/// Whether one of our loops polls the future with this waker.
#[inline]
fn is_ours(waker: &Waker) -> bool {
    OURS.try_with(|ours| !ours.get().is_null() && ours.get() == waker.data()).unwrap_or(false)
}

/// What is run until the guard is dropped is run by one of our loops if the future with this waker is.
fn run_as(waker: &Waker) -> impl Drop + use<> {
    let ours = is_ours(waker);
    let outer = OUR_TASKS.try_with(|tasks| tasks.replace(ours)).unwrap_or(false);
    let waker = if ours { waker.data() } else { std::ptr::null() };
    OnDrop(move || {
        let _ = OUR_TASKS.try_with(|tasks| tasks.set(outer));
        set_ours(waker);
    })
}

/// Whether this process is the child of one that used the runtime. The child has none of the threads,
/// and shares the kernel's poller with its parent.
fn is_forked() -> bool {
    static HOME: OnceLock<u32> = OnceLock::new();
    let here = std::process::id();
    *HOME.get_or_init(|| here) != here
}

/// To be called before waiting for something that another thread does.
fn check_for_fork() {
    assert!(
        !is_forked(),
        "smol was used before fork() and cannot be used in the child: its threads did not come along"
    );
}

thread_local! {
    /// How many calls of `block_on` and loops of workers this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is in `block_on`, or in the loop of a worker.
fn is_in_loop() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
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
    let _ = BUDGET.try_with(|left| left.set(OPS_PER_POLL));
    let _ = OVERDRAWN.try_with(|yes| yes.set(false));
}

/// Pays for one I/O operation. A task that has spent all it had is woken and told `Pending`, so
/// that its executor gets a chance to run others: an always-ready socket starves nobody.
/// Under an executor that does not refill the budget, every 128th operation yields instead.
#[inline]
fn spend(cx: &mut Context<'_>) -> Poll<()> {
    let left = BUDGET.try_with(|left| left.replace(left.get().wrapping_sub(1))).unwrap_or(1);
    if left == 0 {
        refill_budget();
        let _ = OVERDRAWN.try_with(|yes| yes.set(true));
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

/// Pays for what an operation has moved, once that is known.
fn spend_bytes(len: usize) {
    let cost = (len / BYTES_PER_OP) as u32;
    let _ = BUDGET.try_with(|left| left.set(left.get().saturating_sub(cost)));
}

// ============================================================================================
// §2  Task: a future in a box, with a handle outside and a ticket inside
// ============================================================================================
//
// uses §1 · used by §3 §4 §6 §9
//
// PROBLEM   A future is inert. Someone must own it, poll it when it was woken, and pass its output on.
// IDEA      async-task puts future, state and output into one allocation with two ends: [`Task`], the
//           handle of whoever wants the output, and `Runnable`, the ticket that allows one poll. There
//           is never more than one ticket for a task; waking a task means to issue it.
// I2.1      A panic of the future travels to whoever awaits the handle; the thread that polls survives.
// I2.2      A panic of the future's destructor is reported by the panic hook and ends there.
//           (async-task aborts the process instead, for want of a place to raise it; see `Guarded`.)
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
        let ours = OUR_TASKS.try_with(Cell::get).unwrap_or(false);
        set_ours(if ours { cx.waker().data() } else { std::ptr::null() });
        match self.project().future.as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Boxes a future together with the function that queues its tickets.
fn new_task<F, S>(
    future: F,
    after: impl FnMut() + Send + 'static,
    schedule: S,
) -> (Runnable, Task<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
    S: Fn(Runnable, ScheduleInfo) + Send + Sync + 'static,
{
    tour!(1, "a future of {} bytes is boxed: one ticket, one handle", mem::size_of::<F>());
    // The fewer moves of a large future, the smaller the stack that suffices for them.
    if mem::size_of::<F>() >= LARGE_FUTURE {
        return box_task(Box::pin(future), after, schedule);
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
    S: Fn(Runnable, ScheduleInfo) + Send + Sync + 'static,
{
    let future = Guarded { future: Some(future), after };
    Builder::new().propagate_panic(true).spawn(move |()| future, WithInfo(schedule))
}

// ============================================================================================
// §3  Executor: tickets in queues, workers that take them
// ============================================================================================
//
// uses §1-§2 · used by §4 §6 · locks: sleepers (leaf), active (leaf), locals (leaf)
//
// PROBLEM   Tasks become ready on any thread; some thread must poll each of them soon, and a thread
//           that finds nothing must sleep without missing what comes next.
// IDEA      Each worker has a queue of its own, which costs no contention. What comes from elsewhere
//           goes to the injector. A worker without work takes a share of the injector, else steals
//           half of another's queue (Blumofe and Leiserson, "Scheduling Multithreaded Computations by
//           Work Stealing", 1999), else announces that it sleeps, looks once more, and sleeps.
// STATE     of a worker:  awake --nothing--> searching --nothing--> asleep --notified--> searching
//                           ^------------ found a ticket -----------'         (or awake: spurious)
// I3.1      A ticket is in a queue that every worker of the crew can reach. A slot is left to its owner as
//           long as that gets on: thieves try it last, and with our own threads the watcher (§6) empties it.
// I3.2      Whoever puts a ticket in a queue looks for a sleeper afterwards, unless the thread that
//           puts it there will itself look at that queue next (the first ticket in its own queue, or a
//           batch that costs less than a call: `begin_batch`); if that thread blocks before it is done,
//           the watcher (§6) sees it within two ticks.
// I3.3      In a crew of our own threads, one searching worker is enough: the last one to stop searching
//           calls the next one if it leaves work behind. The drivers of an `Executor` are not ours and
//           may do something else first, so that there every push wakes one more sleeper.
// NEVER     mentions the reactor or a thread: it knows wakers.
// REJECTED  A table of all tasks for the global executor (two locks per task, a third of the price of a
//           spawn); one global queue (yields cost double as soon as two workers contend).

/// The queues of one worker. The owner pushes and pops, thieves pop.
struct Local {
    /// The task to run next: what the running task woke last is likely to find its data in the cache.
    slot: ConcurrentQueue<Runnable>,
    queue: ConcurrentQueue<Runnable>,
    /// How many tasks its owner has run, for the watcher: a number that stands still means "stuck".
    polls: AtomicU32,
}

impl Local {
    fn new() -> Local {
        Local {
            slot: ConcurrentQueue::bounded(1),
            queue: ConcurrentQueue::bounded(LOCAL_QUEUE),
            polls: AtomicU32::new(0),
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.slot.is_empty()
    }
}

/// What an executor's workers share.
struct Crew {
    /// Tickets from outside, and what overflowed.
    injector: ConcurrentQueue<Runnable>,
    /// The workers' own queues, for thieves.
    locals: RwLock<Vec<Arc<Local>>>,
    /// Atomics: how many workers search, and above [`SLEEPING`] how many sleep.
    counts: AtomicUsize,
    /// Workers that sleep, by name; the last to come is the first to be woken, its cache is warm.
    sleepers: Mutex<Vec<(usize, Waker)>>,
    /// Names for sleepers.
    names: AtomicUsize,
    /// The workers are threads of our own, which search as soon as they are woken (I3.3).
    own_threads: bool,
    /// Told when a ticket was queued and nobody was called. `true`: because nobody searches or
    /// sleeps, so that one more worker would help; `false`: because the pusher sees to it itself.
    short_handed: fn(bool),
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

    /// The wakers of all.
    fn drain(&mut self) -> Vec<Waker> {
        (0..self.entries.len()).filter_map(|key| self.get_mut(key).and_then(Option::take)).collect()
    }
}

/// One sleeping worker in [`Crew::counts`].
const SLEEPING: usize = 1 << 16;

/// What a thread that polls tasks for a crew knows about itself.
struct Here {
    crew: usize,
    queue: Queue,
    /// A task runs right now: what it wakes may go to the slot.
    in_task: Cell<bool>,
    /// Something else than a task runs and the worker looks at its queue afterwards, once for all.
    collecting: Cell<bool>,
    /// When the worker began with what it had collected, until that is done; and what a task took in such a batch.
    batch_began: Cell<Option<Instant>>,
    task_cost: Cell<Option<Duration>>,
}

/// The queue that belongs to a thread.
enum Queue {
    /// Others may steal from it.
    Shared(Arc<Local>),
    /// That of a local executor (§4).
    Own(Rc<Private>),
}

/// What of a local executor never leaves its thread, and needs no atomics (bench: `local_spawn_100k`).
#[derive(Default)]
struct Private {
    queue: RefCell<VecDeque<Runnable>>,
    active: RefCell<Active>,
}

thread_local! {
    /// The worker whose tasks this thread is polling. With nested executors, the innermost.
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// What the worker on this thread knows, if there is one.
fn with_here<T>(f: impl FnOnce(&Here) -> T) -> Option<T> {
    let here = HERE.try_with(|here| here.borrow().as_ref().map(f));
    here.ok().flatten()
}

/// What became of a ticket that a worker pushed.
enum Pushed {
    /// It is the only one that the worker has to look at.
    Alone,
    /// The worker is collecting, and will look at its queue when it has all.
    Collected,
    /// There is more than the worker can do at once.
    Queued,
}

impl Here {
    /// Queues a ticket on the worker that runs on this thread.
    fn push(&self, crew: &Crew, runnable: Runnable, info: ScheduleInfo) -> Pushed {
        let local = match &self.queue {
            Queue::Shared(local) => local,
            Queue::Own(own) => {
                own.queue.borrow_mut().push_back(runnable);
                return Pushed::Collected;
            }
        };
        let mut next = Some(runnable);
        // A task that woke itself goes behind all others. What it woke before it goes to the slot.
        if self.in_task.get() && !info.woken_while_running {
            next = next.and_then(|runnable| local.slot.force_push(runnable).unwrap_or_default());
        }
        let alone = match next.map(|runnable| local.queue.push(runnable)) {
            None => true,
            Some(Ok(())) => local.queue.len() == 1 && local.slot.is_empty(),
            Some(Err(full)) => {
                for runnable in local.queue.try_iter().take(LOCAL_QUEUE / 2) {
                    let _ = crew.injector.push(runnable);
                }
                let _ = crew.injector.push(full.into_inner());
                false
            }
        };
        match (self.collecting.get(), alone) {
            (true, _) => Pushed::Collected,
            (false, true) => Pushed::Alone,
            (false, false) => Pushed::Queued,
        }
    }

    /// A batch of tasks was collected. Says whether it is worth calling another worker, judging by the last batches:
    /// the worst one counts, half as much with each that follows.
    fn begin_batch(&self, tasks: usize) -> bool {
        if tasks < 2 || self.in_task.get() {
            // A `block_on` inside of a task has collected: it may take its time.
            return tasks > 0 && self.in_task.get();
        }
        self.batch_began.set(Some(Instant::now()));
        let cost = self.task_cost.get();
        cost.is_none_or(|cost| cost.saturating_mul(tasks as u32) >= CALL)
    }

    /// Whether the batch takes longer than was thought.
    fn is_batch_late(&self) -> bool {
        let late = |began: Instant| began.elapsed() >= CALL;
        self.batch_began.get().is_some_and(late)
    }

    /// The batch is done, and so many tasks have run, of it or woken by it.
    fn end_batch(&self, ran: u32) {
        if let Some(began) = self.batch_began.take() {
            let faded = self.task_cost.get().unwrap_or_default() / 2;
            let cost = began.elapsed() / ran.max(1);
            self.task_cost.set(Some(cost.max(faded)));
        }
    }

    /// The queue that others may steal from, if it is one of this crew.
    fn shared(&self, crew: usize) -> Option<&Arc<Local>> {
        match &self.queue {
            Queue::Shared(local) if self.crew == crew => Some(local),
            _ => None,
        }
    }
}

impl Crew {
    fn new(own_threads: bool, short_handed: fn(bool)) -> Crew {
        Crew {
            injector: ConcurrentQueue::unbounded(),
            locals: RwLock::new(Vec::new()),
            counts: AtomicUsize::new(0),
            sleepers: Mutex::new(Vec::new()),
            names: AtomicUsize::new(0),
            own_threads,
            short_handed,
            active: Mutex::new(Slab::new()),
        }
    }

    fn id(&self) -> usize {
        self as *const Crew as usize
    }

    /// Queues a ticket. This is what every waker of a task ends in.
    fn schedule(&self, runnable: Runnable, info: ScheduleInfo) {
        tour!(2, "a ticket is queued");
        let mut ticket = Some(runnable);
        let pushed = HERE.try_with(|here| {
            let here = here.borrow();
            let here = here.as_ref().filter(|here| here.crew == self.id())?;
            let runnable = ticket.take()?;
            Some(here.push(self, runnable, info))
        });
        if let Some(runnable) = ticket {
            // From outside. The injector is never closed, so that this cannot fail.
            let _ = self.injector.push(runnable);
        }
        match pushed {
            // I3.2: this worker looks at its queue next. Should it block before, the watcher helps.
            Ok(Some(Pushed::Alone)) if self.own_threads => (self.short_handed)(false),
            // The worker does not sleep before it has looked at its queue.
            Ok(Some(Pushed::Collected)) => {}
            _ => self.notify(),
        }
    }

    /// Calls a worker, if one sleeps and none is searching.
    ///
    /// W1 is behind us: the ticket is in a queue.
    fn notify(&self) {
        // W2. Ordering: SeqCst, as are the push before it and S1, S2 in `sleep`: see "The life of a
        // wake-up" (§0). (concurrent-queue pushes with a SeqCst compare-exchange of the tail, and
        // `is_empty` loads that tail with SeqCst.)
        let counts = self.counts.load(Ordering::SeqCst);
        let searching = counts % SLEEPING;
        if self.own_threads && searching > 0 {
            return;
        }
        if counts / SLEEPING == 0 || !self.wake_one() {
            (self.short_handed)(true);
        }
    }

    /// W3: takes a sleeper off the list and wakes it. `false` if there was none.
    fn wake_one(&self) -> bool {
        if self.own_threads {
            check_for_fork_outside();
        }
        let sleeper = {
            let mut sleepers = lock(&self.sleepers);
            let sleeper = sleepers.pop();
            if sleeper.is_some() {
                // Ordering: SeqCst. Pairs with the load in `notify`: no longer asleep, and in a crew of our own
                // threads as good as searching from this moment, so that the next push wakes no other.
                self.counts.fetch_sub(SLEEPING - self.own_threads as usize, Ordering::SeqCst);
            }
            sleeper
        };
        match sleeper {
            Some((_, waker)) => {
                shielded(|| waker.wake());
                true
            }
            None => false,
        }
    }

    /// Whether there is a ticket that a worker which searches would find.
    fn has_work(&self) -> bool {
        let locals = self.locals.read().unwrap_or_else(PoisonError::into_inner);
        !self.injector.is_empty()
            || locals.iter().any(|local| {
                !local.queue.is_empty() || (!local.slot.is_empty() && !self.own_threads)
            })
    }

    /// Whether there is a ticket anywhere.
    fn has_tickets(&self) -> bool {
        let locals = self.locals.read().unwrap_or_else(PoisonError::into_inner);
        !self.injector.is_empty() || locals.iter().any(|local| !local.is_empty())
    }

    /// Boxes a future into a task that is dropped with this crew, and queues its first ticket.
    fn spawn<F>(self: &Arc<Self>, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let schedule = {
            let crew = self.clone();
            move |runnable, info| crew.schedule(runnable, info)
        };
        let (runnable, task) = {
            let mut active = lock(&self.active);
            // Moves the future, and runs nothing of it.
            active.enlist(|key| new_task(future, self.forget(key), schedule))
        };
        runnable.schedule();
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
    /// worker is left. A ticket can still be on its way in another thread between the moment that a
    /// waker issued it and its push, which is why this looks until all tasks are gone.
    fn dissolve(&self, own: Option<&Private>) {
        loop {
            let wakers = match own {
                Some(own) => own.active.borrow_mut().drain(),
                None => lock(&self.active).drain(),
            };
            wake_all(wakers);
            // A call of `run` that was leaked has left its queues behind.
            let locals = self.locals.read().unwrap_or_else(PoisonError::into_inner).clone();
            for local in locals {
                local.slot.try_iter().chain(local.queue.try_iter()).for_each(drop);
            }
            self.injector.try_iter().for_each(drop);
            while let Some(runnable) = own.and_then(|own| own.queue.borrow_mut().pop_front()) {
                drop(runnable);
            }
            if own.map_or_else(|| lock(&self.active).len, |own| own.active.borrow().len) == 0 {
                return;
            }
            thread::yield_now();
        }
    }
}

/// Somebody who takes tickets out of a crew's queues: a worker thread, or a call of `run` or `tick`.
struct Worker<C: Member> {
    crew: C,
    /// `tick` takes one ticket at a time and has no queue of its own.
    local: Option<Arc<Local>>,
    mood: Mood,
    name: usize,
    ticks: u32,
    slot_runs: u32,
    random: u32,
}

/// A reference to the crew that a worker belongs to.
trait Member: AsRef<Crew> {
    /// What a local executor has besides.
    fn own(&self) -> Option<&Rc<Private>> {
        None
    }

    /// Whether its thread has queued tickets there.
    fn has_own_work(&self) -> bool {
        self.own().is_some_and(|own| !own.queue.borrow().is_empty())
    }
}

impl Member for &Arc<Crew> {}

/// See STATE in the head of this section.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Awake,
    Searching,
    Asleep,
}

impl<C: Member> Worker<C> {
    /// A new member of the crew; with queues of its own, or a mere `tick` without.
    fn new(crew: C, with_queue: bool) -> Worker<C> {
        let shared = crew.as_ref();
        let local = with_queue.then(|| Arc::new(Local::new()));
        if let Some(local) = &local {
            shared.locals.write().unwrap_or_else(PoisonError::into_inner).push(local.clone());
        }
        // Ordering: Relaxed. Only has to be unique.
        let name = shared.names.fetch_add(1, Ordering::Relaxed);
        let random = (name as u32).wrapping_mul(0x9E37_79B9) | 1;
        Worker { crew, local, mood: Mood::Awake, name, ticks: 0, slot_runs: 0, random }
    }

    /// Makes this worker the one whose queue the thread's wake-ups go to, until the guard is dropped.
    fn enter(&self) -> impl Drop + use<C> {
        let shared = self.local.clone().map(Queue::Shared);
        let queue = shared.or_else(|| self.crew.own().cloned().map(Queue::Own));
        let here = queue.map(|queue| Here {
            crew: self.crew.as_ref().id(),
            queue,
            in_task: Cell::new(false),
            collecting: Cell::new(false),
            batch_began: Cell::new(None),
            task_cost: Cell::new(None),
        });
        let mut outer = HERE.try_with(|cell| cell.replace(here)).ok();
        OnDrop(move || {
            if let Some(outer) = outer.take() {
                let _ = HERE.try_with(|cell| drop(cell.replace(outer)));
            }
        })
    }

    /// The next ticket: from the slot, the queue, the injector, or another worker.
    fn find(&mut self) -> Option<Runnable> {
        self.ticks = self.ticks.wrapping_add(1);
        if let Some(own) = self.crew.own() {
            let mut queue = own.queue.borrow_mut();
            if self.ticks % TASKS_PER_LOOK == 0 {
                let injector = &self.crew.as_ref().injector;
                let known = injector.len();
                queue.extend(injector.try_iter().take(known));
            }
            let runnable = queue.pop_front();
            if runnable.is_some() {
                return runnable;
            }
        }
        if let Some(local) = self.local.clone() {
            if self.ticks % TASKS_PER_LOOK == 0 {
                self.take_share(&local);
                self.even_out(&local);
            }
            if self.slot_runs < SLOT_RUNS {
                if let Ok(runnable) = local.slot.pop() {
                    self.slot_runs += 1;
                    return Some(self.found(runnable));
                }
            }
            self.slot_runs = 0;
            if let Ok(runnable) = local.queue.pop().or_else(|_| local.slot.pop()) {
                return Some(self.found(runnable));
            }
        }
        self.search()
    }

    /// Looks at what others have.
    fn search(&mut self) -> Option<Runnable> {
        let crew = self.crew.as_ref();
        if self.mood == Mood::Awake && crew.own_threads {
            // Ordering: SeqCst. Pairs with W2: from here on a push may rely on this worker.
            crew.counts.fetch_add(1, Ordering::SeqCst);
            self.mood = Mood::Searching;
        }
        let mut runnable = crew.injector.pop().ok();
        match (&runnable, self.local.clone()) {
            (Some(_), Some(local)) => self.take_share(&local),
            (None, local) => runnable = self.steal(local.as_deref()),
            _ => {}
        }
        runnable.map(|runnable| self.found(runnable))
    }

    /// Tickets that went from one queue to another could not be seen by others in between. Where no watcher
    /// helps, they must be told now that they can.
    fn moved(&self) {
        let crew = self.crew.as_ref();
        if !crew.own_threads && crew.has_work() {
            crew.notify();
        }
    }

    /// Takes a fair share of the injector into the worker's own queue, not more than half of it.
    fn take_share(&self, local: &Local) {
        let crew = self.crew.as_ref();
        let len = crew.injector.len();
        if len > 0 {
            let workers = crew.locals.read().map_or(1, |locals| locals.len().max(1));
            let share = (len / workers + 1).min(LOCAL_QUEUE / 2);
            if LOCAL_QUEUE - local.queue.len() < ROTATION {
                for runnable in local.queue.try_iter().take(ROTATION) {
                    let _ = crew.injector.push(runnable);
                }
            }
            let room = LOCAL_QUEUE - local.queue.len();
            for runnable in crew.injector.try_iter().take(share.min(room)) {
                if let Err(full) = local.queue.push(runnable) {
                    let _ = crew.injector.push(full.into_inner());
                }
            }
            self.moved();
        }
    }

    /// A random number (xorshift, Marsaglia 2003).
    fn random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random as usize
    }

    /// Takes so many of somebody's tickets.
    fn take_from(&self, victim: &Local, tickets: usize, own: &Local) {
        for runnable in victim.queue.try_iter().take(tickets) {
            if let Err(full) = own.queue.push(runnable) {
                let _ = self.crew.as_ref().injector.push(full.into_inner());
            }
        }
    }

    /// Of two workers that are never idle neither steals; so the tasks of the one with fewer would run more often for
    /// ever. It asks one of the others, at random, for half of the difference if that has more than four times as many.
    fn even_out(&mut self, own: &Local) {
        // With the task that was just run, which is in no queue.
        let few = own.queue.len() + 1;
        if few >= LOCAL_QUEUE / 4 {
            return;
        }
        let start = self.random();
        let locals = self.crew.as_ref().locals.read();
        let locals = locals.unwrap_or_else(PoisonError::into_inner);
        let Some(victim) = locals.get(start % locals.len().max(1)) else {
            return;
        };
        let many = victim.queue.len();
        if many > 4 * few {
            self.take_from(victim, (many - few) / 2, own);
            drop(locals);
            self.moved();
        }
    }

    /// Takes half of somebody's queue, beginning with a random somebody; the slots last, and not at all from our
    /// own threads, which the watcher looks after.
    fn steal(&mut self, own: Option<&Local>) -> Option<Runnable> {
        let start = self.random();
        let crew = self.crew.as_ref();
        let locals = crew.locals.read().unwrap_or_else(PoisonError::into_inner);
        let start = start % locals.len().max(1);
        let others = || locals[start..].iter().chain(&locals[..start]);
        for victim in others() {
            if own.is_some_and(|own| std::ptr::eq(own, &**victim)) {
                continue;
            }
            let Ok(first) = victim.queue.pop() else {
                continue;
            };
            if let Some(own) = own {
                self.take_from(victim, victim.queue.len() / 2, own);
            }
            tour!(3, "a worker stole from another");
            drop(locals);
            self.moved();
            return Some(first);
        }
        if !crew.own_threads {
            return others().find_map(|victim| victim.slot.pop().ok());
        }
        None
    }

    /// Work was found.
    fn found(&mut self, runnable: Runnable) -> Runnable {
        self.stop_searching();
        runnable
    }

    /// Nobody may rely on this worker any longer. If it was the last one to search, calls the next.
    fn stop_searching(&mut self) {
        if self.mood == Mood::Searching {
            self.mood = Mood::Awake;
            let crew = self.crew.as_ref();
            // Ordering: SeqCst. Pairs with W2: whoever pushed and saw us searching did so before this,
            // so that `has_work` sees the push (I3.3).
            if crew.counts.fetch_sub(1, Ordering::SeqCst) % SLEEPING == 1 && crew.has_work() {
                crew.notify();
            }
        }
    }

    /// Runs one task.
    fn run(&self, runnable: Runnable) {
        tour!(4, "a worker polls a task");
        if let Some(local) = &self.local {
            // Ordering: Relaxed. A statistic for the watcher.
            local.polls.store(self.ticks, Ordering::Relaxed);
        }
        refill_budget();
        runnable.run();
    }

    /// Announces that this worker sleeps. `false`: there is something to do after all.
    fn sleep(&mut self, waker: &Waker) -> bool {
        let crew = self.crew.as_ref();
        let sleeper = (self.name, waker.clone());
        {
            let mut sleepers = lock(&crew.sleepers);
            sleepers.push(sleeper);
            // S1. Ordering: SeqCst, with W2 of `notify`: either the push comes before S2, or its W2
            // comes after S1, or both; never neither.
            let searching = (self.mood == Mood::Searching) as usize;
            crew.counts.fetch_add(SLEEPING - searching, Ordering::SeqCst);
        }
        self.mood = Mood::Asleep;
        tour!(5, "a worker found nothing, announced sleep (S1), and searches once more (S2)");
        // S2.
        if crew.has_work() || self.crew.has_own_work() {
            self.wake_up();
            return false;
        }
        true
    }

    /// The end of a sleep: either somebody took us off the list, or we do it ourselves. Says whether
    /// somebody did, and thus expects us to search.
    fn wake_up(&mut self) -> bool {
        if self.mood != Mood::Asleep {
            return false;
        }
        let crew = self.crew.as_ref();
        let own_entry = {
            let mut sleepers = lock(&crew.sleepers);
            let place = sleepers.iter().position(|(name, _)| *name == self.name);
            place.map(|place| {
                // Ordering: SeqCst, as in `wake_one`.
                crew.counts.fetch_sub(SLEEPING, Ordering::SeqCst);
                sleepers.swap_remove(place)
            })
        };
        let notified = own_entry.is_none();
        shielded(|| drop(own_entry));
        // In a crew of our own threads `wake_one` has counted us as searching.
        self.mood = if notified && crew.own_threads { Mood::Searching } else { Mood::Awake };
        notified
    }

    /// One poll of `run`: the main future once, then tasks.
    fn poll_run<T>(
        &mut self,
        main: Pin<&mut impl Future<Output = T>>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        // Somebody relies on us, and the main future may block: pass it on first.
        if self.wake_up() && self.crew.as_ref().has_work() {
            self.crew.as_ref().notify();
        }
        let _here = self.enter();
        if let Poll::Ready(output) = main.poll(cx) {
            return Poll::Ready(output);
        }
        let _tasks = run_as(cx.waker());
        for _ in 0..3 * TASKS_PER_LOOK {
            match self.find() {
                Some(runnable) => {
                    self.in_task(true);
                    self.run(runnable);
                    self.in_task(false);
                }
                None if self.sleep(cx.waker()) => return Poll::Pending,
                None => {}
            }
        }
        // Enough for once: whoever polls us may have other futures.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One poll of `tick`: one task, if there is one.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wake_up();
        let _tasks = run_as(cx.waker());
        loop {
            match self.find() {
                Some(runnable) => {
                    self.run(runnable);
                    return Poll::Ready(());
                }
                None if self.sleep(cx.waker()) => return Poll::Pending,
                None => {}
            }
        }
    }

    /// Shares a batch after all, if it takes long. See [`Here::begin_batch`].
    fn look_at_batch(&self) {
        let late = with_here(Here::is_batch_late);
        let crew = self.crew.as_ref();
        if late.unwrap_or(false) && crew.has_work() {
            crew.notify();
        }
    }

    /// Notes whether a task runs, for [`Here::push`].
    fn in_task(&self, yes: bool) {
        with_here(|here| here.in_task.set(yes));
    }
}

impl<C: Member> Drop for Worker<C> {
    fn drop(&mut self) {
        let notified = self.wake_up();
        let crew = self.crew.as_ref();
        if self.mood == Mood::Searching {
            // Ordering: SeqCst, as in `stop_searching`.
            crew.counts.fetch_sub(1, Ordering::SeqCst);
        }
        let mut left_work = notified;
        if let Some(local) = self.local.take() {
            let mut locals = crew.locals.write().unwrap_or_else(PoisonError::into_inner);
            locals.retain(|other| !Arc::ptr_eq(other, &local));
            drop(locals);
            for runnable in local.slot.try_iter().chain(local.queue.try_iter()) {
                let _ = crew.injector.push(runnable);
                left_work = true;
            }
        }
        if (left_work && crew.has_work()) || self.crew.has_own_work() {
            crew.notify();
        }
    }
}

/// An executor of your own, driven by whoever calls [`run`](Executor::run).
///
/// Most programs need none: [`spawn`] has an executor, with threads. One's own is good for tasks that
/// must end with something else, for priorities, and for a number of threads of one's choice. When an
/// `Executor` is dropped, its tasks are dropped too; awaiting one of them panics then.
///
/// The futures are `'static`; tasks that borrow from their surroundings are what [`scope`] is for. A
/// task that holds its own executor (in an `Arc`) keeps it, and itself, alive: use a `Weak`.
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
        self.crew.get_or_init(|| Arc::new(Crew::new(false, |_| {})))
    }

    /// Spawns a task, which runs while somebody drives this executor.
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        self.crew().spawn(future)
    }

    /// Runs tasks until the future is ready, and returns its output.
    ///
    /// Any number of threads may run the same executor. The future is polled before the tasks, and
    /// after every 183 of them. Dropping what `run` returned, half way, loses nothing.
    pub async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut worker = Worker::new(self.crew(), true);
        poll_fn(|cx| worker.poll_run(future.as_mut(), cx)).await
    }

    /// Waits until there is a task to poll, and polls it once. Cancel-safe.
    pub async fn tick(&self) {
        let mut worker = Worker::new(self.crew(), false);
        poll_fn(|cx| worker.poll_tick(cx)).await
    }

    /// Polls one task, if one is ready. Says whether there was one.
    pub fn try_tick(&self) -> bool {
        let mut worker = Worker::new(self.crew(), false);
        let found = worker.find();
        found.map(|runnable| worker.run(runnable)).is_some()
    }

    /// Whether all tasks are finished.
    pub fn is_empty(&self) -> bool {
        self.crew.get().is_none_or(|crew| lock(&crew.active).len == 0)
    }
}

impl Drop for Executor<'_> {
    fn drop(&mut self) {
        if let Some(crew) = self.crew.get() {
            crew.dissolve(None);
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
        let crew = self.crew.get();
        let tasks = crew.map_or(0, |crew| lock(&crew.active).len);
        fmt_crew(f, "Executor", tasks, crew)
    }
}

/// The same for both kinds of executors.
fn fmt_crew(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    tasks: usize,
    crew: Option<&Arc<Crew>>,
) -> fmt::Result {
    let queued = crew.map_or(0, |crew| crew.injector.len());
    f.debug_struct(name).field("tasks", &tasks).field("injected", &queued).finish_non_exhaustive()
}

// ============================================================================================
// §4  Local executor: the same, for futures that cannot move
// ============================================================================================
//
// uses §1-§3 · used by §6 · locks: none of its own
//
// PROBLEM   A future that is not `Send` must be polled and dropped on the thread that made it.
// IDEA      A crew of §3 whose workers have one plain queue together, for what its own thread queues while it runs
//           tasks. Tickets are `Send`, and a wake-up from elsewhere puts one into the injector; async-task checks
//           the thread at each poll and drop.
// I4.1      Tickets are taken out of the queue on the owner's thread only: `LocalExecutor` is not `Send`,
//           and neither what it runs nor its destructor can get away from there.
// NEVER     drops a ticket elsewhere: that would drop the future.

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
    crew: std::cell::OnceCell<LocalCrew>,
    marker: PhantomData<&'a ()>,
}

/// A crew with a queue that its thread alone can reach.
#[derive(Clone)]
struct LocalCrew {
    crew: Arc<Crew>,
    own: Rc<Private>,
}

impl AsRef<Crew> for LocalCrew {
    fn as_ref(&self) -> &Crew {
        &self.crew
    }
}

impl Member for LocalCrew {
    fn own(&self) -> Option<&Rc<Private>> {
        Some(&self.own)
    }
}

impl LocalCrew {
    fn new() -> LocalCrew {
        LocalCrew { crew: Arc::new(Crew::new(false, |_| {})), own: Rc::default() }
    }

    /// The same as [`Crew::spawn`], for a future that stays on this thread.
    fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // As in `new_task`.
        if mem::size_of::<F>() >= LARGE_FUTURE {
            return self.box_task(Box::pin(future));
        }
        self.box_task(future)
    }

    fn box_task<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let schedule = {
            let crew = self.crew.clone();
            move |runnable, info| crew.schedule(runnable, info)
        };
        let build = |key| {
            let own = self.own.clone();
            let after = move || {
                let entry = own.active.borrow_mut().remove(key);
                drop(entry);
            };
            let future = Guarded { future: Some(future), after };
            let builder = Builder::new().propagate_panic(true);
            builder.spawn_local(move |()| future, WithInfo(schedule))
        };
        let (runnable, task) = self.own.active.borrow_mut().enlist(build);
        self.own.queue.borrow_mut().push_back(runnable);
        self.crew.notify();
        task
    }
}

impl Worker<LocalCrew> {
    /// Whether there is a ticket that `find` would find.
    fn has_tickets(&self) -> bool {
        self.crew.has_own_work() || !self.crew.crew.injector.is_empty()
    }
}

impl<'a> LocalExecutor<'a> {
    /// An executor without tasks.
    pub const fn new() -> LocalExecutor<'a> {
        LocalExecutor { crew: std::cell::OnceCell::new(), marker: PhantomData }
    }

    fn crew(&self) -> &LocalCrew {
        self.crew.get_or_init(LocalCrew::new)
    }

    /// Spawns a task, which runs while this executor is driven.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.crew().spawn(future)
    }

    /// Runs tasks until the future is ready, and returns its output. See [`Executor::run`].
    pub async fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut worker = Worker::new(self.crew().clone(), false);
        poll_fn(|cx| worker.poll_run(future.as_mut(), cx)).await
    }

    /// Waits until there is a task to poll, and polls it once. Cancel-safe.
    pub async fn tick(&self) {
        let mut worker = Worker::new(self.crew().clone(), false);
        poll_fn(|cx| worker.poll_tick(cx)).await
    }

    /// Polls one task, if one is ready. Says whether there was one.
    pub fn try_tick(&self) -> bool {
        let mut worker = Worker::new(self.crew().clone(), false);
        let found = worker.find();
        found.map(|runnable| worker.run(runnable)).is_some()
    }

    /// Whether all tasks are finished.
    pub fn is_empty(&self) -> bool {
        self.crew.get().is_none_or(|local| local.own.active.borrow().len == 0)
    }
}

impl Drop for LocalExecutor<'_> {
    fn drop(&mut self) {
        if let Some(local) = self.crew.get() {
            local.crew.dissolve(Some(&local.own));
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
        let local = self.crew.get();
        let tasks = local.map_or(0, |local| local.own.active.borrow().len);
        fmt_crew(f, "LocalExecutor", tasks, local.map(|local| &local.crew))
    }
}
// ============================================================================================
// §5  Reactor: turns kernel news and deadlines into wake-ups
// ============================================================================================
//
// uses §1 · used by §6 §8 §9 §10 · locks: waiters < sources; timers; asked (held by the seat)
//
// PROBLEM   A task that got WouldBlock must be polled again when, and only when, the kernel has news; and
//           a task that waits for a deadline, when the clock has passed it.
// IDEA      A source for each handle: who waits in which direction. A wheel of deadlines. One thread at a
//           time has the seat: it asks the kernel, until the earliest deadline at most, and wakes.
// STATE     of a direction:  ready --WouldBlock--> blocked --event--> ready. A new handle counts as ready,
//           and is registered with the kernel only when an operation first says WouldBlock.
// I5.1      Whoever holds the seat is the only thread inside the poller.
// I5.2      Readiness is taken back only by somebody who saw WouldBlock after the last event: the word of a
//           source counts its events, and taking back is a compare-exchange on that count. So an event that
//           comes between a failing read and its consequences is never lost. The count is the source's
//           own; a count shared by all sources makes fresh news look stale (async-io issue 78).
// I5.3      A waiter is noted under the lock first, then looks whether an event came; the reactor notes
//           the event first, then takes the waiters under the lock. One of them sees the other.
// I5.4      `until` says when the thread in the poller means to wake up. It changes under the timers' lock
//           only, so that a new timer either is seen by that thread or sees that it must interrupt it.
// I5.5      In edge mode the kernel tells each change once, for both directions, and reading goes on until
//           WouldBlock, or on TCP until less comes than was asked for, if the end is not near
//           (`fell_short`). Else (oneshot) an event disarms the handle, and it is armed again with the
//           union of what is still waited for.
// NEVER     mentions the executor · runs user code with a lock held · blocks except in `turn`.
// REJECTED  One waker per handle (two readers fight for it, async-io issue 3); level mode (spins on unread data).

/// All that is `unsafe` in this crate: the kernel's poller must not keep a handle that was closed.
///
/// It holds because an [`Async`] owns its handle next to the [`Source`], lends it out as `&T` only, and
/// its `Drop` deletes the handle from the poller before the handle is closed (`tests/io.rs`,
/// `the_same_number_can_be_registered_again_after_its_handle_was_closed`). A `T` that closes its descriptor through
/// `&T` breaks the contract of [`AsFd`](std::os::fd::AsFd); even then the worst is a missing event.
#[allow(unsafe_code)]
mod registration {
    use super::io;
    #[cfg(unix)]
    use std::os::fd::{AsFd as AsHandle, BorrowedFd as Borrowed};
    #[cfg(windows)]
    use std::os::windows::io::{AsSocket as AsHandle, BorrowedSocket as Borrowed};

    #[cfg(unix)]
    pub(super) type Raw = std::os::fd::RawFd;
    #[cfg(windows)]
    pub(super) type Raw = std::os::windows::io::RawSocket;

    /// The number of a handle, valid as long as whoever owns it says.
    pub(super) fn raw(io: &impl AsHandle) -> Raw {
        #[cfg(unix)]
        return std::os::fd::AsRawFd::as_raw_fd(&io.as_fd());
        #[cfg(windows)]
        return std::os::windows::io::AsRawSocket::as_raw_socket(&io.as_socket());
    }

    pub(super) fn borrow<'a>(raw: Raw) -> Borrowed<'a> {
        // SAFETY: `raw` is the number of a handle that the `Async` around the source keeps open until
        // after `delete`, and nobody keeps the borrow for longer than a system call.
        unsafe { Borrowed::borrow_raw(raw) }
    }

    /// Adds a handle to the poller of the `polling` crate.
    #[cfg(not(all(
        any(target_os = "linux", target_os = "android"),
        not(polling_test_poll_backend)
    )))]
    pub(super) fn add(
        poller: &polling::Poller,
        raw: Raw,
        interest: polling::Event,
        mode: polling::PollMode,
    ) -> io::Result<()> {
        // SAFETY: the handle is deleted from the poller before it is closed, see above.
        unsafe { poller.add_with_mode(raw, interest, mode) }
    }

    /// Asks the system whether an operation would not block right now: poll(2) with a timeout of zero.
    #[cfg(unix)]
    pub(super) fn is_ready(raw: Raw, write: bool, _word: usize) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let flags = if write { PollFlags::OUT } else { PollFlags::IN | PollFlags::PRI };
        let handle = borrow(raw);
        let ready =
            poll(&mut [PollFd::from_borrowed_fd(handle, flags)], Some(&Timespec::default()))?;
        Ok(ready > 0)
    }

    /// Where the system cannot be asked: whether there was an event that nobody has used up yet.
    #[cfg(windows)]
    pub(super) fn is_ready(_raw: Raw, write: bool, word: usize) -> io::Result<bool> {
        Ok(word >= super::News::EVENT && word >> write as usize & 1 == 1)
    }

    /// Whether it is a TCP socket, as far as the system can tell.
    pub(super) fn is_tcp(raw: Raw) -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use rustix::net::{ipproto, sockopt::socket_protocol};
            socket_protocol(borrow(raw)) == Ok(Some(ipproto::TCP))
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            let _ = raw;
            false
        }
    }

    /// Shuts down the writing half of a socket.
    pub(super) fn shut_down_writing(raw: Raw) {
        #[cfg(unix)]
        let _ = rustix::net::shutdown(borrow(raw), rustix::net::Shutdown::Write);
        #[cfg(windows)]
        if let Ok(socket) = borrow(raw).try_clone_to_owned() {
            let _ = super::TcpStream::from(socket).shutdown(std::net::Shutdown::Write);
        }
    }
}

/// Linux's own poller, epoll(7), in edge mode. `polling` would do, and does for the tests of the other version
/// below, but makes five system calls for each wait with a deadline and three for one without. Here it is
/// one, and another one when a deadline comes that is earlier than all before; and `polling` does not ask for the
/// end of a stream (`RDHUP`), without which each message costs a read that fails. Bench: `tcp_echo_64`, `http_64`.
#[cfg(all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend)))]
mod kernel {
    use super::registration::{Raw, borrow};
    use super::{Duration, Instant, News, OwnedFd, io};
    use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    };
    use std::mem::MaybeUninit;

    pub(super) struct Kernel {
        epoll: OwnedFd,
        /// Each write to it is an edge, so that nobody has to read it (eventfd(2)).
        bell: OwnedFd,
        /// epoll_wait(2) counts milliseconds, this one nanoseconds. Setting it is an edge to come.
        clock: OwnedFd,
    }

    /// The kernel's answer, and what is known of its clock.
    pub(super) struct Asked {
        news: Vec<News>,
        /// The moment the clock was last set to.
        alarm: Option<Instant>,
    }

    impl Asked {
        pub(super) fn new() -> Asked {
            Asked { news: Vec::new(), alarm: None }
        }

        pub(super) fn news(&self) -> impl Iterator<Item = News> + '_ {
            self.news.iter().copied()
        }
    }

    fn translate(event: &epoll::Event) -> News {
        use epoll::EventFlags as Flags;
        let end = Flags::HUP | Flags::ERR;
        // Urgent data cuts reads short, too (tcp(7)).
        let wary = end | Flags::RDHUP | Flags::PRI;
        let flags = event.flags;
        News::new(
            event.data.u64() as usize,
            flags.intersects(wary | Flags::IN),
            flags.intersects(end | Flags::OUT),
            flags.intersects(wary),
        )
    }

    impl Kernel {
        pub(super) fn new() -> io::Result<Kernel> {
            let kernel = Kernel {
                epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
                bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
                clock: timerfd_create(
                    TimerfdClockId::Monotonic,
                    TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
                )?,
            };
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            for fd in [&kernel.bell, &kernel.clock] {
                epoll::add(&kernel.epoll, fd, epoll::EventData::new_u64(u64::MAX), flags)?;
            }
            Ok(kernel)
        }

        /// Whether the kernel tells each change once, to whoever is registered.
        pub(super) fn is_edge(&self) -> bool {
            true
        }

        /// Registers a handle, for both directions whatever is asked.
        pub(super) fn add(&self, raw: Raw, key: usize, _sides: [bool; 2]) -> io::Result<()> {
            use epoll::EventFlags as Flags;
            let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::PRI | Flags::ET;
            Ok(epoll::add(&self.epoll, borrow(raw), epoll::EventData::new_u64(key as u64), flags)?)
        }

        /// In edge mode nothing is ever armed again.
        pub(super) fn modify(&self, _raw: Raw, _key: usize, _sides: [bool; 2]) -> io::Result<()> {
            Ok(())
        }

        pub(super) fn delete(&self, raw: Raw) -> io::Result<()> {
            Ok(epoll::delete(&self.epoll, borrow(raw))?)
        }

        /// Asks for news, and if it may block, waits for them until the deadline, an interrupt or a signal.
        pub(super) fn wait(
            &self,
            asked: &mut Asked,
            block: bool,
            deadline: Option<Instant>,
        ) -> io::Result<()> {
            asked.news.clear();
            let mut block = block;
            if let (true, Some(deadline)) = (block, deadline) {
                let now = Instant::now();
                block = deadline > now;
                // An alarm that comes too early is cheaper, since it comes once, than setting the clock each time.
                let is_set = asked.alarm.is_some_and(|at| now < at && at <= deadline);
                if block && !is_set {
                    // Not longer than a year, for the sake of kernels' arithmetic.
                    let time = (deadline - now).min(Duration::from_secs(365 * 24 * 60 * 60));
                    let value = Itimerspec {
                        it_interval: Timespec::default(),
                        it_value: Timespec {
                            tv_sec: time.as_secs() as _,
                            tv_nsec: time.subsec_nanos() as _,
                        },
                    };
                    timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &value)?;
                    asked.alarm = Some(now + time);
                }
            }
            let timeout = (!block).then(Timespec::default);
            // Few enough that their data are in the cache when the last of them is served (bench: `http_wrk_1000`).
            let mut events = [const { MaybeUninit::uninit() }; 128];
            match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok((events, _)) => asked.news.extend(events.iter().map(translate)),
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
            Ok(())
        }

        /// Ends the wait under way, or the next one.
        pub(super) fn interrupt(&self) {
            // It can fail only if the bell was rung 2^64 times, or somebody closed it.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// The poller of any other system, by way of `polling`.
#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(polling_test_poll_backend))))]
mod kernel {
    use super::registration::{self, Raw};
    use super::{Duration, Instant, News, io};
    use polling::{Event, Events, PollMode, Poller};

    pub(super) struct Kernel(Poller);

    /// The kernel's answer.
    pub(super) struct Asked(Events);

    impl Asked {
        pub(super) fn new() -> Asked {
            Asked(Events::new())
        }

        pub(super) fn news(&self) -> impl Iterator<Item = News> + '_ {
            // `polling` does not tell whether a stream has ended.
            let news = |event: Event| News::new(event.key, event.readable, event.writable, true);
            self.0.iter().map(news)
        }
    }

    impl Kernel {
        pub(super) fn new() -> io::Result<Kernel> {
            Poller::new().map(Kernel)
        }

        pub(super) fn is_edge(&self) -> bool {
            self.0.supports_edge()
        }

        pub(super) fn add(&self, raw: Raw, key: usize, sides: [bool; 2]) -> io::Result<()> {
            let mode = if self.is_edge() { PollMode::Edge } else { PollMode::Oneshot };
            registration::add(&self.0, raw, Event::new(key, sides[0], sides[1]), mode)
        }

        pub(super) fn modify(&self, raw: Raw, key: usize, sides: [bool; 2]) -> io::Result<()> {
            let event = Event::new(key, sides[0], sides[1]);
            self.0.modify(registration::borrow(raw), event)
        }

        pub(super) fn delete(&self, raw: Raw) -> io::Result<()> {
            self.0.delete(registration::borrow(raw))
        }

        pub(super) fn wait(
            &self,
            asked: &mut Asked,
            block: bool,
            deadline: Option<Instant>,
        ) -> io::Result<()> {
            let Asked(events) = asked;
            events.clear();
            let answer = match deadline {
                _ if !block => self.0.wait(events, Some(Duration::ZERO)),
                Some(deadline) => self.0.wait_deadline(events, deadline),
                None => self.0.wait(events, None),
            };
            match answer {
                // The poll(2) version says so when it was interrupted by a registration. Once more, or it
                // goes on taking itself for notified.
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.0.wait(events, Some(Duration::ZERO)).map(drop)
                }
                answer => answer.map(drop),
            }
        }

        pub(super) fn interrupt(&self) {
            // An error means that the poller is broken, and then its thread only naps.
            let _ = self.0.notify();
        }
    }
}

use kernel::{Asked, Kernel};

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
    /// A short read does not mean that there is no more to read: the end may have come with the last bytes, or
    /// something else that makes no edge of its own.
    const WARY: usize = 4;
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
    /// Who may be inside the poller: see the constants of [`Seat`].
    seat: AtomicU8,
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
    seat: AtomicU8::new(Seat::FREE),
    asked: Mutex::new(None),
    sources: Mutex::new(Slab::new()),
    timers: Mutex::new(Timers::new()),
    registered: AtomicUsize::new(0),
    has_timers: AtomicBool::new(false),
    turns: AtomicUsize::new(0),
    broken: AtomicBool::new(false),
};

/// The right to be inside the poller. Dropping it gives it back.
struct Seat;

impl Seat {
    const FREE: u8 = 0;
    const TAKEN: u8 = 1;
    /// Taken by the watcher, who leaves it to others when it is told to.
    const WATCHED: u8 = 2;
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Ordering: SeqCst. Pairs with the exchange in `sit`, and comes before whoever leaves looks
        // for somebody to take over (`Watcher::poke`, §6).
        REACTOR.seat.store(Seat::FREE, Ordering::SeqCst);
    }
}

impl Reactor {
    fn poller(&self) -> io::Result<&Kernel> {
        self.poller.get_or_try_init(|| {
            // Notes which process the poller belongs to.
            check_for_fork();
            Kernel::new()
        })
    }

    /// Takes the seat, if it is free.
    fn sit(&self, how: u8) -> Option<Seat> {
        // Made before anybody can be thought to be inside of it, or `interrupt` would find nothing to
        // interrupt. Without one (no descriptors), `turn` only naps.
        let _ = self.poller();
        // Ordering: SeqCst. Pairs with the store in `Seat::drop`.
        let took = self.seat.compare_exchange(Seat::FREE, how, Ordering::SeqCst, Ordering::SeqCst);
        // Lazily: a `Seat` that is made and dropped would free the seat of another.
        took.is_ok().then(|| Seat)
    }

    /// Who has the seat.
    fn seated(&self) -> u8 {
        // Ordering: SeqCst. Pairs with the store in `Seat::drop` and the exchange in `sit`.
        self.seat.load(Ordering::SeqCst)
    }

    /// Whether anything at all is waited for.
    fn has_interest(&self) -> bool {
        // Ordering: SeqCst. Pairs with the addition in `Source::arm` and the store in `Timers::insert`: a
        // thread that goes to sleep outside of the poller must not overlook what it has registered itself, or
        // what the watcher was told of.
        self.registered.load(Ordering::SeqCst) > 0 || self.has_timers.load(Ordering::SeqCst)
    }

    /// Interrupts the thread in the poller.
    fn interrupt(&self) {
        if let Some(poller) = self.poller.get() {
            poller.interrupt();
        }
    }

    /// Asks the kernel once, until the earliest deadline if it may block, and collects who is to be
    /// woken. Only with the seat.
    fn turn(&self, _seat: &Seat, block: bool, woken: &mut Vec<Waker>) {
        // Ordering: Relaxed. A statistic for the watcher.
        self.turns.fetch_add(1, Ordering::Relaxed);
        let deadline = if block { lock(&self.timers).begin_sleep() } else { None };
        let mut asked = lock(&self.asked);
        let asked = asked.get_or_insert_with(Asked::new);
        let answer = self.poller().and_then(|poller| poller.wait(asked, block, deadline));
        // Ordering: Relaxed. A flag that the waiters find sooner or later. Without a poller there may be
        // one the next time.
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
            let sources: Vec<_> = lock(&self.sources).values().cloned().collect();
            for source in sources {
                source.happen(News::READ | News::WRITE, woken);
            }
        }
        lock(&self.timers).end_sleep(woken);
        // A few at a time, so that neither lock is held for long.
        let mut batch = Vec::with_capacity(64);
        let mut all_news = asked.news().peekable();
        while all_news.peek().is_some() {
            {
                let sources = lock(&self.sources);
                // News of a source that is gone find nothing, or a successor, which then tries in vain.
                let known = all_news.by_ref().take(64);
                batch.extend(
                    known.filter_map(|news| Some((sources.get(news.key)?.clone(), news.bits))),
                );
            }
            for (source, bits) in batch.drain(..) {
                tour!(7, "the kernel has news of handle {}", source.raw);
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

    /// Gives a timer another waker, if that would wake another. `false` if it has fired.
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
        drop(old);
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

    /// Forgets a timer, at once.
    fn clear_timer(&self, key: TimerKey) {
        let waker = lock(&self.timers).remove(key);
        shielded(|| drop(waker));
    }
}

/// The deadlines that are waited for, in a hierarchical timing wheel: Varghese and Lauck, "Hashed and hierarchical
/// timing wheels", 1987, scheme 7. Adding and removing are a few steps however many there are (bench:
/// `timer_pending_1m`; a BTreeMap took five times as long).
///
/// Time is counted in nanoseconds since the first use. A tick is 2^20 of them, a millisecond. On level 0 a
/// slot is a tick, on the next one 64 ticks, and so on; a timer is on the lowest level on which its slot is not the one
/// that the wheel is in. So all of a level's timers come before those of the next level, and a slot's timers before
/// those of its next slot. When the wheel comes to a slot of an upper level, its timers go further down.
///
/// The exact deadlines are kept, so that nothing fires early or with the next tick: a slot knows (at least) its
/// earliest one, and that is how long the thread in the poller sleeps.
struct Timers {
    entries: Vec<TimerEntry>,
    /// The first of the free entries, which are linked by `next`.
    free: u32,
    len: usize,
    levels: [Level; Timers::LEVELS],
    /// The tick that the wheel has come to.
    tick: u64,
    next_id: u64,
    /// How long the thread in the poller means to sleep (I5.4).
    until: Until,
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
    /// For the timer's own use: its deadline was ahead when it was set, and it was not polled since.
    is_ahead: bool,
    id: u64,
}

enum Until {
    /// Nobody sleeps in the poller.
    Awake,
    /// Without a deadline, for ever: `u64::MAX`.
    Asleep(u64),
}

impl Timers {
    /// The last one holds 64 times 64^5 ticks, which is 2.3 years. What is further off goes around.
    const LEVELS: usize = 6;
    const TICK_BITS: u32 = 20;
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
            until: Until::Awake,
        }
    }

    /// When time began.
    fn epoch() -> Instant {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        *EPOCH.get_or_init(Instant::now)
    }

    /// A moment as a number. Five hundred years from now are as good as never.
    fn count(at: Instant) -> u64 {
        let time = at.saturating_duration_since(Timers::epoch());
        let nanos = time.as_secs().saturating_mul(1_000_000_000);
        nanos.saturating_add(u64::from(time.subsec_nanos()))
    }

    /// Whether the thread in the poller sleeps too long for a new deadline. It is told once.
    fn is_late(&mut self, deadline: u64) -> bool {
        let late = matches!(self.until, Until::Asleep(until) if deadline < until);
        if late {
            self.until = Until::Asleep(deadline);
        }
        late
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
        (key, self.is_late(deadline))
    }

    /// The waker of a timer, unless it is gone.
    fn waker(&mut self, key: TimerKey) -> Option<&mut Waker> {
        let entry = self.entries.get_mut(key.place as usize)?;
        entry.waker.as_mut().filter(|_| entry.id == key.id)
    }

    /// Changes the deadline, unless the timer is gone; says whether the thread in the poller sleeps too long.
    fn change(&mut self, key: TimerKey, deadline: u64) -> Option<bool> {
        self.waker(key)?;
        self.unlink(key.place);
        self.entries[key.place as usize].deadline = deadline;
        self.link(key.place);
        Some(self.is_late(deadline))
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
            // A burst's memory goes back. Numbers are not used again, so that old keys find nothing.
            if self.entries.len() > 1024 {
                self.entries = Vec::new();
                self.free = Timers::NONE;
            }
        }
        waker
    }

    /// Puts a timer into the slot where it belongs.
    fn link(&mut self, place: u32) {
        let deadline = self.entries[place as usize].deadline;
        // What is overdue belongs to where the wheel is; what is too far off to where it comes last.
        let all = 6 * Timers::LEVELS as u32;
        let tick = (deadline >> Timers::TICK_BITS).clamp(self.tick, self.tick | ((1 << all) - 1));
        // The highest digit, of six bits each, in which the tick differs from the wheel's.
        let level = ((tick ^ self.tick) | 1).ilog2() / 6;
        let slot = tick >> (6 * level) & 63;
        let Level { occupied, slots } = &mut self.levels[level as usize];
        *occupied |= 1 << slot;
        let Slot { first, earliest } = &mut slots[slot as usize];
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
        self.until = Until::Asleep(earliest.unwrap_or(u64::MAX));
        Timers::epoch().checked_add(Duration::from_nanos(earliest?))
    }

    /// It is back: takes the timers that are due, in the order of their deadlines.
    fn end_sleep(&mut self, woken: &mut Vec<Waker>) {
        self.until = Until::Awake;
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
                let deadline = entry.deadline;
                if deadline <= now {
                    due.extend(self.release(place).map(|waker| (deadline, waker)));
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
        // In a slot the last one to come was the first.
        due.reverse();
        due.sort_by_key(|(deadline, _)| *deadline);
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
    raw: registration::Raw,
    /// A short read or write means that the kernel has no more bytes, or room, for now (epoll(7)). Not so for
    /// Unix sockets, where a read also ends at a message that carries descriptors.
    is_tcp: bool,
    /// Atomic: the bits of [`News`], above them the number of events (I5.2).
    word: AtomicUsize,
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
    /// The future that waits and takes itself off when it is dropped; 0 for a call of `poll_read` and
    /// its like, which has nothing that could be dropped.
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

    /// Notes a waiter, in its old place if it has one. What is returned must be dropped without the lock.
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
            // Futures that were dropped may have left wakers behind. Who is still there comes back; the
            // limit grows so that this ends when all are, and not beyond what one event takes back.
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
    fn new(raw: registration::Raw, is_tcp: bool) -> Arc<Source> {
        Arc::new(Source {
            raw,
            is_tcp,
            word: AtomicUsize::new(News::READ | News::WRITE),
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
        // Ordering: Acquire. Pairs with the update in `happen`; what matters besides is in the kernel.
        self.word.load(Ordering::Acquire)
    }

    /// An operation said WouldBlock, and `seen` is the word from before it: takes readiness back, unless
    /// there was an event since (I5.2).
    fn blocked(&self, direction: Direction, seen: usize) {
        // Ordering: AcqRel, with the update in `happen`. It fails if that came first.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            (word / News::EVENT == seen / News::EVENT).then_some(word & !direction.bit())
        });
    }

    /// An operation moved some bytes, but fewer than it could have: on TCP that is as good as WouldBlock,
    /// which then need not be asked for; unless the end may be near, see [`News::WARY`] (`tests/tcp.rs`,
    /// `the_last_bytes_and_the_end_that_arrive_together_are_both_read`).
    fn fell_short(&self, direction: Direction, seen: usize) {
        if self.is_tcp && seen & News::WARY == 0 {
            self.blocked(direction, seen);
        }
    }

    /// Waits until an event makes the direction ready: `Ready` if it is, an error if the kernel cannot
    /// tell. A token makes the waiter one that [`Source::forget`] can take off.
    fn wait(
        self: &Arc<Self>,
        direction: Direction,
        token: Option<&mut Token>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let waker = cx.waker().clone();
        let mut woken = Vec::new();
        let (old, result);
        {
            let mut waiters = lock(&self.waiters);
            // I5.3: the waiter is noted first, or rather under the same lock.
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
            result = self.arm(&mut waiters);
        }
        tour!(6, "a task left its waker with a source");
        drop(old);
        if result.is_err() {
            self.happen(News::READ | News::WRITE, &mut woken);
        }
        wake_all(woken);
        match result {
            Ok(()) => Poll::Pending,
            Err(err) => Poll::Ready(Err(err)),
        }
    }

    /// Takes a waiter off, if it is still there.
    fn forget(&self, direction: Direction, token: Token) {
        let waiter = lock(&self.waiters).sides[direction as usize].remove(token);
        drop(waiter);
    }

    /// Registers the handle with the kernel, or arms it again (I5.5).
    fn arm(self: &Arc<Self>, waiters: &mut Waiters) -> io::Result<()> {
        let poller = REACTOR.poller()?;
        // Ordering: Relaxed, see `turn`.
        if REACTOR.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("the kernel's poller was closed or cannot be used"));
        }
        let sides = [0, 1].map(|side| poller.is_edge() || !waiters.sides[side].is_empty());
        match waiters.key {
            Some(_) if poller.is_edge() => Ok(()),
            Some(key) => poller.modify(self.raw, key, sides),
            None => {
                let key = lock(&REACTOR.sources).insert(self.clone());
                if let Err(err) = poller.add(self.raw, key, sides) {
                    let source = lock(&REACTOR.sources).remove(key);
                    drop(source);
                    return Err(err);
                }
                waiters.key = Some(key);
                // Ordering: SeqCst. Pairs with the load in `has_interest`.
                REACTOR.registered.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    /// The kernel has news. Collects who is to be woken.
    fn happen(&self, bits: usize, woken: &mut Vec<Waker>) {
        // Ordering: AcqRel. Pairs with `look` and `blocked`; before the lock, see I5.3.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            Some(word.wrapping_add(News::EVENT) | bits)
        });
        let mut waiters = lock(&self.waiters);
        for (side, bit) in waiters.sides.iter_mut().zip([News::READ, News::WRITE]) {
            if bits & bit != 0 {
                side.take(woken);
            }
        }
        let (Some(key), Some(poller)) = (waiters.key, REACTOR.poller.get()) else {
            return;
        };
        if poller.is_edge() {
            return;
        }
        // In oneshot mode the event has disarmed the handle for the other direction as well.
        let sides = [0, 1].map(|side| !waiters.sides[side].is_empty());
        if sides != [false, false] && poller.modify(self.raw, key, sides).is_err() {
            // They find the error when they try to wait again.
            waiters.sides.iter_mut().for_each(|side| side.take(woken));
        }
    }

    /// Registers the handle before anybody waits, to see whether the kernel can.
    fn register(self: &Arc<Self>) -> io::Result<()> {
        self.arm(&mut lock(&self.waiters))
    }

    /// Takes the handle out of the kernel's poller. To be called before the handle is closed.
    fn deregister(&self) {
        // The wakers go with it: where the last reference is dropped is no place for somebody else's code.
        let (key, sides) = {
            let mut waiters = lock(&self.waiters);
            let none = [const { Side::new() }; 2];
            (waiters.key.take(), mem::replace(&mut waiters.sides, none))
        };
        shielded(|| drop(sides));
        if let Some(key) = key {
            if let (Ok(poller), false) = (REACTOR.poller(), is_forked()) {
                // It can fail only if somebody closed the descriptor, and then the kernel forgot it too.
                let _ = poller.delete(self.raw);
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
// uses §1-§5 · used by §8-§12 · locks: parked (leaf), staff (leaf)
//
// PROBLEM   Threads must run tasks, ask the kernel, and sleep, and whichever of these a thread does, the
//           other two must not suffer. No thread may be needed that is not there.
// IDEA      Whoever is idle and finds the seat free sits down in the poller; who finds it taken parks.
//           Workers are preferred, since most news is for tasks. A thread that leaves the seat with work
//           in hand comes back soon; a watcher, which sleeps as long as all is well, looks every few
//           milliseconds whether it did (Go's `sysmon` is the model), and takes over what is stuck.
// STATE     of a thread's signal:  EMPTY --sleep--> PARKED or POLLING --signal--> NOTIFIED --> EMPTY
// I6.1      While anything is waited for, somebody is in the poller, or a thread that will sit down there is
//           awake and was seen to ask the kernel within the last two ticks, or the watcher is awake.
// I6.2      The watcher sleeps without a timeout only while somebody has the seat or nothing is waited
//           for, and no ticket is queued. Whoever ends that looks whether it must be woken (`poke`).
// I6.3      `block_on` polls its own future and its thread's local tasks, nothing else, so that a task which
//           blocks holds up no main future. (The one exception: no thread at all could be started.)
// I6.4      There are as many workers as processors that are not blocked as far as we know; the watcher
//           adds one when no worker gets on although tickets are queued. Who is too many and idle, ends.
// NEVER     starts a thread for a program that only calls `block_on` from one thread.
// REJECTED  A thread for the reactor (two context switches for each message); handing the seat over before
//           each task (a futex call for each event); tasks on `block_on`'s thread (async-std issue 644).

/// A word that a thread sleeps on: futex(2) where there is one, half the price of a mutex with a condition variable
/// (bench: `unblock_1`, `block_on_wake`).
struct Bed {
    word: AtomicU32,
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    guard: (Mutex<()>, Condvar),
}

impl Bed {
    const fn new(word: u32) -> Bed {
        Bed {
            word: AtomicU32::new(word),
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            guard: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Sleeps while the word is `value`, until woken or for so long at most; or for no reason at all.
    fn sleep(&self, value: u32, timeout: Option<Duration>) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use rustix::thread::futex::{Flags, wait};
            let timeout = timeout.and_then(|time| time.try_into().ok());
            // It fails if the word was changed in the meantime, or on a signal.
            let _ = wait(&self.word, Flags::PRIVATE, value, timeout.as_ref());
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            let guard = lock(&self.guard.0);
            // Ordering: SeqCst. `wake` takes the lock after the word was changed.
            if self.word.load(Ordering::SeqCst) == value {
                let timeout = timeout.unwrap_or(Duration::from_secs(3600));
                drop(self.guard.1.wait_timeout(guard, timeout));
            }
        }
    }

    /// Wakes the thread that sleeps on the word, which has just been changed.
    fn wake(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use rustix::thread::futex::{Flags, wake};
            let _ = wake(&self.word, Flags::PRIVATE, 1);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            drop(lock(&self.guard.0));
            self.guard.1.notify_one();
        }
    }
}

/// How a thread is woken, wherever it sleeps.
struct Signal {
    state: Bed,
    /// The main future must be polled.
    woken: AtomicBool,
}

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = 2;
const POLLING: u32 = 3;

impl Signal {
    /// Makes the thread look around, now if it sleeps, else before it sleeps the next time.
    fn notify(&self) {
        // Ordering: AcqRel. Pairs with the exchanges in `Sleeper::park` and `Sleeper::poll`: what the
        // caller wrote before is seen by the thread that finds NOTIFIED.
        match self.state.word.swap(NOTIFIED, Ordering::AcqRel) {
            PARKED => self.state.wake(),
            POLLING => REACTOR.interrupt(),
            _ => {}
        }
    }
}

/// What a thread needs in order to sleep. Made once for each thread and kept for the next `block_on`.
struct Sleeper {
    signal: Arc<Signal>,
    /// Wakes the main future.
    main: Waker,
    /// Wakes the thread, for its local tasks or because the crew calls.
    thread: Waker,
    /// Goes on from one `block_on` to the next, which may all be short.
    pace: Pace,
}

thread_local! {
    static SLEEPER: RefCell<Sleeper> = RefCell::new(Sleeper::new());
    /// What a worker or pool thread does when `block_on` blocks its task or job (`true`), and afterwards.
    static WHEN_BLOCKED: Cell<Option<fn(bool)>> = const { Cell::new(None) };
    /// The tasks of `spawn_local`.
    static LOCAL: LocalExecutor<'static> = const { LocalExecutor::new() };
}

/// Threads in `block_on` that sleep outside of the poller, by the address of their signal.
static PARKED_THREADS: Mutex<Vec<Arc<Signal>>> = Mutex::new(Vec::new());

impl Sleeper {
    fn new() -> Sleeper {
        let signal = Arc::new(Signal { state: Bed::new(EMPTY), woken: AtomicBool::new(false) });
        let main = waker_fn({
            let signal = signal.clone();
            move || {
                // Ordering: AcqRel. Pairs with the swap in `block_on`. A swap even if it was set
                // already: then that swap reads from this one and sees what we wrote (tokio issue 7622).
                if !signal.woken.swap(true, Ordering::AcqRel) {
                    signal.notify();
                }
            }
        });
        let thread = waker_fn({
            let signal = signal.clone();
            move || signal.notify()
        });
        let pace = Pace { polls: Cell::new(0), last: Cell::new(None) };
        Sleeper { signal, main, thread, pace }
    }

    /// Calls `f` with this thread's, or with a new one if an outer `block_on` is using it or the thread ends.
    fn with<R>(f: impl FnOnce(&Sleeper) -> R) -> R {
        let mut f = Some(f);
        let mut call = |sleeper: &Sleeper| f.take().map(|f| f(sleeper));
        let kept = SLEEPER.try_with(|kept| call(&*kept.try_borrow_mut().ok()?));
        let output = kept.ok().flatten().or_else(|| call(&Sleeper::new()));
        output.unwrap_or_else(|| unreachable!("one of them is called"))
    }

    /// Whether the thread was notified and may not sleep. Takes the notification.
    fn is_notified(&self) -> bool {
        // Ordering: AcqRel, with the swap in `notify`.
        let state = &self.signal.state.word;
        state.compare_exchange(NOTIFIED, EMPTY, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Sleeps until notified.
    fn park(&self) {
        let bed = &self.signal.state;
        // Ordering: AcqRel, as in `is_notified`. It fails if we were notified in the meantime.
        if bed.word.compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // Ordering: Acquire, with the swap in `notify`.
            while bed.word.load(Ordering::Acquire) == PARKED {
                bed.sleep(PARKED, None);
            }
        }
        // Ordering: AcqRel, with the swap in `notify`.
        bed.word.swap(EMPTY, Ordering::AcqRel);
    }

    /// Sleeps in the poller until it has news or we are notified, and then wakes whom it concerns.
    fn poll(&self, seat: Seat) {
        let mut woken = Vec::new();
        // Ordering: AcqRel, as in `park`.
        let state = &self.signal.state.word;
        if state.compare_exchange(EMPTY, POLLING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            REACTOR.turn(&seat, true, &mut woken);
        }
        // Ordering: AcqRel, with the swap in `notify`.
        state.swap(EMPTY, Ordering::AcqRel);
        leave(seat, woken);
    }

    /// Sleeps in `block_on`. If a task or a job called that, others take over the rest of its thread's work.
    fn sleep_in_block_on(&self) {
        let when_blocked = WHEN_BLOCKED.try_with(Cell::get).ok().flatten();
        if let Some(when_blocked) = when_blocked {
            when_blocked(true);
            // What is woken meanwhile does not go to the queue of a worker that is blocked.
            let here = HERE.try_with(|here| here.replace(None)).ok();
            self.sleep(false);
            let _ = HERE.try_with(|cell| here.map(|here| cell.replace(here)));
            when_blocked(false);
        } else {
            self.sleep(false);
        }
    }

    /// Sleeps where it is best to, until there is something to do.
    fn sleep(&self, is_worker: bool) {
        if self.is_notified() {
            return;
        }
        if !REACTOR.has_interest() {
            return self.park_where_it_can_be_found(is_worker);
        }
        // Most news is for tasks. If the workers all sleep elsewhere, one of them comes.
        if !is_worker && STAFF.present() > 0 {
            let attended =
                REACTOR.seated() != Seat::FREE || !STAFF.all_asleep() || crew().wake_one();
            if attended {
                return self.park_where_it_can_be_found(false);
            }
        }
        if let Some(seat) = REACTOR.sit(Seat::TAKEN) {
            tour!(8, "a thread sits down in the poller");
            return self.poll(seat);
        }
        if REACTOR.seated() == Seat::WATCHED {
            WATCHER.make_room();
        } else {
            // Another thread has the seat, and may leave it and block with us asleep.
            WATCHER.start();
        }
        self.park_where_it_can_be_found(is_worker);
    }

    /// Parks. Workers are on their crew's list; others can be found on a list of their own.
    fn park_where_it_can_be_found(&self, is_worker: bool) {
        if is_worker {
            return self.park();
        }
        lock(&PARKED_THREADS).push(self.signal.clone());
        // Whoever left the seat, or tickets without workers, before we could be found: look now.
        let abandoned = REACTOR.has_interest() && REACTOR.seated() == Seat::FREE;
        if STAFF.present() == 0 && (abandoned || STAFF.is_stranded()) {
            self.signal.notify();
        }
        self.park();
        let entry = {
            let mut parked = lock(&PARKED_THREADS);
            let place = parked.iter().position(|signal| Arc::ptr_eq(signal, &self.signal));
            place.map(|place| parked.swap_remove(place))
        };
        drop(entry);
    }
}

/// Wakes one thread that sleeps outside of the poller. `false` if there is none.
fn call_parked_thread() -> bool {
    let signal = lock(&PARKED_THREADS).pop();
    signal.map(|signal| signal.notify()).is_some()
}

/// The seat is empty: wakes one of those who may sit down there.
fn call_somebody() {
    if !call_parked_thread() {
        let _ = CREW.get().is_some_and(Crew::wake_one);
    }
}

/// Gives the seat back and wakes whom the kernel's news concern.
fn leave(seat: Seat, woken: Vec<Waker>) {
    drop(seat);
    WATCHER.poke();
    if woken.is_empty() {
        return;
    }
    // What is woken goes to this worker's queue, if it is one, and others are called once for all.
    let local = with_here(|here| {
        let local = here.shared(crew_id())?;
        here.collecting.set(true);
        Some(local.clone())
    });
    wake_all(woken);
    if let Some(Some(local)) = local {
        let is_worth_a_call = with_here(|here| {
            here.collecting.set(false);
            here.begin_batch(local.queue.len())
        });
        if is_worth_a_call == Some(true) {
            crew().notify();
        } else {
            // Should the first of them block, the watcher helps.
            WATCHER.alert();
        }
    }
}

/// One look at the kernel by a thread that is never idle.
fn glance() {
    if REACTOR.has_interest() {
        if let Some(seat) = REACTOR.sit(Seat::TAKEN) {
            let mut woken = Vec::new();
            REACTOR.turn(&seat, false, &mut woken);
            leave(seat, woken);
        }
    }
}

/// Somebody has begun to wait for the reactor: sees to it that there is one who asks the kernel.
fn attend(waker: &Waker) {
    if is_in_loop() && (is_ours(waker) || WATCHER.is_present()) {
        // This thread will sit down itself, or knows who does; and if somebody else's `block_on` inside
        // of ours keeps it from that, the watcher sees it.
        WATCHER.poke();
        // A task that polls in a circle without ever yielding would wait for itself.
        if OVERDRAWN.try_with(Cell::take).unwrap_or(false) {
            glance();
        }
        return;
    }
    // A foreign executor knows nothing of our poller.
    check_for_fork();
    if WATCHER.start() {
        return WATCHER.hurry();
    }
    // No thread can be started: this one asks the kernel, for a moment, and its task comes back.
    if let Some(seat) = REACTOR.sit(Seat::TAKEN) {
        let mut woken = Vec::new();
        let deadline = Instant::now() + NAP;
        let nap = REACTOR.set_timer(deadline, Waker::noop().clone());
        REACTOR.turn(&seat, true, &mut woken);
        REACTOR.clear_timer(nap);
        leave(seat, woken);
    } else {
        thread::sleep(NAP / 10);
    }
    waker.wake_by_ref();
}

/// Waits until the system says that an operation on a source would not block.
fn poll_source(
    source: &Arc<Source>,
    direction: Direction,
    mut token: Option<&mut Token>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    ready!(spend(cx));
    loop {
        let seen = source.look();
        let ready = registration::is_ready(source.raw, direction == Direction::Write, seen)?;
        if !ready || cfg!(windows) {
            source.blocked(direction, seen);
        }
        if ready {
            return Poll::Ready(Ok(()));
        }
        match source.wait(direction, token.as_deref_mut(), cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
            Poll::Pending => {
                attend(cx.waker());
                return Poll::Pending;
            }
        }
    }
}

static CREW: OnceLock<Crew> = OnceLock::new();

/// The global executor's crew.
fn crew() -> &'static Crew {
    CREW.get_or_init(|| Crew::new(true, |urgent| STAFF.short_handed(urgent)))
}

fn crew_id() -> usize {
    crew().id()
}

/// The threads of the global executor.
struct Staff {
    /// Atomics: workers that exist, of these those known to be blocked, and names for new ones.
    present: AtomicUsize,
    blocked: AtomicUsize,
    hired: AtomicUsize,
    limit: OnceLock<usize>,
    /// Atomic: more workers get on than there should be; the first to see it ends.
    crowded: AtomicBool,
    /// No thread could be started; not tried again before this time.
    failed: Mutex<Option<Instant>>,
}

static STAFF: Staff = Staff {
    present: AtomicUsize::new(0),
    blocked: AtomicUsize::new(0),
    hired: AtomicUsize::new(0),
    limit: OnceLock::new(),
    crowded: AtomicBool::new(false),
    failed: Mutex::new(None),
};

/// A reference that crews hand to their workers.
struct Global;

impl Member for Global {}

impl AsRef<Crew> for Global {
    fn as_ref(&self) -> &Crew {
        crew()
    }
}

impl Staff {
    /// How many workers there should be: `SMOL_THREADS`, else as many as processors.
    fn limit(&self) -> usize {
        *self.limit.get_or_init(|| {
            let asked = number_from_env("SMOL_THREADS");
            asked.or_else(|| thread::available_parallelism().map(usize::from).ok()).unwrap_or(1)
        })
    }

    #[inline]
    fn present(&self) -> usize {
        // Ordering: SeqCst. Pairs with the updates in `hire` and `work`.
        self.present.load(Ordering::SeqCst)
    }

    /// Whether no worker is awake or about to be.
    fn all_asleep(&self) -> bool {
        // Ordering: SeqCst. Pairs with S1: either we see the last worker asleep, or that worker, going
        // to sleep after this, finds the seat free.
        let counts = crew().counts.load(Ordering::SeqCst);
        let blocked = self.blocked.load(Ordering::SeqCst);
        counts % SLEEPING == 0 && counts / SLEEPING + blocked >= self.present()
    }

    /// A ticket was queued that nobody was called for.
    fn short_handed(&self, urgent: bool) {
        if urgent && self.present() < self.wanted() {
            self.hire(self.wanted());
        }
        WATCHER.alert();
    }

    /// Starts a worker if there are fewer than `limit`. `false` if there can be none.
    fn hire(&self, limit: usize) -> bool {
        // Ordering: SeqCst. Pairs with the loads in `present`.
        let room = |present| (present < limit).then_some(present + 1);
        if self.present.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).is_err() {
            return true;
        }
        // Ordering: SeqCst. The new worker begins by searching, and whoever pushes may rely on it.
        crew().counts.fetch_add(1, Ordering::SeqCst);
        // Ordering: Relaxed. A name.
        let name = self.hired.fetch_add(1, Ordering::Relaxed);
        // The first worker is tried for each time, since without it nothing goes on.
        if (self.may_try() || self.present() == 1) && start_thread(format!("smol-{name}"), work) {
            WATCHER.start();
            return true;
        }
        // Ordering: SeqCst, as above.
        crew().counts.fetch_sub(1, Ordering::SeqCst);
        if self.present.fetch_sub(1, Ordering::SeqCst) == 1 {
            // There is no worker. A thread in `block_on` stands in: one that sleeps, perhaps relying on the
            // worker that never came, or this one when it gets there. Else `spawn` does it.
            if !call_parked_thread() {
                REACTOR.interrupt();
            }
        }
        false
    }

    /// Whether there are tickets, and no worker because none could be started.
    fn is_stranded(&self) -> bool {
        self.present() == 0 && CREW.get().is_some_and(|crew| !crew.injector.is_empty())
    }

    /// Runs tasks although this is no worker, because there is none. Says whether there were any.
    fn stand_in(&self) -> bool {
        let stranded = self.is_stranded();
        if stranded {
            for runnable in crew().injector.try_iter().take(TASKS_PER_LOOK as usize) {
                refill_budget();
                runnable.run();
            }
        }
        stranded
    }

    /// The same in `spawn` on a thread that is not in `block_on`, and perhaps nobody is. Not in wakers,
    /// which may be called with somebody's lock held. And not inside of each other: the outermost finds what
    /// the tasks wake.
    fn stand_in_at_once(&self) {
        thread_local! { static INSIDE: Cell<bool> = const { Cell::new(false) }; }
        if !INSIDE.try_with(|inside| inside.replace(true)).unwrap_or(true) {
            while self.stand_in() {}
            let _ = INSIDE.try_with(|inside| inside.set(false));
        }
    }

    /// How many workers there should be now. Ordering: SeqCst. Pairs with the updates in `block`.
    fn wanted(&self) -> usize {
        self.limit() + self.blocked.load(Ordering::SeqCst)
    }

    /// Whether there is a worker too many.
    fn has_excess(&self) -> bool {
        self.present() > self.wanted()
    }

    /// The same, and if so, the worker that asks is counted no longer.
    fn retire(&self) -> bool {
        let wanted = self.wanted();
        // Ordering: SeqCst, as in `hire`.
        let excess = |present| (present > wanted).then(|| present - 1);
        self.present.fetch_update(Ordering::SeqCst, Ordering::SeqCst, excess).is_ok()
    }

    /// Whether enough time has passed since a thread could not be started.
    fn may_try(&self) -> bool {
        lock(&self.failed).is_none_or(|at| at.elapsed() > Duration::from_secs(1))
    }

    /// The worker on this thread waits for something in a nested `block_on`: its queue is for others.
    fn block(&self, blocked: bool) {
        if !blocked {
            // Ordering: SeqCst, as below.
            self.blocked.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        // Ordering: SeqCst. Pairs with the load in `wanted`.
        self.blocked.fetch_add(1, Ordering::SeqCst);
        let _ = HERE.try_with(|here| {
            let here = here.borrow();
            if let Some(local) = here.as_ref().and_then(|here| here.shared(crew_id())) {
                for runnable in local.slot.try_iter().chain(local.queue.try_iter()) {
                    let _ = crew().injector.push(runnable);
                }
            }
        });
        if crew().has_work() {
            crew().notify();
        }
    }
}

/// Reads a positive number from the environment; nonsense is ignored, zero is one.
fn number_from_env(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    let number: usize = text.trim().parse().ok()?;
    Some(number.clamp(1, 1000))
}

/// Starts a thread; says whether it could be.
fn start_thread(name: String, main: impl FnOnce() + Send + 'static) -> bool {
    check_for_fork();
    let started = thread::Builder::new().name(name).spawn(main).is_ok();
    if !started {
        *lock(&STAFF.failed) = Some(Instant::now());
    }
    started
}

/// Tells a thread that is never idle when to look at the kernel: after so many polls, or a millisecond.
struct Pace {
    polls: Cell<u32>,
    last: Cell<Option<Instant>>,
}

impl Pace {
    /// Counts a poll; says whether it is time to look at the kernel.
    #[inline]
    fn is_due(&self) -> bool {
        let polls = self.polls.get() + 1;
        self.polls.set(polls);
        // The clock costs as much as a task; so only at the first, second, fourth, eighth … poll.
        if !polls.is_power_of_two() && polls < TASKS_PER_GLANCE {
            return false;
        }
        let now = Instant::now();
        let last = self.last.get().unwrap_or(now);
        let late = now.saturating_duration_since(last) > Duration::from_millis(1);
        let due = late || polls >= TASKS_PER_GLANCE;
        self.last.set(if due { None } else { Some(last) });
        if due {
            self.polls.set(0);
        }
        due
    }
}

/// This thread's tasks from `spawn_local`, as one who drives them sees them.
struct LocalTasks(Option<Worker<LocalCrew>>);

impl LocalTasks {
    /// Runs some of the tasks that are ready. `true`: there may be more.
    fn run(&mut self, pace: &Pace) -> bool {
        let Some(worker) = self.worker() else {
            return false;
        };
        worker.wake_up();
        if !worker.has_tickets() {
            return false;
        }
        let _here = worker.enter();
        let outer = OUR_TASKS.try_with(|tasks| tasks.replace(true)).unwrap_or(true);
        let _restore = OnDrop(|| {
            let _ = OUR_TASKS.try_with(|tasks| tasks.set(outer));
        });
        loop {
            match worker.find() {
                Some(runnable) => worker.run(runnable),
                None => return false,
            }
            if pace.is_due() {
                return true;
            }
        }
    }

    /// Whether there is a task to run.
    fn has_work(&mut self) -> bool {
        self.worker().is_some_and(|worker| worker.has_tickets())
    }

    fn worker(&mut self) -> Option<&mut Worker<LocalCrew>> {
        if self.0.is_none() {
            // There are none before the first `spawn_local` on this thread.
            let crew = LOCAL.try_with(|local| local.crew.get().cloned()).ok().flatten();
            self.0 = crew.map(|crew| Worker::new(crew, false));
        }
        self.0.as_mut()
    }

    /// Announces that this thread sleeps. `false`: there is something to do after all.
    fn sleep(&mut self, waker: &Waker) -> bool {
        self.0.as_mut().is_none_or(|worker| worker.sleep(waker))
    }

    /// Whether the thread can end without dropping a task.
    fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|worker| worker.crew.own.active.borrow().len == 0)
    }
}

/// Counts a thread as one that looks after the reactor, until the guard is dropped.
#[inline]
fn enter_loop(main: &Waker) -> impl Drop + use<> {
    let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
    let outer = set_ours(main.data());
    OnDrop(move || {
        set_ours(outer);
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
        // We may have been the one who asked the kernel for others.
        if WATCHER.exists() && REACTOR.has_interest() && REACTOR.seated() == Seat::FREE {
            call_somebody();
        }
    })
}

/// The life of a worker thread.
fn work() {
    let sleeper = &Sleeper::new();
    WHEN_BLOCKED.set(Some(|blocked| STAFF.block(blocked)));
    let _inside = enter_loop(&sleeper.main);
    OUR_TASKS.set(true);
    let mut worker = Worker::new(Global, true);
    // `hire` has counted it as searching.
    worker.mood = Mood::Searching;
    let _here = worker.enter();
    let mut local_tasks = LocalTasks(None);
    loop {
        let mut ran = 0;
        worker.in_task(true);
        while ran < TASKS_PER_GLANCE {
            let Some(runnable) = worker.find() else { break };
            worker.run(runnable);
            ran += 1;
            // The clock costs as much as a task; so only after the first, second, fourth … one.
            if ran.is_power_of_two() {
                worker.look_at_batch();
            }
        }
        worker.in_task(false);
        with_here(|here| here.end_batch(ran));
        if local_tasks.has_work() {
            // They may block: nobody may rely on our search meanwhile.
            worker.stop_searching();
        }
        let more_local_tasks = local_tasks.run(&sleeper.pace);
        if ran == TASKS_PER_GLANCE || more_local_tasks {
            // A spare worker that is never idle would keep its few tasks to itself for ever.
            // Ordering: Relaxed. A hint of the watcher's.
            if STAFF.crowded.load(Ordering::Relaxed) && local_tasks.is_empty() {
                STAFF.crowded.store(false, Ordering::Relaxed);
                if STAFF.retire() {
                    return;
                }
            }
            glance();
        } else if worker.sleep(&sleeper.thread) {
            if local_tasks.sleep(&sleeper.thread) {
                if STAFF.has_excess() && local_tasks.is_empty() {
                    if !worker.wake_up() && STAFF.retire() {
                        return;
                    }
                    continue;
                }
                sleeper.sleep(true);
            }
            worker.wake_up();
        }
    }
}

/// Runs a future on this thread, and sleeps while there is nothing to do.
///
/// The thread's own tasks ([`spawn_local`]) run in between; other tasks run on other threads. It may be
/// called anywhere, also inside of a task: then that task's thread is blocked, and others take over
/// its other tasks.
///
/// ```
/// let five = smol::block_on(async { 2 + 3 });
/// assert_eq!(five, 5);
/// ```
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    Sleeper::with(|sleeper| block_on_with(sleeper, future))
}

fn block_on_with<T>(sleeper: &Sleeper, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    // Ordering: Relaxed. The main future is polled first in any case, by this very thread.
    sleeper.signal.woken.store(false, Ordering::Relaxed);
    let cx = &mut Context::from_waker(&sleeper.main);
    let _inside = enter_loop(&sleeper.main);
    let mut local_tasks = LocalTasks(None);
    if sleeper.pace.is_due() {
        glance();
        local_tasks.run(&sleeper.pace);
    }
    // To be checked before it sleeps for the first time.
    let mut home = true;
    let mut first = true;
    loop {
        // Ordering: AcqRel. Pairs with the swap in `Sleeper::new`: we see what was written before the wake.
        if mem::take(&mut first) || sleeper.signal.woken.swap(false, Ordering::AcqRel) {
            refill_budget();
            set_ours(sleeper.main.data());
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return output;
            }
        }
        let more = local_tasks.run(&sleeper.pace) | STAFF.stand_in();
        // Ordering: Acquire, as above.
        if more || sleeper.signal.woken.load(Ordering::Acquire) {
            // A future that is always ready must not keep this thread from asking the kernel.
            if more || sleeper.pace.is_due() {
                glance();
            }
        } else if local_tasks.sleep(&sleeper.thread) {
            if mem::take(&mut home) {
                check_for_fork();
            }
            sleeper.sleep_in_block_on();
        }
    }
}

/// Spawns a task onto the threads of the global executor, which are started as they are needed.
///
/// There are as many as processors, or `SMOL_THREADS`. A task that blocks its thread holds up others for
/// some milliseconds at most, but for work that blocks [`unblock`] is the better place.
///
/// Dropping the [`Task`] cancels it; [`detach`](Task::detach) lets it run on its own. A panic of the
/// task comes out where the `Task` is awaited.
///
/// If no thread can be started at all, tasks run on threads that are in [`block_on`], and here, in `spawn`; one
/// that is woken while nobody is in either waits for the next who is.
///
/// ```
/// let task = smol::spawn(async { 1 + 2 });
/// assert_eq!(smol::block_on(task), 3);
/// ```
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    let schedule = |runnable, info| crew().schedule(runnable, info);
    let (runnable, task) = new_task(future, || {}, schedule);
    runnable.schedule();
    if STAFF.present() == 0 && !is_in_loop() {
        STAFF.stand_in_at_once();
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
pub fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    match LOCAL.try_with(|local| local.crew().clone()) {
        Ok(crew) => crew.spawn(future),
        Err(_) => panic!("smol::spawn_local was called on a thread whose local tasks are gone"),
    }
}

/// The thread that helps when others are stuck (I6.1, I6.2).
struct Watcher {
    /// Atomic: whether it was started.
    state: AtomicU8,
    /// One while it is to look around, and not to sleep.
    bed: Bed,
    /// Atomic: it sleeps without a timeout.
    deep: AtomicBool,
    /// Atomic: a foreign executor waits for the reactor.
    urgent: AtomicBool,
    /// Atomic: somebody else wants to have the seat.
    leave: AtomicBool,
}

static WATCHER: Watcher = Watcher {
    state: AtomicU8::new(Watcher::ABSENT),
    bed: Bed::new(0),
    deep: AtomicBool::new(false),
    urgent: AtomicBool::new(false),
    leave: AtomicBool::new(false),
};

impl Watcher {
    const ABSENT: u8 = 0;
    const PRESENT: u8 = 1;
    const STARTING: u8 = 3;
    /// It could not be started; whoever leaves the seat hands it over.
    const IMPOSSIBLE: u8 = 2;

    #[inline]
    fn exists(&self) -> bool {
        // Ordering: SeqCst. Pairs with the exchanges in `start`: who cannot start it goes to the list of parked
        // threads afterwards, and who looks here has given the seat back before.
        self.state.load(Ordering::SeqCst) != Watcher::ABSENT
    }

    fn is_present(&self) -> bool {
        // Ordering: SeqCst, as above.
        self.state.load(Ordering::SeqCst) == Watcher::PRESENT
    }

    /// Starts it, once. `false` if it cannot be.
    fn start(&'static self) -> bool {
        if self.is_present() {
            return true;
        }
        if !STAFF.may_try() {
            // Not now. Until then, whoever leaves the seat hands it over.
            let (from, to) = (Watcher::ABSENT, Watcher::IMPOSSIBLE);
            // Ordering: SeqCst, as below.
            let _ = self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
            return false;
        }
        // Ordering: SeqCst. Pairs with the loads of `state`.
        let begin = |state| {
            (state != Watcher::STARTING && state != Watcher::PRESENT).then_some(Watcher::STARTING)
        };
        if self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin).is_err() {
            // Somebody else was faster, and may not be certain yet.
            return self.is_present();
        }
        let started = start_thread("smol-watch".into(), || self.watch());
        let state = if started { Watcher::PRESENT } else { Watcher::IMPOSSIBLE };
        // Ordering: SeqCst, as above.
        self.state.store(state, Ordering::SeqCst);
        started
    }

    /// A ticket was queued that nobody was called for: it must not stay unseen.
    fn alert(&self) {
        self.poke();
        if REACTOR.seated() == Seat::WATCHED {
            REACTOR.interrupt();
        }
    }

    /// Wakes it if it sleeps without a timeout.
    fn poke(&self) {
        // Ordering: SeqCst. Pairs with the store in `watch`: either it sees what we have just changed
        // (the seat, the interest, a queue), or we see that it sleeps.
        if self.deep.load(Ordering::SeqCst) {
            self.deep.store(false, Ordering::SeqCst);
            self.unpark();
        }
        // Ordering: SeqCst, as in `exists`.
        if self.state.load(Ordering::SeqCst) == Watcher::IMPOSSIBLE
            && REACTOR.seated() == Seat::FREE
        {
            call_somebody();
        }
    }

    fn unpark(&self) {
        // Ordering: SeqCst. Pairs with the swap in `park`.
        if self.bed.word.swap(1, Ordering::SeqCst) == 0 {
            self.bed.wake();
        }
    }

    /// Sleeps until it is woken, or for so long.
    fn park(&self, timeout: Option<Duration>) {
        // Ordering: SeqCst. Pairs with the swap in `unpark`.
        if self.bed.word.swap(0, Ordering::SeqCst) == 0 {
            self.bed.sleep(0, timeout);
            self.bed.word.store(0, Ordering::SeqCst);
        }
    }

    /// A foreign executor has begun to wait: the seat must not be empty for as long as a tick.
    fn hurry(&self) {
        if REACTOR.seated() == Seat::FREE {
            // Ordering: SeqCst. Pairs with the swap in `watch`.
            self.urgent.store(true, Ordering::SeqCst);
            self.deep.store(false, Ordering::SeqCst);
            self.unpark();
        }
    }

    /// Asks it to leave the seat to a thread that will sleep anyhow.
    fn make_room(&self) {
        // Ordering: SeqCst. Pairs with the swap in `sit_in`.
        self.leave.store(true, Ordering::SeqCst);
        REACTOR.interrupt();
    }

    /// Whether it must not sleep without a timeout (I6.2).
    fn is_needed(&self) -> bool {
        // Ordering: SeqCst, with the store in `hurry`.
        self.urgent.load(Ordering::SeqCst)
            || REACTOR.has_interest() && REACTOR.seated() == Seat::FREE
            || CREW.get().is_some_and(Crew::has_tickets)
    }

    /// The life of the watcher.
    fn watch(&'static self) {
        let mut seen = Seen::look();
        let mut quiet = 0;
        let mut stuck = 0;
        loop {
            // Ordering: SeqCst, with the store in `hurry`.
            let urgent = self.urgent.swap(false, Ordering::SeqCst);
            let now = Seen::look();
            if (urgent || now.turns == seen.turns)
                && REACTOR.has_interest()
                && REACTOR.seated() == Seat::FREE
            {
                self.fill_the_seat();
            }
            if now.is_stuck_since(&seen) {
                stuck += 1;
                help_out(&now, &seen, &mut stuck);
            } else {
                stuck = 0;
            }
            if now.getting_on_since(&seen) > STAFF.limit() {
                // Ordering: Relaxed, see `work`.
                STAFF.crowded.store(true, Ordering::Relaxed);
            }
            let same = now == seen && !self.is_needed();
            quiet = if same { quiet + 1 } else { 0 };
            seen = now;
            if quiet < LINGER {
                self.park(Some(TICK));
                continue;
            }
            // Ordering: SeqCst. Pairs with the load in `poke`.
            self.deep.store(true, Ordering::SeqCst);
            while !self.is_needed() && self.deep.load(Ordering::SeqCst) {
                self.park(None);
            }
            self.deep.store(false, Ordering::SeqCst);
            quiet = 0;
            seen = Seen::look();
            // Ordering: SeqCst, with the store in `hurry`.
            if !self.urgent.load(Ordering::SeqCst) {
                self.park(Some(TICK));
            }
        }
    }

    /// The seat was empty for too long: somebody who sleeps elsewhere takes it, or else we do.
    fn fill_the_seat(&self) {
        let worker = CREW.get().is_some_and(Crew::wake_one);
        if worker || (STAFF.present() == 0 && call_parked_thread()) {
            return;
        }
        while let Some(seat) = REACTOR.sit(Seat::WATCHED) {
            // Looked at after the seat was taken; `alert` looks at the seat after the ticket was queued.
            let tickets = CREW.get().is_some_and(Crew::has_tickets);
            let mut woken = Vec::new();
            REACTOR.turn(&seat, !tickets, &mut woken);
            drop(seat);
            wake_all(woken);
            // Ordering: SeqCst. Pairs with the store in `make_room`.
            if self.leave.swap(false, Ordering::SeqCst) {
                if !CREW.get().is_some_and(Crew::wake_one) {
                    call_parked_thread();
                }
                return;
            }
            // Tickets need the watcher elsewhere.
            if tickets || !REACTOR.has_interest() {
                return;
            }
        }
    }
}

/// What the watcher compares from tick to tick.
#[derive(PartialEq)]
struct Seen {
    turns: usize,
    /// Of each worker: which one, how many tasks it has run, and whether its queues are empty.
    workers: Vec<(*const Local, u32, bool)>,
}

impl Seen {
    fn look() -> Seen {
        // Ordering: Relaxed. Statistics.
        let turns = REACTOR.turns.load(Ordering::Relaxed);
        let Some(crew) = CREW.get() else {
            return Seen { turns, workers: Vec::new() };
        };
        let locals = crew.locals.read().unwrap_or_else(PoisonError::into_inner);
        // Ordering: Relaxed, as above.
        let look = |local: &Arc<Local>| {
            (Arc::as_ptr(local), local.polls.load(Ordering::Relaxed), local.is_empty())
        };
        Seen { turns, workers: locals.iter().map(look).collect() }
    }

    /// How many workers have run tasks since.
    fn getting_on_since(&self, before: &Seen) -> usize {
        let moved = |(worker, polls, _): &&(*const Local, u32, bool)| {
            before.workers.iter().any(|(w, p, _)| w == worker && p != polls)
        };
        self.workers.iter().filter(moved).count()
    }

    /// The workers that have tickets and took none for a whole tick.
    fn stuck_since(&self, before: &Seen) -> Vec<Arc<Local>> {
        let Some(crew) = CREW.get() else {
            return Vec::new();
        };
        let stuck = |(worker, polls, empty): &&(*const Local, u32, bool)| {
            let same = |(w, p, _): &(*const Local, u32, bool)| w == worker && p == polls;
            !empty && before.workers.iter().any(same)
        };
        let locals = crew.locals.read().unwrap_or_else(PoisonError::into_inner);
        let find = |(worker, ..): &(*const Local, u32, bool)| {
            locals.iter().find(|local| Arc::as_ptr(local) == *worker).cloned()
        };
        self.workers.iter().filter(stuck).filter_map(find).collect()
    }

    /// Whether tickets lie where nobody has taken any for a whole tick.
    fn is_stuck_since(&self, before: &Seen) -> bool {
        let injected = CREW.get().is_some_and(|crew| !crew.injector.is_empty());
        !self.stuck_since(before).is_empty() || (injected && self.workers == before.workers)
    }
}

/// Tickets are stuck: puts them where others look, calls a worker that sleeps, or starts one more if none
/// gets on.
fn help_out(now: &Seen, before: &Seen, stuck: &mut u32) {
    let crew = crew();
    // A worker that is merely busy for long loses nothing but its first place.
    for local in now.stuck_since(before) {
        for runnable in local.slot.try_iter().chain(local.queue.try_iter()) {
            let _ = crew.injector.push(runnable);
        }
    }
    // Ordering: SeqCst, as in `notify`.
    let searching = crew.counts.load(Ordering::SeqCst) % SLEEPING;
    if searching > 0 || crew.wake_one() {
        return;
    }
    let polls = |seen: &Seen| {
        seen.workers.iter().map(|(worker, polls, _)| (*worker, *polls)).collect::<Vec<_>>()
    };
    if polls(now) != polls(before) {
        // Others get on, and look at the injector now and then.
        return;
    }
    // Workers that compute for long look the same as workers that are blocked. The first few spare ones
    // come at once, more and more slowly after that: 2, 4, 8 … ticks apart.
    let spare = STAFF.present().saturating_sub(STAFF.limit());
    let patience = 1u32.checked_shl((spare / STAFF.limit()) as u32).unwrap_or(u32::MAX);
    if *stuck >= patience {
        *stuck = 0;
        STAFF.hire(STAFF.present() + 1);
    }
}
// ############################################################################################
// Here the machine ends. What follows is its face.
// ############################################################################################

// ============================================================================================
// §7  Scopes: tasks that may borrow
// ============================================================================================
//
// uses §1 · used by nobody · locks: ready (leaf)
//
// PROBLEM   A spawned task may not borrow from its spawner, which could be gone before it.
// IDEA      The future of the scope owns the futures of its children and polls them itself. So they may
//           borrow whatever outlives that future, and dropping it drops them: nothing to prove. Their
//           wakers know only a number and a list of numbers, and may live as long as they like.
// I7.1      A child is in the table, or it is being polled, or it is gone.
// NEVER     runs two children at the same time: they take turns on the thread of the scope. Work for
//           several threads is spawned with `spawn` and awaited in the scope.
// REJECTED  Tasks on the executor with their lifetime transmuted: sound only if the scope's future
//           cannot be leaked (Leakpocalypse, rust-lang/rust issue 24292), and it can.

/// Runs `body`, which may spawn children that borrow, and waits for all of them.
///
/// A child's panic cancels its siblings and the body, and comes out of `scope`. When the future of `scope`
/// is dropped, the children are dropped first, then the body. The children need not be `Send` and run on
/// the thread that polls the scope.
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
    let family = Rc::new(Family {
        children: RefCell::new(Slab::new()),
        live: Cell::new(0),
        closed: Cell::new(false),
        ready: Arc::new(Mutex::new(Ready { wakers: Vec::new(), scope: None })),
    });
    let main = ChildWaker::waker(BODY, &family.ready);
    main.wake_by_ref();
    let mut body = std::pin::pin!(Some(body(Scope { family: family.clone() })));
    let mut output = None;
    // Dropped before `body`, and before whatever the children borrow from.
    let _children = OnDrop(|| family.close());
    poll_fn(|cx| {
        let ours = is_ours(cx.waker());
        let _restore = run_as(cx.waker());
        for waker in begin_round(&family.ready, cx) {
            let pointer = Arc::as_ptr(&waker).cast();
            set_ours(if ours { pointer } else { std::ptr::null() });
            if waker.key != BODY {
                if let Err(payload) = family.poll_child(waker) {
                    family.close();
                    body.set(None);
                    resume_unwind(payload);
                }
            } else if let Some(future) = body.as_mut().as_pin_mut() {
                if let Poll::Ready(value) = future.poll(&mut Context::from_waker(&main)) {
                    output = Some(value);
                    body.set(None);
                }
            }
        }
        if family.live.get() > 0 {
            return Poll::Pending;
        }
        output.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// The body of a scope among the keys of its children.
const BODY: usize = usize::MAX;

/// Spawns children into a [`scope`]. Can be cloned, and given to children.
#[derive(Clone)]
pub struct Scope<'env> {
    family: Rc<Family<'env>>,
}

/// The children of a scope.
struct Family<'env> {
    children: RefCell<Slab<Option<ChildFuture<'env>>>>,
    /// How many are not finished.
    live: Cell<usize>,
    /// Cancelled or at its end: who is spawned now is dropped at once.
    closed: Cell<bool>,
    ready: Arc<Mutex<Ready>>,
}

type ChildFuture<'env> = Pin<Box<dyn Future<Output = ()> + 'env>>;

/// Which children of a scope must be polled.
struct Ready {
    wakers: Vec<Arc<ChildWaker>>,
    /// Wakes the scope's own future; taken by the first child that is woken.
    scope: Option<Waker>,
}

/// The waker of a child.
struct ChildWaker {
    key: usize,
    /// Atomic: it is on the list already.
    queued: AtomicBool,
    ready: Arc<Mutex<Ready>>,
}

impl ChildWaker {
    fn waker(key: usize, ready: &Arc<Mutex<Ready>>) -> Waker {
        let queued = AtomicBool::new(false);
        Waker::from(Arc::new(ChildWaker { key, queued, ready: ready.clone() }))
    }
}

impl Wake for ChildWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Ordering: AcqRel. Pairs with the swap in `begin_round`, also if it was set already: the poll
        // that follows sees what was written before this.
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let scope = {
            let mut ready = lock(&self.ready);
            ready.wakers.push(self.clone());
            ready.scope.take()
        };
        if let Some(scope) = scope {
            scope.wake();
        }
    }
}

/// Who is to be polled now. Whoever becomes ready after this wakes the scope again.
fn begin_round(ready: &Mutex<Ready>, cx: &Context<'_>) -> Vec<Arc<ChildWaker>> {
    let waker = cx.waker().clone();
    let (wakers, old) = {
        let mut ready = lock(ready);
        (mem::take(&mut ready.wakers), ready.scope.replace(waker))
    };
    drop(old);
    for waker in &wakers {
        // Ordering: AcqRel. Pairs with the swap in `wake_by_ref`.
        waker.queued.swap(false, Ordering::AcqRel);
    }
    wakers
}

impl<'env> Family<'env> {
    /// Polls a child. An error is its panic.
    fn poll_child(&self, waker: Arc<ChildWaker>) -> thread::Result<()> {
        let key = waker.key;
        let taken = self.children.borrow_mut().get_mut(key).and_then(Option::take);
        // A wake-up of one that is gone?
        let Some(mut future) = taken else {
            return Ok(());
        };
        let waker = Waker::from(waker);
        let mut cx = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)));
        if let (Ok(Poll::Pending), false) = (&polled, self.closed.get()) {
            if let Some(place) = self.children.borrow_mut().get_mut(key) {
                *place = Some(future);
                return Ok(());
            }
        }
        self.children.borrow_mut().remove(key);
        self.live.set(self.live.get() - 1);
        shielded(|| drop(future));
        polled.map(|_| ())
    }

    /// Drops all children but the one that is being polled, which goes when its poll returns.
    fn close(&self) {
        self.closed.set(true);
        let keys = self.children.borrow().entries.len();
        for key in 0..keys {
            let child = self.children.borrow_mut().get_mut(key).and_then(Option::take);
            if let Some(child) = child {
                self.children.borrow_mut().remove(key);
                self.live.set(self.live.get() - 1);
                shielded(|| drop(child));
            }
        }
        // The scope may have nothing left to wait for.
        let (scope, wakers) = {
            let mut ready = lock(&self.ready);
            let (body, children) =
                mem::take(&mut ready.wakers).into_iter().partition(|w| w.key == BODY);
            ready.wakers = body;
            (ready.scope.take(), children)
        };
        drop::<Vec<_>>(wakers);
        if let Some(scope) = scope {
            scope.wake();
        }
    }
}

impl<'env> Scope<'env> {
    /// Spawns a child, which may borrow whatever outlives the scope.
    pub fn spawn<T: 'env>(&self, future: impl Future<Output = T> + 'env) -> ScopedTask<T> {
        let packet = Rc::new(Packet {
            output: Cell::new(None),
            gone: Cell::new(false),
            waiter: Cell::new(None),
        });
        let task = ScopedTask { packet: packet.clone() };
        let sender = PacketSender(packet);
        let child = Box::pin(async move {
            let output = future.await;
            sender.0.output.set(Some(output));
        });
        let family = &self.family;
        if family.closed.get() {
            shielded(|| drop(child));
            return task;
        }
        let key = family.children.borrow_mut().insert(Some(child));
        family.live.set(family.live.get() + 1);
        ChildWaker::waker(key, &family.ready).wake();
        task
    }

    /// Drops all children that are not finished, and those that are spawned afterwards. The body goes on;
    /// awaiting a [`ScopedTask`] that was cancelled panics.
    pub fn cancel(&self) {
        self.family.close();
    }
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("children", &self.family.live.get()).finish_non_exhaustive()
    }
}

/// Where a child leaves its output.
struct Packet<T> {
    output: Cell<Option<T>>,
    gone: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

/// The child's end of a [`Packet`].
struct PacketSender<T>(Rc<Packet<T>>);

impl<T> Drop for PacketSender<T> {
    fn drop(&mut self) {
        self.0.gone.set(true);
        if let Some(waiter) = self.0.waiter.take() {
            waiter.wake();
        }
    }
}

/// A child of a [`scope`]. Awaiting it gives its output; dropping it leaves the child to the scope, which
/// waits for it all the same.
///
/// # Panics
///
/// Awaiting a child that was cancelled panics, as it does for a [`Task`].
#[must_use = "the scope waits for its children anyhow; await the task for its output, or drop it"]
pub struct ScopedTask<T> {
    packet: Rc<Packet<T>>,
}

impl<T> ScopedTask<T> {
    /// Whether the child is finished, or was cancelled.
    pub fn is_finished(&self) -> bool {
        self.packet.gone.get()
    }
}

impl<T> Future for ScopedTask<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(output) = self.packet.output.take() {
            return Poll::Ready(output);
        }
        assert!(
            !self.packet.gone.get(),
            "a scoped task was awaited after it was cancelled, or twice"
        );
        self.packet.waiter.set(Some(cx.waker().clone()));
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
// uses §1 §5 §6 · used by §10-§12 · locks: none of its own
//
// PROBLEM   Code wants to go on at a certain time, repeatedly perhaps, and to change its mind.
// IDEA      The reactor keeps deadline and waker; the timer itself decides by the clock whether it fires, so
//           that it is never early, whoever polls it and why.
// I8.1      `entry` is some exactly while the reactor may hold a waker of ours; dropping takes it back.
// NEVER     overflows: a deadline that an `Instant` cannot hold is no deadline.

/// A future that is ready at a deadline, and a stream of such moments.
///
/// It yields the deadline, not the moment it was noticed. A timer is never early; it is late by what the
/// operating system and busy threads add, typically some 50 µs. After it has fired, a timer without a
/// period stays pending. Cancel-safe: dropping it forgets it.
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
    deadline: Option<Instant>,
    period: Option<Duration>,
    /// What the reactor knows it by (I8.1).
    entry: Option<TimerKey>,
}

impl Timer {
    fn new(deadline: Option<Instant>, period: Option<Duration>) -> Timer {
        Timer { deadline, period, entry: None }
    }

    /// A timer that never fires, until it is set.
    pub fn never() -> Timer {
        Timer::new(None, None)
    }

    /// Fires once, after the given time. A time too long for the clock means never.
    pub fn after(duration: Duration) -> Timer {
        Timer::new(Instant::now().checked_add(duration), None)
    }

    /// Fires once, at the given time.
    pub fn at(instant: Instant) -> Timer {
        Timer::new(Some(instant), None)
    }

    /// Fires again and again, for the first time after one period.
    ///
    /// If it is polled so late that several periods have passed, it fires once for all of them and keeps its
    /// phase: the next deadline is a whole number of periods after the first. A period of zero is always
    /// ready, and yields to other tasks now and then.
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
        self.deadline.is_some()
    }

    /// Changes the deadline. Whoever waits for the timer goes on waiting.
    fn set(&mut self, deadline: Option<Instant>, period: Option<Duration>, is_ahead: bool) {
        self.deadline = deadline;
        self.period = period;
        let Some(key) = &mut self.entry else { return };
        let is_known = match deadline {
            Some(deadline) => REACTOR.move_timer(*key, deadline),
            None => {
                REACTOR.clear_timer(*key);
                false
            }
        };
        key.is_ahead = is_ahead;
        if !is_known {
            self.entry = None;
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
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        ready!(spend(cx));
        // When it was set the clock was asked, and need not be asked twice (bench: `timer_reset`).
        if let Some(key) = self.entry.as_mut().filter(|key| key.is_ahead) {
            key.is_ahead = false;
            if REACTOR.update_timer(*key, cx.waker()) {
                attend(cx.waker());
                return Poll::Pending;
            }
        }
        let now = Instant::now();
        if now >= deadline {
            if let Some(key) = self.entry.take() {
                REACTOR.clear_timer(key);
            }
            self.deadline = self.next(deadline, now);
            return Poll::Ready(deadline);
        }
        match &mut self.entry {
            Some(key) if REACTOR.update_timer(*key, cx.waker()) => {}
            entry => *entry = Some(REACTOR.set_timer(deadline, cx.waker().clone())),
        }
        attend(cx.waker());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(key) = self.entry.take() {
            REACTOR.clear_timer(key);
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

/// Gives a future so much time, and not more.
///
/// The future is polled first, so that one that is ready at the same moment wins. On `Err` it has been
/// dropped; whether that loses something is a matter of the future.
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
pub async fn timeout<T>(
    duration: Duration,
    future: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    let mut future = std::pin::pin!(future);
    let mut timer = Timer::after(duration);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        timer.poll_fire(cx).map(|_| Err(TimedOut))
    })
    .await
}

/// The future given to [`timeout`] took too long.
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
// NEVER     polls a thread's clock while idle: an idle thread waits once, and ends.

/// The threads for blocking work.
struct Pool {
    state: Mutex<PoolState>,
    call: Condvar,
    limit: OnceLock<usize>,
}

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
    /// Threads that have been started and have not looked at the queue yet.
    starting: usize,
    /// Whether one of them stands by for the jobs of hosts.
    stands_by: bool,
    /// How many jobs were taken out of the queue.
    taken: usize,
}

static POOL: Pool = Pool {
    state: Mutex::new(PoolState {
        queue: VecDeque::new(),
        idle: 0,
        called: 0,
        sent_away: 0,
        threads: 0,
        blocked: 0,
        hosts: 0,
        starting: 0,
        stands_by: false,
        taken: 0,
    }),
    call: Condvar::new(),
    limit: OnceLock::new(),
};

thread_local! {
    /// On a thread that does jobs: whether this one's counts among the hosts.
    static IS_HOST: Cell<Option<bool>> = const { Cell::new(None) };
}

impl PoolState {
    /// How many threads there may be, and how many more if nothing moves (I9.2).
    fn allowed(&self) -> (usize, usize) {
        (POOL.limit() + self.blocked, self.hosts.min(POOL_LIMIT))
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
    fn limit(&self) -> usize {
        *self.limit.get_or_init(|| number_from_env("BLOCKING_MAX_THREADS").unwrap_or(POOL_LIMIT))
    }

    /// Queues a job and sees to it that a thread comes.
    fn submit(&'static self, runnable: Runnable) {
        check_for_fork_outside();
        let mut state = lock(&self.state);
        // Threads that are idle have perhaps not been called yet for the jobs that are queued.
        let is_taken = state.idle + state.called <= state.queue.len();
        if is_taken && state.threads >= state.allowed().0 {
            let is_new = IS_HOST.try_with(|host| host.get() == Some(false)).unwrap_or(false);
            if is_new {
                IS_HOST.set(Some(true));
                state.hosts += 1;
            }
        }
        state.queue.push_back(runnable);
        if !self.reinforce(state) && IS_HOST.try_with(Cell::get).ok().flatten().is_none() {
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
        let stands_by = state.threads >= allowed;
        if state.threads >= allowed + more || state.starting >= POOL_STARTING {
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
        let is_host = IS_HOST.try_with(Cell::get).ok().flatten();
        let when_blocked = WHEN_BLOCKED.replace(Some(|blocked| POOL.block(blocked)));
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
        WHEN_BLOCKED.set(when_blocked);
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
        WHEN_BLOCKED.set(Some(|blocked| POOL.block(blocked)));
        let mut state = lock(&self.state);
        state.starting -= 1;
        let mut came = true;
        loop {
            let (allowed, more) = state.allowed();
            if state.threads - usize::from(state.stands_by) > allowed + more {
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
            state.idle += 1;
            let idle = |state: &mut PoolState| state.called + state.sent_away == 0;
            let waited = self.call.wait_timeout_while(state, POOL_IDLE, idle);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            // Whoever called or sent us away has taken us off `idle`.
            if state.called > 0 {
                state.called -= 1;
                came = true;
            } else if state.sent_away > 0 {
                state.sent_away -= 1;
                return;
            } else {
                state.idle -= 1;
                state.threads -= 1;
                return;
            }
        }
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
/// else's `block_on`, it counts, and those whom it waits for must fit under the limit. Unless it
/// has handed them in itself: then another thread comes for them some milliseconds later.
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
pub fn unblock<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let (runnable, task) = new_task(async move { f() }, || {}, |runnable, _| POOL.submit(runnable));
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
    /// Those who wait for room in the queue, or for its end; each once.
    waiters: BTreeMap<(usize, usize), Arc<Waker>>,
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

/// How a handle is used: by `&mut`, so that there is no other living user of it, or by `&`.
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
        if wish.access == Access::Own {
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

    /// Whose is an answer? A poll does not say which future it is for. By `&mut` there is one: what
    /// does not fit comes from futures that are gone. By `&` there may be many; equal ones may have
    /// each other's, but the waker that asked comes first. What lay ready for a waker before it
    /// asked for something else that it now comes for was asked by a future that is gone, since a
    /// living one would have been polled in between. (Before a seek, it need not even lie ready.)
    /// Of those that are gone, failures are told and successes forgotten.
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
                (Access::Own, _) => Some(slip.started) != name,
                (Access::Shared, Some(name)) if lies_ready && slip.is_of(&wish.waker) => {
                    let is_write = matches!(slip.asked, Request::Write(..));
                    let moves = matches!(wish.request, Request::Seek(_));
                    slip.answer.is_some()
                        && (slip.answered < name || moves && is_write && slip.started < name)
                }
                _ => false,
            };
            let tells = !matches!(wish.request, Request::Item | Request::Call(_));
            match &slip.answer {
                _ if !is_gone => at += 1,
                None => return slip.wait(wish, trash),
                Some(answer) if answer.is_failure() && !tells => at += 1,
                Some(_) => match self.remove(at, trash) {
                    Some(answer) if answer.is_failure() => return Poll::Ready(Some(answer)),
                    _ => {}
                },
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
            let slips = mem::take(&mut self.slips).into_iter();
            (trash.0, self.slips) = slips.partition(is_old);
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
            moves: 0,
        };
        Arc::new(Lane { state: Mutex::new(state), goes_back })
    }

    /// The job: does what is in the queue.
    fn serve(self: Arc<Self>) {
        let mut is_over = false;
        while !is_over {
            let mut state = lock(&self.state);
            let (Some(order), Some(mut io)) = (state.queue.pop_front(), state.io.take()) else {
                return;
            };
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
            let mut wakers = lock(&desk).deliver(name, &mut answer);
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
            (Request::Read, None | Some(Answer::Number(Ok(1..)))) => {
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
        if let (false, Some(io)) = (state.is_served, state.io.take()) {
            return Poll::Ready(io);
        }
        trash.1.extend(state.add_waiter(waker));
        Poll::Pending
    }

    /// `now` may find bytes without waiting. `read` may wait, and says where they lie if it has not
    /// moved the position; `pass` then moves it, if it is still there.
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
        let take = |state: &mut LaneState<S>| {
            let (io, mut ahead) = (state.io.as_mut()?, state.ahead.take()?);
            let rest = &ahead.bytes[ahead.seen..];
            let len = buf.len().min(rest.len());
            if ahead.at.is_some_and(|at| !pass(io, at, len)) {
                return None;
            }
            buf[..len].copy_from_slice(&rest[..len]);
            ahead.seen += len;
            state.moves += u64::from(goes_back);
            state.ahead = Some(ahead).filter(|ahead| ahead.unseen() > 0);
            Some(Answer::Number(Ok(len as u64)))
        };
        let op = || {
            Box::new(move |io: &mut S, ahead: &mut Option<Ahead>| {
                // Bytes that are nowhere else are first seen by somebody.
                if let Some(ahead) = ahead.as_ref().filter(|ahead| ahead.at.is_none()) {
                    return Answer::Number(Ok(ahead.unseen() as u64));
                }
                let mut bytes = vec![0; len];
                let read = read(io, &mut bytes);
                *ahead = None;
                Answer::Number(read.map(|(len, at)| {
                    bytes.truncate(len);
                    *ahead = (len > 0).then_some(Ahead { at, bytes, seen: 0 });
                    len as u64
                }))
            }) as Op<S>
        };
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
                // What was read of a file may not be true any more.
                *ahead = ahead.take().filter(|ahead| ahead.at.is_none());
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

    /// Something else may move the position, or change what was read, at the wish of somebody who
    /// has the handle by `&`, so that no user by `&mut` is left.
    fn disturb(&self, desk: &Mutex<Desk>) {
        let mut state = lock(&self.state);
        state.moves += 1;
        state.ahead = state.ahead.take().filter(|ahead| ahead.at.is_none());
        for slip in lock(desk).slips.iter_mut().filter(|slip| slip.access == Access::Own) {
            slip.asked = Request::Gone;
        }
    }
}

impl<S> LaneState<S> {
    fn add_waiter(&mut self, waker: Arc<Waker>) -> Option<Arc<Waker>> {
        let vtable: *const _ = waker.vtable();
        self.waiters.insert((waker.data() as usize, vtable as usize), waker)
    }

    /// Whether no operation is under way, and no bytes lie here that are nowhere else.
    fn is_quiet(&self) -> bool {
        !self.is_served && self.ahead.as_ref().is_none_or(|ahead| ahead.unseen() == 0)
    }
}

impl Ahead {
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

/// Uses something that blocks without blocking the caller: each operation is run by the thread pool.
///
/// A reader becomes an [`AsyncRead`], a writer an [`AsyncWrite`], a seeker an [`AsyncSeek`], and an
/// iterator a [`Stream`]. For files, [`Async<File>`](Async) is faster.
///
/// Nothing is read ahead and nothing is written behind: when `write` says `Ok(n)`, the thing has
/// accepted n bytes, and an error is the operation's own. Dropping a future of `read` half way
/// loses no bytes, the next read gets them. Dropping one of `write` leaves open whether its bytes
/// were written: the same write, tried again, is that write and not another one; any other
/// operation waits for it, and tells its error if it failed. Dropping an `Unblock` does not wait
/// for an operation that is under way.
///
/// `WouldBlock` is never told: some other program may have made a terminal or pipe that it shares
/// with us non-blocking. On Unix, a standard output or a file is then waited for until it is ready;
/// others are tried again every millisecond.
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

/// A descriptor of standard input of its own, and what the reactor knows of it. Its mode stays as it is.
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
        let source = Source::new(registration::raw(&file), false);
        Some(Input { file: Arc::new(file), source })
    }
}

#[cfg(unix)]
impl Drop for Input {
    fn drop(&mut self) {
        self.source.deregister();
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
        let (lane, _) = self.lane();
        let io = poll_fn(|cx| lane.poll_take(cx)).await;
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
                    Box::new(|io, _| Answer::Any(Box::new(f.map(|f| f(io)))))
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
            let is_quiet = lock(&self.desk).slips.is_empty() && {
                let state = lock(&self.lane.state);
                !state.is_served && state.ahead.is_none()
            };
            if is_quiet {
                ready!(poll_source(source, Direction::Read, None, cx))?;
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
// uses §1 §5 §6 §8 §9 · used by §11-§12 · locks: none of its own
//
// PROBLEM   std's types for sockets, files and processes have a good interface, and block.
// IDEA      One type around any of them. Sockets, pipes and devices are polled: try the operation, and
//           when it says WouldBlock, wait for the reactor's news and try again. Regular files, which
//           the kernel always calls ready, go through a lane of the pool.
// I10.1     The thing is lent out as `&T` only, and the driver is dropped before it: so a registered handle
//           is never closed (§5, `registration`).
// I10.2     A future of ours that waits takes its waker back when it is dropped. `poll_read` and its like
//           cannot know; what they leave behind is bounded (`Side::put`).
// NEVER     says WouldBlock or Interrupted to the user.

/// A socket, pipe, file, process or other thing of the operating system, made asynchronous.
///
/// `T` is std's type, and its name tells what there is: `Async::<TcpStream>::connect`,
/// `Async::<UdpSocket>::bind`, `Async::<File>::open`, `Async::<Child>::spawn`. Whatever else std has is
/// reached through [`get_ref`](Async::get_ref); and any other handle that the system's poller knows, such as
/// an inotify or timer descriptor, can be wrapped with [`Async::new`] and used with
/// [`read_with`](Async::read_with) and [`readable`](Async::readable).
///
/// A clone is another handle to the same thing: this is how a socket is split. Any number of tasks
/// may wait for the same handle. All methods can be called from any thread and under any executor.
/// They are cancel-safe: a future that is dropped has either done nothing, or finished. Not so on
/// files, where a write goes on; see `Async::<File>::from`, also for what holds if many use one
/// handle.
///
/// Closing (`AsyncWriteExt::close`) shuts down the writing half of a socket. The descriptor is closed when the
/// last handle is dropped.
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
    shared: Arc<Driven<T>>,
    /// Where a lane leaves the answers for this handle.
    desk: Option<Arc<Mutex<Desk>>>,
}

/// A thing and who drives it.
struct Driven<T> {
    // Dropped first (I10.1).
    driver: Driver,
    io: Holder<T>,
}

enum Driver {
    /// The reactor tells when to try.
    Polled(Arc<Source>),
    /// Each operation goes to the pool.
    Pooled(Arc<Lane<Arc<File>>>),
    /// Neither: a process, whose own matter it is how it is waited for.
    Other(Arc<dyn Any + Send + Sync>),
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Driver::Polled(source) = self {
            source.deregister();
        }
    }
}

/// The thing itself, which a lane shares.
enum Holder<T> {
    Own(T),
    Shared(Arc<T>),
    #[cfg(windows)]
    Elsewhere,
}

impl<T: AsHandle> Async<T> {
    /// Makes a handle asynchronous: sets it to non-blocking mode and registers it with the poller.
    ///
    /// # Errors
    ///
    /// If the poller does not take it. Regular files and directories are of that kind; for them there is
    /// `Async::<File>::from`. Do not wrap standard input and output, whose mode is shared with other
    /// processes; [`Unblock`] is for them.
    ///
    /// On Windows only sockets can be wrapped.
    pub fn new(io: T) -> io::Result<Async<T>> {
        set_nonblocking(&io)?;
        Async::new_nonblocking(io)
    }

    /// The same for a handle that is in non-blocking mode already, or never blocks.
    pub fn new_nonblocking(io: T) -> io::Result<Async<T>> {
        let is_tcp = registration::is_tcp(registration::raw(&io));
        let this = Async::polled(io, is_tcp);
        if let Driver::Polled(source) = &this.shared.driver {
            source.register().map_err(|err| match err.kind() {
                io::ErrorKind::PermissionDenied => io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "the system cannot poll this handle; for a regular file, use Async::<File>::from",
                ),
                _ => err,
            })?;
        }
        Ok(this)
    }

    /// A handle that is registered when it blocks for the first time.
    fn polled(io: T, is_tcp: bool) -> Async<T> {
        let source = Source::new(registration::raw(&io), is_tcp);
        Async {
            shared: Arc::new(Driven { driver: Driver::Polled(source), io: Holder::Own(io) }),
            desk: None,
        }
    }
}

/// Sets a handle to non-blocking mode.
#[cfg(unix)]
fn set_nonblocking(io: &impl AsHandle) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(io.as_fd(), true)?)
}

/// Sets a handle to non-blocking mode, which is a property of the socket and not of the handle.
#[cfg(windows)]
fn set_nonblocking(io: &impl AsHandle) -> io::Result<()> {
    TcpStream::from(io.as_socket().try_clone_to_owned()?).set_nonblocking(true)
}

/// What systems read or write at once, whatever is asked for; Linux a little less than 2 GiB (read(2)).
const IO_LIMIT: usize = 1 << 30;

/// A waiter of ours, which takes itself off when it is dropped (I10.2).
struct Waiting<'a> {
    driver: &'a Driver,
    direction: Direction,
    token: Token,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let (Driver::Polled(source), true) = (self.driver, self.token != 0) {
            source.forget(self.direction, self.token);
        }
    }
}

impl<T> Async<T> {
    /// The thing itself.
    ///
    /// A polled handle is in non-blocking mode, so that its own operations do not block but may say
    /// `WouldBlock`.
    ///
    /// # Panics
    ///
    /// On Windows, for a `Child`, which is behind a lock there.
    pub fn get_ref(&self) -> &T {
        match &self.shared.io {
            Holder::Own(io) => io,
            Holder::Shared(io) => io,
            #[cfg(windows)]
            Holder::Elsewhere => panic!("on Windows, get_ref cannot be used on Async<Child>"),
        }
    }

    /// Takes the thing out and deregisters it. It stays in non-blocking mode; on Unix,
    /// `OwnedFd::try_from` gives one that blocks.
    ///
    /// # Errors
    ///
    /// If there are clones of this handle, or a file operation is under way, or one that was
    /// dropped has read from something that cannot seek. The handle is dropped then.
    pub fn into_inner(self) -> io::Result<T> {
        let busy = |why: &str| io::Error::new(io::ErrorKind::ResourceBusy, why.to_string());
        let shared =
            Arc::try_unwrap(self.shared).map_err(|_| busy("there are clones of this handle"))?;
        let Driven { driver, io } = shared;
        if let Driver::Pooled(lane) = &driver {
            let mut state = lock(&lane.state);
            if !state.is_quiet() {
                return Err(busy("an operation is under way, or bytes that it read would be lost"));
            }
            state.io = None;
        }
        drop(driver);
        match io {
            Holder::Own(io) => Ok(io),
            Holder::Shared(io) => {
                Arc::try_unwrap(io).map_err(|_| busy("an operation is under way"))
            }
            #[cfg(windows)]
            Holder::Elsewhere => Err(busy("a process cannot be taken out")),
        }
    }

    /// Waits until the handle is readable: until there are bytes, a connection, an event, or its end.
    ///
    /// It asks the system, not its own memory, so that it can be followed by an operation of one's own on
    /// [`get_ref`](Async::get_ref). Somebody else may be faster: be prepared for `WouldBlock`. A regular
    /// file is always readable.
    pub async fn readable(&self) -> io::Result<()> {
        self.wait_ready(Direction::Read).await
    }

    /// Waits until the handle is writable.
    pub async fn writable(&self) -> io::Result<()> {
        self.wait_ready(Direction::Write).await
    }

    async fn wait_ready(&self, direction: Direction) -> io::Result<()> {
        let mut waiting = Waiting { driver: &self.shared.driver, direction, token: 0 };
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

    /// Performs an operation that may say `WouldBlock`, again and again until it says something else,
    /// waiting until the handle is readable in between.
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
        let mut waiting = Waiting { driver: &self.shared.driver, direction, token: 0 };
        poll_fn(|cx| self.poll_io(direction, Some(&mut waiting.token), cx, &mut op, |_| false))
            .await
    }

    /// Tries an operation; when it says WouldBlock, leaves the waker with the source. `fell_short` says whether
    /// it would say so the next time.
    fn poll_io<R>(
        &self,
        direction: Direction,
        mut token: Option<&mut Token>,
        cx: &mut Context<'_>,
        mut op: impl FnMut(&T) -> io::Result<R>,
        fell_short: impl Fn(&R) -> bool,
    ) -> Poll<io::Result<R>> {
        ready!(spend(cx));
        let Driver::Polled(source) = &self.shared.driver else {
            return Poll::Ready(retry(|| op(self.get_ref())));
        };
        loop {
            let seen = source.look();
            if seen & direction.bit() != 0 {
                match op(self.get_ref()) {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                        source.blocked(direction, seen)
                    }
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                    Ok(output) => {
                        if fell_short(&output) {
                            source.fell_short(direction, seen);
                        }
                        return Poll::Ready(Ok(output));
                    }
                    Err(err) => return Poll::Ready(Err(err)),
                }
            }
            match source.wait(direction, token.as_deref_mut(), cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => {
                    attend(cx.waker());
                    return Poll::Pending;
                }
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
        match &self.shared.driver {
            Driver::Polled(source) => poll_source(source, direction, token, cx),
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
        let mut tuple = f.debug_tuple("Async");
        match &self.shared.io {
            Holder::Own(io) => tuple.field(io),
            Holder::Shared(io) => tuple.field(io),
            #[cfg(windows)]
            Holder::Elsewhere => &mut tuple,
        };
        tuple.finish()
    }
}

#[cfg(unix)]
impl<T: AsRawFd> AsRawFd for Async<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.get_ref().as_raw_fd()
    }
}

#[cfg(unix)]
impl<T: AsHandle> AsHandle for Async<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

#[cfg(windows)]
impl<T: AsRawSocket> AsRawSocket for Async<T> {
    fn as_raw_socket(&self) -> RawSocket {
        self.get_ref().as_raw_socket()
    }
}

#[cfg(windows)]
impl<T: AsHandle> AsHandle for Async<T> {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        self.get_ref().as_socket()
    }
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
    // Linux 5.9 and 5.10 say 0 where later ones say EAGAIN (preadv2(2), "BUGS").
    let is_end = len > 0 || { file }.stream_position().ok()? >= file.metadata().ok()?.len();
    is_end.then_some(len)
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
        match (&self.shared.driver, &self.desk) {
            (Driver::Pooled(lane), Some(desk)) => Some((lane, (desk, access))),
            _ => None,
        }
    }
}

impl<T> AsyncRead for &Async<T>
where
    for<'a> &'a T: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Shared) {
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
        if let Driver::Pooled(_) = &self.shared.driver {
            let buf = bufs.iter_mut().find(|buf| !buf.is_empty());
            return self.poll_read(cx, buf.map_or(&mut [], |buf| &mut **buf));
        }
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        // No word on what falls short: the system takes so many pieces and no more (IOV_MAX).
        self.poll_io(Direction::Read, None, cx, |mut io| io.read_vectored(bufs), |_| false)
    }
}

impl<T> AsyncWrite for &Async<T>
where
    for<'a> &'a T: Write,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Shared) {
            return lane.poll_write(who, cx, buf);
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let limit = buf.len().min(IO_LIMIT);
        let fell_short = |n: &usize| (1..limit).contains(n);
        self.poll_io(Direction::Write, None, cx, |mut io| io.write(buf), fell_short)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Shared) {
            return lane.poll_write(who, cx, &concatenate(bufs));
        }
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        // No word on what falls short: the system takes so many pieces and no more (IOV_MAX).
        self.poll_io(Direction::Write, None, cx, |mut io| io.write_vectored(bufs), |_| false)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some((lane, who)) = self.lane(Access::Shared) {
            return lane.poll_flush(who, cx);
        }
        self.poll_io(Direction::Write, None, cx, |mut io| io.flush(), |()| false)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        if let Driver::Polled(source) = &self.shared.driver {
            // What is no socket, or no longer connected, has nothing that could be shut down.
            registration::shut_down_writing(source.raw);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T> AsyncRead for Async<T>
where
    for<'a> &'a T: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            return poll_read_file(lane, who, cx, buf);
        }
        Pin::new(&mut &*self).poll_read(cx, buf)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            let buf = bufs.iter_mut().find(|buf| !buf.is_empty());
            return poll_read_file(lane, who, cx, buf.map_or(&mut [], |buf| &mut **buf));
        }
        Pin::new(&mut &*self).poll_read_vectored(cx, bufs)
    }
}

impl<T> AsyncWrite for Async<T>
where
    for<'a> &'a T: Write,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            return lane.poll_write(who, cx, buf);
        }
        Pin::new(&mut &*self).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            return lane.poll_write(who, cx, &concatenate(bufs));
        }
        Pin::new(&mut &*self).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            return lane.poll_flush(who, cx);
        }
        Pin::new(&mut &*self).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            return lane.poll_flush(who, cx);
        }
        Pin::new(&mut &*self).poll_close(cx)
    }
}
// ============================================================================================
// §11  Sockets: TCP, UDP and Unix on `Async<T>`
// ============================================================================================
//
// uses §1 §8-§10 · used by nobody · locks: none
//
// PROBLEM   Names have several addresses, some of which do not work; listeners meet errors that pass.
// IDEA      Thin methods over std's. `connect` races addresses as RFC 8305 says, with a delay between the
//           starts; `accept` holds back errors that only time can cure, so that a loop does not spin.
// NEVER     resolves a numeric address on the pool, which may be full of other work.

mod sealed {
    /// What an address turns out to be.
    #[derive(Debug)]
    pub enum Target {
        Known(Vec<std::net::SocketAddr>),
        Named(String, u16),
        Invalid(String),
    }

    pub trait ToTarget {
        fn to_target(self) -> Target;
    }
}

use sealed::{Target, ToTarget};

/// What can be given as an address: `"example.com:80"`, `("localhost", 80)`, `([127, 0, 0, 1], 80)`, a
/// [`SocketAddr`] or its parts, and slices and vectors of them.
///
/// Names are resolved by the operating system, on the pool; numeric addresses are not looked up.
pub trait ToAddrs: ToTarget {}

impl<T: ToTarget> ToAddrs for T {}

impl ToTarget for SocketAddr {
    fn to_target(self) -> Target {
        Target::Known(vec![self])
    }
}

impl ToTarget for SocketAddrV4 {
    fn to_target(self) -> Target {
        SocketAddr::from(self).to_target()
    }
}

impl ToTarget for SocketAddrV6 {
    fn to_target(self) -> Target {
        SocketAddr::from(self).to_target()
    }
}

impl ToTarget for &[SocketAddr] {
    fn to_target(self) -> Target {
        Target::Known(self.to_vec())
    }
}

impl ToTarget for Vec<SocketAddr> {
    fn to_target(self) -> Target {
        Target::Known(self)
    }
}

impl<const N: usize> ToTarget for [SocketAddr; N] {
    fn to_target(self) -> Target {
        Target::Known(self.to_vec())
    }
}

impl ToTarget for (&str, u16) {
    fn to_target(self) -> Target {
        match self.0.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.1).to_target(),
            Err(_) => Target::Named(self.0.to_string(), self.1),
        }
    }
}

impl ToTarget for (String, u16) {
    fn to_target(self) -> Target {
        (&*self.0, self.1).to_target()
    }
}

/// Pairs of an IP address in any of its forms and a port.
macro_rules! ip_and_port {
    ($($ip:ty),*) => {$(
        impl ToTarget for ($ip, u16) {
            fn to_target(self) -> Target {
                SocketAddr::new(IpAddr::from(self.0), self.1).to_target()
            }
        }
    )*};
}

ip_and_port!(IpAddr, Ipv4Addr, Ipv6Addr, [u8; 4], [u16; 8]);

impl ToTarget for &str {
    fn to_target(self) -> Target {
        if let Ok(addr) = self.parse::<SocketAddr>() {
            return addr.to_target();
        }
        match self.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(port))) if !host.is_empty() => (host, port).to_target(),
            _ => Target::Invalid(format!("{self:?} is not of the form host:port")),
        }
    }
}

impl ToTarget for String {
    fn to_target(self) -> Target {
        self.as_str().to_target()
    }
}

impl<T: ToTarget + Clone> ToTarget for &T {
    fn to_target(self) -> Target {
        self.clone().to_target()
    }
}

/// Finds the addresses of a name. Numeric addresses are returned as they are.
///
/// The operating system does it, on a thread of the pool; dropping the future does not stop that thread.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let addrs = smol::block_on(smol::resolve(("127.0.0.1", 80)))?;
/// assert_eq!(addrs, ["127.0.0.1:80".parse().unwrap()]);
/// # Ok(()) }
/// ```
pub async fn resolve(addr: impl ToAddrs) -> io::Result<Vec<SocketAddr>> {
    match addr.to_target() {
        Target::Named(host, port) => unblock(move || look_up(&host, port)).await,
        other => known(other),
    }
}

/// The same without a pool, for methods that are not `async`: a name blocks the thread.
fn resolve_now(addr: impl ToAddrs) -> io::Result<Vec<SocketAddr>> {
    match addr.to_target() {
        Target::Named(host, port) => look_up(&host, port),
        other => known(other),
    }
}

fn known(target: Target) -> io::Result<Vec<SocketAddr>> {
    match target {
        Target::Known(addrs) => Ok(addrs),
        Target::Named(name, _) => Err(io::Error::new(io::ErrorKind::InvalidInput, name)),
        Target::Invalid(why) => Err(io::Error::new(io::ErrorKind::InvalidInput, why)),
    }
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match (host, port).to_socket_addrs() {
        Ok(addrs) => Ok(addrs.collect()),
        Err(err) => Err(io::Error::new(err.kind(), format!("cannot resolve {host:?}: {err}"))),
    }
}

/// Whether an error of `accept` is for want of something that others may soon give back.
fn is_exhaustion(err: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        codes.iter().any(|code| err.raw_os_error() == Some(code.raw_os_error()))
    }
    // WSAEMFILE and WSAENOBUFS.
    #[cfg(windows)]
    matches!(err.raw_os_error(), Some(10024 | 10055))
}

impl Async<TcpListener> {
    /// Listens on an address; port 0 lets the system choose one.
    ///
    /// A name (not: a numeric address) is looked up on the calling thread. Of several addresses the first
    /// that works is taken.
    pub fn bind(addr: impl ToAddrs) -> io::Result<Async<TcpListener>> {
        Async::new(TcpListener::bind(&*resolve_now(addr)?)?)
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// An error is usually about one connection, and the next call may succeed. When the process or the system is
    /// out of descriptors or memory, the error comes some milliseconds later, so that a loop around
    /// `accept` lets others go on.
    pub async fn accept(&self) -> io::Result<(Async<TcpStream>, SocketAddr)> {
        let (stream, addr) = accept_with(self, |listener| {
            let (stream, addr) = listener.accept()?;
            stream.set_nonblocking(true)?;
            Ok((stream, addr))
        })
        .await?;
        Ok((Async::polled(stream, true), addr))
    }

    /// The connections, one after the other. The stream never ends; see [`accept`](Async::accept) for errors.
    pub fn incoming(&self) -> impl Stream<Item = io::Result<Async<TcpStream>>> + Send + Unpin + '_ {
        Box::pin(stream::unfold(self, |this| async move {
            Some((this.accept().await.map(|(stream, _)| stream), this))
        }))
    }
}

/// Accepts, and holds back an error that others must cure.
async fn accept_with<L, R>(
    listener: &Async<L>,
    op: impl FnMut(&L) -> io::Result<R>,
) -> io::Result<R> {
    let result = listener.read_with(op).await;
    if result.as_ref().is_err_and(is_exhaustion) {
        Timer::after(ACCEPT_PAUSE).await;
    }
    result
}

impl Async<TcpStream> {
    /// Connects to an address.
    ///
    /// If there are several, the families take turns, beginning with that of the first; the next one is tried when
    /// one has failed, or after 250 ms. The first that answers wins, and the others are closed (RFC 8305).
    ///
    /// # Errors
    ///
    /// The error names each address that was tried, and is of the kind of the last that failed.
    pub async fn connect(addr: impl ToAddrs) -> io::Result<Async<TcpStream>> {
        let mut waiting = take_turns(resolve(addr).await?).into_iter();
        let mut attempts: Vec<(SocketAddr, future::Boxed<io::Result<Async<TcpStream>>>)> =
            Vec::new();
        let mut failed = Vec::new();
        let mut kind = io::ErrorKind::InvalidInput;
        let mut stagger = Timer::at(Instant::now());
        poll_fn(|cx| {
            loop {
                let mut i = 0;
                while i < attempts.len() {
                    let (addr, attempt) = &mut attempts[i];
                    match attempt.as_mut().poll(cx) {
                        Poll::Ready(Ok(stream)) => return Poll::Ready(Ok(stream)),
                        Poll::Ready(Err(err)) => {
                            kind = err.kind();
                            failed.push(format!("{addr}: {err}"));
                            drop(attempts.swap_remove(i));
                            stagger.set_at(Instant::now());
                        }
                        Poll::Pending => i += 1,
                    }
                }
                if attempts.is_empty() && waiting.len() == 0 {
                    let why = if failed.is_empty() {
                        "no address given".into()
                    } else {
                        failed.join("; ")
                    };
                    return Poll::Ready(Err(io::Error::new(
                        kind,
                        format!("cannot connect: {why}"),
                    )));
                }
                if waiting.len() == 0 {
                    return Poll::Pending;
                }
                ready!(stagger.poll_fire(cx));
                stagger.set_after(CONNECT_STAGGER);
                attempts.extend(
                    waiting
                        .next()
                        .map(|addr| (addr, Box::pin(connect_to(addr)) as future::Boxed<_>)),
                );
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
    let (same, other): (Vec<_>, Vec<_>) =
        addrs.into_iter().partition(|addr| addr.is_ipv6() == first_is_v6);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let pairs = iter::from_fn(|| {
        Some([same.next(), other.next()]).filter(|pair| pair.iter().any(Option::is_some))
    });
    pairs.flatten().flatten().collect()
}

/// Connects to one address.
#[cfg(unix)]
async fn connect_to(addr: SocketAddr) -> io::Result<Async<TcpStream>> {
    use rustix::net::{AddressFamily, SocketType};
    let family = if addr.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = new_socket(family, SocketType::STREAM)?;
    use rustix::io::Errno;
    match rustix::net::connect(&socket, &addr) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(err) => return Err(err.into()),
    }
    let stream = Async::polled(TcpStream::from(socket), true);
    stream.writable().await?;
    if let Some(err) = stream.get_ref().take_error()? {
        return Err(err);
    }
    // Some systems wake the writer early: then this says so.
    stream.get_ref().peer_addr()?;
    Ok(stream)
}

/// Connects to one address. std has no non-blocking connect, so this waits on the pool, and goes on there if
/// it is dropped.
#[cfg(windows)]
async fn connect_to(addr: SocketAddr) -> io::Result<Async<TcpStream>> {
    let stream = unblock(move || TcpStream::connect(addr)).await?;
    stream.set_nonblocking(true)?;
    Ok(Async::polled(stream, true))
}

/// A socket that does not block, is not inherited by children, and raises no signals.
#[cfg(unix)]
fn new_socket(
    family: rustix::net::AddressFamily,
    kind: rustix::net::SocketType,
) -> io::Result<OwnedFd> {
    #[cfg(not(any(target_vendor = "apple", target_os = "aix", target_os = "haiku")))]
    {
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        Ok(rustix::net::socket_with(family, kind, flags, None)?)
    }
    #[cfg(any(target_vendor = "apple", target_os = "aix", target_os = "haiku"))]
    {
        let socket = rustix::net::socket(family, kind, None)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[cfg(target_vendor = "apple")]
        rustix::net::sockopt::set_socket_nosigpipe(&socket, true)?;
        Ok(socket)
    }
}

impl Async<UdpSocket> {
    /// Makes a socket that receives at an address; port 0 lets the system choose one. A name (not: a numeric
    /// address) is looked up on the calling thread.
    ///
    /// To talk to one peer only, use `get_ref().connect(addr)`, [`send`](Async::send) and
    /// [`recv`](Async::recv).
    pub fn bind(addr: impl ToAddrs) -> io::Result<Async<UdpSocket>> {
        Async::new(UdpSocket::bind(&*resolve_now(addr)?)?)
    }

    /// Receives one datagram and the address of its sender. What does not fit into the buffer is lost.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.read_with(|socket| socket.recv_from(buf)).await
    }

    /// The same, and leaves the datagram where it is.
    pub async fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.read_with(|socket| socket.peek_from(buf)).await
    }

    /// Sends one datagram to an address, the first one if there are several.
    pub async fn send_to(&self, buf: &[u8], addr: impl ToAddrs) -> io::Result<usize> {
        let addr = resolve(addr).await?.into_iter().next();
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "no address given");
        let addr = addr.ok_or_else(none)?;
        self.write_with(|socket| socket.send_to(buf, addr)).await
    }

    /// Receives one datagram from the peer it is connected to.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|socket| socket.recv(buf)).await
    }

    /// The same, and leaves the datagram where it is.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|socket| socket.peek(buf)).await
    }

    /// Sends one datagram to the peer it is connected to.
    pub async fn send(&self, buf: &[u8]) -> io::Result<usize> {
        self.write_with(|socket| socket.send(buf)).await
    }
}

/// A path as the address of a Unix socket. One that begins with a NUL is an abstract name, on Linux.
#[cfg(unix)]
fn unix_addr(path: &Path) -> io::Result<UnixAddr> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        #[cfg(target_os = "android")]
        use std::os::android::net::SocketAddrExt;
        #[cfg(target_os = "linux")]
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        if let Some(name) = path.as_os_str().as_bytes().strip_prefix(b"\0") {
            return UnixAddr::from_abstract_name(name);
        }
    }
    UnixAddr::from_pathname(path)
}

/// Performs an operation on a Unix socket until somebody else's queue is not full. Nothing tells when
/// that is so (connect(2); and a socket without a peer always counts as writable), so this tries again
/// and again.
#[cfg(unix)]
async fn try_until_taken<R>(mut op: impl FnMut() -> io::Result<R>) -> io::Result<R> {
    let mut pause = Duration::from_millis(1);
    loop {
        match retry(&mut op) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Timer::after(pause).await,
            result => return result,
        };
        pause = (pause * 2).min(Duration::from_millis(32));
    }
}

#[cfg(unix)]
impl Async<UnixListener> {
    /// Listens on a path, which must not exist yet. On Linux, a path that begins with a NUL byte is a name in
    /// the abstract namespace (unix(7)).
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Async<UnixListener>> {
        Async::new(UnixListener::bind_addr(&unix_addr(path.as_ref())?)?)
    }

    /// Waits for the next connection. For errors see `Async<TcpListener>`.
    pub async fn accept(&self) -> io::Result<(Async<UnixStream>, UnixAddr)> {
        let (stream, addr) = accept_with(self, |listener| {
            let (stream, addr) = listener.accept()?;
            stream.set_nonblocking(true)?;
            Ok((stream, addr))
        })
        .await?;
        Ok((Async::polled(stream, false), addr))
    }

    /// The connections, one after the other. The stream never ends.
    pub fn incoming(
        &self,
    ) -> impl Stream<Item = io::Result<Async<UnixStream>>> + Send + Unpin + '_ {
        Box::pin(stream::unfold(self, |this| async move {
            Some((this.accept().await.map(|(stream, _)| stream), this))
        }))
    }
}

#[cfg(unix)]
impl Async<UnixStream> {
    /// Connects to the listener at a path, or an abstract name. Waits while its queue is full.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Async<UnixStream>> {
        use rustix::io::Errno;
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
        use std::os::unix::ffi::OsStrExt;
        let path = path.as_ref();
        let addr = match path.as_os_str().as_bytes().strip_prefix(b"\0") {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            _ => {
                unix_addr(path)?;
                SocketAddrUnix::new(path)?
            }
        };
        let socket = new_socket(AddressFamily::UNIX, SocketType::STREAM)?;
        let stream = Async::polled(UnixStream::from(socket), false);
        let connect = || match rustix::net::connect(stream.get_ref(), &addr) {
            Ok(()) | Err(Errno::ISCONN | Errno::INPROGRESS | Errno::INTR) => Ok(()),
            Err(err) => Err(io::Error::from(err)),
        };
        try_until_taken(connect).await?;
        stream.writable().await?;
        match stream.get_ref().take_error()? {
            Some(err) => Err(err),
            None => stream.get_ref().peer_addr().map(|_| stream),
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
        Async::new(UnixDatagram::bind_addr(&unix_addr(path.as_ref())?)?)
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

    /// Receives one datagram and the address of its sender. What does not fit into the buffer is lost.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, UnixAddr)> {
        self.read_with(|socket| socket.recv_from(buf)).await
    }

    /// Sends one datagram to a path or an abstract name.
    pub async fn send_to(&self, buf: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        let addr = unix_addr(path.as_ref())?;
        try_until_taken(|| self.get_ref().send_to_addr(buf, &addr)).await
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

try_from_std!(TcpListener, TcpStream, UdpSocket);
#[cfg(unix)]
try_from_std!(UnixListener, UnixStream, UnixDatagram);

// ============================================================================================
// §12  Files and processes: what the kernel cannot poll, and what it can
// ============================================================================================
//
// uses §1 §6 §8-§11 · used by nobody · locks: reaped (leaf)
//
// PROBLEM   A read from a disk blocks and a child's end is no bytes.
// IDEA      Files: whole operations on the pool; on Linux, a read first asks for what the page cache has
//           (preadv2(2) with RWF_NOWAIT), which needs no other thread. Children: a pidfd (pidfd_open(2))
//           is a handle like any other; where there is none, one pool thread waits.
// I12.1     A process is reaped once, under the lock, and never signalled after that: its number may belong
//           to somebody else then.
// NEVER     kills a child on its own, and never leaves a zombie.

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

    /// Runs a closure with the file on the pool: for everything that std's [`File`] has and this has not.
    ///
    /// It may run beside a read or write of another user. It sees the user's position, since
    /// nothing is read ahead; only what cannot seek, a pipe for one, may have given bytes to a read
    /// that was dropped, which the next read gets. If the future is dropped, a closure that has
    /// begun runs to its end.
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
}

impl Async<File> {
    /// Reads all that is left, and returns how much that was.
    ///
    /// It does what the method of the same name in [`AsyncReadExt`](io::AsyncReadExt) does, which
    /// fills all of the buffer that is free with zeros whenever it is polled: for a large file,
    /// longer than others may be held up. If the future is dropped, `buf` has what was read so far.
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
            lane.disturb(desk);
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
    /// that nobody took. (What cannot seek keeps such bytes for the next read.) One of `write` or
    /// `seek` that is dropped leaves open whether it was done:
    ///
    /// - By `&mut`, whoever polls is the only user of this handle. The same write, tried again, is
    ///   the one that was dropped, so that nothing is written twice. Any other operation waits for
    ///   it, and tells its error if it failed.
    /// - By `&`, a poll does not say which future it is for. An answer is known by what was asked
    ///   and by the waker that asked; equal writes of different tasks may have each other's. An
    ///   error of a dropped future is told by a later operation of the same task. A task that drops
    ///   a write and goes on by `&` with others may get its answer for a later write of the very
    ///   same bytes: tasks that cancel writes should have a clone each. What cancelled tasks leave
    ///   behind takes some hundred bytes each until the handle is dropped or used by `&mut`, or, if
    ///   it is thousands, for a minute.
    fn from(file: File) -> Async<File> {
        // Elsewhere the position means nothing, or there is none.
        let goes_back = file.metadata().is_ok_and(|data| data.is_file() || is_block_device(&data));
        let file = Arc::new(file);
        let driver = Driver::Pooled(Lane::new(file.clone(), goes_back));
        let shared = Arc::new(Driven { driver, io: Holder::Shared(file) });
        Async { shared, desk: Some(Arc::default()) }
    }
}

impl AsyncSeek for &Async<File> {
    fn poll_seek(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        match self.lane(Access::Shared) {
            Some((lane, who)) => lane.poll_seek(who, cx, to),
            None => Poll::Ready(self.get_ref().seek(to)),
        }
    }
}

impl AsyncSeek for Async<File> {
    fn poll_seek(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        if let Some((lane, who)) = self.lane(Access::Own) {
            return lane.poll_seek(who, cx, to);
        }
        Pin::new(&mut &*self).poll_seek(cx, to)
    }
}

#[cfg(unix)]
impl<T: Into<OwnedFd>> TryFrom<Async<T>> for OwnedFd {
    type Error = io::Error;

    /// The descriptor, out of the poller and blocking again.
    ///
    /// # Errors
    ///
    /// Those of [`into_inner`](Async::into_inner): there are clones of the handle, for one.
    fn try_from(handle: Async<T>) -> io::Result<OwnedFd> {
        let fd = handle.into_inner()?.into();
        rustix::io::ioctl_fionbio(&fd, false)?;
        Ok(fd)
    }
}

impl TryFrom<Async<File>> for Stdio {
    type Error = io::Error;

    /// A file or pipe for a child that is about to be started: the output of one child can be the
    /// input of the next.
    ///
    /// # Errors
    ///
    /// Those of [`into_inner`](Async::into_inner): there are clones of the handle, for one.
    fn try_from(handle: Async<File>) -> io::Result<Stdio> {
        #[cfg(unix)]
        return Ok(Stdio::from(OwnedFd::try_from(handle)?));
        #[cfg(windows)]
        return Ok(Stdio::from(handle.into_inner()?));
    }
}

/// A child process and its pipes.
struct Process {
    #[cfg(unix)]
    pid: rustix::process::Pid,
    /// Readable when the child has ended.
    #[cfg(unix)]
    pidfd: Option<Async<OwnedFd>>,
    #[cfg(unix)]
    reaped: Mutex<Reaped>,
    #[cfg(windows)]
    child: Mutex<Child>,
    pipes: Mutex<[Option<Async<File>>; 3]>,
}

/// Whether a child was waited for, and who waits for it where there is no pidfd.
#[cfg(unix)]
struct Reaped {
    status: Option<Result<ExitStatus, rustix::io::Errno>>,
    waiters: Vec<Waker>,
    watched: bool,
}

#[cfg(unix)]
impl Process {
    fn new(child: &Child, pipes: [Option<Async<File>>; 3]) -> io::Result<Process> {
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        #[cfg(target_os = "linux")]
        let pidfd = {
            use rustix::process::{PidfdFlags, pidfd_open};
            pidfd_open(pid, PidfdFlags::empty()).ok().map(|fd| Async::polled(fd, false))
        };
        #[cfg(not(target_os = "linux"))]
        let pidfd = None;
        let reaped = Mutex::new(Reaped { status: None, waiters: Vec::new(), watched: false });
        Ok(Process { pid, pidfd, reaped, pipes: Mutex::new(pipes) })
    }

    /// Takes the child's status from the kernel if it has ended. An error means that somebody else took it.
    fn reap(&self) -> Option<io::Result<ExitStatus>> {
        use rustix::process::{WaitOptions, waitpid};
        use std::os::unix::process::ExitStatusExt;
        let mut reaped = lock(&self.reaped);
        if reaped.status.is_none() {
            reaped.status = match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(None) | Err(rustix::io::Errno::INTR) => None,
                Ok(Some((_, status))) => Some(Ok(ExitStatus::from_raw(status.as_raw()))),
                Err(err) => Some(Err(err)),
            };
        }
        reaped.status.map(|status| status.map_err(io::Error::from))
    }

    fn kill(&self) -> io::Result<()> {
        // I12.1: under the lock, nobody can reap it meanwhile.
        let reaped = lock(&self.reaped);
        if reaped.status.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the process has ended and was waited for",
            ));
        }
        // With a pidfd it cannot be a stranger, even if somebody else has waited for the process.
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            let kill = rustix::process::Signal::KILL;
            return Ok(rustix::process::pidfd_send_signal(pidfd, kill)?);
        }
        Ok(rustix::process::kill_process(self.pid, rustix::process::Signal::KILL)?)
    }

    async fn status(self: &Arc<Self>) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap() {
                return status;
            }
            match &self.pidfd {
                Some(pidfd) => pidfd.readable().await?,
                None => self.wait_on_the_pool().await,
            }
        }
    }

    /// Waits until the child has ended, with one pool thread for all who wait. It leaves the status there.
    async fn wait_on_the_pool(self: &Arc<Self>) {
        let mut waited = false;
        poll_fn(|cx| {
            if mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            let mut waker = cx.waker().clone();
            let watched = {
                let mut reaped = lock(&self.reaped);
                match reaped.waiters.iter_mut().find(|other| other.will_wake(&waker)) {
                    Some(same) => mem::swap(same, &mut waker),
                    None => reaped.waiters.push(mem::replace(&mut waker, Waker::noop().clone())),
                }
                mem::replace(&mut reaped.watched, true)
            };
            if !watched {
                let this = self.clone();
                let job = unblock(move || {
                    wait_for_end(this.pid);
                    let waiters = {
                        let mut reaped = lock(&this.reaped);
                        reaped.watched = false;
                        mem::take(&mut reaped.waiters)
                    };
                    wake_all(waiters);
                });
                job.detach();
            }
            Poll::Pending
        })
        .await
    }
}

/// Blocks until a child has ended, and leaves its status where it is (`WNOWAIT`).
#[cfg(unix)]
fn wait_for_end(pid: rustix::process::Pid) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
}

#[cfg(unix)]
impl Drop for Process {
    fn drop(&mut self) {
        if self.reap().is_some() {
            return;
        }
        // It is still running. Somebody must take its status when it ends.
        use rustix::process::{WaitOptions, waitpid};
        let (pid, pidfd) = (self.pid, self.pidfd.take());
        let wait = move || {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        };
        match pidfd {
            Some(pidfd) => spawn(async move {
                while pidfd.readable().await.is_ok() {
                    if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                        return;
                    }
                }
                unblock(wait).await
            })
            .detach(),
            None => unblock(wait).detach(),
        }
    }
}

#[cfg(windows)]
impl Process {
    fn kill(&self) -> io::Result<()> {
        lock(&self.child).kill()
    }

    /// Looks every few milliseconds: std cannot wait for a process and let others kill it meanwhile.
    async fn status(self: &Arc<Self>) -> io::Result<ExitStatus> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = lock(&self.child).try_wait()? {
                return Ok(status);
            }
            Timer::after(pause).await;
            pause = (pause * 2).min(Duration::from_millis(16));
        }
    }
}

impl Async<Child> {
    /// Starts a program. What is to be piped is set on the command, as with std:
    /// [`Command::stdin`], [`Command::stdout`], [`Command::stderr`].
    ///
    /// Starting takes some hundred microseconds, during which the calling thread is blocked. Dropping all handles
    /// neither kills the child nor leaves a zombie.
    ///
    /// ```
    /// use smol::Async;
    /// use std::process::{Child, Command, Stdio};
    ///
    /// # #[cfg(unix)]
    /// # fn main() -> std::io::Result<()> {
    /// smol::block_on(async {
    ///     let child = Async::<Child>::spawn(Command::new("echo").arg("hi").stdout(Stdio::piped()))?;
    ///     let output = child.output().await?;
    ///     assert_eq!(output.stdout, b"hi\n");
    ///     Ok(())
    /// })
    /// # }
    /// # #[cfg(windows)] fn main() {}
    /// ```
    pub fn spawn(command: &mut Command) -> io::Result<Async<Child>> {
        let mut child = command.spawn()?;
        let mut take_pipes = || -> io::Result<_> {
            let stdin = child.stdin.take().map(pipe_from).transpose()?;
            let stdout = child.stdout.take().map(pipe_from).transpose()?;
            let stderr = child.stderr.take().map(pipe_from).transpose()?;
            Ok([stdin, stdout, stderr])
        };
        let pipes = match take_pipes() {
            Ok(pipes) => pipes,
            Err(err) => {
                // Then it is as if it had never been.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(err);
            }
        };
        #[cfg(unix)]
        let (driver, io) = (Process::new(&child, pipes)?, Holder::Own(child));
        #[cfg(windows)]
        let (driver, io) =
            (Process { child: Mutex::new(child), pipes: Mutex::new(pipes) }, Holder::Elsewhere);
        let driver = Driver::Other(Arc::new(driver));
        Ok(Async { shared: Arc::new(Driven { driver, io }), desk: None })
    }

    fn process(&self) -> Arc<Process> {
        let process = match &self.shared.driver {
            Driver::Other(process) => process.clone().downcast().ok(),
            _ => None,
        };
        process.expect("an Async<Child> is made by `spawn` only")
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        #[cfg(unix)]
        return self.get_ref().id();
        #[cfg(windows)]
        return lock(&self.process().child).id();
    }

    /// Makes the process end (on Unix, by `SIGKILL`). Await [`status`](Async::status) to see it gone.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it has ended and was waited for.
    pub fn kill(&self) -> io::Result<()> {
        self.process().kill()
    }

    /// Waits until the process has ended, and gives its status; any number of times.
    ///
    /// The pipe to its standard input is closed first, unless it was taken, so that the child does not wait for
    /// us. Cancel-safe.
    ///
    /// # Errors
    ///
    /// If somebody else has waited for the process, or the program ignores `SIGCHLD`: the status is lost then.
    pub async fn status(&self) -> io::Result<ExitStatus> {
        drop(self.take_stdin());
        self.process().status().await
    }

    /// Waits until the process has ended, and collects what it writes to those pipes that were not taken.
    pub async fn output(self) -> io::Result<Output> {
        drop(self.take_stdin());
        let (out, err) =
            future::try_zip(drain(self.take_stdout()), drain(self.take_stderr())).await?;
        let status = self.status().await?;
        Ok(Output { status, stdout: out, stderr: err })
    }

    /// The pipe to the child's standard input, if there is one and it was not taken yet. Dropping it
    /// tells the child that there is no more.
    pub fn take_stdin(&self) -> Option<Async<File>> {
        lock(&self.process().pipes)[0].take()
    }

    /// The pipe from the child's standard output, if there is one and it was not taken yet.
    ///
    /// For the input of another child there is `Stdio::try_from(pipe)`. (`into_inner` gives a pipe
    /// that is still non-blocking, at which most programs fail.)
    pub fn take_stdout(&self) -> Option<Async<File>> {
        lock(&self.process().pipes)[1].take()
    }

    /// The pipe from the child's standard error, if there is one and it was not taken yet.
    pub fn take_stderr(&self) -> Option<Async<File>> {
        lock(&self.process().pipes)[2].take()
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
    set_nonblocking(&pipe)?;
    Ok(Async::polled(pipe, false))
}

/// Our end of a child's pipe, which Windows cannot poll.
#[cfg(windows)]
fn pipe_from(pipe: impl Into<std::os::windows::io::OwnedHandle>) -> io::Result<Async<File>> {
    Ok(Async::from(File::from(pipe.into())))
}

// ============================================================================================
// §13  Promises the compiler keeps
// ============================================================================================
//
// uses all

const _: () = {
    const fn send_and_sync<T: Send + Sync>() {}
    const fn send<T: Send>() {}
    const fn unpin<T: Unpin>() {}
    send_and_sync::<Executor<'_>>();
    send_and_sync::<Timer>();
    send_and_sync::<TimedOut>();
    send_and_sync::<Async<TcpStream>>();
    send_and_sync::<Async<File>>();
    send_and_sync::<Async<Child>>();
    send::<Unblock<File>>();
    unpin::<Timer>();
    unpin::<Async<TcpStream>>();
    unpin::<Unblock<File>>();
};

/// What stays on its thread does so at compile time.
///
/// ```compile_fail
/// fn is_send<T: Send>(_: T) {}
/// is_send(smol::LocalExecutor::new());
/// ```
///
/// ```compile_fail
/// smol::spawn(async { let rc = std::rc::Rc::new(1); std::future::ready(()).await; drop(rc) });
/// ```
#[cfg(doctest)]
struct StaysOnItsThread;

/// The code in the README runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
