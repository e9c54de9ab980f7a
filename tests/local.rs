//! Futures that are not `Send` are polled and dropped on their own thread, always; a wake from elsewhere only enqueues.

mod common;

use common::{Flag, counting_waker, foreign_block_on, fresh_process, within};
use smol::{LocalExecutor, Timer, block_on, future, spawn, spawn_local};
use std::{
    cell::{Cell, RefCell},
    future::{Future, pending, poll_fn},
    pin::pin,
    rc::Rc,
    sync::{Arc, Barrier, Mutex, mpsc},
    task::{Context, Poll, Waker},
    thread::{self, ThreadId},
    time::Duration,
};

/// Not `Send`, and insists on it: aborts the process when it is dropped on another thread than it was made on.
struct AtHome(ThreadId, #[allow(dead_code)] Rc<()>);

impl AtHome {
    fn new() -> AtHome {
        AtHome(thread::current().id(), Rc::new(()))
    }

    fn check(&self) {
        if thread::current().id() != self.0 {
            eprintln!("a local future was touched by another thread");
            std::process::abort(); // a panic might be caught by the runtime
        }
    }
}

impl Drop for AtHome {
    fn drop(&mut self) {
        self.check();
    }
}

#[test]
fn local_tasks_share_what_is_not_send() {
    within(10, || {
        let sum = Rc::new(Cell::new(0));
        block_on(async {
            let tasks: Vec<_> = (0..10)
                .map(|i| {
                    let sum = sum.clone();
                    spawn_local(async move {
                        future::yield_now().await;
                        sum.set(sum.get() + i);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(sum.get(), 45);
    });
}

#[test]
fn a_local_task_is_driven_by_any_block_on_on_its_thread() {
    within(10, || {
        let count = Rc::new(Cell::new(0));
        spawn_local({
            let count = count.clone();
            async move {
                loop {
                    count.set(count.get() + 1);
                    future::yield_now().await;
                }
            }
        })
        .detach();
        assert_eq!(count.get(), 0);
        // Spawned outside, it starts in the first one, goes on in the second, and stands still in between.
        for _ in 0..2 {
            let before = count.get();
            block_on(async {
                while count.get() < before + 10 {
                    future::yield_now().await;
                }
            });
        }
        let after = count.get();
        foreign_block_on(future::yield_now());
        assert_eq!(count.get(), after);
    });
}

#[test]
fn a_block_on_inside_a_local_task_drives_the_other_local_tasks() {
    within(10, || {
        let result = block_on(async {
            spawn_local(async {
                let inner = spawn_local(async {
                    future::yield_now().await;
                    block_on(spawn_local(async { 1 })) + 1
                });
                block_on(inner) + 1
            })
            .await
        });
        assert_eq!(result, 3);
    });
}

#[test]
fn a_local_task_on_a_worker_thread_is_driven_by_a_block_on_there() {
    within(10, || {
        let result = block_on(spawn(async {
            block_on(async { spawn_local(async { Rc::new(5) }).await.as_ref() + 1 })
        }));
        assert_eq!(result, 6);
    });
}

#[test]
fn local_tasks_are_polled_and_dropped_at_home_wherever_they_are_woken() {
    within(20, || {
        for _ in 0..50 {
            let (wakers, to_wake) = mpsc::channel::<Waker>();
            let waking = thread::spawn(move || to_wake.iter().for_each(Waker::wake));
            block_on(async {
                let tasks: Vec<_> = (0..20)
                    .map(|_| {
                        let (home, wakers) = (AtHome::new(), wakers.clone());
                        spawn_local(async move {
                            let mut polls = 0;
                            poll_fn(|cx| {
                                home.check();
                                polls += 1;
                                if polls == 5 {
                                    return Poll::Ready(());
                                }
                                wakers.send(cx.waker().clone()).unwrap();
                                Poll::Pending
                            })
                            .await
                        })
                    })
                    .collect();
                for (i, task) in tasks.into_iter().enumerate() {
                    if i % 3 > 0 {
                        task.await;
                    } // the others are cancelled while they are woken
                }
            });
            drop(wakers);
            block_on(future::yield_now()); // cancelled tasks are dropped here, or at the end of the thread
            // The thread ends only when all senders are gone, that is: all futures.
            block_on(async {
                while !waking.is_finished() {
                    future::yield_now().await;
                }
            });
            waking.join().unwrap();
        }
    });
}

#[test]
fn a_wake_from_elsewhere_only_enqueues() {
    within(10, || {
        let ex = LocalExecutor::new();
        let (waker_to, waker) = mpsc::channel();
        let polls = Rc::new(Cell::new(0));
        let home = AtHome::new();
        let task = ex.spawn({
            let polls = polls.clone();
            poll_fn(move |cx| {
                home.check();
                polls.set(polls.get() + 1);
                let _ = waker_to.send(cx.waker().clone());
                if polls.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        assert!(ex.try_tick());
        assert!(!ex.try_tick());
        let waker = waker.recv().unwrap();
        thread::spawn(move || waker.wake()).join().unwrap();
        assert_eq!(polls.get(), 1);
        assert!(ex.try_tick());
        assert_eq!(polls.get(), 2);
        foreign_block_on(task);
    });
}

#[test]
fn a_wake_from_another_thread_gets_a_sleeping_block_on_to_its_local_task() {
    within(30, || {
        let (wakers, to_wake) = mpsc::channel::<Waker>();
        let waking = thread::spawn(move || to_wake.iter().for_each(Waker::wake));
        block_on(async {
            let task = spawn_local(async move {
                for _ in 0..2000 {
                    let mut sent = false;
                    poll_fn(|cx| {
                        if sent {
                            return Poll::Ready(());
                        }
                        sent = true;
                        wakers.send(cx.waker().clone()).unwrap();
                        Poll::Pending
                    })
                    .await;
                }
            });
            task.await; // the main future itself is woken only at the end
        });
        waking.join().unwrap();
    });
}

#[test]
fn a_local_task_cancelled_by_another_thread_dies_at_home() {
    within(20, || {
        for wait in [false, true] {
            let dropped = Rc::new(Cell::new(false));
            let home = AtHome::new();
            let on_drop = common::OnDrop({
                let dropped = dropped.clone();
                move || dropped.set(true)
            });
            let task = spawn_local(async move {
                let _captured = (home, on_drop);
                pending::<()>().await
            });
            block_on(future::yield_now());
            // The handle is `Send` because the result is.
            let canceller = thread::spawn(move || {
                if wait {
                    foreign_block_on(task.cancel())
                } else {
                    drop(task);
                    Some(())
                }
            });
            block_on(async {
                while !dropped.get() {
                    future::yield_now().await;
                }
            });
            assert_eq!(canceller.join().unwrap(), if wait { None } else { Some(()) });
        }
    });
}

#[test]
fn a_thread_that_ends_takes_its_local_tasks_along() {
    within(20, || {
        let (waker_to, waker) = mpsc::channel::<Waker>();
        let dropped = Flag::new();
        let (guard, never_polled) = (common::set_on_drop(&dropped), Flag::new());
        let second = common::set_on_drop(&never_polled);
        thread::spawn(move || {
            let (home, other_home) = (AtHome::new(), AtHome::new());
            spawn_local(async move {
                let _captured = (home, guard);
                poll_fn(|cx| {
                    waker_to.send(cx.waker().clone()).unwrap();
                    Poll::<()>::Pending
                })
                .await
            })
            .detach();
            block_on(future::yield_now());
            spawn_local(async move { drop((other_home, second)) }).detach();
        })
        .join()
        .unwrap();
        assert!(dropped.is_set() && never_polled.is_set(), "the futures of a thread outlive it");
        waker.recv().unwrap().wake(); // says nothing to anybody
    });
}

/// async-executor #163, #164; zed #21020.
#[test]
fn dropping_a_local_executor_while_another_thread_wakes_its_tasks_is_safe() {
    within(60, || {
        let (jobs, to_wake) = mpsc::channel::<(Arc<Barrier>, Vec<Waker>)>();
        let waking = thread::spawn(move || {
            for (together, wakers) in to_wake {
                together.wait();
                wakers.into_iter().for_each(Waker::wake);
            }
        });
        for round in 0..3000 {
            let ex = LocalExecutor::new();
            let wakers = Rc::new(RefCell::new(Vec::new()));
            for _ in 0..1 + round % 3 {
                let (home, wakers) = (AtHome::new(), wakers.clone());
                ex.spawn(poll_fn(move |cx| {
                    home.check();
                    wakers.borrow_mut().push(cx.waker().clone());
                    Poll::<()>::Pending
                }))
                .detach();
            }
            while ex.try_tick() {}
            let together = Arc::new(Barrier::new(2));
            jobs.send((together.clone(), wakers.take())).unwrap();
            together.wait();
            drop(ex);
        }
        drop(jobs);
        waking.join().unwrap();
    });
}

#[test]
fn a_local_executor_runs_ticks_and_says_when_it_is_empty() {
    within(10, || {
        let ex = LocalExecutor::new();
        assert!(ex.is_empty() && !ex.try_tick() && LocalExecutor::default().is_empty());
        let text = Rc::new(String::from("local"));
        let task = ex.spawn({
            let text = text.clone();
            async move { text.len() }
        });
        assert!(!ex.is_empty());
        assert_eq!(block_on(ex.run(task)), 5);
        assert!(ex.is_empty());
        let task = ex.spawn(async { Timer::after(Duration::from_millis(5)).await });
        block_on(async {
            while !task.is_finished() {
                ex.tick().await;
            }
        });
        assert!(format!("{ex:?}").contains("LocalExecutor"));
        drop(text);
    });
}

#[test]
fn local_executors_nest_and_take_turns_on_one_thread() {
    within(10, || {
        let (one, two) = (Rc::new(LocalExecutor::new()), Rc::new(LocalExecutor::new()));
        let result = block_on(one.run({
            let (one, two) = (one.clone(), two.clone());
            async move {
                let inner = two.clone();
                let a = one
                    .spawn(async move { block_on(inner.run(inner.spawn(async { Rc::new(1) }))) });
                let b = two.spawn(async { Rc::new(2) });
                let (a, b) = future::zip(a, two.run(b)).await;
                *a + *b
            }
        }));
        assert_eq!(result, 3);
    });
}

#[test]
fn a_local_executor_survives_its_run_being_dropped_in_the_middle() {
    within(10, || {
        let ex = LocalExecutor::new();
        let count = Rc::new(Cell::new(0));
        for _ in 0..300 {
            let count = count.clone();
            ex.spawn(async move {
                future::yield_now().await;
                count.set(count.get() + 1);
            })
            .detach();
        }
        {
            let mut run = pin!(ex.run(pending::<()>()));
            let (waker, _) = counting_waker();
            assert!(run.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        while ex.try_tick() {}
        assert_eq!(count.get(), 300);
    });
}

#[test]
fn a_global_task_woken_by_a_local_one_runs_on_a_worker() {
    within(20, || {
        let home = thread::current().id();
        let threads = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..200 {
            let flag = Flag::new();
            let task = spawn({
                let (flag, threads) = (flag.clone(), threads.clone());
                async move {
                    flag.wait().await;
                    threads.lock().unwrap().push(thread::current().id());
                }
            });
            block_on(async {
                let local = spawn_local(async move { flag.set() });
                task.await;
                local.await;
            });
        }
        assert!(!threads.lock().unwrap().contains(&home), "block_on runs what is not its own");
    });
}

#[test]
fn local_tasks_alone_start_no_thread() {
    fresh_process(10, &[], || {
        #[cfg(target_os = "linux")]
        let before = common::threads().len();
        block_on(async {
            let task = spawn_local(async {
                Timer::after(Duration::from_millis(5)).await;
                Rc::new(1)
            });
            assert_eq!(*task.await, 1);
        });
        #[cfg(target_os = "linux")]
        assert_eq!(common::threads().len(), before, "{:?}", common::threads());
    });
}
