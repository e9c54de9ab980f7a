//! Tasks on the workers: who polls them, and that no wake-up is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Scenario, scenario};
use crate::smol::{self, Timer, block_on, spawn};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(the_very_first_spawn_of_a_process_runs_on_a_worker),
        scenario!(the_very_first_spawn_happens_beside_a_thread_in_block_on),
        scenario!(two_threads_make_the_first_spawn_at_the_same_time),
        scenario!(tasks_are_spawned_from_outside_and_joined_again_and_again),
        scenario!(one_message_at_a_time_goes_to_a_task_on_the_workers),
        scenario!(foreign_threads_wake_tasks_while_workers_fall_asleep),
        scenario!(tasks_play_ping_pong),
        scenario!(tasks_that_yield_share_with_those_from_outside),
        scenario!(a_task_spawns_more_than_its_worker_can_do),
        scenario!(tasks_are_cancelled_while_they_are_woken),
        scenario!(a_task_blocks_until_another_one_runs).needs_the_watcher(),
        scenario!(the_very_first_task_blocks_and_nobody_is_in_block_on).needs_the_watcher(),
        scenario!(a_task_blocks_until_the_one_behind_it_runs).processors(2, 3),
        scenario!(a_task_blocks_until_the_one_it_has_woken_runs).needs_the_watcher(),
        scenario!(a_task_blocks_in_block_on_until_another_one_runs),
        scenario!(a_task_hears_in_block_on_for_another_one_and_then_blocks).processors(1, 1),
        scenario!(a_task_blocks_in_block_on_until_the_one_it_has_woken_runs),
        scenario!(a_queue_overflows).processors(2, 3).steps(200_000).one_in(10),
    ]
}

fn the_very_first_spawn_of_a_process_runs_on_a_worker() {
    let task = spawn(async {
        on_a_worker();
        7
    });
    assert_eq!(block_on(task), 7);
}

fn the_very_first_spawn_happens_beside_a_thread_in_block_on() {
    let other = thread("other", || block_on(yields(6)));
    let task = spawn(async { on_a_worker() });
    block_on(task);
    join([other]);
}

fn two_threads_make_the_first_spawn_at_the_same_time() {
    let threads = [0, 1].map(|n| {
        thread("other", move || {
            let task = spawn(async move {
                on_a_worker();
                n
            });
            assert_eq!(block_on(task), n);
        })
    });
    join(threads);
}

fn tasks_are_spawned_from_outside_and_joined_again_and_again() {
    let tally = Tally::default();
    for n in 0..6 {
        let counted = tally.begin();
        let task = spawn(async move {
            on_a_worker();
            drop(counted);
            n
        });
        assert_eq!(block_on(task), n);
    }
    tally.all_have_ended(6);
}

fn one_message_at_a_time_goes_to_a_task_on_the_workers() {
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    let (mut answers, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (sender, receiver) = oneshot();
        senders.push(sender);
        receivers.push(receiver);
        let (sender, receiver) = oneshot();
        answers.push(sender);
        answered.push(receiver);
    }
    let task = spawn(async move {
        for (receiver, answer) in receivers.into_iter().zip(answers) {
            let n: usize = receiver.await.unwrap();
            on_a_worker();
            answer.send(n);
        }
    });
    for (n, (sender, answer)) in senders.into_iter().zip(answered).enumerate() {
        sender.send(n);
        assert_eq!(block_on(answer), Some(n));
    }
    block_on(task);
}

fn foreign_threads_wake_tasks_while_workers_fall_asleep() {
    let mut tasks = Vec::new();
    let mut threads = Vec::new();
    for n in 0..4 {
        let (sender, receiver) = oneshot();
        tasks.push(spawn(async move {
            let got = receiver.await;
            on_a_worker();
            got
        }));
        threads.push(thread("waker", move || sender.send(n)));
    }
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(block_on(task), Some(n));
    }
    join(threads);
}

fn tasks_play_ping_pong() {
    let mut there = Vec::new();
    let mut back = Vec::new();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (sender, receiver) = oneshot::<usize>();
        there.push(sender);
        second.push(receiver);
        let (sender, receiver) = oneshot::<usize>();
        back.push(sender);
        first.push(receiver);
    }
    let ping = spawn(async move {
        for (n, (there, back)) in there.into_iter().zip(first).enumerate() {
            there.send(n);
            assert_eq!(back.await, Some(n));
            on_a_worker();
        }
    });
    let pong = spawn(async move {
        for (there, back) in second.into_iter().zip(back) {
            let n = there.await.unwrap();
            back.send(n);
        }
    });
    block_on(ping);
    block_on(pong);
}

fn tasks_that_yield_share_with_those_from_outside() {
    let yielding: Vec<_> = (0..3).map(|_| spawn(yields(20))).collect();
    let outside = thread("outside", || {
        for n in 0..3 {
            assert_eq!(block_on(spawn(async move { n })), n);
        }
    });
    for task in yielding {
        block_on(task);
    }
    join([outside]);
}

fn a_task_spawns_more_than_its_worker_can_do() {
    let tally = Tally::default();
    let inner = tally.clone();
    let outer = spawn(async move {
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let counted = inner.begin();
                spawn(async move {
                    on_a_worker();
                    yields(n % 3).await;
                    drop(counted);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
    });
    block_on(outer);
    tally.all_have_ended(8);
}

fn tasks_are_cancelled_while_they_are_woken() {
    let tally = Tally::default();
    let mut threads = Vec::new();
    for n in 0..4 {
        let (sender, receiver) = oneshot();
        let counted = tally.begin();
        let task = spawn(async move {
            let got = receiver.await;
            drop(counted);
            got
        });
        threads.push(thread("waker", move || {
            sender.send(n);
        }));
        threads.push(thread("canceller", move || {
            if let Some(got) = block_on(task.cancel()) {
                assert_eq!(got, Some(n));
            }
        }));
    }
    join(threads);
    tally.all_have_ended(4);
}

fn a_task_blocks_until_another_one_runs() {
    let flag = Flag::default();
    let other = flag.clone();
    let blocked = spawn(async move {
        let other = spawn(async move { other.set() });
        flag.wait();
        other.await;
    });
    block_on(blocked);
}

/// Nothing else happens that could set the watcher's alarm.
pub(super) fn the_very_first_task_blocks_and_nobody_is_in_block_on() {
    let done = Flag::default();
    spawn({
        let done = done.clone();
        async move {
            let other = spawn({
                let done = done.clone();
                async move { done.set() }
            });
            done.wait();
            other.await;
        }
    })
    .detach();
    done.wait();
}

/// Both come from outside, and whoever takes the first sees to it that there is somebody for the
/// second.
fn a_task_blocks_until_the_one_behind_it_runs() {
    for _ in 0..2 {
        let flag = Flag::default();
        let first = spawn({
            let flag = flag.clone();
            async move { flag.wait() }
        });
        let second = spawn(async move { flag.set() });
        block_on(first);
        block_on(second);
    }
}

fn a_task_blocks_until_the_one_it_has_woken_runs() {
    block_on(spawn(async {
        let flag = Flag::default();
        let other = flag.clone();
        let (other, wake, is_waiting) = waits(async move { other.set() });
        let other = spawn(other);
        is_waiting.await;
        wake.send(());
        flag.wait();
        other.await;
    }));
}

fn a_task_blocks_in_block_on_until_the_one_it_has_woken_runs() {
    block_on(spawn(async {
        let (other, wake, is_waiting) = waits(async { on_a_worker() });
        let other = spawn(other);
        is_waiting.await;
        wake.send(());
        block_on(other);
    }));
}

fn a_task_blocks_in_block_on_until_another_one_runs() {
    let blocked = spawn(async {
        block_on(spawn(async {
            on_a_worker();
            block_on(spawn(async { on_a_worker() }));
        }));
    });
    block_on(blocked);
}

/// What it wakes in the poller is not left in its worker's queue.
fn a_task_hears_in_block_on_for_another_one_and_then_blocks() {
    needs(millis(1));
    let flag = Flag::default();
    let blocks = spawn(async move {
        let sets = spawn({
            let flag = flag.clone();
            async move {
                Timer::after(millis(1)).await;
                flag.set();
            }
        });
        yields(3).await;
        block_on(Timer::after(millis(1)));
        flag.wait();
        sets.await;
    });
    block_on(blocks);
}

fn a_queue_overflows() {
    let ran = Arc::new(AtomicUsize::new(0));
    let tasks = {
        let ran = ran.clone();
        spawn(async move {
            let tasks: Vec<_> = (0..300)
                .map(|_| {
                    let ran = ran.clone();
                    spawn(async move { ran.fetch_add(1, Ordering::SeqCst) })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        })
    };
    block_on(tasks);
    assert_eq!(ran.load(Ordering::SeqCst), 300);
    let _ = smol::io::ErrorKind::Other;
}
