//! Timers: how dear and how late.

use crate::each;
use crate::row::{ALL, Report, Row, best, best_of_five};
use crate::runtimes::{Runtime, inside};
use futures_lite::future::poll_once;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const ROWS: &[Row] = &[
    Row::new(
        "timer_create_drop",
        "a timer is created, polled once and dropped",
        (200_000, 1_500_000),
        ALL,
        |runtime, n| {
            best_of_five(
                n,
                |n| each!(runtime, raw => raw_pending(n, 1), R => R::run(create_drop::<R>(n))),
            )
        },
    ),
    Row::new(
        "timer_pending_1m",
        "one of a million timers (quick mode: 250,000) that are polled once, then dropped",
        (250_000, 1_000_000),
        ALL,
        |runtime, n| {
            best(n, n, |n| each!(runtime, raw => raw_pending(n, n), R => R::run(pending::<R>(n))))
        },
    ),
    Row::new(
        "timer_fire_100k",
        "one of 100,000 tasks sleeps: from spawn to join, without the time when nobody is due",
        (100_000, 300_000),
        ALL,
        |runtime, n| {
            best(
                n,
                100_000,
                |n| each!(runtime, raw => raw_fire(n), R => inside::<R, _>(fire::<R>(n))),
            )
        },
    ),
    Row::new(
        "timer_reset",
        "a pending timer is set to another time and polled",
        (400_000, 2_000_000),
        &["raw", "ours", "tokio", "tokio-ct", "smol2"],
        |runtime, n| best_of_five(n, |n| reset(runtime, n)),
    ),
    Row::new(
        "sleep_1ms",
        "`block_on` sleeps for 1 ms: how late it is (median of a run)",
        (40, 300),
        ALL,
        |runtime, n| each!(runtime, raw => raw_sleeps(n, 1), R => R::run(sleeps::<R>(n))),
    ),
    Row::new(
        "timer_late_1k",
        "1,000 tasks sleep for 20 to 70 ms: how late they are (median of a run)",
        (1_000, 4_000),
        ALL,
        |runtime, n| each!(runtime, raw => raw_sleeps(n, 1_000), R => inside::<R, _>(crowd::<R>(n))),
    ),
];

const HOUR: Duration = Duration::from_secs(3600);

async fn create_drop<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..n {
        let timer = pin!(R::sleep(HOUR));
        assert!(poll_once(timer).await.is_none());
    }
    start.elapsed()
}

/// Deadlines in an order that is neither sorted nor random.
fn scrambled(i: u64, n: u64) -> Duration {
    HOUR + Duration::from_micros(i * 7_919 % n)
}

pub async fn pending<R: Runtime>(n: u64) -> Duration {
    let mut timers = Vec::with_capacity(n as usize);
    let start = Instant::now();
    for i in 0..n {
        let mut timer = Box::pin(R::sleep_until(start + scrambled(i, n)));
        assert!(poll_once(&mut timer).await.is_none());
        timers.push(timer);
    }
    drop(timers);
    start.elapsed()
}

async fn fire<R: Runtime>(n: u64) -> Duration {
    let start = Instant::now();
    // Later than the last of them is spawned.
    let first = start + Duration::from_micros(n * 5 / 2);
    let polled = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..n)
        .map(|i| {
            let polled = polled.clone();
            R::spawn(async move {
                let at = first + Duration::from_nanos(i * 7_919 % n * 10);
                let mut timer = pin!(R::sleep_until(at));
                let early = poll_once(&mut timer).await.is_some();
                polled.fetch_add(1, Ordering::Relaxed);
                if !early {
                    timer.await;
                }
                assert!(Instant::now() >= at);
            })
        })
        .collect();
    while polled.load(Ordering::Relaxed) < n {
        R::yield_now().await;
    }
    let slept = first.saturating_duration_since(Instant::now());
    for task in tasks {
        task.await;
    }
    start.elapsed() - slept
}

/// The two whose timers are set in the same way.
macro_rules! reset {
    ($smol:ident, $n:expr) => {
        $smol::block_on(async {
            let mut timer = $smol::Timer::after(HOUR);
            assert!(poll_once(&mut timer).await.is_none());
            let start = Instant::now();
            for _ in 0..$n {
                timer.set_after(HOUR);
                assert!(poll_once(&mut timer).await.is_none());
            }
            start.elapsed()
        })
    };
}

fn reset(runtime: &str, n: u64) -> Duration {
    match runtime {
        "raw" => raw_pending(n, 1),
        "ours" => reset!(smol, n),
        "smol2" => reset!(smol2, n),
        tokio => each!(tokio, R => R::run(async {
            let mut timer = pin!(tokio::time::sleep(HOUR));
            assert!(poll_once(&mut timer).await.is_none());
            let start = Instant::now();
            for _ in 0..n {
                timer.as_mut().reset(tokio::time::Instant::now() + HOUR);
                assert!(poll_once(&mut timer).await.is_none());
            }
            start.elapsed()
        })),
    }
}

/// How late it is. No timer may be early.
pub fn late(at: Instant) -> Duration {
    Instant::now().checked_duration_since(at).expect("a timer that is not early")
}

/// The median is the row's value.
fn percentiles(mut late: Vec<Duration>) -> Report {
    late.sort();
    let at = |percent: usize| late[(late.len() - 1) * percent / 100].as_nanos() as f64;
    Report(vec![("", at(50)), ("late_p99", at(99))])
}

async fn sleeps<R: Runtime>(n: u64) -> Report {
    let mut all = Vec::new();
    for _ in 0..n {
        let at = Instant::now() + Duration::from_millis(1);
        R::sleep_until(at).await;
        all.push(late(at));
    }
    percentiles(all)
}

/// The deadlines of a thousand timers.
fn deadline(start: Instant, i: u32) -> Instant {
    start + Duration::from_millis(20) + Duration::from_micros(50) * i
}

async fn crowd<R: Runtime>(n: u64) -> Report {
    let mut all = Vec::new();
    for _ in 0..n / 1_000 {
        let start = Instant::now();
        let sleep = |i| async move {
            let at = deadline(start, i);
            R::sleep_until(at).await;
            late(at)
        };
        let tasks: Vec<_> = (0..1_000).map(|i| R::spawn(sleep(i))).collect();
        for task in tasks {
            all.push(task.await);
        }
    }
    percentiles(all)
}

// A map of deadlines, and a thread that sleeps until the first.

fn raw_pending(n: u64, at_once: u64) -> Duration {
    let mut map = BTreeMap::new();
    let start = Instant::now();
    for _ in 0..n / at_once {
        for i in 0..at_once {
            map.insert((Instant::now() + scrambled(i, n), i), i);
        }
        assert_eq!(map.len() as u64, at_once);
        map.clear();
    }
    start.elapsed()
}

fn raw_fire(n: u64) -> Duration {
    let start = Instant::now();
    let mut map = BTreeMap::new();
    for i in 0..n {
        let job: Box<dyn FnOnce() -> u64> = Box::new(move || i);
        map.insert((start + Duration::from_nanos(i * 7_919 % n * 10), i), job);
    }
    let mut sum = 0;
    while let Some(((at, _), job)) = map.pop_first() {
        while Instant::now() < at {}
        sum += job();
    }
    assert_eq!(sum, n * (n - 1) / 2);
    start.elapsed()
}

fn raw_sleeps(n: u64, at_once: u32) -> Report {
    let mut all = Vec::new();
    for _ in 0..n / at_once as u64 {
        let start = Instant::now();
        for i in 0..at_once {
            let at = match at_once {
                1 => start + Duration::from_millis(1),
                _ => deadline(start, i),
            };
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            all.push(late(at));
        }
    }
    percentiles(all)
}
