//! Each queued task can be reached by every thread that drives its executor, however it drives: `run`, `tick` or `try_tick`.

mod common;

use common::{Flag, counting_waker, foreign_block_on, fresh_process, within};
use smol::{Executor, Task, Timer, block_on, future};
use std::{
    future::{Future, pending, poll_fn},
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

#[test]
fn an_executor_is_a_static_a_default_and_says_when_it_is_empty() {
    static EX: Executor<'static> = Executor::new();
    within(10, || {
        assert!(EX.is_empty() && Executor::default().is_empty());
        assert!(!EX.try_tick());
        let task = EX.spawn(async { 1 });
        assert!(!EX.is_empty());
        assert_eq!(block_on(EX.run(task)), 1);
        assert!(!EX.try_tick() && EX.is_empty());
        assert!(format!("{EX:?}").contains("Executor"));
    });
}

#[test]
fn run_gives_the_result_of_its_future_which_may_borrow() {
    within(10, || {
        let ex = Executor::new();
        let text = String::from("borrowed");
        assert_eq!(block_on(ex.run(async { text.as_str() })), "borrowed");
        assert_eq!(foreign_block_on(ex.run(async { text.len() })), 8);
    });
}

#[test]
fn waking_three_times_before_the_poll_polls_once() {
    within(10, || {
        let ex = Executor::new();
        let (polls, wakers) = (Arc::new(AtomicUsize::new(0)), mpsc::channel());
        let task = ex.spawn(poll_fn({
            let polls = polls.clone();
            move |cx| {
                wakers.0.send(cx.waker().clone()).unwrap();
                polls.fetch_add(1, Ordering::Relaxed);
                Poll::<()>::Pending
            }
        }));
        assert!(ex.try_tick());
        assert!(!ex.try_tick(), "a pending task was polled again without a wake");
        let waker = wakers.1.recv().unwrap();
        (0..3).for_each(|_| waker.wake_by_ref());
        assert!(ex.try_tick());
        assert!(!ex.try_tick());
        assert_eq!(polls.load(Ordering::Relaxed), 2);
        drop(task);
    });
}

/// Drives `ex` on threads of its own, one for each of `ways`, until `until` is set.
fn drive(
    ex: &Arc<Executor<'static>>,
    until: &Arc<Flag>,
    ways: &[&str],
) -> Vec<thread::JoinHandle<()>> {
    let threads = ways.iter().map(|&way| {
        let (ex, until, way) = (ex.clone(), until.clone(), way.to_owned());
        thread::spawn(move || match way.as_str() {
            "run" => block_on(ex.run(until.wait())),
            "foreign run" => foreign_block_on(ex.run(until.wait())),
            "tick" => block_on(async {
                while !future::or(
                    async {
                        until.wait().await;
                        true
                    },
                    async {
                        ex.tick().await;
                        false
                    },
                )
                .await
                {}
            }),
            "foreign tick" => foreign_block_on(async {
                while !future::or(
                    async {
                        until.wait().await;
                        true
                    },
                    async {
                        ex.tick().await;
                        false
                    },
                )
                .await
                {}
            }),
            "try_tick" => {
                while !until.is_set() {
                    if !ex.try_tick() {
                        thread::yield_now();
                    }
                }
            }
            // Comes and goes: drops `run` while it has work in hand.
            "short runs" => {
                while !until.is_set() {
                    block_on(ex.run(future::yield_now()));
                    thread::yield_now();
                }
            }
            _ => unreachable!(),
        })
    });
    threads.collect()
}

const WAYS: [&str; 6] = ["run", "foreign run", "tick", "foreign tick", "try_tick", "short runs"];

#[test]
fn every_way_of_driving_finishes_every_task() {
    within(60, || {
        let crowds: Vec<Vec<&str>> = WAYS
            .iter()
            .map(|&way| vec![way])
            .chain([WAYS.to_vec(), vec!["run"; 4], vec!["tick"; 4]])
            .collect();
        for ways in crowds {
            let (ex, done) = (Arc::new(Executor::new()), Flag::new());
            let drivers = drive(&ex, &done, &ways);
            // Spawned from a thread that does not drive; half of the tasks spawn another one.
            let tasks: Vec<Task<usize>> = (0..400)
                .map(|i| {
                    let weak = Arc::downgrade(&ex);
                    ex.spawn(async move {
                        future::yield_now().await;
                        if i % 2 == 0 {
                            let task = weak
                                .upgrade()
                                .unwrap()
                                .spawn(async move { future::yield_now().await });
                            task.await;
                        }
                        i
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
            assert_eq!(sum, 399 * 400 / 2);
            done.set();
            drivers.into_iter().for_each(|driver| driver.join().unwrap());
            assert!(ex.is_empty(), "{ways:?}");
        }
    });
}

/// async-executor 1.14.1: `notify` wakes only if nobody is notified already.
#[test]
fn a_notified_worker_that_is_busy_elsewhere_does_not_hold_up_tasks() {
    within(60, || {
        for _ in 0..5 {
            let (ex, done) = (Arc::new(Executor::new()), Flag::new());
            let drivers = drive(&ex, &done, &["run"]);
            let (release, released) = mpsc::channel::<()>();
            let parked = Flag::new();
            let busy = thread::spawn({
                let (ex, parked) = (ex.clone(), parked.clone());
                move || {
                    let mut polled = false;
                    // Whatever wakes this worker, it is its own future that comes next, and that blocks.
                    block_on(ex.run(poll_fn(move |_| {
                        if !polled {
                            polled = true;
                            parked.set();
                            return Poll::Pending;
                        }
                        released
                            .recv_timeout(Duration::from_secs(5))
                            .expect("the tasks waited for a busy worker");
                        Poll::Ready(())
                    })))
                }
            });
            parked.wait_blocking();
            thread::sleep(Duration::from_millis(20)); // nothing tells when both are asleep
            let tasks: Vec<Task<()>> = (0..100).map(|_| ex.spawn(async {})).collect();
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
            release.send(()).unwrap();
            done.set();
            // `busy` may never have been woken: then it is still in `run` and wants one more task.
            while !busy.is_finished() {
                ex.spawn(async {}).detach();
                thread::yield_now();
            }
            busy.join().unwrap();
            drivers.into_iter().for_each(|driver| driver.join().unwrap());
        }
    });
}

/// async-executor #53, #57, #60, #102, #103.
#[test]
fn tasks_in_the_queue_of_a_blocked_runner_are_reached_by_all_other_drivers() {
    within(60, || {
        for way in WAYS {
            let (ex, done) = (Arc::new(Executor::new()), Flag::new());
            let (others, all_others) = mpsc::channel();
            let blocked = Flag::new();
            // One worker takes many tasks at once; the first one blocks until all the others have run elsewhere.
            let mut tasks = vec![ex.spawn({
                let (ex, blocked, others) = (Arc::downgrade(&ex), blocked.clone(), others.clone());
                async move {
                    // Also some in the queue of the runner itself, put there by the task that blocks it.
                    for _ in 0..50 {
                        let others = others.clone();
                        ex.upgrade()
                            .unwrap()
                            .spawn(async move { others.send(()).unwrap() })
                            .detach();
                    }
                    blocked.set();
                    for _ in 0..150 {
                        all_others
                            .recv_timeout(Duration::from_secs(5))
                            .expect("tasks wait behind a blocked one");
                    }
                }
            })];
            tasks.extend((0..100).map(|_| {
                let others = others.clone();
                ex.spawn(async move { others.send(()).unwrap() })
            }));
            let runner = drive(&ex, &done, &["run"]);
            blocked.wait_blocking();
            let helper = drive(&ex, &done, &[way]);
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
            done.set();
            runner.into_iter().chain(helper).for_each(|driver| driver.join().unwrap());
        }
    });
}

/// The slot for the task woken last (tokio #4941): what is in it must not wait for its owner.
#[test]
fn a_task_woken_by_one_that_then_blocks_is_reached_by_all_other_drivers() {
    within(60, || {
        for way in WAYS {
            for asleep_first in [false, true] {
                let (ex, done) = (Arc::new(Executor::new()), Flag::new());
                let (woken, blocked) = (Flag::new(), Flag::new());
                let (ran, has_run) = mpsc::channel();
                let sleeper = ex.spawn({
                    let woken = woken.clone();
                    async move {
                        woken.wait().await;
                        ran.send(()).unwrap();
                    }
                });
                assert!(ex.try_tick());
                let blocker = ex.spawn({
                    let (woken, blocked) = (woken.clone(), blocked.clone());
                    async move {
                        future::yield_now().await;
                        woken.set(); // from inside a task, on its worker
                        blocked.set();
                        has_run
                            .recv_timeout(Duration::from_secs(5))
                            .expect("the woken task waits behind the one that woke it");
                    }
                });
                let mut drivers = Vec::new();
                if asleep_first {
                    drivers.extend(drive(&ex, &done, &[way, "run"]));
                } else {
                    drivers.extend(drive(&ex, &done, &["run"]));
                    blocked.wait_blocking();
                    drivers.extend(drive(&ex, &done, &[way]));
                }
                foreign_block_on(async { (sleeper.await, blocker.await) });
                done.set();
                drivers.into_iter().for_each(|driver| driver.join().unwrap());
            }
        }
    });
}

// ---------- a driver that is blocked, and one that is busy ----------

/// How many tasks a blocked driver has in its hands, and in which way they got there.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// Woken: the last one sits in a place of its own.
    Woken(usize),
    Spawned(usize),
    /// Half of them woken, half spawned.
    Both(usize),
}

/// How the other driver drives: it has work without end.
const BUSY_WAYS: [&str; 5] = ["run", "foreign run", "tick", "try_tick", "short runs"];

/// On one driver, a task leaves tasks behind and blocks; says how long the other driver, which is
/// busy, lets them wait.
fn wait_behind_a_blocked_driver(way: &str, left: Left, busy_tasks: usize) -> Duration {
    let (ex, done) = (Arc::new(Executor::new()), Flag::new());
    let (go, finished) = (Flag::new(), Arc::new(AtomicUsize::new(0)));
    let (count, woken) = match left {
        Left::Woken(n) => (n, n),
        Left::Spawned(n) => (n, 0),
        Left::Both(n) => (n, n / 2),
    };
    let one = {
        let finished = finished.clone();
        move || {
            let finished = finished.clone();
            async move {
                finished.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    // All on the one driver that there is: some wait to be woken, then one blocks.
    let mut driver = drive(&ex, &done, &["run"]);
    let (awake, asleep) = (Flag::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..woken {
        let (awake, asleep, one) = (awake.clone(), asleep.clone(), one());
        ex.spawn(async move {
            asleep.fetch_add(1, Ordering::SeqCst);
            awake.wait().await;
            one.await;
        })
        .detach();
    }
    common::eventually(|| asleep.load(Ordering::SeqCst) == woken);
    let (blocked, all_done) = (Flag::new(), Flag::new());
    ex.spawn({
        let (ex, go, blocked) = (Arc::downgrade(&ex), go.clone(), blocked.clone());
        let all_done = all_done.clone();
        async move {
            blocked.set();
            go.wait_blocking();
            let ex = ex.upgrade().unwrap();
            (woken..count).for_each(|_| ex.spawn(one()).detach());
            awake.set();
            drop(ex);
            all_done.wait_blocking();
        }
    })
    .detach();
    blocked.wait_blocking();
    // Now the other driver; it is never idle from here on.
    let turns = Arc::new(AtomicUsize::new(0));
    for _ in 0..busy_tasks {
        let turns = turns.clone();
        ex.spawn(async move {
            loop {
                turns.fetch_add(1, Ordering::SeqCst);
                future::yield_now().await;
            }
        })
        .detach();
    }
    driver.extend(drive(&ex, &done, &[way]));
    common::eventually(|| turns.load(Ordering::SeqCst) > 100);
    let start = std::time::Instant::now();
    go.set();
    while finished.load(Ordering::SeqCst) < count && start.elapsed() < Duration::from_secs(1) {
        thread::yield_now();
    }
    let took = start.elapsed();
    all_done.set();
    done.set();
    driver.into_iter().for_each(|driver| driver.join().unwrap());
    took
}

fn tasks_of_a_blocked_driver_start_soon(busy_tasks: usize) {
    let mut late = Vec::new();
    for way in BUSY_WAYS {
        for left in [
            Left::Spawned(1),
            Left::Woken(1),
            Left::Spawned(2),
            Left::Both(20),
            Left::Spawned(200),
            Left::Woken(200),
            Left::Both(1_000),
        ] {
            // The machine may be slow for once; what waits for the blocked driver waits each time.
            let took =
                (0..5).map(|_| wait_behind_a_blocked_driver(way, left, busy_tasks)).find(|took| {
                    println!("{way}, {left:?}: {took:?}");
                    *took < Duration::from_millis(100)
                });
            if took.is_none() {
                late.push((way, left));
            }
            assert!(late.len() < 5, "five times in a row, these wait for 100 ms or more: {late:?}");
        }
    }
    assert!(late.is_empty(), "five times in a row, these wait for 100 ms or more: {late:?}");
}

#[test]
fn tasks_of_a_driver_that_is_blocked_start_soon_on_one_that_has_one_task_to_run() {
    within(120, || tasks_of_a_blocked_driver_start_soon(1));
}

#[test]
fn tasks_of_a_driver_that_is_blocked_start_soon_on_one_that_has_many_tasks_to_run() {
    within(120, || tasks_of_a_blocked_driver_start_soon(50));
}

/// Nobody else drives when the tasks are left behind; whoever comes later finds them.
#[test]
fn tasks_of_a_driver_that_is_blocked_are_found_by_one_that_comes_later() {
    within(60, || {
        for way in WAYS {
            for count in [1, 2, 300] {
                let (ex, done) = (Arc::new(Executor::new()), Flag::new());
                let mut drivers = drive(&ex, &done, &["run"]);
                let (left, finished) = (Flag::new(), Flag::new());
                ex.spawn({
                    let (ex, left, finished) =
                        (Arc::downgrade(&ex), left.clone(), finished.clone());
                    async move {
                        let ex = ex.upgrade().unwrap();
                        let rest = Arc::new(AtomicUsize::new(count));
                        for _ in 0..count {
                            let (rest, finished) = (rest.clone(), finished.clone());
                            ex.spawn(async move {
                                if rest.fetch_sub(1, Ordering::SeqCst) == 1 {
                                    finished.set();
                                }
                            })
                            .detach();
                        }
                        drop(ex);
                        left.set();
                        finished.wait_blocking();
                    }
                })
                .detach();
                left.wait_blocking();
                drivers.extend(drive(&ex, &done, &[way]));
                finished.wait_blocking();
                done.set();
                drivers.into_iter().for_each(|driver| driver.join().unwrap());
            }
        }
    });
}

/// The one who is blocked is in the middle of a `block_on` of its own, for the very task that it has
/// in its hands.
#[test]
fn a_task_that_blocks_for_its_own_child_gets_it_done_by_a_busy_driver() {
    fresh_process(30, &[], || {
        for way in BUSY_WAYS {
            let (ex, done) = (Arc::new(Executor::new()), Flag::new());
            let mut drivers = drive(&ex, &done, &["run"]);
            let (blocked, go) = (Flag::new(), Flag::new());
            let parent = ex.spawn({
                let (ex, blocked, go) = (Arc::downgrade(&ex), blocked.clone(), go.clone());
                async move {
                    blocked.set();
                    go.wait_blocking();
                    let ex = ex.upgrade().unwrap();
                    foreign_block_on(ex.spawn(async { 1 })) + block_on(ex.spawn(async { 2 }))
                }
            });
            blocked.wait_blocking();
            let _busy = ex.spawn(async {
                loop {
                    future::yield_now().await;
                }
            });
            drivers.extend(drive(&ex, &done, &[way]));
            go.set();
            assert_eq!(foreign_block_on(parent), 3);
            done.set();
            drivers.into_iter().for_each(|driver| driver.join().unwrap());
        }
    });
}

#[test]
fn a_driver_that_leaves_passes_its_notification_on() {
    within(60, || {
        for round in 0..200 {
            let (ex, done) = (Arc::new(Executor::new()), Flag::new());
            let (waker, wakes) = counting_waker();
            let cx = &mut Context::from_waker(&waker);
            let mut leaver: std::pin::Pin<Box<dyn Future<Output = ()>>> = match round % 2 {
                0 => Box::pin(ex.tick()),
                _ => Box::pin(ex.run(pending())),
            };
            // Order matters: whoever waits last, or first, is woken first.
            let driver = if round % 4 < 2 {
                assert!(leaver.as_mut().poll(cx).is_pending());
                drive(&ex, &done, &["run"])
            } else {
                let driver = drive(&ex, &done, &["tick"]);
                (0..round % 16).for_each(|_| thread::yield_now());
                assert!(leaver.as_mut().poll(cx).is_pending());
                driver
            };
            let task = ex.spawn(async {});
            if round % 3 == 0 {
                common::eventually(|| wakes.count() > 0 || task.is_finished());
            }
            drop(leaver); // notified perhaps, and gone without a look at the queue
            foreign_block_on(task);
            done.set();
            driver.into_iter().for_each(|driver| driver.join().unwrap());
        }
    });
}

#[test]
fn a_run_that_is_dropped_in_the_middle_leaves_its_tasks_to_others() {
    within(30, || {
        let ex = Executor::new();
        let count = Arc::new(AtomicUsize::new(0));
        let spawn_one = |ex: &Executor<'_>| {
            let count = count.clone();
            ex.spawn(async move {
                future::yield_now().await;
                count.fetch_add(1, Ordering::Relaxed);
            })
            .detach();
        };
        (0..500).for_each(|_| spawn_one(&ex));
        {
            let mut run = pin!(ex.run(pending::<()>()));
            let (waker, _) = counting_waker();
            assert!(run.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        while ex.try_tick() {}
        assert_eq!(count.load(Ordering::Relaxed), 500);
    });
}

/// async-executor #54, #55: a thread-local that took one executor's queue for another's.
#[test]
fn two_executors_take_turns_on_one_thread() {
    within(30, || {
        let (one, two) = (Executor::new(), Executor::new());
        let ticks = Arc::new(AtomicUsize::new(0));
        let chatter = |ex: &Executor<'static>| {
            for _ in 0..3 {
                let ticks = ticks.clone();
                ex.spawn(async move {
                    loop {
                        ticks.fetch_add(1, Ordering::Relaxed);
                        future::yield_now().await;
                    }
                })
                .detach();
            }
        };
        chatter(&one);
        chatter(&two);
        let cx = &mut Context::from_waker(Waker::noop());
        let mut run_two = Box::pin(two.run(pending::<()>()));
        {
            let mut run_one = Box::pin(one.run(pending::<()>()));
            for _ in 0..10 {
                assert!(run_one.as_mut().poll(cx).is_pending());
                assert!(run_two.as_mut().poll(cx).is_pending());
            }
        }
        drop(one);
        let before = ticks.load(Ordering::Relaxed);
        for _ in 0..10 {
            assert!(run_two.as_mut().poll(cx).is_pending());
        }
        assert!(ticks.load(Ordering::Relaxed) > before);
    });
}

#[test]
fn executors_nest_in_each_other_on_one_thread() {
    within(30, || {
        let (one, two) = (Arc::new(Executor::new()), Arc::new(Executor::new()));
        let result = block_on(one.run({
            let (one, two) = (one.clone(), two.clone());
            async move {
                let inner = two.clone();
                let in_one = one.spawn(async move {
                    let own = inner.spawn(async { 1 });
                    // Blocks a task of `one`, runs `two`; and there a task runs `two` once more.
                    let nested = inner.clone();
                    block_on(inner.run(async move { own.await + nested.run(async { 1 }).await }))
                });
                let in_two = two.spawn(async { 3 });
                // Both at once, interleaved on this thread.
                let (a, b) = future::zip(in_one, two.run(in_two)).await;
                a + b
            }
        }));
        assert_eq!(result, 5);
    });
}

#[test]
fn a_task_of_one_executor_wakes_one_of_another_on_the_same_thread_and_elsewhere() {
    within(30, || {
        let done = Flag::new();
        let (one, two) = (Arc::new(Executor::new()), Arc::new(Executor::new()));
        let drivers: Vec<_> =
            [&one, &two].into_iter().flat_map(|ex| drive(ex, &done, &["run"])).collect();
        for _ in 0..500 {
            let (ping, pong) = (Flag::new(), Flag::new());
            let a = one.spawn({
                let (ping, pong) = (ping.clone(), pong.clone());
                async move {
                    ping.set();
                    pong.wait().await;
                }
            });
            let b = two.spawn({
                let (ping, pong) = (ping.clone(), pong.clone());
                async move {
                    ping.wait().await;
                    pong.set();
                }
            });
            foreign_block_on(future::zip(a, b));
        }
        done.set();
        drivers.into_iter().for_each(|driver| driver.join().unwrap());
    });
}

#[test]
fn a_thread_in_the_middle_of_run_can_tick_the_same_executor() {
    within(30, || {
        let ex = Arc::new(Executor::new());
        let task = ex.spawn({
            let ex = Arc::downgrade(&ex);
            async move {
                let ex = ex.upgrade().unwrap();
                let inner = ex.spawn(async { 7 });
                while !inner.is_finished() {
                    ex.try_tick();
                }
                let second = ex.spawn(async { 8 });
                inner.await + block_on(ex.run(second))
            }
        });
        assert_eq!(block_on(ex.run(task)), 15);
    });
}

#[test]
fn tasks_wait_for_timers_whichever_way_they_are_driven() {
    within(30, || {
        for way in WAYS {
            let (ex, done) = (Arc::new(Executor::new()), Flag::new());
            let drivers = drive(&ex, &done, &[way]);
            let tasks: Vec<_> = (0..5)
                .map(|i| ex.spawn(async move { Timer::after(Duration::from_millis(i)).await }))
                .collect();
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
            done.set();
            drivers.into_iter().for_each(|driver| driver.join().unwrap());
        }
    });
}

/// Two threads that both search, one of which finds: the other must not sleep over what comes next.
#[test]
fn two_runners_share_work_that_comes_one_by_one() {
    within(30, || {
        let (ex, done) = (Arc::new(Executor::new()), Flag::new());
        let drivers = drive(&ex, &done, &["run", "run"]);
        for _ in 0..2000 {
            // Both tasks must run at the same time to finish.
            let meet = Arc::new(Barrier::new(2));
            let tasks = [(); 2].map(|()| {
                let meet = meet.clone();
                ex.spawn(async move {
                    meet.wait();
                })
            });
            foreign_block_on(async {
                for task in tasks {
                    task.await;
                }
            });
        }
        done.set();
        drivers.into_iter().for_each(|driver| driver.join().unwrap());
    });
}

#[test]
fn an_iterator_that_spawns_while_it_is_consumed_does_not_lock_up() {
    within(10, || {
        let ex = Executor::new();
        // There is no `spawn_many`; what stands in for it must not lock up either.
        let tasks: Vec<Task<usize>> = (0..3)
            .map(|i| {
                let inner = ex.spawn(async move { i });
                ex.spawn(async move { inner.await + 1 })
            })
            .collect();
        let sum = block_on(ex.run(async {
            let mut sum = 0;
            for task in tasks {
                sum += task.await;
            }
            sum
        }));
        assert_eq!(sum, 6);
    });
}

#[test]
fn an_executor_of_its_own_needs_no_global_workers() {
    fresh_process(20, &[], || {
        let stop = AtomicBool::new(false);
        let ex = Executor::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if !ex.try_tick() {
                        thread::yield_now();
                    }
                }
            });
            assert_eq!(block_on(ex.spawn(async { 1 })), 1);
            #[cfg(target_os = "linux")]
            assert_eq!(common::threads_named("smol-"), 0, "{:?}", common::threads());
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// A `tick` whose task has spent its budget says Pending and keeps its notification; dropped then, it passes it on.
#[test]
fn a_tick_that_was_called_without_a_budget_and_is_dropped_passes_the_call_on() {
    fresh_process(60, &[], || {
        static EX: Executor<'static> = Executor::new();
        let (begun, done) = (Flag::new(), Flag::new());
        let begin = begun.clone();
        thread::spawn(move || {
            block_on(EX.run(async {
                begin.set();
                pending::<()>().await
            }))
        });
        begun.wait_blocking();
        // Until it is the tick that is called, and not the other driver.
        let (waker, wakes) = counting_waker();
        let mut cx = Context::from_waker(&waker);
        let mut call = || {
            let mut tick = pin!(EX.tick());
            let before = wakes.count();
            if tick.as_mut().poll(&mut cx).is_ready() {
                return false;
            }
            let end = done.clone();
            EX.spawn(async move { end.set() }).detach();
            let was_called = wakes.count() > before;
            if was_called {
                // Spends the budget of this thread, of which nothing is known but that it is full
                // again after each Pending.
                let mut always = pin!(Timer::interval(Duration::ZERO));
                let mut spend =
                    || (0..).take_while(|_| always.as_mut().poll(&mut cx).is_ready()).count();
                spend();
                let budget = spend();
                let mut always = pin!(Timer::interval(Duration::ZERO));
                assert!((0..budget).all(|_| always.as_mut().poll(&mut cx).is_ready()));
                assert!(tick.as_mut().poll(&mut cx).is_pending());
            }
            was_called
        };
        while !call() {
            done.wait_blocking();
        }
        done.wait_blocking();
    });
}

/// The task's timer is nobody's but the reactor's: whoever waits for it later may be a foreign executor.
#[test]
fn a_task_polled_by_try_tick_inside_of_a_local_task_may_be_driven_by_others_later() {
    fresh_process(60, &[], || {
        let ex = Arc::new(Executor::new());
        let task = ex.spawn(async { Timer::after(Duration::from_millis(5)).await });
        block_on(async {
            smol::spawn_local(async move {
                assert!(ex.try_tick());
                foreign_block_on(ex.run(task))
            })
            .await
        });
    });
}

#[test]
fn a_task_that_ends_the_program_may_be_polled_by_a_tick_of_an_executor_in_a_thread_local() {
    thread_local! {
        static EX: Executor<'static> = const { Executor::new() };
    }
    let ended = common::fresh_process_output(20, &[], || {
        // What the runtime keeps for the thread is there before the executor, and is dropped after it.
        let other = Executor::new();
        other.spawn(async {}).detach();
        assert!(other.try_tick());
        EX.with(|ex| {
            ex.spawn(async { std::process::exit(7) }).detach();
            ex.try_tick();
        });
    });
    if let Some(ended) = ended {
        assert_eq!(ended.status.code(), Some(7), "{}", ended.output);
    }
}
