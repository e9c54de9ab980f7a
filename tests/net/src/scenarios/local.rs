//! Local tasks, and threads that end with them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::{Scenario, scenario};
use crate::smol::{LocalExecutor, Timer, block_on, future, spawn, spawn_local, unblock};
use crate::tools::*;

pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(local_tasks_are_woken_from_elsewhere),
        scenario!(a_local_task_and_the_main_future_are_woken_at_the_same_time),
        scenario!(local_tasks_wake_each_other),
        scenario!(a_local_executor_is_driven_and_woken_from_elsewhere),
        scenario!(a_local_executor_is_driven_and_spawned_onto),
        scenario!(a_local_driver_leaves_and_the_other_goes_on),
        scenario!(a_thread_ends_while_its_local_tasks_are_woken),
        scenario!(a_local_executor_is_dropped_while_a_ticket_is_on_its_way),
        scenario!(a_destructor_of_a_thread_local_uses_the_runtime),
        scenario!(a_worker_has_local_tasks_of_its_own),
        scenario!(a_local_task_waits_for_a_timer).may_be_late(2),
        scenario!(a_local_task_blocks_until_its_sibling_runs).may_be_late(2),
        scenario!(a_local_task_blocks_for_its_child_while_siblings_are_woken),
        scenario!(a_local_executor_inside_of_another_is_woken_from_elsewhere),
        scenario!(a_nested_local_drive_sleeps_in_a_task_of_the_outer_one),
    ]
}

fn local_tasks_are_woken_from_elsewhere() {
    let mut threads = Vec::new();
    let mut tasks = Vec::new();
    for n in 0..3 {
        let (sender, receiver) = oneshot();
        let not_send = Rc::new(n);
        tasks.push(spawn_local(async move {
            let got = receiver.await;
            on_my_thread();
            assert_eq!(got, Some(*not_send));
        }));
        threads.push(thread("waker", move || sender.send(n)));
    }
    for task in tasks {
        block_on(task);
    }
    join(threads);
}

fn a_local_task_and_the_main_future_are_woken_at_the_same_time() {
    let (sender, receiver) = oneshot();
    let (other_sender, other_receiver) = oneshot();
    let task = spawn_local(receiver);
    let threads =
        [thread("waker", move || sender.send(1)), thread("other", move || other_sender.send(2))];
    assert_eq!(block_on(future::zip(other_receiver, task)), (Some(2), Some(1)));
    join(threads);
}

fn local_tasks_wake_each_other() {
    let shared = Rc::new(Cell::new(0));
    let (there, mut receiver) = oneshot();
    let mut sender = there;
    let mut tasks = Vec::new();
    for n in 0..4 {
        let (next, next_receiver) = oneshot();
        let shared = shared.clone();
        tasks.push(spawn_local(async move {
            receiver.await.unwrap();
            shared.set(shared.get() + n);
            next.send(());
        }));
        receiver = next_receiver;
    }
    block_on(async {
        std::mem::replace(&mut sender, oneshot().0).send(());
        receiver.await.unwrap();
    });
    assert_eq!(shared.get(), 6);
}

fn a_local_executor_is_driven_and_woken_from_elsewhere() {
    let executor = LocalExecutor::new();
    let (sender, receiver) = oneshot();
    let task = executor.spawn(async move {
        on_my_thread();
        receiver.await
    });
    let waker = thread("waker", move || sender.send(3));
    assert_eq!(block_on(executor.run(task)), Some(3));
    join([waker]);
}

/// From outside of the one who drives it.
fn a_local_executor_is_driven_and_spawned_onto() {
    let executor = LocalExecutor::new();
    let (stop, stopped) = oneshot::<()>();
    let spawner = async {
        yields(random(3)).await;
        assert_eq!(executor.spawn(async { 7 }).await, 7);
        drop(stop);
    };
    block_on(future::zip(executor.run(stopped), spawner));
}

/// Its main future has woken a task, and is ready.
fn a_local_driver_leaves_and_the_other_goes_on() {
    let executor = LocalExecutor::new();
    let (sender, receiver) = oneshot();
    let task = executor.spawn(receiver);
    let leaves = async {
        yields(1).await;
        executor.run(async { sender.send(5) }).await;
    };
    assert_eq!(block_on(future::zip(executor.run(task), leaves)).0, Some(5));
}

fn a_thread_ends_while_its_local_tasks_are_woken() {
    let tally = Tally::default();
    let (sender, receiver) = oneshot();
    let (ready, is_ready) = oneshot();
    let owner = thread("owner", {
        let tally = tally.clone();
        move || {
            let counted = tally.begin();
            spawn_local(async move {
                receiver.await;
                on_my_thread();
                drop(counted);
            })
            .detach();
            ready.send(());
            block_on(yields(2));
        }
    });
    block_on(is_ready);
    sender.send(());
    join([owner]);
    tally.all_have_ended(1);
}

/// Whoever wakes the task has issued it and not queued it yet.
fn a_local_executor_is_dropped_while_a_ticket_is_on_its_way() {
    let tally = Tally::default();
    let executor = LocalExecutor::new();
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

struct Uses(RefCell<Option<Sender<u32>>>);

impl Drop for Uses {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let got = block_on(async { spawn(async { 1 }).await + unblock(|| 2).await });
            sender.send(got);
        }
    }
}

thread_local! {
    static USES: Uses = const { Uses(RefCell::new(None)) };
}

fn a_destructor_of_a_thread_local_uses_the_runtime() {
    let (sender, receiver) = oneshot();
    let thread = thread("ends", move || {
        USES.with(|uses| *uses.0.borrow_mut() = Some(sender));
        block_on(yields(1));
    });
    assert_eq!(block_on(receiver), Some(3));
    join([thread]);
}

fn a_worker_has_local_tasks_of_its_own() {
    let (sender, receiver) = oneshot();
    let outer = spawn(async move {
        let local = spawn_local(async move {
            let got = receiver.await;
            on_a_worker();
            got
        });
        spawn(async {}).await;
        local.await
    });
    let waker = thread("waker", move || sender.send(4));
    assert_eq!(block_on(outer), Some(4));
    join([waker]);
}

fn a_local_task_waits_for_a_timer() {
    needs(millis(3));
    let task = spawn_local(async { Timer::after(millis(3)).await });
    block_on(task);
}

/// It is patient, since siblings may take their time, but not for ever.
fn a_local_task_blocks_until_its_sibling_runs() {
    needs(millis(100));
    let (sender, receiver) = oneshot();
    let blocks = spawn_local(async { block_on(receiver) });
    let sibling = spawn_local(async move { sender.send(5) });
    assert_eq!(block_on(blocks), Some(5));
    block_on(sibling);
}

/// What comes for the siblings wakes the nested `block_on`, which has to leave it alone.
fn a_local_task_blocks_for_its_child_while_siblings_are_woken() {
    let ((wakes, woken), (sends, received)) = (oneshot(), oneshot());
    let ((deep, deepest), tally) = (oneshot(), Tally::default());
    let counted = tally.begin();
    let blocks = spawn_local(async move {
        let child = spawn_local(async move {
            let grandchild = spawn_local(deepest);
            let first = received.await;
            first.and(block_on(grandchild))
        });
        block_on(child)
    });
    let sibling = spawn_local(async move {
        drop(counted);
        woken.await
    });
    let threads = [
        thread("sibling", move || wakes.send(1)),
        thread("child", move || sends.send(2)),
        thread("grandchild", move || deep.send(3)),
    ];
    assert_eq!(block_on(future::zip(blocks, sibling)), (Some(3), Some(1)));
    tally.all_have_ended(1);
    join(threads);
}

fn a_local_executor_inside_of_another_is_woken_from_elsewhere() {
    let (outer, inner) = (Rc::new(LocalExecutor::new()), Rc::new(LocalExecutor::new()));
    let ((one, first), (two, second)) = (oneshot(), oneshot());
    let task = outer.spawn(first);
    let nested = outer.spawn({
        let (outer, inner) = (outer.clone(), inner.clone());
        async move {
            let task = inner.spawn(second);
            if perhaps() {
                block_on(outer.run(inner.run(yields(1))));
            }
            if perhaps() { block_on(inner.run(task)) } else { inner.run(task).await }
        }
    });
    let threads = [thread("one", move || one.send(1)), thread("two", move || two.send(2))];
    if perhaps() {
        block_on(async {
            let mut run = Box::pin(outer.run(future::pending::<()>()));
            once(&mut run).await;
            yields(random(2)).await;
        });
    }
    assert_eq!(block_on(outer.run(future::zip(task, nested))), (Some(1), Some(2)));
    assert!(outer.is_empty() && inner.is_empty());
    join(threads);
}

/// The outer drive is on the stack, and does not hear of what its thread wakes meanwhile.
fn a_nested_local_drive_sleeps_in_a_task_of_the_outer_one() {
    let executor = Rc::new(LocalExecutor::new());
    let inner = executor.clone();
    let task = executor.spawn(async move {
        let task = if perhaps() {
            needs(millis(1));
            inner.spawn(async { _ = Timer::after(millis(1)).await })
        } else {
            inner.spawn(unblock(|| ()))
        };
        block_on(inner.run(task));
    });
    block_on(executor.run(task));
}
