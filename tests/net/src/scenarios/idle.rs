//! Who sleeps, who is relied on, and what makes the watcher look: what the proofs of idleness
//! promise, beside threads that block for long.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Scenario, scenario};
use crate::smol::{Async, Executor, Timer, block_on, future, prelude::*, spawn, spawn_local};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_worker_that_blocks_for_good_makes_no_ticks).needs_the_watcher(),
        scenario!(a_ticket_comes_while_all_is_quiet).needs_the_watcher(),
        scenario!(a_ticket_comes_when_all_becomes_quiet).processors(1, 2).needs_the_watcher(),
        scenario!(a_task_blocks_while_the_watcher_sits).processors(1, 2),
        scenario!(a_worker_goes_on_while_all_is_quiet_and_blocks_again).needs_the_watcher(),
        scenario!(news_come_while_all_is_quiet_after_a_waker_that_blocks).may_be_late(30),
        scenario!(a_message_now_and_then_does_not_wake_the_watcher).steady_clock(),
        scenario!(a_task_blocks_and_there_is_no_timer_descriptor).needs_the_watcher(),
        scenario!(a_foreign_block_on_waits_and_there_is_no_timer_descriptor).may_be_late(2),
        scenario!(the_watcher_gets_out_of_the_way_of_messages).steady_clock(),
        scenario!(a_busy_worker_hears_of_messages_without_the_watcher)
            .processors(1, 1)
            .steady_clock(),
        scenario!(a_foreign_block_on_is_beside_workers_that_block).may_be_late(2),
        scenario!(threads_hand_the_seat_over_without_a_watcher).may_be_late(2),
        scenario!(the_one_in_the_poller_leaves_and_blocks_without_a_watcher).may_be_late(2),
        scenario!(two_foreign_threads_wait_without_a_watcher).may_be_late(15),
        scenario!(a_watcher_cannot_be_started_at_first).starts(2, 2).may_be_late(15),
        scenario!(two_executors_wait_for_each_other).may_be_late(2),
        scenario!(a_thread_leaves_block_on_with_a_timer_for_another).may_be_late(2),
        scenario!(a_stranded_ticket_comes_while_a_thread_is_in_the_poller).may_be_late(2),
        scenario!(a_local_task_of_a_worker_blocks_until_another_task_runs).processors(2, 3),
        scenario!(a_waker_blocks_until_a_task_runs).processors(2, 3),
    ]
}

/// A task that blocks its worker and is never heard of again.
fn block_a_worker() {
    let (begin, begun) = oneshot();
    spawn(async move {
        begin.send(());
        Flag::default().wait();
    })
    .detach();
    block_on(begun);
}

fn a_worker_that_blocks_for_good_makes_no_ticks() {
    block_a_worker();
    block_on(spawn(async {}));
}

/// Who brings it does nothing else that the runtime could notice.
fn a_ticket_comes_while_all_is_quiet() {
    needs(millis(40));
    block_a_worker();
    sleep(millis(40));
    let done = Flag::default();
    spawn({
        let done = done.clone();
        async move { done.set() }
    })
    .detach();
    done.wait();
}

/// At the very moment when the watcher stops its alarm, or sits down without a limit.
fn a_ticket_comes_when_all_becomes_quiet() {
    needs(millis(16));
    let foreign = perhaps().then(|| {
        needs(millis(64));
        thread("foreign", || foreign_block_on(Timer::after(millis(80))))
    });
    block_a_worker();
    sleep(millis(4 * (1 + random(4))));
    let done = Flag::default();
    spawn({
        let done = done.clone();
        async move { done.set() }
    })
    .detach();
    takes(millis(15), || done.wait());
    join(foreign);
}

/// It sits without a limit, since nobody could need it.
fn a_task_blocks_while_the_watcher_sits() {
    needs(millis(80));
    let foreign = thread("foreign", || foreign_block_on(Timer::after(millis(80))));
    sleep(millis(20));
    let done = Flag::default();
    spawn({
        let done = done.clone();
        async move {
            let flag = Flag::default();
            let other = spawn({
                let flag = flag.clone();
                async move { flag.set() }
            });
            flag.wait();
            other.await;
            done.set();
        }
    })
    .detach();
    takes(millis(15), || done.wait());
    join([foreign]);
}

/// It puts a ticket into its own queue, and nobody else looks there.
fn a_worker_goes_on_while_all_is_quiet_and_blocks_again() {
    needs(millis(40));
    let (first, done) = (Flag::default(), Flag::default());
    spawn({
        let (first, done) = (first.clone(), done.clone());
        async move {
            first.wait();
            let second = Flag::default();
            let other = spawn({
                let second = second.clone();
                async move { second.set() }
            });
            second.wait();
            other.await;
            done.set();
        }
    })
    .detach();
    sleep(millis(40));
    first.set();
    done.wait();
}

/// A waker that blocks whoever calls it.
struct Blocks(Flag);

impl Wake for Blocks {
    fn wake(self: Arc<Self>) {
        self.0.wait();
    }
}

/// Polls something once, with a waker that blocks.
fn wait_with_a_waker_that_blocks<T>(flag: &Flag, future: Pin<&mut impl Future<Output = T>>) {
    let waker = Waker::from(Arc::new(Blocks(flag.clone())));
    assert!(future.poll(&mut Context::from_waker(&waker)).is_pending());
}

/// Both are in the queue of the worker that was blocked, and the first waits for the second.
fn news_come_while_all_is_quiet_after_a_waker_that_blocks() {
    needs(millis(40));
    let (mut left, right) = UnixStream::pair().unwrap();
    let right = Arc::new(Async::new(right).unwrap());
    // A batch that costs nothing.
    let (begin, blocked) = (Flag::default(), Flag::default());
    let mut readable = Box::pin(right.readable());
    wait_with_a_waker_that_blocks(&begin, readable.as_mut());
    let waiters = [0, 1].map(|n| {
        let (right, blocked) = (right.clone(), blocked.clone());
        spawn(async move {
            right.readable().await.unwrap();
            match n {
                0 => blocked.wait(),
                _ => blocked.set(),
            }
        })
    });
    block_on(yields(5));
    left.write_all(b"x").unwrap();
    sleep(millis(40));
    begin.set();
    for waiter in waiters {
        block_on(waiter);
    }
}

/// The worker in the poller may come back twice for one message, and then the alarm is left to
/// ring; but not each time.
fn a_message_now_and_then_does_not_wake_the_watcher() {
    const MESSAGES: u8 = 8;
    let (mut left, right) = UnixStream::pair().unwrap();
    let reader = spawn(async move {
        let mut right = Async::new(right).unwrap();
        for n in 0..MESSAGES {
            let mut byte = [0];
            right.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, [n]);
        }
    });
    let mut before = 0;
    for n in 0..MESSAGES {
        needs(millis(30));
        sleep(millis(30));
        if n == 2 {
            before = wakes_of("smol-watch");
        }
        left.write_all(&[n]).unwrap();
    }
    let wakes = wakes_of("smol-watch") - before;
    // Six messages are counted: four or five happen, once in 25,000 schedules.
    assert!(wakes <= 5 || time_means_nothing(), "the watcher woke up {wakes} times");
    block_on(reader);
}

/// The watcher parks, and its alarm unparks it.
fn a_task_blocks_and_there_is_no_timer_descriptor() {
    sim::clocks::forbid();
    super::tasks::the_very_first_task_blocks_and_nobody_is_in_block_on();
}

fn a_foreign_block_on_waits_and_there_is_no_timer_descriptor() {
    sim::clocks::forbid();
    needs(millis(6));
    for ms in [2, 1, 3] {
        takes(millis(ms), || foreign_block_on(Timer::after(millis(ms))));
    }
}

/// It sits for a foreign executor, and leaves the seat to the worker for which the messages are.
fn the_watcher_gets_out_of_the_way_of_messages() {
    const MESSAGES: u64 = 8;
    needs(millis(10 + 30 * MESSAGES));
    let foreign = thread("foreign", || foreign_block_on(Timer::after(millis(10 + 30 * MESSAGES))));
    sleep(millis(10));
    let (mut left, right) = UnixStream::pair().unwrap();
    spawn(async move {
        let mut right = Async::new(right).unwrap();
        while right.read(&mut [0]).await.unwrap() > 0 {}
    })
    .detach();
    let mut before = 0;
    for n in 0..MESSAGES {
        sleep(millis(30));
        if n == 2 {
            before = wakes_of("smol-watch");
        }
        left.write_all(b"x").unwrap();
    }
    // It may have to help once more, if a thread is held up. In the way, it wakes up twelve times.
    let wakes = wakes_of("smol-watch") - before;
    assert!(wakes <= 6 || time_means_nothing(), "the watcher woke up {wakes} times");
    join([foreign]);
}

/// The watcher only ticks, since it sees that somebody asks the kernel often enough.
fn a_busy_worker_hears_of_messages_without_the_watcher() {
    needs(millis(24));
    let (mut left, right) = UnixStream::pair().unwrap();
    let reader = spawn(async move {
        let mut right = Async::new(right).unwrap();
        while right.read(&mut [0]).await.unwrap() > 0 {}
    });
    let busy = spawn(async {
        for _ in 0..480 {
            sleep(Duration::from_micros(50));
            yields(1).await;
        }
    });
    for _ in 0..20 {
        sleep(millis(1));
        left.write_all(b"x").unwrap();
    }
    let wakes = wakes_of("smol-watch");
    assert!(wakes <= 14 || time_means_nothing(), "the watcher woke up {wakes} times");
    drop(left);
    block_on(busy);
    block_on(reader);
}

fn a_foreign_block_on_is_beside_workers_that_block() {
    block_a_worker();
    needs(millis(3));
    takes(millis(3), || {
        foreign_block_on(Timer::after(millis(3)));
    });
    let (mut left, mut right) = socket_pair();
    at_once(|| {
        foreign_block_on(left.write_all(b"x")).unwrap();
        foreign_block_on(right.read_exact(&mut [0])).unwrap();
    });
}

fn threads_hand_the_seat_over_without_a_watcher() {
    set_starts(0, ALL);
    needs(millis(6));
    let threads: Vec<_> = [2, 4, 6]
        .map(|ms| {
            thread("main", move || {
                let (left, mut right) = UnixStream::pair().unwrap();
                let mut left = Async::new(left).unwrap();
                let writer = thread("writer", move || {
                    sleep(millis(ms));
                    right.write_all(b"x").unwrap();
                });
                block_on(left.read_exact(&mut [0])).unwrap();
                join([writer]);
            })
        })
        .into();
    join(threads);
}

fn the_one_in_the_poller_leaves_and_blocks_without_a_watcher() {
    set_starts(0, ALL);
    needs(millis(5));
    let done = Flag::default();
    let other = thread("blocks", {
        let done = done.clone();
        move || {
            block_on(async {
                Timer::after(millis(2)).await;
                done.wait();
            });
        }
    });
    block_on(Timer::after(millis(5)));
    done.set();
    join([other]);
}

fn two_foreign_threads_wait_without_a_watcher() {
    set_starts(0, ALL);
    needs(millis(4));
    let threads = [2, 4].map(|ms| {
        thread("foreign", move || {
            foreign_block_on(Timer::after(millis(ms)));
        })
    });
    join(threads);
}

fn a_watcher_cannot_be_started_at_first() {
    needs(millis(4));
    let foreign = thread("foreign", || {
        foreign_block_on(Timer::after(millis(4)));
    });
    let ours = thread("ours", || {
        block_on(Timer::after(millis(3)));
    });
    block_on(Timer::after(millis(2)));
    join([foreign, ours]);
}

fn two_executors_wait_for_each_other() {
    needs(millis(2));
    let [left, right] = [0, 1].map(|_| Arc::new(Executor::new()));
    let (stop, stopped) = oneshot::<()>();
    let driver = thread("driver", {
        let right = right.clone();
        move || block_on(right.run(stopped))
    });
    let inner = right.clone();
    let task = left.spawn(async move {
        let mut sum = 0;
        for n in 0..3 {
            sum += inner.spawn(async move { spawn(async move { n }).await }).await;
        }
        inner.spawn(async { Timer::after(millis(2)).await }).await;
        sum
    });
    assert_eq!(block_on(left.run(task)), 3);
    stop.send(());
    join([driver]);
}

/// Who polls the timer is not who waits for it.
fn a_thread_leaves_block_on_with_a_timer_for_another() {
    needs(millis(4));
    let until = Instant::now() + millis(4);
    let (sender, receiver) = oneshot::<Waker>();
    let done = Flag::default();
    let other = thread("other", {
        let done = done.clone();
        move || {
            let mut timer = Timer::at(until);
            block_on(async {
                let waker = receiver.await.unwrap();
                if pin!(&mut timer).poll(&mut Context::from_waker(&waker)).is_ready() {
                    waker.wake();
                }
                if perhaps() {
                    done.wait();
                }
            });
            done.wait();
        }
    });
    let mut sender = Some(sender);
    block_on(future::poll_fn(|cx| {
        if let Some(sender) = sender.take() {
            sender.send(cx.waker().clone());
        }
        if Instant::now() < until { Poll::Pending } else { Poll::Ready(()) }
    }));
    done.set();
    join([other]);
}

fn a_stranded_ticket_comes_while_a_thread_is_in_the_poller() {
    set_starts(0, ALL);
    needs(millis(2));
    let (sender, receiver) = oneshot();
    let waker = thread("waker", move || {
        sleep(millis(2));
        sender.send(1);
    });
    block_on(async {
        let task = spawn(receiver);
        let task = async { assert_eq!(task.await, Some(1)) };
        let limit = async {
            Timer::after(millis(500)).await;
        };
        future::or(task, limit).await;
    });
    join([waker]);
}

fn a_local_task_of_a_worker_blocks_until_another_task_runs() {
    let flag = Flag::default();
    let (sender, receiver) = oneshot();
    let (ready, is_ready) = oneshot();
    let outer = spawn({
        let flag = flag.clone();
        async move {
            let local = spawn_local(async move {
                ready.send(());
                receiver.await;
                flag.wait();
            });
            local.await;
        }
    });
    block_on(is_ready);
    sender.send(());
    block_on(spawn(async move { flag.set() }));
    block_on(outer);
}

fn a_waker_blocks_until_a_task_runs() {
    let flag = Flag::default();
    let (mut left, right) = UnixStream::pair().unwrap();
    let right = Async::new(right).unwrap();
    block_on(spawn(async {}));
    let mut readable = Box::pin(right.readable());
    wait_with_a_waker_that_blocks(&flag, readable.as_mut());
    let writer = thread("writer", move || {
        left.write_all(b"x").unwrap();
        left
    });
    block_on(spawn(async move { flag.set() }));
    join([writer]);
}
