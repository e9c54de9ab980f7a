//! Threads in `block_on`, ours and other people's: who asks the kernel, and who takes over when
//! one leaves.

use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Scenario, scenario};
use crate::smol::{Async, Task, Timer, block_on, future, prelude::*, spawn, timeout};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_main_future_is_woken_from_another_thread),
        scenario!(one_thread_waits_for_a_timer),
        scenario!(the_first_to_wait_for_a_timer_is_woken_by_something_else),
        scenario!(a_wait_goes_from_one_thread_to_another).steady_clock().may_be_late(2),
        scenario!(threads_in_block_on_leave_at_random).may_be_late(2),
        scenario!(threads_in_block_on_leave_at_random_beside_workers).may_be_late(2),
        scenario!(the_one_in_the_poller_leaves_and_blocks).needs_the_watcher(),
        scenario!(an_earlier_timer_is_set_while_a_thread_is_in_the_poller).may_be_late(2),
        scenario!(an_earlier_timer_is_set_by_a_task).may_be_late(2),
        scenario!(a_timer_is_set_anew_by_another_thread_than_the_one_that_waits).may_be_late(2),
        scenario!(a_foreign_block_on_waits_for_a_timer_and_a_socket).may_be_late(2),
        scenario!(a_foreign_block_on_is_alone),
        scenario!(a_foreign_block_on_waits_while_the_one_in_the_poller_leaves).may_be_late(2),
        scenario!(a_worker_in_the_poller_gets_news_and_tasks_at_the_same_time).may_be_late(2),
        scenario!(the_watcher_hands_its_seat_to_a_worker).may_be_late(2),
        scenario!(a_seat_is_left_while_a_worker_falls_asleep).may_be_late(2),
        scenario!(a_task_blocks_and_the_socket_is_still_heard).needs_the_watcher(),
    ]
}

/// The times are whole, so that a lateness is somebody's fault.
async fn sleep(ms: u64) {
    Timer::after(millis(ms)).await;
}

fn a_main_future_is_woken_from_another_thread() {
    for n in 0..4 {
        let (sender, receiver) = oneshot();
        let thread = thread("waker", move || sender.send(n));
        assert_eq!(block_on(receiver), Some(n));
        join([thread]);
    }
}

fn one_thread_waits_for_a_timer() {
    needs(millis(30));
    for _ in 0..3 {
        block_on(sleep(10));
    }
}

/// The poller is made for this wait.
fn the_first_to_wait_for_a_timer_is_woken_by_something_else() {
    let (sender, receiver) = oneshot();
    let waker = thread("waker", move || sender.send(()));
    block_on(future::or(
        async {
            receiver.await;
        },
        sleep(500),
    ));
    join([waker]);
}

/// Whoever has polled it last is woken.
fn a_wait_goes_from_one_thread_to_another() {
    needs(millis(3));
    let (mut left, right) = UnixStream::pair().unwrap();
    let right = Async::new(right).unwrap();
    let mut readable = Box::pin(async move { right.readable().await.unwrap() });
    let mut timer = Timer::after(millis(3));
    block_on(async {
        once(&mut readable).await;
        once(&mut timer).await;
    });
    let threads = [
        thread("reads", || block_on(readable)),
        thread("sleeps", || {
            block_on(timer);
        }),
    ];
    std::io::Write::write_all(&mut left, b"x").unwrap();
    join(threads);
}

/// Some wait for timers, some for a byte; each leaves when its own has come.
fn leave_at_random(with_tasks: bool) {
    needs(millis(20));
    let threads = (0..3).map(|n| {
        thread("main", move || {
            if with_tasks && perhaps() {
                block_on(spawn(async move { sleep(n + 1).await }));
            }
            let (mut left, mut right) = socket_pair();
            let until = Instant::now() + millis(5 + n * 3);
            let writer = thread("writer", move || {
                block_on(async {
                    Timer::at(until).await;
                    left.write_all(&[n as u8]).await.unwrap();
                });
            });
            let mut byte = [0];
            block_on(right.read_exact(&mut byte)).unwrap();
            assert_eq!(byte, [n as u8]);
            join([writer]);
        })
    });
    let threads: Vec<_> = threads.collect();
    block_on(sleep(20));
    join(threads);
}

fn threads_in_block_on_leave_at_random() {
    leave_at_random(false);
}

fn threads_in_block_on_leave_at_random_beside_workers() {
    leave_at_random(true);
}

fn the_one_in_the_poller_leaves_and_blocks() {
    needs(millis(5));
    let done = Flag::default();
    let other = thread("blocks", {
        let done = done.clone();
        move || {
            block_on(async {
                sleep(2).await;
                done.wait();
            });
        }
    });
    block_on(sleep(5));
    done.set();
    join([other]);
}

fn an_earlier_timer_is_set_while_a_thread_is_in_the_poller() {
    needs(millis(8));
    let long = thread("long", || {
        let began = Instant::now();
        let answer = block_on(timeout(millis(8), future::pending::<()>()));
        assert!(answer.is_err() && began.elapsed() >= millis(8));
    });
    let short = thread("short", || {
        let began = Instant::now();
        takes(millis(3), || block_on(sleep(3)));
        assert!(began.elapsed() >= millis(3));
    });
    join([short]);
    join([long]);
}

fn an_earlier_timer_is_set_by_a_task() {
    needs(millis(6));
    let long = spawn(async { sleep(6).await });
    let short = spawn(async {
        yields(2).await;
        sleep(2).await;
        on_a_worker();
    });
    takes(millis(2), || block_on(short));
    block_on(long);
}

fn a_timer_is_set_anew_by_another_thread_than_the_one_that_waits() {
    needs(millis(4));
    let timer = Arc::new(Mutex::new(Timer::after(millis(500))));
    let setter = thread("setter", {
        let timer = timer.clone();
        move || timer.lock().unwrap().set_after(millis(4))
    });
    block_on(future::poll_fn(|cx| pin!(&mut *timer.lock().unwrap()).poll(cx)));
    join([setter]);
}

fn a_foreign_block_on_waits_for_a_timer_and_a_socket() {
    needs(millis(4));
    let (mut left, mut right) = socket_pair();
    let writer = thread("writer", move || {
        foreign_block_on(async {
            sleep(4).await;
            left.write_all(b"x").await.unwrap();
        });
    });
    let mut byte = [0];
    foreign_block_on(right.read_exact(&mut byte)).unwrap();
    join([writer]);
}

fn a_foreign_block_on_is_alone() {
    needs(millis(7));
    for ms in [2, 1, 4] {
        takes(millis(ms), || foreign_block_on(sleep(ms)));
    }
}

fn a_foreign_block_on_waits_while_the_one_in_the_poller_leaves() {
    needs(millis(6));
    let ours = thread("ours", || block_on(sleep(3)));
    foreign_block_on(sleep(6));
    join([ours]);
}

fn a_worker_in_the_poller_gets_news_and_tasks_at_the_same_time() {
    let (mut left, mut right) = socket_pair();
    let reader = spawn(async move {
        for n in 0..3 {
            let mut byte = [0];
            right.read_exact(&mut byte).await.unwrap();
            on_a_worker();
            assert_eq!(byte, [n]);
        }
    });
    let others = thread("outside", || {
        for n in 0..2 {
            assert_eq!(block_on(spawn(async move { n })), n);
        }
    });
    for n in 0..3 {
        block_on(left.write_all(&[n])).unwrap();
    }
    block_on(reader);
    join([others]);
}

/// A task on the workers that answers each byte.
fn answering_task() -> (UnixStream, Task<()>, Vec<Receiver<u8>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (answers, answered): (Vec<_>, Vec<_>) = (0..4).map(|_| oneshot()).unzip();
    let task = spawn(async move {
        let mut theirs = Async::new(theirs).unwrap();
        for answer in answers {
            let mut byte = [0];
            theirs.read_exact(&mut byte).await.unwrap();
            on_a_worker();
            answer.send(byte[0]);
        }
    });
    (ours, task, answered)
}

fn the_watcher_hands_its_seat_to_a_worker() {
    needs(millis(2));
    // The watcher is there for this one.
    let foreign = thread("foreign", || foreign_block_on(sleep(2)));
    let (mut ours, task, answered) = answering_task();
    for (n, answer) in answered.into_iter().enumerate() {
        at_once(|| {
            std::io::Write::write_all(&mut ours, &[n as u8]).unwrap();
            assert_eq!(block_on(answer), Some(n as u8));
            block_on(spawn(async {}));
        });
    }
    block_on(task);
    join([foreign]);
}

fn a_seat_is_left_while_a_worker_falls_asleep() {
    let (mut ours, task, answered) = answering_task();
    let others: Vec<_> = (0..2)
        .map(|_| {
            thread("other", || {
                let (mut left, mut right) = socket_pair();
                at_once(|| {
                    for _ in 0..2 {
                        block_on(left.write_all(b"x")).unwrap();
                        block_on(right.read_exact(&mut [0])).unwrap();
                    }
                });
            })
        })
        .collect();
    for (n, answer) in answered.into_iter().enumerate() {
        at_once(|| {
            std::io::Write::write_all(&mut ours, &[n as u8]).unwrap();
            assert_eq!(block_on(answer), Some(n as u8));
        });
    }
    block_on(task);
    join(others);
}

fn a_task_blocks_and_the_socket_is_still_heard() {
    let (mut left, mut right) = socket_pair();
    let flag = Flag::default();
    let blocked = spawn({
        let flag = flag.clone();
        async move { flag.wait() }
    });
    let reader = spawn(async move {
        let mut byte = [0];
        right.read_exact(&mut byte).await.unwrap();
        flag.set();
    });
    block_on(left.write_all(b"x")).unwrap();
    block_on(reader);
    block_on(blocked);
}
