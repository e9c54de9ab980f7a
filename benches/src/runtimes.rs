//! What the workloads ask of a runtime, and the five that answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A runtime, as a type without values. How many workers it has is decided by the environment of the process
/// (`SMOL_THREADS` and so on, set by the parent; for tokio by `workers()`).
pub trait Runtime: 'static {
    const NAME: &'static str;
    type Task<T: Send + 'static>: Future<Output = T> + Send + Unpin + 'static;
    type LocalTask<T: 'static>: Future<Output = T> + Unpin + 'static;
    /// Runs the future on this thread.
    fn run<T>(main: impl Future<Output = T>) -> T;
    fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Self::Task<T>;
    fn detach(future: impl Future<Output = ()> + Send + 'static);
    /// Runs the future on this thread, in a place where `spawn_local` works.
    fn run_local<T>(main: impl Future<Output = T>) -> T;
    fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::LocalTask<T>;
    fn yield_now() -> impl Future<Output = ()> + Send;
    fn sleep_until(at: Instant) -> impl Future<Output = ()> + Send;
    fn sleep(duration: Duration) -> impl Future<Output = ()> + Send {
        Self::sleep_until(Instant::now() + duration)
    }
    fn unblock<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send;
}

/// Runs the future as a task: on a worker, if the runtime has any.
pub fn inside<R: Runtime, T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    R::run(async { R::spawn(future).await })
}

/// The number of worker threads that this process shall have.
pub fn workers() -> usize {
    std::env::var("BENCH_WORKERS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

/// tokio's handle, which yields a `Result`, as a future of the output.
pub struct Joined<T>(tokio::task::JoinHandle<T>);

impl<T> Future for Joined<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.expect("a task of the benchmark failed"))
    }
}

pub struct Ours;

impl Runtime for Ours {
    const NAME: &'static str = "ours";
    type Task<T: Send + 'static> = smol::Task<T>;
    type LocalTask<T: 'static> = smol::Task<T>;
    fn run<T>(main: impl Future<Output = T>) -> T {
        smol::block_on(main)
    }
    fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Self::Task<T> {
        smol::spawn(future)
    }
    fn detach(future: impl Future<Output = ()> + Send + 'static) {
        smol::spawn(future).detach();
    }
    fn run_local<T>(main: impl Future<Output = T>) -> T {
        smol::block_on(main)
    }
    fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::LocalTask<T> {
        smol::spawn_local(future)
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        smol::future::yield_now()
    }
    async fn sleep_until(at: Instant) {
        smol::Timer::at(at).await;
    }
    fn unblock<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        smol::unblock(f)
    }
}

/// tokio with several threads, and with `current_thread`.
pub struct Tokio;
pub struct TokioCt;

/// The runtime of a process, built when first needed.
impl Tokio {
    pub fn runtime() -> &'static tokio::runtime::Runtime {
        static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        RUNTIME.get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(workers())
                .enable_all()
                .build()
                .unwrap()
        })
    }
}

impl TokioCt {
    pub fn runtime() -> &'static tokio::runtime::Runtime {
        static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        RUNTIME.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
        })
    }
}

macro_rules! impl_tokio {
    ($runtime:ident, $name:literal) => {
        impl Runtime for $runtime {
            const NAME: &'static str = $name;
            type Task<T: Send + 'static> = Joined<T>;
            type LocalTask<T: 'static> = Joined<T>;
            fn run<T>(main: impl Future<Output = T>) -> T {
                Self::runtime().block_on(main)
            }
            fn spawn<T: Send + 'static>(
                future: impl Future<Output = T> + Send + 'static,
            ) -> Self::Task<T> {
                Joined(Self::runtime().spawn(future))
            }
            fn detach(future: impl Future<Output = ()> + Send + 'static) {
                drop(Self::runtime().spawn(future));
            }
            fn run_local<T>(main: impl Future<Output = T>) -> T {
                tokio::task::LocalSet::new().block_on(Self::runtime(), main)
            }
            fn spawn_local<T: 'static>(
                future: impl Future<Output = T> + 'static,
            ) -> Self::LocalTask<T> {
                Joined(tokio::task::spawn_local(future))
            }
            fn yield_now() -> impl Future<Output = ()> + Send {
                tokio::task::yield_now()
            }
            fn sleep_until(at: Instant) -> impl Future<Output = ()> + Send {
                tokio::time::sleep_until(at.into())
            }
            fn unblock<T: Send + 'static>(
                f: impl FnOnce() -> T + Send + 'static,
            ) -> impl Future<Output = T> + Send {
                Joined(Self::runtime().spawn_blocking(f))
            }
        }
    };
}

impl_tokio!(Tokio, "tokio");
impl_tokio!(TokioCt, "tokio-ct");

/// smol 2.
pub struct Smol2;

thread_local! {
    static LOCAL: smol2::LocalExecutor<'static> = const { smol2::LocalExecutor::new() };
}

impl Runtime for Smol2 {
    const NAME: &'static str = "smol2";
    type Task<T: Send + 'static> = smol2::Task<T>;
    type LocalTask<T: 'static> = smol2::Task<T>;
    fn run<T>(main: impl Future<Output = T>) -> T {
        smol2::block_on(main)
    }
    fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Self::Task<T> {
        smol2::spawn(future)
    }
    fn detach(future: impl Future<Output = ()> + Send + 'static) {
        smol2::spawn(future).detach();
    }
    fn run_local<T>(main: impl Future<Output = T>) -> T {
        LOCAL.with(|executor| smol2::block_on(executor.run(main)))
    }
    fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::LocalTask<T> {
        LOCAL.with(|executor| executor.spawn(future))
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        smol2::future::yield_now()
    }
    async fn sleep_until(at: Instant) {
        smol2::Timer::at(at).await;
    }
    fn unblock<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        smol2::unblock(f)
    }
}

pub struct AsyncStd;

impl Runtime for AsyncStd {
    const NAME: &'static str = "async-std";
    type Task<T: Send + 'static> = async_std::task::JoinHandle<T>;
    type LocalTask<T: 'static> = async_std::task::JoinHandle<T>;
    fn run<T>(main: impl Future<Output = T>) -> T {
        async_std::task::block_on(main)
    }
    fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Self::Task<T> {
        async_std::task::spawn(future)
    }
    fn detach(future: impl Future<Output = ()> + Send + 'static) {
        drop(async_std::task::spawn(future));
    }
    fn run_local<T>(main: impl Future<Output = T>) -> T {
        async_std::task::block_on(main)
    }
    fn spawn_local<T: 'static>(future: impl Future<Output = T> + 'static) -> Self::LocalTask<T> {
        async_std::task::spawn_local(future)
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        async_std::task::yield_now()
    }
    fn sleep_until(at: Instant) -> impl Future<Output = ()> + Send {
        async_std::task::sleep(at.saturating_duration_since(Instant::now()))
    }
    fn unblock<T: Send + 'static>(
        f: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        async_std::task::spawn_blocking(f)
    }
}

/// `each!(name, R => f::<R>(n))` is `f` for the runtime of this name; `raw => g(n)` in front of it adds what is no runtime.
#[macro_export]
macro_rules! each {
    ($name:expr, raw => $raw:expr, $R:ident => $body:expr) => {
        match $name {
            "raw" => $raw,
            name => $crate::each!(name, $R => $body),
        }
    };
    ($name:expr, $R:ident => $body:expr) => {
        $crate::each!(@ $name, $R => $body, Ours, Tokio, TokioCt, Smol2, AsyncStd)
    };
    (@ $name:expr, $R:ident => $body:expr, $($runtime:ident),*) => {
        match $name {
            $(name if name == <$crate::runtimes::$runtime as $crate::runtimes::Runtime>::NAME => {
                type $R = $crate::runtimes::$runtime;
                $body
            })*
            name => panic!("there is no runtime {name} for this row"),
        }
    };
}
