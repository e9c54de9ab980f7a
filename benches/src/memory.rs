//! What a task, a timer and a connection cost in bytes. Rows whose unit is not nanoseconds run in the second program,
//! `smol-bench-counted`, whose allocator counts; in the first one these numbers are zero.

use crate::row::{RUNTIMES, Report, Row, Unit};
use crate::runtimes::{Runtime, inside};
use crate::tasks::spawn_join;
use crate::{driver, each};
use futures_lite::future::poll_once;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const ROWS: &[Row] = &[
    Row::new(
        "mem_task",
        "what a pending task occupies in memory; `heap`: what is asked of the allocator",
        (100_000, 500_000),
        RUNTIMES,
        |runtime, n| each!(runtime, R => tasks::<R>(n)),
    )
    .unit(Unit::Bytes),
    Row::new(
        "mem_timer",
        "what a pending timer occupies, its boxed future among it",
        (100_000, 500_000),
        RUNTIMES,
        |runtime, n| each!(runtime, R => timers::<R>(n)),
    )
    .unit(Unit::Bytes),
    Row::new(
        "alloc_spawn",
        "allocations of a task that spawns a task and awaits it",
        (10_000, 100_000),
        RUNTIMES,
        |runtime, n| each!(runtime, R => inside::<R, _>(allocations::<R>(n))),
    )
    .unit(Unit::Count),
];

/// Runs `fill`, which makes `n` things and returns them, and says what each occupies.
pub fn occupied<T>(n: u64, fill: impl FnOnce() -> T) -> Report {
    let (heap_before, resident_before) = (heap().bytes, resident());
    let things = fill();
    let (heap, resident) = (heap().bytes - heap_before, resident() - resident_before);
    drop(things);
    Report(vec![("", resident / n as f64), ("heap", heap / n as f64)])
}

fn tasks<R: Runtime>(n: u64) -> Report {
    static POLLED: AtomicU64 = AtomicU64::new(0);
    inside::<R, _>(spawn_join::<R>(100, 100));
    // The handles are not counted.
    let mut handles: Vec<_> = (0..n).map(|_| None).collect();
    occupied(n, || {
        R::run(async {
            for handle in &mut handles {
                *handle = Some(R::spawn(async {
                    POLLED.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<()>().await;
                }));
            }
            while POLLED.load(Ordering::Relaxed) < n {
                R::yield_now().await;
            }
        })
    })
}

fn timers<R: Runtime>(n: u64) -> Report {
    let mut timers: Vec<_> = (0..n).map(|_| None).collect();
    let start = Instant::now() + Duration::from_secs(3600);
    R::run(async { R::sleep(Duration::from_millis(1)).await });
    occupied(n, || {
        R::run(async {
            for (i, place) in timers.iter_mut().enumerate() {
                let mut timer = Box::pin(R::sleep_until(start + Duration::from_micros(i as u64)));
                assert!(poll_once(&mut timer).await.is_none());
                *place = Some(timer);
            }
        })
    })
}

async fn allocations<R: Runtime>(n: u64) -> Report {
    spawn_join::<R>(1_000, 1).await;
    let before = heap().allocations;
    spawn_join::<R>(n, 1).await;
    let each = (heap().allocations - before) / n as f64;
    // Queues grow and shrink now and then.
    Report(vec![("", (each * 100.0).round() / 100.0)])
}

/// The second program, which cargo builds beside the first if need be.
pub fn program() -> driver::Result<&'static PathBuf> {
    static COPY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let first = std::env::current_exe()?;
    let target = first.ancestors().nth(2).ok_or("no target directory")?;
    let build = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--quiet", "--release", "-p", "smol-bench", "--bin", NAME]);
        cargo.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
        let copy = driver::PROGRAM.get()?.with_file_name(NAME);
        let built = cargo.status().ok()?.success();
        let copied = built && std::fs::copy(target.join("release").join(NAME), &copy).is_ok();
        copied.then_some(copy)
    };
    COPY.get_or_init(build).as_ref().ok_or("smol-bench-counted could not be built".into())
}

const NAME: &str = "smol-bench-counted";

/// Live bytes on the heap, and the allocations so far (reallocations among them).
pub struct Heap {
    pub bytes: f64,
    pub allocations: f64,
}

pub fn heap() -> Heap {
    let stats = stats_alloc::INSTRUMENTED_SYSTEM.stats();
    Heap {
        bytes: (stats.bytes_allocated - stats.bytes_deallocated) as f64,
        allocations: (stats.allocations + stats.reallocations) as f64,
    }
}

/// The bytes of memory this process has touched.
pub fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as f64
}
