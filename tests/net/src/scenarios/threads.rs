//! Threads: those that cannot be started, those that are too many, and a process that forks.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{self, Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Instant;

use super::{Scenario, scenario};
use crate::smol::prelude::*;
use crate::smol::{Async, Timer, block_on, future, spawn, spawn_local, unblock};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(no_thread_can_be_started),
        scenario!(no_thread_can_be_started_and_two_are_in_block_on),
        scenario!(the_nth_thread_cannot_be_started).starts(3, 3).may_be_late(1010),
        scenario!(the_nth_thread_cannot_be_started_and_timers_fire).starts(3, 3).may_be_late(1010),
        scenario!(tasks_are_queued_while_a_start_fails).starts(2, 2).may_be_late(1010),
        scenario!(a_task_that_no_thread_can_run_waits_at_rest).may_be_late(2),
        scenario!(a_task_is_spawned_where_no_thread_can_run_it),
        scenario!(a_thread_cannot_be_started_and_the_next_ones_can).processors(2, 3),
        scenario!(a_stranded_ticket_wakes_who_sleeps_in_block_on),
        scenario!(whoever_is_called_to_stand_in_leaves_instead),
        scenario!(a_worker_that_was_blocked_blocks_again).needs_the_watcher(),
        scenario!(a_worker_blocks_and_no_other_can_be_started),
        scenario!(no_thread_can_be_started_and_the_main_future_is_never_idle),
        scenario!(a_task_waits_beside_a_worker_that_is_parked_and_there_is_no_watcher)
            .processors(2, 3)
            .steady_clock()
            .may_be_late(20),
        scenario!(the_only_worker_waits_for_a_task_and_nobody_else_is_there),
        scenario!(of_two_workers_that_are_never_idle_one_ends)
            .processors(1, 1)
            .steady_clock()
            .may_be_late(30),
        scenario!(what_the_watcher_has_moved_is_not_moved_for_ever)
            .processors(1, 1)
            .steady_clock()
            .may_be_late(1000),
        scenario!(a_worker_leaves_while_the_watcher_relieves_it).processors(1, 1).may_be_late(100),
        scenario!(a_worker_blocks_with_more_tasks_than_fit)
            .steps(200_000)
            .one_in(10)
            .may_be_late(12),
        scenario!(a_busy_worker_ends_while_the_other_one_falls_asleep)
            .processors(1, 1)
            .may_be_late(30),
        scenario!(a_worker_retires_beside_one_that_blocks),
        scenario!(a_worker_retires_from_the_poller_and_another_one_sits_down).processors(1, 2),
        scenario!(workers_block_and_return_while_tasks_arrive),
        scenario!(a_process_forks_and_the_child_is_told),
        scenario!(a_process_forks_and_the_child_polls_a_timer),
        scenario!(a_child_process_ends_while_two_wait_for_it),
        scenario!(a_child_process_is_read_and_killed),
        scenario!(the_handle_of_a_child_process_is_dropped),
        scenario!(the_handle_of_a_child_process_is_dropped_and_no_thread_can_be_started)
            .may_be_late(20),
        scenario!(a_child_process_without_a_pidfd_ends_while_two_wait_for_it),
        scenario!(the_handle_of_a_child_process_without_a_pidfd_is_dropped),
        scenario!(children_without_pidfds_leave_the_pool_to_others),
    ]
}

fn no_thread_can_be_started() {
    set_starts(0, ALL);
    for n in 0..3 {
        assert_eq!(block_on(spawn(async move { n })), n);
    }
    assert_eq!(block_on(unblock(|| 4)), 4);
}

fn no_thread_can_be_started_and_two_are_in_block_on() {
    set_starts(0, ALL);
    let (sender, receiver) = oneshot();
    let other = thread("other", move || {
        assert_eq!(block_on(spawn(receiver)), Some(1));
    });
    block_on(spawn(async move {
        yields(1).await;
        sender.send(1);
    }));
    join([other]);
}

fn the_nth_thread_cannot_be_started() {
    let (sender, receiver) = oneshot();
    let other = thread("other", move || {
        for n in 0..2 {
            assert_eq!(block_on(spawn(async move { n })), n);
        }
        assert_eq!(block_on(spawn(receiver)), Some(1));
    });
    let task = spawn(async move {
        spawn(yields(2)).await;
        sender.send(1);
    });
    block_on(task);
    join([other]);
}

fn the_nth_thread_cannot_be_started_and_timers_fire() {
    needs(millis(3));
    let other = thread("other", || block_on(spawn(async { Timer::after(millis(2)).await })));
    block_on(Timer::after(millis(3)));
    join([other]);
}

fn tasks_are_queued_while_a_start_fails() {
    let threads: Vec<_> = (0..3)
        .map(|n| {
            thread("spawner", move || {
                let task = spawn(async move {
                    spawn(async {}).await;
                    n
                });
                assert_eq!(block_on(task), n);
            })
        })
        .collect();
    join(threads);
}

/// There is a watcher, and no worker to be had: the ticket stays where it is, and nobody ticks
/// because of it.
fn a_task_that_no_thread_can_run_waits_at_rest() {
    needs(millis(1));
    set_starts(1, ALL);
    foreign_block_on(Timer::after(millis(1)));
    let (sender, receiver) = oneshot();
    let task = spawn(receiver);
    block_on(yields(2));
    let waker = thread("waker", move || sender.send(1));
    join([waker]);
    task.detach();
}

/// The worker that begins to wait is blocked at once: the parked one must sit down instead.
fn a_task_waits_beside_a_worker_that_is_parked_and_there_is_no_watcher() {
    set_starts(1, ALL);
    block_on(spawn(async {}));
    needs(millis(1100));
    sleep(millis(1100));
    set_starts(1, ALL);
    let meets = Flag::default();
    let first = spawn({
        let meets = meets.clone();
        async move { meets.wait() }
    });
    spawn(async move { meets.set() }).detach();
    block_on(first);

    let (mut left, right) = UnixStream::pair().unwrap();
    let done = Flag::default();
    spawn({
        let done = done.clone();
        async move {
            let mut right = Async::new(right).unwrap();
            let blocks = done.clone();
            spawn(async move { blocks.wait() }).detach();
            right.read_exact(&mut [0]).await.unwrap();
            done.set();
        }
    })
    .detach();
    needs(millis(5));
    sleep(millis(5));
    left.write_all(b"x").unwrap();
    done.wait();
}

fn no_thread_can_be_started_and_the_main_future_is_never_idle() {
    set_starts(0, ALL);
    let done = Flag::default();
    block_on(async {
        let task = spawn({
            let done = done.clone();
            async move { done.set() }
        });
        while !done.is_set() {
            future::yield_now().await;
        }
        task.await;
    });
}

/// Nobody is in `block_on`, but the worker itself: it runs what it waits for.
fn the_only_worker_waits_for_a_task_and_nobody_else_is_there() {
    set_starts(1, ALL);
    foreign_block_on(spawn(async {
        block_on(spawn(async {}));
        // A second one deep, and one that the task beneath it must wait for.
        block_on(spawn(async { block_on(spawn(yields(2))) }));
    }));
}

/// Nobody is in `block_on`.
fn a_task_is_spawned_where_no_thread_can_run_it() {
    set_starts(0, ALL);
    for _ in 0..2 {
        let done = Flag::default();
        spawn({
            let done = done.clone();
            async move { done.set() }
        })
        .detach();
        done.wait();
    }
}

/// One failure does not keep others away for long.
fn a_thread_cannot_be_started_and_the_next_ones_can() {
    set_starts(0, 1);
    block_on(spawn(async {}));
    let flag = Flag::default();
    let first = spawn({
        let flag = flag.clone();
        async move {
            on_a_worker();
            flag.wait();
        }
    });
    let second = spawn(async move { flag.set() });
    block_on(first);
    block_on(second);
}

/// Its waker is called by a thread that cannot stand in.
fn a_stranded_ticket_wakes_who_sleeps_in_block_on() {
    set_starts(0, ALL);
    let (sender, receiver) = oneshot();
    let task = spawn(receiver);
    let sleeper = thread("sleeper", || block_on(task));
    sender.send(3);
    assert_eq!(join([sleeper]), [Some(3)]);
}

/// The future of the thread that was called is woken as well.
fn whoever_is_called_to_stand_in_leaves_instead() {
    set_starts(0, ALL);
    let (sender, receiver) = oneshot();
    let (leave, left) = oneshot();
    let task = spawn(receiver);
    let sleeper = thread("sleeper", || assert_eq!(block_on(task), Some(3)));
    let leaver = thread("leaver", || assert_eq!(block_on(left), Some(())));
    leave.send(());
    sender.send(3);
    join([sleeper, leaver]);
}

/// In `block_on`, and then without telling anybody.
fn a_worker_that_was_blocked_blocks_again() {
    let task = spawn(async {
        block_on(spawn(async {}));
        let flag = Flag::default();
        let other = spawn({
            let flag = flag.clone();
            async move { flag.set() }
        });
        flag.wait();
        other.await;
    });
    block_on(task);
}

/// The other one is in its queue, and whoever is in `block_on` can stand in.
fn a_worker_blocks_and_no_other_can_be_started() {
    set_starts(1, ALL);
    block_on(spawn(async { block_on(spawn(async {})) }));
}

/// Polls that take a while each.
async fn busy(polls: u64) {
    for _ in 0..polls {
        sleep(millis(1));
        yields(1).await;
    }
}

fn workers() -> usize {
    alive("smol-") - alive("smol-watch")
}

/// One was blocked for so long that the other was started.
fn of_two_workers_that_are_never_idle_one_ends() {
    needs(millis(100));
    let flag = Flag::default();
    let first = spawn(async move {
        let second = spawn({
            let flag = flag.clone();
            async move {
                flag.set();
                busy(60).await;
            }
        });
        flag.wait();
        busy(30).await;
        assert!(workers() == 1 || time_means_nothing(), "there are two of them");
        second.await;
    });
    block_on(first);
}

/// Each task looks stuck to the watcher, and what is queued behind it goes to the overflow.
fn what_the_watcher_has_moved_is_not_moved_for_ever() {
    let done = Flag::default();
    let busy: Vec<_> = (0..5)
        .map(|_| {
            let done = done.clone();
            spawn(async move {
                while !done.is_set() {
                    sleep(millis(10));
                    yields(1).await;
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let start = Instant::now();
        block_on(spawn(yields(2)));
        let took = start.elapsed();
        assert!(took < millis(400) || time_means_nothing(), "{took:?}");
    }
    done.set();
    busy.into_iter().for_each(block_on);
}

/// Its tasks go to the other one, also those that the watcher has in its hands.
fn a_worker_leaves_while_the_watcher_relieves_it() {
    needs(millis(400));
    let flag = Flag::default();
    let first = spawn(async move {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let flag = flag.clone();
                spawn(async move {
                    flag.set();
                    for _ in 0..5 {
                        sleep(millis(4 + 4 * random(2)));
                        yields(1).await;
                    }
                })
            })
            .collect();
        // Until there is a second worker.
        flag.wait();
        for task in tasks {
            task.await;
        }
    });
    block_on(first);
}

/// The others are in its queue, and beside it.
fn a_worker_blocks_with_more_tasks_than_fit() {
    let flag = Flag::default();
    let blocks = spawn(async move {
        let left = Arc::new(AtomicUsize::new(300));
        for _ in 0..300 {
            let (flag, left) = (flag.clone(), left.clone());
            let count = async move {
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    flag.set();
                }
            };
            spawn(count).detach();
        }
        flag.wait();
    });
    block_on(blocks);
}

/// The other one may fall asleep at that moment, and gets the tasks of this one.
fn a_busy_worker_ends_while_the_other_one_falls_asleep() {
    needs(millis(40));
    let flag = Flag::default();
    let first = spawn(async move {
        let second = spawn({
            let flag = flag.clone();
            async move {
                flag.set();
                busy(random(20)).await;
            }
        });
        flag.wait();
        busy(40).await;
        second.await;
    });
    block_on(first);
    let done = Flag::default();
    spawn({
        let done = done.clone();
        async move { done.set() }
    })
    .detach();
    done.wait();
    at_rest(|| assert_eq!(workers(), 1));
}

fn a_worker_retires_beside_one_that_blocks() {
    for _ in 0..2 {
        // A spare worker comes while this one is blocked, and is one too many afterwards.
        let outer = spawn(async {
            block_on(spawn(async {
                on_a_worker();
            }));
        });
        block_on(outer);
        let again = thread("again", || {
            block_on(spawn(async { block_on(spawn(async {})) }));
        });
        block_on(spawn(async {}));
        join([again]);
    }
}

/// There are too many of them, and nobody but a worker hears the bytes.
fn a_worker_retires_from_the_poller_and_another_one_sits_down() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let (answers, answered): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot()).unzip();
    spawn(async move {
        let mut right = Async::new(right).unwrap();
        for answer in answers {
            right.read_exact(&mut [0]).await.unwrap();
            answer.send(());
        }
    })
    .detach();
    for answer in answered {
        let blocks = || spawn(async { block_on(spawn(async {})) });
        foreign_block_on(future::zip(blocks(), blocks()));
        left.write_all(b"x").unwrap();
        foreign_block_on(answer);
    }
}

fn workers_block_and_return_while_tasks_arrive() {
    let blocking: Vec<_> = (0..3)
        .map(|n| {
            spawn(async move {
                let task = spawn(async move {
                    yields(1).await;
                    n
                });
                assert_eq!(block_on(task), n);
            })
        })
        .collect();
    let outside = thread("outside", || {
        for n in 0..3 {
            assert_eq!(block_on(spawn(async move { n })), n);
        }
    });
    for task in blocking {
        block_on(task);
    }
    join([outside]);
}

fn a_process_forks_and_the_child_is_told() {
    fork_and_try(|| match random(2) {
        0 => block_on(spawn(async {})),
        _ => block_on(unblock(|| ())),
    });
}

fn a_process_forks_and_the_child_polls_a_timer() {
    fork_and_try(|| {
        // Longer than the clock may jump.
        block_on(Timer::after(millis(1000)));
    });
}

fn fork_and_try(attempt: fn()) {
    block_on(spawn(async {}));
    let local = spawn_local(async { 1 });
    if perhaps() {
        block_on(unblock(|| ()));
    }
    let good = fork(|| {
        expect_panics(true);
        let told = std::panic::catch_unwind(attempt);
        expect_panics(false);
        let payload = told.expect_err("the child of a fork can use the runtime");
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or(payload.downcast_ref::<String>().map(String::as_str));
        let text = text.expect("it says why");
        assert!(text.contains("fork"), "{text}");
    });
    assert!(good, "the child of the fork has failed");
    // The parent goes on.
    assert_eq!(block_on(local), 1);
    block_on(spawn(async {}));
}

/// A child that ends when its standard input does, and then says so.
fn command() -> Command {
    let mut command = Command::new("simulated");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.runs(|stdin, stdout| {
        let mut byte = [0; 8];
        let stdin = stdin.unwrap();
        while rustix::io::read(&stdin, &mut byte).unwrap() > 0 {}
        // Nobody may be there to read it.
        let _ = rustix::io::write(stdout.unwrap(), b"end");
        3
    });
    command
}

fn a_child_process_ends_while_two_wait_for_it() {
    let child = Async::<Child>::spawn(&mut command()).unwrap();
    let other = spawn({
        let child = child.clone();
        async move { child.status().await.unwrap().code() }
    });
    assert_eq!(block_on(child.status()).unwrap().code(), Some(3));
    assert_eq!(block_on(other), Some(3));
    assert_eq!(process::zombies_and_orphans(), (0, 0));
}

fn a_child_process_is_read_and_killed() {
    let child = Async::<Child>::spawn(&mut command()).unwrap();
    let killer = thread("killer", {
        let child = child.clone();
        move || {
            let _ = child.kill();
        }
    });
    let mut output = Vec::new();
    drop(child.take_stdin());
    let mut stdout = child.take_stdout().unwrap();
    block_on(stdout.read_to_end(&mut output)).unwrap();
    assert_eq!(output, b"end");
    block_on(child.status()).unwrap();
    join([killer]);
    assert_eq!(process::zombies_and_orphans(), (0, 0));
}

fn the_handle_of_a_child_process_is_dropped() {
    let child = Async::<Child>::spawn(&mut command()).unwrap();
    if perhaps() {
        block_on(async { once(&mut Box::pin(child.status())).await });
    }
    drop(child);
    at_rest(|| assert_eq!(process::zombies_and_orphans(), (0, 0)));
}

/// Whoever is in `block_on` looks at it now and then.
fn the_handle_of_a_child_process_is_dropped_and_no_thread_can_be_started() {
    needs(millis(1200));
    set_starts(0, ALL);
    let child = Async::<Child>::spawn(&mut command()).unwrap();
    drop(child);
    for _ in 0..2 {
        block_on(Timer::after(millis(600)));
    }
    assert_eq!(process::zombies_and_orphans(), (0, 0));
}

fn a_child_process_without_a_pidfd_ends_while_two_wait_for_it() {
    process::without_pidfds();
    a_child_process_ends_while_two_wait_for_it();
}

fn the_handle_of_a_child_process_without_a_pidfd_is_dropped() {
    process::without_pidfds();
    the_handle_of_a_child_process_is_dropped();
}

fn children_without_pidfds_leave_the_pool_to_others() {
    process::without_pidfds();
    std::env::set("BLOCKING_MAX_THREADS", "2");
    let children: Vec<_> = (0..3).map(|_| Async::<Child>::spawn(&mut command()).unwrap()).collect();
    let inputs: Vec<_> = children.iter().map(|child| child.take_stdin()).collect();
    let waiting: Vec<_> = children
        .into_iter()
        .map(|child| spawn(async move { child.status().await.unwrap().code() }))
        .collect();
    block_on(yields(3));
    assert_eq!(block_on(unblock(|| 7)), 7);
    drop(inputs);
    for child in waiting {
        assert_eq!(block_on(child), Some(3));
    }
}
