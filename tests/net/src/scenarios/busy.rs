//! Workers and drivers that are never idle, beside somebody who waits for them to look around.

use std::future::{Future, poll_fn};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread::sleep;

use super::{Scenario, scenario};
use crate::smol::prelude::*;
use crate::smol::{Async, Executor, LocalExecutor, Task, block_on, future, spawn, spawn_local};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_task_comes_from_outside_to_a_worker_that_is_never_idle).processors(1, 1),
        scenario!(tasks_that_take_long_do_not_hold_up_the_one_from_outside)
            .processors(1, 1)
            .may_be_late(12),
        scenario!(two_tasks_that_wake_each_other_do_not_starve_a_third).processors(1, 1),
        scenario!(a_byte_comes_to_a_worker_that_is_never_idle).processors(1, 1),
        scenario!(a_busy_worker_relieves_one_that_blocks).processors(2, 2).may_be_late(20),
        scenario!(workers_that_get_on_need_no_help).processors(1, 1).steady_clock(),
        scenario!(a_batch_takes_long_and_is_shared_after_all).processors(2, 3),
        scenario!(the_first_of_a_batch_blocks_until_the_second_runs).processors(2, 3),
        scenario!(a_main_future_that_is_always_ready_asks_the_kernel),
        scenario!(a_thread_in_one_block_on_after_another_looks_around),
        scenario!(a_task_that_polls_in_a_circle_asks_the_kernel),
        scenario!(a_driver_that_is_never_idle_takes_from_one_that_blocks),
        scenario!(a_ticker_that_is_never_idle_takes_from_a_driver_that_blocks),
        scenario!(short_calls_of_run_that_are_never_idle_take_from_a_driver_that_blocks),
        scenario!(a_driver_has_more_to_do_than_it_may_at_once),
        scenario!(a_local_driver_has_more_to_do_than_it_may_at_once),
        scenario!(a_driver_whose_main_futures_are_ready_runs_tasks_all_the_same),
    ]
}

/// Yes, once somebody has said so.
#[derive(Clone, Default)]
struct Said(Arc<AtomicBool>);

impl Said {
    fn say(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_said(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// A task that is never idle until it is said.
    async fn busy(self) {
        while !self.is_said() {
            yields(1).await;
        }
    }

    /// The same, and each of its polls takes a while.
    async fn busy_for_long(self) {
        while !self.is_said() {
            sleep(millis(1));
            yields(1).await;
        }
    }
}

fn a_task_comes_from_outside_to_a_worker_that_is_never_idle() {
    let said = Said::default();
    let busy = spawn(said.clone().busy());
    block_on(spawn(async move { said.say() }));
    block_on(busy);
}

/// It does not wait until so many of them have run.
fn tasks_that_take_long_do_not_hold_up_the_one_from_outside() {
    let said = Said::default();
    let busy = spawn(said.clone().busy_for_long());
    block_on(spawn(async move { said.say() }));
    block_on(busy);
}

/// Each of the two runs next when the other has woken it; the third is behind both.
fn two_tasks_that_wake_each_other_do_not_starve_a_third() {
    let said = Said::default();
    let wakers: Arc<Mutex<[Option<Waker>; 2]>> = Arc::default();
    let wake = |wakers: &Mutex<[Option<Waker>; 2]>, n: usize| {
        let waker = wakers.lock().unwrap()[n].take();
        if let Some(waker) = waker {
            waker.wake();
        }
    };
    let players = [0, 1].map(|n| {
        let (wakers, said) = (wakers.clone(), said.clone());
        spawn(poll_fn(move |cx| {
            wakers.lock().unwrap()[n] = Some(cx.waker().clone());
            wake(&wakers, 1 - n);
            if said.is_said() { Poll::Ready(()) } else { Poll::Pending }
        }))
    });
    let third = spawn(async move {
        let third = spawn(async move { said.say() });
        // It goes before, since it was woken last.
        wake(&wakers, 0);
        third.await;
        wake(&wakers, 0);
        wake(&wakers, 1);
    });
    block_on(third);
    for player in players {
        block_on(player);
    }
}

fn a_byte_comes_to_a_worker_that_is_never_idle() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let said = Said::default();
    let busy = spawn(said.clone().busy());
    let reader = spawn(async move {
        Async::new(right).unwrap().read_exact(&mut [0]).await.unwrap();
        said.say();
    });
    left.write_all(b"x").unwrap();
    block_on(reader);
    block_on(busy);
}

/// What is in the other one's queue the watcher puts where those find it who get on.
fn a_busy_worker_relieves_one_that_blocks() {
    let said = Said::default();
    let busy = spawn(said.clone().busy_for_long());
    let blocks = spawn(async move {
        let flag = Flag::default();
        let first = spawn({
            let flag = flag.clone();
            async move { flag.set() }
        });
        // This one is to run next, and so the first is in the queue.
        let second = spawn(async {});
        flag.wait();
        first.await;
        second.await;
        said.say();
    });
    block_on(blocks);
    block_on(busy);
}

/// A worker and the watcher are enough, since no task blocks; but of a new worker nobody can say at
/// the first tick.
fn workers_that_get_on_need_no_help() {
    let tasks = [0, 1].map(|_| {
        needs(millis(20));
        spawn(async {
            for _ in 0..20 {
                sleep(millis(1));
                yields(1).await;
            }
        })
    });
    for task in tasks {
        block_on(task);
    }
    assert!(starts() <= 3, "{} threads were started", starts());
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks that wait for the same byte, so that one worker collects all of them at once.
fn batch(works: Vec<Work>) -> (UnixStream, Vec<Task<()>>) {
    let (left, right) = UnixStream::pair().unwrap();
    let right = Arc::new(Async::new(right).unwrap());
    let tasks = works.into_iter().map(|work| {
        let (right, (waits, is_waiting)) = (right.clone(), oneshot());
        let task = spawn(async move {
            let mut readable = Box::pin(right.readable());
            once(&mut readable).await;
            waits.send(());
            readable.await.unwrap();
            work.await;
        });
        block_on(is_waiting);
        task
    });
    let tasks = tasks.collect();
    (left, tasks)
}

/// One that waits for the flag, then one that sets it.
fn block_and_set() -> [Work; 2] {
    let flag = Flag::default();
    let other = flag.clone();
    [Box::pin(async move { flag.wait() }), Box::pin(async move { other.set() })]
}

fn a_batch_takes_long_and_is_shared_after_all() {
    // It costs nothing: the next one is not thought to be worth a call.
    let (mut writer, cheap) = batch(vec![Box::pin(async {}), Box::pin(async {})]);
    writer.write_all(b"x").unwrap();
    for task in cheap {
        block_on(task);
    }
    let [blocks, sets] = block_and_set();
    let (mut writer, tasks) = batch(vec![Box::pin(async { sleep(millis(1)) }), blocks, sets]);
    needs(millis(1));
    writer.write_all(b"x").unwrap();
    for task in tasks {
        block_on(task);
    }
}

fn the_first_of_a_batch_blocks_until_the_second_runs() {
    let (mut writer, tasks) = batch(block_and_set().into());
    writer.write_all(b"x").unwrap();
    for task in tasks {
        block_on(task);
    }
}

fn a_main_future_that_is_always_ready_asks_the_kernel() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let mut right = Async::new(right).unwrap();
    let writer = thread("writer", move || left.write_all(b"x").unwrap());
    let always = async {
        loop {
            yields(1).await;
        }
    };
    let read = async { right.read_exact(&mut [0]).await.unwrap() };
    block_on(future::or(read, always));
    join([writer]);
}

/// It never sleeps, and its local task waits for a byte.
fn a_thread_in_one_block_on_after_another_looks_around() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let said = Said::default();
    let reader = spawn_local({
        let said = said.clone();
        async move {
            Async::new(right).unwrap().read_exact(&mut [0]).await.unwrap();
            said.say();
        }
    });
    block_on(yields(1));
    left.write_all(b"x").unwrap();
    while !said.is_said() {
        block_on(async {});
    }
    block_on(reader);
}

/// It would wait for itself.
fn a_task_that_polls_in_a_circle_asks_the_kernel() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let mut right = Async::new(right).unwrap();
    left.write_all(b"x").unwrap();
    let circle = async move {
        right.read_exact(&mut [0]).await.unwrap();
        let mut buf = [0];
        let mut read = Box::pin(right.read_exact(&mut buf));
        once(&mut read).await;
        left.write_all(b"y").unwrap();
        while once(&mut read).await.is_none() {}
    };
    if perhaps() { block_on(circle) } else { block_on(spawn(circle)) }
}

fn a_driver_that_is_never_idle_takes_from_one_that_blocks() {
    let executor = Arc::new(Executor::new());
    let (stop, stopped) = oneshot::<()>();
    let other = thread("driver", {
        let executor = executor.clone();
        move || block_on(executor.run(stopped))
    });
    let said = Said::default();
    let busy = executor.spawn(said.clone().busy());
    let inner = executor.clone();
    let blocks = executor.spawn(async move {
        let flag = Flag::default();
        let other = flag.clone();
        let (task, wake, is_waiting) = waits(async move { other.set() });
        let task = inner.spawn(task);
        is_waiting.await;
        // It is to run next, and the only one in this driver's queues.
        wake.send(());
        flag.wait();
        task.await;
        said.say();
    });
    block_on(executor.run(future::zip(busy, blocks)));
    drop(stop);
    join([other]);
}

fn a_ticker_that_is_never_idle_takes_from_a_driver_that_blocks() {
    beside_a_driver_that_blocks(|executor| _ = executor.try_tick());
}

fn short_calls_of_run_that_are_never_idle_take_from_a_driver_that_blocks() {
    beside_a_driver_that_blocks(|executor| block_on(executor.run(yields(1))));
}

/// A task blocks its driver until the one that it has woken has run, which only the other driver
/// can: it does `one_step` again and again, and always has a task of its own to run.
fn beside_a_driver_that_blocks(one_step: impl Fn(&Executor<'static>)) {
    let executor = Arc::new(Executor::new());
    let said = Said::default();
    let (begin, begun) = oneshot();
    let inner = executor.clone();
    let blocks = executor.spawn({
        let said = said.clone();
        async move {
            let flag = Flag::default();
            let other = flag.clone();
            let (task, wake, is_waiting) = waits(async move { other.set() });
            let task = inner.spawn(task);
            is_waiting.await;
            wake.send(());
            begin.send(());
            flag.wait();
            task.await;
            said.say();
        }
    });
    let driver = thread("driver", {
        let executor = executor.clone();
        move || block_on(executor.run(blocks))
    });
    block_on(begun);
    let busy = executor.spawn(said.clone().busy());
    while !said.is_said() {
        one_step(&executor);
    }
    join([driver]);
    block_on(executor.run(busy));
}

fn a_driver_has_more_to_do_than_it_may_at_once() {
    let executor = Executor::new();
    let task = executor.spawn(yields(150));
    block_on(executor.run(task));
}

fn a_local_driver_has_more_to_do_than_it_may_at_once() {
    let executor = LocalExecutor::new();
    let task = executor.spawn(yields(150));
    block_on(executor.run(task));
}

fn a_driver_whose_main_futures_are_ready_runs_tasks_all_the_same() {
    let said = Said::default();
    let say = {
        let said = said.clone();
        async move { said.say() }
    };
    if perhaps() {
        let executor = Executor::new();
        executor.spawn(say).detach();
        while !said.is_said() {
            block_on(executor.run(async {}));
        }
    } else {
        let executor = LocalExecutor::new();
        executor.spawn(say).detach();
        while !said.is_said() {
            block_on(executor.run(async {}));
        }
    }
}
