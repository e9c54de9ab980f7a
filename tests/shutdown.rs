//! Where there is no thread to be had, no descriptor, no thread-local any more or no sane configuration: an error, a clear panic, or the
//! work is done on a thread that exists; never a hang, an abort or a spin.

mod common;

use common::{
    Flag, OnDrop, foreign_block_on, fresh_process, fresh_process_output, fresh_processes,
    set_on_drop, sleep, socket_pair, within,
};
use smol::{
    Executor, LocalExecutor, Task, Timer, block_on, future, scope, spawn, spawn_local, unblock,
};
use std::{
    any::Any,
    cell::RefCell,
    future::{Future, pending, poll_fn},
    io::{Read, Seek, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, mpsc},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

// ---------- configuration ----------

/// smol 2: with `SMOL_THREADS=0`, `spawn` never runs.
#[test]
fn nonsense_as_the_number_of_threads_is_clamped_or_ignored() {
    let values = ["0", "", "-1", "abc", "1.5", " 2 ", "1000000000", "99999999999999999999999"];
    let envs: Vec<Vec<(&str, &str)>> = values
        .iter()
        .map(|&value| vec![("SMOL_THREADS", value), ("BLOCKING_MAX_THREADS", value)])
        .collect();
    fresh_processes(10, &envs.iter().map(Vec::as_slice).collect::<Vec<_>>(), || {
        let tasks: Vec<Task<u32>> =
            (0..200).map(|_| spawn(async { unblock(|| 1).await })).collect();
        let sum = foreign_block_on(async {
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        });
        assert_eq!(sum, 200);
        assert_eq!(block_on(spawn(async { block_on(unblock(|| 2)) })), 2);
        #[cfg(target_os = "linux")]
        assert!(common::threads().len() < 1200, "{} threads", common::threads().len());
    });
}

#[test]
#[cfg(target_os = "linux")]
fn as_many_workers_run_as_the_environment_says() {
    fresh_processes(10, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "3")]], || {
        let workers: usize = std::env::var("SMOL_THREADS").unwrap().parse().unwrap();
        // Short tasks: no reason for spares.
        for _ in 0..100 {
            let tasks: Vec<_> = (0..100).map(|_| spawn(future::yield_now())).collect();
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
        let count = threads_of_workers();
        assert!(
            (1..=workers + 1).contains(&count),
            "{count} for {workers}: {:?}",
            common::threads()
        );
    });
}

/// Worker threads are named smol-0, smol-1 and so on.
#[cfg(target_os = "linux")]
fn threads_of_workers() -> usize {
    common::threads()
        .iter()
        .filter(|name| name.strip_prefix("smol-").is_some_and(|rest| rest.parse::<u32>().is_ok()))
        .count()
}

// ---------- threads that cannot be started ----------

/// The stack size that no thread can have; only threads that ask for a size of their own start.
const NO_THREADS: &[(&str, &str)] = &[("RUST_MIN_STACK", "70368744177664")];

/// Whatever `body` does in a process without threads, it has to do without spinning.
#[track_caller]
fn frugally(body: impl FnOnce()) {
    assert!(thread::Builder::new().spawn(|| ()).is_err(), "threads can be started here");
    #[cfg(unix)]
    let before = common::cpu_time();
    body();
    #[cfg(unix)]
    assert!(
        common::cpu_time() - before < Duration::from_millis(1500),
        "{:?} of processor time",
        common::cpu_time() - before
    );
}

/// blocking #79, tokio #8406.
#[test]
#[cfg(target_os = "linux")]
fn without_threads_block_on_does_all_the_work() {
    fresh_process(20, NO_THREADS, || {
        frugally(|| {
            assert_eq!(block_on(async { 1 }), 1);
            block_on(sleep(Duration::from_millis(5)));
            assert_eq!(block_on(unblock(|| 2)), 2);
            assert_eq!(block_on(spawn(async { 3 })), 3);
            assert_eq!(block_on(async { spawn(async { unblock(|| 4).await }).await }), 4);
            block_on(async {
                let tasks: Vec<_> = (0..100)
                    .map(|i| {
                        spawn(async move {
                            Timer::after(Duration::from_millis(i % 10)).await;
                            spawn(future::yield_now()).await;
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
                let (mut one, mut two) = socket_pair();
                let echo =
                    spawn(
                        async move { smol::io::AsyncReadExt::read_exact(&mut two, &mut [0]).await },
                    );
                smol::io::AsyncWriteExt::write_all(&mut one, b"x").await.unwrap();
                echo.await.unwrap();
            });
            // Spawned and let go before anybody drives.
            let done = Flag::new();
            let on_drop = set_on_drop(&done);
            spawn(async move { drop(on_drop) }).detach();
            block_on(done.wait());
            let _ = block_on(smol::resolve("localhost:80")); // a list or an error
        });
    });
}

#[test]
#[cfg(target_os = "linux")]
fn without_threads_a_nested_block_on_does_the_work_too() {
    fresh_process(20, NO_THREADS, || {
        frugally(|| {
            assert_eq!(
                block_on(spawn(async { block_on(spawn(async { block_on(unblock(|| 5)) })) })),
                5
            );
            assert_eq!(
                block_on(async { spawn_local(async { block_on(spawn(async { 6 })) }).await }),
                6
            );
            assert_eq!(block_on(unblock(|| block_on(unblock(|| block_on(spawn(async { 7 })))))), 7);
        });
    });
}

#[test]
#[cfg(target_os = "linux")]
fn without_threads_a_foreign_block_on_finishes_or_panics() {
    fresh_process(30, NO_THREADS, || {
        frugally(|| {
            // There may be nobody to do it; then the one who asks must hear of it.
            let ask = |what: &str, body: &dyn Fn()| {
                let result = catch_unwind(AssertUnwindSafe(body));
                println!("{what}: {}", if result.is_ok() { "done" } else { "a panic" });
            };
            ask("unblock", &|| assert_eq!(foreign_block_on(unblock(|| 2)), 2));
            ask("resolve", &|| drop(foreign_block_on(smol::resolve("localhost:80"))));
            ask("timer", &|| foreign_block_on(sleep(Duration::from_millis(5))));
            ask("spawn", &|| assert_eq!(foreign_block_on(spawn(async { 3 })), 3));
            ask("socket", &|| {
                let (one, two) = socket_pair();
                std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
                foreign_block_on(one.readable()).unwrap();
            });
            // None of that broke anything.
            assert_eq!(block_on(spawn(async { unblock(|| 4).await })), 4);
        });
    });
}

#[test]
#[cfg(target_os = "linux")]
fn when_threads_can_be_started_again_they_are() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    fresh_process(30, &[("SMOL_THREADS", "2")], || {
        // Too little address space for another stack; there is none to reuse, as no thread has ended yet.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")?.trim().parse().ok())
            .unwrap();
        let limit = getrlimit(Resource::As);
        setrlimit(Resource::As, Rlimit { current: Some((kib + 1500) << 10), ..limit }).unwrap();
        frugally(|| {
            assert_eq!(block_on(unblock(|| 2)), 2);
            assert_eq!(block_on(spawn(async { 3 })), 3);
        });
        assert_eq!(common::threads_named("smol-"), 0, "{:?}", common::threads());
        setrlimit(Resource::As, limit).unwrap();
        // Nobody is in a block_on of ours now: only threads can do this.
        assert_eq!(foreign_block_on(unblock(|| 4)), 4);
        assert_eq!(foreign_block_on(spawn(async { 5 })), 5);
        foreign_block_on(sleep(Duration::from_millis(5)));
        assert!(common::threads_named("smol-") > 0);
    });
}

/// Too little address space for another stack, as long as it exists.
#[cfg(target_os = "linux")]
struct NoRoomForThreads(rustix::process::Rlimit);

#[cfg(target_os = "linux")]
impl NoRoomForThreads {
    fn new() -> Self {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmSize:")?.strip_suffix("kB")?.trim().parse().ok())
            .unwrap();
        let limit = getrlimit(Resource::As);
        setrlimit(Resource::As, Rlimit { current: Some((kib + 1500) << 10), ..limit }).unwrap();
        assert!(thread::Builder::new().spawn(|| ()).is_err(), "threads can be started here");
        NoRoomForThreads(limit)
    }
}

#[cfg(target_os = "linux")]
impl Drop for NoRoomForThreads {
    fn drop(&mut self) {
        rustix::process::setrlimit(rustix::process::Resource::As, self.0).unwrap();
    }
}

/// Several are in `block_on`; a push that takes one for awake must not take one that never comes.
#[test]
#[cfg(target_os = "linux")]
fn without_threads_tasks_from_anywhere_reach_those_who_are_in_block_on() {
    fresh_process(60, NO_THREADS, || {
        assert!(thread::Builder::new().spawn(|| ()).is_err(), "threads can be started here");
        // With stacks of their own, so that they start.
        let start = |body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().stack_size(256 << 10).spawn(body).unwrap()
        };
        let done = Flag::new();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let done = done.clone();
                start(Box::new(move || block_on(done.wait())))
            })
            .collect();
        let pushing: Vec<_> = (0..2)
            .map(|i| {
                start(Box::new(move || {
                    for round in 0..2_000 {
                        let task = spawn(async move {
                            if round % 3 == 0 {
                                future::yield_now().await;
                            }
                            round
                        });
                        let result = if i == 0 { block_on(task) } else { foreign_block_on(task) };
                        assert_eq!(result, round);
                    }
                }))
            })
            .collect();
        pushing.into_iter().for_each(|thread| thread.join().unwrap());
        done.set();
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(common::threads_named("smol-"), 0, "{:?}", common::threads());
    });
}

/// There is no thread for them, and nobody is in `block_on`: they wait, and waiting costs nothing.
#[test]
#[cfg(target_os = "linux")]
fn tasks_that_nobody_can_run_cost_nothing_and_run_when_threads_can_be_started_again() {
    fresh_process(60, &[], || {
        // Whoever watches is there before there is no room any more.
        foreign_block_on(sleep(Duration::from_millis(1)));
        let none = NoRoomForThreads::new();
        let tasks: Vec<_> = (0..5)
            .map(|i| {
                spawn(async move {
                    sleep(Duration::from_millis(i)).await;
                    i
                })
            })
            .collect();
        let (used, wakes) = common::idle_cost(Duration::from_secs(1));
        assert!(wakes <= 20, "{wakes} wake-ups in a second; threads: {:?}", common::threads());
        assert!(used < Duration::from_millis(50), "{used:?} of processor time in a second");
        drop(none);
        // The next push finds that there is room; it brings the others along.
        assert_eq!(foreign_block_on(spawn(async { 7 })), 7);
        for (i, task) in (0..).zip(tasks) {
            assert_eq!(foreign_block_on(task), i);
        }
        assert!(common::threads_named("smol-") > 0);
    });
}

/// The same, and somebody comes into `block_on` in time.
#[test]
#[cfg(target_os = "linux")]
fn tasks_that_nobody_could_run_are_run_by_the_next_block_on() {
    fresh_processes(60, &[&[], NO_THREADS], || {
        if std::env::var_os("RUST_MIN_STACK").is_none() {
            foreign_block_on(sleep(Duration::from_millis(1)));
        }
        let _none = NoRoomForThreads::new();
        let ran = Flag::new();
        let task = spawn({
            let ran = ran.clone();
            async move { ran.set() }
        });
        block_on(sleep(Duration::from_millis(5)));
        assert!(ran.is_set(), "a task that was queued is left alone");
        block_on(task);
        // One is woken while nobody is there, and found by the next.
        let (wake, again) = (Flag::new(), Flag::new());
        spawn({
            let (wake, again) = (wake.clone(), again.clone());
            async move {
                wake.wait().await;
                again.set();
            }
        })
        .detach();
        block_on(future::yield_now());
        wake.set();
        block_on(again.wait());
    });
}

/// No thread can wait for it, and no other child is spawned.
#[test]
#[cfg(target_os = "linux")]
fn without_threads_a_child_whose_handle_was_dropped_is_no_zombie_for_ever() {
    fresh_process(60, &[], || {
        let mut cat = std::process::Command::new("cat");
        cat.stdin(std::process::Stdio::piped());
        let child = smol::Async::<std::process::Child>::spawn(&mut cat).unwrap();
        let state = format!("/proc/{}/stat", child.id());
        let input = child.take_stdin();
        let none = NoRoomForThreads::new();
        drop(child);
        drop(input);
        while std::path::Path::new(&state).exists() {
            block_on(sleep(Duration::from_millis(10)));
        }
        drop(none);
    });
}

/// Those that exist do the work, and nobody waits for the one that never comes.
#[test]
#[cfg(target_os = "linux")]
fn when_the_second_worker_cannot_be_started_the_first_one_does_it_all() {
    fresh_process(60, &[("SMOL_THREADS", "4")], || {
        // One worker, and whoever watches.
        foreign_block_on(spawn(async {}));
        foreign_block_on(sleep(Duration::from_millis(1)));
        let none = NoRoomForThreads::new();
        for _ in 0..200 {
            let tasks: Vec<_> = (0..10)
                .map(|i| {
                    spawn(async move {
                        if i % 3 == 0 {
                            sleep(Duration::from_micros(i)).await;
                        }
                        spawn(async move { i }).await
                    })
                })
                .collect();
            foreign_block_on(async {
                for (i, task) in (0..).zip(tasks) {
                    assert_eq!(task.await, i);
                }
            });
        }
        // A worker that is blocked has no replacement; but a main future goes on, and rest is rest.
        let (sender, receiver) = mpsc::channel::<()>();
        let blocked = spawn(async move { receiver.recv().unwrap() });
        let waiting: Vec<_> = (0..3).map(|i| spawn(async move { i })).collect();
        block_on(sleep(Duration::from_millis(20)));
        sender.send(()).unwrap();
        foreign_block_on(blocked);
        for (i, task) in (0..).zip(waiting) {
            assert_eq!(foreign_block_on(task), i);
        }
        let (used, wakes) = common::idle_cost(Duration::from_secs(1));
        assert!(wakes <= 20, "{wakes} wake-ups in a second; threads: {:?}", common::threads());
        assert!(used < Duration::from_millis(50), "{used:?} of processor time in a second");
        drop(none);
        touch();
    });
}

// ---------- descriptors that run out ----------

#[test]
#[cfg(target_os = "linux")]
fn without_descriptors_registering_is_an_error_and_the_rest_works() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::net::UdpSocket;
    fresh_process(20, &[], || {
        // The sockets first; nothing of the runtime has been used yet.
        let sockets = [(); 3].map(|()| Arc::new(UdpSocket::bind(("127.0.0.1", 0)).unwrap()));
        let limit = getrlimit(Resource::Nofile);
        let mut spare = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            spare.push(file);
            if spare.len() == 1 {
                setrlimit(
                    Resource::Nofile,
                    Rlimit { current: Some(common::open_fds() as u64 + 2), ..limit },
                )
                .unwrap();
            }
        }
        let cpu = common::cpu_time();
        for socket in &sockets {
            // No panic: there may be no poller, but then there is an error.
            drop(smol::Async::new(socket.clone()));
        }
        assert!(smol::Async::<UdpSocket>::bind(("127.0.0.1", 0)).is_err());
        assert_eq!(block_on(async { 1 }), 1);
        assert_eq!(
            block_on(async {
                spawn_local(future::yield_now()).await;
                2
            }),
            2
        );
        assert_eq!(block_on(unblock(|| 3)), 3);
        assert_eq!(block_on(spawn(async { 4 })), 4);
        // A timer has no way to say that there is no poller, but it must not hang.
        let timer = catch_unwind(|| block_on(sleep(Duration::from_millis(5))));
        println!("timer: {}", if timer.is_ok() { "fired" } else { "a panic" });
        assert!(common::cpu_time() - cpu < Duration::from_secs(1), "spins without descriptors");
        // And when there are some again, all is well.
        drop(spare);
        setrlimit(Resource::Nofile, limit).unwrap();
        block_on(sleep(Duration::from_millis(5)));
        let (one, two) = socket_pair();
        std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
        foreign_block_on(one.readable()).unwrap();
        foreign_block_on(sleep(Duration::from_millis(5)));
    });
}

// ---------- the end of a thread ----------

thread_local! {
    /// What is in here is dropped when the thread ends, before or after the runtime's own thread-locals.
    static AT_THE_END: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Touches the runtime's thread-locals, all there may be.
fn touch() {
    block_on(async {
        spawn_local(future::yield_now()).await;
        Timer::after(Duration::from_micros(10)).await;
        scope(async |s| s.spawn(async {}).await).await;
        assert_eq!(spawn(async { unblock(|| 1).await }).await, 1);
    });
    let (ex, local) = (Executor::new(), LocalExecutor::new());
    block_on(ex.run(ex.spawn(future::yield_now())));
    block_on(local.run(local.spawn(future::yield_now())));
}

/// Runs a thread that leaves what `make` makes to its end, in both orders of destruction, and in a thread that never used the runtime.
fn at_the_end_of_a_thread<T: Any>(make: impl Fn() -> T + Send + Sync) {
    for order in 0..3 {
        let make = &make;
        thread::scope(|threads| {
            threads.spawn(move || {
                if order == 1 {
                    AT_THE_END.with_borrow(|_| ()); // registered first, destroyed last
                }
                if order < 2 {
                    touch();
                }
                let made = make();
                AT_THE_END.with_borrow_mut(|kept| kept.push(Box::new(made)));
            });
        });
    }
}

/// async-io: `block_on` in the destructor of a thread-local panics, and so aborts; tokio #593, #4973, #6091.
#[test]
fn whatever_a_destructor_of_a_thread_local_calls_ends_in_a_result_or_a_panic() {
    let calls: [(&str, fn()); 16] = [
        ("block_on", || assert_eq!(block_on(async { 1 }), 1)),
        ("block_on a yield", || block_on(future::yield_now())),
        ("block_on a timer", || block_on(sleep(Duration::from_millis(1)))),
        ("block_on a task", || assert_eq!(block_on(spawn(async { 2 })), 2)),
        ("block_on a job", || assert_eq!(block_on(unblock(|| 3)), 3)),
        ("block_on a local task", || {
            assert_eq!(block_on(async { spawn_local(async { 4 }).await }), 4)
        }),
        ("block_on a scope", || {
            assert_eq!(block_on(scope(async |s| s.spawn(async { 5 }).await)), 5)
        }),
        ("a local task alone", || spawn_local(async {}).detach()),
        ("spawn alone", || spawn(async {}).detach()),
        ("a foreign block_on", || {
            foreign_block_on(async {
                Timer::after(Duration::from_millis(1)).await;
                assert_eq!(spawn(async { unblock(|| 6).await }).await, 6);
            })
        }),
        ("an executor", || {
            let ex = Executor::new();
            assert_eq!(block_on(ex.run(ex.spawn(async { 7 }))), 7);
            ex.spawn(pending::<()>()).detach();
            while ex.try_tick() {}
        }),
        ("a local executor", || {
            let ex = LocalExecutor::new();
            assert_eq!(block_on(ex.run(ex.spawn(async { 8 }))), 8);
            ex.spawn(pending::<()>()).detach();
        }),
        ("a socket", || {
            let (one, two) = socket_pair();
            std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            block_on(one.readable()).unwrap();
        }),
        ("a timeout", || {
            block_on(smol::timeout(Duration::from_millis(1), pending::<()>())).unwrap_err();
        }),
        ("resolve", || drop(block_on(smol::resolve("127.0.0.1:80")).unwrap())),
        ("a cancel", || assert!(foreign_block_on(spawn(pending::<()>()).cancel()).is_none())),
    ];
    fresh_process(30, &[], move || {
        for (name, call) in calls {
            let (ended, end) = mpsc::channel();
            at_the_end_of_a_thread(move || {
                let ended = ended.clone();
                OnDrop(move || {
                    // A panic that left a destructor of a thread-local would abort the process.
                    let result = catch_unwind(call).map_err(|panic| {
                        panic
                            .downcast_ref::<String>()
                            .cloned()
                            .or(panic.downcast_ref::<&str>().map(|s| s.to_string()))
                            .unwrap_or_default()
                    });
                    ended.send(result).unwrap();
                })
            });
            for _ in 0..3 {
                if let Err(message) = end.recv().unwrap() {
                    println!("{name}: {message}");
                    assert!(
                        !message.is_empty() && !message.contains("AccessError"),
                        "{name}: not a clear message: {message}"
                    );
                    assert!(!message.contains("assertion"), "{name}: {message}");
                }
            }
        }
        touch();
    });
}

#[test]
fn what_a_thread_local_holds_of_the_runtime_is_dropped_in_peace() {
    fresh_process(30, &[], || {
        fn polled<F: Future + 'static>(future: F) -> Pin<Box<dyn Future<Output = F::Output>>> {
            let mut future: Pin<Box<dyn Future<Output = F::Output>>> = Box::pin(future);
            assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            future
        }
        let hour = Duration::from_secs(3600);
        at_the_end_of_a_thread(|| spawn(pending::<()>()));
        at_the_end_of_a_thread(|| spawn_local(pending::<()>()));
        at_the_end_of_a_thread(|| {
            spawn_local(pending::<()>()).detach();
            let task = spawn_local(pending::<()>());
            block_on(future::yield_now());
            polled(task)
        });
        at_the_end_of_a_thread(|| polled(spawn(pending::<()>())));
        at_the_end_of_a_thread(move || polled(Timer::after(hour)));
        at_the_end_of_a_thread(move || polled(smol::timeout(hour, pending::<()>())));
        at_the_end_of_a_thread(|| {
            let (one, two) = socket_pair();
            polled(async move {
                one.readable().await.unwrap();
                drop(two);
            })
        });
        at_the_end_of_a_thread(|| {
            let ex = Executor::new();
            ex.spawn(pending::<()>()).detach();
            ex.try_tick();
            ex.spawn(async {}).detach();
            ex
        });
        at_the_end_of_a_thread(|| {
            let ex = LocalExecutor::new();
            ex.spawn(pending::<()>()).detach();
            ex.try_tick();
            ex.spawn(async {}).detach();
            ex
        });
        at_the_end_of_a_thread(|| {
            polled(scope(async |s| {
                drop(s.spawn(pending::<()>()));
                pending::<()>().await
            }))
        });
        at_the_end_of_a_thread(|| polled(unblock(|| thread::sleep(Duration::from_millis(5)))));
        touch();
    });
}

/// tokio `wake_by_{ref,val}_from_thread_local`.
#[test]
fn wakers_woken_and_dropped_by_a_thread_local_find_their_tasks() {
    fresh_process(30, &[], || {
        for by_value in [false, true] {
            // A task on a worker, and one in a block_on that sleeps elsewhere.
            at_the_end_of_a_thread(move || {
                let (waker_to, waker) = mpsc::channel::<Waker>();
                let done = Flag::new();
                let wait = |done: std::sync::Arc<Flag>, waker_to: mpsc::Sender<Waker>| async move {
                    let mut sent = false;
                    poll_fn(|cx| {
                        if std::mem::replace(&mut sent, true) {
                            return Poll::Ready(());
                        }
                        waker_to.send(cx.waker().clone()).unwrap();
                        Poll::Pending
                    })
                    .await;
                    done.set();
                };
                spawn(wait(done.clone(), waker_to.clone())).detach();
                let other_done = Flag::new();
                let sleeper = thread::spawn({
                    let wait = wait(other_done.clone(), waker_to);
                    move || block_on(wait)
                });
                let mut wakers = vec![waker.recv().unwrap(), waker.recv().unwrap()];
                // Those of this thread's own block_on and local tasks, which are at their end themselves.
                wakers.push(block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone()))));
                let (waker_to, waker) = mpsc::channel::<Waker>();
                spawn_local(poll_fn(move |cx| {
                    let _ = waker_to.send(cx.waker().clone());
                    Poll::<()>::Pending
                }))
                .detach();
                block_on(future::yield_now());
                wakers.push(waker.recv().unwrap());
                let mut sleeper = Some(sleeper);
                OnDrop(move || {
                    for waker in wakers.drain(..) {
                        if by_value { waker.wake() } else { waker.wake_by_ref() }
                    }
                    done.wait_blocking();
                    other_done.wait_blocking();
                    sleeper.take().unwrap().join().unwrap();
                })
            });
        }
    });
}

#[test]
fn tasks_that_use_the_runtime_in_their_drop_at_the_end_of_their_thread_do_not_abort() {
    fresh_process(30, &[], || {
        for order in 0..2 {
            let dropped = Flag::new();
            let flag = dropped.clone();
            thread::spawn(move || {
                if order == 0 {
                    AT_THE_END.with_borrow(|_| ());
                }
                let on_drop = OnDrop(move || {
                    flag.set();
                    for call in [
                        || spawn(async {}).detach(),
                        || spawn_local(async {}).detach(),
                        || assert_eq!(block_on(async { 1 }), 1),
                        || block_on(sleep(Duration::from_millis(1))),
                    ] {
                        let _ = catch_unwind(call);
                    }
                });
                spawn_local(async move {
                    let _on_drop = on_drop;
                    pending::<()>().await
                })
                .detach();
                block_on(future::yield_now());
            })
            .join()
            .unwrap();
            assert!(dropped.is_set(), "a local task outlives its thread");
        }
    });
}

// ---------- fork ----------

/// Forks; runs `child` there; says how that ended: `Ok` if it came to its end, else the message of its panic.
#[cfg(unix)]
#[track_caller]
fn in_a_forked_child(child: impl FnOnce()) -> Result<(), String> {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    let mut report = tempfile::tempfile().unwrap();
    match fork::fork().unwrap() {
        fork::Fork::Child => {
            let result = catch_unwind(AssertUnwindSafe(child));
            if let Err(panic) = &result {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied());
                let _ = report.write_all(text.unwrap_or("?").as_bytes());
            }
            std::process::exit(if result.is_ok() { 0 } else { 3 })
        }
        fork::Fork::Parent(pid) => {
            let (pid, deadline) = (Pid::from_raw(pid), Instant::now() + Duration::from_secs(5));
            let status = loop {
                if let Some((_, status)) = waitpid(pid, WaitOptions::NOHANG).unwrap() {
                    break status;
                }
                if Instant::now() > deadline {
                    kill_process(pid.unwrap(), Signal::KILL).unwrap();
                    panic!("the child of fork() hangs");
                }
                thread::sleep(Duration::from_millis(1));
            };
            match status.exit_status() {
                Some(0) => Ok(()),
                Some(3) => {
                    let mut text = String::new();
                    report.rewind().unwrap();
                    report.read_to_string(&mut text).unwrap();
                    Err(text)
                }
                _ => panic!("the child of fork() ended with {status:?}"),
            }
        }
    }
}

/// What a child may try after its parent has used the runtime.
#[cfg(unix)]
fn attempts() -> [(&'static str, fn()); 8] {
    [
        ("block_on", || assert_eq!(block_on(async { 1 }), 1)),
        ("a timer", || block_on(sleep(Duration::from_millis(5)))),
        ("a foreign timer", || foreign_block_on(sleep(Duration::from_millis(5)))),
        ("a task", || assert_eq!(block_on(spawn(async { 2 })), 2)),
        ("a foreign task", || assert_eq!(foreign_block_on(spawn(async { 3 })), 3)),
        ("a job", || assert_eq!(block_on(unblock(|| 4)), 4)),
        ("a foreign job", || assert_eq!(foreign_block_on(unblock(|| 5)), 5)),
        ("a socket", || {
            let (one, two) = socket_pair();
            let writing = async {
                sleep(Duration::from_millis(5)).await;
                std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            };
            block_on(future::zip(writing, async { one.readable().await.unwrap() }));
        }),
    ]
}

/// async-io: in the child, `block_on(Timer)` hangs for ever.
#[test]
#[cfg(unix)]
fn in_the_child_of_a_fork_the_runtime_works_or_says_why_not() {
    fresh_process(60, &[], || {
        // Sleeping threads of every kind.
        touch();
        let _far = spawn(sleep(Duration::from_secs(3600)));
        thread::spawn(|| block_on(sleep(Duration::from_secs(3600))));
        thread::spawn(|| foreign_block_on(sleep(Duration::from_secs(3600))));
        let (one, two) = socket_pair();
        let byte = spawn({
            let one = one.clone();
            async move { one.readable().await }
        });
        for (what, attempt) in attempts() {
            println!("{what}");
            if let Err(message) = in_a_forked_child(attempt) {
                assert!(message.contains("fork"), "{what}: not a clear message: {message}");
            }
        }
        // The parent has lost nothing.
        std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
        foreign_block_on(byte).unwrap();
        touch();
    });
}

/// polling #37: the child shares the kernel's poller, and takes the parent's sockets out of it.
#[test]
#[cfg(unix)]
fn what_the_child_of_a_fork_drops_the_parent_keeps() {
    fresh_process(60, &[], || {
        let (one, two) = socket_pair();
        // Registered by a wait that does not end.
        assert!(pin!(one.readable()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let kept = RefCell::new(Some((one, Timer::after(Duration::from_secs(3600)))));
        // The child has a copy of all this, its last handle among it.
        assert_eq!(in_a_forked_child(|| drop(kept.take())), Ok(()));
        let (one, _timer) = kept.take().unwrap();
        block_on(async {
            let byte = spawn_local(async move { one.readable().await }); // polled again only when it is woken
            sleep(Duration::from_millis(5)).await;
            std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            byte.await.unwrap();
        });
    });
}

#[test]
#[cfg(unix)]
fn a_fork_before_the_first_use_is_no_trouble() {
    fresh_process(60, &[], || {
        for (what, attempt) in attempts() {
            assert_eq!(in_a_forked_child(attempt), Ok(()), "{what}");
        }
        assert_eq!(in_a_forked_child(touch), Ok(()));
        touch();
    });
}

/// What is alive when the call panics, and is dropped while the stack unwinds or afterwards.
#[cfg(unix)]
fn unwinding() -> [(&'static str, fn()); 11] {
    const MS: Duration = Duration::from_millis(1);
    fn hour() -> Timer {
        Timer::after(3600 * MS * 1000)
    }
    fn polled<F: Future + Unpin>(mut future: F) -> F {
        let _ = Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop()));
        future
    }
    [
        ("a timer of its own", || _ = block_on(Timer::after(5 * MS))),
        ("timers around it", || {
            let _new = hour();
            let _polled = polled(hour());
            let mut set = polled(hour());
            block_on(async {
                let _inner = polled(hour());
                sleep(5 * MS).await;
                set.set_after(MS);
            });
        }),
        ("local tasks", || {
            spawn_local(sleep(3600 * MS)).detach();
            let _task = spawn_local(sleep(3600 * MS));
            block_on(sleep(5 * MS));
        }),
        ("global tasks", || {
            let _task = spawn(sleep(3600 * MS));
            spawn(async {}).detach();
            block_on(sleep(5 * MS));
        }),
        ("executors", || {
            let (ex, local) = (Executor::new(), LocalExecutor::new());
            ex.spawn(sleep(3600 * MS)).detach();
            local.spawn(sleep(3600 * MS)).detach();
            block_on(ex.run(local.run(sleep(5 * MS))));
        }),
        ("a scope", || {
            block_on(scope(async |s: smol::Scope<'_>| {
                drop(s.spawn(sleep(2 * MS)));
                sleep(5 * MS).await;
            }))
        }),
        ("sockets", || {
            let (one, two) = socket_pair();
            let _clone = one.clone();
            block_on(future::or(async { drop(two.readable().await) }, sleep(5 * MS)));
        }),
        ("jobs", || {
            let _job = unblock(|| thread::sleep(MS));
            let _iterator = smol::Unblock::new(0..3);
            block_on(async { unblock(|| 1).await });
            block_on(sleep(5 * MS));
        }),
        ("calls within calls", || {
            block_on(async {
                let _outer = polled(hour());
                spawn_local(async { block_on(sleep(5 * MS)) }).await;
            });
        }),
        ("a destructor that tries again", || {
            let _again = OnDrop(|| {
                let _ = catch_unwind(|| block_on(sleep(MS)));
                let _ = catch_unwind(|| foreign_block_on(sleep(MS)));
                let _ = catch_unwind(|| spawn(async {}).detach());
            });
            block_on(sleep(5 * MS));
        }),
        ("a time-out", || {
            let _ = block_on(smol::timeout(5 * MS, pending::<()>()));
        }),
    ]
}

/// In a child: each call ends in a result or in a panic that can be caught, twice; then the process
/// goes on as any other.
#[cfg(unix)]
fn catch_and_go_on(call: fn()) {
    // (What is ready at once needs nobody, but may look around, and find a lock that was held.)
    for call in [call, call, || assert_eq!(block_on(async { 1 }), 1)] {
        if let Err(panic) = catch_unwind(call) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
            assert!(text.contains("fork"), "not a clear message: {text}");
        }
    }
    // Another thread, which ends with its thread-locals; whatever it says, it ends.
    let _ = thread::spawn(move || drop(catch_unwind(call))).join();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"goes on").unwrap();
}

/// A panic that meets a destructor which panics as well would end the process.
#[test]
#[cfg(unix)]
fn what_panics_in_the_child_of_a_fork_can_be_caught_and_the_child_goes_on() {
    fresh_process(60, &[], || {
        touch();
        let failed: Vec<_> = unwinding()
            .into_iter()
            .filter_map(|(what, call)| {
                let child = || in_a_forked_child(|| catch_and_go_on(call));
                match catch_unwind(AssertUnwindSafe(child)) {
                    Ok(Ok(())) => None,
                    Ok(Err(message)) => Some(format!("{what}: {message}")),
                    Err(panic) => Some(format!("{what}: {:?}", panic.downcast_ref::<String>())),
                }
            })
            .collect();
        assert!(failed.is_empty(), "{failed:#?}");
        touch();
    });
}

/// The same with what the parent has made, and in the middle of the parent's own calls.
#[test]
#[cfg(unix)]
fn a_fork_in_the_middle_of_everything_leaves_a_child_that_can_go_on() {
    fresh_process(60, &[], || {
        touch();
        for (what, call) in unwinding() {
            println!("{what}");
            // Inside block_on, with a timer that is set, a local task, a socket that is waited for.
            block_on(async {
                let mut timer = Timer::after(Duration::from_secs(3600));
                assert!(future::poll_once(&mut timer).await.is_none());
                let _local = spawn_local(sleep(Duration::from_secs(3600)));
                let (one, _two) = socket_pair();
                assert!(future::poll_once(one.readable()).await.is_none());
                let kept = RefCell::new(Some((timer, one)));
                let child = || {
                    catch_and_go_on(call);
                    drop(kept.take());
                };
                assert_eq!(in_a_forked_child(child), Ok(()), "{what}, in block_on");
            });
            // Inside a task on a worker, and in a job of the pool.
            block_on(spawn(async move {
                assert_eq!(
                    in_a_forked_child(|| catch_and_go_on(call)),
                    Ok(()),
                    "{what}, in a task"
                );
            }));
            block_on(unblock(move || {
                assert_eq!(in_a_forked_child(|| catch_and_go_on(call)), Ok(()), "{what}, in a job");
            }));
        }
        touch();
    });
}

/// Without any `block_on`, in a child whose parent has a poller or has none.
#[test]
#[cfg(unix)]
fn a_handle_made_in_the_child_of_a_fork_is_one_or_an_error_and_no_hang() {
    fn register() {
        use std::{net::TcpListener, os::unix::net::UnixStream};
        for _ in 0..3 {
            let made = catch_unwind(|| {
                let (one, _peer) = UnixStream::pair()?;
                let one = smol::Async::new(one)?;
                let two = smol::Async::<TcpListener>::bind(("127.0.0.1", 0))?;
                let clone = one.clone();
                let cx = &mut Context::from_waker(Waker::noop());
                assert!(!matches!(pin!(clone.readable()).poll(cx), Poll::Ready(Ok(()))));
                assert!(pin!(Timer::after(Duration::from_secs(3600))).poll(cx).is_pending());
                drop((one, two, clone));
                std::io::Result::Ok(())
            });
            match made {
                Ok(made) => drop(made),
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
                    assert!(text.contains("fork"), "not a clear message: {text}");
                }
            }
        }
    }
    fresh_process(60, &[], || {
        assert_eq!(in_a_forked_child(register), Ok(()), "before the first use");
        let (one, _two) = socket_pair();
        let _clone = one.clone();
        assert_eq!(in_a_forked_child(register), Ok(()), "after the first handle");
        block_on(async { assert!(future::poll_once(one.readable()).await.is_none()) });
        assert_eq!(in_a_forked_child(register), Ok(()), "after the first wait");
        // Somebody is in the poller.
        thread::spawn(move || block_on(async move { one.readable().await }));
        let _task = spawn(sleep(Duration::from_secs(3600)));
        touch();
        for _ in 0..5 {
            assert_eq!(in_a_forked_child(register), Ok(()), "while others wait");
        }
        touch();
    });
}

// ---------- the end of the process ----------

#[test]
fn a_program_ends_while_tasks_timers_and_jobs_still_run() {
    let ended = fresh_process_output(10, &[], || {
        for i in 0..20u64 {
            spawn(async move {
                loop {
                    Timer::after(Duration::from_micros(i * 10)).await;
                    spawn(future::yield_now()).await;
                }
            })
            .detach();
            unblock(move || thread::sleep(Duration::from_secs(if i % 2 == 0 { 3600 } else { 0 })))
                .detach();
            unblock(|| {
                for _ in 0..1_000_000u64 {
                    std::hint::spin_loop()
                }
            })
            .detach();
        }
        spawn(async { thread::sleep(Duration::from_secs(3600)) }).detach();
        block_on(Timer::after(Duration::from_millis(20)));
    });
    if let Some(ended) = ended {
        assert!(ended.status.success() && ended.took < Duration::from_secs(8), "{ended:?}");
    }
}

#[test]
fn a_task_may_end_the_program() {
    let ended = fresh_process_output(10, &[], || {
        spawn(async {
            Timer::after(Duration::from_millis(5)).await;
            std::process::exit(7)
        })
        .detach();
        block_on(pending::<()>());
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    }
}

#[test]
fn a_job_and_a_destructor_may_end_the_program() {
    let ended = fresh_process_output(10, &[], || {
        touch();
        unblock(|| {
            thread::spawn(|| {
                AT_THE_END
                    .with_borrow_mut(|kept| kept.push(Box::new(OnDrop(|| std::process::exit(9)))));
                touch();
            })
            .join()
            .unwrap()
        })
        .detach();
        block_on(pending::<()>());
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(9), "{ended:?}");
    }
}

#[test]
fn threads_that_use_the_runtime_come_and_go_quickly() {
    within(30, || {
        let start = Instant::now();
        for _ in 0..300 {
            thread::spawn(touch).join().unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    });
}
