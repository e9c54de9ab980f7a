//! Attacks on drives that are short, nested or blocked, on nested `block_on`, and on scopes.

mod common;

use common::{Flag, fresh_process, hook_waker, sleep};
use smol::{Executor, LocalExecutor, future, spawn_local};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

type Shared = Arc<Executor<'static>>;

async fn yield_for_ever() {
    loop {
        future::yield_now().await;
    }
}

/// Runs `body` in a task of an executor that nobody else drives.
fn inside_of_a_task(body: impl FnOnce(Shared) + Send + 'static) {
    let ex = Shared::default();
    let own = Arc::downgrade(&ex);
    let task = ex.spawn(async move { body(own.upgrade().unwrap()) });
    smol::block_on(ex.run(task));
}

/// Whether `done` comes to be set while `step` is done again and again.
fn comes_with(done: &AtomicBool, mut step: impl FnMut()) -> bool {
    (0..10_000).any(|_| {
        step();
        done.load(Ordering::SeqCst)
    })
}

#[test]
fn a_task_that_ticks_its_own_executor_gets_to_what_it_has_woken_beside_one_that_yields() {
    fresh_process(30, &[], || {
        inside_of_a_task(|ex| {
            let (flag, done) = (Flag::new(), Arc::new(AtomicBool::new(false)));
            let (until, says) = (flag.clone(), done.clone());
            ex.spawn(async move {
                until.wait().await;
                says.store(true, Ordering::SeqCst);
            })
            .detach();
            assert!(ex.try_tick());
            ex.spawn(yield_for_ever()).detach();
            flag.set();
            assert!(comes_with(&done, || assert!(ex.try_tick())));
        });
    });
}

#[test]
fn a_task_that_ticks_its_own_executor_gets_to_all_of_three_hundred_that_yield() {
    fresh_process(30, &[], || {
        inside_of_a_task(|ex| {
            let counts: Arc<Vec<_>> = Arc::new((0..300).map(|_| AtomicUsize::new(0)).collect());
            for n in 0..counts.len() {
                let counts = counts.clone();
                ex.spawn(async move {
                    loop {
                        counts[n].fetch_add(1, Ordering::SeqCst);
                        future::yield_now().await;
                    }
                })
                .detach();
            }
            (0..30_000).for_each(|_| assert!(ex.try_tick()));
            let never = counts.iter().filter(|count| count.load(Ordering::SeqCst) == 0).count();
            assert_eq!(never, 0, "so many were never polled");
        });
    });
}

/// Calls of two kinds by turns, of which one seldom looks for a task.
#[test]
fn a_task_that_drives_its_own_executor_gets_to_what_comes_from_outside() {
    fresh_process(30, &[], || {
        for before in 0..2 {
            inside_of_a_task(move |ex| {
                let done = Arc::new(AtomicBool::new(false));
                ex.spawn(yield_for_ever()).detach();
                (0..before).for_each(|_| assert!(ex.try_tick()));
                let (outside, says) = (ex.clone(), done.clone());
                let from_outside = async move { says.store(true, Ordering::SeqCst) };
                thread::spawn(move || outside.spawn(from_outside).detach()).join().unwrap();
                let comes = comes_with(&done, || {
                    smol::block_on(ex.run(async {}));
                    assert!(ex.try_tick());
                });
                assert!(comes, "after {before} ticks");
            });
        }
    });
}

/// The task that blocks has spawned the one it waits for.
#[test]
fn short_calls_of_run_beside_a_crowd_that_is_woken_at_once_get_to_a_driver_that_blocks() {
    fresh_process(60, &[], || {
        let ex = Shared::default();
        let done = Arc::new(AtomicBool::new(false));
        let (own, says) = (Arc::downgrade(&ex), done.clone());
        let (began, begins) = mpsc::channel();
        let blocks = ex.spawn(async move {
            let (sender, receiver) = mpsc::channel::<()>();
            let task = own.upgrade().unwrap().spawn(async move {
                says.store(true, Ordering::SeqCst);
                drop(sender);
            });
            began.send(()).unwrap();
            let _ = receiver.recv();
            task.await;
        });
        let driver = thread::spawn({
            let ex = ex.clone();
            move || smol::block_on(ex.run(blocks))
        });
        begins.recv().unwrap();
        let crowd: Arc<Mutex<Vec<Waker>>> = Arc::default();
        for _ in 0..1000 {
            let crowd = crowd.clone();
            let waits = poll_fn(move |cx| {
                crowd.lock().unwrap().push(cx.waker().clone());
                Poll::<()>::Pending
            });
            ex.spawn(waits).detach();
        }
        ex.spawn(async move {
            loop {
                let crowd = std::mem::take(&mut *crowd.lock().unwrap());
                crowd.into_iter().for_each(Waker::wake);
                future::yield_now().await;
            }
        })
        .detach();
        let comes = comes_with(&done, || smol::block_on(ex.run(future::yield_now())));
        if !comes {
            // For a process that ends.
            while !done.load(Ordering::SeqCst) {
                let mut run = pin!(ex.run(yield_for_ever()));
                (0..100).for_each(|_| _ = smol::block_on(future::poll_once(&mut run)));
            }
        }
        driver.join().unwrap();
        assert!(comes);
    });
}

/// Tasks that yield, spawn, wake one another and wait for timers, under drives that come and go.
#[test]
fn drives_of_all_kinds_on_several_threads_finish_everything() {
    for round in 0..20 {
        common::within(60, || {
            let ex = Shared::default();
            let ended = Arc::new(AtomicUsize::new(0));
            let total = if round % 4 == 3 { 1500 } else { 40 };
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..total).map(|_| async_channel::bounded::<()>(1)).unzip();
            for (n, receiver) in receivers.into_iter().enumerate() {
                let (ended, next) = (ended.clone(), senders.get(n + 1).cloned());
                let own = Arc::downgrade(&ex);
                ex.spawn(async move {
                    if n > 0 {
                        receiver.recv().await.unwrap();
                    }
                    for _ in 0..n % 4 {
                        future::yield_now().await;
                    }
                    if n % 5 == 0 {
                        let child = own.upgrade().unwrap().spawn(future::yield_now());
                        if n % 10 == 0 {
                            own.upgrade().unwrap().try_tick();
                        }
                        child.await;
                    }
                    if n % 37 == 0 {
                        sleep(Duration::from_micros(100)).await;
                    }
                    if let Some(next) = next {
                        next.try_send(()).unwrap();
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                })
                .detach();
            }
            let drives: Vec<_> = (0..3)
                .map(|thread| {
                    let (ex, ended) = (ex.clone(), ended.clone());
                    thread::spawn(move || {
                        let mut n = thread;
                        while ended.load(Ordering::SeqCst) < total {
                            n += 1;
                            match (n + round) % 7 {
                                0 => _ = ex.try_tick(),
                                1 => smol::block_on(ex.run(async {})),
                                2 => smol::block_on(ex.run(future::yield_now())),
                                3 => smol::block_on(future::or(ex.tick(), future::yield_now())),
                                4 => {
                                    let until = sleep(Duration::from_micros(200));
                                    smol::block_on(ex.run(until));
                                }
                                5 => {
                                    let until = sleep(Duration::from_micros(200));
                                    smol::block_on(future::or(ex.tick(), until));
                                }
                                _ => {
                                    let run = ex.run(future::pending::<()>());
                                    common::foreign_block_on(future::or(run, future::yield_now()));
                                }
                            }
                        }
                    })
                })
                .collect();
            drives.into_iter().for_each(|drive| drive.join().unwrap());
            common::eventually(|| ex.is_empty());
        });
    }
}

// ---------- block_on inside of local tasks ----------

#[test]
fn local_tasks_that_block_for_each_other_in_a_chain_come_to_their_end() {
    fresh_process(20, &[], || {
        for length in 2..5 {
            let flags: Vec<_> = (0..length).map(|_| Flag::new()).collect();
            let tasks: Vec<_> = (0..length)
                .map(|n| {
                    let (own, next) = (flags[n].clone(), flags.get(n + 1).cloned());
                    spawn_local(async move {
                        if let Some(next) = next {
                            smol::block_on(next.wait());
                        }
                        own.set();
                    })
                })
                .collect();
            smol::block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
    });
}

#[test]
fn a_local_task_of_a_local_task_that_blocks_for_its_sibling_gets_it() {
    fresh_process(20, &[], || {
        let outer = spawn_local(async {
            smol::block_on(async {
                let flag = Flag::new();
                let until = flag.clone();
                let blocks = spawn_local(async move { smol::block_on(until.wait()) });
                let sets = spawn_local(async move { flag.set() });
                blocks.await;
                sets.await;
            });
        });
        smol::block_on(outer);
    });
}

/// It waits for a thread at first, then for a timer.
#[test]
fn a_block_on_that_has_come_to_wait_for_a_timer_leaves_the_siblings_alone() {
    fresh_process(20, &[], || {
        let ran = Rc::new(Cell::new(false));
        let (flag, done) = (Flag::new(), ran.clone());
        let setter = flag.clone();
        let blocks = spawn_local(async move {
            let thread = thread::spawn(move || setter.set());
            smol::block_on(async {
                future::yield_now().await;
                flag.wait().await;
                sleep(Duration::from_millis(500)).await;
            });
            thread.join().unwrap();
            assert!(!done.get(), "a sibling has run on top of a task that waits for a timer");
        });
        let sibling = spawn_local(async move { ran.set(true) });
        smol::block_on(future::zip(blocks, sibling));
    });
}

/// Something happens every few milliseconds.
#[test]
fn a_block_on_that_hears_news_again_and_again_leaves_the_siblings_alone() {
    fresh_process(20, &[], || {
        let ran = Rc::new(Cell::new(false));
        let done = ran.clone();
        let blocks = spawn_local(async move {
            let (sender, receiver) = async_channel::bounded(1);
            let thread = thread::spawn(move || {
                for _ in 0..30 {
                    thread::sleep(Duration::from_millis(10));
                    sender.send_blocking(()).unwrap();
                }
            });
            smol::block_on(async { while receiver.recv().await.is_ok() {} });
            thread.join().unwrap();
            assert!(!done.get(), "a sibling has run although something happened all the time");
        });
        let sibling = spawn_local(async move { ran.set(true) });
        smol::block_on(future::zip(blocks, sibling));
    });
}

// ---------- a LocalExecutor that is driven inside of its own task ----------

/// Runs `body` in a task of an executor of this thread.
fn inside_of_a_local_task(body: impl FnOnce(&LocalExecutor<'static>) + 'static) {
    let ex = Rc::new(LocalExecutor::new());
    let own = ex.clone();
    let task = ex.spawn(async move { body(&own) });
    smol::block_on(ex.run(task));
}

/// The outer drive is on the stack, where it cannot hear of it.
#[test]
fn a_nested_drive_of_a_local_executor_hears_of_a_task_that_its_own_thread_wakes() {
    fresh_process(20, &[], || {
        inside_of_a_local_task(|ex| {
            smol::block_on(ex.run(ex.spawn(sleep(Duration::from_millis(5)))));
            smol::block_on(ex.run(ex.spawn(smol::unblock(|| ()))));
        });
    });
}

#[test]
fn a_nested_drive_of_a_local_executor_hears_of_a_task_that_is_spawned_while_it_sleeps() {
    fresh_process(20, &[], || {
        inside_of_a_local_task(|ex| {
            let flag = Flag::new();
            let until = flag.clone();
            let spawns = async {
                sleep(Duration::from_millis(5)).await;
                ex.spawn(async move { flag.set() }).detach();
            };
            smol::block_on(future::zip(ex.run(until.wait()), spawns));
        });
    });
}

#[test]
fn a_nested_tick_of_a_local_executor_hears_of_a_task_that_its_own_thread_wakes() {
    fresh_process(20, &[], || {
        inside_of_a_local_task(|ex| {
            let task = ex.spawn(sleep(Duration::from_millis(5)));
            smol::block_on(async {
                while !task.is_finished() {
                    ex.tick().await
                }
            });
        });
    });
}

/// Whoever sleeps in them is woken for a sibling that it must leave alone.
#[cfg(target_os = "linux")]
#[test]
fn nested_calls_of_block_on_use_no_processor_while_they_wait() {
    fresh_process(60, &[], || {
        fn nest(levels: u32, flag: Arc<Flag>) {
            if levels == 0 {
                return smol::block_on(flag.wait());
            }
            let ex = LocalExecutor::new();
            let deeper = spawn_local({
                let flag = flag.clone();
                async move { nest(levels - 1, flag) }
            });
            // Never ready, and woken when the flag is set.
            spawn_local(async move { flag.wait().await }).detach();
            smol::block_on(ex.run(deeper));
        }
        let (flag, done) = (Flag::new(), Flag::new());
        let (setter, sibling) = (flag.clone(), done.clone());
        let meter = thread::spawn(move || {
            let (cpu, wakes) = common::idle_cost(Duration::from_millis(300));
            sibling.set(); // for a task at the outermost level only
            let (again, more) = common::idle_cost(Duration::from_millis(300));
            setter.set();
            (cpu + again, wakes + more)
        });
        spawn_local(async move { done.wait().await }).detach();
        smol::block_on(future::yield_now());
        nest(4, flag);
        let (cpu, wakes) = meter.join().unwrap();
        assert!(cpu < Duration::from_millis(100) && wakes < 50, "{cpu:?} and {wakes} wake-ups");
    });
}

// ---------- the clock ----------

/// No watcher ticks here.
#[test]
fn short_block_ons_between_which_much_happens_look_around_however_many_were_quick_before() {
    fresh_process(30, &[], || {
        let mut counts = Vec::new();
        for quick in (0..61).step_by(4) {
            let fired = Rc::new(Cell::new(false));
            let fires = fired.clone();
            let task = spawn_local(async move {
                sleep(Duration::from_millis(1)).await;
                fires.set(true);
            });
            // (What happens here is counted as well, so that all numbers come to be the first.)
            smol::block_on(future::yield_now());
            (0..quick).for_each(|_| smol::block_on(async {}));
            let mut slow = 0;
            while !fired.get() {
                thread::sleep(Duration::from_millis(3));
                smol::block_on(async {});
                slow += 1;
            }
            smol::block_on(task);
            counts.push((quick, slow));
        }
        assert!(counts.iter().all(|(_, slow)| *slow < 20), "{counts:?}");
    });
}

// ---------- scopes ----------

#[test]
fn a_child_that_panics_before_somebody_whose_waker_panics_does_not_end_the_process() {
    fresh_process(20, &[], || {
        let outcome = catch_unwind(|| {
            smol::block_on(smol::scope(async |scope| {
                let child = scope.spawn(async {
                    future::yield_now().await;
                    panic!("a child");
                });
                let child: Pin<Box<dyn Future<Output = ()>>> = Box::pin(child);
                let mut child = child;
                let waker = hook_waker(|| {
                    if thread::panicking() {
                        panic!("a waker");
                    }
                });
                let _ = child.as_mut().poll(&mut Context::from_waker(&waker));
                future::pending::<()>().await;
            }));
        });
        assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&"a child"));
    });
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("an output");
        }
    }
}

#[test]
fn an_output_that_panics_when_it_is_dropped_ends_neither_the_process_nor_what_comes_after() {
    fresh_process(20, &[], || {
        // Nobody waits for it; its handle is dropped when it is there already.
        let outcomes = [true, false].map(|early| {
            catch_unwind(AssertUnwindSafe(|| {
                smol::block_on(smol::scope(async |scope| {
                    let task = scope.spawn(async { Bomb });
                    let mut task = Some(task).filter(|_| !early);
                    future::yield_now().await;
                    assert!(task.as_ref().is_none_or(|task| task.is_finished()));
                    scope.cancel();
                    drop(task.take());
                }));
            }))
        });
        assert!(outcomes.iter().all(Result::is_err));
        let five = smol::block_on(smol::scope(async |scope| scope.spawn(async { 5 }).await));
        assert_eq!(five, 5);
    });
}
