//! Attacks on a process that may not start any more threads, from some moment on.

#![cfg(target_os = "linux")]

mod common;

use common::{Flag, foreign_block_on, fresh_processes, hook_waker, wait_in_some_way};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};
use smol::{Timer, block_on, spawn};
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const SIZES: [&[(&str, &str)]; 3] =
    [&[("SMOL_THREADS", "1")], &[("SMOL_THREADS", "2")], &[("SMOL_THREADS", "8")]];

/// From here on no thread can be started.
fn forbid_threads() {
    let mut calls = vec![libc::SYS_clone3];
    #[cfg(target_arch = "x86_64")]
    calls.extend([libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork]);
    #[cfg(not(target_arch = "x86_64"))]
    calls.push(libc::SYS_clone);
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let action = SeccompAction::Errno(libc::EAGAIN as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap();
    apply_filter_all_threads(&BpfProgram::try_from(filter).unwrap()).unwrap();
    assert!(thread::Builder::new().spawn(|| {}).is_err());
}

/// Threads that run what they are sent, started before they are forbidden.
fn hands(count: usize) -> Vec<mpsc::Sender<Box<dyn FnOnce() + Send>>> {
    let hand = |_| {
        let (sender, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    };
    (0..count).map(hand).collect()
}

fn storm(hands: &[mpsc::Sender<Box<dyn FnOnce() + Send>>]) {
    let (sender, ends) = mpsc::channel();
    for (n, hand) in hands.iter().enumerate() {
        let sender = sender.clone();
        let job = move || {
            for round in 0..30_u64 {
                wait_in_some_way(n as u64, round);
            }
            sender.send(()).unwrap();
        };
        hand.send(Box::new(job)).unwrap();
    }
    drop(sender);
    assert_eq!(ends.into_iter().count(), hands.len());
}

#[test]
fn a_program_that_could_never_start_a_thread_runs_everything() {
    fresh_processes(60, &SIZES, || {
        let hands = hands(6);
        forbid_threads();
        storm(&hands);
    });
}

#[test]
fn a_program_with_one_worker_and_no_thread_more_runs_everything() {
    fresh_processes(60, &SIZES, || {
        let hands = hands(6);
        block_on(spawn(async {}));
        forbid_threads();
        storm(&hands);
    });
}

#[test]
fn a_worker_that_waits_in_block_on_is_stood_in_for_and_comes_back() {
    fresh_processes(60, &SIZES, || {
        let hands = hands(4);
        block_on(spawn(async {}));
        forbid_threads();
        let stop = Flag::new();
        let waits = |stop: &Arc<Flag>| {
            let stop = stop.clone();
            spawn(async move { block_on(stop.wait()) })
        };
        let blocked = [waits(&stop)]; // Whoever stands in for a second one is held up by it.
        storm(&hands);
        stop.set();
        block_on(async {
            for task in blocked {
                task.await;
            }
        });
        storm(&hands);
    });
}

#[test]
fn the_only_worker_runs_what_its_own_task_waits_for() {
    fresh_processes(20, &SIZES, || {
        block_on(spawn(async {}));
        forbid_threads();
        // Nobody else is in `block_on`, and the tasks are queued while the worker is busy.
        for deep in [1, 2, 5] {
            fn nested(deep: u32) -> u32 {
                if deep == 0 { 0 } else { 1 + block_on(spawn(async move { nested(deep - 1) })) }
            }
            assert_eq!(foreign_block_on(spawn(async move { nested(deep) })), deep);
        }
    });
}

/// The only worker sits in the poller for its task's `block_on`, and a waker of those that it wakes there waits in one more.
#[test]
fn a_waker_that_waits_for_a_task_gets_it_from_the_only_worker_that_wakes_it() {
    fresh_processes(20, &[&[("SMOL_THREADS", "1")]], || {
        block_on(spawn(async {}));
        forbid_threads();
        let (begun, has_begun) = mpsc::channel();
        let (sender, ends) = mpsc::channel();
        let (wakes, woken) = async_channel::bounded::<()>(1);
        spawn(async move {
            let sender = sender.clone();
            let waker = hook_waker(move || {
                begun.send(()).unwrap();
                block_on(woken.recv()).unwrap();
                let _ = sender.send(());
            });
            let mut timer = Timer::after(Duration::from_millis(10));
            let context = &mut std::task::Context::from_waker(&waker);
            assert!(std::pin::Pin::new(&mut timer).poll(context).is_pending());
            block_on(Timer::after(Duration::from_secs(60)));
        })
        .detach();
        has_begun.recv().unwrap();
        // The worker waits in the waker now, or soon: nobody else is there to run this.
        thread::sleep(Duration::from_millis(100));
        spawn(async move { wakes.send(()).await.unwrap() }).detach();
        ends.recv().unwrap();
    });
}

#[test]
fn a_program_that_only_called_block_on_gets_its_timers_without_a_watcher() {
    fresh_processes(60, &SIZES, || {
        let hands = hands(6);
        block_on(Timer::after(Duration::from_millis(1)));
        forbid_threads();
        let (sender, ends) = mpsc::channel();
        for (n, hand) in hands.iter().enumerate() {
            let sender = sender.clone();
            let job = move || {
                for round in 0..100_u64 {
                    let time = Duration::from_micros((n as u64 * 337 + round * 101) % 2000);
                    block_on(Timer::after(time));
                    // Not in the poller, and not for long.
                    thread::sleep(Duration::from_micros(n as u64 * 100));
                }
                sender.send(()).unwrap();
            };
            hand.send(Box::new(job)).unwrap();
        }
        drop(sender);
        assert_eq!(ends.into_iter().count(), hands.len());
    });
}

#[test]
fn what_a_worker_had_in_hand_when_it_blocked_is_run_by_those_who_stand_in() {
    fresh_processes(20, &SIZES, || {
        block_on(spawn(async {}));
        forbid_threads();
        let [begun, gate, done] = [(); 3].map(|()| Flag::new());
        let (has_begun, is_open) = (begun.clone(), gate.clone());
        let first = spawn(async move {
            has_begun.set();
            is_open.wait_blocking();
        });
        begun.wait_blocking();
        // The worker takes both at once, when it is let go.
        let is_done = done.clone();
        let blocks = spawn(async move { block_on(is_done.wait()) });
        let frees = spawn(async move { done.set() });
        gate.set();
        block_on(async { (first.await, blocks.await, frees.await) });
    });
}
