//! Attacks on the order in which tickets are taken: storms, chains, slow tasks after quick ones.

mod common;

use common::{Flag, fresh_process, fresh_processes};
use smol::{Executor, LocalExecutor, Timer, future};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// 33 tasks that end at once, and 28 slow ones behind them, which count themselves.
fn quick_and_slow(slow: &Arc<AtomicUsize>) -> Vec<impl Future<Output = ()> + Send + use<>> {
    let task = |n| {
        let slow = slow.clone();
        async move {
            if n >= 33 {
                thread::sleep(Duration::from_millis(10));
                slow.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    (0..61).map(task).collect()
}

/// Says how many slow tasks had run when it came to its end: a timer that was due at once.
async fn slow_before_a_timer(slow: &AtomicUsize) -> usize {
    Timer::after(Duration::from_millis(1)).await;
    slow.load(Ordering::SeqCst)
}

/// No watcher ticks here: nothing but the loop's own look at the time can tell that tasks are slow.
#[test]
fn whoever_drives_notices_slow_tasks_also_after_many_quick_ones() {
    fresh_process(60, &[], || {
        let slow = Arc::new(AtomicUsize::new(0));
        let counts = [
            {
                quick_and_slow(&slow).into_iter().for_each(|task| smol::spawn_local(task).detach());
                smol::block_on(slow_before_a_timer(&slow))
            },
            {
                slow.store(0, Ordering::SeqCst);
                let ex = Executor::new();
                quick_and_slow(&slow).into_iter().for_each(|task| ex.spawn(task).detach());
                smol::block_on(ex.run(slow_before_a_timer(&slow)))
            },
            {
                let slow = Arc::new(AtomicUsize::new(0));
                let ex = LocalExecutor::new();
                quick_and_slow(&slow).into_iter().for_each(|task| ex.spawn(task).detach());
                smol::block_on(ex.run(slow_before_a_timer(&slow)))
            },
        ];
        assert!(counts.iter().all(|count| *count < 20), "{counts:?}");
    });
}

#[test]
fn tasks_that_spawn_for_ever_starve_neither_tasks_from_outside_nor_timers() {
    fresh_processes(60, &[&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")]], || {
        fn chain(stop: Arc<AtomicBool>) {
            smol::spawn(async move {
                if !stop.load(Ordering::Relaxed) {
                    chain(stop);
                }
            })
            .detach();
        }
        let stop = Arc::new(AtomicBool::new(false));
        chain(stop.clone());
        let storm = stop.clone();
        smol::spawn(async move {
            while !storm.load(Ordering::Relaxed) {
                (0..100).for_each(|_| smol::spawn(async {}).detach());
                future::yield_now().await;
            }
        })
        .detach();
        (0..100).for_each(|_| smol::block_on(smol::spawn(async {})));
        smol::block_on(smol::spawn(async {
            for _ in 0..20 {
                Timer::after(Duration::from_millis(1)).await;
            }
        }));
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn two_tasks_that_wake_each_other_for_ever_leave_room_for_spawned_ones() {
    fresh_process(60, &[("SMOL_THREADS", "1")], || {
        smol::block_on(smol::spawn(async {
            let (a, b) = (async_channel::bounded(1), async_channel::bounded(1));
            let one = smol::spawn(async move {
                while b.0.send(()).await.is_ok() && a.1.recv().await.is_ok() {}
            });
            let two = smol::spawn(async move {
                while b.1.recv().await.is_ok() && a.0.send(()).await.is_ok() {}
            });
            for _ in 0..1000 {
                smol::spawn(async {}).await;
            }
            drop((one, two));
        }));
    });
}

#[test]
fn ticks_reach_what_a_blocked_driver_has_spawned() {
    fresh_process(60, &[], || {
        let ex = Arc::new(Executor::new());
        let (sender, receiver) = mpsc::channel::<()>();
        let weak = Arc::downgrade(&ex);
        let blocks = ex.spawn(async move {
            let ex = weak.upgrade().unwrap();
            for _ in 0..10 {
                ex.spawn(future::yield_now()).detach();
            }
            ex.spawn(async move { drop(sender) }).detach();
            drop(ex);
            let _ = receiver.recv();
        });
        let other = ex.clone();
        let done = Flag::new();
        let until = done.clone();
        let ticks = thread::spawn(move || {
            smol::block_on(future::or(until.wait(), async {
                loop {
                    other.tick().await;
                }
            }))
        });
        smol::block_on(ex.run(blocks));
        done.set();
        ticks.join().unwrap();
    });
}

#[test]
fn a_loop_of_short_block_ons_runs_local_tasks_and_their_timers() {
    fresh_process(60, &[], || {
        let ran = std::rc::Rc::new(std::cell::Cell::new(0));
        let count = ran.clone();
        smol::spawn_local(async move {
            loop {
                count.set(count.get() + 1);
                Timer::after(Duration::from_millis(1)).await;
            }
        })
        .detach();
        while ran.get() < 50 {
            smol::block_on(async {});
            thread::sleep(Duration::from_millis(2));
        }
        while ran.get() < 100 {
            smol::block_on(async {});
        }
    });
}
