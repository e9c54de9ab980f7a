//! A `Task` is owned: dropping it cancels it, awaiting it gives its result, only `detach()` lets it outlive its owner.

mod common;

use common::{Flag, foreign_block_on, fresh_process, set_on_drop, within};
use smol::{Executor, Task, block_on, future, spawn};
use std::{
    cell::Cell,
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    thread,
};

#[test]
fn a_task_gives_its_result_to_whoever_awaits_it() {
    within(10, || {
        let task = spawn(async { 6 * 7 });
        assert_eq!(block_on(task), 42);
        let task = spawn(async { spawn(async { String::from("inner") }).await + " and outer" });
        assert_eq!(foreign_block_on(task), "inner and outer");
    });
}

#[test]
fn dropping_a_task_cancels_it() {
    within(10, || {
        let (started, dropped) = (Flag::new(), Flag::new());
        let task = spawn({
            let (started, on_drop) = (started.clone(), set_on_drop(&dropped));
            async move {
                let _on_drop = on_drop;
                started.set();
                pending::<()>().await
            }
        });
        started.wait_blocking();
        assert!(!dropped.is_set());
        drop(task);
        dropped.wait_blocking();
    });
}

#[test]
fn a_task_dropped_before_its_first_poll_never_runs() {
    within(10, || {
        let ex = Executor::new();
        let (ran, dropped) = (Flag::new(), Flag::new());
        let task = ex.spawn({
            let (ran, on_drop) = (ran.clone(), set_on_drop(&dropped));
            async move {
                let _on_drop = on_drop;
                ran.set();
            }
        });
        drop(task);
        while ex.try_tick() {}
        assert!(dropped.is_set(), "the cancelled future is still there");
        assert!(!ran.is_set());
        assert!(ex.is_empty());
    });
}

#[test]
fn a_detached_task_outlives_its_handle() {
    within(10, || {
        let (go, done) = (Flag::new(), Flag::new());
        spawn({
            let (go, done) = (go.clone(), done.clone());
            async move {
                go.wait().await;
                done.set();
            }
        })
        .detach();
        go.set();
        done.wait_blocking();
    });
}

#[test]
fn is_finished_turns_true_when_the_result_is_there() {
    within(10, || {
        let ex = Executor::new();
        let go = Flag::new();
        let task = ex.spawn({
            let go = go.clone();
            async move {
                go.wait().await;
                5
            }
        });
        assert!(ex.try_tick());
        assert!(!task.is_finished());
        go.set();
        assert!(ex.try_tick());
        assert!(task.is_finished());
        assert_eq!(block_on(task), 5);
    });
}

#[test]
fn the_result_of_a_finished_task_is_dropped_with_its_handle() {
    within(10, || {
        let dropped = Flag::new();
        let task = spawn({
            let result = set_on_drop(&dropped);
            async move { result }
        });
        common::eventually(|| task.is_finished());
        assert!(!dropped.is_set());
        drop(task);
        assert!(dropped.is_set());
    });
}

#[test]
fn awaiting_a_task_whose_executor_is_gone_panics_at_once_and_fallible_tells() {
    within(10, || {
        let ex = Executor::new();
        let parked = ex.spawn(pending::<u8>());
        let finished = ex.spawn(async { 3 });
        while ex.try_tick() {}
        let late = ex.spawn(async { 4 });
        drop(ex);
        assert_eq!(block_on(finished), 3);
        assert_eq!(block_on(late.fallible()), None);
        assert!(catch_unwind(AssertUnwindSafe(|| block_on(parked))).is_err());
    });
}

#[test]
fn someone_already_awaiting_a_task_hears_that_its_executor_is_gone() {
    within(10, || {
        for queued in [false, true] {
            let ex = Executor::new();
            let task = ex.spawn(pending::<()>()).fallible();
            if !queued {
                assert!(ex.try_tick());
            }
            let awaiting = Flag::new();
            let waiter = thread::spawn({
                let awaiting = awaiting.clone();
                move || {
                    let mut task = task;
                    block_on(poll_fn(|cx| {
                        let poll = Pin::new(&mut task).poll(cx);
                        awaiting.set();
                        poll
                    }))
                }
            });
            awaiting.wait_blocking();
            drop(ex);
            assert_eq!(waiter.join().unwrap(), None);
        }
    });
}

#[test]
fn a_task_that_nobody_can_wake_is_freed_with_its_executor_at_the_latest() {
    within(10, || {
        let ex = Executor::new();
        let dropped = Flag::new();
        let on_drop = set_on_drop(&dropped);
        ex.spawn(async move {
            let _on_drop = on_drop;
            pending::<()>().await // takes no copy of the waker
        })
        .detach();
        assert!(ex.try_tick());
        drop(ex);
        assert!(dropped.is_set(), "leaked");
    });
}

#[test]
fn a_task_whose_last_waker_is_dropped_is_freed() {
    within(10, || {
        let ex = Executor::new();
        let dropped = Flag::new();
        let on_drop = set_on_drop(&dropped);
        let (waker_to, waker) = mpsc::channel();
        ex.spawn(async move {
            let _on_drop = on_drop;
            poll_fn(|cx| {
                waker_to.send(cx.waker().clone()).unwrap();
                Poll::<()>::Pending
            })
            .await
        })
        .detach();
        assert!(ex.try_tick());
        drop(waker.recv().unwrap());
        while ex.try_tick() {}
        drop(ex);
        assert!(dropped.is_set(), "leaked");
    });
}

#[test]
fn cancelling_the_task_that_holds_its_own_executor_frees_both() {
    within(10, || {
        let ex = Arc::new(Executor::new());
        let weak = Arc::downgrade(&ex);
        let task = ex.spawn({
            let ex = ex.clone();
            async move {
                pending::<()>().await;
                drop(ex);
            }
        });
        assert!(ex.try_tick());
        drop(task);
        while ex.try_tick() {}
        drop(ex);
        assert!(weak.upgrade().is_none(), "the executor leaked");
    });
}

/// A future of `N` bytes that is polled in place.
struct Large<const N: usize>([u8; N], Cell<bool>);

impl<const N: usize> Future for Large<N> {
    type Output = usize;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<usize> {
        if self.1.replace(true) {
            return Poll::Ready(self.0.iter().map(|&byte| usize::from(byte)).sum());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[test]
fn large_futures_do_not_overflow_small_stacks() {
    fresh_process(20, &[], || {
        fn boxed<const N: usize>() -> Pin<Box<Large<N>>> {
            Box::pin(Large([1; N], Cell::new(false)))
        }
        let small_stack = |body: fn()| {
            thread::Builder::new().stack_size(512 << 10).spawn(body).unwrap().join().unwrap()
        };
        // A megabyte, boxed on a large stack, spawned and awaited on a small one.
        let large = thread::Builder::new()
            .stack_size(64 << 20)
            .spawn(boxed::<{ 1 << 20 }>)
            .unwrap()
            .join()
            .unwrap();
        let small = thread::Builder::new().stack_size(256 << 10);
        assert_eq!(small.spawn(|| block_on(spawn(large))).unwrap().join().unwrap(), 1 << 20);
        // 64 KiB and not boxed: every layer that takes a future by value copies it in a debug build, so there must not be many.
        fn unboxed() -> Large<{ 64 << 10 }> {
            Large([1; 64 << 10], Cell::new(false))
        }
        small_stack(|| assert_eq!(block_on(spawn(unboxed())), 64 << 10));
        small_stack(|| assert_eq!(block_on(smol::spawn_local(unboxed())), 64 << 10));
        small_stack(|| {
            let ex = Executor::new();
            let task = ex.spawn(unboxed());
            assert_eq!(block_on(ex.run(task)), 64 << 10);
        });
    });
}

#[test]
fn tasks_of_every_size_and_alignment_work() {
    #[derive(Clone, Copy)]
    #[repr(align(128))]
    struct Aligned(u8);
    within(10, || {
        let aligned = Aligned(3);
        let task: Task<Aligned> = spawn(async move {
            future::yield_now().await;
            assert_eq!(std::ptr::from_ref(&aligned).addr() % 128, 0);
            aligned
        });
        let result = block_on(task);
        assert_eq!((result.0, std::ptr::from_ref(&result).addr() % 128), (3, 0));
        block_on(spawn(async {})); // nothing at all
        assert_eq!(block_on(spawn(Large([2; 5000], Cell::new(false)))), 10_000);
    });
}
