//! Tasks: spawning, joining, yielding, passing messages, waking.

use crate::each;
use crate::row::{ALL, RUNTIMES, Report, Row, best, best_of_five};
use crate::runtimes::{Runtime, inside, workers};
use async_channel::{Sender, bounded, unbounded};
use futures_lite::future::{block_on, poll_once, yield_now};
use std::collections::VecDeque;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How many tasks the rows ending in `_100k` have at once.
const MANY: u64 = 100_000;

pub const ROWS: &[Row] = &[
    Row::new(
        "spawn_join_outside",
        "`block_on` spawns a task and awaits it",
        (3_000, 20_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_queue(n, 1), R => R::run(spawn_join::<R>(n, 1)))
            })
        },
    ),
    Row::new(
        "spawn_join_worker",
        "a task spawns a task and awaits it",
        (150_000, 1_000_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_queue(n, 1), R => inside::<R, _>(spawn_join::<R>(n, 1)))
            })
        },
    ),
    Row::new(
        "spawn_100k_outside",
        "`block_on` spawns 100,000 tasks, then awaits them all",
        (200_000, 800_000),
        ALL,
        |runtime, n| {
            best(n, MANY, |n| {
                each!(runtime, raw => raw_queue(n, n), R => R::run(spawn_join::<R>(n, n)))
            })
        },
    ),
    Row::new(
        "spawn_100k_worker",
        "a task spawns 100,000 tasks, then awaits them all",
        (200_000, 800_000),
        ALL,
        |runtime, n| {
            best(n, MANY, |n| {
                each!(runtime, raw => raw_queue(n, n), R => inside::<R, _>(spawn_join::<R>(n, n)))
            })
        },
    ),
    Row::new(
        "detach_100k_outside",
        "`block_on` spawns 100,000 detached tasks; the last one to run wakes it",
        (200_000, 800_000),
        ALL,
        |runtime, n| {
            best(n, MANY, |n| {
                each!(runtime, raw => raw_queue(n, n), R => R::run(detach::<R>(n)))
            })
        },
    ),
    Row::new(
        "detach_100k_worker",
        "the same inside a task",
        (200_000, 800_000),
        ALL,
        |runtime, n| {
            best(n, MANY, |n| {
                each!(runtime, raw => raw_queue(n, n), R => inside::<R, _>(detach::<R>(n)))
            })
        },
    ),
    Row::new(
        "chain_100k",
        "each task spawns the next one",
        (300_000, 1_500_000),
        ALL,
        |runtime, n| {
            best(n, MANY, |n| {
                each!(runtime, raw => raw_chain(n), R => inside::<R, _>(chain::<R>(n)))
            })
        },
    ),
    Row::new(
        "fan_out_in",
        "64 tasks send one message each to the one that spawned them; per task",
        (128_000, 640_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_fan(n), R => inside::<R, _>(fan::<R>(n)))
            })
        },
    ),
    Row::new(
        "yield_1task",
        "one task yields, and nobody else is there",
        (150_000, 1_000_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_yields(n, 1), R => R::run(yields::<R>(n, 1)))
            })
        },
    ),
    Row::new(
        "yield_1000x1000",
        "one of 1,000 yielding tasks yields",
        (600_000, 5_000_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_yields(n, 1_000), R => R::run(yields::<R>(n, 1_000)))
            })
        },
    ),
    Row::new(
        "selfwake_1000x1000",
        "one of 1,000 tasks wakes itself while it is polled, and is polled again",
        (600_000, 5_000_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_self_wakes(n), R => R::run(self_wakes::<R>(n)))
            })
        },
    ),
    Row::new(
        "pingpong_chan",
        "a message there and one back between two tasks, over channels of capacity 1",
        (75_000, 500_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_pingpong(n, 1), R => R::run(pingpong::<R>(n, 1)))
            })
        },
    ),
    Row::new(
        "pingpong_64pairs",
        "the same with 64 pairs; per round trip",
        (128_000, 640_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_pingpong(n, 64), R => R::run(pingpong::<R>(n, 64)))
            })
        },
    ),
    Row::new(
        "spawn_remote_busy1",
        "`block_on` spawns 1,000 tasks while two that always yield keep 1 worker busy, then awaits them; per task",
        (5_000, 25_000),
        RUNTIMES,
        |runtime, n| each!(runtime, R => busy::<R>(n)),
    )
    .workers(1),
    Row::new(
        "spawn_remote_busy2",
        "the same with four that keep 2 workers busy",
        (5_000, 25_000),
        RUNTIMES,
        |runtime, n| each!(runtime, R => busy::<R>(n)),
    ),
    Row::new(
        "spawn_remote_stalled",
        "`block_on` spawns 1,000 tasks while twice as many tasks as workers stall for 10 µs and \
        spawn their successors; per task, until all have run",
        (5_000, 25_000),
        RUNTIMES,
        |runtime, n| each!(runtime, R => stalled::<R>(n)),
    ),
    Row::new(
        "late_busy",
        "2 workers, one of them blocked for 2 s (quick: 1 s), and eight tasks that work for 10 ms and \
        yield: how long a task from outside waits, and how `late` its timer is (worst of ten)",
        (1_000, 2_000),
        &["ours", "tokio", "smol2", "async-std"],
        |runtime, n| each!(runtime, R => late_busy::<R>(Duration::from_millis(n))),
    ),
    scale_spawn("scale_spawn_1", 1),
    scale_spawn("scale_spawn_2", 2),
    scale_spawn("scale_spawn_4", 4),
    scale_spawn("scale_spawn_8", 8),
    scale_yield("scale_yield_1", 1),
    scale_yield("scale_yield_2", 2),
    scale_yield("scale_yield_4", 4),
    scale_yield("scale_yield_8", 8),
    Row::new(
        "local_spawn_100k",
        "`block_on` spawns 100,000 tasks on its own thread, then awaits them all",
        (200_000, 800_000),
        ALL,
        |runtime, n| {
            best(n, MANY, |n| {
                each!(runtime, raw => raw_queue(n, n), R => R::run_local(local_spawn::<R>(n, n)))
            })
        },
    ),
    Row::new(
        "local_yield",
        "a task on the thread of `block_on` yields",
        (500_000, 2_500_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_yields(n, 1), R => R::run_local(local_yield::<R>(n)))
            })
        },
    ),
    Row::new(
        "executor_spawn",
        "spawn + join, 100 at once, on an `Executor` value that one thread drives",
        (150_000, 800_000),
        &["ours", "smol2"],
        |runtime, n| {
            best_of_five(n, |n| match runtime {
                "ours" => executor!(smol, Executor, n),
                _ => executor!(smol2, Executor, n),
            })
        },
    ),
    Row::new(
        "local_executor_spawn",
        "the same on a `LocalExecutor` value (tokio: a `LocalSet`)",
        (150_000, 800_000),
        &["ours", "tokio", "tokio-ct", "smol2"],
        |runtime, n| {
            best_of_five(n, |n| match runtime {
                "ours" => executor!(smol, LocalExecutor, n),
                "smol2" => executor!(smol2, LocalExecutor, n),
                // `run_local` has a set of its own each time.
                _ => each!(runtime, R => R::run_local(local_spawn::<R>(n, 100))),
            })
        },
    ),
    Row::new(
        "scope",
        "a child that borrows, 100 in a scope (the peers have none: local tasks and an `Rc`)",
        (150_000, 800_000),
        RUNTIMES,
        |runtime, n| {
            best_of_five(n, |n| match runtime {
                "ours" => smol::block_on(scope(n)),
                _ => each!(runtime, R => R::run_local(without_scope::<R>(n))),
            })
        },
    ),
    Row::new(
        "block_on_ready",
        "`block_on` of a future that is ready",
        (250_000, 1_500_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_ready(n), R => block_on_ready::<R>(n))
            })
        },
    ),
    Row::new(
        "block_on_wake",
        "`block_on` hands its waker to a thread, which wakes it",
        (2_000, 15_000),
        ALL,
        block_on_wake,
    ),
    Row::new(
        "wake_remote",
        "a task hands its waker to a thread, which wakes it",
        (2_000, 15_000),
        ALL,
        wake_remote,
    ),
    Row::new(
        "spawn_join_1cpu",
        "`spawn_join_outside` on one processor",
        (5_000, 40_000),
        ALL,
        |runtime, n| {
            best_of_five(n, |n| {
                each!(runtime, raw => raw_queue(n, 1), R => R::run(spawn_join::<R>(n, 1)))
            })
        },
    )
    .one_cpu(),
    Row::new(
        "wake_remote_1cpu",
        "`wake_remote` on one processor",
        (5_000, 40_000),
        ALL,
        wake_remote,
    )
    .one_cpu(),
];

/// Spawns `at_once` tasks, then awaits them, until `n` are done.
pub async fn spawn_join<R: Runtime>(n: u64, at_once: u64) -> Duration {
    let start = Instant::now();
    for round in 0..n / at_once {
        if at_once == 1 {
            assert_eq!(R::spawn(async move { round }).await, round);
            continue;
        }
        let tasks: Vec<_> = (0..at_once).map(|i| R::spawn(async move { i })).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        assert_eq!(sum, at_once * (at_once - 1) / 2);
    }
    start.elapsed()
}

async fn detach<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    let left = Arc::new(AtomicU64::new(n));
    let (sender, receiver) = bounded(1);
    for _ in 0..n {
        let (left, sender) = (left.clone(), sender.clone());
        R::detach(async move {
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                sender.try_send(()).unwrap();
            }
        });
    }
    receiver.recv().await.unwrap();
    assert_eq!(left.load(Ordering::Acquire), 0);
    start.elapsed()
}

async fn chain<R: Runtime>(n: u64) -> Duration {
    fn link<R: Runtime>(left: u64, sender: Sender<u64>) {
        R::detach(async move {
            match left {
                1 => sender.try_send(left).unwrap(),
                _ => link::<R>(left - 1, sender),
            }
        });
    }
    let start = Instant::now();
    let (sender, receiver) = bounded(1);
    link::<R>(n, sender);
    assert_eq!(receiver.recv().await, Ok(1));
    start.elapsed()
}

async fn fan<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    let (sender, receiver) = unbounded();
    for _ in 0..n / 64 {
        for i in 0..64 {
            let sender = sender.clone();
            R::detach(async move { sender.send(i).await.unwrap() });
        }
        let mut sum = 0;
        for _ in 0..64 {
            sum += receiver.recv().await.unwrap();
        }
        assert_eq!(sum, 64 * 63 / 2);
    }
    start.elapsed()
}

/// So many tasks share `n` yields.
pub async fn yields<R: Runtime>(n: u64, tasks: u64) -> Duration {
    let start = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            R::spawn(async move {
                for _ in 0..n / tasks {
                    R::yield_now().await;
                }
                n / tasks
            })
        })
        .collect();
    let mut sum = 0;
    for task in tasks {
        sum += task.await;
    }
    assert!(sum > 0 && sum <= n);
    start.elapsed()
}

/// Wakes itself and stays, so many times. (`yield_now` of tokio does it in another way.)
struct SelfWake(u64);

impl Future for SelfWake {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A thousand tasks share `n` wake-ups.
async fn self_wakes<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    let task = |_| {
        R::spawn(async move {
            SelfWake(n / 1_000).await;
            n / 1_000
        })
    };
    let tasks: Vec<_> = (0..1_000).map(task).collect();
    let mut sum = 0;
    for task in tasks {
        sum += task.await;
    }
    assert_eq!(sum, n / 1_000 * 1_000);
    start.elapsed()
}

async fn pingpong<R: Runtime>(n: u64, pairs: u64) -> Duration {
    let start = Instant::now();
    let tasks: Vec<_> = (0..pairs)
        .flat_map(|_| {
            let (ping, pong) = rally(n / pairs);
            [R::spawn(ping), R::spawn(pong)]
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await, n / pairs);
    }
    start.elapsed()
}

/// Two players; each returns how often it had the ball.
fn rally(
    n: u64,
) -> (impl Future<Output = u64> + Send + 'static, impl Future<Output = u64> + Send + 'static) {
    let (ping, pinged) = bounded(1);
    let (pong, ponged) = bounded(1);
    let first = async move {
        for i in 0..n {
            ping.send(i).await.unwrap();
            assert_eq!(ponged.recv().await, Ok(i));
        }
        n
    };
    let second = async move {
        let mut had = 0;
        while let Ok(i) = pinged.recv().await {
            pong.send(i).await.unwrap();
            had += 1;
        }
        had
    };
    (first, second)
}

fn busy<R: Runtime>(n: u64) -> Report {
    let stop = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..2 * workers())
        .map(|_| {
            let stop = stop.clone();
            R::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    R::yield_now().await;
                }
            })
        })
        .collect();
    let report = best(n, 1_000, |n| R::run(spawn_join::<R>(n, n)));
    stop.store(true, Ordering::Relaxed);
    R::run(async {
        for task in crowd {
            task.await;
        }
    });
    report
}

/// Computes.
fn work(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

fn stalled<R: Runtime>(n: u64) -> Report {
    /// Runs until it is told to stop. The last one to go drops the sender.
    fn crowd<R: Runtime>(stop: Arc<AtomicBool>, _end: Sender<()>) {
        R::detach(async move {
            work(Duration::from_micros(10));
            if !stop.load(Ordering::Relaxed) {
                crowd::<R>(stop, _end);
            }
        });
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (end, ended) = bounded::<()>(1);
    (0..2 * workers()).for_each(|_| crowd::<R>(stop.clone(), end.clone()));
    drop(end);
    let report = best(n, 1_000, |n| R::run(detach::<R>(n)));
    stop.store(true, Ordering::Relaxed);
    R::run(async { assert!(ended.recv().await.is_err()) });
    report
}

fn late_busy<R: Runtime>(blocked: Duration) -> Report {
    const TASKS: u32 = 10;
    let stop = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            let stop = stop.clone();
            R::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    work(Duration::from_millis(10));
                    R::yield_now().await;
                }
            })
        })
        .collect();
    let blocker = R::spawn(async move { std::thread::sleep(blocked) });
    let (sender, reports) = mpsc::channel();
    for _ in 0..TASKS {
        // All of them come while that worker is blocked.
        std::thread::sleep(blocked / (2 * TASKS));
        let (spawned, sender) = (Instant::now(), sender.clone());
        R::detach(async move {
            let waited = spawned.elapsed();
            let at = Instant::now() + Duration::from_millis(20);
            R::sleep_until(at).await;
            sender.send((waited, crate::timers::late(at))).unwrap();
        });
    }
    drop(sender);
    let reports: Vec<_> = reports.into_iter().collect();
    assert_eq!(reports.len(), TASKS as usize);
    stop.store(true, Ordering::Relaxed);
    R::run(async {
        blocker.await;
        for task in crowd {
            task.await;
        }
    });
    let worst = |of: fn(&(Duration, Duration)) -> Duration| {
        reports.iter().map(of).max().unwrap().as_nanos() as f64
    };
    Report(vec![("", worst(|(waited, _)| *waited)), ("late", worst(|(_, late)| *late))])
}

const fn scale_spawn(name: &'static str, workers: usize) -> Row {
    let what = "as many tasks as workers spawn 100,000 together, then await theirs";
    Row::new(name, what, (200_000, 800_000), RUNTIMES, |runtime, n| {
        best(n, MANY, |n| each!(runtime, R => R::run(share::<R>(n))))
    })
    .workers(workers)
}

pub async fn share<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    let each = n / workers() as u64;
    let roots: Vec<_> = (0..workers()).map(|_| R::spawn(spawn_join::<R>(each, each))).collect();
    for root in roots {
        root.await;
    }
    start.elapsed()
}

const fn scale_yield(name: &'static str, workers: usize) -> Row {
    let what = "one of 1,000 yielding tasks yields, with so many workers";
    Row::new(name, what, (600_000, 5_000_000), RUNTIMES, |runtime, n| {
        best_of_five(n, |n| each!(runtime, R => R::run(yields::<R>(n, 1_000))))
    })
    .workers(workers)
}

async fn local_spawn<R: Runtime>(n: u64, at_once: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..n / at_once {
        let tasks: Vec<_> = (0..at_once).map(|i| R::spawn_local(async move { i })).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        assert_eq!(sum, at_once * (at_once - 1) / 2);
    }
    start.elapsed()
}

async fn local_yield<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    let task = R::spawn_local(async move {
        for _ in 0..n {
            R::yield_now().await;
        }
        n
    });
    assert_eq!(task.await, n);
    start.elapsed()
}

/// Two crates with the same names.
macro_rules! executor {
    ($crate_name:ident, $executor:ident, $n:expr) => {{
        let executor = $crate_name::$executor::new();
        $crate_name::block_on(executor.run(async {
            let start = Instant::now();
            for _ in 0..$n / 100 {
                let tasks: Vec<_> = (0..100).map(|i| executor.spawn(async move { i })).collect();
                let mut sum = 0;
                for task in tasks {
                    sum += task.await;
                }
                assert_eq!(sum, 100 * 99 / 2);
            }
            start.elapsed()
        }))
    }};
}
use executor;

async fn scope(n: u64) -> Duration {
    let start = Instant::now();
    let numbers: Vec<u64> = (0..100).collect();
    for _ in 0..n / 100 {
        let sum = smol::scope(async |s| {
            let tasks: Vec<_> = numbers.iter().map(|i| s.spawn(async { *i })).collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        });
        assert_eq!(sum.await, 100 * 99 / 2);
    }
    start.elapsed()
}

async fn without_scope<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    let numbers: Rc<Vec<u64>> = Rc::new((0..100).collect());
    for _ in 0..n / 100 {
        let spawn = |i: usize| {
            let numbers = numbers.clone();
            R::spawn_local(async move { numbers[i] })
        };
        let tasks: Vec<_> = (0..100).map(spawn).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        assert_eq!(sum, 100 * 99 / 2);
    }
    start.elapsed()
}

fn block_on_ready<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    for i in 0..n {
        assert_eq!(R::run(async move { black_box(i) }), i);
    }
    start.elapsed()
}

fn block_on_wake(runtime: &str, n: u64) -> Report {
    best_of_five(n, |n| each!(runtime, raw => raw_wake(n), R => R::run(woken(n))))
}

fn wake_remote(runtime: &str, n: u64) -> Report {
    best_of_five(n, |n| each!(runtime, raw => raw_wake(n), R => inside::<R, _>(woken(n))))
}

/// Sends its waker to a thread and waits, `n` times.
async fn woken(n: u64) -> Duration {
    let flag = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel::<Waker>();
    let thread = std::thread::spawn({
        let flag = flag.clone();
        move || {
            for waker in receiver {
                flag.store(true, Ordering::Release);
                waker.wake();
            }
        }
    });
    let start = Instant::now();
    for _ in 0..n {
        let mut sent = false;
        std::future::poll_fn(|cx| {
            if !sent {
                sent = true;
                sender.send(cx.waker().clone()).unwrap();
            }
            match flag.swap(false, Ordering::AcqRel) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
    let elapsed = start.elapsed();
    drop(sender);
    thread.join().unwrap();
    elapsed
}

// What these would be without a runtime: a queue of closures, a queue of futures that are polled in turn, two threads.

struct Queue(VecDeque<Job>);
type Job = Box<dyn FnOnce(&mut Queue) -> u64>;

fn raw_queue(n: u64, at_once: u64) -> Duration {
    let start = Instant::now();
    let mut queue = Queue(VecDeque::new());
    let mut sum = 0;
    for _ in 0..n / at_once {
        for i in 0..at_once {
            black_box(&mut queue).0.push_back(Box::new(move |_| i));
        }
        while let Some(job) = queue.0.pop_front() {
            sum += job(&mut queue);
        }
    }
    assert_eq!(sum, n / at_once * (at_once * (at_once - 1) / 2));
    start.elapsed()
}

fn raw_chain(n: u64) -> Duration {
    fn link(left: u64) -> Job {
        Box::new(move |queue| {
            if left > 1 {
                queue.0.push_back(link(left - 1));
            }
            1
        })
    }
    let start = Instant::now();
    let mut queue = Queue(VecDeque::from([link(n)]));
    let mut sum = 0;
    while let Some(job) = queue.0.pop_front() {
        sum += job(&mut queue);
    }
    assert_eq!(sum, n);
    start.elapsed()
}

type Futures = VecDeque<Pin<Box<dyn Future<Output = u64>>>>;

/// Polls all in turn until all are done.
fn in_turn(mut futures: Futures) -> u64 {
    let mut cx = Context::from_waker(Waker::noop());
    let mut sum = 0;
    while let Some(mut future) = futures.pop_front() {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => sum += value,
            Poll::Pending => futures.push_back(future),
        }
    }
    sum
}

fn raw_yields(n: u64, tasks: u64) -> Duration {
    let start = Instant::now();
    let mut futures = Futures::new();
    for _ in 0..tasks {
        futures.push_back(Box::pin(async move {
            for _ in 0..n / tasks {
                yield_now().await;
            }
            n / tasks
        }));
    }
    assert_eq!(in_turn(futures), n / tasks * tasks);
    start.elapsed()
}

fn raw_self_wakes(n: u64) -> Duration {
    let start = Instant::now();
    let mut futures = Futures::new();
    for _ in 0..1_000 {
        futures.push_back(Box::pin(async move {
            SelfWake(n / 1_000).await;
            n / 1_000
        }));
    }
    assert_eq!(in_turn(futures), n / 1_000 * 1_000);
    start.elapsed()
}

fn raw_pingpong(n: u64, pairs: u64) -> Duration {
    let start = Instant::now();
    let mut futures = Futures::new();
    for _ in 0..pairs {
        let (ping, pong) = rally(n / pairs);
        futures.push_back(Box::pin(ping));
        futures.push_back(Box::pin(pong));
    }
    assert_eq!(in_turn(futures), n / pairs * pairs * 2);
    start.elapsed()
}

fn raw_fan(n: u64) -> Duration {
    let start = Instant::now();
    let (sender, receiver) = unbounded();
    for _ in 0..n / 64 {
        let mut futures = Futures::new();
        for i in 0..64 {
            let sender = sender.clone();
            futures.push_back(Box::pin(async move {
                sender.send(i).await.unwrap();
                i
            }));
        }
        let sent = in_turn(futures);
        let received: u64 = (0..64).map(|_| receiver.try_recv().unwrap()).sum();
        assert_eq!(received, sent);
    }
    start.elapsed()
}

fn raw_ready(n: u64) -> Duration {
    let start = Instant::now();
    for i in 0..n {
        assert_eq!(block_on(poll_once(async move { black_box(i) })), Some(i));
    }
    start.elapsed()
}

fn raw_wake(n: u64) -> Duration {
    let (ping, pinged) = mpsc::channel();
    let (pong, ponged) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for i in pinged {
            pong.send(i).unwrap();
        }
    });
    let start = Instant::now();
    for i in 0..n {
        ping.send(i).unwrap();
        assert_eq!(ponged.recv(), Ok(i));
    }
    let elapsed = start.elapsed();
    drop(ping);
    thread.join().unwrap();
    elapsed
}
