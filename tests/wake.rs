//! A task that was woken is polled again and sees what was written before the wake; and no code of a user, such as a waker's, ever runs
//! under a lock of the runtime.

mod common;

use common::{
    Flag, OnDrop, foreign_block_on, fresh_processes, hook_waker, sleep, socket_pair, within,
};
use smol::{Executor, LocalExecutor, Task, Timer, block_on, future, spawn, spawn_local, unblock};
use std::{
    cell::RefCell,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

// ---------- no wake is lost ----------

/// compio #948, tokio #7622. All producers wake as fast as they can; the last value of each must be seen.
#[test]
fn the_last_of_many_wakes_is_seen_whoever_else_wakes() {
    within(60, || {
        for _ in 0..20 {
            let values = Arc::new([const { AtomicUsize::new(0) }; 4]);
            let (waker_to, waker) = mpsc::channel::<Waker>();
            let task = spawn(poll_fn({
                let values = values.clone();
                let mut first = true;
                move |cx| {
                    if std::mem::take(&mut first) {
                        waker_to.send(cx.waker().clone()).unwrap();
                    }
                    // Relaxed: it is the wake that has to publish them.
                    if values.iter().all(|value| value.load(Ordering::Relaxed) == 5000) {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                }
            }));
            let waker = waker.recv().unwrap();
            thread::scope(|scope| {
                for i in 0..4 {
                    let (values, waker) = (&values, &waker);
                    scope.spawn(move || {
                        for n in 1..=5000 {
                            values[i].store(n, Ordering::Relaxed);
                            waker.wake_by_ref();
                        }
                    });
                }
            });
            foreign_block_on(task);
        }
    });
}

/// A waker thread and a task in lockstep: each single wake has to lead to a poll that sees what was written before it.
#[test]
fn each_wake_leads_to_a_poll_that_sees_what_was_written_before() {
    fn lockstep(
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> Task<()>,
        drive: impl FnOnce(Task<()>) + Send,
    ) {
        const ROUNDS: usize = 5_000;
        let (written, waker) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<Waker>)));
        let (sees, seen) = mpsc::channel();
        let task = spawn(Box::pin(poll_fn({
            let (written, waker) = (written.clone(), waker.clone());
            move |cx| {
                waker.lock().unwrap().get_or_insert_with(|| cx.waker().clone());
                let value = written.load(Ordering::Relaxed);
                sees.send(value).unwrap();
                if value == ROUNDS { Poll::Ready(()) } else { Poll::Pending }
            }
        })));
        thread::scope(|scope| {
            scope.spawn(move || {
                let waker = loop {
                    if let Some(waker) = waker.lock().unwrap().clone() {
                        break waker;
                    }
                    thread::yield_now();
                };
                for round in 1..=ROUNDS {
                    written.store(round, Ordering::Relaxed);
                    waker.wake_by_ref();
                    if round % 5 == 0 {
                        waker.wake_by_ref(); // once more, perhaps during the poll
                    }
                    // At times the answer is awaited in a spin, at times asleep.
                    for _ in 0..round % 199 {
                        std::hint::spin_loop();
                    }
                    while seen.recv().unwrap() < round {}
                }
            });
            drive(task);
        });
    }
    within(120, || {
        lockstep(spawn, foreign_block_on);
        let ex = Executor::new();
        lockstep(|future| ex.spawn(future), |task| block_on(ex.run(task)));
        lockstep(spawn_local, block_on);
        lockstep(
            |future| ex.spawn(future),
            |task| {
                while !task.is_finished() {
                    if !ex.try_tick() {
                        thread::yield_now();
                    }
                }
            },
        );
    });
}

#[test]
fn a_wake_during_the_poll_leads_to_another_poll() {
    within(20, || {
        let wakes_itself_in_mid_poll = |polls: usize| {
            let mut left = polls;
            poll_fn(move |cx| {
                if left == 0 {
                    return Poll::Ready(());
                }
                left -= 1;
                // From another thread, and seen by it as done, before this poll ends.
                let waker = cx.waker().clone();
                thread::spawn(move || waker.wake()).join().unwrap();
                Poll::Pending
            })
        };
        foreign_block_on(spawn(wakes_itself_in_mid_poll(100)));
        block_on(wakes_itself_in_mid_poll(100));
        block_on(async { spawn_local(wakes_itself_in_mid_poll(100)).await });
        let ex = Executor::new();
        foreign_block_on(ex.run(ex.spawn(wakes_itself_in_mid_poll(100))));
        block_on(smol::scope(async |scope| scope.spawn(wakes_itself_in_mid_poll(100)).await));
    });
}

#[test]
fn a_wake_after_the_end_of_its_task_or_executor_does_nothing() {
    within(10, || {
        let (waker_to, waker) = mpsc::channel::<Waker>();
        let hand_out = move |end: bool| {
            let waker_to = waker_to.clone();
            poll_fn(move |cx| {
                waker_to.send(cx.waker().clone()).unwrap();
                if end { Poll::Ready(()) } else { Poll::Pending }
            })
        };
        foreign_block_on(spawn(hand_out(true)));
        let ex = Executor::new();
        ex.spawn(hand_out(false)).detach();
        assert!(ex.try_tick());
        drop(ex);
        let local = LocalExecutor::new();
        local.spawn(hand_out(false)).detach();
        assert!(local.try_tick());
        drop(local);
        for _ in 0..3 {
            let waker = waker.recv().unwrap();
            waker.wake_by_ref();
            let copy = waker.clone();
            copy.wake();
            waker.wake();
        }
    });
}

/// What sits between "I found nothing" and "I sleep": many tries at that moment.
#[test]
fn a_spawn_at_any_moment_reaches_a_worker_that_goes_to_sleep() {
    within(60, || {
        let (done, is_done) = mpsc::channel();
        for round in 0..20_000u32 {
            let done = done.clone();
            spawn(async move { done.send(()).unwrap() }).detach();
            is_done.recv().unwrap();
            // The worker goes to sleep now; meet it at ever another moment.
            for _ in 0..round % 211 {
                std::hint::spin_loop();
            }
        }
    });
}

#[test]
fn a_task_awaited_by_ever_other_wakers_wakes_the_last_one() {
    within(10, || {
        let go = Flag::new();
        let mut task = spawn({
            let go = go.clone();
            async move { go.wait().await }
        });
        for _ in 0..100 {
            let (waker, _) = common::counting_waker();
            assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let (waker, wakes) = common::counting_waker();
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        go.set();
        common::eventually(|| wakes.count() == 1);
        foreign_block_on(task);
    });
}

// ---------- no user code under a lock ----------

/// Does everything that takes a lock of the runtime.
fn meddle() {
    let ex = Executor::new();
    ex.spawn(pending::<()>()).detach();
    ex.try_tick();
    spawn(async {}).detach();
    drop(spawn(pending::<()>()));
    // Only polled once, with a waker that does nothing.
    let cx = &mut Context::from_waker(Waker::noop());
    let mut timer = Timer::after(Duration::from_secs(3600));
    let _ = Pin::new(&mut timer).poll(cx);
    timer.set_after(Duration::from_secs(1800));
    let _ = Pin::new(&mut timer).poll(cx);
    drop(timer);
    let (one, _two) = socket_pair();
    assert!(pin!(one.readable()).poll(cx).is_pending());
    let another = one.clone();
    assert!(pin!(another.readable()).poll(cx).is_pending());
    drop(unblock(|| ()));
}

/// Like [`meddle`], but never inside of itself: wakers that it drops run hooks, too.
fn meddle_once() {
    thread_local!(static INSIDE: RefCell<bool> = const { RefCell::new(false) });
    let _ = INSIDE.try_with(|inside| {
        if !inside.replace(true) {
            meddle();
            inside.replace(false);
        }
    });
}

/// Polls `future` with wakers that meddle: once; again with another waker; then until it is ready, or never if `give_up`.
fn poll_meddling<F: Future>(future: F, give_up: bool) -> Option<F::Output> {
    let mut future = pin!(future);
    let woken = Flag::new();
    for _ in 0..2 {
        let replaced = hook_waker(meddle_once);
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&replaced)) {
            return Some(result);
        }
    }
    if give_up {
        return None;
    }
    loop {
        let waker = hook_waker({
            let woken = woken.clone();
            move || {
                meddle_once();
                woken.set();
            }
        });
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(result);
        }
        foreign_block_on(async {
            future::or(woken.wait(), sleep(Duration::from_millis(20))).await
        });
    }
}

/// tokio #4129, #5471, #5475, #5578, #8529 and more.
#[test]
fn wakers_that_spawn_set_timers_and_register_sockets_meet_no_lock() {
    within(60, || {
        for give_up in [false, true] {
            poll_meddling(Timer::after(Duration::from_millis(3)), give_up);
            poll_meddling(smol::timeout(Duration::from_millis(3), pending::<()>()), give_up);
            poll_meddling(unblock(|| thread::sleep(Duration::from_millis(3))), give_up);
            poll_meddling(spawn(sleep(Duration::from_millis(3))), give_up);
            let ex = Executor::new();
            poll_meddling(ex.run(sleep(Duration::from_millis(3))), give_up);
            poll_meddling(ex.run(ex.spawn(sleep(Duration::from_millis(3)))), give_up);
            ex.spawn(sleep(Duration::from_millis(3))).detach();
            poll_meddling(ex.tick(), give_up);
            let (one, two) = socket_pair();
            let writer = thread::spawn({
                let two = two.clone();
                move || {
                    thread::sleep(Duration::from_millis(3)); // the other side should wait by then
                    std::io::Write::write_all(&mut two.get_ref(), b"x").unwrap();
                }
            });
            poll_meddling(future::zip(one.readable(), one.readable()), give_up);
            writer.join().unwrap();
            poll_meddling(two.writable(), give_up);
            poll_meddling(
                async {
                    one.read_with(|_| Err::<(), _>(std::io::ErrorKind::WouldBlock.into())).await
                },
                true,
            );
            poll_meddling(
                smol::scope(async |scope| scope.spawn(sleep(Duration::from_millis(3))).await),
                give_up,
            );
            let local = LocalExecutor::new();
            poll_meddling(local.run(local.spawn(sleep(Duration::from_millis(3)))), give_up);
            let mut cancelled = spawn(pending::<()>());
            poll_meddling(&mut cancelled, true);
            poll_meddling(cancelled.cancel(), false);
        }
    });
}

#[test]
fn futures_that_spawn_when_they_are_dropped_meet_no_lock() {
    within(30, || {
        // Cancelled on a worker.
        for _ in 0..20 {
            let gone = Flag::new();
            let on_drop = (OnDrop(meddle), common::set_on_drop(&gone));
            let task = spawn(async move {
                let _on_drop = on_drop;
                pending::<()>().await
            });
            drop(task);
            gone.wait_blocking();
        }
        // Dropped with their executor, having been polled or not; what they spawn there is dropped, too.
        let gone = Flag::new();
        let ex = Arc::new(Executor::new());
        for polled in [true, false] {
            for _ in 0..3 {
                let weak = Arc::downgrade(&ex);
                let last = common::set_on_drop(&gone);
                let on_drop = OnDrop(move || {
                    meddle();
                    if let Some(ex) = weak.upgrade() {
                        ex.spawn(async {}).detach();
                    }
                });
                ex.spawn(async move {
                    let _on_drop = (on_drop, last);
                    pending::<()>().await
                })
                .detach();
            }
            while polled && ex.try_tick() {}
        }
        drop(ex);
        assert!(gone.is_set());
        // Local ones.
        let ex = Rc::new(LocalExecutor::new());
        for polled in [true, false] {
            let weak = Rc::downgrade(&ex);
            let on_drop = OnDrop(move || {
                meddle();
                spawn_local(async {}).detach();
                if let Some(ex) = weak.upgrade() {
                    ex.spawn(async {}).detach();
                }
            });
            ex.spawn(async move {
                let _on_drop = on_drop;
                pending::<()>().await
            })
            .detach();
            while polled && ex.try_tick() {}
        }
        drop(ex);
        block_on(async {
            let on_drop = OnDrop(|| spawn_local(async { meddle() }).detach());
            let task = spawn_local(async move {
                let _on_drop = on_drop;
                pending::<()>().await
            });
            future::yield_now().await;
            drop(task);
            future::yield_now().await;
            // A scope's.
            smol::scope(async |scope| {
                let inner = scope.clone();
                let on_drop = OnDrop(move || {
                    meddle();
                    drop(inner.spawn(async {}));
                });
                drop(scope.spawn(async move {
                    let _on_drop = on_drop;
                    future::yield_now().await
                }));
                let on_drop = OnDrop(meddle);
                drop(scope.spawn(async move {
                    let _on_drop = on_drop;
                    pending::<()>().await
                }));
                future::yield_now().await;
                scope.cancel();
            })
            .await;
        });
        // Results that nobody takes.
        let task = spawn(async { OnDrop(meddle) });
        common::eventually(|| task.is_finished());
        drop(task);
        spawn(async { OnDrop(meddle) }).detach();
        drop(block_on(unblock(|| OnDrop(meddle))));
    });
}

#[test]
fn a_waker_that_runs_the_executor_that_wakes_it_meets_no_lock() {
    within(20, || {
        let ex = Arc::new(Executor::new());
        for _ in 0..100 {
            let mut run = Box::pin(ex.tick());
            let weak = Arc::downgrade(&ex);
            // Woken by a spawn, takes the task at once, inside of that spawn.
            let waker = hook_waker(move || {
                if let Some(ex) = weak.upgrade() {
                    ex.try_tick();
                }
            });
            assert!(run.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            let task = ex.spawn(async { 1 });
            drop(run);
            ex.try_tick();
            assert_eq!(foreign_block_on(task), 1);
        }
    });
}

#[test]
fn a_timer_whose_waker_drops_another_due_timer_is_no_trouble() {
    within(20, || {
        let due = Instant::now() + Duration::from_millis(10);
        let others: Arc<Mutex<Vec<Timer>>> = Arc::default();
        for _ in 0..10 {
            let mut timer = Timer::at(due);
            let waker = hook_waker({
                let others = others.clone();
                move || {
                    let taken = others.lock().map(|mut others| others.pop());
                    drop(taken); // outside of our own lock
                }
            });
            // On a machine that stalls it may be due already.
            let _ = Pin::new(&mut timer).poll(&mut Context::from_waker(&waker));
            others.lock().unwrap().push(timer);
        }
        block_on(Timer::at(due + Duration::from_millis(10)));
    });
}

// ---------- who is taken for awake, and is not ----------

const MS: Duration = Duration::from_millis(1);
/// A bound against hangs.
const SOON: Duration = Duration::from_secs(10);

const WORKERS: [&[(&str, &str)]; 2] = [&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]];

/// A worker that is on its way to look for work, and blocks in a local task of its thread instead.
#[test]
fn a_local_task_on_a_worker_may_block_for_a_task_when_it_is_woken_from_elsewhere() {
    fresh_processes(60, &WORKERS, || {
        let (woken, done) = (Arc::new(Mutex::new(None::<Arc<Flag>>)), mpsc::channel());
        let (register, send) = (woken.clone(), done.0);
        // A task that stays on its worker, with a local task beside it.
        let _home = spawn(async move {
            let local = spawn_local(async move {
                loop {
                    let next = Flag::new();
                    *register.lock().unwrap() = Some(next.clone());
                    next.wait().await;
                    block_on(spawn(async {}));
                    block_on(spawn(sleep(MS / 10)));
                    send.send(()).unwrap();
                }
            });
            local.detach();
            // The local tasks of this worker are driven by calls like this one.
            block_on(pending::<()>());
        });
        for round in 0..400 {
            common::eventually(|| woken.lock().unwrap().is_some());
            let flag = woken.lock().unwrap().take().unwrap();
            (0..(round % 20) * 100).for_each(|_| std::hint::spin_loop());
            flag.set();
            done.1.recv_timeout(SOON).expect("nobody runs the task that a local task waits for");
        }
    });
}

/// Without a call that drives them, the worker itself does, whenever it has nothing else to do.
#[test]
fn local_tasks_on_workers_may_block_for_tasks_while_others_spawn() {
    fresh_processes(60, &WORKERS, || {
        let (done, finished) = mpsc::channel();
        for round in 0..300 {
            let (flag, done) = (Flag::new(), done.clone());
            let waits = flag.clone();
            spawn(async move {
                spawn_local(async move {
                    waits.wait().await;
                    block_on(spawn(future::yield_now()));
                    done.send(()).unwrap();
                })
                .detach();
            })
            .detach();
            if round % 2 == 0 {
                foreign_block_on(spawn(async {}));
            }
            flag.set();
            // Others come at the same time.
            spawn(async {}).detach();
            finished.recv_timeout(SOON).expect("nobody runs the task that a local task waits for");
        }
    });
}

/// Whoever leaves the poller runs the wakers of others, and may be stuck in one of them.
#[test]
fn a_waker_that_blocks_until_a_task_or_a_timer_has_run_gets_it() {
    fresh_processes(60, &WORKERS, || {
        for round in 0..60 {
            for thing in 0..4 {
                let (done, is_done) = mpsc::channel();
                let once = std::sync::atomic::AtomicBool::new(true);
                let waker = hook_waker(move || {
                    if !once.swap(false, Ordering::SeqCst) {
                        return;
                    }
                    match thing {
                        0 => foreign_block_on(spawn(async {})),
                        1 => block_on(spawn(future::yield_now())),
                        2 => foreign_block_on(sleep(MS)),
                        _ => {
                            let (mut one, mut two) = socket_pair();
                            foreign_block_on(spawn(async move {
                                smol::io::AsyncWriteExt::write_all(&mut one, b"x").await.unwrap()
                            }));
                            foreign_block_on(async {
                                smol::io::AsyncReadExt::read_exact(&mut two, &mut [0]).await
                            })
                            .unwrap();
                        }
                    }
                    done.send(()).unwrap();
                });
                let mut timer = Timer::after(2 * MS);
                let cx = &mut Context::from_waker(&waker);
                if Pin::new(&mut timer).poll(cx).is_ready() {
                    continue;
                }
                // It fires in our own loop, or in a thread of the runtime.
                if round % 2 == 0 {
                    block_on(sleep(5 * MS));
                }
                if is_done.recv_timeout(SOON).is_err() {
                    panic!("round {round}: what waker {thing} waits for never comes");
                }
            }
        }
    });
}

/// Those that were started in place of blocked ones go again, and must not take a call along.
#[test]
fn tasks_spawned_while_spare_workers_come_and_go_all_run() {
    fresh_processes(60, &WORKERS, || {
        let stop = Flag::new();
        let blocking = thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.is_set() {
                    let tasks: Vec<_> =
                        (0..4).map(|_| spawn(async { thread::sleep(8 * MS) })).collect();
                    foreign_block_on(async {
                        for task in tasks {
                            task.await;
                        }
                    });
                    thread::sleep(MS);
                }
            }
        });
        let mut worst = Duration::ZERO;
        let start = Instant::now();
        while start.elapsed() < 4_000 * MS {
            let begin = Instant::now();
            let task = spawn(async {});
            let (done, is_done) = mpsc::channel();
            spawn(async move {
                task.await;
                sleep(MS / 10).await;
                done.send(()).unwrap();
            })
            .detach();
            is_done.recv_timeout(SOON).expect("a task is forgotten");
            worst = worst.max(begin.elapsed());
        }
        println!("the worst of all: {worst:?}");
        stop.set();
        blocking.join().unwrap();
    });
}

/// Who has no need of the poller any more leaves it to those who wait elsewhere.
#[test]
fn a_timer_of_another_loop_is_in_time_when_the_thread_in_the_poller_leaves() {
    fresh_processes(60, &[&[]], || {
        let mut late: Vec<_> = (0..20)
            .map(|i| {
                thread::scope(|scope| {
                    scope.spawn(move || block_on(sleep((5 + i % 7) * MS)));
                    let due = Instant::now() + 15 * MS;
                    foreign_block_on(Timer::at(due));
                    due.elapsed()
                })
            })
            .collect();
        late.sort();
        println!("late, from the least to the most: {late:?}");
        assert!(late[10] < 100 * MS, "{late:?}");
    });
}

/// While a thread that polls for others is on its way, a poll is a poll, and does not wait.
#[test]
fn the_first_poll_of_a_timer_by_anybody_else_returns_at_once() {
    let envs: Vec<&[(&str, &str)]> = vec![&[]; 30];
    fresh_processes(30, &envs, || {
        let together = Arc::new(std::sync::Barrier::new(4));
        let polling: Vec<_> = (0..4)
            .map(|i| {
                let together = together.clone();
                thread::spawn(move || {
                    let cx = &mut Context::from_waker(Waker::noop());
                    let (one, _two) = socket_pair();
                    together.wait();
                    if i % 2 == 0 {
                        let timer = Timer::after(Duration::from_secs(3600));
                        assert!(pin!(timer).poll(cx).is_pending());
                    } else {
                        assert!(pin!(one.readable()).poll(cx).is_pending());
                    }
                })
            })
            .collect();
        polling.into_iter().for_each(|thread| thread.join().unwrap()); // or the watchdog speaks
    });
}
