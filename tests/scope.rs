//! `scope` waits for all its children, which may borrow from outside of it; a child's panic cancels its siblings and comes out; dropping
//! the scope's future drops the children first; `Scope::cancel` stops the rest.

mod common;

use common::{Flag, OnDrop, foreign_block_on, sleep, socket_pair, within};
use smol::{
    Executor, LocalExecutor, Timer, block_on, future,
    io::{AsyncReadExt, AsyncWriteExt},
    scope, spawn, spawn_local, unblock,
};
use std::{
    cell::{Cell, RefCell},
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

#[test]
fn children_borrow_from_outside_and_give_results_to_the_body() {
    within(10, || {
        let text = String::from("borrowed");
        let sum = Cell::new(0);
        let (text, counter) = (&text, &sum);
        let result = block_on(scope(async |s| {
            let length = s.spawn(async move { text.len() });
            for i in 0..10 {
                drop(s.spawn(async move { counter.set(counter.get() + i) }));
            }
            length.await
        }));
        assert_eq!((result, sum.get()), (8, 45));
    });
}

#[test]
fn children_may_change_disjoint_parts_of_what_is_outside() {
    within(10, || {
        let mut numbers = vec![1, 2, 3, 4];
        block_on(async {
            scope(async |s| {
                for number in &mut numbers {
                    drop(s.spawn(async move {
                        future::yield_now().await;
                        *number *= 10;
                    }));
                }
            })
            .await;
        });
        assert_eq!(numbers, [10, 20, 30, 40]);
    });
}

#[test]
fn a_scope_waits_for_children_whose_handles_are_gone() {
    within(10, || {
        let done = Cell::new(0);
        let done = &done;
        block_on(scope(async |s| {
            for i in 0..5 {
                drop(s.spawn(async move {
                    Timer::after(Duration::from_millis(i * 2)).await;
                    done.set(done.get() + 1);
                }));
            }
        }));
        assert_eq!(done.get(), 5);
    });
}

#[test]
fn children_spawn_siblings_and_a_scope_waits_for_those_too() {
    within(10, || {
        let count = Cell::new(0);
        let count = &count;
        block_on(scope(async |s| {
            let inner = s.clone();
            drop(s.spawn(async move {
                future::yield_now().await;
                let innermost = inner.clone();
                drop(inner.spawn(async move {
                    future::yield_now().await;
                    count.set(count.get() + 1);
                    drop(innermost.spawn(async move { count.set(count.get() + 1) }));
                }));
                count.set(count.get() + 1);
            }));
        }));
        assert_eq!(count.get(), 3);
    });
}

#[test]
fn children_wait_for_timers_sockets_tasks_and_each_other() {
    within(10, || {
        let run = || async {
            let go = Flag::new();
            let (mut one, mut two) = socket_pair();
            let go = &go;
            scope(async |s| {
                let a = s.spawn(async move {
                    go.wait().await;
                    one.write_all(b"x").await.unwrap();
                    1
                });
                let b = s.spawn(async move {
                    two.read_exact(&mut [0]).await.unwrap();
                    spawn(async { Timer::after(Duration::from_millis(1)).await }).await;
                    unblock(|| 2).await
                });
                drop(s.spawn(async move {
                    Timer::after(Duration::from_millis(1)).await;
                    go.set();
                }));
                a.await + b.await
            })
            .await
        };
        assert_eq!(block_on(run()), 3);
        assert_eq!(foreign_block_on(run()), 3);
        assert_eq!(block_on(async { spawn_local(run()).await }), 3);
        let local = LocalExecutor::new();
        assert_eq!(block_on(local.run(local.spawn(run()))), 3);
        // In a task, by way of a block_on.
        assert_eq!(block_on(spawn(async move { block_on(run()) })), 3);
    });
}

#[test]
fn a_wake_polls_the_one_child_it_is_for() {
    within(10, || {
        const CHILDREN: usize = 1000;
        let polls = Cell::new(0);
        let polls = &polls;
        block_on(scope(async |s| {
            let flags: Vec<_> = (0..CHILDREN).map(|_| Flag::new()).collect();
            let tasks: Vec<_> = flags
                .iter()
                .map(|flag| {
                    let flag = flag.clone();
                    s.spawn(async move {
                        let mut wait = pin!(flag.wait());
                        poll_fn(|cx| {
                            polls.set(polls.get() + 1);
                            wait.as_mut().poll(cx)
                        })
                        .await
                    })
                })
                .collect();
            while polls.get() < CHILDREN {
                future::yield_now().await;
            }
            for (flag, task) in flags.iter().zip(tasks) {
                flag.set();
                task.await;
            }
            assert!(
                polls.get() <= 2 * CHILDREN + 100,
                "{} polls for {CHILDREN} children",
                polls.get()
            );
        }));
    });
}

#[test]
fn wakes_from_other_threads_reach_the_children() {
    within(30, || {
        let (wakers, to_wake) = mpsc::channel::<Waker>();
        let waking = thread::spawn(move || to_wake.iter().for_each(Waker::wake));
        for foreign in [false, true] {
            let run = scope(async |s| {
                for i in 0..20 {
                    let wakers = wakers.clone();
                    drop(s.spawn(async move {
                        for _ in 0..200 + i {
                            let mut sent = false;
                            poll_fn(|cx| {
                                if std::mem::replace(&mut sent, true) {
                                    return Poll::Ready(());
                                }
                                wakers.send(cx.waker().clone()).unwrap();
                                Poll::Pending
                            })
                            .await;
                        }
                    }));
                }
            });
            if foreign { foreign_block_on(run) } else { block_on(run) }
        }
        drop(wakers);
        waking.join().unwrap();
    });
}

#[test]
fn children_need_not_be_send_and_stay_on_the_thread_of_the_scope() {
    within(10, || {
        let home = thread::current().id();
        let shared = Rc::new(RefCell::new(Vec::new()));
        block_on(scope(async |s| {
            for i in 0..10 {
                let shared = shared.clone();
                drop(s.spawn(async move {
                    Timer::after(Duration::from_millis(1)).await;
                    assert_eq!(thread::current().id(), home);
                    shared.borrow_mut().push(i);
                }));
            }
        }));
        assert_eq!(shared.borrow().iter().sum::<i32>(), 45);
        assert_eq!(Rc::strong_count(&shared), 1);
    });
}

#[test]
fn dropping_the_future_of_a_scope_drops_its_children_first() {
    within(10, || {
        for polled in [0, 1, 3] {
            let alive = Cell::new(0);
            let order = RefCell::new(Vec::new());
            {
                let (alive, order) = (&alive, &order);
                let outer = OnDrop(|| order.borrow_mut().push("outer"));
                let future = scope(async move |s| {
                    let _outer = &outer;
                    for _ in 0..5 {
                        alive.set(alive.get() + 1);
                        let child = OnDrop(move || {
                            alive.set(alive.get() - 1);
                            order.borrow_mut().push("child");
                        });
                        drop(s.spawn(async move {
                            let _child = child;
                            pending::<()>().await
                        }));
                    }
                    let _body = OnDrop(|| order.borrow_mut().push("body"));
                    pending::<()>().await
                });
                let mut future = Box::pin(future);
                for _ in 0..polled {
                    assert!(
                        future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
                    );
                }
                drop(future);
            }
            assert_eq!(alive.get(), 0, "children outlive their scope");
            assert_eq!(
                order.borrow().iter().filter(|&&what| what == "child").count(),
                if polled > 0 { 5 } else { 0 }
            );
            assert_eq!(order.borrow().last(), Some(&"outer"));
        }
    });
}

#[test]
fn a_timeout_around_a_scope_ends_the_children() {
    within(10, || {
        let alive = Cell::new(0);
        let alive = &alive;
        block_on(async {
            let forever = scope(async |s| {
                for _ in 0..5 {
                    alive.set(alive.get() + 1);
                    let on_drop = OnDrop(move || alive.set(alive.get() - 1));
                    drop(s.spawn(async move {
                        let _on_drop = on_drop;
                        loop {
                            Timer::after(Duration::from_millis(1)).await;
                        }
                    }));
                }
            });
            smol::timeout(Duration::from_millis(20), forever).await.unwrap_err();
            assert_eq!(alive.get(), 0);
        });
    });
}

#[test]
fn a_panic_of_a_child_cancels_its_siblings_and_comes_out_of_the_scope() {
    within(10, || {
        for handle_kept in [false, true] {
            let dropped = Cell::new(0);
            let count = &dropped;
            let panics = scope(async move |s| {
                for _ in 0..5 {
                    let on_drop = OnDrop(move || count.set(count.get() + 1));
                    drop(s.spawn(async move {
                        let _on_drop = on_drop;
                        pending::<()>().await
                    }));
                }
                let task = s.spawn(async {
                    Timer::after(Duration::from_millis(1)).await;
                    resume_unwind(Box::new("child"))
                });
                if handle_kept {
                    task.await
                }
                pending::<()>().await
            });
            let panic = catch_unwind(AssertUnwindSafe(|| block_on(panics))).unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"child"));
            assert_eq!(dropped.get(), 5, "siblings survive the panic");
        }
        assert_eq!(block_on(scope(async |s| s.spawn(async { 1 }).await)), 1);
    });
}

#[test]
fn a_panic_of_the_body_cancels_the_children_and_comes_out() {
    within(10, || {
        let dropped = Cell::new(0);
        let count = &dropped;
        let panics = scope(async |s| {
            for _ in 0..5 {
                let on_drop = OnDrop(move || count.set(count.get() + 1));
                drop(s.spawn(async move {
                    let _on_drop = on_drop;
                    pending::<()>().await
                }));
            }
            future::yield_now().await;
            resume_unwind(Box::new("body"))
        });
        let panic = catch_unwind(AssertUnwindSafe(|| block_on(panics))).unwrap_err();
        assert_eq!((panic.downcast_ref(), dropped.get()), (Some(&"body"), 5));
    });
}

#[test]
fn children_that_panic_when_they_are_dropped_do_not_abort() {
    common::fresh_process(20, &[], || {
        let bombs = Cell::new(0);
        let count = &bombs;
        let bomb = || {
            OnDrop(move || {
                count.set(count.get() + 1);
                if !thread::panicking() {
                    resume_unwind(Box::new("bomb"));
                }
            })
        };
        for way in 0..3 {
            let run = scope(async |s| {
                for _ in 0..3 {
                    let bomb = bomb();
                    drop(s.spawn(async move {
                        let _bomb = bomb;
                        pending::<()>().await
                    }));
                }
                future::yield_now().await;
                match way {
                    0 => s.cancel(),
                    1 => resume_unwind(Box::new("body")),
                    _ => pending().await, // dropped
                }
            });
            bombs.set(0);
            let _ = catch_unwind(AssertUnwindSafe(|| {
                block_on(future::or(run, sleep(Duration::from_millis(20))))
            }));
            assert_eq!(bombs.get(), 3, "way {way}");
        }
        assert_eq!(block_on(scope(async |s| s.spawn(async { 1 }).await)), 1);
    });
}

#[test]
fn cancel_stops_the_children_that_still_run_and_leaves_the_body_alone() {
    within(10, || {
        let dropped = Cell::new(0);
        let count = &dropped;
        let (finished, rest) = block_on(scope(async |s| {
            let finished = s.spawn(async { 7 });
            while !finished.is_finished() {
                future::yield_now().await;
            }
            for _ in 0..5 {
                let on_drop = OnDrop(move || count.set(count.get() + 1));
                drop(s.spawn(async move {
                    let _on_drop = on_drop;
                    pending::<()>().await
                }));
            }
            future::yield_now().await;
            s.cancel();
            Timer::after(Duration::from_millis(1)).await; // the body goes on
            (finished.await, 8)
        }));
        assert_eq!((finished, rest, dropped.get()), (7, 8, 5));
    });
}

#[test]
fn a_child_may_cancel_the_scope_it_is_in() {
    within(10, || {
        let (after, dropped) = (Cell::new(false), Cell::new(0));
        let (gone_on, count) = (&after, &dropped);
        block_on(scope(async |s| {
            for _ in 0..3 {
                let on_drop = OnDrop(move || count.set(count.get() + 1));
                drop(s.spawn(async move {
                    let _on_drop = on_drop;
                    pending::<()>().await
                }));
            }
            let inner = s.clone();
            drop(s.spawn(async move {
                future::yield_now().await;
                inner.cancel();
                pending::<()>().await;
                gone_on.set(true);
            }));
        }));
        assert!(!after.get());
        assert_eq!(dropped.get(), 3);
    });
}

#[test]
fn awaiting_a_cancelled_child_panics() {
    within(10, || {
        let result = catch_unwind(|| {
            block_on(scope(async |s| {
                let child = s.spawn(pending::<()>());
                future::yield_now().await;
                s.cancel();
                child.await
            }))
        });
        assert!(result.is_err());
    });
}

#[test]
fn a_handle_tells_when_its_child_has_finished() {
    within(10, || {
        block_on(scope(async |s| {
            let go = Flag::new();
            let child = s.spawn({
                let go = go.clone();
                async move {
                    go.wait().await;
                    String::from("result")
                }
            });
            future::yield_now().await;
            assert!(!child.is_finished());
            go.set();
            while !child.is_finished() {
                future::yield_now().await;
            }
            assert_eq!(child.await, "result");
        }));
    });
}

#[test]
fn a_scope_handle_that_escapes_runs_nothing_after_the_end() {
    within(10, || {
        let ran = Flag::new();
        let escaped = block_on(scope(async |s| s.clone()));
        // A panic with a clear message, or a child that is dropped; but nothing that runs, and nothing that hangs.
        let spawned = catch_unwind(AssertUnwindSafe(|| {
            let ran = ran.clone();
            drop(escaped.spawn(async move { ran.set() }));
        }));
        drop(spawned);
        escaped.cancel();
        block_on(future::yield_now());
        drop(escaped);
        assert!(!ran.is_set());
        assert_eq!(Arc::strong_count(&ran), 1, "the future is kept after the end of the scope");
    });
}

#[test]
fn a_child_spawned_after_cancel_does_not_keep_the_scope_waiting() {
    within(10, || {
        block_on(scope(async |s| {
            s.cancel();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(s.spawn(pending::<()>()))));
        }));
    });
}

#[test]
fn scopes_nest() {
    within(10, || {
        let numbers = [1, 2, 3];
        let numbers = &numbers;
        let sum = block_on(scope(async |outer| {
            let tasks: Vec<_> = numbers
                .iter()
                .map(|number| {
                    outer.spawn(async move {
                        let mut local = *number;
                        scope(async |inner| {
                            drop(inner.spawn(async {
                                Timer::after(Duration::from_millis(1)).await;
                                local *= 10;
                            }));
                        })
                        .await;
                        local
                    })
                })
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        }));
        assert_eq!(sum, 60);
        // Every kind of block_on inside of a child.
        let sum = block_on(scope(async |s| {
            s.spawn(async {
                block_on(scope(async |inner| inner.spawn(async { 1 }).await))
                    + foreign_block_on(async { 2 })
            })
            .await
        }));
        assert_eq!(sum, 3);
    });
}

#[test]
fn a_child_that_is_always_ready_starves_neither_siblings_nor_body_nor_others() {
    within(20, || {
        let start = Instant::now();
        let turns = Cell::new(0u64);
        let turns = &turns;
        block_on(async {
            let other = spawn_local(sleep(Duration::from_millis(5)));
            scope(async |s| {
                drop(s.spawn(async move {
                    loop {
                        turns.set(turns.get() + 1);
                        future::yield_now().await;
                    }
                }));
                let inner = s.clone();
                drop(s.spawn(async move {
                    Timer::after(Duration::from_millis(5)).await;
                    other.await;
                    inner.cancel();
                }));
                for _ in 0..10 {
                    future::yield_now().await;
                }
            })
            .await
        });
        assert!(turns.get() > 0 && start.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn a_scope_in_an_executor_of_ones_own_works_across_threads_that_wake() {
    within(20, || {
        let ex = Executor::new();
        let count = AtomicUsize::new(0);
        let stop = Flag::new();
        thread::scope(|threads| {
            threads.spawn(|| block_on(ex.run(stop.wait())));
            block_on(scope(async |s| {
                for _ in 0..200 {
                    let task = ex.spawn(future::yield_now());
                    let count = &count;
                    drop(s.spawn(async move {
                        task.await;
                        count.fetch_add(1, Ordering::Relaxed);
                    }));
                }
            }));
            stop.set();
        });
        assert_eq!(count.into_inner(), 200);
    });
}

#[test]
fn ten_thousand_children_take_their_time_only_once() {
    within(30, || {
        let count = Cell::new(0);
        let count = &count;
        block_on(scope(async |s| {
            for i in 0..10_000 {
                drop(s.spawn(async move {
                    if i % 3 == 0 {
                        future::yield_now().await;
                    }
                    count.set(count.get() + 1);
                }));
            }
        }));
        assert_eq!(count.get(), 10_000);
    });
}

#[test]
fn children_run_in_the_order_in_which_they_were_spawned_and_before_their_spawner_goes_on() {
    within(10, || {
        let order = RefCell::new(Vec::new());
        block_on(scope(async |s| {
            for n in 0..3 {
                drop(s.spawn(async { order.borrow_mut().push(1) }));
                let (inner, order) = (s.clone(), &order);
                drop(s.spawn(async move {
                    drop(inner.spawn(async { order.borrow_mut().push(3) }));
                    order.borrow_mut().push(2);
                    future::yield_now().await;
                    order.borrow_mut().push(4);
                }));
                future::yield_now().await;
                order.borrow_mut().push(5);
                future::yield_now().await;
                assert_eq!(order.borrow().len(), 5 * (n + 1), "{:?}", order.borrow());
            }
        }));
        assert_eq!(order.take(), [1, 2, 5, 3, 4].repeat(3));
    });
}
