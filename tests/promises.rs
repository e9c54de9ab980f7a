//! For each promise some ways to break it that no bug report has named yet. They are numbered as in
//! the heads below; `tests/README.md` says where the named bugs are.

mod common;
mod common_io;

use common::{
    Flag, OnDrop, counting_waker, foreign_block_on, fresh_process, fresh_processes, hook_waker,
    live_bytes, set_on_drop, sleep, socket_pair,
};
use smol::{
    Async, Executor, LocalExecutor, Task, Timer, Unblock, block_on, future, prelude::*, scope,
    spawn, spawn_local, timeout, unblock,
};
use std::{
    alloc::System,
    cell::RefCell,
    fs::File,
    future::{pending, poll_fn},
    io::{self, Cursor, ErrorKind, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
/// A bound on hangs, long enough for a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Polls a future once, with that waker.
fn poll_with<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Waits for a message from somewhere else; nobody may have forgotten it.
#[track_caller]
fn soon<T>(from: &mpsc::Receiver<T>, what: &str) -> T {
    from.recv_timeout(SOON).unwrap_or_else(|_| panic!("forgotten: {what}"))
}

// ---------- 1. A task that was woken is polled again; every driver can reach every task ----------

#[test]
fn what_a_future_wakes_while_it_is_dropped_is_polled() {
    fresh_process(20, &[], || {
        for round in 0..300 {
            let (gone, mut tasks) = (Flag::new(), Vec::new());
            for _ in 0..3 {
                let gone = gone.clone();
                tasks.push(spawn(async move { gone.wait().await }));
            }
            let on_drop = set_on_drop(&gone);
            let victim = spawn(async move {
                let _on_drop = on_drop;
                pending::<()>().await
            });
            if round % 2 == 0 {
                thread::yield_now();
            }
            drop(victim);
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
    });
}

#[test]
fn a_task_that_hands_its_waker_round_in_a_circle_of_threads_sees_every_write() {
    fresh_process(30, &[], || {
        const THREADS: usize = 3;
        // The waker goes from thread to thread; each adds one without ordering, the last wakes.
        let sum = Arc::new(AtomicUsize::new(0));
        let (first, mut inlet) = mpsc::channel::<Waker>();
        for i in 0..THREADS {
            let (next, outlet) = mpsc::channel();
            let (sum, from) = (sum.clone(), std::mem::replace(&mut inlet, outlet));
            thread::spawn(move || {
                for waker in from {
                    sum.fetch_add(1, Ordering::Relaxed);
                    if i + 1 == THREADS {
                        waker.wake();
                    } else if next.send(waker).is_err() {
                        break;
                    }
                }
            });
        }
        let rounds = spawn(async move {
            for round in 1..5_000 {
                let mut sent = false;
                poll_fn(|cx| {
                    if !std::mem::replace(&mut sent, true) {
                        first.send(cx.waker().clone()).unwrap();
                    }
                    match sum.load(Ordering::Relaxed) {
                        sum if sum == round * THREADS => Poll::Ready(()),
                        _ => Poll::Pending,
                    }
                })
                .await;
            }
        });
        foreign_block_on(rounds);
    });
}

#[test]
fn an_executor_driven_by_polls_that_are_a_second_apart_in_other_threads_runs_everything() {
    fresh_process(20, &[], || {
        // One call of `run` that moves from thread to thread between its polls.
        let ex: &'static Executor<'static> = Box::leak(Box::new(Executor::new()));
        let ran = Arc::new(AtomicUsize::new(0));
        let mut run: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(ex.run(pending()));
        for round in 0..20 {
            for _ in 0..300 {
                let ran = ran.clone();
                ex.spawn(async move {
                    future::yield_now().await;
                    ran.fetch_add(1, Ordering::SeqCst);
                })
                .detach();
            }
            run = thread::spawn(move || {
                for _ in 0..10 {
                    assert!(poll_with(&mut run, Waker::noop()).is_pending());
                }
                run
            })
            .join()
            .unwrap();
            // What it left in its queue is within the reach of others.
            if round % 2 == 1 {
                while ex.try_tick() {}
                assert_eq!(ran.load(Ordering::SeqCst), 300 * (round + 1));
            }
        }
    });
}

// ---------- 2. While somebody waits for a timer or for I/O, somebody is in the poller ----------

#[test]
fn a_thread_that_leaves_the_poller_by_a_panic_leaves_it_to_others() {
    fresh_process(30, &[], || {
        for _ in 0..20 {
            let (inside, (one, two)) = (Flag::new(), socket_pair());
            thread::scope(|threads| {
                let panics = threads.spawn(|| {
                    block_on(async {
                        inside.set();
                        Timer::after(3 * MS).await;
                        resume_unwind(Box::new("leaves"));
                    })
                });
                inside.wait_blocking();
                let waits = threads.spawn(|| foreign_block_on(one.readable()).unwrap());
                let sleeps = threads.spawn(|| foreign_block_on(sleep(6 * MS)));
                assert!(panics.join().is_err());
                sleeps.join().unwrap();
                io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
                waits.join().unwrap();
            });
        }
    });
}

#[test]
fn a_wait_that_a_thread_began_which_is_gone_is_served_all_the_same() {
    fresh_process(20, &[], || {
        for round in 0..50 {
            let (one, two) = socket_pair();
            let one = Arc::new(one);
            let (told, hears) = mpsc::channel();
            // Begun in a thread that knows no executor and ends at once.
            let waits = one.clone();
            let waiting = thread::spawn(move || {
                let told = Mutex::new(told);
                let waker = hook_waker(move || told.lock().unwrap().send(()).unwrap_or(()));
                let mut timer = Timer::after(MS);
                let mut readable: Pin<Box<dyn Future<Output = _> + Send>> =
                    Box::pin(async move { waits.readable().await.unwrap() });
                if round % 2 == 0 {
                    assert!(poll_with(&mut readable, &waker).is_pending());
                } else {
                    assert!(poll_with(&mut timer, &waker).is_pending());
                }
                (timer, readable)
            });
            let kept = waiting.join().unwrap();
            if round % 2 == 0 {
                io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            }
            soon(&hears, "the waker of a thread that has ended");
            drop(kept);
        }
    });
}

#[test]
fn a_main_future_that_blocks_with_the_poller_left_behind_does_not_stop_foreign_timers() {
    fresh_process(20, &[], || {
        let (fired, fires) = mpsc::channel();
        let (inside, release) = (Flag::new(), Flag::new());
        thread::scope(|threads| {
            threads.spawn(|| {
                block_on(async {
                    // It sits in the poller, comes back for its own timer, and then blocks.
                    Timer::after(5 * MS).await;
                    inside.set();
                    release.wait_blocking();
                })
            });
            threads.spawn(|| {
                foreign_block_on(async {
                    for _ in 0..20 {
                        Timer::after(MS).await;
                    }
                    inside.wait().await;
                    for _ in 0..20 {
                        Timer::after(MS).await;
                    }
                    fired.send(()).unwrap();
                })
            });
            let result = fires.recv_timeout(SOON);
            release.set();
            result.expect("the timers stopped");
        });
    });
}

#[test]
fn a_timer_set_by_a_job_of_the_pool_for_somebody_who_sleeps_without_one_fires() {
    fresh_process(20, &[], || {
        for _ in 0..100 {
            // The only timer of the program is set by a thread that never waits for it.
            let flag = Flag::new();
            let shared = Arc::new(Mutex::new(Timer::never()));
            let waker = hook_waker({
                let flag = flag.clone();
                move || flag.set()
            });
            assert!(poll_with(&mut *shared.lock().unwrap(), &waker).is_pending());
            let (theirs, fired) = (shared.clone(), flag.clone());
            foreign_block_on(unblock(move || {
                let mut timer = theirs.lock().unwrap();
                timer.set_after(MS);
                if poll_with(&mut *timer, &waker).is_ready() {
                    fired.set(); // on a machine that takes a millisecond from one line to the next
                }
            }));
            flag.wait_blocking();
        }
    });
}

// ---------- 3. What blocks its thread stops nobody else ----------

#[test]
fn a_destructor_that_blocks_does_not_stop_the_other_tasks() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for _ in 0..10 {
            let (release, released) = mpsc::channel::<()>();
            let released = Mutex::new(released);
            // It blocks until another task has run, a timer has fired, and a byte has come.
            let blocks = OnDrop(move || {
                released.lock().unwrap().recv_timeout(SOON).expect("a destructor stopped others");
            });
            let victim = spawn(async move {
                let _blocks = blocks;
                pending::<()>().await
            });
            foreign_block_on(spawn(async {}));
            let (mut one, mut two) = socket_pair();
            drop(victim);
            let helps = spawn(async move {
                Timer::after(MS).await;
                two.write_all(b"x").await.unwrap();
                one.read_exact(&mut [0]).await.unwrap();
                spawn(async {}).await;
                release.send(()).unwrap();
            });
            foreign_block_on(helps);
        }
    });
}

#[test]
fn a_destructor_may_block_on_tasks_timers_and_jobs_wherever_it_runs() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        let in_future = || async {
            let _blocks = OnDrop(|| {
                block_on(async {
                    Timer::after(MS).await;
                    assert_eq!(spawn(async { unblock(|| 1).await }).await, 1);
                    spawn_local(sleep(MS)).await;
                })
            });
            pending::<()>().await
        };
        let task = spawn(in_future());
        foreign_block_on(spawn(async {}));
        foreign_block_on(task.cancel());
        block_on(async {
            let task = spawn_local(in_future());
            future::yield_now().await;
            task.cancel().await;
            let _ = timeout(
                MS,
                scope(async |s| {
                    drop(s.spawn(in_future()));
                    drop(s.spawn(in_future()));
                    pending::<()>().await
                }),
            )
            .await;
        });
        let (ex, local) = (Executor::new(), LocalExecutor::new());
        for _ in 0..3 {
            ex.spawn(in_future()).detach();
            local.spawn(in_future()).detach();
        }
        while ex.try_tick() | local.try_tick() {}
        drop((ex, local));
        let ends = thread::spawn(|| {
            spawn_local(async {}).detach();
            block_on(future::yield_now());
        });
        ends.join().unwrap();
    });
}

#[test]
fn more_tasks_than_workers_may_block_on_one_that_comes_after_them() {
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        let (release, blocked) = (Flag::new(), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..9)
            .map(|i| {
                let (release, blocked) = (release.clone(), blocked.clone());
                spawn(async move {
                    blocked.fetch_add(1, Ordering::SeqCst);
                    match i % 3 {
                        0 => release.wait_blocking(),
                        1 => block_on(release.wait()),
                        _ => foreign_block_on(release.wait()),
                    }
                })
            })
            .collect();
        let last = spawn(async move {
            while blocked.load(Ordering::SeqCst) < 9 {
                Timer::after(MS).await;
            }
            release.set();
        });
        foreign_block_on(async {
            last.await;
            for task in tasks {
                task.await;
            }
        });
    });
}

#[test]
fn a_task_that_joins_a_thread_which_needs_the_runtime_comes_to_its_end() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        for _ in 0..20 {
            let tasks: Vec<_> = (0..4)
                .map(|i| {
                    spawn(async move {
                        thread::spawn(move || {
                            foreign_block_on(async move {
                                let inner = spawn(async move {
                                    Timer::after(MS).await;
                                    unblock(move || i).await
                                });
                                inner.await
                            })
                        })
                        .join()
                        .unwrap()
                    })
                })
                .collect();
            let sum = foreign_block_on(async {
                let mut sum = 0;
                for task in tasks {
                    sum += task.await;
                }
                sum
            });
            assert_eq!(sum, 6);
        }
    });
}

// ---------- 4. All who wait for one handle get their turn; errors wake both directions ----------

#[test]
fn a_waiter_that_is_dropped_after_its_wake_passes_it_on() {
    fresh_process(20, &[], || {
        let listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let addr = listener.get_ref().local_addr().unwrap();
        for round in 0..100 {
            let flags: [_; 3] = std::array::from_fn(|_| Flag::new());
            let mut waiters: Vec<_> = flags
                .iter()
                .map(|flag| {
                    let flag = flag.clone();
                    let mut accept = Box::pin(listener.accept());
                    let waker = hook_waker(move || flag.set());
                    assert!(poll_with(&mut accept, &waker).is_pending());
                    Some((accept, waker))
                })
                .collect();
            let client = std::net::TcpStream::connect(addr).unwrap();
            // Whoever is woken first goes away without a look.
            while !flags.iter().any(|flag| flag.is_set()) {
                thread::yield_now();
            }
            let first = flags.iter().position(|flag| flag.is_set()).unwrap();
            drop(waiters[(first + round) % 3].take());
            drop(waiters[first].take());
            let (mut accept, _) = waiters.into_iter().flatten().next().unwrap();
            foreign_block_on(timeout(SOON, accept.as_mut())).expect("nobody was left").unwrap();
            drop(client);
        }
    });
}

#[test]
fn a_wait_that_changes_its_waker_wakes_the_last_one_and_only_that() {
    fresh_process(20, &[], || {
        // Not so many that the budget of this thread is spent, which nobody refills.
        for round in 0..9 {
            let (one, two) = socket_pair();
            let mut buffer = [0; 4];
            let mut reader = &one;
            let mut waits: Pin<Box<dyn Future<Output = ()> + '_>> = match round % 3 {
                0 => Box::pin(async { one.readable().await.unwrap() }),
                1 => Box::pin(async {
                    one.read_with(|mut s| io::Read::read(&mut s, &mut buffer)).await.unwrap();
                }),
                _ => Box::pin(async { assert!(reader.read(&mut buffer).await.unwrap() > 0) }),
            };
            let (flag, (stale, stale_wakes)) = (Flag::new(), counting_waker());
            let last = hook_waker({
                let flag = flag.clone();
                move || flag.set()
            });
            for _ in 0..5 {
                assert!(poll_with(&mut waits, &stale).is_pending());
            }
            assert!(poll_with(&mut waits, &last).is_pending());
            io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            flag.wait_blocking();
            assert!(poll_with(&mut waits, &stale).is_ready());
            // Tasks that share a handle cannot be told apart in `poll_read`: all are woken.
            if round % 3 < 2 {
                assert_eq!(stale_wakes.count(), 0, "way {}", round % 3);
            }
        }
    });
}

#[test]
fn a_shutdown_by_one_clone_ends_the_waits_of_all_others() {
    fresh_process(20, &[], || {
        for _ in 0..20 {
            let (one, _two) = socket_pair();
            common_io::fill(one.get_ref());
            let tasks: Vec<_> = (0..8)
                .map(|i| {
                    let mut one = one.clone();
                    let end = async move {
                        match i % 4 {
                            0 => assert_eq!(one.read(&mut [0; 9]).await.unwrap(), 0),
                            1 => drop(one.write(&[0; 9]).await.unwrap_err()),
                            2 => one.readable().await.unwrap(),
                            _ => one.writable().await.unwrap(),
                        }
                    };
                    spawn(end)
                })
                .collect();
            thread::yield_now();
            one.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
            foreign_block_on(async {
                for task in tasks {
                    timeout(SOON, task).await.expect("a shutdown was not heard");
                }
            });
        }
    });
}

#[test]
fn an_error_of_a_datagram_socket_wakes_all_who_ask_and_is_told_to_who_reads() {
    fresh_process(20, &[], || {
        for _ in 0..20 {
            let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let socket = Async::<std::net::UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
            socket.get_ref().connect(closed).unwrap();
            let asks: Vec<_> = (0..4)
                .map(|_| {
                    let asks = socket.clone();
                    spawn(async move { asks.readable().await })
                })
                .collect();
            foreign_block_on(async {
                spawn(async {}).await;
                socket.send(b"x").await.unwrap();
                for asks in asks {
                    timeout(SOON, asks).await.expect("who asked was not woken").unwrap();
                }
                let error = timeout(SOON, socket.recv(&mut [0; 9])).await.expect("no error");
                assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            });
        }
    });
}

// ---------- 5. No code of a user runs under a lock ----------

/// Something of everything: deadlocks if a lock of the runtime is held.
fn touch_everything() {
    let (one, two) = socket_pair();
    io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
    foreign_block_on(async {
        assert_eq!(spawn(async { 1 }).await, 1);
        assert_eq!(unblock(|| 2).await, 2);
        Timer::after(MS / 10).await;
        one.readable().await.unwrap();
    });
    drop(spawn(pending::<()>()));
    let mut timer = Timer::after(HOUR);
    assert!(poll_with(&mut timer, Waker::noop()).is_pending());
}

#[test]
fn what_is_wrapped_may_use_the_runtime_when_it_reads_writes_seeks_and_is_dropped() {
    struct Touches;
    impl io::Read for Touches {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            touch_everything();
            Ok(0)
        }
    }
    impl io::Write for Touches {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            touch_everything();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            touch_everything();
            Ok(())
        }
    }
    impl io::Seek for Touches {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            touch_everything();
            Ok(0)
        }
    }
    impl Iterator for Touches {
        type Item = Touches;
        fn next(&mut self) -> Option<Touches> {
            touch_everything();
            Some(Touches)
        }
    }
    impl Drop for Touches {
        fn drop(&mut self) {
            touch_everything();
        }
    }
    fresh_processes(60, &[&[], &[("BLOCKING_MAX_THREADS", "1")]], || {
        foreign_block_on(async {
            let mut io = Unblock::new(Touches);
            io.read(&mut [0; 9]).await.unwrap();
            io.write_all(b"x").await.unwrap();
            io.flush().await.unwrap();
            io.seek(SeekFrom::Start(0)).await.unwrap();
            io.with_mut(|_| touch_everything()).await;
            // Dropped in the middle of an operation, and by the pool.
            assert!(future::poll_once(io.read(&mut [0; 9])).await.is_none());
            drop(io);
            let mut items = Unblock::new(Touches);
            drop(items.next().await);
            assert!(future::poll_once(items.next()).await.is_none());
            drop(items);
            drop(Unblock::new(Touches).into_inner().await);
            // A job that is cancelled in the queue, its result, and one that nobody wants.
            let touches = Touches;
            drop(unblock(move || drop(touches)));
            drop(unblock(|| Touches).await);
            unblock(|| Touches).detach();
            touch_everything();
        });
    });
}

#[cfg(unix)]
#[test]
fn a_handle_whose_destructor_uses_the_runtime_meets_no_lock() {
    use std::os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    };
    #[derive(Debug)]
    struct Touches(UnixStream);
    impl AsFd for Touches {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
    impl Drop for Touches {
        fn drop(&mut self) {
            touch_everything();
        }
    }
    fresh_process(30, &[], || {
        for round in 0..20 {
            let (one, _two) = UnixStream::pair().unwrap();
            let handle = Async::new(Touches(one)).unwrap();
            foreign_block_on(async {
                // Operations that use the runtime and the very same handle.
                handle
                    .read_with(|io| {
                        touch_everything();
                        let mut again = Box::pin(handle.readable());
                        assert!(poll_with(&mut again, Waker::noop()).is_pending());
                        assert!(format!("{io:?}{handle:?}").contains("Touches"));
                        drop(handle.clone());
                        Ok(())
                    })
                    .await
                    .unwrap();
            });
            // The last handle goes with a waiter, in a task, and on a worker.
            let waits = handle.clone();
            let task = spawn(async move { waits.readable().await });
            drop(handle);
            if round % 2 == 0 {
                foreign_block_on(spawn(async {}));
            }
            assert!(foreign_block_on(task.cancel()).is_none());
        }
    });
}

#[test]
fn results_payloads_and_futures_may_use_the_runtime_in_their_destructors() {
    fresh_process(30, &[], || {
        let touches = || OnDrop(touch_everything as fn());
        for _ in 0..10 {
            // The result of a task: awaited, dropped with its handle, dropped since nobody waits.
            drop(foreign_block_on(spawn(async move { touches() })));
            let task = spawn(async move { touches() });
            common::eventually(|| task.is_finished());
            drop(task);
            spawn(async move { drop(touches()) }).detach();
            // The payload of a panic.
            let panics = spawn(async move { resume_unwind(Box::new(touches())) });
            drop(catch_unwind(AssertUnwindSafe(|| foreign_block_on::<()>(panics))));
            // A future under way, in each kind of executor.
            let in_future = || async move {
                let _touches = touches();
                pending::<()>().await
            };
            foreign_block_on(spawn(in_future()).cancel());
            let ex = Executor::new();
            ex.spawn(in_future()).detach();
            ex.try_tick();
            drop(ex);
            let ex = LocalExecutor::new();
            ex.spawn(in_future()).detach();
            ex.try_tick();
            drop(ex);
            block_on(async {
                let task = spawn_local(in_future());
                future::yield_now().await;
                task.cancel().await;
                scope(async |s| {
                    drop(s.spawn(in_future()));
                    future::yield_now().await;
                    s.cancel();
                })
                .await;
                let _ = timeout(MS, in_future()).await;
            });
        }
    });
}

// ---------- 6. What is idle costs nothing ----------

/// Fails if this process does anything while nobody asks it to.
#[cfg(target_os = "linux")]
#[track_caller]
fn assert_idle(what: &str) {
    let (cpu, switches) = common::idle_cost(500 * MS);
    assert!(switches <= 2, "{what}: {switches} wake-ups in half a second");
    assert!(cpu < 50 * MS, "{what}: {cpu:?} of processor time");
}

#[cfg(target_os = "linux")]
#[cfg(not(polling_test_poll_backend))] // each look is news there
#[test]
fn news_that_nobody_waits_for_makes_no_wake_ups() {
    use std::process::{Child, Command, Stdio};
    fresh_process(30, &[], || {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut kept = Vec::new();
        for how in 0..4 {
            let (one, two) = socket_pair();
            assert!(one.poll_readable(cx).is_pending());
            // Bytes, an end, a reset; and one that was filled and is drained.
            io::Write::write_all(&mut two.get_ref(), b"nobody reads this").unwrap();
            match how {
                0 => kept.push(two),
                1 => drop(two),
                2 => {
                    socket2::SockRef::from(two.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(two);
                }
                _ => {
                    common_io::fill(two.get_ref());
                    assert!(two.poll_writable(cx).is_pending());
                    kept.push(two);
                }
            }
            kept.push(one);
        }
        let listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        assert!(listener.poll_readable(cx).is_pending());
        let addr = listener.get_ref().local_addr().unwrap();
        let _clients: Vec<_> =
            (0..3).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        // A process that has ended, whose end nobody asks for any more.
        let mut short = Command::new("sleep");
        let child = Async::<Child>::spawn(short.arg("0.05").stdout(Stdio::piped())).unwrap();
        assert!(foreign_block_on(future::poll_once(child.status())).is_none());
        let stat = format!("/proc/{}/stat", child.id());
        common::eventually(|| std::fs::read_to_string(&stat).unwrap().contains(") Z "));
        // An interval that was polled once.
        let mut interval = Timer::interval(MS);
        assert!(poll_with(&mut interval, Waker::noop()).is_pending());
        foreign_block_on(spawn(sleep(MS)));
        assert_idle("news that nobody waits for");
        drop((kept, child));
    });
}

#[cfg(target_os = "linux")]
#[test]
fn tasks_that_nobody_drives_make_no_wake_ups() {
    fresh_process(30, &[], || {
        // Woken, and queued, and nobody there to run them.
        let ex = Executor::new();
        let local = LocalExecutor::new();
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                local.spawn(async {}).detach();
                spawn_local(async {}).detach();
                ex.spawn(async {})
            })
            .collect();
        // A driver that is called and does not come.
        let mut tick = Box::pin(ex.tick());
        while poll_with(&mut tick, Waker::noop()).is_ready() {
            tick = Box::pin(ex.tick());
        }
        ex.spawn(async {}).detach();
        // Timers and sockets that such tasks would wait for, and the runtime in use besides.
        foreign_block_on(spawn(sleep(MS)));
        assert_idle("tasks that nobody drives");
        drop(tasks);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_are_blocked_for_good_make_no_wake_ups() {
    fresh_processes(30, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        let (release, blocked) = (Flag::new(), Arc::new(AtomicUsize::new(0)));
        let block = || {
            let (release, blocked) = (release.clone(), blocked.clone());
            move || {
                blocked.fetch_add(1, Ordering::SeqCst);
                release.wait_blocking();
            }
        };
        let (one, two, three) = (block(), block(), block());
        let tasks = [spawn(async move { one() }), unblock(two)];
        let main = thread::spawn(move || block_on(async move { three() }));
        let far = spawn(sleep(HOUR));
        common::eventually(|| blocked.load(Ordering::SeqCst) == 3);
        // Others still work; and then there is nothing left to do.
        foreign_block_on(spawn(sleep(MS)));
        assert_idle("a worker, a pool thread and a main future that wait for a lock");
        release.set();
        main.join().unwrap();
        foreign_block_on(async {
            for task in tasks {
                task.await;
            }
        });
        drop(far);
    });
}

// ---------- 7. A single-threaded program has no helper thread ----------

#[cfg(target_os = "linux")]
#[track_caller]
fn assert_alone(what: &str) {
    let mut threads = common::threads();
    // Of the test harness and of the watchdog, both with names of their own.
    threads.retain(|name| name.starts_with("smol"));
    assert!(threads.is_empty(), "{what} has started {threads:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn executors_and_scopes_inside_of_block_on_start_no_thread() {
    fresh_process(20, &[], || {
        async fn wait() {
            Timer::after(2 * MS).await;
            let (mut one, mut two) = socket_pair();
            let read = async { one.read_exact(&mut [0]).await.unwrap() };
            let write = async {
                Timer::after(MS).await;
                two.write_all(b"x").await.unwrap();
            };
            future::zip(read, write).await;
        }
        block_on(scope(async |s| s.spawn(wait()).await));
        assert_alone("a scope");
        let local = LocalExecutor::new();
        block_on(local.run(local.spawn(wait())));
        assert_alone("a local executor");
        let ex = Executor::new();
        block_on(ex.run(ex.spawn(wait())));
        assert_alone("an executor");
        block_on(async {
            let task = ex.spawn(wait());
            while !task.is_finished() {
                ex.tick().await;
            }
        });
        assert_alone("an executor's tick");
        block_on(spawn_local(scope(async |s| {
            let local = LocalExecutor::new();
            s.spawn(async move { local.run(local.spawn(wait())).await }).await
        })));
        assert_alone("a local executor in a scope in a local task");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn what_needs_no_pool_starts_no_thread() {
    use std::process::{Child, Command, Stdio};
    fresh_process(20, &[], || {
        block_on(async {
            smol::resolve(([127, 0, 0, 1], 80)).await.unwrap();
            smol::resolve("[::1]:80").await.unwrap();
            assert_alone("a numeric address");
            let listener = Async::<std::net::TcpListener>::bind("127.0.0.1:0").unwrap();
            let addr = listener.get_ref().local_addr().unwrap();
            let both = future::zip(Async::<std::net::TcpStream>::connect(addr), listener.accept());
            let (one, two) = both.await;
            assert_alone("a connect and an accept");
            drop((one.unwrap(), two.unwrap()));
            timeout(MS, pending::<()>()).await.unwrap_err();
            let mut interval = Timer::interval(MS);
            interval.next().await;
            let race = future::race(sleep(HOUR), sleep(MS));
            race.await;
            assert_alone("combinators of timers");
            let mut cat = Command::new("cat");
            cat.stdin(Stdio::piped()).stdout(Stdio::piped());
            let child = Async::<Child>::spawn(&mut cat).unwrap();
            let (mut to, mut from) = (child.take_stdin().unwrap(), child.take_stdout().unwrap());
            to.write_all(b"meow").await.unwrap();
            from.read_exact(&mut [0; 4]).await.unwrap();
            drop(to);
            assert!(child.status().await.unwrap().success());
            assert_alone("a process");
            let cancelled = spawn_local(sleep(HOUR));
            future::yield_now().await;
            cancelled.cancel().await;
        });
        // Calls that end while something is still waited for.
        let mut timer = Timer::after(3 * MS);
        assert!(block_on(future::poll_once(&mut timer)).is_none());
        let (one, _two) = socket_pair();
        assert!(block_on(future::poll_once(one.readable())).is_none());
        block_on(timer);
        assert_alone("a wait that goes on in the next call");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_call_block_on_one_after_the_other_start_no_other() {
    fresh_process(20, &[], || {
        let mut kept = None::<Timer>;
        for _ in 0..5 {
            let (one, two) = socket_pair();
            kept = thread::spawn(move || {
                let (mut read, mut write) = (one, two);
                block_on(async {
                    for _ in 0..10 {
                        write.write_all(b"x").await.unwrap();
                        read.read_exact(&mut [0]).await.unwrap();
                        Timer::after(MS / 10).await;
                    }
                    // What the thread before has begun to wait for.
                    if let Some(timer) = kept {
                        timer.await;
                    }
                    let mut timer = Timer::after(3 * MS);
                    assert!(future::poll_once(&mut timer).await.is_none());
                    Some(timer)
                })
            })
            .join()
            .unwrap();
        }
        assert_alone("threads one after the other");
        drop(kept);
    });
}

// ---------- 8. What was cancelled gives its memory back at once ----------

/// Fails if `waste`, done so many times more, leaves bytes behind.
#[track_caller]
fn assert_flat(what: &str, times: u32, mut waste: impl FnMut()) {
    (0..times).for_each(|_| waste());
    let before = live_bytes();
    (0..4 * times).for_each(|_| waste());
    let grown = live_bytes() - before;
    assert!(grown < 20_000, "{what}: {} of them left {grown} bytes", 4 * times);
}

#[test]
fn operations_given_up_by_ever_other_tasks_leave_nothing_with_the_handle() {
    fresh_process(30, &[], || {
        let (one, _two) = socket_pair();
        common_io::fill(one.get_ref());
        let listener = Async::<std::net::TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let datagram = Async::<std::net::UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
        // Each with a waker that nobody else has.
        let give_up = |mut future: Pin<Box<dyn Future<Output = ()> + '_>>| {
            let (waker, _) = counting_waker();
            let _ = poll_with(&mut future, &waker);
        };
        assert_flat("accept", 2_000, || give_up(Box::pin(async { drop(listener.accept().await) })));
        assert_flat("recv", 2_000, || {
            give_up(Box::pin(async { drop(datagram.recv(&mut [0]).await) }))
        });
        assert_flat("read", 2_000, || {
            give_up(Box::pin(async { drop((&one).read(&mut [0]).await) }))
        });
        assert_flat("write", 2_000, || give_up(Box::pin(async { drop((&one).write(&[0]).await) })));
        assert_flat("read of a clone", 2_000, || {
            let mut clone = one.clone();
            give_up(Box::pin(async move { drop(clone.read(&mut [0]).await) }));
        });
        assert_flat("poll_readable", 2_000, || {
            let (waker, _) = counting_waker();
            assert!(one.poll_readable(&mut Context::from_waker(&waker)).is_pending());
        });
    });
}

#[cfg(unix)]
#[test]
fn waits_for_processes_and_addresses_that_were_given_up_leave_nothing() {
    fresh_process(60, &[], || {
        let mut sleeper = std::process::Command::new("sleep");
        let child = Async::<std::process::Child>::spawn(sleeper.arg("1000")).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_flat("status", 2_000, || {
            let (waker, _) = counting_waker();
            let mut status = Box::pin(child.status());
            assert!(poll_with(&mut status, &waker).is_pending());
        });
        {
            assert_flat("connect", 200, || {
                let (waker, _) = counting_waker();
                let mut connect = Box::pin(Async::<std::net::TcpStream>::connect(addr));
                let _ = poll_with(&mut connect, &waker);
                drop(connect);
                // What has been connected nevertheless.
                listener.set_nonblocking(true).unwrap();
                while listener.accept().is_ok() {}
            });
        }
        child.kill().unwrap();
        foreign_block_on(child.status()).unwrap();
    });
}

// ---------- 8a. A woken task runs however its executor is driven ----------

/// A task that has to come back from others several times: a timer, a job, a wake from a thread.
async fn needs_others() {
    Timer::after(MS).await;
    unblock(|| ()).await;
    let flag = Flag::new();
    let sets = flag.clone();
    let thread = thread::spawn(move || sets.set());
    flag.wait().await;
    thread.join().unwrap();
    future::yield_now().await;
}

/// Drives until the task is finished, which must be soon.
#[track_caller]
fn drive<T>(task: &Task<T>, how: &str, mut step: impl FnMut()) {
    let begin = Instant::now();
    while !task.is_finished() {
        assert!(begin.elapsed() < SOON, "never finished by {how}");
        step();
    }
}

#[test]
fn local_tasks_run_in_calls_of_block_on_that_are_ready_at_once() {
    fresh_process(60, &[], || {
        let ready = spawn_local(needs_others());
        drive(&ready, "a future that is ready", || block_on(async {}));
        let ready = spawn_local(needs_others());
        drive(&ready, "a future that is ready, with pauses", || {
            thread::sleep(MS / 10);
            block_on(async {})
        });
        let yields = spawn_local(needs_others());
        drive(&yields, "a future that yields", || block_on(future::yield_now()));
        let inside = spawn_local(needs_others());
        block_on(async {
            drive(&inside, "a nested call", || block_on(future::yield_now()));
        });
    });
}

#[test]
fn local_tasks_run_in_polls_of_block_on_beside_one_that_always_yields() {
    fresh_process(60, &[], || {
        let busy = spawn_local(async {
            loop {
                future::yield_now().await;
            }
        });
        for round in 0..3 {
            let task = spawn_local(needs_others());
            drive(&task, "short calls beside a busy task", || match round {
                0 => block_on(future::yield_now()),
                1 => {
                    block_on(async { assert!(future::poll_once(pending::<()>()).await.is_none()) })
                }
                _ => drop(block_on(timeout(MS / 100, pending::<()>()))),
            });
        }
        drop(busy);
    });
}

#[test]
fn executors_run_by_futures_that_are_ready_at_once_run_their_tasks() {
    fresh_process(60, &[], || {
        let (ex, local) = (Executor::new(), LocalExecutor::new());
        let task = ex.spawn(needs_others());
        drive(&task, "run of a ready future", || block_on(ex.run(async {})));
        let task = local.spawn(needs_others());
        drive(&task, "local run of a ready future", || block_on(local.run(async {})));
        let task = ex.spawn(needs_others());
        drive(&task, "run that yields", || block_on(ex.run(future::yield_now())));
        let task = local.spawn(needs_others());
        drive(&task, "local run that yields", || block_on(local.run(future::yield_now())));
    });
}

#[test]
fn executors_run_by_single_polls_of_run_and_tick_run_their_tasks() {
    fresh_process(60, &[], || {
        let (ex, local) = (Executor::new(), LocalExecutor::new());
        let once = |mut drives: Pin<Box<dyn Future<Output = ()> + '_>>| {
            let _ = poll_with(&mut drives, Waker::noop());
        };
        for busy in [false, true] {
            let yields = || async {
                loop {
                    future::yield_now().await;
                }
            };
            let busy = busy.then(|| (ex.spawn(yields()), local.spawn(yields())));
            let task = ex.spawn(needs_others());
            drive(&task, "a poll of tick", || once(Box::pin(ex.tick())));
            let task = ex.spawn(needs_others());
            drive(&task, "a poll of run", || once(Box::pin(ex.run(pending()))));
            let task = local.spawn(needs_others());
            drive(&task, "a poll of a local tick", || once(Box::pin(local.tick())));
            let task = local.spawn(needs_others());
            drive(&task, "a poll of a local run", || once(Box::pin(local.run(pending()))));
            let task = ex.spawn(needs_others());
            drive(&task, "try_tick in a foreign loop", || {
                ex.try_tick();
            });
            drop(busy);
        }
    });
}

// ---------- 9. What is always ready does not starve the others ----------

/// Does something again and again, which never waits, beside a local timer that must fire.
fn lets_others_run<F: Future>(
    selfish: &mut Vec<&'static str>,
    what: &'static str,
    mut again: impl FnMut() -> F,
) {
    block_on(async {
        let (fires, begin) = (spawn_local(sleep(5 * MS)), Instant::now());
        while !fires.is_finished() {
            again().await;
            if begin.elapsed() > SOON / 2 {
                selfish.push(what);
                break;
            }
        }
    });
}

#[test]
fn operations_that_are_always_ready_let_their_neighbours_run() {
    fresh_process(90, &[], || {
        let mut selfish = Vec::new();
        let (one, two) = socket_pair();
        io::Write::write_all(&mut two.get_ref(), b"it stays there").unwrap();
        lets_others_run(&mut selfish, "readable", || async { one.readable().await.unwrap() });
        lets_others_run(&mut selfish, "writable", || async { one.writable().await.unwrap() });
        lets_others_run(&mut selfish, "peek", || async { one.peek(&mut [0; 4]).await.unwrap() });
        lets_others_run(&mut selfish, "read_with", || async {
            one.read_with(|_| Ok(())).await.unwrap()
        });
        lets_others_run(&mut selfish, "write_with", || async {
            one.write_with(|_| Ok(())).await.unwrap()
        });
        lets_others_run(&mut selfish, "an error", || async {
            one.read_with(|_| Err::<(), _>(ErrorKind::Other.into())).await.unwrap_err()
        });
        lets_others_run(&mut selfish, "poll_readable", || {
            poll_fn(|cx| one.poll_readable(cx).map(|result| result.unwrap()))
        });
        let ended = {
            let (one, two) = socket_pair();
            drop(two);
            one
        };
        lets_others_run(&mut selfish, "the end", || async {
            (&ended).read(&mut [0; 4]).await.unwrap()
        });
        let socket = Async::<std::net::UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
        let addr = socket.get_ref().local_addr().unwrap();
        lets_others_run(&mut selfish, "send_to", || async {
            socket.send_to(b"x", addr).await.unwrap()
        });
        lets_others_run(&mut selfish, "peek_from", || async {
            socket.peek_from(&mut [0; 4]).await.unwrap()
        });
        lets_others_run(&mut selfish, "a timer that is due", || Timer::at(Instant::now()));
        let interval = RefCell::new(Timer::interval(Duration::from_nanos(1)));
        lets_others_run(&mut selfish, "an interval of a nanosecond", || {
            poll_fn(|cx| Pin::new(&mut *interval.borrow_mut()).poll_next(cx))
        });
        lets_others_run(&mut selfish, "a numeric address", || async {
            smol::resolve(addr).await.unwrap()
        });
        assert!(selfish.is_empty(), "{selfish:?} let nobody else run");
    });
}

#[test]
fn operations_on_files_and_wrapped_things_let_their_neighbours_run() {
    fresh_process(90, &[], || {
        let mut selfish = Vec::new();
        let mut file = Async::from(tempfile::tempfile().unwrap());
        block_on(file.write_all(&[7; 100_000])).unwrap();
        let file = RefCell::new(file);
        #[allow(clippy::await_holding_refcell_ref)] // there is one task that uses it
        {
            lets_others_run(&mut selfish, "a cached read", || async {
                let mut file = file.borrow_mut();
                if file.read(&mut [0; 100]).await.unwrap() == 0 {
                    file.seek(SeekFrom::Start(0)).await.unwrap();
                }
            });
            lets_others_run(&mut selfish, "the end of a file", || async {
                let mut file = file.borrow_mut();
                file.seek(SeekFrom::End(0)).await.unwrap();
                file.read(&mut [0; 100]).await.unwrap()
            });
            lets_others_run(&mut selfish, "a small write", || async {
                file.borrow_mut().write(b"x").await.unwrap()
            });
            let wrapped = RefCell::new(Unblock::new(Cursor::new(vec![7; 1_000])));
            lets_others_run(&mut selfish, "a wrapped read", || async {
                let mut wrapped = wrapped.borrow_mut();
                if wrapped.read(&mut [0; 10]).await.unwrap() == 0 {
                    wrapped.seek(SeekFrom::Start(0)).await.unwrap();
                }
            });
            let items = RefCell::new(Unblock::new(std::iter::repeat(7)));
            lets_others_run(&mut selfish, "a wrapped iterator", || async {
                items.borrow_mut().next().await
            });
        }
        lets_others_run(&mut selfish, "a job", || unblock(|| ()));
        lets_others_run(&mut selfish, "a task", || spawn(async {}));
        assert!(selfish.is_empty(), "{selfish:?} let nobody else run");
    });
}

#[cfg(unix)]
#[test]
fn a_process_that_has_ended_and_a_queue_that_is_never_empty_let_their_neighbours_run() {
    use std::os::unix::net::UnixDatagram;
    fresh_process(90, &[], || {
        let mut selfish = Vec::new();
        let mut ends = std::process::Command::new("true");
        let child = Async::<std::process::Child>::spawn(&mut ends).unwrap();
        block_on(child.status()).unwrap();
        lets_others_run(&mut selfish, "status", || async { child.status().await.unwrap() });
        let (one, two) = Async::<UnixDatagram>::pair().unwrap();
        // Whoever reads finds something, since it writes as well.
        lets_others_run(&mut selfish, "a datagram to oneself", || async {
            one.send(b"x").await.unwrap();
            two.recv(&mut [0; 4]).await.unwrap();
        });
        // Its connects succeed at once, and its accepts.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Async::<std::os::unix::net::UnixListener>::bind(&path).unwrap();
        lets_others_run(&mut selfish, "a connect and an accept", || async {
            let one = Async::<std::os::unix::net::UnixStream>::connect(&path).await.unwrap();
            drop((one, listener.accept().await.unwrap()));
        });
        assert!(selfish.is_empty(), "{selfish:?} let nobody else run");
    });
}

#[test]
fn ticks_of_an_executor_that_always_has_a_task_let_their_neighbours_run() {
    fresh_process(60, &[], || {
        let mut selfish = Vec::new();
        let yields = || async {
            loop {
                future::yield_now().await;
            }
        };
        let (ex, local) = (Executor::new(), LocalExecutor::new());
        ex.spawn(yields()).detach();
        local.spawn(yields()).detach();
        lets_others_run(&mut selfish, "tick", || ex.tick());
        lets_others_run(&mut selfish, "a local tick", || local.tick());
        lets_others_run(&mut selfish, "run", || ex.run(future::yield_now()));
        lets_others_run(&mut selfish, "a local run", || local.run(future::yield_now()));
        assert!(selfish.is_empty(), "{selfish:?} let nobody else run");
    });
}

// ---------- 10. A panic reaches whoever awaits it, and no one else ----------

/// A payload that panics when it is dropped.
struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            resume_unwind(Box::new("the payload's destructor"));
        }
    }
}

/// All the kinds of threads still work.
#[track_caller]
fn assert_alive() {
    foreign_block_on(async {
        let tasks: Vec<_> = (0..10).map(|i| spawn(async move { i })).collect();
        let jobs: Vec<_> = (0..10).map(|i| unblock(move || i)).collect();
        for (task, job) in tasks.into_iter().zip(jobs) {
            assert_eq!(task.await, job.await);
        }
        timeout(SOON, sleep(MS)).await.expect("timers");
    });
    block_on(async { assert_eq!(spawn_local(async { 1 }).await, 1) });
}

#[test]
fn payloads_that_panic_when_they_are_dropped_kill_nobody() {
    fresh_process(30, &[("SMOL_THREADS", "1"), ("BLOCKING_MAX_THREADS", "1")], || {
        for _ in 0..5 {
            // One that nobody comes for.
            let task = spawn(async { resume_unwind(Box::new(Bomb)) });
            common::eventually(|| task.is_finished());
            std::mem::forget(catch_unwind(AssertUnwindSafe(|| drop(task))));
            let waker = {
                let armed = AtomicBool::new(true);
                hook_waker(move || {
                    if armed.swap(false, Ordering::SeqCst) {
                        resume_unwind(Box::new(Bomb));
                    }
                })
            };
            let mut timer = Timer::after(MS / 10);
            let _ = poll_with(&mut timer, &waker);
            std::mem::forget(catch_unwind(|| block_on(sleep(MS))));
            assert_alive();
            std::mem::forget(catch_unwind(AssertUnwindSafe(|| drop((timer, waker)))));
        }
    });
}

#[test]
fn operations_that_panic_leave_their_handle_in_order() {
    fresh_process(30, &[], || {
        struct Panics(u32);
        impl io::Read for Panics {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 % 2 == 1 {
                    panic_any("read");
                }
                buffer.fill(7);
                Ok(buffer.len())
            }
        }
        fn panics<T>(future: impl Future<Output = T>) {
            assert!(catch_unwind(AssertUnwindSafe(|| foreign_block_on(future))).is_err());
        }
        std::panic::set_hook(Box::new(|_| {}));
        let (one, two) = socket_pair();
        let file = Async::from(tempfile::tempfile().unwrap());
        let mut wrapped = Unblock::new(Panics(0));
        for _ in 0..5 {
            // With somebody else who waits for the same handle.
            let waits = one.clone();
            let waits = spawn(async move { waits.readable().await.unwrap() });
            io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            panics(one.read_with(|_| -> io::Result<()> { panic_any("op") }));
            panics(one.write_with(|_| -> io::Result<()> { panic_any("op") }));
            foreign_block_on(async {
                timeout(SOON, waits).await.expect("who waits besides");
                assert_eq!((&one).read(&mut [0; 9]).await.unwrap(), 1);
            });
            panics(file.with(|_| panic_any("with")));
            assert!(foreign_block_on(file.with(|file| file.metadata().is_ok())));
            panics(wrapped.read(&mut [0; 4]));
            assert_eq!(foreign_block_on(wrapped.read(&mut [0; 4])).unwrap(), 4);
            panics(wrapped.with_mut(|_| panic_any("with_mut")));
            foreign_block_on(wrapped.with_mut(|_| ()));
        }
        assert_alive();
    });
}

#[test]
fn whoever_drives_an_executor_hears_nothing_of_its_tasks_panics() {
    fresh_process(30, &[], || {
        static EX: Executor<'static> = Executor::new();
        let stop = Flag::new();
        thread::scope(|threads| {
            let drivers: Vec<_> =
                (0..2).map(|_| threads.spawn(|| block_on(EX.run(stop.wait())))).collect();
            let tasks: Vec<_> = (0..200)
                .map(|i| {
                    EX.spawn(async move {
                        let _bomb = (i % 4 == 0).then(|| Bomb);
                        future::yield_now().await;
                        if i % 2 == 0 {
                            resume_unwind(Box::new(i));
                        }
                        i
                    })
                })
                .collect();
            let mut panicked = 0;
            for (i, task) in tasks.into_iter().enumerate() {
                match catch_unwind(AssertUnwindSafe(|| foreign_block_on(task))) {
                    Ok(value) => assert_eq!(value, i),
                    Err(_) => panicked += 1,
                }
            }
            assert_eq!(panicked, 100);
            stop.set();
            for driver in drivers {
                driver.join().expect("a driver heard of a panic");
            }
        });
    });
}

#[test]
fn a_thread_that_ends_with_local_tasks_that_panic_ends_well() {
    fresh_process(30, &[], || {
        for round in 0..20 {
            let dropped = Arc::new(AtomicUsize::new(0));
            let counts = dropped.clone();
            thread::spawn(move || {
                for i in 0..6 {
                    let counts = counts.clone();
                    let bomb = OnDrop(move || {
                        counts.fetch_add(1, Ordering::SeqCst);
                        if i % 2 == round % 2 {
                            resume_unwind(Box::new("a local task at the end of its thread"));
                        }
                    });
                    spawn_local(async move {
                        let _bomb = bomb;
                        pending::<()>().await
                    })
                    .detach();
                }
                if round % 3 > 0 {
                    block_on(future::yield_now());
                }
            })
            .join()
            .unwrap();
            common::eventually(|| dropped.load(Ordering::SeqCst) == 6);
        }
        assert_alive();
    });
}

// ---------- 11. Without threads or descriptors: an error, or it is done where it can be ----------

/// Makes every `std::thread` without a stack size of its own fail to start.
const NO_THREADS: (&str, &str) = ("RUST_MIN_STACK", "70368744177664");

#[cfg(unix)]
#[test]
fn without_threads_files_names_processes_and_wrapped_things_work() {
    fresh_process(30, &[NO_THREADS], || {
        block_on(async {
            let mut file = Async::from(tempfile::tempfile().unwrap());
            file.write_all(b"without threads").await.unwrap();
            file.seek(SeekFrom::Start(8)).await.unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "threads");
            let names = smol::resolve("localhost:80").await;
            assert!(names.is_ok_and(|names| !names.is_empty()));
            let mut echo = std::process::Command::new("echo");
            let child = Async::<std::process::Child>::spawn(
                echo.arg("hi").stdout(std::process::Stdio::piped()),
            );
            assert_eq!(child.unwrap().output().await.unwrap().stdout, b"hi\n");
            let mut items = Unblock::new([1, 2, 3].into_iter());
            let mut sum = 0;
            while let Some(item) = items.next().await {
                sum += item;
            }
            assert_eq!(sum, 6);
            // Tasks that block on tasks and jobs, three deep.
            let nested = spawn(async { block_on(spawn(async { block_on(unblock(|| 4)) })) });
            assert_eq!(nested.await, 4);
            let sum = scope(async |s| s.spawn(async { spawn(async { 5 }).await }).await).await;
            assert_eq!(sum, 5);
        });
    });
}

#[test]
fn without_threads_two_threads_in_block_on_share_what_there_is_to_do() {
    fresh_process(30, &[NO_THREADS], || {
        // std's threads with a stack size of their own do start.
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let main = || {
                    for _ in 0..50 {
                        let (one, two) = (spawn(sleep(MS / 10)), unblock(|| 1));
                        block_on(async {
                            one.await;
                            assert_eq!(two.await, 1);
                            timeout(MS, pending::<()>()).await.unwrap_err();
                        });
                    }
                };
                thread::Builder::new().stack_size(1 << 20).spawn(main).unwrap()
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        // Tasks that were detached are done by whoever comes next.
        let done = Flag::new();
        let sets = done.clone();
        spawn(async move {
            Timer::after(MS).await;
            sets.set();
        })
        .detach();
        block_on(done.wait());
    });
}

#[cfg(target_os = "linux")]
#[test]
fn without_descriptors_a_process_or_a_socket_is_an_error_and_leaves_nothing_behind() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::process::{Child, Command, Stdio};
    fresh_process(30, &[], || {
        block_on(sleep(MS));
        foreign_block_on(spawn(sleep(MS)));
        let before = common::open_fds();
        let limit = getrlimit(Resource::Nofile);
        // Three, one, or none is left: an operation that needs several gives back those it got.
        for left in (0..8).rev() {
            let current = Some(before as u64 + left);
            setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
            for _ in 0..5 {
                let mut cat = Command::new("cat");
                cat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                if let Ok(child) = Async::<Child>::spawn(&mut cat) {
                    drop(child.take_stdin());
                    foreign_block_on(child.status()).unwrap();
                }
                let _ = Async::<std::os::unix::net::UnixStream>::pair();
                if let Ok(listener) = Async::<std::net::TcpListener>::bind("127.0.0.1:0") {
                    let addr = listener.get_ref().local_addr().unwrap();
                    let connect = Async::<std::net::TcpStream>::connect(addr);
                    let accept = timeout(MS * 20, listener.accept());
                    let _ = foreign_block_on(future::zip(connect, accept));
                }
            }
        }
        setrlimit(Resource::Nofile, limit).unwrap();
        common::eventually(|| common::open_fds() <= before + 1);
        let zombies = std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            stat.contains(&format!(") Z {} ", std::process::id()))
        });
        assert_eq!(zombies.count(), 0, "zombies");
        assert_alive();
    });
}

// ---------- 12. Huge durations mean never; a timer never fires early ----------

#[test]
fn a_timer_that_was_set_anew_and_is_overdue_is_ready_at_its_next_poll_but_one() {
    fresh_process(20, &[], || {
        // Where nobody but this thread can have looked at the clock.
        for way in 0..3 {
            block_on(async {
                let mut timer = Timer::after(HOUR);
                assert!(future::poll_once(&mut timer).await.is_none());
                match way {
                    0 => timer.set_after(MS),
                    1 => timer.set_at(Instant::now() + MS),
                    _ => timer.set_interval(MS),
                }
                thread::sleep(5 * MS);
                // The first poll after it was set may trust the clock of that moment.
                let first = future::poll_once(&mut timer).await;
                let second = future::poll_once(&mut timer).await;
                assert!(first.or(second).is_some(), "block_on, way {way}");
            });
        }
        // And where there is a watcher.
        for way in 0..3 {
            let mut timer = Timer::after(HOUR);
            assert!(poll_with(&mut timer, Waker::noop()).is_pending());
            match way {
                0 => timer.set_after(MS),
                1 => timer.set_at(Instant::now() + MS),
                _ => timer.set_interval(MS),
            }
            thread::sleep(5 * MS);
            let first = poll_with(&mut timer, Waker::noop());
            let second = first.is_pending() && poll_with(&mut timer, Waker::noop()).is_ready();
            assert!(first.is_ready() || second, "way {way}");
        }
    });
}

#[test]
fn timers_at_the_edges_of_all_powers_of_two_do_not_fire_and_do_not_hurt_others() {
    fresh_process(30, &[], || {
        let mut far = Vec::new();
        for power in 8..64 {
            for off in [-1i64, 0, 1] {
                let near = |value: u64| value.saturating_add_signed(off);
                let nanos = Duration::from_nanos(near(1 << power));
                let micros = Duration::from_micros(near(1 << power));
                let millis = Duration::from_millis(near(1 << power));
                let secs = Duration::from_secs(near(1 << power));
                let all = [nanos, micros, millis, secs].into_iter();
                far.extend(all.filter(|time| *time > HOUR).map(Timer::after));
            }
        }
        let count = far.len();
        assert!(count > 300);
        for timer in &mut far {
            assert!(poll_with(timer, Waker::noop()).is_pending());
        }
        // They are moved about, taken off in any order, and near ones come and go between them.
        for round in 0..200 {
            let begin = Instant::now();
            foreign_block_on(sleep(MS / 10 * (round % 7)));
            assert!(begin.elapsed() < SOON);
            let (one, other) = ((round as usize * 7919) % count, (round as usize * 31) % count);
            far[one].set_after(Duration::from_secs(1 << (round % 60 + 4)));
            assert!(poll_with(&mut far[one], Waker::noop()).is_pending());
            far.swap(one, other);
        }
        drop(far.drain(..count / 2));
        foreign_block_on(sleep(MS));
    });
}

#[test]
fn intervals_with_absurd_starts_and_periods_neither_panic_nor_burst() {
    fresh_process(20, &[], || {
        let now = Instant::now();
        let secs = |power: u32| Duration::from_secs(1 << power);
        let long_ago = (0..63).rev().find_map(|i| now.checked_sub(secs(i))).unwrap_or(now);
        let far = (0..63).rev().find_map(|i| now.checked_add(secs(i)));
        let periods = [
            Duration::from_nanos(1),
            MS,
            HOUR,
            Duration::from_secs(u64::MAX),
            Duration::MAX,
            Duration::MAX - Duration::from_nanos(1),
        ];
        for period in periods {
            for start in [long_ago, now, far.unwrap()] {
                let mut timer = Timer::interval_at(start, period);
                let mut ticks = 0;
                while ticks < 3 && poll_with(&mut timer, Waker::noop()).is_ready() {
                    ticks += 1;
                }
                if period >= HOUR {
                    assert!(ticks <= 1, "{ticks} ticks of {period:?} from {start:?}");
                }
                timer.set_interval_at(start, period);
                let _ = poll_with(&mut timer, Waker::noop());
                timer.set_interval(period);
                let _ = poll_with(&mut timer, Waker::noop());
                timer.set_after(period);
                let _ = (poll_with(&mut timer, Waker::noop()), timer.will_fire());
            }
        }
        foreign_block_on(async {
            let huge = timeout(Duration::MAX, timeout(Duration::MAX - MS, sleep(MS)));
            huge.await.unwrap().unwrap();
            timeout(Duration::ZERO, pending::<()>()).await.unwrap_err();
        });
    });
}

#[test]
fn a_timer_that_is_postponed_while_it_is_due_is_not_early() {
    fresh_process(30, &[], || {
        for round in 0..300u32 {
            // Set anew by another thread around the moment at which it fires.
            let at = Instant::now() + MS / 2;
            let (timer, until) = (Arc::new(Mutex::new(Timer::at(at))), Arc::new(Mutex::new(at)));
            let (theirs, their_until) = (timer.clone(), until.clone());
            let sets = thread::spawn(move || {
                thread::sleep(MS / 1000 * (300 + round));
                let mut timer = theirs.lock().unwrap();
                let at = Instant::now() + MS;
                *their_until.lock().unwrap() = at;
                timer.set_at(at);
            });
            let fired = block_on(poll_fn(|cx| {
                let mut timer = timer.lock().unwrap();
                let polled = Pin::new(&mut *timer).poll(cx);
                polled.map(|at| (at, *until.lock().unwrap(), Instant::now()))
            }));
            let (at, until, now) = fired;
            assert_eq!(at, until);
            assert!(now >= until, "early by {:?}", until - now);
            sets.join().unwrap();
        }
    });
}

// ---------- 13. What is not `Send` is polled and dropped on its own thread ----------

/// Something that checks where it is used.
struct AtHome(thread::ThreadId, Rc<()>);
impl AtHome {
    fn new() -> AtHome {
        AtHome(thread::current().id(), Rc::new(()))
    }
    fn check(&self) {
        assert!(self.0 == thread::current().id() || abort_with("away from home"));
        let _ = self.1.clone();
    }
}
impl Drop for AtHome {
    fn drop(&mut self) {
        self.check();
    }
}
/// A panic in a destructor might be swallowed.
fn abort_with(what: &str) -> bool {
    let _ = io::Write::write_all(&mut io::stderr(), format!("\n{what}\n").as_bytes());
    std::process::abort()
}

#[test]
fn handles_of_local_tasks_that_are_dropped_awaited_and_cancelled_elsewhere_leave_them_at_home() {
    fresh_process(30, &[], || {
        for round in 0..60 {
            let (handles, elsewhere) = mpsc::channel::<Task<u32>>();
            let other = thread::spawn(move || {
                for (i, task) in elsewhere.iter().enumerate() {
                    match (i + round) % 4 {
                        0 => drop(task),
                        1 => drop(foreign_block_on(task.cancel())),
                        2 => drop(foreign_block_on(task.fallible())),
                        _ => task.detach(),
                    }
                }
            });
            block_on(async {
                for i in 0..20 {
                    let home = AtHome::new();
                    let task = spawn_local(async move {
                        for _ in 0..i % 5 {
                            home.check();
                            Timer::after(MS / 50).await;
                        }
                        home.check();
                        i
                    });
                    handles.send(task).unwrap();
                }
                drop(handles);
                while !other.is_finished() {
                    Timer::after(MS / 10).await;
                }
            });
            other.join().unwrap();
        }
    });
}

#[test]
fn a_worker_that_has_local_tasks_does_not_leave_them() {
    fresh_process(30, &[("SMOL_THREADS", "1")], || {
        for _ in 0..5 {
            // The one worker blocks, a spare one comes, and a task of its own stays there.
            let (release, done) = (Flag::new(), Flag::new());
            let blocks = release.clone();
            let first = spawn(async move { blocks.wait_blocking() });
            let sets = done.clone();
            foreign_block_on(spawn(async move {
                let home = AtHome::new();
                spawn_local(async move {
                    for _ in 0..20 {
                        home.check();
                        Timer::after(MS).await;
                    }
                    home.check();
                    sets.set();
                })
                .detach();
            }));
            // The spare one is one too many now.
            release.set();
            foreign_block_on(first);
            for _ in 0..100 {
                foreign_block_on(spawn(future::yield_now()));
            }
            let result = foreign_block_on(timeout(SOON, done.wait()));
            result.expect("a local task of a worker was forgotten");
        }
    });
}

#[test]
fn a_scope_that_is_dropped_or_panics_anywhere_keeps_its_children_at_home() {
    fresh_process(30, &[], || {
        for round in 0..100 {
            let (wakers, to_wake) = mpsc::channel::<Waker>();
            let waking = thread::spawn(move || to_wake.iter().for_each(Waker::wake));
            let work = async {
                scope(async |s| {
                    for i in 0..8 {
                        let (home, wakers) = (AtHome::new(), wakers.clone());
                        drop(s.spawn(async move {
                            for polls in 0..20 {
                                home.check();
                                wakers
                                    .send(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await)
                                    .unwrap();
                                if i == 3 && polls == round % 20 && round % 2 == 0 {
                                    resume_unwind(Box::new("a child"));
                                }
                                future::yield_now().await;
                            }
                            pending::<()>().await
                        }));
                    }
                    pending::<()>().await
                })
                .await
            };
            let _ = catch_unwind(AssertUnwindSafe(|| {
                block_on(async {
                    let _ = timeout(MS / 100 * round, work).await;
                })
            }));
            drop(wakers);
            waking.join().unwrap();
        }
    });
}

// ---------- 14. Ends of threads, forks, exits: an error or a clear panic, never a hang ----------

#[cfg(unix)]
#[test]
fn whatever_a_thread_local_holds_of_the_runtime_ends_with_its_thread() {
    fresh_process(60, &[], || {
        thread_local! {
            static KEPT: RefCell<Vec<Box<dyn std::any::Any>>> = const { RefCell::new(Vec::new()) };
        }
        type Make = fn() -> Box<dyn std::any::Any>;
        let makes: [(&str, Make); 9] = [
            ("a wrapped reader that waits", || {
                let mut reader = Unblock::new(common_io::std_pipe().0);
                block_on(async { future::poll_once(reader.read(&mut [0])).await.is_none() });
                Box::new(reader)
            }),
            ("a file with an operation under way", || {
                let mut file = Async::from(tempfile::tempfile().unwrap());
                block_on(async { future::poll_once(file.write(&[0; 100_000])).await.is_none() });
                Box::new(file)
            }),
            ("a process", || {
                let mut ends = std::process::Command::new("true");
                let child = Async::<std::process::Child>::spawn(&mut ends).unwrap();
                block_on(future::poll_once(child.status()));
                Box::new(child)
            }),
            ("an executor whose tasks own one", || {
                let (ex, inner) = (Executor::new(), Executor::new());
                inner.spawn(async { sleep(HOUR).await }).detach();
                ex.spawn(async move { inner.run(pending::<()>()).await }).detach();
                while ex.try_tick() {}
                Box::new(ex)
            }),
            ("a local executor", || {
                let ex = LocalExecutor::new();
                ex.spawn(async { sleep(HOUR).await }).detach();
                while ex.try_tick() {}
                Box::new(ex)
            }),
            ("a scope under way", || {
                let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(scope(async |s| {
                    drop(s.spawn(async { unblock(|| ()).await }));
                    drop(s.spawn(sleep(HOUR)));
                    pending().await
                }));
                let _ = poll_with(&mut future, Waker::noop());
                Box::new(future)
            }),
            ("a job in the queue", || Box::new(unblock(|| thread::sleep(MS)))),
            ("a local task", || {
                let task = spawn_local(sleep(HOUR));
                block_on(future::yield_now());
                Box::new(task)
            }),
            ("a socket with waiters", || {
                let (one, two) = socket_pair();
                let waits = one.clone();
                let mut task = spawn(async move { waits.readable().await });
                foreign_block_on(future::poll_once(&mut task));
                Box::new((one, two, task))
            }),
        ];
        for (what, make) in makes {
            for before in [false, true] {
                let ends = thread::spawn(move || {
                    // Either thread-local may be the first to go.
                    if before {
                        KEPT.with(|_| ());
                    }
                    block_on(async { spawn_local(async {}).await });
                    KEPT.with(|kept| kept.borrow_mut().push(make()));
                });
                let begin = Instant::now();
                while !ends.is_finished() {
                    assert!(begin.elapsed() < SOON, "{what} holds up the end of its thread");
                    thread::sleep(MS / 10);
                }
                assert!(ends.join().is_ok(), "{what}");
            }
        }
        assert_alive();
    });
}

#[test]
fn the_program_ends_from_anywhere_with_the_status_that_was_asked_for() {
    thread_local! {
        static EX: Executor<'static> = const { Executor::new() };
        static LOCAL: LocalExecutor<'static> = const { LocalExecutor::new() };
    }
    let ways: [(&str, fn()); 11] = [
        ("a waker", || {
            let waker = hook_waker(|| std::process::exit(7));
            let mut timer = Timer::after(MS);
            let _ = poll_with(&mut timer, &waker);
            foreign_block_on(sleep(HOUR));
        }),
        ("a scope's child", || {
            block_on(scope(async |s| s.spawn(async { std::process::exit(7) }).await))
        }),
        ("the destructor of a future that is cancelled", || {
            let exits = OnDrop(|| std::process::exit(7));
            let task = spawn(async move {
                let _exits = exits;
                pending::<()>().await
            });
            foreign_block_on(spawn(async {}));
            foreign_block_on(task.cancel());
        }),
        ("a job, while all else is busy", || {
            for _ in 0..3 {
                spawn(async { foreign_block_on(pending::<()>()) }).detach();
                unblock(|| thread::sleep(HOUR)).detach();
            }
            foreign_block_on(unblock(|| std::process::exit(7)))
        }),
        ("an operation on a wrapped thing", || {
            let items = std::iter::from_fn(|| -> Option<()> { std::process::exit(7) });
            block_on(async { Unblock::new(items).next().await });
        }),
        ("a local task", || block_on(async { spawn_local(async { std::process::exit(7) }).await })),
        ("a local task of a worker", || {
            foreign_block_on(spawn(async {
                spawn_local(async { std::process::exit(7) }).detach();
            }));
            foreign_block_on(sleep(HOUR));
        }),
        ("a main future inside of a local task", || {
            block_on(async {
                spawn_local(async { block_on(async { std::process::exit(7) }) }).await
            })
        }),
        ("the destructor of a local task that is cancelled", || {
            let exits = OnDrop(|| std::process::exit(7));
            block_on(async {
                let task = spawn_local(async move {
                    let _exits = exits;
                    pending::<()>().await
                });
                future::yield_now().await;
                task.cancel().await
            });
        }),
        ("a task of an executor in a thread-local", || {
            EX.with(|ex| block_on(ex.run(ex.spawn(async { std::process::exit(7) }))))
        }),
        ("a task of a local executor in a thread-local", || {
            LOCAL.with(|ex| block_on(ex.run(ex.spawn(async { std::process::exit(7) }))))
        }),
    ];
    let mut failed = Vec::new();
    for (number, (what, _)) in ways.iter().enumerate() {
        let number = number.to_string();
        let ended = common::fresh_process_output(5, &[("WAY", number.as_str())], || {
            let way: usize = std::env::var("WAY").unwrap().parse().unwrap();
            let (_, end) = ways[way];
            end();
        });
        if ended.is_some_and(|ended| ended.status.code() != Some(7)) {
            failed.push(what);
        }
    }
    assert!(failed.is_empty(), "no end, or another one, from {failed:?}");
}

#[cfg(unix)]
#[test]
fn a_child_of_a_fork_inside_of_a_task_ends_and_the_parent_goes_on() {
    fresh_process(30, &[("SMOL_THREADS", "2")], || {
        let (one, mut two) = socket_pair();
        let reads = spawn(async move {
            let mut one = one;
            one.read_exact(&mut [0; 2]).await.unwrap();
        });
        let ticks = spawn(async {
            for _ in 0..20 {
                Timer::after(MS).await;
            }
        });
        for local in [false, true] {
            let is_child = Arc::new(AtomicBool::new(false));
            let tells = is_child.clone();
            let fork = async move {
                if let fork::Fork::Child = fork::fork().unwrap() {
                    tells.store(true, Ordering::SeqCst);
                    // Whatever it is told, it must come to an end.
                    let _ = catch_unwind(|| drop(spawn(async {})));
                    let _ = catch_unwind(|| drop(unblock(|| ())));
                    let _ = catch_unwind(|| block_on(sleep(MS)));
                    if !local {
                        std::process::exit(0);
                    }
                    // This one goes on in the `block_on` that it was in.
                    spawn_local(async {}).await;
                }
            };
            if local {
                let goes_on = async { spawn_local(fork).await };
                let ended = catch_unwind(AssertUnwindSafe(|| block_on(goes_on)));
                if is_child.load(Ordering::SeqCst) {
                    std::process::exit(0);
                }
                ended.unwrap();
            } else {
                foreign_block_on(spawn(fork));
            }
            block_on(two.write_all(b"x")).unwrap();
        }
        foreign_block_on(async {
            timeout(SOON, reads).await.expect("the parent's sockets");
            timeout(SOON, ticks).await.expect("the parent's timers");
        });
        for _ in 0..2 {
            // Both children end on their own.
            let status = rustix::process::wait(rustix::process::WaitOptions::empty());
            assert!(status.unwrap().is_some_and(|(_, status)| status.exited()));
        }
        assert_alive();
    });
}

// ---------- 15. What was started belongs to somebody ----------

#[test]
fn a_long_chain_of_tasks_that_own_each_other_goes_without_a_deep_stack() {
    fresh_process(60, &[], || {
        const LENGTH: usize = 50_000;
        let dropped = Arc::new(AtomicUsize::new(0));
        let link = |next: Option<Task<()>>| {
            let dropped = dropped.clone();
            let counts = OnDrop(move || {
                dropped.fetch_add(1, Ordering::SeqCst);
            });
            async move {
                let _counts = counts;
                match next {
                    Some(next) => next.await,
                    None => pending().await,
                }
            }
        };
        let ex = Executor::new();
        let local = LocalExecutor::new();
        let mut chains: [Option<Task<()>>; 4] = [const { None }; 4];
        for _ in 0..LENGTH {
            chains[0] = Some(ex.spawn(link(chains[0].take())));
            chains[1] = Some(local.spawn(link(chains[1].take())));
            chains[2] = Some(spawn(link(chains[2].take())));
            chains[3] = Some(spawn_local(link(chains[3].take())));
        }
        while ex.try_tick() || local.try_tick() {}
        let [_in_ex, _in_local, one, two] = chains;
        drop((ex, local));
        assert!(dropped.load(Ordering::SeqCst) >= 2 * LENGTH);
        drop(one);
        block_on(async {
            two.unwrap().cancel().await;
            while dropped.load(Ordering::SeqCst) < 4 * LENGTH {
                Timer::after(MS).await;
            }
        });
    });
}

#[test]
fn what_a_child_left_can_be_had_after_the_scope_was_cancelled() {
    fresh_process(20, &[], || {
        block_on(async {
            let text = String::from("borrowed");
            let text = &text;
            let sum = scope(async |s| {
                let done = s.spawn(async move { text.len() });
                let never = s.spawn(pending::<()>());
                while !done.is_finished() {
                    future::yield_now().await;
                }
                s.cancel();
                assert!(never.is_finished());
                // One that comes too late never runs; its handle says so instead of waiting.
                let late = s.spawn(async { unreachable!() });
                assert!(late.is_finished());
                assert!(catch_unwind(AssertUnwindSafe(|| block_on(late))).is_err());
                // A scope inside is no part of what was cancelled.
                let inner = scope(async |inner| inner.spawn(async { 1 }).await).await;
                done.await + inner
            })
            .await;
            assert_eq!(sum, 9);
        });
    });
}

#[test]
fn a_child_that_is_awaited_by_ever_others_wakes_the_last() {
    fresh_process(20, &[], || {
        block_on(scope(async |s| {
            for _ in 0..50 {
                let flag = Flag::new();
                let sets = flag.clone();
                let mut child = s.spawn(async move {
                    flag.wait().await;
                    7
                });
                // The body looks, then hands it to a sibling, which hands it back.
                assert!(future::poll_once(&mut child).await.is_none());
                let sibling = s.spawn(async move {
                    let looked = future::poll_once(&mut child).await;
                    (child, looked)
                });
                let (child, looked) = sibling.await;
                assert!(looked.is_none());
                let other = s.spawn(child);
                let thread = thread::spawn(move || sets.set());
                assert_eq!(other.await, 7);
                thread.join().unwrap();
            }
        }));
    });
}

#[test]
fn cancelling_in_the_middle_of_a_cancel_ends_both() {
    fresh_process(30, &[("SMOL_THREADS", "1")], || {
        for round in 0..100 {
            // A future whose destructor cancels another one, blocking, which cancels the next.
            let mut inner = spawn(pending::<()>());
            for _ in 0..round % 4 {
                let mut victim = Some(inner);
                let cancels = OnDrop(move || {
                    if let Some(victim) = victim.take() {
                        assert!(foreign_block_on(victim.cancel()).is_none());
                    }
                });
                inner = spawn(async move {
                    let _cancels = cancels;
                    pending::<()>().await
                });
            }
            if round % 3 == 0 {
                foreign_block_on(spawn(async {}));
            }
            assert!(foreign_block_on(timeout(SOON, inner.cancel())).expect("a cancel").is_none());
        }
    });
}

// ---------- 16. Bytes are counted honestly ----------

#[test]
fn a_write_that_was_given_up_and_a_read_come_in_the_order_they_were_asked_for() {
    fresh_process(30, &[], || {
        block_on(async {
            for round in 0..50usize {
                let mut file = Async::from(tempfile::tempfile().unwrap());
                let data: Vec<u8> = (0..50_000 + round).map(|i| i as u8).collect();
                let given_up = future::poll_once(file.write(&data)).await;
                // Either it has not begun, or it is whole and comes before what follows.
                file.flush().await.unwrap();
                let position = file.seek(SeekFrom::Current(0)).await.unwrap();
                let length = file.with(|file| file.metadata().unwrap().len()).await;
                assert_eq!(position, length, "round {round}");
                assert!(length == 0 || length == data.len() as u64, "{length} bytes");
                if let Some(written) = given_up {
                    assert_eq!(written.unwrap() as u64, length);
                }
                file.write_all(b"end").await.unwrap();
                file.seek(SeekFrom::End(-3)).await.unwrap();
                let mut end = String::new();
                file.read_to_string(&mut end).await.unwrap();
                assert_eq!(end, "end");
                assert_eq!(file.into_inner().unwrap().metadata().unwrap().len(), length + 3);
            }
        });
    });
}

#[test]
fn errors_of_seeks_and_of_writes_to_what_is_read_only_change_nothing_and_are_told_once() {
    fresh_process(20, &[], || {
        block_on(async {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(path.path(), b"0123456789").unwrap();
            let mut file = Async::<File>::open(path.path()).await.unwrap();
            file.read_exact(&mut [0; 4]).await.unwrap();
            for _ in 0..3 {
                assert!(file.write(b"x").await.is_err());
                file.flush().await.unwrap();
                assert!(file.seek(SeekFrom::Current(-100)).await.is_err());
                assert!(file.seek(SeekFrom::End(-100)).await.is_err());
                assert_eq!(file.seek(SeekFrom::Current(0)).await.unwrap(), 4);
            }
            // Errors of what was given up come out once, or not at all; then all is well.
            let _ = future::poll_once(file.write(b"x")).await;
            let mut errors = 0;
            let mut rest = Vec::new();
            while let Err(_error) = file.read_to_end(&mut rest).await {
                errors += 1;
                assert!(errors < 2, "an error was told twice");
            }
            assert_eq!(rest, b"456789");
            // A file that shrinks and grows while it is open.
            std::fs::write(path.path(), b"01").unwrap();
            assert_eq!(file.read(&mut [0; 4]).await.unwrap(), 0);
            file.seek(SeekFrom::Start(1)).await.unwrap();
            std::fs::write(path.path(), b"abc").unwrap();
            rest.clear();
            file.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"bc");
        });
    });
}

#[test]
fn a_wrapped_reader_tells_all_its_bytes_however_often_reads_are_given_up() {
    struct Slow(Cursor<Vec<u8>>);
    impl io::Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            thread::yield_now();
            let len = buffer.len().min(1 + self.0.position() as usize % 13);
            match self.0.position() % 5 {
                0 if len > 1 => io::Read::read(&mut self.0, &mut buffer[..1]),
                _ => io::Read::read(&mut self.0, &mut buffer[..len]),
            }
        }
    }
    impl io::Seek for Slow {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    fresh_process(60, &[], || {
        let data: Vec<u8> = (0..2_000u32).map(|i| (i * 7) as u8).collect();
        let mut reader = Unblock::new(Slow(Cursor::new(data.clone())));
        let (mut read, mut given_up) = (Vec::new(), 0);
        block_on(async {
            loop {
                let mut buffer = vec![0; 1 + (read.len() + given_up) % 40];
                match future::poll_once(reader.read(&mut buffer)).await {
                    None => {
                        given_up += 1;
                        if given_up % 10 == 0 {
                            // Where the user is, although more may have been read.
                            let position = reader.seek(SeekFrom::Current(0)).await.unwrap();
                            assert_eq!(position, read.len() as u64);
                        } else {
                            // The pool needs a processor, too.
                            Timer::after(MS / 20).await;
                        }
                    }
                    Some(Ok(0)) => break,
                    Some(result) => read.extend_from_slice(&buffer[..result.unwrap()]),
                }
            }
        });
        assert!(read == data, "{} of {} bytes", read.len(), data.len());
    });
}

#[cfg(unix)]
#[test]
fn a_file_at_its_size_limit_counts_what_it_took_and_then_says_so() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    fresh_process(20, &[], || {
        // The signal that comes with the error would end the process.
        let seen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen).unwrap();
        let limit = getrlimit(Resource::Fsize);
        let file = tempfile::tempfile().unwrap();
        setrlimit(Resource::Fsize, Rlimit { current: Some(10_000), ..limit }).unwrap();
        let (first, second, position, length) = block_on(async {
            let mut file = Async::from(file);
            let first = file.write(&[1; 15_000]).await;
            let second = file.write(&[2; 10]).await;
            let position = file.seek(SeekFrom::Current(0)).await;
            (first, second, position, file.with(|file| file.metadata().unwrap().len()).await)
        });
        setrlimit(Resource::Fsize, limit).unwrap();
        assert_eq!(first.unwrap(), 10_000);
        assert_eq!(second.unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!((position.unwrap(), length), (10_000, 10_000));
    });
}
