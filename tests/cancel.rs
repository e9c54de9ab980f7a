//! `cancel().await` waits until the future is gone, whatever its state; cancelled timers, waiters and tasks give their memory back at
//! once, without waiting for the reactor.

mod common;

use common::{
    Flag, OnDrop, foreign_block_on, fresh_process, live_bytes, set_on_drop, sleep, socket_pair,
    within,
};
use smol::{Executor, LocalExecutor, Task, Timer, block_on, future, spawn, spawn_local, unblock};
use std::{
    alloc::System,
    cell::Cell,
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<System> = &stats_alloc::INSTRUMENTED_SYSTEM;

/// Cancels from another thread, and waits there.
fn cancel_elsewhere<T: Send + 'static>(task: Task<T>) -> thread::JoinHandle<Option<T>> {
    thread::spawn(move || foreign_block_on(task.cancel()))
}

#[test]
fn cancelling_from_another_thread_returns_whatever_the_state_of_the_task() {
    within(30, || {
        for _ in 0..50 {
            // Just spawned: polled or not.
            let dropped = Flag::new();
            let on_drop = set_on_drop(&dropped);
            let task = spawn(async move {
                let _on_drop = on_drop;
                pending::<u8>().await
            });
            assert_eq!(cancel_elsewhere(task).join().unwrap(), None);
            assert!(dropped.is_set(), "cancel() returned before the future was gone");
            // Parked.
            let (parked, dropped) = (Flag::new(), Flag::new());
            let task = spawn({
                let (parked, on_drop) = (parked.clone(), set_on_drop(&dropped));
                async move {
                    let _on_drop = on_drop;
                    parked.set();
                    pending::<u8>().await
                }
            });
            parked.wait_blocking();
            assert_eq!(cancel_elsewhere(task).join().unwrap(), None);
            assert!(dropped.is_set());
            // Running: it goes on to the end of this poll.
            let (running, (release, released), dropped) =
                (Flag::new(), mpsc::channel(), Flag::new());
            let task = spawn({
                let (running, on_drop) = (running.clone(), set_on_drop(&dropped));
                async move {
                    let _on_drop = on_drop;
                    running.set();
                    released.recv().unwrap();
                    pending::<u8>().await
                }
            });
            running.wait_blocking();
            let canceller = cancel_elsewhere(task);
            assert!(!dropped.is_set());
            release.send(()).unwrap();
            assert_eq!(canceller.join().unwrap(), None);
            assert!(dropped.is_set());
            // Finished.
            let task = spawn(async { 5 });
            common::eventually(|| task.is_finished());
            assert_eq!(cancel_elsewhere(task).join().unwrap(), Some(5));
        }
    });
}

#[test]
fn cancelling_a_task_that_was_never_polled_returns_as_soon_as_its_executor_is_driven() {
    within(20, || {
        let ex = Executor::new();
        let (ran, dropped) = (Flag::new(), Flag::new());
        let task = ex.spawn({
            let (ran, on_drop) = (ran.clone(), set_on_drop(&dropped));
            async move {
                let _on_drop = on_drop;
                ran.set();
            }
        });
        let canceller = cancel_elsewhere(task);
        while !canceller.is_finished() {
            ex.try_tick();
        }
        assert!(dropped.is_set());
        // A result there is only if it ran; if the cancel came while it did, there is none.
        assert!(canceller.join().unwrap().is_none() || ran.is_set());
    });
}

#[test]
fn cancel_waits_for_a_future_that_takes_its_time_to_go() {
    within(20, || {
        for way in ["global", "own", "local"] {
            let gone = Flag::new();
            let slow = OnDrop({
                let gone = gone.clone();
                move || {
                    thread::sleep(Duration::from_millis(30)); // what cancel() must not overtake
                    gone.set();
                }
            });
            let future = async move {
                let _slow = slow;
                pending::<()>().await
            };
            let ex = Executor::new();
            match way {
                "global" => {
                    let task = spawn(future);
                    foreign_block_on(spawn(async {}));
                    foreign_block_on(task.cancel());
                }
                "own" => block_on(ex.run(ex.spawn(future).cancel())).unwrap_or(()),
                _ => assert!(block_on(async {
                    let task = spawn_local(future);
                    future::yield_now().await;
                    task.cancel().await.is_none()
                })),
            }
            assert!(gone.is_set(), "{way}");
        }
    });
}

#[test]
fn a_task_may_cancel_another_one_and_itself() {
    within(20, || {
        // Another one, on the same executor and thread.
        let dropped = Flag::new();
        let ex = Executor::new();
        let on_drop = set_on_drop(&dropped);
        let victim = ex.spawn(async move {
            let _on_drop = on_drop;
            pending::<()>().await
        });
        let canceller = ex.spawn(async { victim.cancel().await });
        assert_eq!(block_on(ex.run(canceller)), None);
        assert!(dropped.is_set());
        // Itself: drops its own handle while it runs.
        let (dropped, own) = (Flag::new(), Arc::new(Mutex::new(None::<Task<()>>)));
        let (handed, on_drop) = (Flag::new(), set_on_drop(&dropped));
        let task = spawn({
            let (own, handed) = (own.clone(), handed.clone());
            async move {
                let _on_drop = on_drop;
                handed.wait().await;
                let me = own.lock().unwrap().take();
                drop(me);
                future::yield_now().await;
                unreachable!("a cancelled task went on");
            }
        });
        *own.lock().unwrap() = Some(task);
        handed.set();
        dropped.wait_blocking();
    });
}

#[test]
fn a_cancel_that_is_dropped_half_way_has_cancelled_all_the_same() {
    within(20, || {
        let (running, (release, released), dropped) = (Flag::new(), mpsc::channel(), Flag::new());
        let task = spawn({
            let (running, on_drop) = (running.clone(), set_on_drop(&dropped));
            async move {
                let _on_drop = on_drop;
                running.set();
                released.recv().unwrap();
                pending::<()>().await
            }
        });
        running.wait_blocking();
        assert!(pin!(task.cancel()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        release.send(()).unwrap();
        dropped.wait_blocking();
    });
}

#[test]
fn cancelling_a_job_on_the_pool_waits_for_the_closure_or_takes_it_away() {
    within(20, || {
        let ((release, released), ran) = (mpsc::channel(), Flag::new());
        let running = Flag::new();
        let job = unblock({
            let (running, ran) = (running.clone(), ran.clone());
            move || {
                running.set();
                released.recv().unwrap();
                ran.set();
            }
        });
        running.wait_blocking();
        let canceller = cancel_elsewhere(job);
        release.send(()).unwrap();
        canceller.join().unwrap();
        assert!(ran.is_set(), "cancel() returned while the closure ran");
    });
}

#[test]
fn a_wake_that_races_with_a_cancel_is_harmless() {
    within(60, || {
        let polls = Arc::new(AtomicUsize::new(0));
        let (jobs, to_wake) = mpsc::channel::<Waker>();
        let waking = thread::spawn(move || {
            for waker in to_wake {
                (0..3).for_each(|_| waker.wake_by_ref());
            }
        });
        for round in 0..5000 {
            let (dropped, handed) = (Flag::new(), Flag::new());
            let (on_drop, polls) = (set_on_drop(&dropped), polls.clone());
            let (jobs, handed_over) = (jobs.clone(), handed.clone());
            let task = spawn(poll_fn(move |cx| {
                let _on_drop = &on_drop;
                polls.fetch_add(1, Ordering::Relaxed);
                jobs.send(cx.waker().clone()).unwrap();
                handed_over.set();
                Poll::<()>::Pending
            }));
            handed.wait_blocking();
            match round % 3 {
                0 => drop(task),
                1 => assert_eq!(foreign_block_on(task.cancel()), None),
                _ => assert_eq!(foreign_block_on(task.fallible().cancel()), None),
            }
            dropped.wait_blocking();
        }
        drop(jobs);
        waking.join().unwrap();
    });
}

#[test]
fn awaiting_a_cancelled_task_is_a_panic_and_fallible_tells() {
    within(20, || {
        let task = spawn(pending::<u8>());
        let mut fallible = task.fallible();
        assert!(Pin::new(&mut fallible).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(foreign_block_on(fallible.cancel()), None);
        // Its executor is gone: there is nothing left to await.
        let ex = Executor::new();
        let task = ex.spawn(async { 1 });
        drop(ex);
        assert!(catch_unwind(AssertUnwindSafe(|| foreign_block_on(task))).is_err());
    });
}

#[test]
fn local_tasks_cancel_in_every_state() {
    within(20, || {
        block_on(async {
            let count = Rc::new(Cell::new(0));
            let counted = |polls: u32| {
                let count = count.clone();
                let on_drop = OnDrop(move || count.set(count.get() + 1));
                async move {
                    let _on_drop = on_drop;
                    for _ in 0..polls {
                        future::yield_now().await;
                    }
                }
            };
            assert_eq!(spawn_local(counted(9)).cancel().await, None);
            assert_eq!(count.get(), 1);
            let task = spawn_local(counted(u32::MAX));
            future::yield_now().await;
            assert_eq!(task.cancel().await, None);
            assert_eq!(count.get(), 2);
            let task = spawn_local(counted(0));
            while !task.is_finished() {
                future::yield_now().await;
            }
            assert_eq!(task.cancel().await, Some(()));
            assert_eq!(count.get(), 3);
            let ex = LocalExecutor::new();
            let task = ex.spawn(counted(u32::MAX));
            assert_eq!(
                ex.run(async {
                    future::yield_now().await;
                    task.cancel().await
                })
                .await,
                None
            );
            assert_eq!(count.get(), 4);
        });
    });
}

// ---------- memory ----------

/// Fails if `waste`, done ten thousand times more, leaves bytes behind.
#[track_caller]
fn assert_flat(what: &str, mut waste: impl FnMut()) {
    (0..2000).for_each(|_| waste()); // lists have grown to their size then
    let before = live_bytes();
    (0..10_000).for_each(|_| waste());
    let grown = live_bytes() - before;
    // Not a pointer for each; and a worker that starts meanwhile has queues of some 5,000 bytes.
    assert!(grown < 60_000, "{what}: 10,000 cancelled ones left {grown} bytes");
}

/// async-std, tokio #2290, async-io #13. Nobody drives the reactor meanwhile.
#[test]
fn cancelled_timers_waiters_and_tasks_leave_no_memory_behind() {
    fresh_process(60, &[], || {
        let cx = &mut Context::from_waker(Waker::noop());
        let hour = Duration::from_secs(3600);
        assert_flat("timer", || {
            let mut timer = Timer::after(hour);
            assert!(Pin::new(&mut timer).poll(cx).is_pending());
        });
        assert_flat("timer set anew", || {
            let mut timer = Timer::interval(hour);
            assert!(Pin::new(&mut timer).poll(cx).is_pending());
            timer.set_after(2 * hour);
            assert!(Pin::new(&mut timer).poll(cx).is_pending());
        });
        let mut same = Timer::after(hour);
        assert_flat("one timer set anew", || {
            same.set_after(hour);
            assert!(Pin::new(&mut same).poll(cx).is_pending());
        });
        assert_flat("timeout", || {
            assert!(pin!(smol::timeout(hour, pending::<()>())).poll(cx).is_pending())
        });
        let (one, _two) = socket_pair();
        assert_flat("readable", || assert!(pin!(one.readable()).poll(cx).is_pending()));
        assert_flat("two of readable", || {
            let (a, b) = (pin!(one.readable()), pin!(one.readable()));
            assert!(a.poll(cx).is_pending() && b.poll(cx).is_pending());
        });
        assert_flat("read", || {
            let mut socket = &one;
            let mut buffer = [0];
            let mut read = pin!(smol::io::AsyncReadExt::read(&mut socket, &mut buffer));
            assert!(read.as_mut().poll(cx).is_pending());
        });
        assert_flat("readable, with ever other wakers", || {
            let (waker, _) = common::counting_waker();
            assert!(pin!(one.readable()).poll(&mut Context::from_waker(&waker)).is_pending());
        });
        let ex = Executor::new();
        assert_flat("tick", || assert!(pin!(ex.tick()).poll(cx).is_pending()));
        assert_flat("run", || assert!(pin!(ex.run(pending::<()>())).poll(cx).is_pending()));
        assert_flat("task of an executor", || {
            let task = ex.spawn(pending::<()>());
            ex.try_tick();
            drop(task);
            while ex.try_tick() {}
        });
        let local = LocalExecutor::new();
        assert_flat("task of a local executor", || {
            let task = local.spawn(pending::<()>());
            local.try_tick();
            drop(task);
            while local.try_tick() {}
        });
        assert_flat("executor", || {
            let ex = Executor::new();
            ex.spawn(pending::<()>()).detach();
            ex.try_tick();
            ex.spawn(async {}).detach();
        });
        assert_flat("local executor", || {
            let ex = LocalExecutor::new();
            ex.spawn(pending::<()>()).detach();
            ex.try_tick();
        });
        assert_flat("scope", || {
            let scope = smol::scope(async |scope| {
                drop(scope.spawn(pending::<()>()));
                pending::<()>().await
            });
            assert!(pin!(scope).poll(cx).is_pending());
        });
        assert_flat("child of a scope", {
            let mut scope = Box::pin(smol::scope(async |scope| {
                loop {
                    let task = scope.spawn(future::yield_now());
                    task.await;
                    future::yield_now().await;
                }
                #[allow(unreachable_code)]
                ()
            }));
            move || {
                for _ in 0..4 {
                    let (waker, _) = common::counting_waker();
                    assert!(scope.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                }
            }
        });
        assert_flat("block_on", || block_on(future::yield_now()));
        assert_flat("local task", || {
            block_on(async {
                let task = spawn_local(pending::<()>());
                future::yield_now().await;
                task.cancel().await;
            })
        });
        // On the workers, which drive the reactor but have nothing to do there.
        assert_flat("task", || {
            assert!(foreign_block_on(spawn(pending::<()>()).cancel()).is_none())
        });
        assert_flat("task with a timer", || {
            let task = spawn(sleep(hour));
            foreign_block_on(task.cancel());
        });
    });
}

/// A scope that is dropped, or has ended, while a part of it has been woken and not polled since.
#[test]
fn scopes_that_end_while_a_part_of_them_is_woken_leave_no_memory_behind() {
    fresh_process(30, &[], || {
        let cx = &mut Context::from_waker(Waker::noop());
        assert_flat("dropped with its body woken", || {
            let scope = smol::scope(async |_| {
                future::yield_now().await;
                pending::<()>().await
            });
            assert!(pin!(scope).poll(cx).is_pending());
        });
        assert_flat("dropped with a child woken", || {
            let scope = smol::scope(async |scope| {
                drop(scope.spawn(async {
                    future::yield_now().await;
                    pending::<()>().await
                }));
                pending::<()>().await
            });
            let mut scope = pin!(scope);
            assert!(scope.as_mut().poll(cx).is_pending());
            assert!(scope.as_mut().poll(cx).is_pending());
        });
        // A waker that outlives the scope, and is woken afterwards.
        let stray = &Mutex::new(None::<Waker>);
        let leave_waker = || {
            poll_fn(move |cx| {
                *stray.lock().unwrap() = Some(cx.waker().clone());
                Poll::Ready(())
            })
        };
        let wake_stray = || {
            let waker = stray.lock().unwrap().take();
            waker.unwrap().wake();
        };
        assert_flat("ended, and its body is woken", || {
            assert!(pin!(smol::scope(async |_| leave_waker().await)).poll(cx).is_ready());
            wake_stray();
        });
        assert_flat("ended, and its child is woken", || {
            block_on(smol::scope(async |scope| scope.spawn(leave_waker()).await));
            wake_stray();
        });
        assert_flat("dropped, and its body is woken", || {
            let scope = smol::scope(async |_| {
                leave_waker().await;
                pending::<()>().await
            });
            assert!(Box::pin(scope).as_mut().poll(cx).is_pending());
            wake_stray();
        });
        assert_flat("panicked with its body woken", || {
            let scope = smol::scope(async |scope| {
                drop(scope.spawn(async { std::panic::resume_unwind(Box::new(1)) }));
                future::yield_now().await;
                future::yield_now().await;
            });
            let mut scope = pin!(scope);
            let mut poll = || catch_unwind(AssertUnwindSafe(|| scope.as_mut().poll(cx)));
            while let Ok(Poll::Pending) = poll() {}
        });
    });
}
