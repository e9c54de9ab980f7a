//! Child processes.

use std::future::Future;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::each;
use crate::row::{ALL, Report, Row, best};
use crate::runtimes::{AsyncStd, Ours, Runtime, Smol2, Tokio, TokioCt, inside};

/// The shortest program there is.
const PROGRAM: &str = "true";
/// Children at the same time.
const MANY: u64 = 32;

trait Children: Runtime {
    /// Starts the program, and waits for its end.
    fn run_program() -> impl Future<Output = io::Result<ExitStatus>> + Send;
}

impl Children for Ours {
    async fn run_program() -> io::Result<ExitStatus> {
        smol::Async::<Child>::spawn(&mut Command::new(PROGRAM))?.status().await
    }
}

macro_rules! children {
    ($runtime:ident, $command:ty) => {
        impl Children for $runtime {
            async fn run_program() -> io::Result<ExitStatus> {
                <$command>::new(PROGRAM).status().await
            }
        }
    };
}

children!(Tokio, tokio::process::Command);
children!(TokioCt, tokio::process::Command);
children!(Smol2, smol2::process::Command);
children!(AsyncStd, async_std::process::Command);

/// Runs the program `n` times, as often as that at once.
async fn run<R: Children>(n: u64, at_once: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..n / at_once {
        let tasks: Vec<_> = (0..at_once).map(|_| R::spawn(R::run_program())).collect();
        for task in tasks {
            assert!(task.await.unwrap().success());
        }
    }
    start.elapsed()
}

fn run_raw(n: u64, at_once: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..n / at_once {
        let children: Vec<_> =
            (0..at_once).map(|_| Command::new(PROGRAM).spawn().unwrap()).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
    }
    start.elapsed()
}

fn report(runtime: &str, n: u64, batch: u64, at_once: u64) -> Report {
    best(n, batch, |n| {
        each!(runtime,
            raw => run_raw(n, at_once),
            R => inside::<R, _>(run::<R>(n, at_once)))
    })
}

pub const ROWS: &[Row] = &[
    Row::new(
        "proc_true",
        "run `true` and wait for its end, one by one",
        (64, 320),
        ALL,
        |runtime, n| report(runtime, n, 16, 1),
    ),
    Row::new("proc_true_x32", "the same, 32 at once", (128, 640), ALL, |runtime, n| {
        report(runtime, n, MANY, MANY)
    }),
];
