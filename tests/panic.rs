//! A panic in a task reaches whoever awaits it and no one else; workers, pool threads and locks survive it.

mod common;

use common::{Flag, OnDrop, foreign_block_on, fresh_process, hook_waker, sleep, within};
use smol::{Executor, LocalExecutor, Task, Timer, block_on, future, spawn, spawn_local, unblock};
use std::{
    any::Any,
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind},
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

/// What `body` panicked with.
#[track_caller]
fn panic_of<T>(body: impl FnOnce() -> T) -> Box<dyn Any + Send> {
    catch_unwind(AssertUnwindSafe(body)).err().expect("should have panicked")
}

#[track_caller]
fn assert_message(payload: Box<dyn Any + Send>, message: &str) {
    assert_eq!(
        payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(|s| &**s)),
        Some(message)
    );
}

/// Everything still works.
fn assert_alive() {
    foreign_block_on(async {
        assert_eq!(spawn(async { 1 }).await, 1);
        Timer::after(Duration::from_millis(1)).await;
        assert_eq!(unblock(|| 2).await, 2);
    });
    assert_eq!(block_on(async { spawn_local(async { 3 }).await }), 3);
    let ex = Executor::new();
    assert_eq!(block_on(ex.run(ex.spawn(async { 4 }))), 4);
}

#[test]
fn a_panic_reaches_the_one_who_awaits_the_task_with_its_payload() {
    within(20, || {
        assert_message(
            panic_of(|| foreign_block_on(spawn(async { panic!("of a task") }))),
            "of a task",
        );
        assert_message(
            panic_of(|| block_on(async { spawn_local(async { panic!("of a local one") }).await })),
            "of a local one",
        );
        assert_message(panic_of(|| block_on(unblock(|| panic!("of a job")))), "of a job");
        assert_message(
            panic_of(|| {
                block_on(async {
                    spawn(async { spawn(async { panic!("from below") }).await }).await
                })
            }),
            "from below",
        );
        // After a while, of a type of its own, and with others around.
        let others: Vec<Task<i32>> = (0..20)
            .map(|i| {
                spawn(async move {
                    sleep(Duration::from_millis(2)).await;
                    i
                })
            })
            .collect();
        let task = spawn(async {
            Timer::after(Duration::from_millis(1)).await;
            panic_any(17)
        });
        assert_eq!(panic_of(|| foreign_block_on(task)).downcast_ref(), Some(&17));
        for (i, other) in others.into_iter().enumerate() {
            assert_eq!(foreign_block_on(other), i as i32);
        }
        assert_alive();
    });
}

#[test]
fn ticking_a_task_that_panics_does_not_panic() {
    within(20, || {
        let ex = Executor::new();
        let (panics, fine) = (ex.spawn(async { panic!("inside") }), ex.spawn(async { 1 }));
        ex.spawn(async { panic!("detached") }).detach();
        while ex.try_tick() {}
        assert_eq!(foreign_block_on(fine), 1);
        assert_message(panic_of(|| foreign_block_on(panics)), "inside");
        let local = LocalExecutor::new();
        let panics = local.spawn(async { panic!("inside") });
        assert!(local.try_tick());
        assert_message(panic_of(|| foreign_block_on(panics)), "inside");
        let panics = ex.spawn(async { panic!("inside") });
        block_on(ex.tick());
        block_on(ex.run(future::yield_now()));
        drop(panics);
        assert!(ex.is_empty());
    });
}

#[test]
fn detached_tasks_that_panic_leave_the_workers_alive() {
    fresh_process(20, &[("SMOL_THREADS", "2")], || {
        foreign_block_on(spawn(async {}));
        let (gone, all_gone) = mpsc::channel();
        for i in 0..100 {
            let gone = gone.clone();
            let on_drop = OnDrop(move || gone.send(()).unwrap());
            spawn(async move {
                let _on_drop = on_drop;
                if i % 2 == 0 {
                    future::yield_now().await;
                }
                panic!("nobody hears this")
            })
            .detach();
        }
        (0..100).for_each(|_| all_gone.recv().unwrap());
        assert_alive();
        // Not one thread more for each panic, nor one less.
        #[cfg(target_os = "linux")]
        assert!((2..=10).contains(&common::threads_named("smol-")), "{:?}", common::threads());
    });
}

#[test]
fn a_panic_of_the_main_future_leaves_its_thread_usable() {
    within(20, || {
        for _ in 0..3 {
            assert_message(panic_of(|| block_on(async { panic!("main") })), "main");
            // In the poller when it began.
            let body = async {
                Timer::after(Duration::from_millis(1)).await;
                panic!("later")
            };
            assert_message(panic_of(|| block_on(body)), "later");
            // In a nested one, and in the future given to an executor.
            assert_message(
                panic_of(|| block_on(async { block_on(async { panic!("inner") }) })),
                "inner",
            );
            let ex = Executor::new();
            assert_message(panic_of(|| block_on(ex.run(async { panic!("run") }))), "run");
            assert_eq!(block_on(ex.run(ex.spawn(async { 1 }))), 1);
            let local = LocalExecutor::new();
            assert_message(panic_of(|| block_on(local.run(async { panic!("run") }))), "run");
            assert_eq!(block_on(local.run(local.spawn(async { 1 }))), 1);
            assert_message(
                panic_of(|| {
                    block_on(smol::timeout(Duration::from_secs(9), async { panic!("timeout") }))
                }),
                "timeout",
            );
            assert_alive();
        }
    });
}

/// Panics when it is dropped, unless that would abort the process by itself.
struct Bomb(Arc<Flag>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.set();
        if !thread::panicking() {
            resume_unwind(Box::new("bomb")); // says nothing on stderr
        }
    }
}

/// A future that panics when it is dropped; the flag is set then.
fn bomb() -> (impl Future<Output = ()> + Send, Arc<Flag>) {
    let flag = Flag::new();
    let bomb = Bomb(flag.clone());
    let future = async move {
        let _bomb = bomb;
        pending::<()>().await
    };
    (future, flag)
}

#[test]
fn a_future_that_panics_when_it_is_cancelled_does_not_abort() {
    fresh_process(20, &[("SMOL_THREADS", "1")], || {
        for _ in 0..5 {
            // On a worker, dropped or cancelled or polled in vain before.
            let (future, dropped) = bomb();
            drop(spawn(future));
            dropped.wait_blocking();
            let (future, dropped) = bomb();
            let task = spawn(future);
            foreign_block_on(spawn(async {}));
            let _ = catch_unwind(AssertUnwindSafe(|| foreign_block_on(task.cancel())));
            assert!(dropped.is_set());
            // In an executor of one's own, by whoever ticks.
            let ex = Executor::new();
            let (future, dropped) = bomb();
            let task = ex.spawn(future);
            ex.try_tick();
            drop(task);
            let _ = catch_unwind(AssertUnwindSafe(|| ex.try_tick()));
            assert!(dropped.is_set());
            assert_eq!(block_on(ex.run(ex.spawn(async { 1 }))), 1);
            // A local one.
            let _ = catch_unwind(|| {
                block_on(async {
                    let (future, dropped) = bomb();
                    let task = spawn_local(future);
                    future::yield_now().await;
                    drop(task);
                    while !dropped.is_set() {
                        future::yield_now().await;
                    }
                })
            });
            assert_alive();
        }
    });
}

#[test]
fn an_executor_dropped_with_futures_that_panic_on_drop_drops_them_all() {
    fresh_process(20, &[], || {
        for polled in [true, false] {
            let ex = Executor::new();
            let local = LocalExecutor::new();
            let mut flags = Vec::new();
            for _ in 0..3 {
                let (future, dropped) = bomb();
                ex.spawn(future).detach();
                flags.push(dropped);
                let (future, dropped) = bomb();
                local.spawn(future).detach();
                flags.push(dropped);
            }
            while polled && (ex.try_tick() || local.try_tick()) {}
            // The panic may come out of the drop, or not; but all are dropped, and nothing aborts.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(ex)));
            let _ = catch_unwind(AssertUnwindSafe(|| drop(local)));
            assert!(flags.iter().all(|dropped| dropped.is_set()));
        }
        assert_alive();
    });
}

#[test]
fn a_future_that_panics_on_drop_after_its_end_does_not_abort() {
    fresh_process(20, &[("SMOL_THREADS", "1")], || {
        /// Ready at once; panics when it is dropped.
        struct ReadyBomb(#[allow(dead_code)] Bomb);
        impl Future for ReadyBomb {
            type Output = u8;
            fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u8> {
                Poll::Ready(1)
            }
        }
        for _ in 0..5 {
            let dropped = Flag::new();
            // The awaiter gets the result or the panic, never nothing.
            let result = catch_unwind(AssertUnwindSafe(|| {
                foreign_block_on(spawn(ReadyBomb(Bomb(dropped.clone()))))
            }));
            assert!(matches!(result, Ok(1) | Err(_)));
            assert!(dropped.is_set());
            let _ = catch_unwind(|| block_on(ReadyBomb(Bomb(Flag::new()))));
            let _ = catch_unwind(|| {
                block_on(async { spawn_local(ReadyBomb(Bomb(Flag::new()))).await })
            });
            assert_alive();
        }
    });
}

#[test]
fn a_future_that_panics_in_poll_and_again_when_it_is_dropped_does_not_abort() {
    fresh_process(20, &[("SMOL_THREADS", "1")], || {
        struct Twice(#[allow(dead_code)] Bomb);
        impl Future for Twice {
            type Output = ();
            fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
                panic!("first")
            }
        }
        for _ in 0..5 {
            let dropped = Flag::new();
            panic_of(|| foreign_block_on(spawn(Twice(Bomb(dropped.clone())))));
            dropped.wait_blocking();
            let dropped = Flag::new();
            spawn(Twice(Bomb(dropped.clone()))).detach();
            dropped.wait_blocking();
            assert_alive();
        }
    });
}

#[test]
fn a_waker_that_panics_does_not_keep_others_from_being_woken() {
    fresh_process(30, &[], || {
        let panics = || {
            hook_waker(|| {
                if !thread::panicking() {
                    resume_unwind(Box::new("waker"))
                }
            })
        };
        // One of several timers that are due at once, one of several waiters on a socket.
        for _ in 0..5 {
            let due = std::time::Instant::now() + Duration::from_millis(20);
            let mut bombs: Vec<Timer> = (0..3).map(|_| Timer::at(due)).collect();
            let (one, two) = common::socket_pair();
            let mut readable = Box::pin(one.readable());
            let waker = panics();
            for timer in &mut bombs {
                // On a machine that stalls it may be due already.
                let _ = Pin::new(timer).poll(&mut Context::from_waker(&waker));
            }
            assert!(readable.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            let others: Vec<_> = (0..3)
                .map(|i| {
                    let one = one.clone();
                    thread::spawn(move || {
                        // The panic comes out of whichever block_on is in the poller, or not at all; it must not come twice.
                        while catch_unwind(AssertUnwindSafe(|| {
                            let wait = async {
                                Timer::at(due).await;
                                one.readable().await.unwrap();
                            };
                            if i == 0 { foreign_block_on(wait) } else { block_on(wait) }
                        }))
                        .is_err()
                        {}
                    })
                })
                .collect();
            std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
            others.into_iter().for_each(|other| other.join().unwrap());
            let _ = catch_unwind(AssertUnwindSafe(|| drop(bombs)));
            let _ = catch_unwind(AssertUnwindSafe(|| drop(readable)));
            let _ = catch_unwind(AssertUnwindSafe(|| drop(waker)));
            assert_alive();
        }
        // A task that panics because the waker it calls does.
        let task = spawn({
            let waker = panics();
            async move { waker.wake() }
        });
        panic_of(|| foreign_block_on(task));
        assert_alive();
    });
}

#[test]
fn what_is_dropped_while_it_waits_does_not_panic_because_its_waker_does() {
    fresh_process(30, &[], || {
        // The runtime has the last clone, and a panic out of a destructor may abort.
        let (one, _two) = common::socket_pair();
        let (ex, local) = (Executor::new(), LocalExecutor::new());
        type Wait<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
        let waits: [(&str, Wait<'_>); 6] = [
            ("readable", Box::pin(async { one.readable().await.unwrap() })),
            ("a timer", Box::pin(async { _ = Timer::after(Duration::from_secs(60)).await })),
            ("tick", Box::pin(ex.tick())),
            ("run", Box::pin(ex.run(pending()))),
            ("a local tick", Box::pin(local.tick())),
            ("a scope", Box::pin(smol::scope(async |_| pending().await))),
        ];
        for (what, mut future) in waits {
            for _ in 0..2 {
                // The second one takes the place of the first.
                let waker = hook_waker(|| resume_unwind(Box::new("waker")));
                let poll = || future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
                assert!(catch_unwind(AssertUnwindSafe(poll)).expect(what));
                assert!(catch_unwind(AssertUnwindSafe(|| drop(waker))).is_ok(), "{what}: no clone");
            }
            assert!(catch_unwind(AssertUnwindSafe(|| drop(future))).is_ok(), "{what}: its drop");
        }
        assert_alive();
    });
}

#[test]
fn a_spawn_that_panics_half_way_leaves_nothing_locked() {
    within(20, || {
        let ex = Executor::new();
        let spawned =
            panic_of(|| {
                (0..3)
                    .map(|i| {
                        if i == 2 {
                            resume_unwind(Box::new("iterator"))
                        } else {
                            ex.spawn(async {})
                        }
                    })
                    .collect::<Vec<_>>()
            });
        assert_message(spawned, "iterator");
        assert_eq!(block_on(ex.run(ex.spawn(async { 1 }))), 1);
        // A waker that panics when a spawn wakes a driver.
        let mut tick = Box::pin(ex.tick());
        let waker = hook_waker(|| {
            if !thread::panicking() {
                resume_unwind(Box::new("waker"))
            }
        });
        assert!(tick.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let result = catch_unwind(AssertUnwindSafe(|| ex.spawn(async { 2 })));
        let _ = catch_unwind(AssertUnwindSafe(|| drop(tick)));
        let _ = catch_unwind(AssertUnwindSafe(|| drop(waker)));
        if let Ok(task) = result {
            assert_eq!(block_on(ex.run(task)), 2);
        }
        assert_eq!(block_on(ex.run(ex.spawn(async { 3 }))), 3);
    });
}

#[test]
fn a_panic_while_a_timer_and_a_socket_are_being_waited_for_leaves_both_usable() {
    within(20, || {
        let (one, two) = common::socket_pair();
        for _ in 0..20 {
            panic_of(|| {
                block_on(future::or(async { one.readable().await.unwrap() }, async {
                    Timer::after(Duration::from_micros(200)).await;
                    resume_unwind(Box::new("while waiting"))
                }))
            });
        }
        std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
        block_on(one.readable()).unwrap();
    });
}

#[test]
fn polling_a_task_that_panicked_on_its_first_of_many_wakes_is_safe() {
    within(20, || {
        let (waker_to, waker) = mpsc::channel::<Waker>();
        let task = spawn(poll_fn(move |cx| -> Poll<()> {
            waker_to.send(cx.waker().clone()).unwrap();
            cx.waker().wake_by_ref();
            resume_unwind(Box::new("in poll"))
        }));
        let waker = waker.recv().unwrap();
        (0..10).for_each(|_| waker.wake_by_ref());
        assert_message(panic_of(|| foreign_block_on(task)), "in poll");
        waker.wake();
        assert_alive();
    });
}
