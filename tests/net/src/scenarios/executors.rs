//! `Executor` with drivers that come and go, and `scope`.

use std::sync::Arc;
use std::thread::{JoinHandle, sleep};

use super::{Scenario, scenario};
use crate::smol::{Executor, Timer, block_on, future, scope, spawn, spawn_local};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(two_drivers_of_an_executor_and_one_leaves),
        scenario!(two_drivers_share_what_is_spawned_from_outside),
        scenario!(an_executor_is_driven_tick_by_tick),
        scenario!(an_executor_is_dropped_while_its_tasks_are_woken),
        scenario!(an_executor_is_dropped_while_a_ticket_is_on_its_way),
        scenario!(an_executor_is_dropped_with_what_a_leaked_driver_has_left),
        scenario!(an_executor_is_dropped_while_somebody_holds_its_task),
        scenario!(two_tasks_come_and_the_first_blocks_until_the_second_runs),
        scenario!(a_driver_is_dropped_half_way),
        scenario!(a_driver_leaves_tickets_behind),
        scenario!(a_driver_leaves_tickets_behind_to_a_tick_and_a_driver),
        scenario!(a_driver_leaves_with_more_tasks_than_fit).one_in(10),
        scenario!(a_tick_takes_what_did_not_fit_for_a_driver_that_blocks).one_in(10),
        scenario!(drives_of_all_kinds_come_and_go_beside_one_that_stays),
        scenario!(drives_of_all_kinds_reach_what_a_blocked_one_waits_for),
        scenario!(a_driver_is_called_and_its_main_future_blocks),
        scenario!(a_driver_is_called_and_dropped),
        scenario!(the_tasks_of_a_scope_borrow_and_are_joined),
        scenario!(a_scope_is_cancelled_while_its_tasks_are_woken),
        scenario!(a_scope_is_dropped_half_way),
        scenario!(a_child_is_spawned_while_nobody_polls_its_scope),
        scenario!(a_driver_blocks_and_the_other_one_takes_over),
        scenario!(a_driver_sits_in_the_poller_for_its_task).may_be_late(2),
        scenario!(a_driver_blocks_with_a_timer_for_the_other).may_be_late(5),
        scenario!(a_driver_blocks_with_a_timer_while_a_worker_falls_asleep).needs_the_watcher(),
        scenario!(a_driver_blocks_with_a_timer_for_the_other_without_a_watcher).may_be_late(2),
    ]
}

fn two_drivers_of_an_executor_and_one_leaves() {
    let executor = Arc::new(Executor::new());
    let (sender, receiver) = oneshot();
    let leaving = thread("leaves", {
        let executor = executor.clone();
        move || block_on(executor.run(receiver))
    });
    let task = executor.spawn(async move {
        yields(1).await;
        sender.send(());
        yields(1).await;
        5
    });
    assert_eq!(block_on(executor.run(task)), 5);
    // Nobody else drives it now.
    let last = executor.spawn(async { 6 });
    assert_eq!(block_on(executor.run(last)), 6);
    join([leaving]);
}

fn two_drivers_share_what_is_spawned_from_outside() {
    let executor = Arc::new(Executor::new());
    let (mut stops, mut drivers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (stop, stopped) = oneshot::<()>();
        stops.push(stop);
        let executor = executor.clone();
        drivers.push(thread("driver", move || block_on(executor.run(stopped))));
    }
    for n in 0..3 {
        let first = executor.spawn(async move { n });
        let second = executor.spawn(yields(1));
        assert_eq!(block_on(first), n);
        block_on(second);
    }
    for stop in stops {
        stop.send(());
    }
    join(drivers);
}

fn an_executor_is_driven_tick_by_tick() {
    let executor = Arc::new(Executor::new());
    let (sender, receiver) = oneshot();
    let tasks = [executor.spawn(receiver), executor.spawn(async { Some(2) })];
    let waker = thread("waker", move || sender.send(1));
    let ticker = thread("ticker", {
        let executor = executor.clone();
        move || {
            block_on(async {
                while !executor.is_empty() {
                    if perhaps() {
                        executor.try_tick();
                        yields(1).await;
                    } else {
                        future::or(executor.tick(), yields(2)).await;
                    }
                }
            });
        }
    });
    let [first, second] = tasks;
    assert_eq!(block_on(future::zip(first, second)), (Some(1), Some(2)));
    join([ticker]);
    join([waker]);
}

fn an_executor_is_dropped_while_its_tasks_are_woken() {
    let tally = Tally::default();
    let executor = Executor::new();
    let mut threads = Vec::new();
    for n in 0..3 {
        let (sender, receiver) = oneshot();
        let counted = tally.begin();
        executor
            .spawn(async move {
                receiver.await;
                drop(counted);
            })
            .detach();
        threads.push(thread("waker", move || sender.send(n)));
    }
    if perhaps() {
        block_on(executor.run(yields(1)));
    }
    drop(executor);
    tally.all_have_ended(3);
    join(threads);
}

/// Whoever wakes the task has issued it and not queued it yet.
fn an_executor_is_dropped_while_a_ticket_is_on_its_way() {
    let tally = Tally::default();
    let executor = Executor::new();
    let (sender, receiver) = oneshot();
    let counted = tally.begin();
    executor
        .spawn(async move {
            receiver.await;
            drop(counted);
        })
        .detach();
    assert!(executor.try_tick());
    let waker = thread("waker", move || sender.send(()));
    drop(executor);
    tally.all_have_ended(1);
    join([waker]);
}

fn an_executor_is_dropped_with_what_a_leaked_driver_has_left() {
    let tally = Tally::default();
    let executor = Executor::new();
    for _ in 0..3 {
        let counted = tally.begin();
        executor
            .spawn(async move {
                let _counted = counted;
                future::pending::<()>().await;
            })
            .detach();
    }
    block_on(async {
        // It has run one of them and taken the others, into a queue of its own.
        let mut run = Box::pin(executor.run(async {
            yields(1).await;
            future::pending::<()>().await;
        }));
        once(&mut run).await;
        std::mem::forget(run);
    });
    drop(executor);
    tally.all_have_ended(3);
}

/// Nobody wakes it but the executor.
fn an_executor_is_dropped_while_somebody_holds_its_task() {
    let tally = Tally::default();
    let executor = Executor::new();
    let counted = tally.begin();
    let task = executor.spawn(async move {
        let _counted = counted;
        future::pending::<()>().await;
    });
    assert!(executor.try_tick());
    drop(executor);
    tally.all_have_ended(1);
    drop(task);
}

/// Whoever takes the first takes the second along, and for a moment nobody can see it.
fn two_tasks_come_and_the_first_blocks_until_the_second_runs() {
    let executor = Arc::new(Executor::new());
    let drivers = [driver(&executor), driver(&executor)];
    for _ in 0..3 {
        let flag = Flag::default();
        let first = executor.spawn({
            let flag = flag.clone();
            async move { flag.wait() }
        });
        let second = executor.spawn(async move { flag.set() });
        foreign_block_on(future::zip(first, second));
    }
    for (stop, driver) in drivers {
        drop(stop);
        join([driver]);
    }
}

fn a_driver_is_dropped_half_way() {
    let executor = Arc::new(Executor::new());
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            executor.spawn(async move {
                yields(2).await;
                n
            })
        })
        .collect();
    let dropped = thread("dropped", {
        let executor = executor.clone();
        move || {
            block_on(async {
                let mut run = Box::pin(executor.run(future::pending::<()>()));
                once(&mut run).await;
                if perhaps() {
                    yields(1).await;
                }
            });
        }
    });
    let all = async {
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await, n);
        }
    };
    block_on(executor.run(all));
    join([dropped]);
}

/// The one that leaves has taken a share of the injector, and the other one falls asleep.
fn a_driver_leaves_tickets_behind() {
    let executor = Arc::new(Executor::new());
    let (stop, stopped) = oneshot::<()>();
    let driver = thread("driver", {
        let executor = executor.clone();
        move || block_on(executor.run(stopped))
    });
    let tasks: Vec<_> = (0..4).map(|n| executor.spawn(async move { n })).collect();
    let leaving = thread("leaves", {
        let executor = executor.clone();
        move || {
            block_on(async {
                // The main future is ready when it has run nothing, or one task.
                let run = executor.run(yields(1));
                future::or(run, yields(1)).await;
            });
        }
    });
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(block_on(task), n);
    }
    stop.send(());
    join([driver]);
    join([leaving]);
}

/// Its tickets are in a queue that nobody can see any more, and then in the injector. Whoever falls
/// asleep in between is called for all of them, and may want one only.
fn a_driver_leaves_tickets_behind_to_a_tick_and_a_driver() {
    let executor = Arc::new(Executor::new());
    let (stop, driver) = driver(&executor);
    let (enough, has_enough) = oneshot::<()>();
    let ticker = thread("ticks", {
        let executor = executor.clone();
        move || {
            let tick = async {
                executor.tick().await;
                Some(())
            };
            block_on(future::or(tick, has_enough))
        }
    });
    let leaving = thread("leaves", {
        let executor = executor.clone();
        move || {
            block_on(executor.run(async { [0, 1, 2].map(|n| executor.spawn(async move { n })) }))
        }
    });
    for (n, task) in leaving.join().unwrap().into_iter().enumerate() {
        assert_eq!(foreign_block_on(task), n);
    }
    drop((enough, stop));
    join([ticker, driver]);
}

/// All of them go to the injector.
fn a_driver_leaves_with_more_tasks_than_fit() {
    let executor = Arc::new(Executor::new());
    let tasks = block_on(
        executor
            .run(async { (0..300).map(|n| executor.spawn(async move { n })).collect::<Vec<_>>() }),
    );
    let (stop, driver) = driver(&executor);
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(foreign_block_on(task), n);
    }
    drop(stop);
    join([driver]);
}

/// Whoever ticks has no queue of its own.
fn a_tick_takes_what_did_not_fit_for_a_driver_that_blocks() {
    let executor = Arc::new(Executor::new());
    let flag = Flag::default();
    let driver = thread("driver", {
        let (executor, flag) = (executor.clone(), flag.clone());
        move || {
            block_on(executor.run(async {
                (0..300).for_each(|_| executor.spawn(async {}).detach());
                flag.wait();
            }));
        }
    });
    for _ in 0..300 {
        block_on(executor.tick());
    }
    flag.set();
    join([driver]);
}

/// One drive of a random kind, which does not last.
fn drive_shortly(executor: &Executor<'static>) {
    match random(6) {
        0 => _ = executor.try_tick(),
        1 => block_on(executor.run(async {})),
        2 => block_on(executor.run(yields(1))),
        3 => block_on(future::or(executor.tick(), yields(2))),
        4 => {
            let drives = future::or(executor.run(yields(3)), executor.tick());
            block_on(future::or(drives, yields(2)));
        }
        _ => {
            let mut run = Box::pin(executor.run(future::pending::<()>()));
            block_on(once(&mut run));
            if perhaps() {
                executor.try_tick();
            }
        }
    }
}

fn drives_of_all_kinds_come_and_go_beside_one_that_stays() {
    let executor = Arc::new(Executor::new());
    let tally = Tally::default();
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let (inner, tally) = (Arc::downgrade(&executor), tally.clone());
            executor.spawn(async move {
                let _counted = tally.begin();
                yields(n).await;
                if let (1, Some(executor)) = (n % 2, inner.upgrade()) {
                    let child = executor.spawn(yields(1));
                    if n == 3 {
                        executor.try_tick();
                    }
                    drop(executor);
                    child.await;
                }
            })
        })
        .collect();
    let threads = [0, 1].map(|_| {
        let executor = executor.clone();
        thread("drives", move || (0..2).for_each(|_| drive_shortly(&executor)))
    });
    block_on(executor.run(async {
        for task in tasks {
            task.await;
        }
    }));
    join(threads);
    assert!(executor.is_empty());
    tally.all_have_ended(4);
}

fn drives_of_all_kinds_reach_what_a_blocked_one_waits_for() {
    let executor = Arc::new(Executor::new());
    let inner = executor.clone();
    let is_woken = perhaps();
    let blocks = executor.spawn(async move {
        let flag = Flag::default();
        let other = flag.clone();
        if is_woken {
            let (task, wake, is_waiting) = waits(async move { other.set() });
            inner.spawn(task).detach();
            is_waiting.await;
            wake.send(());
        } else {
            inner.spawn(async move { other.set() }).detach();
        }
        drop(inner);
        flag.wait();
    });
    let (says, done) = oneshot();
    let driver = thread("blocks", {
        let executor = executor.clone();
        move || {
            block_on(executor.run(blocks));
            says.send(());
        }
    });
    let drives = thread("drives", {
        let executor = executor.clone();
        move || (0..20).for_each(|_| drive_shortly(&executor))
    });
    join([drives]);
    block_on(executor.run(done));
    join([driver]);
}

/// A driver in a thread of its own, until the sender is dropped.
fn driver(executor: &Arc<Executor<'static>>) -> (Sender<()>, JoinHandle<Option<()>>) {
    let (stop, stopped) = oneshot();
    let executor = executor.clone();
    (stop, thread("driver", move || block_on(executor.run(stopped))))
}

fn a_driver_is_called_and_its_main_future_blocks() {
    let executor = Arc::new(Executor::new());
    let flag = Flag::default();
    let (stop, other) = driver(&executor);
    let (sender, receiver) = oneshot();
    let blocks = thread("blocks", {
        let (executor, flag) = (executor.clone(), flag.clone());
        move || {
            block_on(executor.run(async {
                receiver.await;
                flag.wait();
            }));
        }
    });
    block_on(yields(random(3)));
    sender.send(());
    executor.spawn(async move { flag.set() }).detach();
    join([blocks]);
    drop(stop);
    join([other]);
}

fn a_driver_is_called_and_dropped() {
    let executor = Arc::new(Executor::new());
    let (stop, other) = driver(&executor);
    let (ready, is_ready) = oneshot();
    let (leave, leaves) = oneshot();
    let dropped = thread("dropped", {
        let executor = executor.clone();
        move || {
            block_on(async {
                let mut run = Box::pin(executor.run(future::pending::<()>()));
                once(&mut run).await;
                ready.send(());
                // It is woken for the ticket here, and does not look.
                leaves.await;
                drop(run);
            });
        }
    });
    block_on(is_ready);
    let task = executor.spawn(async { 1 });
    leave.send(());
    assert_eq!(block_on(task), 1);
    join([dropped]);
    drop(stop);
    join([other]);
}

fn the_tasks_of_a_scope_borrow_and_are_joined() {
    let numbers = [1, 2, 3];
    let tally = Tally::default();
    let sum = block_on(scope(async |scope| {
        let tasks: Vec<_> = numbers
            .iter()
            .map(|n| {
                let counted = tally.begin();
                scope.spawn(async move {
                    yields(1).await;
                    drop(counted);
                    *n
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        sum
    }));
    assert_eq!(sum, 6);
    tally.all_have_ended(3);
}

fn a_scope_is_cancelled_while_its_tasks_are_woken() {
    let tally = Tally::default();
    let (sender, receiver) = oneshot();
    let (_never, forever) = oneshot::<()>();
    let waker = thread("waker", move || sender.send(()));
    block_on(scope(async |scope| {
        for receiver in [receiver, forever] {
            let counted = tally.begin();
            let inner = scope.clone();
            drop(scope.spawn(async move {
                let _counted = counted;
                receiver.await;
                inner.cancel();
            }));
        }
    }));
    tally.all_have_ended(2);
    join([waker]);
}

/// Its handle is somewhere else on the same thread.
fn a_child_is_spawned_while_nobody_polls_its_scope() {
    let handle = std::cell::RefCell::new(None);
    let (sender, receiver) = oneshot();
    let waits = scope(async |scope| {
        *handle.borrow_mut() = Some(scope);
        receiver.await
    });
    let spawns = async {
        let scope = handle.borrow_mut().take();
        drop(scope.map(|scope| scope.spawn(async move { sender.send(5) })));
    };
    assert_eq!(block_on(future::zip(waits, spawns)).0, Some(5));
}

fn a_scope_is_dropped_half_way() {
    let tally = Tally::default();
    let (sender, receiver) = oneshot();
    let waker = thread("waker", move || sender.send(()));
    let inner = tally.clone();
    let task = spawn_local(async move {
        scope(async |scope| {
            let counted = inner.begin();
            drop(scope.spawn(async move {
                receiver.await;
                drop(counted);
                future::pending::<()>().await;
            }));
            yields(1).await;
        })
        .await;
    });
    block_on(yields(3));
    block_on(task.cancel());
    join([waker]);
    let (begun, ended) = tally.counts();
    assert_eq!(begun, ended);
}

fn a_driver_blocks_and_the_other_one_takes_over() {
    let executor = Arc::new(Executor::new());
    let (stop, stopped) = oneshot::<()>();
    let driver = thread("driver", {
        let executor = executor.clone();
        move || block_on(executor.run(stopped))
    });
    let flag = Flag::default();
    let setter = {
        let flag = flag.clone();
        async move { flag.set() }
    };
    let inner = executor.clone();
    let task = executor.spawn(async move {
        // In the injector or in this thread's queue: the other driver can reach it.
        let other = inner.spawn(setter);
        let another = inner.spawn(async {});
        flag.wait();
        other.await;
        another.await;
    });
    block_on(executor.run(task));
    stop.send(());
    join([driver]);
}

fn a_driver_sits_in_the_poller_for_its_task() {
    needs(millis(4));
    let executor = Arc::new(Executor::new());
    let task = executor.spawn(async { Timer::after(millis(4)).await });
    let driver = thread("driver", {
        let executor = executor.clone();
        move || block_on(executor.run(Timer::after(millis(2))))
    });
    block_on(executor.run(task));
    join([driver]);
}

/// One has polled the task with the timer, and blocks before it sleeps; the other one sleeps
/// already.
fn a_timer_is_polled_by_a_driver_that_blocks(just_before: fn()) {
    needs(millis(2));
    let executor = Arc::new(Executor::new());
    let (stop, other) = driver(&executor);
    just_before();
    let flag = Flag::default();
    let (sender, receiver) = oneshot();
    let task = executor.spawn({
        let flag = flag.clone();
        async move {
            let mut timer = Timer::after(millis(2));
            once(&mut timer).await;
            sender.send(());
            timer.await;
            flag.set();
        }
    });
    block_on(executor.run(async {
        receiver.await;
        flag.wait();
    }));
    block_on(executor.run(task));
    drop(stop);
    join([other]);
}

fn a_driver_blocks_with_a_timer_for_the_other() {
    // There is a worker that sleeps, or is about to, and the watcher.
    block_on(spawn(async {}));
    a_timer_is_polled_by_a_driver_that_blocks(|| {});
}

/// A worker falls asleep, and stops the alarm, while the driver begins to wait.
fn a_driver_blocks_with_a_timer_while_a_worker_falls_asleep() {
    block_on(spawn(async {}));
    a_timer_is_polled_by_a_driver_that_blocks(|| {
        // Long enough that the alarm does not go on ringing because it is needed so often.
        needs(millis(5));
        sleep(millis(5));
        spawn(async {}).detach();
    });
}

fn a_driver_blocks_with_a_timer_for_the_other_without_a_watcher() {
    set_starts(0, ALL);
    // It is not tried again soon.
    block_on(spawn(async {}));
    a_timer_is_polled_by_a_driver_that_blocks(|| {});
}
