//! Dropping an executor drops its futures, wakers may outlive it, and waves of tasks, executors and threads leave nothing behind.

mod common;

use common::{
    Flag, OnDrop, foreign_block_on, fresh_process, live_bytes, set_on_drop, sleep, socket_pair,
    within,
};
use smol::{Async, Executor, LocalExecutor, block_on, future, spawn, unblock};
use std::{
    alloc::System,
    future::{pending, poll_fn},
    rc::Rc,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Poll, Waker},
    thread,
    time::Duration,
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;

#[test]
fn an_executor_drops_all_its_futures_queued_or_parked_with_itself() {
    within(20, || {
        for detach in [true, false] {
            let ex = Executor::new();
            let drops = Arc::new(AtomicUsize::new(0));
            let mut tasks = Vec::new();
            for i in 0..30 {
                let drops = drops.clone();
                let on_drop = OnDrop(move || {
                    drops.fetch_add(1, Ordering::SeqCst);
                });
                let task = ex.spawn(async move {
                    let _on_drop = on_drop;
                    match i % 3 {
                        0 => pending().await, // keeps no waker
                        1 => sleep(Duration::from_secs(3600)).await,
                        _ => loop {
                            future::yield_now().await // in the queue
                        },
                    }
                });
                if detach {
                    task.detach()
                } else {
                    tasks.push(task)
                }
                if i == 20 {
                    (0..50).for_each(|_| assert!(ex.try_tick()));
                }
            }
            drop(ex);
            assert_eq!(drops.load(Ordering::SeqCst), 30, "futures outlive their executor");
            drop(tasks);
        }
    });
}

#[test]
fn an_executor_that_was_driven_by_many_threads_drops_all_its_futures() {
    within(30, || {
        for _ in 0..20 {
            let ex = Arc::new(Executor::new());
            let (drops, stop) = (Arc::new(AtomicUsize::new(0)), Flag::new());
            let drivers: Vec<_> = (0..3)
                .map(|_| {
                    let (ex, stop) = (ex.clone(), stop.clone());
                    thread::spawn(move || block_on(ex.run(stop.wait())))
                })
                .collect();
            for _ in 0..100 {
                let drops = drops.clone();
                let on_drop = OnDrop(move || {
                    drops.fetch_add(1, Ordering::SeqCst);
                });
                ex.spawn(async move {
                    let _on_drop = on_drop;
                    loop {
                        future::yield_now().await
                    }
                })
                .detach();
            }
            stop.set();
            drivers.into_iter().for_each(|driver| driver.join().unwrap());
            assert_eq!(drops.load(Ordering::SeqCst), 0);
            drop(ex);
            assert_eq!(drops.load(Ordering::SeqCst), 100);
        }
    });
}

/// async-executor #163, #164.
#[test]
fn dropping_an_executor_while_another_thread_wakes_its_tasks_is_safe() {
    within(60, || {
        let (jobs, to_wake) = mpsc::channel::<(Arc<Barrier>, Vec<Waker>)>();
        let waking = thread::spawn(move || {
            for (together, wakers) in to_wake {
                together.wait();
                for waker in wakers {
                    waker.wake_by_ref();
                    waker.wake();
                }
            }
        });
        for round in 0..5000 {
            let ex = Executor::new();
            let (waker_to, wakers) = mpsc::channel();
            let dropped: Vec<_> = (0..1 + round % 3).map(|_| Flag::new()).collect();
            let tasks: Vec<_> = dropped
                .iter()
                .map(|dropped| {
                    let (waker_to, on_drop) = (waker_to.clone(), set_on_drop(dropped));
                    ex.spawn(poll_fn(move |cx| {
                        let _on_drop = &on_drop;
                        waker_to.send(cx.waker().clone()).unwrap();
                        Poll::<()>::Pending
                    }))
                })
                .collect();
            while ex.try_tick() {}
            if round % 2 == 0 {
                tasks.into_iter().for_each(|task| task.detach());
            }
            let together = Arc::new(Barrier::new(2));
            jobs.send((together.clone(), wakers.try_iter().collect())).unwrap();
            together.wait();
            drop(ex);
            // Gone by now, or with the last wake that was under way.
            dropped.iter().for_each(|dropped| dropped.wait_blocking());
        }
        drop(jobs);
        waking.join().unwrap();
    });
}

#[test]
fn a_finished_task_of_a_dropped_executor_still_has_its_result() {
    within(20, || {
        let (ex, local) = (Executor::new(), LocalExecutor::new());
        let dropped = Flag::new();
        let (task, local_task) =
            (ex.spawn(async { String::from("late") }), local.spawn(async { 2 }));
        let unclaimed = ex.spawn({
            let result = set_on_drop(&dropped);
            async move { result }
        });
        while ex.try_tick() || local.try_tick() {}
        drop((ex, local));
        assert_eq!(foreign_block_on(task), "late");
        assert_eq!(foreign_block_on(local_task), 2);
        assert!(!dropped.is_set());
        drop(unclaimed);
        assert!(dropped.is_set());
    });
}

#[test]
fn an_executor_dropped_inside_of_its_own_sibling_or_a_task_is_no_trouble() {
    within(20, || {
        let (inner, dropped) = (Executor::new(), Flag::new());
        let on_drop = set_on_drop(&dropped);
        inner
            .spawn(async move {
                let _on_drop = on_drop;
                pending::<()>().await
            })
            .detach();
        inner.try_tick();
        foreign_block_on(spawn(async move { drop(inner) }));
        assert!(dropped.is_set());
        // Tasks that own each other's executors.
        let (one, two) = (Executor::new(), Executor::new());
        let dropped = Flag::new();
        let on_drop = set_on_drop(&dropped);
        two.spawn(async move {
            let _on_drop = on_drop;
            pending::<()>().await
        })
        .detach();
        one.spawn(async move {
            two.run(pending::<()>()).await;
        })
        .detach();
        one.try_tick();
        one.try_tick();
        drop(one);
        assert!(dropped.is_set());
    });
}

/// tokio #3564, async-executor #137.
#[test]
fn waves_of_tasks_leave_no_memory_behind() {
    fresh_process(60, &[], || {
        let wave = || {
            foreign_block_on(async {
                let tasks: Vec<_> = (0..10_000)
                    .map(|i| {
                        spawn(async move {
                            if i % 2 == 0 {
                                future::yield_now().await
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await;
                }
            })
        };
        (0..3).for_each(|_| wave());
        let before = live_bytes();
        (0..20).for_each(|_| wave());
        // The last of its wave may still be on its way out.
        common::eventually(|| live_bytes() - before < 200_000);
        let ex = Executor::new();
        let wave = |ex: &Executor<'static>| {
            (0..10_000).for_each(|_| ex.spawn(future::yield_now()).detach());
            while ex.try_tick() {}
        };
        wave(&ex);
        let before = live_bytes();
        (0..20).for_each(|_| wave(&ex));
        let grown = live_bytes() - before;
        assert!(grown < 100_000, "{grown} bytes after waves in one executor");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_thousand_executors_threads_and_sockets_leave_nothing_behind() {
    fresh_process(60, &[], || {
        let round = || {
            let ex = Executor::new();
            block_on(ex.run(ex.spawn(sleep(Duration::from_micros(10)))));
            // A thread with its own thread-locals, a socket that was waited for, a scope.
            thread::spawn(|| {
                let (one, two) = socket_pair();
                block_on(async {
                    future::or(
                        async { one.readable().await.unwrap() },
                        sleep(Duration::from_micros(50)),
                    )
                    .await;
                    smol::spawn_local(async move { two.writable().await.unwrap() }).await;
                });
            })
            .join()
            .unwrap();
        };
        (0..100).for_each(|_| round());
        let (bytes, fds, threads) = (live_bytes(), common::open_fds(), common::threads().len());
        (0..1000).for_each(|_| round());
        let grown = live_bytes() - bytes;
        assert!(grown < 50_000, "{grown} bytes");
        assert_eq!(common::open_fds(), fds);
        assert!(common::threads().len() <= threads + 2, "{:?}", common::threads());
    });
}

#[test]
fn memory_comes_back_after_a_burst_of_everything() {
    fresh_process(60, &[], || {
        let burst = || {
            foreign_block_on(async {
                let sockets: Vec<_> = (0..100).map(|_| socket_pair()).collect();
                let tasks: Vec<_> = sockets
                    .iter()
                    .map(|(one, _)| {
                        let one: Async<_> = one.clone();
                        spawn(async move {
                            let byte = async { one.readable().await.unwrap() };
                            future::or(byte, sleep(Duration::from_secs(3600))).await;
                        })
                    })
                    .collect();
                let jobs: Vec<_> = (0..100).map(|_| unblock(|| vec![0u8; 1000])).collect();
                for job in jobs {
                    job.await;
                }
                for task in tasks {
                    task.cancel().await;
                }
                drop(sockets);
            })
        };
        (0..3).for_each(|_| burst());
        let before = live_bytes();
        (0..10).for_each(|_| burst());
        common::eventually(|| live_bytes() - before < 200_000);
    });
}

/// A destructor that waits for the end of a task which its own one has spawned, as a guard of a server would.
struct WaitsFor(Option<smol::Task<()>>);

impl Drop for WaitsFor {
    fn drop(&mut self) {
        block_on(self.0.take().unwrap().cancel());
    }
}

#[test]
fn an_executor_ends_although_destructors_of_its_tasks_wait_for_tasks_that_these_have_spawned() {
    macro_rules! ends {
        ($pointer:ident, $executor:expr) => {
            let executor = $pointer::new($executor);
            let spawner = $pointer::downgrade(&executor);
            executor
                .spawn(async move {
                    let child = spawner.upgrade().unwrap().spawn(pending::<()>());
                    let _guard = WaitsFor(Some(child));
                    pending::<()>().await;
                })
                .detach();
            while executor.try_tick() {}
            drop(executor);
        };
    }
    within(30, || {
        ends!(Arc, Executor::new());
        ends!(Rc, LocalExecutor::new());

        let thread = thread::spawn(|| {
            smol::spawn_local(async {
                let _guard = WaitsFor(Some(smol::spawn_local(pending::<()>())));
                pending::<()>().await;
            })
            .detach();
            for _ in 0..10 {
                block_on(future::yield_now());
            }
        });
        thread.join().unwrap();
    });
}
