//! The random program: who runs what, on which thread, and who loses interest half way.
//!
//! A *drive* is a way to run things (tasks, a thread with some `block_on`, an `Executor`, a `scope`
//! …) and runs other drives in it, down to some depth; an *act* at its end does something and
//! checks what comes out. Every choice is made by a number that the drive was given, so that a seed
//! is a program. (Its schedule is the system's.)

use super::bytes;
use super::ledger::{LEDGER, Life};
use crate::{
    Channel,
    common::{Flag, OnDrop, counting_waker, foreign_block_on, set_on_drop, sleep},
};
use fastrand::Rng;
use smol::{
    Executor, LocalExecutor, ScopedTask, Task, Timer, block_on, future, future::FutureExt,
    prelude::*, scope, spawn, spawn_local, timeout, unblock,
};
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, resume_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// So many microseconds at most.
pub(crate) fn micros(random: &mut Rng, most: u64) -> Duration {
    Duration::from_micros(random.u64(0..=most))
}

/// Lets other threads run. Not by `yield_now`: some kernels make who yields again and again wait
/// for seconds.
fn pause() {
    thread::sleep(Duration::from_micros(10));
}

/// What a drive of this number returns.
fn output(seed: u64) -> u64 {
    seed.rotate_left(17) ^ 0xACE
}

// ---------- who loses interest ----------

/// Awaits a future, or drops it half way: after some polls, after some time. Sometimes somebody
/// else polls it first, whose waker must be forgotten.
pub(crate) async fn give_up<T>(random: &mut Rng, future: impl Future<Output = T>) -> Option<T> {
    LEDGER.did(1);
    let mut future = pin!(future);
    match random.u8(0..10) {
        0 => {
            let mut left = random.u32(1..5);
            poll_fn(|cx| match future.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending => {
                    left -= 1;
                    if left == 0 { Poll::Ready(None) } else { Poll::Pending }
                }
            })
            .await
        }
        1 => timeout(micros(random, 300), future).await.ok(),
        2 => {
            let (waker, _) = counting_waker();
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(value);
            }
            Some(future.await)
        }
        _ => Some(future.await),
    }
}

/// Awaits it again and again until somebody waits to its end: for operations that lose nothing when
/// they are dropped.
pub(crate) async fn insist<T, F: Future<Output = T>>(
    random: &mut Rng,
    mut begin: impl FnMut() -> F,
) -> T {
    loop {
        if let Some(value) = give_up(random, begin()).await {
            return value;
        }
    }
}

/// What becomes of a task: awaited, cancelled, dropped, or left alone.
async fn dispose(random: &mut Rng, seed: u64, task: Task<(u64, Life)>) {
    let check = |(value, _life): (u64, Life)| {
        if value != output(seed) {
            LEDGER.fail("the output of another task");
        }
    };
    if random.u8(0..4) == 0 {
        future::yield_now().await;
    }
    match random.u8(0..10) {
        0 => drop(task),
        1 => {
            task.cancel().await.map(check);
        }
        2 => task.detach(),
        3 => match task.fallible().await {
            Some(value) => check(value),
            None => LEDGER.fail("a task is cancelled that nobody cancelled"),
        },
        4 => {
            let task = task.fallible();
            let task = pin!(task);
            // A handle that was given up cancels.
            give_up(random, task).await.flatten().map(check);
        }
        _ => check(task.await),
    }
}

// ---------- threads that come and go ----------

/// Runs a closure on a thread of its own; the future waits for its end, and can be dropped.
pub(crate) fn on_a_thread(
    seed: u64,
    run: impl FnOnce() + Send + 'static,
) -> impl Future<Output = ()> + Send {
    let (life, done) = (LEDGER.begin("thread", seed), Flag::new());
    let ended = set_on_drop(&done);
    let body = Arc::new(Mutex::new(Some(move || {
        let _ended = ended; // after `life`, so that whoever waits finds it gone
        let _life = life;
        run();
    })));
    loop {
        let body = body.clone();
        let builder = thread::Builder::new().name("stress".into()).stack_size(1024 * 1024);
        let started = builder.spawn(move || {
            let body = body.lock().unwrap().take().expect("one thread");
            body();
        });
        // Others wait for what this thread does: it is started again if this run lets starts fail.
        if LEDGER.judge("a thread", seed, started).is_some() {
            return async move { done.wait().await };
        }
        thread::sleep(Duration::from_millis(1));
    }
}

// ---------- drives ----------

/// Runs a random program of this depth. Returns `output(seed)`, and a life that must end with that.
pub(crate) fn drive(seed: u64, depth: u32) -> Boxed<(u64, Life)> {
    let life = LEDGER.begin("drive", seed);
    Box::pin(async move {
        let mut random = Rng::with_seed(seed);
        for step in 0..random.u64(1..4) {
            life.stage("step", step);
            let next = random.u64(..);
            if depth == 0 || random.u8(0..3) == 0 {
                act(next).await;
                continue;
            }
            let way = random.usize(0..WAYS.len());
            let (what, way) = WAYS[way];
            life.stage(what, step);
            let began = LEDGER.begin(what, next);
            let whole = way(Rng::with_seed(next), depth - 1);
            if random.u8(0..5) == 0 {
                give_up(&mut random, whole).await;
            } else {
                whole.await;
            }
            drop(began);
        }
        drop(life);
        (output(seed), LEDGER.begin("output", seed))
    })
}

type Way = fn(Rng, u32) -> Boxed<()>;

const WAYS: &[(&str, Way)] = &[
    ("tasks", |random, depth| Box::pin(tasks(random, depth))),
    ("tasks", |random, depth| Box::pin(tasks(random, depth))),
    ("nested", |random, depth| Box::pin(nested(random, depth))),
    ("pool", |random, depth| Box::pin(pool(random, depth))),
    ("inline", |mut random, depth| {
        Box::pin(async move { drop(drive(random.u64(..), depth).await) })
    }),
    ("executor", |random, depth| Box::pin(executor(random, depth))),
    ("block_on", |random, depth| thread_with(random, depth, plainly)),
    ("foreign", |random, depth| thread_with(random, depth, foreign)),
    ("local", |random, depth| thread_with(random, depth, locally)),
    ("local executor", |random, depth| thread_with(random, depth, local_executor)),
    ("scope", |random, depth| thread_with(random, depth, in_a_scope)),
    ("short drives", |random, depth| thread_with(random, depth, short_drives)),
];

async fn tasks(mut random: Rng, depth: u32) {
    let tasks: Vec<_> = (0..random.u32(1..5))
        .map(|_| random.u64(..))
        .map(|seed| (seed, spawn(drive(seed, depth))))
        .collect();
    for (seed, task) in tasks {
        dispose(&mut random, seed, task).await;
    }
}

/// Whether tasks and jobs run on threads that are in `block_on`, because no others can be started.
/// One that blocks holds up such a thread's own future, for which another may wait that blocks on
/// another such thread: see `spawn`.
fn is_without_threads() -> bool {
    std::env::var_os("RUST_MIN_STACK").is_some()
}

/// Blocks its thread until others have done their work.
async fn nested(mut random: Rng, depth: u32) {
    let seed = random.u64(..);
    if is_without_threads() {
        return dispose(&mut random, seed, spawn(drive(seed, depth))).await;
    }
    let (value, _life) = block_on(spawn(drive(seed, depth)));
    assert_eq!(value, output(seed));
}

async fn pool(mut random: Rng, depth: u32) {
    let seed = random.u64(..);
    if is_without_threads() {
        return dispose(&mut random, seed, spawn(drive(seed, depth))).await;
    }
    let job = unblock(move || block_on(drive(seed, depth)));
    dispose(&mut random, seed, job).await;
}

/// An `Executor` whose drivers come and go, and which is dropped with tasks in it.
async fn executor(mut random: Rng, depth: u32) {
    let (executor, stop) = (Arc::new(Executor::new()), Flag::new());
    let _stopped = set_on_drop(&stop);
    let drivers: Vec<_> = (0..random.u32(0..3))
        .map(|_| {
            let (executor, stop, seed) = (executor.clone(), stop.clone(), random.u64(..));
            on_a_thread(seed, move || {
                let mut random = Rng::with_seed(seed);
                while !stop.is_set() {
                    drive_a_while(&executor, &stop, &mut random);
                }
            })
        })
        .collect();
    let tasks: Vec<_> = (0..random.u32(1..6))
        .map(|_| random.u64(..))
        .map(|seed| (seed, executor.spawn(drive(seed, depth))))
        .collect();
    let left = LEDGER.begin("left in an executor", 0);
    let left = executor.spawn(async move {
        let _left = left;
        future::pending::<()>().await;
    });
    let mut disposer = random.fork();
    let all = async move {
        for (seed, task) in tasks {
            dispose(&mut disposer, seed, task).await;
        }
    };
    executor.run(all).await;
    stop.set();
    if random.bool() {
        for driver in drivers {
            driver.await;
        }
        // This is the last one that has it.
        drop(executor);
        assert!(left.fallible().await.is_none());
    }
}

fn drive_a_while(executor: &Executor<'_>, stop: &Arc<Flag>, random: &mut Rng) {
    match random.u8(0..5) {
        0 => block_on(executor.run(stop.wait().or(sleep(micros(random, 1_000))))),
        1 => foreign_block_on(executor.run(stop.wait().or(sleep(micros(random, 1_000))))),
        2 => block_on(executor.tick().or(stop.wait())),
        3 => foreign_block_on(executor.tick().or(sleep(micros(random, 200))).or(stop.wait())),
        _ => {
            for _ in 0..random.u32(1..50) {
                if !executor.try_tick() {
                    pause();
                }
            }
        }
    }
}

/// A thread that runs a drive in some way; what it needs to be told is told by the seed.
fn thread_with(mut random: Rng, depth: u32, run: fn(Rng, u32)) -> Boxed<()> {
    let seed = random.u64(..);
    Box::pin(on_a_thread(seed, move || run(Rng::with_seed(seed), depth)))
}

fn plainly(mut random: Rng, depth: u32) {
    block_on(drive(random.u64(..), depth));
}

fn foreign(mut random: Rng, depth: u32) {
    let seed = random.u64(..);
    if random.bool() {
        foreign_block_on(drive(seed, depth));
    } else {
        foreign_block_on(spawn(drive(seed, depth)));
    }
}

/// Local tasks, which are never seen on another thread.
fn locally(mut random: Rng, depth: u32) {
    let tasks: Vec<_> = (0..random.u32(1..4))
        .map(|_| random.u64(..))
        .map(|seed| (seed, spawn_local(stay(drive(seed, depth)))))
        .collect();
    block_on(async {
        for (seed, task) in tasks {
            dispose(&mut random, seed, task).await;
        }
    });
}

/// The same future, polled and dropped on one thread.
async fn stay<T>(future: impl Future<Output = T>) -> T {
    let home = thread::current().id();
    let check = move || {
        if thread::current().id() != home {
            LEDGER.fail("a local task on another thread");
        }
    };
    let _dropped = OnDrop(check);
    let mut future = pin!(future);
    poll_fn(|cx| {
        check();
        future.as_mut().poll(cx)
    })
    .await
}

fn local_executor(mut random: Rng, depth: u32) {
    let executor = LocalExecutor::new();
    let tasks: Vec<_> = (0..random.u32(1..4))
        .map(|_| random.u64(..))
        .map(|seed| (seed, executor.spawn(stay(drive(seed, depth)))))
        .collect();
    let left = LEDGER.begin("left in a local executor", 0);
    executor
        .spawn(async move {
            let _left = left;
            future::pending::<()>().await;
        })
        .detach();
    let foreign = random.bool();
    let mut disposer = random.fork();
    let all = async {
        for (seed, task) in tasks {
            dispose(&mut disposer, seed, task).await;
        }
    };
    if foreign {
        foreign_block_on(executor.run(all));
    } else {
        block_on(executor.run(all));
    }
    while random.bool() && executor.try_tick() {}
}

/// Children that borrow; some of them are cancelled, with the scope or alone.
fn in_a_scope(mut random: Rng, depth: u32) {
    let (begun, ended) = (Cell::new(0), Cell::new(0));
    let seeds: Vec<_> = (0..random.u32(1..4)).map(|_| random.u64(..)).collect();
    let (cancels, gives_up) = (random.u8(0..5) == 0, random.u8(0..5) == 0);
    let mut giver = random.fork();
    let whole = scope(async |scope| {
        let children: Vec<ScopedTask<u64>> = seeds
            .iter()
            .map(|seed| {
                scope.spawn(async {
                    begun.set(begun.get() + 1);
                    let _ended = OnDrop(|| ended.set(ended.get() + 1));
                    let (value, _life) = drive(*seed, depth).await;
                    value
                })
            })
            .collect();
        if cancels {
            sleep(micros(&mut random, 500)).await;
            return scope.cancel();
        }
        for (child, seed) in children.into_iter().zip(&seeds) {
            // Dropping the handle leaves the child to the scope.
            if random.u8(0..4) > 0 {
                assert_eq!(child.await, output(*seed));
            }
        }
    });
    let done = if gives_up {
        block_on(give_up(&mut giver, whole)).is_some()
    } else if giver.bool() {
        foreign_block_on(whole);
        true
    } else {
        block_on(whole);
        true
    };
    assert_eq!(begun.get(), ended.get());
    assert!(!done || cancels || ended.get() == seeds.len());
}

/// Somebody else's loop that looks in for a moment, again and again.
fn short_drives(mut random: Rng, depth: u32) {
    let seed = random.u64(..);
    let task =
        if random.bool() { spawn_local(drive(seed, depth)) } else { spawn(drive(seed, depth)) };
    while !task.is_finished() {
        match random.u8(0..3) {
            0 => block_on(future::yield_now()),
            1 => block_on(sleep(micros(&mut random, 100))),
            _ => pause(),
        }
    }
    assert_eq!(block_on(task).0, output(seed));
}

// ---------- acts ----------

type Act = fn(Rng) -> Boxed<io::Result<()>>;

/// How often, what, and how.
const ACTS: &[(u32, &str, Act)] = &[
    (6, "yields", |random| Box::pin(yields(random))),
    (6, "timers", |random| Box::pin(timers(random))),
    (4, "relay", |random| Box::pin(relay(random))),
    (4, "panics", |random| Box::pin(panics(random))),
    (3, "jobs", |random| Box::pin(jobs(random))),
    (4, "tcp", |random| Box::pin(bytes::tcp(random))),
    (3, "waiters", |random| Box::pin(bytes::waiters(random))),
    (2, "connections", |random| Box::pin(bytes::connections(random))),
    (3, "udp", |random| Box::pin(bytes::udp(random))),
    #[cfg(unix)]
    (4, "unix", |random| Box::pin(bytes::unix(random))),
    #[cfg(unix)]
    (3, "unix datagrams", |random| Box::pin(bytes::unix_datagrams(random))),
    #[cfg(unix)]
    (3, "pipe", |random| Box::pin(bytes::pipe(random))),
    #[cfg(unix)]
    (1, "child", |random| Box::pin(bytes::child(random))),
    (3, "file", |random| Box::pin(bytes::file(random))),
    (2, "shared file", |random| Box::pin(bytes::shared_file(random))),
    (3, "unblocked", |random| Box::pin(bytes::unblocked(random))),
];

/// Does one thing, and checks it. `SMOL_STRESS_ACTS`, a list with commas, leaves only some to
/// choose from.
async fn act(seed: u64) {
    static CHOSEN: OnceLock<Vec<&(u32, &str, Act)>> = OnceLock::new();
    let acts = CHOSEN.get_or_init(|| {
        let names = std::env::var("SMOL_STRESS_ACTS").unwrap_or_default();
        let is_chosen = |name| names.is_empty() || names.split(',').any(|chosen| chosen == name);
        ACTS.iter().filter(|(_, name, _)| is_chosen(*name)).collect()
    });
    let mut random = Rng::with_seed(seed);
    let mut at = random.u32(0..acts.iter().map(|(often, ..)| often).sum());
    let find = |(often, ..): &&&(u32, _, _)| {
        let found = at < *often;
        at = at.wrapping_sub(*often);
        found
    };
    let (_, what, act) = acts.iter().find(find).expect("an act");
    let _life = LEDGER.begin(what, seed);
    LEDGER.judge(what, seed, act(random).await);
}

async fn yields(mut random: Rng) -> io::Result<()> {
    for _ in 0..random.u32(0..30) {
        LEDGER.did(1);
        match random.u8(0..10) {
            0 => pause(),
            1 => thread::sleep(micros(&mut random, 100)),
            _ => future::yield_now().await,
        }
    }
    Ok(())
}

async fn timers(mut random: Rng) -> io::Result<()> {
    for _ in 0..random.u32(1..6) {
        let (start, most) = (Instant::now(), if random.u8(0..8) == 0 { 20_000 } else { 2_000 });
        let (one, two) = (micros(&mut random, most), micros(&mut random, most));
        match random.u8(0..7) {
            0 => LEDGER.fired(Timer::at(start + one).await),
            1 => match timeout(one, Timer::after(two)).await {
                Ok(deadline) => LEDGER.fired(deadline),
                Err(_) => LEDGER.fired(start + one),
            },
            // Moved while it is waited for.
            2 => {
                let mut timer = Timer::after(one);
                give_up(&mut random, &mut timer).await;
                timer.set_after(two);
                let after = Instant::now();
                let deadline = timer.await;
                assert!(deadline >= start + two && deadline <= after + two);
                LEDGER.fired(deadline);
            }
            3 => {
                let period = one.max(Duration::from_micros(10));
                let mut ticks = Timer::interval(period);
                let mut last = start;
                for _ in 0..random.u32(1..4) {
                    let tick = ticks.next().await.expect("a tick");
                    LEDGER.fired(tick);
                    assert!(tick > last);
                    last = tick;
                }
            }
            4 => {
                let timer = Arc::new(Mutex::new(Timer::after(one)));
                let set = timer.clone();
                let setter = spawn(async move {
                    set.lock().unwrap().set_after(Duration::MAX);
                    sleep(two).await;
                    set.lock().unwrap().set_after(one);
                });
                let fired = poll_fn(|cx| Pin::new(&mut *timer.lock().unwrap()).poll(cx)).await;
                LEDGER.fired(fired);
                drop(setter);
            }
            5 => {
                let many: Vec<_> = (0..random.u32(2..20))
                    .map(|_| Timer::after(micros(&mut random, most)))
                    .collect();
                for timer in many {
                    if let Some(deadline) = give_up(&mut random, timer).await {
                        LEDGER.fired(deadline);
                    }
                }
            }
            _ => LEDGER.fired(Timer::after(one).await),
        }
    }
    Ok(())
}

/// A ball goes round, between tasks and threads of all kinds. Who waits for it and loses interest
/// waits again.
async fn relay(mut random: Rng) -> io::Result<()> {
    let (stations, limit) = (random.usize(2..5), random.u64(1..60));
    let channels: Vec<_> = (0..stations).map(|_| Channel::new()).collect();
    let passed = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    let mut tasks = Vec::new();
    for at in 0..stations {
        let (from, to) = (channels[at].clone(), channels[(at + 1) % stations].clone());
        let (seed, passed) = (random.u64(..), passed.clone());
        let life = LEDGER.begin("station", seed);
        let station = async move {
            let mut random = Rng::with_seed(seed);
            loop {
                let ball: u64 = insist(&mut random, || from.receive()).await;
                life.stage("ball", ball);
                passed.fetch_add(1, Relaxed);
                to.send(ball + 1);
                if ball >= limit {
                    return;
                }
            }
        };
        // A station on a thread of its own ends with the game: somebody must play it to the end.
        match random.u8(0..6) {
            way @ 0..3 => threads.push(on_a_thread(seed, move || match way {
                0 => block_on(station),
                1 => foreign_block_on(station),
                _ => block_on(spawn_local(station)),
            })),
            _ => tasks.push(spawn(station)),
        }
    }
    channels[0].send(0);
    // If somebody loses interest in the whole, the threads must not be left without players.
    let tasks = OnDropDetach(tasks);
    for thread in threads {
        thread.await;
    }
    for task in tasks.take() {
        task.await;
    }
    assert_eq!(passed.load(Relaxed), limit + stations as u64);
    Ok(())
}

/// Tasks that go on if they are dropped here.
struct OnDropDetach(Vec<Task<()>>);

impl OnDropDetach {
    fn take(mut self) -> Vec<Task<()>> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for OnDropDetach {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Task::detach);
    }
}

/// A panic reaches whoever awaits it, and nobody else.
async fn panics(mut random: Rng) -> io::Result<()> {
    let number = random.u64(..);
    let life = LEDGER.begin("panicking", number);
    let yields = random.u32(0..3);
    // Without the hook, which is for those that nobody planned.
    let panicking = async move {
        let _life = life;
        for _ in 0..yields {
            future::yield_now().await;
        }
        resume_unwind(Box::new(number));
    };
    let caught = match random.u8(0..4) {
        0 => AssertUnwindSafe(unblock(move || block_on(panicking))).catch_unwind().await,
        1 => {
            let executor = Executor::new();
            let task = executor.spawn(panicking);
            AssertUnwindSafe(executor.run(task)).catch_unwind().await
        }
        2 => AssertUnwindSafe(spawn(spawn(panicking))).catch_unwind().await,
        _ => AssertUnwindSafe(spawn(panicking)).catch_unwind().await,
    };
    let payload: Result<(), _> = caught;
    match payload.map_err(|payload| payload.downcast::<u64>()) {
        Err(Ok(found)) if *found == number => Ok(()),
        _ => LEDGER.fail("another panic than that of the task"),
    }
}

/// Closures on the pool.
async fn jobs(mut random: Rng) -> io::Result<()> {
    let jobs: Vec<_> = (0..random.u32(1..8))
        .map(|_| {
            let (seed, sleeps) = (random.u64(..), micros(&mut random, 100));
            let life = LEDGER.begin("job", seed);
            let job = unblock(move || {
                drop(life);
                thread::sleep(sleeps);
                (output(seed), LEDGER.begin("output", seed))
            });
            (seed, job)
        })
        .collect();
    for (seed, job) in jobs {
        dispose(&mut random, seed, job).await;
    }
    Ok(())
}
