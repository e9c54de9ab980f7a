//! Everything at once, in random order: nothing is lost, nothing is done twice, everything ends.
//!
//! The tests whose names begin with `a_random_program` run one, as `stress/program.rs` describes
//! it, and account for every task, byte, timer, wake-up and output. They are short here. By hand,
//! for 10⁶ small operations:
//!
//! ```sh
//! SMOL_STRESS_ROUNDS=1000 cargo test --release --test stress -- \
//!     a_random_program --nocapture --test-threads=1
//! ```
//!
//! The first line of a run has the seed and the number of its rounds as variables that repeat it.

#[path = "stress/bytes.rs"]
mod bytes;
mod common;
#[path = "stress/ledger.rs"]
mod ledger;
#[path = "stress/program.rs"]
mod program;
#[path = "stress/run.rs"]
mod run;

use common::{
    Flag, OnDrop, foreign_block_on, fresh_process_output, fresh_processes, sleep, socket_pair,
    within,
};
use run::Faults;
use smol::{
    Executor, Task, Timer, block_on, future,
    io::{AsyncReadExt, AsyncWriteExt},
    spawn, spawn_local, unblock,
};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

#[test]
fn a_random_program_loses_nothing_and_does_nothing_twice() {
    // So many workers as the seed says: one, two, three, six.
    let seed = run::seed();
    let threads = ["1", "2", "3", "6"][seed.bytes().map(usize::from).sum::<usize>() % 4];
    let env = [("SMOL_STRESS_SEED", &*seed), ("SMOL_THREADS", threads)];
    run::judge(fresh_process_output(run::seconds(), &env, || run::run(Faults::default())));
}

/// The numbers of EAGAIN, ENFILE and EMFILE.
#[cfg(target_os = "linux")]
const REFUSALS: &[i32] = &[11, 23, 24];

#[test]
#[cfg(target_os = "linux")]
fn a_random_program_with_few_descriptors_is_refused_some_and_loses_nothing() {
    let env = [("SMOL_STRESS_SEED", &*run::seed())];
    let ended = fresh_process_output(run::seconds(), &env, || {
        run::run(Faults { errors: REFUSALS, descriptors: Some(10), slow: 1 });
        assert!(ledger::LEDGER.refused() > 0, "there were descriptors enough");
    });
    run::judge(ended);
}

#[test]
fn a_random_program_without_threads_loses_nothing() {
    // Every `std::thread` without a stack size of its own fails to start.
    let seed = run::seed();
    let env = [("SMOL_STRESS_SEED", &*seed), ("RUST_MIN_STACK", "70368744177664")];
    let ended = fresh_process_output(run::seconds(), &env, || run::run(Faults::default()));
    run::judge(ended);
}

#[test]
#[cfg(target_os = "linux")]
fn a_random_program_whose_system_calls_are_interrupted_loses_nothing() {
    // Not of write(2): Linux interrupts none to an eventfd, and `polling` asks no second time. Nor of
    // read(2) where that waits with poll(2): it has forgotten by the second time what it was
    // notified for (`wait_deadline`), and Linux interrupts no read of a non-blocking eventfd.
    let reads = if cfg!(polling_test_poll_backend) {
        "recvfrom,sendto,accept4:error=EINTR:when=5+7"
    } else {
        "read,recvfrom,sendto,accept4:error=EINTR:when=5+7"
    };
    let injections = [
        "epoll_wait,epoll_pwait,epoll_pwait2:error=EINTR:when=3+5",
        reads,
        "openat:error=EINTR:when=3+5",
        "poll,ppoll:error=EINTR:when=3+5",
        "wait4,waitid:error=EINTR:when=3+5",
    ];
    run::under_strace(
        "a_random_program_whose_system_calls_are_interrupted_loses_nothing",
        &injections,
        || within(run::seconds(), || run::run(Faults { slow: 6, ..Faults::default() })),
    );
}

/// Not EAGAIN of sockets: no system says that while there are bytes, and whoever hears it waits for
/// news.
#[test]
#[cfg(target_os = "linux")]
fn a_random_program_whose_system_calls_fail_for_now_is_refused_some_and_loses_nothing() {
    let injections = ["preadv2:error=EAGAIN:when=2+2", "clone,clone3,vfork:error=EAGAIN:when=2+3"];
    run::under_strace(
        "a_random_program_whose_system_calls_fail_for_now_is_refused_some_and_loses_nothing",
        &injections,
        || {
            within(run::seconds(), || {
                run::run(Faults { errors: REFUSALS, slow: 6, ..Faults::default() })
            })
        },
    );
}

/// What all tasks of a test know of: how many live, how many came to their end.
#[derive(Default)]
struct Census {
    alive: AtomicIsize,
    finished: AtomicUsize,
}

/// A task that does random things, and spawns others that do.
fn random_task(
    seed: u64,
    depth: u32,
    census: Arc<Census>,
) -> Pin<Box<dyn Future<Output = u64> + Send>> {
    census.alive.fetch_add(1, Ordering::Relaxed);
    let alive = OnDrop({
        let census = census.clone();
        move || {
            census.alive.fetch_sub(1, Ordering::Relaxed);
        }
    });
    Box::pin(async move {
        let _alive = alive;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut count = 1;
        for _ in 0..random.u32(1..6) {
            match random.u32(0..14) {
                0..=2 => future::yield_now().await,
                3 => sleep(Duration::from_micros(random.u64(0..1500))).await,
                4 => {
                    let _ = smol::timeout(
                        Duration::from_micros(random.u64(0..500)),
                        Timer::after(Duration::from_micros(random.u64(0..500))),
                    )
                    .await;
                }
                5 => {
                    let micros = random.u64(0..50);
                    unblock(move || thread::sleep(Duration::from_micros(micros))).await;
                }
                6 if depth > 0 => {
                    count += block_on(spawn(random_task(random.u64(..), depth - 1, census.clone())))
                }
                7..=9 if depth > 0 => {
                    let tasks: Vec<Task<u64>> = (0..random.u32(1..5))
                        .map(|_| spawn(random_task(random.u64(..), depth - 1, census.clone())))
                        .collect();
                    for task in tasks {
                        count += task.await;
                    }
                }
                10 if depth > 0 => {
                    let task = spawn(random_task(random.u64(..), depth - 1, census.clone()));
                    if random.bool() {
                        future::yield_now().await;
                    }
                    match random.u8(0..3) {
                        0 => drop(task),
                        1 => drop(task.cancel().await),
                        _ => task.detach(),
                    }
                }
                11 => {
                    let (mut one, mut two) = socket_pair();
                    let byte = async { two.read_exact(&mut [0]).await.unwrap() };
                    future::zip(async { one.write_all(b"x").await.unwrap() }, byte).await;
                }
                12 if depth > 0 => {
                    let ex = Executor::new();
                    let task = ex.spawn(random_task(random.u64(..), depth - 1, census.clone()));
                    count += ex.run(task).await;
                }
                _ => thread::yield_now(),
            }
        }
        census.finished.fetch_add(1, Ordering::Relaxed);
        count
    })
}

#[test]
fn tasks_that_do_random_things_all_end() {
    fresh_processes(
        60,
        &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "6")]],
        || {
            let census = Arc::new(Census::default());
            thread::scope(|threads| {
                for number in 0..4u64 {
                    let census = &census;
                    threads.spawn(move || {
                        for seed in 0..25 {
                            let task = random_task(number << 32 | seed, 3, census.clone());
                            let count = match seed % 4 {
                                0 => block_on(task),
                                1 => foreign_block_on(spawn(task)),
                                2 => block_on(async { spawn_local(task).await }),
                                _ => foreign_block_on(task),
                            };
                            assert!(count > 0);
                        }
                    });
                }
            });
            // Only detached and cancelled ones are left; they end, too.
            common::eventually(|| census.alive.load(Ordering::Relaxed) == 0);
            assert!(census.finished.load(Ordering::Relaxed) >= 100);
        },
    );
}

#[test]
fn tasks_spawned_from_everywhere_run_once_each() {
    within(60, || {
        let count = Arc::new(AtomicUsize::new(0));
        let bump = |count: &Arc<AtomicUsize>| {
            let count = count.clone();
            async move {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..50 {
                        // From outside, from a task, from a task of a task, from the pool.
                        let outside: Vec<_> = (0..20).map(|_| spawn(bump(&count))).collect();
                        let inside = spawn({
                            let count = count.clone();
                            async move {
                                let tasks: Vec<_> = (0..20)
                                    .map(|_| {
                                        let count = count.clone();
                                        spawn(async move { spawn(bump(&count)).await })
                                    })
                                    .collect();
                                for task in tasks {
                                    task.await;
                                }
                            }
                        });
                        let pool = unblock({
                            let count = count.clone();
                            move || spawn(bump(&count))
                        });
                        foreign_block_on(async {
                            pool.await.await;
                            inside.await;
                            for task in outside {
                                task.await;
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 4 * 50 * 41);
    });
}

#[test]
fn a_chain_of_a_hundred_thousand_tasks_reaches_its_end() {
    within(60, || {
        fn link(left: u32, done: Arc<Flag>) {
            spawn(async move { if left == 0 { done.set() } else { link(left - 1, done) } })
                .detach();
        }
        let done = Flag::new();
        link(100_000, done.clone());
        done.wait_blocking();
    });
}

/// An unbounded channel of the plainest kind.
struct Channel<T>(Mutex<(Vec<T>, Option<std::task::Waker>)>);

impl<T> Channel<T> {
    fn new() -> Arc<Channel<T>> {
        Arc::new(Channel(Mutex::new((Vec::new(), None))))
    }

    fn send(&self, value: T) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.0.push(value);
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn receive(&self) -> T {
        std::future::poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            if let Some(value) = state.0.pop() {
                return std::task::Poll::Ready(value);
            }
            state.1 = Some(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await
    }
}

#[test]
fn pairs_that_play_ping_pong_across_all_workers_never_lose_the_ball() {
    fresh_processes(60, &[&[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "4")]], || {
        let pairs: Vec<_> = (0..8)
            .flat_map(|_| {
                let (ping, pong) = (Channel::new(), Channel::new());
                let player = |from: Arc<Channel<u32>>, to: Arc<Channel<u32>>| async move {
                    loop {
                        let ball = from.receive().await;
                        to.send(ball + 1);
                        if ball >= 5_000 {
                            return;
                        }
                    }
                };
                let tasks =
                    [spawn(player(ping.clone(), pong.clone())), spawn(player(pong, ping.clone()))];
                ping.send(0);
                tasks
            })
            .collect();
        block_on(async {
            for task in pairs {
                task.await;
            }
        });
    });
}

#[test]
fn bursts_of_jobs_for_the_pool_all_run() {
    fresh_processes(60, &[&[("BLOCKING_MAX_THREADS", "3")], &[]], || {
        for round in 0..200 {
            let jobs: Vec<_> = (0..round % 50).map(|i| unblock(move || i)).collect();
            let sum = foreign_block_on(async {
                let mut sum = 0;
                for job in jobs {
                    sum += job.await;
                }
                sum
            });
            let n = round % 50;
            assert_eq!(sum, n * (n - 1).max(0) / 2);
        }
    });
}

#[test]
fn cancelling_and_waking_from_all_sides_ends_every_task() {
    within(60, || {
        let census = Arc::new(Census::default());
        let flags: Vec<_> = (0..20).map(|_| Flag::new()).collect();
        thread::scope(|threads| {
            for number in 0..3u64 {
                let (census, flags) = (&census, &flags);
                threads.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(number);
                    for _ in 0..2000 {
                        let flag = flags[random.usize(0..20)].clone();
                        census.alive.fetch_add(1, Ordering::Relaxed);
                        let census = census.clone();
                        let alive = OnDrop(move || {
                            census.alive.fetch_sub(1, Ordering::Relaxed);
                        });
                        let task = spawn(async move {
                            let _alive = alive;
                            flag.wait().await;
                            future::yield_now().await;
                        });
                        match random.u8(0..4) {
                            0 => drop(task),
                            1 => task.detach(),
                            2 => {
                                foreign_block_on(task.cancel());
                            }
                            _ => {
                                flags[random.usize(0..20)].set();
                                task.detach();
                            }
                        }
                    }
                });
            }
        });
        flags.iter().for_each(|flag| flag.set());
        common::eventually(|| census.alive.load(Ordering::Relaxed) == 0);
    });
}
