//! `unblock`: closures that may block, and the threads for them.

use crate::each;
use crate::row::{ALL, Row, best, best_of_five};
use crate::runtimes::Runtime;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub const ROWS: &[Row] = &[
    Row::new(
        "unblock_1",
        "`block_on` hands a closure to the pool and awaits it",
        (1_000, 10_000),
        ALL,
        one,
    ),
    Row::new(
        "unblock_100k",
        "one of 100,000 closures that are handed over, then awaited",
        (100_000, 300_000),
        ALL,
        |runtime, n| {
            best(
                n,
                100_000,
                |n| each!(runtime, raw => raw_unblock(n, n), R => R::run(unblock::<R>(n, n))),
            )
        },
    ),
    Row::new(
        "unblock_500_sleep",
        "500 closures that sleep for 10 ms: all together",
        (2, 10),
        ALL,
        |runtime, n| {
            best(n, 1, |_| each!(runtime, raw => raw_sleepers(), R => R::run(sleepers::<R>())))
        },
    ),
    Row::new("unblock_1_1cpu", "`unblock_1` on one processor", (5_000, 50_000), ALL, one).one_cpu(),
];

fn one(runtime: &str, n: u64) -> crate::row::Report {
    best_of_five(n, |n| each!(runtime, raw => raw_unblock(n, 1), R => R::run(unblock::<R>(n, 1))))
}

async fn unblock<R: Runtime>(n: u64, at_once: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..n / at_once {
        let jobs: Vec<_> = (0..at_once).map(|i| R::unblock(move || i)).collect();
        let mut sum = 0;
        for job in jobs {
            sum += job.await;
        }
        assert_eq!(sum, at_once * (at_once - 1) / 2);
    }
    start.elapsed()
}

const NAP: Duration = Duration::from_millis(10);

async fn sleepers<R: Runtime>() -> Duration {
    let start = Instant::now();
    let jobs: Vec<_> = (0..500).map(|_| R::unblock(|| thread::sleep(NAP))).collect();
    for job in jobs {
        job.await;
    }
    assert!(start.elapsed() >= NAP);
    start.elapsed()
}

/// One thread with a queue of closures.
fn raw_unblock(n: u64, at_once: u64) -> Duration {
    let (jobs, received) = mpsc::channel::<Box<dyn FnOnce() -> u64 + Send>>();
    let (sender, outputs) = mpsc::channel();
    let worker = thread::spawn(move || {
        for job in received {
            sender.send(job()).unwrap();
        }
    });
    let start = Instant::now();
    for _ in 0..n / at_once {
        for i in 0..at_once {
            jobs.send(Box::new(move || i)).unwrap();
        }
        let sum: u64 = outputs.iter().take(at_once as usize).sum();
        assert_eq!(sum, at_once * (at_once - 1) / 2);
    }
    let elapsed = start.elapsed();
    drop(jobs);
    worker.join().unwrap();
    elapsed
}

fn raw_sleepers() -> Duration {
    let start = Instant::now();
    let threads: Vec<_> = (0..500).map(|_| thread::spawn(|| thread::sleep(NAP))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    start.elapsed()
}
